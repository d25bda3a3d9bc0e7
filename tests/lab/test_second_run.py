"""A second run changes nothing, and one hand edit is mended with one change."""

from __future__ import annotations

import json

import pytest

from build import STATE
from nodes import host_state
from tests.lab.running import Lab, difference


@pytest.mark.proves("deploy-idempotent")
def test_a_second_run_reports_no_change_and_makes_none(lab: Lab) -> None:
    before = lab.witness()
    recap = lab.play()
    assert recap.status == 0, recap.output[-3000:]
    assert recap.changed == {}
    assert difference(before, lab.witness()) == {}


def revisions(lab: Lab) -> dict[str, str]:
    """Every release of Helm and its revision, by namespace and name."""
    template = '{range .items[*]}{.metadata.namespace}/{.metadata.labels.name} {.metadata.labels.version}{"\\n"}{end}'
    words = ("get", "secrets", "-A", "-l", "owner=helm,status=deployed", "-o", f"jsonpath={template}")
    return dict(line.split() for line in lab.kubectl(*words).splitlines())


@pytest.mark.shard("platform")
@pytest.mark.proves("deploy-one-release")
def test_a_change_of_one_release_is_one_change_of_the_whole_site_and_of_no_other_release(lab: Lab) -> None:
    changed, own = json.dumps({"metallb_values": {"controller": {"logLevel": "warn"}}}), "metallb-system/metallb"
    before = revisions(lab)
    try:
        recap = lab.play("-e", changed)
        assert (recap.status, recap.changed) == (0, {"localhost": 1}), recap.output[-3000:]
        after = revisions(lab)
        assert {name for name in before | after if before.get(name) != after.get(name)} == {own}
        recap = lab.play("-e", changed)
        assert (recap.status, recap.changed) == (0, {}), recap.output[-3000:]
        assert revisions(lab) == after
    finally:
        recap = lab.play(playbooks=("playbooks/stages/metallb.yml",))
    assert (recap.status, recap.changed) == (0, {"localhost": 1}), recap.output[-3000:]


@pytest.mark.proves("deploy-mends-drift")
def test_one_hand_edit_is_one_change_and_no_restart(lab: Lab) -> None:
    before = lab.witness()
    lab.sh("uworker02", "echo '# edited by hand' >>/etc/rancher/rke2/config.yaml")
    assert list(difference(before, lab.witness())) == ["uworker02"], "the witness is blind"
    recap = lab.play(playbooks=("playbooks/stages/rke2_agent.yml",))
    assert recap.status == 0, recap.output[-3000:]
    assert recap.changed == {"uworker02": 1}
    assert difference(before, lab.witness()) == {}


@pytest.mark.proves("lab-harmless")
def test_the_machine_below_is_as_it_was_before_the_lab(lab: Lab) -> None:
    before = json.loads((STATE / "host.json").read_text())
    now = host_state()
    assert len(before) > 100
    lent = {"fs.inotify.max_user_instances"}
    differing = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)} - lent - {"offset"}
    assert differing == set()
    assert abs(int(before["offset"]) - int(now["offset"])) <= 2, "the clock was set"
