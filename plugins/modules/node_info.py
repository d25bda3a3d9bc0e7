#!/usr/bin/python
"""Answer all questions about a machine's operating system in one round trip; changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
short_description: Answer all questions about a machine's operating system in one round trip
description:
  - Returns what a role needs to know about a Debian or Ubuntu machine before it acts, and what its verification needs
    to know afterwards. Only what is asked for is looked up, so a question costs what it costs and no more.
  - Reads the state that is in force (running values, answers of a daemon, addresses on an interface), so that a role
    can act on differences and an interrupted run is completed by the next one.
  - Changes nothing. The two questions that leave the machine, O(endpoints) and O(arp), send one request each.
version_added: 0.1.0
author: The metalhub maintainers
options:
  packages:
    description: Names of Debian packages.
    type: list
    elements: str
    default: []
  package_patterns:
    description: Shell patterns; every installed package whose name matches one is returned too.
    type: list
    elements: str
    default: []
  services:
    description: Names of systemd units, with their suffix.
    type: list
    elements: str
    default: []
  sysctls:
    description: Names of kernel parameters, as sysctl(8) takes them.
    type: list
    elements: str
    default: []
  paths:
    description: Paths of which only the existence matters.
    type: list
    elements: str
    default: []
  files:
    description: Text files of which the content matters.
    type: list
    elements: str
    default: []
  globs:
    description: Shell patterns of paths.
    type: list
    elements: str
    default: []
  contains:
    description: Pieces of text that a file may contain, for files too large to be returned.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What the answer is called.
        type: str
        required: true
      path:
        description: The file.
        type: str
        required: true
      text:
        description: The text that is looked for.
        type: str
        required: true
  time:
    description: Whether to ask chronyd for its sources and whether the clock follows one of them.
    type: bool
    default: false
  endpoints:
    description:
      - Addresses with a port, such as C(192.0.2.20:6443), that are asked for C(/readyz) by HTTPS.
      - The certificate is not checked; the answer says who is there, not whom to trust.
    type: list
    elements: str
    default: []
  on_link:
    description: IPv4 addresses of which it matters whether one of this machine's networks contains them.
    type: list
    elements: str
    default: []
  arp:
    description: IPv4 addresses of which one of this machine's networks is asked who holds them, once O(wait) is over.
    type: list
    elements: str
    default: []
  wait:
    description:
      - Seconds to wait at most until chronyd has heard from a source (when O(time)) and every one of O(endpoints) has
        given a status. What is there at once is not waited for.
    type: int
    default: 0
attributes:
  check_mode:
    support: full
    description: Changes nothing in any mode.
"""

EXAMPLES = r"""
- name: Ask the machine for all that the role decides on
  metalhub.platform.node_info:
    packages: [chrony, iptables]
    services: [chrony.service, firewalld.service]
    sysctls: [net.ipv4.ip_forward]
    files: [/etc/hosts, /etc/fstab]
  register: __node_now
"""

