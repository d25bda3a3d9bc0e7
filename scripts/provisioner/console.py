"""What people see: tables, progress, failures. Colour and moving lines only on a terminal.

Results go to stdout, progress and errors to stderr; with `--json` stdout belongs to the one JSON document.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.live import Live

    from provisioner.journal import StageFinished, TaskFailed
    from provisioner.plan import Plan

STYLES = {
    "ok": "green",
    "partly": "green",
    "failed": "bold red",
    "interrupted": "yellow",
    "skipped": "dim",
    "died": "bold red",
    "running": "cyan",
}
PLAIN_WIDTH = 200  # columns for a file or a pipe, where nothing wraps


def span(seconds: float) -> str:
    """Return a duration as people say it: "4 s", "2 min 05 s", "1 h 03 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def count(number: int, noun: str) -> str:
    """Return "1 host", "2 hosts"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class _Line:
    """The moving line: stage, hosts, task, time passed and expected; drawn anew twice a second."""

    def __init__(self) -> None:
        self.stage = ""
        self.position = ""
        self.started = time.monotonic()
        self.expected: float | None = None
        self.hosts: set[str] = set()
        self.task = ""

    def __rich__(self) -> Text:
        if not self.stage:
            return Text("starting Ansible", style="dim")
        passed = span(time.monotonic() - self.started) + (f" of about {span(self.expected)}" if self.expected else "")
        hosts = count(len(self.hosts), "host")
        line = Text.assemble(
            (self.stage, "bold"), f" {self.position}  {hosts}  {passed}  ", (self.task, "dim"), overflow="ellipsis"
        )
        line.no_wrap = True
        return line


class Console:
    """The two streams. as_json: keep stdout for `document`. verbosity: from 1 on Ansible's own output is shown."""

    def __init__(self, *, as_json: bool = False, verbosity: int = 0) -> None:
        self.as_json = as_json
        self.verbosity = verbosity
        self._err = self._open(stderr=True)
        self._out = self._err if as_json else self._open(stderr=False)
        self._line = _Line()

    @staticmethod
    def _open(*, stderr: bool) -> RichConsole:
        stream = sys.stderr if stderr else sys.stdout
        width = None if stream.isatty() else PLAIN_WIDTH
        return RichConsole(stderr=stderr, width=width, highlight=False, markup=False, emoji=False, soft_wrap=True)

    @property
    def color(self) -> bool:
        """Tell whether stderr is a terminal that shows colour."""
        return self._err.color_system is not None

    def document(self, data: Any) -> None:
        """Print `data` as the one JSON document on stdout; without `--json` do nothing."""
        if self.as_json:
            sys.stdout.write(json.dumps(data, indent=2, default=lambda value: value.isoformat()) + "\n")

    def say(self, text: str, style: str = "") -> None:
        """Print a line among the results."""
        self._out.print(Text(text, style=style))

    def note(self, text: str, style: str = "yellow") -> None:
        """Print a line among the progress."""
        self._err.print(Text(text, style=style))

    def error(self, message: str, hint: str) -> None:
        """Print what went wrong and, last, what to do."""
        self._err.print(Text.assemble(("error: ", "bold red"), message))
        if hint:
            self._err.print(Text.assemble(("  -> ", "bold"), hint))

    def output(self, text: str) -> None:
        """Print Ansible's own output as it came."""
        if text:
            self._err.print(Text.from_ansi(text.replace("\r\n", "\n")))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], styles: Mapping[str, str] = STYLES) -> None:
        """Print a table among the results; a cell whose first word has a style is drawn in it."""
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(Text(cell, style=styles.get(cell.partition(" ")[0], "")) for cell in row))
        self._out.print(table, soft_wrap=False)

    def plan(self, title: str, plan: Plan, expected: Mapping[str, float], waves: Mapping[str, str]) -> None:
        """Print every stage with what will be done and why."""
        self.say(title, "bold")
        rows = []
        for step in plan.steps:
            about = f"about {span(expected[step.stage.name])}" if step.runs and step.stage.name in expected else ""
            reason = step.reason + (f"; {waves[step.stage.name]}" if step.runs and step.stage.name in waves else "")
            rows.append((step.stage.name, "run" if step.runs else "-", about, reason))
        self.table(("stage", "", "expected", "why"), rows)

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show the moving line while the block runs; on anything but a terminal only finished stages are printed."""
        if not self._err.is_terminal or self.verbosity:
            yield
            return
        from rich.live import Live  # noqa: PLC0415  (only terminals need it)

        live: Live = Live(self._line, console=self._err, refresh_per_second=2, transient=True)
        with live:
            yield

    def stage_started(self, name: str, position: str, expected: float | None) -> None:
        """Let the moving line speak of another stage. position: "3/15". expected: seconds, if earlier runs tell."""
        line = self._line
        line.stage, line.position, line.expected, line.task = name, position, expected, ""
        line.started = time.monotonic()
        line.hosts = set()

    def task(self, name: str = "", host: str = "") -> None:
        """Let the moving line speak of another task, or count a host that took part."""
        if name:
            self._line.task = name
        if host:
            self._line.hosts.add(host)

    def stage_finished(self, end: StageFinished) -> None:
        """Print the line of a finished stage."""
        self._err.print(
            Text.assemble(
                f"{end.stage:<16} ",
                (f"{end.result:<11}", STYLES[end.result]),
                f" {count(len(end.hosts), 'host'):<9} {end.changed} changed  {span(end.seconds)}",
            )
        )

    def task_failed(self, failure: TaskFailed) -> None:
        """Print where something failed and what it said."""
        kind = "unreachable" if failure.unreachable else "failed"
        self._err.print(Text.assemble((f"{kind}: ", "bold red"), f"{failure.stage} | {failure.host} | {failure.task}"))
        for line in failure.message.splitlines():
            self._err.print(Text(f"    {line}"))
