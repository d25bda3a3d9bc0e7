"""Builds the platform's images from platform/*/images.yml into a registry's tree that a plain web server can serve.

v2/<name>/manifests/<tag or digest> and v2/<name>/blobs/<digest>, without the host that an image's reference names: a
registry that mirrors many knows an image by its path alone. Every part of an image is a layer of its own, cached by its
content, so that images share what is equal in them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import build
from build import HERE, cached, debian, digest, program, remove, run, say

PLATFORM = HERE / "platform"
KEYS = frozenset("debian pip npm maven programs files run user entrypoint command env workdir".split())
MANIFEST, CONFIG = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Nobody reads them in a container, and they are a third of a small root file system. Java wants the directories of man.
LEAN = (
    "--dpkgopt=force-unsafe-io",
    *(
        f"--dpkgopt=path-exclude=/usr/share/{path}/*"
        for path in ("doc", "info", "locale", "man/*", "lintian", "bash-completion")
    ),
)
# The distribution's interpreter.
PYTHON = (3, 11)
# Links into /usr in the distribution's root; a directory of that name in a layer would take a link's place.
MERGED = frozenset({"bin", "lib", "lib64", "sbin"})
# Layers that no build has used for so long are deleted.
UNUSED_SECONDS = 7 * 86400

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Layer:
    """One layer: its compressed blob, that blob's digest and size, and the digest of what it unpacks to."""

    blob: Path
    digest: str
    diff: str
    size: int


def recipes(platform: Path = PLATFORM) -> dict[str, tuple[Path, Recipe]]:
    """Every image of the platform: reference -> the directory of its recipe and the recipe."""
    found: dict[str, tuple[Path, Recipe]] = {}
    for path in sorted(platform.glob("*/images.yml")):
        for reference, recipe in (yaml.safe_load(path.read_text()) or {}).items():
            if unknown := set(recipe or {}) - KEYS:
                sys.exit(
                    f"lab: {path}: {reference} has {', '.join(sorted(unknown))}; known are {', '.join(sorted(KEYS))}"
                )
            if reference in found:
                sys.exit(f"lab: {reference} is in {path} and in {found[reference][0]}/images.yml: remove one")
            found[reference] = (path.parent, recipe or {})
    places: dict[tuple[str, str], str] = {}
    for reference in found:
        other = places.setdefault(place(reference), reference)
        if other != reference:
            sys.exit(f"lab: {reference} and {other} differ in nothing but their host, which a mirror is never told")
    return found


def place(reference: str) -> tuple[str, str]:
    """Name and tag under which a mirror is asked for an image."""
    path, _, tag = reference.rpartition(":")
    if not path or "/" in tag:
        sys.exit(f"lab: {reference} has no tag; a chart that names none must be told one by its role")
    host, slash, rest = path.partition("/")
    if slash and ("." in host or ":" in host or host == "localhost"):
        return (f"library/{rest}" if host == "docker.io" and "/" not in rest else rest), tag
    return (path if slash else f"library/{path}"), tag


def sha256(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """The entry as root's: whoever builds is nobody in the image."""
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def layer(name: str, key: str, fill: Callable[[tarfile.TarFile], None]) -> Layer:
    """The cached layer `name` of this key; `fill` puts the content into its archive where it has to be made."""

    def make(target: Path) -> None:
        target.mkdir()
        plain, blob = target / "plain", target / "blob"
        with tarfile.open(plain, "w", format=tarfile.PAX_FORMAT) as archive:
            fill(archive)
        run("zstd", "-q", "-T0", "-6", plain, "-o", blob)
        about = {"digest": sha256(blob), "diff": sha256(plain), "size": blob.stat().st_size}
        plain.unlink()
        (target / "layer.json").write_text(json.dumps(about))

    # The key twice: each layer has a name of its own, or `cached` would keep two of all layers of a kind.
    made = cached(f"layer-{name}-{key[:8]}", key, make)
    return Layer(blob=made / "blob", **json.loads((made / "layer.json").read_text()))


def add_tree(archive: tarfile.TarFile, source: Path, target: str) -> None:
    """Put what is below `source` into a layer, below `target`."""
    if target:
        for parent in reversed([target, *(str(one) for one in Path(target).parents)][:-1]):
            info = tarfile.TarInfo(parent)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
    for path in sorted(source.rglob("*")):
        if "__pycache__" not in path.parts or target:
            archive.add(path, str(Path(target, path.relative_to(source))), recursive=False, filter=owned)


@contextmanager
def scratch() -> Generator[Path]:
    """A directory for one step; it goes whatever happens."""
    build.CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build.CACHE, prefix=".image-") as name:
        yield Path(name)


