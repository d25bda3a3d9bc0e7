"""Texts of a site as what they stand for: addresses, networks, names, releases; and the types of its schema."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from .site_findings import nearest

Address = ipaddress.IPv4Address
Network = ipaddress.IPv4Network

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
RELEASE = re.compile(r"v(\d+)\.(\d+)\.(\d+)\+rke2r(\d+)")
# Type in a spec -> what it is called, and what Python has for it.
TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "bool": ("true or false", (bool,)),
    "int": ("a whole number", (int,)),
    "float": ("a number", (float, int)),
    "str": ("a text", (str,)),
    "list": ("a list", (list,)),
    "dict": ("a dictionary", (dict,)),
}


def to_address(text: str) -> Address | None:
    """Return the IPv4 address that `text` is, or None."""
    try:
        return Address(text)
    except ValueError:
        return None


def to_network(text: str) -> Network | None:
    """Return the IPv4 network that `text` is, with its length and no host bits set, or None."""
    try:
        return Network(text) if "/" in text else None
    except ValueError:
        return None


def to_range(text: str) -> tuple[Address, Address] | None:
    """Return the first and last address of FIRST-LAST or of a network, or None."""
    if "-" in text:
        first, last = (to_address(part.strip()) for part in text.split("-", 1))
        return (first, last) if first and last and first <= last else None
    network = to_network(text)
    return (network[0], network[-1]) if network else None


def to_release(text: str) -> tuple[int, ...] | None:
    """Return the four numbers of an RKE2 release vX.Y.Z+rke2rN, or None."""
    match = RELEASE.fullmatch(text)
    return tuple(int(number) for number in match.groups()) if match else None


def to_url(text: str) -> SplitResult | None:
    """Return an http or https URL with a host, or None."""
    try:
        url = urlsplit(text)
        return url if url.scheme in ("http", "https") and url.hostname and url.port != 0 else None
    except ValueError:
        return None


def name_problem(name: str) -> str:
    """Return why `name` is no DNS name, a clause, or an empty string."""
    if len(name) > 253 or any(len(label) > 63 for label in name.split(".")):
        return "is longer than a host name may be: 63 characters between dots, 253 in all"
    if not all(LABEL.fullmatch(label) for label in name.split(".")):
        return "is no host name: lower-case letters, digits and inner hyphens only"
    return ""


def tame(name: str) -> str:
    """Return a valid name like `name`, to be suggested."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:63].rstrip("-.") or "node01"


def type_problems(value: Any, spec: dict[str, Any], name: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (key, what, seen, fix) for all in `value` that its spec does not allow, entries of lists included."""
    kind, types = TYPES[spec.get("type", "str")]
    choices = spec.get("choices", [value])
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        quotes = " in quotes" if types == (str,) and not isinstance(value, (list, dict)) else ""
        yield name, f"is {_kind(value)}, not {kind}", str(value), f"write {kind}{quotes}"
    elif value not in choices:
        like = nearest(str(value), choices)
        yield name, "is none of its choices", str(value), f"write {like or 'one'} out of: {', '.join(choices)}"
    elif isinstance(value, list):
        for item in value:
            yield from type_problems(item, {"type": spec.get("elements", "str")}, name)


def _kind(value: Any) -> str:
    """Return what a value is, in words; None is empty."""
    return next((words for words, types in TYPES.values() if isinstance(value, types)), "empty")
