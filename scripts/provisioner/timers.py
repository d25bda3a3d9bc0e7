"""Schedules on this machine: systemd's units, systemd's answers, and a report of every run."""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from provisioner import schedule as plan
from provisioner.errors import ExitCode, ProvisionError, command

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from provisioner.project import Project, Site
    from provisioner.schedule import Schedule

KEPT = 100  # reports of each job
SAID_LINES = 40
OPENINGS = 400  # of a window in the eight days before now and after: one every hour
# Where things are, and nothing else of the shell: a unit is readable by everybody.
CARRIED = (
    "HOME",
    "METALHUB_ROOT",
    "METALHUB_VAULT_PASSWORD_FILE",
    "PATH",
    "SSH_AUTH_SOCK",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
)


class Report(BaseModel):
    """How one start of a job went."""

    model_config = ConfigDict(frozen=True)
    site: str
    job: str
    command: str = Field(description="what was run, or would have been")
    started: AwareDatetime
    ended: AwareDatetime
    result: plan.Result
    exit_code: int
    seconds: float = 0
    why: str = Field(default="", description="why it did not run, or did not end well")
    next: str = Field(default="", description="the command to type, if somebody has to do something")
    said: str = Field(default="", description="the last lines of what the verb told people")
    document: Any = Field(default=None, description="the document that the verb printed")

    def __str__(self) -> str:
        """Return the report as people read it."""
        lines = [
            f"{self.job} of site {self.site}: {self.result}",
            f"started  {self.started:%Y-%m-%d %H:%M:%S %Z}",
            f"ended    {self.ended:%Y-%m-%d %H:%M:%S %Z}",
            f"command  {self.command}",
            f"exit     {self.exit_code}",
        ]
        lines += [f"why      {self.why}"] if self.why else []
        lines += [f"next     {self.next}"] if self.next else []
        return "\n".join([*lines, "", self.said, ""])


def systemd(*words: str, check: bool = True) -> tuple[int, str, str]:
    """Run one of systemd's programs and return its exit status, stdout and stderr; times are told in UTC."""
    try:
        done = subprocess.run(
            words, env={**os.environ, "TZ": "UTC", "LC_ALL": "C"}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise ProvisionError(
            f"{words[0]} is not on this machine: schedules are systemd's timers.",
            "Schedule from a control machine that runs systemd, or type the verb yourself.",
            ExitCode.SETUP,
        ) from None
    if check and done.returncode:
        raise ProvisionError(
            f"{' '.join(words)} says: {(done.stderr or done.stdout).strip() or f'exit status {done.returncode}'}",
            "Mend that, then type the same command again.",
            ExitCode.SETUP,
        )
    return done.returncode, done.stdout, done.stderr


def elapses(expression: str, option: str, since: datetime, many: int = 1) -> list[datetime]:
    """Return when a calendar expression elapses after `since`, as systemd reads it."""
    base = f"--base-time={since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    status, out, err = systemd(
        "systemd-analyze", "calendar", base, f"--iterations={many}", "--", expression, check=False
    )
    found = re.findall(r"(?:Next elapse|Iter\. #\d+|\(in UTC\)): \S+ (\S+ \S+) UTC", out)
    if status or not found:
        raise ProvisionError(
            f"{option} {expression!r}: {(err or out).strip().splitlines()[-1:] or 'never'}",
            f"Try it: systemd-analyze calendar '{expression}'; how it is written: man systemd.time",
        )
    times = (datetime.strptime(one, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC) for one in found)
    return sorted(set(times))


def openings(window: plan.Window, now: datetime) -> list[datetime]:
    """Return when a window opens, from the longest before now on."""
    return elapses(window.opens, "--window", now - plan.LONGEST, OPENINGS)


def _system() -> bool:
    return os.geteuid() == 0


def _directory() -> Path:
    if _system():
        return Path("/etc/systemd/system")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _systemctl(*words: str, check: bool = True) -> tuple[int, str, str]:
    return systemd("systemctl", *(() if _system() else ("--user",)), *words, check=check)


def _units(where: Project, schedule: Schedule) -> dict[str, str]:
    kept = {name: os.environ[name] for name in CARRIED if os.environ.get(name)}
    driver = [sys.executable, str(Path(__file__).resolve().parents[1] / "provision.py")]
    user = getpass.getuser() if _system() else ""
    return plan.units(schedule, driver, str(where.root), user, kept)


def _verify(texts: dict[str, str]) -> None:
    """Refuse units that systemd would not take word for word; it passes over what it does not know."""
    with tempfile.TemporaryDirectory(prefix="metalhub-") as scratch:
        paths = [Path(scratch, name) for name in texts]
        for path in paths:
            path.write_text(texts[path.name], encoding="utf-8")
        status, _, err = systemd("systemd-analyze", "verify", *map(str, paths), check=False)
    ours = [line for line in err.splitlines() if any(name in line for name in texts)]
    if status or ours:
        raise ProvisionError(
            "systemd does not take the units:\n" + "\n".join(ours or err.splitlines()),
            "Mend what it complains of (most likely --at or --spread), and type the command again.",
        )


def _on(unit: str) -> bool:
    enabled = _systemctl("is-enabled", f"{unit}.timer", check=False)[1].strip() == "enabled"
    return enabled and _systemctl("is-active", f"{unit}.timer", check=False)[1].strip() == "active"


