"""`stages`."""

from __future__ import annotations

from provisioner import project
from provisioner import stages as stage_list
from provisioner.commands import options
from provisioner.console import Console


def stages(as_json: options.Json = False) -> int:
    """List the stages of the platform in their order, each with what it is for."""
    where = project.find()
    console = Console(as_json=as_json)
    found = stage_list.read(where.order)
    if as_json:
        console.document(
            [{"stage": stage.name, "file": str(stage.path), "description": stage.description} for stage in found]
        )
    else:
        console.table(("stage", "what it is for"), [(stage.name, stage.description) for stage in found])
    return 0
