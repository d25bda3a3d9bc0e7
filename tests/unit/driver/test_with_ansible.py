"""The driver with the real Ansible on hosts with local connections: failures, signals and SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner import project
from tests.unit.driver.conftest import Checkout

SCRIPT = Path(project.__file__).parents[1] / "provision.py"
CANARY = "canary-Zk3vQ8-in-the-environment"
# Touches done/<stage>-<host>; sleeps and fails where files of these names ask for it.
WORK = """---
- name: Work
  hosts: {hosts}
  gather_facts: false
  serial: 1
  any_errors_fatal: true
  pre_tasks:
    - name: Stop here when asked to
      ansible.builtin.meta: end_play
      when: provision_stop_file | default('/nonexistent') is exists
  tasks:
    - name: Work a while
      ansible.builtin.command: >-
        sh -c 'echo $$ >{root}/busy.new; mv {root}/busy.new {root}/busy-{name};
        if test -e {root}/slow-{name}; then exec sleep 300; fi;
        while test -e {root}/wait-{name}; do sleep 0.05; done; touch {root}/done/{name}-{{{{ inventory_hostname }}}}'
      changed_when: true
    - name: Need what may be missing
      ansible.builtin.assert:
        that: not fail_file is exists and lookup('ansible.builtin.config', 'HOST_KEY_CHECKING')
        fail_msg: "{{{{ fail_file }}}} is there"
      vars:
        fail_file: "{root}/fail-{name}-{{{{ inventory_hostname }}}}"
"""


class World:
    """The checkout with stages that work, and the driver as a process of its own."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.root = checkout.root
        self.drivers: list[subprocess.Popen[str]] = []
        (self.root / "done").mkdir()
        for name, hosts in (("first", "rke2_server"), ("second", "rke2_server"), ("third", "rke2_agent[0]")):
            checkout.stage(name, body=WORK.format(hosts=hosts, name=name, root=self.root))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the driver on the site."""
        call = [sys.executable, str(SCRIPT), *arguments, "--site", "here", "--json"]
        environment = {**os.environ, "CANARY": CANARY}
        pipe = subprocess.PIPE
        self.drivers.append(subprocess.Popen(call, stdout=pipe, stderr=pipe, text=True, env=environment))
        return self.drivers[-1]

    def run(self, *arguments: str) -> tuple[int, Any]:
        """Run the driver to its end and return its exit code and document."""
        driver = self.start(*arguments)
        out, err = driver.communicate(timeout=180)
        assert out, err
        return driver.returncode, json.loads(out)

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is true."""
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def busy(self, stage: str) -> int:
        """Wait for the task of a stage and return its process id."""
        path = self.root / f"busy-{stage}"
        self.until(path.exists)
        return int(path.read_text())

    def done(self) -> set[str]:
        """Return what the stages have done."""
        return {path.name for path in (self.root / "done").iterdir()}

    def results(self, document: Any) -> dict[str, str]:
        """Return stage -> result."""
        return {end["stage"]: end["result"] for end in document["stages"]}


@pytest.fixture
def world(checkout: Checkout) -> Iterator[World]:
    """Give the test stages that work; a driver that is left running is killed."""
    made = World(checkout)
    yield made
    for driver in made.drivers:
        driver.kill()
        driver.communicate()


@pytest.mark.proves("driver-deploy", "driver-resume", "driver-no-leftovers", "journal-copies")
def test_a_failed_deploy_is_resumed_where_it_failed(world: World) -> None:
    (world.root / "fail-second-beta").touch()
    code, document = world.run("deploy")
    assert code == 1
    assert world.results(document) == {"first": "ok", "second": "failed"}
    failure = document["failures"][0]
    assert (failure["host"], failure["task"]) == ("beta", "Need what may be missing")
    assert failure["message"] == f"{world.root}/fail-second-beta is there"
    assert document["stages"][1]["hosts"]["alpha"]["changed"] == 1
    assert "third-one" not in world.done()
    (world.root / "fail-second-beta").unlink()
    code, document = world.run("deploy", "--resume")
    assert (code, world.results(document)) == (0, {"second": "ok", "third": "ok"})
    assert not (world.root / "server/lock.json").exists()
    copies = {path.name: path.read_text() for path in (world.root / "server/journal").iterdir()}
    own = {path.name: path.read_text() for path in world.checkout.journal.glob("*-deploy-*")}
    assert copies.keys() == own.keys() and len(own) == 2
    assert all(own[name].startswith(text) and '"stage_finished"' in text for name, text in copies.items())
    left = {path.name for path in (world.checkout.state / "metalhub/here").rglob("*") if path.suffix != ".jsonl"}
    assert left == {"control_id", "journal", "lock", "run", "child.lock"}


