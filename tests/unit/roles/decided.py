"""What a role makes of its inputs and of answers, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar


class Decided:
    """A role's variables; `given` wins over its defaults and its own."""

    def __init__(self, role: Path, given: dict[str, Any]) -> None:
        self.role, self.loader = role, DataLoader()
        self.variables: dict[str, Any] = {}
        for part in ("defaults", "vars"):
            path = str(role / part / "main.yml")
            self.variables |= self.loader.load_from_file(path, trusted_as_template=True)
        self.variables |= {"role_path": str(role), "ansible_check_mode": False} | given

    def get(self, name: str) -> Any:
        """Return a variable's value."""
        return Templar(self.loader, variables=self.variables).template(self.variables[name])

    def refused(self, name: str, file: str = "gates") -> str:
        """Return what an assertion of a task file says, empty when it passes."""
        tasks = self.loader.load_from_file(str(self.role / f"tasks/{file}.yml"), trusted_as_template=True)
        task = next(task for task in tasks if task["name"].endswith(name))
        templar = Templar(self.loader, variables=self.variables)
        conditions = task["ansible.builtin.assert"]["that"]
        for condition in conditions if isinstance(conditions, list) else [conditions]:
            if not templar.evaluate_conditional(condition):
                return str(templar.template(task["ansible.builtin.assert"]["fail_msg"]))
        return ""
