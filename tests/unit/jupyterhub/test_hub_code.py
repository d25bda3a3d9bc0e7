"""The hub's code against the real JupyterHub, KubeSpawner and OAuthenticator of the charts we install.

These stand in no Python environment of the project: what a hub runs on is not what the driver runs on. So each set of
releases gets an environment of its own below the cache, made once, and the checks in hub/ run inside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
ROLE = ROOT / "roles/jupyterhub"
LAB = ROOT / "molecule/lab/platform/jupyterhub"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "metalhub/hub"
# What the hub's image of each chart holds; the lab builds one of them.
RELEASES = {
    "4.4.0": yaml.safe_load((LAB / "images.yml").read_text())["quay.io/jupyterhub/k8s-hub:4.4.0"]["pip"],
    "4.3.1": [
        "jupyterhub==5.4.1",
        "jupyterhub-kubespawner==7.0.0",
        "oauthenticator==17.3.0",
        "jupyterhub-idle-culler==1.4.0",
        "pycurl==7.49.0",
        "pyyaml==6.0.3",
    ],
}
CHECKS = ["pytest==9.2.0", "jupyter-server==2.21.1", "ipykernel==7.4.0"]
INPUTS = {
    "site_name": "test",
    "site_host": "hub.example.org",
    "vault_site_hub_client_secret": "client" * 6,
    "vault_site_hub_cookie_secret": "ab" * 32,
    "vault_site_hub_proxy_token": "cd" * 32,
    "vault_site_hub_crypt_key": "ef" * 32,
    "jupyterhub_api_servers": ["192.0.2.21", "192.0.2.22"],
}


@pytest.fixture(autouse=True, scope="module")
def plugins() -> None:
    """Let templates find filters and lookups."""
    init_plugin_loader()


def decide(name: str, **inputs: Any) -> Any:
    """Return the role's variable `name` with the inputs given."""
    loader = DataLoader()
    variables: dict[str, Any] = {"ansible_search_path": [str(ROLE)], "role_path": str(ROLE)}
    for part in ("defaults", "vars"):
        variables |= loader.load_from_file(str(ROLE / part / "main.yml"), trusted_as_template=True)
    variables |= INPUTS | inputs
    return json.loads(json.dumps(Templar(loader=loader, variables=variables).template(variables[name])))


def environment(releases: list[str]) -> Path:
    """Return the Python of an environment with these releases, made if it is not there yet."""
    wanted = [*releases, *CHECKS]
    directory = CACHE / hashlib.sha256(json.dumps([sys.version, wanted]).encode()).hexdigest()[:16]
    python = directory / "bin/python"
    if not (directory / "made").exists():
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        (directory / "made").touch()
    return python


def laid_down(values: Mapping[str, Any], directory: Path) -> None:
    """Write what the lab's chart mounts into the hub: its defaults merged with the role's values, secrets, files."""
    merged = yaml.safe_load((LAB / "chart/values.yaml").read_text())

    def merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
        for key, value in other.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(merged, values)
    secret = directory / "secret"
    secret.mkdir(parents=True)
    (secret / "values.yaml").write_text(yaml.safe_dump(merged))
    (secret / "hub.config.JupyterHub.cookie_secret").write_text(merged["hub"]["cookieSecret"])
    (secret / "hub.config.CryptKeeper.keys").write_text(";".join(merged["hub"]["config"]["CryptKeeper"]["keys"]))
    (secret / "hub.config.ConfigurableHTTPProxy.auth_token").write_text(merged["proxy"]["secretToken"])
    for file in merged["hub"]["extraFiles"].values():
        place = Path(file["mountPath"])
        # What the hub serves as it is has no part in its configuration.
        if not place.is_relative_to("/usr/local/etc/jupyterhub"):
            continue
        target = directory / place.relative_to("/usr/local/etc/jupyterhub")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file["stringData"])


def prepared(directory: Path) -> None:
    """Lay down a hub with the role's profiles, one of them for a group of its own, and slices."""
    cpu, gpu_1, gpu_2, gpu_4 = decide("jupyterhub_profiles")
    gpu_2["groups"] = ["large"]
    slices = gpu_1 | {"slug": "slice", "display_name": "A slice", "resource": "nvidia.com/mig-1g.10gb"}
    profiles = [cpu, gpu_1, gpu_2, gpu_4, slices]
    laid_down(decide("__jupyterhub_values", jupyterhub_profiles=profiles), directory)


