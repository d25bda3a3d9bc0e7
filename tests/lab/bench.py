"""Measures how long the platform takes on the lab's six empty machines, and prints one JSON; `make bench` runs it.

`floor` is the same work on the machines by shell scripts over parallel SSH, without a check, a gate or a second look.
Durations are in seconds, memory in GiB without what the kernel caches, `api_gap` the longest time without an
acknowledged write to the API during an operation. The lab is a deployed one afterwards.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import yaml

from tests.lab.running import DATA, ROOT, Lab
from tests.lab.test_upgrade import NEW, Writer, back

NOOPS = 3
# The cluster, which the floor and ansible-playbook alone are compared with, ends here; then comes the platform.
LAST = "canal"
ORDER = [
    str(entry["ansible.builtin.import_playbook"]) for entry in yaml.safe_load((ROOT / "playbooks/site.yml").read_text())
]
CLUSTER = tuple(f"playbooks/{path}" for path in ORDER[: ORDER.index(f"stages/{LAST}.yml") + 1])
# What a machine gets: packages, forwarding, the release, configuration and tokens, and RKE2 is started.
FLOOR = """set -eu
printf 'Dir::Etc::sourcelist "/etc/apt/floor.list";\\nDir::Etc::sourceparts "-";\\n' >/etc/apt/apt.conf.d/90floor
echo 'deb [trusted=yes] {mirror}/packages/bookworm ./' >/etc/apt/floor.list
export DEBIAN_FRONTEND=noninteractive
apt-get -q update >/dev/null
apt-get -q -y install --no-install-recommends chrony iptables python3-apt {extra} >/dev/null
sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
install -d -m 0700 /etc/rancher/rke2 {data}/agent/images
python3 - <<'PY'
import hashlib, os, urllib.request
names = ["rke2.linux-amd64.tar.gz", "rke2-images-core.linux-amd64.tar.zst", "rke2-images-canal.linux-amd64.tar.zst"]
where = "{mirror}/rke2/{release}/".replace("+", "%2B")
listed = urllib.request.urlopen(where + "sha256sum-amd64.txt").read().decode()
for name in names:
    data = urllib.request.urlopen(where + name).read()
    assert hashlib.sha256(data).hexdigest() in listed
    open("/tmp/" + name if name.endswith("gz") else "{data}/agent/images/" + name, "wb").write(data)
