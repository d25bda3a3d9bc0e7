"""The driver decides from what it reads: no stage stands in it, and effects have one home."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import tree

PURE = ("adopt", "etcd", "health", "machines", "plan", "rollout", "rotation", "schedule", "upgrade")
EFFECTS = {
    "ansible_runner",
    "asyncio",
    "fcntl",
    "os",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
}
EXITS = {"sys.exit", "os._exit", "typer.Exit", "SystemExit", "exit", "quit"}


def _sources() -> list[Path]:
    found = tree.tracked("scripts/provisioner/*.py", "scripts/provision.py")
    assert found, "scripts/provisioner/ is empty: nothing was checked"
    return found


def _literals(module: ast.Module) -> Iterator[ast.Constant]:
    """Yield every string that is no docstring."""
    docstrings = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(id(first.value))
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


def _imported(module: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node.lineno


@pytest.mark.proves("house-driver")
def test_the_driver_names_no_stage_and_no_site_parameter() -> None:
    stages = set(tree.stages())
    # A protected site is so before any role runs; nobody but the driver obeys that.
    parameters = set(tree.options(tree.ROOT / "roles/preflight")) - {"site_protected"}
    problems = []
    for path in _sources():
        for literal in _literals(ast.parse(path.read_text(encoding="utf-8"))):
            word = str(literal.value).removeprefix("stages/").removesuffix(".yml")
            if word in stages | parameters:
                problems.append(f"{tree.relative(path)}:{literal.lineno}: the string {literal.value!r}")
    tree.refuse(problems, "read the order from playbooks/site.yml and values from what the inventory gives")


@pytest.mark.proves("house-driver")
def test_one_module_speaks_to_ansible_runner_and_one_ends_the_process() -> None:
    problems = []
    for path in _sources():
        module = ast.parse(path.read_text(encoding="utf-8"))
        if path.name != "runner.py":
            problems += [
                f"{tree.relative(path)}:{line}: imports {name}"
                for name, line in _imported(module)
                if name == "ansible_runner"
            ]
        if path.name not in ("cli.py", "provision.py"):
            for node in ast.walk(module):
                if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in EXITS:
                    problems.append(f"{tree.relative(path)}:{node.lineno}: ends the process by {ast.unparse(node)}")
    tree.refuse(problems, "call runner.py; raise ProvisionError and let cli.main() exit")


@pytest.mark.proves("house-driver")
def test_decisions_are_pure() -> None:
    problems = []
    seen = 0
    for path in _sources():
        if path.stem in PURE and path.parent.name == "provisioner":
            seen += 1
            module = ast.parse(path.read_text(encoding="utf-8"))
            problems += [
                f"{tree.relative(path)}:{line}: imports {name}" for name, line in _imported(module) if name in EFFECTS
            ]
    assert seen, f"none of {PURE} is in scripts/provisioner/: nothing was checked"
    tree.refuse(problems, "take what is needed as an argument; effects live in runner.py, journal.py and the commands")
