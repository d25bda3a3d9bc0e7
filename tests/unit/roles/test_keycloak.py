"""What the role keycloak tells Keycloak of mail, directory and identity provider, without any Keycloak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
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


@pytest.fixture(autouse=True, scope="module")
def plugins() -> None:
    """Let templates find filters and lookups."""
    init_plugin_loader()


def decide(name: str, seen: list[Any] | None = None, **inputs: Any) -> Any:
    """Return the role's variable `name` for these inputs.

    seen: what Keycloak has of realm, identity providers and the hub's client; without it there is no realm.
    """
    loader = DataLoader()
    variables: dict[str, Any] = {}
    for part in ("defaults", "vars"):
        variables |= loader.load_from_file(str(ROLE / part / "main.yml"), trusted_as_template=True)
    # As Ansible reads them from a file.
    variables |= {
        "keycloak_realm": "hub",
        "site_name": "test",
        "site_host": "hub.test",
        "role_path": str(ROLE),
    } | loader.load(yaml.safe_dump(SECRETS | inputs))
    unknown = {"status": 404, "json": {"error": "Realm not found."}}
    results = [{"status": 200, "json": one} for one in seen] if seen else [unknown] * 3
    variables["__keycloak_seen"] = {"results": results}
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
    seen = [{place: there}, [{"alias": "institute", place: there}, {"alias": "other", "config": {}}], []]
    assert decide(name, seen, **inputs) == there
    secret = {"password": "keycloak_smtp_password", "clientSecret": "keycloak_identity_provider_secret"}[key]
    changed = decide(name, seen, **inputs | {secret: "new-canary"})
    assert changed[key] == "new-canary"
    assert changed["metalhubMark"] != there["metalhubMark"]


@pytest.mark.proves("keycloak-opt-in")
def test_keycloak_gets_text_for_mail_and_the_provider_and_never_writes_to_the_directory() -> None:
    mail = decide("__keycloak_smtp_server", keycloak_smtp={"host": "mail.test", "from": "hub@site.test"})
    assert mail.pop("metalhubMark")
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


INSTITUTE = {"alias": "institute", "providerId": "oidc", "enabled": True}


def had(**inputs: Any) -> list[Any]:
    """Return what Keycloak has after a run with these inputs, and a provider that somebody made by hand."""
    mail = {"smtpServer": decide("__keycloak_smtp_server", **inputs)} if "keycloak_smtp" in inputs else {}
    providers: list[Any] = [{"alias": "by-hand", "enabled": True, "config": {"clientId": "x"}}]
    if "keycloak_identity_provider" in inputs:
        providers.append(INSTITUTE | {"config": decide("__keycloak_provider", **inputs)})
    return [mail, providers, [{"attributes": decide("__keycloak_attributes", **inputs)}]]


ALL = {"keycloak_smtp": SMTP, "keycloak_ldap": LDAP, "keycloak_identity_provider": PROVIDER}
NOTHING = {"smtp": False, "providers": [], "directory": False}


@pytest.mark.proves("keycloak-opt-out")
@pytest.mark.parametrize(
    ("before", "now", "left"),
    [
        pytest.param(ALL, ALL, NOTHING, id="all-stay"),
        pytest.param(ALL, {}, {"smtp": True, "providers": ["institute"], "directory": True}, id="all-go"),
        pytest.param({}, {}, NOTHING, id="none-were"),
        pytest.param({}, ALL, NOTHING, id="all-come"),
        pytest.param(
            ALL,
            ALL | {"keycloak_identity_provider": PROVIDER | {"alias": "other"}},
            NOTHING | {"providers": ["institute"]},
            id="another-name",
        ),
        pytest.param(
            ALL,
            {"keycloak_smtp": SMTP, "keycloak_identity_provider": PROVIDER},
            NOTHING | {"directory": True},
            id="directory-goes",
        ),
    ],
)
def test_what_the_site_gave_up_goes_and_what_somebody_made_by_hand_stays(
    before: dict[str, Any], now: dict[str, Any], left: dict[str, Any]
) -> None:
    found = decide("__keycloak_left", had(**before), **now)
    assert found | {"providers": [one["alias"] for one in found["providers"]]} == left


@pytest.mark.proves("keycloak-opt-out")
def test_a_provider_that_was_switched_off_is_not_switched_off_again() -> None:
    seen = had(keycloak_identity_provider=PROVIDER)
    seen[1][-1]["enabled"] = False
    assert decide("__keycloak_left", seen) == NOTHING


@pytest.mark.proves("keycloak-opt-out")
def test_what_somebody_made_by_hand_bears_no_mark() -> None:
    seen = [{"smtpServer": {"host": "mail.test"}}, [{"alias": "institute", "config": {}}], [{"attributes": {}}]]
    assert decide("__keycloak_left", seen) == NOTHING
    # Nor is there anything before the first run, or without the hub's client.
    assert decide("__keycloak_left") == NOTHING
    assert decide("__keycloak_left", [{}, [], []]) == NOTHING


def mode(seen: list[Any] | None, **inputs: Any) -> str:
    """Return whether the directory's password is sent: always, or only with something else that has changed."""
    loader = DataLoader()
    block = loader.load_from_file(str(ROLE / "tasks/realm.yml"), trusted_as_template=True)
    (task,) = (
        inner["community.general.keycloak_user_federation"]
        for outer in block
        for inner in outer.get("block", ())
        if "bind_credential_update_mode" in inner.get("community.general.keycloak_user_federation", {})
    )
    there = decide("__keycloak_there", seen, **inputs)
    marks = decide("__keycloak_marks", seen, **inputs)
    known = {"__keycloak_there": there, "__keycloak_marks": marks}
    return str(Templar(loader, variables=known).template(task["bind_credential_update_mode"]))


