"""What the role ingress_nginx decides: the controller's values, what is refused, what others are told of a class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

ROLES = Path(__file__).resolve().parents[3] / "roles"
SECRETS = {f"vault_site_{name}": "0" * 64 for name in ("keycloak_admin_password", "keycloak_database_password",
           "hub_client_secret", "hub_cookie_secret", "hub_proxy_token", "hub_crypt_key")}  # fmt: skip
SITE = {
    "site_name": "test",
    "site_host": "hub.example.org",
    "site_ingress_address": "192.0.2.101",
    "site_cluster_domain": "cluster.local",
    **SECRETS,
}
TRAEFIK = {"site_ingress_class": "traefik"}
CHART = {"ingress_nginx_source": "chart"}


@pytest.fixture(autouse=True, scope="module")
def plugins() -> None:
    """Let templates find filters and lookups."""
    init_plugin_loader()


def cluster(release: str = "v1.34.10+rke2r1", *charts: str, older: str = "", foreign: str = "") -> dict[str, Any]:
    """Return what the cluster answers: its nodes of a release, what RKE2 brought, whose configuration is there."""
    nodes = [{"kind": "Node", "status": {"nodeInfo": {"kubeletVersion": one}}} for one in (release, older) if one]
    found = [{"kind": "HelmChart", "metadata": {"name": name}} for name in ("rke2-coredns", *charts)]
    configs = [{"kind": "HelmChartConfig", "metadata": {"name": foreign}}] if foreign else []
    return {"__ingress_nginx_found": {"results": [{"resources": nodes}, {"resources": found}, {"resources": configs}]}}


def decide(name: str, role: str = "ingress_nginx", **inputs: Any) -> Any:
    """Return a role's variable `name` with the inputs given."""
    loader = DataLoader()
    # As inside another role that this one imports: nothing but the roles' common directory is sure.
    variables: dict[str, Any] = {
        "role_path": str(ROLES / "helm_release"),
        "ansible_search_path": [str(ROLES / role)],
    }
    for part in ("defaults", "vars"):
        variables |= loader.load_from_file(str(ROLES / role / part / "main.yml"), trusted_as_template=True)
    variables |= SITE | inputs
    return json.loads(json.dumps(Templar(loader, variables=variables).template(variables[name])))


def configs(**inputs: Any) -> dict[str, Any]:
    """Return the values that RKE2's helm-controller is given: chart -> values."""
    return {
        config["metadata"]["name"]: yaml.safe_load(config["spec"]["valuesContent"])
        for config in decide("__ingress_nginx_configs", **inputs)
    }


@pytest.mark.proves("ingress-controllers")
@pytest.mark.parametrize(
    ("inputs", "namespace"),
    [pytest.param({}, "kube-system", id="packaged"), pytest.param(CHART, "ingress-nginx", id="chart")],
)
def test_ingress_nginx_holds_the_address_and_nothing_else(inputs: dict[str, str], namespace: str) -> None:
    found = decide("__ingress_nginx_values", **inputs)["controller"]
    assert found["kind"] == "DaemonSet"
    assert found["hostPort"] == {"enabled": False}
    assert found["service"]["type"] == "LoadBalancer"
    assert found["service"]["annotations"] == {"metallb.io/loadBalancerIPs": "192.0.2.101"}
    assert found["service"]["externalTrafficPolicy"] == "Local"
    assert found["extraArgs"] == {"default-ssl-certificate": f"{namespace}/site-tls"}
    assert found["allowSnippetAnnotations"] is False


