# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Reads files of the bundle, or of upstream where there is none, and lets none through whose sha256 is another."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
import urllib.parse

from ansible.module_utils.urls import open_url


class Fault(Exception):
    """What keeps things from being as declared, with what to do about it."""


class Missing(Fault):
    """A file that cannot be had at all."""


def sha256(content: bytes) -> str:
    """Return the sha256 of some bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read(place: str, name: str) -> bytes:
    """Return a file below a directory or URL."""
    if "://" not in place:
        path = os.path.join(os.path.expanduser(place), name)
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise Missing(f"{path} cannot be read: {error.strerror}.") from error
    url = f"{place.rstrip('/')}/{urllib.parse.quote(name)}"
    try:
        with open_url(url, timeout=30) as answer:
            content: bytes = answer.read()
            return content
    except (OSError, ValueError) as error:
        raise Missing(f"{url} cannot be had: {getattr(error, 'reason', None) or error}.") from error


def keep(path: str, content: bytes, mode: int = 0o644) -> str:
    """Write a file whole or not at all, and return its path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor, fresh = tempfile.mkstemp(dir=os.path.dirname(path))
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.chmod(fresh, mode)
    os.replace(fresh, path)
    return path


def from_bundle(bundle: str, kind: str, name: str, kept: str) -> bytes:
    """Return the file of a kind and name from the bundle, or the copy at `kept` if that has the manifest's sha256."""
    again = f"Build the bundle anew: scripts/provision.py bundle build --to {bundle if '://' not in bundle else 'DIR'}"
    try:
        manifest = json.loads(read(bundle, "manifest.json"))
        entries = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise Fault(f"The bundle {bundle} has no manifest that can be read. {again}") from error
    found = [path for path in entries if path.startswith(f"{kind}/") and path.rpartition("/")[2] == name]
    if not found:
        raise Missing(f"The bundle {bundle} lacks {name} below {kind}/. {again}")
    if os.path.exists(kept):
        with open(kept, "rb") as file:
            content = file.read()
        if sha256(content) == entries[found[0]]:
            return content
    content = read(bundle, found[0])
    if sha256(content) != entries[found[0]]:
        raise Fault(
            f"{found[0]} of the bundle {bundle} has the sha256 {sha256(content)}, its manifest says "
            f"{entries[found[0]]}: it was changed, and is not used. {again}"
        )
    return content


def archive(bundle: str, url: str, kind: str, name: str, sums: str) -> bytes:
    """Return an archive of upstream's from the bundle, or from upstream as its own list of checksums says."""
    if bundle:
        return from_bundle(bundle, kind, name, "")
    lines = [line.split() for line in read(url, sums).decode().splitlines()]
    wanted = [words[0] for words in lines if len(words) == 2 and words[1].lstrip("*") == name]
    content = read(url, name)
    if sha256(content) not in wanted:
        raise Fault(f"{url}/{name} has the sha256 {sha256(content)}, upstream's list says {wanted[:1]}: not used.")
    return content


def unpacked(content: bytes, name: str, program: str) -> bytes:
    """Return one program out of an archive of that name."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as packed:
        for one in packed:
            found = packed.extractfile(one) if os.path.basename(one.name) == program else None
            if found:
                return found.read()
    raise Fault(f"{name} holds no program {program}; compare it with upstream's.")
