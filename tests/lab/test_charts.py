"""Every value that our roles set does something in the lab's charts: change it, and a rendered object changes."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import yaml

import build
import bundle
import images
from tests import rendered
from tests.contract import tree
from tests.lab.running import Lab

LISTED: dict[str, Any] = tree.load(rendered.CHART_VALUES)
HUB_CONFIG = images.PLATFORM / "jupyterhub/chart/files/jupyterhub_config.py"
# Marks of what stands elsewhere in the same rendering would change with any value, and comments are nobody's.
NOT_OBJECTS = re.compile(r"\n *(checksum/|#)[^\n]*")
HUB_VALUES = re.compile(r"\n *values\.yaml: ([^\n]*)")
# The same in a tenth of the time, and there are hundreds of renderings.
quick = functools.partial(yaml.load, Loader=yaml.CSafeLoader)


@functools.cache
def sources() -> dict[str, Path]:
    """Return every chart of the lab: name -> its directory, or upstream's own packed."""
    own = [*images.PLATFORM.glob("*/chart"), *(build.HERE / "charts").iterdir()]
    found = {str(yaml.safe_load((chart / "Chart.yaml").read_text())["name"]): chart for chart in own}
    for name, source in build.COMPONENTS["charts"].items():
        found[name] = next(bundle.module_chart(name, **source).glob("*.tgz"))
    return found


def render(chart: rendered.Chart, values: dict[str, Any]) -> str:
    """Return what Helm makes of a chart with these values."""
    command = [str(build.program("helm")), "template", chart.name, str(sources()[chart.name]), "--include-crds", "-f-"]
    command += ["--kube-version", rendered.render("{{ rke2_version }}", "lab", "rke2").partition("+")[0]]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{chart.name} cannot be rendered: {done.stderr}"
    return done.stdout


class Settings(dict[str, Any]):
    """The hub's configuration as far as the chart's file writes it: sections and traits are made by naming them."""

    def __missing__(self, name: str) -> Any:
        return self.setdefault(name, Settings())

    def __getattr__(self, name: str) -> Any:
        return self[name]

    __setattr__ = dict.__setitem__


@functools.cache
def hub_settings(values: str, directory: Path) -> str:
    """Return what the lab's hub is set to by the values that its Secret hands it, which are all there are."""
    given = quick(values)
    (directory / "secret").mkdir(exist_ok=True)
    for name in ("JupyterHub.cookie_secret", "CryptKeeper.keys", "ConfigurableHTTPProxy.auth_token"):
        # These come by entries of their own, which are compared as such.
        (directory / f"secret/hub.config.{name}").write_text("00")
    (directory / "secret/values.yaml").write_text(values)
    client = SimpleNamespace(AsyncHTTPClient=SimpleNamespace(configure=lambda name: None))
    settings = Settings()
    with (
        patch.dict(os.environ, LAB_HUB_DIRECTORY=str(directory)),
        patch.dict(sys.modules, {"tornado.httpclient": client}),
        patch.object(sys, "path", sys.path.copy()),
        patch.object(yaml, "safe_load", quick),
    ):
        exec(compile(HUB_CONFIG.read_text(), str(HUB_CONFIG), "exec"), {"c": settings})  # noqa: S102
    # The hub's own code reads what is custom; the chart hands it on.
    return json.dumps([settings, given.get("custom")], sort_keys=True, default=repr)


def in_effect(document: str, directory: Path) -> str:
    """Return an object's text without sums and comments, and without what is only handed to the hub.

    The hub gets all its values by one Secret, so what counts there is what its configuration makes of them.
    """
    text = NOT_OBJECTS.sub("", document)
    values = HUB_VALUES.search(text)
    if not values:
        return text
    return HUB_VALUES.sub("", text) + hub_settings(json.loads(values[1]), directory)


def objects(text: str, directory: Path) -> list[str]:
    """Return what would be in the cluster, one text an object."""
    return [in_effect(document, directory) for document in re.split(r"(?m)^---\s*$", text)]


def changed(value: Any) -> Any:
    """Return another value of the same kind, and of the same form as far as a chart can tell."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str) and re.search("[A-Za-z0-9]", value):
        # The last letter or digit; what stays a number, a size or a hexadecimal key stays one.
        return re.sub(
            r"[A-Za-z0-9](?=[^A-Za-z0-9]*$)",
            lambda found: "1" if found[0] == "0" else "0" if found[0].isdigit() else "b" if found[0] == "a" else "a",
            value,
        )
    return {"other": "value"} if isinstance(value, dict) else ["other"] if isinstance(value, list) else "other"


def mutants(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield, for every leaf, its path and the values with that leaf changed."""
    for keys, value in rendered.leaves(values, into_lists=True):
        other = copy.deepcopy(values)
        part: Any = other
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = changed(value)
        yield ".".join(map(str, keys)), other