RETURN = r"""
hostname:
  description: The host name in force.
  type: str
  returned: always
os:
  description: Identifier, version and printed name of the operating system.
  type: dict
  returned: always
  sample: {id: debian, version: "12", name: Debian GNU/Linux 12 (bookworm)}
kernel:
  description: Release of the running kernel.
  type: str
  returned: always
addresses:
  description: Every address of this machine with its interface and the length of its prefix.
  type: dict
  returned: always
  sample: {"192.0.2.21": {interface: eth0, prefix: 24}}
swaps:
  description: The devices and files in use as swap, each with the systemd unit that stands for it.
  type: list
  elements: dict
  returned: always
  sample: [{device: /swap.img, unit: swap.img.swap}]
packages:
  description: The installed ones among those asked for or matched, each with its version and whether it is held.
  type: dict
  returned: always
  sample: {chrony: {version: 4.3-2+deb12u3, held: false}}
services:
  description: For every unit whether systemd knows it, its state and whether it starts at boot.
  type: dict
  returned: always
  sample: {chrony.service: {found: true, state: active, enabled: enabled}}
sysctls:
  description: The running values, white space reduced to single blanks; null for what this kernel does not have.
  type: dict
  returned: always
  sample: {net.ipv4.ip_forward: "1"}
paths:
  description: Whether each path exists.
  type: dict
  returned: always
files:
  description: The content of each file, null when it does not exist.
  type: dict
  returned: always
globs:
  description: The sorted paths that match any of the patterns.
  type: list
  elements: str
  returned: always
contains:
  description: Whether each text is in its file.
  type: dict
  returned: always
time:
  description: >-
    Whether chronyd answers and follows a source, and the sources as configured, each with whether it has answered.
  type: dict
  returned: always
  sample: {running: true, synchronised: true, sources: {192.0.2.1: true}}
endpoints:
  description: For every endpoint the HTTP status, or null and the error.
  type: dict
  returned: always
  sample: {"192.0.2.20:6443": {status: 401, error: ""}}
on_link:
  description: For every address the interface whose network contains it, null when none does.
  type: dict
  returned: always
  sample: {192.0.2.20: eth0}
arp:
  description: For every address the link-layer addresses of the other machines that hold it; more than one is a clash.
  type: dict
  returned: always
  sample: {192.0.2.20: ["02:42:c0:00:02:15"]}
"""

import fnmatch
import functools
import glob
import json
import os
import platform
import re
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

ETHERTYPE_ARP = 0x0806
# A reply takes well under a millisecond; a second is for a machine under load, the rest for whoever else claims it.
ARP_FIRST_SECONDS = 1.0
ARP_MORE_SECONDS = 0.2
ENDPOINT_SECONDS = 3.0


def read(path: str) -> str | None:
    """Return the text of a file, None when there is none at this path."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def output(command: list[str]) -> str | None:
    """Return what a program prints in the C locale, None when it is missing, fails or takes more than 10 seconds."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def os_release() -> dict[str, str]:
    """Return identifier, version and printed name of the operating system."""
    release = platform.freedesktop_os_release()
    return {"id": release["ID"], "version": release.get("VERSION_ID", ""), "name": release["PRETTY_NAME"]}


def addresses() -> dict[str, dict[str, Any]]:
    """Return every address of this machine: address -> interface and prefix."""
    links = json.loads(output(["ip", "-json", "address", "show"]) or "[]")
    return {
        info["local"]: {"interface": link["ifname"], "prefix": info["prefixlen"]}
        for link in links
        for info in link.get("addr_info", [])
        if "local" in info
    }


def parse_packages(listing: str, names: list[str], patterns: list[str]) -> dict[str, dict[str, Any]]:
    """Return the installed packages that are named or match: name -> version and held.

    listing: lines of `desired status<TAB>status<TAB>name<TAB>version`, as dpkg-query prints them.
    """
    found = {}
    for line in listing.splitlines():
        desired, status, name, version = line.split("\t")
        if status == "installed" and (name in names or any(fnmatch.fnmatchcase(name, p) for p in patterns)):
            found[name] = {"version": version, "held": desired == "hold"}
    return found


def packages(names: list[str], patterns: list[str]) -> dict[str, dict[str, Any]]:
    """Return the installed packages among `names` and those that match `patterns`."""
    if not names and not patterns:
        return {}
    form = r"${db:Status-Want}\t${db:Status-Status}\t${Package}\t${Version}\n"
    return parse_packages(output(["dpkg-query", "--show", f"--showformat={form}"]) or "", names, patterns)


