"""What of a machine does not fit, judged from facts; and the facts, measured on this machine."""

from __future__ import annotations

import copy
import http.server
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.module_utils import site_machine
from plugins.module_utils.site_machine import Facts, bound, can_bind, compare, judge, measure, socket_owner
from tests.unit.preflight.sites import ROLES

DEFAULTS: dict[str, Any] = yaml.safe_load((ROLES / "preflight/defaults/main.yml").read_text(encoding="utf-8"))
LEFTOVERS = yaml.safe_load((ROLES / "preflight/vars/main.yml").read_text(encoding="utf-8"))["__preflight_leftovers"]
IMMUTABLE = [
    {"parameter": "site_pod_network", "key": "cluster-cidr", "default": "10.42.0.0/16", "value": "10.42.0.0/16"},
    {"parameter": "site_cluster_cni", "key": "cni", "default": "canal", "value": "canal"},
]
NEEDS: Facts = {
    "asked": 1000.0,
    "role": "server",
    "address": "192.0.2.21",
    "local_addresses": ["192.0.2.20", "192.0.2.96/27"],
    "virtual_address": "192.0.2.20",
    "systems": DEFAULTS["preflight_systems"],
    "architectures": ["x86_64"],
    "uniform_kernel": True,
    "unique_identifiers": DEFAULTS["preflight_unique_identifiers"],
    "cores_min": DEFAULTS["preflight_server_cores_min"],
    "memory_gib_min": DEFAULTS["preflight_server_memory_gib_min"],
    "disk_size_gib_min": DEFAULTS["preflight_disk_size_gib_min"],
    "disk_free_gib_min": DEFAULTS["preflight_disk_free_gib_min"],
    "fsync_milliseconds_max": DEFAULTS["preflight_fsync_milliseconds_max"],
    "clock_seconds_max": DEFAULTS["preflight_clock_seconds_max"],
    "resolve_names": [],
    "immutable": IMMUTABLE,
    "leftovers": LEFTOVERS,
}
GOOD: Facts = {
    "root": True,
    "clock": 1000.4,
    "system": {"id": "ubuntu", "version": "22.04", "name": "Ubuntu 22.04.5 LTS"},
    "architecture": "x86_64",
    "kernel": "5.15.0-161-generic",
    "cores": 48,
    "memory_gib": 503.5,
    "disks": [{"path": "/var/lib/rancher", "size_gib": 400, "free_gib": 300}],
    "fsync_milliseconds": 1.2,
    "networks": [
        {"interface": "lo", "address": "127.0.0.1", "network": "127.0.0.0/8", "mtu": 65536, "mac": ""},
        {
            "interface": "eth0",
            "address": "192.0.2.21",
            "network": "192.0.2.0/24",
            "mtu": 1500,
            "mac": "52:54:00:00:00:21",
        },
    ],
    "holds_virtual_address": False,
    "default_route": True,
    "unresolved": [],
    "identifiers": {
        "machine_id": ["a1"],
        "product_uuid": ["u1"],
        "mac": ["52:54:00:00:00:21"],
        "ssh_host_key": ["k1", "k2"],
    },
    "rke2": {"installed": False, "running": ""},
    "immutable": {},
    "leftovers": [],
    "taken": [],
    "listening": [],
    "role": "server",
    "address": "192.0.2.21",
}
TAKEN = {"port": 9345, "protocol": "tcp", "purpose": "registration", "owner": "nginx (process 7)", "own": False}
RUNNING = {"installed": True, "running": "server"}
STOPPED = {"installed": True, "running": ""}


def changed(**facts: Any) -> Facts:
    """Return the facts of a good machine with some of them changed."""
    return {**copy.deepcopy(GOOD), **facts}


@pytest.mark.proves("preflight-machines")
def test_a_good_machine_is_not_refused() -> None:
    assert judge("node", GOOD, NEEDS) == []


