#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Takes one server through one step of a restore; a step that was finished is not done again."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rke2_restore
short_description: One step of a restore of etcd on one server
description:
  - C(begin) notes the restore on the server, so that it can be continued by any control machine. What O(note) says goes
    before what an earlier C(begin) has noted, until C(reset) has succeeded here.
  - C(aside) ends RKE2 with all its pods on this server and puts the data of etcd aside, by a rename; with O(foreign)
    its certificates too, which RKE2 would not replace by those of the cluster that it joins.
  - C(reset) makes this server the only member of etcd, with the data of the snapshot, by RKE2's own cluster reset. With
    etcd's tool the revision is raised first, so that whoever watches the cluster notices that time went back.
  - C(start) starts RKE2 and returns when systemd says that it is up.
  - C(end) removes the note.
  - What C(aside) and C(reset) put aside stays on the disk, in C(server/db), until somebody removes it.
version_added: 0.1.0
author: The metalhub maintainers
options:
  step:
    description: The step.
    type: str
    choices: [begin, aside, reset, start, end]
    required: true
  note:
    description: What C(begin) notes beside the time, the snapshot's name above all.
    type: dict
    default: {}
  foreign:
    description: Whether this server has been one of another cluster than the snapshot's, for C(aside).
    type: bool
    default: false
  snapshot:
    description: Path of the snapshot on this server, for C(reset).
    type: str
    default: ''
  sha256:
    description: What the snapshot must have, for C(reset).
    type: str
    default: ''
  etcdutl:
    description: Path of etcd's tool, for C(reset). Without it the revision is not raised.
    type: str
    default: ''
  arguments:
    description: More arguments of C(rke2 server --cluster-reset).
    type: list
    elements: str
    default: []
  data_dir:
    description: RKE2's data directory.
    type: path
    default: /var/lib/rancher/rke2
  mark:
    description: File of the note.
    type: path
    default: /var/lib/metalhub/restore.json
  seconds:
    description: How long C(reset) and C(start) may take.
    type: int
    default: 600
"""

EXAMPLES = r"""
- name: Put the data of etcd aside
  metalhub.platform.rke2_restore:
    step: aside
"""

RETURN = r"""
aside:
  description: Where the data was put that was there before; empty where there was none.
  returned: always
  type: str
"""

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# Relative, so that the same line works in the collection, in the module that Ansible packs, and in the unit tests.
from ..module_utils import etcd_snapshot

CONFIG = Path("/etc/rancher/rke2")
BUMP = 1_000_000_000  # more revisions than any cluster makes between a snapshot and its restore
SAID = "Managed etcd cluster membership has been reset"


class Failed(Exception):
    """A step that did not succeed, with what was said."""


def program(name: str) -> str:
    """Return where a program of RKE2's lies, which need not be in the path of a login by SSH."""
    for place in ("/usr/local/bin", "/opt/rke2/bin", "/usr/bin"):
        if os.access(f"{place}/{name}", os.X_OK):
            return f"{place}/{name}"
    return shutil.which(name) or name


