"""What the role rke2 decides from a machine's answers, without any machine."""

from __future__ import annotations

import base64
import datetime
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

from plugins.modules import rke2_info, rke2_node
from tests.unit.roles.decided import Decided

ROLE = Path(__file__).resolve().parents[3] / "roles/rke2"
KNOWN: dict[str, Any] = yaml.safe_load((ROLE / "files/config_keys.yml").read_text())
VERSION = "v1.35.7+rke2r1"
CONTROL_PLANE = "node-role.kubernetes.io/control-plane:NoSchedule"
HOSTS = {"one": "192.0.2.21", "two": "192.0.2.22", "three": "192.0.2.23", "worker": "192.0.2.24"}


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    """Make filters and tests of collections resolvable."""
    init_plugin_loader()


def answer(**different: Any) -> dict[str, Any]:
    """Return what rke2_info says of a converged server, with `different` parts."""
    node = {"ready": True, "voter": True, "version": VERSION, "labels": {}, "annotations": {}, "unschedulable": False}
    now: dict[str, Any] = {
        "installed_version": VERSION,
        "running_version": VERSION,
        "service": {"active": "active", "sub": "running", "enabled": True},
        "other_service_active": False,
        "datastore": True,
        "joined": True,
        "join_url": "https://192.0.2.20:9345",
        "digest": {"now": "a", "started": "a"},
        "peers": {"192.0.2.20": "ready", "192.0.2.22": "ready", "192.0.2.23": "ready"},
        "images": ["rke2-images-canal.linux-amd64.tar.zst", "rke2-images-core.linux-amd64.tar.zst"],
        "nodes": {"one": node | {"taints": ["node-role.kubernetes.io/control-plane=:NoSchedule"]}},
        "sysctls": {},
        "space": {"/var/lib/rancher": 10_000},
        "staged": {},
        "etcd_account": False,
        "chart_configs": [],
    }
    return now | different


class Role(Decided):
    """The role's variables for one host, with inputs and registered answers as they would be."""

    def __init__(self, service: str = "server", now: dict[str, Any] | None = None, **inputs: Any) -> None:
        """Load defaults and variables; `inputs` win over both."""
        given: dict[str, Any] = {
            "inventory_hostname": "one",
            "groups": {"rke2": list(HOSTS), "rke2_server": ["one", "two", "three"], "rke2_agent": ["worker"]},
            "hostvars": {name: {"site_node_address": address} for name, address in HOSTS.items()},
            "rke2_cluster_name": "here",
            "rke2_version": VERSION,
            "rke2_bundle": "",
            "rke2_api_address": "192.0.2.20",
            "rke2_node_address": HOSTS["one"],
            "rke2_token": "server-token",
            "rke2_agent_token": "agent-token",
            "rke2_cni": "canal",
            "rke2_pod_network": "10.42.0.0/16",
            "rke2_service_network": "10.43.0.0/16",
            "rke2_cluster_domain": "cluster.local",
            "rke2_proxy": "",
            "rke2_proxy_bypass": [],
            "__rke2_service": service,
            "__rke2_info": now or answer(),
        }
        super().__init__(ROLE, given | inputs)

    def file(self, path: str) -> dict[str, Any]:
        """Return the entry for a path among the files that would be laid down."""
        found: list[dict[str, Any]] = [file for file in self.get("__rke2_files") if file["path"] == path]
        assert len(found) == 1, f"{path} is laid down {len(found)} times"
        return found[0]


# The gates


@pytest.mark.proves("rke2-gates")
@pytest.mark.parametrize(
    ("wanted", "allowed", "gate", "said"),
    [
        pytest.param(
            "v1.35.7+rke2r2", False, "Refuse another version unless asked for", "--allow-upgrade", id="re-release"
        ),
        pytest.param("v1.36.3+rke2r1", False, "Refuse another version unless asked for", VERSION, id="minor"),
        pytest.param("v1.36.3+rke2r1", True, "", "", id="allowed"),
        pytest.param("v1.35.4+rke2r1", True, "Refuse a downgrade and a skipped minor version", "v1.36", id="downgrade"),
        pytest.param("v1.37.1+rke2r1", True, "Refuse a downgrade and a skipped minor version", "v1.36", id="skipped"),
        pytest.param(VERSION, False, "", "", id="same"),
    ],
)
def test_a_running_version_changes_only_when_asked_for_and_only_upwards(
    wanted: str, allowed: bool, gate: str, said: str
) -> None:
    role = Role(rke2_version=wanted, rke2_allow_upgrade=allowed)
    gates = ("Refuse another version unless asked for", "Refuse a downgrade and a skipped minor version")
    told = {name: role.refused(name) for name in gates}
    assert {name for name, text in told.items() if text} >= ({gate} if gate else set())
    if gate:
        assert said in told[gate] and VERSION in told[gate] and "one" in told[gate]
    else:
        assert told == dict.fromkeys(gates, "")


@pytest.mark.proves("rke2-gates")
def test_an_empty_machine_takes_any_version() -> None:
    role = Role(now=answer(running_version="", installed_version="", datastore=False, joined=False))
    assert role.refused("Refuse another version unless asked for") == ""
    assert role.refused("Refuse a downgrade and a skipped minor version") == ""


@pytest.mark.proves("rke2-gates")
@pytest.mark.parametrize(
    ("service", "secret", "file"),
    [("server", "vault_site_rke2_token", "/server/token"), ("agent", "vault_site_rke2_agent_token", "/agent-token")],
)
def test_a_refused_token_is_told_by_its_vaults_name_and_not_shown(service: str, secret: str, file: str) -> None:
    role = Role(service, answer(peers={"192.0.2.20": "refused", "192.0.2.22": "ready"}))
    told = role.refused("Refuse a token that the cluster refuses")
    assert "192.0.2.20" in told and "192.0.2.22" not in told
    assert secret in told and file in told
    assert "server-token" not in told and "agent-token;" not in told.replace(file, "")
    assert Role(service).refused("Refuse a token that the cluster refuses") == ""


@pytest.mark.proves("rke2-gates")
def test_a_machine_of_the_other_kind_is_refused() -> None:
    gate = "Refuse a machine that runs RKE2's other service"
    assert "rke2-uninstall.sh" in Role(now=answer(other_service_active=True)).refused(gate)
    assert Role().refused(gate) == ""


