"""Every role keeps the house rules: inputs, secrets, verification, honest change reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from tests.contract import tree

# preflight's spec is the schema of site.yml, so its options are site_* and need no defaults.
SCHEMA_ROLE = "preflight"

READ_ONLY = {
    "ansible.builtin.assert",
    "ansible.builtin.debug",
    "ansible.builtin.fail",
    "ansible.builtin.getent",
    "ansible.builtin.include_vars",
    "ansible.builtin.meta",
    "ansible.builtin.package_facts",
    "ansible.builtin.set_fact",
    "ansible.builtin.setup",
    "ansible.builtin.slurp",
    "ansible.builtin.stat",
    "ansible.builtin.wait_for",
    "kubernetes.core.helm_info",
    "kubernetes.core.k8s_info",
}
# Modules of our own with this ending only read, as their documentation says.
INFO = "_info"

SECRET = re.compile(r"^vault_|(^|_)(token|password|passwd|passphrase|secret|auth_pass|private_key)$")
# Names that are made of a secret and hold none; each with what they hold instead.
HARMLESS = {
    "__api_address_refusals_kept": "sentences that say what is wrong with the password, without it",
    "__keycloak_refusals": "sentences that say which inputs are missing or unsafe, never a secret",
    "__rke2_rotation_refusal": "a sentence that says what a rotation lacks, without any token",
    "__rke2_differences": "keys of config.yaml that differ, with values that are no secrets",
    "__preflight_known_secrets": "which secrets there are and of what shape, never a value",
}


def _verify_files(role: Path) -> list[Path]:
    return sorted(role.glob("tasks/**/verify*.yml"))


def _entry_points(role: Path) -> list[Path]:
    return [role / f"tasks/{entry}.yml" for entry in tree.specs(role)]


@pytest.mark.proves("house-inputs")
def test_every_roles_own_defaults_pass_its_own_specification() -> None:
    problems = []
    for role in tree.roles():
        for entry, spec in tree.specs(role).items():
            options = spec.get("options", {})
            # What is computed is not known here, and the schema of sites wants sites.
            plain = {name: one["default"] for name, one in options.items() if "{{" not in str(one.get("default", "{{"))}
            known = {name: options[name] for name in plain}
            found = ArgumentSpecValidator(json.loads(json.dumps(known))).validate(plain)
            problems += [f"{tree.relative(role)}, {entry}: {text}" for text in found.error_messages]
    tree.refuse(problems, "a site that sets nothing would be refused")


@pytest.mark.proves("house-inputs")
def test_every_role_describes_its_inputs_and_every_entry_point_exists() -> None:
    problems = []
    for role in tree.roles():
        where = tree.relative(role)
        specs = tree.specs(role)
        if not specs:
            problems.append(f"{where}/meta/argument_specs.yml is missing or empty")
        for entry, spec in specs.items():
            if not (role / f"tasks/{entry}.yml").is_file():
                problems.append(f"{where}/meta/argument_specs.yml:{spec.line}: tasks/{entry}.yml is not there")
            if not spec.get("short_description") or not spec.get("description"):
                problems.append(f"{where}/meta/argument_specs.yml:{spec.line}: {entry} lacks (short_)description")
        for name, option in tree.options(role).items():
            if not option.get("description") or not option.get("type"):
                problems.append(f"{where}/meta/argument_specs.yml:{option.line}: {name} lacks description or type")
    tree.refuse(problems, "the spec is the reference: write what the reader of the README must know")


@pytest.mark.proves("house-inputs")
def test_defaults_and_argument_specs_name_the_same_inputs() -> None:
    problems = []
    seen = 0
    for role in tree.roles():
        if role.name == SCHEMA_ROLE:
            continue
        given, described = tree.defaults(role), tree.options(role)
        seen += len(given)
        where = tree.relative(role)
        for name in given.keys() - described.keys():
            problems.append(f"{where}/defaults/main.yml:{given.lines[name]}: {name} is not in meta/argument_specs.yml")
        for name in given.keys() & described.keys():
            if "default" in described[name] and described[name]["default"] != given[name]:
                problems.append(
                    f"{where}/meta/argument_specs.yml:{described[name].line}: {name} has another default here"
                )
        for name in described.keys() - given.keys():
            if not described[name].get("required"):
                problems.append(
                    f"{where}/meta/argument_specs.yml:{described[name].line}: {name} is optional without default"
                )
    assert seen, "no role has defaults: nothing was checked"
    tree.refuse(
        problems, "an input stands in both files; one without default is `required: true` and stands in the spec only"
    )


@pytest.mark.proves("house-inputs")
def test_inputs_carry_their_roles_prefix_and_internals_two_underscores() -> None:
    problems = []
    for role in tree.roles():
        where = tree.relative(role)
        for name, line in getattr(tree.defaults(role), "lines", {}).items():
            if not name.startswith(f"{role.name}_"):
                problems.append(f"{where}/defaults/main.yml:{line}: {name} lacks the prefix {role.name}_")
        for name, line in getattr(tree.variables(role), "lines", {}).items():
            if not name.startswith(f"__{role.name}_"):
                problems.append(f"{where}/vars/main.yml:{line}: {name} lacks the prefix __{role.name}_")
        for name, option in tree.options(role).items():
            if role.name != SCHEMA_ROLE and not name.startswith(f"{role.name}_"):
                problems.append(f"{where}/meta/argument_specs.yml:{option.line}: {name} lacks the prefix {role.name}_")
        for task in tree.role_tasks(role):
            made = [task.data.get("register")] if "register" in task.data else []
            if task.module.endswith(".set_fact"):
                made += [key for key in task.args if key != "cacheable"]
            for name in made:
                if not str(name).startswith(f"__{role.name}_"):
                    problems.append(f"{task.where}: {name} lacks the prefix __{role.name}_")
    tree.refuse(problems, "inputs are <role>_*, everything else a role makes is __<role>_*")


@pytest.mark.proves("house-inputs")
def test_only_defaults_read_the_sites_parameters() -> None:
    problems = []
    for path in tree.tracked("roles/*.yml", "playbooks/*.yml"):
        if path.match("roles/*/defaults/main.yml") or path.match("roles/*/meta/argument_specs.yml"):
            continue
        read = tree.names(tree.load(path))
        problems += [f"{tree.relative(path)}: reads {name}" for name in read if name.startswith(("site_", "vault_"))]
    for path in tree.tracked("roles/*.j2"):
        read = tree.names(path.read_text(encoding="utf-8"))
        problems += [f"{tree.relative(path)}: reads {name}" for name in read if name.startswith(("site_", "vault_"))]
    readers = [
        role.name for role in tree.roles() if any(n.startswith("site_") for n in tree.names(tree.defaults(role)))
    ]
    assert readers, "no role's defaults read site_*: nothing was checked"
    tree.refuse(problems, "give the role an input whose default in defaults/main.yml reads it")


@pytest.mark.proves("house-inputs")
def test_every_site_parameter_that_a_default_reads_is_in_the_schema() -> None:
    schema = tree.options(tree.ROOT / "roles" / SCHEMA_ROLE)
    problems = []
    for role in tree.roles():
        for name in tree.names(tree.defaults(role)):
            if name.startswith(("site_", "vault_site_")) and name not in schema:
                problems.append(f"{tree.relative(role)}/defaults/main.yml: {name} is not in the schema")
    assert schema, "the schema is empty: nothing was checked"
    tree.refuse(problems, f"describe it in roles/{SCHEMA_ROLE}/meta/argument_specs.yml")


@pytest.mark.proves("house-verify")
def test_every_role_ends_with_a_tagged_verification() -> None:
    problems = []
    for role in tree.roles():
        for entry in _entry_points(role):
            tasks = tree.file_tasks(entry) if entry.is_file() else []
            last = tasks[-1] if tasks else None
            # Nothing to prove: it can only end the play on a host.
            if entry.stem != "main" and tasks and all(task.module == "ansible.builtin.meta" for task in tasks):
                continue
            if last is None or not last.module.endswith(".import_tasks") or not _target(last).startswith("verify"):
                problems.append(f"{tree.relative(entry)}: does not end with import_tasks: verify.yml")
            elif "verify" not in last.tags:
                target = role / "tasks" / _target(last)
                problems += [
                    f"{task.where}: lacks the tag verify"
                    for task in tree.file_tasks(target)
                    if "verify" not in task.tags
                ]
            handlers = (role / "handlers/main.yml").is_file()
            flushed = len(tasks) > 1 and tasks[-2].module.endswith(".meta") and tasks[-2].args == "flush_handlers"
            if handlers and not flushed:
                problems.append(f"{tree.relative(entry)}: a pending handler would be verified away")
    tree.refuse(problems, "end with `meta: flush_handlers` and then `import_tasks: verify.yml` with `tags: verify`")


def _target(task: tree.Task) -> str:
    args = task.args
    return str(args.get("file", "")) if isinstance(args, dict) else str(args)


@pytest.mark.proves("house-verify")
def test_verification_changes_nothing() -> None:
    files = [path for role in tree.roles() for path in _verify_files(role)]
    assert files, "no role has a verify.yml: nothing was checked"
    problems = []
    for task in (task for path in files for task in tree.file_tasks(path)):
        reads = task.module in READ_ONLY | tree.IMPORTS or task.data.get("changed_when") is False
        reads = reads or (task.module.startswith("metalhub.platform.") and task.module.endswith(INFO))
        reads = reads or (task.module == "ansible.builtin.uri" and task.args.get("method", "GET") in ("GET", "HEAD"))
        if not reads:
            problems.append(f"{task.where}: {task.module or task.data} may change something")
        if "notify" in task.data:
            problems.append(f"{task.where}: a verification notifies a handler")
    tree.refuse(problems, "use a module that only reads, or a command that only reads with changed_when: false")


@pytest.mark.proves("house-honest")
def test_no_task_hides_its_failure_and_no_fact_crosses_roles() -> None:
    problems = []
    for task in tree.tasks():
        if "ignore_errors" in task.data:
            problems.append(f"{task.where}: ignore_errors")
        # Silence may be evidence, when the answer is kept and judged by the next task.
        if "ignore_unreachable" in task.data and "register" not in task.data:
            problems.append(f"{task.where}: ignore_unreachable, and nobody looks at the answer")
        if task.module.endswith(".set_fact") and (task.args.get("cacheable") or task.data.get("delegate_facts")):
            problems.append(f"{task.where}: sets a fact for others")
        command = task.module in ("ansible.builtin.command", "ansible.builtin.shell", "ansible.builtin.raw")
        arguments = task.args if isinstance(task.args, dict) else {}
        if command and "changed_when" not in task.data and not {"creates", "removes"} & arguments.keys():
            problems.append(f"{task.where}: {task.module} without a true changed_when")
    tree.refuse(problems, "say with failed_when what a failure is and with changed_when what a change is")


@pytest.mark.proves("house-versions")
def test_versions_are_literals_in_the_defaults() -> None:
    found: dict[str, Any] = {}
    problems = []
    for role in tree.roles():
        given = tree.defaults(role)
        for name, value in given.items():
            if name.endswith("_version"):
                found[name] = value
                if not isinstance(value, str) or not re.fullmatch(r"v?\d+(\.\d+)+[-+.\w]*", value):
                    problems.append(f"{tree.relative(role)}/defaults/main.yml:{given.lines[name]}: {name}: {value!r}")
        for task in tree.role_tasks(role):
            if isinstance(task.args, dict) and re.search(r"helm(_template|_pull)?$", task.module):
                version = task.args.get("chart_version")
                if not version or "{{" not in str(version):
                    problems.append(f"{task.where}: chart_version is {version!r}, not an input")
    assert found, "no default is called *_version: nothing was checked"
    tree.refuse(problems, 'write the number itself, such as "v1.2.3"; a site deviates in its versions.yml')


def _secret_names(role: Path) -> set[str]:
    """Return the names that hold a secret in `role`: by their name, by the spec's no_log, or made of one of these."""
    made_of = {**tree.defaults(role), **tree.variables(role)}
    every = made_of.keys() | tree.options(role).keys()
    secret = {name for name in every if SECRET.search(name)}
    secret |= {name for name, option in tree.options(role).items() if option.get("no_log")}
    while True:
        more = {
            name for name, value in made_of.items()
            if name not in secret | HARMLESS.keys()
            and any(used in secret or used.startswith("vault_") for used in tree.names(value, literals=True))
        }  # fmt: skip
        if not more:
            return secret - HARMLESS.keys()
        secret |= more


