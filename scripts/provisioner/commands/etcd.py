"""`etcd`."""

from __future__ import annotations

import typer

from provisioner import etcd
from provisioner.commands import options
from provisioner.console import STYLES, Console
from provisioner.errors import command
from provisioner.launch import finish, operate
from provisioner.plan import Request

app = typer.Typer(no_args_is_help=True, help="Look after the cluster's database.")

COLOURS = STYLES | {"failed:": "bold red", "filling:": "yellow", "loose:": "yellow"}


def _operate(
    request: Request, playbook: str, why: str, site: str, as_json: bool, verbose: int, confirmed: str = ""
) -> int:
    console, again = Console(as_json=as_json, verbosity=verbose), command(*request.verb.split("-"), "--site", site)
    outcome = operate(
        request, site, playbook=playbook, why=why, then=again, as_json=as_json, verbosity=verbose, confirmed=confirmed
    )
    report = outcome.report or {}
    found = etcd.members(report)
    for one in found:
        for what in report[one.server]["done"]:
            console.say(f"{one.server}: {what}")
    console.table(
        ("server", "", "version", "size", "in use", "quota", ""),
        [
            (
                one.server,
                "leader" if one.leader else "follower",
                one.version,
                etcd.mib(one.size),
                etcd.mib(one.in_use),
                etcd.mib(one.quota) if one.quota else "not told",
                one.verdict,
            )
            for one in found
        ],
        COLOURS,
    )
    if outcome.result == "ok" and request.looks and any(one.verdict != "ok" for one in found):
        console.say(f"-> {command('etcd', 'defrag', '--site', site)}", "yellow")
    servers = {one.server: report[one.server] | {"verdict": one.verdict} for one in found}
    return finish(console, request.verb, site, outcome, again, servers=servers)


@app.command()
def status(site: options.Site, as_json: options.Json = False, verbose: options.Verbose = 0) -> int:
    """Show size, quota and alarms of every member. Ends with 1 when an alarm is raised."""
    return _operate(Request("etcd-status", looks=True), "etcd_status", "looks only", site, as_json, verbose)


@app.command()
def defrag(
    site: options.Site, confirm: options.Confirm = "", as_json: options.Json = False, verbose: options.Verbose = 0
) -> int:
    """Give back what is free inside etcd's files, one member after the other.

    Also the way out when etcd is out of space (NOSPACE): it is compacted first, and the alarm ends afterwards.
    """
    why = "one member at a time; the leader hands over first"
    return _operate(Request("etcd-defrag"), "etcd_defrag", why, site, as_json, verbose, confirm)