@pytest.mark.proves("rke2-gates")
def test_an_agent_needs_a_server_that_is_ready_unless_it_has_joined() -> None:
    gate, silent = "Refuse an agent without a server", {"192.0.2.20": "silent"}
    assert "--only rke2_server" in Role("agent", answer(joined=False, peers=silent)).refused(gate)
    assert Role("agent", answer(joined=True, peers=silent)).refused(gate) == ""
    assert Role("agent", answer(joined=False)).refused(gate) == ""


@pytest.mark.proves("rke2-gates")
@pytest.mark.parametrize(
    ("different", "mode"),
    [
        pytest.param({"datastore": True}, "member", id="has-data"),
        pytest.param({"datastore": False}, "join", id="another-serves"),
        pytest.param({"datastore": False, "peers": {"192.0.2.20": "listening"}}, "bootstrap", id="nobody-serves"),
    ],
)
def test_a_server_starts_a_cluster_only_where_none_serves(different: dict[str, Any], mode: str) -> None:
    assert Role(now=answer(**different)).get("__rke2_mode") == mode


# The configuration


def faults(service: str = "server", version: str = VERSION, **config: Any) -> str:
    """Return what is said of keys that a site gives in rke2_config."""
    return Role(service, rke2_version=version, rke2_config=config).refused(
        "Refuse a configuration that RKE2 would drop in silence"
    )


@pytest.mark.proves("rke2-config-keys")
@pytest.mark.parametrize("service", ["server", "agent"])
@pytest.mark.parametrize("minor", KNOWN["minors"])
def test_what_the_role_writes_itself_is_known_to_every_minor(minor: str, service: str) -> None:
    inputs: dict[str, Any] = {"rke2_profile": "cis", "rke2_kubelet_args": ["a=b"], "rke2_kube_apiserver_args": ["a=b"]}
    role = Role(service, rke2_version=f"v{minor}.14+rke2r1", rke2_audit_policy={"a": "b"}, **inputs)
    assert role.get("__rke2_faults") == []
    assert set(role.get("__rke2_config")) >= {"profile", "kubelet-arg", "node-ip"}


@pytest.mark.proves("rke2-config-keys")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param({"service": "server", "write-kubeconfig-mod": "0600"}, "write-kubeconfig-mode", id="nearest"),
        pytest.param({"service": "agent", "etcd-arg": []}, "group_vars/rke2_server/rke2.yml", id="server-only"),
        pytest.param({"service": "server", "flannel-backend": "vxlan"}, "no key that RKE2 1.35 knows", id="of-k3s"),
        pytest.param({"service": "server", "tls-san": ["x"]}, "from rke2_tls_san", id="own"),
        pytest.param({"service": "server", "kubelet-arg+": ["x"]}, "from rke2_kubelet_args", id="own-appended"),
        pytest.param(
            {"version": "v1.30.14+rke2r4", "etcd-s3-retention": 5}, "not known by RKE2 1.30", id="later-minor"
        ),
        pytest.param({"version": "v1.31.11+rke2r1", "etcd-s3-retention": 5}, "from v1.31.12 on", id="later-patch"),
        pytest.param({"version": "v1.29.1+rke2r1"}, "1.30, 1.31, 1.32, 1.33, 1.34, 1.35, 1.36", id="unknown-minor"),
        pytest.param({"version": "latest"}, "rke2_version is latest", id="no-version"),
    ],
)
def test_a_key_that_would_be_dropped_is_refused_with_what_to_do(given: dict[str, Any], said: str) -> None:
    told = faults(**given)
    assert said in told and told.startswith("one: ") and "group_vars/" in told
    key = next((key for key in given if key not in ("service", "version")), "")
    assert key in told


@pytest.mark.proves("rke2-config-keys")
def test_keys_in_their_place_are_taken_and_all_faults_are_told_at_once() -> None:
    good: dict[str, Any] = {"etcd-s3": True, "etcd-s3-retention": 5, "disable+": ["rke2-ingress-nginx"]}
    assert faults("server", **good) == ""
    assert faults("agent", **{"resolv-conf": "/etc/resolv.conf"}) == ""
    told = faults("server", nonsense=1, **{"node-ip": "x"})
    assert "nonsense" in told and "rke2_node_address" in told
    assert "nearest" not in told


@pytest.mark.proves("rke2-config-keys")
def test_the_table_is_whole() -> None:
    names = KNOWN["agent"] + KNOWN["server"]
    assert len(names) == len(set(names))
    assert set(KNOWN["since"]) <= set(names)
    assert all(set(since) <= set(KNOWN["minors"]) for since in KNOWN["since"].values())
    variables = Role()
    assert set(variables.get("__rke2_own_keys")) <= set(names)
    described = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["server"]["options"]
    assert set(variables.get("__rke2_own_keys").values()) <= set(described)


# Labels and taints


def differs(role: Role) -> bool:
    """Return whether a call would be made for labels and taints."""
    return bool(role.get("__rke2_node_differs"))


@pytest.mark.proves("rke2-labels")
@pytest.mark.parametrize("service", ["server", "agent"])
@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"rke2_node_labels": {"x/rack": "upper", "on": True, "n": 3}}, id="labels"),
        pytest.param({"rke2_node_taints": ["k=v:NoSchedule", "k:NoExecute"]}, id="taints"),
        pytest.param({"rke2_control_plane_taint_enabled": False, "rke2_node_labels": {"b": "1", "a": "2"}}, id="both"),
    ],
)
def test_the_role_asks_for_a_change_exactly_when_the_module_would_make_one(
    service: str, inputs: dict[str, Any]
) -> None:
    metadata: dict[str, Any] = {"name": "one", "labels": {"theirs": "1"}, "annotations": {"theirs": "2"}}
    node: dict[str, Any] = {"metadata": metadata, "spec": {"taints": [{"key": "theirs", "effect": "NoSchedule"}]}}

    def seen(**different: Any) -> Role:
        taints = [f"{taint['key']}={taint.get('value', '')}:{taint['effect']}" for taint in node["spec"]["taints"]]
        shown = {"labels": metadata["labels"], "annotations": metadata["annotations"], "taints": taints}
        return Role(service, answer(nodes={"one": shown}), **(inputs | different))

    def change(role: Role) -> dict[str, Any]:
        labels = {key: rke2_node.text(value) for key, value in role.get("rke2_node_labels").items()}
        taints = [rke2_node.parsed(taint) for taint in role.get("__rke2_taints")]
        return rke2_node.difference(node, labels, taints, role.get("__rke2_own_taints"))

    def apply(patch: dict[str, Any]) -> None:
        for part, values in patch.get("metadata", {}).items():
            merged = metadata[part] | values
            metadata[part] = {name: value for name, value in merged.items() if value is not None}
        if "spec" in patch:
            node["spec"]["taints"] = patch["spec"]["taints"] or []

    assert differs(seen()) == bool(change(seen()))
    apply(change(seen()))
    assert (differs(seen()), change(seen())) == (False, {})
    # Everything is taken out of the inventory again.
    empty = {"rke2_node_labels": {}, "rke2_node_taints": [], "rke2_control_plane_taint_enabled": False}
    assert differs(seen(**empty)) == bool(change(seen(**empty)))
    apply(change(seen(**empty)))
    assert (differs(seen(**empty)), metadata["labels"]) == (False, {"theirs": "1"})
    assert node["spec"]["taints"] == [{"key": "theirs", "effect": "NoSchedule"}]


