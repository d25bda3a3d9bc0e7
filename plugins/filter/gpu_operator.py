# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Filters for GPUs: which release of the operator a cluster can run, and how GPUs are cut into slices and shared."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def series(version: str) -> str:
    """Return major and minor of the first version in a text, such as 1.7 for containerd://1.7.27-k3s1."""
    found = re.search(r"(\d+)\.(\d+)", version)
    return f"{found[1]}.{found[2]}" if found else version


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's parts, so that 25.3 comes before 25.10."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def gpu_operator_faults(
    nodes: Iterable[Mapping[str, Any]], version: str, table: Mapping[str, Any], workers: Iterable[str]
) -> list[str]:
    """Return a sentence for each kind of node on which this release does not run, with the series that do."""
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    # Only where there are GPUs does containerd matter.
    with_gpus = set(workers)
    for node in nodes:
        name, about = node["metadata"]["name"], node["status"]["nodeInfo"]
        containerd = series(about["containerRuntimeVersion"]) if name in with_gpus else ""
        kinds[series(about["kubeletVersion"]), containerd].append(name)
    faults = []
    for (minor, containerd), names in sorted(kinds.items()):
        fitting = [
            one
            for one in table["minors"].get(minor, {}).get("gpu_operator", ())
            if not containerd or numbers(table["gpu_operator"][one]["containerd"]) <= numbers(containerd)
        ]
        if series(version) not in fitting:
            what = f"Kubernetes {minor}" + (f" with containerd {containerd}" if containerd else "")
            fix = f"choose a release of {' or '.join(fitting)}" if fitting else "no release is known to: upgrade RKE2"
            faults.append(f"{', '.join(sorted(names))} run {what}, with which {version} does not go: {fix}")
    return faults


GPU = "nvidia.com/gpu"
# What the operator calls GPUs that are whole; every worker has it that has nothing else.
WHOLE = "all-disabled"
SLICES, MEMORY = 7, 8


