"""The module metalhub.platform.files, run for real in temporary directories."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from plugins.modules import files

SECRET = "canary-5f1c9"


def run(
    capsys: pytest.CaptureFixture[str],
    entries: list[dict[str, Any]],
    pending_file: Path | None = None,
    **internal: bool,
) -> dict[str, Any]:
    """Run the module in this process and return its JSON result.

    Owner and group default to those of the test, so that the tests need no root.
    """
    own = {"owner": str(os.getuid()), "group": str(os.getgid())}
    arguments: dict[str, Any] = {"files": [own | entry for entry in entries]}
    arguments |= {"pending_file": str(pending_file)} if pending_file else {}
    arguments |= {f"_ansible_{name}": value for name, value in internal.items()}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        files.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def mode_of(path: Path) -> str:
    """Return the permissions of `path` as four octal digits."""
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


def snapshot(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return inode, modification time and content of every file below `directory`."""
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(directory.rglob("*"))
    }


@pytest.mark.proves("files-converge")
def test_first_run_writes_everything_and_second_run_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone.conf"
    gone.write_text("old")
    entries = [
        {"path": str(tmp_path / "a/b/c.conf"), "content": "käse\n", "mode": "0640"},
        {"path": str(tmp_path / "empty"), "content": ""},
        {"path": str(gone), "state": "absent"},
    ]
    first = run(capsys, entries)
    assert first["changed_paths"] == [entry["path"] for entry in entries]
    assert (tmp_path / "a/b/c.conf").read_text(encoding="utf-8") == "käse\n"
    assert mode_of(tmp_path / "a/b/c.conf") == "0640"
    assert mode_of(tmp_path / "a/b") == "0755"
    assert (tmp_path / "empty").read_bytes() == b""
    assert not gone.exists()
    before = snapshot(tmp_path)
    second = run(capsys, entries)
    assert (second["changed"], second["changed_paths"]) == (False, [])
    assert snapshot(tmp_path) == before


def test_one_hand_edit_gives_exactly_one_changed_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [{"path": str(tmp_path / name), "content": name} for name in ("one", "two", "three")]
    run(capsys, entries)
    (tmp_path / "two").write_text("edited")
    assert run(capsys, entries)["changed_paths"] == [str(tmp_path / "two")]
    assert (tmp_path / "two").read_text() == "two"


def test_parents_are_0755_under_a_strict_umask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = os.umask(0o077)
    try:
        run(capsys, [{"path": str(tmp_path / "x/y/z"), "content": "z"}])
    finally:
        os.umask(old)
    assert [mode_of(tmp_path / "x"), mode_of(tmp_path / "x/y"), mode_of(tmp_path / "x/y/z")] == ["0755", "0755", "0644"]


@pytest.mark.proves("files-check-mode")
def test_check_mode_foretells_the_run_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "edited").write_text("by hand")
    (tmp_path / "gone").write_text("old")
    entries = [
        {"path": str(tmp_path / "new/file"), "content": "new"},
        {"path": str(tmp_path / "edited"), "content": "ours"},
        {"path": str(tmp_path / "gone"), "state": "absent"},
        {"path": str(tmp_path / "never"), "state": "absent"},
    ]
    before = snapshot(tmp_path)
    foretold = run(capsys, entries, check_mode=True)
    assert snapshot(tmp_path) == before
    real = run(capsys, entries)
    assert foretold["changed_paths"] == real["changed_paths"] == [entry["path"] for entry in entries[:3]]


def test_an_owner_that_the_same_run_would_create_is_a_change_in_check_mode_and_an_error_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [{"path": str(tmp_path / "f"), "content": "x", "owner": "no-such-user-here"}]
    assert run(capsys, entries, check_mode=True)["changed"] is True
    result = run(capsys, entries)
    assert result["failed"] is True
    assert "no-such-user-here" in result["msg"] and "getent passwd" in result["msg"]
    assert list(tmp_path.iterdir()) == []


def test_mode_alone_is_corrected_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key"
    path.write_text("k")
    path.chmod(0o666)
    inode = path.stat().st_ino
    result = run(capsys, [{"path": str(path), "content": "k", "mode": "0600"}], diff=True)
    assert result["changed_paths"] == [str(path)]
    assert (mode_of(path), path.stat().st_ino) == ("0600", inode)
    assert [("0666" in entry["before"], "0600" in entry["after"]) for entry in result["diff"]] == [(True, True)]


def test_diff_holds_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").write_text("old\n")
    result = run(capsys, [{"path": str(tmp_path / "f"), "content": "new\n"}], diff=True)
    assert (result["diff"][0]["before"], result["diff"][0]["after"]) == ("old\n", "new\n")
    assert result["diff"][0]["after_header"] == str(tmp_path / "f")


@pytest.mark.parametrize("before", [pytest.param("old " + SECRET, id="was-there"), pytest.param(None, id="is-new")])
@pytest.mark.parametrize("state", ["present", "absent"])
def test_no_diff_keeps_old_and_new_content_out_of_the_diff(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str | None, state: str
) -> None:
    path = tmp_path / "secret"
    if before is not None:
        path.write_text(before)
    entry = {"path": str(path), "content": "new " + SECRET, "state": state}
    open_diff = run(capsys, [entry], diff=True, check_mode=True).get("diff")
    assert (SECRET in json.dumps(open_diff)) == (state == "present" or before is not None), (
        "the canary must be findable"
    )
    closed_diff = run(capsys, [entry | {"no_diff": True}], diff=True, check_mode=True)["diff"]
    assert SECRET not in json.dumps(closed_diff)
    for shown in closed_diff:
        assert shown["before"] != shown["after"], "a change must still be seen as one"


