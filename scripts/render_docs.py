#!/usr/bin/env python3
"""Render what is written elsewhere: role READMEs from specs, pages on verification and the reference site from lists.

`render_docs.py` writes them, `render_docs.py --check` names those that are out of date and exits 1, and
`render_docs.py --record SHARD FILE` first notes what a proof shard has proven (FILE is pytest's --results).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = ROOT / "docs/verification.yml"
RESULTS = ROOT / "docs/verification_results.yml"
PUBLISHED = ROOT / "docs/h2iosc.yml"
LANDING = "landing"
SCENARIOS = "molecule"
NOTE = "<!-- Rendered by `make docs` from {source}; edit that. -->"


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes tags of Ansible (!vault, !unsafe) for plain values."""


_Loader.add_multi_constructor("!", lambda loader, _suffix, node: loader.construct_scalar(node))


def _load(path: Path) -> Any:
    """Return what the YAML file holds; an empty mapping for one that is missing or empty."""
    if not path.exists():
        return {}
    return yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}  # noqa: S506  (derived from SafeLoader)


def _markup(text: str) -> str:
    """Return Ansible's documentation markup, such as C(word) or M(module), as Markdown."""
    # One pair of brackets may stand inside, as in C(lookup(…)).
    text = re.sub(r"\b(?:C|O|V|E|RV)\(((?:[^()]|\([^()]*\))*)\)", r"`\1`", text)
    text = re.sub(r"\b[MP]\(([^)#]*)(?:#\w+)?\)", r"`\1`", text)
    text = re.sub(r"\bI\(([^)]*)\)", r"*\1*", text)
    text = re.sub(r"\bB\(([^)]*)\)", r"**\1**", text)
    text = re.sub(r"\bL\(([^,)]*),\s*([^)]*)\)", r"[\1](\2)", text)
    return re.sub(r"\bU\(([^)]*)\)", r"<\1>", text)


def _sentences(description: str | list[str]) -> list[str]:
    """Return a spec's description as paragraphs on one line each."""
    lines = [description] if isinstance(description, str) else description
    return [_markup(" ".join(str(line).split())) for line in lines]


def _value(value: Any) -> str:
    """Return a default as one would write it in a YAML file, on one line."""
    if isinstance(value, str):
        return value if value.strip() else '""'
    return json.dumps(value, ensure_ascii=False)


def _type(option: dict[str, Any]) -> str:
    """Return the type of an option in words."""
    kind = str(option.get("type", "str"))
    return f"{kind} of {option['elements']}" if option.get("elements") else kind


def _option(name: str, option: dict[str, Any], defaults: dict[str, Any], depth: int) -> list[str]:
    """Return the lines of one option and of what is inside it; `depth` 0 is an input of the role."""
    facts = [_type(option)]
    if option.get("required"):
        facts.append("required")
    default = defaults.get(name) if depth == 0 and name in defaults else option.get("default")
    if default is not None:
        text = _value(default)
        fence = "``" if "`" in text else "`"
        facts.append(f"default {fence}{' '.join(text.split())}{fence}")
    if option.get("choices"):
        facts.append("one of " + ", ".join(f"`{choice}`" for choice in option["choices"]))
    if option.get("no_log"):
        facts.append("secret")
    pad = "  " * depth
    lines = [f"{pad}- **`{name}`** ({'; '.join(facts)})  "]
    lines += [f"{pad}  {sentence}" for sentence in _sentences(option.get("description", ""))]
    for inner, suboption in (option.get("options") or {}).items():
        lines += _option(inner, suboption, {}, depth + 1)
    return lines


def _stages(root: Path, role: str) -> dict[str, str]:
    """Return the stages that run `role`: word of the stage -> entry point."""
    found: dict[str, str] = {}
    for path in sorted((root / "playbooks/stages").glob("*.yml")):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(rf"^( +)name: {role}\n(?:\1tasks_from: (\w+))?", text, re.M):
            found[path.stem] = match[2] or "main"
    return found


