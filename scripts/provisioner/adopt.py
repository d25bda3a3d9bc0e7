"""The site that describes a cluster which others have installed, as files. Nothing here has effects."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from provisioner.upgrade import release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# What a role itself wrote as a reference to another variable; any other braces are a cluster's own text.
REFERENCE = re.compile(r"\{\{ (vault|ansible)_\w+ \}\}")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")
VERSIONS = "group_vars/all/versions.yml"


class _Unsafe(str):
    """A text that Ansible must not fill in, whatever braces it has."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Indents lists as the house does."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        """Indent the next level."""
        super().increase_indent(flow, False)


_Dumper.add_representer(_Unsafe, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text)))


def _marked(value: Any) -> Any:
    """Return a value whose texts with braces are marked as a cluster's own."""
    if isinstance(value, dict):
        return {key: _marked(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_marked(inner) for inner in value]
    braces = isinstance(value, str) and re.search(r"\{[{%#]", value) and not REFERENCE.fullmatch(value)
    return _Unsafe(value) if braces else value


def rendered(values: Mapping[str, Any], about: str = "") -> str:
    """Return the text of a file of variables."""
    body = yaml.dump(_marked(dict(values)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=150)
    return "---\n" + (f"# {about}\n" if about else "") + body


def series(version: str) -> str:
    """Return major and minor of a version."""
    return ".".join(version.removeprefix("v").split(".")[:2])


def fitted(report: Mapping[str, Any], table: Mapping[str, Any], defaults: Mapping[str, str]) -> dict[str, Any]:
    """Return the report with versions of the rest of the platform that go with the release, and notes of what does not.

    table: what goes with what. defaults: parameter -> version that is in force where the site says none.
    """
    file = report["files"][VERSIONS]
    values, notes = dict(file["values"]), list(report["notes"])
    found = values[table["components"]["rke2"]]
    minor = series(found)
    row = table["minors"][minor]
    least = row.get("minimum")
    if least and (release(found) or ()) < (release(least["rke2"]) or ()):
        what = f"{found} is older than {least['rke2']}, which closes {least['closes']}, and preflight refuses it"
        do = f"Upgrade within {minor} the way it was installed, and write that release into {VERSIONS}"
        notes.append(["versions.yml", what, do])
    for component, name in table["components"].items():
        if component == "rke2" or name not in defaults or series(defaults[name]) in row[component]:
            continue
        fitting = [version for version in table["releases"].get(component, ()) if series(version) in row[component]]
        if fitting:
            values[name] = fitting[-1]
        else:
            what = (
                f"no release of {component} is known here that goes with Kubernetes {minor}, {defaults[name]} does not"
            )
            notes.append(["versions.yml", what, f"Write {name} of {', '.join(row[component])} into {VERSIONS}"])
    return {**report, "files": {**report["files"], VERSIONS: {**file, "values": values}}, "notes": notes}


def files(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of the site but its vault: path below it -> text."""
    found = {path: rendered(file["values"], file["about"]) for path, file in report["files"].items()}
    return dict(sorted(found.items()))


def vault(
    report: Mapping[str, Any], schema: Mapping[str, Mapping[str, Any]], fresh: Callable[[int], str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the site's secrets, the cluster's and those that the rest of the platform needs; the latter's names too.

    schema: parameter -> spec, of which secrets are those with no_log. fresh: makes a secret of so many bytes.
    """
    found = dict(report["secrets"])
    needed = {name: 32 for name, spec in schema.items() if spec.get("no_log") and spec.get("required")}
    made = {name: size for name, size in (needed | report["generate"]).items() if name not in found}
    return found | {name: fresh(size) for name, size in made.items()}, sorted(made)


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is to be said of a cluster, what holds for several machines once."""
    places: dict[tuple[str, str], list[str]] = {}
    for where, what, do in report["notes"]:
        places.setdefault((what, do), []).append(where)
    for (what, do), where in places.items():
        yield f"{', '.join(where)}: {what}. {do}."
