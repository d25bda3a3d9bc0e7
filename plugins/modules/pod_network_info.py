#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Proves a node's ways into the pod network, the services and the cluster's DNS, from the node itself."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pod_network_info
short_description: Ask for the ways from this node to pods, services and the cluster's DNS
description:
  - Sends an echo request, as large as the overlay's device carries and never in fragments, to the overlay address of
    every other node; the way there and back is the one that packets between pods take.
  - Opens a connection to the API's service address and asks the cluster's DNS by UDP and by TCP for the API's name.
  - Asks again until everything answers or O(seconds) have passed. Changes nothing; safe in check mode.
version_added: 0.1.0
author: The metalhub maintainers
options:
  networks:
    description: Pod network of every node of the cluster, by node name.
    type: dict
    required: true
  node_name:
    description: The name of this node.
    type: str
    required: true
  device:
    description: The overlay's device; it tells how large a packet may be.
    type: str
    default: flannel.1
  service_network:
    description: The network of service addresses; its first is the API's, its tenth the cluster's DNS.
    type: str
    required: true
  domain:
    description: The cluster's DNS domain.
    type: str
    required: true
  seconds:
    description: For how long to ask again.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Prove the pod network
  metalhub.platform.pod_network_info:
    networks: {node1: 10.42.0.0/24, node2: 10.42.1.0/24}
    node_name: node1
    service_network: 10.43.0.0/16
    domain: cluster.local
"""

RETURN = r"""
faults:
  description: One sentence for each way that does not lead where it should.
  returned: always
  type: list
  elements: str
asked:
  description: How many ways were tried.
  returned: always
  type: int
"""

import ipaddress
import os
import socket
import struct
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
HEADERS = 28


def checksum(data: bytes) -> int:
    """Return the Internet checksum of bytes of even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def echo(address: str, size: int, timeout: float = 2.0) -> str:
    """Send one unfragmented echo request of `size` bytes; return what is wrong, empty when it was answered."""
    number = os.getpid() & 0xFFFF
    payload = b"\x5a" * (size - size % 2)
    packet = struct.pack("!BBHHH", 8, 0, 0, number, 1) + payload
    packet = struct.pack("!BBHHH", 8, 0, checksum(packet), number, 1) + payload
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        try:
            sock.sendto(packet, (address, 0))
            deadline = time.monotonic() + timeout
            while True:
                sock.settimeout(max(0.01, deadline - time.monotonic()))
                answer, sender = sock.recvfrom(65535)
                body = answer[(answer[0] & 0xF) * 4 :]
                if sender[0] == address and body[0] == 0 and struct.unpack("!H", body[4:6])[0] == number:
                    return "" if body[8:] == payload else "answered with other bytes"
                if time.monotonic() > deadline:
                    return "no answer"
        except OSError as error:
            return "no answer" if isinstance(error, TimeoutError) else str(error)


def question(name: str) -> bytes:
    """Return a DNS query for the address of `name`."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.rstrip(".").split("."))
    return struct.pack("!HHHHHH", 0x4D48, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def resolve(server: str, name: str, tcp: bool) -> str:
    """Ask a DNS server for `name` by UDP or TCP; return its first address. Raises OSError when it does not answer."""
    query = question(name)
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.settimeout(3)
        sock.connect((server, 53))
        sock.sendall(struct.pack("!H", len(query)) + query if tcp else query)
        answer = sock.recv(4096)[2 if tcp else 0 :]
    if struct.unpack("!H", answer[6:8])[0] == 0:
        raise OSError(f"no such name {name}")
    # The answer's last record is the address; its data are its last four bytes.
    return socket.inet_ntoa(answer[-4:])


def size(device: str) -> int:
    """Return how many bytes of payload an unfragmented echo through the device can carry."""
    with open(f"/sys/class/net/{device}/mtu") as source:
        return int(source.read()) - HEADERS


def faults(params: dict[str, Any]) -> tuple[list[str], int]:
    """Try every way once; return a sentence for each that fails, and how many were tried."""
    found: list[str] = []
    device, name = params["device"], ".".join(("kubernetes", "default", "svc", params["domain"]))
    services = ipaddress.ip_network(params["service_network"])
    api, dns = str(services[1]), str(services[10])
    others = {node: net for node, net in params["networks"].items() if node != params["node_name"]}
    try:
        payload = size(device)
    except OSError:
        return [f"the overlay's device {device} is not there"], 1
    for node, network in sorted(others.items()):
        address = network.split("/")[0]
        wrong = echo(address, payload)
        if wrong:
            found.append(f"pods of {node} ({address}, {payload + HEADERS} bytes): {wrong}")
    try:
        with socket.create_connection((api, 443), 3):
            pass
    except OSError as error:
        found.append(f"service address {api}:443: {error}")
    for tcp in (False, True):
        way = "TCP" if tcp else "UDP"
        try:
            address = resolve(dns, name, tcp)
            if address != api:
                found.append(f"DNS by {way}: {name} is {address}, not {api}")
        except OSError as error:
            found.append(f"DNS by {way} at {dns}: {error}")
    return found, len(others) + 3


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "networks": {"type": "dict", "required": True},
            "node_name": {"type": "str", "required": True},
            "device": {"type": "str", "default": "flannel.1"},
            "service_network": {"type": "str", "required": True},
            "domain": {"type": "str", "required": True},
            "seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    deadline = time.monotonic() + module.params["seconds"]
    while True:
        found, asked = faults(module.params)
        if not found or time.monotonic() > deadline:
            break
        time.sleep(1)
    module.exit_json(changed=False, faults=found, asked=asked)


if __name__ == "__main__":
    main()
