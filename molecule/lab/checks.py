"""Looks for what would make the lab fail before anything is built: all findings at once, a line each with the fix."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import docker

import nodes
from build import CACHE, STATE

GIB = 1 << 30
COLD_GIB, WARM_GIB, MEMORY_GIB = 25, 8, 6
# What the kernel must be able to do, and a file that is there once it can.
FEATURES = {
    "br_netfilter": "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "loop": "/dev/loop-control",
    "nf_conntrack": "/proc/sys/net/netfilter/nf_conntrack_max",
    "overlay": "/sys/module/overlay",
    "vxlan": "/sys/module/vxlan",
}
CONTROLLERS = frozenset({"cpu", "memory", "pids"})


@dataclass(frozen=True)
class Machine:
    """What the lab wants to know of the machine below it."""

    routes: Sequence[tuple[str, str]]  # (destination, device)
    networks: Mapping[str, str]  # Docker's: name -> subnet
    containers: Mapping[str, str | None]  # name -> state directory of the lab it belongs to, None for no lab's
    missing: Collection[str]  # of FEATURES
    controllers: Collection[str]  # of cgroups
    free: Mapping[str, float]  # directory -> GiB, one of each file system
    memory: float  # GiB that could be had
    built: bool  # binaries are in the cache
    runs: bool  # this lab's nodes run, so their memory is taken already


def findings(machine: Machine, wanted: Collection[str], network: str, subnet: str) -> list[str]:
    """What stands in the way of a lab with these container names on this network, each with its fix."""
    found = []
    ours = ip_network(subnet)
    for destination, device in machine.routes:
        if device != network[:15] and ip_network(destination, strict=False).subnet_of(ours):  # type: ignore[arg-type]
            found.append(f"{device} has the network {destination}, the lab's is {subnet}: take it away from {device}")
    for name, other in machine.networks.items():
        if name != network and ip_network(other).overlaps(ours):
            found.append(f"Docker's network {name} has {other}, the lab's is {subnet}: docker network rm {name}")
        elif name == network and other != subnet:
            found.append(f"the network {name} has {other} and the site wants {subnet}: make lab-down")
    for name in sorted(set(wanted) & set(machine.containers)):
        owner = machine.containers[name]
        if owner is None:
            found.append(f"a container that is not the lab's is called {name}: docker rename {name} {name}-other")
        elif owner != str(STATE):
            found.append(f"{name} belongs to the lab whose state is in {owner}: make lab-down removes that lab")
    found += [
        f"the kernel lacks {name} ({FEATURES[name]} is not there): modprobe {name}, or install a kernel that has it"
        for name in sorted(machine.missing)
    ]
    found += [
        f"the cgroup controller {name} is off: remove cgroup_disable={name} from the kernel's command line and reboot"
        for name in sorted(CONTROLLERS - set(machine.controllers))
    ]
    need = WARM_GIB if machine.built else COLD_GIB
    found += [
        f"{directory} has {free:.0f} GiB free, {need} are needed: make room, or set XDG_CACHE_HOME and XDG_STATE_HOME"
        for directory, free in machine.free.items()
        if free < need
    ]
    if machine.memory < MEMORY_GIB and not machine.runs:
        found.append(f"{machine.memory:.1f} GiB of memory can be had, {MEMORY_GIB} are needed: end other programs")
    return found


def look() -> Machine:
    """Look at this machine; kernel modules that a node could not load itself are loaded now."""
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-qa", *FEATURES], capture_output=True, check=False)
    engine = docker.from_env()
    containers = {one.name: one.labels.get(nodes.LABEL) for one in engine.containers.list(all=True)}
    running = {one.name for one in engine.containers.list()}
    routes = json.loads(subprocess.run(["ip", "-j", "-4", "route"], capture_output=True, check=True).stdout)
    subnets = {
        net.name: config[0]["Subnet"] for net in engine.networks.list() if (config := net.attrs["IPAM"]["Config"])
    }
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    if unified.exists():
        controllers = set(unified.read_text().split())
    else:
        rows = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()[1:]]
        controllers = {row[0] for row in rows if row[3] == "1"}
    free: dict[int, tuple[str, float]] = {}
    for directory in (CACHE, STATE, Path(engine.info()["DockerRootDir"])):
        there = next(path for path in (directory, *directory.parents) if path.exists())
        free.setdefault(there.stat().st_dev, (str(directory), shutil.disk_usage(there).free / GIB))
    available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    return Machine(
        routes=[(route["dst"], route.get("dev", "")) for route in routes if route["dst"] != "default"],
        networks=subnets,
        containers=containers,
        missing=[name for name, path in FEATURES.items() if not Path(path).exists()],
        controllers=controllers,
        free=dict(free.values()),
        memory=int(available[1]) / (1 << 20) if available else 0.0,
        built=any(CACHE.glob("artifacts-*")),
        runs=running >= {machine.name for machine in nodes.site_machines()},
    )


def require_engine() -> None:
    """End the command in plain words where it lacks a right or Docker."""
    if os.geteuid() != 0:
        sys.exit("lab: only root may make network devices and mounts; type the same command after sudo")
    try:
        docker.from_env().ping()
    except (docker.errors.DockerException, OSError) as error:
        sys.exit(f"lab: Docker does not answer ({error}); start it: make setup")


def require() -> None:
    """End the command with everything that stands in the way."""
    require_engine()
    wanted = [machine.name for machine in nodes.site_machines()] + [f"{nodes.NETWORK}-gate"]
    found = findings(look(), wanted, nodes.NETWORK, nodes.SUBNET)
    if found:
        sys.exit("\n".join(f"lab: {line}" for line in found))
