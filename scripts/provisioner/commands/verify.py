"""`verify`."""

from __future__ import annotations

from provisioner.commands import options
from provisioner.launch import launch, names
from provisioner.plan import Request


def verify(
    site: options.Site,
    only: options.Only = None,
    start: options.Start = None,
    until: options.Until = None,
    limit: options.Limit = None,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Look whether a site is healthy, every stage of it, and change nothing. Ends with 5 when it is not."""
    request = Request("verify", names(only), start, until, limit)
    return launch(request, site, as_json=as_json, verbosity=verbose)
