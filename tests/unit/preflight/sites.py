"""Sites to be judged: copies of the repository's own, changed in one place, seen as Ansible and the role see them."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

from plugins.module_utils.site_findings import Finding
from plugins.module_utils.site_rules import check
from plugins.modules.site_check import load_site

ROOT = Path(__file__).resolve().parents[3]
ROLES = ROOT / "roles"
PASSWORD = "only-for-this-test"
VAULT = "group_vars/all/vault.yml"
SECRETS = {
    "vault_site_rke2_token": "7d1f2a90c4b85e36f1097ad2b6c35e481f7a0d9c2b4e68530a91f7c6d2e8b453",
    "vault_site_rke2_agent_token": "0b9e4d7c1a52f8366ed07b9c5f2a81d43c70e96b1d5a28f4967c3e0b8a1f52d6",
    "vault_site_api_address_password": "5e0b91c7",
    "vault_site_keycloak_admin_password": "a4c123b1612dd272d1371c17149d439536b3216fdaeeb975729fae923d5a4fd1",
    "vault_site_keycloak_database_password": "2aabfe228f219e9cb0eb53f16947ccf25ec84d8dbc74254770f58904dba41ecc",
    "vault_site_hub_client_secret": "cc3fc1626e53a13043b026c48bbf33feff9243a8f506b40928b5b7a767c76fb0",
    "vault_site_hub_cookie_secret": "08f86bebb2737f6a6f0fb23c6f5da2cec255404e4fb440034d6608697a8d41be",
    "vault_site_hub_proxy_token": "d440e50454f31af3176813e02ea68ef786e4d3cea27d26934b484e73cf575dca",
    "vault_site_hub_crypt_key": "d6ba2b0aee0ca923732881584d8c4fa2815d2802827283e0ad84173581569969",
}

# Edit: (file, old text, new text). An empty old text appends, a new text of None removes the file, and a file that
# ends with a slash is a directory to be renamed to the new text.
Edit = tuple[str, str, str | None]

_secrets = [("site", VaultSecret(PASSWORD.encode()))]


def make(target: Path, edits: list[Edit], source: str = "h2iosc") -> Path:
    """Copy a site of the repository to `target`, add secrets to it, apply the edits, and return its inventory.

    An old text that is not there is an error: the edit would test nothing.
    """
    inventory = target / source
    shutil.copytree(ROOT / "inventories" / source, inventory, ignore=shutil.ignore_patterns("vault.yml"))
    (inventory / VAULT).write_text(yaml.safe_dump(SECRETS, sort_keys=False), encoding="utf-8")
    for name, old, new in edits:
        _edit(inventory, name, old, new)
    if (inventory / VAULT).exists():
        encrypt(inventory / VAULT)
    return inventory


def _edit(inventory: Path, name: str, old: str, new: str | None) -> None:
    path = inventory / name
    if new is None:
        path.unlink()
    elif name.endswith("/"):
        path.rename(inventory / new)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else "---\n"
        assert old in text, f"{name} does not hold {old!r}"
        path.write_text(text.replace(old, new, 1) if old else text + new, encoding="utf-8")


def encrypt(path: Path) -> None:
    """Encrypt a file as `ansible-vault encrypt` does."""
    path.write_bytes(VaultLib(_secrets).encrypt(path.read_bytes(), vault_id="site"))


def variables(inventory: Path, host: str = "localhost") -> tuple[DataLoader, dict[str, Any]]:
    """Return what Ansible knows of a host before any role, and the loader that reads the site's files."""
    _load_plugins()
    loader = DataLoader()
    loader.set_vault_secrets(_secrets)
    hosts = InventoryManager(loader=loader, sources=[str(inventory)])
    manager = VariableManager(loader=loader, inventory=hosts)
    known: dict[str, Any] = manager.get_vars(host=hosts.get_host(host))
    known["hostvars"] = HostVars(hosts, manager, loader)
    return loader, known


def findings(inventory: Path) -> list[Finding]:
    """Return what the role finds wrong with a site, by its own templates and the core of its module."""
    loader, known = variables(inventory)
    given = yaml.safe_load((ROLES / "preflight/vars/main.yml").read_text(encoding="utf-8"))
    known |= {name: trusted(value) for name, value in given.items()}
    known |= {"role_path": str(ROLES / "preflight"), "ansible_inventory_sources": [str(inventory)]}
    task = yaml.safe_load((ROLES / "preflight/tasks/verify_site.yml").read_text(encoding="utf-8"))[0]
    options = Templar(loader, variables=known).template(trusted(task["metalhub.platform.site_check"]))
    return check(load_site(options.pop("sources"), Path(options.pop("roles")), **options))


@functools.cache
def _load_plugins() -> None:
    """Make Ansible's lookups and filters known, once a process."""
    init_plugin_loader()


def trusted(value: Any) -> Any:
    """Mark every text as a template that may be filled in, as Ansible does with what it reads from a role."""
    if isinstance(value, dict):
        return {key: trusted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [trusted(inner) for inner in value]
    return trust_as_template(value) if isinstance(value, str) else value
