"""What Ansible reports becomes one kind of event with a message that a person can act on."""

from __future__ import annotations

from typing import Any

import pytest

from provisioner import runner
from provisioner.runner import Event, message_of


@pytest.mark.parametrize(
    ("result", "message"),
    [
        pytest.param({"msg": "no space"}, "no space", id="plain"),
        pytest.param({"msg": ["one", "two"]}, "one\ntwo", id="an assertion's list"),
        pytest.param({"censored": "hidden", "msg": "secret"}, "hidden", id="no_log hides everything"),
        pytest.param({"msg": "rc", "stderr": "E: held", "stdout": "o"}, "rc\nE: held\no", id="a command's output"),
        pytest.param({"msg": "same", "stderr": "same"}, "same", id="said once"),
        pytest.param(
            {"msg": "One or more items failed", "results": [{"item": "a"}, {"item": "b", "failed": True, "msg": "no"}]},
            "b: no",
            id="the items that failed",
        ),
        pytest.param({}, "no message", id="nothing"),
        pytest.param({"msg": "x" * 9000}, "x" * runner.MESSAGE_CHARACTERS, id="bounded"),
    ],
)
def test_a_failure_says_what_matters(result: dict[str, Any], message: str) -> None:
    assert message_of(result) == message


def _translate(*raw: dict[str, Any]) -> list[Event]:
    seen: list[Event] = []
    translate = runner._Translator(seen.append)
    for event in raw:
        assert translate(event) is False, "ansible-runner would keep the event on disk"
    return seen


def test_batches_of_a_play_have_its_number_and_the_next_play_the_next() -> None:
    names = ["aa", "aa_2", "aa_2_2", "bb", "bb_2"]
    seen = _translate(*({"event": "playbook_on_play_start", "event_data": {"uuid": name}} for name in names))
    assert [event.play for event in seen] == [0, 0, 0, 1, 1]


def test_a_failed_task_keeps_host_task_message_and_return_code() -> None:
    data = {"host": "beta", "task": "Do it", "ignore_errors": True, "res": {"rc": 75, "msg": "no", "changed": True}}
    assert _translate({"event": "runner_on_failed", "event_data": data, "stdout": "fatal"}) == [
        Event("failed", -1, "beta", "Do it", changed=True, ignored=True, message="no", return_code=75, text="fatal")
    ]


@pytest.mark.proves("driver-counts-changes")
@pytest.mark.parametrize(
    ("text", "changed"), [("changed: [a]", 1), ("\x1b[0;33mchanged: [a]\x1b[0m", 1), ("ok: [a]", 0)]
)
def test_a_change_under_no_log_is_counted(text: str, changed: int) -> None:
    data = {"host": "a", "task": "Write a secret", "res": {"censored": "hidden"}}
    assert _translate({"event": "runner_on_ok", "event_data": data, "stdout": text})[0].changed == changed


@pytest.mark.parametrize(("text", "ignored"), [("\x1b[0;36m...ignoring\x1b[0m\n", True), ("fatal: [a]", False)])
def test_a_silence_that_was_expected_is_no_failure(text: str, ignored: bool) -> None:
    data = {"host": "a", "task": "Ask", "res": {"msg": "no route", "unreachable": True}}
    assert _translate({"event": "runner_on_unreachable", "event_data": data, "stdout": text})[0].ignored == ignored


def test_the_recap_names_hosts_that_failed_or_were_lost() -> None:
    data = {"failures": {"a": 1}, "dark": {"b": 1}, "ok": {"a": 1, "c": 2}}
    assert _translate({"event": "playbook_on_stats", "event_data": data})[0].failed_hosts == {"a", "b"}


def test_an_error_in_the_receiver_is_kept_for_the_end_instead_of_being_swallowed() -> None:
    def receiver(event: Event) -> None:
        raise OSError(28, "No space left on device")

    translate = runner._Translator(receiver)
    translate({"event": "verbose"})
    assert isinstance(translate.error, OSError)


def test_what_a_task_says_that_does_nothing_else_is_handed_on() -> None:
    said = {"host": "a", "task": "Say it", "task_action": "ansible.builtin.debug", "res": {"msg": "look"}}
    other = said | {"task_action": "ansible.builtin.command"}
    listed = said | {"res": {"msg": {"a": 1}}}
    seen = _translate(*({"event": "runner_on_ok", "event_data": data} for data in (said, other, listed)))
    assert [event.message for event in seen] == ["look", "", ""]
