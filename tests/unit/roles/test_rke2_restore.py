"""What the role rke2 decides about a restore and a rollback, without any machine."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.plugins.loader import init_plugin_loader

from tests.unit.roles.test_rke2 import HOSTS, ROLE, VERSION, Role, answer

OLD = "v1.35.6+rke2r1"
SERVERS = ("one", "two", "three")
PLACE = "/var/lib/rancher/rke2/server/db"


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    """Make filters and tests of collections resolvable."""
    init_plugin_loader()


def found(**different: Any) -> dict[str, Any]:
    """Return one snapshot as rke2_snapshot_info tells it."""
    one: dict[str, Any] = {"name": "mine", "path": "/there/mine", "size": 1000, "sha256": "5e", "whole": True}
    return one | {"version": VERSION, "token_fingerprint": "aa", "authority": "ours"} | different


class Restore(Role):
    """A restore of `mine`; `looks` are what rke2_snapshot_info says of servers beyond nothing, `about` rke2_info."""

    def __init__(
        self,
        looks: dict[str, dict[str, Any]],
        about: dict[str, dict[str, Any]] | None = None,
        left: tuple[str, ...] = (),
        **inputs: Any,
    ) -> None:
        """Make three servers of one cluster, of which those in `left` have left the play."""
        look: dict[str, Any] = {"snapshots": [], "mark": {}, "authority": "ours", "token_fingerprint": "aa"}
        look |= {"serving": False, "etcdutl": "", "comparison": {}}
        hosts: dict[str, Any] = {name: {"site_node_address": address} for name, address in HOSTS.items()}
        for name in SERVERS:
            info = answer(space={PLACE: 5000}) | (about or {}).get(name, {})
            hosts[name] |= {"__rke2_snapshots": look | looks.get(name, {}), "__rke2_info": info}
        hosts["two"]["rke2_node_name"] = "second"
        hosts["worker"]["rke2_node_name"] = "gpu"
        given = {
            "hostvars": hosts,
            "ansible_play_hosts": [name for name in SERVERS if name not in left],
            "ansible_play_hosts_all": list(SERVERS),
            "__rke2_snapshots": hosts["one"]["__rke2_snapshots"],
            "rke2_restore_snapshot": "mine",
            **inputs,
        }
        super().__init__(now=hosts["one"]["__rke2_info"], **given)

    def gate(self, name: str) -> str:
        """Return what a gate says, empty when it passes."""
        tasks = self.loader.load_from_file(str(ROLE / "tasks/restore_gates.yml"), trusted_as_template=True)
        self.variables |= next(task for task in tasks if task["name"].endswith(name)).get("vars", {})
        return self.refused(name, "restore_gates")


BARE = {"installed_version": "", "running_version": "", "datastore": False}


@pytest.mark.proves("restore-new-machines")
def test_a_new_machine_is_left_out_also_when_the_play_has_left_it() -> None:
    for left in ((), ("three",)):
        role = Restore({"one": {"snapshots": [found()]}}, {"three": BARE}, left)
        assert role.get("__rke2_restore_bare") == ["three"]
        wanted = {kind: sorted(names) for kind, names in role.get("__rke2_restore_wanted").items()}
        assert wanted == {"nodes": ["gpu", "one", "second"], "voters": ["one", "second"]}
    # One whose data is lost is no new machine, and neither is one that said nothing.
    assert Restore({}, {"three": {"datastore": False}}).get("__rke2_restore_bare") == []
    silent = Restore({})
    silent.variables["hostvars"]["three"]["__rke2_info"] = {"unreachable": True}
    assert silent.get("__rke2_restore_bare") == []


@pytest.mark.proves("restore-new-machines")
def test_a_holder_without_rke2_is_refused_unless_another_server_has_the_snapshot_too() -> None:
    gate, there = "Refuse a snapshot that only a machine without RKE2 has", {"snapshots": [found()]}
    assert "one has mine and no RKE2" in Restore({"one": there}, {"one": BARE}).gate(gate)
    both = Restore({"one": there, "two": there}, {"one": BARE})
    assert (both.get("__rke2_restore_holder"), both.gate(gate)) == ("two", "")


@pytest.mark.proves("restore-new-machines")
def test_servers_of_another_cluster_are_foreign_and_stay_so_when_they_look_like_ours() -> None:
    there = {"snapshots": [found()], "authority": "theirs"}
    role = Restore({"one": there, "two": {"authority": "theirs"}, "three": {"authority": ""}})
    assert role.get("__rke2_restore_foreign") == ["one", "two"]
    # The node's name is what the snapshot remembers.
    assert role.get("__rke2_restore_passwords") == ["one.node-password.rke2", "second.node-password.rke2"]
    note = {"snapshot": "mine", "holder": "one", "foreign": ["one", "two"]}
    later = Restore({"one": {"snapshots": [found()], "mark": note | {"reset": True}}, "two": {"mark": note}})
    assert later.get("__rke2_restore_strangers") == []
    assert later.get("__rke2_restore_foreign") == ["one", "two"]
    assert Restore({"one": {"snapshots": [found(authority="")]}}).get("__rke2_restore_foreign") == []


@pytest.mark.proves("restore-leave")
def test_another_snapshot_may_be_taken_until_a_server_has_the_data_of_the_first() -> None:
    gate = "Refuse another restore than the one begun"
    note = {"snapshot": "other", "holder": "two", "sha256": "07", "started": 7, "foreign": []}
    looks: dict[str, Any] = {"one": {"snapshots": [found()], "mark": note}, "two": {"mark": note | {"aside": ""}}}
    role = Restore(looks)
    assert role.gate(gate) == ""
    assert (role.get("__rke2_restore_holder"), role.get("__rke2_restore_sha256")) == ("one", "5e")
    assert (role.get("__rke2_restore_reset"), role.get("__rke2_restore_report")["unfinished"]) == (False, {})
    looks["two"]["mark"]["reset"] = True
    bound = Restore(looks)
    assert "A restore of other is unfinished" in bound.gate(gate) and "restore other --site here" in bound.gate(gate)
    assert (bound.get("__rke2_restore_holder"), bound.get("__rke2_restore_reset")) == ("two", True)


@pytest.mark.proves("restore-leave", "restore-continues")
def test_the_same_snapshot_goes_on_with_the_holder_that_was_chosen_while_that_has_it() -> None:
    note = {"snapshot": "mine", "holder": "two", "sha256": "5e", "started": 7, "foreign": []}
    there = {"snapshots": [found()], "mark": note}
    role = Restore({"one": there, "two": there})
    assert (role.get("__rke2_restore_holder"), role.get("__rke2_restore_report")["unfinished"]) == ("two", note)
    assert Restore({"one": there, "two": {"mark": note}}).get("__rke2_restore_holder") == "one"
    # Once its data is in place the file is needed no more.
    done = Restore({"two": {"mark": note | {"reset": True}}})
    assert done.gate("Refuse a snapshot that is nowhere") == ""
    assert (done.get("__rke2_restore_sha256"), done.get("__rke2_restore_bytes")) == ("5e", 0)
    assert "called mine" in Restore({"two": {"mark": note}}).gate("Refuse a snapshot that is nowhere")


@pytest.mark.proves("restore-leave")
@pytest.mark.parametrize(("free", "said"), [(4000, ""), (3999, "takes 3.91 KB, four times its size")])
def test_a_disk_without_room_for_the_data_is_refused(free: int, said: str) -> None:
    role = Restore({"two": {"snapshots": [found()]}}, {"two": {"space": {PLACE: free}}})
    told = role.gate("Refuse a disk without room for it")
    assert said in told and bool(told) is bool(said)
    assert not said or f"two: {PLACE} has" in told


@pytest.mark.proves("restore-token")
def test_another_token_is_refused_with_the_command_that_then_works() -> None:
    gate = "Refuse a token that does not open it"
    told = Restore({"one": {"snapshots": [found(token_fingerprint="bb")]}}).gate(gate)
    assert "(fingerprint bb)" in told and "deploy" not in told
    assert told.endswith("scripts/provision.py restore mine --site here")
    assert Restore({"one": {"snapshots": [found()]}}).gate(gate) == ""


@pytest.mark.proves("restore-token")
def test_every_server_has_the_snapshots_token_before_the_data_of_any_is_touched() -> None:
    role = Restore({"one": {"snapshots": [found()]}})
    tasks = role.loader.load_from_file(str(ROLE / "tasks/restore.yml"), trusted_as_template=True)
    names = [task["name"] for task in tasks]
    at = next(place for place, name in enumerate(names) if name.endswith("start with the snapshot's token"))
    begin, aside = (next(place for place, task in enumerate(tasks)
                         if (task.get("metalhub.platform.rke2_restore") or {}).get("step") == step)
                    for step in ("begin", "aside"))  # fmt: skip
    assert begin < at < aside
    task = tasks[at]
    assert (task["no_log"], task["when"]) == (True, "not __rke2_restore_reset")
    role.variables["written"] = task["metalhub.platform.files"]["files"]
    (file,) = role.get("written")
    assert (file["path"], file["content"], file["mode"]) == ("/etc/rancher/rke2/token", "server-token\n", "0600")


# A rollback


def back(told: dict[str, dict[str, Any]], left: tuple[str, ...] = ()) -> Role:
    """Return the role for a rollback to OLD; `told` is what machines say beyond that they run VERSION.

    left: machines that are not in the play any more.
    """
    machines = [*SERVERS, "worker"]
    role = Role(rke2_version=OLD, ansible_play_hosts=[name for name in machines if name not in left])
    role.variables["ansible_play_hosts_all"] = machines
    role.variables["hostvars"] = {name: {"__rke2_info": told.get(name, answer())} for name in machines}
    for name in machines:
        said = {"unreachable": True} if "unreachable" in told.get(name, {}) else {"ping": "pong"}
        role.variables["hostvars"][name]["__rke2_rollback_answer"] = said
    return role


@pytest.mark.proves("upgrade-rollback")
def test_a_rollback_wants_all_servers_and_leaves_out_silent_workers() -> None:
    gate, silent = "Refuse a part of the servers", {"unreachable": True}
    assert back({}).refused(gate, "rollback") == ""
    assert "and two cannot be reached" in back({"two": silent}).refused(gate, "rollback")
    assert "and three cannot be reached" in back({}, ("three",)).refused(gate, "rollback")
    role = back({"worker": silent})
    assert (role.refused(gate, "rollback"), role.get("__rke2_rollback_silent")) == ("", ["worker"])
    later = back({"worker": silent}, ("worker",))
    assert (later.get("__rke2_rollback_silent"), later.get("__rke2_rollback_stops")) == (["worker"], list(SERVERS))


@pytest.mark.proves("upgrade-rollback")
def test_a_rollback_stops_servers_that_the_upgrade_has_not_reached_and_none_once_all_are_done() -> None:
    done = answer(installed_version=OLD, running_version=OLD)
    stopped = answer(installed_version=OLD, running_version="", service={"active": "inactive"})
    assert back({"two": done, "three": stopped, "worker": done}).get("__rke2_rollback_stops") == ["one", "two"]
    # Typed again after the restore.
    assert back(dict.fromkeys((*SERVERS, "worker"), done)).get("__rke2_rollback_stops") == []
    assert back(dict.fromkeys(SERVERS, stopped) | {"worker": done}).get("__rke2_rollback_stops") == []


@pytest.mark.proves("upgrade-rollback")
def test_the_snapshot_of_a_rollback_is_looked_for_where_the_site_has_them() -> None:
    role = Role(rke2_config={"etcd-snapshot-dir": "/elsewhere"}, __rke2_rollback_found={"results": []})
    assert "in /elsewhere, so there" in role.refused("Refuse to go back to nothing", "rollback")
    (look,) = (task for task in role.loader.load_from_file(str(ROLE / "tasks/rollback.yml"), trusted_as_template=True)
               if "ansible.builtin.find" in task)  # fmt: skip
    role.variables["looked"] = look["ansible.builtin.find"]["paths"]
    assert role.get("looked") == "/elsewhere"
