"""Read by the hub after its chart's own configuration; the work is done in modules, which can be tested."""

import metalhub_access
import metalhub_homes
import metalhub_login
import metalhub_maintenance
import metalhub_profiles

for module in (metalhub_login, metalhub_access, metalhub_maintenance, metalhub_profiles, metalhub_homes):
    module.configure(c)  # type: ignore[name-defined]  # noqa: F821  (what the hub calls its configuration)