def role_readme(root: Path, role: Path) -> str:
    """Return the README of a role: what its spec says, its inputs with their defaults, how to run and verify it.

    root: the repository, whose stages are searched for the role.
    role: the role's directory.
    """
    specs: dict[str, Any] = _load(role / "meta/argument_specs.yml").get("argument_specs", {})
    defaults: dict[str, Any] = _load(role / "defaults/main.yml")
    stages = _stages(root, role.name)
    lines = [NOTE.format(source="meta/argument_specs.yml and defaults/main.yml"), "", f"# {role.name}"]
    shown: dict[str, str] = {}
    for entry, spec in specs.items():
        title = str(spec.get("short_description", "")).rstrip(".")
        lines += ["", f"## {title}" if entry == "main" else f"## Entry point `{entry}`: {title}"]
        for sentence in _sentences(spec.get("description", [])):
            lines += ["", sentence]
        for word in (word for word, target in stages.items() if target == entry):
            alone = f"ansible-playbook -i inventories/SITE playbooks/stages/{word}.yml"
            lines += ["", f"Stage `{word}`; alone: `{alone}`, and with `--tags verify` it only looks."]
        options: dict[str, Any] = spec.get("options") or {}
        again = [name for name in options if name in shown]
        fresh = {name: option for name, option in options.items() if name not in shown}
        if fresh:
            lines += ["", "### Inputs", ""]
            for name, option in fresh.items():
                lines += _option(name, option, defaults, 0)
                shown[name] = entry
        if again:
            lines += ["", "Inputs described above: " + ", ".join(f"`{name}`" for name in again) + "."]
    read = sorted(set(re.findall(r"\b(?:vault_)?site_\w+", json.dumps(defaults))))
    if read:
        lines += ["", "Its defaults read of the site: " + ", ".join(f"`{name}`" for name in read) + "."]
    return "\n".join(lines) + "\n"


def verification_page(claims: dict[str, Any], results: dict[str, Any]) -> str:
    """Return the page of everything we claim and how it is proven.

    claims: id -> {claim, and one of: proven_by ("landing", "molecule" or a shard), unproven (the reason)}.
    results: shard -> {date, proven: [ids]}, and {measured: {id: {what: how much}}} where tests have measured something.
    """
    lines = [
        NOTE.format(source="docs/verification.yml and docs/verification_results.yml"),
        "",
        "# What is proven, and how",
        "",
        "*Every landing*: a test in `make test` shows it before each change is taken in. *Proof shard*: a test too",
        "long for that (`make proof SHARD=…`), with the day it last passed. *Unproven*: nobody has shown it, and why.",
        "",
        "| what we claim | proven by | id |",
        "|---|---|---|",
    ]
    for name, claim in sorted(claims.items(), key=lambda item: (_rank(item[1]), item[0])):
        shard = claim.get("proven_by")
        if "unproven" in claim:
            by = f"**unproven**: {claim['unproven']}"
        elif shard == LANDING:
            by = "every landing"
        elif shard == SCENARIOS:
            by = "`make molecule`, run by hand"
        elif name in results.get(shard, {}).get("proven", []):
            measured = results[shard].get("measured", {}).get(name, {})
            facts = [str(results[shard]["date"]), *(f"{what}: {much}" for what, much in measured.items())]
            by = f"proof shard `{shard}`, {'; '.join(facts)}"
        else:
            by = f"**unproven**: proof shard `{shard}` has not passed yet"
        lines.append(f"| {' '.join(str(claim['claim']).split())} | {' '.join(by.split())} | `{name}` |")
    return "\n".join(lines) + "\n"


def _rank(claim: dict[str, Any]) -> int:
    """Return where a claim stands on the page: every landing, shards, unproven."""
    return 2 if "unproven" in claim else int(claim.get("proven_by") != LANDING)


