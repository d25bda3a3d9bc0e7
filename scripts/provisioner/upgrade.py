"""Over which releases an upgrade leads, which nodes each hop takes, and why not otherwise. Without effects.

The ladder and what goes with what are data (`compatibility.yml` of the role that checks a site first).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from provisioner.errors import ProvisionError, command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Release = tuple[int, int, int, int]
_RELEASE = re.compile(r"v(\d+)\.(\d+)\.(\d+)\+rke2r(\d+)")
# An etcd older than this leaves members behind that nobody can remove when it becomes 3.6.
_LAST_OF_3_5 = (3, 5, 26)


@dataclass(frozen=True)
class Node:
    """One machine as it was found.

    running, installed: releases, empty where there is none. cordoned: whether it bears the mark of an earlier run.
    users, gpus, holders: users' servers on it, the GPUs that they hold, and the names of those that hold some.
    """

    name: str
    server: bool
    running: str
    installed: str = ""
    ready: bool = True
    cordoned: bool = False
    users: int = 0
    gpus: int = 0
    holders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hop:
    """One release on the way: why it is on it, the nodes that it takes in their order, and what forbids it."""

    release: str
    reason: str
    servers: tuple[str, ...]
    agents: tuple[str, ...]
    blockers: tuple[str, ...] = ()


def release(text: str) -> Release | None:
    """Return a release of RKE2 as numbers that can be compared, None for what is none."""
    match = _RELEASE.fullmatch(text)
    return (int(match[1]), int(match[2]), int(match[3]), int(match[4])) if match else None


def _known(text: str) -> Release:
    found = release(text)
    if found is None:
        raise ProvisionError(
            f"{text!r} is no release of RKE2.", "Give it in full, the re-release too: --to v1.35.7+rke2r1"
        )
    return found


def _minor(text: str) -> str:
    found = _known(text)
    return f"{found[0]}.{found[1]}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def etcd(text: str, table: Mapping[str, Any], *, arriving: bool) -> tuple[int, ...]:
    """Return the etcd of a release: for one that is no rung, what is on the safe side of the rungs around it.

    arriving: whether the release is where a hop leads to, so that a newer etcd than it has is the safe guess.
    """
    own = _known(text)
    rungs = [(_known(rung["rke2"]), _numbers(rung["etcd"])) for rung in table["ladder"]]
    if arriving:
        same = [found for at, found in rungs if at[:2] == own[:2]]
        return next((found for at, found in rungs if at[:2] == own[:2] and at >= own), same[-1] if same else (0,))
    below = [found for at, found in rungs if at[:2] == own[:2] and at <= own]
    # Older than all rungs of its minor: it has at least what releases of two minors before have, which are older still.
    older = [found for at, found in rungs if at[:2] == (own[0], own[1] - 2)]
    return below[-1] if below else min(older, default=(0,))


def forbidden(lower: str, upper: str, table: Mapping[str, Any]) -> str:
    """Return why no hop leads from one release straight to another, higher one; empty when one does."""
    before, after = _known(lower), _known(upper)
    if (after[0], after[1]) > (before[0], before[1] + 1):
        return "no minor may be left out"
    old, new = etcd(lower, table, arriving=False), etcd(upper, table, arriving=True)
    if old < _LAST_OF_3_5 and new >= (3, 6):
        return "etcd goes to 3.6 only from 3.5.26 on: an older one may leave members behind that nobody can remove"
    return ""


def way(running: Iterable[str], target: str, table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the fewest releases that lead all that run to `target`, none of them beyond it, each with its reason.

    The ladder's may be stopped at, and those that run already.
    """
    notes = {rung["rke2"]: str(rung["note"]) for rung in table["ladder"]}
    now = {*running}
    steps = sorted({*notes, *now, target}, key=_known)

    def why_not(step: str) -> str:
        return next((why for one in now if _known(one) < _known(step) and (why := forbidden(one, step, table))), "")

    found: list[tuple[str, str]] = []
    while now != {target}:
        lowest = min(now, key=_known)
        ahead = [step for step in steps if _known(lowest) < _known(step) <= _known(target) and not why_not(step)]
        detour = why_not(target)
        if not ahead:
            raise ProvisionError(
                f"No way leads from {lowest} to {target}: {detour}, and the ladder has no release between.",
                "The ladder is in roles/preflight/files/compatibility.yml; take a newer metalhub or a nearer --to.",
            )
        step = ahead[-1]
        if step != target:
            reason = f"{detour}; {notes.get(step, 'nodes run it already')}"
        elif _minor(step) == _minor(lowest):
            reason = "another release of the same minor"
        else:
            reason = f"one minor up; {notes[step]}" if step in notes else "one minor up"
        found.append((step, reason))
        now = {max(one, step, key=_known) for one in now}
    return found


def _holds(how: Callable[[Iterable[bool]], bool], wanted: Mapping[str, str], values: Mapping[str, str]) -> bool:
    return how(values.get(name) == value for name, value in wanted.items())


