"""What every run did, as JSON lines that survive a crash at any byte.

One file a run, `<start>-<verb>-<random>.jsonl`, mode 0600, only ever appended to, each line on the disk before the run
goes on. A file is read up to its first line that is not whole; the next append cuts off what follows.
The schema of a line is `Line.model_json_schema()`.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, RootModel, ValidationError

from provisioner.plan import Past, Request, Resumed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

KEPT = 100  # files of each verb; older ones are deleted when a run starts
COPIED = 50  # the newest that each server keeps, of all verbs
DONE = ("ok", "skipped")

StageResult = Literal["ok", "partly", "failed", "interrupted", "skipped"]
RunResult = Literal["ok", "paused", "failed", "unhealthy", "interrupted", "refused", "broken", "died"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)
    at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC), description="when it happened")


class RunStarted(_Entry):
    """The first line of a file."""

    event: Literal["run_started"] = "run_started"
    format: Literal[1] = 1
    run_id: str
    site: str
    owner: str = Field(description="user@host that ran the driver")
    pid: int
    request: Request = Field(description="the options of the run")
    stages: tuple[str, ...] = Field(description="the stages it is going to run, in order")
    resumes: str | None = Field(default=None, description="the run it continues")
    done: tuple[str, ...] = Field(default=(), description="what that run, and those it continued, had finished")
    versions: dict[str, str] = Field(default_factory=dict, description="what the site's files said was to be there")


class StageStarted(_Entry):
    """A stage's first play began."""

    event: Literal["stage_started"] = "stage_started"
    stage: str


class TaskFailed(_Entry):
    """A task failed on a host, or the host could not be reached."""

    event: Literal["task_failed"] = "task_failed"
    stage: str
    host: str
    task: str
    message: str
    unreachable: bool = False


class HostCounts(BaseModel):
    """How many tasks of a stage ended in which way on one host."""

    ok: int = 0
    changed: int = 0
    failed: int = 0
    unreachable: int = 0
    skipped: int = 0


class StageFinished(_Entry):
    """A stage ended; `skipped` means that it had no host or no task in this run, `partly` that more waves follow."""

    event: Literal["stage_finished"] = "stage_finished"
    stage: str
    result: StageResult
    seconds: float
    hosts: dict[str, HostCounts] = Field(default_factory=dict)
    failed_hosts: tuple[str, ...] = ()

    @property
    def changed(self) -> int:
        """Return the number of changed tasks over all hosts."""
        return sum(counts.changed for counts in self.hosts.values())


class WaveFinished(_Entry):
    """A wave of a stage ended and the cluster is as healthy as before."""

    event: Literal["wave_finished"] = "wave_finished"
    stage: str
    hosts: tuple[str, ...]


class HealthTaken(_Entry):
    """How healthy the cluster was before a rollout began."""

    event: Literal["health_taken"] = "health_taken"
    health: Any


class RunFinished(_Entry):
    """The last line of a file; `died` is written by the next run for one that was killed."""

    event: Literal["run_finished"] = "run_finished"
    result: RunResult
    exit_code: int
    seconds: float
    message: str = ""


Entry = RunStarted | StageStarted | TaskFailed | StageFinished | WaveFinished | HealthTaken | RunFinished


class Line(RootModel[Annotated[Entry, Field(discriminator="event")]]):
    """One line of a journal."""


@dataclass
class Run:
    """One run as its file tells it. finished: stage -> its end; failures: in the order in which they happened.

    waves: stage -> hosts whose waves are over. health: of the cluster, before a rollout began.
    """

    path: Path
    started: RunStarted
    finished: dict[str, StageFinished] = field(default_factory=dict)
    failures: list[TaskFailed] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)
    end: RunFinished | None = None
    waves: dict[str, tuple[str, ...]] = field(default_factory=dict)
    health: Any = None

    @property
    def rest(self) -> tuple[str, ...]:
        """Return the stages that the run set out to do and did not finish."""
        done = {name for name, stage in self.finished.items() if stage.result in DONE}
        return tuple(name for name in self.started.stages if name not in done)

    def past(self, stage: str) -> Past | None:
        """Return how a stage stood when the run ended, or None if it was not reached."""
        limit = self.started.request.limit
        if stage in self.finished:
            end = self.finished[stage]
            return Past(end.at, end.result, end.failed_hosts, limit)
        if stage not in self.begun:
            return None
        hosts = tuple(dict.fromkeys(failure.host for failure in self.failures if failure.stage == stage))
        last = self.end.at if self.end else self.started.at
        return Past(last, "failed" if hosts else "interrupted", hosts, limit)


def _whole_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (end offset, line) up to the first line that is torn or no JSON."""
    offset = 0
    for line in data.splitlines(keepends=True):
        offset += len(line)
        try:
            whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
        except ValueError:
            return
        if not whole:
            return
        yield offset, line


def entries(data: bytes) -> list[Entry]:
    """Return the entries of a journal's bytes up to the first torn line; events of a newer driver are passed over."""
    found = []
    for _, line in _whole_lines(data):
        try:
            found.append(Line.model_validate_json(line).root)
        except ValidationError:
            continue
    return found


