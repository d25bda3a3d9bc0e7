"""What a published platform of this kind got wrong is otherwise in what the roles give their charts."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.unit.jupyterhub.test_hub_code import decide, plugins
from tests.unit.roles import test_ingress_nginx as roles

pytestmark = pytest.mark.proves("reference-mistakes")
__all__ = ["plugins"]  # a fixture that this file uses, too

UNITS = {"M": 10**6, "G": 10**9, "T": 10**12, "Mi": 2**20, "Gi": 2**30}


def size(text: str) -> int:
    """Return the bytes of what Kubernetes or KubeSpawner calls such as 4G."""
    found = re.fullmatch(r"(\d+)(\w+)", text)
    assert found, text
    return int(found[1]) * UNITS[found[2]]


@pytest.fixture(scope="module")
def values(plugins: None) -> Any:
    """Return what the role gives the hub's chart."""
    return decide("__jupyterhub_values")


@pytest.mark.parametrize("realm", ["hub", "icar"])
def test_hub_and_keycloak_name_the_same_issuer_at_the_public_name(realm: str) -> None:
    inputs = {"site_identity_realm": realm}
    issuer = roles.decide("__keycloak_issuer", "keycloak", **inputs)
    assert issuer == f"https://hub.example.org/sso/realms/{realm}"
    authenticator = decide("__jupyterhub_values", **inputs)["hub"]["config"]["GenericOAuthenticator"]
    for key in ("authorize_url", "token_url", "userdata_url"):
        assert authenticator[key].startswith(f"{issuer}/protocol/openid-connect/")


def test_keycloak_sends_logins_to_the_callback_that_the_hub_has(values: Any) -> None:
    ours = values["hub"]["config"]["GenericOAuthenticator"]["oauth_callback_url"]
    assert ours == roles.decide("__keycloak_callback", "keycloak")


def test_the_hub_and_keycloak_share_one_address_and_differ_by_path(values: Any) -> None:
    assert values["proxy"]["service"]["type"] == "ClusterIP"
    login = roles.decide("__keycloak_values", "keycloak")["ingress"]
    assert values["ingress"]["hosts"] == [rule["host"] for rule in login["rules"]]
    assert values["hub"]["baseUrl"] not in [path["path"] for rule in login["rules"] for path in rule["paths"]]


def test_a_gpu_comes_with_memory_and_cores_for_it() -> None:
    found = [profile for profile in decide("jupyterhub_profiles") if profile.get("gpus")]
    assert found
    for profile in found:
        assert size(profile["memory"]["guarantee"]) >= profile["gpus"] * size("32G"), profile
        assert profile["cpu"]["guarantee"] >= profile["gpus"] * 4, profile


def test_eight_servers_of_one_gpu_fit_on_a_published_worker() -> None:
    [single] = [profile for profile in decide("jupyterhub_profiles") if profile.get("gpus") == 1]
    assert 8 * size(single["memory"]["guarantee"]) < size("2000G")
    assert 8 * single["cpu"]["guarantee"] < 256


def test_servers_have_shared_memory(values: Any) -> None:
    storage = values["singleuser"]["storage"]
    [volume] = [one for one in storage["extraVolumes"] if one.get("emptyDir", {}).get("medium") == "Memory"]
    assert {"name": volume["name"], "mountPath": "/dev/shm"} in storage["extraVolumeMounts"]


def test_a_start_may_take_longer_than_a_large_image(values: Any) -> None:
    assert values["singleuser"]["startTimeout"] >= 900


@pytest.mark.parametrize("path", ["hub", "proxy.chp"])
def test_core_pods_ask_for_memory_and_have_a_limit(values: Any, path: str) -> None:
    part = values
    for key in path.split("."):
        part = part[key]
    assert {"cpu", "memory"} <= part["resources"]["requests"].keys()
    assert size(part["resources"]["limits"]["memory"]) >= size(part["resources"]["requests"]["memory"])


def test_the_hub_has_a_gibibyte_at_least(values: Any) -> None:
    assert size(values["hub"]["resources"]["limits"]["memory"]) >= size("1Gi")


def test_every_worker_has_the_image_before_a_user_waits_for_it(values: Any) -> None:
    assert values["prePuller"]["continuous"]["enabled"] is True


def test_an_installation_never_waits_for_images_on_the_workers(values: Any) -> None:
    assert values["prePuller"]["hook"]["enabled"] is False


def test_no_server_has_a_privileged_container_in_front(values: Any) -> None:
    assert values["singleuser"]["cloudMetadata"]["blockWithIptables"] is False
    assert values["singleuser"]["networkPolicy"]["egressAllowRules"]["cloudMetadataServer"] is False


def test_culling_stops_servers_and_removes_no_users(values: Any) -> None:
    assert values["cull"]["enabled"] is True
    assert values["cull"].get("users", False) is False


def test_the_charts_own_settings_of_tornado_are_never_replaced(values: Any) -> None:
    assert "tornado_settings" not in values["hub"]["config"]["JupyterHub"]


@pytest.mark.proves("jupyterhub-network")
def test_nobody_talks_in_the_hubs_namespace_but_those_whom_a_policy_names() -> None:
    deny, solver = decide("__jupyterhub_policies")
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert solver["spec"]["podSelector"]["matchLabels"] == {"acme.cert-manager.io/http01-solver": "true"}


def test_nobody_comes_into_keycloaks_namespace_but_to_the_login_and_keycloak_to_its_database() -> None:
    policies = {
        policy["metadata"]["name"]: policy["spec"] for policy in roles.decide("__keycloak_policies", "keycloak")
    }
    # An empty list of rules would be dropped by the API, and put back by every run.
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    objects = {one["kind"]: one for one in roles.decide("__keycloak_database_objects", "keycloak")}
    labels = objects["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    database = policies["keycloak-database"]
    assert database["podSelector"]["matchLabels"] == labels
    [rule] = database["ingress"]
    dumps = objects["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    assert (rule["from"], rule["ports"]) == (
        [{"podSelector": policies["keycloak"]["podSelector"]}, {"podSelector": {"matchLabels": dumps}}],
        [{"port": 5432, "protocol": "TCP"}],
    )
    login, peers = policies["keycloak"]["ingress"]
    assert login["ports"] == [{"port": 8080, "protocol": "TCP"}]
    assert all({"namespaceSelector", "podSelector"} == set(pods) for pods in login["from"])
    assert peers == {"from": [{"podSelector": policies["keycloak"]["podSelector"]}]}
