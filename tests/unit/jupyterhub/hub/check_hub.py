"""Runs inside a hub's own environment: the role's values and code, through the real classes.

The profiles are the role's defaults: the third (gpu-2) kept for the group `large`, and slices.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes_asyncio.client import ApiClient, Configuration
from kubespawner import KubeSpawner
from oauthenticator.generic import GenericOAuthenticator
from tornado import web
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

GPU = "nvidia.com/gpu"
SLICE = "nvidia.com/mig-1g.10gb"


@pytest.fixture(scope="module")
def config() -> Config:
    """Return what the hub's configuration file comes to."""
    path = Path(os.environ["LAB_HUB_CONFIG"])
    return PyFileConfigLoader(path.name, str(path.parent)).load_config()


def answer(*items: Any) -> Any:
    """Return what a client hands over that does not read the answer."""

    async def read() -> bytes:
        return json.dumps({"items": items}).encode()

    return SimpleNamespace(read=read)


def node(name: str, ready: str = "True", unschedulable: bool = False, **offered: str) -> Any:
    """Return a node as the API server writes it."""
    allocatable = {GPU: offered.get("gpus", "0"), SLICE: offered.get("slices", "0")}
    status = {"conditions": [{"type": "Ready", "status": ready}], "allocatable": allocatable}
    return {"metadata": {"name": name}, "spec": {"unschedulable": unschedulable}, "status": status}


def taken(where: str, gpus: str, phase: str = "Running") -> Any:
    """Return a pod on a node, or on none."""
    containers = [{"resources": {"limits": {GPU: gpus}}}, {}]
    return {"spec": {"nodeName": where, "containers": containers}, "status": {"phase": phase}}


class Cluster:
    """Nodes and pods as one may list them; without any, the cluster answers nothing."""

    def __init__(self, *nodes: Any, pods: tuple[Any, ...] = ()) -> None:
        self.nodes, self.pods, self.asked = nodes, pods, 0

    async def list_node(self, **_: Any) -> Any:
        """Return the nodes."""
        self.asked += 1
        if not self.nodes:
            raise OSError("no route")
        return answer(*self.nodes)

    async def list_pod_for_all_namespaces(self, **_: Any) -> Any:
        """Return the pods."""
        return answer(*self.pods)


def spawner(config: Config, *groups: str, **options: object) -> Any:
    """Return the spawner of a user in these groups who asked for these options; it takes a running loop."""
    made = KubeSpawner(_mock=True, config=config)
    made.api = Cluster()
    made.user.groups = [SimpleNamespace(name=group) for group in groups]
    made.user_options = options
    return made


def start(config: Config, *groups: str, **options: object) -> Any:
    """Return the pod that the user would get."""

    async def all_of_it() -> Any:
        made = spawner(config, *groups, **options)
        await made.load_user_options()
        return await made.get_pod_manifest()

    return asyncio.run(all_of_it())


def hook(config: Config, *groups: str, **options: object) -> None:
    """Run what the hub runs before it starts a server."""

    async def run() -> None:
        config.KubeSpawner.pre_spawn_hook(spawner(config, *groups, **options))

    asyncio.run(run())


def gpus(pod: Any) -> tuple[object, object]:
    """Return how many GPUs the pod asks for and how many it may have."""
    resources = pod.spec.containers[0].resources
    return resources.requests.get(GPU), resources.limits.get(GPU)


def variables(pod: Any) -> dict[str, str]:
    """Return the environment of the pod's container."""
    return {variable.name: variable.value for variable in pod.spec.containers[0].env}


def show(config: Config, *groups: str, cluster: Cluster | None = None) -> str:
    """Return the form that users of these groups see, the cluster being asked anew."""

    async def form() -> str:
        made = spawner(config, *groups)
        made.api = cluster or made.api
        config.KubeSpawner.options_form.__self__.capacity.asked = float("-inf")
        return str(await made.get_options_form())

    return asyncio.run(form())


def test_the_configuration_is_what_the_role_says(config: Config) -> None:
    assert config.JupyterHub.base_url == "/jupyterhub/"
    assert config.JupyterHub.cookie_secret == bytes.fromhex("ab" * 32)
    assert config.Spawner.consecutive_failure_limit == 0
    assert config.CryptKeeper["keys"] == ["ef" * 32]
    assert config.KubeSpawner.delete_pvc is False


