"""Every server keeps snapshots: one that is taken is seen by all of them, is whole, and goes when it is too old."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

from build import STATE
from tests.lab.running import DATA, SITE, Lab, eventually

NAME = "test"
DIRECTORY = f"{DATA}/server/db/snapshots"


@pytest.mark.proves("snapshot-save", "snapshot-list", "snapshot-prune", "lab-snapshots")
def test_a_snapshot_is_taken_on_every_server_told_with_all_about_it_and_pruned(lab: Lab) -> None:
    done = lab.drive("snapshot", "save", "--name", NAME)
    assert done.status == 0, done.told
    ours = [one for one in done.document["snapshots"] if one["name"].startswith(f"{NAME}-")]
    assert {one["server"] for one in ours} == set(lab.servers)
    release = lab.installed(lab.servers[0])
    for one in ours:
        assert one["name"].startswith(f"{NAME}-{one['server']}-")
        assert one["version"] == release
        assert one["size"] == int(lab.sh(one["server"], f"stat -c %s {one['path']}"))
        # Etcd's own tool agrees.
        status = json.loads(lab.sh(one["server"], f"{DATA}/bin/etcdutl snapshot status {one['path']} -w json"))
        assert status["totalKey"] > 100
        told = json.loads(lab.sh(one["server"], "rke2 etcd-snapshot ls -o json"))["items"]
        assert one["name"] in {item["spec"]["snapshotName"] for item in told}
    done = lab.drive("snapshot", "prune", "--keep", "0", "--days", "0")
    assert done.status == 0, done.told
    assert not [one for one in done.document["snapshots"] if one["name"].startswith(f"{NAME}-")]
    for server in lab.servers:
        assert lab.sh(server, f"ls {DIRECTORY} | grep ^{NAME}- || true") == ""


@pytest.mark.shard("restore")
@pytest.mark.proves("snapshot-flipped")
def test_a_snapshot_with_one_other_byte_is_found_and_is_not_restored(lab: Lab) -> None:
    assert lab.drive("snapshot", "save", "--name", NAME).status == 0
    server = lab.servers[1]
    path = lab.sh(server, f"ls {DIRECTORY}/{NAME}-*").strip()
    flip = f"p = '{path}'; d = bytearray(open(p, 'rb').read()); d[len(d) // 2] ^= 1; open(p, 'wb').write(d)"
    lab.sh(server, f'python3 -c "{flip}"')
    done = lab.drive("snapshot", "verify")
    assert done.status == 1, done.told
    assert f"{server}: {path}" in done.message, done.message
    ill = [one["name"] for one in done.document["snapshots"] if not one["whole"]]
    assert ill == [path.rpartition("/")[2]]
    done = lab.drive("restore", ill[0], "--confirm", "lab")
    assert done.status == 1, done.told
    assert "is no whole snapshot" in done.message, done.message
    assert lab.healthy()
    assert lab.drive("snapshot", "prune", "--keep", "0", "--days", "0").status == 0
    assert lab.drive("snapshot", "verify").status == 0


@pytest.mark.shard("restore")
@pytest.mark.proves("snapshot-fetch", "snapshot-push")
def test_a_snapshot_is_fetched_sealed_opened_again_and_refused_with_another_byte(lab: Lab, tmp_path: Path) -> None:
    assert lab.drive("snapshot", "save", "--name", NAME).status == 0
    done = lab.drive("snapshot", "fetch", "--to", str(tmp_path))
    assert done.status == 0, done.told
    (one,) = done.document["snapshots"]
    sealed = Path(one["path"])
    manifest = json.loads(sealed.with_suffix(".json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([sealed.name, f"{sealed.stem}.json"])
    assert (manifest["cluster"], manifest["version"]) == ("lab", lab.installed(lab.servers[0]))
    there = lab.sh(one["server"], f"sha256sum {DIRECTORY}/{one['name']}; stat -c %s {DIRECTORY}/{one['name']}").split()
    assert (manifest["sha256"], manifest["size"]) == (there[0], int(there[2]))
    # Sealed with the site's vault password, token and all; nothing of it is in the clear.
    vault = VaultLib([("lab", VaultSecret((STATE / "vault_password").read_bytes()))])
    with tarfile.open(fileobj=io.BytesIO(vault.decrypt(sealed.read_bytes()))) as archive:
        token = archive.extractfile("token")
        assert token is not None
        assert token.read().decode() == lab.secrets()["vault_site_rke2_token"]
    assert b"/registry/" not in sealed.read_bytes()
    words = ("-e", f"rke2_fetch_directory={tmp_path}", "-e", f"rke2_fetch_snapshot={one['name']}", "--tags", "verify")
    playbook = ["playbooks/operations/etcd_fetch.yml"]
    assert lab.play(*words, playbooks=playbook).status == 0
    # Back to a server that has none; a second time nothing is done.
    lab.sh(one["server"], f"rm {DIRECTORY}/{one['name']}")
    assert lab.drive("snapshot", "push", one["name"], "--from", str(tmp_path)).status == 0
    assert lab.sh(lab.servers[0], f"sha256sum {DIRECTORY}/{one['name']}").split()[0] == manifest["sha256"]
    again = lab.play(*words[:4], playbooks=["playbooks/operations/etcd_push.yml"])
    assert (again.status, again.changed) == (0, {}), again.output[-3000:]
    assert len(list(tmp_path.iterdir())) == 2
    data = bytearray(sealed.read_bytes())
    data[len(data) // 2] ^= 1
    sealed.write_bytes(data)
    told = lab.play(*words, playbooks=playbook)
    assert told.status != 0
    assert "and its manifest says" in " ".join(told.output.split())
    assert lab.drive("snapshot", "prune", "--keep", "0", "--days", "0").status == 0


def reseal(sealed: Path) -> None:
    """Turn one byte of a fetched snapshot and let its manifest agree, as if it had been fetched like that."""
    vault = VaultLib([("lab", VaultSecret((STATE / "vault_password").read_bytes()))])
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(vault.decrypt(sealed.read_bytes()))) as old,
        tarfile.open(fileobj=buffer, mode="w:gz") as new,
    ):
        for one in old:
            source = old.extractfile(one)
            assert source is not None
            content = bytearray(source.read())
            if one.name == "snapshot":
                content[len(content) // 2] ^= 1
            new.addfile(one, io.BytesIO(content))
    sealed.write_bytes(vault.encrypt(buffer.getvalue(), vault_id="lab"))
    manifest = json.loads(sealed.with_suffix(".json").read_text())
    manifest |= {"sha256": "", "sealed_sha256": hashlib.sha256(sealed.read_bytes()).hexdigest()}
    sealed.with_suffix(".json").write_text(json.dumps(manifest))


@pytest.mark.shard("restore")
@pytest.mark.proves("restore-drill", "etcd-tools-running")
def test_a_drill_reads_its_canary_back_refuses_another_byte_and_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    version = yaml.safe_load((SITE / "group_vars/all/versions.yml").read_text())["rke2_etcd_version"]
    for server in lab.servers:
        told = lab.sh(server, f"ls /var/lib/metalhub/etcd; /var/lib/metalhub/etcd/{version}/etcdutl version")
        assert told.split()[0] == version
        assert f"etcdutl version: {version[1:]}" in told
    host = lab.agents[-1]
    work = "/var/lib/metalhub/drill"
    processes = "pgrep -f -- --data-dir=/var/lib/metalhub/dril[l]/data || true"

    def gone() -> None:
        assert lab.sh(host, f"ls -d {work} 2>/dev/null; {processes}", check=False) == ""
        assert not (Path.home() / ".local/share/metalhub/lab/snapshots/.drill").exists()
        for server in lab.servers:
            assert "metalhub-drill-" not in lab.sh(server, f"ls {DIRECTORY}")

    # What a drill leaves that is killed while its etcd serves, module and all.
    served = "--listen-client-urls=unix://client:0 --advertise-client-urls=unix://client:0"
    etcd = f"{DATA}/bin/etcd --data-dir={work}/data {served} --listen-peer-urls=unix://peer:0"
    lab.sh(host, f"mkdir -p {work}; cd {work}; setsid {etcd} </dev/null >log 2>&1 &")
    eventually("the left etcd runs", lambda: lab.sh(host, f"{processes}; test -S {work}/client:0") != "", 30)
    done = lab.drive("snapshot", "verify", "--drill")
    assert done.status == 0, done.told + done.message
    found = done.document["drill"]
    nonce = lab.kubectl("-n", "kube-system", "get", "configmap", "metalhub-canary", "-o", "jsonpath={.data.nonce}")
    assert (found["canary"], found["host"], f"v{found['etcd']}") == (nonce, host, version)
    assert found["keys"] > 100
    print(f"drill: {done.document['seconds']:.0f} s, restored and served in {found['seconds']} s")
    gone()
    # One that was fetched, and the same with another byte.
    assert lab.drive("snapshot", "save", "--name", NAME).status == 0
    done = lab.drive("snapshot", "fetch", "--to", str(tmp_path))
    assert done.status == 0, done.told
    (one,) = done.document["snapshots"]
    done = lab.drive("snapshot", "verify", one["name"], "--drill", "--from", str(tmp_path))
    assert done.status == 0, done.told + done.message
    assert (done.document["drill"]["snapshot"], done.document["drill"]["canary"]) == (one["name"], nonce)
    reseal(Path(one["path"]))
    done = lab.drive("snapshot", "verify", one["name"], "--drill", "--from", str(tmp_path))
    assert done.status == 1, done.told
    assert "etcdutl does not restore the snapshot: expected sha256" in done.message, done.message
    gone()
    lab.kubectl("-n", "kube-system", "delete", "configmap", "metalhub-canary")
    assert lab.drive("snapshot", "prune", "--keep", "0", "--days", "0").status == 0


@pytest.mark.shard("restore")
@pytest.mark.proves("lab-snapshots")
def test_the_schedules_are_pruned_and_those_on_demand_are_not(lab: Lab) -> None:
    """k3s: pkg/etcd/snapshot.go (pruneSnapshots): a retention is of one name on one node."""
    server = lab.servers[0]
    for name in (NAME, "etcd-snapshot", "etcd-snapshot"):
        lab.sh(server, f"rke2 etcd-snapshot save --name {name}; sleep 1.1")
    before = set(lab.sh(server, f"ls {DIRECTORY}").split())
    lab.sh(server, "rke2 etcd-snapshot prune --name etcd-snapshot --snapshot-retention 1")
    after = set(lab.sh(server, f"ls {DIRECTORY}").split())
    assert len([name for name in after if name.startswith(f"etcd-snapshot-{server}-")]) == 1
    assert {name for name in before - after if not name.startswith("etcd-snapshot-")} == set()
    mine = " ".join(name for name in after if name.startswith(f"{NAME}-"))
    lab.sh(server, f"rke2 etcd-snapshot delete {mine}")
    assert mine not in lab.sh(server, f"ls {DIRECTORY}")
