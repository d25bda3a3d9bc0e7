"""No secret is where somebody else can read it: arguments of programs, output, journals, files."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

import nodes
from build import STATE
from tests.lab.running import ROOT, Lab

MORE = "memory: 129Mi}, limits: {memory: 1Gi}"
TRACE = ("strace", "-f", "-qq", "-e", "trace=execve,execveat", "-s", "1000000", "-o")


def revision(lab: Lab) -> int:
    """The revision of the hub's release."""
    words = ("-n", "jupyterhub", "get", "secrets", "-l", "owner=helm,name=jupyterhub,status=deployed", "-o")
    return int(lab.kubectl(*words, "jsonpath={.items[0].metadata.labels.version}"))


def known(lab: Lab) -> dict[str, str]:
    """Every secret of the site by name: the vault's, its password, and the administrator's key."""
    user = yaml.safe_load(nodes.KUBECONFIG.read_text())["users"][0]["user"]
    password = (STATE / "vault_password").read_text()
    return lab.secrets() | {"vault_password": password, "client-key-data": user["client-key-data"]}


def leaked(secrets: dict[str, str], text: str) -> list[str]:
    """The names of the secrets that stand in a text."""
    return [name for name, secret in secrets.items() if secret in text]


def in_files(secrets: dict[str, str], lab: Lab, node: str) -> list[str]:
    """Files of a node with a secret in them that somebody else than root could open."""
    script = """
    cat >/run/patterns; chmod 600 /run/patterns
    find / -xdev \\( -path /proc -o -path /sys -o -type d ! -perm -o+x \\) -prune -o -type f -perm -o+r -print0 |
      xargs -0 grep -lsF -f /run/patterns
    find /var/lib/rancher /var/lib/kubelet -type d ! -perm -o+x -prune -o -type f -perm -o+r -print0 |
      xargs -0 grep -lsF -f /run/patterns
    cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -oF -f /run/patterns | sed 's/.*/the arguments of a process/'
    rm /run/patterns"""
    return nodes.run_in(node, script, "\n".join(secrets.values()), check=False).splitlines()


@contextmanager
def traced(lab: Lab, names: list[str], directory: Path) -> Iterator[dict[str, Path]]:
    """Record the arguments of every program that anybody starts over SSH on some nodes."""
    files, tracers = {}, []
    for name in names:
        # The daemon that listens; what it is asked for are its children.
        daemon = lab.sh(name, "cat /run/sshd.pid").strip()
        inside = Path("/proc").glob("[0-9]*/status")
        pids = [path.parent.name for path in inside if f"NSpid:\t{path.parent.name}\t{daemon}\n" in read(path)]
        mine = subprocess.run(["docker", "top", name, "-eo", "pid"], capture_output=True, text=True, check=True)
        (pid,) = set(pids) & set(mine.stdout.split())
        files[name] = directory / f"{name}.trace"
        tracers.append(subprocess.Popen([*TRACE, str(files[name]), "-p", pid]))
    time.sleep(1)
    try:
        yield files
    finally:
        for tracer in tracers:
            tracer.terminate()
            tracer.wait()


def read(path: Path) -> str:
    """A file's text; empty where its process has just ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.shard("secrets")
@pytest.mark.proves("no-secret-leaks")
def test_no_secret_is_in_arguments_output_journals_or_files_others_can_read(lab: Lab, tmp_path: Path) -> None:
    server, agent = lab.servers[1], lab.agents[0]
    secrets = known(lab)
    schema = yaml.safe_load((ROOT / "roles/preflight/meta/argument_specs.yml").read_text())
    options = schema["argument_specs"]["main"]["options"]
    required = {name for name, about in options.items() if name.startswith("vault_") and about.get("required")}
    assert required <= set(secrets)
    assert len(secrets) == len(lab.secrets()) + 2
    assert all(len(secret) >= 8 for secret in secrets.values())
    canary = {"canary": f"canary-{os.urandom(12).hex()}"}

    # Something to do with every secret: a worker that joins, a server whose files are written anew, a database's Secret
    # that is gone, and a hub whose release is made anew with all that it is given.
    nodes.end_connections(list(lab.machines.values()))
    lab.renew(agent)
    lab.sh(server, "rm /etc/rancher/rke2/token /etc/rancher/rke2/agent-token")
    lab.sh(server, "sed -i s/auth_pass/auth_pass_/ /etc/keepalived/keepalived.conf")
    lab.kubectl("-n", "keycloak", "delete", "secret", "keycloak-database")
    site, release = lab.copy(tmp_path / "site"), revision(lab)
    values = site / "inventories/lab/group_vars/platform/jupyterhub.yml"
    values.write_text(values.read_text().replace("memory: 128Mi}, limits: {memory: 1Gi}", MORE))
    control = tmp_path / "control.trace"
    with traced(lab, [server, agent], tmp_path) as traces:
        lab.type(f"ssh {' '.join(lab.ssh)} root@{lab.machines[server].address} : {canary['canary']}")
        # Connections kept in the background would keep the tracer.
        ssh = {"ANSIBLE_SSH_ARGS": "-o ControlMaster=no -o StrictHostKeyChecking=accept-new"}
        under = (*TRACE, str(control), "env", f"CANARY={canary['canary']}")
        done = lab.drive("deploy", "-vvv", environment=ssh, under=under, root=site)
        # The lab's own values again, under the same eyes.
        undone = lab.drive("deploy", "--only", "jupyterhub", "-vvv", environment=ssh)
    for one in (done, undone):
        assert one.status == 0, one.told[-3000:]
    assert done.document["changed"] >= 8
    assert lab.kubectl("-n", "keycloak", "get", "secret", "keycloak-database", "-o", "name")
    assert revision(lab) == release + 2, "the hub's secrets went through no run"

    # The traces see what is there to be seen.
    assert leaked(canary, read(traces[server])) == ["canary"]
    assert leaked(canary, read(control)) == ["canary"]
    assert "AnsiballZ" in read(traces[agent]) or "python3" in read(traces[agent])
    for place, path in {**traces, "the control machine": control}.items():
        assert leaked(secrets, read(path)) == [], f"arguments of programs on {place}"

    assert len(done.told) > 50_000, "-vvv says more"
    assert leaked(secrets, done.told + str(done.document) + undone.told + str(undone.document)) == []
    journals = sorted((STATE / "journal").iterdir())
    assert leaked({"run": undone.document["run_id"]}, read(journals[-1])) == ["run"]
    for path in journals:
        assert leaked(secrets, read(path)) == [], path

    lab.sh(server, f"echo {canary['canary']} >/etc/metalhub-canary")
    assert in_files(canary, lab, server) == ["/etc/metalhub-canary"]
    lab.sh(server, "chmod 600 /etc/metalhub-canary")
    assert in_files(canary, lab, server) == []
    lab.sh(server, "rm /etc/metalhub-canary")
    for node in lab.machines:
        assert in_files(secrets, lab, node) == [], node

    # Nothing of Ansible's or the driver's own lies about on the control machine either.
    allowed = {STATE / "vault_password", nodes.KUBECONFIG}
    for directory in (STATE, Path.home() / ".ansible", nodes.KUBECONFIG.parent, ROOT / "inventories"):
        for path in directory.rglob("*"):
            # The nodes' own disks have been looked at from inside.
            ours = path not in allowed and STATE / "mnt" not in path.parents
            inside = ours and path.is_file() and path.stat().st_size < 1 << 20
            assert not inside or leaked(secrets, path.read_text(errors="replace")) == [], path
    assert all(path.stat().st_mode & 0o077 == 0 for path in allowed)
