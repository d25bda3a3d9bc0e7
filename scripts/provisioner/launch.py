"""Plan, show, do: what `check`, `deploy` and `verify` have in common."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from provisioner import inventory, lock, machines, plan, project, rollout, stages
from provisioner import journal as log
from provisioner.console import Console, count, span
from provisioner.errors import ExitCode, ProvisionError, command, nearest
from provisioner.execution import Execution, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provisioner.project import Project, Site
    from provisioner.stages import Stage


def names(given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the stages of a repeated or comma-separated option."""
    return tuple(name.strip() for word in given or () for name in word.split(",") if name.strip())


def _merge(request: plan.Request, run: log.Run) -> plan.Request:
    """Return the options of the run to continue; how fast and whether versions may change can be said anew."""
    old = run.started.request
    if request.only or request.start or request.until or request.limit:
        raise ProvisionError(
            "--resume continues a run with its own stages and hosts: without --only, --from, --until and --limit.",
            f"Start anew without --resume, or continue: {command('deploy', '--site', run.started.site, '--resume')}",
        )
    return replace(
        old,
        batch=request.batch or old.batch,
        allow_upgrade=request.allow_upgrade or old.allow_upgrade,
        canary=request.canary or old.canary,
        # One that was watched goes on to be watched; where it is to pause is said anew.
        soak=next((soak for soak in (request.soak, old.soak) if soak is not None), 0 if old.staged else None),
        pause_after=request.pause_after,
        new_cluster=request.new_cluster,  # never taken over: it destroys
    )


Waves = dict[str, tuple[tuple[str, ...], ...]]


def _ask_inventory(where: Project, site: Site, request: plan.Request, chosen: Sequence[Stage]) -> Waves:
    """Refuse a limit that names nobody; return stage -> its waves. Without a question Ansible is not asked."""
    if not request.limit and not request.batch and not request.staged:
        return {}
    known = inventory.read(where, site)
    if request.limit:
        rollout.check_limit(request.limit, known.hosts, known.groups)
        return {}
    groups = {stage.name: known.groups[stage.batched] for stage in chosen if stage.batched in known.groups}
    if request.staged:
        _check_waves(request, groups)
    return {name: rollout.waves(hosts, request.batch, request.canary) for name, hosts in groups.items()}


def _check_waves(request: plan.Request, groups: Mapping[str, Sequence[str]]) -> None:
    """Refuse what is asked of waves that there are not. groups: stage that goes in waves -> its hosts."""
    again = "Leave --canary, --soak and --pause-after out"
    if not groups:
        raise ProvisionError("No stage of this run goes in waves.", f"{again}, or let a stage with --batch take part.")
    hosts = [host for group in groups.values() for host in group]
    if request.canary and request.canary not in hosts:
        raise ProvisionError(
            f"--canary {request.canary} is none of the hosts that go in waves.{nearest(request.canary, hosts)}",
            f"Name one of: {', '.join(hosts)}",
        )
    many = max(len(rollout.waves(group, request.batch, request.canary)) for group in groups.values())
    if request.pause_after >= many and request.pause_after:
        raise ProvisionError(
            f"--pause-after {request.pause_after}: of {count(many, 'wave')} none is left to pause before.",
            "Make more of them: --batch 1,5,50%, or --canary HOST.",
        )


def _in_words(waves: Waves, request: plan.Request) -> dict[str, str]:
    """Return stage -> its waves as the plan shows them."""
    soak = f", {span(request.soak)} of health after each" if request.soak else ", health compared after each"
    pause = f", pause after wave {request.pause_after}" if request.pause_after else ""
    more = (soak if request.staged else "") + pause
    return {name: f"waves of {', '.join(str(len(wave)) for wave in found)}{more}" for name, found in waves.items()}


def confirm(site: Site, given: str, console: Console) -> None:
    """Refuse to change a protected site until its name was typed: as --confirm, or here where somebody is."""
    if given and given != site.name:
        raise ProvisionError(
            f"--confirm {given}: the site is {site.name}.", f"Give the name of the site that may change: {site.name}"
        )
    if given or not inventory.protected(site):
        return
    typed = ""
    if sys.stdin.isatty() and sys.stderr.isatty() and not console.as_json:
        console.note(f"{site.name} is protected. Type its name to change it:")
        typed = sys.stdin.readline().strip()
    if typed != site.name:
        raise ProvisionError(
            f"Site {site.name} is protected ({inventory.PROTECTED}) and its name was not given; nothing was done.",
            f"Give it to the same command: --confirm {site.name}",
        )


