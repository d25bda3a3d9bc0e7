"""Lab stand-in for what NVIDIA's operator runs on a worker; there is no GPU, only what kubelet and labels say of some.

`plugins` offers what the node's state file says, by one device plugin a resource, and whole GPUs while there is none.
`mig-manager` does as NVIDIA's when the node's label names another layout: pending, the plugins told, success or failed.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# On the node's /run, so that a node that starts anew has whole GPUs until its manager has seen to it.
STATE = Path("/run/lab-gpu/resources.json")
# What the chart's values hand to one or the other.
CONFIG = Path("/config")
LAYOUTS = CONFIG / "config.yaml"
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
    """Run a device plugin for each resource, for ever; one that ends, as each does with its kubelet, is run again."""
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    while True:
        config = CONFIG / os.environ.get("DEFAULT_CONFIG", "")
        resources = json.loads(STATE.read_text()) if STATE.exists() else WHOLE
        if config.is_file():
            resources = share(resources, yaml.safe_load(config.read_text()))
        wanted = {(name, count) for name, count in resources.items() if count}
        gone = (running.keys() - wanted) | {one for one, child in running.items() if child.poll() is not None}
        for one in gone:
            running[one].terminate()
            running.pop(one).wait()
        # The kubelet has to see the end of a resource's plugin before its next one comes.
        time.sleep(1 if gone else 0)
        for name, count in wanted - running.keys():
            running[name, count] = subprocess.Popen(["lab-plugin", "gpu", f"-resource={name}", f"-count={count}"])
        time.sleep(1)


def node(patch: object = None) -> Mapping[str, str]:
    """The labels of this node, after a change to them if there is one."""
    address = f"{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    request = Request(
        f"https://{address}/api/v1/nodes/{os.environ['NODE_NAME']}",
        None if patch is None else json.dumps({"metadata": {"labels": patch}}).encode(),
        {
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
            "Content-Type": "application/merge-patch+json",
        },
        method="GET" if patch is None else "PATCH",
    )
    with urlopen(request, timeout=10, context=ssl.create_default_context(cafile=ACCOUNT / "ca.crt")) as answer:  # noqa: S310
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
        except (OSError, HTTPException) as error:
            print(error, flush=True)
        time.sleep(1)


if __name__ == "__main__":
    # The first process of a container ends by no signal that it does not ask for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    {"plugins": plugins, "mig-manager": manage}[sys.argv[1]]()
