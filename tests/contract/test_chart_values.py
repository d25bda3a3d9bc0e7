"""What roles set of charts stands in one list, and nothing else does: a chart takes a wrong path in silence."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tests import rendered
from tests.contract import tree

LISTED: dict[str, Any] = tree.load(rendered.CHART_VALUES)
BELOW = ".*"


@functools.cache
def charts() -> list[rendered.Chart]:
    """Return every chart of every site with everything that it may choose."""
    return [
        chart for site in rendered.SITES for inputs in rendered.CHOICES for chart in rendered.charts(site, **inputs)
    ]


def covers(listed: str, path: str) -> bool:
    """Return whether a path of the list stands for a path that a role sets."""
    above = listed.removesuffix(BELOW)
    return path == above or (listed.endswith(BELOW) and path.startswith(f"{above}."))


def problems(listed: dict[str, Any], found: list[rendered.Chart]) -> list[str]:
    """Return where the list and what roles set differ, either way."""
    said = []
    for name in {chart.name for chart in found} | listed.keys():
        known = listed.get(name, {"versions": [], "paths": []})
        mine = [chart for chart in found if chart.name == name]
        where = f"{tree.relative(rendered.CHART_VALUES)}: {name}"
        versions = {str(chart.version) for chart in mine}
        paths = {".".join(map(str, keys)): chart.role for chart in mine for keys, _ in rendered.leaves(chart.values)}
        said += [f"{where} lacks version {version}" for version in versions - {str(one) for one in known["versions"]}]
        said += [
            f"{where} has version {one}, which no site installs"
            for one in known["versions"]
            if str(one) not in versions
        ]
        said += [
            f"{where} lacks {path}, set by the role {role}"
            for path, role in paths.items()
            if not any(covers(one, path) for one in known["paths"])
        ]
        said += [
            f"{where} has {one}, which no role sets"
            for one in known["paths"]
            if not any(covers(one, path) for path in paths)
        ]
    return said


@pytest.mark.proves("house-chart-values")
def test_roles_set_exactly_the_listed_values_of_the_listed_versions() -> None:
    assert {chart.role for chart in charts()} >= {
        "certificates",
        "ingress_nginx",
        "jupyterhub",
        "keycloak",
        "metallb",
        "storage",
    }
    fix = "look the path up in the published values and schema of every version, then correct the role or the list"
    tree.refuse(problems(LISTED, charts()), fix)


@pytest.mark.proves("house-chart-values")
def test_a_wrong_path_a_stale_one_and_an_unknown_version_are_told() -> None:
    listed = {"a": {"versions": ["1", "2"], "paths": ["b.c", "b.stale", "open.*", "d"]}}
    found = [rendered.Chart("a", "3", "role", {"b": {"c": 1, "wrong": 2}, "open": {"x": {"y": 1}}, "d": [{"e": 1}]})]
    assert sorted(line.partition(": a ")[2] for line in problems(listed, found)) == [
        "has b.stale, which no role sets",
        "has version 1, which no site installs",
        "has version 2, which no site installs",
        "lacks b.wrong, set by the role role",
        "lacks version 3",
    ]


@pytest.mark.proves("house-chart-values")
def test_every_chart_that_a_role_gives_values_to_is_looked_at() -> None:
    """A role that writes a HelmChartConfig stands in PACKAGED; rke2's are the site's own values."""
    writers = {
        path.relative_to(tree.ROOT / "roles").parts[0]
        for path in tree.tracked("roles/*/tasks/*.yml", "roles/*/vars/*.yml")
        if "'kind': 'HelmChartConfig'" in path.read_text(encoding="utf-8")
    }
    assert writers - {"rke2"} == set(rendered.PACKAGED)
    inputs = {name for role in tree.roles() for name in tree.options(role)}
    chosen = {name for choice in rendered.CHOICES for name in choice}
    assert chosen <= inputs, "something chosen is the input of no role: take it out of CHOICES in tests/rendered.py"
