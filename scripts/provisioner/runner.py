"""The one seam to Ansible: a request goes in, events come out, a result is returned.

Nothing of ansible-runner's own records is kept: a run's directory is removed when it ends (results that lack `no_log`
would lie there for ever), and the file in which it notes command and environment is removed before Ansible starts.
What is worth remembering is in the journal.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from provisioner.errors import ExitCode, ProvisionError
from provisioner.inventory import program

if TYPE_CHECKING:
    from pathlib import Path

OLD_RUN_SECONDS = 120  # how long the tasks of a killed run may need to end
OLD_RUN_BUSY = 75  # EX_TEMPFAIL, from flock
GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL when a run is cancelled
POLL_SECONDS = 0.5
TAIL_LINES = 40
MESSAGE_CHARACTERS = 4000

Kind = Literal["play", "task", "ok", "failed", "unreachable", "skipped", "diff", "stats", "other"]
_KINDS: Mapping[str, Kind] = {
    "playbook_on_play_start": "play",
    "playbook_on_task_start": "task",
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
    "runner_on_file_diff": "diff",
    "playbook_on_stats": "stats",
}


_CHANGED = re.compile(r"^(\x1b\[[0-9;]*m)?changed: \[", re.MULTILINE)


@dataclass(frozen=True)
class RunRequest:
    """One call of ansible-playbook.

    root: where ansible.cfg is. work: a directory of its own, removed afterwards. child_lock: a file that is locked as
    long as a process of the call lives.
    """

    root: Path
    inventory: Path
    playbook: Path
    work: Path
    child_lock: Path
    limit: str | None = None
    tags: str | None = None
    check: bool = False
    extra_vars: Mapping[str, Any] = field(default_factory=dict)
    verbosity: int = 0
    color: bool = False


@dataclass(frozen=True)
class Event:
    """Something that happened. play: its number from 0 (a batch is no play of its own). text: Ansible's output.

    message: why something failed, or what a task said that does nothing else.
    """

    kind: Kind
    play: int = -1
    host: str = ""
    task: str = ""
    changed: bool = False
    ignored: bool = False
    message: str = ""
    return_code: int | None = None
    text: str = ""
    failed_hosts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RunResult:
    """How the call ended. tail: Ansible's last lines of output."""

    return_code: int
    cancelled: bool = False
    tail: str = ""


Runner = Callable[[RunRequest, Callable[[Event], None], Callable[[], bool]], RunResult]


def _text(value: Any) -> str:
    return "\n".join(_text(item) for item in value) if isinstance(value, list) else str(value).strip()


def message_of(result: Mapping[str, Any]) -> str:
    """Return what a failed result says: its message, those of its failed items, and what the command printed."""
    if "censored" in result:
        return str(result["censored"])
    failed = [
        item
        for item in result.get("results", ())
        if isinstance(item, dict) and (item.get("failed") or item.get("unreachable"))
    ]
    if failed:
        parts = [f"{item.get('_ansible_item_label', item.get('item', ''))}: {message_of(item)}" for item in failed]
    else:
        wanted = ("msg", "reason", "module_stderr", "stderr", "stdout")
        parts = [_text(result[name]) for name in wanted if result.get(name)]
    return "\n".join(dict.fromkeys(part for part in parts if part))[:MESSAGE_CHARACTERS] or "no message"


