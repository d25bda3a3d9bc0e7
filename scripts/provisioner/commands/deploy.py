"""`deploy`."""

from __future__ import annotations

from typing import Annotated

import typer

from provisioner.commands import options
from provisioner.launch import launch, names
from provisioner.plan import Request
from provisioner.rollout import parse_batch

Batch = Annotated[str | None, typer.Option(metavar="SIZES", help="Agents at a time, the last size repeated: 1,5,50%.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the last unfinished deploy with its own options.")]
NewCluster = Annotated[
    str,
    typer.Option(
        metavar="SITE",
        help="Make a new cluster although servers that are silent may hold the old one.",
    ),
]
AllowUpgrade = Annotated[bool, typer.Option("--allow-upgrade", help="Let a running version be changed.")]


def deploy(
    site: options.Site,
    only: options.Only = None,
    start: options.Start = None,
    until: options.Until = None,
    limit: options.Limit = None,
    batch: Batch = None,
    resume: Resume = False,
    allow_upgrade: AllowUpgrade = False,
    new_cluster: NewCluster = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Bring a site to what its files say.

    The plan is shown with a reason for every stage, the stages run in their order, and the first that fails ends the
    run. What happened is in the journal; --resume goes on where a failed, stopped or killed run was. Ctrl-C lets the
    hosts in hand finish, a second one does not.
    """
    sizes = parse_batch(batch) if batch else ()
    request = Request("deploy", names(only), start, until, limit, sizes, allow_upgrade, new_cluster)
    return launch(request, site, as_json=as_json, verbosity=verbose, resume=resume)
