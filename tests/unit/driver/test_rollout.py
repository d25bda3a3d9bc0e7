"""Batches are what Ansible makes of `serial`, and a limit that names nobody is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.executor.playbook_executor import PlaybookExecutor
from hypothesis import given
from hypothesis import strategies as st

from provisioner import rollout
from provisioner.errors import ProvisionError

HOSTS = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), max_size=40, unique=True)
SIZES = st.one_of(st.integers(1, 12), st.integers(1, 100).map(lambda number: f"{number}%"))
BATCHES = st.lists(SIZES, min_size=1, max_size=5).map(tuple)


def _by_ansible(hosts: list[str], batch: rollout.Batch) -> list[list[str]]:
    """Return the batches that Ansible itself makes."""
    inventory = SimpleNamespace(get_hosts=lambda pattern, order: list(hosts))
    play: Any = SimpleNamespace(hosts="all", order=None, serial=list(batch))
    executor: Any = SimpleNamespace(_inventory=inventory)
    batches: list[list[str]] = PlaybookExecutor._get_serialized_batches(executor, play)
    return batches


@pytest.mark.proves("driver-waves")
@given(HOSTS, BATCHES)
def test_waves_are_the_batches_that_ansible_makes(hosts: list[str], batch: rollout.Batch) -> None:
    assert [list(wave) for wave in rollout.waves(hosts, batch)] == _by_ansible(hosts, batch)


@pytest.mark.proves("driver-waves")
@given(HOSTS, BATCHES)
def test_every_host_is_in_one_wave_and_no_wave_exceeds_its_size(hosts: list[str], batch: rollout.Batch) -> None:
    waves = rollout.waves(hosts, batch)
    assert [host for wave in waves for host in wave] == hosts
    assert all(waves)
    first = batch[0]
    allowed = first if isinstance(first, int) else max(1, len(hosts) * int(first[:-1]) // 100)
    assert not waves or len(waves[0]) <= allowed


@given(BATCHES)
def test_a_batch_survives_being_written_and_read(batch: rollout.Batch) -> None:
    assert rollout.parse_batch(",".join(str(size) for size in batch)) == batch


def test_without_sizes_all_hosts_are_one_wave() -> None:
    assert rollout.waves(["a", "b"], ()) == (("a", "b"),)
    assert rollout.waves([], ()) == ()


@pytest.mark.parametrize("text", ["", "0", "-1", "1,,2", "x", "0%", "101%", "1;2", "1.5", "%"])
def test_a_batch_of_anything_else_is_refused_with_the_word_that_is_wrong(text: str) -> None:
    with pytest.raises(ProvisionError, match="neither a number of hosts") as caught:
        rollout.parse_batch(text)
    assert "--batch 1,5,50%" in caught.value.hint


@pytest.mark.parametrize(
    "limit", ["one", "workers", "one,two", "workers:!two", "workers:&one", "o*", "~on.", "one[0:1]", "all", "@retry"]
)
def test_a_limit_of_known_names_or_a_pattern_is_taken(limit: str) -> None:
    rollout.check_limit(limit, ["one", "two"], ["all", "workers"])


@pytest.mark.proves("driver-limit")
@pytest.mark.parametrize("limit", ["oen", "one,oen", "workers:!oen", "oen:&workers"])
def test_a_limit_with_a_misspelt_name_is_refused_with_the_nearest(limit: str) -> None:
    with pytest.raises(ProvisionError, match=r"no host or group 'oen'\. Did you mean 'one'"):
        rollout.check_limit(limit, ["one", "two"], ["all", "workers"])


@pytest.mark.proves("driver-waves")
@given(HOSTS.filter(bool), BATCHES, st.data())
def test_a_canary_is_the_first_wave_and_alone(hosts: list[str], batch: rollout.Batch, data: st.DataObject) -> None:
    canary = data.draw(st.sampled_from(hosts))
    first, *others = rollout.waves(hosts, batch, canary)
    assert first == (canary,)
    rest = [host for host in hosts if host != canary]
    assert tuple(others) == rollout.waves(rest, batch)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10min", 600), ("2h", 7200), ("0", 0)])
def test_a_span_is_read(text: str, seconds: int) -> None:
    assert rollout.parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5h", "10 m"])
def test_a_span_of_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ProvisionError, match="no length of time"):
        rollout.parse_span(text)


AT = datetime(2026, 3, 1, tzinfo=UTC)
NEW, OLD = {"rke2_version": "v2"}, {"rke2_version": "v1"}


def _seen(verb: str, days: int, result: str = "ok", whole: bool = True, versions: dict[str, str] = NEW) -> rollout.Seen:
    return rollout.Seen(verb, AT + timedelta(days=days), result, whole, versions)


@pytest.mark.proves("driver-promotion")
@pytest.mark.parametrize(
    ("runs", "why"),
    [
        pytest.param([_seen("deploy", 0), _seen("verify", 1)], "", id="verified"),
        pytest.param([_seen("verify", 1), _seen("upgrade", 0, versions=OLD)], "", id="an upgrade writes them last"),
        pytest.param([], "no whole verify", id="nothing is known"),
        pytest.param([_seen("deploy", 0)], "no whole verify", id="not verified"),
        pytest.param([_seen("verify", 1)], "nothing was ever deployed", id="not deployed"),
        pytest.param([_seen("deploy", 0), _seen("verify", 1, whole=False)], "no whole verify", id="a part of it"),
        pytest.param([_seen("deploy", 0), _seen("verify", 1, "unhealthy")], "ended with: unhealthy", id="unhealthy"),
        pytest.param([_seen("deploy", 2), _seen("verify", 1)], "came after its last whole verify", id="changed since"),
        pytest.param([_seen("deploy", 0, "failed"), _seen("verify", 1)], "ended with: failed", id="half deployed"),
        pytest.param(
            [_seen("deploy", 0), _seen("verify", 1, versions=OLD)], "rke2_version is v1 there and v2 here", id="others"
        ),
        pytest.param(
            [_seen("deploy", 0), _seen("verify", 1, versions=NEW | {"x_version": "1"})], "x_version", id="one more"
        ),
    ],
)
def test_versions_are_promoted_when_the_other_site_was_seen_well_with_exactly_these(
    runs: list[rollout.Seen], why: str
) -> None:
    reason = rollout.promotable(NEW, runs)
    assert (why in reason) if why else reason == ""
