"""Machines that come and go: who may leave, what is typed, what a check finds, what others are told."""

from __future__ import annotations

import base64
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.filter import rke2_quorum
from provisioner import journal as log
from provisioner import machines, runner, support
from provisioner.errors import ExitCode, ProvisionError
from provisioner.runner import RunRequest
from tests.unit.driver.conftest import PLAY, Ansible, Checkout

GROUPS = {"rke2": ("one", "two", "three", "worker"), "rke2_server": ("one", "two", "three"), "rke2_agent": ("worker",)}
SITE = """---
all:
  vars: {vault_site_one: first-of-the-vault, ansible_connection: local}
  children:
    rke2:
      children:
        rke2_server: {hosts: {alpha: , beta: }}
        rke2_agent: {hosts: {one: , two: }}
"""


def node(name: str, ready: str = "True", votes: str = "", **status: Any) -> dict[str, Any]:
    """Return a node as the API gives it."""
    conditions = [{"type": "Ready", "status": ready}]
    conditions += [{"type": "EtcdIsVoter", "status": votes}] if votes else []
    return {"metadata": {"name": name}, "status": {"conditions": conditions} | status}


# Who may leave


@pytest.mark.proves("machines-quorum")
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_whoever_may_leave_leaves_more_than_half_of_all_voters_healthy(healthy: list[bool], data: Any) -> None:
    nodes = [node(f"s{i}", "True" if well else "Unknown", "True") for i, well in enumerate(healthy)]
    leaving = data.draw(st.integers(0, len(healthy) - 1))
    left = sum(healthy) - healthy[leaving]
    faults = rke2_quorum.rke2_quorum_faults([*nodes, node("worker", "False")], f"s{leaving}")
    assert (faults == []) == (left > len(healthy) / 2)
    assert rke2_quorum.rke2_quorum_faults(nodes, "worker") == []


@pytest.mark.proves("machines-quorum")
def test_a_refusal_has_the_numbers_and_the_server_to_bring_back() -> None:
    nodes = [node("one", votes="True"), node("two", "Unknown", "True"), node("three", votes="True")]
    (told,) = rke2_quorum.rke2_quorum_faults(nodes, "one")
    assert "of 3 voters in etcd 2 are healthy (one, three), without one it would be 1, and 2 are needed" in told
    assert told.endswith("Bring two back first")
    assert rke2_quorum.rke2_quorum_faults(nodes, "two") == []
    (alone,) = rke2_quorum.rke2_quorum_faults([node("one", votes="True")], "one")
    assert alone.endswith("Add another server first")


@pytest.mark.proves("machines-quorum")
def test_nobody_leaves_while_another_is_on_its_way_into_etcd() -> None:
    nodes = [node(name, votes="True") for name in ("one", "two", "three", "four")] + [node("new", votes="False")]
    assert "new is on its way" in rke2_quorum.rke2_quorum_faults(nodes, "one")[0]
    assert rke2_quorum.rke2_quorum_faults(nodes, "new") == []


@pytest.mark.proves("machines-volumes")
def test_volumes_on_a_machines_own_disk_are_told_by_their_claims() -> None:
    def volume(name: str, hosts: list[str] | None, claim: str = "") -> dict[str, Any]:
        rules = [{"key": "kubernetes.io/hostname", "operator": "In", "values": hosts}]
        affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": rules}]}} if hosts else None
        reference = {"namespace": "auth", "name": claim} if claim else None
        return {"metadata": {"name": name}, "spec": {"nodeAffinity": affinity, "claimRef": reference}}

    volumes = [volume("a", ["one"], "database"), volume("b", ["two"]), volume("c", None, "home"), volume("d", ["one"])]
    assert rke2_quorum.rke2_local_volumes(volumes, "one") == ["auth/database", "d"]
    assert rke2_quorum.rke2_local_volumes(volumes, "three") == []


# What is typed


def test_machines_are_taken_in_the_inventorys_order_and_an_unknown_one_is_refused() -> None:
    assert machines.known(["worker", "one"], GROUPS) == ("one", "worker")
    with pytest.raises(ProvisionError, match=r"no machine .thre.*three"):
        machines.known(["thre"], GROUPS)


@pytest.mark.proves("machines-add")
def test_a_new_worker_is_deployed_alone_and_a_new_server_with_all() -> None:
    assert machines.limit_of_new(["worker"], ["worker"]) == "worker,localhost"
    assert machines.limit_of_new(["worker", "one"], ["worker"]) is None


