"""Makes the lab's bundle: everything its site downloads, packages included, in the driver's own format."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import tempfile
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

import images
from artifacts import Entry, artifacts, chart_archive, tar_layer
from build import (
    COMPONENTS,
    GO_CACHE,
    HERE,
    cached,
    debian,
    digest,
    gate_image,
    go_module,
    kubernetes,
    node_image,
    program,
    remove,
    required,
    run,
    tools,
)

UPSTREAM_FILES = (
    "rke2.linux-amd64.tar.gz",
    "rke2-images-core.linux-amd64.tar.zst",
    "rke2-images-canal.linux-amd64.tar.zst",
)
SUMS = "sha256sum-amd64.txt"
UPSTREAM = "https://github.com/rancher/rke2/releases/download"


def chosen(setting: str) -> bool:
    """Whether upstream's own is to be taken instead of the lab's."""
    kind = os.environ.get(setting, "lab")
    if kind not in ("lab", "upstream"):
        sys.exit(f"lab: {setting}={kind} means nothing; leave it out, or say {setting}=upstream")
    return kind == "upstream"


def fetch(source: str, place: str, target: Path, wanted: str) -> None:
    """Bring one file from a directory or URL; wanted: which setting names it, and how it is laid out."""
    base = source if "://" in source else Path(source).absolute().as_uri()
    url = f"{base}/{quote(place)}"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as sink:  # noqa: S310
            shutil.copyfileobj(answer, sink, 1 << 20)
    except OSError as error:
        sys.exit(f"lab: {url} cannot be had: {error}; {wanted}")


def upstream(release: str, source: str) -> Path:
    """The directory of one release as upstream publishes it, every file checked against upstream's own list."""

    def make(target: Path) -> None:
        target.mkdir()
        wanted = "LAB_RKE2_SOURCE is a directory or URL with <release>/<file>"
        fetch(source, f"{release}/{SUMS}", target / SUMS, wanted)
        lines = [line.split() for line in (target / SUMS).read_text().splitlines()]
        sums = {words[1].lstrip("*"): words[0] for words in lines if len(words) == 2}
        for name in UPSTREAM_FILES:
            fetch(source, f"{release}/{name}", target / name, wanted)
            if (seen := images.sha256(target / name)) != sums.get(name):
                sys.exit(f"lab: {name} of {release} from {source}: sha256 is {seen}, {SUMS} says {sums.get(name)}")

    return cached(f"upstream-{release}", digest(source), make)


def release_files(release: str) -> Path:
    """The directory of one release of RKE2: lab RKE2's, or upstream's where LAB_RKE2=upstream."""
    if chosen("LAB_RKE2"):
        return upstream(release, os.environ.get("LAB_RKE2_SOURCE") or UPSTREAM)
    return artifacts(release)


def packages() -> Path:
    """The directory of everything that roles install on a node, as a flat repository that needs no other."""
    root = debian("debian-node", COMPONENTS["debian_node"])

    def make(target: Path) -> None:
        scratch = target.with_suffix(".apt")
        remove(scratch)
        archives = scratch / "var/cache/apt/archives"
        for directory in (archives / "partial", scratch / "var/lib/apt/lists/partial", target):
            directory.mkdir(parents=True)
        # The node's own sources, keys and list of what is installed; nothing of this machine's but its proxy.
        run("tar", "-xf", root, "-C", scratch, "./etc/apt", "./var/lib/dpkg/status")
        settings = (
            f"Dir={scratch}",
            f"Dir::State::status={scratch}/var/lib/dpkg/status",
            "Dir::Etc::sourceparts=-",
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
            "APT::Sandbox::User=root",
        )
        apt = ("apt-get", "-q", "-y", *(word for setting in settings for word in ("-o", setting)))
        run(*apt, "update")
        run(*apt, "install", "--download-only", "--no-install-recommends", *COMPONENTS["debian_packages"])
        for package in archives.glob("*.deb"):
            # The epoch's colon is escaped in apt's name, which would be escaped once more in a URL.
            shutil.copyfile(package, target / package.name.replace("%3a", "."))
        index = run("dpkg-scanpackages", "--multiversion", ".", cwd=target)
        (target / "Packages.gz").write_bytes(gzip.compress(index.encode(), mtime=0))
        remove(scratch)

    return cached("packages", digest(root.name, *COMPONENTS["debian_packages"]), make)


def charts(platform: Path = images.PLATFORM) -> dict[str, Path]:
    """The lab's charts, each as Helm packs it: place in the bundle -> directory."""
    found = {}
    for path in sorted(platform.glob("**/Chart.yaml")):
        chart, about = path.parent, yaml.safe_load(path.read_text())
        if "charts" in chart.relative_to(platform).parts:
            continue
        name = f"{about['name']}-{about['version']}"

        def make(target: Path, chart: Path = chart, name: str = name, top: str = about["name"]) -> None:
            target.mkdir()
            (target / f"{name}.tgz").write_bytes(chart_archive(chart, top))

        place = f"charts/{about['name']}/{about['version']}"
        if place in found:
            sys.exit(f"lab: {chart} is a second chart {name}: remove one")
        found[place] = cached(f"chart-{about['name']}", digest(chart, name), make)
    for name, source in COMPONENTS["charts"].items():
        found[f"charts/{name}/{source['version']}"] = module_chart(name, **source)
    return {place: upstream_chart(place) for place in found} if chosen("LAB_CHARTS") else found


