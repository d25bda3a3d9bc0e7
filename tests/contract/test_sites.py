"""The lab is the reference site on one machine: every difference is listed here with its reason."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest

from tests.contract import tree

REFERENCE, LAB = tree.ROOT / "inventories/h2iosc", tree.ROOT / "inventories/lab"

# file:key (as `hosts.yml:all.vars.ansible_user`, * for anything) -> why the lab differs there
ALLOWED = {
    "hosts.yml:*.ansible_host": "another prefix",
    "hosts.yml:all.vars.ansible_*": "how the control machine reaches its nodes",
    "group_vars/all/site.yml:site_name": "its own name",
    "group_vars/all/site.yml:site_host": "a name that can belong to nobody (.test)",
    "group_vars/all/site.yml:site_api_address": "another prefix",
    "group_vars/all/site.yml:site_load_balancer_pool": "another prefix",
    "group_vars/all/site.yml:site_ingress_address": "another prefix",
    "group_vars/all/site.yml:site_identity_realm": "the reference site's published one",
    "group_vars/all/site.yml:site_home_size": "one disk stands for the file server",
    "group_vars/all/site.yml:site_bundle": "the lab downloads nothing but its bundle",
    "group_vars/all/site.yml:site_time_servers": "the lab's own clock",
    "group_vars/rke2/node.yml:*": "packages come from the bundle; kernel and swap are the machine's below",
    "group_vars/rke2*/preflight.yml:*": "the lab's nodes are as big as the machine they run on",
    "group_vars/rke2_server/rke2.yml:rke2_snapshot_*": "the reference site states the role's defaults as its promise",
    "group_vars/all/site.yml:site_registry": "images are built on the spot and come from the bundle",
    "group_vars/platform/*.yml:*": "images built on the spot, a directory as file server, two cores",
    "group_vars/all/versions.yml:*_version": "the lab builds a current minor; the reference site runs what it has",
}


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings: dotted key -> value; an empty mapping is a leaf."""
    if isinstance(value, dict) and value:
        found: dict[str, Any] = {}
        for name, inner in value.items():
            found |= _flat(inner, f"{key}.{name}" if key else str(name))
        return found
    return {key: value}


def _site(name: str) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    directory = tree.ROOT / "inventories" / name
    for path in tree.tracked(f"inventories/{name}/*.yml"):
        if path.name != "vault.yml":
            flat = _flat(tree.load(path))
            leaves |= {f"{path.relative_to(directory)}:{key}": value for key, value in flat.items()}
    return leaves


def _different() -> set[str]:
    reference, lab = _site(REFERENCE.name), _site(LAB.name)
    assert reference, f"{tree.relative(REFERENCE)} holds no site: nothing was compared"
    assert lab, f"{tree.relative(LAB)} holds no site: nothing was compared"
    missing = object()
    return {key for key in reference.keys() | lab.keys() if reference.get(key, missing) != lab.get(key, missing)}


@pytest.mark.proves("house-lab-site")
def test_the_lab_differs_from_the_reference_site_only_where_this_file_says_so() -> None:
    different = _different()
    unexpected = [key for key in different if not any(fnmatchcase(key, pattern) for pattern in ALLOWED)]
    stale = [pattern for pattern in ALLOWED if not any(fnmatchcase(key, pattern) for key in different)]
    problems = [f"{key} differs between {REFERENCE.name} and {LAB.name}" for key in unexpected]
    problems += [f"{pattern} is allowed to differ and nothing there does" for pattern in stale]
    tree.refuse(problems, "make the sites agree, or change ALLOWED in tests/contract/test_sites.py with a reason")


@pytest.mark.proves("house-lab-site")
def test_nothing_but_the_lab_itself_knows_of_the_lab() -> None:
    files = tree.tracked("roles", "playbooks", "plugins", "scripts/provisioner", "scripts/provision.py")
    assert files
    problems = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if any(word.lower() == "lab" for word in tree.words(line)):
                problems.append(f"{tree.relative(path)}:{number}: {line.strip()}")
    tree.refuse(problems, "the lab is a site: say what differs as a parameter of inventories/lab")


@pytest.mark.proves("house-lab-size")
def test_the_lab_stays_small_beside_what_it_tests() -> None:
    def lines(where: list[str], suffixes: set[str]) -> int:
        files = [path for path in tree.tracked(*where) if path.suffix in suffixes]
        return sum(len(path.read_bytes().splitlines()) for path in files)

    lab = lines(["molecule/lab"], {".py", ".go", ".sh", ".yml", ".yaml", ".j2", ".tpl"})
    product = lines(["roles", "plugins", "scripts"], {".py", ".yml", ".yaml", ".j2"})
    assert lab > 0 and product > 0
    assert lab <= 0.35 * product, (
        f"molecule/lab has {lab} lines, {lab / product:.1%} of the {product} in roles, plugins, scripts; at most 35 %"
        "\n  fix: let kubeadm, etcdctl or a real component do what the lab does by itself"
    )
