"""`rke2 agent`: kubelet and kube-proxy behind a local load balancer over all servers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import yaml

from config import Config, Fatal, log
from server import node_password
from supervisor import PORT, Client
from system import Node, notify, wait_for, write

API, JOIN = 6443, 6444


class Agent(Node):
    """One worker."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.balancer = self.paths.etc / "rke2-agent-load-balancer.json"
        self.haproxy_config = self.paths.etc / "haproxy.cfg"

    def main(self) -> None:
        """Join through the first server that answers and stay."""
        if not self.config.get("server"):
            raise Fatal("--server is required")
        self.unpack()
        answer = self.join()
        write(self.paths.agent / "client-ca.crt", answer["ca"], 0o644)
        self.config.values |= answer["config"]
        self.balance(answer["servers"])
        self.start("haproxy", self.home / "haproxy", "-W", "-db", "-f", self.haproxy_config)
        kubeconfig = self.paths.agent / "kubeproxy.kubeconfig"
        if not kubeconfig.exists():
            write(kubeconfig, answer["kubeproxy"])
        self.containerd()
        self.watch()
        bootstrap = self.paths.agent / "bootstrap.kubeconfig"
        write(bootstrap, self.kubeconfig(answer["bootstrap"]))
        self.kube_proxy()
        self.kubelet(bootstrap, self.config.all("node-label"))
        wait_for("the kubelet's certificate", (self.paths.agent / "kubelet.kubeconfig").exists, 600)
        wait_for("the kubelet", lambda: listening(10250), 120)
        notify(self.notify_socket, "READY=1")
        log("info", "rke2 agent is up and running")
        while True:
            time.sleep(20)
            self.refresh()

    def join(self) -> dict[str, Any]:
        """Ask the configured server, then every one heard of before: an agent outlives the server it joined by."""
        token = self.config.secret("token")
        known = json.loads(self.balancer.read_text()) if self.balancer.exists() else []
        request = {"node": self.config.node_name, "password": node_password()}
        last = Fatal("no server to join")
        for url in dict.fromkeys([self.config.get("server"), *(f"https://{server}:{PORT}" for server in known)]):
            try:
                client = Client(url, token, "node")
                answer: dict[str, Any] = client.json("POST", "/v1-rke2/join", request)
                return answer | {"ca": client.ca.decode()}
            except Fatal as error:
                log("error", str(error))
                last = error
        raise last

    def kubeconfig(self, token: str) -> str:
        """The kubelet's first kubeconfig, good for asking for a certificate."""
        ca = str(self.paths.agent / "client-ca.crt")
        cluster = {"server": f"https://127.0.0.1:{API}", "certificate-authority": ca}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": cluster}],
            "users": [{"name": "bootstrap", "user": {"token": token}}],
            "contexts": [{"name": "default", "context": {"cluster": "local", "user": "bootstrap"}}],
            "current-context": "default",
        }
        return yaml.safe_dump(document)

    def balance(self, servers: list[str]) -> bool:
        """Write the load balancer's configuration; returns whether it changed."""
        write(self.balancer, json.dumps(servers))
        lines = ["global", "  maxconn 1024", "defaults", "  mode tcp", "  option redispatch", "  retries 3"]
        lines += [f"  timeout {what}" for what in ("connect 3s", "client 1h", "server 1h")]
        for name, port, target in (("api", API, 6443), ("supervisor", JOIN, PORT)):
            lines += [f"listen {name}", f"  bind 127.0.0.1:{port}", "  balance first", "  option tcp-check"]
            lines += [
                f"  server s{n} {server}:{target} check inter 2s fall 2 rise 1 on-marked-down shutdown-sessions"
                for n, server in enumerate(servers)
            ]
        return write(self.haproxy_config, "\n".join(lines) + "\n")

    def refresh(self) -> None:
        """Follow the cluster's list of servers; HAProxy reloads only when it changed."""
        try:
            client = Client(f"https://127.0.0.1:{JOIN}", self.config.secret("token"), "node")
            servers = sorted(client.json("GET", "/v1-rke2/apiservers"))
            known = json.loads(self.balancer.read_text())
            if servers and servers != sorted(known) and self.balance(servers):
                log("info", f"Updated load balancer servers: {', '.join(servers)}")
                self.children["haproxy"].send_signal(12)
        except (Fatal, ValueError) as error:
            log("warning", f"Failed to refresh the server list: {error}")


def listening(port: int) -> bool:
    """Whether a TCP port of this machine is open, on any address."""
    wanted = f":{port:04X}"
    return any(
        line.split()[1].endswith(wanted) and line.split()[3] == "0A"
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
    )
