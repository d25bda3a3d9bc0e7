"""What is pinned, ignored, published and said in one place only."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.contract import tree

# Where a build may download from when a machine's own configuration says nothing else.
PUBLIC_HOSTS = {
    "deb.debian.org", "security.debian.org", "archive.ubuntu.com",
    "docs.ansible.com", "docs.rke2.io", "github.com", "galaxy.ansible.com",
    "get.helm.sh",
    "127.0.0.1", "localhost",
}  # fmt: skip
# What is read when something is built or installed, as opposed to what a site configures.
BUILD_INPUTS = (
    "*.toml",
    "*.mod",
    "*.sum",
    "*.sh",
    "*.cfg",
    "Makefile",
    ".ci",
    "requirements*",
    "*package*.json",
    "molecule/lab",
)
# Settings that belong to a machine: in the tree they would send everybody to somebody's mirror.
MIRROR_SETTING = re.compile(
    r"\b(GOPROXY|GONOSUMDB|GOSUMDB|PIP_INDEX_URL|PIP_EXTRA_INDEX_URL|NPM_CONFIG_REGISTRY|index-url)\s*[=:]\s*[\"']?https?://"
)


def _collections() -> dict[str, str]:
    """Return the versions that requirements.yml pins: name -> version."""
    entries = tree.load(tree.ROOT / "requirements.yml")["collections"]
    assert entries
    return {str(entry["name"]): str(entry["version"]) for entry in entries}


def _galaxy() -> Any:
    return tree.load(tree.ROOT / "galaxy.yml")


@pytest.mark.proves("house-pins")
def test_requirements_are_exactly_the_collections_of_the_pinned_ansible_package() -> None:
    # Where the package lies, not where Python finds it: once Ansible templates, its own finder answers for these.
    home = Path(str(metadata.distribution("ansible").locate_file("ansible_collections")))
    assert home.is_dir(), "the package `ansible` is not installed\n  fix: make setup"
    problems = []
    for name, version in _collections().items():
        manifest = home / name.replace(".", "/") / "MANIFEST.json"
        carried = (
            json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"]
            if manifest.exists()
            else "none"
        )
        if carried != version:
            problems.append(
                f"requirements.yml: {name} {version}; ansible {metadata.version('ansible')} carries {carried}"
            )
    tree.refuse(problems, "write the versions that the `ansible` of pyproject.toml carries")


@pytest.mark.proves("house-pins")
def test_requirements_satisfy_what_the_collection_depends_on() -> None:
    pinned = _collections()
    wanted = _galaxy()["dependencies"]
    assert wanted, "galaxy.yml has no dependencies: nothing was checked"
    problems = []
    for name, specifier in wanted.items():
        if name not in pinned:
            problems.append(f"requirements.yml lacks {name}, which galaxy.yml depends on")
        elif Version(pinned[name]) not in SpecifierSet(specifier):
            problems.append(f"requirements.yml: {name} {pinned[name]}; galaxy.yml asks for {specifier}")
    tree.refuse(problems, "pin each dependency of galaxy.yml at a version it allows")


@pytest.mark.proves("house-pins")
def test_every_collection_that_the_product_uses_is_a_dependency_and_none_is_unused() -> None:
    used = {task.module.rpartition(".")[0] for task in tree.tasks() if task.module}
    for path in tree.tracked("roles", "playbooks", "plugins"):
        text = path.read_text(encoding="utf-8", errors="replace")
        used |= {m[1] for m in re.finditer(r"\b((?:ansible|community|kubernetes)\.[a-z]+)\.[a-z0-9_]+", text)}
    # The last is a host's name.
    used -= {"ansible.builtin", "ansible.module_utils", "metalhub.platform", "kubernetes.github"}
    used = {name for name in used if name.count(".") == 1}
    wanted = set(_galaxy()["dependencies"])
    problems = [
        f"galaxy.yml does not depend on {name}, which a task uses" for name in used - wanted if name in _collections()
    ]
    problems += [f"requirements.yml does not pin {name}, which a task uses" for name in used - set(_collections())
                 if (name.split(".")[0] in ("ansible", "community", "kubernetes"))]  # fmt: skip
    tree.refuse(problems, "add it to galaxy.yml and, pinned, to requirements.yml")


@pytest.mark.proves("house-pins")
def test_python_dependencies_are_pinned_exactly_and_installed() -> None:
    project = tomllib.loads((tree.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert wanted
    problems = []
    for entry in wanted:
        name, _, version = entry.partition("==")
        if not version or not re.fullmatch(r"[\w.]+", version):
            problems.append(f"pyproject.toml: {entry!r} is not pinned by ==")
        elif metadata.version(name) != version:
            problems.append(f"pyproject.toml: {entry}, and {metadata.version(name)} is installed")
    tree.refuse(problems, "pin by ==, then: make setup")


@pytest.mark.proves("house-one-version")
def test_the_version_of_the_project_stands_in_galaxy_yml_alone() -> None:
    version = str(_galaxy()["version"])
    line = re.compile(rf"(?<![\w.]){re.escape(version)}(?!\w|\.\d)")
    allowed = ("galaxy.yml", "changelogs/", "CHANGELOG")
    problems = []
    for path in tree.tracked():
        name = tree.relative(path)
        if name.startswith(allowed) or path.suffix in (".mod", ".sum") or path.is_symlink():
            continue
        for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if line.search(text) and not re.search(r"version_added|==", text):
                problems.append(f"{name}:{number}: {text.strip()}")
    tree.refuse(problems, "read the version from galaxy.yml")


@pytest.mark.proves("house-public")
def test_nothing_that_builds_points_at_a_private_host() -> None:
    problems = []
    seen = 0
    # A chart talks to the cluster's own services.
    inputs = [path for path in tree.tracked(*BUILD_INPUTS) if "chart" not in path.parts]
    for path in inputs:
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            seen += 1
            where = f"{tree.relative(path)}:{number}"
            for host in re.findall(r"https?://(?:[^/\s@\"']*@)?([A-Za-z0-9][A-Za-z0-9.-]*)", line):
                if host not in PUBLIC_HOSTS and not re.fullmatch(
                    r"198\.1[89]\.\d+\.\d+|(.+\.)?(test|example|invalid)", host
                ):
                    problems.append(f"{where}: {host}")
            if MIRROR_SETTING.search(line):
                problems.append(f"{where}: {line.strip()}")
    assert seen, "no build input was found: nothing was checked"
    tree.refuse(
        problems, "name the public host and add it to PUBLIC_HOSTS; a mirror is set in the environment of a machine"
    )


@pytest.mark.proves("house-public")
def test_nothing_secret_or_generated_is_tracked() -> None:
    files = tree.tracked()
    assert files
    problems = []
    for path in files:
        name = tree.relative(path)
        if re.search(r"(^|/)(\.vault[^/]*|id_(rsa|ed25519)|[^/]*\.(pem|key|pyc|tar\.gz|tgz|qcow2|log))$", name):
            problems.append(name)
        content = path.read_bytes()
        if re.search(rb"-----BEGIN [A-Z ]*PRIVATE " + rb"KEY-----", content):
            problems.append(f"{name}: holds a private key")
        if name.endswith("vault.yml") and not content.startswith(b"$ANSIBLE_" + b"VAULT;"):
            problems.append(f"{name}: is not encrypted")
        if len(content) > 500_000:
            problems.append(f"{name}: {len(content)} bytes")
    tree.refuse(problems, "remove it and add it to .gitignore; encrypt a site's vault with ansible-vault")


@pytest.mark.proves("house-public")
def test_yaml_files_end_in_yml() -> None:
    # antsibull-changelog and golangci know only these names.
    named_by_others = {"changelogs/config.yaml", "changelogs/changelog.yaml"}
    problems = [tree.relative(path) for path in tree.tracked("*.yaml") if tree.relative(path) not in named_by_others]
    tree.refuse(
        [name for name in problems if "/templates/" not in name and not name.startswith("molecule/lab/")],
        "call it .yml",
    )
