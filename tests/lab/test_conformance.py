"""Lab RKE2 behaves as upstream's: each case names the upstream source it stands for and drives the real programs.

`rke2:` is github.com/rancher/rke2 and `k3s:` github.com/k3s-io/k3s, at the tags of release 1.35.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import ssl
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
import yaml
from cryptography import x509

import nodes
from build import STATE
from tests.lab.running import DATA, Lab, eventually

ETC = "/etc/rancher/rke2"
TLS = f"{DATA}/server/tls"
# Every shim with the time it started: two readings that agree are the same processes.
SHIMS = "for p in $(pgrep -x containerd-shim); do echo $p:$(cut -d' ' -f22 /proc/$p/stat); done"
# What pods leave on a node: devices, rules, mounts.
TRACES = """
ip -o link | grep -oE '(flannel.1|cni0):' || true
iptables-save | grep -oE '^:(KUBE|CNI)-[^ ]+' || true
awk '{print $2}' /proc/mounts | grep -E '^(/run/k3s|/var/lib/kubelet/pods)' || true
"""


def ask(lab: Lab, node: str, port: int, path: str, login: str = "") -> tuple[int, str]:
    """Status and body of a GET on a node; `login` is `user:token`."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(lab.machines[node].address, port, context=context, timeout=10)
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def attempt(lab: Lab, node: str, role: str, *files: Mapping[str, object], token: str = "") -> str:
    """What `rke2 ROLE` says before it gives up, with a configuration and data of its own beside the node's.

    files: config.yaml, then config.yaml.d/1.yaml and so on; token: what the file that `TOKEN` stands for holds.
    """
    first, *rest = (yaml.safe_dump(dict(file)).replace("TOKEN", "$dir/token") for file in files)
    more = "".join(f"cat >$dir/config.yaml.d/{n}.yaml <<EOF\n{text}EOF\n" for n, text in enumerate(rest, 1))
    script = (
        f"set -eu; umask 077; dir=$(mktemp -d /run/conformance.XXXXXX); trap 'rm -rf $dir' EXIT\n"
        f"mkdir -p $dir/config.yaml.d $dir/data; ln -s {DATA}/data $dir/data/data; cat >$dir/token\n"
        f"cat >$dir/config.yaml <<EOF\n{first}EOF\n{more}"
        f"export RKE2_CONFIG_FILE=$dir/config.yaml\n"
        f'timeout 60 /usr/local/bin/rke2 {role} --data-dir $dir/data 2>&1 || echo "status $?"'
    )
    said = nodes.run_in(node, script, token)
    assert said.endswith("status 1\n"), said
    return said


def join(lab: Lab, server: str = "") -> dict[str, object]:
    """The configuration of an agent that joins through a server of the lab."""
    return {"server": f"https://{lab.machines[server or lab.servers[0]].address}:9345", "token-file": f"{ETC}/token"}


# -- what is installed --------------------------------------------------------------------------------------------


@pytest.mark.proves("lab-artifacts")
def test_the_artifact_has_upstreams_files_names_and_checksums(lab: Lab) -> None:
    """rke2: scripts/package-bundle, scripts/package-images, install.sh."""
    release = lab.kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.nodeInfo.kubeletVersion}")
    directory = STATE / "bundle/rke2" / release
    lines = [line.split() for line in (directory / "sha256sum-amd64.txt").read_text().splitlines()]
    sums = {name: wanted for wanted, name in lines}
    images = {f"rke2-images-{kind}.linux-amd64.tar.zst" for kind in ("core", "canal")}
    assert set(sums) == images | {"rke2.linux-amd64.tar.gz"}
    for name, wanted in sums.items():
        with (directory / name).open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == wanted
    with tarfile.open(directory / "rke2.linux-amd64.tar.gz") as archive:
        names = {member.name for member in archive if member.isfile()}
    units = {f"lib/systemd/system/rke2-{role}.{kind}" for role in ("server", "agent") for kind in ("service", "env")}
    programs = {f"bin/{name}" for name in ("rke2", "rke2-killall.sh", "rke2-uninstall.sh")}
    assert names == units | programs | {"share/rke2/rke2-cis-sysctl.conf"}
    for node in (lab.servers[0], lab.agents[0]):
        assert lab.sh(node, "/usr/local/bin/rke2 --version").startswith(f"rke2 version {release} (")


