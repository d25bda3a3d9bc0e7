"""The pages say what was run: a shard proves only what passed, and a claim nobody has shown is called unproven."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import render_docs
from tests.contract import tree

pytestmark = pytest.mark.proves("house-proofs")

CLAIMS = {
    "each-time": {"claim": "A.", "proven_by": "landing"},
    "long": {"claim": "B.", "proven_by": "crash"},
    "never-run": {"claim": "C.", "proven_by": "power"},
    "cannot": {"claim": "D.", "unproven": "There is no such machine."},
}
RESULTS = {"crash": {"date": "2026-01-31", "proven": ["long"]}}
MEASURED = {"crash": RESULTS["crash"] | {"measured": {"long": {"time": "7 s"}}}}

EXAMPLE = """
import pytest

@pytest.mark.proves("quick")
def test_quick(): pass

@pytest.mark.shard("crash")
@pytest.mark.proves("good")
def test_good(record_property): record_property("time", "7 s")

@pytest.mark.shard("crash")
@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.proves("half")
def test_half(passes): assert passes

@pytest.mark.shard("crash")
@pytest.mark.proves("left-out")
def test_left_out(): pytest.skip("not on this machine")

@pytest.fixture
def broken(): raise RuntimeError

@pytest.mark.shard("crash")
@pytest.mark.proves("unreached")
def test_unreached(broken): pass
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("each-time", "every landing", id="landing"),
        pytest.param("long", "proof shard `crash`, 2026-01-31", id="shard that passed"),
        pytest.param("never-run", "**unproven**: proof shard `power` has not passed yet", id="shard never run"),
        pytest.param("cannot", "**unproven**: There is no such machine.", id="reason"),
    ],
)
def test_the_page_says_how_a_claim_is_proven(name: str, words: str) -> None:
    page = render_docs.verification_page(CLAIMS, RESULTS)
    assert f"| {CLAIMS[name]['claim']} | {words} | `{name}` |" in page.splitlines()


def test_the_page_says_what_a_shard_has_measured() -> None:
    page = render_docs.verification_page(CLAIMS, MEASURED)
    assert "| B. | proof shard `crash`, 2026-01-31; time: 7 s | `long` |" in page.splitlines()


def test_a_claim_added_to_a_shard_is_unproven_until_the_shard_runs_again() -> None:
    claims = {**CLAIMS, "added": {"claim": "E.", "proven_by": "crash"}}
    assert "| E. | **unproven**: proof shard `crash` has not passed yet | `added` |" in render_docs.verification_page(
        claims, RESULTS
    )


def _run(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    """Run EXAMPLE with this repository's marks and return the lines of --results."""
    (tmp_path / "test_example.py").write_text(EXAMPLE, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-c", str(tmp_path / "pytest.ini"), "--results", str(results), *options, str(tmp_path)]
    subprocess.run(command, cwd=tree.ROOT, check=False, stdout=subprocess.DEVNULL, timeout=60)
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def test_a_run_without_a_shard_leaves_the_long_tests_out(tmp_path: Path) -> None:
    assert [(line["id"], line["outcome"], line["shard"]) for line in _run(tmp_path)] == [("quick", "passed", "landing")]


def test_a_shard_proves_only_ids_whose_every_test_passed(tmp_path: Path) -> None:
    outcomes = _run(tmp_path, "--shard", "crash")
    assert sorted((line["id"], line["outcome"]) for line in outcomes) == [
        ("good", "passed"),
        ("half", "failed"),
        ("half", "passed"),
        ("left-out", "skipped"),
        ("unreached", "failed"),
    ]
    recorded = render_docs.record("crash", outcomes, {"power": RESULTS["crash"]})
    assert recorded["crash"]["proven"] == ["good"]
    assert recorded["crash"]["measured"] == {"good": {"time": "7 s"}}
    assert recorded["power"] == RESULTS["crash"]


def test_a_run_that_proved_nothing_is_not_noted() -> None:
    with pytest.raises(ValueError, match="make proof SHARD=crash"):
        render_docs.record("crash", [{"id": "x", "outcome": "failed", "date": "2026-01-31", "shard": "crash"}], {})


def test_a_readme_shows_inputs_with_type_default_and_meaning_and_how_to_run_the_stage(tmp_path: Path) -> None:
    role = tmp_path / "roles/thing"
    (role / "meta").mkdir(parents=True)
    (role / "defaults").mkdir()
    (tmp_path / "playbooks/stages").mkdir(parents=True)
    (tmp_path / "playbooks/stages/thing_server.yml").write_text(
        "- tasks:\n    - ansible.builtin.import_role:\n        name: thing\n        tasks_from: server\n",
        encoding="utf-8",
    )
    (role / "defaults/main.yml").write_text(
        'thing_address: "{{ site_thing_address }}"\nthing_mode: fast\n', encoding="utf-8"
    )
    (role / "meta/argument_specs.yml").write_text(
        """
argument_specs:
  server:
    short_description: Run a thing
    description: [It runs., It stays.]
    options:
      thing_address: {type: str, required: true, description: Where C(thing) listens.}
      thing_mode: {type: str, choices: [fast, slow], description: How.}
      thing_peers:
        type: list
        elements: dict
        description: The others.
        options:
          key: {type: str, no_log: true, description: Shared.}
""",
        encoding="utf-8",
    )
    text = render_docs.role_readme(tmp_path, role)
    alone = "ansible-playbook -i inventories/SITE playbooks/stages/thing_server.yml"
    for expected in (
        "# thing",
        "## Entry point `server`: Run a thing",
        f"Stage `thing_server`; alone: `{alone}`, and with `--tags verify` it only looks.",
        "- **`thing_address`** (str; required; default `{{ site_thing_address }}`)  ",
        "  Where `thing` listens.",
        "- **`thing_mode`** (str; default `fast`; one of `fast`, `slow`)  ",
        "- **`thing_peers`** (list of dict)  ",
        "  - **`key`** (str; secret)  ",
        "Its defaults read of the site: `site_thing_address`.",
    ):
        assert expected in text.splitlines(), text
