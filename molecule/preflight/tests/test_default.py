"""Machines that fit, and how they are left."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from testinfra.host import Host

# Everything but what the kernel, the journal and a log-in change by themselves.
WITNESS = """
find / /run /tmp /var/lib/rancher /var/lib/kubelet -xdev -type f -printf '%p %s %m\\n' \\
  | grep -vE '^(/run/(log|systemd|udev|user|sshd|lock)|/var/log|/proc|/sys)/' | sort -u
ss --no-header --listening --numeric --tcp --udp | sort
ps -e -o comm= | grep -vE '^(sshd|sh|bash|ps|ss|find|grep|sort|\\(sd-pam\\)|systemd)' | sort -u
"""


@pytest.mark.proves("preflight-leaves-nothing")
def test_a_check_of_good_machines_passes_and_leaves_nothing_behind(
    machines: dict[str, Host], converge: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    before = {name: host.check_output(WITNESS).splitlines() for name, host in machines.items()}
    machines["preflight-server"].check_output("touch /root/canary")
    canary = machines["preflight-server"].check_output(WITNESS).splitlines()
    assert len(canary) == len(before["preflight-server"]) + 1, "the witness is blind"
    machines["preflight-server"].check_output("rm /root/canary")
    run = converge()
    assert run.returncode == 0, run.stdout[-4000:]
    assert {name: host.check_output(WITNESS).splitlines() for name, host in machines.items()} == before
