"""Who signs for a site, what its clients trust, and when a certificate counts as issued, without any cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.loader import init_plugin_loader

from tests.contract import tree
from tests.unit.roles.decided import Decided

ROLE = tree.ROOT / "roles/certificates"
OURS = {"certificates_ca_certificate": "the organisation's\n", "certificates_ca_private_key": "key-canary"}


@pytest.fixture(autouse=True, scope="module")
def plugins() -> None:
    """Let templates find lookups."""
    init_plugin_loader()


def role(**given: Any) -> Decided:
    """Return the role for a site."""
    site = {"site_name": "test", "site_host": "hub.test"}
    return Decided(ROLE, yaml.safe_load(yaml.safe_dump(site | given)))


@pytest.mark.proves("certificates-organisation")
@pytest.mark.parametrize("missing", ["certificates_ca_certificate", "certificates_ca_private_key"])
def test_an_authority_of_the_organisation_without_certificate_or_key_is_refused(missing: str) -> None:
    given = {"certificates_issuer_kind": "organisation"} | OURS
    assert role(**given).refused("Refuse what cannot sign", "main") == ""
    said = role(**given | {missing: ""}).refused("Refuse what cannot sign", "main")
    assert "vault_site_certificate_authority_key" in said
    assert "canary" not in said


@pytest.mark.proves("certificates-organisation")
def test_the_organisation_s_authority_signs_and_is_trusted_beside_the_public_ones(tmp_path: Path) -> None:
    public = tmp_path / "public.pem"
    public.write_text("public\n")
    given = {"certificates_issuer_kind": "organisation", "certificates_public_roots": str(public)} | OURS
    decided = role(**given, certificates_authorities={"other": "another\n"})
    (issuer,) = decided.get("__certificates_issuer_objects")
    assert issuer["spec"] == {"ca": {"secretName": "site-ca"}}
    assert decided.get("__certificates_bundle") == "public\nthe organisation's\nanother\n"


@pytest.mark.proves("certificates-organisation")
def test_the_organisation_s_authority_is_written_once_for_machines_and_clients(tmp_path: Path) -> None:
    public = tmp_path / "public.pem"
    public.write_text("public\n")
    named = {"organisation": "the organisation's\n", "other": "another\n"}
    given = {"site_ca_certificates": named, "certificates_issuer_kind": "organisation"}
    decided = role(**given, certificates_public_roots=str(public))
    assert decided.get("certificates_ca_certificate") == "the organisation's\n"
    assert decided.get("__certificates_bundle") == "public\nthe organisation's\nanother\n"
    node = Decided(tree.ROOT / "roles/node", yaml.safe_load(yaml.safe_dump({"site_ca_certificates": named})))
    assert node.get("node_ca_certificates") == named


@pytest.mark.proves("certificates-verify")
@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        pytest.param([], False, id="none"),
        pytest.param([{"type": "Ready", "status": "True", "observedGeneration": 2}], True, id="ready"),
        pytest.param([{"type": "Ready", "status": "False", "observedGeneration": 2}], False, id="not"),
        pytest.param([{"type": "Ready", "status": "True", "observedGeneration": 1}], False, id="before-the-change"),
        pytest.param([{"type": "Issuing", "status": "True", "observedGeneration": 2}], False, id="at-work"),
    ],
)
def test_a_certificate_is_ready_only_as_it_now_is(conditions: list[dict[str, Any]], ready: bool) -> None:
    seen = {"metadata": {"generation": 2}, "status": {"conditions": conditions}}
    assert role(__certificates_issued={"resources": [seen]}).get("__certificates_ready") is ready
    assert role(__certificates_issued={"resources": []}).get("__certificates_ready") is False
    assert role(__certificates_issued={"msg": "refused"}).get("__certificates_ready") is False
