#!/usr/bin/env python3
"""Deploy, verify and look after a site: `scripts/provision.py --help`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE.parent / ".venv"
sys.path.insert(0, str(HERE))
if sys.version_info < (3, 11) or any(
    importlib.util.find_spec(n) is None for n in ("ansible_runner", "pydantic", "typer")
):
    if not (VENV / "bin/python").exists() or Path(sys.prefix).resolve() == VENV.resolve():
        sys.stderr.write(
            f"The driver's libraries are missing from {sys.executable}.\n  -> make -C {HERE.parent} setup\n"
        )
        sys.exit(4)
    os.execv(VENV / "bin/python", [str(VENV / "bin/python"), *sys.argv])

from provisioner.cli import main  # noqa: E402  (only now is it known that its libraries are there)

if __name__ == "__main__":
    main()
