"""A cluster that others have installed becomes a site that preflight accepts, and its first deploy restarts nothing."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.template import Templar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugins.filter.rke2_adopt import environment, mapping, merged, rke2_adopted, rke2_differences, undoubled
from provisioner import adopt
from tests.unit.preflight import sites
from tests.unit.roles.decided import Decided
from tests.unit.roles.found import CONFIG, DATA, REGISTRIES, TOKEN, VERSION, Cluster, by_hand, by_role, hardened

ROLE = sites.ROLES / "rke2"
KNOWN: dict[str, Any] = yaml.safe_load((ROLE / "files/config_keys.yml").read_text())
SCHEMA = yaml.safe_load((sites.ROLES / "preflight/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
    "options"
]
SCHOOLS = [by_hand, by_role, hardened]
TABLE = yaml.safe_load((sites.ROLES / "preflight/files/compatibility.yml").read_text())
VERSIONS = {name: str(value) for path in sites.ROLES.glob("*/defaults/main.yml")
            for name, value in (yaml.safe_load(path.read_text()) or {}).items()}  # fmt: skip
# What no configuration tells and the site's own people write.
WRITTEN = {
    "site_host": "hub.example.org",
    "site_load_balancer_pool": "192.0.2.100-192.0.2.120",
    "site_ingress_address": "192.0.2.101",
}


def own_keys() -> dict[str, str]:
    """Return the keys that the role writes itself."""
    return dict(Decided(ROLE, {"__rke2_service": "server"}).get("__rke2_own_keys"))


def adopted(cluster: Cluster) -> dict[str, Any]:
    """Return what is made of a cluster."""
    return rke2_adopted(cluster.looks(), "found", KNOWN, own_keys(), {"ansible_user": "root"})


def write(report: dict[str, Any], target: Path) -> tuple[Path, dict[str, Any]]:
    """Write the site as the driver does, complete it as people do, and return its directory and its secrets."""
    inventory = target / "found"
    for name, text in adopt.files(report).items():
        path = inventory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    path = inventory / "group_vars/all/site.yml"
    text = path.read_text()
    for name, value in WRITTEN.items():
        assert f"{name}: ''" in text
        text = text.replace(f"{name}: ''", f"{name}: {value}")
    path.write_text(text)
    sealed, _ = adopt.vault(report, SCHEMA, secrets.token_hex)
    (inventory / sites.VAULT).write_text(adopt.rendered(sealed), encoding="utf-8")
    sites.encrypt(inventory / sites.VAULT)
    return inventory, sealed


def of_release(release: str) -> Cluster:
    """Return a cluster that runs a release."""
    cluster = by_hand()
    for name in cluster.nodes:
        cluster.different[name] = {"installed_version": release, "running_version": release}
        cluster.nodes[name]["version"] = release
    return cluster


def role_of(inventory: Path, cluster: Cluster, name: str) -> Decided:
    """Return what the role decides for a machine with the site's own variables, as Ansible reads them."""
    _, known = sites.variables(inventory, name)
    return Decided(ROLE, known | {"__rke2_service": cluster.kinds[name], "__rke2_info": cluster.look(name)})


def action(role: Decided, cluster: Cluster, name: str) -> str:
    """Return what is done to the service once the files are written: by the role's own words."""
    files = [file for file in role.get("__rke2_files") if file.get("state", "present") == "present"]
    content = {file["path"]: file["content"] for file in files}
    now = hashlib.sha256("".join(content.get(path, "") for path in role.get("__rke2_watched")).encode()).hexdigest()
    started = (content.get("/run/rke2-started.sha256", "").split() or [""])[0]
    tasks = role.loader.load_from_file(str(ROLE / "tasks/configure.yml"), trusted_as_template=True)
    decide = next(task for task in tasks if task["name"].endswith("Decide whether to start or to restart"))
    variables = role.variables | {"__rke2_digest": {"now": now, "started": started}}
    templar = Templar(role.loader, variables=variables)
    return str(templar.template(decide["ansible.builtin.set_fact"]["__rke2_action"])).strip()