@pytest.fixture
def site(checkout: Checkout) -> Checkout:
    """A checkout whose inventory has machines, and whose operations exist."""
    (checkout.root / "inventories/here/hosts.yml").write_text(SITE, encoding="utf-8")
    directory = checkout.root / "playbooks/operations"
    directory.mkdir()
    names = ("node_remove", "node_reboot", "node_patch", "cluster_stop", "cluster_start", "cluster_destroy")
    for name in (*names, "support_bundle", "journal_fetch"):
        (directory / f"{name}.yml").write_text(PLAY.format(hosts="rke2_server", more=""), encoding="utf-8")
    return checkout


@pytest.mark.proves("machines-remove")
def test_one_machine_is_removed_by_name_and_the_next_step_is_said(site: Checkout, ansible: Ansible) -> None:
    done = site.run("node", "remove", "one", "--site", "here", "--leave-volumes")
    assert done.exit_code == ExitCode.DONE, done.output
    asked = ansible.calls[0].extra_vars
    assert (asked["rke2_remove_node"], asked["rke2_remove_leave_volumes"]) == ("one", True)
    assert asked["rke2_lost_powered_off"] is False
    assert "rke2_drain_policy" not in asked, "the site's own would not hold"
    assert "Take one out of hosts.yml" in done.stdout
    ansible.failures["node_remove"] = ("one", "quorum")
    told = site.run("node", "remove", "one", "--site", "here", "--powered-off")
    assert told.exit_code == ExitCode.FAILED
    assert "node remove one --powered-off --site here" in told.output
    assert "hosts.yml" not in told.stdout


@pytest.mark.proves("machines-reboot")
def test_machines_are_rebooted_only_when_they_are_named(site: Checkout, ansible: Ansible) -> None:
    assert site.run("node", "reboot", "--site", "here").exit_code == ExitCode.USAGE
    assert site.run("node", "reboot", "one", "--all", "--site", "here").exit_code == ExitCode.USAGE
    assert ansible.calls == []
    assert site.run("node", "patch", "two", "alpha", "--site", "here", "--drain-policy", "evict").exit_code == 0
    (call,) = [call for call, names in zip(ansible.calls, ansible.ran, strict=True) if "node_patch" in names]
    assert (call.limit, call.extra_vars["rke2_drain_policy"]) == ("alpha,two,localhost", "evict")


@pytest.mark.proves("cluster-said")
def test_a_cluster_ends_only_when_that_is_said(site: Checkout, ansible: Ansible) -> None:
    assert "unavailable" in site.run("cluster", "stop", "--site", "here").output
    assert "own disks" in site.run("cluster", "destroy", "--site", "here").output
    assert site.run("cluster", "destroy", "--site", "here", "--confirm", "there").exit_code == ExitCode.USAGE
    assert ansible.calls == []
    assert site.run("cluster", "stop", "--site", "here", "--yes").exit_code == ExitCode.DONE
    assert site.run("cluster", "start", "--site", "here").exit_code == ExitCode.DONE
    assert site.run("cluster", "destroy", "--site", "here", "--confirm", "here").exit_code == ExitCode.DONE
    said = [{key: value for key, value in call.extra_vars.items() if value == "here"} for call in ansible.calls]
    assert said == [{"rke2_stop_cluster": "here"}, {}, {"rke2_destroy_cluster": "here"}]


# What a check finds


@pytest.mark.proves("drift-commands")
def test_a_check_names_the_command_for_each_stage_that_differs(checkout: Checkout, ansible: Ansible) -> None:
    done = checkout.run("check", "--site", "here")
    assert done.exit_code == ExitCode.DONE
    assert "second differs at alpha; mend it with: " in done.stdout
    (drift,) = checkout.document("check", "--site", "here")["drift"]
    assert (drift["stage"], drift["hosts"]) == ("second", ["alpha"])
    assert drift["mend"].endswith("deploy --site here --only second --limit alpha")
    assert checkout.document("deploy", "--site", "here")["drift"] == []


def test_what_is_done_from_the_control_machine_is_not_limited() -> None:
    end = log.StageFinished(stage="s", result="ok", seconds=1, hosts={"localhost": log.HostCounts(changed=1)})
    assert machines.mending([end]) == [("s", ("localhost",), ("--only", "s"))]


# What others are told


