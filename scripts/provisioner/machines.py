"""Which machines a verb is about, and the command that mends one. Without effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioner.errors import ProvisionError, nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from provisioner.journal import StageFinished

CONTROL = ("localhost", "platform")  # what an inventory calls the control machine, alone and as a group
MACHINES = "rke2"


def known(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the machines in the order of the inventory, each once; one that it does not have is refused."""
    machines = groups.get(MACHINES, ())
    for name in names:
        if name not in machines:
            raise ProvisionError(
                f"The inventory has no machine {name!r}.{nearest(name, machines)}",
                f"Write it into hosts.yml, or give one of: {', '.join(machines)}.",
            )
    return tuple(machine for machine in machines if machine in names)


def limit_of_new(names: Sequence[str], workers: Collection[str]) -> str | None:
    """Return the limit under which new machines are deployed, None where all others take part.

    workers: the machines that stages take in batches. Any other is known to the rest by its address: in the API's
    certificate, and among those to whom the API address may pass.
    """
    return ",".join([*names, CONTROL[0]]) if set(names) <= set(workers) else None


def mending(ends: Iterable[StageFinished]) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Return what a check found as (stage, hosts, words): the words behind `deploy --site NAME` that mend it.

    What is done from the control machine belongs to no single host and is not limited.
    """
    found = []
    for end in ends:
        hosts = tuple(sorted(host for host, counts in end.hosts.items() if counts.changed))
        if hosts:
            limited = not set(hosts) & set(CONTROL)
            found.append((end.stage, hosts, ("--only", end.stage, *(("--limit", ",".join(hosts)) if limited else ()))))
    return found