@pytest.mark.proves("adopt-site", "adopt-no-restart")
@pytest.mark.parametrize("school", SCHOOLS)
def test_the_site_passes_preflight_and_its_first_deploy_restarts_no_service(
    school: Callable[[], Cluster], tmp_path: Path
) -> None:
    cluster = school()
    report = adopted(cluster)
    assert report["refusals"] == []
    inventory, _ = write(report, tmp_path)
    assert [f"{one.key} {one.what}" for one in sites.findings(inventory)] == []
    for name in cluster.nodes:
        role = role_of(inventory, cluster, name)
        assert role.get("rke2_version") == VERSION
        assert role.get("__rke2_faults") == [], name
        assert role.get("__rke2_differences")["due"] == [], name
        assert role.get("__rke2_installed"), name
        assert action(role, cluster, name) == "none", name
        # The second time there is nothing left to say.
        written = {file["path"]: file.get("content") for file in role.get("__rke2_files")}
        cluster.files[name] = {p: t for p, t in (cluster.files[name] | written).items() if t is not None}
        files = role.get("__rke2_files_wanted")
        again = rke2_differences(
            cluster.look(name)["configuration"],
            files,
            cluster.kinds[name],
            name,
            cluster.nodes[name]["addresses"],
            KNOWN,
        )
        assert again == {"due": [], "waits": []}, name


@pytest.mark.proves("adopt-site")
@pytest.mark.parametrize("minor", TABLE["minors"])
def test_a_site_of_every_minor_passes_preflight_with_versions_that_go_with_it(minor: str, tmp_path: Path) -> None:
    release = [rung["rke2"] for rung in TABLE["ladder"] if rung["rke2"].startswith(f"v{minor}.")][-1]
    report = adopt.fitted(adopted(of_release(release)), TABLE, VERSIONS)
    inventory, _ = write(report, tmp_path)
    assert [f"{one.key} {one.what}" for one in sites.findings(inventory)] == []
    assert not [note for note in report["notes"] if note[0] == "versions.yml"]
    # What fits by itself is not pinned.
    assert set(report["files"][adopt.VERSIONS]["values"]) <= {"rke2_version"} | {
        name for component, name in TABLE["components"].items()
        if component != "rke2" and adopt.series(VERSIONS[name]) not in TABLE["minors"][minor][component]
    }  # fmt: skip


@pytest.mark.proves("adopt-site")
@pytest.mark.parametrize("minor", [minor for minor, row in TABLE["minors"].items() if "minimum" in row])
def test_a_release_that_preflight_refuses_and_a_version_that_nobody_knows_are_told(minor: str, tmp_path: Path) -> None:
    least = TABLE["minors"][minor]["minimum"]
    report = adopt.fitted(adopted(of_release(f"v{minor}.2+rke2r1")), TABLE | {"releases": {}}, VERSIONS)
    inventory, _ = write(report, tmp_path)
    told = "\n".join(line for line in adopt.lines(report) if line.startswith("versions.yml: "))
    assert f"v{minor}.2+rke2r1 is older than {least['rke2']}, which closes {least['closes']}" in told
    found = {one.key for one in sites.findings(inventory)}
    assert found == {"rke2_version"} | {name for name in found if f"Write {name} of " in told}
    assert f"no release of helm is known here that goes with Kubernetes {minor}" in told


@pytest.mark.proves("adopt-no-restart")
def test_a_change_of_meaning_still_restarts_and_a_secret_is_not_shown(tmp_path: Path) -> None:
    cluster = hardened()
    inventory, _ = write(adopted(cluster), tmp_path)
    cluster.files["cp-1"][CONFIG] += "service-node-port-range: 30000-31000\n"
    cluster.files["cp-1"]["/etc/default/rke2-server"] = "HTTPS_PROXY=http://user:other@proxy.example.org\n"
    role = role_of(inventory, cluster, "cp-1")
    told = role.get("__rke2_differences")["due"]
    assert told == [
        "(environment): (hidden) becomes (hidden)",
        'service-node-port-range: "30000-31000" becomes nothing',
    ]
    assert action(role, cluster, "cp-1") == "restarted"
    assert "/run/rke2-started.sha256" not in {file["path"] for file in role.get("__rke2_files")}


@pytest.mark.proves("adopt-no-restart")
@pytest.mark.parametrize("removed", range(4))
def test_a_first_deploy_that_was_killed_before_all_layers_were_gone_is_followed_by_none_that_restarts(
    removed: int, tmp_path: Path
) -> None:
    cluster = by_hand()
    layers = {
        "10-a": "kubelet-arg+: [v=2, v=4]\n",
        "20-b": "kubelet-arg+: v=2\n",
        "30-c": "tls-san+: [x.example.org]\n",
    }
    for name, text in layers.items():
        cluster.files["cp-1"][f"{CONFIG}.d/{name}.yaml"] = text
    cluster.files["cp-1"][CONFIG] += "kubelet-arg: max-pods=200\n"
    inventory, _ = write(adopted(cluster), tmp_path)
    wanted = role_of(inventory, cluster, "cp-1").get("__rke2_files_wanted")
    for file in [one for one in wanted if one.get("state", "present") == "present"]:
        cluster.files["cp-1"][file["path"]] = file["content"]
    for name in list(layers)[:removed]:
        del cluster.files["cp-1"][f"{CONFIG}.d/{name}.yaml"]
    role = role_of(inventory, cluster, "cp-1")
    assert role.get("__rke2_config")["kubelet-arg"] == ["max-pods=200", "v=2", "v=4", "v=2"]
    assert role.get("__rke2_differences") == {"due": [], "waits": []}
    assert action(role, cluster, "cp-1") == "none"