@pytest.mark.proves("rke2-labels")
def test_a_first_start_with_the_defaults_needs_no_second_pass() -> None:
    assert not differs(Role()), "the taint came with the registration"
    assert not differs(Role("agent", answer(nodes={"one": {"labels": {}, "annotations": {}, "taints": []}})))


@pytest.mark.proves("rke2-labels")
def test_labels_and_taints_stand_in_a_file_that_restarts_nothing() -> None:
    role = Role(rke2_node_labels={"x/rack": "upper", "node-role.kubernetes.io/hub": True, "on": True})
    path = "/etc/rancher/rke2/config.yaml.d/80-node.yaml"
    content = yaml.safe_load(role.file(path)["content"])
    # A kubelet that gave itself a label of Kubernetes' own name space would not start.
    assert content == {"node-label": ["on=true", "x/rack=upper"], "node-taint": [CONTROL_PLANE]}
    assert role.get("__rke2_labels")["node-role.kubernetes.io/hub"] == "true"
    assert path not in role.get("__rke2_watched")
    assert not {"node-label", "node-taint"} & set(role.get("__rke2_config"))
    assert Role("agent").file(path)["state"] == "absent"


@pytest.mark.proves("rke2-labels")
@pytest.mark.parametrize(
    ("label", "kept"),
    [
        ("example.org/a", True),
        ("plain", True),
        ("node.kubernetes.io/a", True),
        ("x.kubelet.kubernetes.io/a", True),
        ("topology.kubernetes.io/zone", True),
        ("node-role.kubernetes.io/a", False),
        ("node-restriction.kubernetes.io/a", False),
        ("kubernetes.io/a", False),
        ("x.k8s.io/a", False),
        ("notkubernetes.io/a", True),
    ],
)
def test_a_kubelet_is_told_only_labels_that_it_may_give_itself(label: str, kept: bool) -> None:
    assert Role(rke2_node_labels={label: "x"}).get("__rke2_labels_of_kubelet") == ([f"{label}=x"] if kept else [])


# Proxy, charts, profile


@pytest.mark.proves("rke2-proxy")
def test_without_a_proxy_there_is_no_file() -> None:
    assert Role().file("/etc/default/rke2-server")["state"] == "absent"


@pytest.mark.proves("rke2-proxy")
def test_the_proxy_serves_what_is_outside_and_the_sites_own_variables_win() -> None:
    inputs: dict[str, Any] = {"rke2_proxy": "http://192.0.2.9:3128", "rke2_proxy_bypass": [".example.org"]}
    role = Role("agent", rke2_environment={"HTTPS_PROXY": "http://other:1", "X": "y"}, **inputs)
    lines = role.file("/etc/default/rke2-agent")["content"].splitlines()
    variables = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert (variables["HTTP_PROXY"], variables["HTTPS_PROXY"], variables["X"]) == (
        inputs["rke2_proxy"],
        "http://other:1",
        "y",
    )
    passed = {"127.0.0.0/8", "localhost", "10.42.0.0/16", "10.43.0.0/16", ".svc", ".cluster.local", ".example.org"}
    assert set(variables["NO_PROXY"].split(",")) == passed | {"192.0.2.20"} | set(HOSTS.values())


@pytest.mark.proves("rke2-proxy")
def test_a_node_more_restarts_nothing_where_the_nodes_network_is_bypassed() -> None:
    inputs: dict[str, Any] = {"rke2_proxy": "http://p:1", "rke2_proxy_bypass": ["192.0.2.0/24"]}
    before, after = Role(**inputs), Role(**inputs, rke2_node_addresses=[*HOSTS.values(), "192.0.2.99"])
    assert before.get("__rke2_environment") == after.get("__rke2_environment")
    assert "192.0.2.20" not in before.get("__rke2_no_proxy")


@pytest.mark.proves("rke2-charts")
def test_values_of_a_packaged_chart_lie_beside_it_and_restart_nothing() -> None:
    values = {"flannel": {"iface": "eth1", "backend": "vxlan"}}
    role = Role(rke2_packaged_chart_values={"rke2-canal": values})
    path = "/var/lib/rancher/rke2/server/manifests/rke2-canal-config.yaml"
    document = yaml.safe_load(role.file(path)["content"])
    assert (document["kind"], document["metadata"]) == (
        "HelmChartConfig",
        {"name": "rke2-canal", "namespace": "kube-system"},
    )
    assert yaml.safe_load(document["spec"]["valuesContent"]) == values
    assert path not in role.get("__rke2_watched")
    assert role.file(path)["content"].startswith(rke2_info.BANNER), "rke2_info knows its own by this"
    assert not [file for file in Role("agent").get("__rke2_files") if "manifests" in file["path"]]


@pytest.mark.proves("rke2-charts")
def test_values_that_are_no_longer_asked_for_are_taken_back_by_empty_ones() -> None:
    role = Role(now=answer(chart_configs=["rke2-canal"]))
    document = yaml.safe_load(role.file("/var/lib/rancher/rke2/server/manifests/rke2-canal-config.yaml")["content"])
    assert yaml.safe_load(document["spec"]["valuesContent"]) == {}
    laid = [file["path"] for file in Role().get("__rke2_files") if file.get("state") != "absent"]
    assert not [path for path in laid if "manifests" in path]


@pytest.mark.proves("rke2-charts")
def test_values_of_a_chart_that_rke2_does_not_have_are_refused() -> None:
    role = Role(rke2_packaged_chart_values={"rke2-cannal": {"a": "b"}})
    told = role.refused("Refuse a configuration that RKE2 would drop in silence")
    assert "rke2-cannal" in told and "nearest is rke2-canal" in told and "rke2_packaged_chart_values" in told


