"""Systemd's timers on a control machine of its own really do what was scheduled, when they may."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

import nodes
from build import STATE, node_image
from tests.lab.running import ROOT, Lab, eventually
from tests.lab.test_upgrade import NEW, OLD, back

pytestmark = pytest.mark.shard("schedule")

NAME = "control"
HOME = Path("/root")


class Control:
    """A machine with systemd that has this checkout, the lab's key, its vault's password and the kubeconfig."""

    def __init__(self, site: Path) -> None:
        """Start it. site: the directory of the lab's inventory that it sees and may write."""
        python = Path(sys.base_prefix).resolve()
        venv = (ROOT / ".venv").resolve()
        shared = {
            ROOT: (ROOT, "ro"),
            venv: (venv, "ro"),
            python: (python, "ro"),
            site: (ROOT / "inventories/lab", "rw"),
            STATE: (HOME / ".local/state/metalhub/lab", "rw"),
            nodes.KUBECONFIG.parent: (HOME / ".kube", "ro"),
        }
        self.container = nodes.client().containers.run(
            node_image(),
            ["/lib/systemd/systemd"],
            detach=True,
            name=NAME,
            hostname=NAME,
            environment={"container": "docker"},
            labels={nodes.LABEL: str(STATE)},
            stop_signal="SIGRTMIN+3",
            cgroupns="private",
            cap_add=["ALL"],
            cap_drop=["SYS_RESOURCE", "SYS_TIME", "SYS_BOOT", "SYS_MODULE"],
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            device_cgroup_rules=["a *:* rwm"],
            devices=["/dev/kmsg"],
            tmpfs={"/run": "exec", "/tmp": "", "/run/lock": ""},
            volumes=[f"{here}:{there}:{mode}" for here, (there, mode) in shared.items()],
            network=nodes.NETWORK,
            networking_config={
                nodes.NETWORK: nodes.client().api.create_endpoint_config(ipv4_address=str(ip_network(nodes.SUBNET)[30]))
            },
        )
        running = "systemctl is-system-running || true"
        eventually("its systemd is up", lambda: self.sh(running).strip() in ("running", "degraded"), 60)

    def sh(self, script: str) -> str:
        """Run a shell script on it."""
        return nodes.run_in(NAME, script)

    def schedule(self, *words: str) -> Any:
        """Call `schedule` of the driver and return its document."""
        quoted = " ".join(f"'{word}'" for word in (*words[:1], "--site", "lab", "--json", *words[1:]))
        python = f"{ROOT}/.venv/bin/python"
        return json.loads(self.sh(f"cd {ROOT} && HOME={HOME} {python} scripts/provision.py schedule {quoted}"))

    def reports(self, job: str) -> list[dict[str, Any]]:
        """The reports of a job, oldest first."""
        files = sorted((STATE / "schedule").glob(f"*-{job}.json"))
        return [json.loads(path.read_text()) for path in files]

    def results(self, job: str) -> list[str]:
        """How a job went, oldest first."""
        return [str(report["result"]) for report in self.reports(job)]


@pytest.fixture
def control(lab: Lab, tmp_path: Path) -> Iterator[Control]:
    """Start a control machine, whose schedules and reports end with the test."""
    assert lab.healthy(), "the lab is not well before the test"
    # What a run that was cut off has left.
    for left in nodes.client().containers.list(all=True, filters={"name": f"^/{NAME}$"}):
        left.remove(force=True, v=True)
    for path in (STATE / "schedule").glob("*"):
        path.unlink()
    made = Control(lab.copy(tmp_path / "checkout") / "inventories/lab")
    yield made
    print(made.sh("journalctl --no-pager -u 'metalhub-*' | tail -60"))
    made.container.remove(force=True, v=True)
    # The lab as it was, for those who come after: the way back with the data from before.
    if {lab.installed(name) for name in lab.machines} != {OLD}:
        back(lab, tmp_path / "checkout")


def _window(before: float, after: float) -> str:
    """A window from so many minutes before now to so many after."""
    now = datetime.now(UTC)
    start, end = now + timedelta(minutes=before), now + timedelta(minutes=after)
    return f"{start:%H:%M}-{end:%H:%M} UTC"


