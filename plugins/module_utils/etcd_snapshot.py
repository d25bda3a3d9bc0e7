# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Reads a snapshot of etcd: whole or not, which release and token it is of, and what it holds.

A snapshot is etcd's bbolt file with its SHA-256 behind it. Its bucket `key` holds every revision of every key in order.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .rke2_token import secret_part

MAGIC = 0xED0CDAED
BRANCH, LEAF, BUCKET = 1, 2, 1
DIGEST = 32
VERSION = re.compile(rb"v\d+\.\d+\.\d+[+]rke2r\d+")
CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
ROOTS = b"/registry/configmaps/kube-system/kube-root-ca.crt"
SCHEDULED = "etcd-snapshot-"
USER = "hub.jupyter.org/username"
# What is compared with the cluster: place below /registry -> name for people.
KINDS = {
    "namespaces": "Namespace",
    "persistentvolumes": "PersistentVolume",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "secrets": "Secret",
}


class Broken(Exception):
    """A file that is no whole snapshot, with the reason."""


@dataclass
class Contents:
    """What a snapshot holds.

    version: the newest release among its nodes. token_fingerprint: of the server token that opens its keys.
    authority: digest of the certificate that the cluster's API is known by.
    objects: kind -> `namespace/name` -> uid, empty where it is encrypted. users: whose homes have a claim.
    """

    version: str = ""
    token_fingerprint: str = ""
    authority: str = ""
    revision: int = 0
    keys: int = 0
    nodes: list[str] = field(default_factory=list)
    objects: dict[str, dict[str, str]] = field(default_factory=dict)
    users: list[str] = field(default_factory=list)


def fingerprint(token: str) -> str:
    """Return what RKE2 names a token by in etcd: the first 12 digits of the hash of its secret part."""
    return hashlib.sha256(secret_part(token).encode()).hexdigest()[:12]


def authority(data: bytes) -> str:
    """Return the digest of the first certificate in PEM; empty where there is none."""
    found = CERTIFICATE.search(data)
    return hashlib.sha256(b"".join(found.group(1).split())).hexdigest() if found else ""


def fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield number and value of each field of a protocol buffer; ends where it is none."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    try:
        while at < len(data):
            tag = varint()
            if tag & 7 == 0:
                yield tag >> 3, varint()
            elif tag & 7 == 2:
                size = varint()
                yield tag >> 3, data[at : at + size]
                at += size
            elif tag & 7 in (1, 5):
                at += 8 if tag & 7 == 1 else 4
            else:
                return
    except IndexError:
        return


def one(data: bytes, *numbers: int) -> bytes:
    """Return the bytes at a path of field numbers; empty where there are none."""
    for number in numbers:
        data = next((value for key, value in fields(data) if key == number and isinstance(value, bytes)), b"")
    return data


class Database:
    """A bbolt file, read in place."""

    def __init__(self, data: mmap.mmap | bytes, size: int) -> None:
        self.data, self.size = data, size
        metas = []
        for at in dict.fromkeys((0, self._page_size())):
            magic, version, _, _, root, _, _, _, txid, checksum = struct.unpack_from("<IIIIQQQQQQ", data, at + 16)
            if magic == MAGIC and version == 2 and checksum == _fnv(bytes(data[at + 16 : at + 72])):
                metas.append((txid, root))
        if not metas:
            raise Broken("neither of its two headers is whole")
        self.root = max(metas)[1]

    def _page_size(self) -> int:
        for at in range(0, 1 << 16, 1 << 10):
            if at + 80 <= self.size and struct.unpack_from("<I", self.data, at + 16)[0] == MAGIC:
                page = int(struct.unpack_from("<I", self.data, at + 24)[0])
                if at == 0 or at == page:
                    self.page = page
                    return page
        raise Broken("it is no database of etcd")

    def items(self, page: int, *, last_first: bool = False) -> Iterator[tuple[bytes, bytes, bool]]:
        """Yield key, value and whether it is a bucket, of all that is below a page."""
        stack, left = [page], self.size // self.page
        while stack:
            at, left = stack.pop() * self.page, left - 1
            if left < 0:
                raise Broken("its pages go round in a circle")
            _, flags, count, _ = struct.unpack_from("<QHHI", self.data, at)
            order = range(count - 1, -1, -1) if last_first else range(count)
            if flags & BRANCH:
                below = [struct.unpack_from("<IIQ", self.data, at + 16 + n * 16)[2] for n in order]
                stack += reversed(below)
            elif flags & LEAF:
                for n in order:
                    element = at + 16 + n * 16
                    kind, offset, key, value = struct.unpack_from("<IIII", self.data, element)
                    start = element + offset
                    middle = start + key
                    yield bytes(self.data[start:middle]), bytes(self.data[middle : middle + value]), bool(kind & BUCKET)
            else:
                raise Broken(f"page {at // self.page} is neither branch nor leaf")

    def revisions(self, *, last_first: bool = False) -> Iterator[tuple[int, bytes, bytes, bool]]:
        """Yield revision, key, value and whether it is gone, of every change etcd still has."""
        root = next((value for name, value, bucket in self.items(self.root) if bucket and name == b"key"), None)
        if root is None:
            raise Broken("it has no bucket of keys")
        for revision, value, _ in self.items(struct.unpack_from("<Q", root)[0], last_first=last_first):
            yield (
                int.from_bytes(revision[:8], "big"),
                one(value, 1),
                value,
                revision[-1:] == b"t" and len(revision) > 17,
            )


