"""Certificates, tokens, keys and passwords of the running cluster are made anew without locking anybody out."""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import nodes
from tests.lab.running import DATA, Driven, Lab, eventually

KUBELET, API, SUPERVISOR = 10250, 6443, 9345


def served(lab: Lab, node: str, port: int) -> str:
    """The certificate that a daemon of a node shows whoever connects."""
    return ssl.get_server_certificate((lab.machines[node].address, port), timeout=10)


def shown(lab: Lab) -> dict[tuple[str, int], str]:
    """What every daemon of every node shows."""
    return {
        (node, port): served(lab, node, port)
        for node in lab.machines
        for port in ((API, SUPERVISOR, KUBELET) if node in lab.servers else (KUBELET,))
    }


def well(done: Driven) -> Driven:
    """The same, once it has ended well."""
    assert done.status == 0, done.told + done.message
    return done


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """A checkout whose vault may be changed; the cluster is healthy before and after, and opens to the lab's own."""
    eventually("all nodes Ready", lab.healthy)
    root, own = lab.copy(tmp_path / "checkout"), lab.secrets()
    yield root
    # A test that failed has left others.
    last = lab.secrets(root / "inventories/lab/group_vars/all/vault.yml")
    token, user = "vault_site_rke2_token", (lab.servers[0], own["vault_site_rke2_agent_token"], "node")
    if last[token] != own[token]:
        seal(lab, root, **{f"{token}_before": last[token]})
        well(lab.drive("rotate", "token", root=root))
    elif last != own and opens(lab, *user) != 200:
        seal(lab, root)
        well(lab.drive("rotate", "agent-token", root=root))
    eventually("all nodes Ready", lab.healthy)


def seal(lab: Lab, site: Path, **changed: str) -> Mapping[str, str]:
    """Write the vault of a checkout with some values changed."""
    lab.seal(lab.secrets() | changed, site / "inventories/lab/group_vars/all/vault.yml")
    return changed


@pytest.mark.proves("rotate-plan")
def test_when_the_certificates_of_all_six_machines_end_is_read_and_shown(lab: Lab) -> None:
    machines = well(lab.drive("rotate", "certificates", "--plan-only")).document["machines"]
    assert set(machines) == set(lab.machines)
    for name in (lab.servers[1], lab.agents[2]):
        path = f"{DATA}/{'server/tls/serving-kube-apiserver' if name in lab.servers else 'agent/serving-kubelet'}.crt"
        said = lab.sh(name, f"openssl x509 -noout -enddate -in {path}").strip().removeprefix("notAfter=")
        read = datetime.fromisoformat(machines[name]["files"][path])
        assert read.replace(tzinfo=None) == datetime.strptime(said, "%b %d %H:%M:%S %Y GMT")  # noqa: DTZ007
        assert not [file for file in machines[name]["files"] if file.endswith("ca.crt")]
        assert 0 < machines[name]["days"] <= 366


@pytest.mark.shard("rotate")
@pytest.mark.proves("rotate-certificates")
def test_every_daemon_shows_another_certificate_and_a_second_run_changes_nothing(lab: Lab, site: Path) -> None:
    before, authority = shown(lab), lab.sh(lab.servers[0], f"sha256sum {DATA}/server/tls/server-ca.crt")
    credentials = nodes.KUBECONFIG.read_text()
    # Cut off between the second and the third step, on a machine of either kind.
    for node, unit in ((lab.servers[1], "rke2-server"), (lab.agents[0], "rke2-agent")):
        lab.sh(node, f"systemctl stop {unit} && rke2 certificate rotate")
    well(lab.drive("rotate", "certificates", root=site))
    assert {node for (node, port), one in shown(lab).items() if one != before[node, port]} == {
        lab.servers[1],
        lab.agents[0],
    }
    well(lab.drive("rotate", "certificates", "--force", root=site))
    after = shown(lab)
    assert [where for where in before if after[where] == before[where]] == []
    assert lab.sh(lab.servers[0], f"sha256sum {DATA}/server/tls/server-ca.crt") == authority
    assert nodes.KUBECONFIG.read_text() != credentials
    again = well(lab.drive("rotate", "certificates", root=site))
    assert again.document["changed"] == 0
    assert shown(lab) == after