def mig_names(layouts: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each layout in the cluster, which changes with what is in it.

    The MIG manager acts when a node's layout gets another name, and never when what the name stands for changes.
    """
    found = {WHOLE: WHOLE}
    for name, entries in layouts.items():
        digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
        found[name] = f"{name}-{digest[:8]}"
    return found


def mig_parted(layouts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layouts as NVIDIA's mig-parted reads them."""
    names = mig_names(layouts)
    configs: dict[str, list[dict[str, Any]]] = {WHOLE: [{"devices": "all", "mig-enabled": False}]}
    for name, entries in layouts.items():
        configs[names[name]] = [
            {"devices": entry["devices"], "mig-enabled": bool(entry.get("slices"))}
            | ({"mig-devices": dict(entry["slices"])} if entry.get("slices") else {})
            for entry in entries
        ]
    return {"version": "v1", "mig-configs": configs}


def gpu_offered(
    resources: Mapping[str, Any], entries: Iterable[Mapping[str, Any]], shared: Mapping[str, int]
) -> dict[str, int]:
    """Return what a node with these resources offers once its GPUs are cut and shared; nothing is named with zero."""
    found: dict[str, int] = defaultdict(int, {name: int(count) for name, count in resources.items()})
    gpus = found[GPU]
    for entry in entries:
        cut = gpus if entry["devices"] == "all" else len(entry["devices"])
        if entry.get("slices"):
            found[GPU] -= cut
        for profile, count in (entry.get("slices") or {}).items():
            found[f"nvidia.com/mig-{profile.replace('+', '.')}"] += int(count) * cut
    for name, replicas in shared.items():
        if found.get(name):
            found[f"{name}.shared"] = found.pop(name) * int(replicas)
    return {name: count for name, count in found.items() if count}


def _number(value: Any, least: int) -> bool:
    """Return whether a value is a whole number, at least this one; Ansible's own have another type than Python's."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _shape_faults(entries: Any) -> list[str]:
    """Return what is wrong with a layout whatever it is for: clauses."""
    if not isinstance(entries, list) or not entries:
        return ["is no list of entries, each with devices and slices"]
    faults = []
    seen: set[int] = set()
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or entry.keys() - {"devices", "slices"} or "devices" not in entry:
            return [f"has something else than devices and slices in entry {number}"]
        devices, slices = entry["devices"], entry.get("slices") or {}
        if devices == "all" and len(entries) > 1:
            faults.append("has other entries beside one for all devices")
        elif devices != "all" and (
            not isinstance(devices, list) or not devices or not all(_number(one, 0) for one in devices)
        ):
            return [f"names in entry {number} no devices: all, or numbers such as [0, 1]"]
        elif devices != "all":
            twice = sorted({one for one in devices if one in seen or devices.count(one) > 1})
            faults += [f"names device {one} twice" for one in twice]
            seen.update(devices)
        if not isinstance(slices, dict) or not all(_number(count, 1) for count in slices.values()):
            return [f"has in entry {number} slices that are no numbers by profile, such as 1g.10gb: 7"]
    return faults


def _cut_faults(slices: Mapping[str, int], model: str, profiles: Mapping[str, Any]) -> list[str]:
    """Return why a GPU of a model cannot be cut like this: clauses."""
    unknown = sorted(name for name in slices if name not in profiles)
    if unknown:
        return [f"wants {', '.join(unknown)}, and a {model} has {', '.join(profiles)}"]
    faults = [
        f"wants {name} {count} times of one GPU, which has room for {profiles[name]['most']}"
        for name, count in slices.items()
        if count > profiles[name]["most"]
    ]
    for part, there in (("slices", SLICES), ("memory", MEMORY)):
        taken = sum(profiles[name][part] * count for name, count in slices.items())
        if taken > there:
            what = "slices" if part == "slices" else "parts of memory"
            faults.append(f"takes {taken} {what} of one GPU, which has {there}")
    return faults


def mig_faults(
    layouts: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]], models: Mapping[str, Any]
) -> list[str]:
    """Return a sentence for each layout that no GPU can have, and for each that its node cannot.

    nodes: name -> layout, model and number of gpus.
    """
    faults = []
    broken = set()
    for name, entries in layouts.items():
        clauses = [] if name != WHOLE else ["is the name for whole GPUs, which needs no entry"]
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,38}[a-z0-9])?", name):
            clauses.append("is no name of small letters, digits, hyphens and dots, at most 40 of them")
        clauses += _shape_faults(entries)
        broken.update([name] if clauses else [])
        faults += [f"the layout {name} {clause}" for clause in clauses]
    for node, about in nodes.items():
        name, model, gpus = about["layout"], about["model"], int(about["gpus"])
        if name == WHOLE or name in broken:
            continue
        where = f"the layout {name} of {node}"
        if name not in layouts:
            faults.append(f"{where} is none of {', '.join([WHOLE, *layouts])}")
        elif model not in models:
            faults.append(f"{where} is for GPUs of an unknown model: gpu_operator_model is {model or 'not set'},"
                          f" known are {', '.join(models)}")  # fmt: skip
        else:
            faults += [f"{where} {clause}" for clause in _node_faults(layouts[name], gpus, model, models[model])]
    return faults


def _node_faults(entries: list[dict[str, Any]], gpus: int, model: str, profiles: Mapping[str, Any]) -> list[str]:
    """Return why a node with so many GPUs of a model cannot have a layout: clauses."""
    named = {device for entry in entries if entry["devices"] != "all" for device in entry["devices"]}
    faults = []
    if named and max(named) >= gpus:
        faults.append(f"names device {max(named)}, and the node has 0 to {gpus - 1}" if gpus else "has no GPU to cut")
    # What is not named would stay as the layout before has left it.
    missing = sorted(set(range(gpus)) - named)
    if named and missing:
        faults.append(f"says nothing of device {', '.join(map(str, missing))}: name them too, without slices for whole")
    for entry in entries:
        faults += [one for one in _cut_faults(entry.get("slices") or {}, model, profiles) if one not in faults]
    return faults


def gpu_holders(pods: Iterable[Mapping[str, Any]], namespace: str) -> dict[str, list[str]]:
    """Return the pods that have GPUs or parts of some, by node; those of the operator's own `namespace` left out."""
    found: dict[str, list[str]] = defaultdict(list)
    for pod in pods:
        about, spec = pod["metadata"], pod["spec"]
        over = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if over or not spec.get("nodeName") or about["namespace"] == namespace:
            continue
        limits = [
            (container.get("resources") or {}).get("limits") or {}
            for container in [*spec["containers"], *(spec.get("initContainers") or ())]
        ]
        if any(name.startswith("nvidia.com/") and int(count) for limit in limits for name, count in limit.items()):
            found[spec["nodeName"]].append(f"{about['namespace']}/{about['name']}")
    return {node: sorted(names) for node, names in found.items()}


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "gpu_holders": gpu_holders,
            "gpu_offered": gpu_offered,
            "gpu_operator_faults": gpu_operator_faults,
            "mig_faults": mig_faults,
            "mig_names": mig_names,
            "mig_parted": mig_parted,
        }
