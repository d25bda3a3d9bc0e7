#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Brings programs of a release of etcd to the control machine, checked."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_release
short_description: Programs of a release of etcd lie on the control machine
description:
  - Takes the archive of a release from the bundle, or from upstream where the site has none, compares its sha256 with
    the manifest's or with upstream's C(SHA256SUMS), and keeps the programs that are asked for.
  - RKE2 brings no program of etcd for the machine itself. What is there is not fetched again.
  - A release that cannot be had is a warning and no failure, for everything but a restore does without it.
version_added: 0.1.0
author: The metalhub maintainers
options:
  version:
    description: The release, such as C(v3.6.14).
    type: str
    required: true
  programs:
    description: Names of the programs.
    type: list
    elements: str
    default: [etcdutl]
  bundle:
    description: The site's bundle, a directory or a URL; empty for upstream.
    type: str
    default: ''
  url:
    description: Where upstream's releases are.
    type: str
    default: https://github.com/etcd-io/etcd/releases/download
  cache:
    description: Directory in which programs are kept, by release.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: Fetches all the same; nothing but the cache changes.
"""

EXAMPLES = r"""
- name: Bring etcd's tool to the control machine
  metalhub.platform.etcd_release:
    version: v3.6.14
    cache: ~/.cache/metalhub
  delegate_to: localhost
"""

RETURN = r"""
programs:
  description: Name of each program to its path; empty where the release cannot be had.
  returned: always
  type: dict
reason:
  description: Why it cannot be had.
  returned: always
  type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.bundle_files import Fault, Missing, archive, keep, unpacked


def programs(version: str, names: list[str], bundle: str, url: str, cache: str) -> dict[str, str]:
    """Return the paths of programs, fetched where one is missing; raises Fault."""
    # A program may look at its own name, so the release stands in the directory's.
    paths = {name: os.path.join(cache, f"etcd-{version}", name) for name in names}
    lacking = [name for name, path in paths.items() if not os.path.exists(path)]
    if lacking:
        name = f"etcd-{version}-linux-amd64.tar.gz"
        packed = archive(bundle, f"{url}/{version}", "etcd", name, "SHA256SUMS")
        for program in lacking:
            keep(paths[program], unpacked(packed, name, program), 0o755)
    return paths


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "programs": {"type": "list", "elements": "str", "default": ["etcdutl"]},
            "bundle": {"type": "str", "default": ""},
            "url": {"type": "str", "default": "https://github.com/etcd-io/etcd/releases/download"},
            "cache": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    asked = module.params
    try:
        found = programs(asked["version"], asked["programs"], asked["bundle"], asked["url"], asked["cache"])
    except Missing as missing:
        module.warn(f"etcd's tools are not laid down, so a restore cannot raise the revision: {missing}")
        module.exit_json(changed=False, programs={}, reason=str(missing))
    except Fault as fault:
        module.fail_json(msg=str(fault))
    module.exit_json(changed=False, programs=found, reason="")


if __name__ == "__main__":
    main()
