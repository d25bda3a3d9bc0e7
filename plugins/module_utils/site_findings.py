"""What a check has found wrong, and how it is told: what, where, the value seen, the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    key: the parameter or property, as one would search for it.
    what: what is wrong with it, a clause that follows the key.
    where: file and line, or the machine.
    seen: the value found; never a secret.
    fix: what to do, an imperative sentence or a command.
    """

    key: str
    what: str
    where: str
    seen: str
    fix: str

    def as_dict(self) -> dict[str, str]:
        """Return the finding as a module returns it."""
        return asdict(self)


def render(findings: Iterable[Finding]) -> str:
    """Return the findings as text, four lines each, in the order given."""
    parts = []
    for finding in findings:
        parts.append(f"{finding.key} {finding.what}")
        parts += [f"    where: {finding.where}", f"    seen:  {finding.seen}", f"    fix:   {finding.fix}"]
    return "\n".join(parts)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the name out of `known` that is most like `name`, or an empty string when none is alike."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)), "")
