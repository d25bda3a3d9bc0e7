"""`deploy`."""

from __future__ import annotations

from typing import Annotated

import typer

from provisioner.commands import options
from provisioner.errors import ProvisionError
from provisioner.launch import launch, names
from provisioner.plan import Request
from provisioner.rollout import parse_batch, parse_span

Batch = Annotated[str | None, typer.Option(metavar="SIZES", help="Agents at a time, the last size repeated: 1,5,50%.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the last unfinished deploy with its own options.")]
NewCluster = Annotated[
    str,
    typer.Option(
        metavar="SITE",
        help="Make a new cluster although servers that are silent may hold the old one.",
    ),
]
Canary = Annotated[str, typer.Option(metavar="HOST", help="This agent alone first; health is watched from then on.")]
Soak = Annotated[
    str | None, typer.Option(metavar="SPAN", help="Watch the cluster's health this long after each wave: 10min.")
]
PauseAfter = Annotated[
    int, typer.Option("--pause-after", metavar="WAVE", min=0, help="End after this wave of agents; --resume goes on.")
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
    canary: Canary = "",
    soak: Soak = None,
    pause_after: PauseAfter = 0,
    promote_from: options.PromoteFrom = "",
    confirm: options.Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Bring a site to what its files say.

    The plan is shown with a reason for every stage, the stages run in their order, and the first that fails ends the
    run. What happened is in the journal; --resume goes on where a failed, stopped or killed run was. Ctrl-C lets the
    hosts in hand finish, a second one does not.

    With --canary, --soak or --pause-after agents go in waves (--batch), the health of the cluster is compared with that
    before after each, and what is less healthy than before ends the run.
    """
    sizes = parse_batch(batch) if batch else ()
    request = Request(
        "deploy",
        names(only),
        start,
        until,
        limit,
        sizes,
        allow_upgrade,
        new_cluster,
        canary=canary,
        soak=parse_span(soak) if soak else None,
        pause_after=pause_after,
    )
    if request.staged and limit:
        raise ProvisionError(
            "--canary, --soak and --pause-after are of all agents: they do not go with --limit.",
            "Leave --limit out; the first wave is the canary.",
        )
    return launch(
        request,
        site,
        as_json=as_json,
        verbosity=verbose,
        resume=resume,
        confirmed=confirm,
        promote_from=promote_from,
    )
