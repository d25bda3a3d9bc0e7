"""Certificates of the site's host come from the site's authority, are renewed, and are noticed when they are bad."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.lab.running import Lab, eventually

STAGE = ("playbooks/stages/certificates.yml",)
NAMESPACE = "cert-manager"


def serial(lab: Lab) -> str:
    """What tells the served certificate from an earlier one."""
    secret = json.loads(lab.kubectl("-n", NAMESPACE, "get", "secret", "site-tls", "-o", "json"))
    return str(secret["data"]["tls.crt"])


@pytest.mark.proves("certificates-trust")
def test_the_control_machine_keeps_the_authority_and_no_key(lab: Lab) -> None:
    authority = json.loads(lab.kubectl("-n", NAMESPACE, "get", "secret", "site-ca", "-o", "json"))["data"]["ca.crt"]
    kept = Path("~/.kube/metalhub-lab-ca.pem").expanduser()
    assert base64.b64decode(authority).decode().strip() in kept.read_text()
    assert "PRIVATE KEY" not in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o644


@pytest.mark.proves("certificates-issued")
def test_a_certificate_that_is_lost_is_issued_again(lab: Lab) -> None:
    before = serial(lab)
    lab.kubectl("-n", NAMESPACE, "delete", "secret", "site-tls")
    eventually(
        "another certificate", lambda: "site-tls" in lab.kubectl("-n", NAMESPACE, "get", "secrets", "-o", "name")
    )
    assert serial(lab) != before
    recap = lab.play("--tags", "verify", playbooks=STAGE)
    assert recap.status == 0, recap.output[-3000:]


@pytest.mark.proves("certificates-verify")
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        pytest.param("certificates_host=other.lab.test", "it must be for other.lab.test", id="for another host"),
        pytest.param("certificates_days_left_min=80000", "valid for 80000 days", id="about to end"),
        pytest.param(
            "certificates_issuer=nobody certificates_wait_seconds=2",
            "ClusterIssuer nobody is not ready",
            id="no issuer",
        ),
    ],
)
def test_verification_names_what_is_wrong(lab: Lab, settings: str, told: str) -> None:
    recap = lab.play("--tags", "verify", "-e", settings, playbooks=STAGE)
    assert recap.status == 2
    assert told in " ".join(recap.output.split())


@pytest.mark.proves("certificates-verify")
def test_a_certificate_of_another_authority_fails_the_verification(lab: Lab, tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    kept = Path("~/.kube/metalhub-lab-ca.pem").expanduser().read_text()
    # The first of the public authorities alone: the site's own is missing.
    end = "-----END CERTIFICATE-----\n"
    bundle.write_text(kept[kept.index("-----BEGIN") : kept.index(end) + len(end)])
    recap = lab.play("--tags", "verify", "-e", f"certificates_bundle_path={bundle}", playbooks=STAGE)
    assert recap.status == 2
    assert "Follow the chain" in recap.output


ISSUER = "organisation"


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The certificate of an authority of the organisation's; its key is beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An organisation")])
    now = datetime.datetime.now(tz=datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    kind = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
    (tmp_path / "ca.key").touch(mode=0o600)
    (tmp_path / "ca.key").write_bytes(private)
    (tmp_path / "ca.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return tmp_path / "ca.pem"


@pytest.fixture
def site_s_own(lab: Lab) -> Iterator[None]:
    """The site's own authority signs again afterwards, and nothing of the other is left."""
    yield
    recap = lab.play(playbooks=STAGE)
    lab.kubectl("delete", "clusterissuer", ISSUER, "--ignore-not-found")
    lab.kubectl("-n", NAMESPACE, "delete", "secret", f"{ISSUER}-ca", "--ignore-not-found")
    assert recap.status == 0, recap.output[-3000:]


@pytest.mark.shard("platform")
@pytest.mark.proves("certificates-organisation")
def test_the_organisation_s_authority_signs_where_the_site_says_so(
    lab: Lab, authority: Path, site_s_own: None, tmp_path: Path
) -> None:
    private = authority.with_suffix(".key").read_text()
    given = tmp_path / "given.json"
    given.touch(mode=0o600)
    settings = {
        "certificates_issuer": ISSUER,
        "certificates_issuer_kind": "organisation",
        "certificates_ca_certificate": authority.read_text(),
        "certificates_ca_private_key": private,
        "certificates_bundle_path": str(tmp_path / "bundle.pem"),
    }
    given.write_text(json.dumps(settings))
    recap = lab.play("-e", f"@{given}", playbooks=STAGE)
    assert recap.status == 0, recap.output[-3000:]
    assert private.splitlines()[1] not in recap.output
    again = lab.play("-e", f"@{given}", playbooks=STAGE)
    assert (again.status, again.changed) == (0, {}), again.output[-3000:]
    # By a program that has no part in it, and with this authority alone.
    (tmp_path / "served.pem").write_bytes(base64.b64decode(serial(lab)))
    chain = ["openssl", "verify", "-CAfile", str(authority), "-untrusted", str(tmp_path / "served.pem")]
    done = subprocess.run([*chain, str(tmp_path / "served.pem")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert authority.read_text().strip() in (tmp_path / "bundle.pem").read_text()
