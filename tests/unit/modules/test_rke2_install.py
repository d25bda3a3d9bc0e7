"""The module metalhub.platform.rke2_install, run for real in temporary directories."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ansible.module_utils.testing import patch_module_args

from plugins.modules import rke2_install

IMAGES = ["rke2-images-core.linux-amd64.tar.zst", "rke2-images-canal.linux-amd64.tar.zst"]
FILES = {
    "bin/rke2": (0o755, b"program " * 1000),
    "bin/rke2-killall.sh": (0o755, b"#!/bin/sh\n"),
    "lib/systemd/system/rke2-server.service": (0o644, b"[Service]\n"),
}


class Place(NamedTuple):
    """Where a test installs, and from where."""

    source: Path
    prefix: Path
    data_dir: Path

    @property
    def images(self) -> Path:
        """The directory of image archives."""
        return self.data_dir / "agent/images"


def release(directory: Path, files: dict[str, tuple[int, bytes]] | None = None) -> None:
    """Make a release's files with their list of checksums."""
    directory.mkdir(parents=True)
    with tarfile.open(directory / rke2_install.PROGRAM, "w:gz") as archive:
        for name, (mode, content) in (files or FILES).items():
            member = tarfile.TarInfo(name)
            member.mode, member.size = mode, len(content)
            archive.addfile(member, io.BytesIO(content))
    for name in IMAGES:
        (directory / name).write_bytes(name.encode() * 100)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(directory.iterdir())]
    (directory / rke2_install.SUMS).write_text("".join(lines))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A machine with an older release: its program and one image archive that the new one does not have."""
    at = Place(tmp_path / ".staging", tmp_path / "prefix", tmp_path / "data")
    release(at.source)
    (at.prefix / "bin").mkdir(parents=True)
    (at.prefix / "bin/rke2").write_text("old program")
    at.images.mkdir(parents=True)
    (at.images / "rke2-images-old.tar.zst").write_text("old images")
    return at


def run(capsys: pytest.CaptureFixture[str], at: Place, **arguments: Any) -> dict[str, Any]:
    """Run the module in this process and return its JSON result."""
    given = {"source": at.source, "prefix": at.prefix, "data_dir": at.data_dir}
    values = {name: str(path) for name, path in given.items()} | {"images": IMAGES} | arguments
    with patch_module_args(values), pytest.raises(SystemExit):
        rke2_install.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def untouched(at: Place) -> bool:
    """Return whether the older release is all there is."""
    found = sorted(str(path.relative_to(at.prefix)) for path in at.prefix.rglob("*") if not path.is_dir())
    images = [path.name for path in at.images.iterdir()]
    return (found, images, (at.prefix / "bin/rke2").read_text()) == (
        ["bin/rke2"],
        ["rke2-images-old.tar.zst"],
        "old program",
    )


@pytest.mark.proves("rke2-install")
def test_a_release_is_put_in_place_whole_and_the_older_images_go(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(capsys, place)
    assert result["changed"] is True
    for name, (mode, content) in FILES.items():
        path = place.prefix / name
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (content, mode)
    assert sorted(path.name for path in place.images.iterdir()) == sorted(IMAGES)
    assert result["installed"][-1] == str(place.prefix / "bin/rke2"), "a version on the disk must mean all of it is"
    assert not place.source.exists()


def test_check_mode_touches_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, place, _ansible_check_mode=True)["changed"] is True
    assert untouched(place)


@pytest.mark.proves("rke2-install")
@pytest.mark.parametrize("name", [rke2_install.PROGRAM, *IMAGES])
def test_one_flipped_byte_and_nothing_is_installed(place: Place, capsys: pytest.CaptureFixture[str], name: str) -> None:
    data = bytearray((place.source / name).read_bytes())
    data[len(data) // 2] ^= 1
    (place.source / name).write_bytes(data)
    result = run(capsys, place)
    assert result["failed"] is True
    assert f"{name}: sha256 is {hashlib.sha256(data).hexdigest()}" in result["msg"]
    assert untouched(place)
    left = {path.name for path in place.source.iterdir()}
    assert left == {rke2_install.PROGRAM, rke2_install.SUMS, *IMAGES} - {name}, "only the wrong file is had anew"


@pytest.mark.proves("rke2-install")
@pytest.mark.parametrize(
    ("gone", "said"),
    [
        pytest.param(rke2_install.SUMS, "no list of checksums", id="list"),
        pytest.param(rke2_install.PROGRAM, f"{rke2_install.PROGRAM}: missing", id="program"),
        pytest.param(IMAGES[1], f"{IMAGES[1]}: missing", id="images"),
    ],
)
def test_what_is_missing_is_named_and_nothing_installed(
    place: Place, capsys: pytest.CaptureFixture[str], gone: str, said: str
) -> None:
    (place.source / gone).unlink()
    result = run(capsys, place)
    assert result["failed"] is True
    assert said in result["msg"] and str(place.source) in result["msg"]
    assert untouched(place)


@pytest.mark.proves("rke2-install")
def test_a_file_that_the_list_does_not_name_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    listing = place.source / rke2_install.SUMS
    listing.write_text("".join(line for line in listing.read_text().splitlines(True) if IMAGES[0] not in line))
    assert f"{IMAGES[0]}: {rke2_install.SUMS} does not list it" in run(capsys, place)["msg"]
    assert untouched(place)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "bin/../../evil"])
def test_a_member_that_leaves_the_prefix_stops_everything(
    place: Place, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.rmtree(place.source)
    release(place.source, FILES | {name: (0o644, b"evil")})
    result = run(capsys, place)
    assert result["failed"] is True and name in result["msg"]
    assert untouched(place)
    assert not (place.prefix.parent / "evil").exists() and not Path("/etc/evil").exists()


def test_a_link_in_the_archive_stops_everything(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(place.source)
    release(place.source)
    with tarfile.open(place.source / rke2_install.PROGRAM, "w:gz") as archive:
        link = tarfile.TarInfo("bin/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    digest = hashlib.sha256((place.source / rke2_install.PROGRAM).read_bytes()).hexdigest()
    with (place.source / rke2_install.SUMS).open("a") as listing:
        listing.write(f"{digest}  {rke2_install.PROGRAM}\n")
    assert "bin/link is no plain file" in run(capsys, place)["msg"]
    assert untouched(place)


@pytest.mark.proves("rke2-full-disk")
@pytest.mark.parametrize("name", ["bin/rke2-killall.sh", "bin/rke2"])
def test_a_disk_that_fills_half_way_leaves_the_old_release_and_no_remains(
    place: Place, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    # Whatever is written there meets a full device.
    (place.prefix / f"{name}.new").symlink_to("/dev/full")
    result = run(capsys, place)
    assert result["failed"] is True
    assert os.strerror(28) in result["msg"] and str(place.prefix / name) in result["msg"]
    assert untouched(place)
    # The release is still staged whole: with room again the next run needs nothing else.
    assert run(capsys, place)["changed"] is True
    assert (place.prefix / "bin/rke2").read_bytes() == FILES["bin/rke2"][1]


@pytest.mark.proves("rke2-full-disk")
def test_too_little_room_is_told_before_anything_is_written(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(len(content) for _, content in FILES.values())
    usage = shutil.disk_usage(place.prefix)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    result = run(capsys, place)
    assert result["failed"] is True
    assert "0 MiB free and 1 MiB are to be written there" in result["msg"] and "du -xhd2" in result["msg"]
    assert untouched(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    assert run(capsys, place)["changed"] is True


class Server(NamedTuple):
    """A place to download from, with the requests that it has seen."""

    url: str
    directory: Path
    asked: list[str]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serve a release by HTTP."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: int | str = "-", *_: object) -> None:
            asked.append(f"{self.command} {self.path} {int(code)}")

        def log_error(self, *_: object) -> None:
            """Stay silent."""

    directory = tmp_path / "upstream"
    release(directory)
    handler = functools.partial(Handler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield Server(f"http://127.0.0.1:{serving.server_address[1]}/", directory, asked)
        serving.shutdown()
        thread.join()


@pytest.mark.proves("rke2-install")
def test_a_download_fetches_what_is_not_there_whole_and_nothing_else(
    place: Place, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.source / IMAGES[0]).write_bytes(b"cut off")
    (place.source / IMAGES[1]).unlink()
    shutil.copy(server.directory / rke2_install.PROGRAM, place.source)
    assert run(capsys, place, url=server.url)["changed"] is True
    fetched = [line.split()[1].lstrip("/") for line in server.asked if line.startswith("GET")]
    assert fetched == [rke2_install.SUMS, *IMAGES]
    assert (place.images / IMAGES[0]).read_bytes() == (server.directory / IMAGES[0]).read_bytes()


@pytest.mark.proves("rke2-full-disk")
def test_a_download_that_has_no_room_is_not_begun(
    place: Place, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(place.source)
    usage = shutil.disk_usage(place.prefix)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    result = run(capsys, place, url=server.url)
    assert result["failed"] is True
    assert "MiB free and 1 MiB are to be written" in result["msg"] and "Nothing was installed" in result["msg"]
    assert [line for line in server.asked if line.startswith("GET")] == [f"GET /{rke2_install.SUMS} 200"]
    assert untouched(place)


def test_what_cannot_be_downloaded_is_named(place: Place, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(place.source)
    (server.directory / IMAGES[1]).unlink()
    result = run(capsys, place, url=server.url)
    assert f"{server.url}{IMAGES[1]} cannot be had: HTTP Error 404" in result["msg"]
    assert (place.source / IMAGES[0]).exists(), "what was fetched whole stays"
    assert not list(place.source.glob("*.part"))
    assert untouched(place)
