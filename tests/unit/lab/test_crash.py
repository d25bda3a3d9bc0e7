"""The crash matrix misses no task that changes something, and ends."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab import test_crash
from tests.lab.test_crash import Matrix, until_done

SERVERS, AGENTS = ("s1", "s2", "s3"), ("a1", "a2", "a3")
PLAYS = {"servers": SERVERS, "agents": AGENTS}
STEPS = ("drain | Cordon the node in our name", "lead", "put", "configure | Start or restart the service", "free")


class Upgrade:
    """An upgrade by what Ansible would say of it; what is done stays done. Leadership moves on one server only."""

    def __init__(self, leader: str) -> None:
        self.leader, self.done, self.kills, self.words = leader, set[tuple[str, str]](), 0, list[str]()

    def lines(self) -> Any:
        """Yield what is said, doing each thing before it is said to be done."""
        begun = ("s1", "put") in self.done
        yield "PLAY [snapshot] ***"
        for number, name in enumerate(("save", "fetch")):
            yield f"TASK [rke2 : {name}] ***"
            yield f"task path: /x/snapshot.yml:{number}"
            yield "skipping: [s1]" if begun else "changed: [s1] => {}"
        for play, machines in PLAYS.items():
            for machine in machines:
                yield f"PLAY [{play}] ***"
                for number, name in enumerate(STEPS):
                    yield f"TASK [rke2 : {name}] ***"
                    yield f"task path: /x/node.yml:{number}"
                    changes = (machine, name) not in self.done and (name != "lead" or machine == self.leader)
                    self.done.add((machine, name))
                    yield f"{'changed' if changes else 'ok'}: [{machine}]"

    def killed(self, words: Sequence[str], strike: Callable[[str], float | None], root: Path) -> tuple[int, str]:
        """Run it as the lab does."""
        del root
        self.words.append(words[0])
        for line in self.lines():
            if strike(line) is not None:
                self.kills += 1
                return -signal.SIGKILL, ""
        return 0, ""


@pytest.mark.proves("crash-matrix")
@pytest.mark.parametrize("leader", SERVERS)
@pytest.mark.parametrize("seed", range(8))
def test_every_task_that_changes_something_is_killed_once(seed: int, leader: str) -> None:
    run, matrix = Upgrade(leader), Matrix(random.Random(seed), PLAYS)
    until_done(run, matrix, ("first",), ("again",))  # type: ignore[arg-type]
    assert run.kills == len(matrix.struck)
    assert run.words == ["first", *["again"] * run.kills]
    names = {(play, task.partition(" ")[2].removeprefix("rke2 : ")) for play, task in matrix.struck}
    wanted = {("snapshot", "save"), ("snapshot", "fetch")}
    wanted |= {(play, name) for play in PLAYS for name in STEPS if (play, name) != ("agents", "lead")}
    assert names == wanted
    assert len(run.done) == len(STEPS) * 6


def test_a_verb_that_fails_is_told_and_one_that_only_learns_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    run, calm = Upgrade("s1"), Matrix(random.Random(1), PLAYS, calm=True)
    until = run.killed(("first",), calm, Path())
    assert until[0] == 0 and run.kills == 0
    assert len(calm.changing) == 2 + len(STEPS) + len(STEPS) - 1
    monkeypatch.setattr(run, "killed", lambda *_: (3, "in use"))
    with pytest.raises(AssertionError, match="METALHUB_SEED"):
        until_done(run, Matrix(random.Random(1)), ("first",), ("again",))  # type: ignore[arg-type]
    assert test_crash.SEED