@pytest.mark.proves("driver-killed", "driver-no-leftovers")
def test_a_killed_driver_takes_ansible_with_it_and_the_run_is_resumed(world: World) -> None:
    (world.root / "slow-second").touch()
    driver = world.start("deploy")
    working = world.busy("second")
    driver.kill()
    driver.communicate()
    world.until(lambda: not Path(f"/proc/{working}").exists())
    state = b"".join(path.read_bytes() for path in world.checkout.state.rglob("*") if path.is_file())
    assert b"run_started" in state
    assert CANARY.encode() not in state
    code, document = world.run("status")
    assert (document["running"], document["last_run"]["result"]) == (None, "died")
    assert document["unfinished"]["stages"] == ["second", "third"]
    (world.root / "slow-second").unlink()
    code, document = world.run("deploy", "--resume")
    assert (code, world.results(document)) == (0, {"second": "ok", "third": "ok"})


@pytest.mark.proves("driver-interrupt")
def test_the_first_signal_finishes_the_host_in_hand_and_the_second_does_not(world: World) -> None:
    waiting = world.root / "wait-first"
    waiting.touch()
    driver = world.start("deploy")
    world.busy("first")
    driver.send_signal(signal.SIGINT)
    world.until(lambda: any((world.checkout.state / "metalhub/here/run").glob("*/stop")))
    waiting.unlink()
    out, err = driver.communicate(timeout=30)
    assert driver.returncode == 130, err
    assert world.done() == {"first-alpha"}
    assert world.results(json.loads(out)) == {"first": "interrupted"}
    (world.root / "slow-first").touch()
    (world.root / "busy-first").unlink()
    driver = world.start("deploy", "--resume")
    working = world.busy("first")
    started = time.monotonic()
    driver.send_signal(signal.SIGINT)
    time.sleep(0.1)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert time.monotonic() - started < 60
    world.until(lambda: not Path(f"/proc/{working}").exists())
    assert not (world.root / "server/lock.json").exists()


@pytest.mark.proves("driver-server-lock")
def test_another_control_machine_is_kept_off_until_the_lock_expires(world: World) -> None:
    (world.root / "server").mkdir()
    lock = world.root / "server/lock.json"
    theirs = {"owner": "ann@ops", "control": "ffff", "run": "R", "expires": int(time.time()) + 900}
    lock.write_text(json.dumps(theirs))
    code, document = world.run("deploy")
    assert code == 3
    assert "ann@ops (run R) until 20" in document["error"]
    assert json.loads(lock.read_text()) == theirs
    assert world.done() == set()
    lock.write_text(json.dumps({**theirs, "expires": int(time.time()) - 1}))
    (world.root / "fail-first-alpha").touch()
    assert world.run("deploy", "--only", "first")[0] == 1
    assert not lock.exists()


HEALTH = """---
- name: Health
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Tell the driver
      ansible.builtin.copy:
        content: '[{"kind": "Node", "metadata": {"name": "one"}, "status": {"conditions": []}}]'
        dest: "{{ provision_report_file }}"
        mode: "0600"
      changed_when: false
"""


@pytest.mark.proves("driver-rollout", "driver-rollout-health", "driver-hooks")
def test_a_canary_a_pause_and_a_hook_with_the_real_ansible(world: World) -> None:
    third = WORK.format(hosts="rke2_agent", name="third", root=world.root)
    batch = "serial: \"{{ rke2_agent_batch | default('100%') }}\""
    world.checkout.stage("third", body=third.replace("serial: 1", batch))
    operations, hooks = world.root / "playbooks/operations", world.root / "inventories/here/hooks"
    operations.mkdir()
    hooks.mkdir()
    (operations / "health.yml").write_text(HEALTH, encoding="utf-8")
    hook = WORK.format(hosts="localhost", name="hook", root=world.root)
    (hooks / "pre_third.yml").write_text(hook, encoding="utf-8")
    (world.root / "ansible.cfg").write_text("[inventory]\nignore_patterns = ^hooks$\n", encoding="utf-8")
    code, document = world.run("deploy", "--only", "third", "--canary", "two", "--pause-after", "1")
    assert (code, document["result"], world.results(document)) == (0, "paused", {"third": "partly"})
    assert world.done() == {"hook-localhost", "third-two"}
    assert not (world.root / "server/lock.json").exists()
