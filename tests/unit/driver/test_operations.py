"""An operation is a run like any other: locked, noted, and answered with what its playbook reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provisioner import journal as log
from provisioner import project, runner
from provisioner.errors import ExitCode
from provisioner.execution import Outcome
from provisioner.launch import operate
from provisioner.plan import Request
from provisioner.runner import RunRequest
from tests.unit.driver.conftest import PLAY, Ansible, Checkout


def _operate(checkout: Checkout, request: Request) -> Outcome:
    directory = checkout.root / "playbooks/operations"
    directory.mkdir(exist_ok=True)
    (directory / "look.yml").write_text(PLAY.format(hosts="rke2_server", more=""), encoding="utf-8")
    return operate(request, "here", playbook="look", why="asked for", then="again", as_json=True, verbosity=0)


def _reports(ansible: Ansible, monkeypatch: pytest.MonkeyPatch, report: object) -> None:
    def run(request: RunRequest, *others: object) -> runner.RunResult:
        Path(request.extra_vars["provision_report_file"]).write_text(json.dumps(report), encoding="utf-8")
        return ansible(request, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run", run)


@pytest.mark.proves("driver-operations")
def test_an_operation_that_changes_holds_the_servers_locks_and_returns_its_report(
    checkout: Checkout, ansible: Ansible, monkeypatch: pytest.MonkeyPatch
) -> None:
    _reports(ansible, monkeypatch, {"seen": 3})
    outcome = _operate(checkout, Request("look-closely", variables={"depth": 2}))
    assert (outcome.exit_code, outcome.report) == (ExitCode.DONE, {"seen": 3})
    assert ansible.ran == [["lock", "look", "unlock"]]
    assert ansible.calls[0].extra_vars["depth"] == 2
    assert set(ansible.calls[0].extra_vars) == {
        "depth",
        "provision_lock",
        "provision_report_file",
        "provision_stop_file",
    }
    (run,) = log.runs(project.find().site("here").journal, "look-closely")
    assert run.started.request.variables == {"depth": 2}


@pytest.mark.proves("driver-operations")
def test_an_operation_that_looks_takes_no_lock_of_the_servers(checkout: Checkout, ansible: Ansible) -> None:
    assert _operate(checkout, Request("look", looks=True)).report is None
    assert ansible.ran == [["look"]]


@pytest.mark.proves("driver-operations")
def test_a_failed_operation_ends_with_the_command_to_type(
    checkout: Checkout, ansible: Ansible, capsys: pytest.CaptureFixture[str]
) -> None:
    ansible.failures["look"] = ("alpha", "it is broken")
    assert _operate(checkout, Request("look", looks=True)).exit_code == ExitCode.FAILED
    assert capsys.readouterr().err.splitlines()[-2:] == ["error: alpha | Do it: it is broken", "  -> again"]


@pytest.mark.proves("driver-operations")
def test_the_runs_of_a_verb_are_not_those_of_an_operation_whose_name_ends_alike(
    checkout: Checkout, ansible: Ansible
) -> None:
    _operate(checkout, Request("look-verify", looks=True))
    assert log.runs(checkout.journal, "verify") == []
    assert log.verbs(checkout.journal) == ("look-verify",)
