#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Takes etcd's leadership from the member of this machine before it is stopped."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_leader
short_description: Another member of etcd leads
description:
  - Hands etcd's leadership from this server's member to another voter. A leader that is stopped instead costs an
    election, up to ten seconds without writes.
  - Speaks to etcd's own gateway on this machine with the certificate that RKE2 keeps for it, so no client program of
    etcd has to be installed.
version_added: 0.1.0
author: The metalhub maintainers
options:
  prefer:
    description: Names of nodes of which one should lead, those that are done with first.
    type: list
    elements: str
    default: []
  data_dir:
    description: RKE2's data directory.
    type: path
    default: /var/lib/rancher/rke2
attributes:
  check_mode:
    support: full
    description: Reports what would change and changes nothing.
"""

EXAMPLES = r"""
- name: Let another server lead etcd
  metalhub.platform.etcd_leader:
    prefer: [umaster01]
"""

RETURN = r"""
leader:
  description: Name of the member that leads now; empty when etcd did not say.
  returned: success
  type: str
alarms:
  description: Alarms of etcd, as C(NAME ALARM).
  returned: success
  type: list
  elements: str
"""

import http.client
import json
import ssl
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# RKE2 moves HTTP to a port of its own, elsewhere it shares the clients'.
PORTS = (2382, 2379)


class Etcd:
    """This machine's member, by its gateway."""

    def __init__(self, data_dir: str) -> None:
        """Load the certificates; raises OSError without them."""
        tls = data_dir + "/server/tls/etcd"
        self.context = ssl.create_default_context(cafile=tls + "/server-ca.crt")
        # Who signed it matters; which names it lists does not.
        self.context.check_hostname = False
        self.context.load_cert_chain(tls + "/server-client.crt", tls + "/server-client.key")
        self.port = 0

    def ask(self, path: str, port: int = 0, **body: Any) -> dict[str, Any]:
        """Return an answer of the gateway; raises OSError without one."""
        connection = http.client.HTTPSConnection("127.0.0.1", port or self.port, context=self.context, timeout=10)
        try:
            connection.request("POST", "/v3/" + path, json.dumps(body))
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            if answer.status != 200:
                raise OSError(f"{path}: {answer.status} {text.strip()[:200]}")
            found: dict[str, Any] = json.loads(text)
            return found
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"{path}: {error}") from error
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """Find the gateway and return what the member says of itself; raises OSError when none answers."""
        said = ""
        for port in PORTS:
            try:
                answer = self.ask("maintenance/status", port)
                self.port = port
                return answer
            except OSError as error:
                said = f"port {port}: {error}"
        raise OSError(said)


def successor(members: list[dict[str, Any]], own: str, prefer: list[str]) -> str:
    """Return the ID of the voter that should lead instead of `own`; empty when there is no other."""

    def place(member: dict[str, Any]) -> int:
        # Members carry a suffix behind the node's name.
        name = member.get("name", "")
        return next((at for at, node in enumerate(prefer) if name == node or name.startswith(f"{node}-")), len(prefer))

    others = [member for member in members if member["ID"] != own and not member.get("isLearner")]
    return str(min(others, key=place)["ID"]) if others else ""


def name_of(members: list[dict[str, Any]], identity: str) -> str:
    """Return a member's name; empty when it is not among them."""
    return next((str(member.get("name", "")) for member in members if member["ID"] == identity), "")


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "prefer": {"type": "list", "elements": "str", "default": []},
            "data_dir": {"type": "path", "default": "/var/lib/rancher/rke2"},
        },
        supports_check_mode=True,
    )
    changed = False
    try:
        etcd = Etcd(module.params["data_dir"])
        status = etcd.status()
        members = etcd.ask("cluster/member/list")["members"]
        alarms = etcd.ask("maintenance/alarm", action="GET").get("alarms", [])
        own, leader = status["header"]["member_id"], status.get("leader", "")
        target = successor(members, own, module.params["prefer"]) if leader == own else ""
        if target:
            changed = True
            if not module.check_mode:
                etcd.ask("maintenance/transfer-leadership", targetID=target)
                leader = target
    except (OSError, KeyError) as error:
        # A stopped leader costs seconds, a refused upgrade may cost more.
        module.warn(f"etcd's leadership was not handed over; writes may stop for up to 10 s: {error}")
        module.exit_json(changed=changed, leader="", alarms=[])
    found = [f"{name_of(members, alarm.get('memberID', ''))} {alarm.get('alarm', '')}" for alarm in alarms]
    module.exit_json(changed=changed, leader=name_of(members, leader), alarms=found)


if __name__ == "__main__":
    main()
