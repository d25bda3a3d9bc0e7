"""Makes the lab's bundle: everything its site downloads, packages included, in the driver's own format."""

from __future__ import annotations

import gzip
import os
import shutil
import sys
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from artifacts import artifacts
from build import (
    COMPONENTS,
    GO_CACHE,
    HERE,
    cached,
    debian,
    digest,
    gate_image,
    node_image,
    program,
    remove,
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


def fetch(source: str, release: str, name: str, target: Path) -> None:
    """Bring one file of a release from a directory or URL laid out as <release>/<file>."""
    if "://" in source:
        url = f"{source}/{quote(release, safe='')}/{name}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as sink:  # noqa: S310
                shutil.copyfileobj(answer, sink, 1 << 20)
        except OSError as error:
            sys.exit(f"lab: {url} cannot be had: {error}; mend LAB_RKE2_SOURCE or the connection")
    else:
        path = Path(source, release, name)
        if not path.is_file():
            sys.exit(f"lab: {path} is missing; LAB_RKE2_SOURCE is a directory or URL with <release>/<file>")
        shutil.copyfile(path, target)


def upstream(release: str, source: str) -> Path:
    """The directory of one release as upstream publishes it, every file checked against upstream's own list."""

    def make(target: Path) -> None:
        target.mkdir()
        fetch(source, release, SUMS, target / SUMS)
        lines = [line.split() for line in (target / SUMS).read_text().splitlines()]
        sums = {words[1].lstrip("*"): words[0] for words in lines if len(words) == 2}
        for name in UPSTREAM_FILES:
            fetch(source, release, name, target / name)
            with (target / name).open("rb") as file:
                seen = file_digest(file, "sha256").hexdigest()
            if seen != sums.get(name):
                sys.exit(f"lab: {name} of {release} from {source}: sha256 is {seen}, {SUMS} says {sums.get(name)}")

    return cached(f"upstream-{release}", digest(source), make)


def release_files(release: str) -> Path:
    """The directory of one release of RKE2: lab RKE2's, or upstream's where LAB_RKE2=upstream."""
    kind = os.environ.get("LAB_RKE2", "lab")
    if kind not in ("lab", "upstream"):
        sys.exit(f"lab: LAB_RKE2={kind} means nothing; leave it out, or say LAB_RKE2=upstream")
    if kind == "upstream":
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


def bundle(target: Path) -> None:
    """Make the bundle by the driver's own command, hard links where possible; one that is current is left alone."""
    sources = {f"rke2/{release}": release_files(release) for release in COMPONENTS["releases"]}
    sources[f"packages/{COMPONENTS['debian']}"] = packages()
    key, made = digest(*sources, *(path.name for path in sources.values())), target.with_suffix(".key")
    if made.exists() and made.read_text() == key:
        return
    made.unlink(missing_ok=True)
    laid = target.with_suffix(".sources")
    remove(laid)
    for place, source in sources.items():
        (laid / place).mkdir(parents=True)
        for path in source.iterdir():
            try:
                (laid / place / path.name).hardlink_to(path)
            except OSError:
                shutil.copyfile(path, laid / place / path.name)
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
    with ThreadPoolExecutor(3) as pool:
        # What the network gives and what the compilers make, side by side: a compiler waits for its modules too.
        beside: list[Future[Any]] = [pool.submit(lambda: (tools(), node_image(), gate_image(), packages()))]
        if os.environ.get("LAB_RKE2", "lab") == "lab":
            beside.append(pool.submit(lambda: [program(name) for name in COMPONENTS["programs"]]))
        for release in COMPONENTS["releases"]:
            release_files(release)
        for made in beside:
            made.result()
    if not os.environ.get("METALHUB_KEEP_GO_CACHE"):
        remove(GO_CACHE)
