"""inventories/h2iosc is the published platform: all is as published or differs where docs/h2iosc.yml says so."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import yaml
from ansible.utils.vars import merge_hash

from tests import rendered
from tests.contract import tree

SITE = "h2iosc"
PUBLISHED = tree.ROOT / "docs/h2iosc.yml"
PARAMETERS: dict[str, list[Any]] = tree.load(PUBLISHED)
ENTRIES = [(number, entry) for number, entries in PARAMETERS.items() for entry in entries]
SHAPES = {
    frozenset({"what", "published", "at"}),
    frozenset({"what", "published", "ours", "why", "at"}),
    frozenset({"what", "published", "elsewhere"}),
}
MISSING = object()


@functools.cache
def charts() -> dict[str, dict[str, Any]]:
    """Return the values of every chart at the site, over its own defaults as far as the lab's chart has them."""
    defaults = {}
    for path in tree.tracked("molecule/lab/**/Chart.yaml"):
        values = path.with_name("values.yaml")
        defaults[yaml.safe_load(path.read_text())["name"]] = yaml.safe_load(values.read_text())
    return {chart.name: merge_hash(defaults.get(chart.name, {}), chart.values) for chart in rendered.charts(SITE)}


def found(entry: dict[str, Any]) -> Any:
    """Return what stands at the site."""
    where = {"role": entry.get("role", ""), "host": entry.get("host", "localhost")}
    compatibility = tree.load(tree.ROOT / "roles/preflight/files/compatibility.yml")
    return rendered.render(entry["at"], SITE, **where, charts=charts(), compatibility=compatibility)


def problem(entry: dict[str, Any], value: Any) -> str:
    """Return what is wrong with a parameter whose value at the site is known; nothing where all is well."""
    if "ours" not in entry:
        return "" if value == entry["published"] else f"is {value!r}, published as {entry['published']!r}"
    if value == entry["published"]:
        return f"is said to differ and is {value!r} as published"
    return "" if value == entry["ours"] else f"is {value!r}, neither as published nor {entry['ours']!r}"


@pytest.mark.proves("reference-site")
def test_every_published_parameter_is_there_once_and_says_what_it_has_to() -> None:
    assert list(PARAMETERS) == [f"P{number}" for number in range(1, len(PARAMETERS) + 1)]
    assert len(PARAMETERS) == 57, "the report has 57 parameters"
    shapeless = [
        f"{tree.relative(PUBLISHED)}:{entry.line}: {number} has {', '.join(entry)}"
        for number, entry in ENTRIES
        if entry.keys() - {"role", "host"} not in SHAPES
    ]
    tree.refuse(
        shapeless, "an entry has what, published, and either elsewhere or at, with ours and why where it differs"
    )


@pytest.mark.proves("reference-site")
def test_the_reference_site_is_as_published_or_differs_as_declared() -> None:
    compared = [(number, entry) for number, entry in ENTRIES if "at" in entry]
    assert len(compared) > len(PARAMETERS)
    problems = [
        f"{tree.relative(PUBLISHED)}:{entry.line}: {number}, {entry['what']}: {said}"
        for number, entry in compared
        if (said := problem(entry, found(entry)))
    ]
    tree.refuse(problems, "correct inventories/h2iosc or the role, or declare the difference with `ours` and `why`")


@pytest.mark.proves("reference-site")
@pytest.mark.parametrize(
    ("entry", "value", "wrong"),
    [
        pytest.param({"published": 5}, 5, False, id="as-published"),
        pytest.param({"published": 5}, 6, True, id="neither"),
        pytest.param({"published": 5, "ours": 0}, 0, False, id="as-declared"),
        pytest.param({"published": 5, "ours": 0}, 5, True, id="declared-and-not-different"),
        pytest.param({"published": 5, "ours": 0}, 6, True, id="neither-published-nor-declared"),
        pytest.param({"published": 5, "ours": 5}, 5, True, id="declared-is-the-published"),
    ],
)
def test_a_parameter_that_is_neither_and_a_difference_that_is_none_are_told(
    entry: dict[str, Any], value: int, wrong: bool
) -> None:
    assert bool(problem(entry, value)) == wrong
