"""What Ansible says of a site's hosts; asked only when an answer is needed, for it costs a second."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from provisioner.errors import ExitCode, ProvisionError, command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.project import Project, Site


@dataclass(frozen=True)
class Inventory:
    """Hosts in inventory order, the hosts of every group (its children's included), and the hosts' variables."""

    hosts: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    variables: Mapping[str, Mapping[str, Any]]


def program(name: str) -> str:
    """Return the absolute path of one of Ansible's programs, the one beside this interpreter first."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise ProvisionError(
            f"{name} is neither beside {sys.executable} nor in PATH.", "Run: make setup", ExitCode.SETUP
        )
    return found


def _members(name: str, groups: Mapping[str, Any]) -> tuple[str, ...]:
    group = groups.get(name, {})
    inner = [host for child in group.get("children", ()) for host in _members(child, groups)]
    return tuple(dict.fromkeys([*group.get("hosts", ()), *inner]))


PROTECTED = "site_protected"  # the one parameter that the driver obeys, not a role


def protected(site: Site) -> bool:
    """Return whether a site wants its name typed before it is changed."""
    values = site.inventory / "group_vars"
    for path in [*values.glob("all.y*ml"), *values.glob("all/**/*.y*ml")]:
        text = path.read_text(encoding="utf-8", errors="replace")
        found = {} if text.startswith("$ANSIBLE_VAULT") else yaml.load(text, Loader=yaml.CBaseLoader)  # noqa: S506
        said = str(found.get(PROTECTED, "")).lower() if isinstance(found, dict) else ""
        if said not in ("", "no", "false", "off"):
            return True
    return False


def check_files(site: Site) -> None:
    """Refuse a site with files that are no YAML, by file, line and column: Ansible's own words name no file."""
    faults = []
    for path in sorted([*site.inventory.rglob("*.yml"), *site.inventory.rglob("*.yaml")]):
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.startswith("$ANSIBLE_VAULT"):
            continue
        try:
            for _ in yaml.parse(text, Loader=yaml.CSafeLoader):
                pass
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
            faults.append(f"{where}: {error.problem}")
        except yaml.YAMLError as error:
            faults.append(f"{path}: {error}")
    if faults:
        raise ProvisionError(
            "What describes the site is no valid YAML:\n" + "\n".join(faults),
            "Mend these lines (quote a value that holds ': ', ' #', '{' or '%'), then: "
            + command("check", "--site", site.name),
            ExitCode.SETUP,
        )


def read(project: Project, site: Site) -> Inventory:
    """Return the site's inventory as `ansible-inventory --list` gives it."""
    call = [program("ansible-inventory"), "-i", str(site.inventory), "--list"]
    done = subprocess.run(call, cwd=project.root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProvisionError(
            f"The inventory {site.inventory} cannot be read:\n{done.stderr.strip()}",
            f"Mend it, then: {command('check', '--site', site.name)}",
            ExitCode.SETUP,
        )
    answer = json.loads(done.stdout)
    variables = answer.pop("_meta").get("hostvars", {})
    groups = {name: _members(name, answer) for name in answer}
    return Inventory(tuple(dict.fromkeys(groups.get("all", ()))), groups, variables)