BAD = [
    pytest.param({"root": False}, "user", "not root", "ansible_become", id="not-root"),
    pytest.param({"system": {"id": "debian", "version": "11", "name": "Debian 11"}}, "operating system", "supported",
                 "debian 12, ubuntu 22.04, ubuntu 24.04", id="old-system"),
    pytest.param({"system": {"id": "rocky", "version": "9.4", "name": "Rocky 9"}}, "operating system", "not supported",
                 "debian 12", id="other-system"),
    pytest.param({"architecture": "aarch64"}, "architecture", "not supported", "x86_64", id="architecture"),
    pytest.param({"clock": 990.0}, "clock", "behind the control machine", "time synchronisation", id="clock-behind"),
    pytest.param({"unresolved": ["mirror.example.org"]}, "DNS", "does not resolve", "resolv.conf", id="dns"),
    pytest.param({"cores": 2}, "cores", "less than the 4", "preflight_server_cores_min", id="cores"),
    pytest.param({"memory_gib": 3.8}, "memory", "less than the 7.5", "preflight_server_memory_gib_min", id="memory"),
    pytest.param({"disks": [{"path": "/var/lib/rancher", "size_gib": 20, "free_gib": 15}]}, "disk", "too small",
                 "50 GiB", id="disk-small"),
    pytest.param({"disks": [{"path": "/var/lib/rancher", "size_gib": 90, "free_gib": 0.1}]}, "disk", "too little space",
                 "10 GiB", id="disk-full"),
    pytest.param({"fsync_milliseconds": 31.0}, "disk", "too long for etcd", "SSD", id="disk-slow"),
    pytest.param({"write_error": "read-only file system"}, "disk", "cannot be written", "mend", id="disk-read-only"),
    pytest.param({"networks": []}, "site_node_address", "no address of", "host_vars/node.yml", id="address"),
    pytest.param({"default_route": False}, "default route", "missing", "ip route add default", id="default-route"),
    pytest.param({"rke2": {"installed": True, "running": "agent"}}, "role", "another", "rke2_agent", id="other-role"),
    pytest.param({"leftovers": ["/etc/rancher/k3s"]}, "machine", "another cluster", "k3s-uninstall.sh", id="leftovers"),
    pytest.param({"immutable": {"site_pod_network": "10.52.0.0/16"}, "rke2": RUNNING}, "site_pod_network",
                 "the running cluster has another", "site_pod_network: 10.52.0.0/16 again", id="pod-network-changed"),
    pytest.param({"taken": [TAKEN]}, "port", "9345/tcp (registration) is taken", "port", id="port-taken"),
    pytest.param({"taken": [TAKEN], "rke2": STOPPED}, "port", "is taken", "stop that", id="port-taken-when-stopped"),
]  # fmt: skip


@pytest.mark.proves("preflight-machines")
@pytest.mark.parametrize(("facts", "key", "what", "fix"), BAD)
def test_a_machine_that_does_not_fit_is_told_with_value_and_fix(facts: Facts, key: str, what: str, fix: str) -> None:
    found = judge("node", changed(**facts), NEEDS)
    mine = [finding for finding in found if finding.key == key and what in finding.what]
    assert mine, found
    assert fix in mine[0].fix
    assert mine[0].where == "node"
    assert mine[0].seen


@pytest.mark.proves("preflight-machines")
@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"taken": [TAKEN], "rke2": RUNNING}, id="ports-of-a-running-node"),
        pytest.param({"taken": [{**TAKEN, "own": True}], "rke2": STOPPED}, id="pods-that-outlive-a-stopped-service"),
        pytest.param({"immutable": {"site_pod_network": "10.42.0.0/16"}, "rke2": RUNNING}, id="same-network"),
    ],
)
def test_what_a_node_of_the_cluster_has_is_not_refused(facts: Facts) -> None:
    assert judge("node", changed(**facts), NEEDS) == []


@pytest.mark.proves("preflight-machines")
def test_an_address_outside_the_machines_networks_is_told() -> None:
    found = judge("node", GOOD, {**NEEDS, "local_addresses": ["198.51.100.20"]})
    assert [finding.key for finding in found] == ["network"]
    assert "198.51.100.20" in found[0].what


def _three(**facts: Any) -> dict[str, Facts]:
    """Return three machines that differ where machines must, and what is given in the third."""
    machines = {}
    for number in (1, 2, 3):
        own = {kind: [f"{kind}{number}"] for kind in GOOD["identifiers"]}
        machines[f"node{number}"] = changed(identifiers=own)
    machines["node3"].update(facts)
    return machines


@pytest.mark.proves("preflight-unique")
def test_machines_that_differ_where_they_must_pass() -> None:
    machines = _three()
    assert [finding for name in machines for finding in compare(name, machines, NEEDS)] == []


@pytest.mark.proves("preflight-unique")
@pytest.mark.parametrize("kind", list(GOOD["identifiers"]))
def test_each_of_two_copies_tells_of_the_other_and_nobody_else_does(kind: str) -> None:
    machines = _three()
    machines["node3"]["identifiers"][kind] = [*machines["node3"]["identifiers"][kind], f"{kind}1"]
    told = {name: list(compare(name, machines, NEEDS)) for name in machines}
    assert {name: [finding.key for finding in found] for name, found in told.items()} == {
        "node1": [kind.replace("_", " ")],
        "node2": [],
        "node3": [kind.replace("_", " ")],
    }
    assert "node3" in told["node1"][0].what
    assert told["node1"][0].seen == f"{kind}1"