@pytest.mark.proves("rke2-profile")
def test_the_profile_has_its_kernel_parameters_before_the_first_start() -> None:
    role, path = Role(rke2_profile="cis"), "/etc/sysctl.d/60-rke2-cis.conf"
    lines = [line for line in role.file(path)["content"].splitlines() if not line.startswith("#")]
    assert sorted(lines) == [
        "kernel.panic = 10",
        "kernel.panic_on_oops = 1",
        "vm.overcommit_memory = 1",
        "vm.panic_on_oom = 0",
    ]
    assert (Role().file(path)["state"], Role(rke2_profile="etcd").file(path)["state"]) == ("absent", "absent")
    tasks = [task["name"] for task in yaml.safe_load((ROLE / "tasks/configure.yml").read_text())]
    assert (
        tasks.index("configure | Write the configuration")
        < tasks.index("configure | Make the system what the hardening profile asks for")
        < tasks.index("configure | Start or restart the service")
    )


@pytest.mark.proves("rke2-profile")
def test_a_key_that_the_profile_forbids_is_refused() -> None:
    gate = "Refuse a configuration that RKE2 would drop in silence"
    unsafe = {"protect-kernel-defaults": False}
    assert "protect-kernel-defaults" in Role(rke2_profile="cis", rke2_config=unsafe).refused(gate)
    assert Role(rke2_profile="", rke2_config=unsafe).refused(gate) == ""
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    assert options["agent"]["options"]["rke2_profile"]["choices"] == ["", "cis", "etcd"]


# The release


def listing(*names: str, size: int = 1000) -> dict[str, Any]:
    """Return what is found in the bundle's directory."""
    return {"files": [{"path": f"/bundle/rke2/{VERSION}/{name}", "size": size} for name in names]}


@pytest.mark.proves("rke2-install")
def test_a_bundle_without_the_release_is_refused_with_how_to_add_it() -> None:
    gate, names = "Refuse a bundle without the release", Role().get("__rke2_artifacts")
    role = Role(rke2_bundle="/bundle", __rke2_listing=listing(*names[:-1]))
    told = role.refused(gate, "install")
    assert f"/bundle/rke2/{VERSION}" in told and names[-1] in told and names[0] not in told
    assert "provision.py bundle build --site here --to /bundle" in told
    assert Role(rke2_bundle="/bundle", __rke2_listing=listing(*names)).refused(gate, "install") == ""


@pytest.mark.proves("rke2-full-disk")
def test_a_disk_without_room_is_refused_before_anything_is_copied() -> None:
    gate, names = "Refuse a disk without room for the release", Role().get("__rke2_artifacts")
    half = {f"/var/lib/rancher/.rke2-staging-{VERSION}": 2000}

    def told(**different: Any) -> str:
        found = listing(*names, size=3000)
        return Role(now=answer(**different), rke2_bundle="/bundle", __rke2_listing=found).refused(gate, "install")

    assert len(names) == 4
    assert "one: /var/lib/rancher has 9.77 KB free" in told() and "11.72 KB of" in told()
    assert told(space={"/var/lib/rancher": 12_000}) == ""
    assert told(staged=half) == "", "a copy that was begun is finished"


def test_only_what_was_staged_of_other_releases_is_removed() -> None:
    staged = {f"/var/lib/rancher/.rke2-staging-{version}": 1 for version in (VERSION, "v1.34.1+rke2r1")}
    assert Role(now=answer(staged=staged)).get("__rke2_stale") == ["/var/lib/rancher/.rke2-staging-v1.34.1+rke2r1"]


# Secrets


@pytest.mark.proves("rke2-secrets-private")
@pytest.mark.parametrize("service", ["server", "agent"])
def test_tokens_stand_in_files_of_their_own_and_nowhere_else(service: str) -> None:
    files = Role(service).get("__rke2_files")
    holding = {file["path"] for file in files if re.search("(server|agent)-token\n$", file.get("content", ""))}
    shown = json.dumps([file for file in files if file["path"] not in holding]).replace("/agent-token", "")
    assert 'agent-token"' not in shown.replace("agent-token-file", "") and "server-token" not in shown
    assert holding == {
        f"/etc/rancher/rke2/{name}" for name in (("token", "agent-token") if service == "server" else ("token",))
    }
    assert all(file["mode"] == "0600" and file["no_diff"] for file in files if file["path"] in holding)
    assert base64.b64encode(b"server-token").decode() not in shown


@pytest.mark.proves("rke2-secrets-private")
def test_an_input_that_is_refused_shows_no_secret() -> None:
    # Ansible prints every default of the spec, rendered, beside what it refuses.
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    secret = {name: option for name, option in specs["server"]["options"].items() if option.get("no_log")}
    assert set(secret) == {
        "rke2_token",
        "rke2_agent_token",
        "rke2_snapshot_s3_access_key",
        "rke2_snapshot_s3_secret_key",
    }
    assert not [name for name, option in secret.items() if "default" in option]


# Machines that leave


def leaving(volumes: list[dict[str, Any]] | None = None, **inputs: Any) -> Role:
    """Return the role for server `one` that is to leave a cluster of three, as the API told."""
    nodes = [
        {
            "metadata": {"name": name},
            "status": {
                "addresses": [{"type": "InternalIP", "address": HOSTS[name]}],
                "conditions": [{"type": kind, "status": "True"} for kind in ("Ready", "EtcdIsVoter")],
            },
        }
        for name in ("one", "two", "three")
    ]
    seen = {"results": [{"resources": nodes}, {"resources": volumes or []}]}
    return Role(__rke2_remove_seen=seen, rke2_node_name="one", **inputs)


LOCAL = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["one"]}
VOLUME = {
    "metadata": {"name": "pv"},
    "spec": {
        "claimRef": {"namespace": "auth", "name": "database"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [LOCAL]}]}},
    },
}


@pytest.mark.proves("machines-volumes")
def test_a_machine_with_a_volume_of_its_own_leaves_only_when_told_to() -> None:
    assert leaving().get("__rke2_remove_faults") == []
    (told,) = leaving([VOLUME]).get("__rke2_remove_faults")
    assert "auth/database lies on its own disk" in told and told.endswith("--leave-volumes")
    assert leaving([VOLUME], rke2_remove_leave_volumes=True).get("__rke2_remove_faults") == []


