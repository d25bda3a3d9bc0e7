"""Folds the events of a run into stages: what the journal keeps and the console shows."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from provisioner import journal as log

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

    from provisioner.console import Console
    from provisioner.runner import Event

LOCKED = 75  # what lock.yml ends with when another control machine has the site


class Watch:
    """The user's wish to stop: the first signal asks, the next one insists.

    stop_file: written on the first signal, so that batches that have not begun do not; None: the first one insists.
    """

    def __init__(self, stop_file: Path | None) -> None:
        self._stop_file = stop_file
        self.signals = 0

    @property
    def insists(self) -> bool:
        """Tell whether the run is to end in the middle of a task."""
        return self.signals > (1 if self._stop_file else 0)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.signals += 1
        if self._stop_file:
            self._stop_file.touch()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM while the block runs."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class _Stage:
    """A stage in progress, or one that ended with failures of which it is not known yet whether they were rescued."""

    name: str
    began: float
    hosts: dict[str, log.HostCounts] = field(default_factory=dict)
    failures: list[log.TaskFailed] = field(default_factory=list)
    seconds: float = 0


def _sum(one: Mapping[str, log.HostCounts], other: Mapping[str, log.HostCounts]) -> dict[str, log.HostCounts]:
    found = dict(one)
    for host, counts in other.items():
        old = found.get(host, log.HostCounts()).model_dump()
        found[host] = log.HostCounts(**{name: old[name] + value for name, value in counts.model_dump().items()})
    return found


class Recorder:
    """Takes the events of one run, which may be several calls of Ansible.

    finished, failures: what the calls so far came to. locked: (host, holder) when another control machine has the site.
    """

    def __init__(
        self, journal: log.Journal, console: Console, watch: Watch, expected: Mapping[str, float], total: int
    ) -> None:
        self._journal, self._console, self._watch = journal, console, watch
        self._expected, self._total = expected, total
        self._plays: list[str | None] = []
        self._open: _Stage | None = None
        self._unsettled: list[_Stage] = []
        self._failed_hosts: frozenset[str] | None = None
        self._told = False
        self._partly: Collection[str | None] = ()
        self._well = True
        self.finished: list[log.StageFinished] = []
        self.failures: list[log.TaskFailed] = []
        self.locked: tuple[str, str] | None = None

    def begin(self, sections: Sequence[tuple[str | None, int]], partly: Collection[str | None] = ()) -> None:
        """Expect the plays of a call: (stage, number of its plays); None stands for plays of the driver's own.

        partly: stages of which later calls do more.
        """
        self._partly = partly
        self._plays = [name for name, plays in sections for _ in range(plays)]
        self._open, self._failed_hosts, self._well = None, None, True

    def finish(self) -> bool:
        """End the call; return whether every stage in it ended well."""
        self._close()
        self._settle()
        return self._well

    def regressed(self, stage: str, host: str, message: str) -> None:
        """Let a stage be failed whose hosts did well, because the cluster did not."""
        task = "Compare the health of the cluster with that before"
        failure = log.TaskFailed(stage=stage, host=host, task=task, message=message)
        self.failures.append(failure)
        self._journal.append(failure)
        self._console.task_failed(failure)
        if self.finished and self.finished[-1].stage == stage:
            self.finished[-1] = self.finished[-1].model_copy(update={"result": "failed"})
            self._journal.append(self.finished[-1])

    def cancelled(self) -> bool:
        """Tell whether to cancel; the first time that the user wants to stop, say what happens."""
        if self._watch.signals and not self._told:
            self._told = True
            if not self._watch.insists:
                self._console.note("Stopping after the hosts in hand; once more to stop in the middle of a task.")
        return self._watch.insists

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if self._console.verbosity:
            self._console.output(event.text)
        if event.kind == "play":
            self._enter(self._plays[event.play] if event.play < len(self._plays) else None)
        elif event.kind == "task":
            self._console.task(name=event.task)
        elif event.kind == "stats":
            self._failed_hosts = event.failed_hosts
        elif event.kind == "diff" and event.text.strip() and not self._console.verbosity:
            self._console.note(f"{event.host} | {event.task}", "bold")
            self._console.output(event.text)
        elif event.kind in ("ok", "failed", "unreachable", "skipped") and self._open:
            if event.kind == "ok" and event.message and not self._console.verbosity:
                self._console.note(f"{event.host} | {event.message}")
            self._count(self._open, event)
        elif event.kind == "failed" and event.return_code == LOCKED:
            self.locked = (event.host, event.message.splitlines()[-1])

    def _enter(self, name: str | None) -> None:
        if self._open and self._open.name == name:
            return  # the next batch, or the next play of the same stage
        self._close()
        if name is None or self._watch.signals:
            return  # a stage that begins after the user's wish to stop ends at its first task
        self._open = _Stage(name, time.monotonic())
        self._journal.append(log.StageStarted(stage=name))
        position = f"{len(self.finished) + len(self._unsettled) + 1}/{self._total}"
        self._console.stage_started(name, position, self._expected.get(name))

    def _count(self, stage: _Stage, event: Event) -> None:
        counts = stage.hosts.setdefault(event.host, log.HostCounts())
        self._console.task(host=event.host)
        if event.kind == "ok" or event.ignored:
            counts.ok += 1
            counts.changed += event.changed
        elif event.kind == "skipped":
            counts.skipped += 1
        else:
            lost = event.kind == "unreachable"
            counts.unreachable += lost
            counts.failed += not lost
            failure = log.TaskFailed(
                stage=stage.name, host=event.host, task=event.task, message=event.message, unreachable=lost
            )
            stage.failures.append(failure)
            self._journal.append(failure)
            self._console.task_failed(failure)

    def _close(self) -> None:
        """End the stage in progress. One with failures waits for the recap, which alone knows what was rescued."""
        if self._open is None:
            return
        self._open.seconds = time.monotonic() - self._open.began
        self._unsettled.append(self._open)
        self._open = None
        if not any(stage.failures for stage in self._unsettled):
            self._settle()

    def _settle(self) -> None:
        while self._unsettled:
            stage = self._unsettled.pop(0)
            # A host that fails in a later stage too went on after this one: here it was rescued.
            lost = {failure.host for failure in stage.failures}
            lost -= {failure.host for later in self._unsettled for failure in later.failures}
            if self._failed_hosts is not None:
                lost &= self._failed_hosts
            result: log.StageResult = "ok" if stage.hosts else "skipped"
            if lost:
                result = "failed"
                self.failures += [failure for failure in stage.failures if failure.host in lost]
            elif self._watch.signals or not self._well:
                result = "interrupted"  # some hosts may not have taken part
            elif stage.name in self._partly:
                result = "partly"
            self._well = self._well and not lost
            if self.finished and self.finished[-1].stage == stage.name:
                before = self.finished.pop()  # an earlier wave
                stage.seconds += before.seconds
                stage.hosts = _sum(before.hosts, stage.hosts)
                result = "ok" if result == "skipped" else result
            end = log.StageFinished(
                stage=stage.name,
                result=result,
                seconds=round(stage.seconds, 3),
                hosts=stage.hosts,
                failed_hosts=tuple(sorted(lost)),
            )
            self.finished.append(end)
            self._journal.append(end)
            self._console.stage_finished(end)
