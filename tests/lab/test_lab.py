"""The lab's own commands: twice is safe, what is in the way is told first, nothing is left behind, saves come back."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

import nodes
from build import CACHE, STATE
from tests.lab.running import ROOT, Lab, difference

# A random point is found again by its seed.
SEED = int(os.environ.get("LAB_TEST_SEED", "1"))
NETWORK, SAVE = "metalhub-second", "test-second-lab"


@dataclass(frozen=True)
class Second:
    """Another, small lab beside the first: one server, one agent."""

    site: Path
    state: Path
    machines: tuple[str, str] = ("lab-second-server", "lab-second-agent")

    @property
    def environment(self) -> dict[str, str]:
        """What makes lab.py work on this lab."""
        return os.environ | {"LAB_SITE": str(self.site), "XDG_STATE_HOME": str(self.state)}

    def command(self, *words: str) -> subprocess.Popen[str]:
        """Start a command of lab.py, in a process group of its own."""
        command = [sys.executable, str(ROOT / "molecule/lab/lab.py"), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, text=True, env=self.environment, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]

    def run(self, *words: str, status: int = 0) -> str:
        """Run a command of lab.py to its end; returns what it printed."""
        with self.command(*words) as process:
            said, _ = process.communicate(timeout=600)
        assert process.returncode == status, said[-3000:]
        return said


def write_site(directory: Path, prefix: str, names: tuple[str, str]) -> Path:
    """A site of one server and one agent: the lab's with other names and addresses."""
    site = directory / "site"
    shutil.copytree(nodes.SITE, site, ignore=shutil.ignore_patterns("vault.yml"))
    hosts = {
        group: {"hosts": {name: {"ansible_host": f"{prefix}.{21 + number}"}}}
        for number, (group, name) in enumerate(zip(("rke2_server", "rke2_agent"), names, strict=True))
    }
    (site / "hosts.yml").write_text(json.dumps({"all": {"children": {"rke2": {"children": hosts}}}}))
    path = site / "group_vars/all/site.yml"
    text = re.sub(r"^site_name: .*$", "site_name: second", path.read_text(), flags=re.M)
    path.write_text(re.sub(r"\b198\.18\.\d+\.(?=\d)", f"{prefix}.", text))
    return site


def containers() -> dict[str, tuple[str, str]]:
    """Name -> (id, start) of the lab's containers."""
    found = docker.from_env().containers.list(filters={"label": f"{nodes.LABEL}={STATE}"})
    return {one.name: (one.id, one.attrs["State"]["StartedAt"]) for one in found}


@pytest.mark.proves("lab-up-twice")
def test_up_once_more_changes_nothing(lab: Lab) -> None:
    before, witness = containers(), lab.witness()
    assert before.keys() == {*lab.machines, f"{nodes.NETWORK}-gate"}
    said = subprocess.run(
        [sys.executable, ROOT / "molecule/lab/lab.py", "up"], capture_output=True, text=True, check=False, timeout=300
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "building" not in said.stdout
    assert containers() == before
    assert difference(witness, lab.witness()) == {}


@pytest.mark.proves("lab-egress")
def test_no_node_has_tried_to_send_anything_outside(lab: Lab) -> None:
    def count() -> dict[str, int]:
        said = subprocess.run(
            [sys.executable, ROOT / "molecule/lab/lab.py", "egress"], capture_output=True, text=True, check=True
        )
        return json.loads(said.stdout)  # type: ignore[no-any-return]

    assert count() == {"packets": 0, "bytes": 0}


@pytest.mark.proves("lab-clashes")
def test_what_is_in_the_way_is_told_and_nothing_is_made(lab: Lab, tmp_path: Path) -> None:
    prefix = lab.machines[lab.servers[0]].address.rpartition(".")[0]
    names = (lab.servers[0], "lab-second-agent")
    clash = Second(write_site(tmp_path, prefix, names), tmp_path / "state", names)
    engine = docker.from_env()
    engine.containers.create(engine.containers.get(f"{nodes.NETWORK}-gate").image.id, "true", name=names[1])
    try:
        said = clash.run("up", status=1)
    finally:
        engine.containers.get(names[1]).remove()
    lines = said.splitlines()
    assert len(lines) == 4 and all(line.startswith("lab: ") for line in lines), said
    for words in (
        (f"{nodes.NETWORK[:15]} has the network {nodes.SUBNET}", "take it away"),
        (f"Docker's network {nodes.NETWORK} has {nodes.SUBNET}", f"docker network rm {nodes.NETWORK}"),
        (f"a container that is not the lab's is called {names[1]}", f"docker rename {names[1]}"),
        (f"{names[0]} belongs to the lab whose state is in {STATE}", "make lab-down"),
    ):
        assert any(all(word in line for word in words) for line in lines), (words, said)
    assert not clash.state.exists()
    # What there is of these names is the other lab's.
    assert traces(clash).keys().isdisjoint({"networks", "links", "rules", "files"})


# -- on a small lab of their own ------------------------------------------------------------------------------------


def traces(lab: Second) -> dict[str, list[str]]:
    """What there is of a lab on this machine: kind -> lines; kinds without any are left out."""
    words = (str(lab.state), NETWORK, NETWORK[:15], "198.18.142.", *lab.machines)

    def lines(*command: str) -> list[str]:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return [line for line in said if any(word in line for word in words)]

    files = [
        lab.state / "metalhub/lab",
        lab.site / "group_vars/all/vault.yml",
        *Path.home().glob(".kube/metalhub-second*"),
    ]
    found = {
        "containers": lines("docker", "ps", "-a", "--format", "{{.Names}}"),
        "networks": lines("docker", "network", "ls", "--format", "{{.Name}}"),
        "links": lines("ip", "-o", "addr"),
        "rules": lines("iptables-save"),
        "names": lines("cat", "/etc/hosts"),
        "mounts": lines("cat", "/proc/mounts"),
        "loops": lines("losetup", "-a"),
        "processes": lines("ps", "-eo", "args"),
        "files": [str(path) for path in files if path.exists()],
        "unfinished": [path.name for path in CACHE.glob(".*.new")],
    }
    return {kind: seen for kind, seen in found.items() if seen}


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Second]:
    """The second lab, not there yet; whatever a test leaves of it is removed."""
    lab = Second(write_site(tmp_path, "198.18.142", Second.machines), tmp_path / "state")
    yield lab
    if lab.state.exists():
        lab.run("down")


