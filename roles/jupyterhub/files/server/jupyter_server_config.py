"""Read by every user's server: a computation is activity, also one that prints nothing.

To Jupyter only messages are, so the hub would take a long silent computation for an idle server and stop it.
"""

from __future__ import annotations

from datetime import UTC, datetime

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.ioloop import PeriodicCallback
from traitlets import Integer


class BusyIsActive(AsyncMappingKernelManager):  # type: ignore[misc]  # (no types in the project's environment)
    """Jupyter's own kernels, looked after."""

    look_every = Integer(60, config=True, help="After how many seconds kernels are looked at again")

    def initialize_culler(self) -> None:
        """Begin with the first kernel, as Jupyter does to look for idle ones."""
        super().initialize_culler()
        PeriodicCallback(self.look, 1000 * self.look_every).start()

    def look(self) -> None:
        """Count a busy kernel as activity of this moment."""
        if any(getattr(kernel, "execution_state", "") == "busy" for kernel in self._kernels.values()):
            self.last_kernel_activity = datetime.now(UTC)


c.ServerApp.kernel_manager_class = BusyIsActive  # type: ignore[name-defined]  # noqa: F821  (Jupyter's configuration)
