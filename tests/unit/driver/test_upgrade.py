"""The way up: which hops, which nodes, and what is refused with which remedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner import runner, upgrade
from provisioner.errors import ProvisionError
from provisioner.runner import RunRequest
from provisioner.upgrade import Hop, Node, release
from tests.unit.driver.conftest import PLAY, Ansible, Checkout

ROOT = Path(__file__).resolve().parents[3]
TABLE: dict[str, Any] = yaml.safe_load((ROOT / "roles/preflight/files/compatibility.yml").read_text())
RUNGS = [str(rung["rke2"]) for rung in TABLE["ladder"]]
# What goes with every minor: nothing is compared.
NOTHING: dict[str, str] = {}

pytestmark = pytest.mark.proves("upgrade-plan")


def site(running: str | Sequence[str], **different: Any) -> list[Node]:
    """Return three servers and three workers; one release for all, or one for each."""
    releases = [running] * 6 if isinstance(running, str) else list(running)
    names = ["s1", "s2", "s3", "w1", "w2", "w3"]
    found = {name: Node(name, name[0] == "s", at, at) for name, at in zip(names, releases, strict=True)}
    return list((found | different).values())


def plan(
    nodes: Sequence[Node],
    target: str,
    versions: dict[str, str] | None = None,
    values: dict[str, str] | None = None,
) -> tuple[Hop, ...]:
    """Return the hops to a release."""
    return upgrade.plan(nodes, target, versions or NOTHING, values or NOTHING, TABLE, "here")


def refused(nodes: Sequence[Node], target: str) -> tuple[str, str]:
    """Return what is said instead of a plan."""
    with pytest.raises(ProvisionError) as error:
        plan(nodes, target)
    return error.value.message, error.value.hint


def test_a_re_release_is_one_hop_over_all_nodes_servers_before_workers() -> None:
    (hop,) = plan(site("v1.35.4+rke2r1"), "v1.35.4+rke2r2")
    assert hop == Hop("v1.35.4+rke2r2", "another release of the same minor", ("s1", "s2", "s3"), ("w1", "w2", "w3"))


def test_the_whole_ladder_is_climbed_without_leaving_out_a_minor_and_over_etcd_3_5_26() -> None:
    hops = plan(site("v1.30.14+rke2r4"), "v1.36.3+rke2r1")
    assert [hop.release for hop in hops] == [
        "v1.31.14+rke2r2",
        "v1.32.13+rke2r1",
        "v1.33.13+rke2r2",
        "v1.34.10+rke2r1",
        "v1.35.7+rke2r1",
        "v1.36.3+rke2r1",
    ]
    assert all("no minor may be left out" in hop.reason for hop in hops[:-1])
    assert "containerd 2" in hops[0].reason


@pytest.mark.parametrize(
    ("running", "target", "over"),
    [
        pytest.param("v1.32.13+rke2r1", "v1.33.13+rke2r2", [], id="from-3.5.26"),
        pytest.param("v1.32.5+rke2r1", "v1.33.13+rke2r2", ["v1.33.10+rke2r3"], id="from-an-older-one"),
        pytest.param("v1.33.6+rke2r1", "v1.34.10+rke2r1", ["v1.33.10+rke2r3"], id="older-than-its-minors-rungs"),
        pytest.param("v1.33.6+rke2r1", "v1.33.12+rke2r1", ["v1.33.10+rke2r3"], id="to-one-that-may-have-3.6"),
        pytest.param("v1.34.1+rke2r1", "v1.35.7+rke2r1", [], id="3.6-already"),
    ],
)
def test_etcd_becomes_3_6_only_from_3_5_26(running: str, target: str, over: list[str]) -> None:
    assert [hop.release for hop in plan(site(running), target)] == [*over, target]


def test_a_downgrade_is_refused_with_the_way_back() -> None:
    message, hint = refused(site("v1.35.7+rke2r1"), "v1.35.4+rke2r1")
    assert "would be a way down" in message
    assert "go back to the release before" in hint


@pytest.mark.parametrize(
    ("target", "said"),
    [
        pytest.param("1.36", "no release of RKE2", id="half-a-release"),
        pytest.param("v1.37.0+rke2r1", "is not known here", id="unknown-minor"),
        pytest.param("v1.31.2+rke2r1", "closes CVE-2025-1974", id="with-a-hole"),
    ],
)
def test_a_release_that_nobody_should_go_to_is_refused(target: str, said: str) -> None:
    assert said in refused(site("v1.30.14+rke2r4"), target)[0]


def test_a_cluster_that_is_not_well_is_not_upgraded() -> None:
    nodes = site("v1.35.4+rke2r1", w2=Node("w2", False, "v1.35.4+rke2r1", "v1.35.4+rke2r1", ready=False))
    message, hint = refused(nodes, "v1.35.4+rke2r2")
    assert "Not Ready: w2" in message
    assert "verify --site here" in hint


def test_what_an_earlier_run_had_in_hand_goes_on_and_what_is_done_is_left_alone() -> None:
    old, new = "v1.35.4+rke2r1", "v1.35.4+rke2r2"
    nodes = site([new, old, old, old, old, old], s2=Node("s2", True, "", new, ready=False))
    (hop,) = plan(nodes, new)
    assert (hop.servers, hop.agents) == (("s2", "s3"), ("w1", "w2", "w3"))


def test_a_node_that_runs_the_release_but_was_not_given_back_is_visited() -> None:
    new = "v1.35.4+rke2r2"
    (hop,) = plan(site(new, w2=Node("w2", False, new, new, cordoned=True)), new)
    assert (hop.servers, hop.agents) == ((), ("w2",))
    assert plan(site(new), new) == ()
    # The last one, just restarted when the driver died.
    (hop,) = plan(site(new, w2=Node("w2", False, "", new, ready=False, cordoned=True)), new)
    assert (hop.servers, hop.agents) == ((), ("w2",))


def test_a_component_that_does_not_go_with_a_hop_forbids_it_with_what_to_set_before() -> None:
    versions = {"gpu_operator": "v25.3.4", "helm": "v3.18.6"}
    hops = plan(site("v1.30.14+rke2r4"), "v1.33.13+rke2r2", versions)
    assert hops[0].blockers == ()
    (said,) = hops[1].blockers
    assert "gpu_operator v25.3.4 does not go with 1.32 (25.10, 26.3)" in said
    assert "first set gpu_operator_chart_version to a release of 25.10 and deploy" in said


@pytest.mark.parametrize(
    ("values", "target", "forbidden"),
    [
        pytest.param({"ingress_nginx_source": "chart"}, "v1.35.7+rke2r1", True, id="its-own-chart"),
        pytest.param({"ingress_nginx_source": "chart"}, "v1.36.3+rke2r1", True, id="and-on-the-way"),
        pytest.param({"ingress_nginx_source": "chart"}, "v1.34.10+rke2r1", False, id="the-last-it-is-made-for"),
        pytest.param({"ingress_nginx_source": "packaged"}, "v1.36.3+rke2r1", False, id="the-packaged"),
        pytest.param(
            {"ingress_nginx_source": "chart", "site_ingress_class": "traefik"}, "v1.35.7+rke2r1", False, id="traefik"
        ),
    ],
)
def test_a_controller_that_a_release_does_not_go_with_forbids_it_with_the_way_out(
    values: dict[str, str], target: str, forbidden: bool
) -> None:
    said = [text for hop in plan(site("v1.33.13+rke2r2"), target, None, values) for text in hop.blockers]
    assert bool(said) == forbidden
    assert all("first set ingress_nginx_source to packaged" in text for text in said)


def test_ingress_nginx_ends_with_1_37_once_that_is_known() -> None:
    table = TABLE | {"minors": TABLE["minors"] | {"1.37": {}}}
    rule = upgrade.blockers("v1.36.3+rke2r1", "v1.37.0+rke2r1", {}, {}, table)
    assert len(rule) == 1
    assert "first set site_ingress_class to traefik" in rule[0]
    assert not upgrade.blockers("v1.36.3+rke2r1", "v1.37.0+rke2r1", {}, {"site_ingress_class": "traefik"}, table)


def test_a_worker_two_minors_behind_is_brought_up_first() -> None:
    message, hint = refused(site(["v1.35.7+rke2r1"] * 5 + ["v1.33.13+rke2r2"]), "v1.36.3+rke2r1")
    assert "too far apart" in message
    assert "--limit w3 --allow-upgrade" in hint


RELEASES = st.sampled_from(RUNGS) | st.builds(
    lambda minor, patch, re: f"v1.{minor}.{patch}+rke2r{re}", st.integers(30, 36), st.integers(0, 20), st.integers(1, 3)
)


@st.composite
def mixtures(draw: st.DrawFn) -> list[str]:
    """Return what six nodes may run in the middle of something: two neighbouring minors, workers even older."""
    base = draw(st.integers(30, 36))
    servers = [name for name in RUNGS if int(name.split(".")[1]) in (base, base + 1)]
    agents = [name for name in RUNGS if int(name.split(".")[1]) in (base - 2, base - 1, base, base + 1)]
    own = st.integers(0, 14).map(lambda patch: f"v1.{base}.{patch}+rke2r1")
    pick = [draw(st.sampled_from(servers) | own) for _ in range(3)]
    return pick + [draw(st.sampled_from(agents) | st.just(pick[0])) for _ in range(3)]


@settings(deadline=None)  # two cores, and others at work
@given(mixtures(), RELEASES)
def test_whatever_runs_no_plan_breaks_a_rule_at_any_moment(running: list[str], target: str) -> None:
    try:
        hops = plan(site(running), target)
    except ProvisionError:
        return
    now = {node.name: (node.server, node.running) for node in site(running)}

    def well() -> bool:
        servers = [found for server, at in now.values() if server and (found := release(at))]
        agents = [found for server, at in now.values() if not server and (found := release(at))]
        apart = max(servers)[1] - min(servers)[1]
        return apart <= 1 and min(servers)[1] - min(agents)[1] <= 3

    began = well()
    for hop in hops:
        for name in (*hop.servers, *hop.agents):
            server, before = now[name]
            assert release(before) < release(hop.release), "no node goes down or stays"  # type: ignore[operator]
            assert not upgrade.forbidden(before, hop.release, TABLE), "no minor left out, etcd 3.6 only from 3.5.26"
            now[name] = (server, hop.release)
            assert not began or well(), f"skew: {now}"
            if not server:
                slowest = min(release(at) or () for is_server, at in now.values() if is_server)
                assert (release(hop.release) or ()) <= slowest, "a kubelet newer than an API server"
    assert {at for _, at in now.values()} == {target}


@settings(deadline=None)  # two cores, and others at work
@given(RELEASES, RELEASES)
def test_a_plan_that_is_interrupted_after_any_node_leads_to_the_same_end(running: str, target: str) -> None:
    try:
        hops = plan(site(running), target)
    except ProvisionError:
        return
    order = [(name, hop.release) for hop in hops for name in (*hop.servers, *hop.agents)]
    for done in range(len(order) + 1):
        now = dict.fromkeys(("s1", "s2", "s3", "w1", "w2", "w3"), running) | dict(order[:done])
        rest = [
            (name, hop.release)
            for hop in plan(site(list(now.values())), target)
            for name in (*hop.servers, *hop.agents)
        ]
        assert {name for name, _ in rest} == {name for name, _ in order[done:]}


# The verb


OLD, NEW = "v1.35.4+rke2r1", "v1.35.4+rke2r2"
VERSIONS = f"---\n# Where this site deviates.\nrke2_version: {OLD}\nother: 1\n"


@pytest.fixture
def machines(checkout: Checkout, ansible: Ansible, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Return what the machines of a site would say, which a test may change; the site has the release OLD."""
    for name in ("upgrade", "upgrade_look", "rollback"):
        path = checkout.root / f"playbooks/operations/{name}.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(PLAY.format(hosts="rke2_server", more=""), encoding="utf-8")
    table = checkout.root / "roles/preflight/files/compatibility.yml"
    table.parent.mkdir(parents=True)
    table.write_text(yaml.safe_dump(TABLE), encoding="utf-8")
    versions = checkout.root / "inventories/here/group_vars/all/versions.yml"
    versions.parent.mkdir(parents=True)
    versions.write_text(VERSIONS, encoding="utf-8")
    found = {
        name: {"name": name, "server": name in ("alpha", "beta"), "running": OLD, "installed": OLD, "ready": True}
        for name in ("alpha", "beta", "one", "two", "three")
    }

    def run(request: RunRequest, *others: Any) -> runner.RunResult:
        if "upgrade_look" in request.playbook.read_text():
            Path(request.extra_vars["provision_report_file"]).write_text(json.dumps(list(found.values())))
        if "rollback" in request.playbook.read_text():
            Path(request.extra_vars["provision_report_file"]).write_text('["pre-upgrade-new-alpha-7"]')
        return ansible(request, *others)

    monkeypatch.setattr(runner, "run", run)
    return found


