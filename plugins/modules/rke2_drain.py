#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Empties a node for work on it, says what keeps it from being empty, and gives it back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rke2_drain
short_description: Empty a node, or give it back
description:
  - Cordons a node with a mark that says whose run it was, and evicts its pods with C(kubectl drain), budgets respected.
  - A node that somebody else has cordoned is drained all the same and never uncordoned.
  - Works for a few seconds and returns; whoever calls repeats it until C(drained), so that no connection has to outlive
    a drain. What is in the way is said by name, the PodDisruptionBudget or the user's server.
  - Runs on a server, which alone may change every node.
version_added: 0.1.0
author: The metalhub maintainers
options:
  name:
    description: Name of the node in the cluster.
    type: str
    required: true
  state:
    description: Whether the node is to be empty or to be given back.
    type: str
    choices: [drained, uncordoned]
    required: true
  policy:
    description:
      - What happens to pods that nothing would start elsewhere, users' servers above all.
      - C(wait) leaves everything alone until they have ended by themselves, C(evict) ends them, after I(notice) where
        there are users' servers.
      - C(skip) only cordons; pods run on while RKE2 is restarted below them.
    type: str
    choices: [wait, evict, skip]
    default: wait
  owner:
    description: Who works on the node, for the mark.
    type: str
    default: ''
  run:
    description: In which run, for the mark.
    type: str
    default: ''
  notice:
    description:
      - For how many seconds C(evict) leaves users' servers alone. When they end stands in the mark, and the hub tells
        their users.
    type: int
    default: 0
  user_selector:
    description: The label, as C(KEY=VALUE), of users' servers.
    type: str
    default: component=singleuser-server
  seconds:
    description: How long one call may work.
    type: int
    default: 15
  data_dir:
    description: RKE2's data directory on the server.
    type: path
    default: /var/lib/rancher/rke2
attributes:
  check_mode:
    support: full
    description: Reports what would change and changes nothing.
"""

EXAMPLES = r"""
- name: Empty a worker
  metalhub.platform.rke2_drain:
    name: uworker01
    state: drained
  register: __rke2_drain
  until: __rke2_drain.drained
  retries: 40
  delay: 1
  delegate_to: umaster01
"""

RETURN = r"""
drained:
  description: Whether the node is cordoned and nothing runs there that a drain would end.
  returned: success
  type: bool
cordoned_by:
  description: The mark that the node bears, or had when it was given back; empty where the cordon is somebody else's.
  returned: success
  type: dict
users:
  description: Users' servers on the node, as C(NAMESPACE/NAME), with the GPUs that they hold.
  returned: success
  type: dict
left:
  description: What still has to go, each with the reason, in words.
  returned: success
  type: list
  elements: str
"""

import json
import subprocess
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

KUBECONFIG = "/etc/rancher/rke2/rke2.yaml"
MARK = "metalhub.io/cordoned-by"
GPU = "nvidia.com/"
TRIES = 5


def name_of(item: dict[str, Any]) -> str:
    """Return `NAMESPACE/NAME`."""
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"


def mark_of(node: dict[str, Any]) -> dict[str, Any]:
    """Return our mark on a node; empty when it bears none."""
    try:
        mark = json.loads(node["metadata"].get("annotations", {}).get(MARK, "{}"))
        return mark if isinstance(mark, dict) else {}
    except ValueError:
        return {"owner": "unknown"}


def goes(pod: dict[str, Any]) -> bool:
    """Whether a drain ends this pod: not what has ended, what the node itself runs, or a DaemonSet's."""
    owners = {owner["kind"] for owner in pod["metadata"].get("ownerReferences", []) if owner.get("controller")}
    mirror = "kubernetes.io/config.mirror" in pod["metadata"].get("annotations", {})
    ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
    return not (mirror or ended or owners & {"DaemonSet", "Node"})


def alone(pod: dict[str, Any]) -> bool:
    """Whether nothing would start this pod elsewhere."""
    return not any(owner.get("controller") for owner in pod["metadata"].get("ownerReferences", []))


