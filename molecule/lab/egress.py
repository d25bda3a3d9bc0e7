"""Counts the packets that nodes send to anything but each other: a site with a bundle sends none."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

from build import run

# In `raw`, before anything is dropped: an attempt counts.
IPTABLES = ("iptables", "-w", "-t", "raw")
# Never leaves a network: multicast and broadcast.
LOCAL = ("224.0.0.0/4", "255.255.255.255")


def count(net: str, bridge: str, inside: Sequence[str]) -> None:
    """Count from now on what comes from a bridge and goes to no network of `inside`; a count that runs goes on."""
    hook = ("PREROUTING", "-i", bridge, "-j", chain(net))
    if there("-C", *hook):
        return
    if not there("-N", chain(net)):
        run(*IPTABLES, "-F", chain(net))
    for destination in (*inside, *LOCAL):
        run(*IPTABLES, "-A", chain(net), "-d", destination, "-j", "RETURN")
    run(*IPTABLES, "-A", chain(net), "-m", "comment", "--comment", "outside")
    run(*IPTABLES, "-I", *hook)


def counted(net: str) -> dict[str, int]:
    """Packets and bytes that nodes have tried to send outside since their network was made."""
    for line in run("iptables-save", "-c", "-t", "raw").splitlines():
        found = re.match(rf'\[(\d+):(\d+)\] -A {chain(net)} .*--comment "?outside', line)
        if found:
            return {"packets": int(found[1]), "bytes": int(found[2])}
    raise SystemExit(f"lab: nothing counts on the network {net}; is the lab up? make lab")


def forget(net: str) -> None:
    """Remove the counter."""
    bridges = re.findall(rf"-A PREROUTING -i (\S+) -j {chain(net)}\n", run(*IPTABLES, "-S"))
    for bridge in bridges:
        run(*IPTABLES, "-D", "PREROUTING", "-i", bridge, "-j", chain(net))
    there("-F", chain(net))
    there("-X", chain(net))


def chain(net: str) -> str:
    """The counter's name, which iptables limits to 28 characters."""
    return f"{net[:24]}-out"


def there(*words: str) -> bool:
    """Whether a command of iptables succeeds."""
    return subprocess.run([*IPTABLES, *words], capture_output=True, check=False).returncode == 0
