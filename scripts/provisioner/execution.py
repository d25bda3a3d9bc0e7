"""Doing what a plan says: a call of Ansible, the servers' lock around it, everything noted in the journal."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provisioner import health, lock, runner
from provisioner import journal as log
from provisioner.errors import ExitCode, ProvisionError, command
from provisioner.recorder import Recorder, Watch
from provisioner.rollout import BATCH_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from provisioner.console import Console
    from provisioner.plan import Plan, Request, Resumed
    from provisioner.project import Project, Site
    from provisioner.rollout import Rollout
    from provisioner.stages import Stage

# Variables that the playbooks get from here and from nowhere else; only extra variables reach `serial`.
STOP_VARIABLE = "provision_stop_file"
LOCK_VARIABLE = "provision_lock"
UPGRADE_VARIABLE = "rke2_allow_upgrade"
NEW_CLUSTER_VARIABLE = "rke2_bootstrap_cluster"
REPORT_VARIABLE = "provision_report_file"
VERIFY_TAG = "verify"
CONTROL = "localhost"  # the control machine's name in every inventory

LOCK = (None, Path(__file__).with_name("lock.yml"), 1)
UNLOCK = (None, Path(__file__).with_name("unlock.yml"), 1)
LOOK_SECONDS = 15.0  # between two looks at the health of the cluster
Section = tuple[str | None, Path, int]  # stage or None for the driver's own, playbook, number of its plays

EXIT_CODES: dict[log.RunResult, ExitCode] = {
    "ok": ExitCode.DONE,
    "paused": ExitCode.DONE,
    "failed": ExitCode.FAILED,
    "unhealthy": ExitCode.UNHEALTHY,
    "interrupted": ExitCode.INTERRUPTED,
    "refused": ExitCode.NOT_NOW,
    "broken": ExitCode.SETUP,
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended, the stages that took part in it in their order, and the failures that ended it.

    report: what an operation's playbook wrote for whoever asked, or None.
    """

    run_id: str
    result: log.RunResult
    seconds: float
    stages: tuple[log.StageFinished, ...]
    failures: tuple[log.TaskFailed, ...]
    report: Any = None

    @property
    def exit_code(self) -> ExitCode:
        """Return how the process is to end."""
        return EXIT_CODES[self.result]


@dataclass(frozen=True)
class _Part:
    """What one call of Ansible does. wave: the number of the wave, 0 for what goes in none, and its hosts."""

    sections: tuple[Section, ...]
    wave: int = 0
    hosts: tuple[str, ...] = ()
    last: bool = True