def versions(checkout: Checkout) -> str:
    """Return the site's versions.yml."""
    return (checkout.root / "inventories/here/group_vars/all/versions.yml").read_text(encoding="utf-8")


def test_a_plan_shows_every_node_and_touches_nothing(
    checkout: Checkout, ansible: Ansible, machines: dict[str, dict[str, Any]]
) -> None:
    machines["two"] |= {"users": 2, "gpus": 1, "holders": ["jupyter-ann"]}
    result = checkout.run("upgrade", "--site", "here", "--to", NEW, "--plan-only")
    assert result.exit_code == 0, result.output
    assert ansible.ran == [["upgrade_look"]]
    assert "hop 1 of 1: v1.35.4+rke2r2: another release of the same minor" in result.output
    assert "2 user servers, 1 GPU in use by jupyter-ann" in result.output
    assert "worker, the canary" in result.output
    assert versions(checkout) == VERSIONS


def test_the_release_is_written_down_once_all_nodes_have_it(
    checkout: Checkout, ansible: Ansible, machines: dict[str, dict[str, Any]]
) -> None:
    found = checkout.document("upgrade", "--site", "here", "--to", NEW, "--drain-policy", "evict")
    assert (found["result"], found["exit_code"]) == ("ok", 0)
    assert ansible.ran == [["upgrade_look"], ["lock", "upgrade", "unlock"]]
    told = ansible.calls[-1].extra_vars
    assert (told["rke2_version"], told["rke2_drain_policy"], told["rke2_agent_batch"]) == (NEW, "evict", [1])
    assert told["rke2_allow_upgrade"] is True
    assert versions(checkout) == VERSIONS.replace(OLD, NEW)


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [("2", [1, 2]), ("50%", [1, "50%"]), ("1", [1]), ("1,2", [1, 2]), ("3,1", [1, 3, 1])],
)
def test_one_worker_comes_first_whatever_is_asked_for_the_others(
    checkout: Checkout, ansible: Ansible, machines: dict[str, dict[str, Any]], batch: str, sizes: list[int | str]
) -> None:
    assert checkout.run("upgrade", "--site", "here", "--to", NEW, "--batch", batch).exit_code == 0
    assert ansible.calls[-1].extra_vars["rke2_agent_batch"] == sizes


