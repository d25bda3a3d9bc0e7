"""Each mistake of the published platform is refused, cannot be made, or is said to be open."""

from __future__ import annotations

import ast
import re

import pytest

from tests.contract import tree

pytestmark = pytest.mark.proves("reference-mistakes")

MISTAKES = tree.ROOT / "tests/contract/mistakes.yml"
# X1 to X45, as the reference counts them.
COUNT = 45


def _problem(test: str) -> str:
    """Return what is wrong with FILE::TEST[ID], or an empty string."""
    match = re.fullmatch(r"([\w/]+\.py)::(test_\w+)(?:\[([\w.-]+)\])?", test)
    if not match:
        return "is not FILE::TEST or FILE::TEST[ID]"
    file, name, case = match.groups()
    path = tree.ROOT / file
    if not path.is_file():
        return f"{file} is not there"
    text = path.read_text(encoding="utf-8")
    functions = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    if name not in functions:
        return f"{file} has no {name}"
    return f'{file} has no case id="{case}"' if case and f'id="{case}"' not in text else ""


def test_every_mistake_is_listed_once_with_one_answer() -> None:
    found = tree.load(MISTAKES)
    assert list(found) == [f"X{number}" for number in range(1, COUNT + 1)]
    problems = [
        f"{tree.relative(MISTAKES)}:{entry.line}: {name}"
        for name, entry in found.items()
        if set(entry) - {"what"} not in ({"tests"}, {"why"}, {"open"}) or not all(entry.values())
    ]
    tree.refuse(problems, "say what it is, and one of: tests, why, open")


def test_every_test_that_is_named_exists() -> None:
    problems = [
        f"{tree.relative(MISTAKES)}: {name}: {problem}"
        for name, entry in tree.load(MISTAKES).items()
        for test in entry.get("tests", ())
        if (problem := _problem(test))
    ]
    tree.refuse(problems, "name the test that shows it now")


@pytest.mark.parametrize(
    "test",
    [
        pytest.param("tests/contract/test_mistakes.py::test_nothing", id="no-such-test"),
        pytest.param("tests/contract/nowhere.py::test_nothing", id="no-such-file"),
        pytest.param("tests/contract/test_mistakes.py::test_every_test_that_is_named_exists[no]", id="no-such-case"),
        pytest.param("a sentence", id="no-test"),
    ],
)
def test_a_test_that_is_not_there_is_noticed(test: str) -> None:
    assert _problem(test)
