"""Whoever enters somebody else's server leaves a trace, in the hub's log and on the owner's page.

Entering begins at the hub: a server sends every browser there that it does not know, once for each session. The trace
lies beside the hub's database. A token that an administrator made for programs is not seen here.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jupyterhub.apihandlers.auth import OAuthAuthorizeHandler

# Below the hub's working directory, as the database; more than a page shows is of use to nobody.
FILE = Path("server_visits.jsonl")
SHOWN = 10


def visits(user: Any) -> list[dict[str, str]]:
    """Return who entered a user's server last, newest first; nobody's for who is not logged in."""
    if user is None:
        return []
    try:
        lines = FILE.read_text().splitlines()
    except FileNotFoundError:
        return []
    return [visit for line in reversed(lines) if (visit := json.loads(line))["owner"] == user.name][:SHOWN]


class Authorize(OAuthAuthorizeHandler):  # type: ignore[misc]  # (the hub publishes no types here)
    """Where the hub lets a browser into a server."""

    def send_oauth_response(self, headers: Any, body: Any, status: int) -> None:
        """Write the visit down before it can begin."""
        client = self.oauth_provider.fetch_by_client_id(self.get_argument("client_id"))
        server = client.spawner if client is not None else None
        visitor = self.current_user.name
        # Who may not enter gets an answer too, with which nothing can be done.
        if server and server.user.name != visitor and self.get_scope_filter("access:servers")(server, kind="server"):
            owner = server.user.name
            self.log.warning("%s enters the server of %s from %s", visitor, owner, self.request.remote_ip)
            when = datetime.now(UTC).isoformat(timespec="seconds")
            with FILE.open("a") as file:
                file.write(json.dumps({"when": when, "owner": owner, "visitor": visitor}) + "\n")
        super().send_oauth_response(headers, body, status)


def configure(config: Any) -> None:
    """Let the hub's pages ask who was there."""
    config.JupyterHub.template_vars.update({"server_visits": visits})
