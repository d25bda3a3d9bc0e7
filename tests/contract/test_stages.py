"""The order of the platform is written once, and one word names everything a stage consists of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import tree

pytestmark = pytest.mark.proves("house-one-word")


def _home(word: str) -> str:
    """Return the name of the role that the stage `word` runs, or an empty string."""
    for role, entry in tree.stage_roles(tree.stages()[word]):
        if word in (role, f"{role}_{entry}"):
            return role
    return ""


def test_every_stage_file_is_in_the_order_and_every_entry_of_the_order_has_its_file() -> None:
    files = {path.stem for path in (tree.ROOT / "playbooks/stages").iterdir()}
    words = list(tree.stages())
    problems = [f"playbooks/stages/{word}.yml is in no entry of playbooks/site.yml" for word in files - set(words)]
    problems += [f"playbooks/site.yml names stages/{word}.yml, which is not there" for word in set(words) - files]
    problems += [f"playbooks/site.yml names {word} twice" for word in words if words.count(word) > 1]
    tree.refuse(problems, "one entry in site.yml for each file in playbooks/stages/")


def test_every_entry_of_the_order_says_above_it_why_it_comes_here() -> None:
    lines = (tree.ROOT / "playbooks/site.yml").read_text(encoding="utf-8").splitlines()
    entries = [number for number, line in enumerate(lines) if line.startswith("- ")]
    assert entries
    problems = [f"playbooks/site.yml:{n + 1}: no comment above it" for n in entries if not lines[n - 1].startswith("#")]
    tree.refuse(problems, "write above the entry what the stage is for and why it comes here")


def test_every_stage_runs_a_role_of_its_own_word() -> None:
    problems = [f"{tree.relative(path)} imports no role (and entry point) called {word}"
                for word, path in tree.stages().items() if not _home(word)]  # fmt: skip
    problems += [f"{tree.relative(path)} imports the role {role}, which is not in roles/"
                 for path in tree.stages().values() for role, _ in tree.stage_roles(path)
                 if not (tree.ROOT / "roles" / role).is_dir()]  # fmt: skip
    tree.refuse(problems, "name the stage <role> or <role>_<entry point> and import exactly that by import_role")


def test_every_stage_is_proven_by_a_scenario_or_a_lab_module_of_its_word() -> None:
    problems = []
    for word in tree.stages():
        places = [f"molecule/{_home(word)}/molecule.yml"]
        places += [f"tests/lab/test_{name}.py" for name in dict.fromkeys((word, _home(word)))]
        if not any((tree.ROOT / place).is_file() for place in places):
            problems.append(f"stage {word}: none of {', '.join(places)} is there")
    tree.refuse(problems, "write the scenario or the test module")


def test_a_scenario_is_called_like_a_role() -> None:
    known = {role.name for role in tree.roles()} | {"lab", "site"}
    problems = [f"{tree.relative(path)}/ is no role's word" for path in (tree.ROOT / "molecule").iterdir()
                if path.is_dir() and path.name not in known and not path.name.startswith((".", "_"))]  # fmt: skip
    tree.refuse(problems, "call it like the role it tests")


def test_a_file_of_a_site_is_called_like_the_role_it_overrides() -> None:
    known = {role.name for role in tree.roles()} | {"site", "versions", "vault"}
    files = tree.tracked("inventories/*/group_vars/*.yml", "inventories/*/host_vars/*.yml")
    assert files, "no site has variables: nothing was checked"
    problems = [f"{tree.relative(path)} is called like no role" for path in files
                if path.parent.name not in ("group_vars", "host_vars") and path.stem not in known]  # fmt: skip
    problems += [f"{tree.relative(path)} lies beside the directories of groups" for path in files
                 if path.parent.name in ("group_vars", "host_vars")]  # fmt: skip
    tree.refuse(problems, "use group_vars/<group>/{site,versions,vault,<role>}.yml")


def test_every_playbook_can_be_called_by_its_full_name() -> None:
    files = tree.tracked("playbooks/*.yml")
    assert files
    problems = [
        f"{tree.relative(path)}" for path in files if not path.stem.isidentifier() or path.stem.lower() != path.stem
    ]
    tree.refuse(problems, "use snake_case: a playbook with a hyphen has no name in a collection")


def test_no_playbook_states_the_order_again() -> None:
    problems = []
    for path, play in tree.plays():
        imported = str(play.get("ansible.builtin.import_playbook", ""))
        if imported and path != tree.ROOT / "playbooks/site.yml" and Path(imported).stem in tree.stages():
            problems.append(f"{tree.relative(path)}:{play.line}: imports {imported}")
    tree.refuse(problems, "the order lives in playbooks/site.yml; let the driver choose stages")


def test_roles_are_imported_never_included_and_entry_points_are_named_without_extension() -> None:
    problems = []
    seen = 0
    for task in tree.tasks():
        if task.module.endswith((".include_role", ".include_tasks")):
            problems.append(
                f"{task.where}: {task.module.rpartition('.')[2]} hides its tasks from --list-tasks and lint"
            )
        if task.module.endswith(".import_role"):
            seen += 1
            entry = str(task.args.get("tasks_from", "main"))
            if "." in entry:
                problems.append(f"{task.where}: tasks_from: {entry} silently switches argument validation off")
            role = str(task.args["name"])
            if "." in role:
                problems.append(f"{task.where}: role {role} by its full name is not found in a clone")
            elif not (tree.ROOT / "roles" / role / f"tasks/{entry}.yml").is_file():
                problems.append(f"{task.where}: roles/{role}/tasks/{entry}.yml is not there")
            elif entry not in tree.specs(tree.ROOT / "roles" / role):
                problems.append(f"{task.where}: roles/{role}/meta/argument_specs.yml has no entry point {entry}")
    for path, play in tree.plays():
        if play.get("roles"):
            problems.append(
                f"{tree.relative(path)}:{play.lines['roles']}: `roles:` cannot be followed by tasks in order"
            )
    assert seen, "no role is imported anywhere: nothing was checked"
    tree.refuse(problems, "use import_role / import_tasks, short role names, and tasks_from without .yml")


def test_verify_is_the_only_tag() -> None:
    tagged = [task for task in tree.tasks() if task.tags]
    assert tagged, "no task carries the tag verify: nothing was checked"
    problems = [f"{task.where}: tags {sorted(task.tags - {'verify'})}" for task in tagged if task.tags - {"verify"}]
    tree.refuse(problems, "remove the tag; what is to run alone is a stage")
