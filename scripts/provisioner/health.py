"""How healthy a cluster is, and whether it is less so than before. Without effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# node -> condition -> status, and "Kind namespace/name" -> pods that are missing
Health = dict[str, dict[str, Any]]
Verdict = Literal["go on", "steady", "regressed"]

SETTLE_SECONDS = 120.0  # how long what a wave has stopped may take to come back
GOOD = ("Ready", "EtcdIsVoter")  # conditions that are well when they are true; of all others the opposite holds


def of(resources: Sequence[Mapping[str, Any]]) -> Health:
    """Return what is compared, out of the cluster's nodes and workloads as its API tells them."""
    nodes: dict[str, Any] = {}
    workloads: dict[str, Any] = {}
    for one in resources:
        name, status = one["metadata"]["name"], one.get("status") or {}
        if one["kind"] == "Node":
            nodes[name] = {each["type"]: each["status"] for each in status.get("conditions", ())}
        else:
            daemons = one["kind"] == "DaemonSet"
            wanted = status.get("desiredNumberScheduled", 0) if daemons else one["spec"].get("replicas", 1)
            ready = status.get("numberReady" if daemons else "readyReplicas") or 0
            workloads[f"{one['kind']} {one['metadata'].get('namespace', '')}/{name}"] = max(0, wanted - ready)
    return {"nodes": nodes, "workloads": workloads}


def _well(condition: str, status: str) -> bool:
    return status == ("True" if condition in GOOD else "False")


def regressions(before: Health, now: Health | None) -> tuple[str, ...]:
    """Return what was well before and is not now, in words. now: None where the cluster did not answer."""
    if now is None:
        return ("the cluster does not answer",)
    found = []
    for name, conditions in before["nodes"].items():
        current = now["nodes"].get(name)
        if current is None:
            found.append(f"node {name} is gone")
            continue
        for condition, status in current.items():
            was = conditions.get(condition)
            if not _well(condition, status) and (was is None or _well(condition, was)):
                found.append(f"node {name}: {condition} is {status}")
        found += [f"node {name}: {one} is gone" for one in conditions if one in GOOD and one not in current]
    for name, missing in before["workloads"].items():
        current_missing = now["workloads"].get(name)
        if current_missing is None:
            found.append(f"{name} is gone")
        elif current_missing > missing:
            found.append(f"{name}: {current_missing} of its pods are not ready, {missing} before")
    return tuple(found)


def judge(looks: Sequence[tuple[float, Sequence[str]]], soak: float, settle: float) -> Verdict:
    """Decide from what was seen since a wave ended: (seconds since then, regressions), in order.

    Steady is what was well for `soak` seconds on end, regressed what was not for `settle`, or never came to rest.
    """
    if not looks:
        return "go on"
    last, faults = looks[-1]
    since = last
    for at, seen in reversed(looks):
        if bool(seen) != bool(faults):
            break
        since = at
    if not faults and last - since >= soak:
        return "steady"
    if faults and last - since >= settle:
        return "regressed"
    return "regressed" if last >= 2 * (soak + settle) else "go on"
