"""The running cluster is adopted as if others had installed it, and its first deploy disturbs nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

import nodes
from build import STATE
from tests.lab.running import DATA, PROCESSES, ROOT, SITE, Driven, Lab, difference, enumerate_lines, eventually

CONFIG = "/etc/rancher/rke2/config.yaml"
PASSWORD = "only-for-this-test"
STAGES = ("--only", "preflight,node,api_address,rke2_server,rke2_agent,canal")
# What people write of their site after adopting; the rest is what every site on one machine needs.
WRITTEN = {
    "site_host": "hub.lab.test",
    "site_load_balancer_pool": "198.18.101.101-198.18.101.150",
    "site_ingress_address": "198.18.101.102",
}
OF_THE_LAB = ("group_vars/rke2/node.yml", "group_vars/rke2/preflight.yml", "group_vars/rke2_agent/node.yml")


class Adopting:
    """A checkout without any site, and a control machine that knows nothing of the lab but how to log in."""

    def __init__(self, lab: Lab, scratch: Path) -> None:
        self.lab, self.root = lab, scratch / "checkout"
        (self.root / "inventories").mkdir(parents=True)
        for path in ROOT.iterdir():
            if path.name not in ("inventories", ".git", ".cache"):
                (self.root / path.name).symlink_to(path)
        (scratch / "password").write_text(PASSWORD)
        self.environment = {
            "XDG_STATE_HOME": str(scratch / "state"),
            "METALHUB_VAULT_PASSWORD_FILE": str(scratch / "password"),
            "ANSIBLE_SSH_COMMON_ARGS": f"-o UserKnownHostsFile={STATE}/ssh/known_hosts",
        }
        self.site = self.root / "inventories/adopted"
        self.kubeconfig = Path.home() / ".kube/metalhub-adopted.yaml"

    def drive(self, *words: str) -> Driven:
        """Run the driver on the adopted site."""
        return self.lab.drive(*words, "--site", "adopted", root=self.root, environment=self.environment)

    def adopt(self) -> Driven:
        """Adopt the cluster by its second server."""
        server = self.lab.machines[self.lab.servers[1]].address
        return self.drive("adopt", "--server", server, "--key", f"{STATE}/ssh/id_ed25519")

    def read(self, name: str) -> dict[str, Any]:
        """Return a file of the site."""
        return dict(yaml.safe_load((self.site / name).read_text()))

    def secrets(self) -> dict[str, Any]:
        """Return the site's secrets."""
        library = VaultLib([("site", VaultSecret(PASSWORD.encode()))])
        return dict(yaml.safe_load(library.decrypt((self.site / "group_vars/all/vault.yml").read_text())))

    def complete(self) -> None:
        """Write what no cluster tells."""
        path = self.site / "group_vars/all/site.yml"
        text = path.read_text()
        for name, value in WRITTEN.items():
            text = text.replace(f"{name}: ''", f"{name}: {value}")
        known = yaml.safe_load((SITE / "group_vars/all/site.yml").read_text())
        more = {name: known[name] for name in ("site_bundle", "site_time_servers")}
        path.write_text(text + yaml.safe_dump(more))
        for name in OF_THE_LAB:
            (self.site / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SITE / name, self.site / name)


def running(lab: Lab) -> dict[str, dict[str, str]]:
    """Tell what runs: services and daemons with their starts, containers, restarts of pods, members of etcd."""
    script = f"""
    systemctl show rke2-server rke2-agent keepalived -p Id,MainPID,ExecMainStartTimestampMonotonic,NRestarts
    ls /run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io
    {PROCESSES}"""
    state = {name: dict(enumerate_lines(lab.sh(name, script))) for name in lab.machines}
    # Jobs come and go by themselves; what is to stay does not.
    template = (
        '{range .items[?(@.status.phase=="Running")]}{.metadata.uid} {.metadata.name} '
        '{.status.containerStatuses[*].containerID}{"\\n"}{end}'
    )
    state["pods"] = dict(enumerate_lines(lab.kubectl("get", "pods", "-A", "-o", f"jsonpath={template}")))
    state["etcd"] = {json.dumps(member, sort_keys=True): "" for member in lab.members()}
    return state