@pytest.mark.proves("lab-units")
@pytest.mark.parametrize("role", ["server", "agent"])
def test_the_units_are_upstreams(lab: Lab, role: str) -> None:
    """rke2: bundle/lib/systemd/system/rke2-server.service, rke2-agent.service."""
    node = (lab.servers if role == "server" else lab.agents)[0]
    keys = "Type KillMode Restart RestartUSec TimeoutStartUSec Delegate".split()
    shown = lab.sh(node, f"systemctl show rke2-{role} -p {','.join(keys)} -p EnvironmentFiles").splitlines()
    values = dict(line.split("=", 1) for line in shown if not line.startswith("EnvironmentFiles"))
    assert [values[key] for key in keys] == ["notify", "process", "always", "5s", "infinity", "yes"]
    files = [line.split("=")[1].split()[0] for line in shown if line.startswith("EnvironmentFiles")]
    names = [f"/etc/default/rke2-{role}", f"/etc/sysconfig/rke2-{role}"]
    assert files == [*names, f"/usr/local/lib/systemd/system/rke2-{role}.env"]


@pytest.mark.proves("lab-units")
def test_a_server_refuses_to_be_an_agent_too(lab: Lab) -> None:
    """rke2: bundle/lib/systemd/system/rke2-agent.service (ExecCondition)."""
    server = lab.servers[0]
    own = "kubelet|etcd|kube-apiserver|kube-controller|kube-scheduler|kube-proxy"
    processes = f"for p in $(pgrep -x '{own}'); do echo $p:$(cut -d' ' -f22 /proc/$p/stat); done"
    before = lab.sh(server, processes)
    assert len(before.split()) == 6
    lab.sh(server, "systemctl start rke2-agent", check=False)
    assert lab.sh(server, "systemctl show -P ActiveState -P ConditionResult rke2-agent").split() == ["inactive", "no"]
    assert lab.sh(server, processes) == before, "the server's own processes were touched"


