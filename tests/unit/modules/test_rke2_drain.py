"""What a drain ends, what it waits for, what it names, and whose cordon is taken back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from plugins.modules import rke2_drain

pytestmark = pytest.mark.proves("upgrade-drain")

# Answers `get` from files, notes every other call; a drain removes the pods that `gone.json` does not hold any more.
KUBECTL = """#!/bin/sh
cd "$(dirname "$0")"
shift 2
case "$*" in
  "get node "*) cat node.json ;;
  "get pods "*) cat pods.json ;;
  "get poddisruptionbudgets "*) cat budgets.json ;;
  drain*) echo "$*" >>calls; [ -e after.json ] && mv after.json pods.json; exit 0 ;;
  *) echo "$*" >>calls ;;
esac
"""


def pod(name: str, owner: str = "", labels: dict[str, str] | None = None, gpus: int = 0, **more: Any) -> dict[str, Any]:
    """Return a pod as the API gives it."""
    metadata: dict[str, Any] = {"namespace": "hub", "name": name, "labels": labels or {}}
    if owner:
        metadata["ownerReferences"] = [{"kind": owner, "controller": True}]
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    return {"metadata": metadata | more, "spec": {"containers": [{"resources": {"limits": limits}}]}}


def budget(allowed: int, **selector: Any) -> dict[str, Any]:
    """Return a PodDisruptionBudget of the same namespace."""
    return {
        "metadata": {"namespace": "hub", "name": "proxy"},
        "spec": {"selector": selector},
        "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1},
    }


USER = {"component": "singleuser-server"}


class Cluster:
    """A stand-in for kubectl with one node."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Make the node schedulable and empty."""
        self.directory, self.capsys = directory / "bin", capsys
        self.directory.mkdir()
        (self.directory / "kubectl").write_text(KUBECTL)
        (self.directory / "kubectl").chmod(0o755)
        self.has(node={"metadata": {"name": "a", "resourceVersion": "7"}, "spec": {}})
        self.has(pods={"items": []}, budgets={"items": []})

    def has(self, **files: Any) -> None:
        """Write what the API is to answer."""
        for name, content in files.items():
            (self.directory / f"{name}.json").write_text(json.dumps(content))

    def run(self, state: str, **arguments: Any) -> dict[str, Any]:
        """Run the module and return its result."""
        words = {"name": "a", "state": state, "seconds": 1, "data_dir": str(self.directory.parent), **arguments}
        with patch_module_args(words), pytest.raises(SystemExit):
            rke2_drain.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return result

    @property
    def calls(self) -> list[str]:
        """What was asked of kubectl beside questions."""
        path = self.directory / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cluster:
    """A cluster with one node, which is schedulable and empty."""
    return Cluster(tmp_path, capsys)


def test_a_cordon_bears_who_set_it_and_in_which_run(cluster: Cluster) -> None:
    result = cluster.run("drained", owner="ann@control", run="one")
    assert (result["changed"], result["drained"]) == (True, True)
    (call,) = cluster.calls
    body = json.loads(call.partition("--patch ")[2].rpartition(" --")[0])
    assert body["spec"] == {"unschedulable": True}
    assert body["metadata"]["resourceVersion"] == "7"
    mark = {"owner": "ann@control", "run": "one", "policy": "wait"}
    assert json.loads(body["metadata"]["annotations"][rke2_drain.MARK]) == mark


@pytest.mark.parametrize(
    ("marked", "changed"), [pytest.param(True, True, id="ours"), pytest.param(False, False, id="somebody-elses")]
)
def test_only_a_cordon_of_ours_is_taken_back_whichever_run_set_it(
    cluster: Cluster, marked: bool, changed: bool
) -> None:
    notes = {rke2_drain.MARK: json.dumps({"owner": "ann", "run": "an-older-one"})} if marked else {}
    metadata = {"name": "a", "resourceVersion": "7", "annotations": notes}
    cluster.has(node={"metadata": metadata, "spec": {"unschedulable": True}})
    result = cluster.run("uncordoned", run="this-one")
    assert result["changed"] == changed
    assert len(cluster.calls) == changed
    # Drained again, nothing is marked anew: an older run's mark stays, and somebody else's cordon is not made ours.
    assert cluster.run("drained")["cordoned_by"] == ({"owner": "ann", "run": "an-older-one"} if marked else {})


@pytest.mark.parametrize(
    ("mark", "foreign"),
    [
        pytest.param(None, True, id="somebody-elses"),
        pytest.param({"owner": "ann", "run": "old", "policy": "wait"}, False, id="of-a-run-that-waited"),
    ],
)
def test_who_is_to_be_evicted_is_told_and_has_time_on_a_node_that_is_cordoned_already(
    cluster: Cluster, mark: dict[str, str] | None, foreign: bool
) -> None:
    notes = {rke2_drain.MARK: json.dumps(mark)} if mark else {}
    metadata = {"name": "a", "resourceVersion": "7", "annotations": notes}
    cluster.has(node={"metadata": metadata, "spec": {"unschedulable": True}})
    cluster.has(pods={"items": [pod("jupyter-ann", labels=USER)]})
    result = cluster.run("drained", policy="evict", notice=600)
    assert not result["drained"]
    assert result["cordoned_by"]["until"] > time.time() + 500
    assert result["cordoned_by"].get("foreign", False) is foreign
    assert not any(call.startswith("drain") for call in cluster.calls)
    # Given back, the cordon of somebody else stays.
    metadata["annotations"] = {rke2_drain.MARK: json.dumps(result["cordoned_by"])}
    cluster.has(node={"metadata": metadata, "spec": {"unschedulable": True}})
    assert cluster.run("uncordoned")["changed"]
    body = json.loads(cluster.calls[-1].partition("--patch ")[2].rpartition(" --")[0])
    assert body["spec"] == {"unschedulable": True if foreign else None}
    assert body["metadata"]["annotations"] == {rke2_drain.MARK: None}


