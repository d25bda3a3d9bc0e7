"""The hub answers by its public name, keeps what it was told, and a broken one is told by its verification."""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.running import ROOT, SITE, Lab, eventually

STAGE = "playbooks/stages/jupyterhub.yml"
PARAMETERS = yaml.safe_load((SITE / "group_vars/all/site.yml").read_text())
URL = f"https://{PARAMETERS['site_host']}/jupyterhub/"
# What no policy of the hub's may open at large; names are asked for everywhere.
PRIVATE = [ipaddress.IPv4Network(one) for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
DNS = 53
GPU_TAINT = "nvidia.com/gpu=present:NoSchedule"


def open_url(path: str) -> Any:
    """Open a page of the hub from outside the cluster, trusting the site's bundle alone; redirects are followed."""
    trust = ssl.create_default_context(cafile=str(Path.home() / f".kube/metalhub-{PARAMETERS['site_name']}-ca.pem"))
    cookies = urllib.request.HTTPCookieProcessor()
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trust), cookies)
    return opener.open(URL + path, timeout=10)


def ready(lab: Lab) -> bool:
    """Return whether the proxy runs again."""
    status = json.loads(lab.kubectl("-n", "jupyterhub", "get", "deployment", "proxy", "-o", "json"))["status"]
    return bool(status.get("readyReplicas"))


@pytest.mark.proves("jupyterhub-answers")
def test_the_hub_answers_by_its_public_name_with_a_certificate_of_the_site(lab: Lab) -> None:
    with open_url("hub/api") as answer:
        assert json.load(answer)["version"]


@pytest.mark.proves("jupyterhub-login")
def test_a_login_leads_to_the_realm_and_names_the_one_callback(lab: Lab) -> None:
    with open_url("hub/oauth_login") as answer:
        asked = urllib.parse.urlsplit(answer.url)
        page = answer.read().decode()
    assert f"https://{asked.netloc}{asked.path}".startswith(f"https://{PARAMETERS['site_host']}/sso/realms/")
    query = urllib.parse.parse_qs(asked.query)
    assert query["redirect_uri"] == [f"{URL}hub/oauth_callback"]
    assert query["code_challenge_method"] == ["S256"]
    assert "password" in page


def found(lab: Lab, kind: str, *words: str) -> dict[str, Any]:
    """Objects of the hub's namespace, or of the one that is named, by name."""
    where = words or ("-n", "jupyterhub")
    items = json.loads(lab.kubectl(*where, "get", kind, "-o", "json"))["items"]
    return {item["metadata"]["name"]: item for item in items}


def opens_private(rule: dict[str, Any], named: set[str]) -> bool:
    """Whether a rule lets somebody to private addresses, or to whole namespaces; `named` are those that may be."""
    if {port.get("port") for port in rule.get("ports", ())} == {DNS}:
        return False
    for peer in rule.get("to", [{}]):
        if "ipBlock" not in peer:
            # Pods that nobody names are all pods.
            if "podSelector" not in peer or not peer["podSelector"]:
                return True
            continue
        block = ipaddress.IPv4Network(peer["ipBlock"]["cidr"])
        without = [ipaddress.IPv4Network(one) for one in peer["ipBlock"].get("except", ())]
        for network in PRIVATE:
            spared = any(network.subnet_of(one) for one in without)
            if block.overlaps(network) and not spared and str(block) not in named:
                return True
    return False


@pytest.mark.proves("jupyterhub-network")
def test_policies_name_what_the_hub_and_users_may_reach_and_open_no_private_network(lab: Lab) -> None:
    specs = {name: policy["spec"] for name, policy in found(lab, "networkpolicies").items()}
    assert specs["default-deny"]["podSelector"] == {}
    assert set(specs["default-deny"]["policyTypes"]) == {"Ingress", "Egress"}
    assert not specs["default-deny"].get("ingress") and not specs["default-deny"].get("egress")
    servers = {f"{lab.machines[name].address}/32" for name in lab.servers}
    egress = {}
    for name in ("hub", "proxy", "singleuser"):
        assert set(specs[name]["policyTypes"]) == {"Ingress", "Egress"}, name
        egress[name] = specs[name]["egress"]
        assert egress[name], f"{name} has no egress"
        assert [rule for rule in egress[name] if opens_private(rule, servers)] == [], name

    def to_api(name: str) -> list[set[str]]:
        rules = [rule for rule in egress[name] if 6443 in {port.get("port") for port in rule.get("ports", ())}]
        return [{peer["ipBlock"]["cidr"] for peer in rule["to"]} for rule in rules]

    assert (to_api("hub"), to_api("proxy"), to_api("singleuser")) == ([servers], [], [])
    controllers = yaml.safe_load((ROOT / "roles/ingress_nginx/files/controllers.yml").read_text())
    controller = controllers[PARAMETERS.get("site_ingress_class", "nginx")]
    peers = [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": pods["namespace"]}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": pods["name"]}},
        }
        for pods in controller["pods"]
    ]
    way = {"to": peers, "ports": [{"protocol": "TCP", "port": controller["port"]}]}
    assert [name for name, rules in egress.items() if way in rules] == ["hub", "singleuser"]
    # Whom the rule means is there.
    running = [
        lab.kubectl(
            "-n", pods["namespace"], "get", "pods", "-l", f"app.kubernetes.io/name={pods['name']}", "-o", "name"
        )
        for pods in controller["pods"]
    ]
    assert any(running), controller["pods"]


