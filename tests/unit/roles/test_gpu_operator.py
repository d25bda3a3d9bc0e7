"""What the role gpu_operator decides from the inventory and the cluster's nodes, without any cluster."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader

from plugins.filter import gpu_operator as filters
from tests.unit.roles.decided import Decided

ROLES = Path(__file__).resolve().parents[3] / "roles"
ROLE = ROLES / "gpu_operator"
TABLE: dict[str, Any] = yaml.safe_load((ROLES / "preflight/files/compatibility.yml").read_text())
WORKERS = ("one", "two")


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    """Make filters of collections resolvable."""
    init_plugin_loader()


def node(
    name: str, kubelet: str = "v1.35.4+rke2r1", containerd: str = "2.2.2-k3s1", **different: Any
) -> dict[str, Any]:
    """Return a node as the API gives it; `different` replaces parts of metadata, status or spec."""
    about = {"kubeletVersion": kubelet, "containerRuntimeVersion": f"containerd://{containerd}"}
    return {
        "metadata": {"name": name, "labels": {}, "annotations": {}} | different.get("metadata", {}),
        "spec": different.get("spec", {}),
        "status": {"nodeInfo": about, "allocatable": {"nvidia.com/gpu": "8"}} | different.get("status", {}),
    }


class Role(Decided):
    """The role's variables, with inputs and the nodes as they would be."""

    def __init__(self, nodes: list[dict[str, Any]] | None = None, **inputs: Any) -> None:
        """Load defaults and variables; `inputs` win over both."""
        given: dict[str, Any] = {
            "groups": {"rke2_agent": list(WORKERS)},
            "hostvars": {name: {"gpu_operator_gpus": {"nvidia.com/gpu": 8}} for name in WORKERS},
            "gpu_operator_kubeconfig": "/nonexistent",
            "__gpu_operator_now": {"resources": nodes if nodes is not None else [node(name) for name in WORKERS]},
            "__gpu_operator_check": 7,
        }
        super().__init__(ROLE, given | inputs)

    def environment(self, part: str) -> dict[str, str]:
        """Return the environment that the chart is given for a part of the operator."""
        return {entry["name"]: entry["value"] for entry in self.get("__gpu_operator_merged")[part].get("env", [])}


# What goes with what


@pytest.mark.proves("gpu-versions")
@pytest.mark.parametrize(
    ("kubelet", "containerd", "version", "fits"),
    [
        pytest.param("v1.30.14+rke2r4", "1.7.27-k3s1", "v25.3.4", "", id="reference-site"),
        pytest.param("v1.30.14+rke2r4", "1.7.27-k3s1", "v26.3.3", "25.3", id="too-new-for-the-minor"),
        pytest.param("v1.31.7+rke2r1", "1.7.26-k3s1", "v25.10.1", "25.3", id="too-new-for-containerd"),
        pytest.param("v1.31.14+rke2r2", "2.1.5-k3s1", "v25.10.1", "", id="same-minor-newer-containerd"),
        pytest.param("v1.35.4+rke2r1", "2.2.2", "v25.3.4", "26.3 or 26.7", id="too-old"),
        pytest.param("v1.35.4+rke2r1", "2.2.2", "v26.3.3", "", id="current"),
        pytest.param("v1.29.1+rke2r1", "1.7.2", "v25.3.4", "upgrade RKE2", id="minor-unknown"),
    ],
)
def test_a_release_of_the_operator_that_does_not_go_with_the_nodes_is_refused_with_those_that_do(
    kubelet: str, containerd: str, version: str, fits: str
) -> None:
    role = Role([node(name, kubelet, containerd) for name in WORKERS], gpu_operator_chart_version=version)
    said = role.refused("Refuse a release that does not go with the cluster")
    assert bool(said) == bool(fits)
    assert fits in said
    if said:
        assert "one, two run Kubernetes" in said and version in said and "versions.yml" in said


