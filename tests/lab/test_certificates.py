"""Certificates of the site's host come from the site's authority, are renewed, and are noticed when they are bad."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.lab.running import Lab, eventually

STAGE = ("playbooks/stages/certificates.yml",)
NAMESPACE = "cert-manager"


def serial(lab: Lab) -> str:
    """What tells the served certificate from an earlier one."""
    secret = json.loads(lab.kubectl("-n", NAMESPACE, "get", "secret", "site-tls", "-o", "json"))
    return str(secret["data"]["tls.crt"])


def test_the_control_machine_keeps_the_authority_and_no_key(lab: Lab) -> None:
    authority = json.loads(lab.kubectl("-n", NAMESPACE, "get", "secret", "site-ca", "-o", "json"))["data"]["ca.crt"]
    kept = Path("~/.kube/metalhub-lab-ca.pem").expanduser()
    assert base64.b64decode(authority).decode().strip() in kept.read_text()
    assert "PRIVATE KEY" not in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o644


def test_a_certificate_that_is_lost_is_issued_again(lab: Lab) -> None:
    before = serial(lab)
    lab.kubectl("-n", NAMESPACE, "delete", "secret", "site-tls")
    eventually(
        "another certificate", lambda: "site-tls" in lab.kubectl("-n", NAMESPACE, "get", "secrets", "-o", "name")
    )
    assert serial(lab) != before
    recap = lab.play("--tags", "verify", playbooks=STAGE)
    assert recap.status == 0, recap.output[-3000:]


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


def test_a_certificate_of_another_authority_fails_the_verification(lab: Lab, tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    kept = Path("~/.kube/metalhub-lab-ca.pem").expanduser().read_text()
    # The first of the public authorities alone: the site's own is missing.
    end = "-----END CERTIFICATE-----\n"
    bundle.write_text(kept[kept.index("-----BEGIN") : kept.index(end) + len(end)])
    recap = lab.play("--tags", "verify", "-e", f"certificates_bundle_path={bundle}", playbooks=STAGE)
    assert recap.status == 2
    assert "Follow the chain" in recap.output
