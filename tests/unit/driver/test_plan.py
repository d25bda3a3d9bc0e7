"""What a request means: which stages run, and the reason for each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from provisioner import plan
from provisioner.errors import ProvisionError
from provisioner.stages import Stage

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STAGES = [Stage(name, Path(f"/{name}.yml"), "", 1, "") for name in ("first", "second", "third")]
pytestmark = pytest.mark.proves("driver-plan")


def _reasons(request: plan.Request, resumed: plan.Resumed | None = None, **past: plan.Past) -> dict[str, str]:
    made = plan.make(STAGES, request, past, NOW, resumed)
    assert [step.stage for step in made.steps] == STAGES
    assert made.chosen == tuple(step.stage for step in made.steps if step.runs)
    return {step.stage.name: ("" if step.runs else "not: ") + step.reason for step in made.steps}


def test_a_new_site_gets_every_stage_because_none_was_ever_finished() -> None:
    assert set(_reasons(plan.Request("deploy")).values()) == {"never finished on this site"}


def test_a_finished_stage_runs_again_and_a_failed_one_says_where_it_failed() -> None:
    reasons = _reasons(
        plan.Request("deploy"),
        first=plan.Past(NOW - timedelta(hours=2), "ok"),
        second=plan.Past(NOW - timedelta(minutes=3), "failed", ("beta",)),
        third=plan.Past(NOW - timedelta(days=3), "ok", limit="one"),
    )
    assert reasons == {
        "first": "finished 2 h ago; run again to see that nothing drifted",
        "second": "failed at beta 3 min ago",
        "third": "finished 3 days ago on --limit one; run again to see that nothing drifted",
    }


@pytest.mark.parametrize(
    ("request_", "chosen"),
    [
        pytest.param(plan.Request("deploy", only=("second",)), ["second"], id="only one"),
        pytest.param(plan.Request("deploy", only=("third", "first")), ["first", "third"], id="only two, in order"),
        pytest.param(plan.Request("deploy", start="second"), ["second", "third"], id="from"),
        pytest.param(plan.Request("deploy", until="second"), ["first", "second"], id="until"),
        pytest.param(plan.Request("deploy", start="second", until="second"), ["second"], id="from and until"),
    ],
)
def test_options_choose_stages_and_the_rest_says_which_option_left_it_out(
    request_: plan.Request, chosen: list[str]
) -> None:
    reasons = _reasons(request_)
    assert [name for name, reason in reasons.items() if not reason.startswith("not: ")] == chosen
    assert all("--" in reason for reason in reasons.values() if reason.startswith("not: "))


@pytest.mark.parametrize(
    ("limit", "chosen"),
    [
        pytest.param("one", ["machines", "both"], id="a machine"),
        pytest.param("one,two", ["machines", "both"], id="two"),
        pytest.param("one,platform", ["machines", "both", "cluster"], id="the group of the control machine too"),
        pytest.param("localhost", ["machines", "both", "cluster"], id="the control machine"),
        pytest.param("all:!one", ["machines", "both", "cluster"], id="all but one"),
        pytest.param("w*", ["machines", "both", "cluster"], id="a pattern, which is Ansible's to judge"),
    ],
)
def test_a_limit_to_machines_leaves_out_what_is_done_from_the_control_machine_alone(
    limit: str, chosen: list[str]
) -> None:
    hosts = {"machines": {"rke2"}, "both": {"localhost", "rke2"}, "cluster": {"platform"}}
    order = [Stage(name, Path(f"/{name}.yml"), "", 1, "", frozenset(of)) for name, of in hosts.items()]
    made = plan.make(order, plan.Request("deploy", limit=limit), {}, NOW)
    assert [stage.name for stage in made.chosen] == chosen


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        pytest.param(plan.Request("deploy", only=("secnod",)), "Did you mean 'second'", id="unknown only"),
        pytest.param(plan.Request("deploy", start="frist"), "Did you mean 'first'", id="unknown from"),
        pytest.param(plan.Request("deploy", until="thrid"), "Did you mean 'third'", id="unknown until"),
        pytest.param(plan.Request("deploy", start="third", until="first"), "no stage lies between", id="empty range"),
        pytest.param(plan.Request("deploy", only=("first",), until="third"), "neither --from nor --until", id="both"),
    ],
)
def test_a_contradiction_is_refused(request_: plan.Request, said: str) -> None:
    with pytest.raises(ProvisionError, match=said):
        plan.make(STAGES, request_, {}, NOW)


def test_resuming_leaves_out_what_was_finished_and_tells_how_the_rest_stood() -> None:
    rest = {"second": plan.Past(NOW - timedelta(seconds=50), "failed", ("beta",))}
    reasons = _reasons(plan.Request("deploy"), plan.Resumed("R", frozenset({"first"}), rest))
    assert reasons == {
        "first": "not: skipped: finished in run R",
        "second": "resume: failed at beta 50 s ago in run R",
        "third": "resume: not reached in run R",
    }


def test_looking_verbs_say_that_they_change_nothing() -> None:
    assert "nothing will be changed" in _reasons(plan.Request("check"))["first"]
    assert "looks only" in _reasons(plan.Request("verify"))["first"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s ago"), (0, "0 s ago"), (119, "119 s ago"), (120, "2 min ago"), (7199, "119 min ago"), (7200, "2 h ago")],
)
def test_times_are_told_in_the_largest_unit_that_fits_twice(seconds: int, words: str) -> None:
    assert plan.ago(NOW - timedelta(seconds=seconds), NOW) == words
