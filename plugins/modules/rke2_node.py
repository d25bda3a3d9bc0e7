#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Brings labels and taints of a registered node to what the site has, and touches nobody else's."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rke2_node
short_description: Labels and taints of a registered node
description:
  - Sets labels and taints of a node that is in the cluster already; RKE2's own C(node-label) and C(node-taint) act when
    a node registers and never again.
  - Remembers in two annotations of the node what it has set, so that what is no longer asked for is removed, and what
    others have set is never touched.
  - Runs on a server, which alone may change every node.
version_added: 0.1.0
author: The metalhub maintainers
options:
  name:
    description: Name of the node in the cluster.
    type: str
    required: true
  labels:
    description: Every label of the site, as name to value.
    type: dict
    default: {}
  taints:
    description: Every taint of the site, as C(KEY=VALUE:EFFECT) or C(KEY:EFFECT).
    type: list
    elements: str
    default: []
  own_taints:
    description: Taints, as C(KEY:EFFECT), that are the site's by their name and go when O(taints) lacks them.
    type: list
    elements: str
    default: []
  data_dir:
    description: RKE2's data directory on the server.
    type: path
    default: /var/lib/rancher/rke2
attributes:
  check_mode:
    support: full
    description: Reports what would change and changes nothing.
  diff_mode:
    support: full
    description: Shows the site's labels and all taints before and after.
"""

EXAMPLES = r"""
- name: Give a worker its rack and keep ordinary pods off it
  metalhub.platform.rke2_node:
    name: uworker01
    labels:
      example.org/rack: upper
    taints: [example.org/reserved=hub:NoSchedule]
  delegate_to: umaster01
"""

RETURN = r"""
patch:
  description: What was changed of the Node, as a merge patch; empty when nothing was.
  returned: success
  type: dict
"""

import json
import subprocess
from typing import Any

from ansible.module_utils.basic import AnsibleModule

KUBECONFIG = "/etc/rancher/rke2/rke2.yaml"
OWNED_LABELS = "metalhub.io/owned-labels"
OWNED_TAINTS = "metalhub.io/owned-taints"
TRIES = 5


def parsed(text: str) -> dict[str, str]:
    """Return a taint in the API's form; raises ValueError when `text` is none."""
    name, _, effect = text.rpartition(":")
    key, _, value = name.partition("=")
    if not key or not effect:
        raise ValueError(f"{text!r} is no taint; write KEY=VALUE:EFFECT or KEY:EFFECT")
    return {"key": key, "effect": effect, **({"value": value} if value else {})}


def identity(taint: dict[str, Any]) -> str:
    """Return what tells a taint of a node from its others."""
    return f"{taint['key']}:{taint['effect']}"


def recorded(node: dict[str, Any], annotation: str) -> set[str]:
    """Return the names that an annotation of ours holds."""
    return set(filter(None, node["metadata"].get("annotations", {}).get(annotation, "").split(",")))


def difference(
    node: dict[str, Any], labels: dict[str, str], taints: list[dict[str, str]], own_taints: list[str]
) -> dict[str, Any]:
    """Return the merge patch that brings a Node to what is wanted; empty when it is there."""
    metadata: dict[str, Any] = {}
    now = node["metadata"].get("labels", {})
    changed: dict[str, str | None] = {name: value for name, value in labels.items() if now.get(name) != value}
    changed |= {name: None for name in recorded(node, OWNED_LABELS) - labels.keys() if name in now}
    if changed:
        metadata["labels"] = changed
    wanted = {identity(taint): taint for taint in taints}
    mine = recorded(node, OWNED_TAINTS) | set(own_taints) | wanted.keys()
    there = node["spec"].get("taints") or []
    kept = [
        taint
        for taint in there
        if identity(taint) not in mine
        or (identity(taint) in wanted and taint.get("value", "") == wanted[identity(taint)].get("value", ""))
    ]
    kept_names = {identity(taint) for taint in kept}
    after = kept + [taint for name, taint in wanted.items() if name not in kept_names]
    record = {
        OWNED_LABELS: ",".join(sorted(labels)) or None,
        OWNED_TAINTS: ",".join(sorted(wanted.keys() - set(own_taints))) or None,
    }
    notes = node["metadata"].get("annotations", {})
    changed_notes = {name: value for name, value in record.items() if notes.get(name) != value}
    if changed_notes:
        metadata["annotations"] = changed_notes
    patch: dict[str, Any] = {"metadata": metadata} if metadata else {}
    if after != there:
        patch["spec"] = {"taints": after or None}
    return patch


def shown(node: dict[str, Any], patch: dict[str, Any], after: bool) -> str:
    """Return the parts of a Node that a patch touches, as text for a diff."""
    result: dict[str, Any] = {}
    for part, names in patch.get("metadata", {}).items():
        values = {name: node["metadata"].get(part, {}).get(name) for name in names}
        result[part] = {name: value for name, value in (names if after else values).items() if value is not None}
    if "spec" in patch:
        result["taints"] = (patch["spec"]["taints"] if after else node["spec"].get("taints")) or []
    return json.dumps(result, indent=2, sort_keys=True) + "\n"


class Kubectl:
    """The administrator's kubectl of the server that this runs on."""

    def __init__(self, data_dir: str) -> None:
        """Name the program; nothing is run."""
        self.command = [data_dir + "/bin/kubectl", "--kubeconfig", KUBECONFIG, "--request-timeout=15s"]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it; raises OSError when it is not there."""
        return subprocess.run([*self.command, *arguments], capture_output=True, text=True, timeout=60, check=False)


def text(value: Any) -> str:
    """Return a label's value as the API has it: a boolean of YAML is `true`, not `True`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "labels": {"type": "dict", "default": {}},
            "taints": {"type": "list", "elements": "str", "default": []},
            "own_taints": {"type": "list", "elements": "str", "default": []},
            "data_dir": {"type": "path", "default": "/var/lib/rancher/rke2"},
        },
        supports_check_mode=True,
    )
    name = module.params["name"]
    kubectl = Kubectl(module.params["data_dir"])
    again = f"Look closer with: {' '.join(kubectl.command)} get node {name} -o yaml"
    try:
        labels = {key: text(value) for key, value in module.params["labels"].items()}
        taints = [parsed(taint) for taint in module.params["taints"]]
        for left in reversed(range(TRIES)):
            asked = kubectl.run("get", "node", name, "-o", "json")
            if asked.returncode:
                module.fail_json(msg=f"Node {name} cannot be read: {asked.stderr.strip()}. {again}")
            node = json.loads(asked.stdout)
            patch = difference(node, labels, taints, module.params["own_taints"])
            diff = {"before": shown(node, patch, False), "after": shown(node, patch, True), "before_header": name}
            if not patch or module.check_mode:
                break
            # Whoever changes the taints in between makes this a conflict instead of losing theirs.
            metadata = {**patch.get("metadata", {}), "resourceVersion": node["metadata"]["resourceVersion"]}
            sent = json.dumps({**patch, "metadata": metadata})
            done = kubectl.run("patch", "node", name, "--type", "merge", "--patch", sent)
            if not done.returncode:
                break
            if "Conflict" not in done.stderr or not left:
                module.fail_json(msg=f"Node {name} cannot be changed: {done.stderr.strip()}. {again}")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        module.fail_json(msg=f"Node {name} was left as it is: {error}. {again}")
    module.exit_json(changed=bool(patch), patch=patch, **({"diff": diff | {"after_header": name}} if patch else {}))


if __name__ == "__main__":
    main()
