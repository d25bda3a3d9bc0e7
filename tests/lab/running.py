"""The running lab as tests see it: its nodes, its cluster, its site, and a witness that Ansible has no part in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

import nodes
from build import STATE

ROOT = Path(__file__).resolve().parents[2]
SITE = nodes.SITE
DATA = "/var/lib/rancher/rke2"
# Name, number and start of each daemon; not what one has forked, which has its name until it is replaced.
PROCESSES = r"""cat /proc/[0-9]*/stat 2>/dev/null | awk '
  { name[$1] = $2; parent[$1] = $4; start[$1] = $22 }
  END { for (id in name) if (name[id] ~ /^\((kubelet|containerd|etcd|kube-.*|haproxy|keepalived|chronyd)\)$/ \
    && name[parent[id]] != name[id]) print name[id], id, start[id] }' | sort"""


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


@dataclass(frozen=True)
class Driven:
    """What one run of the driver came to: exit status, its document (`--json`), and what it told people."""

    status: int
    document: dict[str, Any]
    told: str

    @property
    def message(self) -> str:
        """What the failures of the run say."""
        return "\n".join(str(failure["message"]) for failure in self.document.get("failures", ()))

    def printed(self, start: str) -> str:
        """The one command beginning with `start` that stands at the end of a line for the user to type."""
        found = set(re.findall(rf"{re.escape(start)}.*$", f"{self.told}\n{self.message}", re.M))
        assert len(found) == 1, f"{start}: {found or 'not printed'} in:\n{self.told}\n{self.message}"
        return str(found.pop())


