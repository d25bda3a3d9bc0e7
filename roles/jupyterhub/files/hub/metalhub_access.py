"""Whoever enters somebody else's server leaves a trace, in the hub's log and on the owner's page.

Entering begins at the hub: a server sends every browser there that it does not know, once for each session. The trace
lies beside the hub's database; whose visit cannot be written down does not enter. A token that an administrator made
for programs is not seen here.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jupyterhub.apihandlers.auth import OAuthAuthorizeHandler
from tornado import web
from tornado.log import app_log

# Below the hub's working directory, as the database; more than a page shows is of use to nobody.
FILE = Path("server_visits.jsonl")
SHOWN = 10
# The end of the file is enough for that: every page is rendered with it.
READ_BYTES = 65536


def _latest() -> list[dict[str, str]]:
    """Return the visits at the end of the file, newest first, without lines that a full disk or a kill has torn."""
    try:
        with FILE.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - READ_BYTES))
            lines = file.read(READ_BYTES).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        app_log.error("%s cannot be read, so nobody is told of visits: %s", FILE, error)
        return []
    found = []
    for line in reversed(lines):
        try:
            visit = json.loads(line)
        except ValueError:
            continue
        if isinstance(visit, dict):
            found.append(visit)
    return found


def visits(user: Any) -> list[dict[str, str]]:
    """Return who entered a user's server last, newest first; nobody's for who is not logged in."""
    return [visit for visit in _latest() if visit.get("owner") == user.name][:SHOWN] if user is not None else []


def _write_down(visitor: str, owner: str) -> None:
    """Add a visit to the file, on a line of its own whatever was left there; raise OSError if it is not there now."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({"when": when, "owner": owner, "visitor": visitor})
    with FILE.open("a") as file:
        file.write(f"\n{line}\n")


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
            try:
                _write_down(visitor, owner)
            except OSError as error:
                self.log.error("%s does not enter the server of %s: %s: %s", visitor, owner, FILE, error)
                text = (
                    "Nobody can write your visit down, so you do not enter. See the hub's log; make room on its volume."
                )
                raise web.HTTPError(503, text) from error
            self.log.warning("%s enters the server of %s from %s", visitor, owner, self.request.remote_ip)
        super().send_oauth_response(headers, body, status)


def configure(config: Any) -> None:
    """Let the hub's pages ask who was there."""
    config.JupyterHub.template_vars.update({"server_visits": visits})