@pytest.mark.shard("rotate")
@pytest.mark.proves("rotate-certificates")
def test_no_server_is_stopped_while_another_one_is_away(lab: Lab, site: Path) -> None:
    lab.sh(
        lab.servers[2], "systemctl stop rke2-server && systemctl kill -s KILL rke2-server; pkill -KILL -x etcd; true"
    )
    try:
        eventually("the API misses a server", lambda: lab.servers[2] not in lab.ready(), 120)
        before = served(lab, lab.servers[0], SUPERVISOR)
        done = lab.drive("rotate", "certificates", "--force", "--limit", lab.servers[0], root=site)
        assert done.status == 1
        assert lab.servers[2] in done.message
        assert served(lab, lab.servers[0], SUPERVISOR) == before
    finally:
        lab.sh(lab.servers[2], "systemctl start rke2-server")


@pytest.mark.shard("rotate")
@pytest.mark.proves("rotate-token")
def test_the_token_of_the_vault_opens_every_server_and_the_one_before_none(lab: Lab, site: Path) -> None:
    old, new = lab.secrets()["vault_site_rke2_token"], secrets.token_hex(32)

    # A new token alone: neither a deploy nor a rotation touches anything.
    seal(lab, site, vault_site_rke2_token=new)
    done = lab.drive("deploy", "--only", "rke2_server", root=site)
    assert done.status == 1
    assert "rotate token --site lab" in done.message
    done = lab.drive("rotate", "token", root=site)
    assert done.status == 1
    assert "vault_site_rke2_token_before" in done.message
    assert {opens(lab, server, old) for server in lab.servers} == {200}

    # Cut off at its worst point: the cluster has the new token, and every server would start with the old one.
    seal(lab, site, vault_site_rke2_token=new, vault_site_rke2_token_before=old)
    body = json.dumps({"newToken": new})
    assert ask(lab, lab.servers[0], old, "PUT token", body) == 200
    lab.sh(lab.servers[0], "systemctl restart --no-block rke2-server")
    eventually("it ends, its token being the old one", lambda: opens(lab, lab.servers[0], new) == 0, 60)

    well(lab.drive("rotate", "token", root=site))
    assert {server: (opens(lab, server, new), opens(lab, server, old)) for server in lab.servers} == dict.fromkeys(
        lab.servers, (200, 401)
    )
    assert well(lab.drive("rotate", "token", root=site)).document["changed"] == 0
    assert well(lab.drive("deploy", "--only", "rke2_server,rke2_agent", root=site)).document["changed"] == 0

    # Back, this time undisturbed.
    seal(lab, site, vault_site_rke2_token=old, vault_site_rke2_token_before=new)
    well(lab.drive("rotate", "token", root=site))
    assert {(opens(lab, server, old), opens(lab, server, new)) for server in lab.servers} == {(200, 401)}


@pytest.mark.shard("rotate")
@pytest.mark.proves("restore-token-rotated")
def test_a_snapshot_from_before_a_rotation_comes_back_with_the_token_of_its_day(lab: Lab, site: Path) -> None:
    old, new = lab.secrets()["vault_site_rke2_token"], secrets.token_hex(32)
    well(lab.drive("snapshot", "save", "--name", "before-token", root=site))
    found = well(lab.drive("snapshot", "list", root=site)).document["snapshots"]
    (name,) = {one["name"] for one in found if one["name"].startswith(f"before-token-{lab.servers[0]}-")}
    seal(lab, site, vault_site_rke2_token=new, vault_site_rke2_token_before=old)
    well(lab.drive("rotate", "token", root=site))
    ids = {lab.cluster(server) for server in lab.servers}

    done = lab.drive("restore", name, "--confirm", "lab", root=site)
    assert done.status == 1
    assert "was taken with another server token" in done.message
    assert {lab.cluster(server) for server in lab.servers} == ids

    # What the refusal says: that token into the vault, and the same command.
    seal(lab, site, vault_site_rke2_token=old)
    well(lab.drive("restore", name, "--confirm", "lab", root=site))
    assert {(opens(lab, server, old), opens(lab, server, new)) for server in lab.servers} == {(200, 401)}
    eventually("all nodes Ready", lab.healthy)
    assert well(lab.drive("check", "--until", "canal", root=site)).document["changed"] == 0
    well(lab.drive("snapshot", "prune", "--keep", "0", "--days", "0", root=site))


