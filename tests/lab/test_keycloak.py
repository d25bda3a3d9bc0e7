"""People sign in at Keycloak, the hub learns their groups, and nobody else gets a login out of it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
import yaml

from tests.lab.running import ROOT, SITE, Lab, eventually

STAGE = ("playbooks/stages/keycloak.yml",)
ACCOUNT = "metalhub-provisioner"


@dataclass(frozen=True)
class Answer:
    """What a server said: status, address it sends to, body."""

    status: int
    location: str
    body: str

    @property
    def json(self) -> Any:
        """The body as a document."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Keycloak:
    """The site's Keycloak as the world sees it, by the site's name, with the site's authorities and nothing else."""

    url: str
    ca: Path
    vault: Mapping[str, str]
    realm: str
    callback: str
    words: tuple[str, ...] = ()
    jar: dict[str, Path] = field(default_factory=dict)

    def ask(self, url: str, *words: str, form: Mapping[str, str] | None = None, body: str = "") -> Answer:
        """Ask with curl; what is sent, which may be secret, goes over its standard input."""
        sent = urlencode(form) if form is not None else body
        cookies = [word for path in self.jar.values() for word in ("-b", str(path), "-c", str(path))]
        command = ["curl", "-sS", "--max-time", "30", "--cacert", str(self.ca), *self.words, *cookies, *words]
        command += ["-w", "\n%{http_code} %{redirect_url}", *(["--data", "@-"] if sent else []), url]
        done = subprocess.run(command, input=sent, capture_output=True, text=True, check=True)
        text, _, last = done.stdout.rpartition("\n")
        status, _, location = last.partition(" ")
        return Answer(int(status), location, text)

    def api(self, method: str, path: str, document: Any = None) -> Answer:
        """Manage Keycloak as the platform does, by its service account."""
        form = {"grant_type": "client_credentials", "client_id": ACCOUNT}
        form["client_secret"] = self.vault["vault_site_keycloak_admin_password"]
        token = self.ask(f"{self.url}/realms/master/protocol/openid-connect/token", form=form).json["access_token"]
        headers = ("-H", f"Authorization: Bearer {token}", "-H", "Content-Type: application/json", "-X", method)
        body = "" if document is None else json.dumps(document)
        return self.ask(f"{self.url}/admin/realms/{path}", *headers, body=body)

    @contextmanager
    def user(self, *groups: str) -> Iterator[tuple[str, str]]:
        """Name and password of a user without any profile, for as long as a test needs one."""
        name, password = f"test-{secrets.token_hex(4)}", secrets.token_urlsafe(16)
        credentials = [{"type": "password", "value": password, "temporary": False}]
        made = {"username": name, "enabled": True, "groups": list(groups), "credentials": credentials}
        assert self.api("POST", f"{self.realm}/users", made).status == 201
        try:
            yield name, password
        finally:
            (found,) = self.api("GET", f"{self.realm}/users?exact=true&username={name}").json
            self.api("DELETE", f"{self.realm}/users/{found['id']}")

    def begin(self, **changed: str) -> Answer:
        """Begin a login as the hub does, but for what is changed; an empty word leaves something out."""
        asked = {
            "client_id": "jupyterhub",
            "response_type": "code",
            "scope": "openid profile email",
            "redirect_uri": self.callback,
            "code_challenge": challenge("v" * 50),
            "code_challenge_method": "S256",
        } | changed
        query = urlencode({key: value for key, value in asked.items() if value}, quote_via=quote)
        return self.ask(f"{self.url}/realms/{self.realm}/protocol/openid-connect/auth?{query}")

    def token(self, **form: str) -> Answer:
        """Ask for a token as the hub, by its secret."""
        mine = {"client_id": "jupyterhub", "client_secret": self.vault["vault_site_hub_client_secret"]}
        return self.ask(f"{self.url}/realms/{self.realm}/protocol/openid-connect/token", form=mine | form)