@pytest.mark.proves("ingress-controllers")
def test_traefik_holds_the_address_and_nothing_else() -> None:
    found = configs(**TRAEFIK)["rke2-traefik"]
    assert found["deployment"]["kind"] == "DaemonSet"
    # Charts before 40 know the first place of either, those from 40 on the second.
    assert found["service"]["type"] == "LoadBalancer"
    assert found["service"]["annotations"] == {"metallb.io/loadBalancerIPs": "192.0.2.101"}
    assert found["service"]["spec"] == {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    for place in (found["ports"]["web"], found["ports"]["web"]["http"]):
        assert place["redirections"]["entryPoint"]["to"] == "websecure"
    # Taken away, not left out: the chart opens 80 and 443 of every node.
    for port in ("web", "websecure"):
        assert "hostPort" in found["ports"][port]
        assert found["ports"][port]["hostPort"] is None
    assert found["ports"]["websecure"]["transport"]["respondingTimeouts"]["readTimeout"] == 3600
    assert found["tlsStore"]["default"]["defaultCertificate"] == {"secretName": "site-tls"}
    assert found["ingressClass"] == {"name": "traefik"}


@pytest.mark.proves("ingress-controllers")
@pytest.mark.parametrize(
    ("inputs", "charts"),
    [
        pytest.param({}, {"rke2-ingress-nginx", "rke2-coredns"}, id="packaged"),
        pytest.param(CHART, {"rke2-coredns"}, id="chart"),
        pytest.param(TRAEFIK, {"rke2-traefik", "rke2-coredns"}, id="traefik"),
        pytest.param(TRAEFIK | CHART, {"rke2-traefik", "rke2-coredns"}, id="source-is-of-nginx-only"),
    ],
)
def test_rke2_is_told_of_what_it_brings_and_the_dns_knows_the_host_behind_each(
    inputs: dict[str, str], charts: set[str]
) -> None:
    found = configs(**inputs)
    assert found.keys() == charts
    hosts = [plugin for plugin in found["rke2-coredns"]["servers"][0]["plugins"] if plugin["name"] == "hosts"]
    assert hosts[0]["configBlock"].splitlines()[0] == "192.0.2.101 hub.example.org"


@pytest.mark.proves("ingress-controllers")
@pytest.mark.parametrize(
    ("inputs", "key"),
    [pytest.param({}, "controller", id="packaged"), pytest.param(TRAEFIK, "deployment", id="traefik")],
)
def test_the_controller_carries_the_sum_of_what_it_was_given(inputs: dict[str, Any], key: str) -> None:
    more: dict[str, Any] = {"ingress_nginx_values": {key: {"replicas": 2}}}
    marks = [decide("__ingress_nginx_values", **inputs, **extra)[key]["annotations"] for extra in ({}, more)]
    assert marks[0] != marks[1]
    awaited = decide("__ingress_nginx_objects", **inputs, **more)[0]
    assert awaited["sum"] == marks[1]["metalhub/values"]


@pytest.mark.proves("ingress-controllers")
@pytest.mark.parametrize(
    ("inputs", "workload"),
    [
        pytest.param({}, ("kube-system", "rke2-ingress-nginx-controller"), id="packaged"),
        pytest.param(CHART, ("ingress-nginx", "ingress-nginx-controller"), id="chart"),
        pytest.param(TRAEFIK, ("kube-system", "rke2-traefik"), id="traefik"),
    ],
)
def test_the_verification_looks_at_the_controller_that_was_chosen(
    inputs: dict[str, str], workload: tuple[str, str]
) -> None:
    daemon, service, _, ingress_class = decide("__ingress_nginx_objects", **inputs)
    assert (daemon["namespace"], daemon["name"]) == (service["namespace"], service["name"]) == workload
    assert ingress_class["name"] == inputs.get("site_ingress_class", "nginx")


NGINX, RKE2_TRAEFIK = "rke2-ingress-nginx", "rke2-traefik"
ASK_NGINX, ASK_TRAEFIK, ASK_NONE = (f"{{ingress-controller: {word}}}" for word in ("ingress-nginx", "traefik", "none"))


@pytest.mark.proves("ingress-gates")
@pytest.mark.parametrize(
    ("inputs", "answer", "words"),
    [
        pytest.param({}, cluster("v1.30.14+rke2r4", NGINX), [], id="nginx-1.30"),
        pytest.param({}, cluster("v1.36.3+rke2r1", NGINX), [], id="nginx-1.36-asked-for"),
        pytest.param({}, cluster("v1.36.3+rke2r1", RKE2_TRAEFIK), ["1.36 and newer", ASK_NGINX], id="nginx-1.36"),
        pytest.param({}, cluster("v1.37.0+rke2r1", NGINX), ["last move", "class: traefik"], id="nginx-1.37"),
        pytest.param({}, cluster("v1.36.3+rke2r1", NGINX, older="v1.35.7+rke2r1"), [], id="between"),
        pytest.param({}, cluster("v1.9.0", NGINX, older="v1.37.0"), ["last move"], id="newest"),
        pytest.param(TRAEFIK, cluster("v1.36.3+rke2r1", RKE2_TRAEFIK), [], id="traefik-1.36"),
        pytest.param(TRAEFIK, cluster("v1.37.0+rke2r1", RKE2_TRAEFIK), [], id="traefik-1.37"),
        pytest.param(TRAEFIK, cluster("v1.35.4+rke2r1", NGINX), ["no chart", ASK_TRAEFIK], id="traefik-unasked"),
        pytest.param(TRAEFIK, cluster("v1.30.14+rke2r4", RKE2_TRAEFIK), ["older than 1.32.11"], id="traefik-1.30"),
        pytest.param(TRAEFIK, cluster("v1.33.6+rke2r1", RKE2_TRAEFIK), ["1.33.7"], id="traefik-too-early-in-its-minor"),
        pytest.param(TRAEFIK, cluster("v1.33.7+rke2r1", RKE2_TRAEFIK), [], id="traefik-1.33.7"),
        pytest.param(CHART, cluster("v1.34.10+rke2r1"), [], id="chart-1.34"),
        pytest.param(CHART, cluster("v1.35.0+rke2r1"), ["newer than 1.34", "4.14.5"], id="chart-1.35"),
        pytest.param(CHART, cluster("v1.34.10+rke2r1", NGINX), ["two would answer", ASK_NONE], id="chart-beside-rke2s"),
        pytest.param({}, cluster("v1.34.10+rke2r1", NGINX, foreign=NGINX), ["somebody else"], id="foreign"),
        pytest.param(TRAEFIK, cluster("v1.36.3+rke2r1", RKE2_TRAEFIK, foreign=NGINX), [], id="foreign-of-another"),
    ],
)  # fmt: skip
def test_a_controller_that_the_cluster_cannot_have_is_refused_with_what_to_write(
    inputs: dict[str, str], answer: dict[str, Any], words: list[str]
) -> None:
    found = decide("__ingress_nginx_refusals", **inputs, **answer)
    assert len(found) == bool(words), found
    assert [word for word in words if word not in found[0]] == []


@pytest.mark.proves("ingress-annotations")
@pytest.mark.parametrize("name", ["nginx", "traefik"])
def test_every_controller_of_the_site_is_known_to_the_roles_that_have_an_ingress(name: str) -> None:
    ours = {"site_ingress_class": name}
    hub = decide("__jupyterhub_values", "jupyterhub", jupyterhub_api_servers=["192.0.2.21"], **ours)
    login = decide("__keycloak_values", "keycloak", **ours)
    table = yaml.safe_load((ROLES / "ingress_nginx/files/controllers.yml").read_text())
    assert hub["ingress"]["ingressClassName"] == login["ingress"]["ingressClassName"] == name
    assert hub["ingress"]["annotations"] == table[name]["annotations"]["notebooks"]
    assert login["ingress"]["annotations"] == table[name]["annotations"]["login"]
    for part in ("hub", "singleuser"):
        rules = [rule for rule in hub[part]["networkPolicy"]["egress"] if "podSelector" in rule["to"][0]]
        peers = [
            (peer["namespaceSelector"]["matchLabels"], peer["podSelector"]["matchLabels"]) for peer in rules[0]["to"]
        ]
        assert peers == [
            ({"kubernetes.io/metadata.name": pods["namespace"]}, {"app.kubernetes.io/name": pods["name"]})
            for pods in table[name]["pods"]
        ]
        assert rules[0]["ports"] == [{"protocol": "TCP", "port": table[name]["port"]}]


@pytest.mark.proves("ingress-annotations")
def test_nginx_lets_large_bodies_silent_kernels_and_long_headers_through() -> None:
    found = yaml.safe_load((ROLES / "ingress_nginx/files/controllers.yml").read_text())["nginx"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert found["notebooks"][f"{prefix}proxy-body-size"] == "0"
    assert int(found["notebooks"][f"{prefix}proxy-read-timeout"]) > 75
    assert int(found["notebooks"][f"{prefix}proxy-send-timeout"]) > 75
    assert int(found["login"][f"{prefix}proxy-buffer-size"].removesuffix("k")) >= 16


@pytest.mark.proves("ingress-annotations")
def test_a_controller_is_named_in_one_place() -> None:
    """No other role writes an annotation of a controller or knows its pods."""
    words = ("nginx.ingress.kubernetes.io", "traefik.ingress.kubernetes.io", "rke2-ingress-nginx", "rke2-traefik")
    files = [path for path in ROLES.rglob("*.yml") if path.relative_to(ROLES).parts[0] not in ("ingress_nginx", "rke2")]
    assert files
    found = [str(path) for path in files if any(word in path.read_text() for word in words)]
    assert found == []
