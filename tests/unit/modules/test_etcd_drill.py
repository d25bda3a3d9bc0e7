"""A drill: what it leaves, what it asks of etcd, and when it calls a snapshot good."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from plugins.module_utils import etcd_snapshot
from plugins.modules.etcd_drill import Failed, clear, judged, left, read, ready

NONCE = "0123456789abcdef0123456789abcdef"
HELD = etcd_snapshot.Contents(revision=12, keys=3)
TOLD: dict[str, Any] = {"revision": 12, "keys": 3, "value": b"k8s\0 nonce " + NONCE.encode(), "etcd": "3.6.14"}

# Restores any snapshot but one that says otherwise, and notes how it was called.
ETCDUTL = """#!/bin/sh
here=$(/usr/bin/dirname "$0")
if [ "$(/bin/cat "$here/snapshot")" = bad ]; then
  echo 'restoring'; echo 'Error: expected sha256 [1], got [2]' >&2; exit 1
fi
/bin/mkdir "$here/data"
"""
# Etcd's JSON interface on the socket that it was told.
ETCD = """#!%s
import base64, json, os, socketserver, sys
from http.server import BaseHTTPRequestHandler
class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        value = base64.b64encode(b"nonce %s").decode()
        kvs = {"kvs": [{"value": value}], "count": "1"}
        said = {"header": {"revision": "12"}, "version": "3.6.14", "leader": "7"} if "status" in self.path else kvs
        if body.get("count_only"):
            said = {"count": "3"}
        text = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *words):
        pass
assert not [name for name in os.environ if name.startswith("ETCD")]
where = next(word for word in sys.argv if word.startswith("--listen-client-urls=")).partition("unix://")[2]
class Server(socketserver.ThreadingUnixStreamServer):
    def get_request(self):
        request, _ = super().get_request()
        return request, ("here", 0)
Server(where, Answer).serve_forever()
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a drill has its snapshot and its programs."""
    path = tmp_path / "drill"
    ready(path, 1000)
    monkeypatch.setattr(etcd_snapshot, "contents", lambda _: HELD)
    (path / "snapshot").write_text("good")
    for name, text in (("etcdutl", ETCDUTL), ("etcd", ETCD % (sys.executable, NONCE))):
        (path / name).write_text(text)
        (path / name).chmod(0o700)
    return path


@pytest.mark.proves("restore-drill-module")
def test_what_was_restored_is_served_read_and_ended(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "http://0.0.0.0:2379")
    found = read(directory, "/a", NONCE, 20)
    assert (found["canary"], found["keys"], found["revision"], found["etcd"]) == (NONCE, 3, 12, "3.6.14")
    assert found["size"] == 4
    assert left(directory) == []
    assert clear(directory)
    assert not directory.exists()
    assert not clear(directory)


@pytest.mark.proves("restore-drill-module")
def test_a_snapshot_that_etcdutl_refuses_fails_with_its_words(directory: Path) -> None:
    (directory / "snapshot").write_text("bad")
    with pytest.raises(Failed, match=r"does not restore the snapshot: expected sha256 \[1\], got \[2\]$"):
        read(directory, "/a", NONCE, 20)


@pytest.mark.proves("restore-drill-module")
def test_an_etcd_that_ends_is_told_with_its_last_words(directory: Path) -> None:
    (directory / "etcd").write_text("#!/bin/sh\necho panic: freepages >&2\nexit 2\n")
    with pytest.raises(Failed, match=r"does not serve what was restored.*panic: freepages"):
        read(directory, "/a", NONCE, 20)


@pytest.mark.proves("restore-drill-module")
@pytest.mark.parametrize(
    ("told", "nonce", "said"),
    [
        ({"keys": 2}, NONCE, "2 keys at revision 12, and the snapshot holds 3 at 12"),
        ({"revision": 11}, "", "3 keys at revision 11"),
        ({"value": b""}, NONCE, "the canary says nothing"),
        ({}, "f" * 32, f"the canary says {NONCE}, and {'f' * 32} was written"),
    ],
)
def test_what_is_not_what_was_kept_fails(told: dict[str, Any], nonce: str, said: str) -> None:
    with pytest.raises(Failed, match=said):
        judged(HELD, TOLD | told, nonce)


@pytest.mark.proves("restore-drill-module")
def test_a_snapshot_without_a_canary_will_do_where_none_was_written() -> None:
    assert judged(HELD, TOLD | {"value": b""}, "") == ""
    assert judged(HELD, TOLD, "") == NONCE


@pytest.mark.proves("restore-drill-module")
def test_what_a_killed_drill_has_left_is_ended_and_removed_and_nobody_elses(directory: Path, tmp_path: Path) -> None:
    code = "import sys, time; time.sleep(60)"
    ours = subprocess.Popen([sys.executable, "-c", code, f"--data-dir={directory}/data"])
    other = subprocess.Popen([sys.executable, "-c", code, f"--data-dir={tmp_path}/data"])
    try:
        deadline = time.monotonic() + 10
        while left(directory) != [ours.pid] and time.monotonic() < deadline:
            time.sleep(0.05)
        # A child that ended stays in the table until its parent asks; a drill's parent is gone.
        assert left(directory) == [ours.pid]
        assert clear(directory)
        assert ours.wait(10) < 0
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()
    assert not directory.exists()


@pytest.mark.proves("restore-drill-module")
def test_a_disk_without_room_is_refused_before_anything_is_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10 << 30, 9 << 30, 1 << 30))
    with pytest.raises(Failed, match="1024 MiB free, and a drill takes up to 1112 MiB; nothing was brought"):
        ready(tmp_path / "drill", 200 << 20)
    assert not (tmp_path / "drill").exists()
    ready(tmp_path / "drill", 1000)
    assert (tmp_path / "drill").stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path / "drill") == []
