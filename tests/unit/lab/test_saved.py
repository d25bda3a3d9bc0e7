"""What nodes are saved as: names, what is listed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nodes
import saved


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for saves."""
    monkeypatch.setattr(saved, "SAVED", tmp_path / "saved")
    return tmp_path / "saved"


def lay(store: Path, name: str, machines: list[str]) -> None:
    """A save of some machines, 1 MiB each."""
    (store / name).mkdir(parents=True)
    for machine in machines:
        (store / name / f"{machine}.img").write_bytes(b"x" * (1 << 20))
    (store / name / "save.json").write_text(json.dumps({"machines": machines, "saved": "2026-01-02T03:04:05+00:00"}))


@pytest.mark.proves("lab-save-names")
@pytest.mark.parametrize("name", ["a", "before-upgrade", "v1.35_x", "0"])
def test_a_plain_name_is_a_directory_of_its_own(store: Path, name: str) -> None:
    assert saved.checked(name) == store / name


@pytest.mark.proves("lab-save-names")
@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "/etc", "A", "a b", "-x", "a" * 42])
def test_a_name_that_could_lead_elsewhere_is_refused(store: Path, name: str) -> None:
    with pytest.raises(SystemExit, match=r"cannot be the name of a save: use small letters, digits and - _ \."):
        saved.checked(name)


@pytest.mark.proves("lab-save-names")
def test_the_list_tells_when_how_big_and_how_many(store: Path) -> None:
    lay(store, "one", ["a", "b"])
    (store / ".two.new").mkdir()  # interrupted
    assert saved.listed() == {"one": "2026-01-02T03:04:05+00:00, 0.0 GiB, 2 nodes"}


@pytest.mark.proves("lab-save-names")
@pytest.mark.parametrize("verb", [saved.load, saved.forget])
def test_what_is_not_saved_is_told_with_what_is(store: Path, verb: object) -> None:
    lay(store, "one", ["a"])
    with pytest.raises(SystemExit, match="nothing is saved as two; there is: one"):
        verb("two")  # type: ignore[operator]


@pytest.mark.proves("lab-save-names")
def test_a_save_of_other_nodes_is_not_loaded(store: Path) -> None:
    lay(store, "one", ["a", "b"])
    names = ", ".join(machine.name for machine in nodes.site_machines())
    with pytest.raises(SystemExit, match=f"one holds a, b; the site has {names}"):
        saved.load("one")
