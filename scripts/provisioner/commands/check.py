"""`check`."""

from __future__ import annotations

from provisioner.commands import options
from provisioner.launch import launch, names
from provisioner.plan import Request


def check(
    site: options.Site,
    only: options.Only = None,
    start: options.Start = None,
    until: options.Until = None,
    limit: options.Limit = None,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Show what `deploy` would change, with differences, and change nothing."""
    request = Request("check", names(only), start, until, limit)
    return launch(request, site, as_json=as_json, verbosity=verbose)