def by_hand(lab: Lab, name: str) -> None:
    """Let a machine's configuration look as people write it; it means the same, and nothing is restarted."""
    server = name in lab.servers
    layers = lab.sh(name, f"for file in {CONFIG} {CONFIG}.d/*.yaml; do echo '---'; cat $file; done")
    values = {key: value for layer in yaml.safe_load_all(layers) for key, value in (layer or {}).items()}
    for key, default in {
        "data-dir": DATA, "cni": "canal", "node-name": name, "node-ip": lab.machines[name].address,
        "cluster-cidr": "10.42.0.0/16", "service-cidr": "10.43.0.0/16", "cluster-domain": "cluster.local",
    }.items():  # fmt: skip
        assert values.pop(key, default) == default
    for key in ("token", "agent-token"):
        path = values.pop(f"{key}-file", "")
        values |= {key: lab.sh(name, f"cat {path}").strip()} if path else {}
    if server:
        values["token"] = lab.sh(name, f"cat {DATA}/server/token").strip()
    apart = {key: values.pop(key) for key in list(values) if key.startswith("etcd-snapshot")}
    apart |= {"kubelet-arg+": values.pop("kubelet-arg")} if "kubelet-arg" in values else {}
    texts = {CONFIG: "# By hand.\n" + yaml.safe_dump(values, default_flow_style=None, sort_keys=False, width=60)}
    texts |= {f"{CONFIG}.d/50-site.yaml": json.dumps(apart, indent=1) + "\n"} if apart else {}
    registries = yaml.safe_load(lab.sh(name, "cat /etc/rancher/rke2/registries.yaml 2>/dev/null || true"))
    texts |= {"/etc/rancher/rke2/registries.yaml": json.dumps(registries)} if registries else {}
    lab.sh(
        name,
        f"rm -rf {CONFIG}.d /etc/rancher/rke2/token /etc/rancher/rke2/agent-token /run/rke2-started.sha256"
        f" /etc/systemd/system/rke2-*.service.d/50-metalhub.conf; mkdir -m 755 {CONFIG}.d; systemctl daemon-reload",
    )
    for path, text in texts.items():
        nodes.run_in(name, f"cat >{path}; chmod 600 {path}", text)


@contextmanager
def configured_by_hand(lab: Lab) -> Iterator[None]:
    """Take our traces off all machines, and bring them back by a deploy of the lab."""
    try:
        for name in lab.machines:
            by_hand(lab, name)
        yield
    finally:
        done = lab.drive("deploy", "--from", "node", "--until", "rke2_agent")
        assert done.status == 0, done.told + done.message


@pytest.mark.proves("adopt-look")
def test_adopting_finds_the_cluster_and_changes_nothing_on_it(lab: Lab, tmp_path: Path) -> None:
    before = lab.witness()
    adopting = Adopting(lab, tmp_path)
    done = adopting.adopt()
    assert done.status == 0, done.told
    assert difference(before, lab.witness()) == {}
    groups = adopting.read("hosts.yml")["all"]["children"]["rke2"]["children"]
    wanted = {name: {"ansible_host": machine.address} for name, machine in lab.machines.items()}
    assert groups["rke2_server"]["hosts"] | groups["rke2_agent"]["hosts"] == wanted
    assert set(groups["rke2_server"]["hosts"]) == set(lab.servers)
    found, known = (
        adopting.read("group_vars/all/site.yml"),
        yaml.safe_load((SITE / "group_vars/all/site.yml").read_text()),
    )
    same = ("site_api_address", "site_pod_network", "site_service_network", "site_cluster_domain", "site_cluster_cni")
    assert {name: found[name] for name in same} == {name: known[name] for name in same}
    assert "site_api_address_mode" not in found, "our own keepalived holds it"
    assert adopting.read("group_vars/all/versions.yml") == {"rke2_version": lab.installed(lab.servers[0])}
    secrets, sealed = lab.secrets(), adopting.secrets()
    for name in ("vault_site_rke2_token", "vault_site_rke2_agent_token", "vault_site_api_address_password"):
        assert sealed[name] == secrets[name], name
        assert not re.search(re.escape(secrets[name]), done.told)


@pytest.mark.shard("adopt")
@pytest.mark.proves("adopt-deploy")
def test_a_cluster_configured_by_hand_is_adopted_and_nothing_of_it_is_restarted(lab: Lab, tmp_path: Path) -> None:
    adopting = Adopting(lab, tmp_path)
    try:
        with configured_by_hand(lab):
            before = running(lab)
            done = adopting.adopt()
            assert done.status == 0, done.told
            adopting.complete()
            files = lab.witness(api=False)
            seen = adopting.drive("check", *STAGES)
            assert seen.status == 0, seen.told + seen.message
            assert difference(files, lab.witness(api=False)) == {}
            assert {drift["stage"] for drift in seen.document["drift"]} >= {"rke2_server", "rke2_agent"}
            assert "becomes" not in seen.told, seen.told
            done = adopting.drive("deploy", *STAGES)
            assert done.status == 0, done.told + done.message
            assert difference(before, running(lab)) == {}
            for name in lab.machines:
                assert "Written by metalhub" in lab.sh(name, f"cat {CONFIG}")
                assert "50-site.yaml" not in lab.sh(name, f"ls {CONFIG}.d")
            again = adopting.drive("deploy", *STAGES)
            assert (again.status, again.document["changed"]) == (0, 0), again.told + again.message
            # A restart is still due where something means something else: said before it is done.
            lab.sh(lab.agents[0], "rm /run/rke2-started.sha256; echo 'debug: true' >>" + CONFIG)
            seen = adopting.drive("check", "--only", "rke2_agent")
            assert f'{lab.agents[0]} | debug: "true" becomes nothing' in seen.told, seen.told
            lab.sh(lab.agents[0], f"sed -i '$d' {CONFIG}")
        # Nor by the lab's own deploy, which brought everything back.
        assert difference(before, running(lab)) == {}
        eventually("all nodes Ready", lab.healthy)
    finally:
        adopting.kubeconfig.unlink(missing_ok=True)
