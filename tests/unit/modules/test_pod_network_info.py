"""What pod_network_info sends and how it reads what comes back."""

from __future__ import annotations

import socket
import struct

import pytest

from plugins.modules import pod_network_info as check

PARAMS = {
    "networks": {"a": "10.42.0.0/24", "b": "127.0.0.1/32"},
    "node_name": "a",
    "service_network": "127.0.0.0/28",
    "domain": "cluster.local",
}


@pytest.mark.proves("canal-check")
def test_an_echo_of_a_whole_packet_is_answered_and_an_oversized_one_refused() -> None:
    assert check.echo("127.0.0.1", 1000) == ""
    assert check.echo("127.0.0.1", 65600, timeout=0.5) != ""


@pytest.mark.proves("canal-check")
def test_a_query_names_the_host_label_by_label() -> None:
    query = check.question("kubernetes.default.svc.cluster.local")
    assert struct.unpack("!H", query[4:6]) == (1,)
    assert b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00" in query


@pytest.mark.proves("canal-check")
def test_a_missing_device_is_told_by_name() -> None:
    found, asked = check.faults(PARAMS | {"device": "no-such-device"})
    assert found == ["the overlay's device no-such-device is not there"]
    assert asked == 1


@pytest.mark.proves("canal-check")
def test_every_way_that_leads_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> socket.socket:
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(check, "echo", lambda *_: "no answer")
    monkeypatch.setattr(check, "resolve", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    found, asked = check.faults(PARAMS | {"device": "lo"})
    assert asked == 4
    assert [fault.split(":")[0] for fault in found] == [
        "pods of b (127.0.0.1, 65536 bytes)",
        "service address 127.0.0.1",
        "DNS by UDP at 127.0.0.10",
        "DNS by TCP at 127.0.0.10",
    ]


@pytest.mark.proves("canal-check")
def test_a_name_that_resolves_elsewhere_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "resolve", lambda *_: "192.0.2.9")
    found, _ = check.faults(PARAMS | {"device": "lo"})
    assert "DNS by UDP: kubernetes.default.svc.cluster.local is 192.0.2.9, not 127.0.0.1" in found
