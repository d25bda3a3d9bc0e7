"""What the module rke2_etcd does to a member, with a stand-in for etcd that answers as etcd 3.6 does."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.module_utils.etcd_gateway import Gateway, Silent
from plugins.modules import rke2_etcd

pytestmark = pytest.mark.proves("etcd-defrag")
MIB = 1 << 20


class Etcd(Gateway):
    """Three members, of which this server has the first; every request is remembered."""

    def __init__(self, *, leader: str = "1", alarms: tuple[str, ...] = (), free: int = 50, full: bool = False) -> None:
        self.sizes = {"1": 100 * MIB, "2": 100 * MIB, "3": 100 * MIB}
        self.free, self.leader, self.raised, self.silent = free * MIB, leader, list(alarms), set[str]()
        self.quota = (101 if full else 2000) * MIB
        self.asked: list[str] = []
        self.compacted, self.own = False, "1"

    def answers(self, member: dict[str, Any]) -> bool:
        """Say whether a member greets its clients."""
        return member["ID"] not in self.silent

    def ask(self, path: str, seconds: float = 10, **body: Any) -> dict[str, Any]:
        """Answer as etcd does, long numbers as text."""
        assert seconds > 0
        what = path.rpartition("/")[2]
        if what == "list":
            return {"members": [{"ID": one, "name": f"n{one}"} for one in self.sizes]}
        if what == "status":
            size = self.sizes[self.own]
            header = {"member_id": self.own, "revision": "77"}
            sizes = {"dbSize": str(size), "dbSizeInUse": str(size - self.free), "dbSizeQuota": str(self.quota)}
            return {"header": header, "version": "3.6.5", "leader": self.leader} | sizes
        if what == "alarm" and body["action"] == "GET":
            return {"alarms": [{"memberID": one, "alarm": "NOSPACE"} for one in self.raised]}
        self.asked.append(what)
        if what == "alarm":
            self.raised = [one for one in self.raised if one != body["memberID"]]
        elif what == "compaction" and self.compacted:
            raise Silent("etcdserver: mvcc: required revision has been compacted")
        elif what == "compaction":
            self.compacted, self.free = True, 90 * MIB
        elif what == "transfer-leadership":
            self.leader = body["targetID"]
        elif what == "defragment":
            assert self.leader != self.own, "a leader must not pause"
            self.sizes[self.own] -= self.free
            self.free = 0
        return {}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for etcd's next write."""
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_a_leader_hands_over_and_a_second_run_changes_nothing() -> None:
    cluster = Etcd()
    first = rke2_etcd.care(cluster, check=False)
    assert first["done"] == ["handed leadership to n2", "defragmented"]
    assert (first["before"], first["member"]["size"], first["changed"]) == (100 * MIB, 50 * MIB, True)
    assert rke2_etcd.care(cluster, check=False)["changed"] is False
    assert cluster.asked == ["transfer-leadership", "defragment"]


@pytest.mark.parametrize(("free", "worth"), [(9, False), (11, True)])
def test_a_pause_is_made_only_where_it_is_worth_it(free: int, worth: bool) -> None:
    assert rke2_etcd.care(Etcd(leader="2", free=free), check=False)["changed"] is worth


def test_nothing_pauses_while_another_member_is_away() -> None:
    cluster = Etcd(leader="2")
    cluster.silent = {"3"}
    with pytest.raises(Silent, match="n3 does not answer"):
        rke2_etcd.care(cluster, check=False)
    assert cluster.asked == []


def test_check_mode_says_what_would_be_done_and_does_nothing() -> None:
    cluster = Etcd(alarms=("1",), full=True)
    assert rke2_etcd.care(cluster, check=True)["done"] == [
        "compacted up to revision 77",
        "handed leadership over",
        "defragmented",
    ]
    assert (cluster.asked, cluster.raised) == ([], ["1"])


def test_out_of_space_each_alarm_ends_when_its_member_has_room() -> None:
    cluster = Etcd(leader="2", alarms=("1", "3", "gone"), full=True)
    first = rke2_etcd.care(cluster, check=False)
    assert first["done"] == ["compacted up to revision 77", "defragmented", "ended the alarm NOSPACE"]
    assert first["alarms"] == ["NOSPACE n3"]
    cluster.own, cluster.free = "3", 90 * MIB
    last = rke2_etcd.care(cluster, check=False)
    assert (last["done"], last["alarms"]) == (["defragmented", "ended the alarm NOSPACE"], [])
    assert rke2_etcd.care(cluster, check=False)["changed"] is False


def test_a_cluster_whose_data_fill_the_quota_keeps_its_alarm() -> None:
    cluster = Etcd(leader="2", alarms=("1",), full=True, free=0)
    cluster.compacted = True
    last = rke2_etcd.care(cluster, check=False)
    assert (last["alarms"], last["changed"]) == (["NOSPACE n1"], False)


def test_without_certificates_it_says_where_they_were_looked_for() -> None:
    with pytest.raises(Silent, match="/nowhere/server/tls/etcd"):
        Gateway("/nowhere")
