"""A snapshot of etcd, built byte by byte: read for what it holds, and refused when a byte is another."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.module_utils import etcd_snapshot
from plugins.modules import rke2_restore, rke2_snapshot_info

PAGE = 4096
pytestmark = pytest.mark.proves("snapshot-read")


def _varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _leaf(items: Sequence[tuple[bytes, bytes]], number: int, bucket: bool = False) -> bytes:
    """A page of keys and values."""
    head, body = b"", b""
    start = 16 * len(items)
    for index, (key, value) in enumerate(items):
        head += struct.pack("<IIII", int(bucket), start - 16 * index + len(body), len(key), len(value))
        body += key + value
    data = struct.pack("<QHHI", number, 2, len(items), 0) + head + body
    assert len(data) <= PAGE
    return data.ljust(PAGE, b"\0")


def _object(kind: str, name: str, uid: str, more: bytes = b"", annotations: dict[str, str] | None = None) -> bytes:
    pairs = (_field(1, key.encode()) + _field(2, value.encode()) for key, value in (annotations or {}).items())
    metadata = _field(1, name.encode()) + _field(5, uid.encode()) + b"".join(_field(12, pair) for pair in pairs)
    return b"k8s\0" + _field(1, _field(2, kind.encode())) + _field(2, _field(1, metadata) + more)


def snapshot(path: Path, changes: Sequence[tuple[str, bytes | None]]) -> Path:
    """Write a snapshot of these changes in their order, None for a deletion: two leaves below a branch."""
    entries = []
    for revision, (key, value) in enumerate(changes, 2):
        name = revision.to_bytes(8, "big") + b"_" + bytes(8) + (b"t" if value is None else b"")
        entries.append((name, _field(1, key.encode()) + (b"" if value is None else _field(5, value))))
    middle = len(entries) // 2
    pages = [_leaf(entries[:middle], 4), _leaf(entries[middle:], 5)]
    branch = struct.pack("<QHHI", 6, 1, 2, 0)
    names = [entries[0][0], entries[middle][0]]
    branch += struct.pack("<IIQ", 32, len(names[0]), 4) + struct.pack("<IIQ", 16 + len(names[0]), len(names[1]), 5)
    pages.append((branch + b"".join(names)).ljust(PAGE, b"\0"))
    pages.append(_leaf([(b"key", struct.pack("<QQ", 6, 0))], 7, bucket=True))
    metas = b""
    for number in (0, 1):
        meta = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, PAGE, 0, 7, 0, 2, 8, number)
        checksum = 0xCBF29CE484222325
        for byte in meta:
            checksum = ((checksum ^ byte) * 0x100000001B3) % 2**64
        metas += (struct.pack("<QHHI", number, 4, 0, 0) + meta + struct.pack("<Q", checksum)).ljust(PAGE, b"\0")
    path.write_bytes(metas + bytes(2 * PAGE) + b"".join(pages))
    etcd_snapshot.seal(path)
    return path


def node(version: str) -> bytes:
    """A Node whose kubelet is of a release."""
    return _object("Node", "one", "n", _field(3, _field(7, _field(7, version.encode()))))


PEM = "-----BEGIN CERTIFICATE-----\nMIIB\nAA==\n-----END CERTIFICATE-----\n"
CHANGES: list[tuple[str, bytes | None]] = [
    (f"/bootstrap/{hashlib.sha256(b'secret').hexdigest()[:12]}", b"sealed"),
    ("/registry/minions/one", node("v1.34.9+rke2r1")),
    ("/registry/secrets/hub/gone", b"k8s:enc:aescbc"),
    ("/registry/secrets/hub/kept", b"k8s:enc:aescbc"),
    ("/registry/namespaces/hub", _object("Namespace", "hub", "u1")),
    ("/registry/configmaps/kube-system/kube-root-ca.crt", _object("ConfigMap", "x", "u3", _field(2, PEM.encode()))),
    ("/registry/secrets/hub/gone", None),
    ("/registry/minions/one", node("v1.35.10+rke2r2")),
    (
        "/registry/persistentvolumeclaims/hub/claim-anna",
        _object("PersistentVolumeClaim", "claim-anna", "u2", annotations={etcd_snapshot.USER: "anna"}),
    ),
]


def test_a_snapshot_tells_its_release_its_token_and_what_lives_in_it(tmp_path: Path) -> None:
    path = snapshot(tmp_path / "one", CHANGES)
    found = etcd_snapshot.contents(path)
    assert (found.version, etcd_snapshot.release(path)) == ("v1.35.10+rke2r2", "v1.35.10+rke2r2")
    assert found.token_fingerprint == etcd_snapshot.fingerprint("K10aaaa::server:secret")
    assert found.objects["Secret"] == {"hub/kept": ""}
    assert found.objects["Namespace"] == {"hub": "u1"}
    assert found.objects["PersistentVolumeClaim"] == {"hub/claim-anna": "u2"}
    assert (found.users, found.nodes, found.revision) == (["anna"], ["one"], 10)
    assert found.authority == hashlib.sha256(b"MIIBAA==").hexdigest()


def test_a_snapshot_is_whole_and_so_is_its_checksum(tmp_path: Path) -> None:
    path = snapshot(tmp_path / "one", CHANGES)
    assert etcd_snapshot.whole(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 8 * PAGE + 31), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_noticed(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    path = snapshot(tmp_path_factory.mktemp("flip") / "one", CHANGES)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(etcd_snapshot.Broken):
        etcd_snapshot.whole(path)
    for read in (etcd_snapshot.contents, etcd_snapshot.release):
        with suppress(etcd_snapshot.Broken):  # it may have hit what nobody reads, but nothing else comes of it
            read(path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3 * PAGE))
def test_what_is_no_snapshot_is_refused_and_nothing_else_happens(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("noise") / "one"
    path.write_bytes(data)
    for read in (etcd_snapshot.whole, etcd_snapshot.contents, etcd_snapshot.release):
        with pytest.raises(etcd_snapshot.Broken):
            read(path)


def test_what_would_vanish_reappear_and_be_another_is_named() -> None:
    then = etcd_snapshot.Contents(
        objects={"Secret": {"a/same": "", "a/old": "1", "a/new": "2"}, "Namespace": {"a": "x"}}, users=["anna"]
    )
    now = {"Secret": {"a/same": "9", "a/new": "3", "b/later": "4"}, "Namespace": {"a": "x", "b": "y"}}
    assert etcd_snapshot.compared(then, now, ["ben"]) == {
        "vanish": ["Namespace b", "Secret b/later", "home of ben"],
        "reappear": ["Secret a/old", "home of anna"],
        "replace": ["Secret a/new"],
    }


@given(
    st.lists(st.tuples(st.sampled_from(["on-demand-", "etcd-snapshot-"]), st.integers(0, 100)), max_size=20),
    st.integers(0, 6),
    st.integers(0, 100),
)
@pytest.mark.proves("snapshot-prune")
def test_pruning_spares_the_newest_the_young_and_what_is_rke2s_own(
    ages: list[tuple[str, int]], keep: int, days: int
) -> None:
    now = 1_000 * 86400.0
    all_of_them = [(f"{kind}{number}", now - age * 86400) for number, (kind, age) in enumerate(ages)]
    gone = set(etcd_snapshot.doomed(all_of_them, keep, days, now))
    ours = [(name, made) for name, made in all_of_them if name.startswith("on-demand")]
    stay = [(name, made) for name, made in ours if name not in gone]
    assert gone <= {name for name, _ in ours}
    assert all(now - made > days * 86400 for name, made in ours if name in gone)
    assert len(stay) >= min(keep, len(ours))
    # What is too old and stays is among the newest.
    if any(now - made > days * 86400 for _, made in stay):
        assert len(stay) == min(keep, len(ours))
        assert max((made for name, made in ours if name in gone), default=0) <= min(made for _, made in stay)


# -- the modules ---------------------------------------------------------------------------------------------------


def call(module: Any, capsys: pytest.CaptureFixture[str], **asked: Any) -> Any:
    """Run a module and return what it says."""
    with patch_module_args(asked), pytest.raises(SystemExit):
        module.main()
    return json.loads(capsys.readouterr().out)


def test_the_module_lists_every_snapshot_and_reads_those_that_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "server/db/snapshots"
    place.mkdir(parents=True)
    snapshot(place / "on-demand-one-1700000000", CHANGES)
    snapshot(place / "on-demand-one-1700000300", CHANGES)
    (place / ".half").write_text("")
    (tmp_path / "server/tls").mkdir()
    (tmp_path / "server/tls/server-ca.crt").write_text(PEM.replace("\n", "\r\n"))
    (place / "etcd-snapshot-one-1600000000").write_text("no snapshot")
    said = call(
        rke2_snapshot_info,
        capsys,
        data_dir=str(tmp_path),
        read=["on-demand-one-1700000000"],
        token="secret",
        days=0,
        keep=1,
        mark=str(tmp_path / "none"),
    )
    assert [(one["name"][-10:], one["version"], one.get("whole")) for one in said["snapshots"]] == [
        ("1700000300", "v1.35.10+rke2r2", None),
        ("1700000000", "v1.35.10+rke2r2", True),
        ("1600000000", "", None),
    ]
    assert said["snapshots"][1]["token_fingerprint"] == said["token_fingerprint"]
    assert said["snapshots"][1]["authority"] == said["authority"] != ""
    assert (said["serving"], said["comparison"], said["mark"]) == (False, {}, {})
    assert said["doomed"] == ["on-demand-one-1700000000"]


PROGRAM = """#!/bin/sh
echo "$(basename $0) $* $(test -z "$RKE2_CONFIG_FILE" || ls $RKE2_CONFIG_FILE.d)" >>"{root}/calls"
{body}
"""


class Machine:
    """A server made of a directory, with programs that note what they are asked."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys, self.db = root, capsys, root / "data/server/db"
        for name in ("bin", "etc/config.yaml.d", "data/server/db/etcd/member", "data/server/db/snapshots"):
            (root / name).mkdir(parents=True)
        (root / "etc/config.yaml").write_text("token-file: x\n")
        for name in ("80-node", "90-join"):
            (root / f"etc/config.yaml.d/{name}.yaml").write_text("a: b\n")
        self.program("rke2-killall.sh", "")
        self.program("rke2", f"echo '{rke2_restore.SAID}, restart'; touch {self.db}/reset-flag")
        self.program("systemctl", "echo active")
        monkeypatch.setattr(rke2_restore, "CONFIG", root / "etc")
        monkeypatch.setattr(rke2_restore, "program", lambda name: str(root / "bin" / name))
        monkeypatch.setenv("PATH", f"{root}/bin:/usr/bin:/bin")
        self.snapshot = snapshot(self.db / "snapshots/one", CHANGES)

    def program(self, name: str, body: str) -> None:
        """Write a program."""
        (self.root / "bin" / name).write_text(PROGRAM.format(root=self.root, body=body))
        (self.root / "bin" / name).chmod(0o755)

    def step(self, step: str, **asked: Any) -> Any:
        """Do one step."""
        place = {"data_dir": str(self.root / "data"), "mark": str(self.root / "mark.json")}
        return call(rke2_restore, self.capsys, step=step, seconds=5, **place, **asked)

    def calls(self) -> list[str]:
        """Return what was run since the last question."""
        path = self.root / "calls"
        said = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return said


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Machine:
    """A server with etcd's data and a snapshot."""
    return Machine(tmp_path, monkeypatch, capsys)