@pytest.mark.proves("lab-files")
def test_a_server_has_upstreams_tree_and_names(lab: Lab) -> None:
    """rke2: pkg/cli/cmds/server.go; k3s: pkg/daemons/control/deps/deps.go (names of certificates and keys)."""
    server = lab.servers[0]
    tree = "server/token server/node-token server/agent-token server/db/etcd server/db/snapshots server/manifests"
    tree += " server/cred agent/images agent/pod-manifests agent/etc agent/containerd bin/kubectl bin/containerd"
    names = "server-ca client-ca request-header-ca serving-kube-apiserver client-kube-apiserver client-auth-proxy"
    tree += "".join(f" server/tls/{name}.{kind}" for name in names.split() for kind in ("crt", "key"))
    tree += " server/tls/service.key server/tls/etcd/server-ca.crt server/tls/etcd/client.crt"
    lab.sh(server, f"cd {DATA} && stat -L {tree}")

    def certificate(name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate(lab.sh(server, f"cat {TLS}/{name}.crt").encode())

    certificate("serving-kube-apiserver").verify_directly_issued_by(certificate("server-ca"))
    certificate("client-kube-apiserver").verify_directly_issued_by(certificate("client-ca"))
    certificate("etcd/client").verify_directly_issued_by(certificate("etcd/server-ca"))
    assert lab.sh(server, f"stat -c '%a %U' {ETC}/rke2.yaml").strip() == "600 root"
    assert "server: https://127.0.0.1:6443" in lab.sh(server, f"cat {ETC}/rke2.yaml")


@pytest.mark.proves("lab-files")
def test_programs_run_from_the_directory_where_killall_looks_for_them(lab: Lab) -> None:
    """rke2: pkg/bootstrap/bootstrap.go (data/<hash>/bin), bundle/bin/rke2-killall.sh."""
    for node in (lab.servers[0], lab.agents[0]):
        running = lab.sh(node, "readlink /proc/$(pgrep -x kubelet)/exe /proc/$(pgrep -xo containerd)/exe").split()
        home = lab.sh(node, f"readlink -f {DATA}/bin").strip()
        assert home.startswith(f"{DATA}/data/") and len(running) == 2
        assert all(path.startswith(f"{home}/") for path in running)


@pytest.mark.proves("lab-static-pods")
def test_the_control_plane_is_static_pods_with_upstreams_settings(lab: Lab) -> None:
    """rke2: pkg/podexecutor/staticpod.go; k3s: pkg/etcd/etcd.go (heartbeat and election)."""
    server = lab.servers[0]
    pods = lab.sh(server, f"cd {DATA}/agent/pod-manifests && ls").split()
    control = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler"]
    assert pods == [f"{name}.yaml" for name in control]
    etcd = lab.sh(server, "tr '\\0' ' ' </proc/$(pgrep -x etcd)/cmdline")
    assert "--heartbeat-interval=500 " in etcd and "--election-timeout=5000 " in etcd
    assert "--anonymous-auth=false " in lab.sh(server, "tr '\\0' ' ' </proc/$(pgrep -x kube-apiserver)/cmdline")
    assert lab.sh(lab.agents[0], f"ls {DATA}/agent/pod-manifests").split() == ["kube-proxy.yaml"]


# -- the configuration ---------------------------------------------------------------------------------------------


@pytest.mark.proves("lab-config")
def test_files_are_read_in_order_and_the_last_value_wins(lab: Lab) -> None:
    """k3s: pkg/configfilearg/parser.go."""
    ports = [{"server": f"https://127.0.0.1:{port}", "token": "x"} for port in (7, 8, 9)]
    said = attempt(lab, lab.agents[0], "agent", *ports)
    assert "failed to reach server https://127.0.0.1:9" in said
    assert "127.0.0.1:7" not in said and "127.0.0.1:8" not in said


@pytest.mark.proves("lab-config")
def test_an_unknown_key_is_dropped_with_a_warning_and_a_servers_key_on_an_agent_too(lab: Lab) -> None:
    """k3s: pkg/configfilearg/parser.go (ValidFlags)."""
    said = attempt(lab, lab.agents[0], "agent", {"no-such-key": 1, "cluster-cidr": "10.9.0.0/16"})
    for key in ("no-such-key", "cluster-cidr"):
        assert f'level=warning msg="Unknown flag --{key} found in config.yaml, skipping"' in said
    assert 'level=fatal msg="--server is required"' in said


@pytest.mark.proves("lab-config")
def test_a_profile_of_an_older_minor_is_fatal(lab: Lab) -> None:
    """rke2: pkg/rke2/rke2.go, pkg/cli/cmds/profile_linux.go."""
    said = attempt(lab, lab.agents[0], "agent", join(lab) | {"profile": "cis-1.23"})
    assert "invalid value provided for --profile flag" in said


# -- who may join ---------------------------------------------------------------------------------------------------


@pytest.mark.proves("lab-tokens")
def test_a_wrong_token_and_a_token_of_another_cluster_are_refused(lab: Lab) -> None:
    """k3s: pkg/clientaccess/token.go."""
    agent = lab.agents[0]
    wrong = join(lab) | {"token-file": "TOKEN"}
    assert "401 Unauthorized" in attempt(lab, agent, "agent", wrong, token="wrong")
    foreign = f"K10{'0' * 64}::node:wrong"
    assert "token CA hash does not match the Cluster CA certificate hash" in attempt(
        lab, agent, "agent", wrong, token=foreign
    )


@pytest.mark.proves("lab-tokens")
def test_the_agents_token_makes_no_server(lab: Lab) -> None:
    """k3s: pkg/server/handlers/router.go (serverAuth and nodeAuth)."""
    said = attempt(lab, lab.agents[0], "server", join(lab))
    assert "server-join: 401 Unauthorized" in said
    token = lab.sh(lab.agents[0], f"cat {ETC}/token").strip()
    assert ask(lab, lab.servers[0], 9345, "/v1-rke2/readyz", f"node:{token}") == (200, "ok")


@pytest.mark.proves("lab-tokens")
def test_tokens_lie_in_files_in_the_form_that_carries_the_cas_hash(lab: Lab) -> None:
    """k3s: pkg/server/server.go (writeToken), pkg/clientaccess/token.go (FormatToken)."""
    server = lab.servers[0]
    ca = hashlib.sha256(lab.sh(server, f"cat {TLS}/server-ca.crt").encode()).hexdigest()
    secret, agent = (lab.sh(server, f"cat {ETC}/{name}").strip() for name in ("token", "agent-token"))
    assert lab.sh(server, f"cat {DATA}/server/token").strip() == f"K10{ca}::server:{secret}"
    assert lab.sh(server, f"cat {DATA}/server/node-token").strip() == f"K10{ca}::server:{secret}"
    assert lab.sh(server, f"cat {DATA}/server/agent-token").strip() == f"K10{ca}::node:{agent}"
    for node in (server, lab.agents[0]):
        assert not any(word in lab.sh(node, "cat /proc/[0-9]*/cmdline", check=False) for word in (secret, agent))


@pytest.mark.proves("lab-node-password")
def test_a_node_with_anothers_name_is_refused(lab: Lab) -> None:
    """k3s: pkg/nodepassword/nodepassword.go, pkg/agent/config/config.go."""
    said = attempt(lab, lab.agents[0], "agent", join(lab) | {"node-name": lab.servers[0]})
    assert "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password'" in said
    secrets = lab.kubectl("-n", "kube-system", "get", "secrets", "-o", "name").split()
    assert {f"secret/{name}.node-password.rke2" for name in lab.machines} <= set(secrets)


@pytest.mark.proves("lab-critical-values")
@pytest.mark.parametrize("key", ["cluster-cidr", "service-cidr", "cluster-dns", "cluster-domain", "agent-token"])
def test_a_server_with_another_critical_value_is_refused(lab: Lab, key: str) -> None:
    """k3s: pkg/cluster/bootstrap.go, pkg/daemons/config/types.go (CriticalControlArgs)."""
    agent, server = lab.agents[0], lab.servers[0]
    mine = yaml.safe_load(lab.sh(server, f"cat {ETC}/config.yaml"))
    same = {
        name: mine[name] for name in ("cluster-cidr", "service-cidr", "cluster-dns", "cluster-domain") if name in mine
    }
    config = join(lab) | same | {"agent-token-file": f"{ETC}/token", "token-file": "TOKEN"}
    if key == "agent-token":
        config["agent-token-file"] = "TOKEN"
    else:
        config[key] = "other"
    secret = lab.sh(server, f"cat {ETC}/token")
    said = attempt(lab, agent, "server", config, token=secret)
    assert f"critical configuration value mismatch: {key}" in said
    assert secret.strip() not in said


# -- the supervisor, the API and the way to them ------------------------------------------------------------------


@pytest.mark.proves("lab-supervisor")
def test_the_supervisor_pings_to_everybody_and_is_ready_only_to_nodes(lab: Lab) -> None:
    """k3s: pkg/server/handlers/router.go, pkg/server/handlers/handlers.go."""
    server = lab.servers[0]
    assert ask(lab, server, 9345, "/ping") == (200, "pong")
    assert ask(lab, server, 9345, "/cacerts") == (200, lab.sh(server, f"cat {TLS}/server-ca.crt"))
    for path in ("/v1-rke2/readyz", "/v1-rke2/apiservers"):
        assert ask(lab, server, 9345, path)[0] == 401
        assert ask(lab, server, 9345, path, "node:wrong")[0] == 401


@pytest.mark.proves("lab-supervisor")
def test_the_api_is_ready_to_a_certificate_and_to_nobody_else(lab: Lab) -> None:
    """rke2: pkg/rke2/rke2.go (anonymous-auth=false); pkg/podexecutor/staticpod.go (probes with kubectl)."""
    server = lab.servers[0]
    assert ask(lab, server, 6443, "/readyz")[0] == 401
    flags = f"--server https://127.0.0.1:6443 --certificate-authority {TLS}/server-ca.crt"
    flags += f" --client-certificate {TLS}/client-kube-apiserver.crt --client-key {TLS}/client-kube-apiserver.key"
    assert lab.sh(server, f"{DATA}/bin/kubectl {flags} get --raw /readyz") == "ok"


@pytest.mark.proves("lab-load-balancer")
def test_an_agent_reaches_all_servers_through_itself(lab: Lab) -> None:
    """k3s: pkg/agent/loadbalancer, pkg/agent/proxy/apiproxy.go (ports 6444 and 6443)."""
    agent = lab.agents[0]
    for port, path, wanted in ((6444, "/ping", "200 pong"), (6443, "/readyz", "401")):
        code = f"""
import http.client, ssl
link = http.client.HTTPSConnection("127.0.0.1", {port}, context=ssl._create_unverified_context(), timeout=10)
link.request("GET", "{path}")
answer = link.getresponse()
print(answer.status, answer.read().decode())
"""
        assert nodes.run_in(agent, "python3 -", code).startswith(wanted)
    servers = json.loads(lab.sh(agent, f"cat {DATA}/agent/etc/rke2-agent-load-balancer.json"))
    assert set(servers) == {lab.machines[name].address for name in lab.servers}
    assert "server: https://127.0.0.1:6443" in lab.sh(agent, f"cat {DATA}/agent/kubelet.kubeconfig")


@pytest.mark.shard("conformance")
@pytest.mark.proves("lab-load-balancer")
def test_an_agent_cut_off_from_its_server_starts_and_is_ready_through_another(lab: Lab) -> None:
    """k3s: pkg/agent/loadbalancer/loadbalancer.go (servers known from before), docs: fixed registration address."""
    agent = lab.agents[0]
    joined = lab.sh(agent, f"cat {ETC}/config.yaml {ETC}/config.yaml.d/*.yaml 2>/dev/null | grep ^server: | tail -n 1")
    address = joined.split("//")[1].split(":")[0]
    holder = lab.sh(agent, f"ip neigh show {address} | sed 's/.*lladdr //; s/ .*//'").strip()
    behind = [name for name in lab.servers if holder and holder in lab.sh(name, "ip -o link")] or lab.servers[:1]
    cut = {address, lab.machines[behind[0]].address}
    lease = ("-n", "kube-node-lease", "get", "lease", agent, "-o", "jsonpath={.spec.renewTime}")
    other = next(name for name in lab.servers if name not in behind)
    for one in cut:
        lab.sh(agent, f"iptables -I OUTPUT -d {one} -j DROP")
    try:
        lab.sh(agent, "timeout 90 systemctl restart rke2-agent")
        before = lab.kubectl(*lease, server=other)
        eventually(f"{agent} renews its lease", lambda: lab.kubectl(*lease, server=other) != before, 60)
        assert lab.nodes()[agent]["Ready"] == "True"
        reached = lab.sh(agent, "ss -Htn state established '( dport = :6443 )'")
        away = [lab.machines[name].address for name in lab.servers if name not in behind]
        assert any(f"{one}:6443" in reached for one in away), reached
    finally:
        for one in cut:
            lab.sh(agent, f"iptables -D OUTPUT -d {one} -j DROP")


# -- what a start and a stop do -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restarted:
    """What was seen of an agent that was stopped and started with two more files of configuration, then ended."""

    shims: list[str]  # before, while stopped, after
    states: list[str]  # "ActiveState kubelet" during the start, by time
    stopped: str  # programs of the service that were left by the stop
    journal: str
    kubelet: str  # its command line
    labels: dict[str, str]
    killed: str  # traces of pods after killall, and shims
    left: str  # data after killall


@pytest.fixture(scope="module")
def restarted(lab: Lab) -> Iterator[Restarted]:
    """Stop, start and end the last agent once, and leave it as it was."""
    agent = lab.agents[-1]
    files = [{"node-label": ["conformance=first"], "no-such-key": 1}, {"node-label+": ["second=conformance"]}]
    states = """
    began=$(date +%s.%N)
    systemctl start --no-block rke2-agent
    for n in $(seq 600); do
      state=$(systemctl show -P ActiveState rke2-agent)
      kubelet=closed; ! grep -q ':280A .* 0A ' /proc/net/tcp /proc/net/tcp6 || kubelet=open
      echo $state $kubelet
      [ $state != active ] || break
      sleep 0.1
    done
    journalctl -u rke2-agent --since @$began -o cat --no-pager >/run/conformance.journal
    """
    try:
        for number, file in enumerate(files, 98):
            nodes.run_in(
                agent,
                f"mkdir -p {ETC}/config.yaml.d; cat >{ETC}/config.yaml.d/{number}-conformance.yaml",
                yaml.safe_dump(file),
            )
        shims = [lab.sh(agent, SHIMS)]
        lab.sh(agent, "systemctl stop rke2-agent")
        stopped = lab.sh(agent, "pgrep -x 'containerd|kubelet|haproxy'", check=False)
        shims.append(lab.sh(agent, SHIMS))
        seen = lab.sh(agent, states).splitlines()
        shims.append(lab.sh(agent, SHIMS))
        kubelet = lab.sh(agent, "tr '\\0' ' ' </proc/$(pgrep -x kubelet)/cmdline")
        labels = json.loads(lab.kubectl("get", "node", agent, "-o", "jsonpath={.metadata.labels}"))
        journal = lab.sh(agent, "cat /run/conformance.journal")
        lab.sh(agent, f"rm -f {ETC}/config.yaml.d/9[89]-conformance.yaml /run/conformance.journal")
        lab.sh(agent, "/usr/local/bin/rke2-killall.sh")
        killed = lab.sh(agent, f"{SHIMS}; {TRACES}")
        left = lab.sh(agent, f"ls {DATA}/agent {ETC}")
    finally:
        lab.sh(agent, f"rm -f {ETC}/config.yaml.d/9[89]-conformance.yaml; timeout 120 systemctl start rke2-agent")
    yield Restarted(shims, seen, stopped, journal, kubelet, labels, killed, left)
    pods = ("-n", "kube-system", "get", "pods", "--field-selector", f"spec.nodeName={agent},status.phase=Running")

    def running() -> bool:
        return "canal" in lab.kubectl(*pods) and "flannel.1" in lab.sh(agent, TRACES)

    eventually(f"{agent} is as it was", lambda: lab.nodes()[agent]["Ready"] == "True" and running(), 90)


@pytest.mark.shard("conformance")
@pytest.mark.proves("lab-pods-survive")
def test_pods_survive_a_stop_and_a_start_and_the_services_own_programs_do_not(restarted: Restarted) -> None:
    """rke2: bundle/lib/systemd/system/rke2-agent.service (KillMode=process, ExecStopPost)."""
    before, stopped, after = (set(text.split()) for text in restarted.shims)
    assert before and before <= stopped and before <= after
    assert restarted.stopped == ""


@pytest.mark.shard("conformance")
@pytest.mark.proves("lab-units")
def test_a_start_is_over_when_the_node_is_ready_and_not_before(restarted: Restarted) -> None:
    """rke2: bundle/lib/systemd/system/rke2-agent.service (Type=notify); k3s: pkg/cli/agent/agent.go (READY=1)."""
    states = restarted.states
    assert "activating closed" in states
    assert states[-1] == "active open"
    assert "active closed" not in states


@pytest.mark.shard("conformance")
@pytest.mark.proves("lab-config", "lab-registration")
def test_lists_are_appended_and_labels_act_at_registration_only(restarted: Restarted) -> None:
    """k3s: pkg/configfilearg/parser.go (key+), docs: node labels and taints."""
    assert "--node-labels=conformance=first,second=conformance " in f"{restarted.kubelet} "
    assert "Unknown flag --no-such-key found in config.yaml, skipping" in restarted.journal
    assert "kubernetes.io/hostname" in restarted.labels
    assert not {"conformance", "second"} & restarted.labels.keys()


@pytest.mark.shard("conformance")
@pytest.mark.proves("lab-killall")
def test_killall_ends_pods_and_their_network_and_keeps_the_data(restarted: Restarted) -> None:
    """rke2: bundle/bin/rke2-killall.sh."""
    assert restarted.killed.split() == []
    assert {"containerd", "images", "kubelet.kubeconfig", "token"} <= set(restarted.left.split())


@pytest.mark.shard("conformance")
@pytest.mark.proves("lab-datastore")
def test_a_server_with_a_datastore_ignores_where_it_joined_and_keeps_its_pods(lab: Lab) -> None:
    """k3s: pkg/cluster/cluster.go (a datastore found on disk), docs: high availability."""
    server = lab.servers[-1]
    member, etcd = lab.members(server), lab.sh(server, "pgrep -x etcd")
    path = f"{ETC}/config.yaml.d/99-conformance.yaml"
    try:
        lab.sh(server, f"mkdir -p {ETC}/config.yaml.d; echo 'server: https://127.0.0.1:7' >{path}")
        lab.sh(server, "timeout 120 systemctl restart rke2-server")
    finally:
        lab.sh(server, f"rm -f {path}; timeout 120 systemctl start rke2-server")
    assert lab.members(server) == member
    assert lab.sh(server, "pgrep -x etcd") == etcd
    token = lab.sh(server, f"cat {ETC}/token").strip()
    assert ask(lab, server, 9345, "/v1-rke2/readyz", f"server:{token}") == (200, "ok")


# -- what the cluster gets ----------------------------------------------------------------------------------------


@pytest.mark.proves("lab-voter-condition")
def test_a_server_tells_in_its_conditions_that_it_votes(lab: Lab) -> None:
    """k3s: pkg/etcd/etcd.go (NodeStatus EtcdIsVoter)."""
    voters = {name for name, conditions in lab.nodes().items() if conditions.get("EtcdIsVoter") == "True"}
    assert voters == lab.voters(lab.servers[0]) == set(lab.servers)


@pytest.mark.proves("lab-canal")
def test_canal_runs_on_every_node_and_knows_the_way_to_every_other(lab: Lab) -> None:
    """rke2-charts: packages/rke2-canal (daemonset, flannel's VXLAN backend on 8472)."""
    items = json.loads(lab.kubectl("-n", "kube-system", "get", "pods", "-l", "k8s-app=canal", "-o", "json"))["items"]
    assert {item["spec"]["nodeName"] for item in items} == set(lab.machines)
    nets = json.loads(lab.kubectl("get", "nodes", "-o", "json"))["items"]
    nets = {item["metadata"]["name"]: item["spec"]["podCIDR"] for item in nets}
    for node in lab.machines:
        routes = {route["dst"] for route in json.loads(lab.sh(node, "ip -j route show dev flannel.1"))}
        assert routes >= {net for name, net in nets.items() if name != node}, node
        link = json.loads(lab.sh(node, "ip -j -d link show flannel.1"))[0]
        assert (link["mtu"], link["linkinfo"]["info_data"]["port"]) == (1450, 8472)


@dataclass(frozen=True)
class Deployed:
    """What became of a file in server/manifests: the value in the cluster, and CoreDNS' replicas, by time."""

    values: list[str]
    replicas: list[int]


@pytest.fixture(scope="module")
def deployed(lab: Lab) -> Deployed:
    """Lay down a file with a resource and a HelmChartConfig, change it, remove it."""
    server = lab.servers[0]
    path = f"{DATA}/server/manifests/conformance.yaml"
    config: dict[str, object] = {"apiVersion": "helm.cattle.io/v1", "kind": "HelmChartConfig"}
    config |= {
        "metadata": {"name": "rke2-coredns", "namespace": "kube-system"},
        "spec": {"valuesContent": "replicaCount: 3"},
    }
    get = ("get", "configmap", "conformance", "--ignore-not-found", "-o", "jsonpath={.data.value}")

    def replicas() -> int:
        name = ("deployment", "rke2-coredns-rke2-coredns", "-o", "jsonpath={.spec.replicas}")
        return int(lab.kubectl("-n", "kube-system", "get", *name))

    def lay(value: str) -> str:
        resource = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "conformance", "namespace": "default"},
        }
        text = yaml.safe_dump_all([resource | {"data": {"value": value}}, config])
        nodes.run_in(server, f"cat >{path}", text)
        eventually(f"the resource is {value}", lambda: lab.kubectl(*get) == value, 30)
        return lab.kubectl(*get)

    counts = [replicas()]
    try:
        values = [lay("first"), lay("second")]
        eventually("CoreDNS has three replicas", lambda: replicas() == 3, 60)
        counts.append(replicas())
        lab.sh(server, f"rm {path}")
        time.sleep(11)  # longer than the time between two looks at the directory
        values.append(lab.kubectl(*get))
    finally:
        lab.sh(server, f"rm -f {path} {DATA}/server/applied/conformance.sha256")
        lab.kubectl("delete", "configmap", "conformance", "--ignore-not-found")
        lab.kubectl("-n", "kube-system", "delete", "helmchartconfig", "rke2-coredns", "--ignore-not-found")
    eventually("CoreDNS has what it had", lambda: replicas() == counts[0], 60)
    return Deployed(values, [*counts, replicas()])