@pytest.mark.proves("gpu-versions")
def test_only_the_containerd_of_workers_with_gpus_matters_and_every_nodes_kubernetes() -> None:
    server = node("server", "v1.31.7+rke2r1", "1.7.26-k3s1")
    worker = node("one", "v1.31.14+rke2r2", "2.1.5-k3s1")
    assert filters.gpu_operator_faults([server, worker], "v25.10.1", TABLE, ["one"]) == []
    (fault,) = filters.gpu_operator_faults([server, worker], "v26.3.3", TABLE, [])
    assert fault.startswith("one, server run Kubernetes 1.31, ")


@pytest.mark.proves("gpu-versions")
def test_nothing_is_touched_before_the_release_is_checked() -> None:
    gates = yaml.safe_load((ROLE / "tasks/gates.yml").read_text())
    assert {key for task in gates for key in task if "." in key} == {
        "ansible.builtin.assert",
        "kubernetes.core.k8s_info",
    }
    for entry in ("main", "mig"):
        tasks = yaml.safe_load((ROLE / f"tasks/{entry}.yml").read_text())
        first = next(task for task in tasks if "ansible.builtin.import_role" not in task)
        assert first["ansible.builtin.import_tasks"] == "gates.yml"


@pytest.mark.proves("gpu-rke2")
def test_without_cdi_an_image_cannot_take_gpus_by_a_variable_and_pods_ask_for_the_runtime_class() -> None:
    # As in the role that this one hands its values to.
    elsewhere = str(ROLES / "helm_release")
    old, new = (Role(gpu_operator_chart_version=one, role_path=elsewhere) for one in ("v25.3.4", "v26.3.3"))
    assert old.environment("toolkit") == {
        "CONTAINERD_SOCKET": "/run/k3s/containerd/containerd.sock",
        "ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED": "false",
        "ACCEPT_NVIDIA_VISIBLE_DEVICES_AS_VOLUME_MOUNTS": "true",
    }
    assert old.environment("devicePlugin") == {"DEVICE_LIST_STRATEGY": "volume-mounts"}
    assert new.environment("toolkit") == {"CONTAINERD_SOCKET": "/run/k3s/containerd/containerd.sock"}
    assert new.environment("devicePlugin") == {}
    jobs = [role.get("__gpu_operator_check_jobs")[0]["spec"]["template"]["spec"] for role in (old, new)]
    assert [job.get("runtimeClassName") for job in jobs] == ["nvidia", None]


@pytest.mark.proves("gpu-verify")
def test_labels_of_the_pods_that_prove_are_text_as_the_api_wants_them() -> None:
    for job in Role().get("__gpu_operator_check_jobs"):
        assert (
            job["metadata"]["labels"]
            == job["spec"]["template"]["metadata"]["labels"]
            == {"metalhub.platform/gpu-check": "7"}
        )


@pytest.mark.proves("gpu-rke2")
@pytest.mark.parametrize(
    ("names", "said"),
    [
        pytest.param(["CONTAINERD_SOCKET", "CONTAINERD_CONFIG"], "sets CONTAINERD_CONFIG", id="written-by-rke2"),
        pytest.param(["CONTAINERD_RUNTIME_CLASS"], "lacks CONTAINERD_SOCKET", id="role's-own-lost"),
        pytest.param(["CONTAINERD_SOCKET", "ANOTHER"], "", id="one-more"),
    ],
)
def test_what_the_site_says_to_the_toolkit_may_add_and_neither_break_nor_lose(names: list[str], said: str) -> None:
    values = {"toolkit": {"env": [{"name": name, "value": "x"} for name in names]}}
    told = Role(gpu_operator_values=values).refused("Refuse what breaks the nodes at their next start")
    assert bool(told) == bool(said)
    assert said in told


# GPUs cut into slices and shared

WHOLE_GPUS = {"devices": [0, 1, 2, 3, 4, 5]}
TEACHING = [
    WHOLE_GPUS,
    {"devices": [6], "slices": {"1g.10gb": 7}},
    {"devices": [7], "slices": {"2g.20gb": 2, "3g.40gb": 1}},
]
MODELS: dict[str, Any] = yaml.safe_load((ROLE / "files/mig_profiles.yml").read_text())


