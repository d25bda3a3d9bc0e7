#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Looks after one member of RKE2's etcd, through the JSON interface that etcd itself serves."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rke2_etcd
short_description: Size, quota and alarms of an etcd member, and its defragmentation
description:
  - Asks the member on this server for its size, its quota and the cluster's alarms. No program is needed and the
    Kubernetes API may be down.
  - With O(defragment) it gives back to the file system what is free inside the member's file, where that is worth it.
    A leader hands its office over first. Nothing is begun while another member does not answer.
  - Where the cluster is out of space (alarm C(NOSPACE)), all revisions but the last are compacted first, and the alarm
    ends once every member is well below its quota.
version_added: 0.1.0
author: The metalhub maintainers
options:
  data_dir:
    description: RKE2's data directory.
    type: path
    default: /var/lib/rancher/rke2
  defragment:
    description: Whether to do something, too.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Look at this server's member
  metalhub.platform.rke2_etcd:
  register: __etcd
"""

RETURN = r"""
member:
  description: C(name), C(leader), C(version), and in bytes C(size), C(in_use) and C(quota) (0 where it is not told).
  returned: always
  type: dict
sizes:
  description: Bytes of every member's file by its name; -1 of one that does not answer.
  returned: always
  type: dict
alarms:
  description: The alarms that are raised, as NAME of the alarm and of the member.
  returned: always
  type: list
  elements: str
before:
  description: C(size) of this member's file before anything was done.
  returned: always
  type: int
done:
  description: What was done, in words; in check mode what would be.
  returned: always
  type: list
  elements: str
