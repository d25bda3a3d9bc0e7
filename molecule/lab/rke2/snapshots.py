"""Snapshots of etcd: taken, listed, pruned and deleted through the supervisor, and a cluster reset from one."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, Fatal, log
from paths import Paths
from supervisor import PORT, Client, Refused
from system import run, wait_for, write

if TYPE_CHECKING:
    from server import Server

TEMPORARY = "http://127.0.0.1:2399"
DONE = "Managed etcd cluster membership has been reset, restart without --cluster-reset flag now."


def due(line: str, now: time.struct_time) -> bool:
    """Whether a line of cron means this minute."""
    found = (now.tm_min, now.tm_hour, now.tm_mday, now.tm_mon, (now.tm_wday + 1) % 7)

    def meant(value: int, word: str) -> bool:
        span, _, step = word.partition("/")
        low, _, high = span.partition("-")
        first, last = (0, 59) if span == "*" else (int(low), int(high or low))
        return first <= value <= last and (value - first) % int(step or 1) == 0

    words = [word.split(",") for word in line.split()]
    return all(any(meant(value, one) for one in field) for value, field in zip(found, words, strict=True))


class Snapshots:
    """What one server keeps in its directory."""

    def __init__(self, server: Server) -> None:
        config = server.config
        self.server, self.config, self.node = server, config, config.node_name
        self.directory = Path(config.get("etcd-snapshot-dir") or server.paths.db / "snapshots")
        self.minute = 0

    def answer(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """Do what the command line asked for; returns the snapshots concerned."""
        if not self.server.ready:
            raise Refused(503, "runtime core not ready")
        if request["operation"] == "save":
            return [self.save(request["name"] or "on-demand")]
        if request["operation"] == "prune":
            return self.prune(request["name"] or "on-demand", request["retention"])
        if request["operation"] == "delete":
            return self.delete([item for item in self.all() if item["spec"]["snapshotName"] in request["names"]])
        return self.all()

    def all(self) -> list[dict[str, Any]]:
        """Every snapshot on this node, as upstream's resource ETCDSnapshotFile tells of it, the oldest first."""
        found = []
        for path in self.directory.glob("[!.]*"):
            stat = path.stat()
            made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(stat.st_mtime))
            spec = {"snapshotName": path.name, "nodeName": self.node, "location": f"file://{path}"}
            status = {"readyToUse": True, "creationTime": made, "size": str(stat.st_size)}
            found.append((stat.st_mtime, {"kind": "ETCDSnapshotFile", "spec": spec, "status": status}))
        return [item for _, item in sorted(found, key=lambda pair: pair[0])]

    def save(self, name: str) -> dict[str, Any]:
        """Take one; half a file is never seen under its name."""
        path = self.directory / f"{name}-{self.node}-{int(time.time())}"
        part = path.with_name(f".{path.name}.part")
        self.server.etcdctl(["https://127.0.0.1:2379"], "snapshot", "save", part)
        part.rename(path)
        log("info", f"Snapshot {path.name} saved.")
        return next(item for item in self.all() if item["spec"]["snapshotName"] == path.name)

    def prune(self, name: str, retention: int) -> list[dict[str, Any]]:
        """Delete the oldest of one name, but for so many."""
        ours = [item for item in self.all() if item["spec"]["snapshotName"].startswith(f"{name}-{self.node}-")]
        return self.delete(ours[: max(0, len(ours) - retention)])

    def delete(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Delete files; returns what was deleted."""
        for item in items:
            (self.directory / item["spec"]["snapshotName"]).unlink()
        return items

    def maintain(self) -> None:
        """Take and prune the scheduled ones, once in a minute that is meant."""
        minute = int(time.time() // 60)
        if self.minute and minute != self.minute and not self.config.get("etcd-disable-snapshots"):
            # A minute may have passed unseen while something else was done.
            meant = range(max(self.minute + 1, minute - 5), minute + 1)
            line = str(self.config.get("etcd-snapshot-schedule-cron"))
            if any(due(line, time.localtime(one * 60)) for one in meant):
                name = str(self.config.get("etcd-snapshot-name") or "etcd-snapshot")
                self.save(name)
                self.prune(name, int(self.config.get("etcd-snapshot-retention")))
        self.minute = minute

    def bootstrap(self) -> None:
        """Keep in etcd what a restore on a new machine needs, under the token's fingerprint; upstream encrypts it."""
        if self.server.kept() != self.server.pki():
            self.server.keep()


def reset(server: Server) -> None:
    """Make this server the only member, with the data of a snapshot where one is named; the next start is usual."""
    config, paths = server.config, server.paths
    flag, data = paths.db / "reset-flag", paths.db / "etcd"
    if config.get("server"):
        raise Fatal("cannot perform cluster-reset while server URL is set - remove server from configuration first")
    if flag.exists():
        raise Fatal(
            "Managed etcd cluster membership was previously reset, please remove the cluster-reset flag and start rke2 "
            f"normally. If you need to perform another cluster reset, you must first manually delete the file at {flag}"
        )
    server.unpack()
    if asked := config.get("cluster-reset-restore-path"):
        path = Path(asked)
        if not path.is_file():
            raise Fatal(f"etcd: snapshot path does not exist: {path}")
        peer = f"https://{config.node_ip}:2380"
        part = paths.db / "etcd-restored"
        shutil.rmtree(part, ignore_errors=True)
        paths.db.mkdir(parents=True, exist_ok=True)
        words: list[object] = ["--name", config.node_name, "--initial-cluster", f"{config.node_name}={peer}"]
        words += ["--initial-advertise-peer-urls", peer, "--data-dir", part]
        run(server.home / "etcdutl", "snapshot", "restore", path, *words)
        end_pods()
        if data.exists():
            data.rename(paths.db / f"etcd-old-{int(time.time())}")
        part.rename(data)
    elif not data.exists():
        raise Fatal("etcd: no data to reset")
    end_pods()
    command: list[object] = [
        server.home / "etcd",
        "--name",
        config.node_name,
        "--data-dir",
        data,
        "--force-new-cluster",
    ]
    for kind in ("listen-client", "advertise-client", "listen-peer"):
        command += [f"--{kind}-urls", TEMPORARY if "client" in kind else "http://127.0.0.1:2398"]
    log("info", "Starting temporary etcd to reconcile with datastore")
    with (paths.db / "reset.log").open("wb") as sink:
        child = subprocess.Popen([str(word) for word in command], stdout=sink, stderr=sink)
    try:
        ask = (server.home / "etcdctl", f"--endpoints={TEMPORARY}")
        wait_for("etcd", lambda: run(*ask, "endpoint", "health", check=False).returncode == 0, 60)
        found = json.loads(run(*ask, "get", server.bootstrap_key(), "-w", "json").stdout).get("kvs", [])
        if not found:
            raise Fatal("bootstrap data already found and encrypted with different token")
        pki = run(*ask, "get", "--print-value-only", server.bootstrap_key()).stdout
        for name, content in json.loads(pki).items():
            write(paths.tls / name, content)
    finally:
        child.terminate()
        child.wait(30)
    flag.touch()
    peers = f"Backup and delete {paths.db} on each peer etcd server and rejoin the nodes"
    log("info", f"{DONE} {peers}")


def end_pods() -> None:
    """End the control plane that a stop of the service left running; nobody starts it again without a kubelet."""
    names = "etcd|kube-apiserver|kube-controller|kube-scheduler"
    run("pkill", "-KILL", "-x", names, check=False)
    wait_for("the control plane to end", lambda: run("pgrep", "-x", names, check=False).returncode != 0, 30, 0.2)


def command(words: list[str], load: Callable[[], Config]) -> None:
    """`rke2 etcd-snapshot`: ask this node's running server."""
    parser = argparse.ArgumentParser("rke2 etcd-snapshot")
    parser.add_argument("operation", nargs="?", default="save", choices=["save", "ls", "list", "prune", "delete"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--name", default="")
    parser.add_argument("-o", "--output", default="")
    parser.add_argument("--snapshot-retention", type=int, default=5)
    asked = parser.parse_args(words)
    paths: Paths = load().paths
    token = paths.server / "token"
    if os.geteuid() or not token.exists():
        raise Fatal(f"failed to get etcd snapshot client: open {token}: no such file or directory")
    client = Client(f"https://127.0.0.1:{PORT}", token.read_text().strip(), "server")
    request = {"operation": asked.operation, "name": asked.name, "names": asked.names}
    items = client.json("POST", "/db/snapshot", request | {"retention": asked.snapshot_retention})
    if asked.operation in ("ls", "list"):
        if asked.output == "json":
            print(json.dumps({"metadata": {}, "items": items}))
            return
        print("Name Location Size Created")
        for one in items:
            print(
                one["spec"]["snapshotName"],
                one["spec"]["location"],
                one["status"]["size"],
                one["status"]["creationTime"],
            )
        return
    for one in items:
        log("info", f"Snapshot {one['spec']['snapshotName']} {'saved' if asked.operation == 'save' else 'deleted'}.")