def cut(*nodes: dict[str, Any], layouts: dict[str, Any] | None = None, on: str = "two", **inputs: Any) -> Role:
    """Return the role for a site that gives the worker `on` the layout `teaching`."""
    own = {"gpu_operator_gpus": {"nvidia.com/gpu": 8}, "gpu_operator_model": "A100-80GB"}
    hostvars = {name: own | ({"gpu_operator_mig_layout": "teaching"} if name == on else {}) for name in WORKERS}
    # As Ansible reads them from a file: its numbers and texts are not Python's own.
    layouts = DataLoader().load(yaml.safe_dump({"teaching": TEACHING} if layouts is None else layouts))
    role = Role(list(nodes) or None, hostvars=hostvars, gpu_operator_mig_layouts=layouts, **inputs)
    role.variables["__gpu_operator_watched"] = role.variables["__gpu_operator_changing"] = list(WORKERS)
    return role


def settled(name: str, layout: str, state: str = "success", **offered: int) -> dict[str, Any]:
    """Return a node with labels as the MIG manager leaves them; `offered` by the ends of the resources' names."""
    labels = {"nvidia.com/mig.config": layout, "nvidia.com/mig.config.state": state}
    allocatable = {f"nvidia.com/{key.replace('_', '-', 1).replace('_', '.')}": str(n) for key, n in offered.items()}
    return node(name, metadata={"labels": labels}, status={"allocatable": allocatable or {"nvidia.com/gpu": "8"}})


@pytest.mark.proves("gpu-mig-layouts")
@pytest.mark.parametrize(
    ("entries", "said"),
    [
        pytest.param(TEACHING, "", id="good"),
        pytest.param([{"devices": "all", "slices": {"1g.10gb": 7}}], "", id="all"),
        pytest.param([{"devices": "all", "slices": {"4g.40gb": 1, "2g.20gb": 1, "1g.10gb": 1}}], "", id="seven-slices"),
        pytest.param([{"devices": "all", "slices": {"1g.20gb": 3, "1g.10gb": 2}}], "", id="eight-parts-of-memory"),
        pytest.param(
            [{"devices": "all", "slices": {"3g.40gb": 2, "1g.10gb": 1}}], "takes 9 parts of memory", id="memory"
        ),
        pytest.param([{"devices": "all", "slices": {"2g.20gb": 3, "1g.10gb": 2}}], "takes 8 slices", id="slices"),
        pytest.param(
            [{"devices": "all", "slices": {"4g.40gb": 2}}],
            "4g.40gb 2 times of one GPU, which has room for 1",
            id="most",
        ),
        pytest.param(
            [{"devices": "all", "slices": {"1g.5gb": 7}}], "a A100-80GB has 1g.10gb, 1g.10gb+me", id="of-another-model"
        ),
        pytest.param(
            [{"devices": [0, 1, 1]}, {"devices": [2, 3, 4, 5, 6, 7]}], "names device 1 twice", id="twice-in-one"
        ),
        pytest.param([{"devices": [*range(8)]}, {"devices": [3]}], "names device 3 twice", id="twice-in-two"),
        pytest.param([{"devices": [*range(9)]}], "names device 8, and the node has 0 to 7", id="beyond"),
        pytest.param(
            [{"devices": [6, 7], "slices": {"1g.10gb": 7}}], "says nothing of device 0, 1, 2, 3, 4, 5:", id="gap"
        ),
        pytest.param([{"devices": "all"}, {"devices": [7]}], "other entries beside one for all", id="all-and-more"),
        pytest.param([{"devices": "most"}], "names in entry 1 no devices", id="word"),
        pytest.param([{"device": [0]}], "something else than devices and slices", id="misspelt"),
        pytest.param([{"devices": "all", "slices": {"1g.10gb": "7"}}], "no numbers by profile", id="text"),
        pytest.param([], "no list of entries", id="empty"),
    ],
)
def test_a_layout_that_no_gpu_can_have_is_refused_before_anything_is_touched(entries: Any, said: str) -> None:
    told = cut(layouts={"teaching": entries}).refused("Refuse what no GPU can be cut into")
    assert bool(told) == bool(said), told
    assert said in told
    if said:
        assert "the layout teaching" in told and "gpu_operator_mig_layouts" in told