@pytest.mark.proves("keycloak-opt-in")
def test_the_directory_s_password_is_sent_when_it_has_changed_and_only_then() -> None:
    inputs: dict[str, Any] = {"keycloak_ldap": LDAP}
    assert mode(had(**inputs), **inputs) == "only_indirect"
    assert mode(had(**inputs), **inputs, keycloak_ldap_password="new-canary") == "always"
    assert mode(None, **inputs) == mode(had(), **inputs) == "always"
    assert "canary" not in repr(decide("__keycloak_attributes", **inputs))


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


PEERS = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "keycloakx"}}}
DUMPS = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "keycloak-dumps"}}}
DATABASE = {
    "to": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "keycloak-database"}}}],
    "ports": [{"port": 5432, "protocol": "TCP"}],
}
NAMES = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def policies(**inputs: Any) -> dict[str, Any]:
    """Return what each policy of the namespace says, by name; a policy that says nothing of a way closes it."""
    found = {one["metadata"]["name"]: one["spec"] for one in decide("__keycloak_policies", **inputs)}
    assert all(one["policyTypes"] == ["Ingress", "Egress"] for one in found.values())
    return {name: (one.get("ingress", []), one.get("egress", [])) for name, one in found.items()}


@pytest.mark.proves("keycloak-network")
@pytest.mark.parametrize(
    ("ingress_class", "controllers"),
    [
        pytest.param(
            "nginx", {("kube-system", "rke2-ingress-nginx"), ("ingress-nginx", "ingress-nginx")}, id="ingress-nginx"
        ),
        pytest.param("traefik", {("kube-system", "rke2-traefik")}, id="traefik"),
    ],
)
def test_only_the_ingress_controller_reaches_the_login(ingress_class: str, controllers: set[tuple[str, str]]) -> None:
    found = policies(keycloak_ingress_class=ingress_class)
    login, peers = found["keycloak"][0]
    assert login["ports"] == [{"port": 8080, "protocol": "TCP"}]
    assert {
        (
            one["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"],
            one["podSelector"]["matchLabels"]["app.kubernetes.io/name"],
        )
        for one in login["from"]
    } == controllers
    assert all(set(one) == {"namespaceSelector", "podSelector"} for one in login["from"])
    assert peers == {"from": [PEERS]}
    assert found["default-deny"] == ([], [])


@pytest.mark.proves("keycloak-network")
def test_the_database_answers_keycloak_and_the_dumps_and_goes_nowhere() -> None:
    found = policies()
    assert found["keycloak-database"] == ([{"from": [PEERS, DUMPS], "ports": DATABASE["ports"]}], [])
    assert found["keycloak-dumps"] == ([], [NAMES, DATABASE])
    assert found["acme-solver"] == ([{"ports": [{"port": 8089, "protocol": "TCP"}]}], [])


@pytest.mark.proves("keycloak-network")
@pytest.mark.parametrize(
    ("inputs", "ports"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param({"keycloak_ldap": LDAP}, [636], id="directory"),
        pytest.param({"keycloak_ldap": LDAP | {"url": "ldaps://a:1636 ldaps://b"}}, [636, 1636], id="two-directories"),
        pytest.param({"keycloak_identity_provider": PROVIDER}, [443], id="provider"),
        pytest.param(
            {"keycloak_identity_provider": PROVIDER | {"token_url": "https://login.test:8443/token"}},
            [443, 8443],
            id="provider-at-another-port",
        ),
        pytest.param({"keycloak_smtp": SMTP}, [587], id="mail"),
        pytest.param(ALL | {"keycloak_smtp": SMTP | {"port": 2525}}, [443, 636, 2525], id="all"),
    ],
)
def test_keycloak_goes_out_to_what_the_site_names_and_no_further(inputs: dict[str, Any], ports: list[int]) -> None:
    outside = [{"ports": [{"port": port, "protocol": "TCP"} for port in ports]}] if ports else []
    assert policies(**inputs)["keycloak"][1] == [NAMES, DATABASE, {"to": [PEERS]}, *outside]
