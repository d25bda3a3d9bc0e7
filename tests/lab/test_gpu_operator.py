"""Workers offer what the inventory says, and a pod sees exactly the devices that it asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml

from tests.lab.running import SITE, Lab, eventually

NAME = "gpu-test"
OPERATION = ("playbooks/operations/mig_apply.yml",)
CUT = "uworker03"
LAYOUT = [
    {"devices": [0, 1, 2, 3, 4, 5]},
    {"devices": [6], "slices": {"1g.10gb": 7}},
    {"devices": [7], "slices": {"2g.20gb": 2, "3g.40gb": 1}},
]
SLICES = {"gpu": 6, "mig-1g.10gb": 7, "mig-2g.20gb": 2, "mig-3g.40gb": 1}
LAYOUTS = {"gpu_operator_mig_layouts": {"teaching": LAYOUT}}
TEACHING = json.dumps(LAYOUTS | {"gpu_operator_mig_nodes": {CUT: "teaching"}})
STAGE = ("playbooks/stages/gpu_operator.yml",)
PLUGIN = ("-n", "gpu-operator", "patch", "daemonset", "nvidia-device-plugin-daemonset", "--type=merge", "-p")
RESOURCE = "nvidia.com/gpu"


def expected(lab: Lab) -> dict[str, int]:
    """What the inventory says of each worker."""
    given = yaml.safe_load((SITE / "group_vars/rke2_agent/gpu_operator.yml").read_text())["gpu_operator_gpus"]
    return {name: int(given[RESOURCE]) for name in lab.agents}


def offered(lab: Lab) -> dict[str, int]:
    """What each node offers, those without left out."""
    items = json.loads(lab.kubectl("get", "nodes", "-o", "json"))["items"]
    counts = {item["metadata"]["name"]: int(item["status"]["allocatable"].get(RESOURCE, 0)) for item in items}
    return {name: count for name, count in counts.items() if count}


def leftovers(lab: Lab) -> str:
    """Names of what verifications have made."""
    return lab.kubectl("-n", "gpu-operator", "get", "jobs,pods", "-l", "metalhub.platform/gpu-check", "-o", "name")


@pytest.fixture(scope="module")
def seen(lab: Lab) -> Iterator[dict[int, int]]:
    """GPUs asked for -> device nodes seen, by pods that ask for none, one and three."""
    pod = json.loads(lab.kubectl("-n", "kube-system", "get", "pod", "kube-proxy-umaster01", "-o", "json"))
    image = pod["spec"]["containers"][0]["image"]
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{NAME}-{count}", "namespace": "default", "labels": {"app": NAME}},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "look",
                        "image": image,
                        "command": ["/bin/sh", "-c", "ls -d /dev/nvidia* 2>/dev/null | wc -l >/dev/termination-log"],
                        "resources": {"limits": {RESOURCE: count}} if count else {},
                    }
                ],
            },
        }
        for count in (0, 1, 3)
    ]
    lab.sh("umaster01", f"cat >/run/{NAME}.yaml <<'EOF'\n{yaml.safe_dump_all(pods)}EOF\n")
    lab.kubectl("apply", "-f", f"/run/{NAME}.yaml", server="umaster01")
    query = ("get", "pods", "-l", f"app={NAME}", "-o")
    try:
        phases = "jsonpath={.items[*].status.phase}"
        eventually("all pods ended", lambda: lab.kubectl(*query, phases).split() == ["Succeeded"] * len(pods), 120)
        items = json.loads(lab.kubectl(*query, "json"))["items"]
        yield {
            int(item["metadata"]["name"].rsplit("-", 1)[1]): int(
                item["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
            )
            for item in items
        }
    finally:
        lab.kubectl("delete", "--ignore-not-found", "-f", f"/run/{NAME}.yaml", server="umaster01")


@pytest.mark.proves("gpu-allocatable")
def test_workers_offer_what_the_inventory_says_and_servers_nothing(lab: Lab) -> None:
    assert offered(lab) == expected(lab)


@pytest.mark.proves("gpu-devices")
def test_a_pod_sees_exactly_as_many_devices_as_it_asked_for(seen: dict[int, int]) -> None:
    assert seen == {0: 0, 1: 1, 3: 3}


@pytest.mark.proves("gpu-verify")
def test_a_verification_leaves_nothing_behind(lab: Lab) -> None:
    recap = lab.play("--tags", "verify", playbooks=STAGE)
    assert recap.status == 0, recap.output[-3000:]
    assert recap.changed == {}
    eventually("the pods of the verification are gone", lambda: not leftovers(lab).strip(), 60)


@pytest.mark.proves("gpu-verify")
def test_workers_without_their_device_plugin_are_named(lab: Lab) -> None:
    nowhere = {"spec": {"template": {"spec": {"nodeSelector": {NAME: "nowhere"}}}}}
    anywhere = {"spec": {"template": {"spec": {"nodeSelector": None}}}}
    lab.kubectl(*PLUGIN, json.dumps(nowhere))
    try:
        eventually("no node offers a GPU", lambda: offered(lab) == {})
        recap = lab.play("--tags", "verify", playbooks=STAGE)
    finally:
        lab.kubectl(*PLUGIN, json.dumps(anywhere))
        eventually("the GPUs are back", lambda: offered(lab) == expected(lab))
    assert recap.status == 2
    for name in lab.agents:
        assert f"{name} offers no GPU" in " ".join(recap.output.split())


@pytest.mark.proves("gpu-runtime-class")
def test_a_runtime_class_that_is_gone_is_told(lab: Lab) -> None:
    kept = json.loads(lab.kubectl("get", "runtimeclass", "nvidia", "-o", "json"))
    kept["metadata"] = {key: kept["metadata"][key] for key in ("name", "labels", "annotations")}
    lab.kubectl("delete", "runtimeclass", "nvidia")
    try:
        recap = lab.play("--tags", "verify", playbooks=STAGE)
    finally:
        # A file of its own: what is in the other is taken away after these tests.
        lab.sh("umaster01", f"cat >/run/{NAME}-class.yaml <<'EOF'\n{yaml.safe_dump(kept)}EOF\n")
        lab.kubectl("apply", "-f", f"/run/{NAME}-class.yaml", server="umaster01")
    assert recap.status == 2
    assert "RuntimeClass nvidia is not there" in " ".join(recap.output.split())


@pytest.mark.proves("gpu-rke2")
def test_what_would_break_a_worker_at_its_next_start_is_refused(lab: Lab) -> None:
    values = {"toolkit": {"env": [{"name": "CONTAINERD_CONFIG", "value": "/etc/containerd/config.toml"}]}}
    recap = lab.play("-e", json.dumps({"gpu_operator_values": values}), playbooks=STAGE)
    assert recap.status == 2
    assert "CONTAINERD_CONFIG" in recap.output
    assert recap.changed == {}


@pytest.mark.proves("gpu-versions")
def test_a_release_that_does_not_go_with_the_cluster_is_refused_with_those_that_do(lab: Lab) -> None:
    recap = lab.play("-e", "gpu_operator_chart_version=v25.3.4", playbooks=STAGE)
    said = " ".join(recap.output.split())
    assert recap.status == 2
    assert recap.changed == {}
    assert "v25.3.4 does not go: choose a release of 26.3 or 26.7" in said
    for name in lab.agents:
        assert name in said


def offers(lab: Lab, name: str) -> dict[str, int]:
    """What pods can ask of a node, by the end of the resource's name."""
    allocatable = json.loads(lab.kubectl("get", "node", name, "-o", "json"))["status"]["allocatable"]
    prefix = "nvidia.com/"
    return {key.removeprefix(prefix): int(n) for key, n in allocatable.items() if key.startswith(prefix) and int(n)}


