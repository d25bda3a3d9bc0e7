#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Restores a snapshot of etcd for a moment, reads it back, and leaves nothing of it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_drill
short_description: A snapshot of etcd can be restored
description:
  - Restores a snapshot by etcd's own C(etcdutl), which refuses one with another byte, into a directory that only root
    reads, serves it by etcd on sockets in that directory, and asks for what it should hold.
  - No cluster is made of it. A copy of a cluster would announce the site's addresses and write to users' homes beside
    the real one.
  - C(ready) and C(absent) end an etcd that a drill which was cut off has left, and remove the directory.
version_added: 0.1.0
author: The metalhub maintainers
options:
  state:
    description: C(ready) makes the directory, C(read) restores C(snapshot) in it and reads, C(absent) removes it.
    type: str
    choices: [ready, read, absent]
    required: true
  directory:
    description: Where all of it happens. For C(read) it has C(snapshot), C(etcd) and C(etcdutl).
    type: path
    default: /var/lib/metalhub/drill
  size:
    description: Bytes of the snapshot, for which C(ready) looks for room.
    type: int
    default: 0
  key:
    description: Key of the canary.
    type: str
    default: /registry/configmaps/kube-system/metalhub-canary
  nonce:
    description: What the canary must hold, 32 hexadecimal digits; any canary, or none, will do when empty.
    type: str
    default: ''
  seconds:
    description: How long restoring and starting may each take.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Restore and read
  metalhub.platform.etcd_drill:
    state: read
  delegate_to: drill.example.org
"""

RETURN = r"""
found:
  description: What was read. revision, keys (live ones), size, canary (its nonce), etcd (its version), seconds.
  returned: when O(state=read)
  type: dict
"""

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# Relative, so that the same line works in the collection, in the module that Ansible packs, and in the unit tests.
from ..module_utils import etcd_snapshot

# Etcd wants a port in every address; with this kind of one it is part of the name of a file.
SOCKET, PEER = "client:0", "peer:0"
# The snapshot, what is restored from it, etcd's log of what comes after, and its programs.
TIMES, MORE = 3, 512 << 20
QUOTA = 8 << 30
NONCE = re.compile(rb"[0-9a-f]{32}")


class Failed(Exception):
    """What is wrong with the snapshot, or keeps it from being looked at."""


class Connection(http.client.HTTPConnection):
    """HTTP by a socket in the file system, so that no port is taken and nobody else can ask."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(str(self.path))


def ask(path: Path, question: str, **body: Any) -> dict[str, Any]:
    """Return what etcd answers; raises OSError or ValueError without an answer."""
    connection = Connection(path)
    try:
        connection.request("POST", f"/v3/{question}", json.dumps(body))
        answer = connection.getresponse()
        content = answer.read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise ValueError(content.decode(errors="replace")[:200])
    document: dict[str, Any] = json.loads(content)
    return document


def left(directory: Path, processes: Path = Path("/proc")) -> list[int]:
    """Return the processes that serve data of a drill."""
    mark, found = f"--data-dir={directory}/data".encode(), []
    for path in processes.glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if mark in words:
            found.append(int(path.parent.name))
    return found


def clear(directory: Path) -> bool:
    """End what an interrupted drill has left and remove its files; returns whether there was anything."""
    there = directory.exists()
    for process in left(directory):
        there = True
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if there:
        shutil.rmtree(directory, ignore_errors=True)
        # A process that ends may still have written.
        for _ in range(50):
            if not left(directory) and not directory.exists():
                break
            time.sleep(0.1)
            shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        raise Failed(f"{directory} cannot be removed; see who holds it: fuser -v {directory}")
    return there


def ready(directory: Path, size: int) -> None:
    """Make the directory; Failed where its file system is short of room, for a worker's full disk drives pods away."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    free, wanted = shutil.disk_usage(directory.parent).free, size * TIMES + MORE
    if free < wanted:
        raise Failed(
            f"{directory.parent} has {free >> 20} MiB free, and a drill takes up to {wanted >> 20} MiB; nothing was"
            " brought there. Make room, or name another host in the group drill"
        )
    directory.mkdir(mode=0o700)


def restore(directory: Path, seconds: int) -> None:
    """Restore the snapshot beside itself; Failed with etcdutl's last words."""
    words = [f"{directory}/etcdutl", "snapshot", "restore", f"{directory}/snapshot", f"--data-dir={directory}/data"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=seconds, check=False, cwd=directory, env={}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"etcdutl: {error}") from error
    if done.returncode:
        said = f"{done.stdout} {done.stderr}".rpartition("Error: ")[2]
        raise Failed(f"etcdutl does not restore the snapshot: {' '.join(said.split())[-500:]}")