def test_the_authenticator_accepts_its_configuration(config: Config) -> None:
    found = GenericOAuthenticator(config=config)
    assert found.validate_server_cert is True
    assert found.http_request_kwargs == {"ca_certs": "/etc/site-ca/ca-bundle.pem"}
    assert (found.manage_groups, found.enable_auth_state, found.allow_all) == (True, True, False)
    assert found.allowed_groups == {"hub-users", "hub-admins"}
    assert found.admin_groups == {"hub-admins"}
    assert found.oauth_callback_url == "https://hub.example.org/jupyterhub/hub/oauth_callback"


@pytest.mark.parametrize(
    ("claimed", "allowed", "admin"),
    [(["hub-users"], True, False), (["hub-admins"], True, True), (["others"], False, False), ([], False, False)],
)
def test_groups_decide_who_logs_in_and_who_is_administrator(
    config: Config, claimed: list[str], allowed: bool, admin: bool
) -> None:
    found = GenericOAuthenticator(config=config)
    state = {"oauth_user": {"preferred_username": "ada", "groups": claimed}}
    model = {"name": "ada", "admin": None, "auth_state": state, "groups": claimed}

    async def ask() -> tuple[bool, bool]:
        updated = await found._apply_managed_groups(await found.update_auth_model(dict(model)))
        return bool(updated["admin"]), bool(await found.check_allowed("ada", updated))

    assert asyncio.run(ask()) == (admin, allowed)


def test_without_choosing_one_gets_the_first_profile_and_no_gpu(config: Config) -> None:
    pod = start(config, "hub-users")
    assert gpus(pod) == (None, None)
    assert variables(pod)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert pod.metadata.labels["metalhub/profile"] == "cpu"
    # The policies find the pod by this one.
    assert pod.metadata.labels["hub.jupyter.org/network-access-hub"] == "true"


@pytest.mark.parametrize("count", ["1", "4"])
def test_a_profile_has_the_gpus_it_says(config: Config, count: str) -> None:
    pod = start(config, "hub-users", profile=f"gpu-{count}")
    assert gpus(pod) == (count, count)
    # The device plugin says which; a value of the pod's own would win over it.
    assert "NVIDIA_VISIBLE_DEVICES" not in variables(pod)
    assert variables(pod)["SSL_CERT_FILE"] == "/etc/site-ca/ca-bundle.pem"


def test_gpus_of_the_last_server_do_not_stay_with_a_spawner_that_lives_on(config: Config) -> None:
    async def twice() -> tuple[object, object]:
        made = spawner(config, "hub-users", profile="gpu-4")
        await made.load_user_options()
        made.user_options = {"profile": "cpu"}
        await made.load_user_options()
        return gpus(await made.get_pod_manifest())

    assert asyncio.run(twice()) == (None, None)


def test_users_see_their_groups_profiles_only(config: Config) -> None:
    seen = show(config, "hub-users")
    assert "gpu-1" in seen
    assert "gpu-2" not in seen
    assert "gpu-2" in show(config, "hub-users", "large")


def written(pod: Any) -> Any:
    """Return the pod as it is sent to the API server."""
    with_settings = ApiClient.__new__(ApiClient)
    with_settings.configuration = Configuration()
    return with_settings.sanitize_for_serialization(pod)


