"""What is written about the project is true: rendered pages are current, every claim has a test or says it has none."""

from __future__ import annotations

import ast
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import render_docs
from provisioner.commands import options
from tests.contract import tree

pytestmark = pytest.mark.proves("house-docs")


def _marks(decorators: list[ast.expr]) -> Iterator[tuple[str, str]]:
    """Yield (mark, argument) of every pytest.mark.proves(...) and pytest.mark.shard(...) inside the expressions."""
    for node in (node for decorator in decorators for node in ast.walk(decorator)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("proves", "shard")
        ):
            for argument in node.args:
                if not isinstance(argument, ast.Constant):
                    pytest.fail(f"line {node.lineno}: @pytest.mark.{node.func.attr} takes literal names")
                yield node.func.attr, str(argument.value)


def _home(path: Path) -> str:
    """Return where the tests of a file run when they are in no shard: a role's scenarios are a stage of their own."""
    stages = re.search(r"^TEST_STAGES := (.+)$", (tree.ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert stages, "the Makefile does not say which stages make test runs"
    scenario = tree.relative(path).startswith("molecule/") and render_docs.SCENARIOS not in stages[1].split()
    return render_docs.SCENARIOS if scenario else render_docs.LANDING


def _carried() -> dict[str, dict[str, set[str]]]:
    """Return id -> where its tests run ("landing", "molecule" or a shard) -> where they stand (file:line)."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in tree.tracked("tests/*.py", "molecule/*.py"):
        module = ast.parse(path.read_text(encoding="utf-8"))
        shared = [
            node.value
            for node in module.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        ]
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = list(_marks([*node.decorator_list, *shared]))
                shards = [name for mark, name in marks if mark == "shard"] or [_home(path)]
                for identifier in (name for mark, name in marks if mark == "proves"):
                    for shard in shards:
                        found[identifier][shard].add(f"{tree.relative(path)}:{node.lineno}")
    assert found, "no test carries @pytest.mark.proves: nothing was checked"
    return found


def _claims() -> dict[str, Any]:
    claims = tree.load(render_docs.CLAIMS)
    assert claims, "docs/verification.yml is empty: nothing was checked"
    return dict(claims)


def test_every_claim_is_a_sentence_and_says_how_it_is_proven_or_why_not() -> None:
    problems = []
    for name, claim in _claims().items():
        where = f"docs/verification.yml:{claim.line}: {name}"
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            problems.append(f"{where}: an id is lower-case words joined by hyphens")
        if not str(claim.get("claim", "")).strip().endswith("."):
            problems.append(f"{where}: `claim` is no sentence")
        if ("proven_by" in claim) == ("unproven" in claim):
            problems.append(f"{where}: needs exactly one of proven_by and unproven")
        if set(claim) - {"claim", "proven_by", "unproven"}:
            problems.append(f"{where}: unknown keys {sorted(set(claim) - {'claim', 'proven_by', 'unproven'})}")
    tree.refuse(
        problems, "id: {claim: A sentence., proven_by: landing | molecule | SHARD} or {claim: …, unproven: the reason}"
    )


def test_every_claim_has_a_test_where_it_says_or_a_reason() -> None:
    carried = _carried()
    problems = []
    for name, claim in _claims().items():
        where = f"docs/verification.yml:{claim.line}: {name}"
        runs = set(carried.get(name, {}))
        if "unproven" in claim and runs:
            problems.append(
                f"{where}: is called unproven, and {min(min(places) for places in carried[name].values())} carries it"
            )
        if "proven_by" in claim and not runs:
            problems.append(f"{where}: no test carries it")
        elif "proven_by" in claim and claim["proven_by"] not in runs:
            problems.append(f"{where}: its tests run in {sorted(runs)}, not in {claim['proven_by']}")
    tree.refuse(problems, "mark the test @pytest.mark.proves(id), or say `unproven:` with the reason")


def test_every_id_that_a_test_carries_is_a_claim() -> None:
    claims = _claims()
    problems = [f"{min(min(places) for places in runs.values())}: {name} is not in docs/verification.yml"
                for name, runs in _carried().items() if name not in claims]  # fmt: skip
    tree.refuse(problems, "add the id with its sentence to docs/verification.yml, then: make docs")


def test_every_rendered_page_is_current() -> None:
    pages = render_docs.pages()
    assert len(pages) > 1, "no role has a page: nothing was checked"
    problems = [tree.relative(path) for path, text in pages.items()
                if not path.exists() or path.read_text(encoding="utf-8") != text]  # fmt: skip
    tree.refuse(problems, "run: make docs")


def test_links_inside_the_documentation_lead_somewhere() -> None:
    problems = []
    seen = 0
    for path in tree.tracked("*.md"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", line):
                if "://" not in target:
                    seen += 1
                    if not (path.parent / target).exists():
                        problems.append(f"{tree.relative(path)}:{number}: {target} is not there")
    assert seen, "no page links to another: nothing was checked"
    tree.refuse(problems, "write the path as seen from the page")


def test_commands_in_the_documentation_name_targets_and_files_that_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (tree.ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    problems = []
    seen = 0
    for path in [*tree.tracked("*.md"), tree.ROOT / "docs/verification.yml"]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for code in re.findall(r"`([^`]+)`", line) + ([line.strip()] if line.startswith("    ") else []):
                for target in re.findall(r"^make ([a-z-]+)", code):
                    seen += 1
                    if target not in targets:
                        problems.append(f"{tree.relative(path)}:{number}: the Makefile has no target {target}")
                for script in re.findall(
                    r"(?:^| )((?:scripts|playbooks|molecule|tests)/[\w./-]+\.(?:py|sh|yml))", code
                ):
                    seen += 1
                    if not (tree.ROOT / script).exists():
                        problems.append(f"{tree.relative(path)}:{number}: {script} is not there")
    assert seen, "no page shows a command: nothing was checked"
    tree.refuse(problems, "show commands that run")


def _commands(text: str) -> Iterator[str]:
    """Yield every command that a page shows: code in a sentence, over line ends too, and indented lines."""
    prose: list[str] = []
    block: list[str] = []
    for line in text.splitlines():
        (block if line.startswith("    ") else prose).append(line)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", "\n".join(prose)))
    yield from (line.strip() for line in "\n".join(block).replace("\\\n", " ").splitlines())


@pytest.mark.proves("docs-commands")
def test_commands_of_the_guides_are_taken_by_the_driver_and_their_playbooks_exist() -> None:
    problems = []
    seen = 0
    for path in (tree.ROOT / "docs/how_to.md", tree.ROOT / "docs/runbooks.md"):
        for command in _commands(path.read_text(encoding="utf-8")):
            words = shlex.split(re.sub(r"<[\w ]+>", "{word}", command), comments=True) if "/" in command else []
            problems += [
                f"{tree.relative(path)}: {word} is not there"
                for word in words
                if re.fullmatch(r"playbooks/[\w/]+\.yml", word) and not (tree.ROOT / word).is_file()
            ]
            if words[:1] == ["scripts/provision.py"]:
                seen += 1
                try:
                    options.parse(words[1:])
                except typer.Exit:
                    pass  # --help
                except Exception as error:  # noqa: BLE001  (whatever the parser says)
                    problems.append(f"{tree.relative(path)}: {command}: {error}")
    assert seen, "no guide shows a command of the driver: nothing was checked"
    tree.refuse(problems, "show commands as the driver takes them")


def test_the_readme_fits_on_two_screens() -> None:
    lines = (tree.ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100, f"README.md has {len(lines)} lines, at most 100\n  fix: move the rest to docs/"


def test_every_entry_of_the_changelog_begins_with_the_word_it_is_about() -> None:
    known = {role.name for role in tree.roles()} | {"driver", "lab", "site", "collection"}
    entries = [
        (path, str(entry))
        for path in tree.tracked("changelogs/fragments/*.yml")
        for section in tree.load(path).values()
        for entry in (section if isinstance(section, list) else [section])
    ]
    assert entries, "changelogs/fragments/ is empty: nothing was checked"
    problems = [
        f"{tree.relative(path)}: {entry[:60]}…" for path, entry in entries if entry.split(" - ")[0] not in known
    ]
    tree.refuse(problems, f"begin with one of {', '.join(sorted(known))} and ' - '")


def _help() -> dict[str, str]:
    text = Path(tree.ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z][a-z-]*):.*?## (.+)$", text, re.M))


def test_every_target_of_the_makefile_is_in_its_help() -> None:
    text = (tree.ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(" ".join(re.findall(r"^\.PHONY: (.+)$", text, re.M)).split())
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.M))
    assert targets
    problems = [f"Makefile: {name} has no `##` sentence" for name in targets - set(_help())]
    problems += [
        f"Makefile: {name} is in .PHONY and not in the file, or the other way round" for name in targets ^ phony
    ]
    tree.refuse(problems, "write `target: prerequisites ## What it does` and list it in .PHONY")
