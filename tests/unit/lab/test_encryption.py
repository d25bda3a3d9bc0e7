"""Lab RKE2's encryption of Secrets: its configuration, what a status says, and when a rotation is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import encryption
from encryption import Encryption
from paths import ENCRYPTION, Paths
from supervisor import Refused

pytestmark = pytest.mark.proves("lab-encryption")


class Server:
    """A server whose API has two nodes with annotations."""

    def __init__(self, root: Path) -> None:
        """Without any file."""
        self.paths, self.config = Paths(root), SimpleNamespace(node_name="one")
        self.notes = {"one": "", "two": ""}
        self.stored: dict[str, str] = {}

    def kubectl(self, *words: str) -> Any:
        """Annotate a node, or list all."""
        if words[0] == "annotate":
            self.notes[words[3]] = words[4].split("=", 1)[1]
            return None
        key = encryption.ANNOTATION
        items = [{"metadata": {"name": name, "annotations": {key: note}}} for name, note in self.notes.items()]
        return SimpleNamespace(stdout=json.dumps({"items": items}))

    def kept(self) -> dict[str, str]:
        """What etcd has."""
        return self.stored


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A server of a new cluster."""
    return Server(tmp_path)


def test_a_new_cluster_encrypts_and_one_that_began_without_does_not(server: Server) -> None:
    made = Encryption(server)  # type: ignore[arg-type]
    assert made.status({}) == {"enable": False}
    with pytest.raises(Refused):
        made.answer({"stage": "rotate-keys"})
    made.begin()
    path = server.paths.server / "cred/encryption-config.json"
    document = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    (resource,) = document["resources"]
    assert [list(provider) for provider in resource["providers"]] == [["aescbc"], ["identity"]]
    made.tell()
    server.notes["two"] = server.notes["one"]
    assert made.status({}) == {
        "enable": True,
        "stage": "start",
        "hashmatch": True,
        "activekey": "AES-CBC aescbckey",
    }


def test_servers_that_differ_are_told_and_no_rotation_begins(server: Server) -> None:
    made = Encryption(server)  # type: ignore[arg-type]
    made.begin()
    made.tell()
    server.notes["two"] = "start-0000"
    assert made.status({})["hashmatch"] is False
    with pytest.raises(Refused, match="hash does not match"):
        made.answer({"stage": "rotate-keys"})


def test_a_member_takes_at_its_start_what_another_server_has_made(server: Server) -> None:
    made = Encryption(server)  # type: ignore[arg-type]
    made.begin()
    made.follow()
    assert made.keys()[0]["name"] == encryption.FIRST
    other = encryption.key("aescbckey-2026-11-21T10:00:00Z")
    text = made.path.read_text()
    made.write([other])
    server.stored = {ENCRYPTION: made.path.read_text()}
    made.path.write_text(text)
    made.follow()
    assert made.keys() == [other]
    made.tell()
    assert server.notes["one"].startswith("reencrypt_finished-")
