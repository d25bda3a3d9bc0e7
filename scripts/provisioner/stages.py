"""The stages of the platform, read from the one place where their order is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import yaml

from provisioner.errors import ExitCode, ProvisionError, command, nearest
from provisioner.rollout import BATCH_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

IMPORT = ("ansible.builtin.import_playbook", "import_playbook")


@dataclass(frozen=True)
class Stage:
    """One chapter of the platform.

    description: the comment above its entry. plays: how many plays its file holds (they delimit it in a run).
    batched: the host pattern of its play that follows `--batch`, or an empty string. hosts: the patterns of all plays.
    before, after: a site's own playbooks around it, each with the number of its plays.
    """

    name: str
    path: Path
    description: str
    plays: int
    batched: str
    hosts: frozenset[str] = frozenset()
    before: tuple[tuple[Path, int], ...] = ()
    after: tuple[tuple[Path, int], ...] = ()


def _broken(path: Path, line: int, what: str) -> ProvisionError:
    hint = f"Mend it, then: ansible-playbook --syntax-check {path}"
    return ProvisionError(f"{path}:{line}: {what}", hint, ExitCode.SETUP)


def _entries(path: Path) -> list[tuple[int, dict[str, yaml.Node]]]:
    """Return the entries of a playbook as (line from 0, keyword -> YAML node)."""
    try:
        document = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    except OSError as error:
        raise _broken(path, 1, f"cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise _broken(path, mark.line + 1 if mark else 1, f"is no YAML: {error.problem}") from error
    if not isinstance(document, yaml.SequenceNode):
        raise _broken(path, 1, "is no playbook: a playbook is a list")
    found = []
    for node in document.value:
        if not isinstance(node, yaml.MappingNode):
            raise _broken(path, node.start_mark.line + 1, "this entry is no mapping")
        found.append((node.start_mark.line, {str(key.value): value for key, value in node.value}))
    return found


def _imported(entry: dict[str, yaml.Node]) -> str:
    return next((str(entry[word].value) for word in IMPORT if word in entry), "")


def _plays(path: Path) -> tuple[int, str, frozenset[str]]:
    """Return how many plays a stage file holds, the host pattern of the one with `--batch`, and all patterns."""
    count, batched, hosts = 0, "", frozenset[str]()
    for _, entry in _entries(path):
        inner = _imported(entry)
        own = frozenset({str(entry["hosts"].value)} if "hosts" in entry else ())
        plays, pattern, mine = _plays(path.parent / inner) if inner else (1, "", own)
        if "serial" in entry and BATCH_VARIABLE in str(entry["serial"].value):
            pattern = str(entry["hosts"].value)
        count, batched, hosts = count + plays, batched or pattern, hosts | mine
    return count, batched, hosts


def _comment_above(lines: list[str], line: int) -> str:
    words: list[str] = []
    while line and lines[line - 1].startswith("#"):
        line -= 1
        words.insert(0, lines[line].lstrip("# ").rstrip())
    return " ".join(words)


def read(order: Path) -> tuple[Stage, ...]:
    """Return the stages in their order. order: path of the playbook that imports one file a stage."""
    found: list[Stage] = []
    entries = _entries(order)
    lines = order.read_text(encoding="utf-8").splitlines()
    for line, entry in entries:
        target = _imported(entry)
        if not target:
            raise _broken(
                order, line + 1, "this entry imports no stage; each is `ansible.builtin.import_playbook: stages/….yml`"
            )
        path = (order.parent / target).resolve()
        if not path.is_file():
            raise _broken(order, line + 1, f"imports {target}, which is not there")
        plays, batched, hosts = _plays(path)
        found.append(Stage(path.stem, path, _comment_above(lines, line), plays, batched, hosts))
    return tuple(found)


def of_playbook(path: Path) -> Stage:
    """Return a playbook that is no stage of the platform, an operation, as the one stage of a run."""
    plays, batched, hosts = _plays(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    return Stage(path.stem, path, _comment_above(lines, _entries(path)[0][0]), plays, batched, hosts)


def _goes_on(path: Path) -> Iterator[int]:
    """Yield the line of every play that goes on with the other hosts when one failed."""
    for line, entry in _entries(path):
        if inner := _imported(entry):
            yield from (line + 1 for _ in _goes_on(path.parent / inner))
        elif "any_errors_fatal" not in entry or str(entry["any_errors_fatal"].value).lower() not in ("true", "yes"):
            yield line + 1


def hooked(found: Iterable[Stage], directory: Path, others: Iterable[str] = ()) -> tuple[Stage, ...]:
    """Return the stages with a site's hooks, pre_STAGE.yml and post_STAGE.yml in its directory of hooks.

    A hook of no stage is refused, and so is one that would go on where a host failed. others: names to know too.
    """
    stages = tuple(found)
    names = [*(stage.name for stage in stages), *others]
    for path in sorted([*directory.glob("pre_*.yml"), *directory.glob("post_*.yml")]):
        name = path.stem.partition("_")[2]
        if name not in names:
            raise ProvisionError(
                f"{path} is a hook of {name!r}, and there is no such stage.{nearest(name, names)}",
                f"Rename it. The stages are listed by: {command('stages')}",
            )
        for line in _goes_on(path):
            raise _broken(path, line, "this play lacks `any_errors_fatal: true`: where one host failed it would go on")

    def of(stage: Stage, when: str) -> tuple[tuple[Path, int], ...]:
        path = directory / f"{when}_{stage.name}.yml"
        return ((path, _plays(path)[0]),) if path.is_file() else ()

    return tuple(replace(stage, before=of(stage, "pre"), after=of(stage, "post")) for stage in stages)


def known(name: str, stages: Iterable[Stage]) -> str:
    """Return `name` if it is a stage; otherwise refuse it with the nearest known one."""
    names = [stage.name for stage in stages]
    if name in names:
        return name
    raise ProvisionError(
        f"There is no stage {name!r}.{nearest(name, names)}",
        f"Stages: {', '.join(names)}. They are explained by: {command('stages')}",
    )
