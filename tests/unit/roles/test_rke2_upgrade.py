"""What the role rke2 decides in the middle of an upgrade, without any machine."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.plugins.loader import init_plugin_loader

from tests.unit.roles.test_rke2 import ROLE, VERSION, Role, answer

pytestmark = pytest.mark.proves("upgrade-turn")
NEW = "v1.35.7+rke2r2"


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    """Make filters and tests of collections resolvable."""
    init_plugin_loader()


def turn(now: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    """Return what upgrade_turn decides of a server with these answers."""
    role = Role(now=now, **inputs)
    (task,) = role.loader.load_from_file(str(ROLE / "tasks/upgrade_turn.yml"), trusted_as_template=True)
    role.variables["decided"] = task["ansible.builtin.set_fact"]["__rke2_turn"]
    found: dict[str, Any] = role.get("decided")
    return found


@pytest.mark.parametrize(
    ("now", "version", "due"),
    [
        pytest.param({}, VERSION, False, id="done"),
        pytest.param({}, NEW, True, id="not-yet"),
        pytest.param({"installed_version": NEW}, NEW, True, id="on-the-disk-and-not-running"),
        pytest.param({"service": {"active": "activating"}}, VERSION, True, id="does-not-come-up"),
        pytest.param({"images": []}, VERSION, True, id="half-installed"),
    ],
)
def test_a_node_is_done_when_the_release_runs(now: dict[str, Any], version: str, due: bool) -> None:
    assert turn(answer(**now), rke2_version=version) == {"due": due, "ours": False}


def test_a_cordon_of_an_earlier_run_is_seen_on_a_node_that_is_done() -> None:
    node = answer()["nodes"]["one"] | {"annotations": {"metalhub.io/cordoned-by": "{}"}}
    assert turn(answer(nodes={"one": node})) == {"due": False, "ours": True}


def test_a_snapshot_is_taken_only_before_the_first_server_has_the_release() -> None:
    node = answer()["nodes"]["one"]

    def begun(*seen: dict[str, Any]) -> bool:
        told = {f"s{number}": {"__rke2_info": answer(nodes=nodes)} for number, nodes in enumerate(seen)}
        role = Role(rke2_version=NEW, ansible_play_hosts=list(told))
        role.variables["hostvars"] = told
        return bool(role.get("__rke2_upgrade_begun"))

    assert not begun({"one": node}, {"one": node})
    # The one that is done may not answer just now; another one knows of it.
    assert begun({}, {"one": node, "two": node | {"version": NEW}})
    assert not begun({}, {})


def test_no_snapshot_is_taken_once_the_release_lies_on_a_server_that_is_down() -> None:
    down = answer(installed_version=NEW, running_version="", nodes={})
    role = Role(rke2_version=NEW, ansible_play_hosts=["s0", "s1"])
    role.variables["hostvars"] = {"s0": {"__rke2_info": answer()}, "s1": {"__rke2_info": down}}
    assert role.get("__rke2_upgrade_begun") is True


def test_the_other_servers_are_asked_for_by_the_names_of_their_nodes() -> None:
    hosts: dict[str, Any] = {name: {"site_node_address": "192.0.2.1"} for name in ("one", "two", "three", "worker")}
    hosts["one"]["rke2_node_name"], hosts["two"]["rke2_node_name"] = "first", "second"
    role = Role(hostvars=hosts, rke2_node_name="first")
    tasks = role.loader.load_from_file(str(ROLE / "tasks/upgrade_gates.yml"), trusted_as_template=True)
    (asked,) = (task["metalhub.platform.rke2_info"]["wait"] for task in tasks if "metalhub.platform.rke2_info" in task)
    for key in ("nodes", "voters"):
        role.variables["asked"] = asked[key]
        assert role.get("asked") == ["second", "three"]


@pytest.mark.parametrize(
    ("bundle", "answered", "said"),
    [
        pytest.param("http://192.0.2.2", {"status": 200}, "", id="there"),
        pytest.param("http://192.0.2.2", {"status": 404, "msg": "Not Found"}, "Not Found", id="not-in-the-bundle"),
        pytest.param("/nowhere", {"skipped": True}, "is not on the control machine", id="no-directory"),
    ],
)
def test_a_node_is_not_emptied_for_a_release_that_cannot_be_had(
    bundle: str, answered: dict[str, Any], said: str
) -> None:
    role = Role(rke2_bundle=bundle, __rke2_offered=answered)
    told = role.refused("Refuse a release that cannot be had", "offered")
    assert (said in told) if said else (told == "")


def test_a_node_is_not_taken_out_of_a_cluster_that_is_not_well() -> None:
    cluster = {"healthy": False, "waiting_for": ["node two is not Ready"]}
    told = Role(__rke2_cluster=cluster).refused(
        "Refuse to take a node out of a cluster that is not well", "upgrade_gates"
    )
    assert "one was not touched" in told
    assert "node two is not Ready" in told


def test_the_report_has_every_machine_with_users_and_who_holds_gpus() -> None:
    def pod(name: str, node: str, gpus: int = 0) -> dict[str, Any]:
        limits = {"nvidia.com/gpu": str(gpus), "cpu": "2"} if gpus else {}
        return {
            "metadata": {"name": name},
            "spec": {"nodeName": node, "containers": [{"resources": {"limits": limits}}]},
        }

    ready = answer()["nodes"]["one"]
    down = answer(running_version="", nodes={}) | {"service": {"active": "failed"}}
    told = {"one": answer(), "worker": answer(nodes={"worker": ready}), "two": down}
    pods = [pod("jupyter-ann", "worker", 2), pod("jupyter-bob", "worker"), pod("jupyter-cid", "elsewhere")]
    role = Role(ansible_play_hosts=list(told), __rke2_upgrade_users={"resources": pods})
    role.variables["hostvars"] = {name: {"__rke2_info": info} for name, info in told.items()}
    report = {node.pop("name"): node for node in role.get("__rke2_upgrade_report")}
    common = {"installed": VERSION, "cordoned": False}
    nobody: dict[str, Any] = {"users": 0, "gpus": 0, "holders": []}
    assert report == {
        "one": common | nobody | {"server": True, "running": VERSION, "ready": True},
        "worker": common
        | {"server": False, "running": VERSION, "ready": True, "users": 2, "gpus": 2, "holders": ["jupyter-ann"]},
        "two": common | nobody | {"server": True, "running": "", "ready": False},
    }


def test_without_an_api_nobody_is_counted_and_the_machines_are_reported() -> None:
    role = Role(ansible_play_hosts=["one"], __rke2_upgrade_users={"failed": True})
    role.variables["hostvars"] = {"one": {"__rke2_info": answer()}}
    assert [node["users"] for node in role.get("__rke2_upgrade_report")] == [0]
