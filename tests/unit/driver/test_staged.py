"""Rollouts in waves: canary, health from wave to wave, pauses, hooks, promotion, and sites that want their name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from provisioner import execution, health, inventory, runner
from provisioner import journal as log
from provisioner.runner import RunRequest
from tests.unit.driver.conftest import INVENTORY, PLAY, Ansible, Checkout

DEPLOY = ("deploy", "--site", "here")
WAVES = (*DEPLOY, "--batch", "1")
AGENTS = ("one", "two", "three")


class Cluster:
    """Answers the driver's question for health: every look takes the next state, the last one for ever.

    A state is the Ready condition of the node `one`, or None where the cluster does not answer.
    """

    def __init__(self, ansible: Ansible) -> None:
        self.ansible = ansible
        self.states: list[str | None] = ["True"]
        self.looks = 0

    def __call__(self, request: RunRequest, *others: Any) -> runner.RunResult:
        """Answer, and let the fake Ansible do the rest."""
        result = self.ansible(request, *others)
        if self.ansible.ran[-1] == ["health"]:
            state = self.states[min(self.looks, len(self.states) - 1)]
            self.looks += 1
            if state is None:
                return runner.RunResult(2)
            node = {
                "kind": "Node",
                "metadata": {"name": "one"},
                "status": {"conditions": [{"type": "Ready", "status": state}]},
            }
            Path(request.extra_vars["provision_report_file"]).write_text(json.dumps([node]), encoding="utf-8")
        return result

    @property
    def calls(self) -> list[tuple[str, str | None]]:
        """What was run in which hosts, looks and locks left out."""
        return [
            ("+".join(names), call.limit)
            for names, call in zip(self.ansible.stages, self.ansible.calls, strict=True)
            if names and names != ["health"]
        ]


@pytest.fixture
def cluster(checkout: Checkout, ansible: Ansible, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Give the checkout a cluster and three agents; nothing waits."""
    made = Cluster(ansible)
    monkeypatch.setattr(runner, "run", made)
    monkeypatch.setattr(execution, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(health, "SETTLE_SECONDS", 0.05)
    known = inventory.Inventory((*AGENTS, "alpha"), {"rke2_agent": AGENTS, "rke2_server": ("alpha",)}, {})
    monkeypatch.setattr(inventory, "read", lambda where, site: known)
    (checkout.root / "playbooks/operations").mkdir()
    for name in ("health", "look"):
        path = checkout.root / f"playbooks/operations/{name}.yml"
        path.write_text(PLAY.format(hosts="platform", more=""), encoding="utf-8")
    return made


@pytest.mark.proves("driver-rollout")
def test_the_canary_goes_first_and_every_wave_is_a_call_of_its_own_under_one_lock(
    checkout: Checkout, cluster: Cluster
) -> None:
    result = checkout.run(*DEPLOY, "--canary", "two", "--soak", "0")
    assert result.exit_code == 0, result.output
    assert cluster.calls == [
        ("first+second", None),
        ("third", "two,localhost"),
        ("third", "one,three,localhost"),
    ]
    assert [names for names in cluster.ansible.ran if "lock" in names or "unlock" in names] == [["lock"], ["unlock"]]
    assert cluster.looks == 3
    assert "waves of 1, 2, health compared after each" in result.stdout
    assert all("rke2_agent_batch" not in call.extra_vars for call in cluster.ansible.calls)
    (run,) = log.runs(checkout.journal, "deploy")
    assert run.finished["third"].result == "ok"
    assert run.waves == {"third": ("two", "one", "three")}
    assert run.rest == ()


@pytest.mark.proves("driver-rollout")
def test_a_run_pauses_after_the_wave_it_was_told_and_resume_does_the_others_only(
    checkout: Checkout, cluster: Cluster
) -> None:
    paused = checkout.run(*WAVES, "--pause-after", "1")
    assert paused.exit_code == 0, paused.output
    assert "paused as asked; what is left goes on with:" in paused.stdout
    assert cluster.calls == [("first+second", None), ("third", "one,localhost")]
    assert "unfinished: third" in checkout.run("status", "--site", "here").stdout
    again = checkout.run(*DEPLOY, "--resume", "--pause-after", "2")
    assert again.exit_code == 0, again.output
    assert cluster.calls[2:] == [("third", "two,localhost")]
    assert checkout.run(*DEPLOY, "--resume").exit_code == 0
    assert cluster.calls[3:] == [("third", "three,localhost")]
    assert "Nothing to resume" in checkout.run(*DEPLOY, "--resume").stdout


@pytest.mark.proves("driver-rollout", "driver-rollout-health")
def test_a_wave_that_leaves_the_cluster_less_healthy_is_the_last(checkout: Checkout, cluster: Cluster) -> None:
    cluster.states = ["True", "True", "False"]
    result = checkout.run(*WAVES, "--soak", "0")
    assert result.exit_code == 1
    assert "less healthy than before: node one: Ready is False" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("deploy --site here --resume")
    assert [limit for _, limit in cluster.calls] == [None, "one,localhost", "two,localhost"]
    (run,) = log.runs(checkout.journal, "deploy")
    assert (run.finished["third"].result, run.waves) == ("failed", {"third": ("one",)})


@pytest.mark.proves("driver-rollout-health")
def test_resume_compares_with_the_health_before_the_whole_rollout(checkout: Checkout, cluster: Cluster) -> None:
    cluster.states = ["True", "True", "False"]
    checkout.run(*WAVES, "--soak", "0")
    done = len(cluster.calls)
    still = checkout.run(*DEPLOY, "--resume")
    assert still.exit_code == 1
    assert len(cluster.calls) == done
    cluster.states = ["True"]
    assert checkout.run(*DEPLOY, "--resume").exit_code == 0
    assert cluster.calls[done:] == [("third", "two,localhost"), ("third", "three,localhost")]


@pytest.mark.proves("driver-rollout-health")
def test_what_comes_back_in_time_is_no_regression_and_a_new_cluster_is_watched_from_its_first_wave(
    checkout: Checkout, cluster: Cluster
) -> None:
    cluster.states = [None, "True", "False", "True"]
    result = checkout.run(*WAVES, "--soak", "0")
    assert result.exit_code == 0, result.output
    assert "The cluster does not answer yet" in result.stderr
    assert len(cluster.calls) == 4


@pytest.mark.proves("driver-rollout")
def test_a_wave_that_fails_ends_the_run_and_is_not_taken_for_done(checkout: Checkout, cluster: Cluster) -> None:
    cluster.ansible.failures["third"] = ("one", "no")
    assert checkout.run(*WAVES, "--soak", "0").exit_code == 1
    cluster.ansible.failures.clear()
    done = len(cluster.calls)
    assert checkout.run(*DEPLOY, "--resume").exit_code == 0
    assert [limit for _, limit in cluster.calls[done:]] == ["one,localhost", "two,localhost", "three,localhost"]


@pytest.mark.proves("driver-rollout")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param((*DEPLOY, "--canary", "tow"), "none of the hosts.*Did you mean 'two'", id="unknown canary"),
        pytest.param((*WAVES, "--pause-after", "3"), "of 3 waves none is left", id="no wave after it"),
        pytest.param((*DEPLOY, "--only", "first", "--soak", "1"), "No stage of this run goes in waves", id="no waves"),
        pytest.param((*DEPLOY, "--limit", "one", "--soak", "1"), "do not go with --limit", id="limit"),
    ],
)
def test_waves_that_there_are_not_are_refused(
    checkout: Checkout, cluster: Cluster, arguments: tuple[str, ...], said: str
) -> None:
    result = checkout.run(*arguments)
    assert result.exit_code == 2
    assert re.search(said, result.stderr, re.S), result.stderr
    assert cluster.ansible.calls == []


