"""A whole hub in this process: the role's configuration and code, with a Keycloak and a cluster made of dictionaries.

Real are JupyterHub with its handlers and database, OAuthenticator, and KubeSpawner up to the objects it would send.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
import ssl
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jupyterhub.app import JupyterHub
from jupyterhub.proxy import Proxy
from kubernetes_asyncio.client.rest import ApiException
from kubespawner import KubeSpawner
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from traitlets.config.loader import PyFileConfigLoader

MARK = "metalhub/identity"
LONG_AGO = -1e6


def authority(directory: Path, name: str) -> Path:
    """Make a certificate authority and what it has signed for this machine; return the authority's own file.

    name.pem: the authority. name-server.pem: key and certificate of a server at 127.0.0.1.
    """
    now = datetime.now(UTC)

    def sign(
        subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        ours, theirs = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (subject, issuer))
        made = x509.CertificateBuilder(theirs, ours, key.public_key(), x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        made = made.add_extension(x509.BasicConstraints(ca=subject == issuer, path_length=None), critical=True)
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return made.add_extension(here, critical=False).sign(by, hashes.SHA256())

    own, servers = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    file = directory / f"{name}.pem"
    file.write_bytes(sign(name, own, name, own).public_bytes(serialization.Encoding.PEM))
    key = servers.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificate = sign("127.0.0.1", servers, name, own).public_bytes(serialization.Encoding.PEM)
    (directory / f"{name}-server.pem").write_bytes(key + certificate)
    return file


class Keycloak:
    """Who there is, and whose session lives; a name comes back with another identity."""

    def __init__(self) -> None:
        self.people: dict[str, dict[str, Any]] = {}
        self.sessions: dict[str, str] = {}
        self.silent = False
        self.next = ""

    def person(self, name: str, sub: str, *groups: str) -> None:
        """Add a person, or change one."""
        self.people[name] = {"sub": sub, "preferred_username": name, "groups": list(groups)}

    def application(self) -> web.Application:
        """Return the five addresses of the realm that the hub knows."""
        keycloak = self

        class Auth(web.RequestHandler):  # type: ignore[misc]
            def get(self) -> None:
                code = f"code-{len(keycloak.sessions)}"
                keycloak.sessions[code] = keycloak.next
                back = {"code": code, "state": self.get_argument("state")}
                self.redirect(f"{self.get_argument('redirect_uri')}?{urllib.parse.urlencode(back)}")

        class Token(web.RequestHandler):  # type: ignore[misc]
            def post(self) -> None:
                session = self.get_argument("code", None) or self.get_argument("refresh_token")
                if session not in keycloak.sessions:
                    raise web.HTTPError(400)
                self.write({"access_token": session, "refresh_token": session, "token_type": "Bearer"})

        class UserInfo(web.RequestHandler):  # type: ignore[misc]
            def get(self) -> None:
                session = self.request.headers["Authorization"].split()[1]
                if session not in keycloak.sessions:
                    raise web.HTTPError(401)
                self.write(keycloak.people[keycloak.sessions[session]])

        class Logout(web.RequestHandler):  # type: ignore[misc]
            def post(self) -> None:
                if keycloak.silent:
                    raise web.HTTPError(503)
                asked = {name: self.get_argument(name) for name in self.request.arguments}
                assert asked.keys() == {"client_id", "client_secret", "refresh_token"}
                if keycloak.sessions.pop(asked["refresh_token"], None) is None:
                    raise web.HTTPError(400)
                self.set_status(204)

        where = "/realms/hub/protocol/openid-connect/"
        pages = {"auth": Auth, "token": Token, "userinfo": UserInfo, "logout": Logout}
        return web.Application([(where + name, page) for name, page in pages.items()])


class Cluster:
    """Claims and pods as an API server would keep them; no pod ever gets a node."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}
        self.pods: dict[str, Any] = {}
        self.events: dict[str, list[Any]] = {}
        self.nodes: list[Any] | None = None

    async def list_node(self, **_: Any) -> Any:
        """Return the nodes as one reads them who does not have the answer read; silent without any."""
        if self.nodes is None:
            raise OSError("no route")
        text = json.dumps({"items": self.nodes}).encode()

        async def read() -> bytes:
            return text

        return SimpleNamespace(read=read)

    async def create_namespaced_persistent_volume_claim(self, namespace: str, body: Any) -> None:  # noqa: ARG002
        """Keep a claim, unless there is one of the name."""
        if body.metadata.name in self.claims:
            raise ApiException(status=409)
        self.claims[body.metadata.name] = body

    async def read_namespaced_persistent_volume_claim(self, name: str, **_: Any) -> Any:
        """Return a claim."""
        if name not in self.claims:
            raise ApiException(status=404)
        return self.claims[name]

    async def create_namespaced_pod(self, namespace: str, body: Any) -> None:
        """Keep a pod, as one that waits."""
        self.pods[f"{namespace}/{body.metadata.name}"] = {
            "metadata": {"uid": "1", "annotations": body.metadata.annotations},
            "status": {"phase": "Pending"},
        }

    async def delete_namespaced_pod(self, name: str, namespace: str, **_: Any) -> None:
        """Forget a pod."""
        self.pods.pop(f"{namespace}/{name}", None)