def challenge(verifier: str) -> str:
    """What a login shows of its secret before it ends."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def claims(token: str) -> dict[str, Any]:
    """What a token says; who signed it is of no interest here, it came over TLS."""
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))  # type: ignore[no-any-return]


@pytest.fixture
def keycloak(lab: Lab, tmp_path: Path) -> Keycloak:
    """Keycloak, reached at the ingress' address by the site's name."""
    site = yaml.safe_load((SITE / "group_vars/all/site.yml").read_text())
    schema = yaml.safe_load((ROOT / "roles/preflight/meta/argument_specs.yml").read_text())["argument_specs"]["main"]
    realm = site.get("site_identity_realm", schema["options"]["site_identity_realm"]["default"])
    host = site["site_host"]
    return Keycloak(
        url=f"https://{host}/sso",
        ca=Path(f"~/.kube/metalhub-{site['site_name']}-ca.pem").expanduser(),
        vault=lab.secrets(),
        realm=realm,
        callback=f"https://{host}/jupyterhub/hub/oauth_callback",
        words=("--resolve", f"{host}:443:{site['site_ingress_address']}"),
        jar={"browser": tmp_path / "cookies"},
    )


@pytest.mark.proves("keycloak-login")
def test_a_user_without_a_profile_signs_in_and_the_hub_learns_the_groups(keycloak: Keycloak) -> None:
    with keycloak.user("hub-users") as (name, password):
        page = keycloak.begin()
        assert page.status == 200, page.body[-2000:]
        found = re.search(r'action="([^"]+)"', page.body)
        assert found, page.body[-2000:]
        done = keycloak.ask(html.unescape(found[1]), form={"username": name, "password": password})
        assert done.status == 302, done.body[-2000:]
        assert done.location.startswith(f"{keycloak.callback}?")
        back = parse_qs(urlsplit(done.location).query)
        assert back["iss"] == [f"{keycloak.url}/realms/{keycloak.realm}"]
        shown = {"grant_type": "authorization_code", "code": back["code"][0], "redirect_uri": keycloak.callback}
        tokens = keycloak.token(**shown, code_verifier="v" * 50).json
        info = keycloak.ask(
            f"{keycloak.url}/realms/{keycloak.realm}/protocol/openid-connect/userinfo",
            "-H",
            f"Authorization: Bearer {tokens['access_token']}",
        ).json
        for told in (claims(tokens["access_token"]), claims(tokens["id_token"]), info):
            assert told["groups"] == ["hub-users"]
            assert told["preferred_username"] == name


@pytest.mark.proves("keycloak-strict-client")
def test_no_login_goes_anywhere_but_to_the_hub_and_none_without_a_challenge(keycloak: Keycloak) -> None:
    for address in (f"{keycloak.callback}/x", keycloak.callback.replace("https", "http"), "https://elsewhere.test/"):
        assert keycloak.begin(redirect_uri=address).status == 400, address
    for missing in (
        {"code_challenge": "", "code_challenge_method": ""},
        {"code_challenge_method": "plain"},
        {"response_type": "token"},
    ):
        refused = keycloak.begin(**missing)
        assert refused.status == 302, missing
        assert "error=" in refused.location, missing
    with keycloak.user("hub-users") as (name, password):
        refused = keycloak.token(grant_type="password", username=name, password=password)
        assert refused.json["error"] == "unauthorized_client"
    assert keycloak.token(grant_type="client_credentials").json["error"] == "unauthorized_client"


@pytest.mark.proves("keycloak-no-first-administrator")
def test_nobody_administers_keycloak_but_a_service_account_that_stays(lab: Lab, keycloak: Keycloak) -> None:
    assert keycloak.api("GET", "master/users").json == []
    (account,) = keycloak.api("GET", f"master/clients?clientId={ACCOUNT}").json
    assert account["attributes"].get("is_temporary_admin", "false") == "false"
    names = lab.kubectl("-n", "keycloak", "get", "secrets", "-o", "name").split()
    assert "secret/keycloak-database" in names
    assert "secret/keycloak-bootstrap" not in names


@pytest.mark.proves("keycloak-realm")
def test_guessed_passwords_are_stopped_and_sessions_end(keycloak: Keycloak) -> None:
    defaults = yaml.safe_load((ROOT / "roles/keycloak/defaults/main.yml").read_text())
    realm = keycloak.api("GET", keycloak.realm).json
    assert (realm["bruteForceProtected"], realm["failureFactor"]) == (True, 10)
    assert realm["ssoSessionIdleTimeout"] == defaults["keycloak_session_idle_seconds"]
    assert realm["ssoSessionMaxLifespan"] == defaults["keycloak_session_max_seconds"]
    assert (realm["registrationAllowed"], realm["editUsernameAllowed"]) == (False, False)


@pytest.mark.proves("keycloak-restores")
def test_a_client_changed_by_hand_is_found_and_put_right(lab: Lab, keycloak: Keycloak) -> None:
    (client,) = keycloak.api("GET", f"{keycloak.realm}/clients?clientId=jupyterhub").json
    client["redirectUris"] = ["https://elsewhere.test/*"]
    assert keycloak.api("PUT", f"{keycloak.realm}/clients/{client['id']}", client).status == 204
    recap = lab.play("--tags", "verify", playbooks=STAGE)
    assert recap.status == 2
    assert keycloak.callback in recap.output
    recap = lab.play(playbooks=STAGE)
    assert recap.status == 0, recap.output[-3000:]
    assert recap.changed == {"localhost": 1}
    (client,) = keycloak.api("GET", f"{keycloak.realm}/clients?clientId=jupyterhub").json
    assert client["redirectUris"] == [keycloak.callback]


OPTED = {
    "keycloak_mfa_required": True,
    "keycloak_smtp": {"host": "mail.lab.test", "from": "hub@lab.test", "user": "hub"},
    "keycloak_smtp_password": "mail-canary",
    "keycloak_ldap": {
        "url": "ldaps://ldap.lab.test",
        "users_dn": "ou=people,dc=lab,dc=test",
        "bind_dn": "cn=reader,dc=lab,dc=test",
        "filter": "(memberOf=cn=hpc,dc=lab,dc=test)",
    },
    "keycloak_ldap_password": "ldap-canary",
    "keycloak_identity_provider": {
        "alias": "institute",
        "client_id": "hub",
        "issuer": "https://login.lab.test",
        "authorization_url": "https://login.lab.test/auth",
        "token_url": "https://login.lab.test/token",
        "jwks_url": "https://login.lab.test/keys",
        "user_info_url": "https://login.lab.test/me",
    },
    "keycloak_identity_provider_secret": "provider-canary",
}
FEDERATIONS = "components?type=org.keycloak.storage.UserStorageProvider"


BY_HAND = {
    "alias": "by-hand",
    "providerId": "oidc",
    "config": {
        "clientId": "hub",
        "clientSecret": "by-hand-canary",
        "authorizationUrl": "https://hand.lab.test/auth",
        "tokenUrl": "https://hand.lab.test/token",
    },
}


@pytest.fixture
def opted(lab: Lab, keycloak: Keycloak) -> Iterator[None]:
    """A provider that somebody made by hand; afterwards the realm has neither provider nor directory."""
    assert keycloak.api("POST", f"{keycloak.realm}/identity-provider/instances", BY_HAND).status == 201
    try:
        yield
    finally:
        recap = lab.play(playbooks=STAGE)
        for alias in ("by-hand", "institute"):
            keycloak.api("DELETE", f"{keycloak.realm}/identity-provider/instances/{alias}")
        for one in keycloak.api("GET", f"{keycloak.realm}/{FEDERATIONS}").json:
            keycloak.api("DELETE", f"{keycloak.realm}/components/{one['id']}")
        assert recap.status == 0, recap.output[-3000:]


@pytest.mark.shard("platform")
@pytest.mark.proves("keycloak-opt-in", "keycloak-opt-out")
def test_directory_provider_mail_and_second_factor_are_there_when_asked_for_and_a_second_run_changes_nothing(
    lab: Lab, keycloak: Keycloak, opted: None
) -> None:
    recap = lab.play("-e", json.dumps(OPTED), playbooks=STAGE)
    assert recap.status == 0, recap.output[-3000:]
    assert "canary" not in recap.output
    again = lab.play("-e", json.dumps(OPTED), playbooks=STAGE)
    assert (again.status, again.changed) == (0, {}), again.output[-3000:]
    action = keycloak.api("GET", f"{keycloak.realm}/authentication/required-actions/CONFIGURE_TOTP").json
    assert (action["enabled"], action["defaultAction"]) == (True, True)
    (federation,) = keycloak.api("GET", f"{keycloak.realm}/{FEDERATIONS}").json
    assert federation["config"]["editMode"] == ["READ_ONLY"]
    mappers = keycloak.api("GET", f"{keycloak.realm}/components?parent={federation['id']}").json
    assert "username" in {one["name"] for one in mappers}
    provider = keycloak.api("GET", f"{keycloak.realm}/identity-provider/instances/institute").json
    assert provider["config"]["validateSignature"] == "true"
    assert keycloak.api("GET", keycloak.realm).json["smtpServer"]["host"] == "mail.lab.test"
    page = keycloak.begin()
    assert "broker/institute/login" in html.unescape(page.body)
    # Another secret in the vault arrives, and only that.
    other = OPTED | {"keycloak_identity_provider_secret": "another-canary"}
    recap = lab.play("-e", json.dumps(other), playbooks=STAGE)
    assert (recap.status, recap.changed) == (0, {"localhost": 1}), recap.output[-3000:]
    # So does the directory's, of which Keycloak tells nothing; the hub's client bears its mark.
    other |= {"keycloak_ldap_password": "another-canary"}
    recap = lab.play("-e", json.dumps(other), playbooks=STAGE)
    assert (recap.status, recap.changed) == (0, {"localhost": 1}), recap.output[-3000:]
    # None of them is named any more: mail, second factor, the client's mark and ways out go, two are switched off.
    recap = lab.play(playbooks=STAGE)
    assert (recap.status, recap.changed) == (0, {"localhost": 6}), recap.output[-3000:]
    (federation,) = keycloak.api("GET", f"{keycloak.realm}/{FEDERATIONS}").json
    assert federation["config"]["enabled"] == ["false"]
    assert not keycloak.api("GET", keycloak.realm).json.get("smtpServer")
    providers = keycloak.api("GET", f"{keycloak.realm}/identity-provider/instances").json
    assert {one["alias"]: one["enabled"] for one in providers} == {"by-hand": True, "institute": False}
    assert "broker/institute/login" not in html.unescape(keycloak.begin().body)
    recap = lab.play(playbooks=STAGE)
    assert (recap.status, recap.changed) == (0, {}), recap.output[-3000:]


@pytest.mark.proves("keycloak-half-described")
def test_a_directory_in_clear_text_is_refused_before_anything_changes(lab: Lab) -> None:
    given = OPTED | {"keycloak_ldap": OPTED["keycloak_ldap"] | {"url": "ldap://ldap.lab.test"}}  # type: ignore[operator]
    recap = lab.play("-e", json.dumps(given), playbooks=STAGE)
    assert recap.status == 2
    assert "ldap://ldap.lab.test is not ldaps://" in " ".join(recap.output.split())
    assert recap.changed == {}
    assert "canary" not in recap.output


def dump(lab: Lab) -> None:
    """Have the database dumped now."""
    lab.kubectl("-n", "keycloak", "create", "job", "dump-now", "--from=cronjob/keycloak-dumps")
    ended = "jsonpath={.status.succeeded}"
    eventually("the dump is there", lambda: lab.kubectl("-n", "keycloak", "get", "job", "dump-now", "-o", ended) == "1")
    lab.kubectl("-n", "keycloak", "delete", "job", "dump-now")


@pytest.mark.shard("platform")
@pytest.mark.proves("keycloak-dumps")
def test_the_way_back_to_a_dump_works_as_it_is_written(lab: Lab, keycloak: Keycloak) -> None:
    text = (ROOT / "docs/how_to.md").read_text()
    section = text[text.index("get Keycloak's accounts back?") :]
    commands = re.findall(r"^    (\S.*)$", section[: section.index("\n\n**")], re.M)
    with keycloak.user("hub-users") as (kept, _):
        dump(lab)
        newest = lab.kubectl("-n", "keycloak", "exec", "keycloak-database-0", "--", "ls", "/dumps").split()[-1]
        late = f"{kept}-late"
        assert keycloak.api("POST", f"{keycloak.realm}/users", {"username": late}).status == 201
        for command in commands[1:]:  # the first names the kubeconfig, which a server's own kubectl has
            typed = command.replace("<site>", "lab").replace("<dump>", newest)
            if typed.startswith("kubectl "):
                lab.kubectl(*typed.split()[1:])
            else:
                lab.type(typed)
        for name in (kept, late):
            found = keycloak.api("GET", f"{keycloak.realm}/users?exact=true&username={name}").json
            assert bool(found) == (name == kept), name


@pytest.mark.shard("platform")
@pytest.mark.proves("keycloak-dumps", "storage-lost")
def test_accounts_come_back_after_the_database_s_disk_is_lost(lab: Lab, keycloak: Keycloak) -> None:
    with keycloak.user("hub-users") as (name, _):
        asked = f"{keycloak.realm}/users?exact=true&username={name}"
        (before,) = keycloak.api("GET", asked).json
        dump(lab)
        claim = json.loads(lab.kubectl("-n", "keycloak", "get", "pvc", "data-keycloak-database-0", "-o", "json"))
        volume = json.loads(lab.kubectl("get", "pv", claim["spec"]["volumeName"], "-o", "json"))["spec"]
        (term,) = volume["nodeAffinity"]["required"]["nodeSelectorTerms"]
        ((machine,),) = (expression["values"] for expression in term["matchExpressions"])
        path = volume["local"]["path"]
        lab.sh(machine, f"test -d {path} && rm -rf {path}")
        lab.kubectl("-n", "keycloak", "delete", "pod", "keycloak-database-0", "--force", "--grace-period=0")
        recap = lab.play(playbooks=("playbooks/stages/storage.yml",))
        assert recap.status == 2
        assert f"keycloak/data-keycloak-database-0 ({path} on {machine})" in recap.output
        renew = ("playbooks/operations/volumes_renew.yml",)
        assert lab.play("-e", "storage_renew_lost=other", playbooks=renew).status == 2
        recap = lab.play("-e", "storage_renew_lost=lab", playbooks=renew)
        assert (recap.status, recap.changed) == (0, {"localhost": 1}), recap.output[-3000:]
        recap = lab.play(playbooks=STAGE)
        assert (recap.status, recap.changed) == (0, {}), recap.output[-3000:]
        (after,) = keycloak.api("GET", asked).json
        assert after == before
    assert lab.play("-e", "storage_renew_lost=lab", playbooks=renew).changed == {}
