#!/usr/bin/python
"""Look at a machine, and let the machines of a play talk to each other, before anything is installed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_check
short_description: Look at a machine and at its ways to the others
description:
  - With O(phase=look) measures the machine, judges it by itself and leaves listeners on the free ports that other
    machines will use. With O(phase=probe) connects to the listeners of the other machines, or to RKE2 itself where that
    runs, and compares the machines. With O(phase=stop) ends the listeners.
  - Changes nothing and leaves nothing behind. A listener ends by itself after O(seconds) even if nobody stops it.
  - Findings are returned and do not fail the task, so that those of all machines can be told at once.
version_added: 0.1.0
author: The metalhub maintainers
options:
  phase:
    description: What to do.
    type: str
    choices: [look, probe, stop]
    required: true
  name:
    description: Name of the machine.
    type: str
    default: ""
  listen:
    description: Whether O(phase=look) leaves listeners.
    type: bool
    default: false
  seconds:
    description: Seconds after which a listener ends by itself.
    type: int
    default: 60
  ports:
    description:
      - What RKE2 and Canal listen on. C(port), C(protocol), C(roles) (that have it), C(callers) (roles that connect to
        it from other machines; none when only the machine itself does) and C(purpose) each.
    type: list
    elements: dict
    default: []
  needs:
    description: What a machine must have; see the inputs of the role C(preflight), entry point C(machines).
    type: dict
    default: {}
  machines:
    description: With O(phase=probe), every machine of the play to the facts that O(phase=look) returned there.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Never changes anything, and listens and connects all the same.
  diff_mode:
    support: none
    description: Has nothing to compare.
"""

EXAMPLES = r"""
- name: End what listens
  metalhub.platform.host_check:
    phase: stop
"""

RETURN = r"""
facts:
  description: What the machine is, for O(phase=probe) on the others.
  returned: with O(phase=look)
  type: dict
findings:
  description: What does not fit.
  returned: with O(phase=look) and O(phase=probe)
  type: list
  elements: dict
  contains:
    key:
      description: The property.
      type: str
    what:
      description: What is wrong with it.
      type: str
    where:
      description: The machine.
      type: str
    seen:
      description: The value found.
      type: str
    fix:
      description: What to do.
      type: str
stopped:
  description: How many listeners there were.
  returned: with O(phase=stop)
  type: int
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

# Relative, because only the installed collection has a name of its own.
from ..module_utils.site_findings import Finding
from ..module_utils.site_machine import compare, judge, measure
from ..module_utils.site_peers import listen, probe, probe_virtual, stop


def look(options: dict[str, Any]) -> dict[str, Any]:
    """Return facts and findings of this machine; listeners stay when asked for."""
    name, needs = options["name"], options["needs"]
    # First of all, because a process is best divided while it has a single thread.
    ports = listen(name, needs["role"], options["ports"], options["seconds"], stay=options["listen"])
    facts = {**measure(needs), **ports, "role": needs["role"], "address": needs["address"]}
    return {"facts": facts, "findings": [finding.as_dict() for finding in judge(name, facts, needs)]}


def meet(options: dict[str, Any]) -> dict[str, Any]:
    """Return the findings of this machine about its ways to the others, and in comparison with them."""
    name, needs, machines = options["name"], options["needs"], options["machines"]
    findings: list[Finding] = list(compare(name, machines, needs))
    ahead = machines[name]["clock"] - needs["asked"]
    if ahead > needs["clock_seconds_max"]:
        fix = "start time synchronisation on both machines; the control machine counts as right here"
        findings.append(Finding("clock", "is ahead of the control machine's", name, f"at least {ahead:.1f} s", fix))
    findings += probe(name, machines, options["ports"], needs)
    findings += probe_virtual(name, machines, needs["virtual_address"], needs["servers"])
    return {"findings": [finding.as_dict() for finding in findings]}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "phase": {"type": "str", "choices": ["look", "probe", "stop"], "required": True},
            "name": {"type": "str", "default": ""},
            "listen": {"type": "bool", "default": False},
            "seconds": {"type": "int", "default": 60},
            "ports": {"type": "list", "elements": "dict", "default": []},
            "needs": {"type": "dict", "default": {}},
            "machines": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    phase = module.params["phase"]
    if phase == "stop":
        module.exit_json(changed=False, stopped=stop())
    module.exit_json(changed=False, **(look if phase == "look" else meet)(module.params))


if __name__ == "__main__":
    main()
