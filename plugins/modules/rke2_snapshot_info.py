#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Tells which snapshots of etcd lie on a machine, whether they are whole, and what they hold."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rke2_snapshot_info
short_description: The snapshots of etcd on a machine, whole or not, and what they hold
description:
  - Lists the snapshots in a server's directory, which works with etcd and the API down.
  - Those named in O(read) are read whole, compared with the checksum that etcd wrote into them, and searched for the
    release, the token and the objects that they are of.
  - Reads only; it is safe in check mode.
version_added: 0.1.0
author: The metalhub maintainers
options:
  data_dir:
    description: RKE2's data directory.
    type: path
    default: /var/lib/rancher/rke2
  directory:
    description: Where snapshots lie; RKE2's own place below O(data_dir) when empty.
    type: str
    default: ''
  read:
    description: Names of snapshots, or paths of files anywhere, to read whole. C(*) is every snapshot.
    type: list
    elements: str
    default: []
  compare:
    description: Compare those of O(read) with the cluster that this server serves.
    type: bool
    default: false
  etcd_version:
    description: Release of etcd whose tool RV(etcdutl) names if it is there; else it is that of the newest release.
    type: str
    default: ''
  token:
    description: The server token, whose fingerprint is returned.
    type: str
    default: ''
  keep:
    description: How many of the newest on-demand snapshots RV(doomed) spares.
    type: int
    default: 0
  days:
    description: The age in days beyond which an on-demand snapshot is RV(doomed); negative for none.
    type: float
    default: -1
  mark:
    description: File that an unfinished restore has left.
    type: path
    default: /var/lib/metalhub/restore.json
"""

EXAMPLES = r"""
- name: List the snapshots
  metalhub.platform.rke2_snapshot_info:
    read: ["*"]
  register: __rke2_snapshots
"""

RETURN = r"""
snapshots:
  description:
    - The snapshots, the newest first, with name, path, size, created (seconds since the epoch) and version.
    - Of those read also whole, error, sha256, token_fingerprint, authority, revision, keys, nodes, users, and objects
      by number.
  returned: always
  type: list
  elements: dict
comparison:
  description: What would vanish, reappear or be replaced (vanish, reappear, replace); empty where nothing serves.
  returned: always
  type: dict
serving:
  description: Whether this server's API says that it is ready.
  returned: always
  type: bool
token_fingerprint:
  description: Fingerprint of O(token).
  returned: always
  type: str
authority:
  description: >-
    Digest of the certificate that this server's cluster is known by, to be compared with a snapshot's; empty before its
    first start.
  returned: always
  type: str
etcdutl:
  description: Path of etcd's tool on this machine; empty where there is none.
  returned: always
  type: str
doomed:
  description: Names of the on-demand snapshots that O(keep) and O(days) leave over.
  returned: always
  type: list
  elements: str
mark:
  description: What an unfinished restore has noted; empty where there is none.
  returned: always
  type: dict