def test_only_a_tail_that_says_nothing_new_is_taken_for_nothing() -> None:
    assert undoubled([*"abcbc"]) == undoubled([*"abcc"]) == [*"abc"]
    # The last one wins there, or the first, so these are different.
    assert undoubled([*"aba"]) == [*"aba"] and undoubled([*"aab"]) == [*"aab"]


@pytest.mark.proves("adopt-no-restart")
def test_a_start_that_was_recorded_is_judged_by_its_record_alone(tmp_path: Path) -> None:
    cluster = by_hand()
    inventory, _ = write(adopted(cluster), tmp_path)
    cluster.different["cp-1"]["digest"] = {"now": "a", "started": "a"}
    role = role_of(inventory, cluster, "cp-1")
    assert not role.get("__rke2_adopting")
    assert "/run/rke2-started.sha256" not in {file["path"] for file in role.get("__rke2_files")}


@pytest.mark.proves("adopt-site")
def test_what_is_common_is_said_once_and_what_is_one_machines_own_stands_with_it(tmp_path: Path) -> None:
    files = adopted(by_role())["files"]
    assert files["group_vars/rke2/rke2.yml"]["values"]["rke2_kubelet_args"] == ["max-pods=200", "v=2"]
    servers = files["group_vars/rke2_server/rke2.yml"]["values"]
    assert servers["rke2_config"] == {
        "snapshotter": "overlayfs", "disable": ["rke2-ingress-nginx"], "write-kubeconfig-mode": "0640",
    }  # fmt: skip
    assert (servers["rke2_snapshot_schedule"], servers["rke2_snapshot_retention"]) == ("0 */12 * * *", 10)
    assert servers["rke2_control_plane_taint_enabled"] is False
    assert servers["rke2_node_taints"] == ["CriticalAddonsOnly=true:NoExecute"]
    assert files["host_vars/gpu-2/rke2.yml"]["values"]["rke2_config"]["kube-proxy-arg"] == ["proxy-mode=ipvs"]
    assert files["group_vars/rke2_agent/rke2.yml"]["values"]["rke2_node_labels"] == {"example.org/gpu": "a100"}
    assert files["group_vars/all/versions.yml"]["values"] == {"rke2_version": VERSION}
    site = files["group_vars/all/site.yml"]["values"]
    assert (site["site_api_address"], site["site_api_address_mode"]) == ("192.0.2.20", "external")


@pytest.mark.proves("adopt-site")
@pytest.mark.parametrize("school", SCHOOLS)
def test_no_secret_stands_outside_the_vault(school: Callable[[], Cluster], tmp_path: Path) -> None:
    report = adopted(school())
    inventory, sealed = write(report, tmp_path)
    texts = [path.read_text() for path in inventory.rglob("*.yml")] + list(adopt.lines(report))
    for secret in (TOKEN, "hunter", "keepmesafe", "AKIAEXAMPLE", ":word@"):
        assert not any(secret in text for text in texts)
    assert sealed["vault_site_rke2_token"] == TOKEN
    if school is by_role:  # braces of their own are no template of ours
        _, known = sites.variables(inventory, "gpu-1")
        assert (
            Decided(ROLE, known).get("rke2_registries")["configs"]["mirror.example.org"]["auth"]["password"]
            == "hunter{{2}}"
        )


@pytest.mark.proves("adopt-site")
def test_what_stays_or_waits_is_said_with_what_to_do() -> None:
    told = "\n".join(adopt.lines(adopted(by_role())))
    assert "cp-1, cp-2, cp-3: rke2-canal-config.yaml among the manifests" in told
    assert "who holds 192.0.2.20" in told
    assert "rotate agent-token --site found" in told
    told = "\n".join(adopt.lines(adopted(hardened())))
    assert "use-service-account-credentials in its configuration is no key that RKE2 knows" in told
    assert "site_load_balancer_pool" in told
    cluster = by_hand()
    for name in cluster.of("server"):
        cluster.files[name][CONFIG] = "tls-san: k8s.example.org\n"
    cluster.files["gpu-1"][CONFIG] = "server: https://192.0.2.21:9345\n"
    report = adopted(cluster)
    assert "no address in front of the servers was found (machines register at 192.0.2.21)" in "\n".join(
        adopt.lines(report)
    )
    assert report["files"]["group_vars/all/site.yml"]["values"]["site_api_address"] == ""
    assert report["generate"] == {"vault_site_api_address_password": 4}


