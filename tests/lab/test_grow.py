"""Machines leave and come back, one at a time; the whole cluster stops, starts, and goes without a trace."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.running import DATA, Lab, eventually
from tests.lab.test_machines import engine

pytestmark = pytest.mark.shard("grow")

# What is on a machine and no package: links and caches that packages' own scripts make, logs, and what runs.
PACKAGES = re.compile(
    r"/(var/(lib/(dpkg|apt|systemd|chrony|pam|ucf|logrotate|private|dbus)|cache|log|tmp|backups)/|root/\.ansible|"
    r"etc/(rc\w+\.d|alternatives|ssl|systemd/system/[^/]*\.(wants|requires)|ld\.so\.cache|\.pwd\.lock|"
    r"(passwd|shadow|group|gshadow|subuid|subgid)-?$)|usr/(share/(mime|info)|local/share/ca-certificates|lib/python3)|"
    r"etc/(ca-certificates\.conf|machine-id|hostname|resolv\.conf|hosts|ssh/ssh_host|modules|initramfs|udev)|boot/)"
)


def files(lab: Lab, name: str) -> set[str]:
    """Every file of a machine that no package owns."""
    script = """
    cat /var/lib/dpkg/info/*.list | sort -u >/run/owned
    find / /var/lib/rancher /var/lib/kubelet -xdev \\
      \\( -path /run -o -path /tmp -o -path /proc -o -path /sys -o -path /srv \\) -prune -o \\
      \\( -type f -o -type l \\) -print | sort -u | comm -23 - /run/owned
    rm /run/owned"""
    return {path for path in lab.sh(name, script).splitlines() if not PACKAGES.search(path)}


def started(lab: Lab, name: str) -> str:
    """What tells one boot of a machine from another."""
    return lab.sh(name, "systemctl show -p UserspaceTimestampMonotonic")


@contextmanager
def answering(lab: Lab, server: str) -> Iterator[list[float]]:
    """Ask a server's API without a pause meanwhile; yields the seconds between answers, which the end completes."""
    gaps: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        last = time.monotonic()
        while not ended.is_set():
            if lab.kubectl("get", "--raw=/readyz", server=server, check=False) == "ok":
                now = time.monotonic()
                gaps.append(now - last)
                last = now
            ended.wait(0.3)
        gaps.append(time.monotonic() - last)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield gaps
    finally:
        ended.set()
        thread.join()


@pytest.mark.proves("grow-worker")
def test_a_worker_leaves_without_a_trace_and_comes_back(lab: Lab) -> None:
    name = lab.agents[-1]
    done = lab.drive("node", "remove", name, "--drain-policy", "evict", "--leave-volumes")
    assert done.status == 0, done.told
    assert lab.ready() == set(lab.machines) - {name}
    assert name not in lab.nodes()
    left = files(lab, name)
    # A second time it changes nothing.
    again = lab.drive("node", "remove", name)
    assert again.status == 0, again.told
    assert [sum(host["changed"] for host in stage["hosts"].values()) for stage in again.document["stages"]] == [0]
    lab.renew(name)
    bare = files(lab, name)
    assert left - bare == set()
    done = lab.drive("node", "add", name)
    assert done.status == 0, done.told + done.message
    eventually("all nodes Ready", lab.healthy)


@pytest.mark.proves("grow-server")
def test_the_first_server_leaves_while_the_api_serves_and_comes_back_as_a_voter(lab: Lab) -> None:
    first, *others = lab.servers
    lab.kubectl("create", "configmap", "survivor", "--from-literal=a=b", server=others[0])
    cluster = lab.cluster(others[0])
    with answering(lab, others[0]) as gaps:
        done = lab.drive("node", "remove", first, "--drain-policy", "evict", "--leave-volumes")
    assert done.status == 0, done.told
    assert lab.voters(others[0]) == set(others)
    assert f"node/{first}" not in lab.kubectl("get", "nodes", "-o", "name", server=others[0]).split()
    assert max(gaps) < 30, sorted(gaps)[-3:]
    # With two of two it would be none.
    refused = lab.drive("node", "remove", others[0], "--leave-volumes")
    assert refused.status == 1
    assert "of 2 voters in etcd 2 are healthy" in refused.message and "Add another server first" in refused.message
    done = lab.drive("node", "add", first)
    assert done.status == 0, done.told + done.message
    eventually("all nodes Ready", lab.healthy)
    assert {lab.cluster(server) for server in lab.servers} == {cluster}
    assert lab.kubectl("get", "configmap", "survivor", "-o", "jsonpath={.data.a}", server=first) == "b"
    lab.kubectl("delete", "configmap", "survivor")


@pytest.mark.proves("grow-reboot")
def test_a_worker_is_emptied_rebooted_and_given_back_with_its_gpus(lab: Lab) -> None:
    name = lab.agents[0]
    before = started(lab, name)
    gpus = lab.kubectl("get", "node", name, "-o", r"jsonpath={.status.allocatable.nvidia\.com/gpu}")
    done = lab.drive("node", "reboot", name, "--drain-policy", "evict")
    assert done.status == 0, done.told
    assert started(lab, name) != before
    assert lab.kubectl("get", "node", name, "-o", r"jsonpath={.status.allocatable.nvidia\.com/gpu}") == gpus
    assert lab.kubectl("get", "node", name, "-o", "jsonpath={.spec.unschedulable}") == ""
    assert lab.healthy()
    done = lab.drive("node", "patch", name, "--drain-policy", "evict")
    assert done.status == 0, done.told
    assert lab.kubectl("get", "node", name, "-o", "jsonpath={.spec.unschedulable}") == ""


@pytest.mark.proves("grow-reboot")
def test_a_server_is_not_rebooted_while_another_is_down(lab: Lab) -> None:
    first, second, third = lab.servers
    before = started(lab, first)
    engine("stop", "-t", "1", second)
    try:
        eventually("the stopped server is missed", lambda: second not in lab.ready())
        done = lab.drive("node", "reboot", first)
    finally:
        engine("start", second)
    assert done.status == 1, done.told
    told = f"of 3 voters in etcd 2 are healthy ({first}, {third}), without {first} it would be 1, and 2 are needed"
    assert told in done.message, done.message
    assert started(lab, first) == before
    eventually("all nodes Ready", lab.healthy)


@pytest.mark.proves("cluster-stop-start")
def test_a_cluster_stops_and_comes_back_with_all_it_held(lab: Lab) -> None:
    lab.kubectl("create", "configmap", "survivor", "--from-literal=a=b")
    done = lab.drive("cluster", "stop", "--yes")
    assert done.status == 0, done.told
    for name in lab.machines:
        assert lab.sh(name, f"pgrep -f '{DATA}/data/[^/]*/bin/' || true") == "", name
    done = lab.drive("cluster", "start")
    assert done.status == 0, done.told
    eventually("all nodes Ready", lab.healthy)
    assert lab.kubectl("get", "configmap", "survivor", "-o", "jsonpath={.data.a}") == "b"
    lab.kubectl("delete", "configmap", "survivor")


@pytest.mark.proves("cluster-destroyed")
def test_a_destroyed_cluster_leaves_packages_and_homes_and_the_site_can_be_deployed_anew(lab: Lab) -> None:
    first = lab.agents[0]
    lab.sh(first, "mkdir -p /srv/nfs/homes && echo kept >/srv/nfs/homes/.destroyed")
    done = lab.drive("cluster", "destroy", "--confirm", "lab")
    assert done.status == 0, done.told
    left = {name: files(lab, name) for name in lab.machines}
    assert lab.sh(first, "cat /srv/nfs/homes/.destroyed; rm /srv/nfs/homes/.destroyed") == "kept\n"
    lab.renew(*lab.machines)
    assert {name: found - files(lab, name) for name, found in left.items()} == {name: set() for name in lab.machines}
    done = lab.drive("deploy", timeout=2400)
    assert done.status == 0, done.told + done.message
    eventually("all nodes Ready", lab.healthy)