PY
tar -xzf /tmp/rke2.linux-amd64.tar.gz -C /usr/local
umask 077; cat >/etc/rancher/rke2/config.yaml
systemctl daemon-reload && systemctl enable -q --now --no-block rke2-{service}
"""
READY = f"""until {DATA}/bin/kubectl --kubeconfig /etc/rancher/rke2/rke2.yaml get nodes --no-headers 2>/dev/null |
awk '$2 == "Ready"' | grep -cE '^({{names}}) ' | grep -qx {{count}}; do sleep 0.5; done"""


def ssh(lab: Lab, name: str, script: str, stdin: str = "") -> None:
    """Run a script on a machine."""
    command = ["ssh", *lab.ssh, f"root@{lab.machines[name].address}", script]
    subprocess.run(command, input=stdin, text=True, check=True, capture_output=True, timeout=900)


def floor(lab: Lab) -> float:
    """How long the six machines need when nothing but scripts stands between them and a cluster."""
    site = yaml.safe_load((ROOT / "inventories/lab/group_vars/all/site.yml").read_text())
    release = yaml.safe_load((ROOT / "inventories/lab/group_vars/all/versions.yml").read_text())["rke2_version"]
    secrets, first = lab.secrets(), lab.machines[lab.servers[0]].address

    def install(name: str) -> None:
        server = name in lab.servers
        config: dict[str, Any] = {"node-name": name, "node-ip": lab.machines[name].address}
        config["token"] = secrets["vault_site_rke2_token" if server else "vault_site_rke2_agent_token"]
        if server:
            config |= {"agent-token": secrets["vault_site_rke2_agent_token"], "cni": site["site_cluster_cni"]}
            config["node-taint"] = ["node-role.kubernetes.io/control-plane:NoSchedule"]
        if name != lab.servers[0]:
            config["server"] = f"https://{first}:9345"
        service = "server" if server else "agent"
        extra = "keepalived" if server else ""
        script = FLOOR.format(mirror=site["site_bundle"], data=DATA, release=release, service=service, extra=extra)
        ssh(lab, name, script, yaml.safe_dump(config))

    def ready(*names: str) -> None:
        ssh(lab, lab.servers[0], READY.format(names="|".join(names), count=len(names)))

    lab.renew(*lab.machines)
    began = time.monotonic()
    for name in lab.servers:
        install(name)
        ready(name)
    with ThreadPoolExecutor() as pool:
        list(pool.map(install, lab.agents))
    ready(*lab.machines)
    return time.monotonic() - began


def driven(lab: Lab, *options: str) -> tuple[float, dict[str, float]]:
    """A deploy by the driver: how long it took as a whole and by stage."""
    began = time.monotonic()
    done = lab.drive("deploy", *options)
    seconds = time.monotonic() - began
    if done.status:
        sys.exit(done.told)
    return seconds, {stage["stage"]: stage["seconds"] for stage in done.document["stages"]}


def played(lab: Lab) -> float:
    """The cluster by ansible-playbook alone."""
    began = time.monotonic()
    recap = lab.play(playbooks=CLUSTER)
    if recap.status:
        sys.exit(recap.output[-3000:])
    return time.monotonic() - began


def memory(lab: Lab) -> float:
    """What the nodes use, without what the kernel caches for them."""
    engine, used = docker.from_env(), 0
    for name in lab.machines:
        stats = engine.containers.get(name).stats(stream=False)["memory_stats"]
        used += stats["usage"] - stats["stats"].get("total_inactive_file", stats["stats"].get("inactive_file", 0))
    return used / (1 << 30)


def operated(lab: Lab) -> dict[str, Any]:
    """A snapshot, a restore, an upgrade and the way back: how long each took, and the API's longest gap."""
    found: dict[str, Any] = {}

    def timed(*words: str, root: Path = ROOT) -> dict[str, Any]:
        writer, began = Writer(), time.monotonic()
        writer.start()
        done = lab.drive(*words, root=root, timeout=2400)
        writer.end()
        if done.status:
            sys.exit(done.told)
        gap = max((seconds for _, seconds in writer.windows), default=0.0)
        found[words[0]] = {"seconds": time.monotonic() - began, "api_gap": gap}
        return done.document

    snapshots = timed("snapshot", "save", "--name", "bench")["snapshots"]
    timed("restore", next(one["name"] for one in snapshots if one["name"].startswith("bench-")), "--confirm", "lab")
    with tempfile.TemporaryDirectory() as scratch:
        site = lab.copy(Path(scratch, "site"))
        timed("upgrade", "--to", NEW, root=site)
        began = time.monotonic()
        back(lab, site)
        found["rollback"] = {"seconds": time.monotonic() - began}
    lab.drive("snapshot", "prune", "--keep", "0", "--days", "0")
    for server in lab.servers:
        lab.sh(server, f"rm -rf {DATA}/server/db/etcd-before-restore-* {DATA}/server/db/etcd-old-*")
    return found


def main() -> None:
    """Entry point."""
    lab = Lab()
    found: dict[str, Any] = {"floor": floor(lab)}
    lab.renew(*lab.machines)
    found["first_ansible_playbook"] = played(lab)
    lab.renew(*lab.machines)
    found["first"], found["first_stages"] = driven(lab, "--until", LAST)
    found["memory"] = memory(lab)
    runs = [(driven(lab, "--until", LAST), played(lab)) for _ in range(NOOPS)]
    found["noop"] = statistics.median(seconds for (seconds, _), _ in runs)
    stages = runs[0][0][1]
    found["noop_stages"] = {name: statistics.median(run[0][1][name] for run in runs) for name in stages}
    found["noop_ansible_playbook"] = statistics.median(seconds for _, seconds in runs)
    found["driver_first_percent"] = 100 * (found["first"] / found["first_ansible_playbook"] - 1)
    found["driver_noop_seconds"] = found["noop"] - found["noop_ansible_playbook"]
    found["platform_first"], found["platform_first_stages"] = driven(lab, "--from", LAST)
    found["platform_memory"] = memory(lab)
    found["platform_noop"], found["platform_noop_stages"] = driven(lab)
    found["operations"] = operated(lab)
    print(json.dumps(found, indent=2, default=str, sort_keys=True))


if __name__ == "__main__":
    main()