def test_what_belongs_to_the_node_and_what_has_ended_is_not_waited_for(cluster: Cluster) -> None:
    static = pod("etcd", annotations={"kubernetes.io/config.mirror": "x"})
    ended = pod("job", "Job") | {"status": {"phase": "Succeeded"}}
    cluster.has(pods={"items": [pod("canal", "DaemonSet"), static, ended]})
    result = cluster.run("drained")
    assert result["drained"]
    assert len(cluster.calls) == 1


def test_with_wait_nothing_is_ended_while_a_users_server_runs(cluster: Cluster) -> None:
    cluster.has(pods={"items": [pod("proxy", "ReplicaSet"), pod("jupyter-ann", labels=USER, gpus=2)]})
    result = cluster.run("drained", policy="wait")
    assert not result["drained"]
    assert not any(call.startswith("drain") for call in cluster.calls)
    assert result["users"] == {"hub/jupyter-ann": 2}
    assert "hub/jupyter-ann, a user's server with 2 GPUs, still runs" in result["msg"]


def test_with_evict_users_servers_are_ended_too(cluster: Cluster) -> None:
    cluster.has(pods={"items": [pod("jupyter-ann", labels=USER)]}, after={"items": []})
    result = cluster.run("drained", policy="evict")
    assert (result["drained"], result["users"]) == (True, {"hub/jupyter-ann": 0})
    assert "--force" in cluster.calls[-1]
    assert "--disable-eviction" not in cluster.calls[-1]


@pytest.mark.parametrize(("left", "ended"), [pytest.param(600, False, id="before"), pytest.param(-1, True, id="after")])
def test_with_evict_users_have_the_time_that_the_mark_promises(cluster: Cluster, left: int, ended: bool) -> None:
    cluster.has(pods={"items": [pod("jupyter-ann", labels=USER)]})
    notes = {rke2_drain.MARK: json.dumps({"owner": "ann", "run": "one", "until": int(time.time()) + left})}
    metadata = {"name": "a", "resourceVersion": "7", "annotations": notes}
    cluster.has(node={"metadata": metadata, "spec": {"unschedulable": True}})
    assert not cluster.run("drained", policy="evict", notice=600)["drained"]
    assert any(call.startswith("drain") for call in cluster.calls) == ended


def test_the_mark_says_when_users_servers_end(cluster: Cluster) -> None:
    cluster.has(pods={"items": [pod("jupyter-ann", labels=USER)]})
    before = int(time.time())
    mark = cluster.run("drained", policy="evict", notice=600)["cordoned_by"]
    assert mark["policy"] == "evict"
    assert before + 600 <= mark["until"] <= time.time() + 600
    # Nobody is kept waiting where nobody is.
    cluster.has(pods={"items": [pod("proxy", "ReplicaSet")]}, after={"items": []})
    assert cluster.run("drained", policy="evict", notice=600)["drained"]


def test_a_call_waits_as_long_as_it_may_for_whoever_it_may_not_end(cluster: Cluster) -> None:
    cluster.has(pods={"items": [pod("jupyter-ann", labels=USER)]})
    began = time.monotonic()
    assert not cluster.run("drained", policy="wait", seconds=2)["drained"]
    assert time.monotonic() - began >= 2


def test_with_skip_the_node_is_cordoned_and_everything_runs_on(cluster: Cluster) -> None:
    cluster.has(pods={"items": [pod("proxy", "ReplicaSet"), pod("jupyter-ann", labels=USER)]})
    result = cluster.run("drained", policy="skip")
    assert (result["drained"], result["users"]) == (True, {"hub/jupyter-ann": 0})
    assert len(cluster.calls) == 1


@pytest.mark.parametrize(
    ("selector", "named"),
    [
        pytest.param({"matchLabels": {"app": "proxy"}}, True, id="its-label"),
        pytest.param({"matchLabels": {"app": "hub"}}, False, id="another-label"),
        pytest.param({}, True, id="all"),
        pytest.param({"matchExpressions": [{"key": "app", "operator": "In", "values": ["proxy"]}]}, True, id="in"),
        pytest.param({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False, id="not-there"),
    ],
)
def test_a_budget_that_lets_nothing_go_is_named(cluster: Cluster, selector: dict[str, Any], named: bool) -> None:
    cluster.has(pods={"items": [pod("proxy-1", "ReplicaSet", labels={"app": "proxy"})]})
    cluster.has(budgets={"items": [budget(0, **selector)]})
    said = cluster.run("drained")["msg"]
    assert ("kept by PodDisruptionBudget hub/proxy" in said) == named
    assert "hub/proxy-1" in said


def test_check_mode_asks_only(cluster: Cluster) -> None:
    cluster.has(pods={"items": [pod("proxy", "ReplicaSet")]})
    assert cluster.run("drained", _ansible_check_mode=True)["changed"]
    assert cluster.calls == []
