"""Lab ingress controller: keeps Debian's nginx configured by the cluster's Ingress objects, as ingress-nginx would.

Understands what the roles' charts use: class, host, paths (Prefix and Exact), TLS secrets, a few annotations with
ingress-nginx's own defaults (a body of 1 MB, 60 seconds of silence), the default certificate, the published address.
Traffic goes to a Service's own address, so pods come and go without a reload; upstream has Lua for that.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

import jinja2

Object = Mapping[str, Any]
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RUN = Path("/run/ingress")
KINDS = {
    "ingresses": "/apis/networking.k8s.io/v1/ingresses?",
    "services": "/api/v1/services?",
    "slices": "/apis/discovery.k8s.io/v1/endpointslices?",
    "secrets": "/api/v1/secrets?fieldSelector=type%3Dkubernetes.io/tls&",
}
# What the cluster's API tells of each kind, and whether that is new.
KNOWN: dict[str, list[Object]] = {}
CHANGED = threading.Event()
PREFIX = "nginx.ingress.kubernetes.io/"
# ingress-nginx's defaults, the dangerous ones included.
WORDS = """
    proxy-body-size=1m proxy-connect-timeout=5 proxy-read-timeout=60 proxy-send-timeout=60 proxy-buffer-size=4k
    proxy-buffers-number=4 proxy-buffering=off proxy-request-buffering=on ssl-redirect=true
"""
DEFAULTS = dict(word.split("=") for word in WORDS.split())


def key(item: Object) -> str:
    """The name by which other objects refer to one."""
    return f"{item['metadata'].get('namespace', '')}/{item['metadata']['name']}"


def settings(ingress: Object) -> dict[str, str]:
    """The defaults and an Ingress's annotations; one that is not understood, or is no plain word, is told and left."""
    given = ingress["metadata"].get("annotations", {}).items()
    wanted = {name.removeprefix(PREFIX): value for name, value in given if name.startswith(PREFIX)}
    known = {name: value for name, value in wanted.items() if name in DEFAULTS and re.fullmatch(r"[0-9a-z]+", value)}
    for name in wanted.keys() - known.keys():
        print(f"{key(ingress)}: annotation {PREFIX}{name} is not understood here", flush=True)
    return DEFAULTS | known


def upstream(state: Mapping[str, Iterable[Object]], namespace: str, backend: Object) -> str:
    """Address and port of a backend's Service, empty when it is not there or no pod behind it is ready."""
    name, wanted = backend["service"]["name"], backend["service"]["port"]
    mine = {"kubernetes.io/service-name": name}.items()
    slices = [piece for piece in state["slices"] if mine <= piece["metadata"].get("labels", {}).items()]
    pods = [pod for piece in slices if key(piece).startswith(f"{namespace}/") for pod in piece.get("endpoints") or ()]
    ready = any(pod.get("conditions", {}).get("ready", True) for pod in pods)
    for service in state["services"]:
        address = service["spec"].get("clusterIP", "None")
        for port in service["spec"].get("ports", ()) if key(service) == f"{namespace}/{name}" else ():
            fits = wanted.get("number") == port["port"] or wanted.get("name", "") == port.get("name")
            if ready and fits and address not in ("", "None"):
                return f"{address}:{port['port']}"
    return ""


def locations(path: str, kind: str) -> list[str]:
    """nginx's words for a path of an Ingress."""
    short = path.rstrip("/")
    return [f"= {path}"] if kind == "Exact" else [f"{short}/", f"= {short}"] if short else ["/"]


def plan(state: Mapping[str, Iterable[Object]], class_name: str, default: str) -> dict[str, Any]:
    """What nginx shall serve: hosts with their locations and certificates, the oldest Ingress of a path winning."""
    secrets = {key(secret): secret["data"] for secret in state["secrets"]}
    hosts: dict[str, dict[str, Any]] = {"_": {"locations": {}, "tls": False, "certificate": default}}
    ours = [ingress for ingress in state["ingresses"] if ingress["spec"].get("ingressClassName") == class_name]
    for ingress in sorted(ours, key=lambda one: (one["metadata"].get("creationTimestamp", ""), key(one))):
        namespace, wanted = ingress["metadata"]["namespace"], settings(ingress)
        for rule in ingress["spec"].get("rules", ()):
            host = hosts.setdefault(rule.get("host", "_"), {"locations": {}, "tls": False, "certificate": default})
            for path in rule.get("http", {}).get("paths", ()):
                entry = {"upstream": upstream(state, namespace, path["backend"]), **wanted}
                for words in locations(path.get("path", "/"), path["pathType"]):
                    host["locations"].setdefault(words, entry)
            for entry in ingress["spec"].get("tls", ()):
                if rule.get("host") in entry.get("hosts", ()):
                    secret = f"{namespace}/{entry.get('secretName')}"
                    host["tls"], host["certificate"] = True, secret if secret in secrets else default
    pairs = {
        name: "\n".join(base64.b64decode(secrets[name][part]).decode() for part in ("tls.crt", "tls.key"))
        for name in sorted({host["certificate"] for host in hosts.values()} & secrets.keys())
    }
    files = {name: f"{hashlib.sha256(pair.encode()).hexdigest()[:16]}.pem" for name, pair in pairs.items()}
    return {
        "hosts": {name: host | {"certificate": files.get(host["certificate"])} for name, host in sorted(hosts.items())},
        "files": {files[name]: pair for name, pair in pairs.items()},
        "ours": ours,
    }


