"""Clusters as others install them: what rke2_info says of each machine, with the files of several schools."""

from __future__ import annotations

import base64
from typing import Any

VERSION = "v1.35.4+rke2r1"
DATA = "/var/lib/rancher/rke2"
CONFIG = "/etc/rancher/rke2/config.yaml"
REGISTRIES = "/etc/rancher/rke2/registries.yaml"
AUTHORITY = "K10" + "5f" * 32
TOKEN = "0f3b6c9d1a2e4857b6d0c1f2e3a49586"
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"


def node(number: int, server: bool, labels: dict[str, str], taints: list[str]) -> dict[str, Any]:
    """Return a node as the API has it."""
    ours = {"kubernetes.io/os": "linux", "egress.rke2.io/cluster": "true", "nvidia.com/gpu.count": "8"}
    ours |= {CONTROL_PLANE: "true", "node-role.kubernetes.io/etcd": "true"} if server else {}
    return {
        "ready": True,
        "voter": server,
        "version": VERSION,
        "addresses": [f"192.0.2.{number}"],
        "labels": ours | labels,
        "annotations": {},
        "taints": taints,
        "unschedulable": False,
        "pod_network": "",
    }


class Cluster:
    """A cluster of machines; `files` and `looks` may be changed before it is asked."""

    def __init__(self, servers: int = 3, agents: int = 1) -> None:
        """Make machines that are configured by nothing."""
        kinds = [(f"cp-{n}", "server", 20 + n) for n in range(1, servers + 1)]
        kinds += [(f"gpu-{n}", "agent", 40 + n) for n in range(1, agents + 1)]
        self.nodes = {name: node(number, kind == "server", {}, []) for name, kind, number in kinds}
        self.kinds = {name: kind for name, kind, _ in kinds}
        self.files: dict[str, dict[str, str]] = {name: {} for name in self.nodes}
        self.different: dict[str, dict[str, Any]] = {name: {} for name in self.nodes}
        self.configuration: dict[str, dict[str, Any]] = {name: {} for name in self.nodes}
        for name in self.of("server"):
            self.files[name][f"{DATA}/server/token"] = f"{AUTHORITY}::server:{TOKEN}\n"
            self.files[name][f"{DATA}/server/agent-token"] = f"{AUTHORITY}::node:{TOKEN}\n"

    def of(self, kind: str) -> list[str]:
        """Return the machines of a kind."""
        return [name for name, own in self.kinds.items() if own == kind]

    def look(self, name: str) -> dict[str, Any]:
        """Return what rke2_info says of a machine."""
        server = self.kinds[name] == "server"
        found: dict[str, Any] = {
            "installed_version": VERSION,
            "running_version": VERSION,
            "service": {"active": "active", "sub": "running", "enabled": True, "age": 9000},
            "other_service_active": False,
            "datastore": server,
            "joined": True,
            "join_url": "",
            "digest": {"now": "a", "started": ""},
            "peers": {"192.0.2.20": "ready"},
            "images": [],
            "nodes": self.nodes if server else {name: self.nodes[name]},
            "sysctls": {},
            "space": {"/var/lib/rancher": 10_000},
            "staged": {},
            "etcd_account": False,
            "chart_configs": [],
        }
        configuration: dict[str, Any] = {
            "files": {path: base64.b64encode(text.encode()).decode() for path, text in self.files[name].items()},
            "edited": [],
            "arguments": [],
            "hostname": name,
            "node": name,
            "system": "debian 12",
            "program": "/usr/local/bin/rke2",
            "data_dir": DATA,
            "charts": [],
        }
        return found | self.different[name] | {"configuration": configuration | self.configuration[name]}

    def looks(self) -> list[dict[str, Any]]:
        """Return what all machines say."""
        return [self.look(name) for name in self.nodes]


def by_hand() -> Cluster:
    """A guide followed line by line: one token for all, a name in front, defaults left unsaid, no two files alike."""
    cluster = Cluster()
    first, *others = cluster.of("server")
    cluster.files[first][CONFIG] = "tls-san:\n- k8s.example.org\n- 192.0.2.20\n"
    for name in others:
        cluster.files[name][CONFIG] = (
            f'server: "https://192.0.2.20:9345"\ntoken: {AUTHORITY}::server:{TOKEN}\n'
            'tls-san: ["192.0.2.20", k8s.example.org]   # the balancer\n'
        )
    cluster.files["gpu-1"][CONFIG] = f"token: {AUTHORITY}::server:{TOKEN}\nserver: https://192.0.2.20:9345\n"
    cluster.nodes["gpu-1"]["labels"] |= {"node-role.kubernetes.io/worker": "true", "rack": "upper"}
    return cluster