HOOK = "---\n- name: Ours\n  hosts: {hosts}\n  gather_facts: false\n  any_errors_fatal: true\n  tasks: []\n"


def _hook(checkout: Checkout, name: str, text: str = HOOK.format(hosts="all")) -> Path:
    directory = checkout.root / "inventories/here/hooks"
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}.yml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.proves("driver-hooks")
def test_hooks_are_shown_and_run_in_the_same_call_around_their_stage(checkout: Checkout, ansible: Ansible) -> None:
    _hook(checkout, "pre_second")
    _hook(checkout, "post_second")
    result = checkout.run(*DEPLOY)
    assert result.exit_code == 0, result.output
    assert ansible.stages == [["first", "pre_second", "second", "post_second", "third"]]
    assert "with hooks/pre_second.yml; with hooks/post_second.yml" in result.stdout
    (run,) = log.runs(checkout.journal, "deploy")
    assert list(run.finished) == ["first", "second", "third"]
    checkout.run("verify", "--site", "here")
    assert ansible.stages[-1] == ["first", "second", "third"]


@pytest.mark.proves("driver-hooks")
def test_a_hook_that_fails_ends_the_run_and_its_stage_is_resumed_with_it(checkout: Checkout, ansible: Ansible) -> None:
    _hook(checkout, "pre_second")
    ansible.failures["pre_second"] = ("alpha", "the ticket is not approved")
    result = checkout.run(*DEPLOY)
    assert result.exit_code == 1
    assert "the ticket is not approved" in result.stderr
    ansible.failures.clear()
    assert checkout.run(*DEPLOY, "--resume").exit_code == 0
    assert ansible.stages[-1] == ["pre_second", "second", "third"]


