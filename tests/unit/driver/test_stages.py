"""The order of the platform is read, and what cannot be read is refused with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner import stages
from provisioner.errors import ExitCode, ProvisionError
from tests.unit.driver.conftest import Checkout

pytestmark = pytest.mark.proves("driver-stages")


def test_stages_come_in_the_order_of_the_playbook_with_the_comment_above_them(checkout: Checkout) -> None:
    found = stages.read(checkout.root / "playbooks/site.yml")
    assert [(stage.name, stage.description) for stage in found] == [
        ("first", "Looks before anything is touched."),
        ("second", "The servers, of which an agent needs one. They come before the agents."),
        ("third", "The agents."),
    ]
    assert all(stage.path.is_absolute() and stage.path.is_file() for stage in found)


def test_plays_of_a_stage_are_counted_through_what_it_imports(checkout: Checkout) -> None:
    two = "---\n- {hosts: all, tasks: []}\n- ansible.builtin.import_playbook: third.yml\n"
    checkout.stage("second", body=two)
    assert [stage.plays for stage in stages.read(checkout.root / "playbooks/site.yml")] == [1, 2, 1]


def test_the_play_that_follows_the_batch_option_is_known_by_its_serial(checkout: Checkout) -> None:
    assert [stage.batched for stage in stages.read(checkout.root / "playbooks/site.yml")] == ["", "", "rke2_agent"]


def test_the_repository_explains_each_of_its_stages() -> None:
    found = stages.read(Path(__file__).resolve().parents[3] / "playbooks/site.yml")
    assert found
    assert all(stage.description and stage.plays for stage in found)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        pytest.param("- a: [}", 1, "is no YAML", id="no YAML"),
        pytest.param("a: b", 1, "is no playbook", id="no list"),
        pytest.param("# c\n- word", 2, "no mapping", id="an entry that is a word"),
        pytest.param("- hosts: all", 1, "imports no stage", id="a play instead of an import"),
        pytest.param("- import_playbook: stages/none.yml", 1, "stages/none.yml, which is not there", id="no such file"),
    ],
)
def test_a_broken_order_is_refused_with_file_and_line(checkout: Checkout, text: str, line: int, said: str) -> None:
    order = checkout.root / "playbooks/site.yml"
    order.write_text(text, encoding="utf-8")
    with pytest.raises(ProvisionError, match=said) as caught:
        stages.read(order)
    assert caught.value.message.startswith(f"{order}:{line}:")
    assert caught.value.exit_code == ExitCode.SETUP


def test_an_unknown_stage_is_refused_with_the_nearest_known_one(checkout: Checkout) -> None:
    found = stages.read(checkout.root / "playbooks/site.yml")
    assert stages.known("second", found) == "second"
    with pytest.raises(ProvisionError, match=r"'secnod'.* Did you mean 'second'"):
        stages.known("secnod", found)
