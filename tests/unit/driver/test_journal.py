"""A journal is whole after a crash at any byte, and it alone decides what is resumed."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from provisioner import journal
from provisioner.plan import Request

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _started(run_id: str = "R", stages: tuple[str, ...] = ("first", "second"), **more: object) -> journal.RunStarted:
    fields: dict[str, object] = {"request": Request("deploy"), "resumes": None, "done": (), **more}
    return journal.RunStarted.model_validate(
        {"at": START, "run_id": run_id, "site": "here", "owner": "me@host", "pid": 1, "stages": stages, **fields}
    )


def _finished(stage: str, result: journal.StageResult = "ok", seconds: float = 1) -> journal.StageFinished:
    counts = journal.HostCounts(ok=3, changed=1)
    return journal.StageFinished(at=START, stage=stage, result=result, seconds=seconds, hosts={"alpha": counts})


ENTRIES: list[journal.Entry] = [
    _started(),
    journal.StageStarted(at=START, stage="first"),
    _finished("first"),
    journal.StageStarted(at=START, stage="second"),
    journal.TaskFailed(at=START, stage="second", host="beta", task="Größe \r\n\u2028", message="Ünïcödé\n\x00\x1b"),
    _finished("second", "failed"),
    journal.WaveFinished(at=START, stage="second", hosts=("alpha",)),
    journal.HealthTaken(at=START, health={"nodes": {"alpha": {"Ready": "True"}}}),
    journal.RunFinished(at=START, result="failed", exit_code=1, seconds=2),
]


def _write(path: Path, *entries: journal.Entry) -> Path:
    file = journal.Journal(path)
    for entry in entries:
        file.append(entry)
    file.close()
    return path


@pytest.mark.proves("driver-journal-torn")
def test_a_journal_cut_at_any_byte_tells_what_was_whole_and_goes_on_from_there(tmp_path: Path) -> None:
    data = _write(tmp_path / "whole.jsonl", *ENTRIES).read_bytes()
    assert journal.entries(data) == ENTRIES
    ends = [0, *(index + 1 for index, byte in enumerate(data) if byte == 10)]
    assert len(ends) == len(ENTRIES) + 1
    path = tmp_path / "torn.jsonl"
    for cut in range(len(data) + 1):
        whole = sum(end <= cut for end in ends) - 1
        path.write_bytes(data[:cut])
        assert journal.entries(path.read_bytes()) == ENTRIES[:whole], f"cut at byte {cut}"
        _write(path, ENTRIES[-1])
        assert path.read_bytes() == data[: ends[whole]] + data[ends[-2] :], f"cut at byte {cut}"


@pytest.mark.proves("driver-journal-torn")
@pytest.mark.parametrize("rubbish", [b"\x00" * 40 + b"\n", b"[1]\n", b'{"event"\n', b"\xff\xfe\n"])
def test_what_follows_a_line_of_rubbish_is_cut_off(tmp_path: Path, rubbish: bytes) -> None:
    path = _write(tmp_path / "j.jsonl", *ENTRIES[:3])
    with path.open("ab") as file:
        file.write(rubbish + ENTRIES[3].model_dump_json().encode() + b"\n")
    assert journal.entries(path.read_bytes()) == ENTRIES[:3]
    _write(path, ENTRIES[-1])
    assert journal.entries(path.read_bytes()) == [*ENTRIES[:3], ENTRIES[-1]]


def test_an_event_of_a_newer_driver_is_passed_over_and_kept(tmp_path: Path) -> None:
    path = _write(tmp_path / "j.jsonl", *ENTRIES[:2])
    with path.open("ab") as file:
        file.write(b'{"event": "moon_phase", "at": "2026-03-01T12:00:00Z"}\n')
    _write(path, ENTRIES[2])
    assert journal.entries(path.read_bytes()) == ENTRIES[:3]
    assert b"moon_phase" in path.read_bytes()


@pytest.mark.proves("driver-journal-torn")
def test_every_line_is_on_the_disk_before_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j.jsonl"
    seen: list[int] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        seen.append(path.stat().st_size)

    file = journal.Journal(path)
    monkeypatch.setattr(os, "fsync", watched)
    for entry in ENTRIES:
        file.append(entry)
        assert seen[-1] == path.stat().st_size
    assert len(seen) == len(ENTRIES)
    file.close()


def test_a_journal_is_for_its_owner_alone(tmp_path: Path) -> None:
    assert stat.S_IMODE(_write(tmp_path / "j.jsonl", *ENTRIES).stat().st_mode) == 0o600


def test_the_published_schema_describes_every_event() -> None:
    schema = journal.Line.model_json_schema()
    written = {json.loads(entry.model_dump_json())["event"] for entry in ENTRIES}
    assert set(schema["discriminator"]["mapping"]) == written


def _runs(directory: Path, *runs: list[journal.Entry]) -> list[journal.Run]:
    """Write runs, oldest first, and return what is read: newest first."""
    for number, entries in enumerate(runs):
        _write(directory / f"2026030{number}-deploy-x.jsonl", *entries)
    return journal.runs(directory, "deploy")


LIMITED = Request("deploy", limit="one")
WHOLE: list[journal.Entry] = [_started("whole"), _finished("first"), _finished("second")]
HALF: list[journal.Entry] = [_started("half"), _finished("first"), journal.StageStarted(stage="second")]


@pytest.mark.proves("driver-resume")
@pytest.mark.parametrize(
    ("runs", "resumed"),
    [
        pytest.param([], None, id="nothing ran"),
        pytest.param([WHOLE], None, id="all finished"),
        pytest.param([HALF], "half", id="killed in a stage"),
        pytest.param([[_started("dead")]], "dead", id="killed before the first stage"),
        pytest.param([WHOLE, HALF], "half", id="the newest is unfinished"),
        pytest.param([HALF, WHOLE], None, id="a later run finished everything"),
        pytest.param([HALF, [_started("other", ("first",)), _finished("first")]], "half", id="a later run did less"),
        pytest.param(
            [HALF, [_started("other", ("second",)), _finished("second")]], None, id="a later run did the rest"
        ),
        pytest.param(
            [HALF, [_started("other", ("second",), request=LIMITED), _finished("second")]],
            "half",
            id="a later run did the rest on one host only",
        ),
        pytest.param(
            [[_started("part", request=LIMITED)], WHOLE], None, id="a later run did on all hosts what was left on one"
        ),
        pytest.param(
            [HALF, [_started("again", ("second",), resumes="half", done=["first"]), _finished("second")]],
            None,
            id="continued and finished",
        ),
        pytest.param(
            [HALF, [_started("again", ("second",), resumes="half", done=["first"]), _finished("second", "failed")]],
            "again",
            id="continued and failed again",
        ),
        pytest.param(
            [[_started("empty"), _finished("first", "skipped"), _finished("second")]], None, id="without hosts"
        ),
    ],
)
def test_the_run_to_resume_is_the_newest_whose_rest_nobody_finished(
    tmp_path: Path, runs: list[list[journal.Entry]], resumed: str | None
) -> None:
    found = journal.to_resume(_runs(tmp_path, *runs))
    assert (found.started.run_id if found else None) == resumed


@pytest.mark.proves("driver-resume")
def test_what_a_chain_of_resumed_runs_finished_stays_finished(tmp_path: Path) -> None:
    chain: list[journal.Entry] = [
        _started("again", ("second", "third"), resumes="half", done=["first"]),
        _finished("second"),
        journal.TaskFailed(stage="third", host="beta", task="T", message="m"),
        _finished("third", "failed").model_copy(update={"failed_hosts": ("beta",)}),
    ]
    resumed = journal.as_resumed(_runs(tmp_path, HALF, chain)[0])
    assert resumed.done == {"first", "second"}
    assert {name: (past.result, past.failed_hosts) for name, past in resumed.rest.items()} == {
        "third": ("failed", ("beta",))
    }


def test_a_run_torn_in_its_first_line_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    (tmp_path / "20260301-deploy-x.jsonl").write_bytes(b'{"event": "run_sta')
    assert journal.runs(tmp_path, "deploy") == []


def test_tidying_closes_a_killed_run_and_keeps_a_bounded_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "KEPT", 2)
    _runs(tmp_path, WHOLE, WHOLE, HALF)
    journal.tidy(tmp_path)
    left = journal.runs(tmp_path, "deploy")
    assert [run.started.run_id for run in left] == ["half", "whole"]
    assert left[0].end is not None and left[0].end.result == "died"


def test_names_of_runs_sort_by_time(tmp_path: Path) -> None:
    moments = [START + timedelta(milliseconds=step) for step in (0, 1, 999, 1000, 60_000)]
    names = [journal.new_run(tmp_path, "deploy", moment)[0] for moment in moments]
    assert names == sorted(names)


def test_the_expected_duration_is_the_median_of_runs_that_ended_well(tmp_path: Path) -> None:
    runs: list[list[journal.Entry]] = [[_started(), _finished("first", "ok", seconds)] for seconds in (1, 30, 2)]
    failed: list[journal.Entry] = [_started(), _finished("first", "failed", 500)]
    assert journal.durations(_runs(tmp_path, *runs, failed)) == {"first": 2}