@pytest.mark.proves("schedule-running")
def test_a_snapshot_every_minute_really_happens_and_leaves_reports(lab: Lab, control: Control) -> None:
    name = f"scheduled-{int(time.time())}"
    added = control.schedule("add", "snapshot", "--at", "*:*:00 UTC", "--spread", "0", "--", "--name", name)
    assert added["changed"] is True
    assert (
        control.schedule("add", "snapshot", "--at", "*:*:00 UTC", "--spread", "0", "--", "--name", name)["changed"]
        is False
    )
    eventually("two snapshots by the timer", lambda: control.results("snapshot")[:2] == ["ok", "ok"], 360)
    for server in lab.servers:
        found = lab.sh(server, f"ls /var/lib/rancher/rke2/server/db/snapshots | grep -c {name}")
        assert int(found) >= 2, f"{server}: {found}"
    (listed,) = control.schedule("list")
    assert (listed["job"], listed["last"]["result"]) == ("snapshot", "ok")
    control.schedule("remove", "snapshot")
    assert control.schedule("list") == []
    eventually("no run is left", lambda: not control.sh("pgrep -f 'schedule[ ]run' || true").strip(), 120)
    assert lab.healthy()


@pytest.mark.proves("schedule-running")
def test_a_start_that_was_missed_while_the_machine_was_off_is_made_up_for(lab: Lab, control: Control) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=2)
    control.schedule("add", "verify", "--at", f"{soon:%H:%M} UTC", "--spread", "0")
    control.container.stop(timeout=60)
    time.sleep(max(0.0, (soon - datetime.now(UTC)).total_seconds()) + 60)
    assert control.results("verify") == []
    control.container.start()
    eventually("the verify after the start", lambda: control.results("verify") == ["ok"], 420)
    (report,) = control.reports("verify")
    assert datetime.fromisoformat(report["started"]) > soon + timedelta(seconds=60)
    control.schedule("remove", "verify")


@pytest.mark.proves("schedule-running")
def test_a_job_that_finds_the_site_in_use_is_kept_by_systemd_for_another_try(lab: Lab, control: Control) -> None:
    control.sh(f"systemd-run --unit hold flock {HOME}/.local/state/metalhub/lab/lock sleep 300")
    control.schedule("add", "verify", "--at", "*:*:00 UTC", "--spread", "0")
    eventually("a refusal", lambda: control.results("verify") == ["refused"], 120)
    state = "systemctl show metalhub-lab-verify.service --property=SubState,ExecMainStatus"
    eventually("systemd waits", lambda: "SubState=auto-restart" in control.sh(state), 30)
    assert "ExecMainStatus=3" in control.sh(state)
    control.sh("systemctl stop hold")
    control.sh("systemctl restart metalhub-lab-verify.service")
    eventually("the try after", lambda: control.results("verify")[-1] == "ok", 300)
    control.schedule("remove", "verify")


@pytest.mark.proves("schedule-running")
def test_a_deploy_mends_a_hand_edit_inside_its_window_and_not_outside(lab: Lab, control: Control) -> None:
    edited = "/etc/rancher/rke2/config.yaml"
    lab.sh("uworker02", f"echo '# edited by hand' >>{edited}")
    later = datetime.now(UTC) + timedelta(minutes=90)
    control.schedule(
        "add", "deploy", "--at", f"{later:%H:%M} UTC", "--window", _window(90, 300), "--", "--only", "rke2_agent"
    )
    control.sh("systemctl start --no-block metalhub-lab-deploy.service")
    eventually("a refusal", lambda: control.results("deploy") == ["refused"], 60)
    assert "the window is shut" in control.reports("deploy")[-1]["why"]
    assert "edited by hand" in lab.sh("uworker02", f"cat {edited}")
    control.sh("systemctl stop metalhub-lab-deploy.service")
    soon = datetime.now(UTC) + timedelta(minutes=2)
    control.schedule(
        "add", "deploy", "--at", f"{soon:%H:%M} UTC", "--window", _window(1, 120), "--spread", "0",
        "--", "--only", "rke2_agent",
    )  # fmt: skip
    eventually("the deploy", lambda: control.results("deploy")[-1] == "ok", 480)
    assert "edited by hand" not in lab.sh("uworker02", f"cat {edited}")
    control.schedule("remove", "deploy")
    eventually("all nodes well", lab.healthy)


@pytest.mark.proves("schedule-upgrade")
def test_an_upgrade_inside_its_window_really_happens(lab: Lab, control: Control, tmp_path: Path) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=2)
    control.schedule(
        "add", "upgrade", "--at", f"{soon:%H:%M} UTC", "--window", _window(1, 300), "--spread", "0", "--", "--to", NEW
    )
    eventually("the upgrade", lambda: bool(control.results("upgrade")), 2000)
    assert control.results("upgrade") == ["ok"], control.reports("upgrade")[-1]
    items = json.loads(lab.kubectl("get", "nodes", "-o", "json"))["items"]
    assert {item["status"]["nodeInfo"]["kubeletVersion"] for item in items} == {NEW}
    versions = tmp_path / "checkout/inventories/lab/group_vars/all/versions.yml"
    assert yaml.safe_load(versions.read_text())["rke2_version"] == NEW
    control.schedule("remove", "upgrade")
    eventually("all nodes well", lab.healthy)