def layout(lab: Lab) -> str:
    """The label by which the MIG manager is told the layout, and whether the node is closed."""
    node = json.loads(lab.kubectl("get", "node", CUT, "-o", "json"))
    closed = " closed" if node["spec"].get("unschedulable") else ""
    return str(node["metadata"]["labels"].get("nvidia.com/mig.config", "")) + closed


@pytest.fixture(scope="module")
def known(lab: Lab) -> Iterator[None]:
    """The operator knows a layout that no worker has; afterwards all is as the site says."""
    recap = lab.play("-e", json.dumps(LAYOUTS), playbooks=STAGE)
    try:
        assert recap.status == 0, recap.output[-3000:]
        yield
    finally:
        lab.kubectl("-n", "default", "delete", "pod", NAME, "--ignore-not-found", "--wait=true")
        recap = lab.play(playbooks=STAGE)
    assert recap.status == 0, recap.output[-3000:]
    assert offers(lab, CUT) == {"gpu": 8}
    assert layout(lab) == "all-disabled"


@pytest.mark.shard("platform")
@pytest.mark.proves("gpu-mig")
def test_no_gpu_is_taken_from_a_pod_and_a_simulation_takes_none(lab: Lab, known: None) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "namespace": "default"},
        "spec": {
            "nodeName": CUT,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "hold",
                    "image": "nvcr.io/nvidia/cuda:12.8.1-base-ubuntu24.04",
                    "command": ["/bin/sh", "-c", "sleep 600"],
                    "resources": {"limits": {RESOURCE: 1}},
                }
            ],
        },
    }
    before = layout(lab)
    lab.sh("umaster01", f"cat >/run/{NAME}.yaml <<'EOF'\n{yaml.safe_dump(pod)}EOF\n")
    lab.kubectl("apply", "-f", f"/run/{NAME}.yaml", server="umaster01")
    phase = ("-n", "default", "get", "pod", NAME, "-o", "jsonpath={.status.phase}")
    eventually("the pod runs", lambda: lab.kubectl(*phase) == "Running")
    recap = lab.play("-e", TEACHING, playbooks=OPERATION)
    assert recap.status == 2
    assert f"{CUT}: default/{NAME}" in " ".join(recap.output.split())
    assert recap.changed == {}
    assert layout(lab) == before
    lab.kubectl("-n", "default", "delete", "pod", NAME, "--wait=true")
    recap = lab.play("--check", "-e", TEACHING, playbooks=OPERATION)
    assert recap.status == 0, recap.output[-3000:]
    assert recap.changed
    assert layout(lab) == before
    assert offers(lab, CUT) == {"gpu": 8}