def gpus(pod: dict[str, Any]) -> int:
    """Return how many GPUs, or slices of them, a pod holds."""
    limits = [container.get("resources", {}).get("limits", {}) for container in pod["spec"].get("containers", [])]
    return sum(int(amount) for limit in limits for name, amount in limit.items() if name.startswith(GPU))


def matches(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    """Whether a selector of a PodDisruptionBudget takes a pod; an empty one takes all, none takes none."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        has, value = rule["key"] in labels, labels.get(rule["key"])
        fits = {
            "In": has and value in rule.get("values", []),
            "NotIn": not has or value not in rule.get("values", []),
            "Exists": has,
            "DoesNotExist": not has,
        }
        if not fits.get(rule["operator"], False):
            return False
    return True


def in_the_way(pod: dict[str, Any], budgets: list[dict[str, Any]], users: dict[str, int], policy: str) -> str:
    """Return, in words, why a pod is still there."""
    name = name_of(pod)
    if policy == "wait" and name in users:
        held = f" with {users[name]} GPU{'s' if users[name] > 1 else ''}" if users[name] else ""
        return f"{name}, a user's server{held}, still runs"
    if policy == "wait" and alone(pod):
        return f"{name} would be started nowhere else"
    if "deletionTimestamp" in pod["metadata"]:
        return f"{name} is ending"
    labels = pod["metadata"].get("labels", {})
    for budget in budgets:
        same = budget["metadata"]["namespace"] == pod["metadata"]["namespace"]
        status = budget.get("status", {})
        if same and not status.get("disruptionsAllowed", 0) and matches(budget["spec"].get("selector"), labels):
            return (
                f"{name} is kept by PodDisruptionBudget {name_of(budget)}, which lets none go:"
                f" {status.get('currentHealthy', 0)} healthy, {status.get('desiredHealthy', 0)} wanted"
            )
    return f"{name} has not ended"


class Kubectl:
    """The administrator's kubectl of the server that this runs on."""

    def __init__(self, data_dir: str) -> None:
        """Name the program; nothing is run."""
        self.command = [data_dir + "/bin/kubectl", "--kubeconfig", KUBECONFIG]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it; raises OSError when it is not there."""
        return subprocess.run([*self.command, *arguments], capture_output=True, text=True, timeout=90, check=False)

    def read(self, *arguments: str) -> dict[str, Any]:
        """Return an object, or a list of them; raises OSError when the API does not give it."""
        done = self.run("get", *arguments, "-o", "json", "--request-timeout=15s")
        if done.returncode:
            raise OSError(done.stderr.strip())
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def patch(self, node: dict[str, Any], mark: str | None, unschedulable: bool | None) -> bool:
        """Change mark and cordon together; False when somebody changed the node in between."""
        metadata = {"annotations": {MARK: mark}, "resourceVersion": node["metadata"]["resourceVersion"]}
        body = json.dumps({"metadata": metadata, "spec": {"unschedulable": unschedulable}})
        name = node["metadata"]["name"]
        done = self.run("patch", "node", name, "--type", "merge", "--patch", body, "--request-timeout=15s")
        if done.returncode and "Conflict" not in done.stderr:
            raise OSError(done.stderr.strip())
        return not done.returncode


class Node:
    """One node, by the eyes of a server's kubectl."""

    def __init__(self, module: AnsibleModule) -> None:
        """Read what was asked; nothing is run."""
        self.asked, self.check = module.params, module.check_mode
        self.kubectl = Kubectl(self.asked["data_dir"])
        self.name = self.asked["name"]

    def turn(self) -> tuple[bool, dict[str, Any]]:
        """Cordon or uncordon; return whether that changed anything, and the node's mark."""
        drained = self.asked["state"] == "drained"
        for _ in range(TRIES):
            node = self.kubectl.read("node", self.name)
            mark, cordoned = mark_of(node), node["spec"].get("unschedulable", False)
            if self.told(mark) and cordoned if drained else not mark:
                return False, mark
            # Somebody else's cordon stays theirs; only what is said to users is ours.
            foreign = mark.get("foreign", False) if mark or not drained else cordoned
            if drained:
                mark = {"owner": self.asked["owner"], "run": self.asked["run"], "policy": self.asked["policy"]}
                mark |= {"until": int(time.time()) + self.asked["notice"]} if self.asked["policy"] == "evict" else {}
                mark |= {"foreign": True} if foreign else {}
            if self.check or self.kubectl.patch(
                node, json.dumps(mark) if drained else None, drained or foreign or None
            ):
                return True, mark
        raise OSError(f"somebody else changes node {self.name} again and again")

    def told(self, mark: dict[str, Any]) -> bool:
        """Whether a mark says to users what this run does; one is needed only where they are given a time."""
        policy = self.asked["policy"]
        if policy == "evict":
            return "until" in mark
        return not mark or mark.get("policy", "wait") == policy

    def pods(self) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Return the pods that a drain ends, and users' servers among them with their GPUs."""
        found = self.kubectl.read("pods", "-A", f"--field-selector=spec.nodeName={self.name}")["items"]
        key, _, value = self.asked["user_selector"].partition("=")
        going = [pod for pod in found if goes(pod)]
        users = {name_of(pod): gpus(pod) for pod in going if pod["metadata"].get("labels", {}).get(key) == value}
        return going, users

    def held(self, going: list[dict[str, Any]], users: dict[str, int], mark: dict[str, Any]) -> bool:
        """Whether nothing may be ended yet: somebody is waited for, or has time left that the mark promises."""
        if self.asked["policy"] == "wait":
            return any(alone(pod) for pod in going)
        return bool(users) and time.time() < mark.get("until", 0)

    def drain(self, mark: dict[str, Any]) -> tuple[bool, list[str], dict[str, int]]:
        """Evict what may go now; return whether anything was asked to, what is left, and users' servers."""
        policy = self.asked["policy"]
        going, users = self.pods()
        # As long as a drain would take, so that whoever repeats the call waits as long as they say.
        until = time.monotonic() + self.asked["seconds"]
        while policy != "skip" and self.held(going, users, mark) and not self.check and time.monotonic() < until:
            time.sleep(min(3, self.asked["seconds"]))
            going, users = self.pods()
        if policy == "skip" or not going:
            return False, [], users
        asked = False
        if not self.held(going, users, mark) and not self.check:
            words = ["drain", self.name, "--ignore-daemonsets", "--delete-emptydir-data"]
            words += ["--force"] if policy == "evict" else []
            self.kubectl.run(*words, f"--timeout={self.asked['seconds']}s")
            asked = True
            going, left = self.pods()
            users |= left
        budgets = self.kubectl.read("poddisruptionbudgets", "-A")["items"] if going else []
        return asked, [in_the_way(pod, budgets, users, policy) for pod in going], users


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "uncordoned"], "required": True},
            "policy": {"type": "str", "choices": ["wait", "evict", "skip"], "default": "wait"},
            "owner": {"type": "str", "default": ""},
            "run": {"type": "str", "default": ""},
            "notice": {"type": "int", "default": 0},
            "user_selector": {"type": "str", "default": "component=singleuser-server"},
            "seconds": {"type": "int", "default": 15},
            "data_dir": {"type": "path", "default": "/var/lib/rancher/rke2"},
        },
        supports_check_mode=True,
    )
    node = Node(module)
    result: dict[str, Any] = {"users": {}, "left": []}
    try:
        result["changed"], result["cordoned_by"] = node.turn()
        if module.params["state"] == "drained":
            asked, result["left"], result["users"] = node.drain(result["cordoned_by"])
            result["changed"] = result["changed"] or asked
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        again = f"{' '.join(node.kubectl.command)} describe node {node.name}"
        module.fail_json(
            msg=f"Node {node.name} could not be {module.params['state']}: {error}. Look closer with: {again}"
        )
    if result["left"]:
        # What a caller shows that gives up waiting.
        servers = f"{len(result['users'])} users' servers, {sum(result['users'].values())} GPUs"
        result["msg"] = f"Node {node.name} is not empty ({servers} in use there): {'; '.join(result['left'])}"
    module.exit_json(drained=module.params["state"] == "drained" and not result["left"], **result)


if __name__ == "__main__":
    main()
