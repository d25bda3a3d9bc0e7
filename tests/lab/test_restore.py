"""A cluster that lost its data, or its way, comes back as it was, and what interrupts that is continued."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator

import pytest

import nodes
from tests.lab.running import DATA, Lab, eventually

pytestmark = pytest.mark.shard("restore")
SPACE = "restored"
COUNT = 500


def apply(lab: Lab, documents: list[dict[str, object]]) -> None:
    """Apply many objects by one call."""
    kubectl = f"{DATA}/bin/kubectl --kubeconfig /etc/rancher/rke2/rke2.yaml"
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    nodes.run_in(lab.servers[0], f"{kubectl} apply --server-side --force-conflicts -f - >/dev/null", text)


def config(number: int, text: str) -> dict[str, object]:
    """One of the objects."""
    metadata = {"name": f"object-{number:03}", "namespace": SPACE}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"text": text}}


def objects(lab: Lab) -> dict[str, tuple[str, str]]:
    """Name -> uid and data of all there are."""
    items = json.loads(lab.kubectl("-n", SPACE, "get", "configmaps", "-o", "json"))["items"]
    kept = (item for item in items if item["metadata"]["name"].startswith("object-"))
    return {item["metadata"]["name"]: (item["metadata"]["uid"], item["data"]["text"]) for item in kept}


def destroy(lab: Lab) -> None:
    """End etcd on every server and delete its data; the snapshots beside it stay."""
    for server in lab.servers:
        lab.sh(
            server, f"rke2-killall.sh >/dev/null 2>&1; rm -rf {DATA}/server/db/etcd; test -d {DATA}/server/db/snapshots"
        )


@pytest.fixture
def snapshot(lab: Lab) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """A snapshot of 500 objects, of which 100 were changed and 100 deleted since; its name, and the 500."""
    # What a run that was cut off has left.
    assert lab.drive("snapshot", "prune", "--keep", "0", "--days", "0").status == 0
    lab.kubectl("create", "namespace", SPACE, check=False)
    apply(lab, [config(number, f"first {number}") for number in range(COUNT)])
    before = objects(lab)
    assert len(before) == COUNT
    done = lab.drive("snapshot", "save", "--name", "test")
    assert done.status == 0, done.told
    (name,) = {one["name"] for one in done.document["snapshots"] if one["name"].startswith(f"test-{lab.servers[0]}-")}
    apply(lab, [config(number, "later") for number in range(100)])
    gone = [f"object-{number:03}" for number in range(100, 200)]
    lab.kubectl("-n", SPACE, "delete", "configmap", *gone)
    lab.kubectl("-n", SPACE, "create", "secret", "generic", "later", "--from-literal=a=b")
    yield name, before
    eventually("all nodes Ready", lab.healthy, 300)
    lab.kubectl("delete", "namespace", SPACE, check=False)
    lab.drive("snapshot", "prune", "--keep", "0", "--days", "0")
    for server in lab.servers:
        lab.sh(server, f"rm -rf {DATA}/server/db/etcd-before-restore-* {DATA}/server/db/etcd-old-*")


def works(lab: Lab) -> None:
    """Fail unless a new pod starts on every node, and a service's new endpoint is seen from each of them."""
    image = lab.kubectl(
        "-n",
        "kube-system",
        "get",
        "daemonset",
        "rke2-canal",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image}",
    )
    command = ["sh", "-c", "mkdir -p /tmp/w && hostname >/tmp/w/index.html && exec httpd -f -p 8080 -h /tmp/w"]
    for name in lab.machines:
        container = {"name": "web", "image": image, "command": command, "imagePullPolicy": "IfNotPresent"}
        spec: dict[str, object] = {"nodeName": name, "containers": [container], "terminationGracePeriodSeconds": 0}
        spec["tolerations"] = [{"operator": "Exists"}]
        metadata = {"name": f"web-{name}", "namespace": SPACE, "labels": {"new": "web", "on": name}}
        apply(lab, [{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}])
    service = {"selector": {"new": "web", "on": lab.agents[0]}, "ports": [{"port": 80, "targetPort": 8080}]}
    apply(
        lab, [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": SPACE}, "spec": service}]
    )
    ready = 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'

    def all_ready() -> bool:
        return lab.kubectl("-n", SPACE, "get", "pods", "-l", "new=web", "-o", ready).split() == ["True"] * len(
            lab.machines
        )

    eventually("a new pod runs on every node", all_ready, 120)
    address = lab.kubectl("-n", SPACE, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    asked = (
        f"python3 -c \"import urllib.request as u; print(u.urlopen('http://{address}', timeout=3).read().decode())\""
    )
    for target in (lab.agents[0], lab.agents[1]):
        selector = json.dumps({"spec": {"selector": {"new": "web", "on": target}}})
        lab.kubectl("-n", SPACE, "patch", "service", "web", "-p", selector)
        for name in lab.machines:
            eventually(
                f"{name} sees the endpoint on {target}",
                lambda name=name, target=target: lab.sh(name, asked, check=False).strip() == f"web-{target}",  # type: ignore[misc]
                60,
            )


def restored(lab: Lab, before: dict[str, tuple[str, str]]) -> None:
    """Fail unless the cluster is whole and has exactly the 500 objects."""
    assert lab.healthy()
    assert objects(lab) == before
    assert "later" not in lab.kubectl("-n", SPACE, "get", "secrets", "-o", "name")
    works(lab)


@pytest.mark.proves("restore-in-place", "restore-prospect", "restore-asks", "restore-clients")
def test_a_living_cluster_goes_back_and_says_before_what_is_lost(
    lab: Lab, snapshot: tuple[str, dict[str, tuple[str, str]]]
) -> None:
    name, before = snapshot
    done = lab.drive("restore", name, "--plan-only")
    assert done.status == 0, done.told
    assert f"Secret {SPACE}/later" in done.document["plan"]["comparison"]["vanish"]
    assert lab.drive("restore", name, "--confirm", "elsewhere").status == 2
    assert len(objects(lab)) == COUNT - 100
    pods = 'jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].containerID}{"\\n"}{end}'
    where = ("-n", "kube-system", "get", "pods", "--field-selector", f"spec.nodeName={lab.agents[0]}", "-o", pods)
    running = lab.kubectl(*where)
    done = lab.drive("restore", name, "--confirm", "lab")
    assert done.status == 0, done.told + done.message
    restored(lab, before)
    assert lab.kubectl(*where) == running  # what runs on workers went on
    for server in lab.servers:
        kept = lab.sh(server, f"ls -d {DATA}/server/db/etcd-*; ls {DATA}/server/db/snapshots /var/lib/metalhub")
        assert "before-restore-" in kept
        assert "restore.json" not in kept
    done = lab.drive("verify")
    assert done.status == 0, done.told


@pytest.mark.proves("restore-all-lost", "restore-clients")
def test_a_cluster_whose_three_etcds_are_destroyed_is_exactly_what_it_was(
    lab: Lab, snapshot: tuple[str, dict[str, tuple[str, str]]]
) -> None:
    name, before = snapshot
    destroy(lab)
    done = lab.drive("snapshot", "list")
    assert done.status == 0, done.told
    assert name in {one["name"] for one in done.document["snapshots"]}
    done = lab.drive("restore", name, "--confirm", "lab")
    assert done.status == 0, done.told + done.message
    assert "nobody knows" in done.told
    print(f"restored in {done.document['seconds']:.0f} s")
    restored(lab, before)
    again = lab.drive("check", "--only", "rke2_server,rke2_agent")
    assert (again.status, again.document["changed"]) == (0, 0), again.told


@pytest.mark.proves("restore-continues")
@pytest.mark.parametrize("moment", ["put their data aside", "the snapshot's data", "Let the others join"])
def test_a_restore_whose_driver_is_killed_goes_on(
    lab: Lab, snapshot: tuple[str, dict[str, tuple[str, str]]], moment: str
) -> None:
    name, before = snapshot
    words = ("restore", name, "--confirm", "lab")
    status, _ = lab.killed(words, lambda line: 1.0 if re.search(moment, line) else None)
    assert status == -signal.SIGKILL, f"the restore ended before {moment!r}"
    done = lab.drive("restore", name, "--confirm", "lab")
    assert done.status == 0, done.told + done.message
    assert "continues the restore" in done.told, done.told
    restored(lab, before)


@pytest.mark.proves("restore-refuses")
def test_a_snapshot_that_is_nowhere_or_of_another_token_is_refused_and_nothing_is_touched(
    lab: Lab, snapshot: tuple[str, dict[str, tuple[str, str]]]
) -> None:
    name, _ = snapshot
    before = lab.witness(api=False)
    done = lab.drive("restore", "nowhere", "--confirm", "lab")
    assert done.status == 1
    assert "No server has a snapshot called nowhere" in done.message
    assert name in done.message
    said = {"rke2_restore_snapshot": name, "rke2_restore_confirm": "lab", "rke2_token": "another-token-altogether"}
    told = lab.play("-e", json.dumps(said), playbooks=["playbooks/operations/etcd_restore.yml"])
    assert told.status != 0
    assert "was taken with another server token" in " ".join(told.output.split())
    assert lab.witness(api=False) == before
