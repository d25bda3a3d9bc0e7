"""The JSON interface that etcd itself serves on a server of RKE2.

No program of etcd is needed for it, and the Kubernetes API may be down.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

# RKE2 moves HTTP from the clients' port to one that only this machine reaches.
PORTS = (2382, 2379)


class Silent(Exception):
    """A member does not answer, or says no; the words say which and why."""


class Gateway:
    """This machine's member, and by it the cluster. Numbers of 64 bits come and go as text."""

    def __init__(self, data_dir: str) -> None:
        """Load the certificates that RKE2 keeps below its data directory; raises Silent without them."""
        tls = data_dir + "/server/tls/etcd"
        try:
            self.context = ssl.create_default_context(cafile=tls + "/server-ca.crt")
            # This authority signs nothing but members and their clients: which names are listed does not matter.
            self.context.check_hostname = False
            self.context.load_cert_chain(tls + "/server-client.crt", tls + "/server-client.key")
        except OSError as error:
            raise Silent(f"no certificate of etcd below {tls}: {error}") from error
        self.port = 0

    def ask(self, path: str, seconds: float = 10, **body: Any) -> dict[str, Any]:
        """Return an answer of this machine's member; raises Silent without one."""
        if self.port:
            return self._post(self.port, path, body, seconds)
        said = []
        for port in PORTS:
            try:
                self._post(port, "maintenance/status", {}, seconds)
            except Silent as error:
                said.append(str(error))
            else:
                self.port = port
                return self._post(port, path, body, seconds)
        raise Silent("; ".join(said))

    def _post(self, port: int, path: str, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=self.context, timeout=seconds)
        try:
            connection.request("POST", "/v3/" + path, json.dumps(body))
            answer = connection.getresponse()
            content = answer.read()
            document: dict[str, Any] = json.loads(content)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Silent(f"etcd on port {port} does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise Silent(f"etcd on port {port}, {path}: {document.get('message', content)}")
        return document

    def members(self) -> list[dict[str, Any]]:
        """Return all members as etcd tells them."""
        found: list[dict[str, Any]] = self.ask("cluster/member/list")["members"]
        return found

    def alarms(self) -> list[dict[str, Any]]:
        """Return the alarms that are raised, as etcd tells them."""
        found: list[dict[str, Any]] = self.ask("maintenance/alarm", action="GET").get("alarms", [])
        return found

    def answers(self, member: dict[str, Any]) -> bool:
        """Return whether a member, this or another, greets its clients; HTTP reaches only this machine's."""
        for url in member.get("clientURLs", []):
            where = urlsplit(url)
            try:
                with (
                    socket.create_connection((where.hostname or "", where.port or 2379), 3) as plain,
                    self.context.wrap_socket(plain),
                ):
                    return True
            except OSError:
                continue
        return False

    def hand_over(self, own: str, prefer: list[str]) -> str:
        """Let another voter lead and return its ID; raises Silent with the last refusal.

        own: the ID of this machine's member, which leads. prefer: nodes that are asked first.
        """
        said = "there is no other voter"
        for other in successors(self.members(), own, prefer):
            try:
                self.ask("maintenance/transfer-leadership", 20, targetID=other)
            except Silent as error:
                said = str(error)
                continue
            return other
        raise Silent(said)


def successors(members: list[dict[str, Any]], own: str, prefer: list[str]) -> list[str]:
    """Return the IDs of the voters that could lead instead of `own`, those of the preferred nodes first."""

    def place(member: dict[str, Any]) -> int:
        # Members carry a suffix behind the node's name.
        name = member.get("name", "")
        return next((at for at, node in enumerate(prefer) if name == node or name.startswith(f"{node}-")), len(prefer))

    others = [member for member in members if member["ID"] != own and not member.get("isLearner")]
    return [str(member["ID"]) for member in sorted(others, key=place)]


def names(members: list[dict[str, Any]]) -> dict[str, str]:
    """Return the members' names by their IDs; the ID stands for a member that has not yet told its name."""
    return {str(member["ID"]): str(member.get("name") or member["ID"]) for member in members}
