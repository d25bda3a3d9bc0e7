"""One run per site at a time on a control machine, and no lock outlives its holder."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from provisioner import lock, project
from provisioner.errors import ExitCode, ProvisionError
from tests.unit.driver.conftest import Checkout

pytestmark = pytest.mark.proves("driver-lock")
SCRIPTS = Path(lock.__file__).parents[1]
HOLD = """
from provisioner import lock, project
with lock.hold(project.find().site("here"), "deploy"):
    print(flush=True)
    input()
"""


@contextmanager
def _holder() -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the site."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD], env=environment, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "\n"
        try:
            yield child
        finally:
            child.kill()


def test_a_second_process_is_refused_and_told_who_holds_the_site(checkout: Checkout) -> None:
    site = project.find().site("here")
    with _holder() as child:
        with (
            pytest.raises(ProvisionError, match=rf"`deploy` \(pid {child.pid}\) since 20") as caught,
            lock.hold(site, "x"),
        ):
            pytest.fail("the site was held twice")
        assert caught.value.exit_code == ExitCode.NOT_NOW
        assert "status --site here" in caught.value.hint
        held = lock.held_by(site)
        assert held is not None and (held.pid, held.verb) == (child.pid, "deploy")


def test_the_lock_dies_with_its_holder(checkout: Checkout) -> None:
    site = project.find().site("here")
    with _holder() as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert lock.held_by(site) is None
        with lock.hold(site, "verify"):
            held = lock.held_by(site)
            assert held is not None and held.pid == os.getpid()
    assert lock.held_by(site) is None


def test_another_site_is_free(checkout: Checkout) -> None:
    (checkout.root / "inventories/there").mkdir()
    with _holder(), lock.hold(project.find().site("there"), "deploy"):
        pass


def test_a_control_machine_keeps_its_name(checkout: Checkout) -> None:
    site = project.find().site("here")
    first = lock.control_id(site)
    assert len(first) == 16
    assert lock.control_id(site) == first
    (site.state / "control_id").write_text("")  # killed between creating and writing
    assert len(lock.control_id(site)) == 16


def test_the_state_of_a_site_is_for_its_owner_alone(checkout: Checkout) -> None:
    site = project.find().site("here")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (site.state, site.journal)] == [0o700, 0o700]
