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
  - Downloads what O(source) lacks when O(url) is given; what an interrupted run has fetched whole is not fetched again.
  - Compares the sha256 of every file with the release's own list before anything is touched; one wrong byte and nothing
    is.
  - Looks for enough free space on every file system it writes to before it downloads, and again before it unpacks.
  - Unpacks the program archive below O(prefix) and puts the image archives in place of older ones. Every file is first
    written beside its destination; only when all are on the disk they are renamed, the program C(rke2) as the last. So
    a disk that fills up leaves the old release, and a release that says its version is there whole.
  - Removes O(source) afterwards, so that no second copy stays on the disk.
version_added: 0.1.0
author: The metalhub maintainers
options:
  source:
    description: Directory with C(rke2.linux-amd64.tar.gz), the image archives and C(sha256sum-amd64.txt).
    type: path
    required: true
  url:
    description: Where the same files are downloaded from; without it they lie in O(source) already.
    type: str
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

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import tarfile
import time
import urllib.error

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

PROGRAM = "rke2.linux-amd64.tar.gz"
SUMS = "sha256sum-amd64.txt"
TRIES = 3


def sha256(path: str) -> str:
    """Return a file's sha256 in hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def sums(source: str) -> dict[str, str]:
    """Return the release's own list of checksums, name to sha256; empty where there is none."""
    path = os.path.join(source, SUMS)
    if not os.path.exists(path):
        return {}
    with open(path) as lines:
        return {line.split()[1].lstrip("*"): line.split()[0] for line in lines if len(line.split()) == 2}


def existing(path: str) -> str:
    """Return the path itself or the nearest directory above it that is there."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def mount_point(path: str) -> str:
    """Return the directory at which the file system of an existing path is mounted."""
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def cramped(needs: list[tuple[str, int]]) -> list[str]:
    """Return a sentence for each file system without room for the bytes that are to be written below paths on it."""
    systems: dict[str, int] = {}
    for path, size in needs:
        place = mount_point(existing(path))
        systems[place] = systems.get(place, 0) + size
    found = []
    for place, size in systems.items():
        free = shutil.disk_usage(place).free
        if size > free:
            found.append(
                f"{place} has {free >> 20} MiB free and {-(-size >> 20)} MiB are to be written there;"
                f" see what takes the space with: du -xhd2 {place}"
            )
    return found


def fetch(url: str, target: str) -> None:
    """Download one file, whole or not at all; raises OSError when it cannot be had after three tries."""
    part = target + ".part"
    for left in reversed(range(TRIES)):
        try:
            with open_url(url, timeout=30) as answer, open(part, "wb") as sink:
                shutil.copyfileobj(answer, sink, 1 << 20)
            os.rename(part, target)
            return
        except OSError as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            if isinstance(error, urllib.error.HTTPError) or error.errno == errno.ENOSPC or not left:
                raise
            time.sleep(2)


def length(url: str) -> int:
    """Return how many bytes a URL says it has; 0 when it does not say."""
    try:
        with open_url(url, method="HEAD", timeout=30) as answer:
            return int(answer.headers.get("Content-Length") or 0)
    except (OSError, ValueError):
        return 0


def download(url: str, source: str, names: list[str]) -> str:
    """Fetch a release's files that are not there whole yet; return, in words, what cannot be had, or nothing."""
    url = url.rstrip("/")
    try:
        os.makedirs(source, mode=0o700, exist_ok=True)
        name = SUMS
        fetch(f"{url}/{name}", os.path.join(source, name))
        listed = sums(source)
        lacking = [
            name
            for name in names
            if not os.path.exists(os.path.join(source, name)) or sha256(os.path.join(source, name)) != listed.get(name)
        ]
        needs = [(source, length(f"{url}/{name}")) for name in lacking]
        full = cramped(needs)
        if full:
            return "; ".join(full)
        for name in lacking:
            fetch(f"{url}/{name}", os.path.join(source, name))
    except OSError as error:
        return f"{url}/{name} cannot be had: {error}"
    return ""


def wrong(source: str, names: list[str]) -> dict[str, str]:
    """Return what is wrong with each file that is missing, unlisted or not what the list says."""
    listed = sums(source)
    if not listed:
        return {SUMS: f"no list of checksums in {source}"}
    found = {}
    for name in names:
        file = os.path.join(source, name)
        if not os.path.exists(file):
            found[name] = f"missing in {source}"
        elif name not in listed:
            found[name] = f"{SUMS} does not list it"
        else:
            seen = sha256(file)
            if seen != listed[name]:
                found[name] = f"sha256 is {seen}, {SUMS} says {listed[name]}; {VERIFY}"
    return found


