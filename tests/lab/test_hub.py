"""The whole platform as a user has it: a browser from outside, Keycloak, a server with a GPU, a cell."""

from __future__ import annotations

import hashlib
import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from playwright.sync_api import Playwright, sync_playwright

import nodes
from tests.lab.browser import Visitor, visitor
from tests.lab.running import ROOT, Lab, eventually

PARAMETERS = nodes.PARAMETERS
SPECS = yaml.safe_load((ROOT / "roles/preflight/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
    "options"
]
AUTHORITIES = Path.home() / f".kube/metalhub-{PARAMETERS['site_name']}-ca.pem"
HOST = f"https://{PARAMETERS['site_host']}"
HUB = f"{HOST}/jupyterhub/"
# What a cell runs: a sum that stands nowhere in what was sent, and the devices that the container has.
SHARING = ("playbooks/stages/storage.yml", "playbooks/stages/jupyterhub.yml")
READ_AND_WRITE = """
import json, pathlib
def write(path):
    try:
        return pathlib.Path(path).write_text("x") and "written"
    except OSError as error:
        return error.strerror
data = pathlib.Path("/datasets/images")
said = {"read": (data / "one").read_text().strip(), "dataset": write(data / "two"), "scratch": write("/scratch/x")}
print(json.dumps(said))
"""
# Which pod the hub is, and how often it began anew.
HUB_POD = "-n jupyterhub get pods -l component=hub -o".split()
HUB_POD += ["jsonpath={.items[*].metadata.uid}{.items[*].status.containerStatuses[*].restartCount}"]
# What another's server answers to whoever shows nothing.
ASK = """
import urllib.error, urllib.request
try:
    print(urllib.request.urlopen("{url}", timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""
# What nobody's form offers, and what a user's does not.
FORGED = ({"profile": "nosuch"}, {"profile": "cpu", "cpu": "99"}, {"profile": "cpu", "image": "docker.io/evil/evil:1"})
FORGED_FOR_USERS = ({"profile": "gpu-4"}, *FORGED)
CELL = """
import glob, hashlib, json
print(json.dumps({{"sum": hashlib.sha256(b"{nonce}").hexdigest(), "devices": sorted(glob.glob("/dev/nvidia[0-9]*"))}}))
"""


def parameter(name: str) -> str:
    """A site parameter, by the site or by its default."""
    return str(PARAMETERS.get(name, SPECS[name].get("default")))


class Keycloak:
    """Keycloak's administration, by the service account that the platform itself uses."""

    def __init__(self, secret: str) -> None:
        self.realm = f"{HOST}/sso/admin/realms/{parameter('site_identity_realm')}"
        self.session = requests.Session()
        self.session.verify = str(AUTHORITIES)
        # Authorities that the environment names would win, and so would a proxy.
        self.session.trust_env = False
        form = {"grant_type": "client_credentials", "client_id": "metalhub-provisioner", "client_secret": secret}
        where = f"{HOST}/sso/realms/master/protocol/openid-connect/token"
        token = self.session.post(where, data=form, timeout=30)
        assert token.ok, f"Keycloak gives the service account no token: {token.status_code} {token.text[:500]}"
        self.session.headers["Authorization"] = f"Bearer {token.json()['access_token']}"

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        """One request below the realm, which has to succeed."""
        answer = self.session.request(method, f"{self.realm}{path}", timeout=30, **more)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer

    def make(self, name: str, password: str, *groups: str) -> None:
        """A user who can log in without being asked anything further."""
        self.forget(name)
        user = {
            "username": name,
            "enabled": True,
            "email": f"{name}@lab.test",
            "emailVerified": True,
            "firstName": name.title(),
            "lastName": "Test",
            "credentials": [{"type": "password", "value": password, "temporary": False}],
        }
        number = self.ask("POST", "/users", json=user).headers["Location"].rsplit("/", 1)[1]
        for group in groups:
            found = self.ask("GET", "/groups", params={"search": group, "exact": "true"}).json()
            assert [one["name"] for one in found] == [group], f"the realm has no group {group}: {found}"
            self.ask("PUT", f"/users/{number}/groups/{found[0]['id']}")

    def forget(self, name: str) -> None:
        """Remove a user, if there."""
        for user in self.ask("GET", "/users", params={"username": name, "exact": "true"}).json():
            self.ask("DELETE", f"/users/{user['id']}")


@dataclass(frozen=True)
class Account:
    """A user of the site."""

    name: str
    password: str


MakeAccount = Callable[..., Account]
LogIn = Callable[..., Visitor]


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """The one driver of all browsers."""
    with sync_playwright() as driver:
        yield driver


@pytest.fixture
def account(lab: Lab) -> Iterator[MakeAccount]:
    """Makes users; they, their servers and their homes are removed afterwards."""
    assert AUTHORITIES.exists(), f"{AUTHORITIES} is not there; run: scripts/provision.py deploy --site lab"
    secret = lab.secrets()["vault_site_keycloak_admin_password"]
    made: list[str] = []

    def make(name: str, *groups: str) -> Account:
        # Never two of one name: the hub remembers, and a home belongs to a person.
        fresh = Account(f"{name}-{secrets.token_hex(3)}", secrets.token_urlsafe(18))
        made.append(fresh.name)
        Keycloak(secret).make(fresh.name, fresh.password, *groups)
        return fresh

    yield make
    for name in made:
        Keycloak(secret).forget(name)
        owned = ("-n", "jupyterhub", "delete", "pod,pvc", "-l", f"hub.jupyter.org/username={name}")
        lab.kubectl(*owned, "--wait=false", check=False)


@pytest.fixture
def log_in(playwright: Playwright, tmp_path: Path) -> Iterator[LogIn]:
    """Opens a page of the hub in a browser for a user and shows Keycloak the password."""
    with ExitStack() as stack:

        def enter(user: Account, page: str = "") -> Visitor:
            home = tmp_path / f"{user.name}-{len(list(tmp_path.iterdir()))}"
            person = stack.enter_context(visitor(playwright, user.name, home, AUTHORITIES))
            person.log_in(f"{HUB}{page}", user.password)
            return person

        yield enter


def answers() -> bool:
    """Whether the hub is there for its users."""
    try:
        return requests.get(f"{HUB}hub/health", verify=str(AUTHORITIES), timeout=10).ok
    except requests.RequestException:
        return False


def pods(lab: Lab, name: str) -> list[dict[str, Any]]:
    """The pods of a user's servers."""
    words = ("-n", "jupyterhub", "get", "pods", "-l", f"hub.jupyter.org/username={name}", "-o", "json")
    return json.loads(lab.kubectl(*words))["items"]  # type: ignore[no-any-return]


def ask_for(person: Visitor, options: dict[str, str]) -> tuple[int, str]:
    """Ask for a server by a request made by hand."""
    return person.ask("POST", f"/jupyterhub/hub/api/users/{person.name}/server", options)


def makes_nothing(person: Visitor, options: dict[str, str], lab: Lab) -> None:
    """Require that a request for a server comes to an end without a pod and without a claim."""

    def known() -> dict[str, Any]:
        path = f"/jupyterhub/hub/api/users/{person.name}"
        return json.loads(person.ask("GET", path)[1])  # type: ignore[no-any-return]

    # The chart lets the hub answer before it has looked.
    status, text = ask_for(person, options)
    assert status in (202, 400, 403), (options, status, text)
    person.until("the end of the request", lambda: not known()["pending"])
    assert known()["server"] is None
    owned = ("get", "pods,pvc", "-l", f"hub.jupyter.org/username={person.name}", "-o", "name")
    assert lab.kubectl("-n", "jupyterhub", *owned) == "", options


@dataclass(frozen=True)
class Left:
    """What a user's server has written into the home, and where that server ran."""

    profile: str
    nonce: str
    node: str


def leave(person: Visitor, profile: str, lab: Lab) -> Left:
    """Have a user's server write into the home."""
    nonce = secrets.token_hex(8)
    person.run(person.spawn(profile), f"open('nonce', 'w').write('{nonce}')")
    return Left(profile, nonce, pods(lab, person.name)[0]["spec"]["nodeName"])


def find_elsewhere(person: Visitor, left: Left, lab: Lab) -> None:
    """Require that the user's next server runs on another node and reads it."""
    assert person.run(person.spawn(left.profile), "print(open('nonce').read())").strip() == left.nonce
    assert pods(lab, person.name)[0]["spec"]["nodeName"] != left.node


@pytest.mark.proves("hub-login-gpu", "hub-restart")
def test_a_user_runs_a_cell_on_one_gpu_and_a_restart_of_the_hub_leaves_the_kernel_alone(
    account: MakeAccount, log_in: LogIn, lab: Lab
) -> None:
    person = log_in(account("labuser", parameter("site_user_group")))
    nonce = secrets.token_hex(8)
    base = person.spawn("gpu-1")
    seen = json.loads(person.run(base, CELL.format(nonce=nonce)))
    assert seen["sum"] == hashlib.sha256(nonce.encode()).hexdigest()
    assert len(seen["devices"]) == 1, seen
    person.until("JupyterLab's launcher", lambda: person.sees(".jp-LauncherCard"), 120)
    person.shot("lab")
    person.run(base, f"kept = '{nonce}'", person.kernel)
    before = lab.kubectl(*HUB_POD)
    lab.kubectl("-n", "jupyterhub", "delete", "pod", "-l", "component=hub", "--wait=false")
    eventually("another hub answers", lambda: lab.kubectl(*HUB_POD) != before and answers())
    assert person.run(base, "print(kept)", person.kernel).strip() == nonce


@pytest.mark.proves("keycloak-first-administrator")
def test_the_first_administrator_comes_in_by_an_operation_and_manages_users(
    lab: Lab, account: MakeAccount, playwright: Playwright, tmp_path: Path
) -> None:
    # Removed afterwards, and not there now.
    name = account("labfirst").name
    Keycloak(lab.secrets()["vault_site_keycloak_admin_password"]).forget(name)
    written, operation = tmp_path / "password", ("playbooks/operations/user_add.yml",)
    wanted = {
        "keycloak_user_name": name,
        "keycloak_user_email": f"{name}@lab.test",
        "keycloak_user_groups": [parameter("site_admin_group")],
        "keycloak_user_password_file": str(written),
    }
    made = lab.play("-e", json.dumps(wanted), playbooks=operation)
    assert made.status == 0, made.output[-3000:]
    password = written.read_text().strip()
    assert written.stat().st_mode & 0o777 == 0o600 and password not in made.output
    again = lab.play("-e", json.dumps(wanted), playbooks=operation)
    assert again.changed == {} and "is there already" in again.output
    with visitor(playwright, name, tmp_path / "home", AUTHORITIES) as person:
        person.log_in(HUB, password)
        person.until("the form for an own password", lambda: person.sees("#password-new"))
        own = secrets.token_urlsafe(18)
        for field in ("#password-new", "#password-confirm"):
            person.page.fill(field, own)
        person.page.locator("[type=submit]").first.click()
        person.until("the hub", lambda: person.page.url.startswith(f"{HUB}hub/"))
        person.page.goto(
            f"{HOST}/sso/admin/{parameter('site_identity_realm')}/console/#/{parameter('site_identity_realm')}/users"
        )
        person.until("users in Keycloak's console", lambda: f"{name}@lab.test" in person.text())


@pytest.mark.proves("hub-group-refused")
def test_a_user_without_the_group_is_refused(account: MakeAccount, log_in: LogIn) -> None:
    refused(log_in(account("labstranger")))


@pytest.mark.proves("hub-profiles", "hub-forged", "hub-others-server", "hub-admin", "hub-logout")
def test_a_user_and_an_administrator_see_and_get_what_their_groups_may(
    account: MakeAccount, log_in: LogIn, lab: Lab
) -> None:
    user = log_in(account("labuser", parameter("site_user_group")))
    admin = log_in(account("labadmin", parameter("site_admin_group")))
    # Profiles: one is the administrators' alone.
    assert user.profiles(HUB) == ["cpu", "gpu-1", "gpu-2"]
    user.shot("profiles")
    assert admin.profiles(HUB) == ["cpu", "gpu-1", "gpu-2", "gpu-4"]

    # Requests made by hand get no further than the form, whoever makes them.
    for options in FORGED_FOR_USERS:
        makes_nothing(user, options, lab)
    for options in FORGED:
        makes_nothing(admin, options, lab)
    # The server of another: neither by its address in the cluster nor by its path.
    admin_base = admin.spawn("cpu")
    nonce = secrets.token_hex(8)
    seen = json.loads(admin.run(admin_base, CELL.format(nonce=nonce)))
    assert seen == {"sum": hashlib.sha256(nonce.encode()).hexdigest(), "devices": []}
    base = user.spawn("cpu")
    address = pods(lab, admin.name)[0]["status"]["podIP"]
    assert user.run(base, ASK.format(url=f"http://{address}:8888{admin_base}api/contents")).strip() == "403"
    answer = user.page.goto(f"{HOST}{admin_base}api/contents")
    assert answer and answer.status == 403, answer and answer.status
    # The administrator sees who is there, and ends a server.
    admin.page.goto(f"{HUB}hub/admin")
    admin.until("the user's row", lambda: user.name in admin.text())
    admin.shot("admin")
    # Logging out ends the session at Keycloak, and no server.
    user.page.goto(f"{HUB}hub/logout")
    user.page.goto(f"{HUB}hub/oauth_login")
    user.until("Keycloak's form", lambda: user.sees("#username"))
    user.shot("login")
    assert [pod["status"]["phase"] for pod in pods(lab, user.name)] == ["Running"]
    status, text = admin.ask("DELETE", f"/jupyterhub/hub/api/users/{user.name}/server")
    assert status in (202, 204), (status, text)
    eventually("the user's server has ended", lambda: pods(lab, user.name) == [])


@pytest.mark.shard("hub")
@pytest.mark.proves("hub-home-kept")
def test_a_user_deleted_and_made_again_finds_the_home_on_another_node(
    account: MakeAccount, log_in: LogIn, lab: Lab
) -> None:
    user = account("labuser", parameter("site_user_group"))
    left = leave(log_in(user), "cpu", lab)
    admin = log_in(account("labadmin", parameter("site_admin_group")))
    admin.page.goto(f"{HUB}hub/home")
    for path in (f"users/{user.name}/server", f"users/{user.name}"):
        status, text = admin.ask("DELETE", f"/jupyterhub/hub/api/{path}")
        assert status in (202, 204), (path, status, text)
        eventually("the server has ended", lambda: pods(lab, user.name) == [])
    lab.kubectl("cordon", left.node)
    try:
        find_elsewhere(log_in(user), left, lab)
    finally:
        lab.kubectl("uncordon", left.node)


@pytest.mark.shard("hub")
@pytest.mark.proves("hub-maintenance-running")
def test_whose_server_is_on_a_node_that_is_emptied_reads_it_in_the_hub(
    account: MakeAccount, log_in: LogIn, lab: Lab
) -> None:
    person, other = (log_in(account(name, parameter("site_user_group"))) for name in ("labuser", "labother"))
    person.spawn("cpu")
    [pod] = pods(lab, person.name)
    node = pod["spec"]["nodeName"]

    def turn(words: str) -> dict[str, Any]:
        command = [str(ROOT / ".venv/bin/ansible"), lab.servers[0], "-i", "inventories/lab", "-o"]
        command += ["-m", "metalhub.platform.rke2_drain", "-a", f"name={node} seconds=1 {words}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return dict(json.loads(done.stdout.partition("=> ")[2] or "{}"))

    def told(who: Visitor) -> str:
        who.page.goto(f"{HUB}hub/home")
        return who.page.locator("#maintenance").inner_text() if who.sees("#maintenance") else ""

    assert told(person) == ""
    for policy, notice in (("wait", "stop your server when your work is saved"), ("evict", "ends within 10 minutes")):
        try:
            assert turn(f"state=drained policy={policy} notice=600 owner=test")["drained"] is False
            person.until(notice, lambda notice=notice: notice in told(person), 30)  # type: ignore[misc]
            person.shot(f"maintenance-{policy}")
            assert told(other) == ""
        finally:
            assert turn("state=uncordoned")["changed"] is True
    person.until("no notice", lambda: told(person) == "", 30)
    assert [one["metadata"]["uid"] for one in pods(lab, person.name)] == [pod["metadata"]["uid"]]


@pytest.mark.shard("hub")
@pytest.mark.proves("hub-worker-lost")
def test_a_user_of_a_lost_worker_goes_on_elsewhere_with_the_same_home(
    account: MakeAccount, log_in: LogIn, lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    user = account("labuser", parameter("site_user_group"))
    left = leave(log_in(user), "gpu-1", lab)
    node = left.node
    operation = ("playbooks/operations/node_lost.yml",)
    refused = lab.play("-e", f"rke2_lost_worker={node}", "-e", "rke2_lost_powered_off=true", playbooks=operation)
    assert refused.status and f"{node} is Ready" in refused.output, refused.output[-3000:]
    subprocess.run(["docker", "kill", node], check=True, capture_output=True)
    try:
        eventually("the node is known to be silent", lambda: node not in lab.ready(), 120)
        began = time.monotonic()
        done = lab.play("-e", f"rke2_lost_worker={node}", "-e", "rke2_lost_powered_off=true", playbooks=operation)
        assert done.status == 0, done.output[-3000:]
        eventually("the server of the lost worker is gone", lambda: pods(lab, user.name) == [], 60)
        # Until the hub has looked, every half minute, it sends people to the lost server, whose page only hangs.
        again = log_in(user, "hub/home")

        def forgotten() -> bool:
            again.page.reload()
            return again.sees("#start") != "" and not again.sees("#stop")

        again.until("the hub's knowledge", forgotten)
        find_elsewhere(again, left, lab)
        record_property("from the operation to the home read", f"{time.monotonic() - began:.0f} s")
    finally:
        subprocess.run(["docker", "start", node], check=True, capture_output=True)
    eventually("all nodes are Ready", lab.healthy, 180)
    back = lab.drive("deploy", "--from", "rke2_agent", "--until", "rke2_agent", "--limit", node)
    assert back.status == 0, back.message
    taints = lab.kubectl("get", "node", node, "-o", "jsonpath={.spec.taints}")
    assert "out-of-service" not in taints
    gpus = ("get", "node", node, "-o", r"jsonpath={.status.allocatable.nvidia\.com/gpu}")
    eventually("its GPUs are offered again", lambda: lab.kubectl(*gpus) == "8", 120)


@pytest.mark.shard("hub")
@pytest.mark.proves("hub-gpus-taken")
def test_the_seventh_server_with_four_gpus_waits_with_its_reason_and_the_hub_stays(
    account: MakeAccount, log_in: LogIn, lab: Lab
) -> None:
    before = lab.kubectl(*HUB_POD)
    people = [log_in(account(f"lab{number}", parameter("site_admin_group"))) for number in range(7)]

    def start(person: Visitor) -> None:
        person.page.goto(f"{HUB}hub/home")
        status, text = ask_for(person, {"profile": "gpu-4"})
        assert status in (201, 202), text

    def phases(*persons: Visitor) -> list[str]:
        return [pod["status"]["phase"] for person in persons for pod in pods(lab, person.name)]

    for person in people[:6]:
        start(person)
    eventually("six servers run", lambda: phases(*people[:6]) == ["Running"] * 6, 300)
    start(people[6])
    late = people[6]
    late.page.goto(f"{HUB}hub/spawn-pending/{late.name}")
    late.page.locator("#progress-details summary").click()
    late.until("the reason", lambda: "Insufficient nvidia.com/gpu" in late.text())
    late.shot("waiting")
    assert phases(late) == ["Pending"]
    # A place becomes free.
    people[0].page.goto(f"{HUB}hub/home")
    people[0].ask("DELETE", f"/jupyterhub/hub/api/users/{people[0].name}/server")
    eventually("the seventh runs", lambda: phases(late) == ["Running"], 120)
    assert lab.kubectl(*HUB_POD) == before


@pytest.fixture
def shared(lab: Lab) -> Iterator[str]:
    """What a site says that shares data and gives scratch space, as extra variables; afterwards it has neither."""
    path = "/srv/nfs/nfs.lab.test/images"
    lab.sh("uworker01", f"mkdir -p {path} && echo nonce >{path}/one")
    dataset = {"name": "images", "server": "nfs.lab.test", "path": "/images"}
    try:
        yield json.dumps({"site_datasets": [dataset], "jupyterhub_scratch_size": "1Gi"})
    finally:
        recap = lab.play(playbooks=SHARING)
        lab.kubectl("-n", "jupyterhub", "delete", "pvc", "dataset-images", "--ignore-not-found", "--wait=false")
        lab.kubectl("delete", "pv", "dataset-images", "--ignore-not-found", "--wait=false")
        lab.sh("uworker01", f"rm -r {path}")
    assert recap.status == 0, recap.output[-3000:]


@pytest.mark.shard("platform")
@pytest.mark.proves("storage-datasets")
def test_servers_read_shared_data_and_write_only_to_scratch_and_a_second_run_changes_nothing(
    account: MakeAccount, log_in: LogIn, lab: Lab, shared: str
) -> None:
    recap = lab.play("-e", shared, playbooks=SHARING)
    assert recap.status == 0, recap.output[-3000:]
    again = lab.play("-e", shared, playbooks=SHARING)
    assert (again.status, again.changed) == (0, {}), again.output[-3000:]
    person = log_in(account("labuser", parameter("site_user_group")))
    said = person.run(person.spawn("cpu"), READ_AND_WRITE)
    assert json.loads(said) == {"read": "nonce", "dataset": "Read-only file system", "scratch": "written"}


def refused(person: Visitor) -> None:
    """Assert that the hub itself has said no: not Keycloak, and not by an error of its own."""

    def no() -> list[str]:
        return [url for status, url in person.answers if status == 403 and "/jupyterhub/hub/" in url]

    assert person.until("the hub's refusal", no)
    person.until("what the hub says", lambda: "403" in person.text() or "not allowed" in person.text().lower())
    assert not person.page.locator("#spawn_form").count()


@pytest.mark.proves("hub-certificate")
def test_a_browser_that_does_not_know_the_authority_goes_no_further(
    lab: Lab, playwright: Playwright, tmp_path: Path
) -> None:
    strangers = tmp_path / "none.pem"
    strangers.write_text("")
    # Playwright's own error carries the browser's reason; the visitor's report would only hide it.
    with (
        pytest.raises(Exception, match="ERR_CERT_AUTHORITY_INVALID"),
        visitor(playwright, "nobody", tmp_path, strangers) as person,
    ):
        person.page.goto(HUB)
