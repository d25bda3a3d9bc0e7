"""One release further without anybody noticing, whatever ends the driver, and the whole way back."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from build import COMPONENTS, alone
from bundle import release_files
from tests.lab.running import DATA, ROOT, Lab, eventually

OLD, NEW = COMPONENTS["releases"][:2]
NAME = "upgrade-test"
KUBECONFIG = Path.home() / ".kube/metalhub-lab.yaml"
# Calls a service every 100 ms from inside the cluster, and notes every answer that did not come.
CALLER = """
import http.client, time, urllib.request
calls = failures = 0
while True:
    began = time.time()
    try:
        calls += 1
        urllib.request.urlopen("http://{address}/", timeout=2).read()
    except (OSError, http.client.HTTPException) as error:
        failures += 1
        print(began, error, file=open("/run/{name}.failures", "a"), flush=True)
    open("/run/{name}.calls", "w").write(str(calls))
    time.sleep(max(0.0, 0.1 - (time.time() - began)))
"""


def image(lab: Lab) -> str:
    """An image that has a shell and a web server, and that every node has."""
    pod = json.loads(lab.kubectl("-n", "kube-system", "get", "pod", "kube-proxy-umaster01", "-o", "json"))
    return str(pod["spec"]["containers"][0]["image"])


def manifest(shell: str) -> str:
    """A web server in two copies on two workers, which leaves its Service before it ends, and its budget."""
    labels = {"app": NAME}
    container = {
        "name": "web",
        "image": shell,
        "command": ["/bin/sh", "-c", "hostname >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"],
        "resources": {"requests": {"cpu": "5m", "memory": "16Mi"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
    }
    apart = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    spec = {
        "containers": [container],
        "terminationGracePeriodSeconds": 8,
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
    }
    metadata, selector = {"name": NAME, "namespace": "default"}, {"matchLabels": labels}
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "spec": {"replicas": 2, "selector": selector, "template": {"metadata": {"labels": labels}, "spec": spec}},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
        },
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "spec": {"minAvailable": 1, "selector": selector}},
    ]
    return yaml.safe_dump_all([document | {"metadata": metadata} for document in documents])


class Service:
    """The web server, called all the time by a program on a server of the cluster."""

    def __init__(self, lab: Lab) -> None:
        """Start the web server, wait until it answers, and call it from then on."""
        self.lab, self.node = lab, lab.servers[0]
        lab.sh(self.node, f"cat >/run/{NAME}.yaml <<'EOF'\n{manifest(image(lab))}EOF\nrm -f /run/{NAME}.failures")
        lab.kubectl("apply", "-f", f"/run/{NAME}.yaml", server=self.node)
        lab.kubectl("rollout", "status", f"deployment/{NAME}", "--timeout=9s", check=False)
        address = lab.kubectl("get", "service", NAME, "-o", "jsonpath={.spec.clusterIP}")
        ask = f"python3 -c 'import urllib.request as u; print(u.urlopen(\"http://{address}/\", timeout=2).read())'"
        eventually("the service answers", lambda: NAME in lab.sh(self.node, ask))
        program = CALLER.format(address=address, name=NAME)
        lab.sh(self.node, f"cat >/run/{NAME}.py <<'EOF'\n{program}EOF\nsetsid python3 /run/{NAME}.py >/dev/null 2>&1 &")

    def told(self) -> tuple[int, list[str]]:
        """How often it was called, and when it did not answer."""
        calls = int(self.lab.sh(self.node, f"cat /run/{NAME}.calls"))
        return calls, self.lab.sh(self.node, f"cat /run/{NAME}.failures 2>/dev/null || true").splitlines()

    def end(self) -> None:
        """Remove caller and web server."""
        self.lab.sh(self.node, f"kill $(pgrep -f '^python3 /run/{NAME}.py') || true")
        self.lab.kubectl("delete", "-f", f"/run/{NAME}.yaml", "--ignore-not-found", server=self.node, check=False)


class Writer(threading.Thread):
    """Makes an object by the API's address twice a second, a new connection each, and notes what was acknowledged."""

    def __init__(self) -> None:
        """Read the administrator's credentials."""
        super().__init__(daemon=True)
        self.over = threading.Event()
        # What another run has left, or a restore brought back, is in nobody's way.
        self.prefix = f"{NAME}-{int(time.time())}"
        self.acknowledged: list[str] = []
        self.windows: list[tuple[float, float]] = []
        config = yaml.safe_load(KUBECONFIG.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.host = cluster["server"].split("//")[1]
        self.context = ssl.create_default_context(
            cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
        )
        with tempfile.TemporaryDirectory() as scratch:
            for part in ("certificate", "key"):
                Path(scratch, part).write_bytes(base64.b64decode(user[f"client-{part}-data"]))
            self.context.load_cert_chain(Path(scratch, "certificate"), Path(scratch, "key"))

    def write(self, name: str) -> bool:
        """Make one object; True when the API has acknowledged it."""
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": NAME}}}
        connection = http.client.HTTPSConnection(self.host, context=self.context, timeout=2)
        try:
            path = "/api/v1/namespaces/default/configmaps"
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            return connection.getresponse().status == 201
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def run(self) -> None:
        """Write until told to end."""
        number, since = 0, 0.0
        while not self.over.wait(0.5):
            number, began = number + 1, time.monotonic()
            if self.write(f"{self.prefix}-{number}"):
                self.acknowledged.append(f"{self.prefix}-{number}")
                self.windows += [(since, began - since)] if since else []
                since = 0.0
            else:
                since = since or began
        self.windows += [(since, time.monotonic() - since)] if since else []

    def end(self) -> None:
        """Stop writing."""
        self.over.set()
        self.join(10)


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """A checkout of its own, whose versions.yml an upgrade may write; what a failed test left is taken back."""
    root = lab.copy(tmp_path / "site")
    yield root
    left = {lab.installed(name) for name in lab.machines} - {OLD}
    if left:
        back(lab, root, left.pop())


def kept(lab: Lab, writer: Writer) -> None:
    """Assert that the writer was heard and that every write that was acknowledged is there; remove them all."""
    assert len(writer.acknowledged) > 100, "next to nothing was written"
    there = set(lab.kubectl("get", "configmaps", "-l", f"app={NAME}", "-o", "name").split())
    assert {f"configmap/{name}" for name in writer.acknowledged} <= there
    lab.kubectl("delete", "configmaps", "-l", f"app={NAME}", "--wait=false")


def unnoticed(lab: Lab, told: tuple[int, list[str]], writer: Writer, seconds: float) -> None:
    """Assert that in so many seconds no call failed, and that writes stopped at most once a server and not for long."""
    calls, failures = told
    assert calls > 4 * seconds, f"{calls} calls in {seconds:.0f} s"
    assert failures == [], f"{len(failures)} of {calls} calls failed"
    windows = [f"{window:.1f} s" for _, window in writer.windows]
    print(f"{seconds:.0f} s, windows without writes: {windows}")
    assert len(windows) <= len(lab.servers), windows
    assert all(window <= 10 for _, window in writer.windows), windows
    kept(lab, writer)


def release_of(root: Path) -> str:
    """The release that a site's versions.yml says."""
    text = (root / "inventories/lab/group_vars/all/versions.yml").read_text()
    return str(yaml.safe_load(text)["rke2_version"])


def running(lab: Lab) -> dict[str, str]:
    """Node -> the release of its kubelet, as the API tells it."""
    items = json.loads(lab.kubectl("get", "nodes", "-o", "json"))["items"]
    return {item["metadata"]["name"]: item["status"]["nodeInfo"]["kubeletVersion"] for item in items}


def untouched_nodes(lab: Lab) -> bool:
    """Whether no node is cordoned or marked."""
    nodes = json.loads(lab.kubectl("get", "nodes", "-o", "json"))["items"]
    marked = [node for node in nodes if "metalhub.io/cordoned-by" in node["metadata"].get("annotations", {})]
    return not marked and not any(node["spec"].get("unschedulable") for node in nodes)


def whole(lab: Lab, release: str) -> None:
    """Assert that kubelets and every API server are of a release, healthy, and that no cordon is left."""
    eventually("all nodes well", lab.healthy)
    assert running(lab) == dict.fromkeys(lab.machines, release)
    for server in lab.servers:
        assert json.loads(lab.kubectl("get", "--raw=/version", server=server))["gitVersion"] == release
    assert untouched_nodes(lab)


def back(lab: Lab, root: Path, new: str = NEW) -> None:
    """Go back to the old release with the data from before, by the commands that are printed."""
    stamp = new.replace("+", "-")
    words = ("rollback", "--to", OLD, "--snapshot", f"pre-upgrade-{stamp}")
    refused = lab.drive(*words, root=root)
    assert refused.status == 1, refused.told
    assert lab.healthy(), "a rollback that was not confirmed has stopped something"
    done = lab.drive(*words, "--confirm", "lab", root=root)
    assert done.status == 0, done.told + done.message
    restored = lab.drive("restore", done.document["snapshots"][0], "--confirm", "lab", root=root)
    assert restored.status == 0, restored.told + restored.message
    whole(lab, OLD)
    assert release_of(root) == OLD
    # Those that the snapshot had already.
    lab.kubectl("delete", "configmaps", "-l", f"app={NAME}", "--wait=false")


@pytest.mark.proves("upgrade-plan-running")
def test_a_plan_for_the_running_cluster_names_all_nodes_and_touches_none(lab: Lab, site: Path) -> None:
    done = lab.drive("upgrade", "--to", NEW, "--plan-only", root=site)
    assert done.status == 0, done.told + str(done.document)
    (hop,) = done.document["hops"]
    assert (hop["release"], hop["servers"], hop["agents"]) == (NEW, lab.servers, lab.agents)
    assert {node["running"] for node in done.document["nodes"]} == {OLD}
    assert all(node["ready"] for node in done.document["nodes"])
    assert untouched_nodes(lab)
    assert release_of(site) == OLD


@pytest.mark.proves("upgrade-drain-running")
def test_a_users_server_is_named_and_not_ended_and_the_worker_is_given_back(lab: Lab) -> None:
    worker, pod = lab.agents[-1], f"{NAME}-user"
    overrides = {"spec": {"nodeName": worker, "terminationGracePeriodSeconds": 0}}
    words = ("run", pod, f"--image={image(lab)}", "--labels=component=singleuser-server", "--restart=Never")
    lab.kubectl(*words, f"--overrides={json.dumps(overrides)}", "--command", "--", "sleep", "600")

    def ask(state: str) -> dict[str, Any]:
        asked = f"name={worker} state={state} policy=wait owner=test seconds=1"
        command = [str(ROOT / ".venv/bin/ansible"), lab.servers[0], "-i", "inventories/lab", "-o"]
        command += ["-m", "metalhub.platform.rke2_drain", "-a", asked]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return dict(json.loads(done.stdout.partition("=> ")[2] or "{}"))

    try:
        eventually("the pod runs", lambda: "Running" in lab.kubectl("get", "pod", pod), 60)
        held = ask("drained")
        assert held["drained"] is False
        assert f"default/{pod}, a user's server, still runs" in held["msg"]
        assert "Running" in lab.kubectl("get", "pod", pod)
        assert ask("uncordoned")["changed"] is True
        assert untouched_nodes(lab)
        lab.kubectl("cordon", worker)
        assert ask("uncordoned")["changed"] is False
        assert not untouched_nodes(lab)
    finally:
        lab.kubectl("uncordon", worker)
        lab.kubectl("delete", "pod", pod, "--now", "--wait=false")


@pytest.mark.shard("upgrade")
@pytest.mark.proves("upgrade-unnoticed", "upgrade-rollback-running")
def test_an_undisturbed_upgrade_is_noticed_by_no_user_and_can_be_taken_back(lab: Lab, site: Path) -> None:
    service, writer = Service(lab), Writer()
    writer.start()
    try:
        done = lab.drive("upgrade", "--to", NEW, root=site, timeout=2400)
        writer.end()
        told = service.told()
    finally:
        writer.end()
        service.end()
    assert done.status == 0, done.told + done.message
    whole(lab, NEW)
    assert release_of(site) == NEW
    unnoticed(lab, told, writer, done.document["seconds"])
    again = lab.drive("upgrade", "--to", NEW, root=site)
    assert (again.status, again.document["hops"]) == (0, []), again.told
    refused = lab.drive("upgrade", "--to", OLD, root=site)
    assert refused.status == 2
    assert "would be a way down" in refused.document["error"]
    back(lab, site)


@pytest.mark.shard("upgrade")
@pytest.mark.proves("upgrade-interrupted")
def test_an_upgrade_whose_driver_node_and_leader_die_goes_on_and_loses_nothing(lab: Lab, site: Path) -> None:
    writer, waiting, in_hand = Writer(), lab.agents[-1], lab.servers[1]
    writer.start()
    command = [str(ROOT / ".venv/bin/python"), str(ROOT / "scripts/provision.py"), "upgrade", "--site", "lab"]
    command += ["--to", NEW, "--json"]
    environment, silent = os.environ | {"METALHUB_ROOT": str(site)}, subprocess.DEVNULL
    try:
        with subprocess.Popen(command, env=environment, stdout=silent, stderr=silent) as driver:
            eventually("the second server is in hand", lambda: lab.installed(in_hand) == NEW, 900)
            driver.send_signal(signal.SIGKILL)
        assert release_of(site) == OLD
        # The server that was in hand loses its power, wherever it stood.
        subprocess.run(["docker", "kill", in_hand], check=True, capture_output=True)
        subprocess.run(["docker", "start", in_hand], check=True, capture_output=True)
        # Not yet taken, and rebooted out of its turn: it comes up with what it had.
        subprocess.run(["docker", "restart", waiting], check=True, capture_output=True)
        eventually("the rebooted worker is back", lambda: waiting in lab.ready(), 300)
        assert lab.installed(waiting) == OLD
        assert running(lab)[waiting] == OLD
        assert lab.sh(waiting, f"ls {DATA}/agent/images").strip()
        eventually("all nodes well", lab.healthy, 300)
        with ThreadPoolExecutor() as pool:
            resumed = pool.submit(lab.drive, "upgrade", "--resume", root=site, timeout=2400)
            first = lab.agents[0]
            eventually("a worker is in hand", lambda: resumed.done() or lab.installed(first) == NEW, 1800)
            assert not resumed.done(), "the leader was to die while the run works"
            leader = next(server for server in lab.servers if leads(lab, server))
            lab.sh(leader, "kill -9 $(pidof etcd)")
            done = resumed.result()
    finally:
        writer.end()
    assert done.status == 0, done.told + done.message
    whole(lab, NEW)
    assert release_of(site) == NEW
    kept(lab, writer)
    back(lab, site)


def leads(lab: Lab, server: str) -> bool:
    """Whether a server's own member leads etcd."""
    status = lab.etcdctl(server, "endpoint status")[0]["Status"]  # type: ignore[index]
    return bool(status["leader"] == status["header"]["member_id"])


@pytest.mark.shard("upgrade-minor")
@pytest.mark.proves("upgrade-minor")
def test_the_real_next_minor_is_reached_and_left_again_by_plain_ansible(lab: Lab, site: Path) -> None:
    """The lab's Helm does not go with 1.36, so the verb refuses, and says so; the playbook alone does as it is told."""
    newer = f"{COMPONENTS['kubernetes']['1.36']}+rke2r1"
    with alone():
        source = release_files(newer)
    target = lab.bundle / "rke2" / newer
    target.mkdir(exist_ok=True)
    service, writer = Service(lab), Writer()
    try:
        for path in source.iterdir():
            shutil.copyfile(path, target / path.name)
        refused = lab.drive("upgrade", "--to", newer, root=site)
        assert refused.status == 2
        assert "helm" in refused.document["error"]
        writer.start()
        began = time.monotonic()
        done = lab.play("-e", f"rke2_version={newer}", playbooks=("playbooks/operations/upgrade.yml",), timeout=2400)
        seconds = time.monotonic() - began
        writer.end()
        assert done.status == 0, done.output[-3000:]
        told = service.told()
        whole(lab, newer)
        unnoticed(lab, told, writer, seconds)
        service.end()
        back(lab, site, newer)
    finally:
        writer.over.set()
        service.end()
        shutil.rmtree(target)
