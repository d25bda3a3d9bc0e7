"""Pods reach each other between every two nodes, services and names, as pods see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from plugins.modules import pod_network_info
from tests.lab.running import DATA, Lab

NAME = "network-test"


def manifest(image: str) -> str:
    """A web server on every node, and a service in front of all."""
    command = "hostname >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"
    labels = {"app": NAME}
    container = {
        "name": "web",
        "image": image,
        "command": ["/bin/sh", "-c", command],
        "resources": {"requests": {"cpu": "5m", "memory": "16Mi"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
    }
    pod = {
        "metadata": {"labels": labels},
        "spec": {
            "containers": [container],
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 0,
        },
    }
    metadata = {"name": NAME, "namespace": "default"}
    documents = [
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": metadata,
            "spec": {"selector": {"matchLabels": labels}, "template": pod},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    ]
    return yaml.safe_dump_all(documents)


@pytest.fixture(scope="module")
def pods(lab: Lab) -> Iterator[dict[str, tuple[str, str]]]:
    """Node -> (pod, address) of a running web server on every node."""
    pod = json.loads(lab.kubectl("-n", "kube-system", "get", "pod", "kube-proxy-umaster01", "-o", "json"))
    image = pod["spec"]["containers"][0]["image"]
    lab.sh("umaster01", f"cat >/run/{NAME}.yaml <<'EOF'\n{manifest(image)}EOF\n")
    lab.kubectl("apply", "-f", f"/run/{NAME}.yaml", server="umaster01")
    try:
        lab.sh(
            "umaster01",
            f"{DATA}/bin/kubectl --kubeconfig /etc/rancher/rke2/rke2.yaml rollout status ds/{NAME} --timeout=120s",
        )
        items = json.loads(lab.kubectl("get", "pods", "-l", f"app={NAME}", "-o", "json"))["items"]
        yield {item["spec"]["nodeName"]: (item["metadata"]["name"], item["status"]["podIP"]) for item in items}
    finally:
        # Until the pods are gone: what other tests look at must not change by itself.
        delete = f"delete -f /run/{NAME}.yaml --cascade=foreground --timeout=120s"
        lab.sh("umaster01", f"{DATA}/bin/kubectl --kubeconfig /etc/rancher/rke2/rke2.yaml {delete}")


def in_pod(lab: Lab, node: str, address: str, code: str) -> str:
    """Run Python in the network namespace of the pod with this address; what it sends takes the pod's way."""
    mine = f"ip -n ${{n##*/}} -4 -o addr show eth0 2>/dev/null | grep -q ' {address}/'"
    find = f"for n in /run/netns/*; do {mine} && break; done"
    return lab.sh(node, f"{find}; nsenter --net=$n timeout 60 python3 - <<'EOF'\n{code}\nEOF")


@pytest.mark.proves("canal-every-pair")
def test_every_pod_reaches_the_pod_on_every_other_node(lab: Lab, pods: dict[str, tuple[str, str]]) -> None:
    assert set(pods) == set(lab.machines)
    addresses = [address for _, address in pods.values()]
    code = f"""
import urllib.request
for address in {addresses}:
    print(urllib.request.urlopen(f"http://{{address}}:8080/", timeout=5).read().decode().strip())
"""
    for node, (_, address) in pods.items():
        assert in_pod(lab, node, address, code).split() == [name for name, _ in pods.values()], node


@pytest.mark.proves("canal-large-udp")
def test_udp_larger_than_one_packet_comes_back_whole_from_another_node(
    lab: Lab, pods: dict[str, tuple[str, str]]
) -> None:
    receiver = pods["umaster02"][1]
    echo = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(30)
sock.bind(("", 9000))
sock.sendto(*sock.recvfrom(65535))
"""
    send = f"""
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(1)
for _ in range(20):
    sock.sendto(b"x" * 8000, ("{receiver}", 9000))
    try:
        print(len(sock.recv(65535)))
        break
    except OSError:
        pass
"""
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(in_pod, lab, "umaster02", receiver, echo)
        assert in_pod(lab, "uworker01", pods["uworker01"][1], send).strip() == "8000"
        server.result()


@pytest.mark.proves("canal-dns")
def test_every_pod_finds_a_service_by_name_and_reaches_it(lab: Lab, pods: dict[str, tuple[str, str]]) -> None:
    query = pod_network_info.question(f"{NAME}.default.svc.cluster.local")
    code = f"""
import socket, urllib.request
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(5)
sock.sendto({query!r}, ("10.43.0.10", 53))
address = socket.inet_ntoa(sock.recv(512)[-4:])
print(urllib.request.urlopen(f"http://{{address}}/", timeout=5).read().decode().strip())
"""
    names = {name for name, _ in pods.values()}
    for node, (_, address) in pods.items():
        assert in_pod(lab, node, address, code).strip() in names, node


@pytest.mark.proves("canal-verify")
def test_a_blocked_overlay_is_told_with_the_node_that_is_cut_off(lab: Lab) -> None:
    rule = "INPUT -p udp --dport 8472 -j DROP"
    verify = ("--tags", "verify", "-e", "canal_wait_seconds=3")
    lab.sh("uworker03", f"iptables -I {rule}")
    try:
        recap = lab.play(*verify, playbooks=("playbooks/stages/canal.yml",))
    finally:
        lab.sh("uworker03", f"iptables -D {rule}")
    assert recap.status == 2
    assert "pods of uworker03" in recap.output
    assert "8472" in recap.output
    recap = lab.play(*verify, playbooks=("playbooks/stages/canal.yml",))
    assert recap.status == 0, recap.output[-3000:]
    assert recap.changed == {}
