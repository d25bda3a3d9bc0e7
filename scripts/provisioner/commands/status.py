"""`status`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provisioner import expiry, journal, lock, plan, project, stages, support
from provisioner.commands import options
from provisioner.console import Console, span
from provisioner.errors import command
from provisioner.launch import operate
from provisioner.plan import Request
from provisioner.schedule import JOBS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provisioner.project import Project, Site


FETCH = "journal-fetch"  # the one verb that says nothing about the site


def _standing(stage: str, runs: Sequence[journal.Run]) -> dict[str, Any] | None:
    """Return how a stage went when it last ran. runs: of one verb, newest first."""
    for run in runs:
        past = run.past(stage)
        if past and past.result != "skipped":
            end = run.finished.get(stage)
            return {
                "result": past.result,
                "at": past.at,
                "seconds": end.seconds if end else None,
                "changed": end.changed if end else None,
                "failed_hosts": past.failed_hosts,
                "limit": past.limit,
                "run_id": run.started.run_id,
            }
    return None


def known(where: Project, site: Site) -> dict[str, Any]:
    """Return what the journals know of a site: who runs now, the last run, what is unfinished, and every stage."""
    holder = lock.held_by(site)
    deploys, verifies = journal.runs(site.journal, "deploy"), journal.runs(site.journal, "verify")
    verbs = (verb for verb in journal.verbs(site.journal) if verb != FETCH)
    found = (run for verb in verbs for run in journal.runs(site.journal, verb)[:1])
    every = sorted(found, key=lambda run: run.started.at)
    last = None
    if every:
        start, end = every[-1].started, every[-1].end
        result = end.result if end else "running" if holder else "died"
        last = {"run_id": start.run_id, "verb": start.request.verb, "at": start.at, "result": result}
        last |= {"seconds": end.seconds if end else None, "message": end.message if end else ""}
    left = journal.to_resume(deploys)
    return {
        "site": site.name,
        "running": holder and {"verb": holder.verb, "pid": holder.pid, "since": holder.started},
        "last_run": last,
        "expiry": expiry.kept(site.state),
        "unfinished": left and {"run_id": left.started.run_id, "stages": left.rest},
        "stages": [
            {"stage": stage.name, "deploy": _standing(stage.name, deploys), "verify": _standing(stage.name, verifies)}
            for stage in stages.read(where.order)
        ],
    }


def _cells(standing: dict[str, Any] | None, now: datetime) -> tuple[str, str]:
    if standing is None:
        return "-", ""
    parts = [plan.ago(standing["at"], now)]
    parts += [span(standing["seconds"])] if standing["seconds"] is not None else []
    parts += [f"{standing['changed']} changed"] if standing["changed"] else []
    parts += [f"at {', '.join(standing['failed_hosts'])}"] if standing["failed_hosts"] else []
    parts += [f"--limit {standing['limit']}"] if standing["limit"] else []
    return standing["result"], ", ".join(parts)


def _fetch(site: str, as_json: bool) -> None:
    """Bring the copies that servers keep of other control machines' journals."""
    again = command("status", "--site", site, "--fetch")
    request = Request(FETCH, looks=True)
    why = "reads what other control machines have done"
    told = operate(request, site, playbook="journal_fetch", why=why, then=again, as_json=as_json, verbosity=0).report
    copies: dict[str, str] = {}
    for text in (told or {}).values():
        for name, content in support.sections(text if isinstance(text, str) else "").items():
            copies[name] = max(content, copies.get(name, ""), key=len)  # a server that was silent has less
    fresh = journal.adopt(project.find().site(site).journal, copies)
    Console(as_json=as_json).say(f"{len(fresh)} runs of other control machines are known now")


Fetch = Annotated[
    bool, typer.Option("--fetch", help="First bring what other control machines did; the servers have copies.")
]


def status(site: options.Site, fetch: Fetch = False, as_json: options.Json = False) -> int:
    """Say what is known of a site: its last run, how every stage went, when certificates end.

    Without --fetch nothing is contacted.
    """
    where = project.find()
    if fetch:
        _fetch(site, as_json)
    facts = known(where, where.site(site))
    console = Console(as_json=as_json)
    console.document(facts)
    running, last, left = facts["running"], facts["last_run"], facts["unfinished"]
    if running:
        console.say(f"running: {running['verb']} (pid {running['pid']}) since {running['since']}", "cyan")
    if last:
        console.say(f"last run: {last['run_id']}, {last['result']}")
    else:
        fetching = command("status", "--site", site, "--fetch")
        console.say(f"Nothing was ever run on {site} from here. What others did, its servers know: {fetching}")
    now = datetime.now(UTC)
    rows = [(row["stage"], *_cells(row["deploy"], now), *_cells(row["verify"], now)) for row in facts["stages"]]
    console.table(("stage", "deploy", "", "verify", ""), rows)
    first, looking = facts["expiry"], command(*JOBS["expiry"].verb.split(), "--site", site)
    if first:
        ends, seen = (datetime.fromisoformat(first[name]) for name in ("expires", "seen"))
        days = (ends - now).days
        until = f"in {days} days" if days >= 0 else "expired"
        told = f"certificates: the first ends {ends:%Y-%m-%d} ({until}) on {first['machine']}"
        console.say(f"{told}, read {plan.ago(seen, now)}", "bold red" if days < 0 else "")
    elif last:
        console.say(f"certificates: when they end was not read since they were made; ask: {looking}")
    if left and not running:
        again = command("deploy", "--site", site, "--resume")
        console.say(f"unfinished: {', '.join(left['stages'])}; go on: {again}", "yellow")
    return 0
