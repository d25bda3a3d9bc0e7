"""Lab RKE2's certificates: which are renewed, which are set aside, and that no authority is touched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import certificates
from paths import Paths

pytestmark = pytest.mark.proves("lab-certificates")


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A server's tree with an authority and two certificates, a kubeconfig, and what a kubelet made."""
    monkeypatch.setattr(certificates, "KUBEADM", tmp_path / "kubernetes")
    for name in ("kubernetes", "data/server/tls/etcd", "data/agent/pki"):
        (tmp_path / name).mkdir(parents=True)
    paths = Paths(tmp_path / "data")
    for name in ("ca", "apiserver", "etcd/ca", "etcd/server"):
        certificate(paths, name, 365)
    (paths.tls / "sa.key").touch()
    (paths.tls / "server-ca.crt").symlink_to("ca.crt")
    (paths.tls / "serving-kube-apiserver.crt").symlink_to("apiserver.crt")
    (tmp_path / "kubernetes/scheduler.conf").touch()
    (paths.agent / "pki/kubelet-1.pem").touch()
    (paths.agent / "pki/kubelet-client-current.pem").symlink_to("kubelet-1.pem")
    (paths.agent / "kubelet.kubeconfig").touch()
    return paths


def certificate(paths: Paths, name: str, days: int) -> None:
    """Make one that ends in so many days, signed by the authority unless it is one."""
    out = ["-keyout", f"{paths.tls}/{name}.key", "-out", f"{paths.tls}/{name}.crt", "-days", str(days)]
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    signed = [] if name.endswith("ca") else ["-CA", f"{paths.tls}/ca.crt", "-CAkey", f"{paths.tls}/ca.key"]
    subprocess.run([*words, *signed, "-subj", f"/CN={Path(name).name}", *out], check=True, capture_output=True)


def left(paths: Paths) -> set[str]:
    """What lies below server/tls and agent, and beside it."""
    tree = paths.data.parent
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_symlink() or path.is_file()}


GONE = {
    *(f"data/server/tls/{name}.{kind}" for name in ("apiserver", "etcd/server") for kind in ("crt", "key")),
    *(f"data/agent/pki/{name}.pem" for name in ("kubelet-1", "kubelet-client-current")),
    "kubernetes/scheduler.conf",
}


def test_a_rotation_sets_everything_but_authorities_aside(paths: Paths) -> None:
    before = left(paths)
    certificates.rotate(paths)
    (backup,) = paths.server.glob("tls-*")
    after = {name for name in left(paths) if f"/{backup.name}/" not in name}
    assert before - after == GONE
    assert {"apiserver.crt", "etcd", "kubelet-1.pem", "kubelet-client-current.pem"} <= {
        p.name for p in backup.iterdir()
    }


def test_a_start_renews_all_when_another_authority_has_come(paths: Paths) -> None:
    before = left(paths)
    certificates.renew(paths)
    assert left(paths) == before
    certificate(paths, "ca", 365)
    certificates.renew(paths)
    assert before - left(paths) == GONE
    # Of a server whose certificates were put aside only what lies elsewhere is left.
    (paths.data.parent / "kubernetes/scheduler.conf").touch()
    certificates.renew(paths)
    assert before - left(paths) == GONE


def test_an_agent_keeps_its_kubeconfig_by_which_it_is_known_to_have_joined(paths: Paths) -> None:
    agent = Paths(paths.data.parent / "other")
    (agent.agent / "pki").mkdir(parents=True)
    for name in ("pki/kubelet.crt", "kubelet.kubeconfig", "kubeproxy.kubeconfig"):
        (agent.agent / name).touch()
    certificates.rotate(agent)
    (backup,) = agent.agent.glob("tls-*")
    assert {p.name for p in agent.agent.rglob("*") if p.is_file() and backup not in p.parents} == {"kubelet.kubeconfig"}
    assert {path.name for path in backup.iterdir()} == {"kubelet.crt", "kubeproxy.kubeconfig"}


@pytest.mark.parametrize(("name", "days", "renewed"), [("apiserver", 119, True), ("apiserver", 121, False)])
def test_a_start_renews_all_when_one_ends_within_the_window(paths: Paths, name: str, days: int, renewed: bool) -> None:
    certificate(paths, name, days)
    before = left(paths)
    certificates.renew(paths)
    assert before - left(paths) == (GONE if renewed else set())
