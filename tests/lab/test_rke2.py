"""Six nodes are one cluster of real components."""

from __future__ import annotations

import json
import time

import pytest

from tests.lab.running import DATA, Lab


@pytest.mark.proves("rke2-three-voters")
def test_etcd_has_three_voters_and_says_so_itself(lab: Lab) -> None:
    for server in lab.servers:
        assert lab.voters(server) == set(lab.servers)


@pytest.mark.proves("rke2-six-ready")
def test_all_six_nodes_are_ready(lab: Lab) -> None:
    assert lab.ready() == set(lab.machines)


@pytest.mark.proves("lab-static-pods")
def test_a_killed_api_server_comes_back_as_a_container_of_the_same_static_pod(lab: Lab) -> None:
    question = ("-n", "kube-system", "get", "pod", "kube-apiserver-umaster03", "-o", "json")
    pod = json.loads(lab.kubectl(*question, server="umaster01"))
    uid, before = pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["containerID"]
    assert lab.sh("umaster03", "systemctl list-units --all --no-legend '*apiserver*' '*etcd*'").strip() == ""
    lab.sh("umaster03", "kill -9 $(pidof kube-apiserver)")
    deadline = time.monotonic() + 120
    while True:
        status = json.loads(lab.kubectl(*question, server="umaster01"))
        container = status["status"]["containerStatuses"][0]
        if container["containerID"] != before and container["ready"]:
            break
        assert time.monotonic() < deadline, f"the API server did not come back: {container}"
        time.sleep(1)
    assert status["metadata"]["uid"] == uid


@pytest.mark.proves("rke2-secrets-private")
@pytest.mark.parametrize("node", list(Lab.machines))
def test_what_holds_a_secret_is_for_root_alone(lab: Lab, node: str) -> None:
    always = "/etc/rancher/rke2/token /etc/rancher/rke2/config.yaml /etc/rancher/node/password"
    servers = f"/etc/rancher/rke2/agent-token /etc/rancher/rke2/rke2.yaml {DATA}/server/token {DATA}/server/tls/ca.key"
    lines = lab.sh(node, f"stat -c '%a %U %n' {always} {servers if node in lab.servers else ''}").splitlines()
    assert len(lines) == (7 if node in lab.servers else 3)
    assert [line for line in lines if not line.startswith("600 root ")] == []