@pytest.mark.proves("adopt-site")
def test_an_address_that_our_own_keepalived_holds_stays_with_it() -> None:
    cluster = by_hand()
    for name in cluster.of("server"):
        cluster.files[name]["/etc/keepalived/keepalived.conf"] = (
            "# Written by the role api_address of metalhub.platform\nvirtual_router_id 20\n"
            "auth_pass a1b2c3d4\nvirtual_ipaddress {\n  192.0.2.20/32 dev eth0\n}\n"
        )
    report = adopted(cluster)
    assert "site_api_address_mode" not in report["files"]["group_vars/all/site.yml"]["values"]
    assert report["secrets"]["vault_site_api_address_password"] == "a1b2c3d4"


def _file(name: str, path: str, text: str) -> Callable[[Cluster], None]:
    return lambda cluster: cluster.files[name].update({path: text})


def _look(name: str, **different: Any) -> Callable[[Cluster], None]:
    return lambda cluster: cluster.different[name].update(different)


@pytest.mark.proves("adopt-refusals")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(_file("cp-1", CONFIG, "cni: cilium\n"), "cp-1 has cni: cilium", id="cni"),
        pytest.param(_file("cp-1", CONFIG, "cluster-cidr: 10.4.0.0/16,fd00::/56"), "one IPv4 network", id="cidrs"),
        pytest.param(_file("cp-1", CONFIG, "datastore-endpoint: mysql://u:p@h"), "datastore-endpoint", id="datastore"),
        pytest.param(_file("cp-2", CONFIG, "cluster-domain: one.local\n"), "differ in cluster-domain", id="domains"),
        pytest.param(_file("cp-1", CONFIG, "profile: cis-1.23\n"), "the profile cis-1.23", id="old-profile"),
        pytest.param(_file("cp-1", CONFIG, "a: [\n"), "config.yaml is no valid YAML", id="yaml"),
        pytest.param(_file("gpu-1", REGISTRIES, "- a\n"), "registries.yaml holds no", id="registries"),
        pytest.param(_file("gpu-1", "/etc/default/rke2-agent", "RKE2_CONFIG_FILE=/x\n"), "RKE2_CONFIG_FILE", id="file"),
        pytest.param(_look("cp-1", running_version="v1.35.3+rke2r1"), "on disk: restart it first", id="not-restarted"),
        pytest.param(
            _look("gpu-1", running_version="v1.35.3+rke2r1", installed_version="v1.35.3+rke2r1"),
            "v1.35.3+rke2r1 and v1.35.4+rke2r1", id="half-upgraded",
        ),
        pytest.param(_look("cp-1", datastore=False), "no member of etcd", id="no-etcd"),
        pytest.param(_look("gpu-1", service={"active": "failed"}), "does not run rke2-agent", id="stopped"),
        pytest.param(lambda c: c.nodes["gpu-1"].update(ready=False), "gpu-1 is not Ready", id="not-ready"),
        pytest.param(lambda c: c.nodes["gpu-1"].update(addresses=["fd00::1"]), "IPv4 is needed", id="ipv6"),
        pytest.param(
            lambda c: c.configuration["cp-1"].update(arguments=["--token=s3cret", "--debug"]), "(--token, --debug)",
            id="unit",
        ),
        pytest.param(
            lambda c: c.nodes.update(lost=c.nodes["gpu-1"]), "lost is a node of the cluster and was not", id="more"
        ),
    ],
)  # fmt: skip
def test_a_cluster_that_no_site_can_describe_is_refused_by_name_and_reason(
    change: Callable[[Cluster], None], said: str
) -> None:
    cluster = by_hand()
    looked = list(cluster.nodes)
    change(cluster)
    report = rke2_adopted([cluster.look(name) for name in looked], "found", KNOWN, own_keys(), {})
    told = "\n".join(report["refusals"])
    assert said in told
    assert report["files"] == {} and "s3cret" not in told


