"""`upgrade`, and `rollback`, the first half of the way back."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from provisioner import inventory, project
from provisioner import journal as log
from provisioner import upgrade as ladder
from provisioner.commands import options
from provisioner.console import Console, count
from provisioner.errors import ExitCode, ProvisionError, command
from provisioner.launch import confirm as ask
from provisioner.launch import finish, operate, promote
from provisioner.plan import Request
from provisioner.rollout import parse_batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from provisioner.project import Project, Site

# What goes with what, and which of the site's parameters sets it.
TABLE = "roles/preflight/files/compatibility.yml"
POLICY = "rke2_drain_policy"

To = Annotated[str | None, typer.Option("--to", metavar="RELEASE", help="The release, in full: v1.35.7+rke2r1.")]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Show the way and touch nothing.")]
Batch = Annotated[
    str | None,
    typer.Option(
        metavar="SIZES", help="Workers at a time, the last size repeated: 1,2. One unless given; one comes first."
    ),
]
Back = Annotated[str, typer.Option("--to", metavar="RELEASE", help="The release before, in full.")]
Snapshot = Annotated[
    str, typer.Option(metavar="NAME", help="What the name of the snapshot from before begins with: pre-upgrade-…")
]
Confirm = Annotated[
    str, typer.Option(metavar="SITE", help="The site's name: every pod ends, and what was done since is lost.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the last upgrade, to its own release.")]


def _resumed(site: Site) -> Request:
    """Return what the last upgrade was asked for; one that ended well leaves nothing to resume."""
    past = log.runs(site.journal, "upgrade")
    if not past:
        raise ProvisionError(
            f"No upgrade of {site.name} is recorded here.",
            f"Say where to: {command('upgrade', '--site', site.name, '--to', 'RELEASE')}",
        )
    return past[0].started.request


def _has(where: Project, site: Site, table: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return component -> version without RKE2's own, and parameter -> value of those that may forbid a release.

    As the site says, or as the roles' defaults do.
    """
    hosts = inventory.read(where, site).variables.values()
    given = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in where.root.glob("roles/*/defaults/main.yml")]

    def told(names: Mapping[str, str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, name in names.items():
            values = [variables[name] for variables in (*hosts, *given) if name in (variables or {})]
            if values:
                found[key] = str(values[0])
        return found

    components = {key: name for key, name in table["components"].items() if key != "rke2"}
    return told(components), told(
        {name: name for row in table["forbidden"] for name in (*row["where"], *row["unless"])}
    )


def _record(site: Site, parameter: str, release: str) -> Path | None:
    """Write the release that all nodes run into the site's versions.yml, its other lines kept; None where it stands."""
    path = site.inventory / "group_vars/all/versions.yml"
    text = path.read_text(encoding="utf-8") if path.exists() else "---\n"
    line = f"{parameter}: {release}"
    after, found = re.subn(rf"^{parameter}:.*$", line, text, flags=re.MULTILINE)
    if not found:
        after = text.rstrip("\n") + f"\n{line}\n"
    if after == text:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".yml.new")
    fresh.write_text(after, encoding="utf-8")
    os.replace(fresh, path)
    return path


def _show(console: Console, hops: Sequence[ladder.Hop], nodes: Sequence[ladder.Node]) -> None:
    """Print every node of every hop in its order, with what it has and why."""
    by_name = {node.name: node for node in nodes}
    for number, hop in enumerate(hops, start=1):
        console.say(f"hop {number} of {len(hops)}: {hop.release}: {hop.reason}", "bold")
        rows = []
        for name in (*hop.servers, *hop.agents):
            node = by_name[name]
            kind = "server" if node.server else "worker, the canary" if name == hop.agents[0] else "worker"
            users = count(node.users, "user server") if node.users else ""
            users += f", {count(node.gpus, 'GPU')} in use by {', '.join(node.holders)}" if node.gpus else ""
            rows.append((name, kind, node.running or "does not run", users))
        console.table(("machine", "", "runs", "users"), rows)
        for blocker in hop.blockers:
            console.say(f"forbidden: {blocker}", "bold red")


def upgrade(
    site: options.Site,
    to: To = None,
    plan_only: PlanOnly = False,
    drain_policy: options.DrainPolicy = None,
    batch: Batch = None,
    resume: Resume = False,
    promote_from: options.PromoteFrom = "",
    confirm: options.Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Bring all nodes to another release of RKE2, one at a time, over every minor between.

    Servers come first, then one worker alone, then the others. A snapshot is fetched before the first server; every
    node is emptied, upgraded, proven and given back, and the first that is not well ends the run. A node that runs the
    release already is left alone, so the same command, or --resume, goes on.
    """
    where = project.find()
    here = where.site(site)
    console = Console(as_json=as_json, verbosity=verbose)
    sizes: tuple[int | str, ...] = parse_batch(batch) if batch else ()
    sizes = sizes if sizes[:1] == (1,) else (1, *sizes)  # the canary goes alone
    policy: str | None = drain_policy
    if resume:
        old = _resumed(here)
        to, policy = to or old.to, policy or old.variables.get(POLICY)
        sizes = sizes if batch else old.batch
    if not to:
        raise ProvisionError(
            "--to does not say which release.", f"{command('upgrade', '--site', site, '--to', 'v1.35.7+rke2r1')}"
        )
    table = yaml.safe_load((where.root / TABLE).read_text(encoding="utf-8"))
    parameter = table["components"]["rke2"]
    if promote_from:
        promote(where, here, promote_from, {parameter: to})
    again = command("upgrade", "--site", site, "--to", to)
    looked = operate(
        Request("upgrade-look", looks=True),
        site,
        playbook="upgrade_look",
        why="what every node runs, and for whom",
        then=again,
        as_json=as_json,
        verbosity=verbose,
    )
    if looked.exit_code != ExitCode.DONE:
        console.document({"verb": "upgrade", "site": site, "result": looked.result, "exit_code": looked.exit_code})
        return looked.exit_code
    nodes = [ladder.Node(**node) for node in looked.report or ()]
    hops = ladder.plan(nodes, to, *_has(where, here, table), table, site)
    _show(console, hops, nodes)
    facts: dict[str, Any] = {"verb": "upgrade", "site": site, "to": to, "hops": [asdict(hop) for hop in hops]}
    facts["nodes"] = [asdict(node) for node in nodes]
    if plan_only:
        if not hops:
            console.say(f"All nodes run {to}.", "green")
        console.document(facts | {"result": "planned", "exit_code": 0})
        return ExitCode.DONE
    if any(hop.blockers for hop in hops):
        free = [hop.release for number, hop in enumerate(hops) if not any(one.blockers for one in hops[: number + 1])]
        nearer = command("upgrade", "--site", site, "--to", free[-1]) if free else ""
        raise ProvisionError(
            "Not all of the way can be gone: " + "; ".join(text for hop in hops for text in hop.blockers),
            f"As far as it can: {nearer}" if nearer else f"Set it, then: {command('deploy', '--site', site)}",
        )
    ask(here, confirm, console)
    facts |= {"seconds": 0.0, "failures": []}
    drained = {POLICY: policy} if policy else {}  # else the site's own
    for hop in hops:
        outcome = operate(
            Request("upgrade", batch=sizes, allow_upgrade=True, variables={parameter: hop.release} | drained, to=to),
            site,
            playbook="upgrade",
            why=f"{hop.release}: {hop.reason}; {count(len(hop.servers), 'server')}, {count(len(hop.agents), 'worker')}",
            then=command("upgrade", "--site", site, "--resume"),
            as_json=as_json,
            verbosity=verbose,
            confirmed=site,  # it was asked for above
        )
        facts |= {"run_id": outcome.run_id, "result": outcome.result, "exit_code": int(outcome.exit_code)}
        facts["seconds"] += outcome.seconds
        facts["failures"] += [failure.model_dump(mode="json") for failure in outcome.failures]
        if outcome.exit_code != ExitCode.DONE:
            console.document(facts)
            return outcome.exit_code
    written = _record(here, parameter, to)
    console.say(f"All nodes of {site} run {to}." + (f" {written} says so now." if written else ""), "green")
    console.document({"result": "ok", "exit_code": 0} | facts | {"written": written and str(written)})
    return ExitCode.DONE


def rollback(
    site: options.Site,
    to: Back,
    snapshot: Snapshot,
    confirm: Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Stop all servers and lay down the release before; `restore` of the snapshot from before then starts it.

    For an upgrade that cannot be finished. Without --confirm it only looks whether release and snapshot are there.
    """
    where = project.find()
    here = where.site(site)
    console = Console(as_json=as_json, verbosity=verbose)
    if ladder.release(to) is None:
        raise ProvisionError(f"--to {to} is no release of RKE2.", "Give it in full: --to v1.35.7+rke2r1")
    parameter = yaml.safe_load((where.root / TABLE).read_text(encoding="utf-8"))["components"]["rke2"]
    told = {parameter: to, "rke2_rollback_snapshot": snapshot, "rke2_rollback_confirm": confirm}
    again = command("rollback", "--site", site, "--to", to, "--snapshot", snapshot, "--confirm", site)
    outcome = operate(
        Request("rollback", allow_upgrade=True, variables=told, to=to),
        site,
        playbook="rollback",
        why=f"back to {to}, before {snapshot}",
        then=again,
        as_json=as_json,
        verbosity=verbose,
        confirmed=confirm or site,  # of every site it wants the name itself, once it has looked
    )
    following = again
    if outcome.exit_code == ExitCode.DONE:
        _record(here, parameter, to)
        following = command("restore", next(iter(outcome.report or ()), snapshot), "--site", site)
        console.say(f"{to} is on all machines and no server runs. Now the data: {following}", "yellow")
    return finish(console, "rollback", site, outcome, again, snapshots=outcome.report or [], next=following)