def works(lab: Second) -> None:
    """Assert that both nodes have booted, have a disk and a resolver, and answer on SSH with the key that is pinned."""
    pinned = (lab.state / "metalhub/lab/ssh/known_hosts").read_text()
    for number, name in enumerate(lab.machines):
        script = "systemctl is-system-running --wait; findmnt -n -o SOURCE /var/lib/rancher; cat /etc/resolv.conf"
        said = nodes.run_in(name, script, check=False)
        assert "running" in said and "/dev/loop" in said and "198.18.142.2" in said, said
        key = nodes.run_in(name, "cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub").strip()
        assert f"198.18.142.{21 + number} {key}\n" in pinned
        assert nodes.answers(f"198.18.142.{21 + number}", 22)


@pytest.mark.shard("lab")
@pytest.mark.proves("lab-down")
def test_down_leaves_nothing_behind(second: Second) -> None:
    caches = {path.name for path in CACHE.iterdir()}
    assert traces(second) == {}
    second.run("up")
    works(second)
    kinds = {"containers", "networks", "links", "rules", "names", "mounts", "loops", "files"}
    assert traces(second).keys() >= kinds, "the comparison is blind"
    second.run("down")
    assert traces(second) == {}
    assert {path.name for path in CACHE.iterdir()} == caches
    second.run("down")


@pytest.mark.shard("lab")
@pytest.mark.proves("lab-interrupted")
def test_up_killed_at_random_points_goes_on_when_it_is_run_again(second: Second) -> None:
    began = time.monotonic()
    second.run("up")
    whole = time.monotonic() - began
    draw = random.Random(SEED)
    for _ in range(3):
        second.run("down")
        for _ in range(2):
            process = second.command("up")
            time.sleep(draw.uniform(0.1, 1) * whole)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        second.run("up")
        works(second)
    second.run("down")
    assert traces(second) == {}


@pytest.mark.shard("lab")
@pytest.mark.proves("lab-save")
def test_saved_nodes_come_back_as_they_were(second: Second) -> None:
    places = ("/root/marker", "/var/lib/rancher/marker", "/var/lib/kubelet/marker")

    def write(word: str) -> None:
        for name in second.machines:
            nodes.run_in(name, "; ".join(f"echo {name} {word} >{place}" for place in places))

    def read() -> set[str]:
        return {line for name in second.machines for line in nodes.run_in(name, f"cat {' '.join(places)}").splitlines()}

    second.run("up")
    write("before")
    vault = (second.state / "metalhub/lab/vault.yml").read_text()
    second.run("save", SAVE)
    try:
        works(second)
        assert read() == {f"{name} before" for name in second.machines}, "a save changes nothing"
        assert SAVE in second.run("saved")
        write("after")
        second.run("load", SAVE)
        works(second)
        assert read() == {f"{name} before" for name in second.machines}
        # A lab that is not there any more comes back too, with its secrets.
        second.run("down")
        second.run("load", SAVE)
        works(second)
        assert read() == {f"{name} before" for name in second.machines}
        assert (second.state / "metalhub/lab/vault.yml").read_text() == vault
    finally:
        second.run("forget", SAVE)
    assert SAVE not in second.run("saved")
    assert "nothing is saved as" in second.run("load", SAVE, status=1)


@pytest.mark.shard("lab")
@pytest.mark.proves("lab-egress-seen")
def test_a_packet_for_the_outside_is_counted(second: Second) -> None:
    second.run("up")
    assert json.loads(second.run("egress"))["packets"] == 0
    send = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('203.0.113.1', 9))"
    nodes.run_in(second.machines[1], f'python3 -c "{send}"')
    assert json.loads(second.run("egress")) == {"packets": 1, "bytes": 29}