def entries(archive: tarfile.TarFile) -> Generator[tuple[tarfile.TarInfo, tuple[object, ...]]]:
    """Every entry of a root's archive but devices, which a container gets of its own, and what tells it from others."""
    for info in archive:
        if not info.name.startswith("./dev/"):
            content = archive.extractfile(info) if info.isreg() else None
            seen = hashlib.file_digest(content, "sha256").digest() if content else b""  # type: ignore[arg-type]
            yield info, (info.type, info.mode, info.uid, info.gid, info.linkname, seen)


def debian_layers(packages: Iterable[str]) -> list[Layer]:
    """A root file system of the distribution: the smallest one, which all images share, and what the packages add."""
    wanted = sorted(set(packages))
    small = debian("debian-root-small", ["base-files"], *LEAN)
    source = debian(f"debian-root-{digest(*wanted)[:8]}", wanted, *LEAN) if wanted else small

    def fill(archive: tarfile.TarFile, root: Path, below: Mapping[str, object]) -> None:
        with tarfile.open(root) as full:
            for info, seen in entries(full):
                if below.get(info.name) != seen:
                    archive.addfile(info, full.extractfile(info) if info.isreg() else None)

    def fill_added(archive: tarfile.TarFile) -> None:
        with tarfile.open(small) as root:
            below = {info.name: seen for info, seen in entries(root)}
        fill(archive, source, below)

    layers = [layer("debian", digest(small.name), lambda archive: fill(archive, small, {}))]
    if wanted:
        layers.append(layer(f"debian-{'-'.join(wanted)[:40]}", digest(small.name, source.name), fill_added))
    return layers


def pip_layer(packages: list[str]) -> Layer:
    """Python packages in /opt/python, for the distribution's interpreter."""

    def fill(archive: tarfile.TarFile) -> None:
        with scratch() as where:
            words = ["-q", "--no-input", "--prefer-binary", "--no-warn-script-location"]
            if sys.version_info[:2] != PYTHON:
                words += ["--only-binary=:all:", "--python-version", ".".join(str(part) for part in PYTHON)]
            run(sys.executable, "-m", "pip", "install", *words, "--target", where, *packages)
            for script in (where / "bin").glob("*"):
                content = script.read_bytes()
                first, rest = content.split(b"\n", 1) if b"\n" in content else (content, b"")
                if first.startswith(b"#!") and b"python" in first:
                    script.write_bytes(b"#!/usr/bin/python3\n" + rest)
            add_tree(archive, where, "opt/python")

    return layer(f"pip-{packages[0].partition('=')[0].partition('[')[0]}", digest("pip", *packages), fill)


def npm_layer(packages: list[str]) -> Layer:
    """Node packages in /opt/npm/node_modules."""

    def fill(archive: tarfile.TarFile) -> None:
        with scratch() as where:
            run("npm", "install", "--silent", "--no-audit", "--no-fund", "--omit=dev", "--prefix", where, *packages)
            add_tree(archive, where, "opt/npm")

    return layer(f"npm-{packages[0].rpartition('@')[0].replace('/', '-').strip('@')}", digest("npm", *packages), fill)


def maven_layer(coordinates: str) -> Layer:
    """What an archive of Maven's repository holds, in /opt/<artifact>, without a directory that is alone at its top."""
    artifact = coordinates.split(":")[1]

    def fill(archive: tarfile.TarFile) -> None:
        with scratch() as where:
            plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:unpack"
            words = (f"-Dartifact={coordinates}", f"-DoutputDirectory={where}/all", f"-Dmaven.repo.local={where}/m2")
            # It explains failures on its standard output.
            run("mvn", "-B", "-q", plugin, *words, cwd=where, stderr=subprocess.STDOUT)
            top = list((where / "all").iterdir())
            add_tree(archive, top[0] if len(top) == 1 and top[0].is_dir() else where / "all", f"opt/{artifact}")

    return layer(f"maven-{artifact}", digest("maven", coordinates), fill)


