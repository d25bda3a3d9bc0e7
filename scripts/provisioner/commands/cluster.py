"""`cluster stop`, `cluster start` and `cluster destroy`."""

from __future__ import annotations

from typing import Annotated

import typer

from provisioner.commands import node, options
from provisioner.errors import ProvisionError, command

app = typer.Typer(no_args_is_help=True, help="The cluster as a whole: stop it, start it, destroy it.")

Yes = Annotated[bool, typer.Option("--yes", help="Everything the site serves may end.")]
Confirm = Annotated[str, typer.Option("--confirm", metavar="SITE", help="The site's name, typed.")]


@app.command()
def stop(
    site: options.Site,
    yes: Yes = False,
    confirm: options.Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Stop the whole cluster, workers first. It starts again with the machines, or by `cluster start`."""
    if not yes:
        raise ProvisionError(
            f"With this everything that {site} serves is unavailable: logins, users' servers (what they hold in memory"
            " is lost), the API. Homes and databases stay.",
            f"If that is meant: {command('cluster', 'stop', '--site', site, '--yes')}",
        )
    why = "everything the site serves ends; data stays"
    asked = {"rke2_stop_cluster": site}
    return node.run("cluster-stop", "cluster_stop", site, why, ("--yes",), confirm, as_json, verbose, **asked)[0]


@app.command()
def start(
    site: options.Site, confirm: options.Confirm = "", as_json: options.Json = False, verbose: options.Verbose = 0
) -> int:
    """Start a stopped cluster, all machines at once, and wait until every node is healthy."""
    why = "servers get ready only together"
    return node.run("cluster-start", "cluster_start", site, why, (), confirm, as_json, verbose)[0]


@app.command()
def destroy(
    site: options.Site, confirm: Confirm = "", as_json: options.Json = False, verbose: options.Verbose = 0
) -> int:
    """Remove the cluster from all machines for good, and every file of ours; packages of the system stay.

    Homes on the file server are not touched. Volumes on the machines' own disks, the database of users above all, go.
    """
    if confirm != site:
        raise ProvisionError(
            f"This destroys the cluster of {site} with its etcd and every volume on the machines' own disks"
            f"{f'; --confirm says {confirm}' if confirm else ''}.",
            f"If that is meant, type the site's name: {command('cluster', 'destroy', '--site', site)} --confirm …",
        )
    why = "nothing of the cluster stays on any machine"
    asked = {"rke2_destroy_cluster": site}
    words = ("--confirm", site)
    return node.run("cluster-destroy", "cluster_destroy", site, why, words, confirm, as_json, verbose, **asked)[0]