def _said(data: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return what a task said that does nothing else."""
    said = result.get("msg") if str(data.get("task_action")).endswith("debug") else None
    return said if isinstance(said, str) else ""


class _Translator:
    """Turns ansible-runner's dictionaries into events; numbers the plays."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self.on_event = on_event
        self.plays: list[str] = []
        self.pid = 0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.error: BaseException | None = None

    def __call__(self, raw: Mapping[str, Any]) -> bool:
        """Hand the event on; never let ansible-runner write it to disk, nor swallow what goes wrong here."""
        if self.error is None:
            try:
                self.on_event(self._event(raw))
            except Exception as error:  # noqa: BLE001  (raised again when the run has been cancelled)
                self.error = error
        return False

    def _event(self, raw: Mapping[str, Any]) -> Event:
        self.pid = int(raw.get("pid") or self.pid)
        text = str(raw.get("stdout") or "")
        self.tail.extend(text.splitlines())
        data: Mapping[str, Any] = raw.get("event_data") or {}
        kind = _KINDS.get(str(raw.get("event")), "other")
        if kind == "play":
            # A batch of `serial` is announced as a play with a counter behind its identifier.
            play = str(data.get("uuid", "")).partition("_")[0]
            if play not in self.plays:
                self.plays.append(play)
        if kind == "stats":
            failed = frozenset({**data.get("failures", {}), **data.get("dark", {})})
            return Event(kind, len(self.plays) - 1, text=text, failed_hosts=failed)
        result: Mapping[str, Any] = data.get("res") or {}
        bad = kind in ("failed", "unreachable")
        return Event(
            kind,
            len(self.plays) - 1,
            host=str(data.get("host", "")),
            task=str(data.get("task") or data.get("name") or ""),
            # Of a result under no_log nothing is handed on, not even this; Ansible's own line tells it.
            changed=bool(result["changed"] if "changed" in result else _CHANGED.search(text)),
            # Nothing but Ansible's own words tells that a machine's silence was expected.
            ignored=bool(data.get("ignore_errors")) or (kind == "unreachable" and "...ignoring" in text[-40:]),
            message=message_of(result) if bad else _said(data, result),
            return_code=result.get("rc") if bad else None,
            text=text,
        )


def _wrapped(request: RunRequest, command: list[str]) -> list[str]:
    """Return the command such that it neither outlives this process nor runs beside what an earlier one left behind.

    `flock` waits for the tasks of a killed run and holds the lock until the last process of this one has ended; the
    kernel sends SIGTERM when the driver dies, which Ansible hands on to its tasks.
    """
    missing = [name for name in ("flock", "setpriv") if shutil.which(name) is None]
    if missing:
        raise ProvisionError(
            f"{' and '.join(missing)} not found in PATH.", "Run: apt-get install util-linux", ExitCode.SETUP
        )
    flock = ["flock", "--no-fork", "--timeout", str(OLD_RUN_SECONDS), "--conflict-exit-code", str(OLD_RUN_BUSY)]
    return [
        *flock,
        str(request.child_lock),
        "setpriv",
        "--pdeathsig",
        "TERM",
        program("ansible-playbook"),
        *command[1:],
    ]


def _prepare(request: RunRequest, translate: _Translator, cancelled: Callable[[], bool]) -> Any:
    """Return an ansible-runner object that is ready to run."""

    def on_status(status: Mapping[str, Any], runner_config: Any) -> None:
        if status["status"] == "running":
            with suppress(FileNotFoundError):  # command line and the whole environment, secrets of the shell included
                os.unlink(os.path.join(runner_config.artifact_dir, "command"))

    cancelled_at: list[float] = []

    def on_poll() -> bool:
        if translate.error is None and not cancelled():
            return False
        if not cancelled_at:
            cancelled_at.append(time.monotonic())
            if translate.pid:
                with suppress(ProcessLookupError):
                    os.kill(translate.pid, signal.SIGTERM)
        # Ansible ends its tasks on SIGTERM; ansible-runner's way to cancel is SIGKILL, which leaves them running.
        return time.monotonic() - cancelled_at[0] > GRACE_SECONDS

    interface = importlib.import_module("ansible_runner.interface")
    runner = interface.init_runner(
        private_data_dir=str(request.work),
        project_dir=str(request.root),
        playbook=str(request.playbook),
        inventory=str(request.inventory),
        limit=request.limit,
        tags=request.tags,
        cmdline="--check --diff" if request.check else None,
        extravars=dict(request.extra_vars) or None,
        verbosity=request.verbosity or None,
        fact_cache_type="memory",
        settings={"suppress_ansible_output": True, "suppress_output_file": True, "pexpect_timeout": POLL_SECONDS},
        event_handler=translate,
        status_handler=on_status,
        cancel_callback=on_poll,
    )
    environment = runner.config.env
    # ansible-runner switches the check of host keys off unless told; ansible.cfg is where that is decided.
    for name in ("ANSIBLE_HOST_KEY_CHECKING", "ANSIBLE_RETRY_FILES_ENABLED"):
        if name not in os.environ:
            environment.pop(name, None)
    environment.update({"ANSIBLE_FORCE_COLOR": "1"} if request.color else {"ANSIBLE_NOCOLOR": "1"})
    runner.config.command = _wrapped(request, runner.config.command)
    return runner


def run(request: RunRequest, on_event: Callable[[Event], None], cancelled: Callable[[], bool]) -> RunResult:
    """Run a playbook, hand every event to `on_event` as it happens, and stop soon after `cancelled()` turns true.

    Nothing of the request's work directory is left behind. Raises what `on_event` raised.
    """
    request.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    translate = _Translator(on_event)
    try:
        runner = _prepare(request, translate, cancelled)
        runner.run()
    finally:
        shutil.rmtree(request.work / "artifacts", ignore_errors=True)
        shutil.rmtree(request.work / "env", ignore_errors=True)
    if translate.error is not None:
        raise translate.error
    stopped = cancelled() and runner.rc != 0
    return RunResult(runner.rc if runner.rc is not None else 254, stopped, "\n".join(translate.tail))
