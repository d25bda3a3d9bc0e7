"""What the state of etcd's members is called, and what the verbs print and end with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from provisioner import etcd, runner
from provisioner.runner import RunRequest
from tests.unit.driver.conftest import PLAY, Ansible, Checkout

pytestmark = pytest.mark.proves("etcd-status")
GIB = 1 << 30


def told(size: int, in_use: int, quota: int = 2 * GIB, alarms: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the module says of a server's member."""
    member = {"leader": False, "version": "3.6.5", "size": size, "in_use": in_use, "quota": quota}
    return {"member": member, "alarms": list(alarms), "before": size, "done": []}


@pytest.mark.parametrize(
    ("size", "in_use", "quota", "alarms", "word"),
    [
        pytest.param(GIB, GIB, 2 * GIB, (), "ok", id="half-full"),
        pytest.param(16 * GIB // 10, GIB, 2 * GIB, (), "ok", id="just-below"),
        pytest.param(17 * GIB // 10, GIB, 2 * GIB, (), "filling:", id="nearly-full"),
        pytest.param(17 * GIB // 10, GIB, 0, (), "ok", id="quota-not-told"),
        pytest.param(GIB, GIB // 4, 2 * GIB, (), "loose:", id="mostly-free"),
        pytest.param(50 << 20, 1 << 20, 2 * GIB, (), "ok", id="free-but-small"),
        pytest.param(GIB, GIB // 4, GIB, ("NOSPACE one",), "failed:", id="alarm"),
    ],
)
def test_the_worst_is_said_first(size: int, in_use: int, quota: int, alarms: tuple[str, ...], word: str) -> None:
    (member,) = etcd.members({"one": told(size, in_use, quota, alarms)})
    assert member.verdict.split()[0] == word


def test_an_alarm_that_a_later_turn_has_ended_is_over_for_all() -> None:
    report = {"b": told(9, 9, alarms=("NOSPACE b",)), "a": told(9, 9)}
    assert [(one.server, one.verdict) for one in etcd.members(report)] == [("a", "ok"), ("b", "ok")]


@pytest.mark.parametrize(
    ("verb", "calls"), [("status", ["etcd_status"]), ("defrag", ["lock", "etcd_defrag", "unlock"])]
)
def test_only_what_changes_something_is_known_to_the_servers(
    checkout: Checkout, ansible: Ansible, monkeypatch: pytest.MonkeyPatch, verb: str, calls: list[str]
) -> None:
    directory = checkout.root / "playbooks/operations"
    directory.mkdir()
    (directory / f"etcd_{verb}.yml").write_text(PLAY.format(hosts="rke2_server", more=""), encoding="utf-8")

    def run(request: RunRequest, *others: object) -> runner.RunResult:
        report = {"alpha": told(GIB, GIB // 4) | {"done": ["defragmented"]}}
        Path(request.extra_vars["provision_report_file"]).write_text(json.dumps(report), encoding="utf-8")
        return ansible(request, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run", run)
    shown = checkout.document("etcd", verb, "--site", "here")
    assert (shown["exit_code"], shown["verb"], ansible.ran) == (0, f"etcd-{verb}", [calls])
    assert shown["servers"]["alpha"]["verdict"].startswith("loose:")
    printed = checkout.run("etcd", verb, "--site", "here").stdout
    assert "alpha: defragmented" in printed
    assert ("provision.py etcd defrag --site here" in printed) is (verb == "status")
