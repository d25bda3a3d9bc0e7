"""`rotate`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from provisioner import expiry, project, rotation
from provisioner.commands import options
from provisioner.console import Console
from provisioner.errors import command
from provisioner.launch import finish, operate
from provisioner.plan import Request, ago

app = typer.Typer(no_args_is_help=True, help="Make certificates, tokens and keys of the cluster anew.")

PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Show when certificates end, and change nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Also what is younger than a day.")]


def _rotate(
    words: str,
    site: str,
    confirmed: str,
    as_json: bool,
    verbose: int,
    why: str,
    *,
    force: bool = False,
    limit: str | None = None,
) -> int:
    """Run the playbook of `words`, such as "rotate agent-token"; it goes on where an earlier run was cut off."""
    console, verb = Console(as_json=as_json, verbosity=verbose), words.replace(" ", "-")
    again = command(*words.split(), "--site", site)
    outcome = operate(
        Request(verb, limit=limit, variables={"rke2_rotate_force": True} if force else {}),
        site,
        playbook=verb.replace("-", "_"),
        why=why,
        then=again,
        as_json=as_json,
        verbosity=verbose,
        confirmed=confirmed,
    )
    if any(end.changed for end in outcome.stages):
        expiry.forget(project.find().site(site).state)
    if outcome.report and "gap" in outcome.report:
        console.say(f"The API's address was silent for {outcome.report['gap']} s at most.")
    if outcome.result == "ok" and not any(end.changed for end in outcome.stages):
        console.say("Nothing was to be done.")
    return finish(console, verb, site, outcome, again, report=outcome.report)


@app.command()
def certificates(
    site: options.Site,
    plan_only: PlanOnly = False,
    force: Force = False,
    limit: options.Limit = None,
    confirm: options.Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Give every machine new certificates, one at a time, servers first.

    RKE2's certificates live a year and are renewed by any restart within their last 120 days. A machine whose
    certificates are younger than a day is left as it is.
    """
    if not plan_only:
        why = "one machine at a time, servers first; pods run on"
        return _rotate("rotate certificates", site, confirm, as_json, verbose, why, force=force, limit=limit)
    console = Console(as_json=as_json, verbosity=verbose)
    again = command(*"rotate certificates --plan-only --site".split(), site)
    outcome = operate(
        Request("certificate-expiry", limit=limit, looks=True),
        site,
        playbook="certificate_expiry",
        why="looks only",
        then=again,
        as_json=as_json,
        verbosity=verbose,
    )
    report, now = outcome.report or {}, datetime.now(UTC)
    if outcome.result == "ok" and not limit:
        expiry.keep(project.find().site(site).state, report, now)
    console.table(
        ("machine", "ends first", "expires", "", "made", ""),
        [
            (one.machine, one.file, f"{one.expires:%Y-%m-%d}", f"{one.days} days", ago(one.made, now), one.told)
            for one in rotation.soonest(report, now)
        ],
    )
    return finish(console, "certificate-expiry", site, outcome, again, machines=rotation.document(report, now))


@app.command()
def token(
    site: options.Site, confirm: options.Confirm = "", as_json: options.Json = False, verbose: options.Verbose = 0
) -> int:
    """Let servers join by the token in the vault, and by no other.

    Write the token that stands in the vault as vault_site_rke2_token_before and a new one as vault_site_rke2_token,
    then type this; after an interruption type it again. Snapshots from before are opened by the old token alone.
    """
    return _rotate("rotate token", site, confirm, as_json, verbose, "as the vault says, one server at a time")


@app.command()
def agent_token(
    site: options.Site, confirm: options.Confirm = "", as_json: options.Json = False, verbose: options.Verbose = 0
) -> int:
    """Let agents join by the token in the vault: write a new vault_site_rke2_agent_token, then type this."""
    return _rotate("rotate agent-token", site, confirm, as_json, verbose, "as the vault says, one machine at a time")


@app.command()
def keepalived_password(
    site: options.Site, confirm: options.Confirm = "", as_json: options.Json = False, verbose: options.Verbose = 0
) -> int:
    """Let the servers show each other the password in the vault: write a new one there, then type this.

    All servers take vault_site_api_address_password in the same second; for how long the API's address did not answer
    is measured and said.
    """
    return _rotate(
        "rotate keepalived-password", site, confirm, as_json, verbose, "all servers at once, or two would hold it"
    )


@app.command()
def encryption_keys(
    site: options.Site,
    force: Force = False,
    confirm: options.Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Encrypt the cluster's Secrets with a new key, and let every server start with it.

    A snapshot called before-rotation is taken first. A key that is younger than a day is kept.
    """
    why = "one server writes all Secrets anew, then all restart one by one"
    return _rotate("rotate encryption-keys", site, confirm, as_json, verbose, why, force=force)