def promote(where: Project, site: Site, other: str, coming: Mapping[str, str] | None = None) -> None:
    """Refuse versions that were not proven on another site, by what is recorded of it on this machine.

    coming: the versions that the run brings, before the site's files say so.
    """
    before = where.site(other)
    if before.name == site.name:
        raise ProvisionError(f"--promote-from {other} is the site itself.", "Name the site that comes before it.")
    changing = [verb for verb in log.verbs(before.journal) if verb != "verify"]
    seen = []
    for run in (run for verb in ("verify", *changing) for run in log.runs(before.journal, verb)):
        asked = run.started.request
        if run.started.request.verb == "verify" or asked.changes:
            whole = not (asked.only or asked.start or asked.until or asked.limit)
            result = run.end.result if run.end else "died"
            seen.append(rollout.Seen(asked.verb, run.started.at, result, whole, run.started.versions))
    reason = rollout.promotable(where.versions(site) | dict(coming or {}), seen)
    if reason:
        raise ProvisionError(
            f"--promote-from {other}: the versions of {site.name} are not verified there: {reason}.",
            f"Make it so: {command('verify', '--site', other)}",
        )


def _next(request: plan.Request, site: Site, outcome: Outcome) -> str:
    """Return the command to type after a run that did not end well."""
    if request.verb == "deploy":
        return command("deploy", "--site", site.name, "--resume")
    ill = [end.stage for end in outcome.stages if end.result == "failed"]
    if request.verb == "verify" and ill:
        return command("deploy", "--site", site.name, "--only", ",".join(ill))
    return command(request.verb, "--site", site.name)


def _report(console: Console, request: plan.Request, site: Site, outcome: Outcome, steps: plan.Plan) -> None:
    well = outcome.result in ("ok", "paused")
    changed = sum(end.changed for end in outcome.stages)
    counted = f"{changed} would change" if request.verb == "check" else f"{changed} changed"
    line = f"{request.verb} {site.name}: {outcome.result}, {count(len(outcome.stages), 'stage')}, {counted}"
    console.say(f"{line}, {span(outcome.seconds)}", "green" if well else "bold red")
    then = "" if outcome.result == "ok" else _next(request, site, outcome)
    drift = machines.mending(outcome.stages) if request.verb == "check" else []
    for stage, hosts, words in drift:
        mend = command("deploy", "--site", site.name, *words)
        console.say(f"{stage} differs at {', '.join(hosts)}; mend it with: {mend}", "yellow")
    if outcome.result == "paused":
        console.say(f"paused as asked; what is left goes on with: {then}", "yellow")
    if not well:
        told = [f"{one.stage} | {one.host} | {one.task}: {one.message}" for one in outcome.failures[:1]]
        console.error(told[0] if told else "stopped as asked; what was begun is finished by the next run", then)
    console.document(
        {
            "run_id": outcome.run_id,
            "verb": request.verb,
            "site": site.name,
            "result": outcome.result,
            "exit_code": int(outcome.exit_code),
            "seconds": outcome.seconds,
            "changed": changed,
            "plan": [{"stage": step.stage.name, "runs": step.runs, "reason": step.reason} for step in steps.steps],
            "stages": [end.model_dump(mode="json") for end in outcome.stages],
            "failures": [failure.model_dump(mode="json") for failure in outcome.failures],
            "next": then or None,
            "drift": [
                {"stage": stage, "hosts": hosts, "mend": command("deploy", "--site", site.name, *words)}
                for stage, hosts, words in drift
            ],
        }
    )


