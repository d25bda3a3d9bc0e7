"""Machines that talk to each other: listeners that end, and what is told when something does not come through."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from plugins.module_utils import site_peers
from plugins.module_utils.site_machine import Facts
from plugins.module_utils.site_peers import (
    ATTEMPTS,
    MAGIC,
    Echo,
    IcmpEcho,
    UdpEcho,
    connect,
    judge_replies,
    listen,
    listeners,
    probe,
    probe_virtual,
    stop,
)
from tests.unit.preflight.test_machine import GOOD, NEEDS, free_port

HERE = "127.0.0.1"


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Facts]]:
    """Yield a table of free ports in place of RKE2's, on a machine without RKE2; end every listener afterwards."""
    monkeypatch.setattr(site_peers, "installation", lambda: {"installed": False, "running": ""})
    tcp, udp, own = (free_port(kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM))
    both = ["server", "agent"]
    yield [
        {"port": tcp, "protocol": "tcp", "roles": ["server"], "callers": both, "purpose": "registration"},
        {"port": udp, "protocol": "udp", "roles": both, "callers": both, "purpose": "pods"},
        {"port": own, "protocol": "tcp", "roles": ["server"], "callers": [], "purpose": "scheduler"},
    ]
    stop()


def machine(**facts: Any) -> Facts:
    """Return the facts of a machine that is reached by the loopback interface."""
    networks = [{"interface": "lo", "address": HERE, "network": "127.0.0.0/8", "mtu": 1500, "mac": ""}]
    return {**GOOD, "networks": networks, "address": HERE, **facts}


@pytest.mark.proves("preflight-listeners")
def test_listeners_answer_until_they_are_stopped_and_nothing_is_left(ports: list[Facts]) -> None:
    result = listen("node1", "server", ports, 30, stay=True)
    tcp, udp = ports[0]["port"], ports[1]["port"]
    assert result == {"taken": [], "listening": [f"tcp/{tcp}", f"udp/{udp}"]}
    assert connect([(HERE, tcp)], 2) == {}
    answer, _ = UdpEcho(udp).answers({HERE: 1500})[HERE]
    assert len(answer) == 1500 - UdpEcho.headers
    assert json.loads(answer[len(MAGIC) + 1 :])["name"] == "node1"
    assert stop() == 1
    assert listeners() == []
    assert connect([(HERE, tcp)], 2) == {(HERE, tcp): "connection refused"}
    assert stop() == 0


@pytest.mark.proves("preflight-listeners")
def test_a_listener_that_nobody_stops_ends_by_itself(ports: list[Facts]) -> None:
    listen("node1", "server", ports, 1, stay=True)
    assert len(listeners()) == 1
    deadline = time.monotonic() + 10
    while listeners() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert listeners() == []


@pytest.mark.proves("preflight-listeners")
def test_a_second_look_ends_the_listeners_of_a_first_one_that_was_killed(ports: list[Facts]) -> None:
    listen("node1", "server", ports, 30, stay=True)
    first = listeners()
    assert listen("node1", "server", ports, 30, stay=True)["taken"] == []
    assert listeners() != first
    assert len(listeners()) == 1


@pytest.mark.proves("preflight-listeners")
def test_looking_without_listening_leaves_nothing(ports: list[Facts]) -> None:
    assert listen("node1", "server", ports, 30, stay=False) == {"taken": [], "listening": []}
    assert listeners() == []


@pytest.mark.proves("preflight-listeners")
def test_nothing_listens_where_rke2_is_installed(ports: list[Facts], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_peers, "installation", lambda: {"installed": True, "running": ""})
    with socket.socket() as taken:
        taken.bind((HERE, ports[0]["port"]))
        taken.listen()
        result = listen("node1", "server", ports, 30, stay=True)
    assert result["listening"] == []
    assert [(spec["port"], spec["own"]) for spec in result["taken"]] == [(ports[0]["port"], False)]
    assert listeners() == []


