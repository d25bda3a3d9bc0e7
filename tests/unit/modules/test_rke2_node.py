"""Which labels and taints of a Node rke2_node touches, and how it asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from plugins.modules import rke2_node

pytestmark = pytest.mark.proves("rke2-labels")

CONTROL_PLANE = "node-role.kubernetes.io/control-plane:NoSchedule"
# Answers `get` with the Node on the disk, applies no patch but keeps it, and can be told to meet a conflict first.
KUBECTL = """#!/bin/sh
cd "$(dirname "$0")"
case "$*" in
  *" get "*) cat node.json ;;
  *) if [ -s conflicts ]; then sed -i 1d conflicts; echo "Error from server (Conflict): changed" >&2; exit 1; fi
     printf '%s' "$*" | sed 's/.*--patch //' >patch.json ;;
esac
"""


def node(
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    taints: list[dict[str, str]] | None = None,
) -> dict[str, Any]:
    """Return a Node as the API gives it."""
    metadata = {"name": "a", "resourceVersion": "7", "labels": labels or {}, "annotations": annotations or {}}
    return {"metadata": metadata, "spec": {"taints": taints} if taints else {}}


def run(
    capsys: pytest.CaptureFixture[str], data: Path, before: dict[str, Any] | None, conflicts: int = 0, **arguments: Any
) -> dict[str, Any]:
    """Run the module beside a stand-in for kubectl that has the Node `before`, and return its result."""
    (data / "bin").mkdir(exist_ok=True)
    (data / "bin/kubectl").write_text(KUBECTL)
    (data / "bin/kubectl").chmod(0o755)
    (data / "bin/conflicts").write_text("x\n" * conflicts)
    (data / "bin/patch.json").unlink(missing_ok=True)
    if before:
        (data / "bin/node.json").write_text(json.dumps(before))
    with patch_module_args({"name": "a", "data_dir": str(data), **arguments}), pytest.raises(SystemExit):
        rke2_node.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def patched(before: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return a Node after a merge patch."""
    after: dict[str, Any] = json.loads(json.dumps(before))
    for part, values in patch.get("metadata", {}).items():
        merged = after["metadata"][part] | values
        after["metadata"][part] = {name: value for name, value in merged.items() if value is not None}
    if "spec" in patch:
        after["spec"]["taints"] = patch["spec"]["taints"] or []
    return after


@pytest.mark.parametrize(
    ("labels", "taints", "own"),
    [
        pytest.param({}, [], [], id="nothing"),
        pytest.param({"x/rack": "upper"}, [], [], id="label"),
        pytest.param({}, ["x/gpu=yes:NoSchedule", "x/gpu:NoExecute"], [], id="taints"),
        pytest.param({"b": "1", "a": "2"}, [CONTROL_PLANE], [CONTROL_PLANE], id="server"),
    ],
)
def test_what_was_brought_about_is_left_alone_the_next_time(
    labels: dict[str, str], taints: list[str], own: list[str]
) -> None:
    wanted = [rke2_node.parsed(taint) for taint in taints]
    before = node({"foreign": "1"}, {"other": "note"}, [{"key": "f", "effect": "NoSchedule"}])
    after = patched(before, rke2_node.difference(before, labels, wanted, own))
    assert labels.items() | {("foreign", "1")} == after["metadata"]["labels"].items()
    assert {rke2_node.identity(taint) for taint in after["spec"]["taints"]} == {
        "f:NoSchedule",
        *(rke2_node.identity(taint) for taint in wanted),
    }
    assert after["metadata"]["annotations"]["other"] == "note"
    assert rke2_node.difference(after, labels, wanted, own) == {}
    # And everything goes again, but for what is not ours.
    bare = patched(after, rke2_node.difference(after, {}, [], own))
    assert bare == before


def test_what_others_have_set_is_never_touched_even_when_we_forget_a_name_of_theirs() -> None:
    before = node({"theirs": "1"}, {rke2_node.OWNED_LABELS: "ours"}, [{"key": "theirs", "effect": "NoSchedule"}])
    patch = rke2_node.difference(before, {}, [], [])
    assert patch == {"metadata": {"annotations": {rke2_node.OWNED_LABELS: None}}}


def test_a_value_that_somebody_changed_is_set_back() -> None:
    taint = {"key": "k", "value": "other", "effect": "NoSchedule"}
    before = node({"l": "other"}, {rke2_node.OWNED_LABELS: "l", rke2_node.OWNED_TAINTS: "k:NoSchedule"}, [taint])
    patch = rke2_node.difference(before, {"l": "ours"}, [rke2_node.parsed("k=ours:NoSchedule")], [])
    assert patch == {
        "metadata": {"labels": {"l": "ours"}},
        "spec": {"taints": [{"key": "k", "value": "ours", "effect": "NoSchedule"}]},
    }


def test_the_control_planes_taint_goes_by_its_name_alone_and_is_never_recorded() -> None:
    tainted = node(taints=[rke2_node.parsed(CONTROL_PLANE)])
    assert rke2_node.difference(tainted, {}, [rke2_node.parsed(CONTROL_PLANE)], [CONTROL_PLANE]) == {}
    assert rke2_node.difference(tainted, {}, [], [CONTROL_PLANE]) == {"spec": {"taints": None}}


def test_the_patch_is_sent_with_the_version_it_was_made_for_and_again_after_a_conflict(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = run(capsys, tmp_path, node(), conflicts=2, labels={"on": True, "n": 1}, _ansible_diff=True)
    sent = json.loads((tmp_path / "bin/patch.json").read_text())
    assert sent["metadata"]["labels"] == {"on": "true", "n": "1"}
    assert sent["metadata"]["resourceVersion"] == "7"
    assert (result["changed"], result["patch"]["metadata"]["annotations"]) == (True, {rke2_node.OWNED_LABELS: "n,on"})
    assert '"on"' not in result["diff"]["before"] and '"on": "true"' in result["diff"]["after"]


def test_endless_conflicts_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = run(capsys, tmp_path, node(), conflicts=99, labels={"a": "b"})
    assert result["failed"] is True
    assert "Conflict" in result["msg"] and "get node a" in result["msg"]


def test_check_mode_tells_and_sends_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, tmp_path, node(), labels={"a": "b"}, _ansible_check_mode=True)["changed"] is True
    assert not (tmp_path / "bin/patch.json").exists()


def test_nothing_to_do_sends_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    now = node({"a": "b"}, {rke2_node.OWNED_LABELS: "a"})
    assert run(capsys, tmp_path, now, labels={"a": "b"})["changed"] is False
    assert not (tmp_path / "bin/patch.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param({"taints": ["NoSchedule"]}, "KEY=VALUE:EFFECT", id="no-taint"),
        pytest.param({"name": "b"}, "cannot be read", id="no-such-node"),
    ],
)
def test_what_cannot_be_done_is_told_with_the_next_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: dict[str, Any], said: str
) -> None:
    before = None if "name" in arguments else node()
    result = run(capsys, tmp_path, before, **arguments)
    assert result["failed"] is True
    assert said in result["msg"] and "kubectl" in result["msg"]
