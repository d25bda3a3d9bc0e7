"""One server with files, arguments, labels, values and a proxy, and what is left of them when their variables go."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from testinfra.host import Host

testinfra_hosts = ["ansible://rke2_alternative"]

DATA = "/var/lib/rancher/rke2"
KUBECTL = f"{DATA}/bin/kubectl --kubeconfig /etc/rancher/rke2/rke2.yaml"
# File -> the input it is made of.
FILES = {
    "/etc/rancher/rke2/registries.yaml": "rke2_registries",
    "/etc/rancher/rke2/audit-policy.yaml": "rke2_audit_policy",
    "/etc/default/rke2-server": "rke2_environment",
}


@pytest.fixture
def wanted(host: Host) -> dict[str, Any]:
    """Return the inputs as the inventory has them."""
    return dict(host.ansible.get_variables())


def node(host: Host) -> dict[str, Any]:
    """Return the server's Node as the API has it now."""
    return dict(json.loads(host.check_output(f"{KUBECTL} get node rke2-alternative -o json")))


def replicas(host: Host) -> int:
    """Return how many pods of the cluster's DNS the API was told to keep."""
    path = "-o jsonpath='{.items[0].spec.replicas}'"
    return int(host.check_output(f"{KUBECTL} -n kube-system get deployment -l k8s-app=kube-dns {path}"))


def environment(host: Host) -> set[str]:
    """Return the environment of the running service."""
    lines = host.check_output("tr '\\0' '\\n' </proc/$(systemctl show -P MainPID rke2-server)/environ")
    return set(lines.splitlines())


@pytest.mark.proves("rke2-config")
@pytest.mark.parametrize("path", [path for path in FILES if path.endswith(".yaml")])
def test_a_file_holds_what_its_variable_says_for_root_alone(host: Host, wanted: dict[str, Any], path: str) -> None:
    file = host.file(path)
    assert yaml.safe_load(file.content_string) == wanted[FILES[path]]
    assert (file.user, file.mode) == ("root", 0o600)


@pytest.mark.proves("rke2-config")
def test_the_service_runs_with_the_proxy(host: Host, wanted: dict[str, Any]) -> None:
    seen = dict(line.split("=", 1) for line in environment(host) if "=" in line)
    proxy = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), wanted["rke2_proxy"])
    assert (proxy | wanted["rke2_environment"]).items() <= seen.items()
    assert {*wanted["rke2_proxy_bypass"], wanted["site_pod_network"], ".svc"} <= set(seen["NO_PROXY"].split(","))
    assert host.file("/etc/default/rke2-server").mode == 0o600


@pytest.mark.proves("rke2-config")
def test_the_kubelet_has_its_arguments(host: Host, wanted: dict[str, Any]) -> None:
    assert [f"max-pods={node(host)['status']['capacity']['pods']}"] == wanted["rke2_kubelet_args"]


@pytest.mark.proves("rke2-config")
def test_the_node_has_its_labels_and_ordinary_pods_may_come(host: Host, wanted: dict[str, Any]) -> None:
    labels = {name: str(value).lower() for name, value in wanted["rke2_node_labels"].items()}
    assert labels.items() <= node(host)["metadata"]["labels"].items()
    taints = [f"{taint['key']}={taint['value']}:{taint['effect']}" for taint in node(host)["spec"]["taints"]]
    assert taints == wanted["rke2_node_taints"]


@pytest.mark.proves("rke2-config")
def test_a_packaged_chart_has_its_values_from_the_start(host: Host, wanted: dict[str, Any]) -> None:
    assert replicas(host) == wanted["rke2_packaged_chart_values"]["rke2-coredns"]["replicaCount"]


@pytest.mark.proves("rke2-config")
def test_the_apis_certificate_has_the_additional_name(host: Host, wanted: dict[str, Any]) -> None:
    shown = "openssl s_client -connect 127.0.0.1:6443 </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName"
    names = host.check_output(shown)
    assert [name for name in wanted["rke2_tls_san"] if f"DNS:{name}" in names] == wanted["rke2_tls_san"]


@pytest.mark.proves("rke2-config")
def test_the_api_writes_an_audit_log(host: Host) -> None:
    assert host.file(f"{DATA}/server/logs/audit.log").size > 0


@pytest.mark.proves("rke2-removal")
def test_what_its_variable_no_longer_asks_for_goes_and_the_server_runs_without(
    host: Host, wanted: dict[str, Any], converge: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    host.check_output(f"{KUBECTL} label node rke2-alternative molecule.test/foreign=kept")
    names = [*FILES.values(), "rke2_packaged_chart_values", "rke2_node_labels"]
    emptied = json.dumps({name: {} for name in names} | {"rke2_proxy": "", "rke2_node_taints": []})
    run = converge("--limit", "rke2_alternative", "--extra-vars", emptied)
    assert run.returncode == 0, run.stdout[-4000:]
    assert [path for path in FILES if host.file(path).exists] == []
    assert "audit-policy-file" not in host.file("/etc/rancher/rke2/config.yaml").content_string
    assert not {
        name
        for name in (*wanted["rke2_environment"], "HTTP_PROXY", "NO_PROXY")
        if f"{name}=" in "\n".join(environment(host))
    }
    assert "--audit-log-path" not in host.check_output("tr '\\0' '\\n' </proc/$(pidof kube-apiserver)/cmdline")
    labels = node(host)["metadata"]["labels"]
    assert (wanted["rke2_node_labels"].keys() & labels.keys(), labels["molecule.test/foreign"]) == (set(), "kept")
    assert "taints" not in node(host)["spec"]
    for _ in range(60):
        if replicas(host) != 1:
            break
        time.sleep(2)
    assert replicas(host) == 2, "the chart has its own default again"
    again = converge("--limit", "rke2_alternative", "--extra-vars", emptied)
    assert (again.returncode, "changed=0" in again.stdout) == (0, True), again.stdout[-4000:]
