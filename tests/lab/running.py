"""The running lab as tests see it: its nodes, its cluster, its site, and a witness that Ansible has no part in."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import nodes

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "inventories/lab"
DATA = "/var/lib/rancher/rke2"


@dataclass(frozen=True)
class Recap:
    """What one run of ansible-playbook came to: exit status, output, and changed tasks by host."""

    status: int
    output: str

    @property
    def changed(self) -> dict[str, int]:
        """Changed tasks of every host, hosts without any left out."""
        found = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", self.output, re.M)
        assert found, f"no recap in:\n{self.output[-3000:]}"
        return {host: int(count) for host, count in found if int(count)}


class Lab:
    """The six nodes, addressed by name."""

    machines: ClassVar = {machine.name: machine for machine in nodes.site_machines()}
    servers: ClassVar = [name for name in machines if name.startswith("umaster")]
    agents: ClassVar = [name for name in machines if name.startswith("uworker")]

    def sh(self, node: str, script: str, check: bool = True) -> str:
        """Run a shell script on a node, beside Ansible and SSH; returns its output."""
        return nodes.run_in(node, script, check=check)

    def kubectl(self, *words: str, server: str = "", check: bool = True) -> str:
        """Run kubectl on a server that answers (or the named one)."""
        quoted = " ".join(f"'{word}'" for word in words)
        for name in [server] if server else self.servers:
            try:
                kubectl = f"{DATA}/bin/kubectl --kubeconfig /etc/rancher/rke2/rke2.yaml --request-timeout=10s"
                return self.sh(name, f"{kubectl} {quoted}", check)
            except RuntimeError:
                if name == (server or self.servers[-1]):
                    raise
        raise AssertionError("unreachable")

    def nodes(self) -> dict[str, dict[str, str]]:
        """The cluster's nodes: name -> condition -> status."""
        items = json.loads(self.kubectl("get", "nodes", "-o", "json"))["items"]
        return {
            item["metadata"]["name"]: {c["type"]: c["status"] for c in item["status"]["conditions"]} for item in items
        }

    def ready(self) -> set[str]:
        """Names of the nodes that are Ready."""
        return {name for name, conditions in self.nodes().items() if conditions.get("Ready") == "True"}

    def members(self, server: str = "umaster01") -> list[dict[str, Any]]:
        """etcd's members as etcd itself tells them."""
        tls = f"{DATA}/server/tls/etcd"
        flags = (
            f"--endpoints=https://127.0.0.1:2379 --cacert={tls}/ca.crt --cert={tls}/server.crt --key={tls}/server.key"
        )
        return json.loads(self.sh(server, f"{DATA}/bin/etcdctl {flags} member list -w json"))["members"]  # type: ignore[no-any-return]

    def voters(self, server: str = "umaster01") -> set[str]:
        """Names of the members that vote."""
        return {member["name"] for member in self.members(server) if not member.get("isLearner")}

    def play(self, *words: str, playbooks: Sequence[str] = ("playbooks/site.yml",)) -> Recap:
        """Run plain ansible-playbook on the lab's site."""
        command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(SITE), *words, *playbooks]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200)
        return Recap(done.returncode, done.stdout + done.stderr)

    def witness(self) -> dict[str, dict[str, str]]:
        """What a change would disturb, read without Ansible: files, packages, process starts, the API's objects."""
        below = ("server/manifests", "server/tls", "server/token", "agent/etc", "agent/pod-manifests")
        files = f"/etc /usr/local {' '.join(f'{DATA}/{name}' for name in below)}"
        script = f"""
        find {files} -type f ! -path '*/.ansible/*' -exec sha256sum {{}} + 2>/dev/null | sort -k2
        find {files} -printf '%p %m %U:%G %y\\n' 2>/dev/null | sort
        systemctl show rke2-server rke2-agent chrony keepalived -p Id,MainPID,ExecMainStartTimestampMonotonic,NRestarts
        dpkg-query -W
        ps -eo comm=,lstart=,args= | grep -E '^(kubelet|containerd|etcd|kube-|haproxy|keepalived|chronyd)' | sort
        """
        state = {name: dict(enumerate_lines(self.sh(name, script))) for name in self.machines}
        kinds = "daemonsets,deployments,configmaps,serviceaccounts,clusterroles,clusterrolebindings"
        template = '{range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name} {.metadata.generation}{"\\n"}{end}'
        state["api"] = dict(enumerate_lines(self.kubectl("get", kinds, "-A", "-o", f"jsonpath={template}")))
        labels = '{range .items[*]}{.metadata.name} {.metadata.labels} {.spec}{"\\n"}{end}'
        state["nodes"] = dict(enumerate_lines(self.kubectl("get", "nodes", "-o", f"jsonpath={labels}")))
        return state


def enumerate_lines(text: str) -> list[tuple[str, str]]:
    """Lines as (line, line), so that two witnesses differ exactly where a line came or went."""
    return [(line, line) for line in text.splitlines() if line.strip()]


def difference(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """What came (+) and went (-) between two witnesses, by host."""
    found = {}
    for host, lines_before in before.items():
        lines = [f"- {line}" for line in lines_before if line not in after[host]]
        lines += [f"+ {line}" for line in after[host] if line not in lines_before]
        if lines:
            found[host] = lines
    return found
