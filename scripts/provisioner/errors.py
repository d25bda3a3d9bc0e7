"""What goes wrong, said so that the reader knows the next command to type."""

from __future__ import annotations

import difflib
import shlex
import sys
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ExitCode(IntEnum):
    """What the process tells its caller."""

    DONE = 0
    FAILED = 1  # a stage failed, or a bundle is not what its manifest says
    USAGE = 2
    NOT_NOW = 3  # outside the window, or another run has the site: nothing was done, try later
    SETUP = 4
    UNHEALTHY = 5
    INTERRUPTED = 130


class ProvisionError(Exception):
    """A failure with its remedy.

    message: what, where, and the value seen. hint: the fix, ending with the next command to type.
    exit_code: how the process ends.
    """

    def __init__(self, message: str, hint: str, exit_code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def command(*words: str) -> str:
    """Return a command line of this program as the user started it, ready to be typed in the same directory."""
    program = sys.argv[0] if sys.argv[0].endswith("provision.py") else "scripts/provision.py"
    return shlex.join([program if "/" in program else f"./{program}", *words])