@pytest.mark.shard("conformance")
@pytest.mark.proves("lab-manifests")
def test_a_file_of_the_manifests_is_applied_and_its_removal_deletes_nothing(deployed: Deployed) -> None:
    """k3s: pkg/deploy/controller.go."""
    assert deployed.values == ["first", "second", "second"]


@pytest.mark.shard("conformance")
@pytest.mark.proves("lab-manifests")
def test_a_helmchartconfig_changes_what_a_packaged_chart_deploys(deployed: Deployed) -> None:
    """k3s-io/helm-controller: pkg/controllers/chart; rke2: charts/."""
    assert deployed.replicas == [2, 3, 2]


# -- what takes long or breaks something: servers are emptied and join again -----------------------------------------

# What makes a server a member of its cluster. Manifests, configuration and images stay.
WIPE = (
    f"/usr/local/bin/rke2-killall.sh; cd {DATA};"
    " rm -rf server/db server/tls server/cred server/*token server/applied agent/*.kubeconfig /etc/kubernetes"
)
OVERRIDE = f"{ETC}/config.yaml.d/99-conformance.yaml"


def forget(lab: Lab, name: str) -> None:
    """Delete a node from the cluster while its member still votes, and wait until etcd has forgotten it."""
    lab.kubectl("delete", "node", name, "--ignore-not-found")
    eventually(f"{name} is no member", lambda: name not in lab.voters(lab.servers[0]), 60)