@pytest.mark.proves("preflight-ports")
def test_a_taken_port_is_told_with_its_owner(ports: list[Facts]) -> None:
    with socket.socket() as taken:
        taken.bind((HERE, ports[2]["port"]))
        taken.listen()
        result = listen("node1", "server", ports, 30, stay=False)
    assert [spec["port"] for spec in result["taken"]] == [ports[2]["port"]]
    assert f"process {os.getpid()}" in result["taken"][0]["owner"]


@pytest.mark.proves("preflight-pairs")
def test_machines_that_hear_each_other_find_nothing(ports: list[Facts]) -> None:
    heard = listen("node2", "server", ports, 30, stay=True)
    machines = {"node1": machine(), "node2": machine(**heard)}
    assert probe("node1", machines, ports, {**NEEDS, "connect_seconds": 2}) == []


@pytest.mark.proves("preflight-pairs")
def test_ports_that_do_not_answer_are_told_with_machine_and_reason(ports: list[Facts]) -> None:
    tcp, udp = ports[0]["port"], ports[1]["port"]
    machines = {"node1": machine(), "node2": machine(listening=[f"tcp/{tcp}", f"udp/{udp}"])}
    found = probe("node1", machines, ports, {**NEEDS, "connect_seconds": 1})
    assert [(finding.what.split()[0], finding.seen) for finding in found] == [
        (f"{tcp}/tcp", "node2: connection refused"),
        (f"{udp}/udp", "node2: no answer"),
    ]
    assert all("firewalls" in finding.fix and finding.where == "node1" for finding in found)


@pytest.mark.proves("preflight-pairs")
def test_a_port_that_a_role_never_calls_is_not_tried(ports: list[Facts]) -> None:
    closed = [{**ports[0], "callers": ["server"]}, {**ports[1]}]
    machines = {"node1": machine(role="agent"), "node2": machine(listening=[f"tcp/{ports[0]['port']}"])}
    assert list(site_peers.probe_ports("node1", machines, closed, 1)) == []


@pytest.mark.proves("preflight-pairs")
def test_the_ports_of_a_running_node_are_tried_themselves(ports: list[Facts]) -> None:
    running = {"installed": True, "running": "server"}
    machines = {"node1": machine(), "node2": machine(rke2=running, taken=[{**ports[0]}])}
    assert [finding.seen for finding in site_peers.probe_ports("node1", machines, ports, 1)] == [
        "node2: connection refused"
    ]
    with socket.socket() as served:
        served.bind((HERE, ports[0]["port"]))
        served.listen()
        assert list(site_peers.probe_ports("node1", machines, ports, 1)) == []


@pytest.mark.proves("preflight-pairs")
def test_a_silent_address_is_given_up_after_the_time_allowed() -> None:
    # A listener whose queue is full answers no further connection.
    with socket.socket() as busy, socket.socket() as first, socket.socket() as second:
        busy.bind((HERE, 0))
        busy.listen(0)
        target = busy.getsockname()
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(target)
        start = time.monotonic()
        assert connect([target], 0.5) == {target: "no answer within 0.5 s"}
        assert time.monotonic() - start < 5


class Narrow(Echo):
    """A way that lets packets through up to a size, without a network."""

    headers = 28

    def __init__(self, size: int) -> None:
        self.size = size
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.waiting: list[tuple[str, bytes]] = []

    def send(self, address: str, payload: bytes) -> None:
        """Keep what fits as the answer."""
        if len(payload) + self.headers <= self.size:
            self.waiting.append((address, payload))

    def receive(self) -> tuple[str, bytes]:
        """Return the next answer."""
        if not self.waiting:
            raise TimeoutError
        return self.waiting.pop(0)