@pytest.mark.proves("driver-promotion")
def test_a_release_comes_from_another_site_only_when_it_was_verified_there(
    checkout: Checkout, ansible: Ansible, machines: dict[str, dict[str, Any]]
) -> None:
    there = checkout.root / "inventories/test/group_vars/all/versions.yml"
    there.parent.mkdir(parents=True)
    there.write_text(VERSIONS, encoding="utf-8")
    (checkout.root / "inventories/test/hosts.yml").write_text("---\nall: {hosts: {alpha: }}\n", encoding="utf-8")
    words = ("upgrade", "--site", "here", "--to", NEW, "--promote-from", "test")
    assert [checkout.run(verb, "--site", "test").exit_code for verb in ("deploy", "verify")] == [0, 0]
    calls = len(ansible.calls)
    refused = checkout.run(*words)
    assert refused.exit_code == 2
    assert f"rke2_version is {OLD} there and {NEW} here" in refused.stderr
    assert len(ansible.calls) == calls
    there.write_text(VERSIONS.replace(OLD, NEW), encoding="utf-8")
    assert [checkout.run(verb, "--site", "test").exit_code for verb in ("deploy", "verify")] == [0, 0]
    assert checkout.run(*words).exit_code == 0
    assert versions(checkout) == VERSIONS.replace(OLD, NEW)