VERIFY = "in a bundle 'scripts/provision.py bundle verify' finds all that is wrong"


class InstallError(Exception):
    """A reason to stop, in words; nothing is installed then."""


def members(archive: tarfile.TarFile, prefix: str) -> list[tuple[tarfile.TarInfo, str]]:
    """Return the archive's files with where each goes; raises InstallError for what is no plain file below `prefix`."""
    found = []
    for member in archive:
        target = os.path.normpath(os.path.join(prefix, member.name))
        if not (target + "/").startswith(prefix + "/") or not (member.isfile() or member.isdir()):
            raise InstallError(f"{PROGRAM}: {member.name} is no plain file below {prefix}")
        if member.isfile():
            found.append((member, target))
    return found


def unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    """Write one file of the archive to a path of its own; raises OSError."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    content = archive.extractfile(member)
    if content:
        with content, open(path, "wb") as sink:
            shutil.copyfileobj(content, sink, 1 << 20)
    os.chmod(path, member.mode & 0o777)


def discard(staged: list[tuple[str, str]]) -> None:
    """Remove what was written beside its destination; an archive that would be moved from elsewhere stays."""
    for fresh, target in staged:
        if fresh == target + ".new":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)


def install(source: str, images: list[str], prefix: str, data_dir: str) -> list[str]:
    """Put a checked release in place and return the paths written, the program itself as the last.

    Raises InstallError, with the old release in place and nothing left beside it, when a disk is full.
    """
    directory = os.path.join(data_dir, "agent/images")
    staged: list[tuple[str, str]] = []
    try:
        with tarfile.open(os.path.join(source, PROGRAM)) as archive:
            files = members(archive, prefix)
            # On its own file system an image archive is moved by a rename, and needs no room.
            moved = os.stat(source).st_dev == os.stat(existing(directory)).st_dev
            needs = [(target, member.size) for member, target in files]
            needs += [(directory, 0 if moved else os.path.getsize(os.path.join(source, name))) for name in images]
            full = cramped(needs)
            if full:
                raise InstallError("; ".join(full))
            os.makedirs(directory, exist_ok=True)
            for name in images:
                target = os.path.join(directory, name)
                staged.append((os.path.join(source, name) if moved else target + ".new", target))
                if not moved:
                    shutil.copyfile(os.path.join(source, name), target + ".new")
            # A node whose program says the new version has all the rest of it, whenever this is interrupted.
            for member, target in sorted(files, key=lambda file: file[1].endswith("/bin/rke2")):
                staged.append((target + ".new", target))
                unpack(archive, member, target + ".new")
    except (OSError, InstallError) as error:
        discard(staged)
        if isinstance(error, InstallError):
            raise
        place = error.filename or (staged[-1][1] if staged else source)
        raise InstallError(f"{place}: {error.strerror or error}") from error
    # Images of the version before would be imported again at every start.
    for old in glob.glob(os.path.join(directory, "rke2-images*")):
        if os.path.basename(old) not in images:
            os.unlink(old)
    for fresh, target in staged:
        os.rename(fresh, target)
    return [target for _, target in staged]


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "url": {"type": "str"},
            "images": {"type": "list", "elements": "str", "required": True},
            "prefix": {"type": "path", "default": "/usr/local"},
            "data_dir": {"type": "path", "default": "/var/lib/rancher/rke2"},
        },
        supports_check_mode=True,
    )
    source, images, prefix = module.params["source"], module.params["images"], module.params["prefix"]
    if module.check_mode:
        module.exit_json(changed=True, installed=[])
    if module.params["url"]:
        missing = download(module.params["url"], source, [PROGRAM, *images])
        if missing:
            module.fail_json(
                msg=f"{missing}. Nothing was installed; what was fetched stays in {source} for the next run"
            )
    faults = wrong(source, [PROGRAM, *images])
    if faults:
        # The right files stay for the next run, which gets the wrong ones anew.
        for name in faults:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(source, name))
        module.fail_json(
            msg="RKE2's release files are not what their checksums say; nothing was installed. "
            + "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        )
    try:
        installed = install(source, images, prefix, module.params["data_dir"])
    except InstallError as error:
        module.fail_json(msg=f"The release cannot be installed, and what was there before still is: {error}")
    shutil.rmtree(source)
    module.exit_json(changed=True, installed=installed)


if __name__ == "__main__":
    main()