@pytest.mark.proves("preflight-mtu")
@pytest.mark.parametrize("size", [600, 1300, 1450, 1492])
def test_a_narrower_way_is_told_with_the_size_that_passes(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(site_peers, "PATIENCE", 0.01)
    found = list(site_peers._probe_mtu("node1", {"node2": HERE}, Narrow(size), 1500))
    assert [finding.key for finding in found] == ["path MTU"]
    passes = int(found[0].seen.rpartition(" ")[2])
    assert size - 8 <= passes <= size


@pytest.mark.proves("preflight-mtu")
def test_a_way_of_full_width_is_not_told() -> None:
    assert list(site_peers._probe_mtu("node1", {"node2": HERE}, Narrow(1500), 1500)) == []


@pytest.mark.proves("preflight-mtu")
@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets need root, as preflight has it")
def test_a_kernel_answers_where_nothing_of_ours_may_listen() -> None:
    payload, _ = IcmpEcho().answers({HERE: 1500})[HERE]
    assert len(payload) == 1500 - IcmpEcho.headers


@pytest.mark.proves("preflight-mtu")
def test_a_late_answer_to_an_earlier_attempt_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_peers, "PATIENCE", 0.01)

    class Late(Narrow):
        def send(self, address: str, payload: bytes) -> None:
            """Answer the attempt before this one."""
            number = payload[len(MAGIC)]
            self.waiting = [(address, MAGIC + bytes([number - 1]) + payload[len(MAGIC) + 1 :])] if number else []

    assert Late(1500).answers({HERE: 1000}, ATTEMPTS) == {}


def reply(name: str, clock: float) -> bytes:
    """Return what a listener called `name` answers at `clock`."""
    return MAGIC + b"\0" + json.dumps({"name": name, "clock": clock}).encode()


PEERS = {"node2": "192.0.2.22", "node3": "192.0.2.23"}


@pytest.mark.proves("preflight-clock")
def test_the_machine_with_the_wrong_clock_tells_and_the_others_do_not() -> None:
    both_ahead = {PEERS[name]: (reply(name, 1030.0), 1000.0) for name in PEERS}
    found = list(judge_replies("node1", PEERS, both_ahead, 1))
    assert [(finding.key, finding.seen) for finding in found] == [("clock", "30.0 s")]
    assert "behind" in found[0].what
    one_ahead = {PEERS["node2"]: (reply("node2", 1030.0), 1000.0), PEERS["node3"]: (reply("node3", 1000.1), 1000.0)}
    assert list(judge_replies("node1", PEERS, one_ahead, 1)) == []


@pytest.mark.proves("preflight-duplicate-address")
def test_an_address_that_another_machine_answers_is_told() -> None:
    heard = {PEERS["node2"]: (reply("printer", 1000.0), 1000.0)}
    found = list(judge_replies("node1", PEERS, heard, 1))
    assert [(finding.key, finding.seen) for finding in found] == [("address", "printer")]
    assert "arping" in found[0].fix


@pytest.mark.proves("preflight-duplicate-address")
@pytest.mark.parametrize(
    ("answers", "facts", "servers", "told"),
    [
        pytest.param(True, {}, 1, True, id="somebody-answers"),
        pytest.param(False, {}, 1, False, id="nobody-answers"),
        pytest.param(True, {"holds_virtual_address": True}, 1, False, id="a-server-holds-it"),
        pytest.param(True, {"rke2": {"installed": True, "running": ""}}, 1, False, id="the-cluster-was-begun"),
        pytest.param(True, {}, 3, False, id="servers-are-missing-from-the-play"),
    ],
)
def test_the_virtual_address_must_be_free_before_the_first_start(
    monkeypatch: pytest.MonkeyPatch, answers: bool, facts: Facts, servers: int, told: bool
) -> None:
    echo = Narrow(1500 if answers else 0)
    monkeypatch.setattr(site_peers, "PATIENCE", 0.01)
    monkeypatch.setattr(site_peers, "IcmpEcho", lambda: echo)
    found = list(probe_virtual("node1", {"node1": machine(**facts)}, "192.0.2.20", servers))
    assert bool(found) == told