def _fnv(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def opened(path: Path) -> Database:
    """Return a snapshot's database; Broken where the file is none."""
    size = path.stat().st_size
    if size < 1 << 13:
        raise Broken(f"it has {size} bytes only")
    with path.open("rb") as source:
        data = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return Database(data, size)
    except struct.error as error:
        raise Broken(str(error)) from error


def whole(path: Path) -> str:
    """Return the SHA-256 of a file whose last 32 bytes are the SHA-256 of the rest, as etcd writes it, or Broken."""
    inner, outer = hashlib.sha256(), hashlib.sha256()
    rest = path.stat().st_size - DIGEST
    if rest < 1 or rest % 512:
        raise Broken("its length is none that etcd writes")
    with path.open("rb") as source:
        while rest:
            block = source.read(min(rest, 1 << 20))
            rest -= len(block)
            inner.update(block)
            outer.update(block)
        written = source.read()
    if written != inner.digest():
        raise Broken(
            f"its content has the SHA-256 {inner.hexdigest()[:12]}, and {written.hex()[:12]} is written behind it"
        )
    outer.update(written)
    return outer.hexdigest()


def _object(value: bytes) -> bytes:
    """Return what is inside Kubernetes' envelope; empty where it is encrypted or JSON."""
    return one(value[4:], 2) if value.startswith(b"k8s\0") else b""


def release(path: Path) -> str:
    """Return the release of the nodes as they were last, from the newest entries: quick for a file of any size."""
    found: set[bytes] = set()
    try:
        for number, (_, key, value, gone) in enumerate(opened(path).revisions(last_first=True)):
            if key.startswith(b"/registry/minions/") and not gone:
                found |= set(VERSION.findall(one(_object(one(value, 5)), 3, 7, 7)))
            if found and number > 2000:
                break
    except struct.error as error:
        raise Broken(str(error)) from error
    return newest(found)


def newest(versions: set[bytes]) -> str:
    """Return the highest of some releases; empty of none."""
    ranked = sorted(versions, key=lambda text: [int(number) for number in re.findall(rb"\d+", text)])
    return ranked[-1].decode() if ranked else ""


def contents(path: Path) -> Contents:
    """Return what a snapshot holds as of its last revision."""
    live: dict[bytes, bytes] = {}
    found = Contents(objects={kind: {} for kind in KINDS.values()})
    try:
        for revision, key, value, gone in opened(path).revisions():
            found.revision = revision
            if gone:
                live.pop(key, None)
            elif key:  # raising the revision leaves one that is empty, which etcd tells nobody
                wanted = (
                    key.startswith((b"/registry/minions/", b"/bootstrap/", ROOTS)) or key.split(b"/")[2:3] in _PLACES
                )
                live[key] = value if wanted else b""
    except struct.error as error:
        raise Broken(str(error)) from error
    found.keys = len(live)
    found.authority = authority(live.get(ROOTS, b""))
    versions: set[bytes] = set()
    for key, value in live.items():
        words = key.decode(errors="replace").split("/")[1:]
        if words[:1] == ["bootstrap"] and len(words) == 2:
            found.token_fingerprint = words[1]
        if words[:1] != ["registry"] or len(words) < 3:
            continue
        inner = _object(one(value, 5)) if value else b""
        if words[1] == "minions":
            versions |= set(VERSION.findall(one(inner, 3, 7, 7)))
            found.nodes.append(words[2])
        elif words[1] in KINDS:
            found.objects[KINDS[words[1]]]["/".join(words[2:])] = one(inner, 1, 5).decode(errors="replace")
        if words[1] == "persistentvolumeclaims":
            found.users += _users(one(inner, 1))
    found.version = newest(versions)
    found.users = sorted(set(found.users))
    return found


_PLACES = [[place.encode()] for place in KINDS]


def _users(metadata: bytes) -> list[str]:
    pairs = (value for number, value in fields(metadata) if number == 12 and isinstance(value, bytes))
    return [one(pair, 2).decode(errors="replace") for pair in pairs if one(pair, 1) == USER.encode()]


def compared(then: Contents, now: dict[str, dict[str, str]], users: list[str]) -> dict[str, list[str]]:
    """Return what a restore would do to the cluster: `vanish`, `reappear`, `replace` (deleted and made anew since).

    now: kind -> `namespace/name` -> uid, as the API tells. users: whose homes have a claim there.
    """
    found: dict[str, list[str]] = {"vanish": [], "reappear": [], "replace": []}
    for kind in KINDS.values():
        old, new = then.objects.get(kind, {}), now.get(kind, {})
        found["vanish"] += [f"{kind} {name}" for name in sorted(new.keys() - old.keys())]
        found["reappear"] += [f"{kind} {name}" for name in sorted(old.keys() - new.keys())]
        both = sorted(old.keys() & new.keys())
        found["replace"] += [f"{kind} {name}" for name in both if old[name] and new[name] and old[name] != new[name]]
    found["vanish"] += [f"home of {user}" for user in sorted(set(users) - set(then.users))]
    found["reappear"] += [f"home of {user}" for user in sorted(set(then.users) - set(users))]
    return found


def doomed(snapshots: list[tuple[str, float]], keep: int, days: float, now: float) -> list[str]:
    """Return the names to delete: older than `days`, but never one of the `keep` newest.

    snapshots: name and time of making. RKE2's own, made by its schedule, are its own to prune.
    """
    ours = sorted((made, name) for name, made in snapshots if not name.startswith(SCHEDULED))
    return [name for made, name in ours[: max(0, len(ours) - keep)] if now - made > days * 86400]


def seal(path: Path) -> None:
    """Make a snapshot of a database's file: its SHA-256 goes behind it, as etcd does it."""
    found = hashlib.sha256()
    with path.open("rb+") as file:
        while block := file.read(1 << 20):
            found.update(block)
        file.write(found.digest())
