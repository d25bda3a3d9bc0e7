"""What somebody changes by hand is named with the command that mends it, and mending disturbs nothing else."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

import nodes
from tests.lab.running import DATA, Lab, difference, eventually
from tests.lab.test_secrets import known, leaked

# A unit's number and start, whose name stands on a line of its own.
UNIT = r"[+-] (MainPID|ExecMainStartTimestampMonotonic|NRestarts)=\d+"
TAINT = "node-role.kubernetes.io/control-plane"
LABEL = "lab.test/drift"
RKE2 = "rke2-agent|kubelet|containerd|haproxy"
BY_HAND = "echo '# by hand' >>/etc/rancher/rke2/config.yaml"
UNTIL = ("--from", "node", "--until", "rke2_agent")


@pytest.mark.shard("drift")
@pytest.mark.proves("drift-named")
@pytest.mark.parametrize(
    ("stage", "kind", "script", "restarted"),
    [
        pytest.param("rke2_server", 1, BY_HAND, "", id="hand-edit-server"),
        pytest.param("rke2_agent", -1, BY_HAND, "", id="hand-edit-agent"),
        pytest.param("node", -1, "sed -i s/umaster01/elsewhere/ /etc/hosts", "", id="hand-edit-hosts"),
        pytest.param("node", -1, "systemctl stop chrony", "chrony", id="stopped-chrony"),
        pytest.param("api_address", 2, "systemctl stop keepalived", "keepalived", id="stopped-keepalived"),
        pytest.param("rke2_agent", -1, "systemctl stop rke2-agent", RKE2, id="stopped-rke2"),
        pytest.param("rke2_server", 2, "", "", id="changed-taint"),
    ],
)
def test_each_kind_of_drift_is_named_and_mended_with_the_least_restarts(
    lab: Lab, stage: str, kind: int, script: str, restarted: str
) -> None:
    name = lab.servers[kind] if kind > 0 else lab.agents[kind]
    before = lab.witness()
    lab.sh(name, script)
    if not script:
        lab.kubectl("taint", "node", name, f"{TAINT}-")
    found = lab.drive("check", *UNTIL)
    assert found.status == 0, found.told + found.message
    (drift,) = found.document["drift"]
    assert (drift["stage"], drift["hosts"]) == (stage, [name])
    assert f"{stage} differs at {name}" in found.told
    lab.type(drift["mend"])
    eventually("all nodes Ready", lab.healthy)
    assert lab.drive("check", *UNTIL).document["drift"] == []
    changed = difference(before, lab.witness())
    assert changed.keys() <= ({name} if restarted else set()), changed
    # What had to be started, and nothing beside it.
    lines = [line for line in changed.get(name, ()) if not re.search(restarted, line)]
    assert [line for line in lines if not re.fullmatch(UNIT, line)] == []


@pytest.mark.shard("drift")
@pytest.mark.proves("drift-named")
def test_a_label_that_was_changed_is_named_and_put_back_and_nothing_restarts(lab: Lab, tmp_path: Path) -> None:
    site = lab.copy(tmp_path / "site", {"rke2_node_labels": {LABEL: "drift"}})
    name, own = lab.agents[-1], {"METALHUB_ROOT": str(site)}
    said = ("get", "node", name, "-o", f"jsonpath={{.metadata.labels.{LABEL.replace('.', chr(92) + '.')}}}")
    try:
        assert lab.drive("deploy", *UNTIL, root=site).status == 0
        assert lab.kubectl(*said) == "drift"
        before = lab.witness()
        lab.kubectl("label", "node", name, f"{LABEL}=other", "--overwrite")
        (drift,) = lab.drive("check", *UNTIL, root=site).document["drift"]
        assert (drift["stage"], drift["hosts"]) == ("rke2_agent", [name])
        lab.type(drift["mend"], root=site, environment=own)
        assert lab.kubectl(*said) == "drift"
        assert difference(before, lab.witness()) == {}
    finally:
        assert lab.drive("deploy", *UNTIL).status == 0
        lab.kubectl("label", "node", "--all", f"{LABEL}-")


@pytest.mark.shard("drift")
@pytest.mark.proves("drift-named")
def test_a_node_of_another_version_is_named_with_both_and_the_command(lab: Lab, tmp_path: Path) -> None:
    release = lab.installed(lab.servers[0])
    other = release[:-1] + str(int(release[-1]) + 1)
    site = lab.copy(tmp_path / "site", {"rke2_version": other})
    done = lab.drive("check", "--only", "rke2_server", root=site)
    assert done.status == 1
    assert f"runs {release} and rke2_version says {other}" in done.message, done.message
    assert "--allow-upgrade" in done.message


@pytest.mark.shard("drift")
@pytest.mark.proves("support-bundle")
def test_a_support_bundle_tells_of_machines_and_cluster_and_no_secret(lab: Lab, tmp_path: Path) -> None:
    first, second, *_ = lab.servers
    secrets = known(lab)
    # Canaries: every secret in a file that is collected.
    log, lines = f"{DATA}/agent/logs/kubelet.log", "".join(f"{name} {secret}\n" for name, secret in secrets.items())
    nodes.run_in(first, f"cp {log} /run/kubelet.log; cat >>{log}", lines)
    output = tmp_path / "support.tar.gz"
    done = lab.drive("support-bundle", "--output", str(output))
    lab.sh(first, f"cat /run/kubelet.log >{log}; rm /run/kubelet.log")
    assert done.status == 0, done.told
    with tarfile.open(output) as archive:
        files = {member.name: archive.extractfile(member).read().decode() for member in archive}  # type: ignore[union-attr]
    for machine in lab.machines:
        assert "rke2 version" in files[f"support/machines/{machine}/versions"]
    told = files[f"support/machines/{first}/kubelet.log"]
    assert [name for name in lab.secrets() if f"[redacted {name}]" not in told] == []
    assert second in files[f"support/machines/{first}/etcd"]
    assert first in files["support/cluster/Node.jsonl"]
    assert leaked(secrets, "".join(files.values())) == []
