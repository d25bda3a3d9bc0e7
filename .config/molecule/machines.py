"""Creates and destroys the machines of a scenario by the lab's own means; called by create.yml and destroy.yml."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "molecule/lab"))

import bundle
import egress
import nodes
from build import STATE, alone


def up(network: str, machines: list[nodes.Machine]) -> None:
    """Start machines on a network of their own, where they find the bundle, its packages, names and the time."""
    subnet = IPv4Network(f"{machines[0].address}/24", strict=False)
    nodes.keys()
    bundle.bundle(STATE / "bundle")
    nodes.network(network, str(subnet), str(subnet[1]))
    nodes.gate({machine.name: machine.address for machine in machines}, STATE / "bundle", network)
    nodes.up(machines, network)


def down(network: str, machines: list[nodes.Machine]) -> None:
    """Remove machines, their disks and their network; what is not there is no mistake."""
    nodes.end_connections(machines)
    for machine in machines:
        nodes.destroy(machine.name)
    nodes.destroy(f"{network}-gate")
    egress.forget(network)
    subprocess.run(["docker", "network", "rm", network], capture_output=True, check=False)


if __name__ == "__main__":
    with alone():
        {"up": up, "down": down}[sys.argv[1]](
            f"molecule-{sys.argv[2]}", [nodes.Machine(*word.split("=")) for word in sys.argv[3:]]
        )
