"""Services get addresses of the site's pool, and the network finds them; the real controller refuses what overlaps."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.lab.running import SITE, Lab, eventually

NAME = "address-test"
STAGE = ("playbooks/stages/metallb.yml",)
POOLS = ("-n", "metallb-system", "get", "ipaddresspools", "-o", "json")


def manifest(image: str, address: str) -> str:
    """A web server, a service that takes any address, and one that names its own."""
    labels = {"app": NAME}
    container = {
        "name": "web",
        "image": image,
        "command": ["/bin/sh", "-c", "hostname >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"],
        "resources": {"requests": {"cpu": "5m", "memory": "16Mi"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
    }
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 0}}
    service = {"type": "LoadBalancer", "selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}
    documents = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": NAME, "namespace": "default"},
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod},
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": "default"}, "spec": service},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": f"{NAME}-named",
                "namespace": "default",
                "annotations": {"metallb.io/loadBalancerIPs": address},
            },
            "spec": service,
        },
    ]
    return yaml.safe_dump_all(documents)


def pools(lab: Lab) -> dict[str, dict[str, Any]]:
    """The cluster's pools by name."""
    items = json.loads(lab.kubectl(*POOLS))["items"]
    return {item["metadata"]["name"]: item["spec"] for item in items}


def address(lab: Lab, service: str) -> str:
    """The address that a service was given, empty while there is none."""
    path = "jsonpath={.status.loadBalancer.ingress[0].ip}"
    return lab.kubectl("get", "service", service, "-o", path).strip()


def answer(where: str) -> str:
    """What the web server says at an address, asked from outside the cluster; empty while nobody answers."""
    try:
        return str(urllib.request.urlopen(f"http://{where}/", timeout=3).read().decode()).strip()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def services(lab: Lab) -> Iterator[str]:
    """Two services in front of a web server; the address that the second one names, out of the pool of all."""
    named = str(pools(lab)["site"]["addresses"][-1]).split("-")[-1]
    pod = json.loads(lab.kubectl("-n", "kube-system", "get", "pod", "kube-proxy-umaster01", "-o", "json"))
    image = pod["spec"]["containers"][0]["image"]
    lab.sh("umaster01", f"cat >/run/{NAME}.yaml <<'EOF'\n{manifest(image, named)}EOF\n")
    lab.kubectl("apply", "-f", f"/run/{NAME}.yaml", server="umaster01")
    try:
        yield named
    finally:
        lab.kubectl("delete", "-f", f"/run/{NAME}.yaml", "--cascade=foreground", server="umaster01")
        gone = ("get", "pods,services", "-l", f"app={NAME}", "-o", "name")
        eventually("nothing of the test is left", lambda: not lab.kubectl(*gone).strip())


@pytest.mark.proves("metallb-address")
def test_a_service_gets_an_address_that_answers_outside_the_cluster(lab: Lab, services: str) -> None:
    eventually("an address was given", lambda: bool(address(lab, NAME)), 60)
    given = address(lab, NAME)
    assert not any(given in str(pool["addresses"]) for name, pool in pools(lab).items() if name.startswith("fixed-"))
    eventually(f"{given} answers", lambda: answer(given).startswith(NAME), 60)


@pytest.mark.proves("metallb-address")
def test_a_service_that_names_an_address_gets_it(lab: Lab, services: str) -> None:
    eventually(f"{services} was given", lambda: address(lab, f"{NAME}-named") == services, 60)
    eventually(f"{services} answers", lambda: answer(services).startswith(NAME), 60)


@pytest.mark.proves("metallb-address")
def test_the_fixed_addresses_are_given_to_nobody_unasked(lab: Lab) -> None:
    ingress = yaml.safe_load((SITE / "group_vars/all/site.yml").read_text())["site_ingress_address"]
    now = pools(lab)
    # Beside these stand MetalLB's own defaults.
    assert now[f"fixed-{ingress}"].items() >= {"addresses": [f"{ingress}-{ingress}"], "autoAssign": False}.items()
    assert set(now) == {"site", f"fixed-{ingress}"}


@pytest.mark.proves("metallb-overlap")
def test_the_controller_refuses_a_pool_that_overlaps(lab: Lab) -> None:
    taken = pools(lab)["site"]["addresses"][0]
    pool = {
        "apiVersion": "metallb.io/v1beta1",
        "kind": "IPAddressPool",
        "metadata": {"name": NAME, "namespace": "metallb-system"},
        "spec": {"addresses": [taken]},
    }
    lab.sh("umaster01", f"cat >/run/{NAME}-pool.yaml <<'EOF'\n{yaml.safe_dump(pool)}EOF\n")
    with pytest.raises(RuntimeError, match="overlaps"):
        lab.kubectl("apply", "-f", f"/run/{NAME}-pool.yaml", server="umaster01")
    assert NAME not in pools(lab)


@pytest.mark.proves("metallb-verify")
def test_a_missing_announcement_is_told_and_comes_back(lab: Lab) -> None:
    lab.kubectl("-n", "metallb-system", "delete", "l2advertisement", "site")
    recap = lab.play("--tags", "verify", playbooks=STAGE)
    assert recap.status == 2
    assert "L2Advertisement site is missing" in recap.output
    recap = lab.play(playbooks=STAGE)
    assert recap.status == 0, recap.output[-3000:]
    assert set(recap.changed) == {"localhost"}
    recap = lab.play(playbooks=STAGE)
    assert recap.status == 0, recap.output[-3000:]
    assert recap.changed == {}


def hardware(where: str) -> str:
    """The MAC address from which an address of the network answers this machine."""
    told = subprocess.run(["ip", "neigh", "show", where], capture_output=True, text=True, check=True).stdout
    found = re.search(r"lladdr (\S+)", told)
    return found[1] if found else ""


@pytest.mark.shard("platform")
@pytest.mark.proves("metallb-failover")
def test_an_address_answers_from_another_machine_after_the_announcing_one_died(lab: Lab, services: str) -> None:
    lab.kubectl("scale", "deployment", NAME, "--replicas=3")
    eventually(f"{services} answers", lambda: answer(services).startswith(NAME), 60)
    owners = {lab.sh(name, "cat /sys/class/net/eth0/address").strip(): name for name in lab.machines}
    before = hardware(services)
    died = owners[before]
    subprocess.run(["docker", "kill", died], check=True, capture_output=True)
    try:
        eventually(
            "another announces it, and it answers",
            lambda: answer(services).startswith(NAME) and hardware(services) in owners.keys() - {before},
        )
    finally:
        subprocess.run(["docker", "start", died], check=True, capture_output=True)
        eventually("all machines are back", lab.healthy, 300)
