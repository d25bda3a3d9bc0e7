"""What the lab borrows from the machine below: one line of its hosts file."""

from __future__ import annotations

from pathlib import Path

import pytest

import nodes

LINE, OTHER = "192.0.2.1 hub.test # metalhub lab\n", "192.0.2.2 hub.test # metalhub second\n"


@pytest.mark.proves("lab-hosts")
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("127.0.0.1 localhost\n", id="usual"),
        pytest.param("127.0.0.1 localhost\n192.0.2.9 hub.test", id="no-line-end"),
        pytest.param(OTHER + "127.0.0.1 localhost\n", id="another-lab"),
        pytest.param("", id="empty"),
    ],
)
def test_the_line_comes_once_and_goes_without_a_trace(text: str) -> None:
    lent = nodes.with_line(text, LINE)
    assert lent.count(LINE) == 1
    assert nodes.with_line(lent, LINE) == lent
    assert nodes.without_line(lent, LINE) == text
    assert nodes.without_line(text, LINE) == text


@pytest.mark.proves("lab-hosts")
def test_an_earlier_lab_keeps_the_name() -> None:
    assert nodes.with_line(nodes.with_line("x\n", OTHER), LINE) == f"{OTHER}{LINE}x\n"


@pytest.mark.proves("lab-hosts")
def test_the_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("old\n")
    path.chmod(0o640)
    nodes.rewrite(path, "new\n")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new\n", 0o640)
    assert list(tmp_path.iterdir()) == [path]
