"""Plan, show, do: what `check`, `deploy` and `verify` have in common."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from provisioner import inventory, lock, plan, project, rollout, stages
from provisioner import journal as log
from provisioner.console import Console, count, span
from provisioner.errors import ExitCode, ProvisionError, command
from provisioner.execution import Execution, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        new_cluster=request.new_cluster,  # never taken over: it destroys
    )


def _ask_inventory(where: Project, site: Site, request: plan.Request, chosen: Sequence[Stage]) -> dict[str, str]:
    """Refuse a limit that names nobody; return stage -> its waves in words. Without a question Ansible is not asked."""
    if not request.limit and not request.batch:
        return {}
    known = inventory.read(where, site)
    if request.limit:
        rollout.check_limit(request.limit, known.hosts, known.groups)
        return {}
    found = {}
    for stage in chosen:
        if stage.batched in known.groups:
            sizes = [str(len(wave)) for wave in rollout.waves(known.groups[stage.batched], request.batch)]
            found[stage.name] = f"waves of {', '.join(sizes)}"
    return found


def _next(request: plan.Request, site: Site, outcome: Outcome) -> str:
    """Return the command to type after a run that did not end well."""
    if request.verb == "deploy":
        return command("deploy", "--site", site.name, "--resume")
    ill = [end.stage for end in outcome.stages if end.result == "failed"]
    if request.verb == "verify" and ill:
        return command("deploy", "--site", site.name, "--only", ",".join(ill))
    return command(request.verb, "--site", site.name)


def _report(console: Console, request: plan.Request, site: Site, outcome: Outcome, steps: plan.Plan) -> None:
    well = outcome.result == "ok"
    changed = sum(end.changed for end in outcome.stages)
    counted = f"{changed} would change" if request.verb == "check" else f"{changed} changed"
    line = f"{request.verb} {site.name}: {outcome.result}, {count(len(outcome.stages), 'stage')}, {counted}"
    console.say(f"{line}, {span(outcome.seconds)}", "green" if well else "bold red")
    then = "" if well else _next(request, site, outcome)
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
        }
    )


def operate(
    request: plan.Request,
    site_name: str,
    *,
    playbook: str,
    why: str,
    then: str,
    as_json: bool,
    verbosity: int,
) -> Outcome:
    """Run an operation, a playbook of playbooks/operations, as one step; return how it ended and what it reported.

    why: the reason to show. then: the command to type when it fails. The site's lock, the servers' lock where
    it changes something, journal, progress and Ctrl-C are those of a deploy. The caller prints report and document.
    """
    where = project.find()
    site = where.site(site_name)
    inventory.check_files(site)
    console = Console(as_json=as_json, verbosity=verbosity)
    stage = stages.of_playbook(where.root / "playbooks" / "operations" / f"{playbook}.yml")
    with lock.hold(site, request.verb):
        log.tidy(site.journal)
        past = log.runs(site.journal, request.verb)
        steps = plan.Plan((plan.Step(stage, True, why),))
        expected = log.durations(past)
        limited = f" --limit {request.limit}" if request.limit else ""
        console.plan(f"{request.verb} {site.name}{limited}", steps, expected, {})
        outcome = Execution(where, site, request, console).run(steps, expected)
    for failure in outcome.failures[:1]:
        console.error(f"{failure.host} | {failure.task}: {failure.message}", then)
    if outcome.result == "interrupted" and not outcome.failures:
        console.error("stopped as asked; what was begun is finished by the next run", then)
    return outcome


def launch(request: plan.Request, site_name: str, *, as_json: bool, verbosity: int, resume: bool = False) -> int:
    """Plan a run, show it with its reasons, do it, and return the exit code.

    resume: continue the last deploy that is unfinished, with its own options.
    """
    where = project.find()
    site = where.site(site_name)
    if request.new_cluster not in ("", site.name):
        raise ProvisionError(
            f"--new-cluster {request.new_cluster}: the site is {site.name}.",
            f"Give the name of the site whose old cluster may be lost: --new-cluster {site.name}",
        )
    inventory.check_files(site)
    order = stages.read(where.order)
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
        console.plan(f"{request.verb} {site.name}{limited}", steps, expected, waves)
        outcome = Execution(where, site, request, console).run(steps, expected, resumed)
    _report(console, request, site, outcome, steps)
    return outcome.exit_code
