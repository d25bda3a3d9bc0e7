"""When helm_release installs, what it hands to Helm, and what it says where something is wrong."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from plugins.module_utils.bundle_files import sha256
from plugins.modules import helm_release

# Answers `status` and `history` from the disk; `upgrade` keeps what it was given and writes the next state, unless it
# is to fail; `pull` brings what is upstream, or fails where nothing is.
HELM = """#!/bin/sh
here=__HERE__
echo "$*" >>"$here/calls"
case "$1" in
  status) if [ -s "$here/state" ]; then cat "$here/state"; else echo "Error: release: not found" >&2; exit 1; fi ;;
  upgrade) cat >"$here/values"; if [ -e "$here/broken" ]; then cat "$here/broken" >&2; exit 1; fi
    said=$(echo "$*" | sed 's/.*--description \\(chart [^ ]* values [^ ]*\\).*/\\1/')
    printf '{"version": 7, "info": {"status": "deployed", "description": "%s"}}' "$said" >"$here/state" ;;
  uninstall) rm "$here/state" ;;
  history) cat "$here/history" ;;
  pull) while [ "$1" != --destination ]; do shift; done; cp "$here/upstream" "$2/x-1.0.tgz" ;;
  rollback) printf '{"version": 6, "info": {"status": "deployed", "description": "Rollback to 1"}}' >"$here/state" ;;
esac
"""
SECRET = "correct-horse-battery"


class Api:
    """The cluster's API as far as the module asks it."""

    def __init__(self, _: str) -> None:
        self.asked: list[tuple[str, str, Any]] = []

    namespace: dict[str, Any]
    pods: tuple[dict[str, Any], ...] = ()

    def ask(self, path: str, method: str = "GET", body: Any = None, _: str = "") -> dict[str, Any]:
        """Answer; a namespace that is made or labelled stays."""
        if path.endswith("/pods"):
            return {"items": list(self.pods)}
        if "/events" in path:
            return {"items": [{"involvedObject": {"name": "x-1"}, "reason": "Failed", "message": f"no {SECRET}"}]}
        if method == "POST":
            Api.namespace = body
        elif method == "PATCH":
            Api.namespace["metadata"]["labels"] |= body["metadata"]["labels"]
        return Api.namespace