@pytest.mark.shard("conformance")
@pytest.mark.proves("lab-learners")
def test_two_servers_that_join_at_once_see_etcds_learner_error_and_both_vote_in_the_end(lab: Lab) -> None:
    """k3s: pkg/etcd/etcd.go (ErrTooManyLearners: waiting for other members to finish joining etcd cluster)."""
    first, *others = lab.servers
    cluster, began = lab.cluster(first), lab.sh(first, "date +%s").strip()
    override = f"server: https://{lab.machines[first].address}:9345"
    try:
        for name in others:
            forget(lab, name)
            lab.sh(name, f"{WIPE}; echo '{override}' >{OVERRIDE}")
        for name in others:
            lab.sh(name, "systemctl start --no-block rke2-server")
        eventually("all servers vote in one cluster and all nodes are Ready", lab.healthy, 400)
    finally:
        for name in others:
            lab.sh(name, f"rm -f {OVERRIDE}; systemctl start --no-block rke2-server")
    assert {lab.cluster(name) for name in lab.servers} == {cluster}
    journals = [lab.sh(name, f"journalctl -u rke2-server --since @{began} -o cat --no-pager") for name in others]
    waited = "Waiting for other members to finish joining etcd cluster: etcdserver: too many learner members in cluster"
    assert any(waited in journal for journal in journals), f"they did not meet: {journals}"


