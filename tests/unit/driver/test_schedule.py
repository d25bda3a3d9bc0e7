"""Scheduled jobs: windows by the wall clock, waits after failures, units that systemd takes, a report of every run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from provisioner import inventory, project, timers
from provisioner import journal as log
from provisioner import schedule as plan
from provisioner.cli import app
from provisioner.commands import options
from provisioner.commands import schedule as commands
from provisioner.errors import ExitCode, ProvisionError
from tests.unit.driver.conftest import PLAY, Ansible, Checkout

ROOT = Path(__file__).resolve().parents[3]

ROME = ZoneInfo("Europe/Rome")
ZONES = st.sampled_from([ROME, ZoneInfo("America/New_York"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("UTC")])
NOW = st.datetimes(datetime(2026, 1, 1), datetime(2029, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))  # noqa: DTZ001
CLOCK = st.times().map(lambda at: time(at.hour, at.minute))
LENGTH = st.integers(0, 600).map(lambda minutes: timedelta(minutes=minutes))
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze, whose answer this is about"
)


def _openings(opens: time, zone: ZoneInfo, now: datetime) -> list[datetime]:
    """When the clock shows a time, in the days around now; a time it skips is left out, as systemd does."""
    found = []
    for days in range(-9, 10):
        wall = datetime.combine(now.astimezone(zone).date() + timedelta(days), opens, zone)
        at = wall.astimezone(UTC)
        if at.astimezone(zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
            found.append(at)
    return found


def _window(opens: time, closes: time, zone: ZoneInfo) -> plan.Window:
    return plan.parse_window(f"{opens:%H:%M}-{closes:%H:%M} {zone.key}")


def _shifts(zone: ZoneInfo, now: datetime) -> bool:
    """Whether the clock is put forward or back within two days of now."""
    hours = [(now + timedelta(hours=hour)).astimezone(zone).utcoffset() for hour in range(-49, 50)]
    return len(set(hours)) > 1


@pytest.mark.proves("schedule-windows")
@given(NOW, CLOCK, CLOCK, ZONES)
def test_a_window_is_open_when_the_clock_on_the_wall_says_so(
    now: datetime, opens: time, closes: time, zone: ZoneInfo
) -> None:
    clock = now.astimezone(zone).time()
    over_midnight = closes <= opens
    inside = (clock >= opens or clock < closes) if over_midnight else opens <= clock < closes
    window = _window(opens, closes, zone)
    verdict = plan.may_start(now, window, _openings(opens, zone, now), timedelta())
    assert verdict.may == inside or _shifts(zone, now)


@pytest.mark.proves("schedule-windows")
@given(NOW, CLOCK, CLOCK, ZONES, LENGTH)
def test_what_starts_ends_before_the_window_does_whatever_the_clock_is_put_to(
    now: datetime, opens: time, closes: time, zone: ZoneInfo, length: timedelta
) -> None:
    window = _window(opens, closes, zone)
    openings = _openings(opens, zone, now)
    verdict = plan.may_start(now, window, openings, length)
    if verdict.may:
        assert verdict.until
        assert now + length <= verdict.until
        assert min(openings) <= now
    else:
        assert verdict.why
    assert not (verdict.may and verdict.hopeless)


@pytest.mark.proves("schedule-windows")
@given(NOW, CLOCK, CLOCK, ZONES)
def test_a_window_closes_after_it_opens_and_within_a_day_by_the_clock(
    now: datetime, opens: time, closes: time, zone: ZoneInfo
) -> None:
    window = _window(opens, closes, zone)
    for opened in _openings(opens, zone, now):
        end = plan.closing(window, opened)
        assert timedelta() < end - opened <= timedelta(hours=25)


@pytest.mark.proves("schedule-windows")
@pytest.mark.parametrize(
    ("window", "opened", "closed"),
    [
        pytest.param("Sat 22:00-Sun 06:00 Europe/Rome", "2026-03-28T21:00Z", "2026-03-29T04:00Z", id="an hour less"),
        pytest.param("Sat 22:00-Sun 06:00 Europe/Rome", "2026-10-24T20:00Z", "2026-10-25T05:00Z", id="an hour more"),
        pytest.param("22:00-02:30 Europe/Rome", "2026-03-28T21:00Z", "2026-03-29T00:30Z", id="an end that is skipped"),
        pytest.param("22:00-02:30 Europe/Rome", "2026-10-24T20:00Z", "2026-10-25T00:30Z", id="an end that comes twice"),
        pytest.param("01:45-02:30 Europe/Rome", "2026-03-29T00:45Z", "2026-03-29T01:30Z", id="most of it skipped"),
        pytest.param("Fri 20:00-Mon 06:00 UTC", "2026-01-02T20:00Z", "2026-01-05T06:00Z", id="a weekend"),
        pytest.param("Mon 20:00-Mon 06:00 UTC", "2026-01-05T20:00Z", "2026-01-12T06:00Z", id="nearly a week"),
    ],
)
def test_the_end_of_a_window_when_the_clock_is_put_forward_or_back(window: str, opened: str, closed: str) -> None:
    end = plan.closing(plan.parse_window(window), datetime.fromisoformat(opened))
    assert end == datetime.fromisoformat(closed)


@pytest.mark.proves("schedule-windows")
def test_a_job_that_fits_no_window_is_told_so_and_not_to_wait() -> None:
    now = datetime(2026, 6, 3, 2, 0, tzinfo=UTC)
    window = plan.parse_window("02:00-02:30 UTC")
    openings = [now + timedelta(days=days) for days in range(-8, 3)]
    verdict = plan.may_start(now, window, openings, timedelta(minutes=40))
    assert (verdict.may, verdict.hopeless) == (False, True)
    assert "about 40 min, the window at most 30 min" in verdict.why
    late = plan.may_start(now + timedelta(minutes=20), window, openings, timedelta(minutes=20))
    assert (late.may, late.hopeless) == (False, False)
    assert "closes at Wed 2026-06-03 02:30 UTC" in late.why
    assert "opens again Thu 2026-06-04 02:00 UTC" in late.why


@pytest.mark.parametrize(
    "text",
    ["", "22:00", "22:00-06:00", "22:00-26:00 UTC", "Sat-Sun UTC", "22:00-06:00 Mars/Base", "22:00-06:00 Sun UTC"],
)
def test_what_is_no_window_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(ProvisionError) as caught:
        plan.parse_window(text)
    assert "Europe/Rome" in caught.value.hint


RESULTS = st.lists(st.sampled_from(["ok", "failed", "interrupted", "refused", "waits"]), max_size=12)


@pytest.mark.proves("schedule-back-off")
@given(RESULTS, NOW, st.sampled_from(sorted(plan.JOBS)), st.integers(0, 20))
def test_a_job_waits_exactly_when_it_failed_too_often_since_it_last_ended_well(
    results: list[plan.Result], last: datetime, name: str, days: int
) -> None:
    job = plan.JOBS[name]
    history = [(last - timedelta(days=number), result) for number, result in enumerate(results)]
    failed = " ".join(one for one in results if one in ("ok", "failed")).partition("ok")[0].split()
    now = last + timedelta(days=days)
    wait = plan.waits(job, history, now)
    if len(failed) < job.tries:
        assert wait is None
    elif not job.alone:
        assert wait == plan.Wait(len(failed), None)
    elif wait:
        assert wait.until
        assert now < wait.until <= history[results.index("failed")][0] + timedelta(days=7)
    else:
        assert days >= 1


@pytest.mark.proves("schedule-units")
def test_systemd_is_told_to_make_up_for_a_missed_start_and_to_let_the_machine_in_hand_finish() -> None:
    service, timer = plan.units(plan.Schedule("here", "deploy", "03:00 UTC"), ["/bin/true"], "/", "", {}).values()
    assert "\nPersistent=true\n" in timer
    (minutes,) = re.findall(r"^TimeoutStopSec=(\d+)min$", service, re.M)
    assert int(minutes) * 60 >= 2 * (600 + 600), "a drain and a start, and as much again"


@needs_systemd
@pytest.mark.proves("schedule-units")
@pytest.mark.parametrize("job", plan.JOBS)
def test_units_pass_systemd_and_hold_what_they_were_made_from(job: str, checkout: Checkout, tmp_path: Path) -> None:
    more = ("--limit", 'a "b" 50% $HOME \\')
    schedule = plan.Schedule("here", job, "Sat 22:00 Europe/Rome", "Sat 22:00-Sun 06:00 Europe/Rome", more, "10min")
    environment = {"METALHUB_VAULT_PASSWORD_FILE": "/a b/50%"}
    texts = plan.units(schedule, ["/bin/true", "/a b/x%y$z"], str(tmp_path), "root", environment)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    call = ["systemd-analyze", "verify", *(str(tmp_path / name) for name in texts)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "metalhub" in line] == []
    assert plan.from_unit(texts[f"{schedule.unit}.service"]) == schedule
    assert plan.from_unit(texts[f"{schedule.unit}.timer"]) is None


@needs_systemd
@pytest.mark.proves("schedule-units")
def test_systemd_passes_over_a_time_that_the_clock_skips_and_takes_one_that_comes_twice_once() -> None:
    spring = timers.elapses("02:30 Europe/Rome", "--at", datetime(2027, 3, 27, 12, tzinfo=UTC), 2)
    assert [f"{at:%d %H:%M}" for at in spring] == ["29 00:30", "30 00:30"]
    autumn = timers.elapses("02:30 Europe/Rome", "--at", datetime(2026, 10, 24, 12, tzinfo=UTC), 2)
    assert [f"{at:%d %H:%M}" for at in autumn] == ["25 00:30", "26 01:30"]


@needs_systemd
@pytest.mark.proves("schedule-units", "schedule-windows")
def test_openings_reach_from_before_now_to_after_it() -> None:
    now = datetime(2026, 11, 18, 12, tzinfo=UTC)
    for text in ("Sat 22:00-Sun 06:00 Europe/Rome", "*-*-* *:00-23:30 UTC", "Mon..Fri 22:00-05:00 UTC"):
        found = timers.openings(plan.parse_window(text), now)
        assert found[0] <= now - timedelta(days=1), text
        assert found[-1] > now, text


@pytest.mark.parametrize("name", plan.JOBS)
def test_a_job_whose_verb_is_there_is_a_command_line_that_the_driver_takes(name: str) -> None:
    words = plan.Schedule("here", name, "", more=("--to", "v1.2.3+rke2r1") if name == "upgrade" else ()).words
    if words[0] in cast(Any, typer.main.get_command(app)).commands:
        options.parse(words)
    else:
        assert name not in ("verify", "deploy")


class Systemd:
    """Stands in for systemctl and remembers what it was told; systemd-analyze is the real one."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.on: set[str] = set()

    def __call__(self, *words: str, check: bool = True) -> tuple[int, str, str]:  # noqa: ARG002
        """Answer."""
        self.told.append(" ".join(words))
        verb, unit = words[0], words[-1]
        if verb in ("enable", "restart"):
            self.on.add(unit)
        elif verb == "disable":
            self.on.discard(unit)
        answers = {"is-enabled": "enabled", "is-active": "active"}
        if verb == "show":
            next_start = "Sun 2026-11-22 03:00:00 UTC" if words[1] in self.on else ""
            return 0, f"NextElapseUSecRealtime={next_start}\nSubState=waiting\n", ""
        return 0, answers.get(verb, "") if unit in self.on else "", ""

    @property
    def changes(self) -> list[str]:
        """What it was told to change."""
        return [one for one in self.told if one.split()[0] not in ("is-enabled", "is-active", "show")]