def served(directory: Path, key: str, seconds: int) -> dict[str, Any]:
    """Serve what was restored, and return what etcd says of it and the canary's value; Failed where it does not."""
    words = [
        f"{directory}/etcd",
        f"--data-dir={directory}/data",
        f"--listen-client-urls=unix://{SOCKET}",
        f"--advertise-client-urls=unix://{SOCKET}",
        f"--listen-peer-urls=unix://{PEER}",
        f"--quota-backend-bytes={QUOTA}",
        # It lives for seconds: what would survive a loss of power is of no use.
        "--unsafe-no-fsync",
    ]
    log = directory / "log"
    with log.open("wb") as sink:
        # Sockets are named relative to where it runs. Its environment is none: it would read settings from there.
        child = subprocess.Popen(words, cwd=directory, env={}, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        deadline, why = time.monotonic() + seconds, ""
        while child.poll() is None and time.monotonic() < deadline:
            try:
                status = ask(directory / SOCKET, "maintenance/status")
                if int(status.get("leader") or 0):
                    every = base64.b64encode(b"\0").decode()
                    count = ask(directory / SOCKET, "kv/range", key=every, range_end=every, count_only=True)
                    canary = ask(directory / SOCKET, "kv/range", key=base64.b64encode(key.encode()).decode())
                    values = canary.get("kvs", [])
                    return {
                        "revision": int(status["header"]["revision"]),
                        "etcd": status["version"],
                        "keys": int(count.get("count", 0)),
                        "value": base64.b64decode(values[0]["value"]) if values else b"",
                    }
            except (OSError, ValueError) as error:
                why = str(error)
            time.sleep(0.1)
        said = log.read_text(errors="replace").splitlines()[-3:]
        raise Failed(
            f"etcd does not serve what was restored: {why or 'it ended'}; its last words: {' '.join(said)[-600:]}"
        )
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def judged(held: etcd_snapshot.Contents, told: dict[str, Any], nonce: str) -> str:
    """Return the nonce of the canary that etcd told; Failed unless it is the one, and all keys are there.

    held: what the snapshot holds, read without etcd.
    """
    if (told["keys"], told["revision"]) != (held.keys, held.revision):
        raise Failed(
            f"etcd serves {told['keys']} keys at revision {told['revision']}, and the snapshot holds {held.keys} at"
            f" {held.revision}"
        )
    found = NONCE.search(told["value"])
    canary = found.group().decode() if found else ""
    if nonce and canary != nonce:
        raise Failed(f"the canary says {canary or 'nothing'}, and {nonce} was written before the snapshot was taken")
    return canary


def read(directory: Path, key: str, nonce: str, seconds: int) -> dict[str, Any]:
    """Restore the snapshot, serve it, and return what was read; Failed where anything of it is not as it should be."""
    began, snapshot = time.monotonic(), directory / "snapshot"
    restore(directory, seconds)
    told = served(directory, key, seconds)
    took = time.monotonic() - began
    try:
        held = etcd_snapshot.contents(snapshot)
    except etcd_snapshot.Broken as broken:
        raise Failed(f"the snapshot cannot be read: {broken}") from broken
    return {
        "canary": judged(held, told, nonce),
        "revision": told["revision"],
        "keys": told["keys"],
        "etcd": told["etcd"],
        "size": snapshot.stat().st_size,
        "seconds": round(took, 1),
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["ready", "read", "absent"]},
            "directory": {"type": "path", "default": "/var/lib/metalhub/drill"},
            "size": {"type": "int", "default": 0},
            "key": {"type": "str", "default": "/registry/configmaps/kube-system/metalhub-canary", "no_log": False},
            "nonce": {"type": "str", "default": ""},
            "seconds": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    asked, directory = module.params, Path(module.params["directory"])
    if module.check_mode:
        module.exit_json(changed=asked["state"] != "read", found={})
    try:
        if asked["state"] == "read":
            module.exit_json(changed=False, found=read(directory, asked["key"], asked["nonce"], asked["seconds"]))
        changed = clear(directory)
        if asked["state"] == "ready":
            ready(directory, asked["size"])
            changed = True
        else:
            # A host that is none of the cluster's has nothing else there.
            with contextlib.suppress(OSError):
                directory.parent.rmdir()
    except Failed as failed:
        module.fail_json(msg=str(failed))
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
