"""`adopt`."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from provisioner import adopt as described
from provisioner import project
from provisioner.commands import options
from provisioner.console import Console
from provisioner.errors import ExitCode, ProvisionError, command
from provisioner.launch import finish, operate
from provisioner.plan import Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.project import Project

SCHEMA = "roles/preflight/meta/argument_specs.yml"
TABLE = "roles/preflight/files/compatibility.yml"
VAULT_ID = "site"  # whose password is the administrator's, in ansible.cfg

Server = Annotated[str, typer.Option(metavar="ADDRESS", help="One of the cluster's servers, by SSH.")]
User = Annotated[str, typer.Option(metavar="NAME", help="Who logs in there; another than root becomes root by sudo.")]
Key = Annotated[str, typer.Option(metavar="FILE", help="The SSH key to log in with.")]


def _password(where: Project) -> str:
    """Return the vault's password; refused where there is none, for the script then prints another at each call."""
    call = [str(where.root / "scripts/vault-client"), "--vault-id", VAULT_ID]
    first, second = (subprocess.run(call, capture_output=True, text=True, check=True).stdout for _ in range(2))
    if not first.strip() or first != second:
        raise ProvisionError(
            "There is no vault password here to seal the cluster's tokens with; no machine was contacted.",
            "Put one where scripts/vault-client looks: (umask 077; mkdir -p ~/.config/metalhub;"
            " openssl rand -hex 32 >~/.config/metalhub/vault_password)",
            ExitCode.SETUP,
        )
    return first.strip()


def _sealed(values: Mapping[str, Any], password: str) -> str:
    from ansible.parsing.vault import VaultLib, VaultSecret  # noqa: PLC0415  (a second, for one verb)

    library = VaultLib([(VAULT_ID, VaultSecret(password.encode()))])
    return str(library.encrypt(described.rendered(values), vault_id=VAULT_ID).decode())


def _fitted(where: Project, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report with versions that go with the release, as the roles' defaults and the table have them."""
    given = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in where.root.glob("roles/*/defaults/main.yml")]
    defaults = {name: str(value) for values in given for name, value in (values or {}).items()}
    return described.fitted(report, yaml.safe_load((where.root / TABLE).read_text(encoding="utf-8")), defaults)


def _write(inventory: Path, texts: Mapping[str, str]) -> None:
    """Make the site's directory with all its files, or nothing."""
    with tempfile.TemporaryDirectory(dir=inventory.parent.parent, prefix=".adopt-") as beside:
        draft = Path(beside) / inventory.name
        for name, text in texts.items():
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        os.rename(draft, inventory)


def _connection(user: str, key: str) -> dict[str, Any]:
    found: dict[str, Any] = {"ansible_user": user}
    found |= {} if user == "root" else {"ansible_become": True}
    return found | ({"ansible_ssh_private_key_file": key} if key else {})


def adopt(
    site: options.Site,
    server: Server,
    user: User = "root",
    key: Key = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Write the site that describes a cluster of RKE2 which others have installed.

    Logs in to one server, and to all other machines at the addresses that they have in the cluster; changes nothing on
    any. The site runs the same release with the same configuration, so that its first deploy restarts nothing; what
    cannot be taken over is named with the reason.
    """
    console = Console(as_json=as_json, verbosity=verbose)
    where = project.find()
    if not described.NAME.fullmatch(site):
        raise ProvisionError(f"--site {site} is no short name.", "Write lower-case letters, digits and hyphens.")
    if site in where.sites():
        raise ProvisionError(
            f"{where.root / 'inventories' / site} is there, and a site is never overwritten.",
            f"Choose another name, or look at that one: {command('check', '--site', site)}",
        )
    password = _password(where)
    connection = _connection(user, key)
    words = ["--site", site, "--server", server, *(["--user", user] if user != "root" else [])]
    again = command("adopt", *words, *(["--key", key] if key else []))
    with tempfile.TemporaryDirectory(prefix="metalhub-adopt-") as known:
        hosts = {"machines": {"vars": connection, "hosts": {server: {}}}}  # and not all, which this machine is of
        (Path(known) / "hosts.yml").write_text(described.rendered(hosts), encoding="utf-8")
        told = {"rke2_adopt_site": site, "rke2_adopt_connection": connection}
        outcome = operate(
            Request("adopt", variables=told, looks=True),
            where.draft(site, Path(known)),
            playbook="adopt",
            why="looks at every machine of the cluster, changes nothing",
            then=again,
            as_json=as_json,
            verbosity=verbose,
        )
    report = outcome.report if outcome.result == "ok" else None
    if not report:
        return finish(console, "adopt", site, outcome, again)
    columns = ("name", "kind", "address", "release")
    console.table(columns, [[machine[column] for column in columns] for machine in report["machines"]])
    if report["refusals"]:
        raise ProvisionError(
            "No site can describe this cluster yet, and none was written:\n" + "\n".join(report["refusals"]),
            f"When that is mended: {again}",
            ExitCode.NOT_NOW,
        )
    report = _fitted(where, report)
    schema = yaml.safe_load((where.root / SCHEMA).read_text(encoding="utf-8"))["argument_specs"]["main"]["options"]
    sealed, made = described.vault(report, schema, secrets.token_hex)
    inventory = where.root / "inventories" / site
    notes = list(described.lines(report))
    _write(inventory, described.files(report) | {"group_vars/all/vault.yml": _sealed(sealed, password)})
    for line in notes:
        console.say(line, "yellow")
    console.say(
        f"{inventory} describes the cluster; its vault has its tokens, and fresh ones for what it lacks.", "green"
    )
    following = command("check", "--site", site)
    console.say(f"Look at what a deploy would change: {following}")
    told_more = {"written": str(inventory), "machines": report["machines"], "notes": notes, "made": made}
    return finish(console, "adopt", site, outcome, again, **told_more, following=following)