def render(planned: Mapping[str, Any], run: Path = RUN) -> str:
    """nginx's configuration."""
    text = Path(__file__).with_name("nginx.conf.j2").read_text()
    return str(jinja2.Template(text, trim_blocks=True, lstrip_blocks=True).render(planned, run=run))


def ask(path: str, method: str = "GET", body: str | None = None) -> HTTPResponse:
    """One request to the cluster's API; the answer is read by the caller."""
    context = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")
    connection = HTTPSConnection(os.environ["KUBERNETES_SERVICE_HOST"], timeout=330, context=context)
    bearer = f"Bearer {(ACCOUNT / 'token').read_text()}"
    connection.request(method, path, body, {"Authorization": bearer, "Content-Type": "application/merge-patch+json"})
    answer = connection.getresponse()
    if answer.status >= 400:
        raise OSError(f"{method} {path}: {answer.status} {answer.read(200)!r}")
    return answer


def follow(kind: str) -> None:
    """Keep the objects of one kind as they are in the cluster, for ever."""
    while True:
        try:
            listed = json.load(ask(KINDS[kind]))
            KNOWN[kind] = listed["items"]
            CHANGED.set()
            # Whatever happens to one of them, or to the watch, all are read again.
            version = listed["metadata"]["resourceVersion"]
            ask(f"{KINDS[kind]}watch=true&timeoutSeconds=300&resourceVersion={version}").readline()
            time.sleep(0.3)
        except (OSError, ValueError, HTTPException) as error:
            print(f"{kind}: {error}", flush=True)
            time.sleep(1)


def publish(ours: Iterable[Object], service: str) -> None:
    """Write the address of the controller's Service into the Ingresses that it serves."""
    given = [one for one in KNOWN["services"] if key(one) == service and one["status"].get("loadBalancer")]
    addresses = [{"ip": one["ip"]} for found in given for one in found["status"]["loadBalancer"]["ingress"]]
    for one in ours:
        seen = one.get("status", {}).get("loadBalancer", {}).get("ingress", [])
        if [{"ip": entry.get("ip")} for entry in seen] != addresses:
            path = f"/apis/networking.k8s.io/v1/namespaces/{key(one).replace('/', '/ingresses/')}/status"
            ask(path, "PATCH", json.dumps({"status": {"loadBalancer": {"ingress": addresses}}})).read()


def apply(planned: Mapping[str, Any], nginx: subprocess.Popen[bytes] | None) -> subprocess.Popen[bytes]:
    """Start nginx, or reload it when its configuration has changed and is valid; what is wrong with it nginx says."""
    text, path, fresh = render(planned), RUN / "nginx.conf", RUN / "fresh.conf"
    if nginx and path.read_text() == text:
        return nginx
    for name, pair in planned["files"].items():
        (RUN / name).write_text(pair)
    fresh.write_text(text)
    if subprocess.run(["nginx", "-t", "-q", "-c", fresh], check=False).returncode == 0:
        fresh.rename(path)
        if nginx:
            nginx.send_signal(signal.SIGHUP)
    return nginx or subprocess.Popen(["nginx", "-c", path, "-g", "daemon off;"])


def main(words: list[str]) -> int:
    """Follow the cluster until nginx ends."""
    parser = argparse.ArgumentParser()
    for name in ("ingress-class", "publish-service", "default-ssl-certificate"):
        parser.add_argument(f"--{name}", default="")
    options = parser.parse_args(words)
    os.umask(0o077)
    RUN.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        threading.Thread(target=follow, args=(kind,), daemon=True).start()
    nginx: subprocess.Popen[bytes] | None = None
    while nginx is None or nginx.poll() is None:
        if not CHANGED.wait(1) or KNOWN.keys() != KINDS.keys():
            continue
        CHANGED.clear()
        planned = plan(dict(KNOWN), options.ingress_class, options.default_ssl_certificate)
        nginx = apply(planned, nginx)
        try:
            if options.publish_service:
                publish(planned["ours"], options.publish_service)
        except (OSError, HTTPException) as error:
            print(f"status: {error}", flush=True)
    return nginx.returncode or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