@pytest.mark.proves("journal-copies")
def test_a_new_control_machine_learns_what_others_did(
    site: Checkout, ansible: Ansible, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: dict[str, str] = {}

    def run(request: RunRequest, *others: object) -> runner.RunResult:
        result = ansible(request, *others)  # type: ignore[arg-type]
        holder = request.extra_vars.get("provision_lock")
        if holder:
            path = Path(holder["journal"])
            copies[path.name] = path.read_text(encoding="utf-8")
            assert holder["journals"] == log.COPIED
        elif "provision_report_file" in request.extra_vars:
            told = {"alpha": "".join(f"==> {name}\n{text}" for name, text in copies.items()), "beta": "", "gamma": None}
            Path(request.extra_vars["provision_report_file"]).write_text(json.dumps(told), encoding="utf-8")
        return result

    monkeypatch.setattr(runner, "run", run)
    ansible.failures["third"] = ("alpha", "it is broken")
    assert site.run("deploy", "--site", "here").exit_code == ExitCode.FAILED
    before = site.document("status", "--site", "here")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "new"))
    fresh = site.run("status", "--site", "here")
    assert "--fetch" in fresh.stdout
    after = site.document("status", "--site", "here", "--fetch")
    assert after["unfinished"] == before["unfinished"] and after["unfinished"]["stages"] == ["third"]
    assert after["last_run"]["result"] == "failed"
    assert "0 runs" in site.run("status", "--site", "here", "--fetch").stdout


@pytest.mark.proves("journal-copies")
def test_a_copy_that_is_no_journal_of_its_name_is_left_out(tmp_path: Path) -> None:
    assert log.adopt(tmp_path, {"../a.jsonl": "x", "b.jsonl": '{"event": "stage_started"}\n', "c": ""}) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.proves("support-redacted")
@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40),
    st.sampled_from(range(4)),
    st.text(max_size=20),
)
def test_no_shape_of_a_secret_is_left(secret: str, shape: int, around: str) -> None:
    coded = base64.b64encode(f"{around}{secret}{around}".encode()).decode()
    text = (f"x{secret}y", json.dumps({"a": f"{around}{secret}"}), f"https://u@h/?q={secret}", coded)[shape]
    told = support.redact(text, {"vault_site_x": secret})
    assert "redacted" in told
    if shape != 3:
        # By its name, unless a part of what is written instead is the secret.
        assert secret not in told.replace("[redacted vault_site_x]", "").replace("[redacted]", "")


@pytest.mark.proves("support-redacted")
def test_secrets_of_no_vault_are_hidden_by_their_form() -> None:
    key = "-----BEGIN RSA PRIVATE " + "KEY-----\nabc\n-----END RSA PRIVATE " + "KEY-----"
    token = "K10" + "a" * 64 + "::server:0123456789abcdef"
    for secret in (
        key,
        token,
        "Authorization: Bearer abcdefghij",
        "https://me:hunter22@host/",
        '"password": "hunter22"',
    ):
        told = support.redact(f"before {secret} after", {})
        assert "redacted" in told, told
        assert told.startswith("before ") and told.endswith(" after")
        assert not any(word in told for word in ("abc\n", "0123456789abcdef", "abcdefghij", "hunter22"))
    assert support.redact("level=info msg=up", {}) == "level=info msg=up"


@pytest.mark.proves("support-redacted")
def test_a_bundle_has_what_was_told_and_none_of_the_vault(
    site: Checkout, ansible: Ansible, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "first-of-the-vault"
    event = {"kind": "Event", "metadata": {"namespace": "a", "name": "e"}, "message": f"with {secret}"}
    pod = {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"env": "never shown"}]}, "status": {}}
    report = {
        "machines": {"alpha": f"==> versions\nv1\n==> rke2.log\n{secret}\n", "beta": None},
        "cluster": [event, pod],
    }

    def run(request: RunRequest, *others: object) -> runner.RunResult:
        Path(request.extra_vars["provision_report_file"]).write_text(json.dumps(report), encoding="utf-8")
        return ansible(request, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run", run)
    output = tmp_path / "bundle.tar.gz"
    assert site.run("support-bundle", "--site", "here", "--output", str(output)).exit_code == ExitCode.DONE
    assert output.stat().st_mode & 0o077 == 0
    with tarfile.open(output) as archive:
        files = {member.name: archive.extractfile(member).read().decode() for member in archive}  # type: ignore[union-attr]
    assert files["support/machines/alpha/versions"] == "v1\n"
    assert "did not answer" in files["support/machines/beta/silent"]
    assert "[redacted vault_site_one]" in files["support/cluster/Event.jsonl"]
    assert any(name.startswith("support/journals/") for name in files)
    everything = "".join(files.values())
    assert secret not in everything and "never shown" not in everything
