"""The files of an inventory with their lines: who says what where, and what no file may look like."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from .site_findings import Finding, nearest

ENCRYPTED = "$ANSIBLE_VAULT;"
SUFFIXES = {".yml", ".yaml", ".json", ""}
GROUP_KEYS = ("children", "hosts", "vars")
# The groups of every site; what is missing of them is refused as such and not as a stray file of variables.
GROUPS = ("rke2", "rke2_server", "rke2_agent", "platform")


@dataclass(frozen=True)
class Entry:
    """One variable that a file sets.

    name: with the keys inside it joined by dots, as in site_proxy.http; a list's parts are counted from 0.
    scope: the group or host that it is set for.
    where: file and line.
    path: the file.
    text: the scalar as written, or None for a list or mapping.
    encrypted: whether the value is an ansible-vault scalar.
    """

    name: str
    scope: str
    where: str
    path: Path
    text: str | None
    encrypted: bool


@dataclass
class Inventory:
    """What the files of an inventory say, before any template is filled in.

    root: what paths are told relative to.
    directory: where group_vars and host_vars lie.
    entries: every variable that a readable file sets.
    vault: whether there is a file for the secrets.
    hosts: name of a host as written -> where it is listed first.
    groups: name of a group -> where it is listed first.
    problems: what is wrong with the files themselves.
    """

    root: Path
    directory: Path
    vault: bool = False
    entries: list[Entry] = field(default_factory=list)
    hosts: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)

    def where(self, name: str) -> str:
        """Return where the variable, host or group `name` stands, or else where a variable of that name belongs."""
        places = {**self.groups, **self.hosts, **{entry.name: entry.where for entry in reversed(self.entries)}}
        while name:
            if name in places:
                return places[name]
            name = name.rpartition(".")[0]
        return self.file_of_all("site")

    def where_of_host(self, host: str, names: tuple[str, ...]) -> str:
        """Return where the first of `names` is set for a host, or where the host itself stands."""
        places = {entry.name: entry.where for entry in self.entries if entry.scope == host}
        return next((places[name] for name in names if name in places), self.where(host))

    def file_of_all(self, word: str) -> str:
        """Return where the file `word` of the variables for all hosts is, or would be."""
        return self.shown(self.directory / f"group_vars/all/{word}.yml")

    def refuse(self, key: str, what: str, where: str, seen: str, fix: str) -> None:
        """Add a problem."""
        self.problems.append(Finding(key, what, where, seen, fix))

    def shown(self, path: Path) -> str:
        """Return `path` as typed in the root when it lies below, else as it is."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def top(self) -> Iterator[Entry]:
        """Yield the entries that are variables themselves and not keys inside one."""
        return (entry for entry in self.entries if "." not in entry.name)


def read_inventory(sources: list[str], root: Path) -> Inventory:
    """Return what the files behind Ansible's `-i` say; a source that is no path (`host,`) says nothing.

    root: the project; places below it are told without it.

    Errors become problems of the inventory: nothing is raised for a file that cannot be read.
    """
    paths = [Path(source) for source in sources if "," not in source]
    inventory = Inventory(root, next((p if p.is_dir() else p.parent for p in paths), Path.cwd()))
    inventory.vault = (inventory.directory / "group_vars/all/vault.yml").exists()
    for path in paths:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and file.suffix in SUFFIXES - {""}:
                _read_hosts(inventory, file)
    for directory in {p if p.is_dir() else p.parent for p in paths}:
        _read_variables(inventory, directory / "group_vars", {*inventory.groups, *GROUPS, "all", "ungrouped"}, "group")
        _read_variables(inventory, directory / "host_vars", {*inventory.hosts, "localhost"}, "host")
    return inventory