@pytest.mark.proves("machines-quorum")
def test_another_server_that_is_ready_is_asked_whether_it_is_gone() -> None:
    role = leaving()
    assert (role.get("__rke2_remove_witness"), role.get("__rke2_remove_ready")) == ("two", True)
    for node in role.variables["__rke2_remove_seen"]["results"][0]["resources"]:
        node["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    assert "nobody would be left to ask" in " ".join(role.get("__rke2_remove_faults"))


@pytest.mark.proves("cluster-homes")
def test_nothing_is_deleted_below_a_mount() -> None:
    def mounts(*paths: str) -> Any:
        lines = "".join(f"x {path} nfs rw 0 0\n" for path in paths)
        return Role(__rke2_left={"files": {"/proc/self/mounts": lines}}).get("__rke2_left_mounts")

    homes = "/var/lib/kubelet/pods/1/volumes/homes"
    assert mounts("/", "/var/lib/rancher", "/var/lib/kubelet", "/var/lib/rancher/rke2") == []
    assert mounts("/", homes, "/var/lib/rancher/rke2/agent/x") == [homes, "/var/lib/rancher/rke2/agent/x"]


@pytest.mark.proves("cluster-homes")
def test_volumes_on_a_machines_disk_go_with_the_whole_cluster_only() -> None:
    local = "/var/lib/rancher/local-path"
    assert local not in Role(rke2_remove_node="one").get("__rke2_leavings")
    assert local in Role(rke2_destroy_cluster="here").get("__rke2_leavings")
    assert "/" not in Role().get("__rke2_leavings") and all(
        path.count("/") > 1 for path in Role().get("__rke2_leavings")
    )


def told(name: str, file: str, **variables: Any) -> str:
    """Return what an assertion says that has variables of its own, empty when it passes."""
    role = Role(rke2_node_name="one", rke2_kubeconfig="/k", **variables)
    tasks = role.loader.load_from_file(str(ROLE / f"tasks/{file}.yml"), trusted_as_template=True)
    role.variables |= next(task for task in tasks if task["name"] == f"{file} | {name}").get("vars", {})
    return role.refused(name, file)


@pytest.mark.proves("machines-reboot")
def test_a_node_that_was_restarted_has_to_offer_the_gpus_it_went_with() -> None:
    offered = {"nodes": {"one": {"devices": {"nvidia.com/gpu": 8}}, "two": {"devices": {"nvidia.com/gpu": 4}}}}
    assert Role("agent", __rke2_info=offered).get("__rke2_wanted")["devices"] == {"nvidia.com/gpu": 8}
    # One that has just been made is asked for none.
    assert Role("agent", __rke2_info={"nodes": {}}).get("__rke2_wanted")["devices"] == {}


@pytest.mark.proves("machines-quorum")
def test_a_server_is_not_emptied_when_the_quorum_needs_it() -> None:
    nodes = leaving().variables["__rke2_remove_seen"]["results"][0]
    assert told("Refuse to risk the quorum", "leave", __rke2_cluster=nodes) == ""
    nodes["resources"][1]["status"]["conditions"][0] = {"type": "Ready", "status": "Unknown"}
    said = told("Refuse to risk the quorum", "leave", __rke2_cluster=nodes)
    assert "one was not touched: of 3 voters in etcd 2 are healthy (one, three)" in said
    assert said.endswith("scripts/provision.py verify --site here")


@pytest.mark.proves("cluster-said")
@pytest.mark.parametrize(("file", "variable"), [("stop", "rke2_stop_cluster"), ("uninstall", "rke2_destroy_cluster")])
def test_the_role_too_wants_the_clusters_name(file: str, variable: str) -> None:
    assert f"-e {variable}=here" in told("Refuse what was not said", file, inventory_dir="inventories/here")
    assert "playbooks" in told("Refuse what was not said", file, inventory_dir="i", **{variable: "there"})
    assert told("Refuse what was not said", file, **{variable: "here"}) == ""


@pytest.mark.proves("restore-refuses")
@pytest.mark.parametrize(
    ("snapshot", "installed", "bare", "refused"),
    [
        pytest.param("v1.36.3+rke2r1", "v1.35.7+rke2r1", [], True, id="a-newer-minor"),
        pytest.param("v1.35.7+rke2r1", "v1.35.4+rke2r1", [], False, id="the-same-minor"),
        pytest.param("v1.34.10+rke2r1", "v1.35.7+rke2r1", [], False, id="an-older-minor"),
        pytest.param("", "v1.35.7+rke2r1", [], False, id="of-a-release-that-nobody-knows"),
        pytest.param("v1.36.3+rke2r1", "", ["one"], False, id="a-machine-without-rke2-is-left-out"),
        pytest.param("v1.36.3+rke2r1", "", [], True, id="no-rke2-where-it-is-to-be-restored"),
    ],
)
def test_the_snapshot_of_a_newer_release_is_refused_with_the_way_to_it(
    snapshot: str, installed: str, bare: list[str], refused: bool
) -> None:
    given = {
        "__rke2_restore_bare": bare,
        "__rke2_restore_source": {"name": "daily", "version": snapshot},
        "__rke2_info": {"installed_version": installed},
    }
    said = told("Refuse the snapshot of a newer release", "restore_gates", **given)
    assert bool(said) == refused
    assert not said or (f"daily is of {snapshot}, and one has {installed or 'no RKE2'}" in said)
    assert not said or said.endswith("scripts/provision.py deploy --site here --allow-upgrade")


# Rotation

SERVING = "/var/lib/rancher/rke2/server/tls/serving-kube-apiserver.crt"


@pytest.mark.proves("rotate-certificates")
@pytest.mark.parametrize(
    ("leaves", "force", "due"),
    [
        pytest.param({SERVING: 86400}, False, True, id="a-day-old"),
        pytest.param({SERVING: 86399}, False, False, id="younger"),
        pytest.param({SERVING: 10}, True, True, id="forced"),
        pytest.param({}, True, False, id="set-aside-by-a-run-that-was-cut-off"),
        pytest.param({"/var/lib/rancher/rke2/server/tls/client-admin.crt": 1 << 30}, False, False, id="another-one"),
    ],
)
def test_certificates_are_due_after_a_day_unless_forced(leaves: dict[str, int], force: bool, due: bool) -> None:
    known = {path: {"expires": 0, "age": age} for path, age in leaves.items()}
    role = Role(now=answer(leaf_certificates=known), rke2_rotate_force=force)
    assert role.get("__rke2_certificates_due") is due
    assert role.get("__rke2_ending") == [f"{path} on 1970-01-01" for path in leaves]


@pytest.mark.proves("verify-ahead")
@pytest.mark.parametrize("source", ["__rke2_info", "__rke2_health"])
def test_a_certificate_that_ends_soon_is_named_with_its_day_and_the_command(source: str) -> None:
    now = datetime.datetime.now(datetime.UTC).timestamp()
    leaves = {path: {"expires": int(now + days * 86400), "age": 1} for path, days in (("/a", 29), ("/b", 31))}
    given: dict[str, Any] = {source: {"leaf_certificates": leaves}}
    role = Role(**given)
    if source == "__rke2_health":  # as the verification alone has it
        del role.variables["__rke2_info"]
    told = role.refused("Name what has expired or will soon", "verify_expiry")
    assert "one: of its certificates 1 end within 30 days: /a on 2" in told
    assert told.endswith("rotate certificates --site here")
    role.variables["rke2_certificate_days"] = 28
    assert role.refused("Name what has expired or will soon", "verify_expiry") == ""


def runs(role: Role, file: str, name: str) -> bool:
    """Say whether a task of a file would run."""
    tasks = role.loader.load_from_file(str(ROLE / f"tasks/{file}.yml"), trusted_as_template=True)
    task = next(task for task in tasks if task["name"] == f"{file} | {name}")
    role.variables |= task.get("vars", {})
    conditions = task.get("when", [])
    templar = Templar(role.loader, variables=role.variables)
    return all(
        templar.evaluate_conditional(one) for one in ([conditions] if isinstance(conditions, str) else conditions)
    )


@pytest.mark.proves("verify-ahead")
def test_a_verification_alone_looks_ahead_and_a_deploy_is_not_ended_by_what_it_may_mend() -> None:
    names = ("Prove that no certificate ends soon", "Ask etcd whether it has raised an alarm")
    for service, alone, wanted in (("server", True, [True, True]), ("agent", True, [True, False]),
                                   ("server", False, [False, False])):  # fmt: skip
        role = Role(service)
        if alone:
            del role.variables["__rke2_info"]
        assert [runs(role, "verify", name) for name in names] == wanted


@pytest.mark.proves("rke2-activating")
@pytest.mark.parametrize(
    ("active", "differs", "acts", "state"),
    [
        pytest.param("active", False, False, "", id="runs"),
        pytest.param("active", True, True, "restarted", id="runs-with-another"),
        pytest.param("activating", False, True, "started", id="on-its-way"),
        pytest.param("activating", True, True, "restarted", id="on-its-way-with-another"),
        pytest.param("failed", True, True, "started", id="down"),
    ],
)
def test_a_service_on_its_way_up_is_restarted_only_for_another_configuration_and_waited_for(
    active: str, differs: bool, acts: bool, state: str
) -> None:
    digest = {"now": "b" if differs else "a", "started": "a"}
    role = Role(__rke2_now={"service": {"active": active}, "digest": digest}, __rke2_restarted={"changed": False})
    assert runs(role, "restart", "Restart the service") is acts
    tasks = role.loader.load_from_file(str(ROLE / "tasks/restart.yml"), trusted_as_template=True)
    role.variables["state"] = tasks[1]["ansible.builtin.systemd_service"]["state"]
    assert not acts or role.get("state") == state
    # What systemd says of one that it is starting anyway is "unchanged".
    assert runs(role, "restart", "Wait until this node is healthy and stays so") is (active == "activating")


@pytest.mark.proves("rke2-activating")
@pytest.mark.parametrize(("file", "done"), [("renew", "__rke2_renewed"), ("configure", "__rke2_started")])
def test_what_was_found_on_its_way_up_is_waited_for(file: str, done: str) -> None:
    for active in ("activating", "active"):
        given: dict[str, Any] = {done: {"changed": False}, "__rke2_action": "none"}
        role = Role(now=answer(service={"active": active}), **given)
        assert runs(role, file, "Wait until this node is healthy and stays so") is (active == "activating")


@pytest.mark.proves("machines-reboot")
@pytest.mark.parametrize(
    ("loaded", "installed", "said"),
    [
        pytest.param("570.1", "580.65", ["NVIDIA's driver 580.65 is installed, 570.1 runs"], id="newer"),
        pytest.param("580.65", "580.65", [], id="same"),
        pytest.param("", "580.65", [], id="not-loaded"),
        pytest.param("570.1", "", [], id="in-a-container"),
    ],
)
def test_a_reboot_is_due_for_another_driver_of_the_hosts_own_and_the_reason_is_said(
    tmp_path: Path, loaded: str, installed: str, said: list[str]
) -> None:
    tasks = yaml.safe_load((ROLE / "tasks/reboot.yml").read_text())
    script = tasks[0]["ansible.builtin.command"]["argv"][2]
    for path in ("/run/reboot-required", "/boot/vmlinuz", "/vmlinuz", "/sys/module/nvidia/version"):
        assert path in script
        script = script.replace(f" {path}", f" {tmp_path}/{Path(path).name}")
    if loaded:
        (tmp_path / "version").write_text(loaded + "\n")
    (tmp_path / "modinfo").write_text(f"#!/bin/sh\necho '{installed}'\n" if installed else "#!/bin/sh\nexit 1\n")
    (tmp_path / "modinfo").chmod(0o755)
    ask = ["/bin/sh", "-c", f"PATH={tmp_path}:$PATH\n{script}"]
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines() == said
    (tmp_path / "reboot-required").touch()
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines() == [
        "packages ask for it",
        *said,
    ]


@pytest.mark.proves("upgrade-drain")
def test_a_drain_whose_asked_server_fell_silent_fails_as_any_other_and_the_node_is_given_back() -> None:
    gate = "Refuse silence for an answer"
    told = Role(__rke2_drain={"unreachable": True, "msg": "No route"}, rke2_node_name="one").refused(gate, "drain")
    assert told == "one could not be emptied, for two, which was asked to, fell silent: No route"
    assert Role(__rke2_drain={"drained": True, "left": []}).refused(gate, "drain") == ""
    assert Role(__rke2_drain={"skipped": True}).refused(gate, "drain") == ""
    # Or the machine would be out of the play, and no `always` or `rescue` would follow.
    tasks = yaml.safe_load((ROLE / "tasks/drain.yml").read_text())
    (block,) = (task["block"] for task in tasks if "block" in task)
    assert (block[0]["ignore_unreachable"], block[0]["any_errors_fatal"]) == (True, False)


def asked(**servers: tuple[bool, str] | None) -> dict[str, Any]:
    """What every server answered: whether it keeps the new token, what its service does; None for one that is off."""
    return {
        "results": [
            {"item": name, "unreachable": True}
            if told is None
            else {"item": name, "token_kept": told[0], "service": {"active": told[1]}}
            for name, told in servers.items()
        ]
    }


@pytest.mark.proves("rotate-token")
@pytest.mark.parametrize(
    ("servers", "before", "keepers", "said"),
    [
        pytest.param(
            asked(one=(False, "active"), two=(False, "active"), three=(False, "active")), "old", [], "", id="go"
        ),
        pytest.param(
            asked(one=(False, "active"), two=(False, "active"), three=(False, "active")),
            "",
            [],
            "vault_site_rke2_token_before",
            id="no-old-token",
        ),
        pytest.param(
            asked(one=(False, "active"), two=(False, "active"), three=(False, "active")),
            "server-token",
            [],
            "vault_site_rke2_token_before",
            id="the-same-twice",
        ),
        pytest.param(
            asked(one=(False, "active"), two=None, three=(False, "failed")), "old", [], "three, two does", id="silent"
        ),
        pytest.param(
            asked(one=(True, "activating"), two=(False, "active"), three=None), "old", ["one"], "", id="half-rotated"
        ),
    ],
)
def test_a_rotation_begins_with_all_servers_and_goes_on_with_those_there_are(
    servers: dict[str, Any], before: str, keepers: list[str], said: str
) -> None:
    role = Role(__rke2_asked=servers, rke2_token_before=before)
    assert role.get("__rke2_token_keepers") == keepers
    if not keepers:  # the task asks only then
        refusal = role.get("__rke2_rotation_refusal")
        assert said in refusal
        assert bool(refusal) is bool(said)
        assert "server-token" not in refusal


def test_servers_are_called_as_their_nodes_are() -> None:
    hosts = {name: {"site_node_address": address} for name, address in HOSTS.items()}
    hosts["two"]["rke2_node_name"] = "second"
    assert Role(hostvars=hosts, rke2_servers=["one", "two"]).get("__rke2_server_names") == ["one", "second"]
    names = Role(hostvars=hosts).get("__rke2_node_names")
    assert names == {"one": "one", "two": "second", "three": "three", "worker": "worker"}
    assert Role(rke2_servers=["one"]).get("__rke2_own_service") == "server"
    assert Role(rke2_servers=["two"]).get("__rke2_own_service") == "agent"


@pytest.mark.proves("etcd-status")
def test_the_report_has_every_server_that_has_answered_so_far() -> None:
    told = {"member": {"size": 1}, "alarms": [], "before": 1, "done": [], "changed": False}
    hosts = {"one": {"__rke2_etcd": told}, "two": {"__rke2_etcd": {"msg": "no answer"}}, "three": {}}
    report = Role(hostvars=hosts, ansible_play_hosts_all=list(hosts)).get("__rke2_etcd_report")
    assert report == {"one": {"member": {"size": 1}, "alarms": [], "before": 1, "done": []}}


@pytest.mark.proves("rotate-encryption-keys")
@pytest.mark.parametrize(
    ("status", "up", "host", "force", "due", "behind"),
    [
        pytest.param({"stage": "start", "activekey": "AES-CBC aescbckey"}, 9000, "one", False, True, False, id="first"),
        pytest.param({"stage": "start", "activekey": "AES-CBC aescbckey"}, 9000, "two", False, False, False, id="turn"),
        pytest.param({"age": 90000}, 80000, "one", False, True, False, id="a-day-old"),
        pytest.param({"age": 600}, 60, "one", False, False, False, id="right-after"),
        pytest.param({"age": 600}, 60, "one", True, True, False, id="forced"),
        pytest.param({"age": 600}, 60, "two", True, False, False, id="forced-once"),
        pytest.param({"age": 600, "hashmatch": False}, 9000, "one", False, False, True, id="made-but-not-restarted"),
        pytest.param({"age": 90000, "hashmatch": False}, 9000, "two", False, False, True, id="has-the-old-one"),
        pytest.param({"age": 600, "hashmatch": False}, 60, "two", False, False, False, id="others-have-the-old-one"),
        pytest.param({"age": 600, "stage": "reencrypt_active"}, 60, "one", True, False, False, id="under-way"),
    ],
)
def test_a_key_is_made_by_one_server_and_taken_by_all(
    status: dict[str, Any], up: int, host: str, force: bool, due: bool, behind: bool
) -> None:
    made = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=status.get("age", 0))
    key = f"AES-CBC aescbckey-{made.strftime('%Y-%m-%dT%H:%M:%SZ')}"
    told = {"enable": True, "stage": "reencrypt_finished", "hashmatch": True, "activekey": key} | status
    role = Role(
        now=answer(service={"age": up}),
        inventory_hostname=host,
        ansible_play_hosts_all=["one", "two"],
        rke2_rotate_force=force,
        __rke2_encryption={"stdout": json.dumps(told)},
    )
    assert (role.get("__rke2_encryption_due"), role.get("__rke2_encryption_behind")) == (due, behind)


