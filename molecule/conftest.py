"""What the tests of several scenarios need: the machines, and the scenario's playbook once more."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

Converge = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def inventory() -> Path:
    """Return the inventory that molecule has written for the scenario."""
    return Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"


@pytest.fixture(scope="session")
def machines(inventory: Path) -> dict[str, Host]:
    """Return the scenario's machines by name."""
    found = testinfra.get_hosts(["ansible://rke2"], ansible_inventory=str(inventory))
    return {host.backend.host: host for host in found}


@pytest.fixture(scope="session")
def converge(inventory: Path) -> Converge:
    """Return what runs the scenario's converge.yml with more arguments; its output is told whether it fails or not."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        playbook = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml"
        command = ["ansible-playbook", "--inventory", str(inventory), *words, str(playbook)]
        # Molecule asks for colours, also where a program reads.
        plain = os.environ | {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}
        return subprocess.run(command, env=plain, capture_output=True, text=True, check=False, timeout=300)

    return run