def test_a_failed_hop_ends_the_upgrade_and_resume_goes_on_to_the_same_release(
    checkout: Checkout, ansible: Ansible, machines: dict[str, dict[str, Any]]
) -> None:
    far = "v1.36.3+rke2r1"
    for machine in machines.values():
        machine |= {"running": "v1.34.10+rke2r1", "installed": "v1.34.10+rke2r1"}
    ansible.failures["upgrade"] = ("beta", "node beta is not Ready")
    result = checkout.run("upgrade", "--site", "here", "--to", far, "--drain-policy", "skip")
    assert result.exit_code == 1
    assert "beta | Do it: node beta is not Ready" in result.output
    assert "upgrade --site here --resume" in result.output
    assert ansible.stages == [["upgrade_look"], ["upgrade"], []], "the second hop was begun"
    assert versions(checkout) == VERSIONS
    ansible.failures.clear()
    machines["alpha"] |= {"running": "v1.35.7+rke2r1", "installed": "v1.35.7+rke2r1"}
    assert checkout.run("upgrade", "--site", "here", "--resume").exit_code == 0
    hops = [call.extra_vars for call in ansible.calls if "rke2_version" in call.extra_vars]
    assert list(dict.fromkeys(told["rke2_version"] for told in hops)) == ["v1.35.7+rke2r1", far]
    assert {told["rke2_drain_policy"] for told in hops} == {"skip"}
    assert f"rke2_version: {far}\n" in versions(checkout)


