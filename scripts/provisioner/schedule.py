"""Scheduled jobs: what they run, the units that systemd starts them by, and whether one may start now. Without effects.

What a calendar expression means is systemd's to say: the times at which a window opens come in as arguments.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import takewhile
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from provisioner.errors import ProvisionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Result = Literal["ok", "failed", "interrupted", "refused", "waits"]

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
LONGEST = timedelta(days=8)  # a window that closes on a named day is open for no longer
LONGEST_WAIT = timedelta(days=7)
RETRY_MINUTES = 15  # from a start that was refused to the next one, by systemd
NOT_NOW = 3
_WINDOW = re.compile(
    rf"(?P<opens>\S.*?:\d\d)\s*-\s*(?:(?P<day>{'|'.join(DAYS)})[a-z]*\s+)?(?P<hour>\d\d?):(?P<minute>\d\d)\s+(?P<zone>\S+)"
)
_SECTION = "[X-Metalhub]"


@dataclass(frozen=True)
class Job:
    """What may be scheduled.

    verb: what does it, with its options. noted: what journals call that. about: for people.
    minutes: how long it is taken for until runs have told; an upgrade, for each release on its way.
    tries: how often it may fail in a row before it waits. alone: it then starts again by itself, ever later; else when
    told to. resumes: the option that continues a run which the end of the window stopped.
    """

    verb: str
    noted: str
    about: str
    minutes: int
    tries: int = 3
    alone: bool = True
    resumes: str = ""


JOBS: Mapping[str, Job] = {
    "snapshot": Job("snapshot save", "snapshot-save", "a snapshot of etcd", 5),
    "drill": Job("snapshot verify --drill", "snapshot-drill", "whether a snapshot can be restored", 5),
    "verify": Job("verify", "verify", "whether the site is healthy", 10),
    "expiry": Job("rotate certificates --plan-only", "certificate-expiry", "when certificates end", 5),
    # An upgrade that failed is looked at by somebody before anything starts again.
    "upgrade": Job("upgrade", "upgrade", "an upgrade of the cluster", 120, tries=1, alone=False, resumes="--resume"),
    "deploy": Job("deploy", "deploy", "a deploy, which mends drift", 30, tries=1, alone=False, resumes="--resume"),
}
CHANGING = ("upgrade", "deploy")  # what asks for the name of a protected site; the others look, or add a snapshot


@dataclass(frozen=True)
class Schedule:
    """A job of a site. at, window: as the user wrote them. more: what the verb gets beside the job's own words."""

    site: str
    job: str
    at: str
    window: str = ""
    more: tuple[str, ...] = ()
    spread: str = "5min"

    @property
    def unit(self) -> str:
        """Return the name of its units, without .timer or .service."""
        return f"metalhub-{self.site}-{self.job}"

    @property
    def words(self) -> tuple[str, ...]:
        """Return the verb with its options."""
        return (*JOBS[self.job].verb.split(), "--site", self.site, *self.more)

    @property
    def resumed(self) -> tuple[str, ...]:
        """Return the words that go on with what the end of a window stopped."""
        job, more = JOBS[self.job], self.more
        name = more[more.index("--confirm") :][:2] if "--confirm" in more else ()
        return (*job.verb.split(), "--site", self.site, job.resumes, *name)


@dataclass(frozen=True)
class Window:
    """When work may start: opens is a calendar expression of systemd, the rest the wall clock's time of its end.

    day: number of the weekday of its end (Monday is 0), or None for the first time that the clock says so.
    """

    opens: str
    day: int | None
    closes: time
    zone: ZoneInfo


@dataclass(frozen=True)
class Span:
    """From when until when a window is open."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Verdict:
    """Whether to start. why: in words. until: when the window closes, if there is one. hopeless: waiting won't help."""

    may: bool
    why: str = ""
    until: datetime | None = None
    hopeless: bool = False


@dataclass(frozen=True)
class Wait:
    """A job that failed too often. until: when it tries again by itself, or None for never."""

    failures: int
    until: datetime | None


def zone(text: str, option: str) -> ZoneInfo:
    """Return the time zone at the end of an expression; one without is refused, for machines are moved."""
    name = text.rsplit(maxsplit=1)[-1] if text.split() else ""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ProvisionError(
            f"{option} {text!r} does not end with a time zone ({name or 'nothing'} is none).",
            f"Name the one that you mean: {option} '03:00 Europe/Rome', or UTC.",
        ) from None


def parse_window(text: str) -> Window:
    """Return what `Sat 22:00-Sun 06:00 Europe/Rome` means."""
    match = _WINDOW.fullmatch(text.strip())
    if match is None or int(match["hour"]) > 23 or int(match["minute"]) > 59:
        raise ProvisionError(
            f"--window {text!r} is no window.",
            "Say when it opens, when it closes, and in which time zone: --window 'Sat 22:00-Sun 06:00 Europe/Rome', "
            "--window 'Mon..Fri 22:00-05:00 Europe/Rome'",
        )
    where = zone(text, "--window")
    day = DAYS.index(match["day"]) if match["day"] else None
    closes = time(int(match["hour"]), int(match["minute"]))
    return Window(f"{match['opens']} {match['zone']}", day, closes, where)


