"""Images from recipes: what is refused, what is shared, and a tree that a plain web server can serve."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

import build
import images
from build import run


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")


def recipe(tmp_path: Path, text: str, word: str = "x") -> Path:
    """Write a recipe and files that it may use, and return the platform's directory."""
    directory = tmp_path / "platform" / word
    (directory / "root/etc").mkdir(parents=True)
    (directory / "root/etc/hello").write_text(f"hello {word}")
    (directory / "root/etc/hello").chmod(0o750)
    (directory / "images.yml").write_text(text)
    return tmp_path / "platform"


def unpacked(tree: Path, name: str, manifest: dict[str, object], number: int) -> tarfile.TarFile:
    """One layer of an image in the tree."""
    layers: list[dict[str, str]] = manifest["layers"]  # type: ignore[assignment]
    blob = tree / "v2" / name / "blobs" / layers[number]["digest"]
    content = run("zstd", "-dc", blob, text=False)
    return tarfile.open(fileobj=io.BytesIO(content))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("quay.io/jupyterhub/k8s-hub:4.4.0", ("jupyterhub/k8s-hub", "4.4.0")),
        ("docker.io/library/nginx:1", ("library/nginx", "1")),
        ("nginx:1", ("library/nginx", "1")),
        ("lab/nginx:1", ("lab/nginx", "1")),
        ("localhost:5000/a/b/c:v1", ("a/b/c", "v1")),
    ],
)
def test_a_mirror_is_asked_by_the_path_without_the_host(reference: str, place: tuple[str, str]) -> None:
    assert images.place(reference) == place


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("a.io/b:1: {debain: []}", "a.io/b:1 has debain; known are", id="unknown-key"),
        pytest.param("a.io/b: {files: root}", "has no tag", id="no-tag"),
        pytest.param("a.io/b:1: {files: root}\nc.io/b:1: {files: root}", "nothing but their host", id="same-path"),
        pytest.param("a.io/b:1: {}", "has nothing in it", id="empty"),
        pytest.param("a.io/b:1: {files: other}", "is no directory", id="no-files"),
        pytest.param(
            "a.io/b:1: {programs: [nowhere]}", "nowhere is no directory and no tool of a graph", id="no-program"
        ),
    ],
)
def test_a_recipe_that_cannot_be_built_is_refused_in_plain_words(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        images.registry(recipe(tmp_path, text))


@pytest.mark.parametrize(
    ("image", "graph", "module"),
    [
        ("jetstack/cert-manager-controller", "programs", "github.com/cert-manager/cert-manager"),
        ("metallb/controller", "metallb", "go.universe.tf/metallb"),
        ("metallb/speaker", "metallb", "go.universe.tf/metallb"),
        ("rancher/local-path-provisioner", "programs", "github.com/rancher/local-path-provisioner"),
        ("sig-storage/csi-provisioner", "programs", "github.com/kubernetes-csi/external-provisioner/v6"),
    ],
)
def test_an_image_is_called_by_the_release_that_the_graph_has_of_its_program(
    image: str, graph: str, module: str
) -> None:
    assert (image, build.required(f"{graph}/go.mod", module)) in map(images.place, images.recipes())


def test_upstreams_charts_are_of_the_release_that_the_graphs_have_of_their_programs() -> None:
    graphs = {"cert-manager": "programs", "metallb": "metallb"}
    assert graphs.keys() == build.COMPONENTS["charts"].keys()
    for name, graph in graphs.items():
        module, _, version = build.COMPONENTS["charts"][name]["module"].rpartition("@")
        assert version == build.required(f"{graph}/go.mod", module)


def test_a_directory_in_place_of_a_link_of_the_distribution_is_refused(tmp_path: Path) -> None:
    platform = recipe(tmp_path, "a.io/b:1: {files: root}")
    (platform / "x/root/bin").mkdir()
    with pytest.raises(SystemExit, match="has bin at its top, which are links: move it below usr"):
        images.registry(platform)


def test_the_tree_is_a_registrys_and_everything_in_it_is_what_its_name_says(tmp_path: Path) -> None:
    platform = recipe(tmp_path, "a.io/b/c:1: {files: root, user: 7, entrypoint: [/x], env: {A: 1}, workdir: /w}")
    tree = images.registry(platform)
    manifests = tree / "v2/b/c/manifests"
    manifest = json.loads((manifests / "1").read_text())
    assert manifest["mediaType"] == images.MANIFEST
    assert len(list(manifests.iterdir())) == 2
    for path in (path for path in tree.rglob("sha256:*") if path.is_file()):
        assert path.name == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    config = json.loads((tree / "v2/b/c/blobs" / manifest["config"]["digest"]).read_text())
    assert config["config"] == {
        "Env": [f"PATH={images.PATHS}", "A=1"],
        "User": "7",
        "Entrypoint": ["/x"],
        "WorkingDir": "/w",
    }
    layer = unpacked(tree, "b/c", manifest, 0)
    entry = layer.getmember("etc/hello")
    assert (entry.mode, entry.uid, entry.gid) == (0o750, 0, 0)
    diff = run("zstd", "-dc", tree / "v2/b/c/blobs" / manifest["layers"][0]["digest"], text=False)
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(diff).hexdigest()}"]  # type: ignore[arg-type]


def test_equal_parts_are_one_layer_and_nothing_is_made_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    platform = recipe(tmp_path, "a.io/b:1: {files: root}\na.io/c:1: {files: root, user: 1}")
    tree = images.registry(platform)
    assert "building layer" in capsys.readouterr().out
    blobs = [path for path in tree.rglob("blobs/*") if "+zstd" not in path.name and path.stat().st_nlink > 1]
    assert len({path.stat().st_ino for path in blobs}) == 1
    assert len(blobs) == 2
    assert images.registry(platform) == tree
    assert "building" not in capsys.readouterr().out


def test_a_changed_file_or_mode_makes_another_tree(tmp_path: Path) -> None:
    platform = recipe(tmp_path, "a.io/b:1: {files: root}")
    seen = {images.registry(platform)}
    (platform / "x/root/etc/hello").chmod(0o700)
    seen.add(images.registry(platform))
    (platform / "x/root/etc/hello").write_text("other")
    seen.add(images.registry(platform))
    assert len(seen) == 3


def test_a_scripts_layer_holds_what_it_changed_and_marks_what_it_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "gone").mkdir(parents=True)
    for name in ("kept", "changed", "removed", "gone/inside"):
        (root / name).write_text("x")
    before = images.state(root)
    (root / "changed").write_text("y")
    (root / "new").write_text("z")
    (root / "removed").unlink()
    (root / "gone/inside").unlink()
    (root / "gone").rmdir()
    changed, removed = images.difference(before, images.state(root))
    assert (changed, removed) == (["changed", "new"], [".wh.gone", ".wh.removed"])