@pytest.fixture
def systemd(checkout: Checkout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Systemd:
    """Put a fake systemd and a directory for units in the place of the machine's."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("this machine has no systemd-analyze, which reads the calendar expressions")
    fake = Systemd()
    (tmp_path / "units").mkdir()
    monkeypatch.setattr(timers, "_systemctl", fake)
    monkeypatch.setattr(timers, "_directory", lambda: tmp_path / "units")
    known = inventory.Inventory(("alpha",), {"all": ("alpha",)}, {})
    monkeypatch.setattr(inventory, "read", lambda where, site: known)
    return fake


ADD = ("schedule", "add", "verify", "--site", "here")


def _units(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "units").iterdir())


@pytest.mark.proves("schedule-add")
def test_the_same_add_twice_changes_nothing_and_another_time_takes_the_place_of_the_old(
    checkout: Checkout, systemd: Systemd, tmp_path: Path
) -> None:
    first = checkout.run(*ADD, "--at", "03:00 Europe/Rome")
    assert first.exit_code == 0, first.output
    assert "verify of here: scheduled; next start Sun 2026-11-22 03:00:00 UTC" in first.stdout
    assert _units(tmp_path) == ["metalhub-here-verify.service", "metalhub-here-verify.timer"]
    before = {name: (tmp_path / "units" / name).stat().st_mtime_ns for name in _units(tmp_path)}
    told = len(systemd.changes)
    assert checkout.document(*ADD, "--at", "03:00 Europe/Rome")["changed"] is False
    assert len(systemd.changes) == told
    assert before == {name: (tmp_path / "units" / name).stat().st_mtime_ns for name in _units(tmp_path)}
    assert checkout.document(*ADD, "--at", "04:00 Europe/Rome")["changed"] is True
    assert "OnCalendar=04:00 Europe/Rome\n" in (tmp_path / "units/metalhub-here-verify.timer").read_text()
    systemd.on.clear()
    assert checkout.document(*ADD, "--at", "04:00 Europe/Rome")["changed"] is True  # somebody had stopped it


@pytest.mark.proves("schedule-add")
def test_units_hold_paths_and_nothing_else_of_the_shell(
    checkout: Checkout, systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "canary-in-the-shell")
    monkeypatch.setenv("METALHUB_VAULT_PASSWORD_FILE", "/secret/place")
    assert checkout.run(*ADD, "--at", "03:00 UTC").exit_code == 0
    text = (tmp_path / "units/metalhub-here-verify.service").read_text()
    assert "canary-in-the-shell" not in text
    assert 'Environment="METALHUB_VAULT_PASSWORD_FILE=/secret/place"' in text
    assert set(re.findall(r'^Environment="(\w+)=', text, re.M)) <= set(timers.CARRIED)


@pytest.mark.proves("schedule-add")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("add", "verfy", "--at", "03:00 UTC"), "no job 'verfy'.* Did you mean 'verify'", id="job"),
        pytest.param(("add", "verify", "--at", "03:00"), "does not end with a time zone", id="no zone"),
        pytest.param(("add", "verify", "--at", "25:00 UTC"), "Failed to parse calendar", id="no time"),
        pytest.param(("add", "verify", "--at", "2020-01-01 UTC"), "--at '2020-01-01 UTC'.*never", id="past"),
        pytest.param(("add", "verify", "--at", "3:00 UTC", "--window", "x"), "is no window", id="no window"),
        pytest.param(("add", "verify", "--at", "3:00 UTC", "--", "--foo"), "No such option", id="no such option"),
        pytest.param(("add", "verify", "--at", "3:00 UTC", "--spread", "x"), "does not take the units", id="spread"),
        pytest.param(
            ("add", "verify", "--at", "12:00 UTC", "--window", "22:00-06:00 UTC"), "may not start", id="outside window"
        ),
        pytest.param(("remove", "verify"), "no schedule for 'verify' here; there are: none", id="nothing to remove"),
        pytest.param(("run", "verify"), "no schedule for 'verify'", id="nothing to run"),
    ],
)
def test_what_cannot_be_scheduled_is_refused_and_nothing_is_written(
    checkout: Checkout, systemd: Systemd, tmp_path: Path, arguments: Sequence[str], said: str
) -> None:
    result = checkout.run("schedule", *arguments[:2], "--site", "here", *arguments[2:])
    assert result.exit_code == 2, result.output
    assert re.search(said, result.stderr, re.S), result.stderr
    assert _units(tmp_path) == []
    assert systemd.changes == []


@pytest.mark.proves("schedule-add")
def test_a_site_that_nobody_but_a_person_can_read_is_not_scheduled(
    checkout: Checkout, systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise ProvisionError("Decryption failed", "")

    monkeypatch.setattr(inventory, "read", read)
    result = checkout.run(*ADD, "--at", "03:00 UTC")
    assert result.exit_code == ExitCode.SETUP
    assert "scripts/vault-client" in result.stderr
    assert _units(tmp_path) == []


@pytest.mark.proves("schedule-add")
def test_a_protected_site_has_its_name_typed_when_a_change_of_it_is_scheduled(
    checkout: Checkout, systemd: Systemd, tmp_path: Path
) -> None:
    (checkout.root / "inventories/here/group_vars").mkdir()
    (checkout.root / "inventories/here/group_vars/all.yml").write_text("site_protected: true\n")
    add = ("schedule", "add", "deploy", "--site", "here", "--at", "03:00 UTC")
    refused = checkout.run(*add)
    assert (refused.exit_code, _units(tmp_path)) == (2, [])
    assert "--confirm here" in refused.stderr
    assert checkout.run(*add, "--", "--confirm", "here").exit_code == 0
    assert checkout.run(*ADD, "--at", "03:00 UTC").exit_code == 0


@pytest.mark.proves("schedule-add")
def test_remove_takes_what_is_named_and_ours_and_nothing_else(
    checkout: Checkout, systemd: Systemd, tmp_path: Path
) -> None:
    foreign = tmp_path / "units/metalhub-here-deploy.service"
    foreign.write_text("[Service]\nExecStart=/bin/true\n")
    for job in ("verify", "deploy"):
        checkout.run("schedule", "add", job, "--site", "here", "--at", "03:00 UTC")
    assert foreign.read_text() == "[Service]\nExecStart=/bin/true\n"
    assert checkout.run("schedule", "remove", "deploy", "--site", "here").exit_code == 2
    (listed,) = checkout.document("schedule", "list", "--site", "here")
    assert (listed["job"], listed["next"], listed["last"]) == ("verify", "Sun 2026-11-22 03:00:00 UTC", None)
    assert checkout.run("schedule", "remove", "verify", "--site", "here").exit_code == 0
    assert _units(tmp_path) == ["metalhub-here-deploy.service"]
    assert checkout.document("schedule", "list", "--site", "here") == []


class Driver:
    """Stands in for the driver's own process."""

    def __init__(self) -> None:
        self.calls: list[Sequence[str]] = []
        self.answer: tuple[int, str, str, bool] = (0, '{"result": "ok"}', "fine", False)

    def __call__(self, words: Sequence[str], *_: object) -> tuple[int, str, str, bool]:
        """Remember and answer."""
        self.calls.append(words)
        return self.answer


@pytest.fixture
def driver(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Put a fake driver in the place of the process that a job is."""
    fake = Driver()
    monkeypatch.setattr(timers, "drive", fake)
    return fake


RUN = ("schedule", "run", "verify", "--site", "here")
FAILED = (5, json.dumps({"failures": [{"message": "etcd is silent"}], "next": "look at it"}), "", False)


def _files(checkout: Checkout) -> list[Path]:
    return sorted((checkout.state / "metalhub/here/schedule").glob("*.json"))


@pytest.mark.proves("schedule-reports")
def test_every_run_is_reported_in_words_and_as_json(checkout: Checkout, driver: Driver) -> None:
    checkout.run(*ADD, "--at", "03:00 UTC")
    assert checkout.run(*RUN).exit_code == 0
    driver.answer = FAILED
    assert checkout.run(*RUN).exit_code == 5
    assert driver.calls == [("verify", "--site", "here")] * 2
    good, bad = _files(checkout)
    assert json.loads(good.read_text())["said"] == "fine"
    report = json.loads(bad.read_text())
    assert (report["result"], report["exit_code"], report["why"]) == ("failed", 5, "etcd is silent")
    assert (report["next"], report["document"]["next"]) == ("look at it", "look at it")
    assert "why      etcd is silent\nnext     look at it\n" in bad.with_suffix(".txt").read_text()
    assert {path.stat().st_mode & 0o777 for path in bad.parent.iterdir()} == {0o600}
    (listed,) = checkout.document("schedule", "list", "--site", "here")
    assert (listed["last"]["result"], listed["last"]["why"]) == ("failed", "etcd is silent")


@pytest.mark.proves("schedule-overlap")
def test_a_job_that_finds_the_site_in_use_says_not_now_and_a_second_refusal_is_no_second_report(
    checkout: Checkout, driver: Driver
) -> None:
    checkout.run(*ADD, "--at", "03:00 UTC")
    driver.answer = (3, json.dumps({"error": "Site here is in use", "hint": "wait"}), "", False)
    for _ in range(5):
        assert checkout.run(*RUN).exit_code == 3
    (only,) = _files(checkout)
    assert json.loads(only.read_text())["result"] == "refused"
    driver.answer = (0, "{}", "", False)
    assert checkout.run(*RUN).exit_code == 0
    assert len(_files(checkout)) == 2


@pytest.mark.proves("schedule-back-off")
def test_a_job_that_failed_three_times_waits_says_how_to_clear_that_and_is_cleared_by_a_good_run(
    checkout: Checkout, driver: Driver
) -> None:
    checkout.run(*ADD, "--at", "03:00 UTC")
    driver.answer = FAILED
    assert [checkout.run(*RUN).exit_code for _ in range(4)] == [5, 5, 5, 1]
    assert len(driver.calls) == 3
    held = checkout.run(*RUN)
    assert "verify failed 3 times in a row and waits until" in held.stderr
    assert "etcd is silent" in held.stderr
    assert held.stderr.splitlines()[-1].endswith("provision.py schedule run verify --site here --force")
    assert "failed 3 times, waits" in checkout.run("schedule", "list", "--site", "here").stdout
    driver.answer = (0, "{}", "", False)
    assert checkout.run(*RUN, "--force").exit_code == 0
    assert checkout.run(*RUN).exit_code == 0


@pytest.mark.proves("schedule-windows")
def test_outside_its_window_a_job_does_not_start_and_systemd_is_asked_to_come_again(
    checkout: Checkout, driver: Driver
) -> None:
    soon = datetime.now(UTC) + timedelta(hours=2)
    window = f"{soon:%H:%M}-{soon + timedelta(hours=1):%H:%M} UTC"
    assert checkout.run(*ADD, "--at", f"{soon:%H:%M} UTC", "--window", window).exit_code == 0
    result = checkout.run(*RUN)
    assert result.exit_code == 3
    assert f"the window is shut; it opens {soon:%a %Y-%m-%d %H:%M} UTC" in result.stderr
    assert driver.calls == []


@pytest.mark.proves("schedule-windows")
def test_every_job_is_timed_by_what_journals_call_its_verb(checkout: Checkout, ansible: Ansible) -> None:
    operations = checkout.root / "playbooks/operations"
    operations.mkdir()
    for name in ("etcd_snapshot", "etcd_drill", "certificate_expiry"):
        (operations / f"{name}.yml").write_text(PLAY.format(hosts="rke2_server", more=""), encoding="utf-8")
    for name, job in plan.JOBS.items():
        if name != "upgrade":  # whose journal its own test has
            done = checkout.run(*job.verb.split(), "--site", "here")
            assert done.exit_code == 0, done.output
            assert len(log.runs(checkout.journal, job.noted)) == 1, name


@pytest.mark.proves("schedule-windows")
@pytest.mark.parametrize(
    ("to", "hops"),
    [("v1.35.4+rke2r2", 1), ("v1.36.3+rke2r1", 2), ("v1.33.13+rke2r2", 1), ("nonsense", 1)],
)
def test_an_upgrade_takes_the_time_of_all_releases_on_its_way(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, to: str, hops: int
) -> None:
    table = checkout.root / "roles/preflight/files/compatibility.yml"
    table.parent.mkdir(parents=True)
    table.write_text((ROOT / "roles/preflight/files/compatibility.yml").read_text(encoding="utf-8"), encoding="utf-8")
    versions = checkout.root / "inventories/here/group_vars/all/versions.yml"
    versions.parent.mkdir(parents=True)
    versions.write_text("---\nrke2_version: v1.34.10+rke2r1\n", encoding="utf-8")
    where = project.find()
    schedule = plan.Schedule("here", "upgrade", "03:00 UTC", more=("--to", to))
    assert commands.length_of(where, where.site("here"), schedule) == timedelta(minutes=120 * hops)
    monkeypatch.setattr(log, "durations", lambda runs: {"upgrade": 600.0})
    assert commands.length_of(where, where.site("here"), schedule) == timedelta(minutes=10 * hops)


@pytest.mark.proves("schedule-windows")
def test_what_the_end_of_the_window_stopped_goes_on_in_the_next(checkout: Checkout, driver: Driver) -> None:
    added = checkout.run("schedule", "add", "deploy", "--site", "here", "--at", "03:00 UTC", "--", "--batch", "1")
    assert added.exit_code == 0, added.output
    driver.answer = (130, "{}", "", True)
    run = ("schedule", "run", "deploy", "--site", "here")
    assert checkout.run(*run).exit_code == 0
    driver.answer = (0, "{}", "", False)
    assert checkout.run(*run).exit_code == 0
    assert checkout.run(*run).exit_code == 0
    whole = ("deploy", "--site", "here", "--batch", "1")
    assert driver.calls == [whole, ("deploy", "--site", "here", "--resume"), whole]


WORK = """---
- name: Work
  hosts: rke2_server
  gather_facts: false
  serial: 1
  any_errors_fatal: true
  pre_tasks:
    - name: Stop here when asked to
      ansible.builtin.meta: end_play
      when: provision_stop_file | default('/nonexistent') is exists
  tasks:
    - name: Work until the driver was asked to stop
      ansible.builtin.command: >-
        sh -c 'touch {root}/busy; while ! ls {state}/metalhub/here/run/*/stop; do sleep 0.05; done;
        touch {root}/done-{{{{ inventory_hostname }}}}'
      changed_when: true
"""


@pytest.mark.proves("schedule-windows")
@pytest.mark.parametrize("by_signal", [pytest.param(True, id="by a signal"), pytest.param(False, id="by the window")])
def test_a_job_that_is_stopped_finishes_the_machine_in_hand(checkout: Checkout, by_signal: bool) -> None:
    checkout.stage("first", body=WORK.format(root=checkout.root, state=checkout.state))

    def ask() -> None:
        deadline = datetime.now(UTC) + timedelta(seconds=30)
        while not (checkout.root / "busy").exists() and datetime.now(UTC) < deadline:
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    if by_signal:
        threading.Thread(target=ask).start()
    until = None if by_signal else datetime.now(UTC) + timedelta(seconds=6)
    words = ("deploy", "--site", "here", "--only", "first")
    status, out, said, stopped = timers.drive(words, project.find(), until)
    assert (status, stopped) == (130, not by_signal), said
    assert json.loads(out)["result"] == "interrupted"
    assert not (checkout.root / "done-beta").exists()
    assert (checkout.root / "done-alpha").exists() or not by_signal


def test_a_report_that_a_crash_left_torn_is_passed_over(checkout: Checkout, driver: Driver) -> None:
    checkout.run(*ADD, "--at", "03:00 UTC")
    checkout.run(*RUN)
    (only,) = _files(checkout)
    only.write_text(only.read_text()[:40])
    assert checkout.run(*RUN).exit_code == 0
    assert checkout.run("schedule", "list", "--site", "here").exit_code == 0