def run(*command: str, seconds: int, environment: dict[str, str] | None = None) -> str:
    """Run a program and return all it said; Failed shows its last words."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
            env=os.environ | (environment or {}),
        )
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{command[0]} did not end within {seconds} s") from late
    except OSError as error:
        raise Failed(f"{command[0]}: {error}") from error
    if done.returncode:
        raise Failed(f"{' '.join(command[:3])} ended with {done.returncode}: {' '.join(done.stdout.split())[-900:]}")
    return done.stdout


class Restore:
    """The steps on this server."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked, self.mark = asked, Path(asked["mark"])
        self.db = Path(asked["data_dir"]) / "server/db"
        self.note: dict[str, Any] = json.loads(self.mark.read_text()) if self.mark.exists() else {}

    def write(self, **more: object) -> None:
        """Note something, atomically."""
        self.note |= more
        self.mark.parent.mkdir(parents=True, exist_ok=True)
        part = self.mark.with_name(f".{self.mark.name}.new")
        part.write_text(json.dumps(self.note) + "\n")
        part.rename(self.mark)

    def begin(self) -> bool:
        """Note the restore, in the place of another one while this server does not have that one's data."""
        if self.note.get("reset") or (self.note and self.note | self.asked["note"] == self.note):
            return False
        if self.note:  # or a reset that was killed before its note would count for this one
            (self.db / "reset-flag").unlink(missing_ok=True)
        self.write(**{"started": int(time.time())} | self.note | self.asked["note"])
        return True

    def aside(self) -> bool:
        """End RKE2 here and rename etcd's data; never again once it was done, for then the data is the new."""
        if self.note.get("aside") is not None:
            return False
        run(program("rke2-killall.sh"), seconds=120)
        data, kept = self.db / "etcd", self.db / f"etcd-before-restore-{self.note['started']}"
        if data.exists() and not kept.exists():
            data.rename(kept)
        tls = self.db.parent / "tls"
        if self.asked["foreign"] and tls.exists():
            tls.rename(self.db / f"tls-before-restore-{self.note['started']}")
        self.write(aside=str(kept) if kept.exists() else "")
        return True

    def raised(self, snapshot: Path) -> Path:
        """Return the snapshot with its revision raised and all before marked as compacted, as a snapshot again.

        Whoever watches would else wait for a revision that comes again only in hours, and act on what it remembers.
        """
        work = self.db / "restore"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700, parents=True)
        words = ["--data-dir", f"{work}/raised", f"--bump-revision={BUMP}", "--mark-compacted"]
        run(self.asked["etcdutl"], "snapshot", "restore", str(snapshot), *words, seconds=self.asked["seconds"])
        target = work / "snapshot"
        (work / "raised/member/snap/db").rename(target)
        shutil.rmtree(work / "raised")
        etcd_snapshot.seal(target)
        return target

    def reset(self) -> bool:
        """Give this server the snapshot's data."""
        if self.note.get("reset"):
            return False
        flag = self.db / "reset-flag"
        # Whoever was killed between the reset and its note is not to do it again.
        if not (flag.exists() and flag.stat().st_mtime >= self.note["started"]):
            flag.unlink(missing_ok=True)
            run(program("rke2-killall.sh"), seconds=120)
            snapshot = Path(self.asked["snapshot"])
            try:
                found = etcd_snapshot.whole(snapshot)
            except (OSError, etcd_snapshot.Broken) as broken:
                raise Failed(f"{snapshot}: {broken}") from broken
            if self.asked["sha256"] not in ("", found):
                raise Failed(f"{snapshot} has the SHA-256 {found}, not {self.asked['sha256']} as before")
            path = self.raised(snapshot) if self.asked["etcdutl"] else snapshot
            self.cluster_reset(path)
        shutil.rmtree(self.db / "restore", ignore_errors=True)
        self.write(reset=True)
        return True

    def cluster_reset(self, snapshot: Path) -> None:
        """Run RKE2's own, with this server's configuration but for the address that it would join."""
        with tempfile.TemporaryDirectory(prefix=".rke2-restore-", dir="/run") as scratch:
            config = Path(scratch) / "config.yaml"
            shutil.copy(CONFIG / "config.yaml", config)
            parts = Path(f"{config}.d")
            parts.mkdir()
            for part in (CONFIG / "config.yaml.d").glob("*.yaml"):
                if part.name != "90-join.yaml":
                    shutil.copy(part, parts)
            words = ["server", "--cluster-reset", f"--cluster-reset-restore-path={snapshot}", *self.asked["arguments"]]
            said = run(
                program("rke2"),
                *words,
                seconds=self.asked["seconds"],
                environment={"RKE2_CONFIG_FILE": str(config)},
            )
        if SAID not in said:
            raise Failed(f"rke2 server --cluster-reset ended without saying so: {' '.join(said.split())[-900:]}")

    def start(self) -> bool:
        """Start RKE2 where it does not run, and wait until it is up; one that ends meanwhile systemd starts again."""
        changed, deadline = False, time.monotonic() + self.asked["seconds"]
        while run("systemctl", "show", "-P", "ActiveState", "rke2-server", seconds=20).strip() != "active":
            if not changed:
                run("systemctl", "start", "--no-block", "rke2-server", seconds=20)
                changed = True
            if time.monotonic() > deadline:
                raise Failed("rke2-server is not up; see why: journalctl -u rke2-server -e")
            time.sleep(1)
        return changed

    def end(self) -> bool:
        """Remove the note."""
        there = self.mark.exists()
        self.mark.unlink(missing_ok=True)
        return there


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "required": True, "choices": ["begin", "aside", "reset", "start", "end"]},
            "note": {"type": "dict", "default": {}},
            "foreign": {"type": "bool", "default": False},
            "snapshot": {"type": "str", "default": ""},
            "sha256": {"type": "str", "default": ""},
            "etcdutl": {"type": "str", "default": ""},
            "arguments": {"type": "list", "elements": "str", "default": []},
            "data_dir": {"type": "path", "default": "/var/lib/rancher/rke2"},
            "mark": {"type": "path", "default": "/var/lib/metalhub/restore.json"},
            "seconds": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    asked = module.params
    if module.check_mode:
        module.exit_json(changed=True, aside="")
    # A step that outlives its connection is waited for, never done beside itself.
    lock = Path(asked["mark"]).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        deadline = time.monotonic() + asked["seconds"]
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    module.fail_json(msg=f"{lock} is held by an earlier run; see whose: fuser -v {lock}")
                time.sleep(1)
        restore = Restore(asked)
        try:
            changed = getattr(restore, asked["step"])()
        except Failed as failed:
            module.fail_json(msg=str(failed))
    module.exit_json(changed=changed, aside=str(restore.note.get("aside") or ""))


if __name__ == "__main__":
    main()
