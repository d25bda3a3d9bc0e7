"""Rotation: what the ends of certificates mean, and which playbook a verb runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner import rotation, runner
from provisioner.runner import RunRequest
from tests.unit.driver.conftest import PLAY, Ansible, Checkout

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = 86400


def _report(**machines: Mapping[str, float]) -> dict[str, Any]:
    """Return a report: machine -> file -> days left."""
    return {
        name: {file: {"expires": int(NOW.timestamp() + days * DAY), "age": 60} for file, days in files.items()}
        for name, files in machines.items()
    }


@pytest.mark.proves("rotate-plan")
def test_the_most_urgent_machine_and_its_first_certificate_come_first() -> None:
    found = rotation.soonest(_report(one={"a": 300, "b": 200}, two={"a": 10}, three={}), NOW)
    assert [(one.machine, one.file, one.days) for one in found] == [("two", "a", 10), ("one", "b", 200)]
    assert found[0].made == NOW - timedelta(seconds=60)


@pytest.mark.proves("rotate-plan")
@pytest.mark.parametrize(
    ("days", "told"),
    [
        (-0.5, "expired"),
        (0.5, "renewed by its next restart"),
        (119.5, "renewed by its next restart"),
        (120.5, "valid"),
    ],
)
def test_what_is_left_is_said_in_words(days: float, told: str) -> None:
    (one,) = rotation.soonest(_report(one={"a": days}), NOW)
    assert one.told == told


@pytest.mark.proves("rotate-plan")
@given(st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.sampled_from("xyz"), st.integers(-400, 4000))))
def test_no_certificate_of_a_machine_ends_before_the_one_that_is_shown(machines: dict[str, dict[str, int]]) -> None:
    report = _report(**{name: dict(files) for name, files in machines.items()})
    shown = rotation.document(report, NOW)
    assert set(shown) == {name for name, files in machines.items() if files}
    for about in shown.values():
        assert about["expires"] == min(about["files"].values()) == about["files"][about["file"]]
    assert list(shown) == sorted(shown, key=lambda name: (shown[name]["expires"], name))


def _operations(checkout: Checkout, *names: str) -> None:
    directory = checkout.root / "playbooks/operations"
    directory.mkdir()
    for name in names:
        (directory / f"{name}.yml").write_text(PLAY.format(hosts="rke2_server", more=""), encoding="utf-8")


@pytest.mark.proves("rotate-plan")
def test_plan_only_shows_what_was_read_and_locks_no_server(
    checkout: Checkout, ansible: Ansible, monkeypatch: pytest.MonkeyPatch
) -> None:
    _operations(checkout, "certificate_expiry")
    report = _report(alpha={"/tls/a.crt": 10000})

    def run(request: RunRequest, *others: object) -> runner.RunResult:
        Path(request.extra_vars["provision_report_file"]).write_text(json.dumps(report), encoding="utf-8")
        return ansible(request, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run", run)
    shown = checkout.document("rotate", "certificates", "--site", "here", "--plan-only")
    assert (shown["exit_code"], shown["machines"]["alpha"]["file"]) == (0, "/tls/a.crt")
    assert ansible.ran == [["certificate_expiry"]]
    assert "/tls/a.crt" in checkout.run("rotate", "certificates", "--site", "here", "--plan-only").stdout


@pytest.mark.proves("driver-status")
def test_status_tells_which_certificate_ends_first_and_how_old_that_is(
    checkout: Checkout, ansible: Ansible, monkeypatch: pytest.MonkeyPatch
) -> None:
    _operations(checkout, "certificate_expiry", "rotate_certificates")
    status, look = ("status", "--site", "here"), ("rotate", "certificates", "--site", "here", "--plan-only")
    soon = int(datetime.now(UTC).timestamp()) + 40 * 86400 + 60
    report = {"alpha": {"/tls/a.crt": {"expires": soon, "age": 5}}, "beta": {"/b.crt": {"expires": soon + 9, "age": 5}}}

    def run(request: RunRequest, *others: object) -> runner.RunResult:
        Path(request.extra_vars["provision_report_file"]).write_text(json.dumps(report), encoding="utf-8")
        return ansible(request, *others)  # type: ignore[arg-type]

    assert checkout.document(*status)["expiry"] is None
    assert "certificates" not in checkout.run(*status).stdout, "nothing was ever run"
    monkeypatch.setattr(runner, "run", run)
    checkout.run(*look, "--limit", "beta")
    assert "rotate certificates --plan-only --site here" in checkout.run(*status).stdout, "only some were looked at"
    checkout.run(*look)
    known = checkout.document(*status)["expiry"]
    assert (known["machine"], known["file"]) == ("alpha", "/tls/a.crt")
    assert datetime.fromisoformat(known["expires"]).timestamp() == soon
    text = checkout.run(*status).stdout
    assert f"certificates: the first ends {known['expires'][:10]} (in 40 days) on alpha, read 0 s ago" in text
    monkeypatch.setattr(runner, "run", ansible)
    ansible.changes = {"rotate_certificates"}
    checkout.run("rotate", "certificates", "--site", "here")
    assert checkout.document(*status)["expiry"] is None, "it tells of certificates that are no more"


@pytest.mark.parametrize("word", ["certificates", "token", "agent-token", "keepalived-password", "encryption-keys"])
@pytest.mark.proves("driver-operations")
def test_a_rotation_that_fails_ends_with_its_own_command(checkout: Checkout, ansible: Ansible, word: str) -> None:
    name = f"rotate_{word.replace('-', '_')}"
    _operations(checkout, name)
    ansible.failures[name] = ("alpha", "it is broken")
    done = checkout.document("rotate", word, "--site", "here")
    assert (done["result"], done["exit_code"], done["failures"][0]["host"]) == ("failed", 1, "alpha")
    assert done["next"].endswith(f"provision.py rotate {word} --site here")
    assert ansible.stages == [[name], []]
