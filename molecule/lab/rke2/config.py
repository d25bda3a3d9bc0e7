"""Lab RKE2's configuration: config.yaml, then config.yaml.d/*.yaml, then the command line, merged as upstream does."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paths import CONFIG, Paths

# Keys this program understands; upstream knows many more. An unknown one is dropped with a warning, as upstream does.
AGENT_KEYS = frozenset(
    "server token token-file node-name node-ip node-label node-taint kubelet-arg kube-proxy-arg data-dir profile "
    "private-registry disable-default-registry-endpoint protect-kernel-defaults resolv-conf debug".split()
)
SERVER_KEYS = AGENT_KEYS | frozenset(
    "agent-token agent-token-file tls-san cluster-cidr service-cidr cluster-dns cluster-domain cni disable "
    "write-kubeconfig-mode etcd-snapshot-schedule-cron etcd-snapshot-retention etcd-snapshot-dir etcd-snapshot-name "
    "etcd-disable-snapshots kube-apiserver-arg kube-controller-manager-arg kube-scheduler-arg etcd-arg "
    "audit-policy-file ingress-controller secrets-encryption-provider cluster-reset cluster-reset-restore-path".split()
)
# Must agree between servers, or a join fails.
CRITICAL = ("cluster-cidr", "service-cidr", "cluster-dns", "cluster-domain")
DEFAULTS: dict[str, Any] = {
    "data-dir": "/var/lib/rancher/rke2",
    "cluster-cidr": "10.42.0.0/16",
    "service-cidr": "10.43.0.0/16",
    "cluster-dns": "10.43.0.10",
    "cluster-domain": "cluster.local",
    "cni": ["canal"],
    "etcd-snapshot-schedule-cron": "0 */12 * * *",
    "etcd-snapshot-retention": 5,
}


class Fatal(Exception):
    """Ends the program with upstream's `level=fatal` line and status 1."""


def log(level: str, message: str) -> None:
    """Write one line in upstream's log format to standard error."""
    text = message.replace("\\", "\\\\").replace('"', '\\"')
    print(f'level={level} msg="{text}"', file=sys.stderr, flush=True)


@dataclass
class Config:
    """The merged values of one node; `role` is `server` or `agent`."""

    role: str
    values: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def get(self, key: str) -> Any:
        """The value of a key, None where it is not set."""
        return self.values.get(key)

    def all(self, key: str) -> list[str]:
        """A list-valued key, always as a list of strings."""
        value = self.values.get(key, [])
        return [str(item) for item in (value if isinstance(value, list) else [value])]

    @property
    def paths(self) -> Paths:
        """The tree below this node's data-dir."""
        return Paths(Path(self.values["data-dir"]))

    @property
    def node_ip(self) -> str:
        """The first address of the node."""
        return self.all("node-ip")[0]

    @property
    def node_name(self) -> str:
        """The name of the Kubernetes node."""
        return str(self.values["node-name"])

    def secret(self, key: str) -> str:
        """The token of `key` or of the file that `key`-file names, read once; empty when neither is set."""
        if key not in self.secrets:
            name = self.values.get(f"{key}-file")
            self.secrets[key] = str(self.values.get(key) or (Path(name).read_text().strip() if name else ""))
        return self.secrets[key]


def merge_file(values: dict[str, Any], path: Path) -> None:
    """Lay one file over the values: the last value of a key wins, `key+` appends."""
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise Fatal(f"failed to load config file {path}: {' '.join(str(error).split())}") from error
    for raw, value in document.items():
        if raw.endswith("+"):
            key = raw[:-1]
            old = values.get(key, [])
            values[key] = (old if isinstance(old, list) else [old]) + (value if isinstance(value, list) else [value])
        else:
            values[raw] = value


def load(role: str, flags: dict[str, Any], hostname: str, default_ip: str) -> Config:
    """Read and merge all sources for `role`; unknown keys are dropped with upstream's warning."""
    known = SERVER_KEYS if role == "server" else AGENT_KEYS
    values: dict[str, Any] = {}
    for path in (CONFIG, *sorted(Path(f"{CONFIG}.d").glob("*.yaml"))):
        if path.exists():
            merge_file(values, path)
    for key in [key for key in values if key not in known]:
        log("warning", f"Unknown flag --{key} found in config.yaml, skipping")
        del values[key]
    values = DEFAULTS | {"node-name": hostname, "node-ip": default_ip} | values | flags
    if values.get("profile") not in (None, "", "cis", "etcd"):
        raise Fatal("invalid value provided for --profile flag")
    return Config(role, values)
