"""One server with the role's defaults, looked at from inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host

testinfra_hosts = ["ansible://rke2_default"]

ROLE = Path(__file__).resolve().parents[3] / "roles/rke2"
DATA = "/var/lib/rancher/rke2"
KUBECTL = f"{DATA}/bin/kubectl --kubeconfig /etc/rancher/rke2/rke2.yaml"
# What somebody without rights finds of what comes by standard input, in everything that may hold a secret.
STRANGER = (
    "setpriv --reuid=65534 --regid=65534 --clear-groups"
    " grep -rlsF -D skip -f - /etc /opt /root /run /srv /tmp /usr/local /var"
)
SECRETS = "cat /etc/rancher/rke2/token /etc/rancher/rke2/agent-token"


@pytest.fixture
def config(host: Host) -> dict[str, Any]:
    """Return what RKE2 was told."""
    return dict(yaml.safe_load(host.file("/etc/rancher/rke2/config.yaml").content_string))


@pytest.mark.proves("rke2-server")
def test_the_server_runs_and_starts_at_boot(host: Host) -> None:
    server = host.service("rke2-server")
    assert (server.is_running, server.is_enabled) == (True, True), host.check_output(
        "journalctl -u rke2-server -n 80 --no-pager"
    )


@pytest.mark.proves("rke2-server")
@pytest.mark.parametrize("condition", ["Ready", "EtcdIsVoter"])
def test_its_node_serves(host: Host, condition: str) -> None:
    name = host.ansible.get_variables()["inventory_hostname"]
    path = f'{{.status.conditions[?(@.type=="{condition}")].status}}'
    assert host.check_output(f"{KUBECTL} get node {name} -o jsonpath='{path}'") == "True"


@pytest.mark.proves("rke2-config")
@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("data-dir", "rke2_data_dir"),
        ("etcd-snapshot-schedule-cron", "rke2_snapshot_schedule"),
        ("etcd-snapshot-retention", "rke2_snapshot_retention"),
        ("node-name", "inventory_hostname"),
        ("node-ip", "ansible_host"),
        ("cni", "site_cluster_cni"),
        ("cluster-cidr", "site_pod_network"),
        ("service-cidr", "site_service_network"),
        ("cluster-domain", "site_cluster_domain"),
    ],
)
def test_a_key_has_the_value_of_the_role_or_the_site(host: Host, config: dict[str, Any], key: str, name: str) -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
    assert config[key] == {**defaults, **host.ansible.get_variables()}[name]


@pytest.mark.proves("rke2-config")
def test_nothing_is_written_for_what_was_not_asked_for(host: Host, config: dict[str, Any]) -> None:
    assert not {key for key, value in config.items() if value in ("", [], {}, None)}
    assert not {"kubelet-arg", "node-label", "profile", "audit-policy-file", "kube-apiserver-arg"} & config.keys()
    for path in (
        "/etc/rancher/rke2/registries.yaml",
        "/etc/rancher/rke2/audit-policy.yaml",
        "/etc/default/rke2-server",
    ):
        assert not host.file(path).exists


@pytest.mark.proves("rke2-secrets-private")
@pytest.mark.parametrize("name", ["config.yaml", "token", "agent-token", "rke2.yaml"])
def test_a_file_is_for_root_alone(host: Host, name: str) -> None:
    file = host.file(f"/etc/rancher/rke2/{name}")
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)


@pytest.mark.proves("rke2-secrets-private")
def test_a_stranger_on_the_machine_finds_no_token(host: Host) -> None:
    host.check_output(f"{SECRETS} >/srv/canary; chmod 0644 /srv/canary")
    assert host.run(f"{SECRETS} | {STRANGER}").stdout.split() == ["/srv/canary"]
    host.check_output("rm /srv/canary")
    assert host.run(f"{SECRETS} | {STRANGER}").stdout.split() == []


@pytest.mark.proves("rke2-secrets-private")
def test_no_token_stands_in_the_configuration_on_a_command_line_or_in_the_journal(host: Host) -> None:
    journal, lines = "journalctl --no-pager -o cat", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"
    host.check_output(f"{SECRETS} | head -1 | systemd-cat")
    assert host.run(f"{SECRETS} >/run/secrets; {journal} | grep -cF -f /run/secrets").stdout.strip() == "1", "blind"
    assert host.run(f"{lines} | grep -cF -f /run/secrets").stdout.strip() == "0"
    assert host.run("grep -cF -f /run/secrets /etc/rancher/rke2/config.yaml").stdout.strip() == "0"
    host.check_output("rm /run/secrets")


@pytest.mark.proves("rke2-credentials")
def test_the_administrators_credentials_are_kept_here_for_their_owner_alone(host: Host, inventory: Path) -> None:
    variables = host.ansible.get_variables()
    kept = inventory.parent / f"kubeconfig/{variables['inventory_hostname']}.yml"
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    cluster = yaml.safe_load(kept.read_text(encoding="utf-8"))["clusters"][0]["cluster"]
    assert cluster["server"] == f"https://{variables['ansible_host']}:6443"
