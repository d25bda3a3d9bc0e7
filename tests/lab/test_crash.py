"""The driver killed at every task that changes something, of an upgrade and of a restore: both end where they lead."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from tests.lab import test_restore, test_upgrade
from tests.lab.running import DATA, ROOT, Lab, eventually
from tests.lab.test_upgrade import NAME, NEW, Writer, back, release_of, untouched_nodes, whole

SEED = int(os.environ.get("METALHUB_SEED", time.time()))
UPGRADE = ROOT / "playbooks/operations/upgrade.yml"
# Where a first server may stand half done, whatever is known by then: emptied, and restarted with what is new.
FIRST = ("drain | Cordon the node in our name", "configure | Start or restart the service")
# The fixtures, which a test asks for by their names.
site, snapshot = test_upgrade.site, test_restore.snapshot
Task = tuple[str, str]  # a play, and where a task of it stands, with its name


class Matrix:
    """Follows what Ansible says, learns which tasks change something, and says when the driver is to die.

    Once at the start of each such task when it comes again: on a later machine, or in the next run. One that nothing
    comes after is killed behind its change.
    """

    def __init__(
        self,
        draw: random.Random,
        plays: Mapping[str, Sequence[str]] | None = None,
        known: Iterable[Task] = (),
        calm: bool = False,
    ) -> None:
        """plays: play -> its machines, where it takes them one by one. known: tasks that change something.

        calm: it only learns.
        """
        self.draw, self.plays, self.calm = draw, plays or {}, calm
        self.changing = dict.fromkeys(known)
        self.struck: dict[Task, None] = {}
        self.over: set[tuple[str, str]] = set()  # play and machine that are done
        self.spared: set[tuple[Task, str]] = set()
        self.begin()

    def begin(self) -> None:
        """Expect another run."""
        self.play, self.batch, self.name, self.task = "", 0, "", ("", "")

    @property
    def machine(self) -> str:
        """The machine in hand, empty where a play takes all at a time."""
        return self.plays[self.play][self.batch] if self.play in self.plays else ""

    @property
    def last(self) -> bool:
        """Whether no machine comes after this one."""
        return bool(self.machine) and self.machine == self.plays[self.play][-1]

    def due(self) -> bool:
        """Whether the driver is to die where this task begins."""
        if self.task in self.struck or (self.play, self.machine) in self.over:
            return False
        first = bool(self.machine) and self.machine == next(iter(self.plays.values()))[0]
        if first and any(words in self.name for words in FIRST):
            return True
        if self.task not in self.changing or (self.task, self.machine) in self.spared:
            return False
        if self.machine and not self.last and self.draw.random() < 0.5:
            self.spared.add((self.task, self.machine))
            return False
        return True

    def __call__(self, line: str) -> float | None:
        """Take a line; the seconds after which the driver is to die, None where it lives."""
        dies = False
        if play := re.match(r"PLAY \[(.*)\] \*", line):
            if self.machine:
                self.over.add((self.play, self.machine))
            self.batch = self.batch + 1 if self.machine and play[1] == self.play else 0
            self.play = play[1]
        elif task := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\] \*", line):
            self.name = task[1]
        elif line.startswith("task path: "):
            self.task = (self.play, f"{line.rpartition('/')[2].strip()} {self.name}")
            dies = self.due()
        elif line.startswith("changed: [") and self.task not in self.changing:
            self.changing[self.task] = None
            dies = self.last and self.task not in self.struck
        if self.calm or not dies:
            return None
        self.struck[self.task] = None
        return self.draw.random() * 1.5


def until_done(lab: Lab, matrix: Matrix, first: Sequence[str], again: Sequence[str], root: Path = ROOT) -> None:
    """Run a verb, go on by the command that is documented wherever it was killed, and require that it ends well."""
    words, began = first, time.monotonic()
    for _ in range(60):
        matrix.begin()
        status, told = lab.killed(words, matrix, root)
        if status != -signal.SIGKILL:
            break
        words = again
    where = f"METALHUB_SEED={SEED}, killed at {list(matrix.struck)}"
    assert status == 0, f"{where}\n{told[-6000:]}"
    assert [task for task in matrix.changing if task not in matrix.struck] == [], where
    print(f"{time.monotonic() - began:.0f} s, {where}")


def nothing_left(lab: Lab, root: Path = ROOT) -> None:
    """Require that nothing is to be done, no cordon is ours, and no half-made file lies about."""
    done = lab.drive("check", "--from", "node", "--until", "rke2_agent", root=root)
    assert (done.status, done.document.get("changed"), done.document.get("drift")) == (0, 0, []), done.told
    assert untouched_nodes(lab)
    ours = "/var/lib/rancher/.rke2-staging-* /var/lib/metalhub/lock.json /var/lib/metalhub/restore.json"
    ours += f" /run/.rke2-restore-* {DATA}/server/db/restore {DATA}/server/db/snapshots/.*.part"
    assert {name: lab.sh(name, f"ls -d {ours} 2>/dev/null; true") for name in lab.machines} == dict.fromkeys(
        lab.machines, ""
    )
    fetched = Path.home() / ".local/share/metalhub/lab/snapshots"
    assert list(fetched.glob(".plain-*")) == []


@pytest.mark.shard("crash-upgrade")
@pytest.mark.proves("upgrade-killed-anywhere")
def test_an_upgrade_killed_at_every_change_ends_on_the_release_and_loses_nothing(lab: Lab, site: Path) -> None:
    groups = {"rke2_server": lab.servers, "rke2_agent": lab.agents}
    plays = {play["name"]: groups[play["hosts"]] for play in yaml.safe_load(UPGRADE.read_text()) if "serial" in play}
    matrix, writer = Matrix(random.Random(SEED), plays), Writer()
    writer.start()
    try:
        until_done(lab, matrix, ("upgrade", "--to", NEW), ("upgrade", "--resume"), site)
    finally:
        writer.end()
    names = " ".join(name for _, name in matrix.struck)
    for wanted in (*FIRST, "upgrade_snapshot |", "fetch_seal |", "install |", "uncordon |"):
        assert wanted in names, f"nothing was killed at: {wanted}"
    assert {play for play, _ in matrix.struck} >= set(plays)
    whole(lab, NEW)
    assert release_of(site) == NEW
    there = set(lab.kubectl("get", "configmaps", "-l", f"app={NAME}", "-o", "name").split())
    assert len(writer.acknowledged) > 100
    assert {f"configmap/{name}" for name in writer.acknowledged} <= there
    nothing_left(lab, site)
    back(lab, site)


@pytest.mark.shard("crash-restore")
@pytest.mark.proves("restore-killed-anywhere")
def test_a_restore_killed_at_every_change_brings_back_exactly_what_was(
    lab: Lab, snapshot: tuple[str, dict[str, tuple[str, str]]]
) -> None:
    name, before = snapshot
    words, draw = ("restore", name, "--confirm", "lab"), random.Random(SEED)
    # Undisturbed, to learn which tasks change something.
    calm = Matrix(draw, calm=True)
    status, told = lab.killed(words, calm)
    assert status == 0, told[-6000:]
    test_restore.restored(lab, before)
    assert len(calm.changing) >= 8, list(calm.changing)
    for lost in (False, True):
        test_restore.apply(lab, [test_restore.config(number, "later") for number in range(100)])
        lab.kubectl("-n", test_restore.SPACE, "delete", "configmap", "object-101", "object-499")
        if lost:
            test_restore.destroy(lab)
        until_done(lab, Matrix(draw, known=calm.changing), words, words)
        eventually("all nodes Ready", lab.healthy, 300)
        test_restore.restored(lab, before)
        nothing_left(lab)
        for server in lab.servers:
            assert lab.sh(server, f"ls -d {DATA}/server/db/etcd-before-restore-* {DATA}/server/db/etcd-old-* || true")
