"""The ingress from outside and from nodes: the address, the certificate, what nobody serves, what is refused."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

import nodes
from tests.lab.running import ROOT, SITE, Lab, eventually

PARAMETERS = nodes.PARAMETERS
HOST, ADDRESS = PARAMETERS["site_host"], PARAMETERS["site_ingress_address"]
AUTHORITIES = Path.home() / f".kube/metalhub-{PARAMETERS['site_name']}-ca.pem"
STAGE = "playbooks/stages/ingress_nginx.yml"


NAME = "ingress-limits"
SILENCE = 75
# Takes what is put, answers a question and a websocket after a silence.
BACKEND = f"""
import base64, hashlib, http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def say(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_PUT(self):
        left = wanted = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self.say(str(wanted))
    def do_GET(self):
        if not self.path.endswith("/silent"):
            return self.say("here")
        key = self.headers.get("Sec-WebSocket-Key")
        if key:
            magic = (key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(magic).digest()).decode())
            self.end_headers()
            self.wfile.flush()
        time.sleep({SILENCE})
        if key:
            self.wfile.write(bytes([0x81, 5]) + b"again")
            self.close_connection = True
        else:
            self.say("again")
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


def connect() -> ssl.SSLSocket:
    """A connection to the address under the site's name."""
    context = ssl.create_default_context(cafile=AUTHORITIES)
    return context.wrap_socket(socket.create_connection((ADDRESS, 443), 10), server_hostname=HOST)


def manifest() -> str:
    """The backend behind two Ingresses of the site's host: one as the hub's, one without an annotation."""
    image = yaml.safe_load((SITE / "group_vars/platform/jupyterhub.yml").read_text())["jupyterhub_image"]
    table = yaml.safe_load((ROOT / "roles/ingress_nginx/files/controllers.yml").read_text())
    labels = {"app": NAME}
    container = {
        "name": "web",
        "image": image,
        "command": ["python3", "-c", BACKEND],
        "ports": [{"containerPort": 8080}],
    }
    about = {"namespace": "default", "labels": labels}
    documents = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": about | {"name": NAME},
         "spec": {"containers": [container], "terminationGracePeriodSeconds": 0}},
        {"apiVersion": "v1", "kind": "Service", "metadata": about | {"name": NAME},
         "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}},
    ]  # fmt: skip
    for name, needed in ((NAME, table["nginx"]["annotations"]["notebooks"]), (f"{NAME}-bare", {})):
        backend = {"service": {"name": NAME, "port": {"number": 80}}}
        path = {"path": f"/{name}/", "pathType": "Prefix", "backend": backend}
        rules = [{"host": HOST, "http": {"paths": [path]}}]
        documents.append(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "Ingress",
                "metadata": about | {"name": name, "annotations": needed},
                "spec": {"ingressClassName": "nginx", "rules": rules},
            }
        )
    return yaml.safe_dump_all(documents)


@pytest.fixture
def backend(lab: Lab) -> Iterator[None]:
    """A backend that both Ingresses lead to."""
    lab.sh("umaster01", f"cat >/run/{NAME}.yaml <<'EOF'\n{manifest()}EOF\n")
    lab.kubectl("apply", "-f", f"/run/{NAME}.yaml", server="umaster01")
    try:
        eventually("the backend answers", lambda: ask(f"/{NAME}/")[0] == ask(f"/{NAME}-bare/")[0] == 200)
        yield
    finally:
        lab.kubectl("delete", "-f", f"/run/{NAME}.yaml", "--wait=false", server="umaster01")
        gone = ("get", "pods,services,ingresses", "-l", f"app={NAME}", "-o", "name")
        eventually("nothing of the test is left", lambda: not lab.kubectl(*gone).strip())


def ask(path: str, host: str = HOST, port: int = 443) -> tuple[int, str]:
    """Status and headers that the address answers, under the site's certificate where the port is TLS's."""
    with socket.create_connection((ADDRESS, port), 10) as plain:
        context = ssl.create_default_context(cafile=AUTHORITIES)
        stream = context.wrap_socket(plain, server_hostname=HOST) if port == 443 else plain
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while more := stream.recv(65536):
            answer += more
    head = answer.split(b"\r\n\r\n")[0].decode()
    return int(head.split()[1]), head


@pytest.mark.proves("ingress-unknown")
def test_what_nobody_serves_is_404_under_the_sites_certificate(lab: Lab) -> None:
    assert ask("/nobody-serves-this")[0] == 404
    assert ask("/", host="elsewhere.invalid")[0] == 404


@pytest.mark.proves("ingress-address")
def test_the_address_alone_is_open_and_no_node_is(lab: Lab) -> None:
    service = json.loads(lab.kubectl("-n", "kube-system", "get", "svc", "rke2-ingress-nginx-controller", "-o", "json"))
    assert service["status"]["loadBalancer"]["ingress"][0]["ip"] == ADDRESS
    for machine in lab.machines.values():
        assert not nodes.answers(machine.address, 80), machine
        assert not nodes.answers(machine.address, 443), machine
    assert nodes.answers(ADDRESS, 443)


