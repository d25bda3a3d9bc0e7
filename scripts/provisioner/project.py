"""Where things are: the checkout, its sites, and what this control machine remembers of each."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from provisioner.errors import ExitCode, ProvisionError, command, nearest


def _versions(path: Path) -> dict[str, str]:
    """Return the versions that stand in a file of variables as literals, one a line."""
    if not path.is_file():
        return {}
    lines = re.findall(r"^((?:\w+_)?version): *(\S+)", path.read_text(encoding="utf-8"), re.M)
    return {name: str(yaml.safe_load(value)) for name, value in lines}


@dataclass(frozen=True)
class Site:
    """One site: its inventory in the checkout and its private state directory on this machine."""

    name: str
    inventory: Path
    state: Path

    @property
    def journal(self) -> Path:
        """Return the directory with one file of JSON lines per run."""
        return self.state / "journal"

    @property
    def hooks(self) -> Path:
        """Return the directory of the site's own playbooks that come before and after stages."""
        return self.inventory / "hooks"

    @property
    def runs(self) -> Path:
        """Return the directory that holds what a run needs while it lasts."""
        return self.state / "run"


@dataclass(frozen=True)
class Project:
    """A checkout (or an installed collection): the directory that holds ansible.cfg."""

    root: Path

    @property
    def order(self) -> Path:
        """Return the playbook in which the order of the platform is written."""
        return self.root / "playbooks" / "site.yml"

    def versions(self, site: Site) -> dict[str, str]:
        """Return what a site's files say is to be there: the platform's version, and that of all that it installs."""
        found: dict[str, str] = {}
        for path in (self.root / "galaxy.yml", *sorted(self.root.glob("roles/*/defaults/main.yml"))):
            if path.is_file():
                found |= _versions(path)
        return found | _versions(site.inventory / "group_vars" / "all" / "versions.yml")

    def sites(self) -> tuple[str, ...]:
        """Return the names of all sites, sorted."""
        return tuple(sorted(path.name for path in (self.root / "inventories").glob("*") if path.is_dir()))

    def site(self, name: str) -> Site:
        """Return the site `name`, its state directory made (0700); an unknown one is refused with the nearest known."""
        known = self.sites()
        if name not in known:
            raise ProvisionError(
                f"There is no site {name!r} in {self.root / 'inventories'}.{nearest(name, known)}",
                f"Sites: {', '.join(known) or 'none'}. {command('status', '--site', next(iter(known), 'NAME'))}",
            )
        return self.draft(name, self.root / "inventories" / name)

    def draft(self, name: str, inventory: Path) -> Site:
        """Return a site whose files are elsewhere, or are to become a site; its state directory is made (0700)."""
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        site = Site(name, inventory, base / "metalhub" / name)
        try:
            site.state.parent.mkdir(parents=True, exist_ok=True)
            for directory in (site.state, site.journal):
                directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ProvisionError(
                f"The state directory {site.journal} cannot be made: {error.strerror}.",
                f"Let XDG_STATE_HOME name a directory you may write to, then: {command('status', '--site', name)}",
                ExitCode.SETUP,
            ) from error
        return site


def find() -> Project:
    """Return the checkout this package lies in, or the one that METALHUB_ROOT names."""
    chosen = os.environ.get("METALHUB_ROOT")
    start = Path(chosen).resolve() if chosen else Path(__file__).resolve().parent
    for directory in (start, *start.parents):
        if (directory / "ansible.cfg").is_file():
            return Project(directory)
    raise ProvisionError(
        f"No ansible.cfg in {start} or above it: this is no checkout of the platform.",
        "Run the driver from a checkout, or let METALHUB_ROOT name one: METALHUB_ROOT=… " + command("stages"),
        ExitCode.SETUP,
    )
