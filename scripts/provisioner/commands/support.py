"""`support-bundle`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from provisioner import inventory, project
from provisioner import support as bundle
from provisioner.commands import options
from provisioner.console import Console
from provisioner.errors import ExitCode, ProvisionError, command
from provisioner.launch import finish, operate
from provisioner.plan import Request

JOURNALS = 30  # the newest that go with it
Output = Annotated[Path, typer.Option("--output", metavar="FILE", help="The archive, a .tar.gz; replaced.")]


def support_bundle(
    site: options.Site, output: Output, as_json: options.Json = False, verbose: options.Verbose = 0
) -> int:
    """Collect what somebody from afar needs to help: journals, events, versions, etcd's state, logs; secrets hidden.

    Changes nothing. Look through the archive before you send it: what is secret in a log and in no vault is not known.
    """
    if not output.absolute().parent.is_dir():
        raise ProvisionError(f"--output {output}: its directory is not there.", "Name a file in a directory of yours.")
    where = project.find()
    place = where.site(site)
    secrets = bundle.secrets_of(inventory.read(where, place).variables)
    then = command("support-bundle", "--site", site, "--output", str(output))
    outcome = operate(
        Request("support-bundle", looks=True),
        site,
        playbook="support_bundle",
        why="asks machines and cluster, changes nothing",
        then=then,
        as_json=as_json,
        verbosity=verbose,
    )
    newest = sorted(place.journal.glob("*.jsonl"), reverse=True)[:JOURNALS]
    journals = {path.name: path.read_text(encoding="utf-8", errors="replace") for path in newest}
    about = {"site": site, "at": datetime.now(UTC).isoformat(), "run": outcome.run_id, "hidden": sorted(secrets)}
    files = bundle.files_of(outcome.report or {}, journals, secrets, about)
    bundle.write(output, files)
    console = Console(as_json=as_json, verbosity=verbose)
    console.say(f"{output}: {len(files)} files, {len(secrets)} secrets of the vault hidden", "green")
    code = finish(console, "support-bundle", site, outcome, then, output=str(output), files=list(files))
    # What is ill is what it was made for.
    return ExitCode.DONE if outcome.report is not None else code
