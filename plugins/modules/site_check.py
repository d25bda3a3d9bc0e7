#!/usr/bin/python
"""Refuse a site that is described wrongly, before any node is contacted."""

from __future__ import annotations

DOCUMENTATION = r"""
module: site_check
short_description: Refuse a site that is described wrongly
description:
  - Reads the files of an inventory and judges them together with the values that Ansible made of them. Everything that
    is wrong is reported at once, each with file, line, value seen and the way to mend it.
  - Contacts no host and changes nothing. Runs on the control machine, which has the files.
  - Is given what has to be known of a secret (its length, for example) and never a secret.
version_added: 0.1.0
author: The metalhub maintainers
requirements:
  - PyYAML
options:
  sources:
    description: What Ansible was given by C(-i), as in C(ansible_inventory_sources).
    type: list
    elements: str
    required: true
  roles:
    description: Directory of the roles, whose specs and defaults say which inputs there are.
    type: path
    required: true
  groups:
    description: Hosts by group, as in C(groups).
    type: dict
    required: true
  addresses:
    description: Node to its address, the text as templated; empty for one without.
    type: dict
    required: true
  connections:
    description: Host of the group C(platform) to its connection.
    type: dict
    default: {}
  parameters:
    description: Site parameter to its value as templated.
    type: dict
    required: true
  secrets:
    description: Name of a secret to what may be known of it, see the class C(Secret) of C(module_utils/site_rules.py).
    type: dict
    no_log: false
    default: {}
  versions:
    description: Parameter of C(preflight/files/compatibility.yml) to the version that the inventory sets.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Never changes anything.
  diff_mode:
    support: none
    description: Has nothing to compare.
"""

EXAMPLES = r"""
- name: Check a site
  metalhub.platform.site_check:
    sources: "{{ ansible_inventory_sources }}"
    roles: "{{ role_path | dirname }}"
    groups: "{{ groups }}"
    addresses: {node01: 192.0.2.21}
    parameters: {site_name: example}
"""

RETURN = r"""
msg:
  description: What is wrong, four lines a finding.
  returned: failure
  type: str
"""

from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.basic import AnsibleModule

# Relative, because only the installed collection has a name of its own.
from ..module_utils.site_files import read_inventory
from ..module_utils.site_findings import render
from ..module_utils.site_rules import Secret, Site, check

# What upstream publishes beside its artifacts; without it none of them could be verified.
CHECKSUMS = "sha256sum-amd64.txt"


def load_site(
    sources: list[str],
    roles: Path,
    *,
    groups: dict[str, list[str]],
    addresses: dict[str, str],
    parameters: dict[str, Any],
    connections: dict[str, str] | None = None,
    secrets: dict[str, dict[str, Any]] | None = None,
    versions: dict[str, str] | None = None,
) -> Site:
    """Return the site: its files and the roles' specs and tables, joined with what Ansible made of them.

    The keyword arguments are the module's options of the same names. Raises OSError for a role without its files.
    """
    preflight = roles / "preflight"
    compatibility = _yaml(preflight / "files/compatibility.yml")
    specs = {path.parents[1].name: _specs(path) for path in sorted(roles.glob("*/meta/argument_specs.yml"))}
    schema: dict[str, dict[str, Any]] = specs["preflight"].pop("main")
    inputs = {role: {name for options in entries.values() for name in options} for role, entries in specs.items()}
    defaults: dict[str, Any] = {}
    for path in roles.glob("*/defaults/main.yml"):
        values = _yaml(path) or {}
        inputs.setdefault(path.parents[1].name, set()).update(values)
        defaults.update(values)
    in_force = {name: str(defaults[name]) for name in compatibility["components"].values() if name in defaults}
    in_force.update({name: str(value) for name, value in (versions or {}).items() if value})
    known = {name: {**about, "same_as": tuple(about["same_as"])} for name, about in (secrets or {}).items()}
    bundle = str(parameters.get("site_bundle") or "")
    release = in_force.get(compatibility["components"]["rke2"], "")
    return Site(
        inventory=read_inventory(sources, roles.parent),
        schema=schema,
        inputs=inputs,
        compatibility=compatibility,
        groups={name: [str(host) for host in hosts] for name, hosts in groups.items()},
        addresses={host: str(address) for host, address in addresses.items()},
        connections=connections or {},
        parameters=parameters,
        secrets={name: Secret(**about) for name, about in known.items()},
        versions=in_force,
        bundle=_bundle(Path(bundle), release) if bundle.startswith("/") else "",
    )


def _yaml(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)


def _specs(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return entry point -> name of an input -> its spec."""
    specs = (_yaml(path) or {}).get("argument_specs", {})
    return {entry: spec.get("options") or {} for entry, spec in specs.items()}


def _bundle(path: Path, release: str) -> str:
    """Return what is wrong with a bundle's directory, or an empty string."""
    if not path.is_dir():
        return "is a directory that is not there"
    return "" if (path / "rke2" / release / CHECKSUMS).is_file() else f"holds no rke2/{release}/{CHECKSUMS}"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "sources": {"type": "list", "elements": "str", "required": True},
            "roles": {"type": "path", "required": True},
            "groups": {"type": "dict", "required": True},
            "addresses": {"type": "dict", "required": True},
            "connections": {"type": "dict", "default": {}},
            "parameters": {"type": "dict", "required": True},
            "secrets": {"type": "dict", "default": {}, "no_log": False},
            "versions": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    options = dict(module.params)
    site = load_site(options.pop("sources"), Path(options.pop("roles")), **options)
    findings = check(site)
    if findings:
        count = f"{len(findings)} things are" if len(findings) > 1 else "One thing is"
        module.fail_json(msg=f"{count} wrong with this site; no machine was contacted.\n{render(findings)}")
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