@pytest.mark.shard("conformance")
@pytest.mark.proves("lab-bootstrap")
def test_a_wiped_server_that_is_told_of_no_other_begins_a_second_cluster(lab: Lab) -> None:
    """k3s: pkg/cluster/bootstrap.go, docs: high availability (the server without `server:` is the first)."""
    name = lab.servers[-1]
    cluster = lab.cluster(lab.servers[0])
    try:
        forget(lab, name)
        lab.sh(name, f"{WIPE}; echo 'server: \"\"' >{OVERRIDE}; timeout 300 systemctl start rke2-server")
        assert lab.cluster(name) != cluster
        assert lab.voters(name) == {name}
    finally:
        lab.sh(name, f"rm -f {OVERRIDE}; {WIPE}; systemctl start --no-block rke2-server")
    eventually("all servers vote in one cluster and all nodes are Ready", lab.healthy, 300)
    assert lab.cluster(name) == cluster


@pytest.mark.shard("conformance")
@pytest.mark.proves("lab-uninstall")
def test_uninstall_removes_the_node_and_a_deploy_brings_it_back(lab: Lab) -> None:
    """rke2: bundle/bin/rke2-uninstall.sh."""
    agent = lab.agents[-1]
    lab.sh(agent, "/usr/local/bin/rke2-uninstall.sh")
    gone = f"{ETC} /etc/rancher/node {DATA} /etc/cni /var/lib/cni /etc/kubernetes"
    gone += " /usr/local/bin/rke2 /usr/local/bin/rke2-killall.sh /usr/local/share/rke2"
    gone += " /usr/local/lib/systemd/system/rke2-agent.service"
    assert lab.sh(agent, f"ls -d {gone} 2>/dev/null; ls /var/lib/kubelet; {SHIMS}; {TRACES}", check=False) == ""
    lab.kubectl("delete", "node", agent)
    recap = lab.play("--limit", agent)
    assert recap.status == 0, recap.output[-3000:]
    eventually("all nodes are Ready", lab.healthy, 120)
