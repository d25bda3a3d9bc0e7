"""Secrets at rest: the key made at a cluster's first start, and `rke2 secrets-encrypt status|rotate-keys`."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

from config import Fatal, log
from paths import ENCRYPTION, Paths
from supervisor import PORT, Client, Refused
from system import wait_for, write

if TYPE_CHECKING:
    from server import Server

FIRST = "aescbckey"
ANNOTATION = "rke2.io/encryption-config-hash"


class Encryption:
    """The configuration of one server's API server; it lies beside the cluster's other keys and travels with them."""

    def __init__(self, server: Server) -> None:
        self.server, self.path = server, server.paths.tls / ENCRYPTION
        self.active = False

    def keys(self) -> list[dict[str, str]]:
        """The keys, that which encrypts first; none in a cluster that began without."""
        if not self.path.exists():
            return []
        providers = json.loads(self.path.read_text())["resources"][0]["providers"]
        return providers[0]["aescbc"]["keys"]  # type: ignore[no-any-return]

    def write(self, keys: list[dict[str, str]]) -> str:
        """Write the configuration and return its hash."""
        resource = {"resources": ["secrets"], "providers": [{"aescbc": {"keys": keys}}, {"identity": {}}]}
        kind = {"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1", "resources": [resource]}
        write(self.path, json.dumps(kind))
        return self.hash()

    def hash(self) -> str:
        """The hash by which servers compare their configurations, which is also the one in the API server's metrics."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def begin(self) -> None:
        """Make the first key of a new cluster."""
        self.write([key(FIRST)])

    def follow(self) -> None:
        """At a member's start: take what the cluster has, for another server may have rotated the key."""
        found = self.server.kept()
        if ENCRYPTION in found:
            write(self.path, found[ENCRYPTION])

    def tell(self) -> None:
        """Note on the node which configuration this server has."""
        if self.keys():
            stage = (
                "reencrypt_active"
                if self.active
                else "start"
                if self.keys()[0]["name"] == FIRST
                else "reencrypt_finished"
            )
            note = f"{ANNOTATION}={stage}-{self.hash()}"
            self.server.kubectl("annotate", "--overwrite", "node", self.server.config.node_name, note)

    def status(self, _: dict[str, Any]) -> dict[str, Any]:
        """What the status command shows."""
        if not self.keys():
            return {"enable": False}
        chosen = ("get", "nodes", "-l", "node-role.kubernetes.io/control-plane=true", "-o", "json")
        nodes = json.loads(self.server.kubectl(*chosen).stdout)["items"]
        told = {node["metadata"]["name"]: node["metadata"]["annotations"].get(ANNOTATION, "-") for node in nodes}
        stage = told[self.server.config.node_name].partition("-")[0]
        match = len({note.partition("-")[2] for note in told.values()}) == 1
        return {"enable": True, "stage": stage, "hashmatch": match, "activekey": f"AES-CBC {self.keys()[0]['name']}"}

    def answer(self, request: dict[str, Any]) -> bytes:
        """Begin a rotation; what it does takes longer than anybody waits for an answer."""
        status = self.status({})
        if request.get("stage") != "rotate-keys" or not status["enable"]:
            raise Refused(400, "secrets encryption is disabled or stage is unknown")
        if self.active or not status["hashmatch"]:
            raise Refused(400, "incorrect stage or hash does not match between servers")
        self.active = True
        self.tell()
        threading.Thread(target=self.rotate, daemon=True).start()
        return b""

    def rotate(self) -> None:
        """Encrypt every Secret with a new key and forget the old one."""
        server, made = self.server, key(f"{FIRST}-{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}")
        try:
            digest = self.write([made, *self.keys()])
            metrics = ("get", "--raw=/metrics")
            wait_for("the API server to take the key", lambda: digest in server.kubectl(*metrics).stdout, 180, 3)

            def rewritten() -> bool:
                every = server.kubectl("get", "secrets", "-A", "-o", "json").stdout
                return server.kubectl("replace", "-f", "-", stdin=every, check=False).returncode == 0

            wait_for("all Secrets to be rewritten", rewritten, 300, 2)
            self.write([made])
            server.keep()
        except Fatal as error:
            log("error", f"Failed to rotate secrets-encryption keys: {error}")
        self.active = False
        self.tell()


def key(name: str) -> dict[str, str]:
    """A new key."""
    return {"name": name, "secret": base64.b64encode(secrets.token_bytes(32)).decode()}


def command(words: list[str], paths: Paths) -> None:
    """`rke2 secrets-encrypt status|rotate-keys`: ask this node's running server."""
    client = Client(f"https://127.0.0.1:{PORT}", (paths.server / "token").read_text().strip(), "server")
    if words[:1] == ["rotate-keys"]:
        client.ask("PUT", "/v1-rke2/encrypt/config", {"stage": "rotate-keys"})
        print("keys rotated, reencryption started")
        return
    status = client.json("GET", "/v1-rke2/encrypt/status")
    if "json" in words:
        print(json.dumps(status))
        return
    print(f"Encryption Status: {'Enabled' if status['enable'] else 'Disabled'}")
    if status["enable"]:
        hashes = "All hashes match" if status["hashmatch"] else "hash does not match between servers"
        print(f"Current Rotation Stage: {status['stage']}\nServer Encryption Hashes: {hashes}")
        print(f"\nActive  Key Type  Name\n------  --------  ----\n *      {status['activekey']}")