def closing(window: Window, opened: datetime) -> datetime:
    """Return the first time after `opened` at which the wall clock shows the window's end.

    A time that the clock shows twice counts the first time; one that it skips counts as if it were not skipped.
    """
    first = opened.astimezone(window.zone).date()
    for days in range(LONGEST.days + 1):
        day = first + timedelta(days)
        if window.day is None or day.weekday() == window.day:
            wall = datetime.combine(day, window.closes, window.zone)
            both = sorted(wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
            later = [at for at in both if at > opened]
            if later:
                return later[0]
    raise AssertionError("a week has every weekday")  # pragma: no cover


def spans(window: Window, openings: Sequence[datetime]) -> tuple[Span, ...]:
    """Return when the window is open; what touches or overlaps is one."""
    found: list[Span] = []
    for opened in sorted(openings):
        end = closing(window, opened)
        if found and opened <= found[-1].end:
            found[-1] = Span(found[-1].start, max(end, found[-1].end))
        else:
            found.append(Span(opened, end))
    return tuple(found)


def told(at: datetime, where: ZoneInfo) -> str:
    """Return a time as the clock on the wall shows it."""
    return f"{at.astimezone(where):%a %Y-%m-%d %H:%M %Z}"


def about(length: timedelta) -> str:
    """Return a length in whole minutes, rounded up."""
    return f"{-(-int(length.total_seconds()) // 60)} min"


def may_start(now: datetime, window: Window | None, openings: Sequence[datetime], expected: timedelta) -> Verdict:
    """Decide whether work of the expected length may start now.

    openings: when the window opens, from `LONGEST` before now on and at least once after it.
    """
    if window is None:
        return Verdict(True)
    all_spans = spans(window, openings)
    if not any(span.end - span.start >= expected for span in all_spans):
        longest = max((span.end - span.start for span in all_spans), default=timedelta())
        return Verdict(False, f"it takes about {about(expected)}, the window at most {about(longest)}", hopeless=True)
    following = next((told(span.start, window.zone) for span in all_spans if span.start > now), "unknown")
    for span in all_spans:
        if span.start <= now < span.end:
            if now + expected <= span.end:
                return Verdict(True, f"the window is open until {told(span.end, window.zone)}", span.end)
            why = f"the window closes at {told(span.end, window.zone)} and the job takes about {about(expected)}"
            return Verdict(False, f"{why}; it opens again {following}")
    return Verdict(False, f"the window is shut; it opens {following}")


def waits(job: Job, history: Sequence[tuple[datetime, Result]], now: datetime) -> Wait | None:
    """Return the wait of a job that failed too often in a row, or None when it may run.

    history: end and result of its runs, newest first. What never started, or was stopped as planned, does not count.
    The wait doubles with every further failure, from a day to a week.
    """
    counted = [(at, result) for at, result in history if result in ("ok", "failed")]
    failed = list(takewhile(lambda run: run[1] == "failed", counted))
    over = len(failed) - job.tries
    if over < 0:
        return None
    if not job.alone:
        return Wait(len(failed), None)
    until = failed[0][0] + min(timedelta(days=2 ** min(over, 10)), LONGEST_WAIT)
    return Wait(len(failed), until) if until > now else None


def _quoted(word: str) -> str:
    """Return a word as systemd reads it back: quoted, nothing in it expanded."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def units(
    schedule: Schedule, program: Sequence[str], directory: str, user: str, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return file name -> text of a schedule's units.

    program: what runs the driver. user: whose job it is, empty for a unit of a user's own manager. environment: where
    things are; never a secret, for everybody may read a unit.
    """
    words = [*program, "schedule", "run", schedule.job, "--site", schedule.site]
    settings = "".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in sorted(environment.items()))
    head = f"""\
# Made by `provision.py schedule add`, removed by: provision.py schedule remove {schedule.job} --site {schedule.site}
[Unit]
Description=metalhub: {schedule.job} of site {schedule.site}
"""
    service = f"""{head}\
Wants=network-online.target
After=network-online.target
# A start that was refused (another run has the site, the window is shut) is tried again for as long as it takes.
StartLimitIntervalSec=0

[Service]
Type=exec
{f"User={user}" + chr(10) if user else ""}\
WorkingDirectory={directory.replace("%", "%%")}
{settings}\
ExecStart={" ".join(_quoted(word).replace("$", "$$") for word in words)}
RestartForceExitStatus={NOT_NOW}
RestartSec={RETRY_MINUTES}min
# A stop lets the machine in hand finish: ten minutes to empty it, ten to start it, and some more. Only the driver is
# asked, its children hear of it from there.
KillMode=mixed
TimeoutStopSec=45min

{_SECTION}
Schedule={json.dumps(asdict(schedule))}
"""
    timer = f"""{head}
[Timer]
OnCalendar={schedule.at}
Persistent=true
RandomizedDelaySec={schedule.spread}
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
    return {f"{schedule.unit}.service": service, f"{schedule.unit}.timer": timer}


def from_unit(text: str) -> Schedule | None:
    """Return the schedule that a service's text was made from, or None if it is not ours."""
    _, _, ours = text.partition(f"\n{_SECTION}\nSchedule=")
    try:
        found = json.loads(ours.splitlines()[0])
        schedule = Schedule(**{**found, "more": tuple(found["more"])})
    except (IndexError, ValueError, TypeError, KeyError):
        return None
    return schedule if schedule.job in JOBS else None
