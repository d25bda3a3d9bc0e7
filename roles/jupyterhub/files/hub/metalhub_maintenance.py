"""Users whose server is on a machine that is about to be emptied read so on every page of the hub.

Work on a machine begins with a mark on its node, which says what happens to users' servers. A page is shown without
the notice rather than late.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator
from typing import Any

from metalhub_capacity import Look

MARK = "metalhub.io/cordoned-by"
NODES = Look("list_node")


def sentence(mark: str, now: float) -> str:
    """Return what happens to a server on a node with this mark; empty if nothing does."""
    try:
        said = json.loads(mark)
        policy, until = said.get("policy", "wait"), float(said.get("until", 0))
    except (AttributeError, TypeError, ValueError):
        policy, until = "wait", 0.0  # written by hand
    elsewhere = "The next one that you start has the same home and runs on another machine."
    if policy == "wait":
        return f"The machine of your server needs work. Please stop your server when your work is saved. {elsewhere}"
    if policy == "evict":
        minutes = max(1, math.ceil((until - now) / 60))
        soon = f"{minutes} minute{'s' if minutes > 1 else ''}"
        return f"The machine of your server needs work. Your server ends within {soon}: save your work now. {elsewhere}"
    return ""


def places(user: Any) -> dict[str, Any]:
    """Return the nodes that somebody's servers run on, each with how to ask the cluster; nobody has none."""
    found = {}
    for spawner in getattr(user, "spawners", {}).values():
        watched = spawner.pod_reflector if spawner.active else None
        pod = watched.pods.get(f"{spawner.namespace}/{spawner.pod_name}", {}) if watched else {}
        if node := pod.get("spec", {}).get("nodeName"):
            found[node] = spawner.api
    return found


class Notice:
    """What a page asks for and waits for; a page that cannot wait, which errors have, takes it for nothing."""

    def __init__(self, user: Any) -> None:
        self.user = user

    def __bool__(self) -> bool:
        return False

    def __await__(self) -> Generator[Any, None, str]:
        return self._told().__await__()

    async def _told(self) -> str:
        for name, api in places(self.user).items():
            for node in (await NODES.now(api) or [[]])[0]:
                notes = node["metadata"].get("annotations") or {}
                if node["metadata"]["name"] == name and MARK in notes:
                    return sentence(notes[MARK], time.time())
        return ""


def notice(user: Any) -> Callable[[], Notice]:
    """Return what a page calls to learn what its user has to know."""
    return lambda: Notice(user)


def configure(config: Any) -> None:
    """Let the hub's pages ask."""
    config.JupyterHub.template_vars.update({"maintenance": notice})
