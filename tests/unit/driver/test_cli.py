"""What a caller gets: exit codes, JSON, and an error that ends with the next command."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from provisioner import inventory, lock, project
from provisioner import journal as log
from provisioner.execution import Execution
from tests.unit.driver.conftest import Ansible, Checkout

DEPLOY = ("deploy", "--site", "here")
SCRIPT = Path(project.__file__).parents[1] / "provision.py"


def _hint(text: str) -> str:
    """Return the last line of an error, which holds the command to type."""
    last = text.strip().splitlines()[-1]
    assert last.startswith("  -> "), text
    return last


@pytest.mark.proves("driver-deploy")
def test_deploy_runs_all_stages_in_one_call_between_the_locks_of_the_servers(
    checkout: Checkout, ansible: Ansible
) -> None:
    result = checkout.run(*DEPLOY)
    assert result.exit_code == 0, result.output
    assert ansible.ran == [["lock", "first", "second", "third", "unlock"]]
    assert result.stdout.count("never finished on this site") == 3
    request = ansible.calls[0]
    assert (request.tags, request.check, request.limit) == (None, False, None)
    assert set(request.extra_vars) == {"provision_stop_file", "provision_lock"}


@pytest.mark.proves("driver-deploy")
def test_options_reach_ansible(checkout: Checkout, ansible: Ansible, monkeypatch: pytest.MonkeyPatch) -> None:
    known = inventory.Inventory(("one", "two", "three"), {"rke2_agent": ("one", "two", "three")}, {})
    monkeypatch.setattr(inventory, "read", lambda where, site: known)
    result = checkout.run(*DEPLOY, "--only", "third,first", "--batch", "1,50%", "--allow-upgrade", "-vv")
    assert ansible.stages == [["first", "third"]]
    assert ansible.calls[0].extra_vars["rke2_agent_batch"] == [1, "50%"]
    assert ansible.calls[0].extra_vars["rke2_allow_upgrade"] is True
    assert ansible.calls[0].verbosity == 2
    assert "waves of 1, 1, 1" in result.stdout


@pytest.mark.proves("driver-lock")
def test_a_limited_deploy_takes_the_locks_in_calls_of_their_own(
    checkout: Checkout, ansible: Ansible, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "read", lambda where, site: inventory.Inventory(("one",), {}, {}))
    assert checkout.run(*DEPLOY, "--limit", "one").exit_code == 0
    assert ansible.ran == [["lock"], ["first", "second", "third"], ["unlock"]]
    assert [call.limit for call in ansible.calls] == [None, "one,localhost", None]
    assert checkout.run(*DEPLOY, "--limit", "oen").exit_code == 2


@pytest.mark.proves("driver-new-cluster")
def test_a_new_cluster_needs_the_name_of_the_site_and_is_never_resumed(checkout: Checkout, ansible: Ansible) -> None:
    assert checkout.run(*DEPLOY, "--new-cluster", "there").exit_code == 2
    assert ansible.calls == []
    ansible.failures["second"] = ("alpha", "no")
    assert checkout.run(*DEPLOY, "--new-cluster", "here").exit_code == 1
    assert ansible.calls[0].extra_vars["rke2_bootstrap_cluster"] == "here"
    assert checkout.run(*DEPLOY, "--resume").exit_code == 1
    assert "rke2_bootstrap_cluster" not in ansible.calls[-1].extra_vars


@pytest.mark.proves("driver-deploy")
def test_check_and_verify_touch_no_lock_of_the_servers(checkout: Checkout, ansible: Ansible) -> None:
    assert checkout.run("check", "--site", "here").exit_code == 0
    assert checkout.run("verify", "--site", "here").exit_code == 0
    assert ansible.ran == [["first", "second", "third"]] * 2
    assert [(call.check, call.tags, dict(call.extra_vars)) for call in ansible.calls] == [
        (True, None, {}),
        (False, "verify", {}),
    ]


@pytest.mark.proves("driver-exit-codes")
def test_a_failed_stage_ends_with_1_says_where_and_how_to_go_on(checkout: Checkout, ansible: Ansible) -> None:
    ansible.failures = {"second": ("beta", "no space left")}
    result = checkout.run(*DEPLOY)
    assert result.exit_code == 1
    assert "failed: second | beta | Do it\n    no space left\n" in result.stderr
    assert _hint(result.stderr).endswith("provision.py deploy --site here --resume")
    assert ansible.ran == [["lock", "first", "second", "third", "unlock"], ["unlock"]]


@pytest.mark.proves("driver-exit-codes")
def test_an_unreachable_host_is_a_failure(checkout: Checkout, ansible: Ansible) -> None:
    ansible.failures, ansible.unreachable = {"first": ("beta", "no route to host")}, True
    result = checkout.run(*DEPLOY)
    assert result.exit_code == 1
    assert "unreachable: first | beta" in result.stderr


@pytest.mark.proves("driver-resume")
def test_resume_continues_the_failed_run_with_its_own_options(checkout: Checkout, ansible: Ansible) -> None:
    ansible.failures = {"second": ("beta", "no")}
    assert checkout.run(*DEPLOY, "--until", "second").exit_code == 1
    ansible.failures = {}
    result = checkout.run(*DEPLOY, "--resume", "--allow-upgrade")
    assert result.exit_code == 0
    assert ansible.stages[-1] == ["second"]
    assert ansible.calls[-1].extra_vars["rke2_allow_upgrade"] is True
    assert re.search(r"second +run .*resume: failed at beta \d+ s ago in run", result.stdout)
    assert re.search(r"first +- .*skipped: finished in run", result.stdout)
    calls = len(ansible.calls)
    again = checkout.run(*DEPLOY, "--resume")
    assert again.exit_code == 0
    assert "Nothing to resume" in again.stdout
    assert len(ansible.calls) == calls


@pytest.mark.proves("driver-resume")
def test_resume_on_a_site_without_a_record_starts_with_the_first_stage(checkout: Checkout, ansible: Ansible) -> None:
    assert checkout.run(*DEPLOY, "--resume").exit_code == 0
    assert ansible.stages == [["first", "second", "third"]]


@pytest.mark.proves("driver-exit-codes")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("deploy", "--site", "heer"), "no site 'heer'.* Did you mean 'here'", id="unknown site"),
        pytest.param((*DEPLOY, "--only", "secnod"), "no stage 'secnod'.*Did you mean 'second'", id="unknown stage"),
        pytest.param((*DEPLOY, "--from", "third", "--until", "first"), "no stage lies between", id="empty range"),
        pytest.param((*DEPLOY, "--batch", "0"), "neither a number of hosts", id="bad batch"),
        pytest.param((*DEPLOY, "--bach", "1"), "No such option", id="unknown option"),
        pytest.param(("deploy",), "Missing option '--site'", id="no site"),
        pytest.param(("deplyo",), "Did you mean 'deploy'", id="unknown verb"),
        pytest.param(("bundle", "build", "--to", "x"), "Neither --from nor --site", id="bundle of nothing"),
    ],
)
def test_wrong_use_ends_with_2_and_the_next_command(
    checkout: Checkout, ansible: Ansible, arguments: tuple[str, ...], said: str
) -> None:
    result = checkout.run(*arguments)
    assert result.exit_code == 2
    assert re.search(said, result.stderr)
    _hint(result.stderr)
    assert not ansible.calls


@pytest.mark.proves("driver-resume")
def test_resume_refuses_options_that_choose_other_stages_or_hosts(checkout: Checkout, ansible: Ansible) -> None:
    ansible.failures = {"second": ("beta", "no")}
    checkout.run(*DEPLOY)
    result = checkout.run(*DEPLOY, "--resume", "--only", "first")
    assert result.exit_code == 2
    assert _hint(result.stderr).endswith("provision.py deploy --site here --resume")


@pytest.mark.proves("driver-lock")
def test_a_site_in_use_ends_with_3_here_and_from_another_control_machine(checkout: Checkout, ansible: Ansible) -> None:
    site = project.find().site("here")
    with lock.hold(site, "verify"):
        result = checkout.run(*DEPLOY)
        assert result.exit_code == 3
        assert f"pid {os.getpid()}" in result.stderr
        assert checkout.document("status", "--site", "here")["running"]["verb"] == "verify"
    assert not ansible.calls
    ansible.locked_by = "non-zero return code\nann@ops (run R) until 2026"
    result = checkout.run(*DEPLOY)
    assert result.exit_code == 3
    assert "in use by ann@ops (run R) until 2026; alpha says so" in result.stderr
    assert "lock.json" in _hint(result.stderr)
    assert ansible.ran[-1] == ["unlock"]


@pytest.mark.proves("driver-exit-codes")
def test_an_ansible_that_breaks_before_any_task_ends_with_4_and_its_last_words(
    checkout: Checkout, ansible: Ansible
) -> None:
    ansible.return_code = 4
    result = checkout.run(*DEPLOY)
    assert result.exit_code == 4
    assert "the fake was told to break" in result.stderr
    assert _hint(result.stderr).endswith("deploy --site here --resume")
    assert log.runs(checkout.journal, "deploy")[0].end is not None


@pytest.mark.proves("driver-exit-codes")
def test_files_of_a_site_that_are_no_yaml_are_all_named_with_their_lines(checkout: Checkout, ansible: Ansible) -> None:
    site = checkout.root / "inventories/here"
    (site / "group_vars/all").mkdir(parents=True)
    (site / "group_vars/all/site.yml").write_text("site_name: here\n  more: [\n")
    (site / "group_vars/all/vault.yml").write_text("$ANSIBLE_VAULT;1.2;AES256;here\n6164\n")
    (site / "extra.yml").write_text("a: {b\n")
    done = checkout.run("check", "--site", "here")
    assert done.exit_code == 4
    told = " ".join(done.stderr.split())
    assert "site.yml:2:7: mapping values are not allowed in this context" in told
    assert "extra.yml:2:1: " in told
    assert "vault.yml" not in told
    assert "scripts/provision.py check --site here" in told
    assert ansible.calls == []


@pytest.mark.proves("driver-exit-codes")
def test_an_unhealthy_stage_ends_verify_with_5_after_all_stages_were_looked_at(
    checkout: Checkout, ansible: Ansible
) -> None:
    ansible.failures = {"first": ("beta", "not Ready")}
    result = checkout.run("verify", "--site", "here")
    assert result.exit_code == 5
    assert ansible.ran == [["first", "second", "third"], ["second", "third"]]
    assert _hint(result.stderr).endswith("deploy --site here --only first")


@pytest.mark.proves("driver-exit-codes", "driver-interrupt")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_deploy_behind_the_hosts_in_hand(
    checkout: Checkout, ansible: Ansible, number: signal.Signals
) -> None:
    def begins(name: str) -> None:
        if name == "second":
            os.kill(os.getpid(), number)
            assert Path(ansible.calls[-1].extra_vars["provision_stop_file"]).exists()

    ansible.begins = begins
    result = checkout.run(*DEPLOY)
    assert result.exit_code == 130
    stood = {end.stage: end.result for end in log.runs(checkout.journal, "deploy")[0].finished.values()}
    assert stood == {"first": "ok", "second": "interrupted"}
    assert _hint(result.stderr).endswith("deploy --site here --resume")
    ansible.begins = lambda name: None
    assert checkout.run(*DEPLOY, "--resume").exit_code == 0
    assert ansible.stages[-1] == ["second", "third"]


@pytest.mark.proves("driver-exit-codes", "driver-interrupt")
def test_a_second_signal_cancels_and_the_servers_are_still_released(checkout: Checkout, ansible: Ansible) -> None:
    def begins(name: str) -> None:
        if name == "second":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    ansible.begins = begins
    assert checkout.run(*DEPLOY).exit_code == 130
    assert ansible.ran[1:] == [["unlock"]]


@pytest.mark.proves("driver-interrupt")
@pytest.mark.parametrize("verb", ["check", "verify"])
def test_one_signal_ends_a_run_that_changes_nothing(checkout: Checkout, ansible: Ansible, verb: str) -> None:
    ansible.begins = lambda name: os.kill(os.getpid(), signal.SIGINT)
    assert checkout.run(verb, "--site", "here").exit_code == 130
    assert len(ansible.calls) == 1


@pytest.mark.proves("driver-json")
def test_json_stands_alone_on_stdout(checkout: Checkout, ansible: Ansible) -> None:
    ansible.failures = {"third": ("one", "no")}
    document = json.loads(checkout.run(*DEPLOY, "--json").stdout)
    assert (document["result"], document["exit_code"], document["changed"]) == ("failed", 1, 1)
    assert [(end["stage"], end["result"]) for end in document["stages"]] == [
        ("first", "ok"),
        ("second", "ok"),
        ("third", "failed"),
    ]
    assert document["failures"][0]["message"] == "no"
    assert document["next"].endswith("--resume")
    error = json.loads(checkout.run("deploy", "--site", "heer", "--json").stdout)
    assert error["exit_code"] == 2 and "Did you mean 'here'" in error["error"]
    assert [stage["stage"] for stage in json.loads(checkout.run("stages", "--json").stdout)] == [
        "first",
        "second",
        "third",
    ]


@pytest.mark.proves("driver-status")
def test_status_tells_what_the_journal_knows_without_contacting_anything(checkout: Checkout, ansible: Ansible) -> None:
    assert "Nothing was ever run on here" in checkout.run("status", "--site", "here").stdout
    ansible.failures = {"second": ("beta", "no")}
    checkout.run(*DEPLOY)
    checkout.run("verify", "--site", "here", "--only", "first")
    calls = len(ansible.calls)
    known = checkout.document("status", "--site", "here")
    rows = {row["stage"]: row for row in known["stages"]}
    assert rows["first"]["deploy"]["result"] == rows["first"]["verify"]["result"] == "ok"
    assert rows["second"]["deploy"]["failed_hosts"] == ["beta"]
    assert rows["third"] == {"stage": "third", "deploy": None, "verify": None}
    assert known["unfinished"]["stages"] == ["second", "third"]
    assert known["last_run"]["verb"] == "verify"
    text = checkout.run("status", "--site", "here").stdout
    assert re.search(r"second +failed +.*at beta", text)
    assert "deploy --site here --resume" in text
    assert len(ansible.calls) == calls


def test_the_plan_tells_how_long_a_stage_took_before(
    checkout: Checkout, ansible: Ansible, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "durations", lambda found: {"second": 125.0})
    assert re.search(r"second +run +about 2 min 05 s", checkout.run(*DEPLOY).stdout)


@pytest.mark.proves("driver-no-leftovers")
def test_a_run_leaves_nothing_but_its_journal(checkout: Checkout, ansible: Ansible) -> None:
    checkout.run(*DEPLOY)
    site = project.find().site("here")
    assert list(site.runs.iterdir()) == []
    assert sorted(path.name for path in site.state.iterdir()) == ["control_id", "journal", "lock", "run"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in site.journal.iterdir())


def test_a_defect_is_reported_as_one_and_noted_in_the_journal(
    checkout: Checkout, ansible: Ansible, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(self: Execution, *_: object) -> None:
        raise RuntimeError("seven")

    monkeypatch.setattr(Execution, "_run", defect)
    result = checkout.run(*DEPLOY)
    assert result.exit_code == 4
    assert "RuntimeError: seven" in result.stderr
    end = log.runs(checkout.journal, "deploy")[0].end
    assert end is not None and end.result == "broken"


@pytest.mark.proves("driver-starts-anywhere")
def test_the_script_finds_its_package_and_libraries_from_any_directory_and_interpreter(tmp_path: Path) -> None:
    link = tmp_path / "provision"
    link.symlink_to(SCRIPT)
    bare = [str(Path(sys.base_prefix) / "bin/python3"), "-I"]
    for call in ([sys.executable, str(SCRIPT)], [sys.executable, str(link)], [*bare, str(SCRIPT)]):
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run(
            [*call, "stages"], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "what it is for" in done.stdout


@pytest.mark.proves("driver-starts-anywhere")
def test_without_libraries_and_environment_the_script_names_the_command_that_brings_them(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    copy = tmp_path / "scripts/provision.py"
    copy.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    call = [str(Path(sys.base_prefix) / "bin/python3"), "-I", "-S", str(copy)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert f"make -C {tmp_path} setup" in done.stderr
