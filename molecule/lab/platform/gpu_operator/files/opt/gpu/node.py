"""Lab stand-in for what NVIDIA's operator runs on a worker; there is no GPU, only what kubelet and labels say of some.

`plugins` offers what the node's state file says, by one device plugin a resource, and whole GPUs while there is none.
`mig-manager` does as NVIDIA's when the node's label names another layout: pending, the plugins told, success or failed.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# On the node's /run, so that a node that starts anew has whole GPUs until its manager has seen to it.
STATE = Path("/run/lab-gpu/resources.json")
LAYOUTS = Path("/layouts/config.yaml")
SHARED = Path("/shared")
LABEL = "nvidia.com/mig.config"
GPUS = int(os.environ.get("GPUS", "8"))
WHOLE = {"nvidia.com/gpu": GPUS}


def cut(entries: list[dict[str, Any]]) -> dict[str, int]:
    """What a node offers under a layout."""
    found = dict(WHOLE)
    for entry in entries:
        devices = range(GPUS) if entry["devices"] == "all" else entry["devices"]
        if max(devices) >= GPUS:
            raise ValueError(f"no device {max(devices)}")
        for profile, count in entry.get("mig-devices", {}).items() if entry["mig-enabled"] else ():
            name = f"nvidia.com/mig-{profile.replace('+', '.')}"
            found[name] = found.get(name, 0) + count * len(devices)
        found["nvidia.com/gpu"] -= len(devices) if entry["mig-enabled"] else 0
    return found


def share(resources: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, int]:
    """The same resources when some are shared."""
    found = dict(resources)
    if config.get("flags", {}).get("migStrategy") != "mixed":  # slices are not found then
        found = {name: count for name, count in found.items() if "/mig-" not in name}
    sharing = config.get("sharing", {}).get("timeSlicing", {})
    for one in sharing.get("resources", ()):
        count = found.pop(one["name"], 0)
        found[one["name"] + (".shared" if sharing.get("renameByDefault") else "")] = count * one["replicas"]
    return found


def plugins() -> None:
    """Run a device plugin for each resource, for ever; where one ends its devices are gone."""
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    while True:
        config = SHARED / os.environ.get("DEFAULT_CONFIG", "")
        resources = json.loads(STATE.read_text()) if STATE.exists() else WHOLE
        if config.is_file():
            resources = share(resources, yaml.safe_load(config.read_text()))
        wanted = {(name, count) for name, count in resources.items() if count}
        gone = running.keys() - wanted
        for one in gone:
            running[one].terminate()
            running.pop(one).wait()
        # The kubelet has to see the end of a resource's plugin before its next one comes.
        time.sleep(1 if gone else 0)
        for name, count in wanted - running.keys():
            running[name, count] = subprocess.Popen(["device-plugin", f"-resource={name}", f"-count={count}"])
        if any(child.poll() is not None for child in running.values()):
            sys.exit("a device plugin has ended")
        time.sleep(1)


def node(patch: object = None) -> Mapping[str, str]:
    """The labels of this node, after a change to them if there is one."""
    where = (os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ["KUBERNETES_SERVICE_PORT"]))
    context = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")
    connection = http.client.HTTPSConnection(*where, timeout=10, context=context)
    headers = {
        "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
        "Content-Type": "application/merge-patch+json",
    }
    body = None if patch is None else json.dumps({"metadata": {"labels": patch}})
    path = f"/api/v1/nodes/{os.environ['NODE_NAME']}"
    connection.request("GET" if body is None else "PATCH", path, body, headers)
    answer = connection.getresponse()
    if answer.status >= http.client.BAD_REQUEST:
        raise OSError(f"{path}: {answer.status} {answer.read(200)!r}")
    return dict(json.load(answer)["metadata"].get("labels", {}))


def manage() -> None:
    """Follow the node's label, for ever. What it was when the layouts were mounted is done anew, as NVIDIA's does."""
    done = ""
    while True:
        try:
            labels = node()
            wanted = labels.get(LABEL, "")
            if wanted and wanted != done:
                node({f"{LABEL}.state": "pending"})
                layouts = yaml.safe_load(LAYOUTS.read_text())["mig-configs"] if LAYOUTS.exists() else {}
                try:
                    resources = WHOLE if wanted == "all-disabled" else cut(layouts[wanted])
                    fresh = STATE.with_suffix(".new")
                    fresh.write_text(json.dumps(resources))
                    fresh.rename(STATE)
                    state = "success"
                except (KeyError, ValueError) as error:
                    print(f"layout {wanted}: {error!r}", flush=True)
                    state = "failed"
                node({f"{LABEL}.state": state})
                done = wanted
        except (OSError, http.client.HTTPException) as error:
            print(error, flush=True)
        time.sleep(1)


if __name__ == "__main__":
    {"plugins": plugins, "mig-manager": manage}[sys.argv[1]]()