def parse_services(shown: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return the state of each unit from what `systemctl show` prints for them, one block a unit in their order."""
    found = {}
    for name, block in zip(names, shown.strip("\n").split("\n\n"), strict=True):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        found[name] = {
            "found": values.get("LoadState") not in ("not-found", None),
            "state": values.get("ActiveState", ""),
            "enabled": values.get("UnitFileState", ""),
        }
    return found


def services(names: list[str]) -> dict[str, dict[str, Any]]:
    """Return the state of each unit; without a systemd that answers none is found."""
    if not names:
        return {}
    shown = output(["systemctl", "show", "--property=LoadState,ActiveState,UnitFileState", "--", *names])
    if not shown:
        return {name: {"found": False, "state": "", "enabled": ""} for name in names}
    return parse_services(shown, names)


def sysctl(name: str) -> str | None:
    """Return the running value of a kernel parameter, None when this kernel lacks it."""
    # As sysctl(8) reads it: where a dot comes first, dots separate and a slash stands for a dot within a name.
    dotted = next((sign for sign in name if sign in "./"), ".") == "."
    try:
        value = read("/proc/sys/" + (name.translate(str.maketrans("./", "/.")) if dotted else name))
    except PermissionError:
        return None
    return None if value is None else " ".join(value.split())


def unit_of(path: str) -> str:
    """Return the name of the systemd unit that stands for the swap at `path`."""
    parts = []
    for index, byte in enumerate(path.strip("/").encode()):
        sign = chr(byte)
        if sign == "/":
            parts.append("-")
        elif (sign.isalnum() and byte < 128) or sign in ":_" or (sign == "." and index):
            parts.append(sign)
        else:
            parts.append(f"\\x{byte:02x}")
    return "".join(parts) + ".swap"


def parse_swaps(table: str) -> list[dict[str, str]]:
    """Return devices and units from the text of /proc/swaps."""
    found = []
    for line in table.splitlines()[1:]:
        device = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[0])
        found.append({"device": device, "unit": unit_of(device)})
    return found


def parse_time(tracking: str | None, sources: str | None) -> dict[str, Any]:
    """Return whether chronyd runs, follows a source, and which sources have answered.

    tracking, sources: what `chronyc -c tracking` and `chronyc -c -N sources` print, None when they failed.
    """
    if tracking is None or sources is None:
        return {"running": False, "synchronised": False, "sources": {}}
    rows = [line.split(",") for line in sources.splitlines() if line]
    return {
        "running": True,
        "synchronised": tracking.strip().split(",")[-1] != "Not synchronised",
        # The sixth column is a register of the last eight polls, in octal.
        "sources": {row[2]: int(row[5], 8) > 0 for row in rows},
    }


def endpoint(address: str) -> dict[str, Any]:
    """Return the HTTP status that `address` gives for /readyz, or None and the reason."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, int(port)), ENDPOINT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as stream,
        ):
            stream.sendall(f"GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            words = stream.recv(64).split()
        return {"status": int(words[1]), "error": ""}
    except (OSError, IndexError, ValueError) as error:
        return {"status": None, "error": str(error) or type(error).__name__}


def interface_for(address: str, own: dict[str, dict[str, Any]]) -> tuple[str, str] | None:
    """Return the interface and the own address that share a network with `address`, None when none does."""
    wanted = struct.unpack("!I", socket.inet_aton(address))[0]
    for local, place in own.items():
        if ":" in local or place["prefix"] == 32:
            continue
        shift = 32 - place["prefix"]
        if struct.unpack("!I", socket.inet_aton(local))[0] >> shift == wanted >> shift:
            return place["interface"], local
    return None


def arp(address: str, own: dict[str, dict[str, Any]]) -> list[str]:
    """Return the link-layer addresses of the other machines that answer for an IPv4 address, sorted.

    Raises OSError when the process may not open a packet socket.
    """
    place = interface_for(address, own)
    if place is None:
        return []
    interface, local = place
    answered: set[str] = set()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP)) as raw:
        raw.bind((interface, ETHERTYPE_ARP))
        mac = raw.getsockname()[4]
        target = socket.inet_aton(address)
        head = b"\xff" * 6 + mac + struct.pack("!H", ETHERTYPE_ARP)
        # Ethernet, IPv4, lengths 6 and 4, request.
        body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + socket.inet_aton(local) + b"\0" * 6 + target
        raw.send(head + body)
        end = time.monotonic() + (ARP_MORE_SECONDS if address in own else ARP_FIRST_SECONDS)
        while (left := end - time.monotonic()) > 0:
            raw.settimeout(left)
            try:
                frame = raw.recv(64)
            except TimeoutError:
                break
            if frame[20:22] == b"\0\2" and frame[28:32] == target and frame[22:28] != mac:
                if not answered:
                    end = min(end, time.monotonic() + ARP_MORE_SECONDS)
                answered.add(frame[22:28].hex(":"))
    return sorted(answered)


