"""What goes wrong is refused or told with its remedy, leaves the rest as it was, and the printed command repairs it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import nodes
from tests.lab.running import Lab, difference, eventually


@contextmanager
def untouched(lab: Lab, *but: str) -> Iterator[None]:
    """Fail when anything on any node but the named changes meanwhile."""
    before = lab.witness()
    yield
    found = difference(before, lab.witness())
    assert {host: lines for host, lines in found.items() if host not in but} == {}


@pytest.mark.proves("check-converged")
def test_a_check_of_a_converged_site_finds_nothing_and_does_nothing(lab: Lab) -> None:
    with untouched(lab):
        done = lab.drive("check")
    assert done.status == 0, done.told + done.message
    assert done.document["changed"] == 0, done.told


@pytest.mark.proves("new-control-machine")
def test_one_worker_is_deployed_from_the_inventory_alone_by_a_new_control_machine(lab: Lab, tmp_path: Path) -> None:
    """It has the site's files, the vault password and the key to the machines, and no memory."""
    worker, home = lab.agents[0], tmp_path / "home"
    state = home / ".local/state/metalhub/lab"
    state.mkdir(parents=True)
    for name in ("ssh", "vault_password"):
        subprocess.run(["cp", "-a", lab.bundle.parent / name, state / name], check=True)
    environment = {"HOME": str(home), "XDG_STATE_HOME": str(home / ".local/state")}
    with untouched(lab):
        done = lab.drive("deploy", "--limit", worker, environment=environment)
        assert done.status == 0, done.told + done.message
        assert done.document["changed"] == 0
    lab.sh(worker, "sed -i 's/metalhub/metalhub /' /etc/rancher/rke2/config.yaml")
    with untouched(lab, worker):
        done = lab.drive("deploy", "--limit", worker, environment=environment)
        assert done.status == 0, done.told + done.message
        assert done.document["changed"] == 1
    assert {host for stage in done.document["stages"] for host in stage["hosts"]} == {worker, "localhost"}


@pytest.mark.proves("fault-parameter")
def test_a_misspelt_parameter_is_refused_before_any_machine_is_asked(lab: Lab, tmp_path: Path) -> None:
    site = lab.copy(tmp_path / "site", {"site_api_adress": "198.18.101.20"})
    began = time.monotonic()
    done = lab.drive("deploy", root=site)
    assert done.status == 1
    assert "site_api_adress" in done.message and "site_api_address" in done.message, done.message
    assert "zz-test.yml" in done.message
    assert time.monotonic() - began < 60
    assert [stage["stage"] for stage in done.document["stages"]] == ["preflight"]


@pytest.mark.proves("fault-token")
def test_another_cluster_s_token_is_refused_and_the_printed_editor_puts_the_right_one_back(
    lab: Lab, tmp_path: Path
) -> None:
    secrets, wrong = lab.secrets(), "0123456789abcdef" * 3
    site = lab.copy(tmp_path / "site")
    lab.seal(secrets | {"vault_site_rke2_token": wrong}, site / "inventories/lab/group_vars/all/vault.yml")
    with untouched(lab):
        done = lab.drive("deploy", "--from", "rke2_server", root=site)
    assert done.status == 1, done.told
    assert "refused the token in vault_site_rke2_token" in done.message, done.message
    assert wrong not in done.told + done.message and secrets["vault_site_rke2_token"] not in done.told + done.message
    command = done.printed("ansible-vault edit")
    lab.type(command, site, {"EDITOR": f"sed -i s/{wrong}/{secrets['vault_site_rke2_token']}/"})
    done = lab.drive("deploy", "--only", "rke2_server", root=site)
    assert done.status == 0, done.told + done.message
    assert done.document["changed"] == 0


@pytest.mark.proves("fault-unreachable")
def test_a_node_that_does_not_answer_is_named_and_the_others_stay_as_they_are(lab: Lab) -> None:
    silent = lab.agents[1]
    # Otherwise the connections that Ansible keeps are waited for, a minute.
    nodes.end_connections([lab.machines[silent]])
    subprocess.run(["docker", "pause", silent], check=True, capture_output=True)
    try:
        done = lab.drive("deploy", "--until", "rke2_agent")  # what lies on the machines, not the platform
    finally:
        subprocess.run(["docker", "unpause", silent], check=True, capture_output=True)
    assert done.status == 1, done.told
    lost, *rest = done.document["failures"]
    assert (lost["host"], lost["unreachable"]) == (silent, True), done.document["failures"]
    # What the others say is that they do not reach it either.
    assert all(silent in failure["message"] for failure in rest), rest
    eventually("all nodes Ready", lab.healthy)
    with untouched(lab):
        assert "0 changed" in lab.type(done.printed("scripts/provision.py deploy"))


@pytest.mark.proves("fault-never-ready")
def test_a_server_that_never_gets_ready_ends_the_run_with_its_journal_and_the_rest_serves(
    lab: Lab, tmp_path: Path
) -> None:
    ill, *others = reversed(lab.servers)
    site = lab.copy(tmp_path / "site", {"rke2_start_timeout_seconds": 20, "rke2_kubelet_args": ["no-such-flag=1"]})
    with untouched(lab, ill, "api", "nodes"):
        done = lab.drive("deploy", "--only", "rke2_server", "--limit", ill, root=site)
    assert done.status == 1, done.told
    assert f"node {ill} is not Ready" in done.message or "the service is" in done.message, done.message
    assert "no-such-flag" in done.message, done.message
    assert lab.kubectl("get", "--raw=/readyz", server=others[0]) == "ok"
    lab.type(done.printed("scripts/provision.py deploy"))
    eventually("all nodes Ready", lab.healthy)
