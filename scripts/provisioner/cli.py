"""The application: its verbs, and the one place that ends the process."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from provisioner.commands import (
    adopt,
    bundle,
    check,
    cluster,
    deploy,
    etcd,
    node,
    restore,
    rotate,
    schedule,
    snapshot,
    stages,
    status,
    support,
    upgrade,
    verify,
)
from provisioner.commands.options import JSON_KEY
from provisioner.console import Console
from provisioner.errors import ExitCode, ProvisionError, command

if TYPE_CHECKING:
    from typer.models import Context


class _Group(TyperGroup):
    """Turns what a verb returns or raises into an exit code, and every error into a message with a next command."""

    def invoke(self, ctx: Any) -> Any:
        try:
            code = super().invoke(ctx)
        except ProvisionError as error:
            self._refuse(ctx, error.message, error.hint, error.exit_code)
        except typer.TyperException as error:
            self._refuse(
                ctx,
                error.format_message(),
                command(*getattr(error, "ctx", ctx).command_path.split()[1:], "--help"),
                ExitCode.USAGE,
            )
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001  (whatever it is, it is a defect and is reported as one)
            if os.environ.get("METALHUB_TRACEBACK"):
                traceback.print_exc()
            hint = f"This is a defect of the driver. See where: METALHUB_TRACEBACK=1 {command('--help')}"
            self._refuse(ctx, f"{type(error).__name__}: {error}", hint, ExitCode.SETUP)
        raise typer.Exit(code or 0)

    @staticmethod
    def _refuse(ctx: Context, message: str, hint: str, code: ExitCode) -> None:
        console = Console(as_json=bool(ctx.meta.get(JSON_KEY)))
        console.error(message, hint)
        console.document({"error": message, "hint": hint, "exit_code": int(code)})
        raise typer.Exit(code)


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph of a docstring
    help="Deploys, verifies and looks after a site.",
    epilog="Exit codes: 0 done, 1 a stage failed, 2 wrong use, 3 not now, 4 set-up broken, 5 unhealthy, 130 stopped.",
)
for verb in (
    stages.stages,
    check.check,
    deploy.deploy,
    verify.verify,
    status.status,
    upgrade.upgrade,
    upgrade.rollback,
    adopt.adopt,
):
    app.command(verb.__name__)(verb)
app.command("restore")(restore.restore)
app.command("support-bundle")(support.support_bundle)
for group in (bundle, snapshot, node, cluster, rotate, etcd, schedule):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2])


def main() -> None:
    """Run the driver with the arguments of this process and end it."""
    app()
