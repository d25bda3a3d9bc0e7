"""Events become stages: what was rescued is no failure, what did not run everywhere is not finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner import journal
from provisioner.console import Console
from provisioner.recorder import Recorder, Watch
from provisioner.runner import Event


def _fold(tmp_path: Path, *events: Event, plays: int = 1, stop_before: int | None = None) -> Recorder:
    """Feed events of the stages `one` and `two`, each of `plays` plays, to a recorder; the user may stop at one."""
    watch = Watch(tmp_path / "stop")
    recorder = Recorder(journal.Journal(tmp_path / "j.jsonl"), Console(as_json=True), watch, {}, 2)
    recorder.begin([(None, 1), ("one", plays), ("two", plays), (None, 1)])
    for number, event in enumerate(events):
        if number == stop_before:
            watch._handle(2, None)
        recorder(event)
    recorder.finish()
    return recorder


def _play(number: int) -> Event:
    return Event("play", number)


def _ok(host: str = "a", *, changed: bool = False) -> Event:
    return Event("ok", host=host, task="T", changed=changed)


def _bad(*, ignored: bool = False) -> Event:
    return Event("failed", host="a", task="T", message="no", ignored=ignored)


def _stats(*hosts: str) -> Event:
    return Event("stats", failed_hosts=frozenset(hosts))


@pytest.mark.proves("driver-recorder")
@pytest.mark.parametrize(
    ("events", "results"),
    [
        pytest.param([_play(1), _ok(), _play(2), _ok(), _stats()], ["ok", "ok"], id="all well"),
        pytest.param([_play(1), _ok(), _play(2), _stats()], ["ok", "skipped"], id="a stage without hosts"),
        pytest.param([_play(1), _bad(), _stats("a")], ["failed"], id="a failure ends the run"),
        pytest.param([_play(1), _bad(), _ok(), _stats("a")], ["failed"], id="`always` ran after the failure"),
        pytest.param([_play(1), _bad(), _ok(), _play(2), _ok(), _stats()], ["ok", "ok"], id="rescued"),
        pytest.param([_play(1), _bad(ignored=True), _play(2), _ok(), _stats()], ["ok", "ok"], id="ignored"),
        pytest.param([_play(1), _bad(), _play(2), _bad(), _stats("a")], ["ok", "failed"], id="rescued, then failed"),
        pytest.param(
            [_play(1), _bad(), _ok("b"), _play(2), _ok("b"), _stats("a")],
            ["failed", "interrupted"],
            id="the others went on without the host that failed",
        ),
        pytest.param([_play(1), _bad()], ["failed"], id="no recap: Ansible was killed"),
        pytest.param([_play(1), _ok(), _play(1), _ok("b"), _play(2), _ok(), _stats()], ["ok", "ok"], id="batches"),
        pytest.param(
            [_play(0), _bad(), _play(1), _ok(), _stats()], ["ok"], id="plays of the driver's own do not count"
        ),
    ],
)
def test_a_stage_ended_as_its_hosts_did(tmp_path: Path, events: list[Event], results: list[str]) -> None:
    recorder = _fold(tmp_path, *events)
    assert [end.result for end in recorder.finished] == results
    written = journal.entries((tmp_path / "j.jsonl").read_bytes())
    assert [entry.result for entry in written if isinstance(entry, journal.StageFinished)] == results
    assert bool(recorder.failures) == ("failed" in results)


def test_a_stage_of_several_plays_is_one_stage(tmp_path: Path) -> None:
    recorder = _fold(tmp_path, *[event for number in range(6) for event in (_play(number), _ok(changed=True))], plays=2)
    assert [(end.stage, end.changed) for end in recorder.finished] == [("one", 2), ("two", 2)]


def test_hosts_are_counted_by_what_happened_to_them(tmp_path: Path) -> None:
    lost = Event("unreachable", host="b", task="T", message="no route")
    events = (_play(1), _ok(changed=True), _ok(), Event("skipped", host="a", task="T"), lost, _stats("b"))
    end = _fold(tmp_path, *events).finished[0]
    assert end.hosts["a"] == journal.HostCounts(ok=2, changed=1, skipped=1)
    assert end.hosts["b"] == journal.HostCounts(unreachable=1)
    assert end.failed_hosts == ("b",)


@pytest.mark.proves("driver-interrupt")
def test_a_stage_in_which_the_user_asked_to_stop_is_not_finished_and_later_ones_are_not_begun(tmp_path: Path) -> None:
    events = (_play(1), _ok(), _ok("b"), _play(2), _ok(), _stats())
    recorder = _fold(tmp_path, *events, stop_before=2)
    assert [(end.stage, end.result) for end in recorder.finished] == [("one", "interrupted")]
    assert (tmp_path / "stop").exists()


def test_what_a_task_says_to_people_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fold(tmp_path, _play(1), Event("ok", host="a", task="T", message="it waits"), _stats())
    assert "a | it waits" in capsys.readouterr().err