def dead(chart: rendered.Chart, directory: Path, leaving_out: frozenset[str] = frozenset()) -> set[str]:
    """Return the paths of all leaves that change nothing, but for those that are left out (see `alike`)."""
    before = objects(render(chart, chart.values), directory)
    assert before == objects(render(chart, chart.values), directory), f"{chart.name} is never rendered alike"
    asked = [(path, other) for path, other in mutants(chart.values) if alike(path) not in leaving_out]
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda mutant: render(chart, mutant[1]), asked))
    return {path for (path, _), text in zip(asked, texts, strict=True) if objects(text, directory) == before}


def alike(path: str) -> str:
    """Return a path with every element of a list taken for any other."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)


@functools.cache
def charts() -> dict[str, list[rendered.Chart]]:
    """Return by name what every chart is given, by the lab and then by the other sites, with all they may choose."""
    found: dict[str, list[rendered.Chart]] = {}
    for site in sorted(rendered.SITES, key=lambda name: name != "lab"):
        for inputs in rendered.CHOICES:
            for chart in rendered.charts(site, **inputs):
                found.setdefault(chart.name, []).append(chart)
    return found


@pytest.mark.proves("lab-chart-values")
@pytest.mark.parametrize("name", [name for name, about in LISTED.items() if "not_in_lab" not in about])
def test_every_value_that_a_role_sets_changes_an_object(name: str, tmp_path: Path) -> None:
    found: set[str] = set()
    seen: frozenset[str] = frozenset()
    for chart in charts()[name]:
        found |= {alike(path) for path in dead(chart, tmp_path, seen)}
        seen |= {alike(path) for path, _ in mutants(chart.values)}
    declared = set(LISTED[name].get("unread_in_lab", {}))
    tree.refuse(
        [f"{name}: {path} changes no object" for path in found - declared]
        + [f"{name}: {path} changes an object, although it is said not to" for path in declared - found],
        "correct the role or the lab's chart, or give a reason in unread_in_lab of tests/contract/chart_values.yml",
    )


@pytest.mark.proves("lab-chart-values")
def test_the_lab_lacks_only_the_charts_that_are_said_to_be_missing() -> None:
    assert {name for name in charts() if name not in sources()} == {
        name for name, about in LISTED.items() if "not_in_lab" in about
    }


@pytest.mark.proves("lab-chart-values")
@pytest.mark.parametrize(
    ("name", "values", "path"),
    [
        pytest.param("metallb", {"nobody": {"reads": 1}}, "nobody.reads", id="unknown-to-the-chart"),
        pytest.param(
            "jupyterhub",
            {
                "hub": {"cookieSecret": "00", "config": {"CryptKeeper": {"keys": ["00"]}}},
                "proxy": {"secretToken": "00"},
                "singleuser": {"cloudMetadata": {"blockWithIptables": False, "ip": "192.0.2.1"}},
            },
            "singleuser.cloudMetadata.ip",
            id="handed-to-the-hub-without-effect",
        ),
    ],
)
def test_a_value_that_does_nothing_is_found(name: str, values: dict[str, Any], path: str, tmp_path: Path) -> None:
    assert dead(rendered.Chart(name, "", "", values), tmp_path) == {path}


# What our roles install; in kube-system, which is RKE2's, this one alone.
NAMESPACES = {
    "cert-manager",
    "gpu-operator",
    "ingress-nginx",
    "jupyterhub",
    "keycloak",
    "local-path-storage",
    "metallb-system",
}
IN_RKE2S = "csi-nfs-controller"


@pytest.mark.proves("platform-placement")
def test_what_serves_all_runs_on_the_servers_of_the_cluster(lab: Lab) -> None:
    pods = json.loads(lab.kubectl("get", "pods", "-A", "-o", "json"))["items"]
    found = {}
    for pod in pods:
        about = pod["metadata"]
        ours = about["namespace"] in NAMESPACES or about.get("labels", {}).get("app") == IN_RKE2S
        # A user's server, a Job's pod and a verification's have no such owner.
        lasting = {owner["kind"] for owner in about.get("ownerReferences", ())} & {"ReplicaSet", "StatefulSet"}
        if ours and lasting:
            found[f"{about['namespace']}/{about['name']}"] = pod["spec"].get("nodeName")
    assert {name.partition("/")[0] for name in found} >= {
        "cert-manager",
        "jupyterhub",
        "keycloak",
        "kube-system",
        "local-path-storage",
        "metallb-system",
    }
    assert {name: node for name, node in found.items() if node not in lab.servers} == {}
