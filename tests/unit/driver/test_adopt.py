"""`adopt` makes a directory of what a playbook reports, or nothing at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret
from hypothesis import given
from hypothesis import strategies as st

from provisioner import adopt, runner
from provisioner.errors import ExitCode
from provisioner.runner import RunRequest
from tests.unit.driver.conftest import PLAY, Ansible, Checkout

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts/vault-client"
TABLE = "roles/preflight/files/compatibility.yml"
SCHEMA = {"vault_own": {"no_log": True, "required": True}, "vault_more": {"no_log": True, "required": True}, "a": {}}
REPORT: dict[str, Any] = {
    "machines": [{"name": "cp-1", "kind": "server", "address": "192.0.2.21", "release": "v1.35.4+rke2r1"}],
    "files": {
        "hosts.yml": {"about": "Machines.", "values": {"all": {"hosts": {"cp-1": {}}}}},
        "group_vars/all/site.yml": {"about": "The site.", "values": {"name": "found"}},
        "group_vars/all/versions.yml": {"about": "Versions.", "values": {"rke2_version": "v1.35.4+rke2r1"}},
    },
    "secrets": {"vault_own": "theirs"},
    "generate": {"vault_short": 4},
    "notes": [["cp-1", "is cordoned", "Uncordon it"], ["cp-2", "is cordoned", "Uncordon it"]],
    "refusals": [],
}


class World:
    """A checkout to adopt into, and what the playbook reports."""

    def __init__(self, checkout: Checkout, ansible: Ansible) -> None:
        self.checkout, self.ansible, self.report = checkout, ansible, json.loads(json.dumps(REPORT))
        self.seen: dict[str, Any] = {}
        for name, text in (
            ("playbooks/operations/adopt.yml", PLAY.format(hosts="all", more="")),
            ("scripts/vault-client", SCRIPT.read_text(encoding="utf-8")),
            (TABLE, (ROOT / TABLE).read_text(encoding="utf-8")),
            ("roles/helm_release/defaults/main.yml", "helm_release_helm_version: v3.18.6\n"),
            ("roles/preflight/meta/argument_specs.yml", yaml.dump({"argument_specs": {"main": {"options": SCHEMA}}})),
        ):
            path = checkout.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (checkout.root / "scripts/vault-client").chmod(0o755)

    def __call__(self, request: RunRequest, *others: Any) -> runner.RunResult:
        """Remember the inventory, and report."""
        self.seen = yaml.safe_load((request.inventory / "hosts.yml").read_text())
        Path(request.extra_vars["provision_report_file"]).write_text(json.dumps(self.report), encoding="utf-8")
        return self.ansible(request, *others)

    @property
    def site(self) -> Path:
        """Where the new site goes."""
        return self.checkout.root / "inventories/found"

    def adopt(self, *more: str) -> Any:
        """Adopt and return the result."""
        return self.checkout.run("adopt", "--site", "found", "--server", "192.0.2.21", *more)


@pytest.fixture
def world(checkout: Checkout, ansible: Ansible, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Make a checkout with a vault password."""
    made = World(checkout, ansible)
    monkeypatch.setattr(runner, "run", made)
    (tmp_path / "password").write_text("only-for-this-test\n")
    monkeypatch.setenv("METALHUB_VAULT_PASSWORD_FILE", str(tmp_path / "password"))
    return made


def _opened(path: Path) -> dict[str, Any]:
    text = path.read_bytes()
    assert text.startswith(b"$ANSIBLE_VAULT;1.2;AES256;site")
    library = VaultLib([("site", VaultSecret(b"only-for-this-test"))])
    return dict(yaml.safe_load(library.decrypt(text)))


