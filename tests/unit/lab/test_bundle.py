"""Upstream's release files instead of lab RKE2's: from a directory or URL, checked against upstream's list."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import build
import bundle

RELEASE = "v1.35.4+rke2r1"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("LAB_RKE2", "upstream")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as upstream publishes: <release>/<file>, and the list of checksums."""
    directory = tmp_path / "source" / RELEASE
    directory.mkdir(parents=True)
    lines = []
    for name in (*bundle.UPSTREAM_FILES, "rke2-images-cilium.linux-amd64.tar.zst"):
        (directory / name).write_text(f"content of {name}")
        lines.append(f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n")
    (directory / bundle.SUMS).write_text("".join(lines))
    monkeypatch.setenv("LAB_RKE2_SOURCE", str(directory.parent))
    return directory


@pytest.fixture
def url(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same by HTTP."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(source.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("LAB_RKE2_SOURCE", address)
    yield address
    server.shutdown()


@pytest.mark.proves("lab-upstream")
def test_upstreams_files_are_taken_from_a_directory_and_nothing_else_is(source: Path) -> None:
    made = bundle.release_files(RELEASE)
    assert {path.name for path in made.iterdir()} == {*bundle.UPSTREAM_FILES, bundle.SUMS}
    assert (made / bundle.UPSTREAM_FILES[0]).read_text() == f"content of {bundle.UPSTREAM_FILES[0]}"


@pytest.mark.proves("lab-upstream")
def test_upstreams_files_are_taken_from_a_url_whose_plus_is_escaped(url: str) -> None:
    made = bundle.release_files(RELEASE)
    assert {path.name for path in made.iterdir()} == {*bundle.UPSTREAM_FILES, bundle.SUMS}


@pytest.mark.proves("lab-upstream")
@pytest.mark.parametrize("name", bundle.UPSTREAM_FILES)
def test_a_flipped_byte_is_refused_and_nothing_is_kept(source: Path, name: str) -> None:
    (source / name).write_text(f"Content of {name}")
    with pytest.raises(
        SystemExit, match=rf"{name} of v1.35.4\+rke2r1 from .*: sha256 is [0-9a-f]{{64}}, {bundle.SUMS}"
    ):
        bundle.release_files(RELEASE)
    assert not list(build.CACHE.glob("upstream-*"))


@pytest.mark.proves("lab-upstream")
def test_a_file_that_the_list_does_not_name_is_refused(source: Path) -> None:
    lines = (source / bundle.SUMS).read_text().splitlines(keepends=True)
    (source / bundle.SUMS).write_text("".join(line for line in lines if bundle.UPSTREAM_FILES[1] not in line))
    with pytest.raises(SystemExit, match=f"{bundle.UPSTREAM_FILES[1]} .* says None"):
        bundle.release_files(RELEASE)


@pytest.mark.proves("lab-upstream")
@pytest.mark.parametrize("name", [bundle.SUMS, bundle.UPSTREAM_FILES[2]])
def test_a_missing_file_is_named_with_the_layout_that_is_wanted(source: Path, name: str) -> None:
    (source / name).unlink()
    with pytest.raises(SystemExit, match=rf"{name} is missing; LAB_RKE2_SOURCE is a directory or URL with <release>"):
        bundle.release_files(RELEASE)


@pytest.mark.proves("lab-upstream")
def test_a_missing_file_of_a_url_is_named_too(url: str, source: Path) -> None:
    (source / bundle.UPSTREAM_FILES[0]).unlink()
    with pytest.raises(SystemExit, match=rf"{url}/v1.35.4%2Brke2r1/{bundle.UPSTREAM_FILES[0]} cannot be had: .* 404"):
        bundle.release_files(RELEASE)


@pytest.mark.proves("lab-upstream")
def test_another_source_is_not_what_the_first_left_in_the_cache(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.release_files(RELEASE)
    monkeypatch.setenv("LAB_RKE2_SOURCE", str(source))
    with pytest.raises(SystemExit, match="is missing"):
        bundle.release_files(RELEASE)


@pytest.mark.proves("lab-upstream")
def test_a_word_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_RKE2", "Upstream")
    with pytest.raises(SystemExit, match="LAB_RKE2=Upstream means nothing; leave it out, or say LAB_RKE2=upstream"):
        bundle.release_files(RELEASE)
