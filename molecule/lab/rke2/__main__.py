"""lab RKE2: upstream's command line, files and failure modes on real Kubernetes components (docs/lab.md)."""

from __future__ import annotations

import os
import signal
import socket
import sys

import certificates
import encryption
import snapshots
from agent import Agent
from config import Config, Fatal, load, log
from server import Server
from system import Node, release


def default_ip() -> str:
    """The source address of the default route, without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])


def flags(words: list[str]) -> dict[str, object]:
    """`--key=value`, `--key value` and `--key` as a dictionary."""
    found: dict[str, object] = {}
    rest = iter(words)
    pending = ""
    for word in rest:
        if word.startswith("--"):
            key, sep, value = word[2:].partition("=")
            found[key] = value if sep else True
            pending = "" if sep else key
        elif pending:
            found[pending] = word
            pending = ""
        else:
            raise Fatal(f"unexpected argument {word!r}")
    return found


def main() -> int:
    """Run one command; returns the exit status."""
    words = sys.argv[1:]
    if words[:1] in (["--version"], ["-v"], ["version"]):
        stamp = release()
        print(f"rke2 version {stamp['version']} ({stamp['commit']})\ngo version {stamp['go']}")
        return 0
    if words[:2] == ["certificate", "rotate"]:
        certificates.rotate(load("server", flags(words[2:]), "", "").paths)
        return 0
    if words[:1] == ["secrets-encrypt"]:
        encryption.command(words[1:], load("server", {}, "", "").paths)
        return 0
    if words[:1] not in (["server"], ["agent"], ["etcd-snapshot"]):
        usage = "usage: rke2 server|agent|etcd-snapshot|certificate rotate|secrets-encrypt|--version [--key=value ...]"
        print(usage, file=sys.stderr)
        return 2

    def configured(role: str, given: dict[str, object]) -> Config:
        return load(role, given, socket.gethostname().split(".")[0], default_ip())

    try:
        if words[0] == "etcd-snapshot":
            snapshots.command(words[1:], lambda: configured("server", {}))
            return 0
        config = configured(words[0], flags(words[1:]))
        node: Server | Agent = Server(config) if words[0] == "server" else Agent(config)

        def end(number: int, _: object) -> None:
            log("info", f"Received signal {signal.Signals(number).name}, shutting down")
            Node.stop(node)
            os._exit(0)

        if isinstance(node, Server) and config.get("cluster-reset"):
            snapshots.reset(node)
            return 0
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        log("info", f"Starting rke2 {words[0]} {node.release['version']}")
        node.main()
    except Fatal as fatal:
        log("fatal", str(fatal))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
