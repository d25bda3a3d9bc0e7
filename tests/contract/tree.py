"""The repository as data: files, tasks with their lines, stages, roles, and what a piece of YAML refers to."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

IMPORTS = {f"ansible.builtin.import_{what}" for what in ("role", "tasks", "playbook")}
# Keywords whose value Ansible reads as an expression although no braces stand around it.
CONDITIONS = {"when", "changed_when", "failed_when", "until", "that", "break_when"}
_EXPRESSION = re.compile(r"\{\{(.*?)\}\}|\{%(.*?)%\}", re.S)
_STRING = re.compile(r"'[^']*'|\"[^\"]*\"")
_LOOKUP = re.compile(r"\b(lookup|query|q)\(|\b(vars|hostvars)\b")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Mapping(dict[str, Any]):
    """A YAML mapping that knows the line it starts in and the line of each of its keys."""

    line: int = 0
    lines: dict[str, int]


class _Loader(yaml.CSafeLoader):
    """SafeLoader that keeps lines and takes tags of Ansible (!vault, !unsafe) for plain values."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Iterator[Mapping]:
    result = Mapping()
    result.line = node.start_mark.line + 1
    result.lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    yield result
    result.update({str(key): value for key, value in loader.construct_mapping(node).items()})


def _plain(loader: _Loader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_multi_constructor("!", _plain)


@functools.cache
def load(path: Path) -> Any:
    """Return what the YAML file `path` holds (None when empty), its mappings being `Mapping`."""
    with path.open(encoding="utf-8") as stream:
        return yaml.load(stream, _Loader)  # noqa: S506  (derived from CSafeLoader)


def relative(path: Path) -> str:
    """Return `path` as a person types it in the repository's root."""
    return str(path.relative_to(ROOT))


def refuse(problems: list[str], fix: str) -> None:
    """Fail with every problem on a line of its own and the one way to mend them."""
    if problems:
        pytest.fail("\n  ".join([f"{len(problems)} to mend; {fix}", *sorted(problems)]), pytrace=False)


def tracked(*patterns: str) -> list[Path]:
    """Return the files git would commit (tracked, or new and not ignored) that match the git path patterns."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in sorted(set(listed)) if name and (ROOT / name).is_file()]


def roles() -> list[Path]:
    """Return the directory of every role."""
    found = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
    assert found, "roles/ is empty: nothing was checked"
    return found


@dataclass(frozen=True)
class Task:
    """One task: where it stands, the module it calls, and what its blocks hand down to it."""

    path: Path
    data: Mapping
    no_log: bool
    tags: frozenset[str]

    @property
    def where(self) -> str:
        """Return file and line."""
        return f"{relative(self.path)}:{self.data.line}"

    @property
    def module(self) -> str:
        """Return the full name of the module, or an empty string for what is no module call."""
        return next((key for key in self.data if key.count(".") >= 2 and " " not in key), "")

    @property
    def args(self) -> Any:
        """Return the module's arguments as written."""
        return self.data.get(self.module)


def _tags(data: Mapping) -> set[str]:
    tags = data.get("tags") or []
    return {tags} if isinstance(tags, str) else set(tags)


def _walk(path: Path, items: Any, no_log: bool = False, tags: frozenset[str] = frozenset()) -> Iterator[Task]:
    for data in items or []:
        assert isinstance(data, Mapping), f"{relative(path)}: a list of tasks holds something that is no task: {data!r}"
        hidden = bool(data.get("no_log", no_log))
        tagged = tags | _tags(data)
        if "block" in data:
            for part in ("block", "rescue", "always"):
                yield from _walk(path, data.get(part), hidden, tagged)
        else:
            yield Task(path, data, hidden, tagged)


def plays() -> Iterator[tuple[Path, Mapping]]:
    """Yield every play of every playbook; an entry that imports a playbook counts as one."""
    for path in tracked("playbooks/*.yml"):
        for play in load(path) or []:
            yield path, play


def role_tasks(role: Path) -> list[Task]:
    """Return every task and handler of a role, those inside blocks included."""
    files = sorted([*role.glob("tasks/**/*.yml"), *role.glob("handlers/**/*.yml")])
    return [task for path in files for task in _walk(path, load(path))]


def file_tasks(path: Path) -> list[Task]:
    """Return every task of one file of tasks, those inside blocks included."""
    return list(_walk(path, load(path)))


def tasks() -> list[Task]:
    """Return every task and handler of every role and playbook."""
    found = [task for role in roles() for task in role_tasks(role)]
    for path, play in plays():
        for section in ("pre_tasks", "tasks", "post_tasks", "handlers"):
            found.extend(_walk(path, play.get(section), bool(play.get("no_log", False)), frozenset(_tags(play))))
    assert found, "no task was found in roles/ and playbooks/: nothing was checked"
    return found


def names(value: Any, *, expression: bool = False, literals: bool = False) -> set[str]:
    """Return the names that the templates in `value` refer to.

    value: anything YAML gives; keys that hold bare expressions (`when`, `that`, …) are read as such.
    expression: read strings as expressions although no braces stand around them.
    literals: count what stands in quotes too where an expression looks variables up, as in lookup('vars', 'name').
    """
    if isinstance(value, dict):
        found: set[str] = set()
        for key, inner in value.items():
            found |= names(key, literals=literals)
            found |= names(inner, expression=expression or key in CONDITIONS, literals=literals)
        return found
    if isinstance(value, list):
        return {name for inner in value for name in names(inner, expression=expression, literals=literals)}
    if not isinstance(value, str):
        return set()
    pieces = [value] if expression else ["".join(part or "" for part in match) for match in _EXPRESSION.findall(value)]
    found = set()
    for piece in pieces:
        found.update(_NAME.findall(piece if literals and _LOOKUP.search(piece) else _STRING.sub(" ", piece)))
    return found


def stages() -> dict[str, Path]:
    """Return the stages in the order of site.yml: word -> stage file."""
    found = {}
    for entry in load(ROOT / "playbooks/site.yml"):
        target = entry.get("ansible.builtin.import_playbook", "")
        match = re.fullmatch(r"stages/([a-z0-9_]+)\.yml", target)
        assert match, f"playbooks/site.yml:{entry.line}: an entry imports {target!r}; each imports stages/<word>.yml"
        found[match[1]] = ROOT / "playbooks" / target
    assert found, "playbooks/site.yml names no stage: nothing was checked"
    return found


def stage_roles(path: Path) -> list[tuple[str, str]]:
    """Return (role, entry point) of every role that the plays of a stage file import."""
    found = []
    for play in load(path):
        for section in ("pre_tasks", "tasks", "post_tasks"):
            for task in _walk(path, play.get(section)):
                if task.module.endswith(".import_role"):
                    found.append((str(task.args["name"]), str(task.args.get("tasks_from", "main"))))
    return found


def defaults(role: Path) -> Mapping:
    """Return the role's defaults; an empty mapping when it has none."""
    path = role / "defaults/main.yml"
    return (load(path) if path.exists() else None) or Mapping()


def variables(role: Path) -> Mapping:
    """Return the role's vars/main.yml; an empty mapping when it has none."""
    path = role / "vars/main.yml"
    return (load(path) if path.exists() else None) or Mapping()


def specs(role: Path) -> dict[str, Mapping]:
    """Return the role's argument specs: entry point -> spec; empty when the file is missing."""
    path = role / "meta/argument_specs.yml"
    return load(path)["argument_specs"] if path.exists() else {}


def options(role: Path) -> dict[str, Mapping]:
    """Return every option of every entry point of a role: name -> spec."""
    return {name: option for spec in specs(role).values() for name, option in (spec.get("options") or {}).items()}


def words(text: str) -> list[str]:
    """Return the words of a line; an underscore separates two, as in a variable's name."""
    return re.findall(r"[A-Za-z]+", text)
