"""Processes and system calls that both roles need: systemd notification, the runtime, containerd, kubelet, images."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import registries
from config import Config, Fatal, log
from paths import CONFIG, RUN, SOCKET


def release() -> dict[str, str]:
    """What the build stamped into this program: version, runtime hash, image names."""
    with zipfile.ZipFile(sys.argv[0]) as archive:
        return json.loads(archive.read("release.json"))  # type: ignore[no-any-return]


def notify(address: str, state: str) -> None:
    """Tell systemd (Type=notify) at its socket; silently nothing when not started by it."""
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def write(path: Path, text: str, mode: int = 0o600) -> bool:
    """Write a file atomically unless it already has this content; returns whether it was written."""
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.rename(path)
    return True


def point(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to `target`, atomically."""
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)


def run(*command: object, check: bool = True, timeout: float = 300, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a program with its output captured; a failure is fatal and shows the program's last words."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False, **kwargs)
    if check and done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-600:]
        raise Fatal(f"{Path(words[0]).name} {' '.join(words[1:4])}: {said}")
    return done


def wait_for(what: str, question: Callable[[], bool], seconds: float = 600, every: float = 0.5) -> None:
    """Ask until the answer is yes; after the deadline the program ends and systemd starts it again."""
    deadline = time.monotonic() + seconds
    told = time.monotonic() + 15
    while not question():
        if time.monotonic() > deadline:
            raise Fatal(f"timed out waiting for {what}")
        if time.monotonic() > told:
            log("info", f"Waiting for {what}")
            told = time.monotonic() + 15
        time.sleep(every)


