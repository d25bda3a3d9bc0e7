#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Installs RKE2's release files on a node after checking every checksum."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rke2_install
short_description: Install RKE2 from release files on the node, checksums first
description:
  - Compares the sha256 of every file with the release's own list before anything is touched; one wrong byte and nothing
    is.
  - Unpacks the program archive below O(prefix), each file by a rename, and puts the image archives in place of older
    ones.
  - Removes O(source) afterwards, so that no second copy stays on the disk.
version_added: 0.1.0
author: The metalhub maintainers
options:
  source:
    description: Directory with C(rke2.linux-amd64.tar.gz), the image archives and C(sha256sum-amd64.txt).
    type: path
    required: true
  images:
    description: Names of the image archives to install; others of RKE2's names are removed.
    type: list
    elements: str
    required: true
  prefix:
    description: Where the program archive is unpacked.
    type: path
    default: /usr/local
  data_dir:
    description: RKE2's data directory.
    type: path
    default: /var/lib/rancher/rke2
"""

EXAMPLES = r"""
- name: Install RKE2
  metalhub.platform.rke2_install:
    source: /var/lib/rancher/staging/v1.35.7+rke2r1
    images: [rke2-images-core.linux-amd64.tar.zst, rke2-images-canal.linux-amd64.tar.zst]
"""

RETURN = r"""
installed:
  description: Paths that were written.
  returned: success
  type: list
  elements: str
"""

import glob
import hashlib
import os
import shutil
import tarfile

from ansible.module_utils.basic import AnsibleModule

PROGRAM = "rke2.linux-amd64.tar.gz"
SUMS = "sha256sum-amd64.txt"


def sha256(path: str) -> str:
    """Return a file's sha256 in hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def wrong(source: str, names: list[str]) -> list[str]:
    """Return one sentence for each file that is missing, unlisted or not what the list says."""
    path = os.path.join(source, SUMS)
    if not os.path.exists(path):
        return [f"{path}: the list of checksums is missing"]
    with open(path) as lines:
        sums = {line.split()[1].lstrip("*"): line.split()[0] for line in lines if len(line.split()) == 2}
    found = []
    for name in names:
        file = os.path.join(source, name)
        if not os.path.exists(file):
            found.append(f"{name}: missing")
        elif name not in sums:
            found.append(f"{name}: {SUMS} does not list it")
        elif sha256(file) != sums[name]:
            found.append(f"{name}: sha256 is {sha256(file)}, {SUMS} says {sums[name]}")
    return found


def move(source: str, target: str) -> None:
    """Put a file at its place by a rename, across file systems too."""
    staging = target + ".new"
    shutil.move(source, staging)
    os.rename(staging, target)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "images": {"type": "list", "elements": "str", "required": True},
            "prefix": {"type": "path", "default": "/usr/local"},
            "data_dir": {"type": "path", "default": "/var/lib/rancher/rke2"},
        },
        supports_check_mode=True,
    )
    source, images, prefix = module.params["source"], module.params["images"], module.params["prefix"]
    faults = wrong(source, [PROGRAM, *images])
    if faults:
        module.fail_json(
            msg="RKE2's release files are not what their checksums say; nothing was installed. " + "; ".join(faults)
        )
    if module.check_mode:
        module.exit_json(changed=True, installed=[])
    installed = []
    with tarfile.open(os.path.join(source, PROGRAM)) as archive:
        for member in archive:
            target = os.path.normpath(os.path.join(prefix, member.name))
            if not target.startswith(prefix + "/") or not (member.isfile() or member.isdir()):
                module.fail_json(msg=f"{PROGRAM}: {member.name} is no plain file below {prefix}")
            if member.isdir():
                os.makedirs(target, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            content = archive.extractfile(member)
            if content is None:
                continue
            with content, open(target + ".new", "wb") as sink:
                shutil.copyfileobj(content, sink, 1 << 20)
            os.chmod(target + ".new", member.mode)
            os.rename(target + ".new", target)
            installed.append(target)
    directory = os.path.join(module.params["data_dir"], "agent/images")
    os.makedirs(directory, exist_ok=True)
    for name in images:
        move(os.path.join(source, name), os.path.join(directory, name))
        installed.append(os.path.join(directory, name))
    # Images of the version before would be imported again at every start.
    for old in glob.glob(os.path.join(directory, "rke2-images*")):
        if os.path.basename(old) not in images:
            os.unlink(old)
    shutil.rmtree(source)
    module.exit_json(changed=True, installed=installed)


if __name__ == "__main__":
    main()
