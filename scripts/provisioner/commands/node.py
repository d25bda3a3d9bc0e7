"""`node add`, `node remove`, `node replace`, `node reboot` and `node patch`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from provisioner import inventory, lock, machines, project, stages
from provisioner.commands import options
from provisioner.console import Console, count
from provisioner.errors import ProvisionError, command
from provisioner.launch import finish, launch, operate
from provisioner.plan import Request

app = typer.Typer(no_args_is_help=True, help="Machines that come, go, or need their packages and a reboot.")


Name = Annotated[str, typer.Argument(metavar="NAME", help="The machine, as the inventory calls it.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="Machines, as the inventory calls them.")]
PoweredOff = Annotated[
    bool, typer.Option("--powered-off", help="The machine is silent, and somebody has seen it without power.")
]
LeaveVolumes = Annotated[
    bool,
    typer.Option("--leave-volumes", help="Volumes on its own disk may stay there, out of reach until it comes back."),
]


def _verb(name: str) -> list[str]:
    """Return the words that are typed for a verb as journals call it."""
    return name.split("-", 1)


def _typed(policy: options.Drain | None) -> list[str]:
    """Return how a policy was typed."""
    return ["--drain-policy", policy] if policy else []


def _asked(policy: options.Drain | None) -> dict[str, Any]:
    """Return what a policy that was typed sets; without one the site's own holds."""
    return {"rke2_drain_policy": policy} if policy else {}


def run(
    verb: str,
    playbook: str,
    site: str,
    why: str,
    words: tuple[str, ...],
    confirmed: str,
    as_json: bool,
    verbosity: int,
    **asked: Any,
) -> tuple[int, Console]:
    """Run an operation on machines and print how it ended. words: what was typed behind the verb, for the next try."""
    console = Console(as_json=as_json, verbosity=verbosity)
    limit = asked.pop("limit", None)
    request = Request(verb, limit=limit, variables={"rke2_drain_owner": lock.me(), **asked})
    then = command(*_verb(verb), *words, "--site", site)
    outcome = operate(
        request,
        site,
        playbook=playbook,
        why=why,
        then=then,
        as_json=as_json,
        verbosity=verbosity,
        confirmed=confirmed,
    )
    return finish(console, verb, site, outcome, then), console


def _groups(site: str) -> Any:
    where = project.find()
    return inventory.read(where, where.site(site)).groups


@app.command()
def add(
    site: options.Site,
    names: Names,
    confirm: options.Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Bring new machines of the inventory into the cluster.

    A worker is deployed alone. For a server the whole site is, because the others have to know its address.
    """
    groups = _groups(site)
    chosen = machines.known(names, groups)
    batched = {stage.batched for stage in stages.read(project.find().order)}
    limit = machines.limit_of_new(chosen, [host for group in batched for host in groups.get(group, ())])
    return launch(Request("deploy", limit=limit), site, as_json=as_json, verbosity=verbose, confirmed=confirm)


def _leave(
    verb: str,
    site: str,
    name: str,
    policy: options.Drain | None,
    powered_off: bool,
    leave_volumes: bool,
    confirmed: str,
    as_json: bool,
    verbosity: int,
    closing: str,
) -> int:
    machines.known([name], _groups(site))
    words = [name]
    words += ["--powered-off"] if powered_off else []
    words += ["--leave-volumes"] if leave_volumes else []
    words += _typed(policy)
    asked = _asked(policy) | {"rke2_lost_powered_off": powered_off, "rke2_remove_leave_volumes": leave_volumes}
    asked["rke2_remove_node"] = name
    why = f"{name} leaves the cluster for good"
    code, console = run(verb, "node_remove", site, why, tuple(words), confirmed, as_json, verbosity, **asked)
    if not code:
        console.say(closing)
    return code


@app.command()
def remove(
    site: options.Site,
    name: Name,
    drain_policy: options.DrainPolicy = None,
    powered_off: PoweredOff = False,
    leave_volumes: LeaveVolumes = False,
    confirm: options.Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Take a machine out of the cluster: its pods move, its member of etcd goes, nothing of the cluster stays on it.

    Refused, with the numbers, when etcd could not do without it, and when a volume lies on its disk and nowhere else.
    """
    again = command("deploy", "--site", site)
    closing = f"Take {name} out of hosts.yml, then let the others forget its address: {again}"
    return _leave(
        "node-remove", site, name, drain_policy, powered_off, leave_volumes, confirm, as_json, verbose, closing
    )


@app.command()
def replace(
    site: options.Site,
    name: Name,
    drain_policy: options.DrainPolicy = None,
    powered_off: PoweredOff = False,
    leave_volumes: LeaveVolumes = False,
    confirm: options.Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Take a machine out of the cluster and say how the new one in its place comes in."""
    closing = (
        f"Give the new machine the name and address of {name}, forget the old one's key (ssh-keygen -R), then: "
        + command(*_verb("node-add"), name, "--site", site)
    )
    return _leave(
        "node-replace", site, name, drain_policy, powered_off, leave_volumes, confirm, as_json, verbose, closing
    )


def _one_by_one(
    verb: str,
    site: str,
    names: list[str] | None,
    every: bool,
    policy: options.Drain | None,
    confirmed: str,
    as_json: bool,
    verbosity: int,
) -> int:
    groups = _groups(site)
    if bool(names) == every:
        raise ProvisionError(
            "Neither a machine nor --all is given." if not names else "Machines and --all are given.",
            f"For one: {command(*_verb(verb), groups[machines.MACHINES][0], '--site', site)}",
        )
    chosen = machines.known(names or groups[machines.MACHINES], groups)
    asked = _asked(policy) | {"limit": ",".join(chosen)}
    why = f"{count(len(chosen), 'machine')}, one at a time: {', '.join(chosen)}"
    words = (*(("--all",) if every else chosen), *_typed(policy))
    playbook = verb.replace("-", "_")
    return run(verb, playbook, site, why, words, confirmed, as_json, verbosity, **asked)[0]


Chosen = Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Machines, as the inventory calls them.")]
All = Annotated[bool, typer.Option("--all", help="Every machine of the site.")]


@app.command()
def reboot(
    site: options.Site,
    names: Chosen = None,
    every: All = False,
    drain_policy: options.DrainPolicy = None,
    confirm: options.Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Reboot machines one at a time, each emptied first and given work again once healthy and with all its GPUs."""
    return _one_by_one("node-reboot", site, names, every, drain_policy, confirm, as_json, verbose)


@app.command()
def patch(
    site: options.Site,
    names: Chosen = None,
    every: All = False,
    drain_policy: options.DrainPolicy = None,
    confirm: options.Confirm = "",
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Bring the operating system's packages up to date, one machine at a time, each emptied and rebooted where due."""
    return _one_by_one("node-patch", site, names, every, drain_policy, confirm, as_json, verbose)