def programs_layer(names: Iterable[str]) -> Layer:
    """Go programs in /usr/local/bin."""
    built = {name: program(name) for name in sorted(names)}

    def fill(archive: tarfile.TarFile) -> None:
        for name, path in built.items():
            info = archive.gettarinfo(path, f"usr/local/bin/{name}")
            info.mode, info.mtime = 0o755, 0
            with path.open("rb") as file:
                archive.addfile(owned(info), file)

    return layer(f"programs-{'-'.join(built)[:40]}", digest("programs", *(path.name for path in built.values())), fill)


def files_layer(source: Path) -> Layer:
    """A directory's files, laid over the root with their modes."""
    if not source.is_dir():
        sys.exit(f"lab: {source} is no directory, and a recipe wants its files")
    if merged := MERGED & {path.name for path in source.iterdir()}:
        sys.exit(f"lab: {source} has {', '.join(sorted(merged))} at its top, which are links: move it below usr")
    modes = [f"{path.relative_to(source)} {path.lstat().st_mode:o}" for path in sorted(source.rglob("*"))]
    return layer(
        f"files-{source.parent.name}", digest("files", source, *modes), lambda archive: add_tree(archive, source, "")
    )


def state(root: Path) -> dict[str, tuple[object, ...]]:
    """What tells whether a file changed: path -> kind and mode, owner, size, time, number."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        seen = path.lstat()
        directory = path.is_dir() and not path.is_symlink()
        content = () if directory else (seen.st_size, seen.st_mtime_ns, seen.st_ino)
        found[str(path.relative_to(root))] = (seen.st_mode, seen.st_uid, seen.st_gid, *content)
    return found


def difference(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """What was made or changed between two states of a root, and the marks by which a layer removes what is gone."""
    changed = [path for path, seen in after.items() if before.get(path) != seen and not path.startswith("tmp/")]
    gone = [Path(path) for path in sorted(before.keys() - after.keys()) if str(Path(path).parent) in (*after, ".")]
    return changed, [str(path.with_name(f".wh.{path.name}")) for path in gone]


def run_layer(name: str, script: str, below: list[Layer], within: list[Layer], env: list[str]) -> Layer:
    """What a shell script changes in the root that the layers below make; it runs there as root, without a network.

    What the layers `within` hold is part of this layer, so that what the script moves is not stored twice.
    """

    def fill(archive: tarfile.TarFile) -> None:
        with scratch() as where:
            root = where / "root"
            root.mkdir()
            for one in below:
                run("tar", "--zstd", "-xpf", one.blob, "-C", root)
            for needed in ("dev", "proc", "tmp"):
                (root / needed).mkdir(exist_ok=True)
            before = state(root)
            for one in within:
                run("tar", "--zstd", "-xpf", one.blob, "-C", root)
            outer = (
                'mount --rbind /dev "$1/dev"; mount --bind /proc "$1/proc"; root=$1; script=$2; shift 2;'
                ' exec env -i "$@" chroot "$root" /bin/sh -euc "$script"'
            )
            run("unshare", "--mount", "--net", "sh", "-euc", outer, "sh", root, script, *env)
            changed, removed = difference(before, state(root))
            for path in changed:
                archive.add(root / path, path, recursive=False)
            for path in removed:
                archive.addfile(tarfile.TarInfo(path))

    return layer(f"run-{name}", digest("run", script, *env, *(one.digest for one in (*below, *within))), fill)


def image(reference: str, directory: Path, recipe: Recipe) -> tuple[list[Layer], dict[str, Any]]:
    """Layers of an image, the lowest first, and its configuration."""
    name = place(reference)[0].rpartition("/")[2]
    layers: list[Layer] = []
    paths, env = PATHS, {}
    if "debian" in recipe:
        layers += debian_layers(recipe["debian"] or [])
    unpacked = [maven_layer(recipe["maven"])] if recipe.get("maven") else []
    if recipe.get("npm"):
        layers.append(npm_layer(recipe["npm"]))
        paths = f"/opt/npm/node_modules/.bin:{paths}"
    if recipe.get("pip"):
        layers.append(pip_layer(recipe["pip"]))
        paths, env["PYTHONPATH"] = f"/opt/python/bin:{paths}", "/opt/python"
    if recipe.get("programs"):
        layers.append(programs_layer(recipe["programs"]))
    if recipe.get("files"):
        layers.append(files_layer(directory / recipe["files"]))
    env = {"PATH": paths} | env | {key: str(value) for key, value in (recipe.get("env") or {}).items()}
    variables = [f"{key}={value}" for key, value in env.items()]
    if recipe.get("run"):
        # With programs that only an administrator has, whatever the image's own path is.
        layers.append(run_layer(name, recipe["run"], layers, unpacked, [*variables, f"PATH={env['PATH']}:{PATHS}"]))
    else:
        layers += unpacked
    if not layers:
        sys.exit(f"lab: {directory}/images.yml: {reference} has nothing in it")
    settings = {
        "Env": variables,
        "User": str(recipe.get("user", "")),
        "Entrypoint": recipe.get("entrypoint") or None,
        "Cmd": recipe.get("command") or None,
        "WorkingDir": recipe.get("workdir", "/"),
    }
    return layers, {
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {key: value for key, value in settings.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{one.diff}" for one in layers]},
    }


def put(directory: Path, content: bytes | Path, *names: str) -> dict[str, Any]:
    """Lay a blob or a manifest down under its digest and `names`; returns digest and size, as a manifest wants them."""
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        sealed, size = names[0], content.stat().st_size
        names = names[1:]
    else:
        sealed, size = f"sha256:{hashlib.sha256(content).hexdigest()}", len(content)
    for name in (sealed, *names):
        path: Path = directory / name
        if path.exists():
            continue
        if isinstance(content, Path):
            try:
                path.hardlink_to(content)
            except OSError:
                shutil.copyfile(content, path)
        else:
            path.write_bytes(content)
    return {"digest": sealed, "size": size}


def publish(tree: Path, reference: str, layers: list[Layer], config: Mapping[str, Any]) -> None:
    """Lay an image down in a registry's tree."""
    name, tag = place(reference)
    blobs = tree / "v2" / name / "blobs"
    stored = [{"mediaType": LAYER, **put(blobs, one.blob, f"sha256:{one.digest}")} for one in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, **put(blobs, json.dumps(config, sort_keys=True).encode())},
        "layers": stored,
    }
    put(tree / "v2" / name / "manifests", json.dumps(manifest, sort_keys=True).encode(), tag)


