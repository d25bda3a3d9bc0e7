"""`schedule add|list|remove|run`."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from provisioner import inventory, project, timers
from provisioner import journal as log
from provisioner import schedule as plan
from provisioner import upgrade as ladder
from provisioner.commands import options
from provisioner.commands.upgrade import TABLE
from provisioner.console import Console, span
from provisioner.errors import ExitCode, ProvisionError, command, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Let systemd's timers run verbs of a site.")

JOBS = "; ".join(f"{name}: {job.about}" for name, job in plan.JOBS.items())
Job = Annotated[str, typer.Argument(metavar="JOB", help=f"{JOBS}.")]
At = Annotated[
    str, typer.Option("--at", metavar="CALENDAR", help="When: '03:00 Europe/Rome', 'Sat 22:00 UTC' (man systemd.time).")
]
Window = Annotated[
    str,
    typer.Option("--window", metavar="RANGE", help="Only start what ends within: 'Sat 22:00-Sun 06:00 Europe/Rome'."),
]
Spread = Annotated[str, typer.Option("--spread", metavar="SPAN", help="Start at a random time up to this later.")]
More = Annotated[list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="What the verb is told beside that.")]
Force = Annotated[bool, typer.Option("--force", help="Although it failed too often; the window still counts.")]


def _job(name: str) -> plan.Job:
    if name not in plan.JOBS:
        raise ProvisionError(
            f"There is no job {name!r}.{nearest(name, plan.JOBS)}",
            f"Jobs: {JOBS}. {command('schedule', 'add', '--help')}",
        )
    return plan.JOBS[name]


def _vault_opens(where: project.Project, site: project.Site) -> None:
    """Refuse a site whose vault is opened by nothing but somebody at a terminal: at three o'clock nobody is there."""
    try:
        inventory.read(where, site)
    except ProvisionError as error:
        raise ProvisionError(
            f"Without somebody at a terminal the site cannot be read: {error.message}",
            "Put the vault's password where scripts/vault-client looks (it says where), and type the command again.",
            ExitCode.SETUP,
        ) from error


@app.command()
def add(
    job: Job,
    site: options.Site,
    at: At,
    window: Window = "",
    spread: Spread = "5min",
    more: More = None,
    as_json: options.Json = False,
) -> int:
    """Let a job run at certain times; the same again changes nothing, other times take the place of the old.

    A run that was missed because this machine was off is made up for when it is back. A job that finds the site in use
    or its window shut is tried again every 15 minutes.
    """
    where = project.find()
    _job(job)
    home = where.site(site)
    schedule = plan.Schedule(home.name, job, at, window, tuple(more or ()), spread)
    options.parse(schedule.words)
    zone = plan.zone(at, "--at")
    now = datetime.now(UTC)
    (first,) = timers.elapses(at, "--at", now)
    if window:
        shape = plan.parse_window(window)
        verdict = plan.may_start(first, shape, timers.openings(shape, first), length_of(where, home, schedule))
        if not verdict.may:
            raise ProvisionError(
                f"--at {at!r} is {plan.told(first, zone)} the next time, and then it may not start: {verdict.why}.",
                "Choose a time at the beginning of a window that is long enough, and type the command again.",
            )
    if job in plan.CHANGING and inventory.protected(home) and "--confirm" not in schedule.more:
        raise ProvisionError(
            f"{site} is protected, and nobody is there to type its name when {job} runs.",
            f"Give it now: the same command, ending with -- {' '.join(schedule.more)} --confirm {site}",
        )
    _vault_opens(where, home)
    changed = timers.add(where, schedule)
    console = Console(as_json=as_json)
    next_start = timers.following(schedule)
    console.say(f"{job} of {site}: {'scheduled' if changed else 'as it was'}; next start {next_start}", "green")
    if not timers.lingers():
        console.note("Your timers stop when you log out. Let them run: loginctl enable-linger")
    console.document({**_about(home, schedule), "changed": changed})
    return ExitCode.DONE


def _hops(where: project.Project, home: project.Site, words: Sequence[str]) -> int:
    """Return over how many releases an upgrade leads, by what the site's files say that it has; one where none do."""
    table = yaml.safe_load((where.root / TABLE).read_text(encoding="utf-8"))
    now = where.versions(home).get(table["components"]["rke2"], "")
    given = dict(word.split("=", 1) for word in words if word.startswith("--to="))
    to = given.get("--to") or next((after for word, after in pairwise(words) if word == "--to"), now)
    try:
        return max(1, len(ladder.way([now], to, table)))
    except ProvisionError:
        return 1  # the verb says what is wrong with it


def length_of(where: project.Project, home: project.Site, schedule: plan.Schedule) -> timedelta:
    """Return how long a job of a site is taken for, by its reports, the journal, and what it is told."""
    job = plan.JOBS[schedule.job]
    noted = sum(log.durations(log.runs(home.journal, job.noted)).values())
    hops = _hops(where, home, schedule.words) if job.noted == "upgrade" else 0
    return timers.length(timers.reports(home, schedule.job), noted, job, hops)


