"""Which stages a run takes and why. Nothing here has effects: what is known of the site comes in as arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from provisioner import stages as stage_list
from provisioner.errors import ProvisionError
from provisioner.rollout import of_machines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from provisioner.stages import Stage

LOOKING = ("check", "verify")  # of the stages; an operation says itself whether it changes anything
# What only adds a snapshot: a timer does it at night, and nobody has to type the name of a protected site.
ADDING = ("snapshot-save", "snapshot-drill", "snapshot-fetch", "snapshot-push")


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    only, start, until: names of stages. limit: a host pattern of Ansible. batch: sizes for `serial`.
    new_cluster: the site's name, where a new cluster may be made although an old one may live. variables: what an
    operation is told, nothing secret. looks: an operation that changes nothing. to: the release an upgrade leads to.
    canary, soak, pause_after: a rollout in waves that are watched, see rollout.Rollout.
    """

    verb: str
    only: tuple[str, ...] = ()
    start: str | None = None
    until: str | None = None
    limit: str | None = None
    batch: tuple[int | str, ...] = ()
    allow_upgrade: bool = False
    new_cluster: str = ""
    variables: dict[str, Any] = field(default_factory=dict)
    looks: bool = False
    to: str = ""
    canary: str = ""
    soak: int | None = None
    pause_after: int = 0

    @property
    def staged(self) -> bool:
        """Return whether the health of the cluster is watched from wave to wave."""
        return bool(self.canary or self.pause_after or self.soak is not None)

    @property
    def changes(self) -> bool:
        """Return whether the run may change the site, so that the servers have to know whose run it is."""
        return self.verb not in LOOKING and not self.looks

    @property
    def asks(self) -> bool:
        """Return whether a protected site wants its name before the run."""
        return self.changes and self.verb not in ADDING


@dataclass(frozen=True)
class Past:
    """How one stage went the last time: when it ended, how, where it failed, and the limit of that run."""

    at: datetime
    result: str
    failed_hosts: tuple[str, ...] = ()
    limit: str | None = None


@dataclass(frozen=True)
class Resumed:
    """The unfinished run that is continued: what it finished, and how the rest stood when it ended.

    waves: stage -> hosts whose waves are over. health: of the cluster, before the rollout began.
    """

    run_id: str
    done: frozenset[str]
    rest: Mapping[str, Past]
    waves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    health: Any = None


@dataclass(frozen=True)
class Step:
    """One stage in a plan, whether it runs, and the reason in words."""

    stage: Stage
    runs: bool
    reason: str


@dataclass(frozen=True)
class Plan:
    """Every stage of the platform in order, those that run and those that do not."""

    steps: tuple[Step, ...]

    @property
    def chosen(self) -> tuple[Stage, ...]:
        """Return the stages that run, in order."""
        return tuple(step.stage for step in self.steps if step.runs)


def ago(at: datetime, now: datetime) -> str:
    """Return how long before `now` something was: "40 s ago", "5 min ago", "3 h ago", "2 days ago"."""
    seconds = max(0, int((now - at).total_seconds()))
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _left_out(request: Request, names: Sequence[str]) -> dict[str, str]:
    """Return the reason for every stage that the options leave out."""
    if request.only:
        return {name: "skipped: not in --only" for name in names if name not in request.only}
    first = names.index(request.start) if request.start else 0
    last = names.index(request.until) if request.until else len(names) - 1
    if first > last:
        raise ProvisionError(
            f"--from {request.start} comes after --until {request.until}: no stage lies between them.",
            f"The order is {', '.join(names)}: exchange the two.",
        )
    before = dict.fromkeys(names[:first], f"skipped: before --from {request.start}")
    return before | dict.fromkeys(names[last + 1 :], f"skipped: after --until {request.until}")


def _told(past: Past, now: datetime) -> str:
    where = f" on --limit {past.limit}" if past.limit else ""
    hosts = f" at {', '.join(past.failed_hosts)}" if past.failed_hosts else ""
    words = {"ok": "finished", "failed": f"failed{hosts}", "partly": "finished on some hosts"}
    return f"{words.get(past.result, past.result)} {ago(past.at, now)}{where}"


def _why(verb: str, past: Past | None, now: datetime) -> str:
    told = _told(past, now) if past else "never finished on this site"
    if verb == "check":
        return f"{told}; nothing will be changed"
    if verb == "verify":
        return f"{told}; looks only"
    if past and past.result == "ok":
        return f"{told}; run again to see that nothing drifted"
    return told


def make(
    stages: Sequence[Stage],
    request: Request,
    past: Mapping[str, Past],
    now: datetime,
    resumed: Resumed | None = None,
) -> Plan:
    """Return what `request` means for a site.

    stages: all stages in order. past: stage -> how its last deploy went. now: an aware time.
    resumed: the run to continue; its finished stages are left out.
    """
    for name in (*request.only, request.start, request.until):
        if name is not None:
            stage_list.known(name, stages)
    if request.only and (request.start or request.until):
        raise ProvisionError(
            "--only goes with neither --from nor --until.",
            "Name the stages (--only A,B) or the range (--from A --until B).",
        )
    left_out = _left_out(request, [stage.name for stage in stages])
    if request.limit and of_machines(request.limit):
        # What asks the cluster as a whole is nothing that one machine needs.
        alone = [stage.name for stage in stages if stage.hosts == {"platform"}]
        left_out = dict.fromkeys(alone, "skipped: not of the hosts in --limit") | left_out
    steps = []
    for stage in stages:
        name = stage.name
        hooks = "".join(f"; with hooks/{path.name}" for path, _ in (*stage.before, *stage.after))
        if name in left_out:
            steps.append(Step(stage, False, left_out[name]))
        elif resumed and name in resumed.done:
            steps.append(Step(stage, False, f"skipped: finished in run {resumed.run_id}"))
        elif resumed:
            rest = resumed.rest.get(name)
            steps.append(
                Step(
                    stage, True, f"resume: {_told(rest, now) if rest else 'not reached'} in run {resumed.run_id}{hooks}"
                )
            )
        else:
            steps.append(Step(stage, True, _why(request.verb, past.get(name), now) + hooks))
    return Plan(tuple(steps))
