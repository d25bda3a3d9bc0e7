"""How many hosts at a time: batches, the waves they make, and the pattern that limits a run. Without effects."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from provisioner.errors import ProvisionError, nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

Batch = tuple[int | str, ...]

# The variable a stage's `serial` reads; only extra variables reach `serial`.
BATCH_VARIABLE = "rke2_agent_batch"
_ENTRY = re.compile(r"(?P<number>[0-9]+)(?P<percent>%?)")
# What is more than a name in a host pattern: wildcards, ranges, regular expressions, files, set operators.
_PATTERN = re.compile(r"[*?\[\]~@!&]")


def parse_batch(text: str) -> Batch:
    """Return the batch sizes of `1,5,50%` as (1, 5, '50%'): counts and percentages, the last one repeated."""
    found: list[int | str] = []
    for word in text.split(","):
        match = _ENTRY.fullmatch(word.strip())
        number = int(match["number"]) if match else 0
        if match is None or not number or (match["percent"] and number > 100):
            raise ProvisionError(
                f"--batch {text}: {word!r} is neither a number of hosts (1 or more) nor a percentage (1% to 100%).",
                "Give sizes separated by commas, the last is repeated: --batch 1,5,50%",
            )
        found.append(f"{number}%" if match["percent"] else number)
    return tuple(found)


def waves(hosts: Sequence[str], batch: Batch) -> tuple[tuple[str, ...], ...]:
    """Return the hosts in the waves in which Ansible's `serial` takes them: every host once, in order.

    A percentage is of all hosts, rounded down, at least one; the last size is repeated. Without sizes: one wave.
    """
    if not hosts or not batch:
        return (tuple(hosts),) if hosts else ()
    sizes = [max(1, len(hosts) * int(size[:-1]) // 100) if isinstance(size, str) else size for size in batch]
    found: list[tuple[str, ...]] = []
    start = 0
    while start < len(hosts):
        size = sizes[min(len(found), len(sizes) - 1)]
        found.append(tuple(hosts[start : start + size]))
        start += size
    return tuple(found)


def of_machines(limit: str) -> bool:
    """Whether a host pattern names machines only, not the control machine (the group `platform`)."""
    parts = [part.strip() for part in re.split(r"[,:]", limit)]
    return not any(part in ("all", "platform", "localhost") or _PATTERN.search(part) for part in parts)


def check_limit(limit: str, hosts: Collection[str], groups: Collection[str]) -> None:
    """Refuse a host pattern that names an unknown host or group: Ansible would leave it out without an error.

    Parts with wildcards, ranges or regular expressions are Ansible's to judge.
    """
    known = {*hosts, *groups, "ungrouped"}
    for part in re.split(r"[,:]", limit):
        name = part.strip().lstrip("!&")
        if name and name not in known and not _PATTERN.search(name):
            raise ProvisionError(
                f"--limit {limit}: the inventory has no host or group {name!r}.{nearest(name, known)}",
                f"Give its name to the same command. Groups: {', '.join(groups)}. Hosts: {', '.join(hosts)}.",
            )