"""

import glob
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# Relative, so that the same line works in the collection, in the module that Ansible packs, and in the unit tests.
from ..module_utils import etcd_snapshot

ETCDUTL = "/var/lib/metalhub/etcd/*/etcdutl"  # by release; laid down by a deploy
KUBECONFIG = "/etc/rancher/rke2/rke2.yaml"
KINDS = "namespaces,persistentvolumes,persistentvolumeclaims,secrets"
USER = r"{.metadata.annotations.hub\.jupyter\.org/username}"
TEMPLATE = (
    '{range .items[*]}{.kind}{"\\t"}{.metadata.namespace}{"\\t"}{.metadata.name}{"\\t"}{.metadata.uid}{"\\t"}'
    + USER
    + '{"\\n"}{end}'
)


def kubectl(data_dir: str, *words: str) -> str:
    """Return what kubectl answers on this server; empty when it fails or is not there."""
    command = [f"{data_dir}/bin/kubectl", "--kubeconfig", KUBECONFIG, "--request-timeout=20s", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=40, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def made(path: Path) -> int:
    """Return when a snapshot was made: by its name, for a copy has a newer time."""
    found = re.search(r"-(\d{9,11})(\.\w+)?$", path.name)
    return int(found.group(1)) if found else int(path.stat().st_mtime)


def tools(version: str) -> list[str]:
    """Return the tools that deploys have laid down: that of a release first, the others from the newest on."""

    def rank(path: str) -> tuple[bool, list[int]]:
        release = Path(path).parent.name
        return release == version, [int(part) for part in re.findall(r"\d+", release)]

    return sorted(glob.glob(ETCDUTL), key=rank, reverse=True)


def about(path: Path) -> dict[str, Any]:
    """Return what is quick to know of one snapshot."""
    try:
        version = etcd_snapshot.release(path)
    except etcd_snapshot.Broken:
        version = ""
    return {
        "name": path.name,
        "path": str(path),
        "size": path.stat().st_size,
        "created": made(path),
        "version": version,
    }


def read(path: Path) -> dict[str, Any]:
    """Return all there is to know of one snapshot."""
    found = {"name": path.name, "path": str(path), "size": path.stat().st_size, "created": made(path), "version": ""}
    try:
        found["sha256"] = etcd_snapshot.whole(path)
        found |= vars(etcd_snapshot.contents(path))
    except etcd_snapshot.Broken as broken:
        return found | {"whole": False, "error": str(broken)}
    return found | {"whole": True, "error": ""}


def compare(data_dir: str, one: dict[str, Any]) -> dict[str, list[str]]:
    """Return what restoring a snapshot would do to the cluster that is served here."""
    now: dict[str, dict[str, str]] = {}
    users = []
    for line in kubectl(data_dir, "get", KINDS, "-A", "-o", f"jsonpath={TEMPLATE}").splitlines():
        kind, namespace, name, uid, user = line.split("\t")
        now.setdefault(kind, {})[f"{namespace}/{name}" if namespace else name] = uid
        users += [user] if user else []
    then = etcd_snapshot.Contents(objects=one["objects"], users=one["users"])
    return etcd_snapshot.compared(then, now, users)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "data_dir": {"type": "path", "default": "/var/lib/rancher/rke2"},
            "directory": {"type": "str", "default": ""},
            "read": {"type": "list", "elements": "str", "default": []},
            "compare": {"type": "bool", "default": False},
            "etcd_version": {"type": "str", "default": ""},
            "token": {"type": "str", "default": "", "no_log": True},
            "keep": {"type": "int", "default": 0, "no_log": False},
            "days": {"type": "float", "default": -1},
            "mark": {"type": "path", "default": "/var/lib/metalhub/restore.json"},
        },
        supports_check_mode=True,
    )
    asked, data_dir = module.params, module.params["data_dir"]
    directory = Path(asked["directory"] or f"{data_dir}/server/db/snapshots")
    paths = [path for path in directory.glob("[!.]*") if path.is_file()] if directory.is_dir() else []
    paths += [Path(name) for name in asked["read"] if name.startswith("/") and Path(name).is_file()]
    wanted = {path for path in paths if "*" in asked["read"] or {path.name, str(path)} & set(asked["read"])}
    found = [read(path) if path in wanted else about(path) for path in paths]
    found.sort(key=lambda one: (-one["created"], one["name"]))
    serving = kubectl(data_dir, "get", "--raw=/readyz") == "ok"
    whole = [one for one in found if one.get("whole")]
    comparison = compare(data_dir, whole[0]) if asked["compare"] and serving and whole else {}
    for one in whole:  # names stay here: a site has thousands
        one["objects"] = {kind: len(names) for kind, names in one["objects"].items()}
    listed = [(one["name"], one["created"]) for one in found]
    own = [*tools(asked["etcd_version"]), f"{data_dir}/bin/etcdutl"]
    mark, known_by = Path(asked["mark"]), Path(data_dir) / "server/tls/server-ca.crt"
    module.exit_json(
        changed=False,
        snapshots=found,
        comparison=comparison,
        serving=serving,
        token_fingerprint=etcd_snapshot.fingerprint(asked["token"]) if asked["token"] else "",
        authority=etcd_snapshot.authority(known_by.read_bytes()) if known_by.exists() else "",
        etcdutl=next((path for path in own if os.access(path, os.X_OK)), shutil.which("etcdutl") or ""),
        doomed=etcd_snapshot.doomed(listed, asked["keep"], asked["days"], time.time()) if asked["days"] >= 0 else [],
        mark=json.loads(mark.read_text()) if mark.exists() else {},
    )


if __name__ == "__main__":
    main()
