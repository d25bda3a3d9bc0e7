"""What the role keycloak tells Keycloak of mail, directory and identity provider, without any Keycloak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = Path(__file__).resolve().parents[3] / "roles/keycloak"
SMTP = {"host": "mail.test", "from": "hub@site.test", "user": "hub"}
LDAP = {"url": "ldaps://ldap.test", "users_dn": "ou=people,dc=test", "bind_dn": "cn=reader,dc=test"}
PROVIDER = {
    "alias": "institute",
    "client_id": "hub",
    "issuer": "https://login.test",
    "authorization_url": "https://login.test/auth",
    "token_url": "https://login.test/token",
    "jwks_url": "https://login.test/keys",
}
SECRETS = {
    "keycloak_smtp_password": "mail-canary",
    "keycloak_ldap_password": "ldap-canary",
    "keycloak_identity_provider_secret": "provider-canary",
}
HIDDEN = "**********"


def decide(name: str, seen: list[dict[str, Any]] | None = None, **inputs: Any) -> Any:
    """Return the role's variable `name` for these inputs; `seen` is what Keycloak has of realm and provider."""
    loader = DataLoader()
    variables: dict[str, Any] = {}
    for part in ("defaults", "vars"):
        variables |= loader.load_from_file(str(ROLE / part / "main.yml"), trusted_as_template=True)
    # As Ansible reads them from a file.
    variables |= {"keycloak_realm": "hub"} | loader.load(yaml.safe_dump(SECRETS | inputs))
    variables["__keycloak_seen"] = {"results": [{"json": one} for one in seen or [{}, {}]]}
    return Templar(loader, variables=variables).template(variables[name])


@pytest.mark.proves("keycloak-half-described")
@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        pytest.param({}, "", id="nothing"),
        pytest.param(
            {"keycloak_smtp": SMTP, "keycloak_ldap": LDAP, "keycloak_identity_provider": PROVIDER}, "", id="all"
        ),
        pytest.param({"keycloak_smtp": {"host": "mail.test"}}, "keycloak_smtp lacks from", id="smtp"),
        pytest.param({"keycloak_smtp": SMTP | {"encryption": "none"}}, "password in clear text", id="smtp-clear"),
        pytest.param(
            {"keycloak_smtp": SMTP, "keycloak_smtp_password": ""}, "vault_site_smtp_password", id="smtp-password"
        ),
        pytest.param(
            {"keycloak_ldap": {"url": "ldaps://x", "bind_dn": "y"}}, "keycloak_ldap lacks users_dn", id="ldap"
        ),
        pytest.param(
            {"keycloak_ldap": LDAP | {"url": "ldaps://a ldap://b"}}, "ldap://b is not ldaps://", id="ldap-clear"
        ),
        pytest.param(
            {"keycloak_ldap": LDAP, "keycloak_ldap_password": ""}, "vault_site_ldap_password", id="ldap-password"
        ),
        pytest.param({"keycloak_identity_provider": {**PROVIDER, "issuer": ""}}, "lacks issuer", id="provider"),
        pytest.param(
            {"keycloak_identity_provider": PROVIDER | {"token_url": "http://login.test"}},
            "token_url is http://login.test",
            id="provider-clear",
        ),
        pytest.param(
            {"keycloak_identity_provider": PROVIDER, "keycloak_identity_provider_secret": ""},
            "vault_site_identity_provider_secret",
            id="provider-secret",
        ),
    ],
)
def test_what_is_half_described_or_would_send_secrets_in_clear_text_is_refused(
    inputs: dict[str, Any], said: str
) -> None:
    found = decide("__keycloak_refusals", **inputs)
    assert len(found) == bool(said), found
    assert not said or said in found[0]
    assert "canary" not in repr(found)


@pytest.mark.proves("keycloak-opt-in")
@pytest.mark.parametrize(
    ("name", "key", "inputs", "place"),
    [
        pytest.param("__keycloak_smtp_server", "password", {"keycloak_smtp": SMTP}, "smtpServer", id="smtp"),
        pytest.param(
            "__keycloak_provider", "clientSecret", {"keycloak_identity_provider": PROVIDER}, "config", id="provider"
        ),
    ],
)
def test_a_secret_that_keycloak_has_is_not_sent_again_and_another_one_is(
    name: str, key: str, inputs: dict[str, Any], place: str
) -> None:
    first = decide(name, **inputs)
    assert first[key].endswith("canary")
    assert "canary" not in first["metalhubMark"]
    # Keycloak answers with asterisks; what it is sent then must be that very answer.
    there = first | {key: HIDDEN}
    assert decide(name, [{place: there}, {place: there}], **inputs) == there
    secret = {"password": "keycloak_smtp_password", "clientSecret": "keycloak_identity_provider_secret"}[key]
    changed = decide(name, [{place: there}, {place: there}], **inputs | {secret: "new-canary"})
    assert changed[key] == "new-canary"
    assert changed["metalhubMark"] != there["metalhubMark"]


@pytest.mark.proves("keycloak-opt-in")
def test_keycloak_gets_text_for_mail_and_the_provider_and_never_writes_to_the_directory() -> None:
    mail = decide("__keycloak_smtp_server", keycloak_smtp={"host": "mail.test", "from": "hub@site.test"})
    assert mail == {
        "host": "mail.test",
        "port": "587",
        "from": "hub@site.test",
        "fromDisplayName": "JupyterHub",
        "ssl": "false",
        "starttls": "true",
        "auth": "false",
    }
    assert decide("__keycloak_smtp_server", keycloak_smtp=SMTP | {"encryption": "tls"})["port"] == "465"
    provider = decide("__keycloak_provider", keycloak_identity_provider=PROVIDER)
    assert all(isinstance(value, str) for value in provider.values())
    assert (provider["validateSignature"], provider["pkceMethod"]) == ("true", "S256")
    ldap = decide("__keycloak_ldap", keycloak_ldap=LDAP)
    assert (ldap["editMode"], ldap["syncRegistrations"], ldap["trustEmail"]) == ("READ_ONLY", False, False)
    assert ldap["rdnLDAPAttribute"] == ldap["usernameLDAPAttribute"] == "uid"


@pytest.mark.proves("keycloak-opt-in")
def test_nothing_of_it_is_there_unless_the_site_says_so() -> None:
    tasks = yaml.safe_load((ROLE / "tasks/realm.yml").read_text())
    inner = {task["name"]: task for block in tasks for task in block.get("block", ())}
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    for word in ("keycloak_ldap", "keycloak_identity_provider"):
        assert defaults[word] == {}
        assert any(f"{word} | length > 0" in str(task.get("when")) for task in inner.values())
    assert defaults["keycloak_smtp"] == {}
    assert defaults["keycloak_mfa_required"] is False
