"""Snapshots and restores as people see them: tables, prospects, and a question before anything is done."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from provisioner import runner
from provisioner.commands.snapshot import rows, size
from provisioner.errors import ExitCode
from provisioner.restore import SHOWN, prospect
from provisioner.runner import RunRequest
from tests.unit.driver.conftest import PLAY, Ansible, Checkout

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ONE = {
    "name": "on-demand-alpha-1772359200",
    "server": "alpha",
    "created": int(NOW.timestamp()) - 7200,
    "size": 12_900_000,
    "version": "v1.35.4+rke2r1",
}
REPORT: dict[str, Any] = {
    "snapshot": ONE | {"keys": 900, "nodes": ["beta", "alpha"]},
    "holder": "alpha",
    "comparison": {"vanish": ["Secret hub/new", "home of ben"], "reappear": [], "replace": []},
    "serving": True,
    "etcdutl": True,
    "bare": [],
    "unfinished": {},
    "servers": ["alpha", "beta"],
}


DRILLED = {
    "snapshot": "metalhub-drill-alpha-1772359200",
    "host": "three",
    "etcd": "3.6.14",
    "keys": 900,
    "revision": 12345,
    "canary": "0123456789abcdef0123456789abcdef",
    "size": 12_900_000,
    "seconds": 2.4,
}


@pytest.mark.proves("snapshot-list")
def test_the_table_names_server_age_size_and_release_and_what_is_not_whole() -> None:
    older = ONE | {"name": "b", "created": 0, "version": "", "whole": False, "error": "cut off"}
    assert rows([older, ONE], NOW) == [
        ("on-demand-alpha-1772359200", "alpha", "2 h ago", "12.3 MiB", "v1.35.4+rke2r1", ""),
        ("b", "alpha", "20513 days ago", "12.3 MiB", "unknown", "failed cut off"),
    ]
    assert (size(512), size(5 * 2**30)) == ("512 B", "5.0 GiB")


@pytest.mark.proves("restore-prospect")
def test_what_would_vanish_is_named_before_anybody_says_yes() -> None:
    said = prospect(REPORT, NOW)
    assert not said.continues
    assert "taken 2 h ago (2026-03-01 10:00 UTC), v1.35.4+rke2r1, 900 keys, nodes alpha, beta" in said.lines[0]
    assert said.lines[1] == "2 would vanish, made since then: Secret hub/new, home of ben"
    assert "lost" in said.lines[-1]


@pytest.mark.proves("restore-prospect")
def test_many_names_are_counted_and_none_at_all_is_said() -> None:
    many = {"vanish": [f"Secret a/{number}" for number in range(SHOWN + 4)]}
    assert prospect(REPORT | {"comparison": many}, NOW).lines[1].endswith(f"Secret a/{SHOWN - 1} and 4 more")
    assert "would vanish or reappear" in prospect(REPORT | {"comparison": {}}, NOW).lines[1]


@pytest.mark.proves("restore-prospect")
def test_without_a_cluster_it_is_said_that_nobody_knows() -> None:
    assert "nobody knows" in prospect(REPORT | {"serving": False, "comparison": {}}, NOW).lines[1]


@pytest.mark.proves("restore-prospect")
def test_without_etcdutl_it_is_said_what_may_not_notice() -> None:
    assert "may keep what is no more" in prospect(REPORT | {"etcdutl": False}, NOW).lines[-1]


@pytest.mark.proves("restore-prospect")
def test_new_machines_without_rke2_are_named() -> None:
    assert "(beta) are left out; the next deploy" in " ".join(prospect(REPORT | {"bare": ["beta"]}, NOW).lines)


@pytest.mark.proves("restore-continues")
def test_a_restore_that_was_begun_is_continued_even_if_its_snapshot_is_gone() -> None:
    begun = {"snapshot": "x", "holder": "alpha", "started": int(NOW.timestamp()) - 300}
    said = prospect(REPORT | {"unfinished": begun, "snapshot": {}}, NOW)
    assert said.continues
    assert said.lines == ("continues the restore of x that was begun 5 min ago",)


@pytest.fixture
def operations(checkout: Checkout, ansible: Ansible, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The playbooks of both verbs; returns the variables of each call, and answers as the servers would."""
    directory = checkout.root / "playbooks/operations"
    directory.mkdir()
    for name in ("etcd_snapshot", "etcd_restore", "etcd_fetch", "etcd_push", "etcd_drill"):
        (directory / f"{name}.yml").write_text(PLAY.format(hosts="rke2_server", more=""), encoding="utf-8")
    calls: list[dict[str, Any]] = []

    def run(request: RunRequest, *others: object) -> runner.RunResult:
        told = dict(request.extra_vars)
        calls.append(told)
        report: Any = REPORT if "rke2_restore_snapshot" in told else [ONE | {"path": "/there/one.vault"}]
        report = DRILLED if "rke2_drill_snapshot" in told else report
        Path(told["provision_report_file"]).write_text(json.dumps(report), encoding="utf-8")
        return ansible(request, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run", run)
    return calls


@pytest.mark.proves("snapshot-list")
def test_a_list_changes_nothing_and_a_save_is_known_to_the_servers(
    checkout: Checkout, ansible: Ansible, operations: list[dict[str, Any]]
) -> None:
    document = checkout.document("snapshot", "list", "--site", "here")
    assert (document["result"], [one["name"] for one in document["snapshots"]]) == ("ok", [ONE["name"]])
    assert ansible.ran == [["etcd_snapshot"]]
    assert checkout.run("snapshot", "save", "--site", "here", "--name", "before-work").exit_code == 0
    assert ansible.ran[1] == ["lock", "etcd_snapshot", "unlock"]
    assert operations[1]["rke2_snapshot_name"] == "before-work"
    assert "12.3 MiB" in checkout.run("snapshot", "prune", "--site", "here", "--keep", "2", "--days", "7").stdout
    assert (operations[2]["rke2_snapshot_keep"], operations[2]["rke2_snapshot_days"]) == (2, 7)


@pytest.mark.proves("restore-asks")
@pytest.mark.parametrize("said", [(), ("--confirm", "there")], ids=["nothing", "another site"])
def test_without_the_sites_name_nothing_is_restored(
    checkout: Checkout, ansible: Ansible, operations: list[dict[str, Any]], said: tuple[str, ...]
) -> None:
    done = checkout.run("restore", "one", "--site", "here", *said)
    assert done.exit_code == ExitCode.USAGE
    assert ansible.ran == [["etcd_restore"]]
    assert "would vanish" in done.stdout
    assert "restore one --site here --confirm here" in done.stderr


@pytest.mark.proves("restore-asks")
def test_with_the_sites_name_it_is_shown_and_done(
    checkout: Checkout, ansible: Ansible, operations: list[dict[str, Any]]
) -> None:
    done = checkout.run("restore", "one", "--site", "here", "--confirm", "here")
    assert done.exit_code == 0, done.stderr
    assert ansible.ran == [["etcd_restore"], ["lock", "etcd_restore", "unlock"]]
    assert "rke2_restore_confirm" not in operations[0]
    assert operations[1]["rke2_restore_confirm"] == "here"


@pytest.mark.proves("restore-prospect")
def test_the_deploy_by_which_new_machines_join_is_what_comes_next(
    checkout: Checkout, ansible: Ansible, operations: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("restore", "one", "--site", "here", "--confirm", "here")
    assert checkout.document(*words)["next"] is None
    monkeypatch.setitem(REPORT, "bare", ["beta"])
    assert checkout.document(*words)["next"].endswith("provision.py deploy --site here")


@pytest.mark.proves("restore-asks")
def test_a_plan_asks_nothing_and_a_refusal_is_told_with_the_way_on(
    checkout: Checkout, ansible: Ansible, operations: list[dict[str, Any]]
) -> None:
    assert checkout.document("restore", "one", "--site", "here", "--plan-only")["plan"] == REPORT
    ansible.failures["etcd_restore"] = ("alpha", "there is none of this name")
    done = checkout.run("restore", "one", "--site", "here", "--confirm", "here")
    assert done.exit_code == ExitCode.FAILED
    assert len(operations) == 2
    assert "there is none of this name" in done.stderr


@pytest.mark.proves("snapshot-fetch")
def test_what_was_fetched_is_told_with_its_place(
    checkout: Checkout, ansible: Ansible, operations: list[dict[str, Any]], tmp_path: Path
) -> None:
    done = checkout.run("snapshot", "fetch", "--site", "here", "one", "--to", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    assert "/there/one.vault is on-demand-alpha-1772359200 of alpha" in done.stdout
    assert operations[0]["rke2_fetch_snapshot"] == "one"
    assert operations[0]["rke2_fetch_directory"] == str(tmp_path)
    checkout.run("snapshot", "fetch", "--site", "here")
    assert "rke2_fetch_directory" not in operations[1]


@pytest.mark.proves("snapshot-push")
def test_what_was_fetched_is_brought_back_by_its_name(
    checkout: Checkout, ansible: Ansible, operations: list[dict[str, Any]], tmp_path: Path
) -> None:
    done = checkout.run("snapshot", "push", "one", "--site", "here", "--from", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    assert ansible.ran == [["lock", "etcd_push", "unlock"]]
    assert (operations[0]["rke2_fetch_snapshot"], operations[0]["rke2_fetch_directory"]) == ("one", str(tmp_path))


@pytest.mark.proves("restore-drill-asks")
def test_a_drill_says_what_it_read_and_takes_a_fetched_snapshot_too(
    checkout: Checkout, ansible: Ansible, operations: list[dict[str, Any]], tmp_path: Path
) -> None:
    done = checkout.run("snapshot", "verify", "--drill", "--site", "here")
    assert done.exit_code == 0, done.stderr
    assert ansible.ran == [["lock", "etcd_drill", "unlock"]]
    assert operations[0]["rke2_drill_snapshot"] == ""
    assert "restored on three by etcd 3.6.14: 900 keys at revision 12345, canary 01234567 is there" in " ".join(
        done.stdout.split()
    )
    document = checkout.document("snapshot", "verify", "mine", "--drill", "--from", str(tmp_path), "--site", "here")
    assert document["drill"] == DRILLED
    assert operations[1]["rke2_drill_snapshot"] == "mine"
    assert operations[1]["rke2_fetch_directory"] == str(tmp_path)


@pytest.mark.proves("restore-drill-asks")
def test_a_snapshot_without_drill_is_refused_with_the_right_command(checkout: Checkout, ansible: Ansible) -> None:
    done = checkout.run("snapshot", "verify", "mine", "--site", "here")
    assert done.exit_code == ExitCode.USAGE
    assert "snapshot verify mine --drill --site here" in done.stderr
    assert not ansible.ran