@pytest.mark.proves("files-no-secret-in-syslog")
def test_the_system_log_gets_paths_and_no_contents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(files.FilesModule, "log", lambda self, msg, log_args=None: logged.append(f"{msg} {log_args}"))
    run(capsys, [{"path": str(tmp_path / "f"), "content": SECRET}])
    assert str(tmp_path / "f") in "".join(logged)
    assert SECRET not in "".join(logged)


def test_a_symbolic_link_is_replaced_and_its_target_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    entries = [{"path": str(tmp_path / "link"), "content": "mine"}]
    assert run(capsys, entries, diff=True)["changed"] is True
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "mine"
    assert run(capsys, entries)["changed"] is False


@pytest.mark.proves("files-atomic")
def test_a_reader_never_sees_half_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    seen: list[tuple[str, str]] = []
    replace = os.replace

    def watching(source: str, destination: str) -> None:
        seen.append((Path(source).read_text(), Path(destination).read_text()))
        assert os.path.dirname(source) == os.path.dirname(destination)
        replace(source, destination)

    monkeypatch.setattr(os, "replace", watching)
    run(capsys, [{"path": str(path), "content": "new"}])
    assert seen == [("new", "old")]
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.proves("files-full-disk")
def test_a_disk_that_fills_while_writing_changes_no_file_and_leaves_none_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text("old")
    before = snapshot(tmp_path)
    calls: list[int] = []
    fsync = os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    result = run(capsys, [{"path": str(tmp_path / name), "content": "new"} for name in ("one", "two")])
    assert result["failed"] is True
    assert str(tmp_path / "two") in result["msg"] and "ENOSPC" in result["msg"] and "df -h" in result["msg"]
    assert snapshot(tmp_path) == before


def test_a_bind_mounted_file_is_written_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hosts"
    path.write_text("a long old content that is longer than the new one")
    path.chmod(0o666)
    inode = path.stat().st_ino

    def busy(source: str, destination: str) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "replace", busy)
    assert run(capsys, [{"path": str(path), "content": "new", "mode": "0600"}])["changed"] is True
    assert (path.read_text(), path.stat().st_ino, mode_of(path)) == ("new", inode, "0600")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        pytest.param({"path": "etc/x", "content": ""}, "plain absolute path", id="relative"),
        pytest.param({"path": "/etc/../x", "content": ""}, "plain absolute path", id="dots"),
        pytest.param({"path": "/tmp/x"}, "content is missing", id="no-content"),
        pytest.param({"path": "/tmp/x", "content": "", "mode": 420}, "in quotes", id="unquoted-mode"),
        pytest.param({"path": "/tmp/x", "content": "", "mode": "644"}, "four octal digits", id="three-digits"),
        pytest.param({"path": "/tmp/x", "content": "", "mode": "u=rw"}, "four octal digits", id="symbolic"),
        pytest.param({"path": "/proc", "content": ""}, "is a directory", id="directory"),
        pytest.param({"path": "/proc", "state": "absent"}, "is a directory", id="absent-directory"),
        pytest.param({"path": "/dev/null", "content": ""}, "no regular file", id="device"),
        pytest.param({"path": "/proc/version/x", "content": ""}, "parent of it is a file", id="parent-is-file"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: dict[str, Any], said: str
) -> None:
    result = run(capsys, [{"path": str(tmp_path / "good"), "content": "x"}, entry])
    assert result["failed"] is True
    assert said in result["msg"] and "Nothing was written" in result["msg"]
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, [{"path": "a", "content": ""}, {"path": "b", "content": ""}, {"path": "/c"}, {"path": "/c"}])
    assert [text in result["msg"] for text in ("'a'", "'b'", "/c: content", "/c is listed twice")] == [True] * 4


@pytest.mark.proves("files-pending")
def test_what_an_interrupted_run_has_changed_is_still_pending_in_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note, one, two = (tmp_path / name for name in ("state/note", "one", "two"))
    entries = [{"path": str(one), "content": "1"}, {"path": str(two), "content": "2"}]
    assert run(capsys, entries[:1], note)["pending_paths"] == [str(one)]
    # The run ended here: nobody acted on the change and nobody removed the note.
    second = run(capsys, entries, note)
    assert (second["changed_paths"], second["pending_paths"]) == ([str(two)], [str(one), str(two)])
    third = run(capsys, entries, note)
    assert (third["changed"], third["changed_paths"], third["pending_paths"]) == (False, [], [str(one), str(two)])
    note.unlink()
    assert run(capsys, entries, note)["pending_paths"] == []
    assert not note.exists()


def test_the_note_stands_before_the_first_change_and_check_mode_writes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    note, one = tmp_path / "note", tmp_path / "one"
    entries = [{"path": str(one), "content": "1"}]
    assert run(capsys, entries, note, check_mode=True)["pending_paths"] == [str(one)]
    assert list(tmp_path.iterdir()) == []
    replace = os.replace

    def killed(source: str, destination: str) -> None:
        if destination == str(one):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", killed)
    assert run(capsys, entries, note)["failed"] is True
    assert (one.exists(), note.read_text()) == (False, f"{one}\n")
