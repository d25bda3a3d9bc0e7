"""What stands in the way of the lab is found before anything is built, each finding with its fix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import checks
from build import STATE

FINE = checks.Machine(
    routes=[("10.0.0.0/8", "eth0"), ("198.18.101.0/24", "metalhub-lab")],
    networks={"bridge": "172.17.0.0/16", "metalhub-lab": "198.18.101.0/24"},
    containers={"node1": str(STATE), "other": None},
    missing=[],
    controllers=["cpu", "memory", "pids"],
    free={"/cache": 30.0},
    memory=8.0,
    built=False,
    runs=False,
)
# What is different -> what is told, and what to type or do about it.
FINDINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a route": (
        {"routes": [("198.18.101.128/25", "tun0")]},
        "tun0 has the network 198.18.101.128/25, the lab's is 198.18.101.0/24",
        "take it away from tun0",
    ),
    "another network": (
        {"networks": {"shop": "198.18.0.0/16"}},
        "Docker's network shop has 198.18.0.0/16, the lab's is 198.18.101.0/24",
        "docker network rm shop",
    ),
    "the lab's network elsewhere": (
        {"networks": {"metalhub-lab": "198.18.7.0/24"}},
        "the network metalhub-lab has 198.18.7.0/24 and the site wants 198.18.101.0/24",
        "make lab-down",
    ),
    "a stranger's container": (
        {"containers": {"node1": None}},
        "a container that is not the lab's is called node1",
        "docker rename node1 node1-other",
    ),
    "another lab's container": (
        {"containers": {"node1": "/elsewhere"}},
        "node1 belongs to the lab whose state is in /elsewhere",
        "make lab-down",
    ),
    "a kernel feature": (
        {"missing": ["vxlan"]},
        "the kernel lacks vxlan (/sys/module/vxlan is not there)",
        "modprobe vxlan",
    ),
    "a controller": (
        {"controllers": ["cpu", "pids"]},
        "the cgroup controller memory is off",
        "remove cgroup_disable=memory",
    ),
    "disk for a build": ({"free": {"/cache": 20.0}}, "/cache has 20 GiB free, 25 are needed", "make room"),
    "disk": ({"built": True, "free": {"/state": 7.0}}, "/state has 7 GiB free, 8 are needed", "XDG_STATE_HOME"),
    "memory": ({"memory": 5.5}, "5.5 GiB of memory can be had, 6 are needed", "end other programs"),
}


def told(machine: checks.Machine) -> list[str]:
    """The findings for a lab of one node."""
    return checks.findings(machine, ["node1"], "metalhub-lab", "198.18.101.0/24")


@pytest.mark.proves("lab-findings")
def test_nothing_stands_in_the_way_of_a_fit_machine() -> None:
    assert told(FINE) == []
    assert told(replace(FINE, built=True, free={"/cache": 9.0})) == [], "what is built needs less disk"
    assert told(replace(FINE, runs=True, memory=1.0)) == [], "nodes that run have their memory already"


@pytest.mark.proves("lab-findings")
@pytest.mark.parametrize(("change", "what", "fix"), FINDINGS.values(), ids=FINDINGS)
def test_what_stands_in_the_way_is_told_with_its_fix(change: dict[str, Any], what: str, fix: str) -> None:
    found = told(replace(FINE, **change))
    assert len(found) == 1
    finding, _, remedy = found[0].partition(": ")
    assert finding == what
    assert fix in remedy


@pytest.mark.proves("lab-findings")
def test_everything_is_told_at_once() -> None:
    changes: dict[str, Any] = {}
    for change, _, _ in FINDINGS.values():
        changes |= change
    found = told(replace(FINE, **(changes | {"built": True, "free": {"/cache": 1.0}})))
    assert len(found) == 7


@pytest.mark.proves("lab-findings")
def test_a_look_at_this_machine_has_something_to_say_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        """A container engine with one network and no container."""

        class containers:  # noqa: N801
            """Its containers."""

            @staticmethod
            def list(**_: object) -> list[object]:
                """No container runs."""
                return []

        class networks:  # noqa: N801
            """Its networks."""

            @staticmethod
            def list() -> list[object]:
                """One network, with a subnet."""
                attrs = {"IPAM": {"Config": [{"Subnet": "172.17.0.0/16"}]}}
                return [type("Network", (), {"name": "bridge", "attrs": attrs})()]

        @staticmethod
        def info() -> dict[str, str]:
            """Where images lie."""
            return {"DockerRootDir": "/"}

    monkeypatch.setattr("docker.from_env", Engine)
    monkeypatch.setattr("shutil.which", lambda _: None)  # no kernel module is loaded
    machine = checks.look()
    assert machine.networks == {"bridge": "172.17.0.0/16"}
    assert machine.memory > 0 and all(free > 0 for free in machine.free.values())
    assert not machine.runs and "cpu" in machine.controllers


@pytest.mark.proves("lab-findings")
def test_who_is_not_root_is_told_so_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="only root may make network devices and mounts; type the same command after"):
        checks.require()