"""

import http.client
import json
import re
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule

LOCAL = "https://127.0.0.1:2379"
METRICS = ("127.0.0.1", 2381)
# What is free inside the file, as a share of it and in bytes, below which a pause of the member is not worth it.
WORTH, WORTH_BYTES = 0.1, 1 << 20
# An alarm that ends above this share of the quota is raised again within days.
ROOM = 0.9


class Silent(Exception):
    """A member does not answer, or says no; the words say which and why."""


class Cluster:
    """Every member, asked with the certificate of this server."""

    def __init__(self, data_dir: str) -> None:
        """Read the certificate; RKE2's authority of etcd signs nothing but members and their clients."""
        tls = data_dir + "/server/tls/etcd"
        try:
            self.context = ssl.create_default_context(cafile=tls + "/server-ca.crt")
            self.context.check_hostname = False
            self.context.load_cert_chain(tls + "/server-client.crt", tls + "/server-client.key")
        except OSError as error:
            raise Silent(f"no certificate of etcd below {tls}: {error}") from error

    def ask(self, path: str, body: dict[str, Any], url: str = LOCAL, seconds: float = 10) -> dict[str, Any]:
        """Return what a member answers; etcd writes long numbers as text."""
        where = urlsplit(url)
        connection = http.client.HTTPSConnection(where.netloc, context=self.context, timeout=seconds)
        try:
            connection.request("POST", "/v3/" + path, json.dumps(body))
            answer = connection.getresponse()
            content = answer.read()
            document: dict[str, Any] = json.loads(content)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Silent(f"etcd at {where.netloc} does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise Silent(f"etcd at {where.netloc}, {path}: {document.get('message', content)}")
        return document

    def members(self) -> list[dict[str, Any]]:
        """Return all members as etcd tells them."""
        return self.ask("cluster/member/list", {})["members"]  # type: ignore[no-any-return]

    def size(self, member: dict[str, Any]) -> int:
        """Return the bytes of a member's file, -1 when it does not answer."""
        try:
            return int(self.ask("maintenance/status", {}, member["clientURLs"][0], 3)["dbSize"])
        except (Silent, KeyError, IndexError):
            return -1

    def look(self) -> dict[str, Any]:
        """Return what the module returns of a member, without what was done."""
        status, members = self.ask("maintenance/status", {}), self.members()
        names = {member["ID"]: member.get("name", member["ID"]) for member in members}
        own = status["header"]["member_id"]
        raised = self.ask("maintenance/alarm", {"action": "GET"}).get("alarms", [])
        return {
            "member": {
                "id": own,
                "name": names.get(own, own),
                "leader": status.get("leader") == own,
                "version": status["version"],
                "revision": int(status["header"]["revision"]),
                "size": int(status["dbSize"]),
                "in_use": int(status["dbSizeInUse"]),
                "quota": int(status.get("dbSizeQuota") or quota()),
            },
            "sizes": {names[member["ID"]]: self.size(member) for member in members},
            "alarms": [f"{alarm['alarm']} {names.get(alarm['memberID'], alarm['memberID'])}" for alarm in raised],
        }

    def step_down(self, own: str) -> str:
        """Hand the leader's office to another voter and return its name."""
        said = "there is no other voter"
        for other in (one for one in self.members() if one["ID"] != own and not one.get("isLearner")):
            try:
                self.ask("maintenance/transfer-leadership", {"targetID": other["ID"]}, seconds=20)
            except Silent as error:
                said = str(error)
                continue
            return str(other.get("name"))
        raise Silent(said)


def quota() -> int:
    """Return the quota as an etcd before 3.6 tells it, in its metrics; 0 when it does not."""
    connection = http.client.HTTPConnection(*METRICS, timeout=5)
    try:
        connection.request("GET", "/metrics")
        found = re.search(r"^etcd_server_quota_backend_bytes (\S+)$", connection.getresponse().read().decode(), re.M)
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
    return int(float(found.group(1))) if found else 0


def worth(size: int, in_use: int) -> bool:
    """Return whether so much of a file is free that a defragmentation is worth its pause."""
    return size - in_use > max(size * WORTH, WORTH_BYTES)


def disarmed(sizes: dict[str, int], limit: int) -> bool:
    """Return whether every member answers and is so far below its quota that the alarm may end."""
    return all(0 <= size < limit * ROOM for size in sizes.values())


def care(cluster: Cluster, check: bool) -> dict[str, Any]:
    """Defragment this member where it is worth it and end an alarm whose cause is gone; return the module's result."""
    now = cluster.look()
    before, own, done = now["member"]["size"], now["member"]["id"], []
    silent = sorted(name for name, size in now["sizes"].items() if size < 0)
    full = any(alarm.startswith("NOSPACE ") for alarm in now["alarms"])
    if full:
        done.append(f"compacted up to revision {now['member']['revision']}")
        if not check:
            try:
                request = {"revision": str(now["member"]["revision"]), "physical": True}
                cluster.ask("kv/compaction", request, seconds=300)
            except Silent as error:
                if "compacted" not in str(error):  # by the API server, or in an earlier turn
                    raise
                done.pop()
            now = cluster.look()
    if worth(now["member"]["size"], now["member"]["in_use"]):
        if silent:
            raise Silent(f"{', '.join(silent)} does not answer, and this member would pause too; nothing was done")
        if now["member"]["leader"] and len(now["sizes"]) > 1:
            done.append("handed leadership over" if check else f"handed leadership to {cluster.step_down(own)}")
        done.append("defragmented")
        if not check:
            cluster.ask("maintenance/defragment", {}, seconds=600)
            now = cluster.look()
    if full and not check and disarmed(now["sizes"], now["member"]["quota"]):
        for member in cluster.members():
            cluster.ask("maintenance/alarm", {"action": "DEACTIVATE", "memberID": member["ID"], "alarm": "NOSPACE"})
        done.append("ended the alarm NOSPACE")
        time.sleep(1)  # one that is not over is raised again by the next write
        now = cluster.look()
    return now | {"before": before, "done": done, "changed": bool(done)}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "data_dir": {"type": "path", "default": "/var/lib/rancher/rke2"},
            "defragment": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        cluster = Cluster(module.params["data_dir"])
        if module.params["defragment"]:
            module.exit_json(**care(cluster, module.check_mode))
        now = cluster.look()
        module.exit_json(changed=False, before=now["member"]["size"], done=[], **now)
    except Silent as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
