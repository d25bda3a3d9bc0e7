"""Whether, and to whom, etcd's leadership is handed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from plugins.module_utils.etcd_gateway import Gateway, Silent, successors
from plugins.modules import etcd_leader

pytestmark = pytest.mark.proves("upgrade-handover")

MEMBERS = [
    {"ID": "1", "name": "a-5c0f"},
    {"ID": "2", "name": "b-77aa"},
    {"ID": "3", "name": "c"},
    {"ID": "4", "name": "new", "isLearner": True},
]


def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    leader: str,
    deaf: tuple[str, ...] = (),
    **arguments: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the module on the machine of member 1; return its result and what was asked of etcd."""
    asked: list[dict[str, Any]] = []

    class Etcd(Gateway):
        def __init__(self, data_dir: str) -> None:
            if data_dir == "/none":
                raise Silent("no certificate")

        def ask(self, path: str, seconds: float = 10, **body: Any) -> dict[str, Any]:
            assert seconds > 0
            if path == "maintenance/transfer-leadership":
                asked.append(body)
                if body["targetID"] in deaf:
                    raise Silent("timed out")
            answers: dict[str, dict[str, Any]] = {
                "cluster/member/list": {"members": MEMBERS},
                "maintenance/alarm": {"alarms": [{"memberID": "2", "alarm": "NOSPACE"}]},
                "maintenance/status": {"header": {"member_id": "1"}, "leader": leader},
            }
            return answers.get(path, {})

    monkeypatch.setattr(etcd_leader, "Gateway", Etcd)
    with patch_module_args(arguments), pytest.raises(SystemExit):
        etcd_leader.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result, asked


def test_a_leader_hands_over_to_a_voter_that_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result, asked = run(monkeypatch, capsys, "1", prefer=["c"])
    assert (result["changed"], result["leader"], asked) == (True, "c", [{"targetID": "3"}])
    result, asked = run(monkeypatch, capsys, "1", prefer=["b", "c"])
    assert (result["leader"], asked) == ("b-77aa", [{"targetID": "2"}])


def test_a_voter_that_does_not_take_it_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result, asked = run(monkeypatch, capsys, "1", deaf=("3",), prefer=["c"])
    assert (result["leader"], asked) == ("b-77aa", [{"targetID": "3"}, {"targetID": "2"}])
    result, _ = run(monkeypatch, capsys, "1", deaf=("2", "3"))
    assert (result["changed"], result["leader"]) == (False, "")


def test_who_does_not_lead_hands_nothing_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result, asked = run(monkeypatch, capsys, "3")
    assert (result["changed"], result["leader"], asked) == (False, "c", [])
    assert result["alarms"] == ["b-77aa NOSPACE"]


def test_check_mode_moves_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    result, asked = run(monkeypatch, capsys, "1", _ansible_check_mode=True)
    assert (result["changed"], asked) == (True, [])


def test_an_etcd_that_does_not_answer_costs_seconds_and_no_upgrade(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = run(monkeypatch, capsys, "1", data_dir="/none")
    assert (result["changed"], result["leader"]) == (False, "")


@pytest.mark.parametrize(
    "members",
    [
        pytest.param(MEMBERS[:1], id="the-only-one"),
        pytest.param([MEMBERS[0], MEMBERS[3]], id="beside-a-learner"),
    ],
)
def test_without_another_voter_nobody_can_lead(members: list[dict[str, Any]]) -> None:
    assert successors(members, "1", []) == []
