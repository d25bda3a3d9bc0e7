"""What a restore would do, in words. Nothing here has effects."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from provisioner.plan import ago

if TYPE_CHECKING:
    from collections.abc import Mapping

SHOWN = 15  # names of each kind of fate; the rest is counted
FATES = {
    "vanish": "would vanish, made since then",
    "reappear": "would reappear, deleted since then",
    "replace": "would be the earlier one, deleted and made anew since then",
}


@dataclass(frozen=True)
class Prospect:
    """What the servers say of a restore that is asked for: lines for people, and whether it is one that was begun."""

    lines: tuple[str, ...]
    continues: bool


def prospect(report: Mapping[str, Any], now: datetime) -> Prospect:
    """Return what is to be shown before anybody says yes.

    report: of the playbook etcd_restore. now: an aware time.
    """
    begun, one = report["unfinished"], report["snapshot"]
    if begun:
        at = datetime.fromtimestamp(begun["started"], UTC)
        return Prospect((f"continues the restore of {begun['snapshot']} that was begun {ago(at, now)}",), True)
    made = datetime.fromtimestamp(one["created"], UTC)
    of = f"{one['version'] or 'release unknown'}, {one['keys']} keys, nodes {', '.join(sorted(one['nodes'])) or 'none'}"
    taken = f"taken {ago(made, now)} ({made:%Y-%m-%d %H:%M} UTC)"
    lines = [f"{one['name']} on {report['holder']}: {taken}, {of}"]
    if not report["serving"]:
        lines.append("No server serves, so nobody knows what was made or deleted since then.")
    for fate, words in FATES.items():
        names = report["comparison"].get(fate, [])
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{len(names)} {words}: {', '.join(names[:SHOWN])}{more}")
    if report["serving"] and len(lines) == 1:
        lines.append("No namespace, volume, claim or Secret would vanish or reappear.")
    lines.append("Every change to the cluster since then is lost; files on volumes stay as they are.")
    if report["bare"]:
        lines.append(
            f"New machines without RKE2 ({', '.join(report['bare'])}) are left out; the next deploy lets them join."
        )
    if not report["etcdutl"]:
        lines.append(
            f"{report['holder']} has no etcdutl, so the revision is not raised: who watches the API from elsewhere may"
            " keep what is no more; restart what does not notice."
        )
    return Prospect(tuple(lines), False)
