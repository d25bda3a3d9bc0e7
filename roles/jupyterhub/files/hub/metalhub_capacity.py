"""Users read how many GPUs are free before they ask for some.

A look for orientation: it is a few seconds old, it promises nothing, and a page is shown without it rather than late.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import time
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import Any

SECONDS_KEPT = 5
SECONDS_WAITED = 2
WHOLE = "nvidia.com/gpu"


@dataclass
class Machines:
    """How many of a resource the machines have that take servers, each with what is left there."""

    there: int = 0
    left: dict[str, int] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """How many are left altogether."""
        return sum(self.left.values())


def _takes_servers(node: Any) -> bool:
    ready = [one["status"] for one in node["status"].get("conditions", []) if one["type"] == "Ready"]
    return ready == ["True"] and not node["spec"].get("unschedulable")


def machines(nodes: Iterable[Any], pods: Iterable[Any], resource: str) -> Machines:
    """Count a resource as the scheduler does: what a node offers less what its pods have asked for."""
    found = Machines()
    for node in nodes:
        offered = int(node["status"].get("allocatable", {}).get(resource, 0))
        if offered and _takes_servers(node):
            found.there += offered
            found.left[node["metadata"]["name"]] = offered
    for pod in pods:
        spec = pod["spec"]
        if spec.get("nodeName") not in found.left or pod["status"].get("phase") in ("Succeeded", "Failed"):
            continue
        containers = [int(one.get("resources", {}).get("limits", {}).get(resource, 0)) for one in spec["containers"]]
        found.left[spec["nodeName"]] -= sum(containers)
    return found


def sentence(found: Machines, resource: str, count: int) -> str:
    """Return what is free, and whether it does for a server that wants so many on one machine."""
    name = "GPUs" if resource == WHOLE else resource.rpartition("/")[2]
    text = f"{max(found.free, 0)} of {found.there} {name} are free now"
    if max(found.left.values(), default=0) >= count:
        return f"{text}."
    return f"{text}; a server waits until a machine has {count} to give."


class Look:
    """What the cluster said last."""

    def __init__(self, *questions: str) -> None:
        self.questions = questions
        self.asked = float("-inf")
        self.said: list[list[Any]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Look:
        # The hub copies its settings for every server, and what was said is everybody's.
        return self

    async def _ask(self, api: Any) -> None:
        # Raw answers: the client would make thousands of objects of them while everybody waits.
        options = {"_preload_content": False, "resource_version": "0", "_request_timeout": SECONDS_WAITED}
        asked: list[Awaitable[Any]] = [getattr(api, question)(**options) for question in self.questions]
        self.said = [json.loads(await answer.read())["items"] for answer in await asyncio.gather(*asked)]

    async def now(self, api: Any) -> list[list[Any]] | None:
        """Return the answers, a few seconds old at most; None if the cluster does not give them in time."""
        now = time.monotonic()
        if now - self.asked >= SECONDS_KEPT:
            # Before the answer: who comes meanwhile reads the one before.
            self.asked = now
            try:
                await asyncio.wait_for(self._ask(api), SECONDS_WAITED)
            except Exception as error:  # noqa: BLE001  (whatever it is, the page matters more)
                self.said = None
                logging.getLogger("JupyterHub").warning("The cluster does not answer %s: %r", self.questions, error)
        return self.said


class Capacity(Look):
    """What there is of GPUs."""

    def __init__(self) -> None:
        super().__init__("list_node", "list_pod_for_all_namespaces")

    async def told(self, api: Any, profiles: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the profiles with what is free behind their descriptions; without, if the cluster does not say."""
        said = await self.now(api)
        if said is None:
            return profiles
        nodes, pods = said
        found = copy.deepcopy(profiles)
        for profile in found:
            wanted = profile.get("kubespawner_override", {}).get("extra_resource_limits", {})
            for resource, count in wanted.items():
                if count:
                    text = sentence(machines(nodes, pods, resource), resource, int(count))
                    profile["description"] = f"{profile.get('description', '')} {text}".strip()
        return found
