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
  - Where the cluster is out of space (alarm C(NOSPACE)), all revisions but the last are compacted first, and this
    member's alarm ends once it is well below its quota. All members have to have their turn.
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
import re
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.etcd_gateway import Gateway, Silent, names

METRICS = ("127.0.0.1", 2381)
# What is free inside the file, as a share of it and in bytes, below which a pause of the member is not worth it.
WORTH, WORTH_BYTES = 0.1, 1 << 20
# An alarm that ends above this share of the quota is raised again within days.
ROOM = 0.9
FULL = "NOSPACE"


def look(etcd: Gateway) -> dict[str, Any]:
    """Return what the module returns of a member, without what was done."""
    status, known = etcd.ask("maintenance/status"), names(etcd.members())
    own = status["header"]["member_id"]
    return {
        "member": {
            "id": own,
            "name": known.get(own, own),
            "leader": status.get("leader") == own,
            "version": status["version"],
            "revision": int(status["header"]["revision"]),
            "size": int(status["dbSize"]),
            "in_use": int(status["dbSizeInUse"]),
            "quota": int(status.get("dbSizeQuota") or quota()),
        },
        "alarms": [f"{one['alarm']} {known.get(one['memberID'], one['memberID'])}" for one in etcd.alarms()],
    }


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


def worth(member: dict[str, Any]) -> bool:
    """Return whether so much of a member's file is free that a defragmentation is worth its pause."""
    size, in_use = int(member["size"]), int(member["in_use"])
    return size - in_use > max(size * WORTH, WORTH_BYTES)


def compact(etcd: Gateway, revision: int) -> bool:
    """Forget all revisions before one; returns whether that is news to etcd."""
    try:
        etcd.ask("kv/compaction", 300, revision=str(revision), physical=True)
    except Silent as error:
        if "compacted" not in str(error):  # by the API server, or in an earlier turn
            raise
        return False
    return True


def alone(etcd: Gateway, members: list[dict[str, Any]], own: str) -> None:
    """Refuse a pause of this member while another is away."""
    away = sorted(names([one for one in members if one["ID"] != own and not etcd.answers(one)]).values())
    if away:
        raise Silent(f"{', '.join(away)} does not answer, and this member would pause too; nothing was done")


def disarm(etcd: Gateway, member: dict[str, Any]) -> bool:
    """End the alarm of a member that has room again, and those of members that are gone; returns whether any was."""
    known, room = names(etcd.members()), member["size"] < member["quota"] * ROOM
    over = [alarm for alarm in etcd.alarms() if alarm["alarm"] == FULL]
    ended = [one for one in over if one["memberID"] not in known or (room and one["memberID"] == member["id"])]
    for alarm in ended:
        etcd.ask("maintenance/alarm", action="DEACTIVATE", **alarm)
    return bool(ended)


def care(etcd: Gateway, check: bool) -> dict[str, Any]:
    """Defragment this member where it is worth it and end an alarm whose cause is gone; return the module's result."""
    now, done = look(etcd), []
    before, own = now["member"]["size"], now["member"]["id"]
    full = any(alarm.startswith(FULL) for alarm in now["alarms"])
    if full and (check or compact(etcd, now["member"]["revision"])):
        done.append(f"compacted up to revision {now['member']['revision']}")
    if full and not check:
        now = look(etcd)
    if worth(now["member"]):
        members = etcd.members()
        alone(etcd, members, own)
        if now["member"]["leader"] and len(members) > 1:
            done.append(
                "handed leadership over" if check else f"handed leadership to {names(members)[etcd.hand_over(own, [])]}"
            )
        done.append("defragmented")
        if not check:
            etcd.ask("maintenance/defragment", 600)
            now = look(etcd)
    if full and not check and disarm(etcd, now["member"]):
        done.append(f"ended the alarm {FULL}")
        time.sleep(1)  # one that is not over is raised again by the next write
        now = look(etcd)
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
        etcd = Gateway(module.params["data_dir"])
        if module.params["defragment"]:
            module.exit_json(**care(etcd, module.check_mode))
        now = look(etcd)
        module.exit_json(changed=False, before=now["member"]["size"], done=[], **now)
    except Silent as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
