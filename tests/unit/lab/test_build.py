"""The cache of built things: whole or not at all, the two used last of each name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import build


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)


def key(number: int) -> str:
    """A hash."""
    return f"{number:016x}"


@pytest.mark.proves("lab-cache")
def test_what_was_cut_short_is_not_there_and_is_made_again(tmp_path: Path) -> None:
    def cut(target: Path) -> None:
        target.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.cached("thing", key(1), cut)
    assert not list(tmp_path.glob("thing-*"))
    made = build.cached("thing", key(1), lambda target: print("whole", end="", file=target.open("w")))
    assert made.read_text() == "whole"
    assert build.cached("thing", key(1), cut) == made
    # What was to be another version of it is in nobody's way for ever.
    with pytest.raises(KeyboardInterrupt):
        build.cached("thing", key(2), cut)
    (tmp_path / f".thing-more-{key(2)}.new").touch()
    build.cached("thing", key(3), Path.touch)
    assert [path.name for path in tmp_path.glob(".*.new")] == [f".thing-more-{key(2)}.new"]


@pytest.mark.proves("lab-cache")
def test_the_two_used_last_are_kept_and_no_other_name_is_touched(tmp_path: Path) -> None:
    (tmp_path / f"thing-more-{key(9)}").write_text("another name")
    for number, age in ((1, 300), (2, 200), (3, 100)):
        path = build.cached("thing", key(number), Path.touch)
        os.utime(path, (0, path.stat().st_mtime - age))
        if number == 2:  # the oldest is used once more
            build.cached("thing", key(1), lambda target: pytest.fail("it was there"))
    assert {path.name for path in tmp_path.glob("thing-*")} == {
        f"thing-{key(1)}",
        f"thing-{key(3)}",
        f"thing-more-{key(9)}",
    }


@pytest.mark.proves("lab-cache")
def test_a_hash_knows_names_and_contents_and_no_compiled_files(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a").write_text("x")
    first = build.digest(tmp_path / "one")
    (tmp_path / "one/__pycache__").mkdir()
    (tmp_path / "one/__pycache__/a.pyc").write_text("y")
    assert build.digest(tmp_path / "one") == first
    (tmp_path / "one/a").rename(tmp_path / "one/b")
    assert build.digest(tmp_path / "one") != first


@pytest.mark.proves("lab-cache")
def test_a_program_that_fails_is_named_with_its_last_words() -> None:
    with pytest.raises(SystemExit, match=r"lab: sh -c 'echo no >&2; exit 3' ended with 3:\nno"):
        build.run("sh", "-c", "echo no >&2; exit 3")
