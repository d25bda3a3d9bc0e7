"""Where the platform's own pods run: what serves all on the servers, what every node needs beside any taint of ours."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from tests import rendered
from tests.contract import tree

ON_SERVERS: dict[str, Any] = tree.load(tree.ROOT / "roles/rke2/files/on_servers.yml")
ON_ALL_NODES: dict[str, Any] = tree.load(tree.ROOT / "roles/rke2/files/on_all_nodes.yml")


@functools.cache
def charts(inputs: str) -> dict[str, dict[str, Any]]:
    """Return the values that the reference site's roles give each chart, with these inputs on top."""
    return {chart.name: chart.values for chart in rendered.charts("h2iosc", **json.loads(inputs))}


def chart(name: str, **inputs: Any) -> dict[str, Any]:
    """Return the values of one chart."""
    return charts(json.dumps(inputs))[name]


def at(values: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the part of a chart's values at a path with dots, all of them for none."""
    for key in path.split(".") if path else []:
        values = values[key]
    return values


@pytest.mark.proves("platform-placement")
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        pytest.param("cert-manager", ["", "webhook", "cainjector", "startupapicheck"], id="certificates"),
        pytest.param("metallb", ["controller"], id="metallb"),
        pytest.param("csi-driver-nfs", ["controller"], id="storage"),
        pytest.param("keycloakx", [""], id="keycloak"),
        pytest.param("rke2-ingress-nginx", ["controller.admissionWebhooks.patch"], id="ingress-jobs"),
    ],
)
def test_what_serves_all_runs_on_the_servers(name: str, parts: list[str]) -> None:
    for part in parts:
        assert at(chart(name), part).items() >= ON_SERVERS.items(), part


@pytest.mark.proves("platform-placement")
@pytest.mark.parametrize(
    ("name", "part", "inputs"),
    [
        pytest.param("metallb", "speaker", {}, id="speaker"),
        pytest.param("rke2-ingress-nginx", "controller", {}, id="ingress"),
        pytest.param("ingress-nginx", "controller", {"ingress_nginx_source": "chart"}, id="ingress-by-chart"),
        pytest.param(
            "rke2-traefik", "", {"site_ingress_class": "traefik", "ingress_nginx_values": {}}, id="ingress-traefik"
        ),
    ],
)
def test_what_every_node_needs_tolerates_both_taints(name: str, part: str, inputs: dict[str, Any]) -> None:
    assert at(chart(name, **inputs), part)["tolerations"] == ON_ALL_NODES["tolerations"]
    assert "nodeSelector" not in at(chart(name, **inputs), part)
    assert {one["key"] for one in ON_ALL_NODES["tolerations"]} == {
        "node-role.kubernetes.io/control-plane",
        "nvidia.com/gpu",
    }


@pytest.mark.proves("platform-placement")
def test_the_provisioner_of_the_nodes_disks_runs_on_the_servers_and_what_tries_volumes_anywhere() -> None:
    objects = rendered.render("{{ __storage_local_objects + __storage_try_objects }}", "h2iosc", "storage")
    (provisioner,) = (one["spec"]["template"]["spec"] for one in objects if one["kind"] == "Deployment")
    (attempt,) = (one["spec"] for one in objects if one["kind"] == "Pod")
    assert provisioner.items() >= ON_SERVERS.items()
    assert attempt.items() >= ON_ALL_NODES.items()


@pytest.mark.proves("platform-placement")
def test_the_pod_that_a_public_authority_asks_runs_on_the_servers() -> None:
    given = {"certificates_issuer_kind": "acme"}
    (issuer,) = rendered.render("{{ __certificates_issuer_objects }}", "h2iosc", "certificates", **given)
    (solver,) = issuer["spec"]["acme"]["solvers"]
    assert solver["http01"]["ingress"]["podTemplate"]["spec"] == ON_SERVERS
