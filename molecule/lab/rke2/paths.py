"""Where lab RKE2 keeps its files: upstream's tree, and the table of names that kubeadm and RKE2 give differently."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG = Path(os.environ.get("RKE2_CONFIG_FILE", "/etc/rancher/rke2/config.yaml"))
KUBECONFIG = Path("/etc/rancher/rke2/rke2.yaml")
NODE_PASSWORD = Path("/etc/rancher/node/password")
KUBEADM = Path("/etc/kubernetes")
RUN = Path("/run/k3s/containerd")
SOCKET = RUN / "containerd.sock"

# kubeadm's name -> upstream's name, below server/tls. Links, so that whoever knows one tree finds the other.
TLS_LINKS = {
    "ca.crt": "server-ca.crt",
    "ca.key": "server-ca.key",
    "front-proxy-ca.crt": "request-header-ca.crt",
    "front-proxy-ca.key": "request-header-ca.key",
    "apiserver.crt": "serving-kube-apiserver.crt",
    "apiserver.key": "serving-kube-apiserver.key",
    "apiserver-kubelet-client.crt": "client-kube-apiserver.crt",
    "apiserver-kubelet-client.key": "client-kube-apiserver.key",
    "front-proxy-client.crt": "client-auth-proxy.crt",
    "front-proxy-client.key": "client-auth-proxy.key",
    "sa.key": "service.key",
    "etcd/ca.crt": "etcd/server-ca.crt",
    "etcd/ca.key": "etcd/server-ca.key",
    "etcd/server.crt": "etcd/server-client.crt",
    "etcd/server.key": "etcd/server-client.key",
    "apiserver-etcd-client.crt": "etcd/client.crt",
    "apiserver-etcd-client.key": "etcd/client.key",
}
# One CA signs servers and clients here; upstream has two.
TLS_COPIES = {"ca.crt": "client-ca.crt", "ca.key": "client-ca.key"}
# What a joining server needs of the others, below server/tls.
SHARED_PKI = "ca.crt ca.key front-proxy-ca.crt front-proxy-ca.key sa.key sa.pub etcd/ca.crt etcd/ca.key".split()
# Below server/tls like the others, and handed on with them.
ENCRYPTION = "../cred/encryption-config.json"


class Paths:
    """The tree below `data-dir`."""

    def __init__(self, data: Path) -> None:
        self.data, self.bin, self.server, self.agent = data, data / "bin", data / "server", data / "agent"
        self.tls, self.db, self.manifests = self.server / "tls", self.server / "db", self.server / "manifests"
        self.admin = self.server / "cred" / "admin.kubeconfig"
        self.pods, self.images, self.etc = self.agent / "pod-manifests", self.agent / "images", self.agent / "etc"
