"""Keeps the nodes as they are and brings them back: their disks, their root file systems, the site's secrets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import nodes
from build import CACHE, STATE, remove, run, say

SAVED = CACHE / "saved"
REPOSITORY = "metalhub-lab-saved"
# What belongs to the nodes' contents and lies outside of them: name in the save -> place.
FILES = {
    "vault.yml": STATE / "vault.yml",
    "vault_password": STATE / "vault_password",
    "kubeconfig": nodes.KUBECONFIG,
}


def checked(name: str) -> Path:
    """The directory of a save; a name that could not be one is refused."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,40}", name):
        sys.exit(f"lab: {name!r} cannot be the name of a save: use small letters, digits and - _ .")
    return SAVED / name


def image(name: str, machine: str) -> str:
    """The image that holds a node's root file system."""
    return f"{REPOSITORY}:{name}-{machine}"


def copy(source: Path, target: Path) -> None:
    """Copy a disk; holes stay holes."""
    run("cp", "--sparse=always", "--reflink=auto", source, target)


def stop(machines: list[str]) -> None:
    """Stop nodes as a shutdown would and take their disks off."""
    run("docker", "stop", "-t", "30", *machines)
    for name in machines:
        mount = STATE / "mnt" / name
        if os.path.ismount(mount):
            # What files once held need not be copied.
            run("fstrim", mount)
            run("umount", mount)


def save(name: str) -> None:
    """Save all nodes under a name, in place of what had it; they are stopped meanwhile and started again."""
    target, began = checked(name), time.monotonic()
    staging = target.with_name(f".{name}.new")
    remove(staging)
    staging.mkdir(parents=True, mode=0o700)
    machines = [machine.name for machine in nodes.site_machines()]
    say("stopping the nodes …")
    stop(machines)

    def keep(machine: str) -> None:
        copy(STATE / "disks" / f"{machine}.img", staging / f"{machine}.img")
        run("docker", "commit", "--pause=false", machine, image(name, machine))

    say("copying …")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(keep, machines))
    for short, path in FILES.items():
        if path.exists():
            nodes.private(staging / short, path.read_text())
    meta = {"machines": machines, "saved": datetime.now(UTC).isoformat(timespec="seconds")}
    (staging / "save.json").write_text(json.dumps(meta))
    remove(target)
    staging.rename(target)
    nodes.up(nodes.site_machines())
    say(f"saved {name} in {time.monotonic() - began:.0f} s")


def load(name: str) -> None:
    """Put the nodes of a save in place of those there are."""
    source, began = checked(name), time.monotonic()
    if not (source / "save.json").exists():
        sys.exit(f"lab: nothing is saved as {name}; there is: {', '.join(listed()) or 'nothing'}")
    machines = [machine.name for machine in nodes.site_machines()]
    meta = json.loads((source / "save.json").read_text())
    if meta["machines"] != machines:
        sys.exit(f"lab: {name} holds {', '.join(meta['machines'])}; the site has {', '.join(machines)}")
    nodes.end_connections(nodes.site_machines())

    def restore(machine: str) -> None:
        nodes.destroy(machine)
        (STATE / "disks").mkdir(exist_ok=True)
        staging = STATE / "disks" / f".{machine}.new"
        copy(source / f"{machine}.img", staging)
        staging.rename(STATE / "disks" / f"{machine}.img")

    say("copying …")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(restore, machines))
    for short, path in FILES.items():
        if (source / short).exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            nodes.private(path, (source / short).read_text())
    nodes.keys()
    nodes.up(nodes.site_machines(), images={machine: image(name, machine) for machine in machines})
    say(f"loaded {name} in {time.monotonic() - began:.0f} s")


def listed() -> dict[str, str]:
    """What is saved: name -> when, and how much space it takes."""
    found = {}
    for path in sorted(SAVED.glob("*/save.json")):
        meta = json.loads(path.read_text())
        size = sum(file.stat().st_blocks * 512 for file in path.parent.iterdir())
        found[path.parent.name] = f"{meta['saved']}, {size / (1 << 30):.1f} GiB, {len(meta['machines'])} nodes"
    return found


def forget(name: str) -> None:
    """Remove a save."""
    target = checked(name)
    if not (target / "save.json").exists():
        sys.exit(f"lab: nothing is saved as {name}; there is: {', '.join(listed()) or 'nothing'}")
    machines = json.loads((target / "save.json").read_text())["machines"]
    # By force, or nodes that were loaded from it and still run would keep the names.
    subprocess.run(["docker", "rmi", "-f", *(image(name, one) for one in machines)], capture_output=True, check=False)
    remove(target)