class Lab:
    """The six nodes, addressed by name."""

    machines: ClassVar = {machine.name: machine for machine in nodes.site_machines()}
    servers: ClassVar = [machine.name for machine in nodes.site_machines("rke2_server")]
    agents: ClassVar = [machine.name for machine in nodes.site_machines("rke2_agent")]

    bundle = STATE / "bundle"
    ssh: ClassVar = ["-i", f"{STATE}/ssh/id_ed25519", "-o", f"UserKnownHostsFile={STATE}/ssh/known_hosts"]

    def installed(self, node: str) -> str:
        """The release whose program is on a node's disk."""
        return self.sh(node, "/usr/local/bin/rke2 --version").split()[2]

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
        return self.etcdctl(server, "member list")["members"]  # type: ignore[no-any-return]

    def voters(self, server: str = "umaster01") -> set[str]:
        """Names of the members that vote."""
        return {member["name"] for member in self.members(server) if not member.get("isLearner")}

    def play(self, *words: str, playbooks: Sequence[str] = ("playbooks/site.yml",), timeout: float = 1200) -> Recap:
        """Run plain ansible-playbook on the lab's site."""
        command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(SITE), *words, *playbooks]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout)
        return Recap(done.returncode, done.stdout + done.stderr)

    def drive(
        self,
        *words: str,
        root: Path = ROOT,
        environment: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
        timeout: float = 1200,
    ) -> Driven:
        """Run a verb of the driver on the lab's site, with --json; another `root` is a checkout of `copy`'s making.

        under: a program with its arguments that runs the driver.
        """
        program = [*under, str(ROOT / ".venv/bin/python"), "scripts/provision.py"]
        settings = os.environ | {"METALHUB_ROOT": str(root)} | dict(environment or {})
        command = [*program, *words, *(() if "--site" in words else ("--site", "lab")), "--json"]
        done = subprocess.run(
            command, cwd=root, env=settings, capture_output=True, text=True, check=False, timeout=timeout
        )
        assert done.stdout, done.stderr[-3000:]
        return Driven(done.returncode, json.loads(done.stdout), done.stderr)

    def killed(self, words: Sequence[str], strike: Callable[[str], float | None], root: Path = ROOT) -> tuple[int, str]:
        """Run a verb and kill the driver alone with -9, so many seconds after the line for which `strike` says.

        Returns its exit status, -9 where it was killed, and what it told: Ansible's words, where each task stands too.
        """
        command = [str(ROOT / ".venv/bin/python"), "scripts/provision.py", *words, "--site", "lab", "-vv"]
        settings, told = os.environ | {"METALHUB_ROOT": str(root)}, []
        with subprocess.Popen(
            command,
            cwd=root,
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as driver:
            assert driver.stdout
            for line in driver.stdout:
                told.append(line)
                pause = strike(line)
                if pause is not None:
                    time.sleep(pause)
                    driver.kill()
                    break
            driver.stdout.close()
        return driver.returncode, "".join(told)

    def type(self, command: str, root: Path = ROOT, environment: Mapping[str, str] | None = None) -> str:
        """Run a command that was printed, verbatim, where the user would type it; returns its output."""
        path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
        settings = os.environ | {"PATH": path} | dict(environment or {})
        done = subprocess.run(
            ["sh", "-c", command], cwd=root, env=settings, capture_output=True, text=True, check=False, timeout=1200
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}"
        return done.stdout + done.stderr

    def copy(self, target: Path, parameters: Mapping[str, object] | None = None) -> Path:
        """Make a checkout whose site `lab` may be changed by a test; `parameters` are added to its files."""
        target.mkdir()
        for path in ROOT.iterdir():
            if path.name not in ("inventories", ".git", ".cache"):
                (target / path.name).symlink_to(path)
        shutil.copytree(SITE, target / "inventories/lab")
        if parameters:
            (target / "inventories/lab/group_vars/all/zz-test.yml").write_text(yaml.safe_dump(dict(parameters)))
        return target

    def secrets(self, vault: Path = STATE / "vault.yml") -> dict[str, str]:
        """The site's secrets by name."""
        opener = VaultLib([("lab", VaultSecret((STATE / "vault_password").read_bytes()))])
        return yaml.safe_load(opener.decrypt(vault.read_text()))  # type: ignore[no-any-return]

    def seal(self, secrets: Mapping[str, str], target: Path) -> None:
        """Write a vault with these secrets."""
        vault = VaultLib([("lab", VaultSecret((STATE / "vault_password").read_bytes()))])
        target.write_bytes(vault.encrypt(yaml.safe_dump(dict(secrets)), vault_id="lab"))

    def renew(self, *names: str) -> None:
        """Put new, empty machines in the place of nodes: another disk, another SSH host key, the same address."""
        machines = [self.machines[name] for name in names]
        nodes.end_connections(machines)
        for name in names:
            nodes.destroy(name)
        nodes.up(machines)

    def healthy(self) -> bool:
        """Whether all nodes are Ready and all servers vote in one etcd cluster."""
        try:
            ids = {self.cluster(server) for server in self.servers}
            return (
                len(ids) == 1
                and all(self.voters(server) == set(self.servers) for server in self.servers)
                and self.ready() == set(self.machines)
            )
        except (RuntimeError, KeyError, ValueError):
            return False

    def cluster(self, server: str) -> str:
        """etcd's own number of the cluster that a server is a member of."""
        return str(self.etcdctl(server, "member list")["header"]["cluster_id"])

    def etcdctl(self, server: str, words: str) -> dict[str, Any]:
        """What etcdctl answers on a server, asked of that server's own member."""
        tls = f"{DATA}/server/tls/etcd"
        flags = (
            f"--endpoints=https://127.0.0.1:2379 --cacert={tls}/ca.crt --cert={tls}/server.crt --key={tls}/server.key"
        )
        return json.loads(self.sh(server, f"{DATA}/bin/etcdctl {flags} {words} -w json"))  # type: ignore[no-any-return]

    def witness(self, api: bool = True) -> dict[str, dict[str, str]]:
        """What a change would disturb, read without Ansible: files, packages, process starts, the API's objects."""
        below = ("server/manifests", "server/tls", "server/token", "agent/etc", "agent/pod-manifests")
        files = f"/etc /usr/local {' '.join(f'{DATA}/{name}' for name in below)}"
        script = f"""
        find {files} -type f ! -path '*/.ansible/*' -exec sha256sum {{}} + 2>/dev/null | sort -k2
        find {files} -printf '%p %m %U:%G %y\\n' 2>/dev/null | sort
        systemctl show rke2-server rke2-agent chrony keepalived -p Id,MainPID,ExecMainStartTimestampMonotonic,NRestarts
        dpkg-query -W
        {PROCESSES}
        """
        with ThreadPoolExecutor() as pool:
            told = pool.map(lambda name: self.sh(name, script), self.machines)
        state = {name: dict(enumerate_lines(text)) for name, text in zip(self.machines, told, strict=True)}
        if not api:
            return state
        kinds = "daemonsets,deployments,configmaps,serviceaccounts,clusterroles,clusterrolebindings"
        template = '{range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name} {.metadata.generation}{"\\n"}{end}'
        state["api"] = dict(enumerate_lines(self.kubectl("get", kinds, "-A", "-o", f"jsonpath={template}")))
        labels = '{range .items[*]}{.metadata.name} {.metadata.labels} {.spec}{"\\n"}{end}'
        state["nodes"] = dict(enumerate_lines(self.kubectl("get", "nodes", "-o", f"jsonpath={labels}")))
        return state


def eventually(what: str, true: Callable[[], bool], seconds: float = 180) -> None:
    """Wait until something is true, or fail with its name."""
    deadline, last = time.monotonic() + seconds, ""
    while True:
        try:
            if true():
                return
        except RuntimeError as error:
            # A program inside a node that asks what is just coming up.
            last = f" ({error})"
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}{last}"
        time.sleep(1)


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
