"""A checkout of its own for every test, and an Ansible that does what the test says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from provisioner import runner
from provisioner.cli import app
from provisioner.runner import Event, RunRequest, RunResult

ORDER = """---
# Looks before anything is touched.
- name: First
  ansible.builtin.import_playbook: stages/first.yml

# The servers, of which an agent needs one.
# They come before the agents.
- name: Second
  ansible.builtin.import_playbook: stages/second.yml

# The agents.
- name: Third
  ansible.builtin.import_playbook: stages/third.yml
"""
PLAY = "---\n- name: A play\n  hosts: {hosts}\n  gather_facts: false\n{more}  tasks: []\n"
INVENTORY = """---
all:
  vars:
    ansible_connection: local
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    provision_lock_directory: "{{ inventory_dir }}/../../server"
  children:
    rke2_server: {hosts: {alpha: , beta: }}
    rke2_agent: {hosts: {one: , two: , three: }}
"""


@dataclass
class Checkout:
    """A small repository with one site called `here`."""

    root: Path
    state: Path

    @property
    def journal(self) -> Path:
        """Where the runs of the site are noted."""
        return self.state / "metalhub/here/journal"

    def stage(self, name: str, hosts: str = "rke2_server", more: str = "", body: str | None = None) -> None:
        """Write the file of a stage."""
        text = PLAY.format(hosts=hosts, more=more) if body is None else body
        (self.root / f"playbooks/stages/{name}.yml").write_text(text, encoding="utf-8")

    def run(self, *arguments: str) -> Result:
        """Call the driver in this process."""
        return CliRunner().invoke(app, [*arguments])

    def document(self, *arguments: str) -> Any:
        """Call the driver with --json and return the document."""
        return json.loads(self.run(*arguments, "--json").stdout)


@dataclass
class Ansible:
    """Stands in for runner.run: takes every play of the call for one host and remembers what it was asked.

    failures: stage -> (host, message). changes: stages that change something. interrupt: called when a stage begins.
    """

    calls: list[RunRequest] = field(default_factory=list)
    ran: list[list[str]] = field(default_factory=list)
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    changes: set[str] = field(default_factory=lambda: {"second"})
    unreachable: bool = False
    locked_by: str = ""
    return_code: int | None = None
    begins: Callable[[str], None] = lambda name: None

    def __call__(
        self, request: RunRequest, on_event: Callable[[Event], None], cancelled: Callable[[], bool]
    ) -> RunResult:
        """Play the call."""
        self.calls.append(request)
        imports = [Path(entry["ansible.builtin.import_playbook"]) for entry in json.loads(request.playbook.read_text())]
        self.ran.append([path.stem for path in imports])
        if self.return_code is not None:
            return RunResult(self.return_code, tail="ERROR! the fake was told to break")
        failed: set[str] = set()
        for number, path in enumerate(imports):
            on_event(Event("play", number))
            self.begins(path.stem)
            if cancelled():
                return RunResult(254, cancelled=True)
            on_event(Event("task", number, task="Do it"))
            if path.stem == "lock" and self.locked_by:
                on_event(Event("failed", number, "alpha", "Lock", message=self.locked_by, return_code=75))
                return RunResult(2)
            on_event(Event("ok", number, host="alpha", task="Do it", changed=path.stem in self.changes))
            if path.stem in self.failures:
                host, message = self.failures[path.stem]
                on_event(
                    Event(
                        "unreachable" if self.unreachable else "failed",
                        number,
                        host=host,
                        task="Do it",
                        message=message,
                    )
                )
                failed.add(host)
                break
        on_event(Event("stats", len(imports) - 1, failed_hosts=frozenset(failed)))
        return RunResult(2 if failed else 0)

    @property
    def stages(self) -> list[list[str]]:
        """What was run in every call, without the driver's own playbooks."""
        return [[name for name in call if name not in ("lock", "unlock")] for call in self.ran]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """Make a checkout with three stages and a site; the driver finds it, and its state lies below tmp_path."""
    root = tmp_path / "checkout"
    (root / "playbooks/stages").mkdir(parents=True)
    (root / "inventories/here").mkdir(parents=True)
    (root / "ansible.cfg").write_text("[defaults]\ngathering = explicit\n", encoding="utf-8")
    (root / "playbooks/site.yml").write_text(ORDER, encoding="utf-8")
    (root / "inventories/here/hosts.yml").write_text(INVENTORY, encoding="utf-8")
    made = Checkout(root, tmp_path / "state")
    made.stage("first", hosts="all")
    made.stage("second")
    made.stage("third", hosts="rke2_agent", more="  serial: \"{{ rke2_agent_batch | default('100%') }}\"\n")
    monkeypatch.setenv("METALHUB_ROOT", str(root))
    monkeypatch.setenv("XDG_STATE_HOME", str(made.state))
    return made


@pytest.fixture
def ansible(monkeypatch: pytest.MonkeyPatch) -> Ansible:
    """Put a fake at the one seam to Ansible."""
    fake = Ansible()
    monkeypatch.setattr(runner, "run", fake)
    return fake