@pytest.mark.proves("house-secrets")
def test_every_task_that_touches_a_secret_has_no_log() -> None:
    problems = []
    seen = 0
    for role in tree.roles():
        secret = _secret_names(role)
        for task in tree.role_tasks(role):
            if task.module in tree.IMPORTS:
                continue
            used = {
                n
                for n in tree.names(task.data, literals=True)
                if n in secret or (SECRET.search(n) and n not in HARMLESS)
            }
            registered = str(task.data.get("register", ""))
            if SECRET.search(registered):
                used.add(registered)
            seen += bool(used)
            if used and not task.no_log:
                problems.append(f"{task.where}: touches {', '.join(sorted(used))}")
    assert seen, "no task touches a secret: nothing was checked"
    tree.refuse(problems, "add no_log: true, or list a name that holds no secret in HARMLESS with its reason")


@pytest.mark.proves("house-secrets")
def test_every_exception_from_the_secrets_is_needed() -> None:
    made_of = {name: value for role in tree.roles() for name, value in tree.variables(role).items()}
    problems = [
        f"tests/contract/test_roles.py: HARMLESS names {name}, which is nowhere" for name in HARMLESS.keys() - made_of
    ]
    tree.refuse(problems, "remove the entry")


@pytest.mark.proves("house-secrets")
def test_secrets_have_no_default_and_are_marked_in_the_spec() -> None:
    problems = []
    seen = 0
    for role in tree.roles():
        given = tree.defaults(role)
        for name, option in tree.options(role).items():
            if not SECRET.search(name):
                continue
            seen += 1
            if not option.get("no_log"):
                problems.append(
                    f"{tree.relative(role)}/meta/argument_specs.yml:{option.line}: {name} lacks no_log: true"
                )
            value = given.get(name)
            if value and not any(used.startswith("vault_site_") for used in tree.names(value, literals=True)):
                problems.append(
                    f"{tree.relative(role)}/defaults/main.yml:{given.lines[name]}: {name} has a default of its own"
                )
    assert seen, "no input is a secret: nothing was checked"
    tree.refuse(problems, "a secret comes from vault_site_* or from nowhere, and its spec says no_log: true")