def read(path: Path) -> Run | None:
    """Return the run that a file tells of, or None if it was torn before its first line was whole."""
    lines = entries(path.read_bytes())
    if not lines or not isinstance(lines[0], RunStarted):
        return None
    run = Run(path, lines[0])
    for entry in lines[1:]:
        match entry:
            case StageStarted():
                run.begun.add(entry.stage)
            case StageFinished():
                run.finished[entry.stage] = entry
            case TaskFailed():
                run.failures.append(entry)
            case WaveFinished():
                run.waves[entry.stage] = (*run.waves.get(entry.stage, ()), *entry.hosts)
            case HealthTaken():
                run.health = entry.health
            case RunFinished():
                run.end = entry
            case RunStarted():
                pass
    return run


def _verb(path: Path) -> str:
    return path.stem.split("-", 1)[1].rpartition("-")[0]


def _files(directory: Path, verb: str) -> list[Path]:
    """Return the journals of a verb, newest first."""
    return [path for path in sorted(directory.glob(f"*-{verb}-*.jsonl"), reverse=True) if _verb(path) == verb]


def runs(directory: Path, verb: str) -> list[Run]:
    """Return the recorded runs of a verb, newest first."""
    found = (read(path) for path in _files(directory, verb))
    return [run for run in found if run]


def verbs(directory: Path) -> tuple[str, ...]:
    """Return the verbs and operations of which a run is recorded, sorted."""
    return tuple(sorted({_verb(path) for path in directory.glob("*-*-*.jsonl")}))


class Journal:
    """The file of one run, open for appending; what a crash left after its last whole line is cut off first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        new = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        whole = max((end for end, _ in _whole_lines(path.read_bytes())), default=0)
        os.ftruncate(self._file, whole)
        os.lseek(self._file, whole, os.SEEK_SET)
        if new:
            directory = os.open(path.parent, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)

    def append(self, entry: Entry) -> None:
        """Write one line and return when it is on the disk."""
        data = entry.model_dump_json().encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def new_run(directory: Path, verb: str, now: datetime) -> tuple[str, Path]:
    """Return a name for a run that starts `now` and the path of its file; names sort by time."""
    start = now.astimezone(UTC)
    run_id = f"{start:%Y%m%dT%H%M%S}.{start.microsecond // 1000:03}Z-{verb}-{secrets.token_hex(2)}"
    return run_id, directory / f"{run_id}.jsonl"


def tidy(directory: Path) -> None:
    """Close the files of runs that were killed and delete those beyond the newest `KEPT` of a verb.

    Only the holder of the site's lock may call this: it takes every run without an end for dead.
    """
    for verb in verbs(directory):
        for path in _files(directory, verb)[KEPT:]:
            path.unlink()
        for run in runs(directory, verb)[:1]:
            if run.end is None:
                journal = Journal(run.path)
                journal.append(RunFinished(result="died", exit_code=-9, seconds=0, message="the driver was killed"))
                journal.close()


def adopt(directory: Path, copies: Mapping[str, str]) -> list[str]:
    """Write copies that servers kept of other control machines' runs beside the own ones; return the names of new ones.

    copies: name of a file -> its text. A copy is made before its run's end is written, so that is made up for.
    """
    fresh = []
    for name, text in sorted(copies.items()):
        path = directory / name
        lines = entries(text.encode())
        if path.exists() or path.name != name or not name.endswith(".jsonl") or not lines:
            continue
        if not isinstance(lines[0], RunStarted) or lines[0].run_id != path.stem:
            continue
        journal = Journal(path)
        for entry in lines:
            journal.append(entry)
        run = read(path)
        if run and run.end is None:
            seconds = (lines[-1].at - lines[0].at).total_seconds()
            result: RunResult = "failed" if run.failures else "interrupted" if run.rest else "ok"
            message = "told by a server's copy"
            journal.append(
                RunFinished(result=result, exit_code=0 if result == "ok" else 1, seconds=seconds, message=message)
            )
        journal.close()
        fresh.append(name)
    return fresh


def to_resume(deploys: Iterable[Run]) -> Run | None:
    """Return the newest run with stages left that no later run with the same or no limit has finished, or None.

    deploys: newest first. A run that continued another one took over all that was left of it.
    """
    later: set[tuple[str, str | None]] = set()  # stage, limit under which it was finished
    for run in deploys:
        limit = run.started.request.limit
        left = [name for name in run.rest if not {(name, None), (name, limit)} & later]
        if left:
            return run
        later |= {(name, limit) for name, stage in run.finished.items() if stage.result in DONE}
    return None


def as_resumed(run: Run) -> Resumed:
    """Return what planning needs to know of the run to continue."""
    done = {*run.started.done, *run.started.stages} - set(run.rest)
    rest = {name: past for name in run.rest if (past := run.past(name))}
    return Resumed(run.started.run_id, frozenset(done), rest, run.waves, run.health)


def last(found: Iterable[Run]) -> dict[str, Past]:
    """Return stage -> how it went the last time it ran. found: newest first."""
    result: dict[str, Past] = {}
    for run in found:
        for name in run.started.stages:
            past = run.past(name)
            if past and past.result != "skipped":
                result.setdefault(name, past)
    return result


def durations(found: Iterable[Run]) -> Mapping[str, float]:
    """Return stage -> median seconds of its earlier runs that ended well."""
    seen: dict[str, list[float]] = {}
    for run in found:
        for name, stage in run.finished.items():
            if stage.result == "ok":
                seen.setdefault(name, []).append(stage.seconds)
    return {name: statistics.median(seconds) for name, seconds in seen.items()}
