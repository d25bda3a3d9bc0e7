"""Machines that talk to each other before anything is installed: listeners on free ports, and probes of them."""

from __future__ import annotations

import errno
import glob
import json
import os
import selectors
import signal
import socket
import statistics
import struct
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .site_findings import Finding
from .site_machine import Facts, bound, can_bind, installation, node_mtu, socket_owner

# What a listener is called in /proc, so that it is found again and nothing else is ever stopped.
LISTENER = "preflight-listn"
MAGIC = b"metalhub preflight "
# Of <linux/in.h>; Python does not name them. PROBE sets "don't fragment" and ignores what was learnt earlier.
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3
UDP_HEADERS = ICMP_HEADERS = 28
ATTEMPTS, PATIENCE = 4, 0.5
# What every way must carry undivided (RFC 791), and what still holds an answer.
SMALLEST = 576


def listen(name: str, role: str, ports: list[Facts], seconds: int, *, stay: bool) -> Facts:
    """Try every port of a role and, when `stay`, leave a listener on the free ones that other machines use.

    Where RKE2 is installed nothing is tried, for it might want the port that moment; who listens is only looked up.

    ports: port, protocol, roles (that have it), callers and purpose each, as in vars/main.yml.
    Returns `taken` (port, protocol, purpose, owner, own) and `listening` (["tcp/9345", …]). The listener is a process
    of its own; it ends on `stop` and by itself after `seconds`.
    """
    stop()
    rke2, busy = installation(), bound()
    taken, sockets = [], {}
    for spec in (spec for spec in ports if role in spec["roles"]):
        port, protocol = int(spec["port"]), str(spec["protocol"])
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        place = "0.0.0.0" if spec["callers"] else "127.0.0.1"  # noqa: S104  (as RKE2 will)
        if not rke2["installed"] and can_bind(sock, place, port):
            if stay and spec["callers"]:
                sockets[f"{protocol}/{port}"] = sock
                continue
        elif not rke2["installed"] or (protocol, port) in busy:
            # Who holds the ports of a running node is not in question, and looking takes long where many programs run.
            owner, own = ("RKE2", True) if rke2["running"] else socket_owner(busy[(protocol, port)])
            taken.append({**spec, "owner": owner, "own": own})
        sock.close()
    if sockets:
        _detach(list(sockets.values()), name, seconds)
    for sock in sockets.values():
        sock.close()
    return {"taken": taken, "listening": list(sockets)}