@pytest.mark.proves("restore-continues")
def test_every_step_is_done_once(machine: Machine) -> None:
    asked = {"snapshot": str(machine.snapshot), "sha256": etcd_snapshot.whole(machine.snapshot)}
    assert machine.step("begin", note={"snapshot": "one", "holder": "a"})["changed"] is True
    assert machine.step("begin", note={"snapshot": "one", "holder": "a"})["changed"] is False
    kept = Path(machine.step("aside")["aside"])
    assert (kept / "member").is_dir() and not (machine.db / "etcd").exists()
    (machine.db / "etcd").mkdir()  # what the server has joined with since
    assert machine.step("aside")["changed"] is False
    assert (machine.db / "etcd").is_dir()
    machine.calls()
    assert machine.step("reset", **asked)["changed"] is True
    killed, reset = machine.calls()
    assert killed.startswith("rke2-killall.sh")
    assert reset == f"rke2 server --cluster-reset --cluster-reset-restore-path={machine.snapshot} 80-node.yaml"
    assert machine.step("reset", **asked)["changed"] is False
    assert machine.calls() == []
    assert machine.step("start")["changed"] is False
    assert [machine.step("end")["changed"] for _ in range(2)] == [True, False]


@pytest.mark.proves("restore-leave")
def test_a_restore_that_was_begun_makes_way_for_another_until_its_data_is_in_place(machine: Machine) -> None:
    mark, flag = machine.root / "mark.json", machine.db / "reset-flag"
    machine.step("begin", note={"snapshot": "bad", "holder": "a", "sha256": "07", "foreign": []})
    machine.step("aside")
    flag.touch()  # by a reset to the bad one that was killed before its note
    before = json.loads(mark.read_text())
    asked = {"snapshot": "one", "holder": "b", "sha256": "5e", "foreign": ["b"]}
    assert machine.step("begin", note=asked)["changed"] is True
    assert json.loads(mark.read_text()) == before | asked
    assert before["started"] and before["aside"] and not flag.exists()
    assert machine.step("begin", note=asked)["changed"] is False
    machine.calls()
    assert machine.step("reset", snapshot=str(machine.snapshot))["changed"] is True
    assert machine.calls()[-1].startswith("rke2 server --cluster-reset")
    assert machine.step("begin", note={"snapshot": "bad", "holder": "a"})["changed"] is False
    assert json.loads(mark.read_text()) == before | asked | {"reset": True}


