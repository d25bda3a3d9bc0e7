"""The runbooks, walked as they are written: the commands below a title are typed, and most disasters are made.

Those for expired certificates are typed on a cluster that lives: the nodes share the clock of the machine below.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.lab import test_rotate, test_upgrade
from tests.lab.running import ROOT, Lab, difference, eventually
from tests.lab.test_rotate import opens, out_of_space, seal
from tests.lab.test_upgrade import NEW, OLD, image
from tests.lab.test_upgrade import whole as upgraded

pytestmark = pytest.mark.shard("runbooks")
NAME = "runbook"
# Fixtures, which a test asks for by their names; the second takes back a token that was exchanged.
site, checkout = test_upgrade.site, test_rotate.site
FETCHED = Path.home() / ".local/share/metalhub/lab/snapshots"


def walk(
    lab: Lab,
    title: str,
    after: str = "",
    until: str = "",
    root: Path = ROOT,
    ill: Sequence[str] = (),
    **words: str,
) -> str:
    """Type every command of a runbook, those between the words `after` and `until`; return what all of them said.

    root: a checkout of `copy`'s making. ill: verbs that end with 1 because something is ill. words: what stands in the
    place of <words>. The site's name is given instead of typed.
    """
    text = (ROOT / "docs/runbooks.md").read_text()
    (section,) = re.findall(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert after in section, f"{title}: nothing says {after!r}"
    assert until in section, f"{title}: nothing says {until!r}"
    end = section.index(until) if until else len(section)
    commands = re.findall(r"^    (\S.*)$", section[section.index(after) : end], re.M)
    assert commands, title
    said = ""
    for command in commands:
        typed = command.replace("<site>", "lab")
        for name, word in words.items():
            typed = typed.replace(f"<{name.replace('_', ' ')}>", word)
        assert "<" not in typed, typed
        asks = shlex.split(typed)[1] == "restore" and "--plan-only" not in typed
        sick = any(verb in typed for verb in ill)
        again = f"{typed} --confirm lab" if asks else f"{typed}; test $? = 1" if sick else typed
        said += lab.type(again, root=root, environment={"METALHUB_ROOT": str(root)})
    return said


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
    walk(lab, "Quorum lost", "only one server is left", snapshot=name)
    whole(lab, uid)


@pytest.mark.proves("runbooks-walked")
def test_nobody_has_the_address_of_the_api(lab: Lab) -> None:
    for server in lab.servers:
        lab.sh(server, "systemctl disable --now keepalived")
    walk(lab, "API address dead")
    eventually("all nodes Ready", lab.healthy)


@pytest.mark.proves("runbooks-walked")
def test_a_worker_s_disk_is_full_of_files_of_others(lab: Lab) -> None:
    worker, filler = lab.agents[1], "/var/lib/rancher/filler"

    def pressed() -> bool:
        return lab.nodes()[worker]["DiskPressure"] == "True"

    # All but two of a hundred, with less than five of which a kubelet evicts; it takes no room below.
    free = f"$(df --output=avail,size -B1 {filler.rpartition('/')[0]} | awk 'END {{printf \"%.0f\", $1 - $2 / 50}}')"
    lab.sh(worker, f"fallocate -l {free} {filler}")
    try:
        eventually("the worker has DiskPressure", pressed, 180)
        said = walk(lab, "Disk full", until="When it is etcd")
        assert re.search(r"9[5-9]% /var/lib/rancher$", said, re.M), "nothing shows where the room is missing"
        assert pressed(), "the runbook's own commands have made room: then nothing is left to be done"
    finally:
        lab.sh(worker, f"rm {filler}")
    eventually("the pressure is over", lambda: not pressed(), 600)
    eventually("all nodes Ready", lab.healthy)
    eventually("the site is well", lambda: lab.drive("verify").status == 0, 900)


@pytest.mark.proves("runbooks-walked")
def test_etcd_is_out_of_space(lab: Lab) -> None:
    with out_of_space(lab):
        walk(lab, "Disk full", "When it is etcd", ill=["etcd status"])
        lab.kubectl("create", "configmap", "written-again", "--from-literal=a=b")
        lab.kubectl("delete", "configmap", "written-again")
    eventually("all nodes Ready", lab.healthy)


@pytest.mark.proves("runbooks-walked")
def test_the_vault_has_lost_the_token_and_a_server_still_has_it(lab: Lab, checkout: Path) -> None:
    own, token = lab.secrets(), "vault_site_rke2_token"
    vault = checkout / "inventories/lab/group_vars/all/vault.yml"
    lab.seal({name: secret for name, secret in own.items() if name != token}, vault)
    refused = lab.drive("check", root=checkout)
    assert refused.status != 0
    assert token in refused.told + refused.message
    before = lab.witness()
    said = walk(lab, "Token lost", until="scripts/provision.py check", root=checkout)
    (found,) = re.findall(r"^K10\S+:(\S+)$", said, re.M)
    assert found == own[token]
    seal(lab, checkout, **{token: found})
    walk(lab, "Token lost", "    scripts/provision.py check", "Whoever found the vault", root=checkout)
    assert difference(before, lab.witness()) == {}
    new = secrets.token_hex(32)
    seal(lab, checkout, **{token: new, f"{token}_before": found})
    walk(lab, "Token lost", "Whoever found the vault", root=checkout)
    assert {(opens(lab, server, new), opens(lab, server, found)) for server in lab.servers} == {(200, 401)}


@pytest.mark.proves("runbooks-walked")
def test_an_upgrade_stops_at_a_worker_goes_on_and_is_taken_back(lab: Lab, site: Path) -> None:
    (site / "inventories/lab/group_vars/all/zz-test.yml").write_text("rke2_drain_seconds: 20\n")
    worker, pod = lab.agents[-1], f"{NAME}-user"
    overrides = {"spec": {"nodeName": worker, "terminationGracePeriodSeconds": 0}}
    words = ("run", pod, f"--image={image(lab)}", "--labels=component=singleuser-server", "--restart=Never")
    lab.kubectl(*words, f"--overrides={json.dumps(overrides)}", "--command", "--", "sleep", "3600")
    try:
        eventually("a user's server runs", lambda: "Running" in lab.kubectl("get", "pod", pod), 60)
        done = lab.drive("upgrade", "--to", NEW, root=site, timeout=2400)
        assert done.status == 1, done.told + done.message
        assert {failure["host"] for failure in done.document["failures"]} == {worker}
        assert pod in done.message
        assert [name for name in lab.machines if lab.installed(name) == OLD] == [worker]
    finally:
        lab.kubectl("delete", "pod", pod, "--now")
    walk(lab, "Failed upgrade", until="Where it cannot be mended", root=site)
    upgraded(lab, NEW)
    # And as if it could not have been mended.
    stamp = NEW.replace("+", "-")
    listed = lab.drive("snapshot", "list", root=site).document["snapshots"]
    snapshot = next(one["name"] for one in listed if one["name"].startswith(f"pre-upgrade-{stamp}"))
    walk(
        lab,
        "Failed upgrade",
        "Where it cannot be mended",
        root=site,
        release_before=OLD,
        release=stamp,
        snapshot=snapshot,
    )
    upgraded(lab, OLD)


@pytest.mark.proves("runbooks-walked")
def test_the_commands_for_expired_certificates_work_on_a_cluster_that_lives(lab: Lab) -> None:
    walk(lab, "Certificates expired")
    eventually("all nodes Ready", lab.healthy)