@pytest.mark.proves("gpu-mig-layouts")
@pytest.mark.parametrize(
    ("about", "said"),
    [
        pytest.param(
            {"layout": "teachin"}, "the layout teachin of two is none of all-disabled, teaching", id="unknown"
        ),
        pytest.param({"model": ""}, "gpu_operator_model is not set, known are A100-40GB", id="no-model"),
        pytest.param({"model": "V100"}, "gpu_operator_model is V100", id="model-unknown"),
        pytest.param({"gpus": 0}, "has no GPU to cut", id="no-gpus"),
        pytest.param({"gpus": 4}, "names device 7, and the node has 0 to 3", id="fewer-gpus"),
        pytest.param({"model": "H100-80GB"}, "", id="as-good"),
    ],
)
def test_a_layout_that_does_not_fit_its_worker_is_refused(about: dict[str, Any], said: str) -> None:
    nodes = {"two": {"layout": "teaching", "model": "A100-80GB", "gpus": 8} | about}
    faults = filters.mig_faults({"teaching": TEACHING}, nodes, MODELS)
    assert bool(faults) == bool(said)
    assert not said or said in faults[0]


@pytest.mark.proves("gpu-mig-layouts")
@pytest.mark.parametrize("name", ["all-disabled", "Teaching", "a_b", "x" * 41])
def test_a_layout_is_not_called_what_no_label_can_be_or_what_whole_gpus_are_called(name: str) -> None:
    assert len(filters.mig_faults({name: TEACHING}, {}, MODELS)) == 1


@pytest.mark.proves("gpu-mig-layouts")
def test_no_profile_takes_more_than_a_gpu_as_often_as_it_may_be_had() -> None:
    for model, profiles in MODELS.items():
        for name, about in profiles.items():
            assert about["slices"] * about["most"] <= 7, f"{model} {name}"
            assert about["memory"] * about["most"] <= 8, f"{model} {name}"
            assert name.startswith(f"{about['slices']}g.")


@pytest.mark.proves("gpu-mig-layouts")
def test_the_operator_gets_the_layouts_under_names_that_change_with_them_and_whole_gpus_with_them() -> None:
    config = cut().get("__gpu_operator_merged")["migManager"]["config"]
    parted = yaml.safe_load(config["data"]["config.yaml"])
    (name,) = parted["mig-configs"].keys() - {"all-disabled"}
    assert (config["create"], config["default"]) == (True, "all-disabled")
    assert config["name"] not in ("", "default-mig-parted-config")
    assert parted["version"] == "v1"
    assert parted["mig-configs"]["all-disabled"] == [{"devices": "all", "mig-enabled": False}]
    assert parted["mig-configs"][name] == [
        {"devices": [0, 1, 2, 3, 4, 5], "mig-enabled": False},
        {"devices": [6], "mig-enabled": True, "mig-devices": {"1g.10gb": 7}},
        {"devices": [7], "mig-enabled": True, "mig-devices": {"2g.20gb": 2, "3g.40gb": 1}},
    ]
    other = cut(layouts={"teaching": [*TEACHING[:2], {"devices": [7], "slices": {"7g.80gb": 1}}]})
    assert name.startswith("teaching-")
    assert name not in other.get("__gpu_operator_mig_names").values()
    assert "migManager" not in {key for key, value in Role().get("__gpu_operator_merged").items() if value}


@pytest.mark.proves("gpu-mig")
def test_what_a_worker_must_offer_is_what_its_layout_gives() -> None:
    role = cut()
    wanted = {
        "nvidia.com/gpu": 6,
        "nvidia.com/mig-1g.10gb": 7,
        "nvidia.com/mig-2g.20gb": 2,
        "nvidia.com/mig-3g.40gb": 1,
    }
    assert role.get("__gpu_operator_wanted") == {"one": {"nvidia.com/gpu": 8}, "two": wanted}
    everything = [{"devices": "all", "slices": {"1g.10gb+me": 1, "1g.10gb": 6}}]
    assert filters.gpu_offered({"nvidia.com/gpu": 8}, everything, {}) == {
        "nvidia.com/mig-1g.10gb.me": 8,
        "nvidia.com/mig-1g.10gb": 48,
    }


