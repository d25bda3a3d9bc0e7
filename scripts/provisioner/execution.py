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

from provisioner import journal as log
from provisioner import lock, runner
from provisioner.errors import ExitCode, ProvisionError, command
from provisioner.recorder import Recorder, Watch
from provisioner.rollout import BATCH_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from provisioner.console import Console
    from provisioner.plan import Plan, Request, Resumed
    from provisioner.project import Project, Site
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
Section = tuple[str | None, Path, int]  # stage or None for the driver's own, playbook, number of its plays

EXIT_CODES: dict[log.RunResult, ExitCode] = {
    "ok": ExitCode.DONE,
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


class Execution:
    """One run of a verb on a site, whose lock the caller holds."""

    def __init__(self, project: Project, site: Site, request: Request, console: Console) -> None:
        self.project, self.site, self.request, self.console = project, site, request, console
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
        rest: list[Section] = [(stage.name, stage.path, stage.plays) for stage in stages]
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
        return "interrupted" if self._watch.signals else "ok"

    def _locked(self, stages: Sequence[Section], recorder: Recorder) -> bool:
        """Run the stages while the servers know whose run this is."""
        released = False
        try:
            if self.request.limit is None:  # plays in the same call cost a fraction of a second, but obey --limit
                well = self._stages([LOCK, *stages, UNLOCK], recorder)
                released = well and not self._watch.insists
            else:
                self._call([LOCK], recorder, recorder.cancelled, limit=None)
                well = self._stages(stages, recorder)
        finally:
            if not released:
                recorder.begin([])
                self._call([UNLOCK], recorder, lambda: self._watch.signals > 2, limit=None)
        return well

    def _stages(self, sections: Sequence[Section], recorder: Recorder) -> bool:
        """Run playbooks in one call and return whether every stage ended well; a call that says nothing is raised."""
        recorder.begin([(name, plays) for name, _, plays in sections])
        # What belongs to no machine, the check of the site's files above all, is never left out.
        limit = f"{self.request.limit},{CONTROL}" if self.request.limit else None
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
        extra: dict[str, Any] = told | {STOP_VARIABLE: str(self._stop_file), LOCK_VARIABLE: holder}
        if self.request.batch:
            extra[BATCH_VARIABLE] = list(self.request.batch)
        if self.request.allow_upgrade:
            extra[UPGRADE_VARIABLE] = True
        if self.request.new_cluster:
            extra[NEW_CLUSTER_VARIABLE] = self.request.new_cluster
        return extra

    def _call(
        self, sections: Sequence[Section], recorder: Recorder, cancelled: Callable[[], bool], limit: str | None
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
            extra_vars=self._variables(),
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