@pytest.mark.proves("ingress-pod-dns")
def test_the_clusters_dns_knows_the_sites_host_and_still_everything_else(lab: Lab) -> None:
    # The resolver by its Service's address, from every node; the site's own DNS has no part in it.
    code = f"""
import socket, struct
def ask(name):
    words = b"".join(bytes([len(word)]) + word.encode() for word in name.split("."))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.sendto(struct.pack(">6H", 7, 256, 1, 0, 0, 0) + words + bytes([0, 0, 1, 0, 1]), ("10.43.0.10", 53))
    return socket.inet_ntoa(sock.recv(512)[-4:])
print(ask("{HOST}"), ask("kubernetes.default.svc.{PARAMETERS["site_cluster_domain"]}"))
"""
    for node in lab.machines:
        assert lab.sh(node, f"python3 - <<'EOF'\n{code}\nEOF").split() == [ADDRESS, "10.43.0.1"], node
    config = lab.kubectl("-n", "kube-system", "get", "configmap", "rke2-coredns-rke2-coredns", "-o", "yaml")
    assert f"{ADDRESS} {HOST}" in config


@pytest.mark.proves("ingress-redirect")
def test_plain_http_is_sent_to_https(lab: Lab) -> None:
    status, head = ask("/jupyterhub/", port=80)
    assert status == 308 and f"https://{HOST}/jupyterhub/" in head, head


@pytest.mark.proves("ingress-verify")
def test_a_controller_with_other_values_is_told_and_an_unchanged_one_is_left_alone(lab: Lab) -> None:
    # By hand, past RKE2's own release.
    patch = '{"metadata": {"annotations": {"metalhub/values": "tampered"}}}'
    lab.kubectl("-n", "kube-system", "patch", "daemonset", "rke2-ingress-nginx-controller", "-p", patch)
    recap = lab.play("--tags", "verify", "-e", "ingress_nginx_wait_seconds=6", playbooks=(STAGE,))
    assert recap.status == 2, recap.output[-3000:]
    assert "does not have the values that were given it" in recap.output
    wanted = lab.kubectl("-n", "kube-system", "get", "helmchartconfig", "rke2-ingress-nginx", "-o", "yaml")
    value = next(line.split(": ")[1] for line in wanted.splitlines() if "metalhub/values: " in line)
    patch = json.dumps({"metadata": {"annotations": {"metalhub/values": value}}})
    lab.kubectl("-n", "kube-system", "patch", "daemonset", "rke2-ingress-nginx-controller", "-p", patch)
    recap = lab.play(playbooks=(STAGE,))
    assert recap.status == 0, recap.output[-3000:]
    assert recap.changed == {}


@pytest.mark.proves("ingress-refused")
def test_a_controller_that_rke2_was_not_told_to_bring_is_refused(lab: Lab) -> None:
    recap = lab.play("-e", "site_ingress_class=traefik", playbooks=(STAGE,))
    assert recap.status == 2
    assert "rke2_config: {ingress-controller: traefik}" in recap.output


def put(path: str, size: int, whole: bool = True) -> str:
    """What is answered to a body of this size; without `whole` it is announced and not sent."""
    with connect() as stream:
        head = f"PUT {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
        stream.sendall(head.encode())
        block = bytes(1 << 20)
        for _ in range(size // len(block) if whole else 0):
            stream.sendall(block)
        stream.settimeout(300)
        answer = b""
        while more := stream.recv(65536):
            answer += more
    return answer.decode()


def after_silence(path: str, websocket: bool) -> tuple[float, str]:
    """Seconds until a silent backend's last word has come, and everything that came."""
    with connect() as stream:
        head = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n"
        key = base64.b64encode(bytes(16)).decode()
        upgrade = (
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        )
        stream.sendall((head + (upgrade if websocket else "Connection: close\r\n") + "\r\n").encode())
        begun = time.monotonic()
        stream.settimeout(SILENCE + 30)
        answer = b""
        while b"again" not in answer and (more := stream.recv(65536)):
            answer += more
    return time.monotonic() - begun, answer.decode(errors="replace")


@pytest.mark.shard("ingress")
@pytest.mark.proves("ingress-large-body")
def test_a_body_of_a_gigabyte_passes_where_the_annotations_of_notebooks_are(lab: Lab, backend: None) -> None:
    size = 1 << 30
    assert put(f"/{NAME}-bare/", size, whole=False).startswith("HTTP/1.1 413")
    answer = put(f"/{NAME}/", size)
    assert answer.startswith("HTTP/1.1 200") and answer.endswith(str(size)), answer


@pytest.mark.shard("ingress")
@pytest.mark.proves("ingress-silence")
def test_a_silent_backend_and_a_silent_websocket_are_not_cut_off(lab: Lab, backend: None) -> None:
    with ThreadPoolExecutor(3) as several:
        bare, plain, socketed = several.map(
            lambda about: after_silence(*about),
            [(f"/{NAME}-bare/silent", False), (f"/{NAME}/silent", False), (f"/{NAME}/silent", True)],
        )
    # What the annotations are for: nginx's own patience ends before.
    assert bare[1].startswith("HTTP/1.1 504") and bare[0] < SILENCE, bare
    assert plain[1].startswith("HTTP/1.1 200") and plain[1].endswith("again") and plain[0] >= SILENCE - 1, plain
    assert socketed[1].startswith("HTTP/1.1 101") and socketed[1].endswith("again"), socketed
    assert socketed[0] >= SILENCE - 1, socketed