@pytest.mark.proves("gpu-mig")
def test_a_worker_is_changed_only_when_its_layout_is_another_and_found_healthy_only_when_it_offers_it() -> None:
    layout = cut().get("__gpu_operator_mig_names")["teaching"]
    offered: dict[str, Any] = {"gpu": 6, "mig_1g_10gb": 7, "mig_2g_20gb": 2, "mig_3g_40gb": 1}
    one = node("one")
    before = cut(one, node("two"))
    assert before.get("__gpu_operator_mig_differing") == ["two"]
    assert any("has the MIG layout all-disabled" in said for said in before.get("__gpu_operator_findings"))
    after = cut(one, settled("two", layout, **offered))
    assert after.get("__gpu_operator_mig_differing") == after.get("__gpu_operator_findings") == []
    pending = cut(one, settled("two", layout, "pending", **offered))
    assert pending.get("__gpu_operator_findings") == ["the MIG manager says pending of two"]
    assert pending.get("__gpu_operator_mig_failed") == []
    failed = cut(one, settled("two", layout, "failed", **offered))
    assert failed.get("__gpu_operator_mig_failed") == ["two"]
    fewer = cut(one, settled("two", layout, **offered | {"mig_1g_10gb": 6}))
    assert fewer.get("__gpu_operator_mig_differing") == []
    (said,) = fewer.get("__gpu_operator_findings")
    assert said.startswith("two offers ")
    back = cut(settled("one", layout, **offered), settled("two", layout, **offered))
    assert back.get("__gpu_operator_mig_differing") == ["one"]


def pod(name: str, on: str = "two", limits: dict[str, str] | None = None, **different: Any) -> dict[str, Any]:
    """Return a pod as the API gives it."""
    return {
        "metadata": {"name": name, "namespace": "jupyterhub", "labels": {}} | different,
        "spec": {"nodeName": on, "containers": [{"resources": {"limits": limits or {}}}]},
        "status": {"phase": "Running"},
    }


@pytest.mark.proves("gpu-mig")
def test_pods_that_have_gpus_of_a_worker_to_be_cut_are_named_and_no_others() -> None:
    gpu = {"nvidia.com/gpu": "1"}
    pods = [
        pod("whole", limits=gpu),
        pod("slice", limits={"nvidia.com/mig-1g.10gb": "1"}),
        pod("cpu", limits={"cpu": "1"}),
        pod("elsewhere", on="one", limits=gpu),
        pod("over", limits=gpu) | {"status": {"phase": "Succeeded"}},
        pod("validator", limits=gpu, namespace="gpu-operator"),
    ]
    role = cut(__gpu_operator_all_pods={"resources": pods})
    role.variables["__gpu_operator_changing"] = ["two"]
    assert role.get("__gpu_operator_mig_held") == ["two: jupyterhub/slice, jupyterhub/whole"]
    assert "playbooks/operations/mig_apply.yml" in role.get("__gpu_operator_mig_refusal")


@pytest.mark.proves("gpu-mig")
def test_a_worker_is_closed_meanwhile_and_opened_only_by_who_closed_it() -> None:
    closed = cut(node("one", spec={"unschedulable": True}), node("two"))
    assert [one["metadata"]["name"] for one in closed.get("__gpu_operator_mig_close")] == ["two"]
    (change,) = closed.get("__gpu_operator_mig_close")
    assert change["spec"] == {"unschedulable": True}
    mark = change["metadata"]["annotations"]
    ours = node("two", metadata={"annotations": mark}, spec={"unschedulable": True})
    (change,) = cut(node("one", spec={"unschedulable": True}), ours).get("__gpu_operator_mig_open")
    assert change["metadata"] == {"name": "two", "annotations": dict.fromkeys(mark)}
    assert change["spec"] == {"unschedulable": False}