def ask_chrony() -> dict[str, Any]:
    """Return what chronyd says of itself and its sources."""
    chronyc = ["chronyc", "-c"]
    return parse_time(output([*chronyc, "tracking"]), output([*chronyc, "-N", "sources"]))


def follows(clock: dict[str, Any]) -> bool:
    """Return whether chronyd follows a source or hears one at least."""
    return clock["synchronised"] or any(clock["sources"].values())


def waited(
    question: Callable[[], dict[str, Any]], good: Callable[[dict[str, Any]], bool], end: float
) -> dict[str, Any]:
    """Return the first good answer to `question`, or the last one before the monotonic time `end`."""
    while True:
        answer = question()
        if good(answer) or time.monotonic() >= end:
            return answer
        time.sleep(0.5)


def main() -> None:
    """Run as an Ansible module."""
    names = {"type": "list", "elements": "str", "default": []}
    asked = (
        "packages",
        "package_patterns",
        "services",
        "sysctls",
        "paths",
        "files",
        "globs",
        "endpoints",
        "on_link",
        "arp",
    )
    module = AnsibleModule(
        argument_spec={
            **dict.fromkeys(asked, names),
            "contains": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {name: {"type": "str", "required": True} for name in ("name", "path", "text")},
            },
            "time": {"type": "bool", "default": False},
            "wait": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    ask = module.params
    own = addresses()
    end = time.monotonic() + ask["wait"]
    clock = parse_time(None, None)
    if ask["time"]:
        clock = ask_chrony()
        if ask["wait"] and not follows(clock):
            # A source that was silent is asked ever more rarely, up to 17 minutes apart: ask it now.
            output(["chronyc", "burst", "1/2"])
            clock = waited(ask_chrony, follows, end)
    endpoints = {
        address: waited(functools.partial(endpoint, address), lambda found: found["status"] is not None, end)
        for address in ask["endpoints"]
    }
    try:
        # Waiting may have changed who holds an address, this machine among others.
        own = addresses() if ask["arp"] else own
        holders = {address: arp(address, own) for address in ask["arp"]}
        files = {path: read(path) for path in ask["files"]}
        texts = {path: read(path) or "" for path in {item["path"] for item in ask["contains"]}}
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or 'ARP'}: {error.strerror}; this module asks as root, so run with become"
        )
    module.exit_json(
        changed=False,
        hostname=socket.gethostname(),
        os=os_release(),
        kernel=platform.release(),
        addresses=own,
        swaps=parse_swaps(read("/proc/swaps") or ""),
        packages=packages(ask["packages"], ask["package_patterns"]),
        services=services(ask["services"]),
        sysctls={name: sysctl(name) for name in ask["sysctls"]},
        paths={path: os.path.exists(path) for path in ask["paths"]},
        files=files,
        globs=sorted({path for pattern in ask["globs"] for path in glob.glob(pattern)}),
        contains={item["name"]: item["text"] in texts[item["path"]] for item in ask["contains"]},
        time=clock,
        endpoints=endpoints,
        on_link={address: (interface_for(address, own) or (None,))[0] for address in ask["on_link"]},
        arp=holders,
    )


if __name__ == "__main__":
    main()