@pytest.mark.shard("rotate")
@pytest.mark.proves("rotate-agent-token")
def test_agents_start_with_another_token_and_the_old_one_opens_no_server(lab: Lab, site: Path) -> None:
    old, new = lab.secrets()["vault_site_rke2_agent_token"], secrets.token_hex(32)
    for wanted, other in ((new, old), (old, new)):
        seal(lab, site, vault_site_rke2_agent_token=wanted)
        well(lab.drive("rotate", "agent-token", root=site))
        assert {opens(lab, server, wanted, "node") for server in lab.servers} == {200}
        assert {opens(lab, server, other, "node") for server in lab.servers} == {401}
        assert well(lab.drive("rotate", "agent-token", root=site)).document["changed"] == 0
        eventually("all nodes Ready", lab.healthy)


@pytest.mark.shard("rotate")
@pytest.mark.proves("rotate-encryption-keys")
def test_what_etcd_has_of_a_secret_is_encrypted_with_the_new_key(lab: Lab, site: Path) -> None:
    def raw(name: str) -> bytes:
        told = lab.etcdctl(lab.servers[1], f"get /registry/secrets/default/{name}")
        return base64.b64decode(told["kvs"][0]["value"])

    def key(server: str) -> str:
        status = json.loads(lab.sh(server, "rke2 secrets-encrypt status -o json"))
        assert (status["stage"], status["hashmatch"]) == ("reencrypt_finished", True)
        return str(status["activekey"]).split()[1]

    value = f"canary-{secrets.token_hex(16)}"
    lab.kubectl("create", "secret", "generic", "rotate-canary", f"--from-literal=a={value}")
    try:
        before = raw("rotate-canary")
        assert before.startswith(b"k8s:enc:aescbc:v1:")
        assert value.encode() not in before
        well(lab.drive("rotate", "encryption-keys", "--force", root=site))
        (made,) = {key(server) for server in lab.servers}
        assert raw("rotate-canary").startswith(f"k8s:enc:aescbc:v1:{made}:".encode())
        assert not before.startswith(f"k8s:enc:aescbc:v1:{made}:".encode())
        values = f"{etcdctl()} get --prefix /registry/secrets/ --print-value-only | grep -a ^k8s:enc:"
        listing = lab.sh(lab.servers[0], f"{values} | wc -l")
        others = lab.sh(lab.servers[0], f"{values} | grep -avc :{made}:; true")
        assert int(listing) > 5
        assert int(others) == 0
        for server in lab.servers:
            read = lab.kubectl("get", "secret", "rotate-canary", "-o", "jsonpath={.data.a}", server=server)
            assert base64.b64decode(read).decode() == value
        assert well(lab.drive("rotate", "encryption-keys", root=site)).document["changed"] == 0
    finally:
        lab.kubectl("delete", "secret", "rotate-canary")


@pytest.mark.shard("rotate")
@pytest.mark.proves("rotate-keepalived-password")
def test_the_address_stays_where_it_is_while_all_servers_take_another_password(lab: Lab, site: Path) -> None:
    def holders() -> list[str]:
        return [name for name in lab.servers if f" {address}/" in lab.sh(name, "ip -4 -o address")]

    address, old = nodes.PARAMETERS["site_api_address"], lab.secrets()["vault_site_api_address_password"]
    before = holders()
    assert len(before) == 1
    for wanted in (secrets.token_hex(4), old):
        seal(lab, site, vault_site_api_address_password=wanted)
        done = well(lab.drive("rotate", "keepalived-password", root=site))
        assert done.document["report"]["gap"] <= 3
        assert {
            f"auth_pass {wanted}" in lab.sh(name, "cat /etc/keepalived/keepalived.conf") for name in lab.servers
        } == {True}
        assert holders() == before
        assert well(lab.drive("rotate", "keepalived-password", root=site)).document["changed"] == 0


