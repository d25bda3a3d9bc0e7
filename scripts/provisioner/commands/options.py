"""The options that verbs share."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

JSON_KEY = "provisioner.json"


class Drain(StrEnum):
    """What happens to pods that nothing would start elsewhere, users' servers above all."""

    WAIT = "wait"
    EVICT = "evict"
    SKIP = "skip"


def _remember(context: typer.Context, value: bool) -> bool:
    """Let whoever prints an error know that a program reads stdout."""
    context.meta[JSON_KEY] = value
    return value


Site = Annotated[str, typer.Option("--site", metavar="NAME", help="The site: a directory in inventories/.")]
OptionalSite = Annotated[
    str | None, typer.Option("--site", metavar="NAME", help="The site: a directory in inventories/.")
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="STAGE", help="Only these stages; repeat it or separate by commas."),
]
Start = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Start with this stage.")]
Until = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="End with this stage.")]
Limit = Annotated[
    str | None, typer.Option("--limit", metavar="PATTERN", help="Only hosts that match Ansible's host pattern.")
]
Confirm = Annotated[str, typer.Option("--confirm", metavar="SITE", help="The name of the site, if it is protected.")]
PromoteFrom = Annotated[
    str,
    typer.Option("--promote-from", metavar="SITE", help="Refuse versions that were not verified on that site."),
]
DrainPolicy = Annotated[
    Drain | None,
    typer.Option(
        "--drain-policy",
        help="Wait for users' servers to end by themselves, evict them, or skip the drain altogether; unless given,"
        " rke2_drain_policy of the site.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", callback=_remember, help="One JSON document on stdout, everything else on stderr.")
]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Show Ansible's output; repeated: more of it.")
]


def parse(words: Sequence[str]) -> None:
    """Refuse a command line that the driver would not take: an unknown verb, an unknown or missing option."""
    from provisioner.cli import app  # noqa: PLC0415  (the application imports every verb)

    verb: Any = typer.main.get_command(app)
    name, context, rest = "provision.py", None, list(words)
    while True:
        context = verb.make_context(name, rest, parent=context)
        if not isinstance(verb, TyperGroup):
            return
        _, verb, rest = verb.resolve_command(context, [*context._protected_args, *context.args])
        name = verb.name