@pytest.mark.proves("restore-new-machines")
def test_a_server_of_another_cluster_joins_without_the_certificates_of_that(machine: Machine) -> None:
    tls = machine.db.parent / "tls"
    for foreign in (False, True):
        machine.step("begin", note={"snapshot": "one"})
        tls.mkdir(exist_ok=True)
        assert machine.step("aside", foreign=foreign)["changed"] is True
        assert tls.exists() is not foreign
        machine.step("end")
    assert [path.name[:19] for path in machine.db.glob("tls-*")] == ["tls-before-restore-"]


@pytest.mark.proves("restore-continues")
def test_whoever_was_killed_right_behind_the_reset_does_not_do_it_again(machine: Machine) -> None:
    machine.step("begin", note={"snapshot": "one"})
    (machine.db / "reset-flag").touch()
    assert machine.step("reset", snapshot=str(machine.snapshot))["changed"] is True
    assert machine.calls() == []
    assert json.loads((machine.root / "mark.json").read_text())["reset"] is True


@pytest.mark.proves("restore-continues")
def test_a_reset_that_fails_says_what_rke2_said_and_is_done_again(machine: Machine) -> None:
    machine.step("begin", note={"snapshot": "one"})
    machine.program("rke2", "echo 'level=fatal msg=\"encrypted with different token\"'; exit 1")
    said = machine.step("reset", snapshot=str(machine.snapshot))
    assert "encrypted with different token" in said["msg"]
    machine.program("rke2", "exit 0")
    assert "ended without saying so" in machine.step("reset", snapshot=str(machine.snapshot))["msg"]
    machine.program("rke2", f"echo '{rke2_restore.SAID}'")
    assert machine.step("reset", snapshot=str(machine.snapshot))["changed"] is True