# Snapshots in an S3 store
S3: dict[str, Any] = {
    "rke2_snapshot_s3": {"bucket": "snapshots", "endpoint": "s3.example.org", "folder": "here"},
    "rke2_snapshot_s3_access_key": "somebody",
    "rke2_snapshot_s3_secret_key": "correct-horse-battery",
}
MANIFEST = "/var/lib/rancher/rke2/server/manifests/etcd-snapshot-s3.yaml"


@pytest.mark.proves("snapshot-s3-secret")
def test_a_store_for_snapshots_is_told_by_a_secret_and_its_credentials_stand_nowhere_else() -> None:
    role = Role(**S3)
    config = role.get("__rke2_config")
    assert {key: value for key, value in config.items() if key.startswith("etcd-s3")} == {
        "etcd-s3": True,
        "etcd-s3-config-secret": "k3s-etcd-snapshot-s3-config",
    }
    files = {file["path"]: file for file in role.get("__rke2_files")}
    assert [path for path, file in files.items() if "correct-horse-battery" in file["content"]] == [MANIFEST]
    assert (files[MANIFEST]["mode"], files[MANIFEST]["no_diff"]) == ("0600", True)
    secret = yaml.safe_load(files[MANIFEST]["content"])
    assert (secret["metadata"]["name"], secret["metadata"]["namespace"]) == (
        config["etcd-s3-config-secret"],
        "kube-system",
    )
    assert secret["stringData"] == {
        "etcd-s3-bucket": "snapshots",
        "etcd-s3-endpoint": "s3.example.org",
        "etcd-s3-folder": "here",
        "etcd-s3-access-key": "somebody",
        "etcd-s3-secret-key": "correct-horse-battery",
    }
    assert "names no bucket" in Role(rke2_snapshot_s3={"region": "eu"}).refused(
        "Refuse a configuration that RKE2 would drop in silence"
    )


