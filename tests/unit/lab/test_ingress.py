"""The lab's ingress controller: what it makes of Ingress objects, and whether nginx takes it."""

from __future__ import annotations

import base64
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "molecule/lab/platform/ingress_nginx/files/opt/ingress/controller.py"
spec = importlib.util.spec_from_file_location("lab_ingress", PROGRAM)
assert spec and spec.loader
controller = importlib.util.module_from_spec(spec)
spec.loader.exec_module(controller)


def named(name: str, namespace: str = "team", **more: Any) -> dict[str, Any]:
    """An object's metadata."""
    return {"metadata": {"name": name, "namespace": namespace, **more}}


def ingress(name: str = "web", path: str = "/jupyterhub/", **annotations: str) -> dict[str, Any]:
    """An Ingress for hub.test; annotations without their prefix, underscores for hyphens."""
    words = {f"{controller.PREFIX}{word.replace('_', '-')}": value for word, value in annotations.items()}
    backend = {"service": {"name": "web", "port": {"name": "http"}}}
    rule = {"host": "hub.test", "http": {"paths": [{"path": path, "pathType": "Prefix", "backend": backend}]}}
    tls = [{"hosts": ["hub.test"], "secretName": "site-tls"}]
    return named(name, annotations=words) | {"spec": {"ingressClassName": "nginx", "rules": [rule], "tls": tls}}


def state(*ingresses: dict[str, Any], ready: bool = True, pair: bytes = b"pair") -> dict[str, list[dict[str, Any]]]:
    """A cluster with one service, one pod behind it and one certificate."""
    port = {"name": "http", "port": 8000}
    sealed = base64.b64encode(pair).decode()
    labels = {"kubernetes.io/service-name": "web"}
    return {
        "ingresses": list(ingresses),
        "services": [named("web") | {"spec": {"clusterIP": "127.0.0.9", "ports": [port]}}],
        "slices": [named("web-1", labels=labels) | {"endpoints": [{"conditions": {"ready": ready}}]}],
        "secrets": [named("site-tls") | {"data": {"tls.crt": sealed, "tls.key": sealed}}],
    }


def rendered(objects: dict[str, list[dict[str, Any]]], default: str = "") -> str:
    """The configuration for them."""
    return str(controller.render(controller.plan(objects, "nginx", default)))


def location(text: str, words: str) -> str:
    """What stands in one location of the configuration."""
    found = re.search(rf"location {re.escape(words)} \{{\n(.*?)\n    \}}", text, re.S)
    assert found, text
    return found.group(1)


@pytest.mark.proves("lab-ingress")
def test_what_is_not_asked_for_has_ingress_nginx_s_own_dangerous_defaults() -> None:
    seen = location(rendered(state(ingress())), "/jupyterhub/")
    for line in (
        "client_max_body_size 1m;",
        "proxy_read_timeout 60s;",
        "proxy_send_timeout 60s;",
        "proxy_buffer_size 4k;",
    ):
        assert line in seen


@pytest.mark.proves("lab-ingress")
def test_annotations_are_honoured_and_strange_ones_left_out() -> None:
    wanted = {"proxy_body_size": "0", "proxy_read_timeout": "3600", "proxy_buffer_size": "128k"}
    seen = location(rendered(state(ingress(**wanted, configuration_snippet="deny all;"))), "/jupyterhub/")
    for line in ("client_max_body_size 0;", "proxy_read_timeout 3600s;", "proxy_buffer_size 128k;"):
        assert line in seen
    assert "deny" not in rendered(state(ingress(proxy_body_size="1m; deny all")))


@pytest.mark.proves("lab-ingress")
def test_a_prefix_covers_its_own_name_and_what_lies_below_it_only() -> None:
    text = rendered(state(ingress(path="/sso")))
    assert re.findall(r"location (.*) \{$", text, re.M) == ["/sso/", "= /sso"]
    assert "location / { return 404; }" in text
    for header in ("X-Forwarded-Proto $scheme", "X-Forwarded-For $remote_addr", "Upgrade $http_upgrade"):
        assert header in location(text, "/sso/")
    assert "return 308 https://" in location(text, "= /sso")


@pytest.mark.proves("lab-ingress")
def test_another_class_is_not_served_and_a_service_without_ready_pods_answers_503() -> None:
    other = ingress()
    other["spec"]["ingressClassName"] = "traefik"
    assert "hub.test" not in rendered(state(other))
    assert "return 503;" in location(rendered(state(ingress(), ready=False)), "/jupyterhub/")
    assert "proxy_pass http://127.0.0.9:8000;" in location(rendered(state(ingress())), "/jupyterhub/")


@pytest.mark.proves("lab-ingress")
def test_a_renewed_certificate_changes_the_configuration_and_without_any_no_handshake_succeeds() -> None:
    assert rendered(state(ingress())) != rendered(state(ingress(), pair=b"renewed"))
    assert rendered(state(ingress())) == rendered(state(ingress()))
    assert "ssl_reject_handshake on;" in rendered(state())
    assert "ssl_reject_handshake" not in rendered(state(), default="team/site-tls")


@pytest.mark.skipif(not shutil.which("nginx"), reason="no nginx on this machine")
@pytest.mark.proves("lab-ingress")
def test_nginx_takes_the_configuration(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=hub.test -keyout {key} -out {certificate} -days 1"
    subprocess.run(make.split(), check=True, capture_output=True)
    objects = state(ingress(), ingress("sso", "/sso", proxy_buffer_size="128k"))
    for part, path in (("tls.crt", certificate), ("tls.key", key)):
        objects["secrets"][0]["data"][part] = base64.b64encode(path.read_bytes()).decode()
    for default in ("", "team/site-tls"):
        planned = controller.plan(objects, "nginx", default)
        for name, pair in planned["files"].items():
            (tmp_path / name).write_text(pair)
        (tmp_path / "nginx.conf").write_text(controller.render(planned, tmp_path))
        done = subprocess.run(
            ["nginx", "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
