"""The last look at when a site's certificates end, which `status` tells of."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from provisioner.rotation import soonest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

KEPT = "expiry.json"  # in a site's state directory


def keep(state: Path, report: Mapping[str, Mapping[str, Mapping[str, int]]], now: datetime) -> None:
    """Write down which certificate of a site ends first; one without any is as if it had not been looked at."""
    forget(state)
    for first in soonest(report, now)[:1]:
        found = {"machine": first.machine, "file": first.file, "expires": first.expires.isoformat()}
        fresh = state / f".{KEPT}.new"
        fresh.write_text(json.dumps(found | {"seen": now.isoformat()}), encoding="utf-8")
        os.replace(fresh, state / KEPT)


def forget(state: Path) -> None:
    """Let nobody be told what was true before certificates were made anew."""
    (state / KEPT).unlink(missing_ok=True)


def kept(state: Path) -> dict[str, str] | None:
    """Return machine, file and `expires` of the certificate that ended first when last looked, and when that was."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads((state / KEPT).read_text(encoding="utf-8"))
        return {name: str(found[name]) for name in ("machine", "file", "expires", "seen")}
    return None
