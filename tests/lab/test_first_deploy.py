"""Six empty machines: a check that changes none of them, and deploys that are killed on the way to one cluster."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.lab.running import ROOT, Lab, difference, eventually

# Tasks of the stages that make the cluster, a little fewer than there are. None is killed while Helm works:
# what it leaves half installed is a person's to look at.
TASKS = 100
SEED = int(os.environ.get("METALHUB_SEED", time.time()))


@pytest.fixture
def empty(lab: Lab) -> Iterator[Lab]:
    """The lab with six new, empty machines; whatever a test does, they are a cluster again afterwards."""
    lab.renew(*lab.machines)
    yield lab
    if not lab.healthy():
        assert lab.drive("deploy").status == 0
    assert lab.healthy()


def killed(lab: Lab, task: int, pause: float, *words: str) -> bool:
    """Start a deploy and kill the driver while a task runs, counted from 1; False where it ended before."""
    seen = 0

    def strike(line: str) -> float | None:
        nonlocal seen
        seen += line.lstrip().startswith("TASK [")
        return pause if seen == task else None

    return lab.killed(("deploy", *words), strike)[0] == -signal.SIGKILL


def killed_until_done(lab: Lab, points: list[tuple[int, float]], last: Sequence[str] = ()) -> None:
    """Kill a first deploy and its resumptions at the given points, then let one finish and look at what came of it.

    last: the command that finishes, in place of one more resumption.
    """
    where = f"METALHUB_SEED={SEED}, points {points}"
    for number, (task, pause) in enumerate(points):
        if not killed(lab, task, pause, *(["--resume"] if number else [])):
            assert number, f"the first deploy was over before task {task}: {where}"
            break
    if last:
        typed = subprocess.run(last, cwd=ROOT, capture_output=True, text=True, check=False)
        assert typed.returncode == 0, f"{where}\n{typed.stdout}\n{typed.stderr}"
    else:
        done = lab.drive("deploy", "--resume")
        assert done.status == 0, f"{where}\n{done.told}\n{done.message}"
    assert lab.healthy(), where


@pytest.mark.proves("check-bare", "fault-duplicate-address", "driver-killed-twice")
def test_a_check_of_bare_machines_tells_what_would_be_done_and_does_nothing(empty: Lab) -> None:
    assert "python3-apt" not in empty.sh("umaster01", "dpkg-query -W")
    before = empty.witness(api=False)
    done = empty.drive("check")
    assert done.status == 0, done.told + done.message
    assert done.document["changed"] > len(empty.machines)
    assert difference(before, empty.witness(api=False)) == {}
    an_address_that_two_machines_have_is_told(empty)
    # On the way to a cluster, killed twice at random; then what a newcomer types, and types again.
    draw = random.Random(SEED)
    points = [(draw.randrange(15, TASKS), draw.random()), (draw.randrange(1, 30), draw.random())]
    killed_until_done(empty, points, ["make", "lab"])


def an_address_that_two_machines_have_is_told(empty: Lab) -> None:
    """Give a machine another one's address beside its own, and take it away again."""
    victim, thief = empty.machines[empty.agents[0]], empty.agents[2]
    empty.sh(thief, f"ip address add {victim.address}/32 dev eth0")
    try:
        done = empty.drive("deploy")
    finally:
        empty.sh(thief, f"ip address del {victim.address}/32 dev eth0")
    assert done.status == 1, done.told
    assert victim.address in done.message or victim.name in done.message, done.message
    assert "answer" in done.message, done.message
    assert [stage["stage"] for stage in done.document["stages"]] == ["preflight"]


@pytest.mark.shard("crash")
@pytest.mark.proves("driver-killed-anywhere")
@pytest.mark.parametrize("turn", range(5))
def test_a_first_deploy_killed_four_times_ends_in_one_cluster(empty: Lab, turn: int) -> None:
    draw = random.Random(SEED + turn)
    first = TASKS * turn // 5
    points = [(draw.randrange(first + 1, first + 21), draw.random() * 2)]
    killed_until_done(empty, points + [(draw.randrange(1, 25), draw.random() * 2) for _ in range(3)])


@pytest.mark.shard("power")
@pytest.mark.proves("power-failure")
@pytest.mark.parametrize("turn", range(3))
def test_all_machines_powered_off_and_on_in_any_order_recover_unattended(lab: Lab, turn: int) -> None:
    draw = random.Random(SEED + turn)
    cluster, names = lab.cluster("umaster01"), list(lab.machines)
    lab.kubectl("create", "configmap", f"power-{turn}", "--from-literal=a=b")
    draw.shuffle(names)
    subprocess.run(["docker", "kill", *names], check=True, capture_output=True)
    draw.shuffle(names)
    for name in names:
        subprocess.run(["docker", "start", name], check=True, capture_output=True)
        time.sleep(draw.random() * 3)
    eventually("all six Ready after a power failure", lab.healthy, 420)
    assert lab.cluster("umaster01") == cluster
    assert lab.kubectl("get", "configmap", f"power-{turn}", "-o", "jsonpath={.data.a}") == "b"
    lab.kubectl("delete", "configmap", f"power-{turn}")