def preferences(pod: Any) -> dict[str, int]:
    """Return how much a pod wants to be where servers with so many GPUs are."""
    rules = written(pod)["spec"]["affinity"].get("podAffinity", {})
    found = {}
    for rule in rules.get("preferredDuringSchedulingIgnoredDuringExecution", []):
        assert rule["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
        found[rule["podAffinityTerm"]["labelSelector"]["matchLabels"]["metalhub/gpus"]] = rule["weight"]
    return found


def test_users_pods_go_to_workers_whatever_keeps_others_from_gpus(config: Config) -> None:
    for slug in ("cpu", "gpu-4"):
        pod = start(config, "hub-users", profile=slug)
        assert GPU in [toleration.key for toleration in pod.spec.tolerations if toleration.operator == "Exists"]
        wanted = written(pod)["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        expression = {"key": "node-role.kubernetes.io/control-plane", "operator": "DoesNotExist"}
        assert wanted["nodeSelectorTerms"] == [{"matchExpressions": [expression]}]


def test_who_wants_gpus_prefers_the_machine_where_most_are_taken(config: Config) -> None:
    for count in ("1", "4"):
        pod = start(config, "hub-users", profile=f"gpu-{count}")
        assert pod.metadata.labels["metalhub/gpus"] == count
        assert preferences(pod) == {"1": 25, "2": 50, "4": 100}


def test_who_wants_no_gpu_prefers_nothing(config: Config) -> None:
    async def after_gpus() -> Any:
        made = spawner(config, "hub-users", profile="gpu-4")
        await made.load_user_options()
        made.user_options = {"profile": "cpu"}
        await made.load_user_options()
        return await made.get_pod_manifest()

    pod = asyncio.run(after_gpus())
    assert "metalhub/gpus" not in pod.metadata.labels
    assert preferences(pod) == {}


@pytest.mark.parametrize("slug", ["gpu-2", "nonsense", "GPU-2", "gpu-2 ", "../cpu"])
def test_a_forged_profile_makes_no_pod(config: Config, slug: str) -> None:
    with pytest.raises(ValueError, match="No such profile"):
        start(config, "hub-users", profile=slug)
    with pytest.raises(web.HTTPError) as refused:
        hook(config, "hub-users", profile=slug)
    assert refused.value.status_code == 403


@pytest.mark.parametrize("slug", [["gpu-2"], {"slug": "gpu-2"}, 2, True])
def test_a_profile_of_another_type_makes_no_pod(config: Config, slug: object) -> None:
    with pytest.raises(ValueError, match="No such profile"):
        start(config, "hub-users", profile=slug)
    with pytest.raises(web.HTTPError):
        hook(config, "hub-users", profile=slug)


@pytest.mark.parametrize(
    "options",
    [
        {"image": "evil:1"},
        {"image--unlisted-choice": "evil:1"},
        {"extra_resource_limits": {GPU: "8"}},
        {"kubespawner_override": {"extra_resource_limits": {GPU: "8"}, "image": "evil:1"}},
        {"profile-option-cpu--image": "evil:1"},
    ],
)
def test_whatever_else_is_asked_for_changes_nothing(config: Config, options: dict[str, object]) -> None:
    with pytest.raises(web.HTTPError) as refused:
        hook(config, "hub-users", profile="cpu", **options)
    assert refused.value.status_code == 403
    # Nor would it change anything.
    pod = start(config, "hub-users", profile="cpu", **options) if "cpu" not in options else None
    if pod is not None:
        assert gpus(pod) == (None, None)
        assert pod.spec.containers[0].image == config.KubeSpawner.image


@pytest.mark.parametrize(
    "options",
    [
        {"cpu": "32"},
        {"cpu": "99"},
        {"memory": "64G"},
        {"cpu": ["6"]},
        {"cpu": 6},
        {"cpu--unlisted-choice": "64"},
        {"memory": ""},
        {"memory": None},
    ],
)
@pytest.mark.parametrize("profile", [{}, {"profile": "cpu"}])
def test_a_choice_that_is_not_listed_makes_no_pod(
    config: Config, options: dict[str, object], profile: dict[str, object]
) -> None:
    with pytest.raises(web.HTTPError) as refused:
        hook(config, "hub-users", **profile, **options)
    assert refused.value.status_code == 403


def test_choices_are_what_the_profile_lists(config: Config) -> None:
    for cores, memory in (("2", "4G"), ("4", "8G"), ("6", "16G"), ("8", "32G"), ("16", "4G")):
        hook(config, "hub-users", profile="cpu", cpu=cores, memory=memory)
        resources = start(config, "hub-users", profile="cpu", cpu=cores, memory=memory).spec.containers[0].resources
        assert (resources.limits["cpu"], resources.limits["memory"]) == (float(cores), int(memory[:-1]) * 2**30)
        # A quarter of the memory is there at any time, and some of the cores.
        assert resources.requests["memory"] * 4 == resources.limits["memory"]
        assert 0 < resources.requests["cpu"] < resources.limits["cpu"]
    resources = start(config, "hub-users").spec.containers[0].resources
    assert (resources.limits["cpu"], resources.limits["memory"]) == (6.0, 4 * 2**30)


def test_a_choice_of_one_profile_is_none_of_another(config: Config) -> None:
    with pytest.raises(web.HTTPError):
        hook(config, "hub-users", profile="gpu-1", cpu="2")


def test_the_page_says_what_is_free(config: Config) -> None:
    busy = [taken("one", "2") for _ in range(3)] + [taken("two", "7"), taken("two", "8", "Succeeded"), taken("", "4")]
    machines = (node("one", gpus="8"), node("two", gpus="8"), node("master", slices="7"))
    away = (node("cordoned", unschedulable=True, gpus="8"), node("lost", ready="Unknown", gpus="8"))
    page = show(config, "hub-users", cluster=Cluster(*machines, *away, pods=tuple(busy)))
    assert "3 of 16 GPUs are free now." in page
    assert "3 of 16 GPUs are free now; a server waits until a machine has 4 to give." in page
    assert "7 of 7 mig-1g.10gb are free now." in page


def test_a_cluster_that_does_not_answer_takes_nothing_from_the_page(config: Config) -> None:
    page = show(config, "hub-users")
    assert "gpu-4" in page
    assert "free now" not in page


def test_a_cluster_that_is_silent_does_not_hold_the_page_up(config: Config) -> None:
    class Silent(Cluster):
        async def list_node(self, **_: Any) -> Any:
            await asyncio.sleep(60)

    began = time.monotonic()
    assert "gpu-4" in show(config, "hub-users", cluster=Silent())
    assert time.monotonic() - began < 5


def test_the_cluster_is_not_asked_for_every_page(config: Config) -> None:
    cluster = Cluster(node("one", gpus="8"))
    show(config, "hub-users", cluster=cluster)

    async def again() -> str:
        made = spawner(config, "hub-users")
        made.api = cluster
        return str(await made.get_options_form())

    assert "8 of 8 GPUs are free now." in asyncio.run(again())
    assert cluster.asked == 1


@pytest.mark.parametrize("groups", [(), ("others",), ("large",)])
@pytest.mark.parametrize("options", [{}, {"profile": "cpu"}, {"profile": "gpu-2"}])
def test_whoever_may_not_log_in_any_more_starts_nothing(
    config: Config, groups: tuple[str, ...], options: dict[str, object]
) -> None:
    with pytest.raises(web.HTTPError) as refused:
        start(config, *groups, **options)
    assert refused.value.status_code == 403
    with pytest.raises(web.HTTPError):
        hook(config, *groups, **options)
    with pytest.raises(web.HTTPError):
        show(config, *groups)


def test_kernels_that_compute_nothing_end_and_busy_ones_do_not(config: Config) -> None:
    words = start(config, "hub-users").spec.containers[0].args
    given = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--"))
    assert given["MappingKernelManager.cull_idle_timeout"] == "14400"
    assert given["MappingKernelManager.cull_connected"] == "True"
    assert given["ServerApp.shutdown_no_activity_timeout"] == "3600"
    assert "MappingKernelManager.cull_busy" not in given


def test_a_profile_that_names_no_group_is_open_to_nobody(config: Config) -> None:
    code = sys.modules["metalhub_profiles"]
    assert code.permitted([{"slug": "a"}, {"slug": "b", "allowed_groups": []}], ["hub-users"]) == []


def test_the_home_is_the_users_own_and_trust_is_mounted(config: Config) -> None:
    pod = start(config, "hub-users")
    mounts = {mount["mountPath"] if isinstance(mount, dict) else mount.mount_path
              for mount in pod.spec.containers[0].volume_mounts}  # fmt: skip
    ours = "/usr/local/etc/jupyter/jupyter_server_config.py"
    assert mounts == {"/home/jovyan", "/etc/site-ca", "/dev/shm", ours}
    assert pod.spec.init_containers in (None, [])
    assert pod.spec.scheduler_name is None