@pytest.mark.proves(
    "hub-login-tls",
    "hub-homes",
    "hub-leaving",
    "hub-reports",
    "hub-logout",
    "hub-packing",
    "hub-free",
    "hub-cancel",
    "hub-forged",
    "hub-visits",
    "hub-maintenance",
    "hub-kernels",
)
@pytest.mark.parametrize("chart", [pytest.param(name, id=name) for name in RELEASES])
def test_the_hub_shows_and_starts_what_the_role_says(chart: str, tmp_path: Path) -> None:
    python = environment(RELEASES[chart])
    prepared(tmp_path / "etc")
    settings = {
        "HOME": str(tmp_path),
        "LAB_HUB_DIRECTORY": str(tmp_path / "etc"),
        "LAB_HUB_CONFIG": str(LAB / "chart/files/jupyterhub_config.py"),
        # KubeSpawner reads how to reach a cluster when it is loaded; nothing is contacted.
        "KUBECONFIG": str(HERE / "hub/kubeconfig.yml"),
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    checks = str(HERE / "hub")
    command = [str(python), "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", checks, "--confcutdir", checks]
    command += ["-p", "no:cacheprovider", "-o", "python_files=check_*.py", "--tb=short", checks]
    done = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_every_profile_takes_what_the_one_before_may_have_left() -> None:
    first, *others = decide("__jupyterhub_profile_list")
    override = first["kubespawner_override"]
    assert override["extra_resource_limits"] == override["extra_resource_guarantees"] == {"nvidia.com/gpu": None}
    assert override["environment"] == {"NVIDIA_VISIBLE_DEVICES": "void"}
    for profile, gpus in zip(others, ("1", "2", "4"), strict=True):
        override = profile["kubespawner_override"]
        assert override["extra_resource_limits"] == override["extra_resource_guarantees"] == {"nvidia.com/gpu": gpus}
        assert override["environment"] == {"NVIDIA_VISIBLE_DEVICES": None}


def test_slices_are_a_resource_of_their_own() -> None:
    slice_ = {
        "slug": "slice",
        "display_name": "A slice",
        "gpus": 1,
        "resource": "nvidia.com/mig-1g.10gb",
        "cpu": {"guarantee": 1, "limit": 2},
        "memory": {"guarantee": "1G", "limit": "2G"},
    }
    [profile] = decide("__jupyterhub_profile_list", jupyterhub_profiles=[slice_])
    assert profile["kubespawner_override"]["extra_resource_limits"] == {"nvidia.com/mig-1g.10gb": "1"}


@pytest.mark.proves("hub-core")
@pytest.mark.parametrize("component", ["hub", "proxy.chp"])
def test_the_hub_and_its_proxy_run_on_the_servers_of_the_cluster(component: str) -> None:
    values = part = decide("__jupyterhub_values")
    for key in component.split("."):
        part = part[key]
    assert part["nodeSelector"] == {"node-role.kubernetes.io/control-plane": "true"}
    assert part["extraPodSpec"] == {"priorityClassName": "system-cluster-critical"}
    [toleration] = values["scheduling"]["corePods"]["tolerations"]
    assert (toleration["key"], toleration["operator"]) == ("node-role.kubernetes.io/control-plane", "Exists")


@pytest.mark.proves("jupyterhub-network")
@pytest.mark.parametrize("component", ["hub", "proxy.chp", "singleuser"])
def test_nobody_is_let_to_private_addresses_at_large(component: str) -> None:
    part = decide("__jupyterhub_values")
    for key in component.split("."):
        part = part[key]
    rules = part["networkPolicy"]["egressAllowRules"]
    assert (rules["privateIPs"], rules["cloudMetadataServer"]) == (False, False)


def ingress_controllers(ingress: Any) -> None:
    """Require that a rule opens the way to the ingress controller's pods, whichever release brought them."""
    assert [peer["podSelector"]["matchLabels"] for peer in ingress["to"]] == [
        {"app.kubernetes.io/name": "rke2-ingress-nginx"},
        {"app.kubernetes.io/name": "ingress-nginx"},
    ]
    assert [list(peer["namespaceSelector"]["matchLabels"].values()) for peer in ingress["to"]] == [
        ["kube-system"],
        ["ingress-nginx"],
    ]
    assert ingress["ports"] == [{"protocol": "TCP", "port": 443}]


@pytest.mark.proves("jupyterhub-network")
def test_the_hub_is_let_to_the_api_servers_and_to_the_ingress_controller() -> None:
    api, ingress = decide("__jupyterhub_values")["hub"]["networkPolicy"]["egress"]
    assert [peer["ipBlock"]["cidr"] for peer in api["to"]] == ["192.0.2.21/32", "192.0.2.22/32"]
    assert api["ports"] == [{"protocol": "TCP", "port": 6443}]
    ingress_controllers(ingress)


@pytest.mark.proves("jupyterhub-network")
def test_users_are_let_to_the_ingress_controller_and_to_no_api_server() -> None:
    [ingress] = decide("__jupyterhub_values")["singleuser"]["networkPolicy"]["egress"]
    ingress_controllers(ingress)


@pytest.mark.proves("jupyterhub-network")
def test_users_reach_the_private_networks_that_the_site_names() -> None:
    values = decide("__jupyterhub_values", jupyterhub_user_networks=["192.0.2.96/28"])
    assert {"to": [{"ipBlock": {"cidr": "192.0.2.96/28"}}]} in values["singleuser"]["networkPolicy"]["egress"]


@pytest.mark.parametrize(
    ("slugs", "faulty"),
    [
        pytest.param(["cpu", "gpu-1"], [], id="fine"),
        pytest.param(["cpu", "cpu"], ["cpu"], id="twice"),
        pytest.param(["GPU"], ["GPU"], id="capital"),
        pytest.param(["a b", "-a", "a-"], ["a b", "-a", "a-"], id="signs"),
    ],
)
def test_slugs_that_are_no_names_are_refused(slugs: list[str], faulty: list[str]) -> None:
    profiles = [{"slug": slug} for slug in slugs]
    assert sorted(set(decide("__jupyterhub_faulty_slugs", jupyterhub_profiles=profiles))) == sorted(set(faulty))


@pytest.mark.parametrize(
    ("limits", "faulty"),
    [
        pytest.param([2, 8], [], id="fine"),
        pytest.param([2, 2], ["a.cpu_choices"], id="twice"),
        pytest.param([6], ["a.cpu_choices"], id="again"),
    ],
)
def test_choices_of_one_name_are_refused(limits: list[int], faulty: list[str]) -> None:
    choices = [{"guarantee": 1, "limit": limit} for limit in limits]
    memory = {"guarantee": "1G", "limit": "1G"}
    profile = {"slug": "a", "cpu": {"guarantee": 1, "limit": 6}, "memory": memory, "cpu_choices": choices}
    assert decide("__jupyterhub_faulty_choices", jupyterhub_profiles=[profile]) == faulty


@pytest.mark.proves("hub-rights")
def test_the_hub_may_list_nodes_and_pods_and_nothing_more() -> None:
    role, binding = decide("__jupyterhub_capacity")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["list"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "hub", "namespace": "jupyterhub"}]


@pytest.mark.parametrize(
    ("image", "name", "tag"),
    [
        pytest.param("registry.example.org:5000/a/b:1", "registry.example.org:5000/a/b", "1", id="port"),
        pytest.param("quay.io/a/b@sha256:00ff", "quay.io/a/b@sha256", "00ff", id="digest"),
    ],
)
def test_an_image_is_handed_over_in_the_charts_two_parts(image: str, name: str, tag: str) -> None:
    assert decide("__jupyterhub_values", jupyterhub_image=image)["singleuser"]["image"] == {"name": name, "tag": tag}


def test_what_the_site_sets_wins_and_leaves_the_rest() -> None:
    values = decide("__jupyterhub_values", jupyterhub_values={"hub": {"resources": {"requests": {"cpu": "10m"}}}})
    assert values["hub"]["resources"]["requests"] == {"cpu": "10m", "memory": "512Mi"}
    assert values["hub"]["baseUrl"] == "/jupyterhub/"
