"""Profiles are shown to those who may use them, and started for nobody else.

The chart hands the profiles over as data, each with the groups that may use it (`allowed_groups`). The hub asks for
the list twice: to show it, and again when a server starts. So a request made by hand gets no further than the form,
and what no profile lists is refused before anything is made.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from metalhub_capacity import Capacity
from tornado import web

Profile = dict[str, Any]


class Refused(web.HTTPError):  # type: ignore[misc]  # (tornado publishes no types here)
    """No, with a reason that users read wherever the hub tells them that their server did not start."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.jupyterhub_message = reason


def permitted(profiles: Iterable[Profile], groups: Iterable[str]) -> list[Profile]:
    """Return copies of the profiles open to one of `groups`; one that names no group is open to nobody."""
    mine = set(groups)
    return [copy.deepcopy(profile) for profile in profiles if mine & set(profile.get("allowed_groups") or ())]


def groups_of(spawner: Any) -> list[str]:
    """Return the groups of the one whose server it is, whoever starts it."""
    return [str(group.name) for group in spawner.user.groups]


class Profiles:
    """The site's profiles as the hub asks for them, for members of the groups that may log in."""

    def __init__(self, profiles: Iterable[Profile], members: Iterable[str]) -> None:
        self.profiles = list(profiles)
        self.members = set(members)
        self.capacity = Capacity()

    def of(self, spawner: Any) -> list[Profile]:
        """Return the profiles for the owner of a server.

        An empty list would mean a server with the chart's own settings, so whoever has no profile is refused.
        """
        groups = groups_of(spawner)
        # Who may no longer log in may still be logged in, and in groups that profiles name.
        found = permitted(self.profiles, groups) if self.members & set(groups) else []
        if not found:
            text = "None of your groups may start a server. Ask the administrators for membership, then log in again."
            raise Refused(403, text)
        return found

    async def form(self, spawner: Any) -> str:
        """Return the page's choice of profiles, with what is free for each."""
        return str(spawner._render_options_form(await self.capacity.told(spawner.api, self.of(spawner))))

    def check(self, spawner: Any) -> None:
        """Refuse what is not on the list of the server's owner, with a reason instead of an error.

        KubeSpawner takes no notice of keys it does not know, but a request that has some is no request of ours.
        """
        found = {profile["slug"]: profile for profile in self.of(spawner)}
        wanted = dict(spawner.user_options or {})
        default = next((slug for slug, profile in found.items() if profile.get("default")), next(iter(found)))
        slug = wanted.pop("profile", None) or default
        if not isinstance(slug, str) or slug not in found:
            raise Refused(403, f"This profile is not open to your groups. These are: {', '.join(found)}")
        options = found[slug].get("profile_options") or {}
        for name, choice in wanted.items():
            if name not in options:
                raise Refused(403, f"The profile {slug} has nothing to choose of that name. It has: {_listed(options)}")
            choices = options[name]["choices"]
            if not isinstance(choice, str) or choice not in choices:
                raise Refused(403, f"The profile {slug} has no such {name}. There are: {_listed(choices)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def configure(config: Any) -> None:
    """Put the filter in the place of the list that the chart has set.

    config: the hub's configuration, its KubeSpawner.profile_list being a list.
    """
    profiles = Profiles(config.KubeSpawner.profile_list, config.GenericOAuthenticator.allowed_groups)
    config.KubeSpawner.profile_list = profiles.of
    config.KubeSpawner.options_form = profiles.form
    config.KubeSpawner.pre_spawn_hook = profiles.check