@pytest.mark.proves("snapshot-s3-secret")
@pytest.mark.parametrize("key", [name for name in KNOWN["server"] if name.startswith("etcd-s3")])
@pytest.mark.parametrize("plus", ["", "+"])
def test_with_a_store_every_key_is_refused_that_rke2_would_pass_over_the_secret_for(key: str, plus: str) -> None:
    said = Role(**S3, rke2_config={key + plus: "x"}).refused("Refuse a configuration that RKE2 would drop in silence")
    assert f"{key}{plus} is written by the role from rke2_snapshot_s3" in said


@pytest.mark.proves("snapshot-s3-secret")
def test_the_store_is_told_what_its_secret_takes_and_no_option_leaves_out_tls() -> None:
    described = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["server"]["options"]
    options = described["rke2_snapshot_s3"]["options"]
    names = {f"etcd-s3-{name}".replace("_", "-") for name in options}
    elsewhere = {"etcd-s3", "etcd-s3-access-key", "etcd-s3-secret-key", "etcd-s3-config-secret"}
    # Of no use in the Secret, or never to be set.
    left_out = {"etcd-s3-retention", "etcd-s3-insecure", "etcd-s3-skip-ssl-verify"}
    assert names == {name for name in KNOWN["server"] if name.startswith("etcd-s3")} - elsewhere - left_out
    given: dict[str, Any] = {"rke2_snapshot_s3": dict.fromkeys(options, "auto")}
    assert set(Role(**given).get("__rke2_snapshot_s3_manifest")["stringData"]) == names
    assert Role(**given).get("__rke2_faults") == []
    # An older release makes nothing of one.
    said = Role(**given, rke2_version="v1.30.12+rke2r1").get("__rke2_faults")
    assert len(said) == 1 and "etcd-s3-bucket-lookup-type is known from v1.30.13 on" in said[0]


