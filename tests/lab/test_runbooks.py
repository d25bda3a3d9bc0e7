"""The runbooks, walked as they are written: each disaster is made, and the commands below its title are typed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.running import ROOT, Lab, eventually

pytestmark = pytest.mark.shard("runbooks")
NAME = "runbook"
FETCHED = Path.home() / ".local/share/metalhub/lab/snapshots"


def walk(lab: Lab, title: str, after: str = "", snapshot: str = "") -> None:
    """Type every command of a runbook, those behind the words `after`; the site's name is given instead of typed."""
    text = (ROOT / "docs/runbooks.md").read_text()
    (section,) = re.findall(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert after in section, f"{title}: nothing says {after!r}"
    commands = re.findall(r"^    (\S.*)$", section[section.index(after) :], re.M)
    assert commands, title
    for command in commands:
        typed = command.replace("<site>", "lab").replace("<snapshot>", snapshot)
        assert "<" not in typed, typed
        asks = shlex.split(typed)[1] == "restore" and "--plan-only" not in typed
        lab.type(f"{typed} --confirm lab" if asks else typed)


@pytest.fixture
def kept(lab: Lab) -> Iterator[tuple[str, str]]:
    """A snapshot that every server has and that was fetched, by its name, and the uid of an object in it."""
    lab.kubectl("delete", "configmap", "survivor", "--ignore-not-found")
    lab.kubectl("create", "configmap", "survivor", "--from-literal=a=b")
    uid = lab.kubectl("get", "configmap", "survivor", "-o", "jsonpath={.metadata.uid}")
    assert lab.drive("snapshot", "save", "--name", NAME).status == 0
    done = lab.drive("snapshot", "list")
    last = lab.servers[-1]
    (name,) = {one["name"] for one in done.document["snapshots"] if one["name"].startswith(f"{NAME}-{last}-")}
    assert lab.drive("snapshot", "fetch", name).status == 0
    yield name, uid
    for path in FETCHED.glob(f"{NAME}-*"):
        path.unlink()
    assert lab.drive("snapshot", "prune", "--keep", "0", "--days", "0").status == 0
    lab.kubectl("delete", "configmap", "survivor")


def whole(lab: Lab, uid: str) -> None:
    """Fail unless the cluster is whole, the object is the one there was, and nothing would change."""
    assert lab.healthy()
    found = json.loads(lab.kubectl("get", "configmap", "survivor", "-o", "json"))
    assert (found["metadata"]["uid"], found["data"]) == (uid, {"a": "b"})
    done = lab.drive("check", "--until", "canal")
    assert (done.status, done.document["changed"]) == (0, 0), done.told + done.message


@pytest.mark.proves("restore-new-machines", "runbooks-walked")
def test_all_servers_are_lost_and_new_machines_take_their_place(lab: Lab, kept: tuple[str, str]) -> None:
    name, uid = kept
    lab.renew(*lab.servers)
    walk(lab, "All servers lost", snapshot=name)
    whole(lab, uid)


@pytest.mark.proves("restore-one-left", "runbooks-walked")
def test_one_server_is_left_and_two_new_machines_join_it(lab: Lab, kept: tuple[str, str]) -> None:
    name, uid = kept
    lab.renew(*lab.servers[:-1])
    walk(lab, "Quorum lost", "only one server is left", name)
    whole(lab, uid)


@pytest.mark.proves("runbooks-walked")
def test_nobody_has_the_address_of_the_api(lab: Lab) -> None:
    for server in lab.servers:
        lab.sh(server, "systemctl disable --now keepalived")
    walk(lab, "API address dead")
    eventually("all nodes Ready", lab.healthy)


@pytest.mark.proves("runbooks-walked")
@pytest.mark.parametrize("title", ["Certificates expired", "Disk full"])
def test_a_runbook_s_commands_work_on_a_cluster_that_lives(lab: Lab, title: str) -> None:
    walk(lab, title)
    eventually("all nodes Ready", lab.healthy)
