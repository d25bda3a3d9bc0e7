"""Runs inside a hub's own environment: what the chart hands on unread is what the hub's classes have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from jupyterhub.app import JupyterHub
from jupyterhub.crypto import CryptKeeper
from kubespawner import KubeSpawner
from oauthenticator.generic import GenericOAuthenticator

CLASSES = {found.__name__: found for found in (CryptKeeper, GenericOAuthenticator, JupyterHub, KubeSpawner)}
VALUES: dict[str, Any] = yaml.safe_load(Path(os.environ["LAB_HUB_DIRECTORY"], "secret/values.yaml").read_text())


def unknown(name: str, given: dict[str, Any]) -> set[str]:
    """Return the settings that a class has no trait for; it would take them without a word."""
    return set(given) - set(CLASSES[name].class_traits(config=True))


@pytest.mark.parametrize("name", VALUES["hub"]["config"])
def test_every_setting_of_a_class_is_one_of_its_traits(name: str) -> None:
    assert unknown(name, VALUES["hub"]["config"][name]) == set()


@pytest.mark.parametrize("profile", [pytest.param(one, id=one["slug"]) for one in VALUES["singleuser"]["profileList"]])
def test_every_override_of_a_profile_is_a_trait_of_the_spawner(profile: dict[str, Any]) -> None:
    assert unknown("KubeSpawner", profile["kubespawner_override"]) == set()


def test_a_setting_that_nobody_reads_is_found() -> None:
    assert unknown("KubeSpawner", {"delete_pvc": False, "delete_pvcs": False}) == {"delete_pvcs"}