def _compose(inventory: Inventory, path: Path) -> yaml.MappingNode | None:
    """Return the mapping a file holds, or None; what is wrong with the file becomes a problem."""
    name, where, lines = path.name, inventory.shown(path), [""]
    try:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines() or lines
        node = None if text.startswith(ENCRYPTED) else yaml.compose(text, yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        line = getattr(error.problem_mark or error.context_mark, "line", 0)
        fix = "write valid YAML there; quote a value that holds ': ', ' #', '{' or '%'"
        what = f"is no valid YAML: {error.problem or error.context}"
        inventory.refuse(name, what, f"{where}:{line + 1}", (lines[line:] or ["end of the file"])[0].strip(), fix)
        return None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        inventory.refuse(name, "cannot be read", where, str(error), "make it a readable text file in UTF-8")
        return None
    if node is not None and not isinstance(node, yaml.MappingNode):
        seen, fix = lines[_line(node) - 1].strip(), "write `name: value` lines"
        inventory.refuse(name, "holds no variables", f"{where}:{_line(node)}", seen, fix)
        return None
    if node is not None:
        _find_duplicates(inventory, path, node)
    return node


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _find_duplicates(inventory: Inventory, path: Path, node: yaml.Node) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _find_duplicates(inventory, path, item)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in lines:
                where = f"{inventory.shown(path)}:{_line(key)}"
                seen = f"first in line {lines[name]}"
                inventory.refuse(name, "is written twice", where, seen, "remove one of the two")
            lines.setdefault(name, _line(key))
            _find_duplicates(inventory, path, value)


def _pairs(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def _add(inventory: Inventory, path: Path, node: yaml.Node, scope: str, prefix: str = "") -> None:
    for key, value in _pairs(node):
        name = f"{prefix}{key.value}"
        text = str(value.value) if isinstance(value, yaml.ScalarNode) else None
        where = f"{inventory.shown(path)}:{_line(key)}"
        inventory.entries.append(Entry(name, scope, where, path, text, value.tag == "!vault"))
        _add(inventory, path, value, scope, f"{name}.")
        for number, item in enumerate(value.value if isinstance(value, yaml.SequenceNode) else ()):
            _add(inventory, path, item, scope, f"{name}.{number}.")


def _read_hosts(inventory: Inventory, path: Path) -> None:
    """Add the groups, hosts and variables of a YAML inventory file."""
    node = _compose(inventory, path)
    for key, value in _pairs(node) if node else []:
        _read_group(inventory, path, str(key.value), key, value)


def _read_group(inventory: Inventory, path: Path, group: str, at: yaml.Node, node: yaml.Node) -> None:
    inventory.groups.setdefault(group, f"{inventory.shown(path)}:{_line(at)}")
    for key, value in _pairs(node):
        where = f"{inventory.shown(path)}:{_line(key)}"
        if key.value == "vars":
            _add(inventory, path, value, group)
        elif key.value == "children":
            for child, inner in _pairs(value):
                _read_group(inventory, path, str(child.value), child, inner)
        elif key.value == "hosts":
            for host, variables in _pairs(value):
                inventory.hosts.setdefault(str(host.value), f"{inventory.shown(path)}:{_line(host)}")
                _add(inventory, path, variables, str(host.value))
        else:
            like = nearest(str(key.value), GROUP_KEYS)
            fix = f"write {like}" if like else f"put it below one of {', '.join(GROUP_KEYS)}"
            inventory.refuse(f"{group}.{key.value}", "is nothing that a group can have", where, str(key.value), fix)


def _read_variables(inventory: Inventory, directory: Path, known: set[str], kind: str) -> None:
    """Add the variables below group_vars or host_vars; a name there that is in no inventory is a problem."""
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name.endswith("~"):
            continue
        scope = path.name if path.is_dir() else path.stem
        if scope not in known and "[" not in "".join(known):
            like = nearest(scope, known)
            fix = f"rename it to {path.with_name(like + path.suffix).name}" if like else f"remove it, or add the {kind}"
            what = f"is no {kind} of the inventory, so nothing reads this"
            inventory.refuse(scope, what, inventory.shown(path), path.name, fix)
        for file in sorted(_files(path)):
            node = _compose(inventory, file)
            if node:
                _add(inventory, file, node, scope)


def _files(path: Path) -> Iterator[Path]:
    """Yield the files that Ansible reads at `path`, and no other."""
    if path.is_file():
        if path.suffix in SUFFIXES:
            yield path
        return
    for base, directories, names in os.walk(path):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in names:
            if Path(name).suffix in SUFFIXES and not name.startswith(".") and not name.endswith("~"):
                yield Path(base) / name
