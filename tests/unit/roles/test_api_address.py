"""The checks that keepalived runs on a server, against servers on loopback."""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CHECKS = Path(__file__).resolve().parents[3] / "roles/api_address/files"


def check(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a check as keepalived does; Python's isolated and without site packages."""
    program = next(CHECKS.glob(f"{name}.*"))
    interpreter = ["/bin/bash"] if program.suffix == ".sh" else [sys.executable, "-IS"]
    command = [*interpreter, str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def write_pair(directory: Path, name: str) -> None:
    """Write a key and a self-signed certificate that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(tz=datetime.UTC)
    built = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("192.0.2.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (directory / f"{name}.crt").write_bytes(built.public_bytes(serialization.Encoding.PEM))


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    """Return a directory as RKE2 keeps it: the cluster's authority, and a client certificate with its key."""
    write_pair(tmp_path, "client-kube-apiserver")
    (tmp_path / "server-ca.crt").symlink_to("client-kube-apiserver.crt")
    return tmp_path


@pytest.fixture
def api(tls: Path) -> Generator[Callable[[bytes], int]]:
    """Yield a function that starts an API server giving one answer to clients of the cluster; it returns the port."""
    listeners: list[socket.socket] = []

    def start(answer: bytes) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "client-kube-apiserver.crt", tls / "client-kube-apiserver.key")
        context.load_verify_locations(tls / "server-ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            try:
                plain, _ = listener.accept()
                with context.wrap_socket(plain, server_side=True) as stream:
                    assert stream.recv(1024).startswith(b"GET /readyz ")
                    stream.sendall(answer)
            except OSError:
                pass

        threading.Thread(target=serve, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.close()


@pytest.mark.proves("api-address-check")
def test_an_api_that_is_ready_passes(api: Callable[[bytes], int], tls: Path) -> None:
    done = check("check_serves", "127.0.0.1", api(b"HTTP/1.1 200 OK\r\n\r\nok"), tls)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.proves("api-address-check")
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 500 Internal Server Error\r\n\r\n[-]etcd failed", id="not-ready"),
        pytest.param(b"HTTP/1.1 401 Unauthorized\r\n\r\n", id="stranger"),
        pytest.param(b"", id="silent"),
    ],
)
def test_an_api_that_answers_anything_else_fails(api: Callable[[bytes], int], tls: Path, answer: bytes) -> None:
    done = check("check_serves", "127.0.0.1", api(answer), tls)
    assert done.returncode == 1
    assert (answer.split(b"\r\n")[0].decode() or "no answer") in done.stderr


@pytest.mark.proves("api-address-check")
def test_an_api_of_another_cluster_fails(api: Callable[[bytes], int], tls: Path) -> None:
    port = api(b"HTTP/1.1 200 OK\r\n\r\nok")
    write_pair(tls, "other")
    (tls / "server-ca.crt").unlink()
    (tls / "server-ca.crt").symlink_to("other.crt")
    done = check("check_serves", "127.0.0.1", port, tls)
    assert done.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr


def test_a_server_without_certificates_fails_in_one_line(tmp_path: Path) -> None:
    done = check("check_serves", "127.0.0.1", 1, tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_ports_pass_only_when_all_accept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [first.getsockname()[1], second.getsockname()[1]]
        assert check("check_listens", "127.0.0.1", *ports).returncode == 0
        second.close()
        done = check("check_listens", "127.0.0.1", *ports)
        assert done.returncode == 1
        assert str(ports[1]) in done.stderr


@pytest.mark.proves("rotate-keepalived-password")
@pytest.mark.parametrize(("silence", "least", "most"), [(0.0, 0.0, 0.3), (1.0, 0.8, 1.6)])
def test_the_longest_silence_of_an_address_is_measured(silence: float, least: float, most: float) -> None:
    first = socket.create_server(("127.0.0.1", 0))
    port = first.getsockname()[1]
    program = [sys.executable, "-IS", str(CHECKS / "longest_gap.py"), "127.0.0.1", str(port), "2.5"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as running:
        time.sleep(0.7)
        first.close()
        time.sleep(silence)
        with socket.create_server(("127.0.0.1", port)):
            said, _ = running.communicate(timeout=20)
    assert least <= json.loads(said)["gap"] <= most