def _detach(sockets: list[socket.socket], name: str, seconds: int) -> None:
    """Serve the sockets in a process that belongs to nobody and holds nothing else open."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        ready, name_is_set = os.pipe()
        if os.fork() == 0:
            Path("/proc/self/comm").write_text(LISTENER, encoding="ascii")
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            keep = {sock.fileno() for sock in sockets}
            for entry in os.listdir("/proc/self/fd"):
                if int(entry) > 2 and int(entry) not in keep:
                    _close(int(entry))
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            serve(sockets, name, seconds)
        # Whoever looks for listeners from now on finds this one: it has closed its end after it took its name.
        os.close(name_is_set)
        os.read(ready, 1)
    finally:
        os._exit(0)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def serve(sockets: list[socket.socket], name: str, seconds: float) -> None:
    """Accept what connects, and answer a datagram of ours with one of the same size: name and clock of this machine."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            sock.setblocking(False)
            if sock.type == socket.SOCK_DGRAM:
                sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
            selector.register(sock, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                _answer(key.fileobj, name)  # type: ignore[arg-type]  # only sockets were registered


def _answer(sock: socket.socket, name: str) -> None:
    try:
        if sock.type == socket.SOCK_STREAM:
            sock.accept()[0].close()
            return
        data, sender = sock.recvfrom(65535)
        if data.startswith(MAGIC):
            head = data[: len(MAGIC) + 1]
            about = json.dumps({"name": name, "clock": time.time()}).encode()
            sock.sendto((head + about).ljust(len(data)), sender)
    except OSError:
        # A caller that is gone, or too large an answer for the way back: its silence is what the caller reports.
        return


def listeners() -> list[int]:
    """Return the processes of this machine that `listen` has left.

    One that has ended and waits to be buried is none, and neither is one of a container that this machine runs.
    """
    found = []
    network = os.readlink("/proc/self/ns/net")
    for path in glob.glob("/proc/[0-9]*"):
        try:
            status = Path(path, "stat").read_text(encoding="ascii", errors="replace")
            # Only one that waits to be buried (Z) has closed its sockets.
            lives = f" ({LISTENER}) " in status and f" ({LISTENER}) Z" not in status
            if lives and os.readlink(f"{path}/ns/net") == network:
                found.append(int(os.path.basename(path)))
        except OSError:
            continue
    return found


def stop() -> int:
    """End every listener of this machine and return how many there were."""
    found = listeners()
    for process in found:
        try:
            os.kill(process, signal.SIGTERM)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 2
    while found and listeners() and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(found)


class Echo(ABC):
    """A way to be answered by many machines at once, with packets of any size that nobody may divide."""

    headers: int
    sock: socket.socket

    @abstractmethod
    def send(self, address: str, payload: bytes) -> None:
        """Send a payload; too large a one for the own interface raises OSError."""

    @abstractmethod
    def receive(self) -> tuple[str, bytes]:
        """Return sender and payload of the packet that has come; an empty payload for one that is not ours."""

    def answers(self, sizes: dict[str, int], attempts: int = ATTEMPTS) -> dict[str, tuple[bytes, float]]:
        """Return who answers to packets of these sizes (headers included): address -> (payload, seconds since 1970).

        The time is the middle between sending and receiving; one byte of the payload tells the attempts apart, so that
        a late answer does not falsify it.
        """
        found: dict[str, tuple[bytes, float]] = {}
        for attempt in range(attempts):
            head = MAGIC + bytes([attempt])
            sent = time.time()
            waiting = {address: size for address, size in sizes.items() if address not in found}
            for address, size in waiting.items():
                try:
                    self.send(address, head.ljust(size - self.headers))
                except OSError:
                    continue
            end = time.monotonic() + PATIENCE
            while waiting.keys() - found.keys() and (left := end - time.monotonic()) > 0:
                self.sock.settimeout(left)
                try:
                    address, payload = self.receive()
                except OSError:
                    continue
                if payload.startswith(head) and len(payload) + self.headers == waiting.get(address):
                    found[address] = (payload, (sent + time.time()) / 2)
            if not waiting.keys() - found.keys():
                break
        return found

    def largest(self, addresses: list[str], mtu: int) -> dict[str, int]:
        """Return the largest packet up to `mtu` bytes that gets to each address and back, to 8 bytes."""
        passes, fails = dict.fromkeys(addresses, SMALLEST), dict.fromkeys(addresses, mtu)
        while open_ := {at: (passes[at] + fails[at]) // 2 for at in addresses if fails[at] - passes[at] > 8}:
            passed = self.answers(open_, attempts=2)
            for at, size in open_.items():
                (passes if at in passed else fails)[at] = size
        return passes


class UdpEcho(Echo):
    """Asks the listeners of this module, by the port that pods' traffic will take."""

    headers = UDP_HEADERS

    def __init__(self, port: int) -> None:
        self.port = port
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)

    def send(self, address: str, payload: bytes) -> None:
        """Send a datagram."""
        self.sock.sendto(payload, (address, self.port))

    def receive(self) -> tuple[str, bytes]:
        """Return sender and payload."""
        payload, sender = self.sock.recvfrom(65535)
        return str(sender[0]), payload


class IcmpEcho(Echo):
    """Asks the kernels themselves, for machines where nothing of ours may listen."""

    headers = ICMP_HEADERS

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        self.identity = os.getpid() & 0xFFFF

    def send(self, address: str, payload: bytes) -> None:
        """Send an echo request."""
        head = struct.pack("!BBHHH", 8, 0, 0, self.identity, 1)
        packet = struct.pack("!BBHHH", 8, 0, _checksum(head + payload), self.identity, 1) + payload
        self.sock.sendto(packet, (address, 0))

    def receive(self) -> tuple[str, bytes]:
        """Return sender and payload."""
        packet, sender = self.sock.recvfrom(65535)
        start = (packet[0] & 0x0F) * 4
        kind, _, _, identity, _ = struct.unpack("!BBHHH", packet[start : start + 8])
        ours = kind == 0 and identity == self.identity
        return str(sender[0]), packet[start + 8 :] if ours else b""


def _checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def connect(targets: list[tuple[str, int]], seconds: float) -> dict[tuple[str, int], str]:
    """Connect to all targets at once and return those that fail: (address, port) -> why, a clause."""
    failed: dict[tuple[str, int], str] = {}
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for target in targets:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setblocking(False)
            code = sock.connect_ex(target)
            if code in (0, errno.EINPROGRESS):
                selector.register(sock, selectors.EVENT_WRITE, target)
            else:
                failed[target] = os.strerror(code).lower()
                sock.close()
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                sock = key.fileobj  # type: ignore[assignment]  # only sockets were registered
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    failed[key.data] = os.strerror(code).lower()
                selector.unregister(sock)
                sock.close()
        for key in list(selector.get_map().values()):
            failed[key.data] = f"no answer within {seconds:g} s"
            key.fileobj.close()  # type: ignore[union-attr]  # only sockets were registered
    return failed


def probe(name: str, machines: dict[str, Facts], ports: list[Facts], needs: Facts) -> list[Finding]:
    """Talk to every other machine and return what does not come through.

    machines: every machine of the play -> its facts, with `role`, `address`, `listening` and `taken`.
    """
    findings = list(probe_ports(name, machines, ports, needs["connect_seconds"]))
    udp = next(int(spec["port"]) for spec in ports if spec["protocol"] == "udp")
    fresh = {other for other, facts in machines.items() if f"udp/{udp}" in facts["listening"]}
    by_udp = {other: str(machines[other]["address"]) for other in sorted(machines) if other in fresh and other != name}
    by_icmp = {other: str(machines[other]["address"]) for other in sorted(machines) if other not in fresh | {name}}
    heard = UdpEcho(udp).answers(dict.fromkeys(by_udp.values(), SMALLEST))
    findings += _judge_silence(name, by_udp, heard, udp)
    findings += judge_replies(name, by_udp, heard, needs["clock_seconds_max"])
    mtu = node_mtu(machines[name])
    findings += _probe_mtu(name, {other: at for other, at in by_udp.items() if at in heard}, UdpEcho(udp), mtu)
    if by_icmp:
        echo = IcmpEcho()
        # Who does not answer pings at all says nothing about sizes.
        alive = echo.answers(dict.fromkeys(by_icmp.values(), SMALLEST), attempts=2)
        findings += _probe_mtu(name, {other: at for other, at in by_icmp.items() if at in alive}, echo, mtu)
    return findings


def probe_ports(name: str, machines: dict[str, Facts], ports: list[Facts], seconds: float) -> Iterator[Finding]:
    """Yield the TCP ports of other machines that cannot be reached, one finding a port and reason."""
    own = machines[name]["role"]
    targets: dict[tuple[str, int], str] = {}
    purposes = {int(spec["port"]): str(spec["purpose"]) for spec in ports if own in spec["callers"]}
    for other, facts in machines.items():
        served = (
            {f"{spec['protocol']}/{spec['port']}" for spec in facts["taken"]} if facts["rke2"]["running"] else set()
        )
        for spec in ports:
            used = own in spec["callers"] and facts["role"] in spec["roles"] and spec["protocol"] == "tcp"
            if other != name and used and f"tcp/{spec['port']}" in served | set(facts["listening"]):
                targets[(facts["address"], int(spec["port"]))] = other
    silent: dict[tuple[int, str], list[str]] = defaultdict(list)
    for target, why in connect(list(targets), seconds).items():
        silent[(target[1], why)].append(targets[target])
    for (port, why), others in sorted(silent.items()):
        fix = f"let {port}/tcp through on the firewalls of these machines and between them"
        seen = f"{', '.join(sorted(others))}: {why}"
        yield Finding("port", f"{port}/tcp ({purposes[port]}) cannot be reached", name, seen, fix)


def _judge_silence(name: str, peers: dict[str, str], heard: dict[str, Any], port: int) -> Iterator[Finding]:
    silent = [other for other, address in peers.items() if address not in heard]
    if silent:
        fix = f"let {port}/udp through on the firewalls of these machines and between them: pods' traffic takes it"
        what = f"{port}/udp (pods of other machines) cannot be reached"
        yield Finding("port", what, name, f"{', '.join(silent)}: no answer", fix)


def judge_replies(
    name: str, peers: dict[str, str], heard: dict[str, tuple[bytes, float]], seconds: float
) -> Iterator[Finding]:
    """Yield answers under another name, and this machine's clock if it is the odd one out.

    heard: address -> (payload, own time in the middle of the exchange).
    """
    offsets = [0.0]
    for other, address in peers.items():
        if address not in heard:
            continue
        payload, middle = heard[address]
        about = json.loads(payload[len(MAGIC) + 1 :])
        offsets.append(about["clock"] - middle)
        if about["name"] != other:
            fix = f"find out who else has {address} (arping -D {address}) and give it another"
            yield Finding("address", f"{address} of {other} is answered by another", name, about["name"], fix)
    # The median: one wrong clock is told by its own machine and not by all the others.
    off = -statistics.median(offsets)
    if abs(off) > seconds:
        way = "ahead of" if off > 0 else "behind"
        fix = "start time synchronisation (chrony), with the same servers on every machine"
        yield Finding("clock", f"is {way} the other machines'", name, f"{abs(off):.1f} s", fix)


def _probe_mtu(name: str, peers: dict[str, str], echo: Echo, mtu: int) -> Iterator[Finding]:
    """Yield the ways on which a full packet of the own interface does not get through."""
    passed = echo.answers(dict.fromkeys(peers.values(), mtu)) if mtu else peers.values()
    narrow = {other: address for other, address in peers.items() if address not in passed}
    if narrow:
        sizes = echo.largest(list(narrow.values()), mtu)
        seen = ", ".join(f"{other}: about {sizes[address]}" for other, address in narrow.items())
        fix = "set the same MTU on these machines and on every switch between them"
        yield Finding("path MTU", f"is smaller than the {mtu} of the interface", name, f"bytes to {seen}", fix)


def probe_virtual(name: str, machines: dict[str, Facts], address: str, servers: int) -> Iterator[Finding]:
    """Yield a finding when somebody outside the site answers to the virtual address of the API.

    Asked by one server only, and only when all of them are there and none has been set up: afterwards one of them holds
    it. servers: how many the inventory has.
    """
    known = {other: facts for other, facts in machines.items() if facts["role"] == "server"}
    settled = any(facts["rke2"]["installed"] for facts in machines.values())
    held = any(facts["holds_virtual_address"] for facts in machines.values())
    if not address or settled or held or len(known) != servers or name != min(known, default=""):
        return
    if IcmpEcho().answers({address: SMALLEST}, attempts=2):
        fix = f"find out who has it (arping {address}), and give site_api_address a free one"
        yield Finding("site_api_address", "is answered by a machine outside the site", name, address, fix)