def registry(platform: Path = PLATFORM) -> Path:
    """The directory with `v2`, the tree of all images of the platform."""
    # What needs no compiler comes first: it is made while others compile.
    wanted = dict(sorted(recipes(platform).items(), key=lambda item: "programs" in item[1][1]))
    done: list[str] = []

    def one(reference: str) -> tuple[str, list[Layer], dict[str, Any]]:
        directory, recipe = wanted[reference]
        began = time.monotonic()
        layers, config = image(reference, directory, recipe)
        done.append(reference)
        if time.monotonic() - began > 1:
            say(f"image {len(done)} of {len(wanted)}: {reference}, {sum(part.size for part in layers) >> 20} MiB")
        return reference, layers, config

    with ThreadPoolExecutor(2) as pool:
        images = list(pool.map(one, wanted))

    def make(target: Path) -> None:
        (target / "v2").mkdir(parents=True)
        for reference, layers, config in images:
            publish(target, reference, layers, config)

    made = cached("registry", digest(json.dumps([(what[0], what[2]) for what in images], sort_keys=True)), make)
    for old in (*build.CACHE.glob("layer-*"), *build.CACHE.glob("go-*-*"), *build.CACHE.glob("debian-root-*")):
        if time.time() - old.stat().st_mtime > UNUSED_SECONDS:
            remove(old)
    return made


if __name__ == "__main__":
    # For whoever works on an image: the tree's place, without anything else of the lab.
    os.nice(19)
    with build.alone():
        print(registry(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PLATFORM))
