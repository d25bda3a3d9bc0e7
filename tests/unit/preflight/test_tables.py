"""The data beside the role: what goes with what, the ladder of upgrades, what never changes, which ports there are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import yaml

from plugins.module_utils.site_values import to_release
from tests.unit.preflight.sites import ROLES, ROOT

PREFLIGHT = ROLES / "preflight"
TABLE: dict[str, Any] = yaml.safe_load((PREFLIGHT / "files/compatibility.yml").read_text(encoding="utf-8"))
VARIABLES: dict[str, Any] = yaml.safe_load((PREFLIGHT / "vars/main.yml").read_text(encoding="utf-8"))
SPECS: dict[str, Any] = yaml.safe_load((PREFLIGHT / "meta/argument_specs.yml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = SPECS["argument_specs"]["main"]["options"]


def series(version: str) -> str:
    """Return major and minor of a version."""
    return ".".join(version.removeprefix("v").split(".")[:2])


def numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers, so that 3.5.9 comes before 3.5.26."""
    return tuple(int(part) for part in version.split("."))


@pytest.mark.proves("preflight-compatibility")
def test_every_minor_says_something_of_every_component_and_no_minor_is_left_out() -> None:
    columns = {"carries", *TABLE["components"]} - {"rke2"}
    for minor, row in TABLE["minors"].items():
        assert row.keys() - {"minimum"} == columns, minor
        assert all(row[column] for column in columns), minor
    assert [int(minor.split(".")[1]) for minor in TABLE["minors"]] == list(range(30, 30 + len(TABLE["minors"])))


@pytest.mark.proves("preflight-compatibility")
def test_every_neighbouring_pair_of_minors_shares_a_release_of_everything_that_outlives_the_step() -> None:
    for (lower, before), (upper, after) in pairwise(TABLE["minors"].items()):
        for component in TABLE["components"].keys() - {"rke2"}:
            assert set(before[component]) & set(after[component]), f"{component} cannot get from {lower} to {upper}"


@pytest.mark.proves("preflight-compatibility")
def test_the_ladder_rises_without_leaving_out_a_minor_and_takes_etcd_3_6_only_after_3_5_26() -> None:
    assert len(TABLE["ladder"]) > 1
    for lower, upper in pairwise(TABLE["ladder"]):
        before, after = to_release(lower["rke2"]), to_release(upper["rke2"])
        assert before and after and before < after
        assert after[1] - before[1] in (0, 1)
        assert numbers(lower["etcd"]) <= numbers(upper["etcd"])
        if series(lower["etcd"]) == "3.5" and series(upper["etcd"]) == "3.6":
            assert numbers(lower["etcd"]) >= (3, 5, 26)
    assert {series(rung["etcd"]) for rung in TABLE["ladder"]} == {"3.5", "3.6"}


@pytest.mark.proves("preflight-compatibility")
def test_every_rung_agrees_with_the_row_of_its_minor() -> None:
    last = {series(rung["rke2"]): rung for rung in TABLE["ladder"]}
    assert last.keys() == TABLE["minors"].keys()
    for rung in TABLE["ladder"]:
        assert set(rung["gpu_operator"]) <= set(TABLE["minors"][series(rung["rke2"])]["gpu_operator"]), rung["rke2"]
    for minor, rung in last.items():
        carried = {name: series(rung[name]) for name in ("containerd", "etcd")}
        assert carried == TABLE["minors"][minor]["carries"]


@pytest.mark.proves("preflight-compatibility")
def test_every_series_of_the_gpu_operator_runs_on_the_containerd_that_its_minors_carry() -> None:
    assert {name for row in TABLE["minors"].values() for name in row["gpu_operator"]} == TABLE["gpu_operator"].keys()
    for minor, row in TABLE["minors"].items():
        for name in row["gpu_operator"]:
            assert numbers(TABLE["gpu_operator"][name]["containerd"]) <= numbers(row["carries"]["containerd"]), minor


@pytest.mark.proves("preflight-compatibility")
@pytest.mark.parametrize(
    "file",
    [
        pytest.param("roles/rke2/defaults/main.yml", id="default"),
        pytest.param("inventories/h2iosc/group_vars/all/versions.yml", id="h2iosc"),
        pytest.param("inventories/lab/group_vars/all/versions.yml", id="lab"),
    ],
)
def test_every_release_that_the_repository_names_is_in_the_table_and_closed(file: str) -> None:
    version = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["rke2_version"]
    release, row = to_release(version), TABLE["minors"][series(version)]
    least = to_release(row["minimum"]["rke2"]) if "minimum" in row else (0,)
    assert release
    assert least
    assert release >= least


@pytest.mark.proves("preflight-compatibility")
def test_the_releases_beside_the_defaults_are_in_their_order_and_each_of_a_series_that_some_minor_takes() -> None:
    for component, releases in TABLE["releases"].items():
        assert releases == sorted(releases, key=lambda version: numbers(version.removeprefix("v")))
        taken = {one for row in TABLE["minors"].values() for one in row[component]}
        assert {series(version) for version in releases} <= taken
        assert len({series(version) for version in releases}) == len(releases)


@pytest.mark.proves("preflight-schema")
def test_what_never_changes_is_a_required_parameter_of_the_site() -> None:
    immutable = yaml.safe_load((PREFLIGHT / "meta/immutable.yml").read_text(encoding="utf-8"))["immutable"]
    assert {"site_cluster_cni", "site_pod_network", "site_service_network", "site_cluster_domain"} == {
        item["parameter"] for item in immutable
    }
    for item in immutable:
        assert SCHEMA[item["parameter"]]["required"]
        assert "Never changes" in SCHEMA[item["parameter"]]["description"]


@pytest.mark.proves("preflight-schema")
def test_the_schema_holds_site_parameters_and_secrets_and_marks_the_secrets() -> None:
    for name, spec in SCHEMA.items():
        assert name.startswith(("site_", "vault_site_"))
        assert spec["description"]
        assert spec.get("no_log", False) == name.startswith("vault_")


@pytest.mark.proves("preflight-ports")
def test_every_port_that_rke2_and_canal_need_is_tried() -> None:
    specs = VARIABLES["__preflight_ports"]
    ports = {(spec["protocol"], spec["port"], role) for spec in specs for role in spec["roles"]}
    server = {("tcp", port) for port in (2379, 2380, 2381, 2382, 6443, 6444, 9345, 10250, 10257, 10259)} | {
        ("udp", 8472)
    }
    agent = {("tcp", port) for port in (6443, 6444, 10250)} | {("udp", 8472)}
    assert {(protocol, port) for protocol, port, role in ports if role == "server"} >= server
    assert {(protocol, port) for protocol, port, role in ports if role == "agent"} >= agent
    called = {(spec["port"], role) for spec in specs for role in spec["callers"]}
    assert {(9345, "agent"), (6443, "agent"), (2380, "server"), (10250, "server")} <= called
    assert (2379, "agent") not in called