@pytest.mark.proves("etcd-status")
def test_the_size_of_every_member_is_what_etcd_itself_says(lab: Lab) -> None:
    servers = well(lab.drive("etcd", "status")).document["servers"]
    assert set(servers) == set(lab.servers)
    for name, told in servers.items():
        assert told["alarms"] == []
        assert abs(told["member"]["size"] - status(lab, name)["dbSize"]) <= 4 << 20  # others write
        assert told["member"]["quota"] >= 2 << 30
    assert [name for name, told in servers.items() if told["member"]["leader"]] == [leader(lab)]


@pytest.mark.shard("rotate")
@pytest.mark.proves("etcd-defrag")
def test_an_etcd_that_is_out_of_space_is_written_to_again(lab: Lab, site: Path) -> None:
    with out_of_space(lab) as size:
        assert lab.drive("etcd", "status", root=site).status == 1
        done = well(lab.drive("etcd", "defrag", root=site))
        assert any("ended the alarm NOSPACE" in told["done"] for told in done.document["servers"].values())
        assert lab.sh(lab.servers[0], f"{etcdctl()} alarm list").strip() == ""
        lab.kubectl("create", "configmap", "written-again", "--from-literal=a=b")
        lab.kubectl("delete", "configmap", "written-again")
        assert max(told["member"]["size"] for told in done.document["servers"].values()) < size + (12 << 20)


@contextmanager
def out_of_space(lab: Lab) -> Iterator[int]:
    """Fill etcd up to a quota of this test until it raises NOSPACE; gives how large the largest member was before."""
    size = max(status(lab, name)["dbSize"] for name in lab.servers)
    manifest, key = f"{DATA}/agent/pod-manifests/etcd.yaml", "/metalhub-test/filler"

    def limit(edit: str) -> None:
        for name in lab.servers:
            before = lab.sh(name, "pidof etcd")
            lab.sh(name, f"sed -i {edit} {manifest}")
            eventually("another etcd", lambda: lab.sh(name, "pidof etcd", check=False) not in ("", before), 60)  # noqa: B023
            eventually("all vote and serve", lab.healthy)

    limit(f"'s/^\\( *\\)- --data-dir=.*/&\\n\\1- --quota-backend-bytes={size + (24 << 20)}/'")
    try:
        value = "head -c 700000 /dev/urandom | base64 -w0"
        lab.sh(lab.servers[0], f"for n in $(seq 80); do {value} | {etcdctl()} put {key}; done >/dev/null 2>&1; true")
        assert "NOSPACE" in lab.sh(lab.servers[0], f"{etcdctl()} alarm list")
        yield size
    finally:
        lab.sh(lab.servers[0], f"{etcdctl()} del {key}", check=False)
        limit("/quota-backend-bytes/d")


def etcdctl() -> str:
    """etcdctl on a server, for what is no JSON."""
    tls = f"{DATA}/server/tls/etcd"
    return f"{DATA}/bin/etcdctl --cacert={tls}/ca.crt --cert={tls}/server.crt --key={tls}/server.key"


def leader(lab: Lab) -> str:
    """The server whose member leads."""
    told = {name: status(lab, name) for name in lab.servers}
    return next(name for name, one in told.items() if one["leader"] == one["header"]["member_id"])


def status(lab: Lab, server: str) -> dict[str, Any]:
    """What the member on a server says of itself."""
    answers: Any = lab.etcdctl(server, "endpoint status")
    return dict(answers[0]["Status"])


def ask(lab: Lab, server: str, token: str, question: str, body: str = "", user: str = "server") -> int:
    """The status of a server's supervisor's answer; 0 where nothing answers."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(lab.machines[server].address, SUPERVISOR, context=context, timeout=20)
    method, _, path = question.partition(" ")
    basic = base64.b64encode(f"{user}:{token}".encode()).decode()
    try:
        connection.request(method, f"/v1-rke2/{path}", body or None, {"Authorization": f"Basic {basic}"})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def opens(lab: Lab, server: str, token: str, user: str = "server") -> int:
    """What a server answers to whoever shows a token."""
    return ask(lab, server, token, "GET readyz", user=user)
