"""Machines that are lost and come back empty: the living cluster is joined, never split."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.lab.running import DATA, Lab, eventually


def engine(*words: str) -> None:
    """Do something to nodes as hardware would."""
    subprocess.run(["docker", *words], check=True, capture_output=True)


@pytest.mark.shard("machines")
@pytest.mark.proves("rke2-rejoin-server", "rke2-no-second-cluster")
def test_the_first_server_comes_back_empty_and_joins_the_living_cluster_or_none(lab: Lab) -> None:
    first, *others = lab.servers
    cluster = lab.cluster(others[0])
    lab.kubectl("create", "configmap", "survivor", "--from-literal=a=b", server=others[0])
    lab.renew(first)
    engine("stop", "-t", "1", *others)
    done = lab.drive("deploy", "--from", "node", "--until", "rke2_server", "--limit", first)
    assert done.status == 1, done.told
    assert f"{first} has no data and would start a new cluster" in done.message, done.message
    assert f"{others[0]} cannot be reached" in done.message
    assert lab.sh(first, f"ls -d {DATA}/server /etc/rancher 2>/dev/null; true") == ""
    engine("start", *others)
    eventually(
        "two servers serve again",
        lambda: lab.kubectl("get", "--raw=/readyz", server=others[0], check=False) == "ok",
    )
    done = lab.drive("deploy")
    assert done.status == 0, done.told + done.message
    assert {lab.cluster(server) for server in lab.servers} == {cluster}
    assert lab.voters(first) == set(lab.servers)
    assert lab.kubectl("get", "configmap", "survivor", "-o", "jsonpath={.data.a}", server=first) == "b"
    lab.kubectl("delete", "configmap", "survivor")
    eventually("all nodes Ready", lab.healthy)


@pytest.mark.shard("machines")
@pytest.mark.proves("rke2-rejoin-agent", "rke2-flipped-byte", "rke2-full-disk")
def test_a_worker_with_a_new_disk_comes_back_once_artifact_and_disk_are_whole(lab: Lab, tmp_path: Path) -> None:
    name = lab.agents[-1]
    lab.renew(name)
    others = lab.witness()
    for host in (name, "api", "nodes"):
        others.pop(host)

    # One wrong byte in what the site downloads.
    release = lab.installed("umaster01")
    bundle = tmp_path / "bundle"
    subprocess.run(["cp", "-al", lab.bundle, bundle], check=True)
    artifact = bundle / f"rke2/{release}/rke2.linux-amd64.tar.gz"
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    artifact.unlink()
    artifact.write_bytes(data)
    site = lab.copy(tmp_path / "flipped", {"rke2_bundle": str(bundle)})
    done = lab.drive("deploy", "--limit", name, root=site)
    assert done.status == 1, done.told
    assert "rke2.linux-amd64.tar.gz: sha256 is" in done.message, done.message
    assert lab.sh(name, "ls /usr/local/bin") == ""

    # No room on the machine's disk.
    lab.sh(name, "fallocate -l $(($(stat -f -c '%a*%S' /var/lib/rancher) - 64*1024*1024)) /var/lib/rancher/filler")
    done = lab.drive("deploy", "--from", "node", "--limit", name)
    assert done.status == 1, done.told
    assert name in done.told
    assert "free" in done.message or "space" in done.message.lower(), done.message
    assert lab.sh(name, "ls /usr/local/bin") == ""
    lab.sh(name, "rm /var/lib/rancher/filler")

    lab.type(done.printed("scripts/provision.py deploy"))
    eventually("all nodes Ready", lab.healthy)
    after = lab.witness()
    assert {host: after[host] for host in others} == others
