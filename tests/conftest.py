"""What the marks `proves` and `shard` do: choose the long tests, and tell which claims a run has proven."""

from __future__ import annotations

import datetime
import json
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis.configuration import set_hypothesis_home_dir


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --shard and --results."""
    parser.addoption(
        "--shard", metavar="NAME", help="run only the long tests of this proof shard (default: none of any)"
    )
    parser.addoption(
        "--results", metavar="FILE", type=Path, help="append {id, outcome, date, shard, measured} for every proven id"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep Hypothesis' examples with the other tools' caches."""
    set_hypothesis_home_dir(config.rootpath / ".cache/hypothesis")


def _shard(item: pytest.Item) -> str | None:
    mark = item.get_closest_marker("shard")
    return str(mark.args[0]) if mark else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the chosen shard, or those of none."""
    wanted = config.getoption("--shard")
    kept = [item for item in items if _shard(item) == wanted]
    rest = [item for item in items if _shard(item) != wanted]
    if wanted and not kept:
        known = sorted({name for item in items if (name := _shard(item))})
        raise pytest.UsageError(f"no test is in shard {wanted!r}; there are: {', '.join(known) or 'none'}")
    config.hook.pytest_deselected(items=rest)
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Append one line an id to --results once a test is over; a skipped test proves nothing.

    What a test has measured (`record_property`) stands in the lines of its ids.
    """
    report = yield
    file = item.config.getoption("--results")
    over = report.when == "call" or (report.when == "setup" and not report.passed)
    if file and over:
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        ids = {str(name) for mark in item.iter_markers("proves") for name in mark.args}
        with file.open("a", encoding="utf-8") as stream:
            for name in sorted(ids):
                line = {"id": name, "outcome": report.outcome, "date": today, "shard": _shard(item) or "landing"}
                measured = {"measured": dict(report.user_properties)} if report.user_properties else {}
                stream.write(json.dumps(line | measured) + "\n")
    return report