def operate(
    request: plan.Request,
    site_name: str | Site,
    *,
    playbook: str,
    why: str,
    then: str,
    as_json: bool,
    verbosity: int,
    confirmed: str = "",
) -> Outcome:
    """Run an operation, a playbook of playbooks/operations, as one step; return how it ended and what it reported.

    site_name: a site of the checkout, or one that the caller has. why: the reason to show. then: the command to type
    when it fails. The site's lock, the servers' lock where it changes something, journal, progress and Ctrl-C are those
    of a deploy. The report is the caller's to show; `finish` says how it ended.
    confirmed: the name of a protected site.
    """
    where = project.find()
    site = where.site(site_name) if isinstance(site_name, str) else site_name
    inventory.check_files(site)
    console = Console(as_json=as_json, verbosity=verbosity)
    stage = stages.of_playbook(where.root / "playbooks" / "operations" / f"{playbook}.yml")
    others = [path.stem for path in (where.root / "playbooks" / "operations").glob("*.yml")]
    known = (stage, *(one for one in stages.read(where.order) if one.name != stage.name))
    (stage, *_) = stages.hooked(known, site.hooks, others)
    with lock.hold(site, request.verb):
        log.tidy(site.journal)
        past = log.runs(site.journal, request.verb)
        steps = plan.Plan((plan.Step(stage, True, why),))
        expected = log.durations(past)
        limited = f" --limit {request.limit}" if request.limit else ""
        console.plan(f"{request.verb} {site.name}{limited}", steps, expected, {})
        if request.asks:
            confirm(site, confirmed, console)
        outcome = Execution(where, site, request, console).run(steps, expected)
    for failure in outcome.failures[:1]:
        console.error(f"{failure.host} | {failure.task}: {failure.message}", then)
    if outcome.result == "interrupted" and not outcome.failures:
        console.error("stopped as asked; what was begun is finished by the next run", then)
    return outcome


def finish(console: Console, verb: str, site: str, outcome: Outcome, then: str, **more: Any) -> int:
    """Print how an operation ended, as the last line and as the document; return the exit code.

    then: the command to type after a failure. more: what else the document says.
    """
    well = outcome.result == "ok"
    changed = sum(end.changed for end in outcome.stages)
    line = f"{verb} {site}: {outcome.result}, {changed} changed, {span(outcome.seconds)}"
    console.say(line, "green" if well else "bold red")
    console.document(
        {
            "run_id": outcome.run_id,
            "verb": verb,
            "site": site,
            "result": outcome.result,
            "exit_code": int(outcome.exit_code),
            "seconds": outcome.seconds,
            "changed": changed,
            "stages": [end.model_dump(mode="json") for end in outcome.stages],
            "failures": [failure.model_dump(mode="json") for failure in outcome.failures],
            "next": None if well else then,
        }
        | more
    )
    return outcome.exit_code


def launch(
    request: plan.Request,
    site_name: str,
    *,
    as_json: bool,
    verbosity: int,
    resume: bool = False,
    confirmed: str = "",
    promote_from: str = "",
) -> int:
    """Plan a run, show it with its reasons, do it, and return the exit code.

    resume: continue the last deploy that is unfinished, with its own options. confirmed: the name of a protected site.
    promote_from: a site on which the versions have to be verified.
    """
    where = project.find()
    site = where.site(site_name)
    if request.new_cluster not in ("", site.name):
        raise ProvisionError(
            f"--new-cluster {request.new_cluster}: the site is {site.name}.",
            f"Give the name of the site whose old cluster may be lost: --new-cluster {site.name}",
        )
    inventory.check_files(site)
    if promote_from:
        promote(where, site, promote_from)
    operations = [path.stem for path in (where.root / "playbooks" / "operations").glob("*.yml")]
    order = stages.hooked(stages.read(where.order), site.hooks, operations)
    console = Console(as_json=as_json, verbosity=verbosity)
    with lock.hold(site, request.verb):
        log.tidy(site.journal)
        deploys = log.runs(site.journal, "deploy")
        unfinished = log.to_resume(deploys) if resume else None
        if unfinished:
            request = _merge(request, unfinished)
        elif resume and deploys:
            console.say(f"Nothing to resume: the last deploy, {deploys[0].started.run_id}, left no stage unfinished.")
            console.document({"verb": "deploy", "site": site.name, "result": "ok", "exit_code": 0, "stages": []})
            return ExitCode.DONE
        elif resume:
            console.note("No deploy of this site is recorded here; starting with the first stage.")
        resumed = log.as_resumed(unfinished) if unfinished else None
        steps = plan.make(order, request, log.last(deploys), datetime.now(UTC), resumed)
        waves = _ask_inventory(where, site, request, steps.chosen)
        expected = log.durations(deploys if request.verb == "deploy" else log.runs(site.journal, request.verb))
        limited = f" --limit {request.limit}" if request.limit else ""
        console.plan(f"{request.verb} {site.name}{limited}", steps, expected, _in_words(waves, request))
        if request.asks:
            confirm(site, confirmed, console)
        staged = rollout.Rollout(waves, request.soak or 0, request.pause_after) if request.staged else None
        outcome = Execution(where, site, request, console, staged).run(steps, expected, resumed)
    _report(console, request, site, outcome, steps)
    return outcome.exit_code
