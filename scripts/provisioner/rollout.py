"""How many hosts at a time: batches, the waves they make, the pattern that limits a run, and which site comes before.

Without effects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from provisioner.errors import ProvisionError, nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

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


@dataclass(frozen=True)
class Rollout:
    """A rollout in waves that are watched. waves: stage -> its waves. soak: seconds of health after each wave.

    pause_after: the number of the wave after which the run ends, 0 for none.
    """

    waves: Mapping[str, tuple[tuple[str, ...], ...]]
    soak: float = 0
    pause_after: int = 0


@dataclass(frozen=True)
class Seen:
    """A run as promotion looks at it. whole: of all stages and hosts. versions: what the site's files said."""

    verb: str
    at: datetime
    result: str
    whole: bool
    versions: Mapping[str, str] = field(default_factory=dict)


def parse_span(text: str) -> int:
    """Return the seconds of `90`, `90s`, `10min` or `2h`."""
    match = re.fullmatch(r"(\d+)\s*(s|min|h|)", text.strip())
    if match is None:
        raise ProvisionError(f"--soak {text!r} is no length of time.", "Write seconds, minutes or hours: --soak 10min")
    return int(match[1]) * {"": 1, "s": 1, "min": 60, "h": 3600}[match[2]]


def promotable(wanted: Mapping[str, str], runs: Sequence[Seen]) -> str:
    """Return why versions that a site is to get are not proven on another one; empty when they are.

    runs: of that other site, those that look and those that change it. They are proven when the newest whole look at it
    was good, saw exactly these versions, and came after everything that changed the site.
    """
    looks = sorted((run for run in runs if run.verb == "verify" and run.whole), key=lambda run: run.at)
    changes = sorted((run for run in runs if run.verb != "verify"), key=lambda run: run.at)
    if not looks:
        return "no whole verify of it is recorded on this machine"
    look = looks[-1]
    if look.result != "ok":
        return f"its last whole verify ({look.at:%Y-%m-%d %H:%M %Z}) ended with: {look.result}"
    if not changes:
        return "nothing was ever deployed there from this machine"
    if changes[-1].at > look.at:
        return f"`{changes[-1].verb}` ({changes[-1].at:%Y-%m-%d %H:%M %Z}) came after its last whole verify"
    if changes[-1].result != "ok":
        return f"its last `{changes[-1].verb}` ({changes[-1].at:%Y-%m-%d %H:%M %Z}) ended with: {changes[-1].result}"
    differ = [
        f"{name} is {look.versions.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
        for name in sorted({*wanted, *look.versions})
        if wanted.get(name) != look.versions.get(name)
    ]
    return "; ".join(differ)


def waves(hosts: Sequence[str], batch: Batch, canary: str = "") -> tuple[tuple[str, ...], ...]:
    """Return the hosts in the waves in which Ansible's `serial` takes them: every host once, in order.

    A percentage is of all hosts, rounded down, at least one; the last size is repeated. Without sizes: one wave.
    canary: the host that is a wave of its own, before all others.
    """
    if canary in hosts:
        return ((canary,), *waves([host for host in hosts if host != canary], batch))
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