@pytest.mark.proves("restore-refuses")
def test_a_snapshot_that_is_another_than_before_is_not_restored(machine: Machine) -> None:
    machine.step("begin", note={"snapshot": "one"})
    machine.calls()
    said = machine.step("reset", snapshot=str(machine.snapshot), sha256="0" * 64)
    assert "not 0000" in said["msg"]
    data = machine.snapshot.read_bytes()
    machine.snapshot.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "is written behind it" in machine.step("reset", snapshot=str(machine.snapshot))["msg"]
    assert not any(call.startswith("rke2 ") for call in machine.calls())


@pytest.mark.proves("etcd-tools")
def test_the_tool_that_a_deploy_laid_down_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rke2_snapshot_info, "ETCDUTL", str(tmp_path / "etcd/*/etcdutl"))
    monkeypatch.setattr("shutil.which", lambda _: None)

    def tool(version: str = "") -> str:
        with (
            patch_module_args({"data_dir": str(tmp_path / "data"), "etcd_version": version}),
            pytest.raises(SystemExit),
        ):
            rke2_snapshot_info.main()
        return str(json.loads(capsys.readouterr().out)["etcdutl"])

    assert tool() == ""
    for name in ("data/bin", "etcd/v3.6.9", "etcd/v3.6.14"):
        path = tmp_path / name / "etcdutl"
        path.parent.mkdir(parents=True)
        path.touch(0o700)
        assert tool() == str(path)
    # Of two that an interrupted deploy has left.
    assert tool("v3.6.9") == str(tmp_path / "etcd/v3.6.9/etcdutl")
    assert tool("v3.6.11") == str(tmp_path / "etcd/v3.6.14/etcdutl")
