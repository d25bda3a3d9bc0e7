"""What the ends of certificates mean. Nothing here has effects: what was read comes in as arguments."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Upstream renews at a start what expires within this time.
RENEWED_DAYS = 120


@dataclass(frozen=True)
class Expiry:
    """The certificate of a machine that ends first.

    file: its path there. days: whole days left, negative when it has ended. made: when the file was written.
    """

    machine: str
    file: str
    expires: datetime
    days: int
    made: datetime

    @property
    def told(self) -> str:
        """Return what that means for the machine."""
        if self.days < 0:
            return "expired"
        return "renewed by its next restart" if self.days < RENEWED_DAYS else "valid"


def soonest(report: Mapping[str, Mapping[str, Mapping[str, int]]], now: datetime) -> tuple[Expiry, ...]:
    """Return the certificate that ends first of every machine, the most urgent machine first.

    report: machine -> file -> `expires` in seconds since the epoch and `age` in seconds. now: an aware time.
    """
    found = []
    for machine, files in report.items():
        if files:
            file, one = min(files.items(), key=lambda pair: (pair[1]["expires"], pair[0]))
            expires = datetime.fromtimestamp(one["expires"], UTC)
            made = datetime.fromtimestamp(now.timestamp() - one["age"], UTC)
            found.append(Expiry(machine, file, expires, (expires - now).days, made))
    return tuple(sorted(found, key=lambda expiry: (expiry.expires, expiry.machine)))


def document(report: Mapping[str, Mapping[str, Mapping[str, int]]], now: datetime) -> dict[str, Any]:
    """Return for programs what `soonest` is for people: every machine, and all that it has."""
    return {
        expiry.machine: {
            "expires": expiry.expires.isoformat(),
            "days": expiry.days,
            "file": expiry.file,
            "files": {
                file: datetime.fromtimestamp(one["expires"], UTC).isoformat()
                for file, one in sorted(report[expiry.machine].items())
            },
        }
        for expiry in soonest(report, now)
    }