class Node:
    """One node's long-running children and the programs that come with the artifact."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.paths = config.paths
        self.release = release()
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        home = self.paths.data / "data" / self.release["runtime"]
        self.home = home / "bin"
        os.environ["PATH"] = f"{self.home}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}"
        os.environ["LD_LIBRARY_PATH"] = str(home / "lib")
        # Ours alone: containerd would announce itself to systemd in our name.
        self.notify_socket = os.environ.pop("NOTIFY_SOCKET", "")

    def unpack(self) -> None:
        """Lay the artifact's programs down once per build, and point `bin` at them."""
        runtime = self.home.parent
        if not runtime.exists():
            log("info", f"Extracting runtime {self.release['runtime']}")
            staging = runtime.with_name(f".{runtime.name}.new")
            shutil.rmtree(staging, ignore_errors=True)
            with zipfile.ZipFile(sys.argv[0]) as archive:
                for entry in (entry for entry in archive.infolist() if entry.filename.startswith("runtime/")):
                    target = staging / entry.filename.removeprefix("runtime/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if entry.external_attr >> 28 == 0xA:
                        target.symlink_to(archive.read(entry).decode())
                        continue
                    with archive.open(entry) as source, target.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
                    target.chmod(0o755)
            staging.rename(runtime)
        point(self.paths.bin, self.home)

    def start(self, name: str, *command: object) -> None:
        """Start a child of this program; its output goes to a log file of its own, as upstream's does."""
        logs = self.paths.agent / ("containerd" if name == "containerd" else "logs")
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"{name}.log").open("ab") as sink:
            self.children[name] = subprocess.Popen([str(word) for word in command], stdout=sink, stderr=sink)
        log("info", f"Running {name}")

    def stop(self, *names: str) -> None:
        """End children in the order given; pods live on in their shims."""
        for name in names or tuple(reversed(self.children)):
            child = self.children.pop(name, None)
            if child and child.poll() is None:
                child.terminate()
                try:
                    child.wait(10)
                except subprocess.TimeoutExpired:
                    child.kill()

    def watch(self) -> None:
        """End the whole program when a child ends, so that systemd starts it afresh."""

        def loop() -> None:
            while True:
                for name, child in list(self.children.items()):
                    if self.children.get(name) is child and child.poll() is not None:
                        log("fatal", f"{name} exited: exit status {child.returncode}")
                        os._exit(1)
                time.sleep(1)

        threading.Thread(target=loop, daemon=True).start()

    def containerd(self) -> None:
        """Start containerd on upstream's socket and import the images that came with the artifact."""
        etc = self.paths.etc / "containerd"
        mirrors = registries.load(Path(self.config.get("private-registry") or CONFIG.with_name("registries.yaml")))
        write(
            etc / "config.toml",
            f"""version = 3
root = "{self.paths.agent}/containerd"
state = "{RUN}"
imports = ["{etc}/config-v3.toml.d/*.toml"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  enable_selinux = false
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{self.home}", "/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{self.release["repository"]}/pause:1"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{etc}/certs.d"
{registries.credentials(mirrors)}""",
        )
        files = registries.hosts_files(mirrors, not self.config.get("disable-default-registry-endpoint"))
        shutil.rmtree(etc / "certs.d", ignore_errors=True)
        for name, text in files.items():
            write(etc / "certs.d" / name / "hosts.toml", text)
        write(self.paths.etc / "crictl.yaml", f"runtime-endpoint: unix://{SOCKET}\n", 0o644)
        RUN.mkdir(parents=True, exist_ok=True)
        told = self.paths.agent / "containerd" / "containerd.log"
        before = told.stat().st_size if told.exists() else 0
        self.start("containerd", self.home / "containerd", "--config", etc / "config.toml")
        # Said once the kubelet's interface is up too; its socket answers earlier, and a kubelet refused there ends.
        wait_for("containerd", lambda: b"containerd successfully booted" in told.read_bytes()[before:], 60, 0.2)
        seen_file = self.paths.agent / "containerd" / "imported.json"
        seen = json.loads(seen_file.read_text()) if seen_file.exists() else {}
        for archive in sorted(self.paths.images.glob("*.tar.zst")):
            stat = archive.stat()
            mark = [stat.st_size, stat.st_mtime_ns]
            if seen.get(archive.name) != mark:
                log("info", f"Importing images from {archive}")
                run(self.home / "ctr", "-a", SOCKET, "-n", "k8s.io", "images", "import", archive)
                seen[archive.name] = mark
                write(seen_file, json.dumps(seen))

    def kubelet(self, bootstrap: Path | None, labels: Sequence[str] = ()) -> None:
        """Start the kubelet; static pods come from agent/pod-manifests, as upstream's do."""
        config = self.config
        unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        settings = f"""apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: {"systemd" if unified else "cgroupfs"}
containerRuntimeEndpoint: unix://{SOCKET}
authentication:
  x509: {{clientCAFile: {self.paths.agent}/client-ca.crt}}
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
authorization: {{mode: Webhook}}
clusterDNS: {json.dumps(config.all("cluster-dns"))}
clusterDomain: {config.get("cluster-domain")}
failSwapOn: false
oomScoreAdj: 0
serializeImagePulls: false
staticPodPath: {self.paths.pods}
resolvConf: {config.get("resolv-conf") or "/etc/resolv.conf"}
rotateCertificates: {json.dumps(bootstrap is not None)}
nodeStatusUpdateFrequency: 4s
fileCheckFrequency: 5s
"""
        path = self.paths.etc / "kubelet.conf.d" / "00-rke2-defaults.conf"
        write(path, settings)
        self.paths.pods.mkdir(parents=True, exist_ok=True)
        for name, made in (("client-kubelet", "kubelet-client-current.pem"), ("serving-kubelet", "kubelet.crt")):
            point(self.paths.agent / f"{name}.crt", Path("pki") / made)
        words: list[object] = [self.home / "kubelet", f"--config={path}", f"--node-ip={config.node_ip}"]
        words += [f"--kubeconfig={self.paths.agent}/kubelet.kubeconfig", f"--cert-dir={self.paths.agent}/pki"]
        words.append(f"--hostname-override={config.node_name}")
        if bootstrap:
            words.append(f"--bootstrap-kubeconfig={bootstrap}")
        if labels:
            words.append(f"--node-labels={','.join(labels)}")
        if config.all("node-taint"):
            words.append(f"--register-with-taints={','.join(config.all('node-taint'))}")
        self.start("kubelet", *words, *(f"--{word}" for word in config.all("kubelet-arg")))

    def kube_proxy(self) -> None:
        """kube-proxy is a static pod on every node, as upstream's is."""
        kubeconfig = self.paths.agent / "kubeproxy.kubeconfig"
        arguments = [f"kubeconfig={kubeconfig}", f"cluster-cidr={self.config.get('cluster-cidr')}"]
        arguments += [f"hostname-override={self.config.node_name}", "healthz-bind-address=127.0.0.1"]
        arguments += ["conntrack-max-per-core=0", "oom-score-adj=0", *self.config.all("kube-proxy-arg")]
        command = ["kube-proxy", *(f"--{word}" for word in arguments)]
        digest = hashlib.sha256(kubeconfig.read_bytes()).hexdigest()
        pod = f"""apiVersion: v1
kind: Pod
metadata:
  name: kube-proxy
  namespace: kube-system
  labels: {{component: kube-proxy, tier: control-plane}}
  annotations: {{kubeconfig: "{digest}"}}
spec:
  hostNetwork: true
  priorityClassName: system-node-critical
  containers:
    - name: kube-proxy
      image: {self.release["repository"]}/kube-proxy:{self.release["tag"]}
      imagePullPolicy: IfNotPresent
      command: {json.dumps(command)}
      securityContext: {{privileged: true}}
      resources: {{requests: {{cpu: 20m, memory: 32Mi}}}}
      volumeMounts: [{{name: kubeconfig, mountPath: {kubeconfig}, readOnly: true}}]
  volumes: [{{name: kubeconfig, hostPath: {{path: {kubeconfig}, type: File}}}}]
"""
        write(self.paths.pods / "kube-proxy.yaml", pod)
