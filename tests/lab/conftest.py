"""The fixture `lab`: the running six nodes."""

from __future__ import annotations

import subprocess

import pytest

from tests.lab.running import Lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that make a cluster of bare machines."""
    items.sort(key=lambda item: item.path.name != "test_first_deploy.py")


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab, which `make lab` has brought up."""
    running = subprocess.run(
        ["docker", "ps", "--format", "{{.Names}}"], capture_output=True, text=True, check=True
    ).stdout.split()
    absent = sorted(set(Lab.machines) - set(running))
    if absent:
        pytest.fail(f"the lab is not up ({', '.join(absent)} missing); run: make lab", pytrace=False)
    return Lab()
