"""What a site's values come to, through a role's own templates: for tests that compare them with something else."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from tests.contract import tree
from tests.unit.preflight import sites

CHART_VALUES = tree.ROOT / "tests/contract/chart_values.yml"
# Where a role hands values to a chart that RKE2 brings with it: role -> its list of HelmChartConfigs.
PACKAGED = {"ingress_nginx": "__ingress_nginx_configs"}
# The version of such a chart: it is RKE2's own.
WITH_RKE2 = "packaged"

SITES = ("h2iosc", "lab")
# What a site may choose beside what it says, laid over that: everything that adds values at once, then what excludes
# one another.
CHOICES: list[dict[str, Any]] = [
    {},
    {
        "gpu_operator_mig_layouts": {"sliced": [{"devices": "all", "slices": {"1g.10gb": 7}}]},
        "gpu_operator_shared": {"nvidia.com/mig-1g.10gb": 4},
        "jupyterhub_user_networks": ["192.0.2.0/24"],
        "keycloak_optimized": True,
    },
    {"ingress_nginx_source": "chart"},
    # What the site has for ingress-nginx is nothing to Traefik.
    {"site_ingress_class": "traefik", "ingress_nginx_values": {}},
]

_copies = tempfile.TemporaryDirectory()


@functools.cache
def _copy(site: str) -> Path:
    """Return a copy of one of the repository's sites that has secrets; it goes with the process."""
    return sites.make(Path(_copies.name), [], site)


@functools.cache
def _known(site: str, host: str) -> tuple[DataLoader, dict[str, Any]]:
    return sites.variables(_copy(site), host)


@functools.cache
def _role(name: str, part: str) -> dict[str, Any]:
    path = tree.ROOT / "roles" / name / part / "main.yml"
    return dict(DataLoader().load_from_file(str(path), trusted_as_template=True)) if path.exists() else {}


def render(template: Any, site: str, role: str = "", host: str = "localhost", **inputs: Any) -> Any:
    """Return what a template (or data with templates in it) comes to, as plain data.

    site: one of the repository's own. role: the role in whose eyes, where it matters. host: on which host.
    inputs: what is given on top, as an extra variable would be.
    """
    loader, known = _known(site, host)
    place = str(tree.ROOT / "roles" / role)
    variables = known | {"ansible_search_path": [place], "role_path": place}
    if role:
        variables = _role(role, "defaults") | variables | _role(role, "vars")
    return json.loads(json.dumps(Templar(loader, variables=variables | inputs).template(sites.trusted(template))))


@dataclass(frozen=True)
class Chart:
    """A chart that a role installs at a site, and the values it gives it."""

    name: str
    version: str
    role: str
    values: dict[str, Any]


def _released(role: Path, site: str, inputs: dict[str, Any]) -> Iterator[Chart]:
    for task in tree.role_tasks(role):
        if not task.module.endswith(".import_role") or task.args != {"name": "helm_release"}:
            continue
        when = task.data.get("when", True)
        conditions = when if isinstance(when, list) else [when]
        if not all(render(f"{{{{ {one} }}}}", site, role.name, **inputs) for one in conditions):
            continue
        given = {
            name: render(task.data["vars"][f"helm_release_{name}"], site, role.name, **inputs)
            for name in ("chart", "version", "values")
        }
        yield Chart(given["chart"], given["version"], role.name, given["values"])


def charts(site: str, **inputs: Any) -> list[Chart]:
    """Return every chart that roles install or give values to at a site, the inputs of any role given on top."""
    found = [chart for role in tree.roles() for chart in _released(role, site, inputs)]
    for role, configs in PACKAGED.items():
        for config in render(f"{{{{ {configs} }}}}", site, role, **inputs):
            values = yaml.safe_load(config["spec"]["valuesContent"])
            found.append(Chart(config["metadata"]["name"], WITH_RKE2, role, values))
    return found


Keys = tuple[str | int, ...]


def leaves(value: Any, into_lists: bool = False, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield every leaf of values with the keys that lead to it; a list is one unless its elements are asked for.

    An empty mapping sets nothing, but as an element of a list it is something.
    """
    if isinstance(value, dict) and (value or not any(isinstance(key, int) for key in path)):
        for key, inner in value.items():
            yield from leaves(inner, into_lists, (*path, key))
    elif isinstance(value, list) and value and into_lists:
        for number, inner in enumerate(value):
            yield from leaves(inner, into_lists, (*path, number))
    else:
        yield path, value