def reference_page(parameters: dict[str, list[dict[str, Any]]]) -> str:
    """Return the page of what is published of the reference site and what stands in its inventory.

    parameters: number -> entries, each {what, published} and {at}, {at, ours, why} or {elsewhere}.
    """
    lines = [
        NOTE.format(source="docs/h2iosc.yml"),
        "",
        "# The reference site beside its report",
        "",
        "Report RT-ICAR-NA-2026-02 of ICAR-CNR (January 2026) and `inventories/h2iosc`. P and X are the numbers of our",
        "notes on it: P a published parameter, X something that contradicts itself, is wrong or is unsafe.",
        "",
        "| | what | published | here | why |",
        "|---|---|---|---|---|",
    ]
    for number, entries in parameters.items():
        for entry in entries:
            published = _cell(entry["published"])
            here = _cell(entry["ours"]) if "ours" in entry else "" if "elsewhere" in entry else published
            why = entry.get("why", entry.get("elsewhere", ""))
            lines.append(f"| {number} | {entry['what']} | {published} | {here} | {why} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    """Return a value as a table's cell: lists and mappings without their signs, yes and no, nothing as `none`."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_cell(inner) for inner in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value}`" if "*" in str(value) else f"<{value}>" if "://" in str(value) else str(value) or "none"


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Return every rendered page of the repository: path -> the text it must have."""
    rendered = {
        role / "README.md": role_readme(root, role) for role in sorted((root / "roles").iterdir()) if role.is_dir()
    }
    rendered[root / "docs/verification.md"] = verification_page(_load(CLAIMS), _load(RESULTS))
    rendered[root / "docs/h2iosc.md"] = reference_page(_load(PUBLISHED))
    return rendered


class _Indented(yaml.SafeDumper):
    """Indents lists below their key, as yamllint wants them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        """Never leave the indentation out."""
        super().increase_indent(flow, indentless=False)


def record(shard: str, outcomes: list[dict[str, Any]], results: dict[str, Any]) -> dict[str, Any]:
    """Return `results` with what a run of `shard` has proven; an id counts when all its tests passed.

    outcomes: one {id, outcome, date, shard} a test and id, perhaps with {measured}, as pytest's --results writes them.
    Raises ValueError when the run proved nothing: then there is nothing to be proud of.
    """
    own = [outcome for outcome in outcomes if outcome["shard"] == shard]
    failed = {outcome["id"] for outcome in own if outcome["outcome"] != "passed"}
    proven = sorted({outcome["id"] for outcome in own} - failed)
    if not proven:
        raise ValueError(f"the run of shard {shard!r} proved no id; see its output, then run: make proof SHARD={shard}")
    done: dict[str, Any] = {"date": max(outcome["date"] for outcome in own), "proven": proven}
    for outcome in own:
        if outcome["id"] in proven and "measured" in outcome:
            done.setdefault("measured", {}).setdefault(outcome["id"], {}).update(outcome["measured"])
    return {**results, shard: done}


def main(arguments: list[str] | None = None) -> int:
    """Write or check the pages; return the exit status (1: a page is out of date, or a shard proved nothing)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; name the pages that are out of date")
    parser.add_argument("--record", nargs=2, metavar=("SHARD", "FILE"), help="note what a proof shard has proven")
    options = parser.parse_args(arguments)
    if options.record:
        shard, file = options.record
        outcomes = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
        try:
            results = record(shard, outcomes, _load(RESULTS))
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        head = "---\n# Written by `make proof`: the day a shard last passed and the ids it has proven.\n"
        RESULTS.write_text(head + yaml.dump(results, Dumper=_Indented), encoding="utf-8")
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'out of date' if options.check else 'rendered'}: {path.relative_to(ROOT)}")
        if not options.check:
            path.write_text(pages()[path], encoding="utf-8")
    if options.check and stale:
        print("run: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
