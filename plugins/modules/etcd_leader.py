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

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.etcd_gateway import Gateway, Silent, names, successors


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "prefer": {"type": "list", "elements": "str", "default": []},
            "data_dir": {"type": "path", "default": "/var/lib/rancher/rke2"},
        },
        supports_check_mode=True,
    )
    changed, prefer = False, module.params["prefer"]
    try:
        etcd = Gateway(module.params["data_dir"])
        status, members = etcd.ask("maintenance/status"), etcd.members()
        known = names(members)
        alarms = [f"{known.get(one['memberID'], one['memberID'])} {one['alarm']}" for one in etcd.alarms()]
        own, leader = status["header"]["member_id"], status.get("leader", "")
        if leader == own and successors(members, own, prefer):
            changed = True
            if not module.check_mode:
                leader = etcd.hand_over(own, prefer)
    except (Silent, KeyError) as error:
        # A stopped leader costs seconds, a refused upgrade may cost more.
        module.warn(f"etcd's leadership was not handed over; writes may stop for up to 10 s: {error}")
        module.exit_json(changed=False, leader="", alarms=[])
    module.exit_json(changed=changed, leader=known.get(leader, ""), alarms=alarms)


if __name__ == "__main__":
    main()