@pytest.mark.proves("driver-hooks", "driver-rollout")
def test_hooks_of_a_stage_in_waves_come_before_the_first_and_after_the_last(
    checkout: Checkout, cluster: Cluster
) -> None:
    _hook(checkout, "pre_third")
    _hook(checkout, "post_third")
    assert checkout.run(*DEPLOY, "--canary", "three").exit_code == 0
    assert cluster.calls == [
        ("first+second+pre_third", None),
        ("third", "three,localhost"),
        ("third", "one,two,localhost"),
        ("post_third", None),
    ]
    (run,) = log.runs(checkout.journal, "deploy")
    assert [run.finished[name].result for name in ("first", "second", "third")] == ["ok", "ok", "ok"]


@pytest.mark.proves("driver-hooks")
def test_a_hook_of_no_stage_and_one_that_would_go_on_are_refused(checkout: Checkout, ansible: Ansible) -> None:
    path = _hook(checkout, "pre_secnod")
    result = checkout.run(*DEPLOY)
    assert (result.exit_code, "Did you mean 'second'" in result.stderr) == (2, True)
    path.unlink()
    _hook(checkout, "post_first", PLAY.format(hosts="all", more=""))
    result = checkout.run(*DEPLOY)
    assert result.exit_code == 4
    assert "post_first.yml:2: this play lacks `any_errors_fatal: true`" in result.stderr
    assert ansible.calls == []