class Spawner(KubeSpawner):  # type: ignore[misc]
    """The hub's own, beside which nobody watches a cluster."""

    cluster: Cluster
    events = property(lambda self: self.cluster.events.get(self.pod_name, []))
    api = property(lambda self: self.cluster, lambda self, value: None)
    pod_reflector = property(lambda self: SimpleNamespace(pods=self.cluster.pods))

    async def _start_watching_pods(self, replace: bool = False) -> None:
        pass

    async def _start_watching_events(self, replace: bool = False) -> None:
        pass


class Routes(Proxy):  # type: ignore[misc]
    """A proxy that only remembers."""

    should_start = False

    async def add_route(self, routespec: str, target: str, data: Any) -> None:
        """Keep a route."""
        self.kept[routespec] = {"routespec": routespec, "target": target, "data": data}

    async def delete_route(self, routespec: str) -> None:
        """Forget a route."""
        self.kept.pop(routespec, None)

    async def get_all_routes(self) -> Any:
        """Return what is kept."""
        return self.kept

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.kept: dict[str, Any] = {}


class Hub:
    """The running hub, and people's browsers."""

    def __init__(self, directory: Path) -> None:
        self.keycloak = Keycloak()
        self.cluster = Spawner.cluster = Cluster()
        self.loop = asyncio.new_event_loop()
        self.directory = directory
        self.app: Any = None

    async def start(self) -> None:
        """Bring everything up on free ports."""
        path = Path(os.environ["LAB_HUB_CONFIG"])
        config = PyFileConfigLoader(path.name, str(path.parent)).load_config()
        (keycloak_socket, keycloak_port), (free, port) = bind_unused_port(), bind_unused_port()
        free.close()
        self.authority = authority(self.directory, "site")
        identity = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        identity.load_cert_chain(self.directory / "site-server.pem")
        server = HTTPServer(self.keycloak.application(), ssl_options=identity)
        server.add_socket(keycloak_socket)
        issuer = f"https://127.0.0.1:{keycloak_port}/realms/hub/protocol/openid-connect"
        self.url = f"http://127.0.0.1:{port}/jupyterhub/hub"
        oauth = config.GenericOAuthenticator
        for setting, page in {"authorize": "auth", "token": "token", "userdata": "userinfo"}.items():
            oauth[f"{setting}_url"] = f"{issuer}/{page}"
        oauth.oauth_callback_url = f"{self.url}/oauth_callback"
        # Nothing but the place of the file is another.
        assert oauth.validate_server_cert is True
        assert oauth.http_request_kwargs.keys() == {"ca_certs"}
        oauth.http_request_kwargs = {"ca_certs": str(self.authority)}
        hub = config.JupyterHub
        hub.hub_bind_url = f"http://127.0.0.1:{port}"
        hub.db_url = f"sqlite:///{self.directory}/hub.sqlite"
        hub.spawner_class, hub.proxy_class = Spawner, Routes
        hub.services, hub.load_roles = [], []
        assert hub.template_paths == ["/usr/local/etc/jupyterhub/templates"]
        hub.template_paths = [f"{os.environ['LAB_HUB_DIRECTORY']}/templates"]
        hub.pid_file = ""
        os.chdir(self.directory)
        # The keeper of the login's state asks for the one application there is.
        self.app = JupyterHub.instance(config=config)
        # Signals are the main thread's.
        self.app.init_signal = lambda: None
        await self.app.initialize([])
        await self.app.start()

    def run(self, work: Callable[[], Any]) -> Any:
        """Do something where the hub runs; its database is nobody else's to touch."""

        async def call() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)

    def login(self, name: str) -> requests.Session:
        """Return the browser of somebody who has logged in."""
        browser = requests.Session()
        self.enter(browser, name)
        return browser

    def enter(self, browser: requests.Session, name: str) -> requests.Response:
        """Send a browser through the login and return where it ended."""
        # Authorities that the environment names would win, and so would a proxy.
        browser.trust_env, browser.verify = False, str(self.authority)
        self.keycloak.next = name
        return browser.get(f"{self.url}/oauth_login", timeout=10)

    def user(self, name: str) -> Any:
        """Return a user as the hub has them in memory."""
        return self.app.users[name]

    def expire(self, name: str) -> None:
        """Let so much time pass that the hub asks Keycloak at the next request."""
        self.run(lambda: setattr(self.user(name), "_auth_refreshed", LONG_AGO))

    def ask(self, browser: requests.Session, method: str, path: str, **more: Any) -> requests.Response:
        """Send a request to the hub's API as its own pages do."""
        headers = {"X-XSRFToken": browser.cookies.get("_xsrf", ""), "Referer": f"{self.url}/home"}
        return browser.request(method, f"{self.url}/api/{path}", headers=headers, timeout=10, **more)

    def start_server(self, browser: requests.Session, name: str, options: Any = None) -> str:
        """Start a server by the API; return "" if it is on its way, or why not."""
        self.ask(browser, "POST", f"users/{name}/server", json=options or {"profile": "cpu"})

        def outcome() -> str | None:
            spawner = self.user(name).spawner
            future = spawner._spawn_future
            if future is not None and future.done():
                failed = future.exception()
                return str(getattr(failed, "jupyterhub_message", failed))
            return "" if f"{spawner.namespace}/{spawner.pod_name}" in self.cluster.pods else None

        for _ in range(100):
            found: str | None = self.run(outcome)
            if found is not None:
                return found
            threading.Event().wait(0.05)
        raise AssertionError("neither a pod nor a reason")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Return the one hub; every test has people of its own."""
    made = Hub(tmp_path_factory.mktemp("hub"))
    thread = threading.Thread(target=made.loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(made.start(), made.loop).result(20)
    yield made
    made.loop.call_soon_threadsafe(made.loop.stop)
    thread.join(10)


def test_only_keycloak_with_a_certificate_of_the_sites_authority_lets_anybody_in(hub: Hub) -> None:
    hub.keycloak.person("uma", "uma-1", "hub-users")
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(self.format(record))

    ear, browser = Ear(), requests.Session()
    stranger = {"ca_certs": str(authority(hub.directory, "stranger"))}
    trusted = hub.app.authenticator.http_request_kwargs
    hub.app.log.addHandler(ear)
    try:
        hub.run(lambda: setattr(hub.app.authenticator, "http_request_kwargs", stranger))
        answer = hub.enter(browser, "uma")
    finally:
        hub.run(lambda: setattr(hub.app.authenticator, "http_request_kwargs", trusted))
        hub.app.log.removeHandler(ear)
    assert (answer.status_code, urllib.parse.urlsplit(answer.url).path) == (500, "/jupyterhub/hub/oauth_callback")
    assert re.search(r"SSL certificate .*(verify|problem).*local issuer", "\n".join(said)), said
    assert hub.ask(browser, "GET", "user").status_code == 403
    assert hub.enter(browser, "uma").status_code == 200
    assert hub.ask(browser, "GET", "user").json()["name"] == "uma"


def test_a_new_home_carries_its_owners_identity_from_the_first_login_on(hub: Hub) -> None:
    hub.keycloak.person("ada", "f:ldap:{ada}", "hub-users")
    assert hub.start_server(hub.login("ada"), "ada") == ""
    assert hub.cluster.claims["claim-ada"].metadata.annotations[MARK] == "f:ldap:{ada}"


def test_who_has_the_name_of_another_does_not_get_that_ones_home(hub: Hub) -> None:
    hub.keycloak.person("bob", "bob-1", "hub-users")
    browser = hub.login("bob")
    assert hub.start_server(browser, "bob") == ""
    hub.ask(browser, "DELETE", "users/bob/server")
    hub.keycloak.person("bob", "bob-2", "hub-users")
    browser = hub.login("bob")
    reason = hub.start_server(browser, "bob")
    assert "belongs to another account" in reason
    assert "annotate pvc claim-bob --overwrite metalhub/identity=bob-2" in reason
    assert hub.cluster.claims["claim-bob"].metadata.annotations[MARK] == "bob-1"
    assert "claim-bob belongs to another account" in browser.get(f"{hub.url}/spawn-pending/bob", timeout=10).text
    # What the reason says an administrator does.
    hub.cluster.claims["claim-bob"].metadata.annotations[MARK] = "bob-2"
    assert hub.start_server(browser, "bob") == ""


def test_a_home_that_does_not_say_whose_it_is_waits_for_an_administrator(hub: Hub) -> None:
    hub.cluster.claims["claim-cleo"] = SimpleNamespace(metadata=SimpleNamespace(annotations=None))
    hub.keycloak.person("cleo", "cleo-1", "hub-users")
    assert "does not say whose it is" in hub.start_server(hub.login("cleo"), "cleo")
    assert not [name for name in hub.cluster.pods if "cleo" in name]


def test_a_server_that_an_administrator_starts_has_its_owners_home(hub: Hub) -> None:
    hub.keycloak.person("root", "root-1", "hub-admins")
    hub.keycloak.person("dora", "dora-1", "hub-users")
    hub.login("dora")
    administrator = hub.login("root")
    assert hub.start_server(administrator, "dora") == ""
    assert hub.cluster.claims["claim-dora"].metadata.annotations[MARK] == "dora-1"


def test_leaving_every_group_ends_the_right_to_start_at_once(hub: Hub) -> None:
    hub.keycloak.person("eve", "eve-1", "hub-users")
    browser = hub.login("eve")
    assert "cpu" in browser.get(f"{hub.url}/spawn", timeout=10).text
    hub.keycloak.person("eve", "eve-1")
    assert "None of your groups" in hub.start_server(browser, "eve")
    assert not [name for name in hub.cluster.pods if "eve" in name]


def test_leaving_the_administrators_is_noticed_within_five_minutes(hub: Hub) -> None:
    hub.keycloak.person("rita", "rita-1", "hub-admins")
    browser = hub.login("rita")
    assert hub.ask(browser, "GET", "users").status_code == 200
    hub.keycloak.person("rita", "rita-1", "hub-users")
    assert 0 < hub.app.authenticator.auth_refresh_age <= 300
    hub.expire("rita")
    assert hub.ask(browser, "GET", "users").status_code == 403


def test_reports_of_a_server_do_not_depend_on_the_login(hub: Hub) -> None:
    hub.keycloak.person("fred", "fred-1", "hub-users")
    assert hub.start_server(hub.login("fred"), "fred") == ""
    server = requests.Session()
    server.headers["Authorization"] = f"token {hub.run(lambda: hub.user('fred').spawner.api_token)}"
    hub.keycloak.sessions = {key: name for key, name in hub.keycloak.sessions.items() if name != "fred"}
    hub.expire("fred")
    hub.run(lambda: setattr(hub.user("fred").spawner.orm_spawner, "last_activity", datetime(2000, 1, 1)))  # noqa: DTZ001
    report = {"servers": {"": {"last_activity": "2020-01-01T00:00:00Z"}}}
    answer = server.post(f"{hub.url}/api/users/fred/activity", data=json.dumps(report), timeout=10)
    assert answer.status_code == 200
    assert hub.run(lambda: hub.user("fred").spawner.orm_spawner.last_activity.year) == 2020
    # Nor does a report pass for a look at the login.
    assert hub.run(lambda: hub.user("fred")._auth_refreshed) == LONG_AGO
    assert server.get(f"{hub.url}/api/user", timeout=10).status_code == 403


def test_a_logout_ends_keycloaks_session_and_leaves_the_server(hub: Hub) -> None:
    hub.keycloak.person("gil", "gil-1", "hub-users")
    browser = hub.login("gil")
    assert hub.start_server(browser, "gil") == ""
    assert "gil" in hub.keycloak.sessions.values()
    assert browser.get(f"{hub.url}/logout", timeout=10).status_code == 200
    assert "gil" not in hub.keycloak.sessions.values()
    assert hub.ask(browser, "GET", "user").status_code == 403
    assert [name for name in hub.cluster.pods if "gil" in name]


def test_a_logout_that_keycloak_does_not_hear_of_says_so(hub: Hub) -> None:
    hub.keycloak.person("hal", "hal-1", "hub-users")
    browser = hub.login("hal")
    hub.keycloak.silent = True
    answer = browser.get(f"{hub.url}/logout", timeout=10)
    hub.keycloak.silent = False
    assert answer.status_code == 502
    assert "Close the browser" in answer.text
    assert hub.ask(browser, "GET", "user").status_code == 403


def test_who_waits_for_a_gpu_reads_why_and_gives_up(hub: Hub) -> None:
    hub.keycloak.person("ida", "ida-1", "hub-users")
    browser = hub.login("ida")
    message = "0/6 nodes are available: 3 Insufficient nvidia.com/gpu."
    event = {"metadata": {"uid": "1"}, "lastTimestamp": "2026-01-01T00:00:00Z", "type": "Warning", "message": message}
    hub.cluster.events["jupyter-ida"] = [event]
    assert hub.start_server(browser, "ida", {"profile": "gpu-4"}) == ""
    page = browser.get(f"{hub.url}/spawn-pending/ida", timeout=10).text
    token = re.search(r'"X-XSRFToken": "([^"]+)"', page)
    button = re.search(r'fetch\("([^"]+)", \{\s*method: "DELETE"', page)
    assert token and button and 'id="cancel"' in page
    told = hub.ask(browser, "GET", "users/ida/server/progress", stream=True)
    assert message in next(line for line in told.iter_lines(decode_unicode=True) if "Insufficient" in line)
    told.close()
    host = hub.url.removesuffix("/jupyterhub/hub")
    answer = browser.delete(f"{host}{button[1]}", headers={"X-XSRFToken": token[1]}, timeout=10)
    assert answer.ok
    assert not [name for name in hub.cluster.pods if "ida" in name]
    assert not hub.run(lambda: hub.user("ida").spawner.active)
    assert hub.start_server(browser, "ida") == ""


@pytest.mark.parametrize(
    "options",
    [{"profile": "gpu-8"}, {"profile": "cpu", "cpu": "99"}, {"profile": "cpu", "image": "evil:1"}, {"image": "evil:1"}],
)
def test_a_forged_request_makes_neither_pod_nor_home(hub: Hub, options: dict[str, str]) -> None:
    name = f"jo-{len(hub.keycloak.people)}"
    hub.keycloak.person(name, name, "hub-admins")
    assert hub.start_server(hub.login(name), name, options).startswith(("This profile", "The profile"))
    assert not [pod for pod in hub.cluster.pods if name in pod]
    assert not [claim for claim in hub.cluster.claims if name in claim]


def test_a_forged_form_makes_no_pod(hub: Hub) -> None:
    hub.keycloak.person("kim", "kim-1", "hub-users")
    browser = hub.login("kim")
    form = {"profile": "cpu", "profile-option-cpu--cpu": "99", "_xsrf": browser.cookies["_xsrf"]}
    page = browser.post(f"{hub.url}/spawn", data=form, headers={"Referer": f"{hub.url}/spawn"}, timeout=10)
    assert "has no such cpu" in page.text
    assert not [pod for pod in hub.cluster.pods if "kim" in pod]


def enter(hub: Hub, browser: requests.Session, owner: str) -> requests.Response:
    """Let a browser into a server as the server asks the hub to, agreeing to what the hub asks."""
    asked = {
        "client_id": f"jupyterhub-user-{owner}",
        "redirect_uri": f"/jupyterhub/user/{owner}/oauth_callback",
        "response_type": "code",
        "state": "x",
    }
    url = f"{hub.url}/api/oauth2/authorize"
    answer = browser.get(url, params=asked, allow_redirects=False, timeout=10)
    if answer.status_code != 200:
        return answer
    agreed = {
        "_xsrf": re.search(r'name="_xsrf" value="([^"]+)"', answer.text)[1],  # type: ignore[index]
        "scopes": re.findall(r'name="scopes" value="([^"]+)"', answer.text),
    }
    headers = {"Referer": answer.url}
    return browser.post(url, params=asked, data=agreed, headers=headers, allow_redirects=False, timeout=10)


def test_an_administrator_in_a_server_is_seen_by_its_owner(hub: Hub) -> None:
    hub.keycloak.person("lena", "lena-1", "hub-admins")
    hub.keycloak.person("mona", "mona-1", "hub-users")
    hub.keycloak.person("nils", "nils-1", "hub-users")
    owner, administrator, stranger = hub.login("mona"), hub.login("lena"), hub.login("nils")
    assert hub.start_server(owner, "mona") == ""
    assert "code=" in enter(hub, owner, "mona").headers["Location"]
    assert enter(hub, stranger, "mona").status_code == 403
    assert "Administrators in your server" not in owner.get(f"{hub.url}/home", timeout=10).text
    assert "code=" in enter(hub, administrator, "mona").headers["Location"]
    page = owner.get(f"{hub.url}/home", timeout=10).text
    assert re.search(r"<li>20\S+ lena</li>", page)
    assert "lena" not in stranger.get(f"{hub.url}/home", timeout=10).text


def test_torn_lines_take_neither_a_page_nor_a_visit_away(hub: Hub) -> None:
    hub.keycloak.person("quin", "quin-1", "hub-admins")
    hub.keycloak.person("rosa", "rosa-1", "hub-users")
    owner, administrator = hub.login("rosa"), hub.login("quin")
    assert hub.start_server(owner, "rosa") == ""
    file = hub.directory / "server_visits.jsonl"
    with file.open("ab") as stream:
        stream.write(b'\xff\n[]\n7\n{}\n{"owner": 1}\n{"when": "20')
    assert owner.get(f"{hub.url}/home", timeout=10).ok
    assert "code=" in enter(hub, administrator, "rosa").headers["Location"]
    assert re.search(r"<li>20\S+ quin</li>", owner.get(f"{hub.url}/home", timeout=10).text)
    # What a page reads has an end.
    with file.open("ab") as stream:
        stream.write(b"{}\n" * 30000)
    page = owner.get(f"{hub.url}/home", timeout=10)
    assert page.ok and "quin" not in page.text


def test_who_cannot_be_written_down_does_not_enter(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.keycloak.person("sara", "sara-1", "hub-admins")
    hub.keycloak.person("toni", "toni-1", "hub-users")
    owner, administrator = hub.login("toni"), hub.login("sara")
    assert hub.start_server(owner, "toni") == ""
    # Every write to it ends as on a full disk, and reading it never ends.
    monkeypatch.setattr(sys.modules["metalhub_access"], "FILE", Path("/dev/full"))
    answer = enter(hub, administrator, "toni")
    assert answer.status_code == 503
    assert "make room on its volume" in answer.text
    # The owner's own way writes nothing, and pages are shown.
    assert "code=" in enter(hub, owner, "toni").headers["Location"]
    assert owner.get(f"{hub.url}/home", timeout=10).ok


def notice(hub: Hub, browser: requests.Session, page: str, mark: Any) -> str:
    """Return what a page tells its user while a node bears a mark; the cluster is asked anew. None: it is silent."""
    nodes = [{"metadata": {"name": "one", "annotations": {}}}, {"metadata": {"name": "two"}}]
    if mark:
        nodes[0]["metadata"]["annotations"] = {"metalhub.io/cordoned-by": mark}  # type: ignore[index]
    hub.cluster.nodes = None if mark is None else nodes
    hub.run(lambda: setattr(sys.modules["metalhub_maintenance"].NODES, "asked", float("-inf")))
    answer = browser.get(f"{hub.url}/{page}", timeout=10)
    found = re.search(r'id="maintenance"[^>]*>([^<]*)<', answer.text)
    assert answer.ok or page == "nowhere"
    return found[1] if found else ""


def test_whose_server_is_on_a_machine_that_needs_work_reads_it_on_every_page(hub: Hub) -> None:
    hub.keycloak.person("olga", "olga-1", "hub-users")
    hub.keycloak.person("paul", "paul-1", "hub-users")
    olga, paul = hub.login("olga"), hub.login("paul")
    assert hub.start_server(olga, "olga") == hub.start_server(paul, "paul") == ""
    wait = json.dumps({"owner": "ann", "run": "1", "policy": "wait"})
    # It waits for a machine.
    assert notice(hub, olga, "home", wait) == ""
    for name, node in (("olga", "one"), ("paul", "two")):
        hub.cluster.pods[f"default/jupyter-{name}"]["spec"] = {"nodeName": node}
    for page in ("home", "spawn-pending/olga", "token"):
        assert "stop your server when your work is saved" in notice(hub, olga, page, wait)
    assert notice(hub, paul, "home", wait) == ""
    assert notice(hub, requests.Session(), "login", wait) == ""
    evict = {"owner": "ann", "run": "1", "policy": "evict", "until": time.time() + 290}
    assert "ends within 5 minutes" in notice(hub, olga, "home", json.dumps(evict))
    assert "ends within 1 minute:" in notice(hub, olga, "home", json.dumps(evict | {"until": 0}))
    assert notice(hub, olga, "home", json.dumps(evict | {"policy": "skip"})) == ""
    for faulty in ("{", "[]", '{"until": []}'):
        assert "stop your server" in notice(hub, olga, "home", faulty)
    # Nobody works there any more, the cluster does not answer, an error's page cannot wait.
    assert notice(hub, olga, "home", "") == ""
    assert notice(hub, olga, "home", None) == ""
    assert notice(hub, olga, "nowhere", wait) == ""