def add(where: Project, schedule: Schedule) -> bool:
    """Make a schedule's units what it says and start its timer; return whether that changed anything."""
    texts = _units(where, schedule)
    directory = _directory()
    same = all((path := directory / name).is_file() and path.read_text("utf-8") == texts[name] for name in texts)
    if same and _on(schedule.unit):
        return False
    _verify(texts)
    for name in texts:
        path = directory / name
        if path.exists() and plan.from_unit((directory / f"{schedule.unit}.service").read_text("utf-8")) is None:
            raise ProvisionError(f"{path} is there and is not ours.", f"See what it is: systemctl cat {name}")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        fresh = directory / f".{name}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o644)
        fresh.replace(directory / name)
    _systemctl("daemon-reload")
    _systemctl("enable", f"{schedule.unit}.timer")
    _systemctl("restart", f"{schedule.unit}.timer")
    return True


def remove(schedule: Schedule) -> None:
    """Stop a schedule's timer and remove its units; a run in progress goes on to its end."""
    _systemctl("disable", "--now", f"{schedule.unit}.timer")
    service = f"{schedule.unit}.service"
    if _systemctl("show", "--property=SubState", "--value", service)[1].strip() == "auto-restart":
        _systemctl("stop", service)  # one that was refused would be tried again
    # When it last elapsed: another schedule of that name would find it missed.
    _systemctl("clean", "--what=state", f"{schedule.unit}.timer", check=False)
    for kind in ("timer", "service"):
        (_directory() / f"{schedule.unit}.{kind}").unlink(missing_ok=True)
    _systemctl("daemon-reload")
    _systemctl("reset-failed", service, check=False)


def known(site: Site) -> dict[str, Schedule]:
    """Return the schedules of a site by job: what our own units say."""
    found = {}
    for path in sorted(_directory().glob("metalhub-*.service")):
        schedule = plan.from_unit(path.read_text(encoding="utf-8", errors="replace"))
        if schedule and schedule.site == site.name and path.stem == schedule.unit:
            found[schedule.job] = schedule
    return found


def the(site: Site, job: str) -> Schedule:
    """Return the schedule of a job, or refuse one that is not there."""
    schedules = known(site)
    if job not in schedules:
        at = command("schedule", "add", job, "--site", site.name, "--at", "03:00 Europe/Rome")
        raise ProvisionError(
            f"Site {site.name} has no schedule for {job!r} here; there are: {', '.join(schedules) or 'none'}.",
            f"Add it: {at}",
        )
    return schedules[job]


def following(schedule: Schedule) -> str:
    """Return when systemd starts a job the next time, in its own words; empty while its timer is off."""
    words = ("show", f"{schedule.unit}.timer", "--property=NextElapseUSecRealtime,SubState")
    told = dict(line.partition("=")[::2] for line in _systemctl(*words)[1].splitlines())
    running = f"it runs, or is tried again within {plan.RETRY_MINUTES} min"
    return running if told.get("SubState") == "running" else told.get("NextElapseUSecRealtime", "")


def lingers() -> bool:
    """Return whether the timers run while nobody is logged in."""
    return _system() or Path("/var/lib/systemd/linger", getpass.getuser()).exists()


def _reports(site: Site, job: str) -> list[Path]:
    return sorted((site.state / "schedule").glob(f"*-{job}.json"), reverse=True)


def reports(site: Site, job: str) -> list[Report]:
    """Return the reports of a job, newest first; what a crash left torn is passed over."""
    found = []
    for path in _reports(site, job):
        with suppress(ValidationError, OSError):
            found.append(Report.model_validate_json(path.read_bytes()))
    return found


def _remove_report(path: Path) -> None:
    for one in (path, path.with_suffix(".txt")):
        one.unlink(missing_ok=True)


def keep(site: Site, report: Report) -> Path:
    """Write a report, as JSON and for people; one start that was refused takes the place of the one before it."""
    directory = site.state / "schedule"
    directory.mkdir(mode=0o700, exist_ok=True)
    past = reports(site, report.job)
    again = report.result == "refused" and past and past[0].result == "refused"
    for old in _reports(site, report.job)[: 1 if again else 0] + _reports(site, report.job)[KEPT - 1 :]:
        _remove_report(old)
    path = directory / f"{report.started.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}-{report.job}.json"
    for one, text in ((path, report.model_dump_json(indent=2)), (path.with_suffix(".txt"), str(report))):
        fresh = one.with_name(f".{one.name}.new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(one)
    return path


def drive(words: Sequence[str], where: Project, until: datetime | None) -> tuple[int, str, str, bool]:
    """Run the driver; return its exit status, stdout, the end of stderr, and whether the window's end stopped it.

    A signal to this process, and the end of the window, asks it to stop after the machines in hand.
    """
    call = [sys.executable, str(Path(__file__).resolve().parents[1] / "provision.py"), *words, "--json"]
    asked = False
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
        # A session of its own: what a terminal sends to all reaches it once, from here.
        subprocess.Popen(call, cwd=where.root, stdout=out, stderr=err, start_new_session=True) as driver,
    ):

        def hand_on(_number: int, _frame: FrameType | None) -> None:
            driver.send_signal(signal.SIGINT)

        before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            left = max(0.0, (until - datetime.now(UTC)).total_seconds()) if until else None
            driver.wait(left)
        except subprocess.TimeoutExpired:
            asked = True
            driver.send_signal(signal.SIGINT)
            driver.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        status = driver.returncode
        out.seek(0)
        err.seek(0)
        said = "\n".join(err.read().splitlines()[-SAID_LINES:])
        return status, out.read(), said, asked and status == ExitCode.INTERRUPTED


def length(past: Sequence[Report], noted: float, job: plan.Job, hops: int = 0) -> timedelta:
    """Return how long a job is taken for: its slowest good run here, what the journal knows, or a first guess.

    hops: over how many releases an upgrade leads; earlier ones were other ways, and the journal knows one hop.
    """
    mine = [report.seconds for report in past if report.result == "ok" and not hops]
    return timedelta(seconds=max(mine, default=(noted or job.minutes * 60) * max(hops, 1)))