@pytest.mark.shard("platform")
@pytest.mark.proves("gpu-mig")
def test_a_worker_is_cut_as_its_layout_says_and_a_second_run_changes_nothing(lab: Lab, known: None) -> None:
    recap = lab.play("-e", TEACHING, playbooks=OPERATION)
    assert recap.status == 0, recap.output[-3000:]
    assert offers(lab, CUT) == SLICES
    assert layout(lab).startswith("teaching-") and not layout(lab).endswith("closed")
    assert offers(lab, lab.agents[0]) == {"gpu": 8}
    recap = lab.play("-e", TEACHING, playbooks=OPERATION)
    assert (recap.status, recap.changed) == (0, {}), recap.output[-3000:]
    # Without a layout of its own this worker is to have whole GPUs.
    recap = lab.play("-e", json.dumps(LAYOUTS), "--tags", "verify", playbooks=STAGE)
    assert recap.status == 2
    assert f"{CUT} has the MIG layout teaching-" in " ".join(recap.output.split()), recap.output[-3000:]


@pytest.mark.shard("platform")
@pytest.mark.proves("gpu-mig")
def test_a_worker_that_was_closed_by_a_run_that_was_killed_is_opened_by_the_next(lab: Lab, known: None) -> None:
    assert lab.play("-e", TEACHING, playbooks=OPERATION).status == 0
    lab.kubectl("annotate", "node", CUT, "metalhub.platform/closed-for-mig=true")
    lab.kubectl("cordon", CUT)
    assert lab.play("-e", TEACHING, playbooks=OPERATION).status == 0
    assert not layout(lab).endswith("closed")


@pytest.mark.shard("platform")
@pytest.mark.proves("gpu-shared")
def test_slices_are_shared_where_the_site_says_so(lab: Lab, known: None) -> None:
    given = json.loads(TEACHING) | {"gpu_operator_shared": {"nvidia.com/mig-1g.10gb": 4}}
    recap = lab.play("-e", json.dumps(given), playbooks=STAGE)
    assert recap.status == 0, recap.output[-3000:]
    shared = {key: n for key, n in SLICES.items() if key != "mig-1g.10gb"} | {"mig-1g.10gb.shared": 28}
    assert offers(lab, CUT) == shared


@pytest.mark.proves("gpu-mig-layouts")
def test_a_layout_that_no_gpu_can_have_is_refused_before_anything_is_touched_in_the_cluster(lab: Lab) -> None:
    wrong = {"teaching": [{"devices": "all", "slices": {"3g.40gb": 2, "1g.10gb": 1}}]}
    given = json.loads(TEACHING) | {"gpu_operator_mig_layouts": wrong}
    recap = lab.play("-e", json.dumps(given), playbooks=STAGE)
    assert recap.status == 2
    assert "takes 9 parts of memory of one GPU, which has 8" in " ".join(recap.output.split())
    assert recap.changed == {}