@pytest.mark.proves("adopt-site")
@pytest.mark.parametrize(
    "value", ["@hunter2", "*hunter2", "!hunter2 x", '"\\hunter2"', "&hunter2 &hunter2", "2024-77-77"]
)
@pytest.mark.parametrize("path", [CONFIG, REGISTRIES, f"{CONFIG}.d/10-token.yaml"])
def test_of_a_file_that_is_broken_only_the_place_is_told(path: str, value: str) -> None:
    cluster = by_hand()
    cluster.files["cp-1"][path] = f"debug: true\ntoken: {value}\n"
    told = adopted(cluster)["refusals"]
    different = rke2_differences(cluster.look("cp-1")["configuration"], [], "server", "cp-1", ["192.0.2.21"], KNOWN)
    assert all(f"{path} is no valid YAML" in "".join(lines) for lines in (told, different["due"]))
    assert value.startswith("2024") or "see line 2, column " in told[0]
    assert "hunter" not in f"{told}{different}"
    with pytest.raises(ValueError, match="no valid YAML") as caught:
        mapping(path, cluster.files["cp-1"][path])
    assert caught.value.__suppress_context__  # Ansible prints what an error was made of too


@pytest.mark.proves("adopt-refusals")
def test_an_even_number_of_servers_and_an_unknown_release_are_refused() -> None:
    cluster = Cluster(servers=2)
    for name in cluster.nodes:
        cluster.different[name] = {"running_version": "v1.28.9+rke2r1", "installed_version": "v1.28.9+rke2r1"}
    told = "\n".join(adopted(cluster)["refusals"])
    assert "has 2 servers" in told and "runs 1.28" in told
    cluster = by_hand()
    report = rke2_adopted([cluster.look("gpu-1")], "found", KNOWN, own_keys(), {})
    assert report["refusals"] == ["gpu-1 is no server of its cluster: name one by --server"]
    cluster.nodes = {}
    report = rke2_adopted([cluster.look("cp-1")], "found", KNOWN, own_keys(), {})
    assert len(report["refusals"]) == 1 and "cp-1 is no node of a cluster that answers" in report["refusals"][0]


def test_files_are_merged_and_read_as_rke2_and_systemd_do() -> None:
    files = {
        f"{CONFIG}.d/20-b.yaml": "disable+: c\ndebug: false\n",
        CONFIG: "disable: [a]\ndebug: true\ntoken: x\nprivate-registry: /etc/rancher/rke2/registries.yaml\n",
        f"{CONFIG}.d/10-a.yaml": "disable+: [b]\n",
    }
    assert merged(files) == {"disable": ["a", "b", "c"], "debug": False, "token": "x"}
    assert environment("# no\nA=1\n B=\"x y\"\nC='q=r'\nbroken\n") == {"A": "1", "B": "x y", "C": "q=r"}


TEXT = st.text("abc-{}%$'\":# ", min_size=1, max_size=12).map(str.strip).filter(bool)
VALUES = {
    "write-kubeconfig-mode": st.sampled_from(["0600", "0644"]),
    "kube-controller-manager-arg": st.lists(TEXT, min_size=1, max_size=3),
    "kubelet-arg": st.one_of(TEXT, st.lists(TEXT, min_size=1, max_size=3)),
    "kube-apiserver-arg": st.lists(TEXT, min_size=1, max_size=3),
    "tls-san": st.lists(st.sampled_from(["192.0.2.20", "192.0.2.22", "a.example.org"]), min_size=1),
    "etcd-snapshot-retention": st.integers(1, 50),
    "etcd-expose-metrics": st.booleans(),
    "etcd-s3-secret-key": TEXT,
    "system-default-registry": TEXT,
    "cluster-domain": st.sampled_from(["cluster.local", "k8s.internal"]),
    "data-dir": st.sampled_from(["/var/lib/rancher/rke2", "/srv/rke2"]),
    "profile": st.just("etcd"),
}


@pytest.mark.proves("adopt-no-restart")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.fixed_dictionaries({}, optional=VALUES), layered=st.sets(st.sampled_from(sorted(VALUES))))
def test_whatever_a_configuration_says_and_wherever_the_first_deploy_restarts_nothing(
    values: dict[str, Any], layered: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cluster = Cluster(servers=1, agents=0)
    cluster.nodes["cp-1"]["taints"] = ["node-role.kubernetes.io/control-plane=:NoSchedule"]
    cluster.files["cp-1"] = {
        f"{values.get('data-dir', DATA)}/server/token": f"{TOKEN}\n",
        CONFIG: yaml.safe_dump({key: value for key, value in values.items() if key not in layered}),
        f"{CONFIG}.d/50-more.yaml": yaml.safe_dump({key: values[key] for key in layered & values.keys()}),
    }
    report = adopted(cluster)
    assert report["refusals"] == []
    inventory, _ = write(report, tmp_path_factory.mktemp("site"))
    role = role_of(inventory, cluster, "cp-1")
    assert role.get("__rke2_differences")["due"] == []
    assert action(role, cluster, "cp-1") == "none"