@pytest.mark.proves("gpu-mig")
def test_the_managers_of_the_workers_to_be_cut_are_made_anew_and_the_state_is_asked_for_again() -> None:
    manager: dict[str, Any] = {"namespace": "gpu-operator", "labels": {"app": "nvidia-mig-manager"}}
    pods = [
        pod("manager-two", **manager),
        pod("manager-one", on="one", **manager),
        pod("other", namespace="gpu-operator"),
    ]
    role = cut(__gpu_operator_all_pods={"resources": pods})
    role.variables["__gpu_operator_changing"] = ["two"]
    assert [one["metadata"]["name"] for one in role.get("__gpu_operator_mig_managers")] == ["manager-two"]
    (change,) = role.get("__gpu_operator_mig_labels")
    assert change["metadata"]["labels"] == {
        "nvidia.com/mig.config": role.get("__gpu_operator_mig_names")["teaching"],
        "nvidia.com/mig.config.state": "pending",
    }


@pytest.mark.proves("gpu-shared")
def test_what_is_shared_has_another_name_and_cannot_be_had_twice_and_nothing_is_shared_by_default() -> None:
    role = cut(gpu_operator_shared={"nvidia.com/mig-1g.10gb": 4})
    config = role.get("__gpu_operator_merged")["devicePlugin"]["config"]
    told = yaml.safe_load(config["data"][config["default"]])
    assert told["flags"] == {"migStrategy": "mixed"}
    assert told["sharing"]["timeSlicing"] == {
        "renameByDefault": True,
        "failRequestsGreaterThanOne": True,
        "resources": [{"name": "nvidia.com/mig-1g.10gb", "replicas": 4}],
    }
    wanted = role.get("__gpu_operator_wanted")
    assert wanted["one"] == {"nvidia.com/gpu": 8}
    assert wanted["two"]["nvidia.com/mig-1g.10gb.shared"] == 28
    assert "nvidia.com/mig-1g.10gb" not in wanted["two"]
    other = cut(gpu_operator_shared={"nvidia.com/mig-1g.10gb": 3}).get("__gpu_operator_merged")["devicePlugin"][
        "config"
    ]
    assert other["default"] != config["default"]
    assert not Role().get("__gpu_operator_merged")["devicePlugin"]


# NVIDIA's runtime

CONTAINERD = """[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}]
  runtime_type = "io.containerd.runc.v2"
"""


@pytest.mark.proves("gpu-runtime-class")
@pytest.mark.parametrize(
    ("read", "there", "said"),
    [
        pytest.param({"content": CONTAINERD.format(name="nvidia")}, True, "", id="good"),
        pytest.param({"content": CONTAINERD.format(name="'nvidia'")}, True, "", id="quoted"),
        pytest.param(
            {"content": CONTAINERD.format(name="nvidia")}, False, "RuntimeClass nvidia is not there", id="class"
        ),
        pytest.param({"content": CONTAINERD.format(name="nvidia-cdi")}, True, "restart rke2-agent", id="another"),
        pytest.param({"content": "# nvidia"}, True, "RKE2 on two gives containerd no runtime nvidia", id="only-named"),
        pytest.param({"msg": "file not found"}, True, "cannot be read: file not found", id="unreadable"),
    ],
)
def test_a_worker_whose_containerd_does_not_know_the_runtime_is_named(
    read: dict[str, str], there: bool, said: str
) -> None:
    answer = {"item": "two"} | read
    if "content" in answer:
        answer["content"] = base64.b64encode(answer["content"].encode()).decode()
    role = Role(
        __gpu_operator_class={"resources": [{}] if there else []}, __gpu_operator_containerd={"results": [answer]}
    )
    told = role.refused("Name what keeps pods from NVIDIA's runtime", "verify")
    assert bool(told) == bool(said)
    assert said in told


@pytest.mark.proves("gpu-runtime-class")
def test_containerd_is_read_on_workers_with_gpus_unless_the_toolkit_is_the_machines_own() -> None:
    hostvars: dict[str, Any] = {"one": {}, "two": {"gpu_operator_gpus": {"nvidia.com/gpu": 8}}}
    assert Role(hostvars=hostvars).get("__gpu_operator_runtime_nodes") == ["two"]
    values = {"toolkit": {"enabled": False}}
    assert Role(hostvars=hostvars, gpu_operator_values=values).get("__gpu_operator_runtime_nodes") == []
