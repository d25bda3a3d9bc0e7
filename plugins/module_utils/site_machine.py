"""One machine: what it is (`measure`), and what of it does not fit (`judge`, `compare`). Runs on the machine itself."""

from __future__ import annotations

import errno
import glob
import hashlib
import ipaddress
import json
import os
import platform
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .site_findings import Finding

# Facts and needs cross the wire as JSON; their keys are described at `measure` and in host_check's documentation.
Facts = dict[str, Any]

GIB = 2**30
BINARIES = ("/usr/local/bin/rke2", "/opt/rke2/bin/rke2", "/usr/bin/rke2")
DATASTORE = "/var/lib/rancher/rke2/server/db"
CONFIG = "/etc/rancher/rke2/config.yaml"
DISKS = ("/var/lib/rancher", "/var/lib/kubelet")
WRITES = 50
BLOCK = b"\0" * 2048
# States in /proc/net/tcp (listening) and /proc/net/udp (unconnected).
LISTENING = ("0A", "07")


def measure(needs: Facts) -> Facts:
    """Return what a machine is: one dictionary of plain values, see the keys below.

    needs: `resolve_names`, `immutable`, `leftovers`, `address` and `virtual_address` say what to look for.
    """
    rke2 = installation()
    fresh = not rke2["installed"]
    return {
        "clock": time.time(),
        "root": os.geteuid() == 0,
        "system": _system(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "cores": os.cpu_count() or 0,
        "memory_gib": _memory(),
        "disks": [_disk(path) for path in DISKS],
        **(_fsync(DISKS[0]) if fresh and needs["role"] == "server" else {}),
        "networks": _networks(),
        "holds_virtual_address": is_local(needs["virtual_address"]),
        "default_route": any(line.split()[1:2] == ["00000000"] for line in _lines("/proc/net/route")),
        "unresolved": _unresolved(needs["resolve_names"]),
        "identifiers": _identifiers(needs["address"]),
        "rke2": rke2,
        "immutable": _configured(needs["immutable"]) if Path(DATASTORE).is_dir() and not fresh else {},
        "leftovers": _leftovers(needs["leftovers"]) if fresh else [],
    }


def _lines(path: str | Path) -> list[str]:
    """Return the lines of a file; none for one that cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _output(*command: str) -> str:
    """Return what a program prints; nothing when it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _system() -> dict[str, str]:
    pairs = [line.partition("=") for line in _lines("/etc/os-release")]
    values = {key: value.strip("\"'") for key, _, value in pairs}
    return {"id": values.get("ID", ""), "version": values.get("VERSION_ID", ""), "name": values.get("PRETTY_NAME", "")}


def _memory() -> float:
    kibibytes = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")]
    return round(kibibytes[0] * 1024 / GIB, 1) if kibibytes else 0.0


def _existing(path: str) -> Path:
    """Return a directory, or the nearest one above it that is there."""
    return next(place for place in (Path(path), *Path(path).parents) if place.is_dir())


def _disk(path: str) -> Facts:
    status = os.statvfs(_existing(path))
    size, free = (round(blocks * status.f_frsize / GIB, 1) for blocks in (status.f_blocks, status.f_bavail))
    return {"path": path, "size_gib": size, "free_gib": free}


def _fsync(path: str) -> Facts:
    """Return within how many milliseconds nine of ten synchronous writes of 2 KiB are done, or why none can be.

    Leaves no file behind.
    """
    took = []
    try:
        with tempfile.TemporaryFile(dir=_existing(path)) as stream:
            for _ in range(WRITES):
                start = time.perf_counter()
                stream.write(BLOCK)
                stream.flush()
                os.fdatasync(stream.fileno())
                took.append((time.perf_counter() - start) * 1000)
    except OSError as error:
        return {"write_error": os.strerror(error.errno or 0).lower()}
    return {"fsync_milliseconds": round(sorted(took)[WRITES * 9 // 10], 1)}


def _networks() -> list[Facts]:
    """Return the IPv4 addresses of the machine: interface, address, network, mtu, mac."""
    found = []
    for link in json.loads(_output("ip", "-json", "-4", "address", "show") or "[]"):
        hardware = (_lines(f"/sys/class/net/{link.get('ifname')}/address") or [""])[0]
        for info in link.get("addr_info", []):
            interface = ipaddress.ip_interface(f"{info['local']}/{info['prefixlen']}")
            place = {"interface": link["ifname"], "mtu": link["mtu"], "mac": hardware}
            found.append({**place, "address": str(interface.ip), "network": str(interface.network)})
    return found


def is_local(address: str) -> bool:
    """Return whether the machine has an address; an empty one nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return bool(address)


def _unresolved(names: list[str]) -> list[str]:
    """Return the names that do not resolve within five seconds, all asked at once."""
    resolved: set[str] = set()

    def ask(name: str) -> None:
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            return
        resolved.add(name)

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in names]
    deadline = time.monotonic() + 5
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [name for name in names if name not in resolved]


def _identifiers(address: str) -> dict[str, list[str]]:
    """Return what must tell this machine from every other: kind -> values."""
    keys = sorted(line.split()[1] for path in glob.glob("/etc/ssh/ssh_host_*_key.pub") for line in _lines(path)[:1])
    return {
        "machine_id": _lines("/etc/machine-id")[:1],
        "product_uuid": _lines("/sys/class/dmi/id/product_uuid")[:1],
        "mac": sorted({net["mac"] for net in _networks() if net["address"] == address}),
        "ssh_host_key": [hashlib.sha256(key.encode()).hexdigest()[:16] for key in keys],
    }


def installation() -> Facts:
    """Return whether RKE2 is installed, and as what it runs (an empty string when it does not)."""
    active = {}
    for role in ("server", "agent"):
        active[role] = _output("systemctl", "is-active", f"rke2-{role}").strip() in ("active", "activating")
    installed = any(os.path.exists(path) for path in BINARIES)
    return {"installed": installed, "running": next((role for role, runs in active.items() if runs), "")}


def _configured(immutable: list[Facts]) -> dict[str, str]:
    """Return what the server was started with: parameter -> value, RKE2's own default for a missing key.

    The files are ours, so plain `key: value` lines and `- value` below a key are all that has to be understood.
    """
    values: dict[str, str] = {}
    for path in [CONFIG, *sorted(glob.glob(f"{CONFIG}.d/*.yaml"))]:
        key = ""
        for line in _lines(path):
            match = re.match(r"""["']?([\w-]+)["']?\s*:\s*(.*)$""", line)
            item = re.match(r"\s*-\s*(.+)$", line)
            if match:
                key = match[1]
                values[key] = match[2]
            elif item and key:
                values[key] = values[key] or item[1]
    plain = {key: re.sub(r"\s+#.*$", "", value).strip("\"'[] ") for key, value in values.items()}
    return {item["parameter"]: plain.get(item["key"]) or item["default"] for item in immutable}


def _leftovers(known: Facts) -> list[str]:
    """Return files, interfaces and programs that another cluster has left or is still using."""
    paths = [
        path for pattern in known["paths"] for path in sorted(glob.glob(pattern)) if not path.endswith("/lost+found")
    ]
    links = [os.path.basename(path) for name in known["interfaces"] for path in glob.glob(f"/sys/class/net/{name}")]
    names = {(_lines(path) or [""])[0] for path in glob.glob("/proc/[0-9]*/comm")}
    programs = [f"program {name}" for name in known["programs"] if name in names]
    return paths + [f"interface {name}" for name in sorted(links)] + programs


def bound() -> dict[tuple[str, int], set[str]]:
    """Return every port that somebody listens on: (protocol, port) -> names of the sockets under /proc/*/fd."""
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    for protocol in ("tcp", "udp"):
        for line in [*_lines(f"/proc/net/{protocol}")[1:], *_lines(f"/proc/net/{protocol}6")[1:]]:
            fields = line.split()
            if fields[3] in LISTENING:
                found[(protocol, int(fields[1].rpartition(":")[2], 16))].add(f"socket:[{fields[9]}]")
    return found


def socket_owner(sockets: set[str]) -> tuple[str, bool]:
    """Return who holds one of the sockets, as `nginx (process 7)`, and whether that may be RKE2 or one of its pods.

    What no process holds is the kernel's, as the port of a VXLAN interface is.
    """
    for descriptor in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target in sockets:
            process = descriptor.split("/")[2]
            name = (_lines(f"/proc/{process}/comm") or ["?"])[0]
            groups = "\n".join(_lines(f"/proc/{process}/cgroup"))
            return f"{name} (process {process})", bool(re.search(r"rke2|kubepods|k8s\.io", groups))
    return "the kernel", True


def can_bind(sock: socket.socket, address: str, port: int) -> bool:
    """Bind a socket and return True, or return False when somebody has the port. Other errors are raised."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address, port))
        if sock.type == socket.SOCK_STREAM:
            sock.listen(128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise
    return True


def judge(name: str, facts: Facts, needs: Facts) -> list[Finding]:
    """Return what of a machine, taken by itself, does not fit.

    facts: as `measure` gives them, with `taken` of `site_peers.listen`. needs: the options of host_check.
    """
    if not facts["root"]:
        fix = "set ansible_user: root, or ansible_become: true, for the group rke2"
        return [Finding("user", "is not root, so most of the machine cannot be seen", name, "another user", fix)]
    rules = (_judge_system, _judge_size, _judge_network, _judge_cluster, _judge_ports)
    return [finding for rule in rules for finding in rule(name, facts, needs)]


def _judge_system(name: str, facts: Facts, needs: Facts) -> Iterator[Finding]:
    system, supported = facts["system"], needs["systems"]
    if system["version"] not in supported.get(system["id"], []):
        known = ", ".join(f"{label} {version}" for label, versions in supported.items() for version in versions)
        seen = system["name"] or "no /etc/os-release"
        yield Finding("operating system", "is not supported", name, seen, f"install one of: {known}")
    if facts["architecture"] not in needs["architectures"]:
        fix = f"use machines with {' or '.join(needs['architectures'])}"
        yield Finding("architecture", "is not supported", name, facts["architecture"], fix)
    behind = needs["asked"] - facts["clock"]
    if behind > needs["clock_seconds_max"]:
        fix = "start time synchronisation on both machines; the control machine counts as right here"
        yield Finding("clock", "is behind the control machine's", name, f"at least {behind:.1f} s", fix)
    if facts["unresolved"]:
        fix = "mend /etc/resolv.conf or the site's name server"
        yield Finding("DNS", "does not resolve a name that is needed", name, ", ".join(facts["unresolved"]), fix)


def _judge_size(name: str, facts: Facts, needs: Facts) -> Iterator[Finding]:
    role = needs["role"]
    for key, unit in (("cores", "cores"), ("memory_gib", "GiB")):
        least = needs[f"{key}_min"]
        if facts[key] < least:
            fix = f"use a larger machine, or set preflight_{role}_{key}_min in group_vars/rke2_{role}/preflight.yml"
            what = f"is less than the {least:g} {unit} a {role} needs"
            yield Finding(key.partition("_")[0], what, name, f"{facts[key]:g} {unit}", fix)
    for disk in facts["disks"]:
        for key, what in (("size_gib", "is too small for"), ("free_gib", "has too little space left for")):
            least = needs[f"disk_{key}_min"]
            if disk[key] < least:
                fix = f"make it at least {least:g} GiB, by a larger disk or by removing what is not needed"
                yield Finding("disk", f"{what} {disk['path']}", name, f"{disk[key]:g} GiB", fix)
    if "write_error" in facts:
        yield Finding("disk", f"cannot be written at {DISKS[0]}", name, facts["write_error"], "mend or free the disk")
    if facts.get("fsync_milliseconds", 0) > needs["fsync_milliseconds_max"]:
        what = f"takes longer than {needs['fsync_milliseconds_max']:g} ms to write, too long for etcd"
        fix = f"put {DISKS[0]} on a local SSD that nothing else uses"
        yield Finding("disk", what, name, f"{facts['fsync_milliseconds']:g} ms for nine of ten writes", fix)


def _judge_network(name: str, facts: Facts, needs: Facts) -> Iterator[Finding]:
    networks = [ipaddress.IPv4Network(net["network"]) for net in facts["networks"] if net["interface"] != "lo"]
    addresses = [net["address"] for net in facts["networks"] if net["interface"] != "lo"]
    seen = ", ".join(addresses) or "none (is iproute2 installed?)"
    if needs["address"] not in addresses:
        fix = f"write one of these as site_node_address in host_vars/{name}.yml, or give the machine {needs['address']}"
        yield Finding("site_node_address", f"{needs['address']} is no address of the machine", name, seen, fix)
    for text in needs["local_addresses"]:
        wanted = ipaddress.IPv4Network(text)
        if not any(wanted.subnet_of(network) for network in networks):
            fix = "choose site_api_address and site_load_balancer_pool out of a network that every machine is in"
            where = ", ".join(map(str, networks)) or "none"
            yield Finding(
                "network", f"of {text} is none of the machine's, so it cannot answer for it", name, where, fix
            )
    if not facts["default_route"]:
        fix = "add one, a dummy if need be (ip route add default via GATEWAY): RKE2 does not start without"
        yield Finding("default route", "is missing", name, "none in /proc/net/route", fix)


def _judge_cluster(name: str, facts: Facts, needs: Facts) -> Iterator[Finding]:
    running = facts["rke2"]["running"]
    if running and running != needs["role"]:
        fix = f"put it into the group rke2_{running}, or remove it from the cluster first"
        yield Finding("role", f"is {needs['role']} in the inventory, and another runs", name, f"rke2-{running}", fix)
    if facts["leftovers"]:
        more = f" and {len(facts['leftovers']) - 5} more" if len(facts["leftovers"]) > 5 else ""
        fix = "reset the old cluster with its own tool (kubeadm reset, k3s-uninstall.sh), or install the machine anew"
        seen = ", ".join(facts["leftovers"][:5]) + more
        yield Finding("machine", "was or is part of another cluster", name, seen, fix)
    for item in needs["immutable"]:
        value = facts["immutable"].get(item["parameter"], item["value"])
        if value != item["value"]:
            fix = f"write {item['parameter']}: {value} again; another value needs a new cluster"
            what = f"is {item['value']}, and the running cluster has another"
            yield Finding(item["parameter"], what, name, value, fix)


def _judge_ports(name: str, facts: Facts, _needs: Facts) -> Iterator[Finding]:
    for taken in facts["taken"]:
        if not (facts["rke2"]["running"] or (facts["rke2"]["installed"] and taken["own"])):
            fix = "stop that program, or move it to another port"
            what = f"{taken['port']}/{taken['protocol']} ({taken['purpose']}) is taken"
            yield Finding("port", what, name, taken["owner"], fix)


def compare(name: str, machines: dict[str, Facts], needs: Facts) -> Iterator[Finding]:
    """Yield what of a machine does not fit to the others; each machine tells only of itself.

    machines: every machine of the play -> its facts.
    """
    own = machines[name]
    for kind in needs["unique_identifiers"]:
        values = set(own["identifiers"][kind])
        twins = [other for other in machines if other != name and values & set(machines[other]["identifiers"][kind])]
        if twins:
            shared = ", ".join(sorted(values & set(machines[twins[0]]["identifiers"][kind])))
            what = f"is also that of {', '.join(twins)}"
            yield Finding(kind.replace("_", " "), what, name, shared, FIXES[kind])
    kernel, holders = Counter(facts["kernel"] for facts in machines.values()).most_common(1)[0]
    if needs["uniform_kernel"] and own["kernel"] != kernel:
        fix = f"install {kernel} and reboot, or set preflight_uniform_kernel: false"
        what = f"is not the {kernel} of {holders} of {len(machines)} machines"
        yield Finding("kernel", what, name, own["kernel"], fix)
    mtus = {other: mtu for other, facts in machines.items() if (mtu := node_mtu(facts))}
    mtu, holders = Counter(mtus.values()).most_common(1)[0] if mtus else (0, 0)
    if mtus.get(name, mtu) != mtu:
        fix = f"set it to {mtu}, or the others to {mtus[name]}, on machines and switches"
        yield Finding("MTU", f"is not the {mtu} of {holders} of {len(machines)} machines", name, str(mtus[name]), fix)


FIXES = {
    "machine_id": "rm /etc/machine-id && systemd-machine-id-setup, and reboot: the machine is a copy of the other",
    "product_uuid": "give the virtual machine an identity of its own; a copied one keeps the other's",
    "mac": "give the network card an address of its own; two with the same disturb each other",
    "ssh_host_key": "rm /etc/ssh/ssh_host_* && ssh-keygen -A, and restart sshd: the machine is a copy of the other",
}


def node_mtu(facts: Facts) -> int:
    """Return the MTU of the interface that has the node's address, or 0 when none has."""
    return next((int(net["mtu"]) for net in facts["networks"] if net["address"] == facts.get("address")), 0)