class Execution:
    """One run of a verb on a site, whose lock the caller holds. rollout: stages that go in waves that are watched."""

    def __init__(
        self, project: Project, site: Site, request: Request, console: Console, rollout: Rollout | None = None
    ) -> None:
        self.project, self.site, self.request, self.console = project, site, request, console
        self.rollout = rollout
        self._before: health.Health | None = None
        self._waves_over: Mapping[str, Sequence[str]] = {}
        self._paused = False
        self.run_id, path = log.new_run(site.journal, request.verb, datetime.now(UTC))
        self._calls = 0
        shutil.rmtree(site.runs, ignore_errors=True)  # what runs that were killed left
        self._work = site.runs / self.run_id
        self._work.mkdir(mode=0o700, parents=True)
        self._stop_file = self._work / "stop"
        self._report = self._work / "report.json"
        self._watch = Watch(self._stop_file if request.changes else None)
        self._journal = log.Journal(path)

    def run(self, plan: Plan, expected: Mapping[str, float], resumed: Resumed | None = None) -> Outcome:
        """Run the plan's stages and return how they ended; what cannot be run at all is raised.

        expected: stage -> seconds, for the progress. resumed: the run this one continues.
        """
        began = time.monotonic()
        result: log.RunResult = "broken"
        message, report = "", None
        recorder = Recorder(self._journal, self.console, self._watch, expected, len(plan.chosen))
        if resumed:
            self._before, self._waves_over = resumed.health, resumed.waves
        try:
            start = log.RunStarted(
                run_id=self.run_id,
                site=self.site.name,
                owner=lock.me(),
                pid=os.getpid(),
                request=self.request,
                stages=tuple(stage.name for stage in plan.chosen),
                resumes=resumed.run_id if resumed else None,
                done=tuple(sorted(resumed.done)) if resumed else (),
                versions=self.project.versions(self.site),
            )
            self._journal.append(start)
            with self._watch.installed(), self.console.progress():
                result = self._run(plan.chosen, recorder)
            report = json.loads(self._report.read_text(encoding="utf-8")) if self._report.exists() else None
        except ProvisionError as error:
            result = "refused" if error.exit_code == ExitCode.NOT_NOW else "broken"
            message = error.message
            raise
        finally:
            seconds = round(time.monotonic() - began, 3)
            end = log.RunFinished(result=result, exit_code=EXIT_CODES[result], seconds=seconds, message=message)
            self._journal.append(end)
            self._journal.close()
            shutil.rmtree(self._work, ignore_errors=True)
        return Outcome(self.run_id, result, seconds, tuple(recorder.finished), tuple(recorder.failures), report)

    def _run(self, stages: Sequence[Stage], recorder: Recorder) -> log.RunResult:
        rest: list[Section] = []
        for stage in stages:
            own: list[tuple[Path, int]] = [(stage.path, stage.plays)]
            if self.request.verb != "verify" and not self.request.looks:
                own = [*stage.before, *own, *stage.after]
            rest += [(stage.name, path, plays) for path, plays in own]
        if self.request.changes:
            well = self._locked(rest, recorder)
        elif self.request.verb != "verify":
            well = self._stages(rest, recorder)
        else:
            well = True
            while rest and not self._watch.signals:  # go on behind a stage that failed: `verify` wants to know of all
                well = self._stages(rest, recorder) and well
                seen = {end.stage for end in recorder.finished}
                rest = [section for section in rest if section[0] not in seen]
        if not well:
            return "unhealthy" if self.request.verb == "verify" else "failed"
        return "interrupted" if self._watch.signals else "paused" if self._paused else "ok"

    def _locked(self, stages: Sequence[Section], recorder: Recorder) -> bool:
        """Run the stages while the servers know whose run this is."""
        released = False
        try:
            if (
                self.request.limit is None and self.rollout is None
            ):  # plays in the same call cost a fraction of a second, but obey --limit
                well = self._stages([LOCK, *stages, UNLOCK], recorder)
                released = well and not self._watch.insists
            else:
                self._call([LOCK], recorder, recorder.cancelled, limit=None)
                waves = self.rollout
                well = self._in_waves(stages, recorder, waves) if waves else self._stages(stages, recorder)
        finally:
            if not released:
                recorder.begin([])
                self._call([UNLOCK], recorder, lambda: self._watch.signals > 2, limit=None)
        return well

    def _parts(self, sections: Sequence[Section], rollout: Rollout) -> list[_Part]:
        """Return the calls of Ansible that a rollout is: what comes between two stages in waves is one."""
        parts: list[_Part] = []
        for section in sections:
            name, path, _ = section
            waves = rollout.waves.get(name or "", ()) if path.stem == name else ()
            for number, hosts in enumerate(waves, start=1):
                parts.append(_Part((section,), number, hosts, number == len(waves)))
            if not waves and parts and not parts[-1].wave:
                parts[-1] = _Part((*parts[-1].sections, section))
            elif not waves:
                parts.append(_Part((section,)))
        return parts

    def _in_waves(self, sections: Sequence[Section], recorder: Recorder, rollout: Rollout) -> bool:
        """Run stages, those in waves one wave a call, and stop where the cluster is less healthy than before."""
        parts = self._parts(sections, rollout)
        for name, hosts in self._waves_over.items():  # for the --resume after this one
            self._journal.append(log.WaveFinished(stage=name, hosts=tuple(hosts)))
        self._note_health()
        if self._before is None:
            self._before = self._look(recorder)
            self._note_health()
            if self._before is None:
                self.console.note("The cluster does not answer yet: its health is watched from the first wave on.")
        elif not self._steady(recorder, next((part.sections[0][0] or "" for part in parts if part.wave), ""), 0):
            return False
        for number, part in enumerate(parts):
            stage = part.sections[0][0] or ""
            if part.wave and set(part.hosts) <= set(self._waves_over.get(stage, ())):
                continue
            later = {name for other in parts[number + 1 :] for name, _, _ in other.sections}
            well = self._stages(part.sections, recorder, hosts=part.hosts, partly=later)
            if not well or self._watch.signals:
                return well
            if not part.wave:
                continue
            if not self._steady(recorder, stage, rollout.soak):
                return False
            if self._watch.signals:
                return True
            self._journal.append(log.WaveFinished(stage=stage, hosts=part.hosts))
            self.console.note(
                f"{stage}: wave {part.wave} is over ({', '.join(part.hosts)}), healthy as before", "green"
            )
            if part.wave == rollout.pause_after and not part.last:
                self._paused = True
                return True
        return True

    def _note_health(self) -> None:
        if self._before is not None:
            self._journal.append(log.HealthTaken(health=self._before))

    def _look(self, recorder: Recorder) -> health.Health | None:
        """Return how healthy the cluster is, or None when it does not answer."""
        report = self._work / "health.json"
        report.unlink(missing_ok=True)
        recorder.begin([(None, 1)])
        look = (None, self.project.root / "playbooks" / "operations" / "health.yml", 1)
        self._call([look], recorder, recorder.cancelled, limit=None, told={REPORT_VARIABLE: str(report)})
        return health.of(json.loads(report.read_text(encoding="utf-8"))) if report.exists() else None

    def _steady(self, recorder: Recorder, stage: str, soak: float) -> bool:
        """Watch the cluster until it was as healthy as before for `soak` seconds; return whether it came to that."""
        began = time.monotonic()
        looks: list[tuple[float, tuple[str, ...]]] = []
        while not self._watch.signals:
            self.console.task(name="watching the health of the cluster")
            now = self._look(recorder)
            if self._before is None and now is not None:
                self._before = now
                self._note_health()
            faults = health.regressions(self._before, now) if self._before else ("the cluster does not answer",)
            looks.append((time.monotonic() - began, faults))
            verdict = health.judge(looks, soak, health.SETTLE_SECONDS)
            if verdict == "steady":
                return True
            if verdict == "regressed":
                seen = faults or next(seen for _, seen in reversed(looks) if seen)
                recorder.regressed(stage, CONTROL, "less healthy than before: " + "; ".join(seen))
                return False
            until = time.monotonic() + LOOK_SECONDS
            while time.monotonic() < until and not self._watch.signals:
                time.sleep(min(0.2, LOOK_SECONDS))
        return True

    def _stages(
        self,
        sections: Sequence[Section],
        recorder: Recorder,
        hosts: Sequence[str] = (),
        partly: Collection[str | None] = (),
    ) -> bool:
        """Run playbooks in one call and return whether every stage ended well; a call that says nothing is raised.

        hosts: those of a wave. partly: stages of which later calls do more.
        """
        recorder.begin([(name, plays) for name, _, plays in sections], partly)
        # What belongs to no machine, the check of the site's files above all, is never left out.
        pattern = ",".join(hosts) or self.request.limit
        limit = f"{pattern},{CONTROL}" if pattern else None
        done = self._call(sections, recorder, recorder.cancelled, limit=limit)
        well = recorder.finish()
        again = command("deploy", "--site", self.site.name, "--resume")
        if done.return_code == runner.OLD_RUN_BUSY and not recorder.finished:
            raise ProvisionError(
                f"Tasks of an earlier run on {self.site.name} have not ended within {runner.OLD_RUN_SECONDS} s.",
                f"See which: fuser -v {self.site.state / 'child.lock'}; then: {again}",
                ExitCode.NOT_NOW,
            )
        if well and done.return_code and not self._watch.insists:
            raise ProvisionError(
                f"Ansible ended with {done.return_code} although no task failed; its last words:\n{done.tail.strip()}",
                "Mend what it complains of, then: "
                + (again if self.request.verb == "deploy" else command(self.request.verb, "--site", self.site.name)),
                ExitCode.SETUP,
            )
        return well

    def _variables(self) -> dict[str, Any]:
        told = dict(self.request.variables)
        if self.request.verb not in ("check", "deploy", "verify"):
            told[REPORT_VARIABLE] = str(self._report)
        if not self.request.changes:
            return told
        control = lock.control_id(self.site)
        holder = {"owner": lock.me(), "control": control, "run": self.run_id, "seconds": lock.SERVER_LOCK_SECONDS}
        holder |= {"journal": str(self._journal.path), "journals": log.COPIED}
        extra: dict[str, Any] = told | {STOP_VARIABLE: str(self._stop_file), LOCK_VARIABLE: holder}
        if self.request.batch and not self.rollout:  # a wave is a call
            extra[BATCH_VARIABLE] = list(self.request.batch)
        if self.request.allow_upgrade:
            extra[UPGRADE_VARIABLE] = True
        if self.request.new_cluster:
            extra[NEW_CLUSTER_VARIABLE] = self.request.new_cluster
        return extra

    def _call(
        self,
        sections: Sequence[Section],
        recorder: Recorder,
        cancelled: Callable[[], bool],
        limit: str | None,
        told: Mapping[str, Any] | None = None,
    ) -> runner.RunResult:
        """Run playbooks in one call of Ansible; refused when another control machine has the site."""
        self._calls += 1
        work = self._work / str(self._calls)
        work.mkdir(mode=0o700)
        imports = [{"ansible.builtin.import_playbook": str(path)} for _, path, _ in sections]
        (work / "playbook.yml").write_text(json.dumps(imports), encoding="utf-8")
        request = runner.RunRequest(
            root=self.project.root,
            inventory=self.site.inventory,
            playbook=work / "playbook.yml",
            work=work,
            child_lock=self.site.state / "child.lock",
            limit=limit,
            tags=VERIFY_TAG if self.request.verb == "verify" else None,
            check=self.request.verb == "check",
            extra_vars=self._variables() | dict(told or {}),
            verbosity=self.console.verbosity,
            color=self.console.color,
        )
        done = runner.run(request, recorder, cancelled)
        if recorder.locked:
            (host, holder), recorder.locked = recorder.locked, None
            remove = f"ansible -i {self.site.inventory} all -m raw -a 'rm -f /var/lib/metalhub/lock.json'"
            again = command("deploy", "--site", self.site.name, "--resume")
            raise ProvisionError(
                f"Site {self.site.name} is in use by {holder}; {host} says so.",
                f"Wait until it ends. If it is dead: {remove}; then: {again}",
                ExitCode.NOT_NOW,
            )
        return done
