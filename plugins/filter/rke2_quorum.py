# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Filters for a machine that is to leave the cluster, for a while or for good: what would be lost without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

HOSTNAME = "kubernetes.io/hostname"


def _condition(node: Mapping[str, Any], kind: str) -> str:
    conditions = node.get("status", {}).get("conditions") or []
    return next((str(one["status"]) for one in conditions if one["type"] == kind), "")


def rke2_quorum_faults(nodes: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    """Return why etcd cannot do without the node `name` now, in a sentence with the numbers; none when it can.

    nodes: the cluster's nodes as the API gives them. Until it is removed a member that is down counts, so what must be
    there without this one is more than half of all that vote.
    """
    told = {node["metadata"]["name"]: (_condition(node, "EtcdIsVoter"), _condition(node, "Ready")) for node in nodes}
    voters = {member: ready == "True" for member, (votes, ready) in told.items() if votes == "True"}
    if name not in voters:
        return []
    joining = sorted(member for member, (votes, _) in told.items() if votes not in ("", "True"))
    if joining:
        return [f"{joining[0]} is on its way into etcd and does not vote yet. Wait until it does, or take it out first"]
    healthy = sorted(voter for voter, well in voters.items() if well)
    ill = sorted(voters.keys() - set(healthy))
    rest = [voter for voter in healthy if voter != name]
    needed = len(voters) // 2 + 1
    if len(rest) >= needed:
        return []
    seen = f"of {len(voters)} voters in etcd {len(healthy)} are healthy ({', '.join(healthy) or 'none'})"
    others = [voter for voter in ill if voter != name]
    remedy = f"Bring {others[0]} back first" if others else "Add another server first"
    return [f"{seen}, without {name} it would be {len(rest)}, and {needed} are needed. {remedy}"]


def rke2_local_volumes(volumes: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    """Return the claims (`NAMESPACE/NAME`, or the volume's name) whose volume lies on the disk of the node `name`."""
    found = []
    for volume in volumes:
        terms = (volume["spec"].get("nodeAffinity") or {}).get("required", {}).get("nodeSelectorTerms") or []
        rules = [rule for term in terms for rule in term.get("matchExpressions") or []]
        if any(rule["key"] == HOSTNAME and rule["operator"] == "In" and rule["values"] == [name] for rule in rules):
            claim = volume["spec"].get("claimRef")
            found.append(f"{claim['namespace']}/{claim['name']}" if claim else volume["metadata"]["name"])
    return sorted(found)


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "rke2_local_volumes": rke2_local_volumes,
            "rke2_quorum_faults": rke2_quorum_faults,
        }