def by_role() -> Cluster:
    """Laid down by somebody's role: every key quoted and stated, keepalived in front, a mirror with a password."""
    cluster = Cluster(agents=2)
    for name in cluster.nodes:
        server = cluster.kinds[name] == "server"
        lines = ['"server": "https://192.0.2.20:9345"'] if name != "cp-1" else []
        lines += [f'"token": "{TOKEN}"', '"data-dir": "/var/lib/rancher/rke2"', f'"node-name": "{name}"']
        lines += ['"snapshotter": "overlayfs"', '"kubelet-arg":', '  - "max-pods=200"', '  - "v=2"']
        if server:
            lines += ['"cni":', "  - canal", '"tls-san":', '  - "192.0.2.20"', f'  - "{name}"']
            lines += ['"disable":', "  - rke2-ingress-nginx", '"write-kubeconfig-mode": "0640"']
            lines += ['"node-taint":', '  - "CriticalAddonsOnly=true:NoExecute"', '"etcd-snapshot-retention": 10']
            cluster.files[name]["/etc/keepalived/keepalived.conf"] = "vrrp_instance VI_1 {\n  state MASTER\n}\n"
            cluster.nodes[name]["taints"] = ["CriticalAddonsOnly=true:NoExecute"]
            cluster.configuration[name] = {"charts": ["rke2-canal-config.yaml"]}
        else:
            lines += ['"node-label":', '  - "example.org/gpu=a100"']
            cluster.nodes[name]["labels"]["example.org/gpu"] = "a100"
        cluster.files[name][CONFIG] = "\n".join(lines) + "\n"
        cluster.files[name][REGISTRIES] = (
            "mirrors:\n  docker.io:\n    endpoint: ['https://mirror.example.org']\n    rewrite:\n"
            "      '^library/(.*)': 'hub/$1'\nconfigs:\n  mirror.example.org:\n"
            "    auth: {username: puller, password: 'hunter{{2}}'}\n"
        )
        cluster.different[name]["images"] = ["rke2-images.linux-amd64.tar.zst"]
    cluster.files["gpu-2"][CONFIG] += '"kube-proxy-arg":\n  - "proxy-mode=ipvs"\n'
    return cluster


def hardened() -> Cluster:
    """The school of hardening: profile, audit policy, S3, layers in config.yaml.d, a proxy, keys that RKE2 drops."""
    cluster = Cluster(agents=1)
    for name in cluster.nodes:
        files = cluster.files[name]
        files[CONFIG] = "profile: cis\nselinux: true\nkubelet-arg: protect-kernel-defaults=true\n"
        files[f"{CONFIG}.d/10-token.yaml"] = "token-file: /etc/rancher/rke2/cluster-token\n"
        files["/etc/rancher/rke2/cluster-token"] = f"{TOKEN}-agents\n"
        if cluster.kinds[name] == "server":
            files["/etc/rancher/rke2/cluster-token"] = f"{TOKEN}\n"
            files[CONFIG] += (
                "audit-policy-file: /etc/rancher/rke2/policy.yaml\nkube-apiserver-arg:\n"
                "- audit-log-path=/var/log/audit.log\ntls-san:\n- 192.0.2.20\n"
                f"agent-token: {TOKEN}-agents\nuse-service-account-credentials: true\n"
            )
            files["/etc/rancher/rke2/policy.yaml"] = (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n"
            )
            files[f"{CONFIG}.d/50-backup.yaml"] = (
                "etcd-s3: true\netcd-s3-bucket: backup\netcd-s3-access-key: AKIAEXAMPLE\n"
                "etcd-s3-secret-key: keepmesafe\nkube-apiserver-arg+:\n- audit-log-maxage=30\n"
                'etcd-snapshot-schedule-cron: "0 */6 * * *"\n'
            )
            files[f"{DATA}/server/agent-token"] = f"{AUTHORITY}::node:{TOKEN}-agents\n"
            cluster.nodes[name]["taints"] = [f"{CONTROL_PLANE}=:NoSchedule"]
        files[f"/etc/default/rke2-{cluster.kinds[name]}"] = (
            "# ours\nHTTPS_PROXY=http://user:word@proxy.example.org:3128\nNO_PROXY='10.0.0.0/8,.svc'\n"
        )
    return cluster
