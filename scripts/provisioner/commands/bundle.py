"""`bundle build` and `bundle verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from provisioner import bundle, inventory, project
from provisioner.commands import options
from provisioner.console import Console
from provisioner.errors import ExitCode, ProvisionError, command

if TYPE_CHECKING:
    from collections.abc import Mapping

app = typer.Typer(no_args_is_help=True, help="Make and check the directory that holds everything a site downloads.")

From = Annotated[
    list[Path] | None, typer.Option("--from", metavar="DIR", help="A directory laid out like a bundle; repeatable.")
]
To = Annotated[Path, typer.Option("--to", metavar="DIR", help="The bundle; made or added to.")]
Link = Annotated[
    bool, typer.Option("--link", help="Hard links instead of copies; the sources must then never be written to.")
]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The bundle.")]


def _value(where: project.Project, site: str, hosts: Mapping[str, Mapping[str, Any]], about: bundle.Variable) -> str:
    """Return what a site says, or the role's default where its inventory says nothing.

    hosts: the variables of each of its hosts.
    """
    name = about.variable
    found: set[Any] = {variables[name] for variables in hosts.values() if name in variables}
    if not found:
        defaults = where.root / about.defaults
        found = {(yaml.safe_load(defaults.read_text(encoding="utf-8")) or {}).get(name)}
    value = str(next(iter(found)))
    if len(found) != 1 or not value or "{{" in value or value == "None":
        raise ProvisionError(
            f"Site {site}: {name} is {', '.join(sorted(map(str, found)))}; one literal value is needed.",
            f"Write it into inventories/{site}/group_vars/all/versions.yml and type the command again.",
        )
    return value


def _download(site: str, target: Path, progress: bundle.Progress) -> list[bundle.File]:
    """Bring everything that a site takes from upstream into the bundle, and return the entries."""
    where = project.find()
    hosts = inventory.read(where, where.site(site)).variables
    files: list[bundle.File] = []
    for upstream in bundle.sources():
        version = _value(where, site, hosts, upstream.version)
        if isinstance(upstream, bundle.Source):
            files += bundle.add_upstream(upstream, version, target, progress)
        else:
            at = upstream.repository
            repository = at if isinstance(at, str) else _value(where, site, hosts, at)
            files += bundle.add_chart(upstream.chart, version, repository, target, progress)
    return files


@app.command()
def build(
    to: To, source: From = None, site: options.OptionalSite = None, link: Link = False, as_json: options.Json = False
) -> int:
    """Add files to a bundle, from directories (--from) or from upstream in the versions of a site (--site).

    What is already in the bundle stays. Every file is verified: against upstream's checksums, or after copying.
    """
    console = Console(as_json=as_json)
    if not source and not site:
        raise ProvisionError(
            "Neither --from nor --site says where the files come from.",
            f"For one: {command('bundle', 'build', '--from', 'DIR', '--to', str(to))}",
        )
    for directory in source or ():
        if not directory.is_dir():
            raise ProvisionError(
                f"--from {directory}: no such directory.", "Name a directory laid out as <kind>/<version>/<file>."
            )
    target = to.absolute()
    target.mkdir(parents=True, exist_ok=True)
    known = bundle.read(target).files if (target / bundle.MANIFEST).exists() else []
    files = {file.path: file for file in known if (target / file.path).is_file()}
    fresh: list[bundle.File] = []
    with console.progress():

        def progress(name: str) -> None:
            console.stage_started(name, "", None)

        for directory in source or ():
            fresh += bundle.add_directory(directory.absolute(), target, link=link, progress=progress)
        if site and not source:
            fresh += _download(site, target, progress)
    files |= {file.path: file for file in fresh}
    manifest = bundle.write(target, files.values())
    console.say(
        f"{target}: {len(manifest.files)} files, {sum(file.size for file in manifest.files)} bytes, manifest written"
    )
    console.document({"bundle": str(target), **manifest.model_dump()})
    return ExitCode.DONE


@app.command()
def verify(directory: Directory, as_json: options.Json = False) -> int:
    """Compute the sha256 of every file again and name those that are missing, corrupt or extra. Ends with 1 on any."""
    console = Console(as_json=as_json)
    with console.progress():
        faults = bundle.verify(directory, lambda name: console.stage_started(name, "", None))
    for fault in faults:
        console.note(f"{fault.what}: {fault.path}: {fault.detail}", "bold red")
    console.document({"bundle": str(directory), "faults": [asdict(fault) for fault in faults]})
    if faults:
        again = command("bundle", "build", "--from", "DIR", "--to", str(directory))
        console.error(
            f"{directory}: {len(faults)} of its files are not what the manifest says.", f"Bring them again: {again}"
        )
        return ExitCode.FAILED
    console.say(f"{directory}: every file is what the manifest says", "green")
    return ExitCode.DONE