def test_what_does_not_go_with_a_hop_ends_it_before_anything_is_touched(
    checkout: Checkout, ansible: Ansible, machines: dict[str, dict[str, Any]]
) -> None:
    (checkout.root / "inventories/here/group_vars/all/more.yml").write_text(
        "certificates_chart_version: v1.19.4\ningress_nginx_source: chart\n"
    )
    result = checkout.run("upgrade", "--site", "here", "--to", "v1.36.3+rke2r1")
    assert result.exit_code == 2
    assert "cert_manager v1.19.4 does not go with 1.36" in result.output
    assert "ingress-nginx by its own chart does not go with 1.36" in result.output
    assert f"upgrade --site here --to {OLD}" not in result.output
    assert ansible.ran == [["upgrade_look"]]


def test_without_a_release_and_without_a_run_to_resume_the_verb_says_what_to_type(
    checkout: Checkout, ansible: Ansible, machines: dict[str, dict[str, Any]]
) -> None:
    assert "--to does not say which release" in checkout.run("upgrade", "--site", "here").output
    assert "No upgrade of here is recorded" in checkout.run("upgrade", "--site", "here", "--resume").output
    assert ansible.ran == []


@pytest.mark.proves("upgrade-rollback")
def test_a_rollback_lays_down_the_release_before_and_names_the_restore_that_follows(
    checkout: Checkout, ansible: Ansible, machines: dict[str, dict[str, Any]]
) -> None:
    words = ("rollback", "--site", "here", "--to", "v1.34.10+rke2r1", "--snapshot", "pre-upgrade-new")
    ansible.failures["rollback"] = ("alpha", "say the site's name")
    result = checkout.run(*words)
    assert result.exit_code == 1
    assert "--snapshot pre-upgrade-new --confirm here" in result.output
    assert versions(checkout) == VERSIONS
    ansible.failures.clear()
    result = checkout.run(*words, "--confirm", "here")
    assert result.exit_code == 0
    assert "restore pre-upgrade-new-alpha-7 --site here" in result.output
    assert ansible.calls[-1].extra_vars["rke2_rollback_confirm"] == "here"
    assert versions(checkout) == VERSIONS.replace(OLD, "v1.34.10+rke2r1")