@pytest.mark.proves("snapshot-s3-secret")
def test_without_a_store_nothing_of_it_is_laid_down_and_rke2s_own_keys_are_free() -> None:
    role = Role(rke2_config={"etcd-s3": True, "etcd-s3-bucket": "x"})
    assert role.get("__rke2_config")["etcd-s3"] is True
    assert role.get("__rke2_faults") == []
    assert not [key for key in Role().get("__rke2_config") if key.startswith("etcd-s3")]
    assert [file["state"] for file in Role().get("__rke2_files") if file["path"] == MANIFEST] == ["absent"]
    assert not [file for file in Role("agent", **S3).get("__rke2_files") if "correct-horse" in file["content"]]
    agent = Role("agent", **S3).get("__rke2_config")
    assert not [key for key in agent if key.startswith("etcd-s3")]


# Etcd's tool
@pytest.mark.proves("etcd-tools")
@pytest.mark.parametrize(
    ("there", "programs", "removed"),
    [
        pytest.param(["v3.6.14"], {}, None, id="whole"),
        pytest.param([], {"etcdutl": "/x"}, [], id="none"),
        pytest.param(["v3.5.21"], {"etcdutl": "/x"}, ["v3.5.21"], id="old"),
        pytest.param(["v3.5.21"], {}, None, id="not-to-be-had"),
        pytest.param(["v3.5.21", "v3.6.14"], {"etcdutl": "/x"}, ["v3.5.21"], id="killed-between"),
        pytest.param(["v3.5.21", "v3.6.14"], {}, ["v3.5.21"], id="killed-between-and-not-to-be-had"),
    ],
)
def test_only_the_wanted_tool_of_etcd_stays_also_after_a_run_that_was_killed(
    there: list[str], programs: dict[str, str], removed: list[str] | None
) -> None:
    role = Role(now=answer(etcd_releases=there), __rke2_etcd_release={"programs": programs})
    read = {name: role.loader.load_from_file(str(ROLE / f"tasks/{name}.yml"), trusted_as_template=True)
            for name in ("server", "etcd_tools")}  # fmt: skip
    gate = next(task for task in read["server"] if task["name"].startswith("Lay down etcd's tool"))
    remove = next(task for task in read["etcd_tools"] if "Remove" in task["name"])
    templar = Templar(role.loader, variables=role.variables)
    runs = all(templar.evaluate_conditional(task["when"]) for task in (gate, remove))
    assert (templar.template(remove["loop"]) if runs else None) == removed


# Drills
@pytest.mark.proves("restore-drill-asks")
@pytest.mark.parametrize("hosts", [None, [], ["one", "two"]])
def test_a_drill_wants_one_host_and_says_what_to_write(hosts: list[str] | None) -> None:
    groups: dict[str, Any] = {"rke2_agent": ["worker"]} | ({} if hosts is None else {"drill": hosts})
    said = Role(groups=groups, inventory_dir="inventories/here").refused("without one host for it", "drill")
    assert 'drill: {"hosts": {"worker": {}}}' in said
    assert f"has {len(hosts or [])}" in said
    assert Role(groups=groups | {"drill": ["worker"]}).refused("without one host for it", "drill") == ""


@pytest.mark.proves("restore-drill-asks")
def test_a_drill_of_a_snapshot_that_was_not_fetched_names_the_command(tmp_path: Path) -> None:
    said: dict[str, Any] = {"rke2_fetch_directory": str(tmp_path), "rke2_drill_snapshot": "mine"}
    assert "snapshot fetch mine --site here" in Role(**said).refused("that was not fetched", "drill")
    (tmp_path / "mine.vault").touch()
    assert Role(**said).refused("that was not fetched", "drill") == ""


@pytest.mark.proves("restore-drill-asks")
def test_a_drill_takes_its_own_newest_snapshot_and_deletes_no_other() -> None:
    names = ["metalhub-drill-one-1700000000", "metalhub-drill-one-1700000900", "drill-one-1700009999"]
    looked = {"snapshots": [{"name": name, "created": int(name[-10:])} for name in names]}
    role = Role(
        ansible_play_hosts_all=["one"],
        hostvars={"one": {"__rke2_snapshots": looked}},
        __rke2_snapshots=looked,
        rke2_fetch_directory="/there",
    )
    assert role.get("__rke2_drill_name") == names[1]
    assert role.get("__rke2_drill_taken") == names[:2]
    assert role.get("__rke2_drill_directory") == "/there/.drill"
    assert Role(rke2_fetch_directory="/there", rke2_drill_snapshot="x").get("__rke2_drill_directory") == "/there"
