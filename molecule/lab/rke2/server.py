"""`rke2 server`: certificates and static pods by kubeadm's phases, membership by etcd itself."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import yaml

import certificates
import supervisor
from config import CRITICAL, Config, Fatal, log
from encryption import Encryption
from paths import ENCRYPTION, KUBEADM, KUBECONFIG, NODE_PASSWORD, SHARED_PKI, TLS_COPIES, TLS_LINKS
from snapshots import Snapshots
from supervisor import Client, Refused, Route, secure
from system import Node, notify, point, run, wait_for, write


class Server(Node):
    """One control-plane node."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ready = False
        self.seen: set[str] = set()
        self.token = ""
        self.etcd_ready = self.paths.db / "etcd" / "member"
        self.snapshots = Snapshots(self)
        self.encryption = Encryption(self)

    # -- start ---------------------------------------------------------------------------------------------------

    def main(self) -> None:
        """Start everything in upstream's order and stay."""
        joining = bool(self.config.get("server")) and not self.etcd_ready.exists()
        self.unpack()
        stored, password = self.stored_token(), node_password()
        self.token = self.config.secret("token") or stored or secrets.token_hex(16)
        servers: list[str] = []
        if joining:
            request = {"node": self.config.node_name, "password": password, "critical": self.critical()}
            client = Client(self.config.get("server"), self.token, "server")
            answer = client.json("POST", "/v1-rke2/server-join", request)
            servers, known_by = answer["servers"], self.paths.tls / "ca.crt"
            if known_by.exists() and known_by.read_text() != answer["pki"]["ca.crt"]:
                cure = "Remove the file(s) from disk and restart to be recreated from datastore."
                raise Fatal(f"{known_by} newer than datastore and could cause a cluster outage. {cure}")
            for name, content in answer["pki"].items():
                write(self.paths.tls / name, content)
        elif (self.paths.db / "reset-flag").exists():
            pass  # the reset has opened the data with this token; what others have is another history
        elif stored and supervisor.short(self.token) != supervisor.short(stored) and not self.kept():
            raise Fatal("bootstrap data already found and encrypted with different token")
        elif not self.etcd_ready.exists():
            self.encryption.begin()
        else:
            self.encryption.follow()
        paths = self.paths
        for path in (paths.pods, paths.manifests, paths.tls, paths.db / "snapshots", KUBEADM, paths.server / "cred"):
            path.mkdir(parents=True, exist_ok=True)
        paths.db.chmod(0o700)
        paths.tls.chmod(0o700)
        point(KUBEADM / "manifests", paths.pods)
        self.package()
        self.certificates()
        self.containerd()
        self.watch()
        supervisor.serve(self.paths.tls, self.routes(), self.tokens)
        if servers:
            self.join(servers)
        else:
            self.etcd_manifest()
            self.control_plane()
            self.kubelet(None, self.config.all("node-label"))
        wait_for("the API server", self.api_ready, 900)
        self.register(password)
        self.snapshots.bootstrap()
        (self.paths.db / "reset-flag").unlink(missing_ok=True)
        self.ready = True
        notify(self.notify_socket, "READY=1")
        log("info", "rke2 is up and running")
        while True:
            self.maintain()
            time.sleep(10)

    def package(self) -> None:
        """Lay down the packaged HelmCharts, this cluster's networks set in them."""
        config = self.config
        values = {
            "global.clusterCIDR": config.get("cluster-cidr"),
            "global.clusterDomain": config.get("cluster-domain"),
            "service.clusterIP": config.get("cluster-dns"),
        }
        with zipfile.ZipFile(sys.argv[0]) as archive:
            for entry in (name for name in archive.namelist() if name.startswith("charts/")):
                name = Path(entry).stem
                path = self.paths.manifests / f"{name}.yaml"
                asked = {"rke2-canal": "canal" in config.all("cni"), "rke2-ingress-nginx": self.ingress(path)}
                if name in config.all("disable") or not asked.get(name, True):
                    path.unlink(missing_ok=True)
                    continue
                content = base64.b64encode(archive.read(entry)).decode()
                spec: dict[str, Any] = {"chartContent": content, "set": values, "targetNamespace": "kube-system"}
                # Before there is a pod network; everything else is installed over it.
                spec["bootstrap"] = name in ("rke2-canal", "rke2-coredns")
                metadata = {"name": name, "namespace": "kube-system"}
                chart = {"apiVersion": "helm.cattle.io/v1", "kind": "HelmChart", "metadata": metadata, "spec": spec}
                write(path, yaml.safe_dump(chart))

    def ingress(self, manifest: Path) -> bool:
        """Whether ingress-nginx is installed: by default before 1.36, from then on where it was or is asked for."""
        asked = self.config.all("ingress-controller")
        newer = int(self.release["version"].split(".")[1]) >= 36
        return "ingress-nginx" in asked if asked else not newer or manifest.exists()

    def stored_token(self) -> str:
        """The token of an earlier start, empty before the first."""
        path = self.paths.server / "token"
        return path.read_text().strip() if path.exists() else ""

    def bootstrap_key(self) -> str:
        """Where etcd holds the cluster's keys: the name tells which token opens them, as upstream's does."""
        token = self.token or self.config.secret("token") or self.stored_token()
        return f"/bootstrap/{hashlib.sha256(supervisor.short(token).encode()).hexdigest()[:12]}"

    def pki(self) -> dict[str, str]:
        """What a server needs of the others to be of the same cluster."""
        names = [*SHARED_PKI, ENCRYPTION] if self.encryption.keys() else SHARED_PKI
        return {name: (self.paths.tls / name).read_text() for name in names}

    def keep(self) -> None:
        """Keep that in etcd for the other servers' next start."""
        self.etcdctl(["https://127.0.0.1:2379"], "put", self.bootstrap_key(), stdin=json.dumps(self.pki()))

    def kept(self) -> dict[str, str]:
        """What etcd has under this token's fingerprint; any member may tell, and the API's names are those of all."""
        members = [one for one in [self.config.node_ip, *self.config.all("tls-san")] if re.fullmatch(r"[\d.]+", one)]
        ask = ("get", "--print-value-only", self.bootstrap_key())
        found = self.etcdctl([f"https://{one}:2379" for one in members], *ask, check=False).stdout.strip()
        return json.loads(found) if found else {}

    def critical(self) -> dict[str, Any]:
        """What must be the same on all servers; the agent token takes part by its hash."""
        values = {key: self.config.get(key) for key in CRITICAL}
        return values | {"agent-token": hashlib.sha256(self.config.secret("agent-token").encode()).hexdigest()}

    def kubeadm(self, *words: object, config: str = "kubeadm.yaml", timeout: float = 300) -> str:
        """Run kubeadm with a configuration of ours and return its output."""
        return run(self.home / "kubeadm", *words, "--config", self.paths.etc / config, timeout=timeout).stdout

    def kubectl(self, *words: object, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the cluster's administrator on this node's API server."""
        program = (self.home / "kubectl", "--kubeconfig", self.paths.admin)
        return run(*program, *words, check=check, input=stdin, timeout=60)

    def documents(self, endpoint: str) -> list[dict[str, Any]]:
        """kubeadm's configuration of this node, for an API server at `endpoint`."""
        config = self.config

        def args(*keys: str, **fixed: str) -> list[dict[str, str]]:
            pairs = [(name.replace("_", "-"), value) for name, value in fixed.items()]
            pairs += [tuple(word.split("=", 1)) for key in keys for word in config.all(key)]  # type: ignore[misc]
            return [{"name": name, "value": value} for name, value in dict(pairs).items()]

        sans = [config.node_ip, "127.0.0.1", "localhost", config.node_name, *config.all("tls-san")]
        registration = {"name": config.node_name, "criSocket": "unix:///run/k3s/containerd/containerd.sock"}
        networks = {"podSubnet": "cluster-cidr", "serviceSubnet": "service-cidr", "dnsDomain": "cluster-domain"}
        member = {"heartbeat_interval": "500", "election_timeout": "5000"}
        member |= {"listen_client_http_urls": "https://127.0.0.1:2382"}
        etcd: dict[str, Any] = {"dataDir": str(self.paths.db / "etcd"), "imageTag": self.release["tag"]}
        etcd["extraArgs"] = args("etcd-arg", **member)
        fixed, api = {"anonymous_auth": "false", "profiling": "false"}, dict[str, Any]()
        if self.encryption.keys():
            cred = str(self.paths.server / "cred")
            fixed |= {"encryption_provider_config": f"{cred}/{Path(ENCRYPTION).name}"}
            fixed |= {"encryption_provider_config_automatic_reload": "true"}
            api["extraVolumes"] = [{"name": "encryption", "hostPath": cred, "mountPath": cred, "readOnly": True}]
        cluster = {
            "kind": "ClusterConfiguration",
            "kubernetesVersion": self.release["version"],
            "imageRepository": self.release["repository"],
            "certificatesDir": str(self.paths.tls),
            "controlPlaneEndpoint": endpoint,
            "networking": {name: config.get(key) for name, key in networks.items()},
            "etcd": {"local": etcd},
            "apiServer": {"certSANs": list(dict.fromkeys(sans)), "extraArgs": args("kube-apiserver-arg", **fixed)}
            | api,
            "controllerManager": {"extraArgs": args("kube-controller-manager-arg", profiling="false")},
            "scheduler": {"extraArgs": args("kube-scheduler-arg", profiling="false")},
        }
        local = {"advertiseAddress": config.node_ip}
        init = {"kind": "InitConfiguration", "localAPIEndpoint": local, "nodeRegistration": registration}
        join = {
            "kind": "JoinConfiguration",
            "controlPlane": {"localAPIEndpoint": local},
            "discovery": {"file": {"kubeConfigPath": str(KUBEADM / "admin.conf")}},
            "nodeRegistration": registration,
        }
        return [document | {"apiVersion": "kubeadm.k8s.io/v1beta4"} for document in (cluster, init, join)]

    def certificates(self) -> None:
        """Certificates and kubeconfigs by kubeadm; a serving certificate that lacks a wanted name is made anew."""
        cluster, init, join = self.documents("127.0.0.1:6443")
        write(self.paths.etc / "kubeadm.yaml", yaml.safe_dump_all([cluster, init]))
        write(self.paths.etc / "join.yaml", yaml.safe_dump(join))
        names = json.dumps(cluster["apiServer"]["certSANs"])
        certificates.renew(self.paths)
        mark = self.paths.tls / ".apiserver-names"
        if mark.exists() and mark.read_text() != names:
            for suffix in ("crt", "key"):
                (self.paths.tls / f"apiserver.{suffix}").unlink(missing_ok=True)
        self.kubeadm("init", "phase", "certs", "all")
        write(mark, names)
        self.kubeadm("init", "phase", "kubeconfig", "all")
        for source, name in TLS_LINKS.items():
            link = self.paths.tls / name
            if not link.exists():
                point(link, Path(os.path.relpath(source, Path(name).parent)))
        for source, name in TLS_COPIES.items():
            write(self.paths.tls / name, (self.paths.tls / source).read_text())
        write(self.paths.agent / "client-ca.crt", (self.paths.tls / "ca.crt").read_text(), 0o644)
        admin = (KUBEADM / "super-admin.conf").read_text()
        write(self.paths.admin, admin)
        write(KUBECONFIG, admin, int(str(self.config.get("write-kubeconfig-mode") or "600"), 8))
        write(self.paths.agent / "kubelet.kubeconfig", (KUBEADM / "kubelet.conf").read_text())
        proxy = self.paths.agent / "kubeproxy.kubeconfig"
        if not proxy.exists():
            write(proxy, self.user("system:kube-proxy"))
        ca = (self.paths.tls / "ca.crt").read_bytes()
        write(self.paths.server / "token", secure(self.token, ca, "server") + "\n")
        agent_token = self.config.secret("agent-token")
        write(self.paths.server / "agent-token", secure(agent_token or self.token, ca, "node") + "\n")
        if not (self.paths.server / "node-token").is_symlink():
            (self.paths.server / "node-token").symlink_to("token")

    def user(self, name: str) -> str:
        """A kubeconfig for one user of the cluster, at the local load balancer's address."""
        return self.kubeadm("kubeconfig", "user", f"--client-name={name}")

    def control_plane(self) -> None:
        """Static pods of API server, controller manager and scheduler, and kube-proxy's."""
        # kubeadm writes where the kubelet watches; a pod that is not finished yet must not start.
        staging = self.paths.etc / "manifests"
        staging.mkdir(parents=True, exist_ok=True)
        point(KUBEADM / "manifests", staging)
        try:
            self.kubeadm("init", "phase", "control-plane", "all")
        finally:
            point(KUBEADM / "manifests", self.paths.pods)
        path = staging / "kube-apiserver.yaml"
        pod = yaml.safe_load(path.read_text())
        container = pod["spec"]["containers"][0]
        tls = self.paths.tls
        # anonymous-auth=false answers kubeadm's HTTP probes with 401; upstream asks with kubectl too.
        get = ["kubectl", "--server=https://localhost:6443", f"--certificate-authority={tls}/ca.crt"]
        client = f"{tls}/apiserver-kubelet-client"
        get += [f"--client-certificate={client}.crt", f"--client-key={client}.key", "get"]
        for probe, question in (("liveness", "livez"), ("readiness", "readyz"), ("startup", "livez")):
            ask = {"exec": {"command": [*get, f"--raw=/{question}"]}, "timeoutSeconds": 15}
            ask["periodSeconds"] = 5 if probe == "startup" else 10
            kept = {key: value for key, value in container[f"{probe}Probe"].items() if key != "httpGet"}
            container[f"{probe}Probe"] = kept | ask
        if policy := self.config.get("audit-policy-file"):
            logs = f"{self.paths.server}/logs"
            container["command"] += [f"--audit-policy-file={policy}", f"--audit-log-path={logs}/audit.log"]
            for name, host, kind in (("policy", policy, "File"), ("audit", logs, "DirectoryOrCreate")):
                container["volumeMounts"].append({"name": name, "mountPath": host})
                pod["spec"]["volumes"].append({"name": name, "hostPath": {"path": host, "type": kind}})
        path.write_text(yaml.safe_dump(pod))
        # What holds a certificate reads it at its start, so the pods start anew with every other one.
        shown = [*sorted(tls.glob("*.crt")), KUBEADM / "controller-manager.conf", KUBEADM / "scheduler.conf"]
        shown += [self.encryption.path] if self.encryption.keys() else []
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in shown)).hexdigest()
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
            pod = yaml.safe_load((staging / f"{name}.yaml").read_text())
            pod["metadata"].setdefault("annotations", {})["certificates"] = digest
            write(self.paths.pods / f"{name}.yaml", yaml.safe_dump(pod))
        self.kube_proxy()

    def etcd_manifest(self) -> None:
        """etcd's static pod: made by kubeadm once, afterwards only its image follows the artifact."""
        path = self.paths.pods / "etcd.yaml"
        if not path.exists():
            self.kubeadm("init", "phase", "etcd", "local")
            return
        pod = yaml.safe_load(path.read_text())
        image = f"{self.release['repository']}/etcd:{self.release['tag']}"
        if pod["spec"]["containers"][0]["image"] != image:
            pod["spec"]["containers"][0]["image"] = image
            path.write_text(yaml.safe_dump(pod))

    def join(self, servers: list[str]) -> None:
        """Join etcd as a learner through a server that answers, then start the control plane."""
        mine = f"https://{self.config.node_ip}:2380"
        remote = [f"https://{server}:2379" for server in servers]
        for member in self.members(remote):
            if mine in member["peerURLs"]:
                log("info", f"Removing stale etcd member {member.get('name')} with this node's address")
                self.etcdctl(remote, "member", "remove", f"{member['ID']:x}")
        self.kubelet(None, self.config.all("node-label"))
        admin = (KUBEADM / "super-admin.conf").read_text()

        def healthy(server: str) -> bool:
            return self.etcdctl([f"https://{server}:2379"], "endpoint", "health", check=False).returncode == 0

        answering = next(filter(healthy, servers), servers[0])
        write(KUBEADM / "admin.conf", admin.replace("https://127.0.0.1:6443", f"https://{answering}:6443"))
        wait_for("a place in the etcd cluster", lambda: self.announced(remote, mine), 600, 1)
        try:
            self.kubeadm("join", "phase", "etcd-join", config="join.yaml", timeout=240)
        except Fatal:
            # A half-made member must not greet the next attempt.
            (self.paths.pods / "etcd.yaml").unlink(missing_ok=True)
            shutil.rmtree(self.paths.db / "etcd", ignore_errors=True)
            raise
        finally:
            (KUBEADM / "admin.conf").unlink(missing_ok=True)
        self.kubeadm("init", "phase", "kubeconfig", "admin")
        self.control_plane()

    def announced(self, remote: list[str], mine: str) -> bool:
        """Announce this member as a learner; False while etcd refuses because another one is on its way."""
        add = ("member", "add", self.config.node_name, "--learner", f"--peer-urls={mine}")
        done = self.etcdctl(remote, *add, check=False)
        said = done.stderr.strip().rpartition("Error: ")[2]
        if done.returncode and not any(word in said for word in ("too many learner", "unhealthy cluster")):
            raise Fatal(f"ETCD join failed: {said}")
        if done.returncode:
            log("info", f"Waiting for other members to finish joining etcd cluster: {said}")
        return done.returncode == 0

    def etcdctl(
        self, endpoints: list[str], *words: object, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run etcdctl with this server's certificate."""
        tls = self.paths.tls / "etcd"
        flags = [f"--endpoints={','.join(endpoints)}", f"--cacert={tls}/ca.crt", f"--cert={tls}/server.crt"]
        flags += [f"--key={tls}/server.key", f"--command-timeout={60 if words[0] == 'snapshot' else 10}s"]
        return run(self.home / "etcdctl", *flags, *words, check=check, timeout=90, input=stdin)

    def members(self, endpoints: list[str]) -> list[dict[str, Any]]:
        """etcd's members as etcd itself tells them."""
        return json.loads(self.etcdctl(endpoints, "member", "list", "-w", "json").stdout)["members"]  # type: ignore[no-any-return]

    def api_ready(self) -> bool:
        """Whether this node's API server says that it is ready."""
        return self.kubectl("get", "--raw=/readyz", check=False).returncode == 0

    def register(self, password: str) -> None:
        """What needs the API once per start: kubeadm's own objects, this node's labels and password."""
        for part in ("kubeadm", "kubelet"):
            self.kubeadm("init", "phase", "upload-config", part)
        self.kubeadm("init", "phase", "bootstrap-token")
        name = self.config.node_name
        wait_for("this node to register", lambda: self.kubectl("get", "node", name, check=False).returncode == 0, 300)
        roles = [f"node-role.kubernetes.io/{role}=true" for role in ("control-plane", "etcd")]
        self.kubectl("label", "--overwrite", "node", name, *roles)
        try:
            self.check_password(name, password)
        except Refused as refused:  # only others are turned away
            log("warning", f"Error ensuring node password secret for pre-validated node '{name}': {refused}")
        self.encryption.tell()
        image = f"--default-job-image={self.release['repository']}/klipper-helm:1"
        flags = ["--namespace=kube-system", f"--kubeconfig={self.paths.admin}", f"--node-name={self.config.node_name}"]
        self.start("helm-controller", self.home / "helm-controller", *flags, image)
        crd = ("get", "crd", "helmcharts.helm.cattle.io", "helmchartconfigs.helm.cattle.io")
        wait_for("the HelmChart resources", lambda: self.kubectl(*crd, check=False).returncode == 0, 120)
        self.deploy()

    # -- steady state --------------------------------------------------------------------------------------------

    def maintain(self) -> None:
        """Apply changed manifests, report EtcdIsVoter, forget members whose node was deleted."""
        try:
            self.deploy()
            local, name = ["https://127.0.0.1:2379"], self.config.node_name
            members = self.members(local)
            found = json.loads(self.kubectl("get", "nodes", "-o", "json").stdout)["items"]
            nodes = {node["metadata"]["name"]: node["status"] for node in found}
            mine = next((member for member in members if member.get("name") == name), {"isLearner": True})
            learner = bool(mine.get("isLearner"))
            if learner and "ID" in mine:
                # A start that was cut short between adding and promoting this member.
                self.etcdctl(voting(members), "member", "promote", f"{mine['ID']:x}", check=False)
            if name in nodes:
                self.tell_voter(nodes[name], not learner)
            for gone in self.seen - nodes.keys():
                for member in members:
                    if member.get("name") == gone != name:
                        log("info", f"Removing etcd member {gone}: its node was deleted")
                        self.etcdctl(local, "member", "remove", f"{member['ID']:x}", check=False)
                secret = ("secret", f"{gone}.node-password.rke2", "--ignore-not-found")
                self.kubectl("-n", "kube-system", "delete", *secret, check=False)
            self.seen = set(nodes)
            self.snapshots.maintain()
        except (Fatal, OSError, ValueError) as error:
            log("error", str(error))

    def tell_voter(self, status: dict[str, Any], voter: bool) -> None:
        """Set the node's condition EtcdIsVoter where it says something else."""
        if any(c["type"] == "EtcdIsVoter" and c["status"] == str(voter) for c in status.get("conditions", [])):
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        condition = {"type": "EtcdIsVoter", "status": str(voter), "lastTransitionTime": now, "lastHeartbeatTime": now}
        condition["reason"] = "MemberNotLearner" if voter else "MemberIsLearner"
        condition["message"] = f"Node is {'a' if voter else 'not a'} voting member of the etcd cluster"
        patch = json.dumps({"status": {"conditions": [condition]}})
        self.kubectl("patch", "node", self.config.node_name, "--subresource=status", "--type=strategic", "-p", patch)

    def deploy(self) -> None:
        """Apply every file of server/manifests whose content changed since it was last applied."""
        for path in sorted(self.paths.manifests.rglob("*.yaml")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            mark = self.paths.server / "applied" / f"{path.stem}.sha256"
            if not mark.exists() or mark.read_text() != digest:
                ours = ("--server-side", "--force-conflicts", "--field-manager=deploy@rke2")
                done = self.kubectl("apply", *ours, "-f", path, check=False)
                if done.returncode:
                    log("error", f"Failed to apply {path}: {' '.join(done.stderr.split())[-300:]}")
                    continue
                write(mark, digest)
                log("info", f"Applied manifest at {path}")

    # -- supervisor ----------------------------------------------------------------------------------------------

    def tokens(self, user: str) -> list[str]:
        """The tokens that open the supervisor to a user, `server` or `node`."""
        agent = self.config.secret("agent-token")
        return [self.token] if user == "server" or not agent else [self.token, agent]

    def routes(self) -> dict[str, Route]:
        """What the supervisor answers, and to whom."""
        return {
            "GET /ping": Route("", lambda _: b"pong"),
            "GET /cacerts": Route("", lambda _: (self.paths.tls / "ca.crt").read_bytes()),
            "GET /v1-rke2/readyz": Route("node", self.readyz),
            "GET /v1-rke2/apiservers": Route("node", lambda _: self.servers()),
            "POST /v1-rke2/join": Route("node", self.answer_agent),
            "POST /v1-rke2/server-join": Route("server", self.answer_server),
            "POST /db/snapshot": Route("server", self.snapshots.answer),
            "PUT /v1-rke2/token": Route("server", self.rotate_token),
            "GET /v1-rke2/encrypt/status": Route("server", self.encryption.status),
            "PUT /v1-rke2/encrypt/config": Route("server", self.encryption.answer),
        }

    def readyz(self, _: dict[str, Any]) -> bytes:
        """Say ok once this server is up; refuse before."""
        if not self.ready:
            raise Refused(503, "runtime core not ready")
        return b"ok"

    def servers(self) -> list[str]:
        """The addresses of all etcd members that vote, this server first."""
        urls = voting(self.members(["https://127.0.0.1:2379"]))
        addresses = {url.split("//")[1].split(":")[0] for url in urls}
        return [self.config.node_ip, *sorted(addresses - {self.config.node_ip, "127.0.0.1"})]

    def answer_server(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hand a joining server the cluster's keys, after its password and its critical values were compared."""
        self.readyz(request)
        self.check_password(request["node"], request["password"])
        mine = self.critical()
        for key, value in request["critical"].items():
            if mine[key] != value:
                shown = "" if key == "agent-token" else f": {value} here, {mine[key]} there"
                raise Refused(400, f"critical configuration value mismatch: {key}{shown}")
        return {"servers": self.servers(), "pki": self.pki()}

    def rotate_token(self, request: dict[str, Any]) -> bytes:
        """Take another token; what etcd keeps lies under its fingerprint, so a start with the old one ends."""
        old = self.bootstrap_key()
        self.token = request["newToken"]
        self.keep()
        self.etcdctl(["https://127.0.0.1:2379"], "del", old)
        ca = (self.paths.tls / "ca.crt").read_bytes()
        write(self.paths.server / "token", secure(self.token, ca, "server") + "\n")
        return b""

    def answer_agent(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hand a joining agent what it needs, its password compared; the token is for its kubelet's certificate."""
        self.readyz(request)
        self.check_password(request["node"], request["password"])
        create = ("--kubeconfig", self.paths.admin, "token", "create", "--ttl=1h")
        answer = {key: self.config.get(key) for key in ("cluster-dns", "cluster-domain", "cluster-cidr")}
        return {
            "config": answer,
            "servers": self.servers(),
            "bootstrap": run(self.home / "kubeadm", *create).stdout.strip(),
            "kubeproxy": self.user("system:kube-proxy"),
        }

    def check_password(self, node: str, password: str) -> None:
        """Compare a node's password with the one it first came with; an unknown node's is recorded."""
        name = f"{node}.node-password.rke2"
        found = self.kubectl("-n", "kube-system", "get", "secret", name, "-o", "jsonpath={.data.hash}", check=False)
        if found.returncode == 0 and found.stdout:
            salt, digest = base64.b64decode(found.stdout).decode().split(":")
            if hashlib.scrypt(password.encode(), salt=salt.encode(), n=1024, r=8, p=1).hex() != digest:
                may = f"duplicate hostname or contents of '{NODE_PASSWORD}' may not match server node-passwd entry"
                raise Refused(403, f"Node password rejected, {may}")
            return
        if "NotFound" not in found.stderr and found.returncode:
            raise Refused(503, "runtime core not ready")
        salt = secrets.token_hex(8)
        digest = hashlib.scrypt(password.encode(), salt=salt.encode(), n=1024, r=8, p=1).hex()
        create = ("-n", "kube-system", "create", "-f", "-")
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "immutable": True}
        self.kubectl(*create, stdin=json.dumps(secret | {"stringData": {"hash": f"{salt}:{digest}"}}))


def voting(members: list[dict[str, Any]]) -> list[str]:
    """The client addresses of the members that vote."""
    return [url for member in members if not member.get("isLearner") for url in member.get("clientURLs", [])]


def node_password() -> str:
    """This node's password, made at its first start."""
    if not NODE_PASSWORD.exists():
        write(NODE_PASSWORD, secrets.token_hex(16) + "\n")
    return NODE_PASSWORD.read_text().strip()
