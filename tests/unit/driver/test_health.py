"""What is less healthy than before is found, and a verdict is reached whatever is seen."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner import health

pytestmark = pytest.mark.proves("driver-rollout-health")


def _node(name: str = "one", **conditions: str) -> dict[str, Any]:
    given = {"Ready": "True", "DiskPressure": "False"} | conditions
    return {
        "kind": "Node",
        "metadata": {"name": name},
        "status": {"conditions": [{"type": kind, "status": status} for kind, status in given.items()]},
    }


def _deployment(ready: int, wanted: int = 2) -> dict[str, Any]:
    status = {"readyReplicas": ready} if ready else {}
    return {
        "kind": "Deployment",
        "metadata": {"name": "hub", "namespace": "hub"},
        "spec": {"replicas": wanted},
        "status": status,
    }


def _daemons(ready: int) -> dict[str, Any]:
    status = {"desiredNumberScheduled": 3, "numberReady": ready}
    return {"kind": "DaemonSet", "metadata": {"name": "net", "namespace": "kube"}, "spec": {}, "status": status}


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        pytest.param([_node()], [_node()], (), id="as before"),
        pytest.param([_node()], [_node(Ready="Unknown")], ("node one: Ready is Unknown",), id="not ready"),
        pytest.param([_node()], [], ("node one is gone",), id="gone"),
        pytest.param([_node()], [_node(), _node("two", Ready="False")], (), id="a new node is not compared"),
        pytest.param([_node(Ready="False")], [_node(Ready="Unknown")], (), id="no worse than before"),
        pytest.param([_node()], [_node(DiskPressure="True")], ("node one: DiskPressure is True",), id="pressure"),
        pytest.param([_node()], [_node(Corrupt="True")], ("node one: Corrupt is True",), id="a new fault"),
        pytest.param(
            [_node(EtcdIsVoter="True")],
            [_node(EtcdIsVoter="False")],
            ("node one: EtcdIsVoter is False",),
            id="no longer a voter",
        ),
        pytest.param([_node(EtcdIsVoter="True")], [_node()], ("node one: EtcdIsVoter is gone",), id="a lost member"),
        pytest.param(
            [_deployment(2)],
            [_deployment(0)],
            ("Deployment hub/hub: 2 of its pods are not ready, 0 before",),
            id="pods are missing",
        ),
        pytest.param([_deployment(2)], [_deployment(1, 1)], (), id="scaled down"),
        pytest.param([_deployment(1)], [_deployment(1)], (), id="missing before too"),
        pytest.param(
            [_daemons(3)], [_daemons(2)], ("DaemonSet kube/net: 1 of its pods are not ready, 0 before",), id="ds"
        ),
        pytest.param([_daemons(3)], [], ("DaemonSet kube/net is gone",), id="a workload is gone"),
    ],
)
def test_what_was_well_and_is_not_is_told(before: list[Any], now: list[Any], found: tuple[str, ...]) -> None:
    assert health.regressions(health.of(before), health.of(now)) == found


def test_a_cluster_that_does_not_answer_is_less_healthy() -> None:
    assert health.regressions(health.of([]), None) == ("the cluster does not answer",)


LOOKS = st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=60)


@given(LOOKS, st.integers(0, 600), st.integers(1, 300))
def test_a_verdict_follows_from_what_was_seen_last_and_for_how_long(
    steps: list[tuple[int, bool]], soak: int, settle: int
) -> None:
    at, looks = 0, []
    for step, well in steps:
        at += step
        looks.append((float(at), () if well else ("x",)))
    verdict = health.judge(looks, soak, settle)
    last = [seen for _, seen in looks]
    same = next((number for number, seen in enumerate(reversed(last)) if seen != last[-1]), len(last))
    lasted = looks[-1][0] - looks[-same][0]
    if verdict == "steady":
        assert not last[-1]
        assert lasted >= soak
    elif verdict == "go on":
        assert at < 2 * (soak + settle)
        assert lasted < (settle if last[-1] else soak)
    else:
        assert (last[-1] and lasted >= settle) or at >= 2 * (soak + settle)


def test_nothing_seen_is_no_verdict_and_one_good_look_is_enough_without_soak() -> None:
    assert health.judge([], 0, 60) == "go on"
    assert health.judge([(0.0, ())], 0, 60) == "steady"
    assert health.judge([(0.0, ("x",)), (20.0, ())], 0, 60) == "steady"
