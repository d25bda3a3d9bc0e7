"""`restore`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from provisioner.commands import options
from provisioner.console import Console
from provisioner.errors import ExitCode, command
from provisioner.launch import finish, operate
from provisioner.plan import Request
from provisioner.restore import prospect

Snapshot = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Its name, as `snapshot list` tells it.")]
Confirm = Annotated[
    str, typer.Option(metavar="SITE", help="The site's name again, instead of being asked for it; for programs.")
]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Only say what would vanish and reappear.")]


def restore(
    snapshot: Snapshot,
    site: options.Site,
    confirm: Confirm = "",
    plan_only: PlanOnly = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Take the whole cluster back to a snapshot, in place.

    First it is said what would vanish and reappear, and the site's name is asked for. What is there now is kept on the
    servers. Workers and what runs on them stay; the API is down for some minutes. The same command goes on after any
    interruption.
    """
    again = command("restore", snapshot, "--site", site)
    console = Console(as_json=as_json, verbosity=verbose)
    variables = {"rke2_restore_snapshot": snapshot}
    look = Request("restore-look", variables=variables, looks=True)
    outcome = operate(
        look,
        site,
        playbook="etcd_restore",
        why="what would vanish and reappear; looks only",
        then=again,
        as_json=as_json,
        verbosity=verbose,
    )
    joining: dict[str, str] = {}
    seen = outcome.report if outcome.result == "ok" else None
    if seen:
        found = prospect(seen, datetime.now(UTC))
        for line in found.lines:
            console.say(line, "yellow")
        if not plan_only:
            if not confirm and sys.stdin.isatty():
                confirm = typer.prompt(f"Type the site's name to restore it ({site})", default="", err=True)
            if confirm != site:
                console.error(f"The site is {site}, and {confirm or 'nothing'} was said: nothing was done.", "")
                console.note(f"  -> {again} --confirm {site}")
                console.document({"verb": "restore", "site": site, "result": "refused", "exit_code": 2, "plan": seen})
                return ExitCode.USAGE
            outcome = operate(
                Request("restore", variables=variables | {"rke2_restore_confirm": site}),
                site,
                playbook="etcd_restore",
                why="continues" if found.continues else f"back to {snapshot}",
                then=again,  # shows first whether it continues: one that had ended would be done once more
                as_json=as_json,
                verbosity=verbose,
                confirmed=confirm,
            )
            if outcome.result == "ok":
                if seen["bare"]:
                    joining = {"next": command("deploy", "--site", site)}
                    console.say(f"Let {', '.join(seen['bare'])} join: {joining['next']}", "yellow")
                console.say(f"Look at all of {site}: {command('verify', '--site', site)}")
    return finish(console, "restore", site, outcome, again, plan=seen, **joining)
