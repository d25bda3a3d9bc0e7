"""A bundle is exactly what its manifest says, however its making was interrupted."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from provisioner import bundle
from provisioner.errors import ProvisionError
from tests.unit.driver.conftest import Checkout

VERSION = "v1.2.3+rke2r1"
CONTENT = {
    f"rke2/{VERSION}/rke2.tar.gz": b"binary" * 999,
    f"rke2/{VERSION}/images.tar.zst": b"images",
    "a/b/c/1/x": b"",
}


def _tree(root: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def _build(checkout: Checkout, tmp_path: Path, *more: str) -> Path:
    source = _tree(tmp_path / "source", CONTENT)
    result = checkout.run("bundle", "build", "--from", str(source), "--to", str(tmp_path / "bundle"), *more)
    assert result.exit_code == 0, result.output
    return tmp_path / "bundle"


@pytest.mark.proves("bundle-build")
@pytest.mark.parametrize("more", [(), ("--link",)])
def test_a_bundle_names_every_file_with_kind_version_size_and_sha256(
    checkout: Checkout, tmp_path: Path, more: tuple[str, ...]
) -> None:
    made = _build(checkout, tmp_path, *more)
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["versions"] == {"a": ["1"], "rke2": [VERSION]}
    assert {file["path"]: (file["sha256"], file["size"]) for file in manifest["files"]} == {
        name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in CONTENT.items()
    }
    linked = (made / f"rke2/{VERSION}/rke2.tar.gz").stat().st_nlink == 2
    assert linked == bool(more)
    assert checkout.run("bundle", "verify", str(made)).exit_code == 0


@pytest.mark.proves("bundle-build")
def test_building_again_copies_nothing_and_another_version_is_added(checkout: Checkout, tmp_path: Path) -> None:
    made = _build(checkout, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*.*") if path.name != "manifest.json"}
    assert _build(checkout, tmp_path) == made
    assert before == {path: path.stat().st_mtime_ns for path in before}
    other = _tree(tmp_path / "other", {"rke2/v1.3.0+rke2r1/rke2.tar.gz": b"new"})
    assert checkout.run("bundle", "build", "--from", str(other), "--to", str(made)).exit_code == 0
    assert bundle.read(made).versions["rke2"] == [VERSION, "v1.3.0+rke2r1"]


@pytest.mark.proves("bundle-verify")
@pytest.mark.parametrize(
    ("damage", "what"),
    [
        pytest.param(lambda path: path.unlink(), "missing", id="missing"),
        pytest.param(lambda path: path.write_bytes(b"\x01" + path.read_bytes()[1:]), "corrupt", id="a flipped byte"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), "corrupt", id="a byte short"),
        pytest.param(lambda path: path.with_name("stray").write_bytes(b""), "extra", id="extra"),
    ],
)
def test_verify_names_each_file_that_is_not_what_the_manifest_says(
    checkout: Checkout, tmp_path: Path, damage: Any, what: str
) -> None:
    made = _build(checkout, tmp_path)
    damage(made / f"rke2/{VERSION}/rke2.tar.gz")
    result = checkout.run("bundle", "verify", str(made), "--json")
    assert result.exit_code == 1
    assert [fault["what"] for fault in json.loads(result.stdout)["faults"]] == [what]
    assert f"{what}: rke2/{VERSION}/" in result.stderr
    assert f"bundle build --from DIR --to {made}" in result.stderr


@pytest.mark.proves("bundle-build")
def test_an_interrupted_build_is_no_bundle_and_is_completed_by_the_next(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[Path] = []
    copy = shutil.copyfile

    def breaks(source: Path, target: Path) -> None:
        if copied:
            target.write_bytes(b"half")
            raise KeyboardInterrupt
        copied.append(target)
        copy(source, target)

    source = _tree(tmp_path / "source", CONTENT)
    monkeypatch.setattr(shutil, "copyfile", breaks)
    arguments = ("bundle", "build", "--from", str(source), "--to", str(tmp_path / "bundle"))
    assert checkout.run(*arguments).exit_code == 130
    assert checkout.run("bundle", "verify", str(tmp_path / "bundle")).exit_code == 1
    monkeypatch.setattr(shutil, "copyfile", copy)
    assert checkout.run(*arguments).exit_code == 0
    assert checkout.run("bundle", "verify", str(tmp_path / "bundle")).exit_code == 0


@pytest.mark.parametrize("path", ["/etc/rke2/passwd", "rke2/../../x", "rke2/x", "../a/b"])
def test_a_manifest_cannot_name_files_outside_the_bundle(tmp_path: Path, path: str) -> None:
    entry = {"path": path, "sha256": "0" * 64, "size": 1, "kind": "rke2", "version": "1"}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "files": [entry]}))
    with pytest.raises(ProvisionError, match="is no manifest"):
        bundle.verify(tmp_path, lambda name: None)


def test_a_file_outside_the_layout_is_refused_with_the_layout(checkout: Checkout, tmp_path: Path) -> None:
    source = _tree(tmp_path / "source", {"rke2/rke2.tar.gz": b""})
    result = checkout.run("bundle", "build", "--from", str(source), "--to", str(tmp_path / "bundle"))
    assert result.exit_code == 2
    assert "<kind>/<version>/<file>" in result.stderr


class _Upstream(BaseHTTPRequestHandler):
    """A server that breaks every first answer for a tarball in the middle, and continues on a range."""

    files: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[tuple[str, str | None]]]

    def do_GET(self) -> None:
        """Answer."""
        data, start = self.files.get(self.path), self.headers["Range"]
        first = (self.path, None) not in self.asked
        self.asked.append((self.path, start))
        if data is None:
            self.send_error(404)
            return
        offset = int(start.removeprefix("bytes=").rstrip("-")) if start else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - offset))
        self.end_headers()
        whole = data[offset:]
        self.wfile.write(whole[: len(whole) // 2] if first and self.path.endswith(".gz") else whole)

    def log_message(self, *_: object) -> None:
        """Be silent."""


@pytest.fixture
def upstream() -> Iterator[tuple[type[_Upstream], bundle.Source]]:
    """Serve a release on the loopback address."""

    class Handler(_Upstream):
        files: ClassVar[dict[str, bytes]] = {}
        asked: ClassVar[list[tuple[str, str | None]]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    source = bundle.Source(
        kind="rke2",
        version=bundle.Variable(variable="v", defaults="d"),
        url=f"http://127.0.0.1:{server.server_address[1]}/download/{{version}}/{{file}}",
        checksums="sums.txt",
        files=["rke2.tar.gz"],
    )
    data = b"release" * 600_000
    Handler.files["/download/v1.2.3%2Brke2r1/rke2.tar.gz"] = data
    Handler.files["/download/v1.2.3%2Brke2r1/sums.txt"] = f"{hashlib.sha256(data).hexdigest()}  rke2.tar.gz\n".encode()
    yield Handler, source
    server.shutdown()
    server.server_close()


@pytest.mark.proves("bundle-upstream")
def test_a_download_that_broke_off_is_continued_and_verified(
    tmp_path: Path, upstream: tuple[type[_Upstream], bundle.Source]
) -> None:
    handler, source = upstream
    with pytest.raises(ProvisionError, match="cannot be downloaded"):
        bundle.add_upstream(source, VERSION, tmp_path, lambda name: None)
    files = bundle.add_upstream(source, VERSION, tmp_path, lambda name: None)
    assert [file.path for file in files] == [f"rke2/{VERSION}/sums.txt", f"rke2/{VERSION}/rke2.tar.gz"]
    assert handler.asked[-1] == ("/download/v1.2.3%2Brke2r1/rke2.tar.gz", "bytes=2097152-")
    assert (tmp_path / files[1].path).read_bytes() == handler.files[handler.asked[-1][0]]
    bundle.write(tmp_path, files)
    assert bundle.verify(tmp_path, lambda name: None) == []


@pytest.mark.proves("bundle-upstream")
def test_a_download_that_differs_from_upstreams_checksum_is_removed(
    tmp_path: Path, upstream: tuple[type[_Upstream], bundle.Source]
) -> None:
    handler, source = upstream
    handler.files["/download/v1.2.3%2Brke2r1/sums.txt"] = f"{'0' * 64}  rke2.tar.gz\n".encode()
    handler.asked.append(("/download/v1.2.3%2Brke2r1/rke2.tar.gz", None))
    with pytest.raises(ProvisionError, match="the file was removed"):
        bundle.add_upstream(source, VERSION, tmp_path, lambda name: None)
    assert not (tmp_path / f"rke2/{VERSION}/rke2.tar.gz").exists()


@pytest.mark.proves("bundle-upstream")
def test_a_site_downloads_the_version_of_its_inventory_or_of_the_defaults(
    checkout: Checkout, tmp_path: Path, upstream: tuple[type[_Upstream], bundle.Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, source = upstream
    handler.asked.append(("/download/v1.2.3%2Brke2r1/rke2.tar.gz", None))
    wanted = source.model_copy(update={"version": bundle.Variable(variable="rke2_version", defaults="defaults.yml")})
    monkeypatch.setattr(bundle, "sources", lambda: [wanted])
    (checkout.root / "defaults.yml").write_text(f"rke2_version: {VERSION}\n")
    arguments = ("bundle", "build", "--site", "here", "--to", str(tmp_path / "bundle"))
    assert checkout.run(*arguments).exit_code == 0
    (checkout.root / "inventories/here/group_vars").mkdir()
    (checkout.root / "inventories/here/group_vars/all.yml").write_text("rke2_version: v9.9.9+rke2r1\n")
    result = checkout.run(*arguments)
    assert result.exit_code == 1
    assert "/download/v9.9.9%2Brke2r1/sums.txt" in result.stderr


CHART = b"chart" * 999


def _index(handler: type[_Upstream], **different: Any) -> None:
    """Let the server have a repository with one chart; `different` replaces parts of its entry."""
    about = {"version": "v4.4.0", "urls": ["packed/hub-v4.4.0.tgz"], "digest": hashlib.sha256(CHART).hexdigest()}
    entries = {"hub": [{"version": "v4.3.0"}, about | different]}
    handler.files["/charts/index.yaml"] = json.dumps({"entries": entries}).encode()
    handler.files["/charts/packed/hub-v4.4.0.tgz"] = handler.files["/elsewhere.tgz"] = CHART


def _repository(source: bundle.Source) -> str:
    return source.url.partition("/download/")[0] + "/charts/"


@pytest.mark.proves("bundle-charts")
@pytest.mark.parametrize(
    "different",
    [
        pytest.param({}, id="below the repository"),
        pytest.param({"urls": ["/elsewhere.tgz"]}, id="elsewhere"),
        pytest.param({"version": "4.4.0"}, id="without its v"),
        pytest.param({"digest": "sha256:" + hashlib.sha256(CHART).hexdigest()}, id="named algorithm"),
    ],
)
def test_a_chart_is_found_by_the_index_and_lies_where_helm_release_looks(
    tmp_path: Path, upstream: tuple[type[_Upstream], bundle.Source], different: dict[str, Any]
) -> None:
    handler, source = upstream
    _index(handler, **different)
    files = bundle.add_chart("hub", "v4.4.0", _repository(source), tmp_path, lambda name: None)
    assert [(file.path, file.version) for file in files] == [("charts/hub/v4.4.0/hub-v4.4.0.tgz", "v4.4.0")]
    bundle.write(tmp_path, files)
    assert bundle.verify(tmp_path, lambda name: None) == []
    asked = len(handler.asked)
    bundle.add_chart("hub", "v4.4.0", _repository(source), tmp_path, lambda name: None)
    assert [path for path, _ in handler.asked[asked:]] == ["/charts/index.yaml"]


@pytest.mark.proves("bundle-charts")
@pytest.mark.parametrize(
    ("different", "words"),
    [
        pytest.param({"digest": "0" * 64}, "the file was removed", id="another checksum"),
        pytest.param({"digest": None}, "has no checksum", id="no checksum"),
        pytest.param({"version": "4.5.0"}, "has no hub v4.4.0", id="another version"),
    ],
)
def test_a_chart_that_cannot_be_verified_is_not_taken(
    tmp_path: Path, upstream: tuple[type[_Upstream], bundle.Source], different: dict[str, Any], words: str
) -> None:
    handler, source = upstream
    _index(handler, **different)
    with pytest.raises(ProvisionError, match=words):
        bundle.add_chart("hub", "v4.4.0", _repository(source), tmp_path, lambda name: None)
    assert list(tmp_path.rglob("*.tgz")) == []


@pytest.mark.proves("bundle-upstream")
def test_names_of_files_may_hold_the_version(tmp_path: Path, upstream: tuple[type[_Upstream], bundle.Source]) -> None:
    handler, source = upstream
    named = source.model_copy(
        update={
            "kind": "helm",
            "url": source.url.replace("{version}/", ""),
            "checksums": "helm-{version}.zip.sha256sum",
            "files": ["helm-{version}.zip"],
        }
    )
    handler.files["/download/helm-v3.2.1.zip"] = b"helm"
    handler.files["/download/helm-v3.2.1.zip.sha256sum"] = (
        f"{hashlib.sha256(b'helm').hexdigest()}  helm-v3.2.1.zip".encode()
    )
    files = bundle.add_upstream(named, "v3.2.1", tmp_path, lambda name: None)
    assert [file.path for file in files] == ["helm/v3.2.1/helm-v3.2.1.zip.sha256sum", "helm/v3.2.1/helm-v3.2.1.zip"]


@pytest.mark.proves("bundle-charts")
def test_a_site_downloads_a_chart_from_the_repository_and_in_the_version_that_it_says(
    checkout: Checkout, tmp_path: Path, upstream: tuple[type[_Upstream], bundle.Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, source = upstream
    _index(handler)
    about = {
        name: bundle.Variable(variable=f"hub_{name}", defaults="defaults.yml") for name in ("version", "repository")
    }
    monkeypatch.setattr(bundle, "sources", lambda: [bundle.Chart(kind="charts", chart="hub", **about)])
    (checkout.root / "defaults.yml").write_text(f"hub_version: v4.4.0\nhub_repository: {_repository(source)}\n")
    result = checkout.run("bundle", "build", "--site", "here", "--to", str(tmp_path / "bundle"))
    assert result.exit_code == 0, result.output
    assert bundle.read(tmp_path / "bundle").versions == {"charts": ["v4.4.0"]}


def test_the_upstreams_of_the_repository_are_complete() -> None:
    found = [source for source in bundle.sources() if isinstance(source, bundle.Source)]
    assert {source.kind for source in found} == {"etcd", "helm", "rke2"}
    for source in found:
        assert "{file}" in source.url
        assert "{version}" in source.url + source.checksums
        assert source.files


def test_every_chart_that_a_role_installs_is_in_the_bundle_from_where_the_role_takes_it() -> None:
    root = bundle.SOURCES.parents[2]
    ours = {
        source.chart: (
            source.version.variable,
            source.repository if isinstance(source.repository, str) else source.repository.variable,
        )
        for source in bundle.sources()
        if isinstance(source, bundle.Chart)
    }
    wanted = {}
    for path in root.glob("roles/*/tasks/*.yml"):
        text = path.read_text()
        for name in re.findall(r"helm_release_chart: ([\w-]+)$", text, re.M):
            version, repository = (
                re.search(rf'helm_release_{what}: "?(?:{{{{ )?([^ "\n]+)', text) for what in ("version", "repository")
            )
            assert version and repository, path
            wanted[name] = (version[1], repository[1])
    assert wanted
    assert ours == wanted
    for source in bundle.sources():
        assert source.version.variable in (root / source.version.defaults).read_text()
