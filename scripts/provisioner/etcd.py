"""What the state of etcd's members means. Nothing here has effects: what was read comes in as arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Of the quota: from here on somebody should look what fills it. Of the file: so much that is free is worth a pause.
FILLING = 0.8
LOOSE = 0.5


@dataclass(frozen=True)
class Member:
    """One member; sizes in bytes, quota 0 where it is not told. alarms: those of the whole cluster."""

    server: str
    leader: bool
    version: str
    size: int
    in_use: int
    quota: int
    alarms: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Return what is wrong with it, the worst alone, or "ok"."""
        if self.alarms:
            return f"failed: {', '.join(self.alarms)}"
        if self.quota and self.size >= self.quota * FILLING:
            return "filling: every write is refused at the quota"
        if self.size - self.in_use > max(self.size * LOOSE, 100 << 20):
            return "loose: a defragmentation gives back most of it"
        return "ok"


def members(report: Mapping[str, Mapping[str, Any]]) -> tuple[Member, ...]:
    """Return the members that answered. report: server -> what the module rke2_etcd said, the last asked last."""
    # The last answer knows what the turns before it have ended.
    alarms = tuple(list(report.values())[-1]["alarms"]) if report else ()
    return tuple(
        Member(
            server,
            bool(told["member"]["leader"]),
            str(told["member"]["version"]),
            int(told["member"]["size"]),
            int(told["member"]["in_use"]),
            int(told["member"]["quota"]),
            alarms,
        )
        for server, told in sorted(report.items())
    )


def mib(size: int) -> str:
    """Return bytes as people compare them here: "12.5 MiB"."""
    return f"{size / (1 << 20):.1f} MiB"
