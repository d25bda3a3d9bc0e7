# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""A filter for ranges of addresses: what is left of one when some addresses are taken out of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable


def ranges_without(pool: str, addresses: Iterable[str]) -> list[str]:
    """Return what is left of `pool`, FIRST-LAST or a network, without `addresses`, as FIRST-LAST in ascending order.

    Raises ValueError for what is no IPv4 address.
    """
    if "-" in pool:
        first, last = (int(ipaddress.IPv4Address(end.strip())) for end in pool.split("-", 1))
    else:
        network = ipaddress.IPv4Network(pool, strict=False)
        first, last = int(network.network_address), int(network.broadcast_address)
    left = []
    for taken in [*sorted({int(ipaddress.IPv4Address(address)) for address in addresses}), last + 1]:
        if first < taken <= last + 1:
            left.append(f"{ipaddress.IPv4Address(first)}-{ipaddress.IPv4Address(taken - 1)}")
        if first <= taken:
            first = taken + 1
    return left


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {"ranges_without": ranges_without}
