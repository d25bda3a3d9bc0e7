"""When lab RKE2's schedule takes a snapshot, and which of them a retention leaves."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from snapshots import Snapshots, due

pytestmark = pytest.mark.proves("lab-snapshots")


def at(text: str) -> time.struct_time:
    """A time of a Sunday in March."""
    return time.strptime(f"2026-03-01 {text}", "%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("line", "moment", "meant"),
    [
        ("0 */12 * * *", "12:00", True),
        ("0 */12 * * *", "13:00", False),
        ("0 */12 * * *", "12:01", False),
        ("* * * * *", "07:31", True),
        ("30,31 7-9 1 3 0", "08:31", True),
        ("30,31 7-9 1 3 1-5", "08:31", False),
        ("5-59/10 * * * *", "08:15", True),
        ("5-59/10 * * * *", "08:20", False),
    ],
)
def test_a_line_of_cron_means_these_minutes(line: str, moment: str, meant: bool) -> None:
    assert due(line, at(moment)) is meant


class Values(dict[str, Any]):
    """A configuration."""

    node_name = "one"


@pytest.fixture
def kept(tmp_path: Path) -> Snapshots:
    """The snapshots of a server that writes empty ones."""
    config = Values({"etcd-snapshot-dir": str(tmp_path), "etcd-snapshot-retention": 2})
    config |= {"etcd-snapshot-schedule-cron": "* * * * *"}

    def etcdctl(_: list[str], *words: object) -> None:
        Path(str(words[-1])).touch()

    server = SimpleNamespace(config=config, ready=True, etcdctl=etcdctl, paths=SimpleNamespace(db=tmp_path))
    return Snapshots(cast("Any", server))


def test_a_retention_is_of_one_name_and_spares_those_on_demand(
    kept: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    for second in range(4):
        monkeypatch.setattr(time, "time", lambda second=second: 1_700_000_000.0 + second)
        for name in ("etcd-snapshot", "on-demand"):
            kept.save(name)
    gone = kept.answer({"operation": "prune", "name": "etcd-snapshot", "retention": 2})
    assert len(gone) == 2
    names = [item["spec"]["snapshotName"] for item in kept.answer({"operation": "ls"})]
    assert sorted(names) == [
        "etcd-snapshot-one-1700000002",
        "etcd-snapshot-one-1700000003",
        *(f"on-demand-one-170000000{second}" for second in range(4)),
    ]


def test_the_schedule_takes_one_a_minute_and_prunes(kept: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    for second in range(0, 300, 10):
        monkeypatch.setattr(time, "time", lambda second=second: 1_700_000_000.0 + second)
        kept.maintain()
    assert len(kept.all()) == 2