@pytest.mark.proves("driver-protected")
@pytest.mark.parametrize(
    ("written", "arguments", "code"),
    [
        pytest.param("true", (), 2, id="without its name"),
        pytest.param("yes", (), 2, id="another word for it"),
        pytest.param("'{{ some.variable }}'", (), 2, id="an expression: rather once too often"),
        pytest.param("true", ("--confirm", "there"), 2, id="another name"),
        pytest.param("true", ("--confirm", "here"), 0, id="with its name"),
        pytest.param("false", (), 0, id="not protected"),
        pytest.param("false", ("--confirm", "there"), 2, id="another name, not protected"),
    ],
)
def test_a_protected_site_is_changed_only_with_its_name(
    checkout: Checkout, ansible: Ansible, written: str, arguments: tuple[str, ...], code: int
) -> None:
    directory = checkout.root / "inventories/here/group_vars/all"
    directory.mkdir(parents=True)
    (directory / "vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    (directory / "site.yml").write_text(f"---\nsecret: !vault abc\nsite_protected: {written}\n")
    result = checkout.run(*DEPLOY, *arguments)
    assert result.exit_code == code, result.output
    assert bool(ansible.calls) == (code == 0)
    assert code == 0 or "--confirm" in result.stderr
    assert checkout.run("verify", "--site", "here").exit_code == 0
    assert checkout.run("check", "--site", "here").exit_code == 0


VERBS = [
    ("rotate", "certificates"),
    ("rotate", "token"),
    ("rotate", "agent-token"),
    ("rotate", "keepalived-password"),
    ("rotate", "encryption-keys"),
    ("node", "add", "one"),
    ("node", "remove", "one"),
    ("node", "replace", "one"),
    ("node", "reboot", "one"),
    ("node", "patch", "one"),
    ("cluster", "stop", "--yes"),
    ("cluster", "start"),
    ("etcd", "defrag"),
    ("snapshot", "prune"),
]
PLAYBOOKS: dict[tuple[str, ...], str] = {
    ("node", "replace"): "node_remove",
    ("snapshot", "prune"): "etcd_snapshot",
    ("snapshot", "save"): "etcd_snapshot",
    ("snapshot", "list"): "etcd_snapshot",
    ("snapshot", "verify"): "etcd_drill",
    ("snapshot", "fetch"): "etcd_fetch",
}


def _protected(checkout: Checkout, *verbs: tuple[str, ...]) -> None:
    """Let the site want its name, and have the playbooks of verbs."""
    directory = checkout.root / "inventories/here/group_vars"
    directory.mkdir()
    (directory / "all.yml").write_text("---\nsite_protected: true\n")
    groups = "\n    rke2: {children: {rke2_server: , rke2_agent: }}\n    platform: {hosts: {localhost: }}\n"
    (checkout.root / "inventories/here/hosts.yml").write_text(INVENTORY.rstrip() + groups)
    operations = checkout.root / "playbooks/operations"
    operations.mkdir()
    for verb in verbs:
        name = PLAYBOOKS.get(verb[:2], "_".join(verb[:2]).replace("-", "_"))
        (operations / f"{name}.yml").write_text(PLAY.format(hosts="rke2_server", more=""))


@pytest.mark.proves("driver-protected")
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_that_changes_a_protected_site_wants_its_name(
    checkout: Checkout, ansible: Ansible, verb: tuple[str, ...]
) -> None:
    _protected(checkout, verb)
    refused = checkout.run(*verb, "--site", "here")
    assert (refused.exit_code, ansible.calls) == (2, []), refused.output
    assert "Give it to the same command: --confirm here" in refused.stderr
    done = checkout.run(*verb, "--site", "here", "--confirm", "here")
    assert done.exit_code == 0, done.output
    assert ansible.calls


@pytest.mark.proves("driver-protected")
@pytest.mark.parametrize(
    "verb",
    [("snapshot", "save"), ("snapshot", "list"), ("snapshot", "fetch"), ("snapshot", "verify", "--drill")],
    ids=" ".join,
)
def test_what_looks_or_adds_a_snapshot_asks_nobody(checkout: Checkout, ansible: Ansible, verb: tuple[str, ...]) -> None:
    _protected(checkout, verb)
    done = checkout.run(*verb, "--site", "here")
    assert done.exit_code == 0, done.output
    assert ansible.calls


@pytest.mark.proves("driver-promotion")
def test_versions_come_from_a_site_only_when_they_were_verified_there(checkout: Checkout, ansible: Ansible) -> None:
    (checkout.root / "inventories/test").mkdir()
    (checkout.root / "inventories/test/hosts.yml").write_text("---\nall: {hosts: {alpha: }}\n")
    for site, version in (("here", "v1.2.4"), ("test", "v1.2.3")):
        directory = checkout.root / f"inventories/{site}/group_vars/all"
        directory.mkdir(parents=True)
        (directory / "versions.yml").write_text(f"---\nrke2_version: {version}\n")
    promote = (*DEPLOY, "--promote-from", "test")
    assert "no whole verify" in checkout.run(*promote).stderr
    for verb in ("deploy", "verify"):
        assert checkout.run(verb, "--site", "test").exit_code == 0
    calls = len(ansible.calls)
    refused = checkout.run(*promote)
    assert refused.exit_code == 2
    assert "rke2_version is v1.2.3 there and v1.2.4 here" in refused.stderr
    assert len(ansible.calls) == calls
    (checkout.root / "inventories/here/group_vars/all/versions.yml").write_text(
        "---\nrke2_version: 'v1.2.3'  # as there\n"
    )
    assert checkout.run(*promote).exit_code == 0
    assert checkout.run(*DEPLOY, "--promote-from", "here").exit_code == 2