def _wait(home: project.Site, name: str) -> plan.Wait | None:
    history = [(report.ended, report.result) for report in timers.reports(home, name)]
    return plan.waits(plan.JOBS[name], history, datetime.now(UTC))


def _about(home: project.Site, schedule: plan.Schedule) -> dict[str, Any]:
    past = timers.reports(home, schedule.job)
    wait = _wait(home, schedule.job)
    return {
        "job": schedule.job,
        "site": schedule.site,
        "at": schedule.at,
        "window": schedule.window or None,
        "command": command(*schedule.words),
        "unit": f"{schedule.unit}.timer",
        "next": timers.following(schedule) or None,
        "last": past[0].model_dump(mode="json", exclude={"document", "said"}) if past else None,
        "waits": wait and {"failures": wait.failures, "until": wait.until},
    }


@app.command(name="list")
def list_(site: options.Site, as_json: options.Json = False) -> int:
    """List the jobs of a site: when each starts the next time, in which window, and how it went."""
    home = project.find().site(site)
    console = Console(as_json=as_json)
    found = [_about(home, schedule) for schedule in timers.known(home).values()]
    console.document(found)
    rows = []
    for one in found:
        last = one["last"]
        result = f"{last['result']} {last['ended']}, {span(last['seconds'])}" if last else "-"
        held = f"failed {one['waits']['failures']} times, waits" if one["waits"] else ""
        rows.append((one["job"], one["at"], one["window"] or "-", one["next"] or "off", result, held))
    if rows:
        console.table(("job", "at", "window", "next start", "last", ""), rows)
        console.say(f"Reports of every run: {home.state / 'schedule'}")
    else:
        console.say(f"Nothing is scheduled for {site} on this machine.")
    return ExitCode.DONE


@app.command()
def remove(job: Job, site: options.Site, as_json: options.Json = False) -> int:
    """Schedule a job no more. A run in progress goes on; reports stay."""
    home = project.find().site(site)
    schedule = timers.the(home, job)
    timers.remove(schedule)
    console = Console(as_json=as_json)
    console.say(f"{job} of {site}: no longer scheduled", "green")
    console.document({"job": job, "site": site, "removed": f"{schedule.unit}.timer"})
    return ExitCode.DONE


@app.command()
def run(job: Job, site: options.Site, force: Force = False, as_json: options.Json = False) -> int:
    """Run a scheduled job now as its timer does: inside its window, not beside another run, not after many failures.

    Ends with 3 when it may not start now (systemd tries again), with 1 when it waits for somebody.
    """
    where = project.find()
    home = where.site(site)
    schedule = timers.the(home, job)
    about, past = _job(job), timers.reports(home, job)
    console = Console(as_json=as_json)
    words = schedule.words
    if about.resumes and past and past[0].result == "interrupted":
        words = schedule.resumed
    began = datetime.now(UTC)

    def over(result: plan.Result, code: int, why: str = "", then: str = "", **more: Any) -> int:
        ended = datetime.now(UTC)
        facts: dict[str, Any] = {"site": site, "job": job, "command": command(*words), "started": began, "ended": ended}
        report = timers.Report(**facts, result=result, exit_code=code, why=why, next=then, **more)
        path = timers.keep(home, report)
        console.say(f"{job} of {site}: {result}, {span(report.seconds)}; report: {path.with_suffix('.txt')}")
        if why:
            console.error(why, then)
        console.document(report.model_dump(mode="json"))
        return code

    wait = None if force else _wait(home, job)
    if wait:
        until = f"until {wait.until:%Y-%m-%d %H:%M %Z}" if wait.until else "until somebody says so"
        again = command("schedule", "run", job, "--site", site, "--force")
        seen = next((report.why for report in past if report.result == "failed"), "")
        return over(
            "waits", ExitCode.FAILED, f"{job} failed {wait.failures} times in a row and waits {until}: {seen}", again
        )
    verdict = plan.Verdict(True)
    if schedule.window:
        window = plan.parse_window(schedule.window)
        verdict = plan.may_start(began, window, timers.openings(window, began), length_of(where, home, schedule))
    if not verdict.may:
        why = f"{job} does not start now: {verdict.why}"
        widen = "Give it a longer window: " + command("schedule", "add", "--help")
        return over(
            *(("failed", ExitCode.FAILED, why, widen) if verdict.hopeless else ("refused", ExitCode.NOT_NOW, why))
        )
    code, out, said, stopped = timers.drive(words, where, verdict.until)
    document = json.loads(out) if out.strip() else None
    seconds = round((datetime.now(UTC) - began).total_seconds(), 3)
    told: dict[str, Any] = {"seconds": seconds, "said": said, "document": document}
    if code == ExitCode.DONE:
        return over("ok", code, **told)
    if stopped:
        why = "the window closed; what was in hand is finished, the rest is done in the next window"
        return over("interrupted", ExitCode.DONE, why, **told)
    why = f"{shlex.join(words)} ended with {code}"
    then = ""
    if isinstance(document, dict):
        failures = document.get("failures") or [{}]
        why = document.get("error") or failures[0].get("message") or why
        then = document.get("next") or document.get("hint") or ""
    return over("refused" if code == ExitCode.NOT_NOW else "failed", code, why, then, **told)
