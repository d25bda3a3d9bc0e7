"""Homes follow their user from node to node and outlive their claims; nothing is left behind by a verification."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml

from tests.lab.running import DATA, Lab

STAGE = ("playbooks/stages/storage.yml",)
NAMESPACE = "local-path-storage"
NAME = "home-test"
KUBECTL = f"{DATA}/bin/kubectl --kubeconfig /etc/rancher/rke2/rke2.yaml -n {NAMESPACE}"


def claim() -> dict[str, object]:
    """A claim of a home."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": NAME},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "homes",
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }


def pod(node: str, command: str) -> dict[str, object]:
    """A pod on this node that runs a command in the home, as a user."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {"runAsUser": 1000, "fsGroup": 100},
            "containers": [
                {
                    "name": "home",
                    "image": "docker.io/library/busybox:1.37.0",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", command],
                    "volumeMounts": [{"name": "home", "mountPath": "/home/jovyan"}],
                }
            ],
            "volumes": [{"name": "home", "persistentVolumeClaim": {"claimName": NAME}}],
        },
    }


def run_pod(lab: Lab, node: str, command: str) -> str:
    """Run a command in the home on this node and return its output."""
    text = yaml.safe_dump_all([claim(), pod(node, command)])
    ended = "--for=jsonpath={.status.phase}=Succeeded --timeout=60s"
    return lab.sh(
        "umaster01",
        f"{KUBECTL} apply -f - >/dev/null <<'EOF'\n{text}EOF\n"
        f"{KUBECTL} wait pod/{NAME} {ended} >/dev/null && {KUBECTL} logs {NAME}; status=$?\n"
        f"{KUBECTL} delete pod {NAME} --wait >/dev/null; exit $status",
    )


@pytest.fixture
def home(lab: Lab) -> Iterator[None]:
    """A home that is taken away afterwards, its volume included."""
    yield
    volume = lab.kubectl("-n", NAMESPACE, "get", "pvc", NAME, "-o", "jsonpath={.spec.volumeName}", check=False)
    lab.kubectl("-n", NAMESPACE, "delete", "pvc", NAME, "--ignore-not-found", "--wait")
    if volume:
        lab.kubectl("delete", "pv", volume, "--ignore-not-found", "--wait")


@pytest.mark.proves("storage-homes")
def test_a_home_is_the_same_on_another_node_and_after_its_claim_was_deleted(lab: Lab, home: None) -> None:
    run_pod(lab, "uworker01", "echo nonce >/home/jovyan/kept")
    assert run_pod(lab, "uworker02", "cat /home/jovyan/kept").strip() == "nonce"
    volume = lab.kubectl("-n", NAMESPACE, "get", "pvc", NAME, "-o", "jsonpath={.spec.volumeName}")
    lab.kubectl("-n", NAMESPACE, "delete", "pvc", NAME, "--wait")
    assert lab.kubectl("get", "pv", volume, "-o", "jsonpath={.status.phase}") == "Released"
    lab.kubectl("delete", "pv", volume, "--wait")
    assert run_pod(lab, "uworker03", "cat /home/jovyan/kept; rm /home/jovyan/kept").strip() == "nonce"


@pytest.mark.proves("storage-homes")
def test_a_verification_leaves_nothing_behind(lab: Lab) -> None:
    recap = lab.play("--tags", "verify", playbooks=STAGE)
    assert recap.status == 0, recap.output[-3000:]
    assert recap.changed == {}
    left = json.loads(lab.kubectl("-n", NAMESPACE, "get", "pods,pvc", "-l", "app=storage-verify", "-o", "json"))
    assert left["items"] == []


@pytest.mark.proves("storage-homes")
def test_a_share_that_the_server_does_not_export_is_told_with_the_servers_words(lab: Lab) -> None:
    gone = "mv /srv/nfs/nfs.lab.test /srv/nfs/gone"
    lab.sh("uworker01", gone)
    try:
        recap = lab.play("--tags", "verify", "-e", '{"storage_wait_seconds": 10}', playbooks=STAGE)
    finally:
        lab.sh("uworker01", "mv /srv/nfs/gone /srv/nfs/nfs.lab.test")
    assert recap.status == 2
    assert "access denied by server" in recap.output


@pytest.mark.proves("storage-homes")
def test_another_server_under_an_old_name_is_refused_before_anything_changes(lab: Lab) -> None:
    recap = lab.play("-e", "storage_nfs_server=other.lab.test", playbooks=STAGE)
    assert recap.status == 2
    assert "homes: parameters is" in recap.output
    assert recap.changed == {}


@pytest.mark.proves("storage-capacity")
def test_users_who_could_fill_the_file_server_are_refused_before_anything_changes(lab: Lab) -> None:
    given = {"storage_users": 20, "site_home_size": "100Gi", "storage_nfs_capacity": "1Ti"}
    recap = lab.play("-e", json.dumps(given), playbooks=STAGE)
    assert recap.status == 2
    assert "20 users with 100Gi each may fill 2.0 TiB" in " ".join(recap.output.split())
    assert recap.changed == {}


@pytest.mark.proves("storage-capacity")
def test_half_of_what_has_to_be_compared_is_refused_before_anything_changes(lab: Lab) -> None:
    recap = lab.play("-e", json.dumps({"storage_users": 20}), playbooks=STAGE)
    assert recap.status == 2
    assert "storage_users is given without storage_nfs_capacity" in " ".join(recap.output.split())
    assert recap.changed == {}