def upstream_chart(place: str) -> Path:
    """The directory with a chart as upstream packs it."""
    source, name = os.environ.get("LAB_CHARTS_SOURCE", ""), "{1}-{2}.tgz".format(*place.split("/"))
    wanted = "LAB_CHARTS_SOURCE is a directory or URL with <chart>-<version>.tgz"
    if not source:
        sys.exit(f"lab: LAB_CHARTS=upstream and no word where {name} is; {wanted}")

    def make(target: Path) -> None:
        target.mkdir()
        fetch(source, name, target / name, wanted)

    return cached(f"upstream-{name}", digest(source), make)


def module_chart(name: str, version: str, module: str, directory: str) -> Path:
    """The directory with upstream's own chart, out of its Go module, its version where upstream stamps it later."""

    def make(target: Path) -> None:
        target.mkdir()
        with tempfile.TemporaryDirectory() as scratch:
            chart = Path(scratch, name)
            shutil.copytree(go_module(module) / directory, chart, ignore=shutil.ignore_patterns("tests"))
            about = chart / "Chart.yaml"
            about.write_text(about.read_text().replace("v0.0.0", version))
            (target / f"{name}-{version}.tgz").write_bytes(chart_archive(chart, name))

    return cached(f"chart-{name}", digest(version, module, directory), make)


def helm() -> dict[str, Path]:
    """Helm as upstream packs it: place in the bundle -> directory."""
    binary = program("helm")
    version = required("programs/go.mod", "helm.sh/helm/v3")

    def make(target: Path) -> None:
        target.mkdir()
        archive = gzip.compress(tar_layer([("linux-amd64/helm", binary, 0o755)]), 1, mtime=0)
        (target / f"helm-{version}-linux-amd64.tar.gz").write_bytes(archive)

    return {f"helm/{version}": cached("helm-archive", digest(binary.name), make)}


def etcd_version() -> str:
    """The release of etcd in the binary of the first release's minor."""
    minor = ".".join(COMPONENTS["releases"][0][1:].split(".")[:2])
    return required(f"kubernetes/{minor}.mod", "go.etcd.io/etcd/server/v3")


def etcd() -> dict[str, Path]:
    """Etcd as upstream packs it, with its list of checksums: place in the bundle -> directory."""
    if chosen("LAB_RKE2"):
        return {}
    binary, version = kubernetes(COMPONENTS["releases"][0]), etcd_version()
    name = f"etcd-{version}-linux-amd64"

    def make(target: Path) -> None:
        target.mkdir()
        links: list[Entry] = [(f"{name}/{one}", "etcd", 0o777) for one in ("etcdctl", "etcdutl")]
        content = gzip.compress(tar_layer([(f"{name}/etcd", binary, 0o755), *links]), 1, mtime=0)
        (target / f"{name}.tar.gz").write_bytes(content)
        (target / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  {name}.tar.gz\n")

    return {f"etcd/{version}": cached("etcd-archive", digest(binary.name, version), make)}


def bundle(target: Path) -> None:
    """Make the bundle by the driver's own command, hard links where possible; one that is current is left alone."""
    sources = {f"rke2/{release}": release_files(release) for release in COMPONENTS["releases"]}
    sources[f"packages/{COMPONENTS['debian']}"] = packages()
    sources |= helm() | etcd() | charts() | {"v2": images.registry() / "v2"}
    key, made = digest(*sources, *(str(path) for path in sources.values())), target.with_suffix(".key")
    if made.exists() and made.read_text() == key:
        return
    made.unlink(missing_ok=True)
    laid = target.with_suffix(".sources")
    remove(laid)
    for place, source in sources.items():
        for path in source.rglob("*"):
            if path.is_file():
                link = laid / place / path.relative_to(source)
                link.parent.mkdir(parents=True, exist_ok=True)
                try:
                    link.hardlink_to(path)
                except OSError:
                    shutil.copyfile(path, link)
    # The directory itself stays: the gate has it mounted.
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        remove(old)
    driver = HERE.parents[1] / "scripts/provision.py"
    run(sys.executable, driver, "bundle", "build", "--link", "--from", laid, "--to", target)
    remove(laid)
    made.write_text(key)


def build() -> None:
    """Build everything; the compiler's caches are deleted once the binaries exist."""
    with ThreadPoolExecutor(2) as pool:
        # What the network gives and what the compilers make, side by side.
        beside: list[Future[Any]] = [pool.submit(images.registry)]
        beside.append(pool.submit(lambda: (tools(), node_image(), gate_image(), packages())))
        for release in COMPONENTS["releases"]:
            release_files(release)
        helm()
        etcd()
        charts()
        for made in beside:
            made.result()
    if not os.environ.get("METALHUB_KEEP_GO_CACHE"):
        remove(GO_CACHE)