def blockers(
    before: str, after: str, versions: Mapping[str, str], values: Mapping[str, str], table: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return what of the site does not go with a release, each with what to set before.

    versions: component -> the version that the site has. values: parameter -> its value, of those that may forbid one.
    """
    row, old = table["minors"][_minor(after)], table["minors"].get(_minor(before), {})
    rung: Mapping[str, Any] = next((rung for rung in table["ladder"] if rung["rke2"] == after), {})
    found = []
    for component, version in versions.items():
        series = [str(one) for one in rung.get(component) or row.get(component, [])]
        have = ".".join(version.removeprefix("v").split(".")[:2])
        if not series or have in series:
            continue
        both = [one for one in series if one in [str(other) for other in old.get(component, [])]]
        found.append(
            f"{component} {version} does not go with {_minor(after)} ({', '.join(series)}): first set"
            f" {table['components'][component]} to a release of {' or '.join(both or series)} and deploy"
        )
    for rule in table["forbidden"]:
        from_on = _numbers(rule["from"]) <= _known(after)[:2]
        if from_on and _holds(all, rule["where"], values) and not _holds(any, rule["unless"], values):
            found.append(
                f"{rule['what']} does not go with {_minor(after)}, {rule['why']}: first {rule['first']} and deploy"
            )
    return tuple(found)


def _check_target(target: str, table: Mapping[str, Any]) -> None:
    wanted = _known(target)
    row = table["minors"].get(_minor(target))
    if row is None:
        raise ProvisionError(
            f"--to {target}: what goes with Kubernetes {_minor(target)} is not known here.",
            f"Known minors: {', '.join(table['minors'])}. A newer metalhub may know more.",
        )
    least = row.get("minimum", {})
    if least and wanted < _known(least["rke2"]):
        raise ProvisionError(
            f"--to {target} is older than {least['rke2']}, which closes {least['closes']}.",
            f"Take that one or a newer: --to {least['rke2']}",
        )


def _check_nodes(nodes: Sequence[Node], target: str, site: str) -> None:
    new = [node for node in nodes if node.running and _known(node.running) > _known(target)]
    if new:
        told = ", ".join(f"{node.name} {node.running}" for node in new)
        raise ProvisionError(
            f"--to {target} would be a way down: {told}. No program takes back what etcd has stored since.",
            "The way back is the snapshot from before the upgrade: docs/how_to.md, 'go back to the release before'. "
            f"What runs now: {command('upgrade', '--site', site, '--to', new[0].running, '--plan-only')}",
        )
    runs = min((_known(node.running) for node in nodes if node.running), default=_known(target))
    # One that bears our mark or has a newer release on its disk was in hand when an earlier run ended.
    idle = [node for node in nodes if not node.cordoned and _known(node.installed or target) <= runs]
    ill = [node for node in idle if not node.ready]
    if ill:
        told = ", ".join(f"{node.name} ({node.running or 'does not run'})" for node in ill)
        raise ProvisionError(
            f"Not Ready: {told}. A cluster that is not well is not upgraded.",
            f"See what is wrong: {command('verify', '--site', site)}",
        )
    servers = [_known(node.running) for node in nodes if node.server and node.running]
    if not servers:
        raise ProvisionError("No server runs RKE2.", f"Bring them up first: {command('deploy', '--site', site)}")
    spread = max(at[1] for at in servers) - min(at[1] for at in servers)
    behind = [
        node for node in nodes if not node.server and node.running and min(servers)[1] - _known(node.running)[1] > 1
    ]
    if spread > 1 or behind:
        told = ", ".join(f"{node.name} {node.running}" for node in nodes)
        raise ProvisionError(
            f"The nodes are too far apart for an upgrade of all: {told}.",
            "Bring those behind to the minor of the servers first, one minor at a time, by: "
            + command("deploy", "--site", site, "--limit", (behind[0] if behind else nodes[0]).name, "--allow-upgrade"),
        )


def plan(
    nodes: Sequence[Node],
    target: str,
    versions: Mapping[str, str],
    values: Mapping[str, str],
    table: Mapping[str, Any],
    site: str,
) -> tuple[Hop, ...]:
    """Return the hops that bring all nodes to a release, none when they are there; what cannot be is refused.

    nodes: in inventory order. versions, values: see `blockers`. table: the compatibility table.
    """
    _check_target(target, table)
    _check_nodes(nodes, target, site)
    running = {node.running for node in nodes if node.running}
    steps = way(running, target, table)
    unfinished = {node.name for node in nodes if node.cordoned or not node.ready}
    if not steps and unfinished:
        steps = [(target, "what an earlier run left unfinished")]
    found, before = [], min(running, key=_known)
    for name, reason in steps:
        due = [
            node
            for node in nodes
            if not node.running or _known(node.running) < _known(name) or (name == target and node.name in unfinished)
        ]
        found.append(
            Hop(
                name,
                reason,
                tuple(node.name for node in due if node.server),
                tuple(node.name for node in due if not node.server),
                blockers(before, name, versions, values, table),
            )
        )
        before = name
    return tuple(found)
