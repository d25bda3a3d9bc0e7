"""`snapshot save`, `list`, `prune`, `verify` and `fetch`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provisioner import plan
from provisioner.commands import options
from provisioner.console import Console
from provisioner.errors import ProvisionError, command
from provisioner.launch import finish, operate
from provisioner.plan import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

app = typer.Typer(no_args_is_help=True, help="Snapshots of the cluster's state, which every server keeps.")

Name = Annotated[str, typer.Option(metavar="NAME", help="What the names of the new ones begin with.")]
Keep = Annotated[int, typer.Option(metavar="N", min=0, help="How many of the newest each server keeps in any case.")]
Days = Annotated[float, typer.Option(metavar="DAYS", min=0, help="Only those that are older are deleted.")]
# What has a playbook of its own.
ALONE = {"drill": "etcd_drill", "fetch": "etcd_fetch", "push": "etcd_push"}


def size(count: int) -> str:
    """Return bytes as people say them: "512 B", "12.3 MiB"."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def rows(snapshots: Iterable[Mapping[str, Any]], now: datetime) -> list[tuple[str, ...]]:
    """Return the lines of the table, the newest first: name, server, age, size, version, and what was found."""
    found: list[tuple[str, ...]] = []
    for one in sorted(snapshots, key=lambda one: (-one["created"], one["name"])):
        made = datetime.fromtimestamp(one["created"], UTC)
        state = "" if "whole" not in one else "ok" if one["whole"] else f"failed {one['error']}"
        found.append(
            (one["name"], one["server"], plan.ago(made, now), size(one["size"]), one["version"] or "unknown", state)
        )
    return found


def _run(action: str, site: str, why: str, as_json: bool, verbose: int, confirmed: str = "", **variables: Any) -> int:
    fetches = action == "fetch"
    playbook = ALONE.get(action, "etcd_snapshot")
    told = variables if action in ALONE else {"rke2_snapshot_action": action} | variables
    request = Request(f"snapshot-{action}", variables=told, looks=action in ("list", "verify"))
    again = command("snapshot", action, *filter(None, [variables.get("rke2_fetch_snapshot")]), "--site", site)
    outcome = operate(
        request, site, playbook=playbook, why=why, then=again, as_json=as_json, verbosity=verbose, confirmed=confirmed
    )
    console = Console(as_json=as_json)
    found = outcome.report or []
    if found and fetches:
        console.say(
            f"{found[0]['path']} is {found[0]['name']} of {found[0]['server']}, {size(found[0]['size'])}", "green"
        )
    elif found:
        console.table(("snapshot", "server", "taken", "size", "version", ""), rows(found, datetime.now(UTC)))
    elif outcome.report is not None:
        console.say(f"No server has a snapshot. Take one: {command('snapshot', 'save', '--site', site)}", "yellow")
    return finish(console, request.verb, site, outcome, again, snapshots=found)


@app.command("list")
def list_(site: options.Site, as_json: options.Json = False, verbose: options.Verbose = 0) -> int:
    """List the snapshots of all servers, the API up or not."""
    return _run("list", site, "looks only", as_json, verbose)


@app.command()
def save(
    site: options.Site, name: Name = "on-demand", as_json: options.Json = False, verbose: options.Verbose = 0
) -> int:
    """Take a snapshot on every server, each whole in itself."""
    why = "each server takes one of its own"
    return _run("save", site, why, as_json, verbose, rke2_snapshot_name=name)


@app.command()
def prune(
    site: options.Site,
    keep: Keep = 5,
    days: Days = 30,
    confirm: options.Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Delete the old ones among those taken by hand; RKE2 prunes its own by the site's rke2_snapshot_retention."""
    why = f"those older than {days:g} days go, the newest {keep} of each server stay"
    return _run("prune", site, why, as_json, verbose, confirm, rke2_snapshot_keep=keep, rke2_snapshot_days=days)


def drilled(found: Mapping[str, Any]) -> str:
    """Return what a drill has read, in words."""
    canary = f"canary {found['canary'][:8]} is there" if found["canary"] else "it holds no canary"
    return (
        f"{found['snapshot']} was restored on {found['host']} by etcd {found['etcd']}: {found['keys']} keys at revision"
        f" {found['revision']}, {canary}, {size(found['size'])}, {found['seconds']:g} s"
    )


def _drill(site: str, name: str, source: Path | None, as_json: bool, verbose: int) -> int:
    again = command(
        *("snapshot", "verify", *filter(None, [name]), "--drill"),
        *(("--from", str(source)) if source else ()),
        *("--site", site),
    )
    variables = {"rke2_drill_snapshot": name} | ({"rke2_fetch_directory": str(source.resolve())} if source else {})
    why = "one that was fetched" if name else "a canary, a snapshot, a restore on a host of its own"
    request = Request("snapshot-drill", variables=variables)
    outcome = operate(request, site, playbook=ALONE["drill"], why=why, then=again, as_json=as_json, verbosity=verbose)
    console = Console(as_json=as_json)
    report = outcome.report if outcome.result == "ok" else None
    if report:
        console.say(drilled(report), "green")
    return finish(console, request.verb, site, outcome, again, drill=report)


@app.command()
def verify(
    site: options.Site,
    name: Annotated[str, typer.Argument(metavar="[SNAPSHOT]", help="With --drill: one that was fetched.")] = "",
    drill: Annotated[
        bool, typer.Option("--drill", help="Restore one on the host of the group drill and read it back.")
    ] = False,
    source: Annotated[Path | None, typer.Option("--from", metavar="DIR", help="Where the fetched one is.")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Read every snapshot whole and compare it with the checksum that etcd wrote into it; ends with 1 if one is not.

    --drill: write a canary, take a snapshot, fetch it sealed, restore it beside the cluster and read the canary back.
    """
    if drill:
        return _drill(site, name, source, as_json, verbose)
    if name or source:
        raise ProvisionError(
            "verify reads all snapshots on the servers; SNAPSHOT and --from are for --drill.",
            f"For a fetched one: {command('snapshot', 'verify', name or 'SNAPSHOT', '--drill', '--site', site)}",
        )
    return _run("verify", site, "every byte is read; looks only", as_json, verbose)


@app.command()
def fetch(
    site: options.Site,
    name: Annotated[str, typer.Argument(metavar="[SNAPSHOT]", help="Its name; the newest of all when left out.")] = "",
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where it is put on this machine.")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Bring a snapshot here with the token that opens it, sealed with the site's vault password, and read it back."""
    variables = {"rke2_fetch_snapshot": name} | ({"rke2_fetch_directory": str(to.resolve())} if to else {})
    return _run("fetch", site, "sealed with the site's vault password, then read back", as_json, verbose, **variables)


@app.command()
def push(
    name: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Its name, without .vault.")],
    site: options.Site,
    source: Annotated[Path | None, typer.Option("--from", metavar="DIR", help="Where it is on this machine.")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Bring a snapshot that was fetched back to the first server, new or old, where `restore` finds it."""
    variables = {"rke2_fetch_snapshot": name}
    variables |= {"rke2_fetch_directory": str(source.resolve())} if source else {}
    return _run("push", site, "back to where a restore looks for it", as_json, verbose, **variables)