@pytest.mark.proves("reference-mistakes")
def test_hub_and_keycloak_have_a_certificate_of_their_own_each(lab: Lab) -> None:
    shown = set()
    for namespace in ("jupyterhub", "keycloak"):
        certificate = found(lab, "certificates.cert-manager.io", "-n", namespace)["site-tls"]
        conditions = {one["type"]: one["status"] for one in certificate["status"]["conditions"]}
        assert (certificate["spec"]["secretName"], conditions["Ready"]) == ("site-tls", "True"), namespace
        shown.add(lab.kubectl("-n", namespace, "get", "secret", "site-tls", "-o", r"jsonpath={.data.tls\.crt}"))
    assert len(shown) == 2


def pullers(lab: Lab) -> dict[str, str]:
    """The pods that keep the users' image on a machine and are ready: machine -> the pod's number."""
    words = ("get", "pods", "-l", "component=continuous-image-puller", "-o", "json")
    items = json.loads(lab.kubectl("-n", "jupyterhub", *words))["items"]
    return {
        pod["spec"]["nodeName"]: pod["metadata"]["uid"]
        for pod in items
        if any((one["type"], one["status"]) == ("Ready", "True") for one in pod["status"].get("conditions", ()))
    }


@pytest.mark.proves("hub-prepull")
def test_every_worker_has_fetched_the_users_image_also_one_that_is_tainted_for_gpus(lab: Lab) -> None:
    image = yaml.safe_load((SITE / "group_vars/platform/jupyterhub.yml").read_text())["jupyterhub_image"]
    assert "hook-image-puller" not in found(lab, "daemonsets")
    puller = found(lab, "daemonsets")["continuous-image-puller"]
    assert [one["image"] for one in puller["spec"]["template"]["spec"]["initContainers"]] == [image]
    eventually("a puller is ready on every worker and nowhere else", lambda: set(pullers(lab)) == set(lab.agents))
    node = lab.agents[-1]
    before = pullers(lab)[node]
    lab.kubectl("taint", "node", node, GPU_TAINT)
    try:
        words = (
            "delete",
            "pods",
            "-l",
            "component=continuous-image-puller",
            "--field-selector",
            f"spec.nodeName={node}",
        )
        lab.kubectl("-n", "jupyterhub", *words, "--wait=false")
        eventually("a puller is ready behind the taint", lambda: pullers(lab).get(node, before) != before)
    finally:
        lab.kubectl("taint", "node", node, f"{GPU_TAINT}-")


@pytest.mark.proves("jupyterhub-network")
def test_the_proxy_takes_no_address_of_its_own(lab: Lab) -> None:
    services = json.loads(lab.kubectl("-n", "jupyterhub", "get", "services", "-o", "json"))["items"]
    assert {service["spec"]["type"] for service in services} == {"ClusterIP"}


@pytest.mark.proves("jupyterhub-verify")
def test_a_hub_that_is_down_fails_the_verification_with_where_to_look(lab: Lab) -> None:
    lab.kubectl("-n", "jupyterhub", "scale", "deployment", "proxy", "--replicas=0")
    try:
        recap = lab.play("--tags", "verify", playbooks=(STAGE,))
    finally:
        lab.kubectl("-n", "jupyterhub", "scale", "deployment", "proxy", "--replicas=1")
    assert recap.status == 2
    assert "describe pods -l component=proxy" in recap.output
    eventually("the proxy is back", lambda: ready(lab))
    recap = lab.play("--tags", "verify", playbooks=(STAGE,))
    assert recap.status == 0, recap.output[-3000:]
    assert recap.changed == {}


@pytest.mark.proves("jupyterhub-guide-page")
def test_the_guide_is_linked_and_served_before_a_login_and_tells_of_this_site(lab: Lab) -> None:
    with open_url("hub/login") as answer:
        link = re.search(r'id="guide"[^>]* href="([^"]+)"', answer.read().decode())
    assert link, "the login page has no link to the guide"
    with open_url(urllib.parse.urljoin(URL, link[1]).removeprefix(URL)) as answer:
        page = answer.read().decode()
    assert URL in page
    capacity = yaml.safe_load((SITE / "group_vars/all/site.yml").read_text())["site_home_size"]
    assert f"<code>/home/jovyan</code>: {capacity}," in page
