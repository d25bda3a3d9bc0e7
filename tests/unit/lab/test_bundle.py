"""Upstream's release files instead of lab RKE2's: from a directory or URL, checked against upstream's list."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

import build
import bundle
import images
import nodes

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
    with pytest.raises(SystemExit, match=rf"{name} cannot be had: .* LAB_RKE2_SOURCE is a directory or URL"):
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
    with pytest.raises(SystemExit, match=r"cannot be had: .* No such file"):
        bundle.release_files(RELEASE)


@pytest.mark.proves("lab-upstream")
def test_a_word_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_RKE2", "Upstream")
    with pytest.raises(SystemExit, match="LAB_RKE2=Upstream means nothing; leave it out, or say LAB_RKE2=upstream"):
        bundle.release_files(RELEASE)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A platform with one chart and one image, and nothing else that takes long to make."""
    chart = tmp_path / "platform/x/chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: metallb, version: 0.16.1}")
    (chart / "templates/x.yaml").write_text("{}")
    (chart.parent / "images.yml").write_text("quay.io/a/b:1: {files: chart}")
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("content")
    program = tmp_path / "helm"
    program.write_text("#!/bin/sh")
    monkeypatch.setattr(bundle, "release_files", lambda _: other)
    monkeypatch.setattr(bundle, "packages", lambda: other)
    monkeypatch.setattr(bundle, "program", lambda _: program)
    monkeypatch.setitem(build.COMPONENTS, "charts", {})
    monkeypatch.setattr(bundle, "charts", functools.partial(bundle.charts, tmp_path / "platform"))
    monkeypatch.setattr(images, "registry", functools.partial(images.registry, tmp_path / "platform"))
    return chart


def test_the_bundle_holds_charts_helm_and_images_in_upstreams_forms_and_its_manifest_names_them(
    small: Path, tmp_path: Path
) -> None:
    made = tmp_path / "bundle"
    bundle.bundle(made)
    manifest = {file["path"]: file["sha256"] for file in json.loads((made / "manifest.json").read_text())["files"]}
    version = build.required("programs/go.mod", "helm.sh/helm/v3")
    helm, chart = f"helm/{version}/helm-{version}-linux-amd64.tar.gz", "charts/metallb/0.16.1/metallb-0.16.1.tgz"
    assert {helm, chart, "v2/a/b/manifests/1"} <= manifest.keys()
    for path, sealed in manifest.items():
        assert hashlib.sha256((made / path).read_bytes()).hexdigest() == sealed
    with tarfile.open(made / helm) as archive:
        assert archive.getmember("linux-amd64/helm").mode == 0o755
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress((made / chart).read_bytes()))) as archive:
        assert {"metallb/Chart.yaml", "metallb/templates/x.yaml"} <= set(archive.getnames())


def test_a_changed_chart_makes_another_bundle_and_nothing_changed_leaves_it_alone(small: Path, tmp_path: Path) -> None:
    made = tmp_path / "bundle"
    bundle.bundle(made)
    first = (made / "manifest.json").stat().st_ino
    bundle.bundle(made)
    assert (made / "manifest.json").stat().st_ino == first
    before = (made / "manifest.json").read_text()
    (small / "templates/x.yaml").write_text("{a: 1}")
    bundle.bundle(made)
    assert (made / "manifest.json").read_text() != before


@pytest.mark.proves("lab-upstream-charts")
def test_upstreams_charts_are_taken_from_a_directory_under_the_names_and_versions_of_the_labs(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_CHARTS", "upstream")
    with pytest.raises(SystemExit, match=r"no word where metallb-0.16.1.tgz is; LAB_CHARTS_SOURCE is a directory"):
        bundle.charts()
    monkeypatch.setenv("LAB_CHARTS_SOURCE", str(tmp_path / "charts"))
    with pytest.raises(SystemExit, match=r"metallb-0.16.1.tgz cannot be had: .*; LAB_CHARTS_SOURCE is a directory"):
        bundle.charts()
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts/metallb-0.16.1.tgz").write_text("upstream's")
    made = bundle.charts()
    assert [*made] == ["charts/metallb/0.16.1"]
    assert (made["charts/metallb/0.16.1"] / "metallb-0.16.1.tgz").read_text() == "upstream's"


@pytest.mark.proves("etcd-tools")
def test_the_site_names_the_etcd_that_the_bundle_has() -> None:
    versions = yaml.safe_load((nodes.SITE / "group_vars/all/versions.yml").read_text())
    assert versions["rke2_etcd_version"] == bundle.etcd_version()
