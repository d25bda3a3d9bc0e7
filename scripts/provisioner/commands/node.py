"""`node add`, `node remove`, `node replace`, `node reboot` and `node patch`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from provisioner import inventory, lock, machines, project, stages
from provisioner.commands import options
from provisioner.console import Console, count, span
from provisioner.errors import ProvisionError, command
from provisioner.launch import launch, operate
from provisioner.plan import Request

app = typer.Typer(no_args_is_help=True, help="Machines that come, go, or need their packages and a reboot.")


class DrainPolicy(StrEnum):
    """What happens to pods that nothing would start elsewhere, users' servers above all."""

    WAIT = "wait"
    EVICT = "evict"
    SKIP = "skip"


Name = Annotated[str, typer.Argument(metavar="NAME", help="The machine, as the inventory calls it.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="Machines, as the inventory calls them.")]
Policy = Annotated[
    DrainPolicy,
    typer.Option(help="Wait for users' servers to end by themselves, evict them, or skip the drain altogether."),
]
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


def run(
    verb: str, playbook: str, site: str, why: str, words: tuple[str, ...], as_json: bool, verbosity: int, **asked: Any
) -> tuple[int, Console]:
    """Run an operation on machines and print how it ended. words: what was typed behind the verb, for the next try."""
    console = Console(as_json=as_json, verbosity=verbosity)
    limit = asked.pop("limit", None)
    request = Request(verb, limit=limit, variables={"rke2_drain_owner": lock.me(), **asked})
    then = command(*_verb(verb), *words, "--site", site)
    outcome = operate(request, site, playbook=playbook, why=why, then=then, as_json=as_json, verbosity=verbosity)
    well = outcome.result == "ok"
    console.say(f"{verb} {site}: {outcome.result}, {span(outcome.seconds)}", "green" if well else "bold red")
    document: dict[str, Any] = {"run_id": outcome.run_id, "verb": verb, "site": site, "result": outcome.result}
    document |= {"exit_code": int(outcome.exit_code), "seconds": outcome.seconds}
    document |= {"stages": [end.model_dump(mode="json") for end in outcome.stages]}
    document |= {"failures": [failure.model_dump(mode="json") for failure in outcome.failures]}
    console.document(document | {"next": None if well else then})
    return outcome.exit_code, console


def _groups(site: str) -> Any:
    where = project.find()
    return inventory.read(where, where.site(site)).groups


@app.command()
def add(site: options.Site, names: Names, as_json: options.Json = False, verbose: options.Verbose = 0) -> int:
    """Bring new machines of the inventory into the cluster.

    A worker is deployed alone. For a server the whole site is, because the others have to know its address.
    """
    groups = _groups(site)
    chosen = machines.known(names, groups)
    batched = {stage.batched for stage in stages.read(project.find().order)}
    limit = machines.limit_of_new(chosen, [host for group in batched for host in groups.get(group, ())])
    return launch(Request("deploy", limit=limit), site, as_json=as_json, verbosity=verbose)


def _leave(verb: str, site: str, name: str, asked: dict[str, Any], as_json: bool, verbosity: int, closing: str) -> int:
    machines.known([name], _groups(site))
    words = [name]
    words += ["--powered-off"] if asked["rke2_lost_powered_off"] else []
    words += ["--leave-volumes"] if asked["rke2_remove_leave_volumes"] else []
    why = f"{name} leaves the cluster for good"
    asked |= {"rke2_remove_node": name}
    code, console = run(verb, "node_remove", site, why, tuple(words), as_json, verbosity, **asked)
    if not code:
        console.say(closing)
    return code


@app.command()
def remove(
    site: options.Site,
    name: Name,
    drain_policy: Policy = DrainPolicy.WAIT,
    powered_off: PoweredOff = False,
    leave_volumes: LeaveVolumes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Take a machine out of the cluster: its pods move, its member of etcd goes, nothing of the cluster stays on it.

    Refused, with the numbers, when etcd could not do without it, and when a volume lies on its disk and nowhere else.
    """
    asked = {"rke2_drain_policy": drain_policy.value, "rke2_lost_powered_off": powered_off}
    asked |= {"rke2_remove_leave_volumes": leave_volumes}
    again = command("deploy", "--site", site)
    closing = f"Take {name} out of hosts.yml, then let the others forget its address: {again}"
    return _leave("node-remove", site, name, asked, as_json, verbose, closing)


@app.command()
def replace(
    site: options.Site,
    name: Name,
    drain_policy: Policy = DrainPolicy.WAIT,
    powered_off: PoweredOff = False,
    leave_volumes: LeaveVolumes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Take a machine out of the cluster and say how the new one in its place comes in."""
    asked = {"rke2_drain_policy": drain_policy.value, "rke2_lost_powered_off": powered_off}
    asked |= {"rke2_remove_leave_volumes": leave_volumes}
    closing = (
        f"Give the new machine the name and address of {name}, forget the old one's key (ssh-keygen -R), then: "
        + command(*_verb("node-add"), name, "--site", site)
    )
    return _leave("node-replace", site, name, asked, as_json, verbose, closing)


def _one_by_one(
    verb: str, site: str, names: list[str] | None, every: bool, policy: DrainPolicy, as_json: bool, verbosity: int
) -> int:
    groups = _groups(site)
    if bool(names) == every:
        raise ProvisionError(
            "Neither a machine nor --all is given." if not names else "Machines and --all are given.",
            f"For one: {command(*_verb(verb), groups[machines.MACHINES][0], '--site', site)}",
        )
    chosen = machines.known(names or groups[machines.MACHINES], groups)
    asked = {"rke2_drain_policy": policy.value, "limit": ",".join(chosen)}
    why = f"{count(len(chosen), 'machine')}, one at a time: {', '.join(chosen)}"
    words = ("--all",) if every else chosen
    playbook = verb.replace("-", "_")
    return run(verb, playbook, site, why, words, as_json, verbosity, **asked)[0]


Chosen = Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Machines, as the inventory calls them.")]
All = Annotated[bool, typer.Option("--all", help="Every machine of the site.")]


@app.command()
def reboot(
    site: options.Site,
    names: Chosen = None,
    every: All = False,
    drain_policy: Policy = DrainPolicy.WAIT,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Reboot machines one at a time, each emptied first and given work again once healthy and with all its GPUs."""
    return _one_by_one("node-reboot", site, names, every, drain_policy, as_json, verbose)


@app.command()
def patch(
    site: options.Site,
    names: Chosen = None,
    every: All = False,
    drain_policy: Policy = DrainPolicy.WAIT,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> int:
    """Bring the operating system's packages up to date, one machine at a time, each emptied and rebooted where due."""
    return _one_by_one("node-patch", site, names, every, drain_policy, as_json, verbose)