@pytest.mark.proves("preflight-unique")
def test_what_a_site_does_not_ask_to_be_unique_may_be_shared() -> None:
    machines = _three()
    machines["node3"]["identifiers"]["product_uuid"] = ["product_uuid1"]
    needs = {**NEEDS, "unique_identifiers": ["machine_id", "mac", "ssh_host_key"]}
    assert [finding for name in machines for finding in compare(name, machines, needs)] == []


@pytest.mark.proves("preflight-uniform")
def test_only_the_machine_with_the_odd_kernel_tells_and_only_where_kernels_must_agree() -> None:
    machines = _three(kernel="5.15.0-125-generic")
    told = {name: [finding.key for finding in compare(name, machines, NEEDS)] for name in machines}
    assert told == {"node1": [], "node2": [], "node3": ["kernel"]}
    assert list(compare("node3", machines, {**NEEDS, "uniform_kernel": False})) == []


@pytest.mark.proves("preflight-uniform")
def test_only_the_machine_with_the_odd_mtu_tells() -> None:
    networks = [{**GOOD["networks"][1], "mtu": 9000}]
    machines = _three(networks=networks)
    told = {name: [(finding.key, finding.seen) for finding in compare(name, machines, NEEDS)] for name in machines}
    assert told == {"node1": [], "node2": [], "node3": [("MTU", "9000")]}


CONFIGS = [
    pytest.param("cluster-cidr: 10.52.0.0/16\n", ("10.52.0.0/16", "canal"), id="plain"),
    pytest.param('"cluster-cidr": "10.52.0.0/16"  # ours\n', ("10.52.0.0/16", "canal"), id="quoted"),
    pytest.param("cni:\n  - multus\n", ("10.42.0.0/16", "multus"), id="list"),
    pytest.param("cni: [calico]\n", ("10.42.0.0/16", "calico"), id="flow-list"),
    pytest.param("tls-san:\n- a\n", ("10.42.0.0/16", "canal"), id="rke2s-own-defaults"),
]


@pytest.mark.proves("preflight-immutable")
@pytest.mark.parametrize(("text", "expected"), CONFIGS)
def test_what_a_server_was_started_with_is_read_from_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: tuple[str, str]
) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(site_machine, "CONFIG", str(tmp_path / "config.yaml"))
    assert tuple(site_machine._configured(IMMUTABLE).values()) == expected


@pytest.mark.proves("preflight-immutable")
def test_a_later_file_of_the_configuration_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("cni: canal\n", encoding="utf-8")
    (tmp_path / "config.yaml.d").mkdir()
    (tmp_path / "config.yaml.d/50.yaml").write_text("cni: cilium\n", encoding="utf-8")
    monkeypatch.setattr(site_machine, "CONFIG", str(tmp_path / "config.yaml"))
    assert site_machine._configured(IMMUTABLE)["site_cluster_cni"] == "cilium"


@pytest.mark.proves("preflight-machines")
def test_measuring_gives_every_fact_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_machine, "DISKS", (str(tmp_path / "not/there/yet"), str(tmp_path)))
    facts = measure({**NEEDS, "resolve_names": ["localhost", "nowhere.invalid"]})
    assert facts.keys() == GOOD.keys() - {"taken", "listening", "role", "address"}
    assert facts["cores"] == os.cpu_count()
    assert facts["memory_gib"] > 0
    assert facts["fsync_milliseconds"] > 0
    assert facts["unresolved"] == ["nowhere.invalid"]
    assert "127.0.0.1" in {net["address"] for net in facts["networks"]}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.proves("preflight-machines")
def test_leftovers_are_found_by_path_and_lost_and_found_is_none(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    known = {"paths": [f"{tmp_path}/*"], "interfaces": ["l?"], "programs": ["no-such-program"]}
    assert site_machine._leftovers(known) == ["interface lo"]
    (tmp_path / "pods").mkdir()
    assert site_machine._leftovers(known) == [f"{tmp_path}/pods", "interface lo"]


@pytest.fixture
def busy_port() -> Any:
    """Yield a port of the loopback interface on which this process listens."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.proves("preflight-ports")
def test_the_owner_of_a_port_is_named(busy_port: int) -> None:
    owner, own = socket_owner(bound()[("tcp", busy_port)])
    assert owner.endswith(f"(process {os.getpid()})")
    assert own is False


@pytest.mark.proves("preflight-ports")
@pytest.mark.parametrize("place", ["", "127.0.0.1"])
def test_a_port_that_is_taken_on_any_address_cannot_be_bound(busy_port: int, place: str) -> None:
    with socket.socket() as sock:
        assert not can_bind(sock, place, busy_port)


def free_port(kind: socket.SocketKind) -> int:
    """Return a port that nobody has."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.proves("preflight-ports")
def test_nobody_listens_on_a_free_port() -> None:
    assert ("tcp", free_port(socket.SOCK_STREAM)) not in bound()