@pytest.fixture(autouse=True)
def _cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    Api.namespace = {}
    Api.pods = ()
    monkeypatch.setattr(helm_release, "Api", Api)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A bundle with one chart and Helm, and where Helm keeps what it was told."""
    with tarfile.open(tmp_path / "helm.tgz", "w:gz") as archive:
        content = HELM.replace("__HERE__", str(tmp_path)).encode()
        info = tarfile.TarInfo("linux-amd64/helm")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    lay(tmp_path, "helm/v3.20.0/helm-v3.20.0-linux-amd64.tar.gz", (tmp_path / "helm.tgz").read_bytes())
    lay(tmp_path, "charts/x/1.0/x-1.0.tgz", b"one")
    revise(tmp_path, "deployed", "pending-upgrade")
    return tmp_path


def revise(place: Path, *statuses: str) -> None:
    """Give the release a history."""
    revisions = [{"revision": number, "status": status} for number, status in enumerate(statuses, 1)]
    (place / "history").write_text(json.dumps(revisions))


def lay(place: Path, name: str, content: bytes) -> None:
    """Put a file into the bundle and its manifest."""
    path = place / "bundle" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    known = place / "bundle/manifest.json"
    files = json.loads(known.read_text())["files"] if known.exists() else []
    files = [entry for entry in files if entry["path"] != name]
    known.write_text(json.dumps({"files": [*files, {"path": name, "sha256": sha256(content)}]}))


def run(capsys: pytest.CaptureFixture[str], place: Path, **different: Any) -> dict[str, Any]:
    """Run the module and return its result."""
    given = {
        "name": "x",
        "namespace": "n",
        "chart": "x",
        "version": "1.0",
        "bundle": str(place / "bundle"),
        "cache": str(place / "cache"),
        "helm_version": "v3.20.0",
        "kubeconfig": str(place / "kubeconfig"),
    }
    with patch_module_args(given | different), pytest.raises(SystemExit):
        helm_release.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def calls(place: Path, verb: str) -> list[str]:
    """What Helm was called with, of one verb."""
    lines = (place / "calls").read_text().splitlines() if (place / "calls").exists() else []
    return [line for line in lines if line.startswith(verb)]


def test_a_second_run_changes_nothing_and_asks_helm_once(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    first = run(capsys, place, values={"a": [1, {"ü": None}]}, namespace_labels={"l": True})
    assert (first["failure"], first["changed"], first["revision"]) == ("", True, 7)
    assert json.loads((place / "values").read_text()) == {"a": [1, {"ü": None}]}
    assert Api.namespace["metadata"] == {"name": "n", "labels": {"l": "True"}}
    (place / "calls").unlink()
    second = run(capsys, place, values={"a": [1, {"ü": None}]}, namespace_labels={"l": True})
    assert (second["failure"], second["changed"], second["reasons"]) == ("", False, [])
    assert len((place / "calls").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("different", "reason"),
    [
        pytest.param({"values": {"a": 2}}, "its values are others", id="changed-value"),
        pytest.param({"values": {}}, "its values are others", id="removed-value"),
        pytest.param({"values": {"a": True}}, "its values are others", id="true-for-one"),
        pytest.param({"namespace_labels": {"k": "v"}}, "the namespace n has no label k=v", id="label"),
    ],
)
def test_what_differs_is_named_and_brought_about(
    capsys: pytest.CaptureFixture[str], place: Path, different: dict[str, Any], reason: str
) -> None:
    run(capsys, place, values={"a": 1})
    looked = run(capsys, place, **({"values": {"a": 1}} | different), _ansible_check_mode=True, _ansible_diff=True)
    assert (looked["changed"], looked["reasons"]) == (True, [reason])
    before = len(calls(place, "upgrade"))
    assert run(capsys, place, **({"values": {"a": 1}} | different))["reasons"] == [reason]
    assert len(calls(place, "upgrade")) == before + ("values" in different)
    assert run(capsys, place, **({"values": {"a": 1}} | different))["changed"] is False


def test_a_chart_that_was_replaced_under_its_version_is_noticed(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    run(capsys, place)
    lay(place, "charts/x/1.0/x-1.0.tgz", b"two")
    assert run(capsys, place)["reasons"] == ["its chart is another"]
    assert Path(calls(place, "upgrade")[-1].split()[3]).read_bytes() == b"two"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        pytest.param("charts/x/1.0/x-1.0.tgz", "its manifest says", id="chart"),
        pytest.param("helm/v3.20.0/helm-v3.20.0-linux-amd64.tar.gz", "its manifest says", id="helm"),
    ],
)
def test_a_flipped_byte_in_the_bundle_is_refused(
    capsys: pytest.CaptureFixture[str], place: Path, path: str, said: str
) -> None:
    (place / "bundle" / path).write_bytes(b"other")
    result = run(capsys, place)
    assert said in result["failure"] and "provision.py bundle build" in result["failure"]
    assert (result["changed"], calls(place, "upgrade")) == (False, [])


def test_a_chart_that_the_bundle_lacks_is_named(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert "lacks x-2.0.tgz below charts/" in run(capsys, place, version="2.0")["failure"]


@pytest.mark.parametrize("repository", ["https://charts.example.org", "oci://registry.example.org/charts"])
def test_a_chart_of_a_repository_or_registry_is_asked_for_and_its_replacement_noticed(
    capsys: pytest.CaptureFixture[str], place: Path, repository: str
) -> None:
    run(capsys, place)  # brings Helm
    given = {"bundle": "", "repository": repository}
    (place / "state").unlink()
    (place / "upstream").write_bytes(b"one")
    assert run(capsys, place, **given)["reasons"] == ["it is not installed"]
    words = f"pull x --repo {repository} " if repository.startswith("https") else f"pull {repository}/x "
    assert calls(place, "pull")[0].startswith(f"{words}--version 1.0 --destination ")
    assert run(capsys, place, **given)["changed"] is False
    (place / "upstream").write_bytes(b"two")
    looked = run(capsys, place, **given, _ansible_check_mode=True)
    assert (looked["changed"], looked["reasons"]) == (True, ["its chart is another"])
    assert run(capsys, place, **given)["reasons"] == ["its chart is another"]
    assert Path(calls(place, "upgrade")[-1].split()[3]).read_bytes() == b"two"


def test_a_repository_that_does_not_answer_leaves_what_was_kept(
    capsys: pytest.CaptureFixture[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, text: told.append(text))
    run(capsys, place)
    given = {"bundle": "", "repository": "https://charts.example.org"}
    failure = run(capsys, place, **given)["failure"]
    assert "x 1.0 cannot be had from https://charts.example.org: " in failure and "site_bundle" in failure
    (place / "upstream").write_bytes(b"one")
    assert run(capsys, place, **given)["failure"] == ""
    (place / "upstream").unlink()
    again = run(capsys, place, **given)
    assert (again["failure"], again["changed"]) == ("", False)
    assert told[-1].endswith("The copy that was kept is used.")


def test_another_sha256_than_the_one_asked_for_is_refused_before_anything_is_touched(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    result = run(capsys, place, sha256=sha256(b"two"), namespace_labels={"l": "v"})
    assert f"has the sha256 {sha256(b'one')}, helm_release_sha256 says {sha256(b'two')}" in result["failure"]
    assert (result["changed"], calls(place, ""), Api.namespace) == (False, [], {})
    assert run(capsys, place, sha256=sha256(b"one"))["failure"] == ""
    (place / "upstream").write_bytes(b"one")
    given = {"bundle": "", "repository": "https://charts.example.org", "sha256": sha256(b"one")}
    assert run(capsys, place, **given)["failure"] == ""
    (place / "upstream").write_bytes(b"two")
    # What was kept is what is asked for, so nobody is asked.
    assert run(capsys, place, **given)["changed"] is False
    assert len(calls(place, "pull")) == 1
    before = len(calls(place, "upgrade"))
    refused = run(capsys, place, **given | {"sha256": sha256(b"three")})
    assert f"has the sha256 {sha256(b'two')}, helm_release_sha256 says {sha256(b'three')}" in refused["failure"]
    assert run(capsys, place, **given)["changed"] is False
    assert (len(calls(place, "upgrade")), len(calls(place, "pull"))) == (before, 2)


@pytest.mark.parametrize("status", ["pending-install", "pending-upgrade", "pending-rollback", "uninstalling"])
def test_a_stuck_release_is_reported_and_recovered_only_when_asked(
    capsys: pytest.CaptureFixture[str], place: Path, status: str
) -> None:
    stuck = {"version": 2, "info": {"status": status, "last_deployed": "2026-01-01", "description": "Preparing"}}
    (place / "state").write_text(json.dumps(stuck))
    result = run(capsys, place)
    assert (
        f"n/x is {status} since 2026-01-01" in result["failure"] and "helm_release_recover: true" in result["failure"]
    )
    assert (result["changed"], calls(place, "upgrade")) == (False, [])
    assert run(capsys, place, recover=True, _ansible_check_mode=True)["changed"] is True
    assert (place / "state").read_text() == json.dumps(stuck)
    assert run(capsys, place, recover=True)["failure"] == ""
    assert len(calls(place, "rollback")) == (status in ("pending-upgrade", "pending-rollback"))
    assert run(capsys, place)["changed"] is False


@pytest.mark.parametrize(
    ("statuses", "done"),
    [
        pytest.param(["superseded", "failed", "pending-upgrade"], "rollback x 1 ", id="failed-between"),
        pytest.param(["superseded", "deployed", "failed", "pending-upgrade"], "rollback x 2 ", id="newest"),
        pytest.param(["deployed", "superseded", "failed", "pending-upgrade"], "rollback x 1 ", id="failed-rollback"),
        pytest.param(["failed", "pending-upgrade"], "uninstall x --no-hooks ", id="none"),
    ],
)
def test_a_stuck_release_goes_back_to_the_last_revision_that_came_up(
    capsys: pytest.CaptureFixture[str], place: Path, statuses: list[str], done: str
) -> None:
    stuck = {"version": len(statuses), "info": {"status": "pending-upgrade", "last_deployed": "2026-01-01"}}
    (place / "state").write_text(json.dumps(stuck))
    revise(place, *statuses)
    assert run(capsys, place, recover=True)["failure"] == ""
    assert next(call for call in calls(place, "") if call.startswith(("rollback", "uninstall"))).startswith(done)
    assert run(capsys, place)["changed"] is False


@pytest.mark.parametrize(
    ("status", "description", "reason"),
    [
        pytest.param("failed", "timed out", "its revision 3 is failed: timed out", id="failed"),
        pytest.param("deployed", "Rollback to 1", "its revision 3 was made by somebody else", id="rolled-back"),
    ],
)
def test_what_is_not_our_last_good_revision_is_installed_again(
    capsys: pytest.CaptureFixture[str], place: Path, status: str, description: str, reason: str
) -> None:
    (place / "state").write_text(json.dumps({"version": 3, "info": {"status": status, "description": description}}))
    Api.namespace = {"metadata": {}}
    assert run(capsys, place)["reasons"] == [reason]
    assert run(capsys, place)["changed"] is False


def test_a_failed_installation_tells_what_the_cluster_says_without_secrets(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    (place / "broken").write_text(f"Error: bad value {SECRET}: timed out")
    waiting = {"name": "c", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    status = {"phase": "Pending", "containerStatuses": [waiting]}
    Api.pods = ({"metadata": {"name": "x-1", "labels": {"app": "x"}}, "status": status},)
    result = run(capsys, place, values={"deep": [{"password": SECRET}]}, sensitive=True, _ansible_diff=True)
    assert "pod x-1 is Pending: c: ImagePullBackOff no such image" in result["failure"]
    assert "timed out" in result["failure"] and "get pods,events" in result["failure"]
    result.pop("invocation", None)
    assert SECRET not in json.dumps(result)


def test_values_are_never_among_helms_arguments(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    run(capsys, place, values={"password": SECRET}, sensitive=True)
    assert SECRET in (place / "values").read_text()
    assert SECRET not in (place / "calls").read_text()
    assert not [
        path for path in (place / "cache").rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        pytest.param({"phase": "Succeeded"}, [], id="done"),
        pytest.param({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}, [], id="ready"),
        pytest.param(
            {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/6 nodes"}]},
            ["pod p is Pending: 0/6 nodes"],
            id="not-scheduled",
        ),
        pytest.param(
            {
                "phase": "Running",
                "containerStatuses": [
                    {"name": "c", "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 3}}}
                ],
            },
            ["pod p is Running: c ended with 3"],
            id="crashed",
        ),
    ],
)
def test_what_keeps_a_pod_from_being_ready(pod: dict[str, Any], said: list[str]) -> None:
    assert helm_release.pod_troubles([{"metadata": {"name": "p"}, "status": pod}]) == said
