# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Filters for RKE2's configuration, above all: what a release would drop of it with no more than a warning."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a hint at the most similar name, or an empty string where none is similar."""
    found = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.6)
    return f"; the nearest is {found[0]}" if found else ""


def rke2_config_faults(
    config: Mapping[str, Any],
    known: Mapping[str, Any],
    version: str,
    service: str,
    given: Mapping[str, Any],
    own: Mapping[str, str],
) -> list[str]:
    """Return a sentence for each key that this release would drop, or that the site gives in the wrong place."""
    release = re.match(r"v(\d+\.\d+)\.(\d+)", version)
    minor, patch = (release.group(1), int(release.group(2))) if release else ("", 0)
    if minor not in known["minors"]:
        told = f"rke2_version is {version}, and the keys of config.yaml are known here for {', '.join(known['minors'])}"
        return [f"{told}. Choose a release of one of these in group_vars/all/versions.yml, or take a newer metalhub"]
    every = {*known["agent"], *known["server"]}
    names = set(known["agent"]) | (set(known["server"]) if service == "server" else set())
    file = f"group_vars/rke2_{service}/rke2.yml"
    faults = []
    # A key that the site gives empty is not written, and may still take an own one of the role away.
    for key in sorted({*config, *given}):
        name = key.removesuffix("+")
        since = known["since"].get(name)
        if key in given and name in own:
            faults.append(f"{key} is written by the role from {own[name]}: set that in {file} instead of rke2_config")
        elif name not in names and name in known["server"]:
            faults.append(
                f"{key} is a key for servers and this node is an agent: move it from {file} to"
                " group_vars/rke2_server/rke2.yml"
            )
        elif name not in names:
            faults.append(
                f"{key} is no key that RKE2 {minor} knows for a node of kind {service}{nearest(name, every)}."
                f" Correct rke2_config in {file}"
            )
        elif since and minor not in since:
            faults.append(f"{key} is not known by RKE2 {minor}, only by {', '.join(since)}. Take it out of {file}")
        elif since and patch < since[minor]:
            told = f"{key} is known from v{minor}.{since[minor]} on, and rke2_version is {version}"
            faults.append(f"{told}. Raise that in group_vars/all/versions.yml, or take the key out of {file}")
    return faults


def rke2_chart_faults(values: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each chart that no release of RKE2 brings with it."""
    return [
        f"{name} is no chart that RKE2 brings with it{nearest(name, known['charts'])}."
        " Correct rke2_packaged_chart_values in group_vars/rke2_server/rke2.yml"
        for name in sorted(values)
        if name not in known["charts"]
    ]


def outside_networks(addresses: Iterable[str], entries: Iterable[str]) -> list[str]:
    """Return the addresses that lie in none of the networks among entries of any kind."""
    networks = [ipaddress.ip_network(entry, strict=False) for entry in entries if re.fullmatch(r"[\d.]+/\d+", entry)]
    return [
        address for address in addresses if not any(ipaddress.ip_address(address) in network for network in networks)
    ]


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {
            "outside_networks": outside_networks,
            "rke2_chart_faults": rke2_chart_faults,
            "rke2_config_faults": rke2_config_faults,
        }
