"""One run per site at a time.

On this machine a lock of the kernel, which dies with its holder; on the servers a file with owner and expiry
(lock.yml, unlock.yml), which keeps off other control machines and needs no API server.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import secrets
import socket
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from provisioner.errors import ExitCode, ProvisionError, command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from provisioner.project import Site

SERVER_LOCK_SECONDS = 6 * 3600  # longer than any run; a control machine that died keeps others off for no longer


@dataclass(frozen=True)
class Holder:
    """Who has the site: process id, verb, and start as ISO 8601 with offset."""

    pid: int
    verb: str
    started: str


def me() -> str:
    """Return user@host of this process."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def control_id(site: Site) -> str:
    """Return the random name of this control machine's state of the site, made on first use.

    Runs that share it exclude each other by the local lock, so one may take over the server lock of a dead other.
    """
    path = site.state / "control_id"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        known = path.read_text(encoding="ascii").strip()
        if known:
            return known
        descriptor = os.open(path, os.O_WRONLY)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        fresh = secrets.token_hex(8)
        file.write(fresh)
    return fresh


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def hold(site: Site, verb: str) -> Iterator[None]:
    """Hold the site while the block runs; refused at once when another process has it."""
    path = site.state / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(path)
            who = (
                f"`{holder.verb}` (pid {holder.pid}) since {holder.started}" if holder else "a run that starts just now"
            )
            raise ProvisionError(
                f"Site {site.name} is in use on this machine by {who}; one run at a time.",
                f"Wait until it ends; see what it does: {command('status', '--site', site.name)}",
                ExitCode.NOT_NOW,
            ) from None
        holder = Holder(os.getpid(), verb, datetime.now(UTC).astimezone().isoformat(timespec="seconds"))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def held_by(site: Site) -> Holder | None:
    """Return who has the site at this moment, or None."""
    path = site.state / "lock"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path)
    else:
        return None
    finally:
        os.close(descriptor)
