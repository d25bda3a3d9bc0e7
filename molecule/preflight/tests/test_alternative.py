"""Machines with faults, planted for real: one run names all of them, and changes none."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from testinfra.host import Host

SERVER, ONE, TWO = "preflight-server", "preflight-agent-1", "preflight-agent-2"
DUPLICATE_KEY = "/etc/ssh/ssh_host_ecdsa_key"


@dataclass(frozen=True)
class Fault:
    """Something wrong with a machine.

    plant, mend: what a shell types there.
    what, where, seen: the finding it has to lead to (regular expressions).
    """

    machine: str
    plant: str
    mend: str
    what: str
    where: str
    seen: str


FAULTS = {
    "port taken": Fault(
        ONE, "systemd-run --unit squatter python3 -m http.server 10250", "systemctl stop squatter",
        r"port 10250/tcp \(kubelet\) is taken", ONE, r"python3 \(process \d+\)",
    ),
    "port blocked": Fault(
        SERVER, "iptables -I INPUT -p tcp --dport 9345 -j DROP", "iptables -D INPUT -p tcp --dport 9345 -j DROP",
        r"port 9345/tcp \(registration of nodes\) cannot be reached", ONE, SERVER,
    ),
    "pods' port blocked": Fault(
        TWO, "iptables -I INPUT -p udp --dport 8472 -j DROP", "iptables -D INPUT -p udp --dport 8472 -j DROP",
        r"port 8472/udp .* cannot be reached", SERVER, TWO,
    ),
    "k3s left": Fault(
        ONE,
        "mkdir -p /etc/rancher/k3s; cp /bin/sleep /usr/local/bin/k3s; systemd-run --unit k3s /usr/local/bin/k3s 900",
        "systemctl stop k3s; rm -r /usr/local/bin/k3s /etc/rancher",
        r"machine was or is part of another cluster", ONE, r"/etc/rancher/k3s, /usr/local/bin/k3s, program k3s",
    ),
    "machine-id copied": Fault(
        TWO, "cp /etc/machine-id /root/own; echo {other} >/etc/machine-id", "mv /root/own /etc/machine-id",
        rf"machine id is also that of {ONE}", TWO, r"[0-9a-f]{32}",
    ),
    "SSH host key copied": Fault(
        TWO, f"echo '{{key}}' >{DUPLICATE_KEY}.pub", f"rm {DUPLICATE_KEY}.pub",
        rf"ssh host key is also that of {TWO}", ONE, r"[0-9a-f]{16}",
    ),
    "no default route": Fault(
        TWO,
        "ip route show default >/root/route; ip route delete default",
        "ip route add $(cat /root/route); rm /root/route",
        r"default route is missing", TWO, r"none",
    ),
    "disk full": Fault(
        SERVER, "fallocate -l 8G /var/lib/rancher/filler", "rm /var/lib/rancher/filler",
        r"disk has too little space left for /var/lib/rancher", SERVER, r"[\d.]+ GiB",
    ),
    "odd MTU": Fault(
        ONE, "ip link set dev eth0 mtu 1400", "ip link set dev eth0 mtu 1500",
        r"MTU is not the 1500 of 2 of 3 machines", ONE, "1400",
    ),
}  # fmt: skip
# What follows from a fault on the other machines, beside the finding that the fault itself leads to.
CONSEQUENCES = [
    (r"port 9345/tcp .* cannot be reached", TWO),
    (r"port 8472/udp .* cannot be reached", f"{ONE}|{TWO}"),
    (r"disk has too little space left for /var/lib/kubelet", SERVER),
    (r"machine id is also that of", ONE),
    (r"ssh host key is also that of", TWO),
    (r"path MTU is smaller than the 1500", f"{SERVER}|{TWO}"),
]


@contextmanager
def planted(fault: Fault, machines: dict[str, Host]) -> Generator[None]:
    """Have a fault for the time of the context."""
    words = {
        "other": machines[ONE].file("/etc/machine-id").content_string.strip(),
        "key": machines[ONE].file(f"{DUPLICATE_KEY}.pub").content_string.strip(),
    }
    machines[fault.machine].check_output(fault.plant.format(**words))
    try:
        yield
    finally:
        machines[fault.machine].check_output(fault.mend)


@pytest.fixture(scope="module")
def output(machines: dict[str, Host], converge: Callable[..., subprocess.CompletedProcess[str]]) -> str:
    """Return what one run on the faulty machines says; they are as good as before when it is over."""
    with ExitStack() as stack:
        machines[ONE].check_output(f"ssh-keygen -q -t ecdsa -N '' -f {DUPLICATE_KEY}")
        stack.callback(machines[ONE].check_output, f"rm {DUPLICATE_KEY} {DUPLICATE_KEY}.pub")
        for fault in FAULTS.values():
            stack.enter_context(planted(fault, machines))
        run = converge()
    assert run.returncode == 2, run.stdout[-4000:]
    return run.stdout


@pytest.fixture(scope="module")
def findings(output: str) -> set[tuple[str, str, str, str]]:
    """Return the findings: what, where, value seen, fix."""
    pattern = r"^ +(\S.*)\n +where: (.*)\n +seen: +(.*)\n +fix: +(.*)$"
    found = {match.groups() for match in re.finditer(pattern, output, re.M)}
    assert found, output[-4000:]
    return found  # type: ignore[return-value]


@pytest.mark.proves("preflight-all-at-once")
@pytest.mark.parametrize("fault", [pytest.param(fault, id=name) for name, fault in FAULTS.items()])
def test_a_fault_is_named_with_machine_value_and_fix(fault: Fault, findings: set[tuple[str, str, str, str]]) -> None:
    told = [
        fix
        for what, where, seen, fix in findings
        if re.fullmatch(fault.what, what) and where == fault.where and re.search(fault.seen, seen)
    ]
    assert len(told) == 1, sorted(findings)
    assert told[0]


@pytest.mark.proves("preflight-all-at-once")
def test_nothing_is_told_that_was_not_planted(findings: set[tuple[str, str, str, str]]) -> None:
    known = [(fault.what, fault.where) for fault in FAULTS.values()] + CONSEQUENCES
    strange = [
        finding
        for finding in findings
        if not any(re.match(what, finding[0]) and re.fullmatch(where, finding[1]) for what, where in known)
    ]
    assert strange == []


@pytest.mark.proves("preflight-all-at-once")
def test_all_findings_come_in_one_message_that_counts_them(
    output: str, findings: set[tuple[str, str, str, str]]
) -> None:
    assert f"{len(findings)} findings on 3 of 3 machines; nothing was changed on any." in output
    assert not re.search(r"changed=[1-9]", output)
