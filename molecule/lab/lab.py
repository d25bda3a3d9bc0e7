"""The lab's command line (see docs/lab.md)."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

import bundle
import checks
import egress
import nodes
import saved
from build import STATE, alone

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command(name="build")
def build_command() -> None:
    """Build binaries, images and packages; cached by content."""
    checks.require()
    with alone():
        bundle.build()


def prepare() -> None:
    """Everything that nodes find around them: secrets, bundle, network, gate; and the site's name on this machine."""
    nodes.keys()
    nodes.lend_name()
    bundle.bundle(STATE / "bundle")
    nodes.network()
    nodes.gate(nodes.site_names(), STATE / "bundle")


@app.command()
def up() -> None:
    """Boot six empty nodes with the site's bundle, gate and secrets; twice is safe, and so is a second try."""
    checks.require()
    with alone():
        prepare()
        nodes.up(nodes.site_machines())


@app.command()
def down() -> None:
    """Remove nodes, network, disks and secrets; what was built and what was saved stays."""
    checks.require_engine()
    with alone():
        nodes.down()


Name = Annotated[str, typer.Argument(metavar="NAME", help="What a save is called.")]


@app.command()
def save(name: Name) -> None:
    """Save the nodes as they are; they are stopped for it and started again."""
    checks.require_engine()
    with alone():
        saved.save(name)


@app.command()
def load(name: Name) -> None:
    """Put saved nodes in place of those there are."""
    checks.require()
    with alone():
        prepare()
        saved.load(name)


@app.command(name="saved")
def saved_command() -> None:
    """List what is saved."""
    for name, what in saved.listed().items():
        print(f"{name}: {what}")


@app.command()
def forget(name: Name) -> None:
    """Remove a save."""
    checks.require_engine()
    with alone():
        saved.forget(name)


@app.command(name="egress")
def egress_command() -> None:
    """Print how many packets nodes have tried to send outside, as JSON."""
    print(json.dumps(egress.counted(nodes.NETWORK)))


if __name__ == "__main__":
    sys.exit(app())