@pytest.mark.proves("adopt-written")
def test_a_site_is_written_with_its_secrets_sealed_and_what_is_to_do_is_said(world: World) -> None:
    done = world.adopt("--user", "admin", "--key", "~/.ssh/id", "--json")
    assert done.exit_code == ExitCode.DONE, done.output
    document = json.loads(done.stdout)
    assert world.ansible.ran == [["adopt"]], "no lock is taken of servers that are only looked at"
    wanted = {"ansible_user": "admin", "ansible_become": True, "ansible_ssh_private_key_file": "~/.ssh/id"}
    assert world.seen == {"machines": {"vars": wanted, "hosts": {"192.0.2.21": {}}}}
    assert world.ansible.calls[0].extra_vars["rke2_adopt_connection"] == wanted
    assert (world.site / "group_vars/all/site.yml").read_text() == "---\n# The site.\nname: found\n"
    versions = "---\n# Versions.\nrke2_version: v1.35.4+rke2r1\nhelm_release_helm_version: v4.2.4\n"
    assert (world.site / "group_vars/all/versions.yml").read_text() == versions
    sealed = _opened(world.site / "group_vars/all/vault.yml")
    assert (sealed["vault_own"], len(sealed["vault_more"]), len(sealed["vault_short"])) == ("theirs", 64, 8)
    assert document["made"] == ["vault_more", "vault_short"]
    assert document["notes"] == ["cp-1, cp-2: is cordoned. Uncordon it."]
    assert document["following"].endswith("check --site found")
    assert "theirs" not in done.output
    assert [path.name for path in world.checkout.root.glob(".adopt-*")] == []


@pytest.mark.proves("adopt-written")
def test_a_site_that_is_there_is_never_touched(world: World) -> None:
    assert world.adopt().exit_code == ExitCode.DONE
    before = {path: path.read_bytes() for path in world.site.rglob("*.yml")}
    done = world.adopt()
    assert done.exit_code == ExitCode.USAGE
    assert "a site is never overwritten" in done.stderr
    assert {path: path.read_bytes() for path in world.site.rglob("*.yml")} == before
    assert len(world.ansible.calls) == 1


@pytest.mark.proves("adopt-refusals")
def test_nothing_is_written_of_a_cluster_that_is_refused_or_cannot_be_read(world: World) -> None:
    world.report["refusals"] = ["cp-1 has cni: cilium"]
    done = world.adopt()
    assert (done.exit_code, world.site.exists()) == (ExitCode.NOT_NOW, False)
    assert "cp-1 has cni: cilium" in done.stderr and "adopt --site found --server 192.0.2.21" in done.stderr
    world.ansible.failures["adopt"] = ("192.0.2.21", "no route to host")
    done = world.adopt()
    assert (done.exit_code, world.site.exists()) == (ExitCode.FAILED, False)


@pytest.mark.proves("adopt-written")
def test_without_a_vault_password_no_machine_is_contacted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALHUB_VAULT_PASSWORD_FILE", "/nonexistent")
    done = world.adopt()
    assert (done.exit_code, world.site.exists(), world.ansible.calls) == (ExitCode.SETUP, False, [])
    assert "vault_password" in done.stderr


@pytest.mark.proves("adopt-written")
def test_a_site_that_cannot_be_written_leaves_no_part_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    done = world.adopt()
    assert (done.exit_code, world.site.exists()) == (ExitCode.SETUP, False)
    assert [path.name for path in world.checkout.root.glob(".adopt-*")] == []


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-9, 9), st.text("ab{}%#'\": \n-!&*", max_size=12)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
)


class _Loader(yaml.SafeLoader):
    """Reads what Ansible calls unsafe as text."""


_Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]


@pytest.mark.proves("adopt-written")
@given(values=st.dictionaries(st.text("abc", min_size=1), VALUES, max_size=3))
def test_every_value_is_read_back_as_it_was(values: dict[str, Any]) -> None:
    assert (yaml.load(adopt.rendered(values, "About."), Loader=_Loader) or {}) == values  # noqa: S506


def test_braces_of_a_cluster_are_no_template_and_references_are() -> None:
    told = adopt.rendered({"theirs": "a{{ b }}", "ours": "{{ vault_x }}", "list": ["{% if %}"]})
    assert told == "---\ntheirs: !unsafe 'a{{ b }}'\nours: '{{ vault_x }}'\nlist:\n  - !unsafe '{% if %}'\n"
