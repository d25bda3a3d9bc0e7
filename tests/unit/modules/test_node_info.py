"""The module metalhub.platform.node_info: what it makes of the answers of programs, kernel and network."""

from __future__ import annotations

import datetime
import json
import socket
import ssl
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from plugins.modules import node_info


def run(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run the module in this process and return its JSON result."""
    with patch_module_args(arguments), pytest.raises(SystemExit):
        node_info.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_without_a_question_it_answers_with_empty_lists_and_no_change(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, _ansible_check_mode=True)
    assert result["changed"] is False
    assert result["hostname"] == socket.gethostname()
    assert [result[key] for key in ("packages", "services", "sysctls", "endpoints", "arp")] == [{}] * 5


def test_files_paths_globs_and_texts_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, copy, missing = (tmp_path / name for name in ("there.crt", "copy.crt", "missing"))
    there.write_text("one\ntwo\n")
    copy.write_text("one\ntwo\n")
    result = run(
        capsys,
        paths=[str(there), str(missing)],
        files=[str(there), str(missing)],
        globs=[str(tmp_path / "*.crt")],
        contains=[
            {"name": "yes", "path": str(there), "text": "two"},
            {"name": "no", "path": str(there), "text": "three"},
            {"name": "nowhere", "path": str(missing), "text": "x"},
        ],
    )
    assert result["paths"] == {str(there): True, str(missing): False}
    assert result["files"] == {str(there): "one\ntwo\n", str(missing): None}
    assert result["globs"] == [str(copy), str(there)]
    assert result["contains"] == {"yes": True, "no": False, "nowhere": False}


@pytest.mark.parametrize(
    ("name", "there"),
    [
        pytest.param("kernel.ostype", True, id="plain"),
        pytest.param("net.ipv4.conf.lo.rp_filter", True, id="nested"),
        pytest.param("net/ipv4/conf/lo/rp_filter", True, id="slashes-throughout"),
        pytest.param("net.ipv4/conf.lo.rp_filter", False, id="a-slash-among-dots-is-a-dot"),
        pytest.param("kernel.no_such_parameter", False, id="unknown"),
    ],
)
def test_sysctl_gives_the_running_value_or_nothing(name: str, there: bool) -> None:
    assert (node_info.sysctl(name) is not None) is there


def test_sysctl_reduces_white_space() -> None:
    value = node_info.sysctl("net.ipv4.ip_local_port_range")
    assert value is not None
    assert [part.isdigit() for part in value.split(" ")] == [True, True]


def test_packages_count_when_installed_and_tell_a_hold() -> None:
    listing = (
        "install\tinstalled\tchrony\t4.3-2\n"
        "deinstall\tconfig-files\tiptables\t1.8.9\n"
        "hold\tinstalled\tlinux-image-6.1.0-1-amd64\t6.1.1\n"
        "install\tinstalled\tbash\t5.2\n"
    )
    assert node_info.parse_packages(listing, ["chrony", "iptables", "kmod"], ["linux-image-*"]) == {
        "chrony": {"version": "4.3-2", "held": False},
        "linux-image-6.1.0-1-amd64": {"version": "6.1.1", "held": True},
    }


def test_services_are_told_apart_in_the_order_asked() -> None:
    shown = (
        "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\n"
        "\n"
        "LoadState=not-found\nActiveState=inactive\nUnitFileState=\n"
        "\n"
        "LoadState=masked\nActiveState=inactive\nUnitFileState=masked\n"
    )
    assert node_info.parse_services(shown, ["a.service", "b.service", "c.timer"]) == {
        "a.service": {"found": True, "state": "active", "enabled": "enabled"},
        "b.service": {"found": False, "state": "inactive", "enabled": ""},
        "c.timer": {"found": True, "state": "inactive", "enabled": "masked"},
    }


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        pytest.param("/dev/sda2", "dev-sda2.swap", id="partition"),
        pytest.param("/swap.img", "swap.img.swap", id="file"),
        pytest.param("/dev/mapper/vg-swap_1", r"dev-mapper-vg\x2dswap_1.swap", id="escaped-hyphen"),
        pytest.param("/.swap", r"\x2eswap.swap", id="leading-dot"),
    ],
)
def test_the_unit_of_a_swap_is_named_as_systemd_names_it(path: str, unit: str) -> None:
    # Expected values as systemd-escape --path --suffix=swap prints them.
    assert node_info.unit_of(path) == unit


def test_swaps_are_read_with_their_escapes() -> None:
    table = (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/sda2                               partition\t1000\t0\t-2\n"
        "/my\\040swap                             file\t1000\t0\t-3\n"
    )
    assert [swap["device"] for swap in node_info.parse_swaps(table)] == ["/dev/sda2", "/my swap"]


TRACKING = "C0000201,192.0.2.1,3,1795232318.42,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,"
SOURCES = "^,*,192.0.2.1,2,6,17,12,0.0,0.0,0.0\n^,?,ntp.example.org,0,6,0,4294967295,0.0,0.0,0.0\n"


@pytest.mark.parametrize(
    ("tracking", "sources", "expected"),
    [
        pytest.param(
            f"{TRACKING}Normal\n",
            SOURCES,
            {"running": True, "synchronised": True, "sources": {"192.0.2.1": True, "ntp.example.org": False}},
            id="follows-a-source",
        ),
        pytest.param(
            f"{TRACKING}Not synchronised\n",
            "",
            {"running": True, "synchronised": False, "sources": {}},
            id="runs-without-sources",
        ),
        pytest.param(None, None, {"running": False, "synchronised": False, "sources": {}}, id="does-not-run"),
    ],
)
def test_time_tells_running_synchronised_and_heard_from(
    tracking: str | None, sources: str | None, expected: dict[str, Any]
) -> None:
    assert node_info.parse_time(tracking, sources) == expected


OWN = {
    "127.0.0.1": {"interface": "lo", "prefix": 8},
    "fe80::1": {"interface": "eth0", "prefix": 64},
    "192.0.2.21": {"interface": "eth0", "prefix": 24},
    "192.0.2.20": {"interface": "eth0", "prefix": 32},
    "198.51.100.5": {"interface": "eth1", "prefix": 28},
}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        pytest.param("192.0.2.200", ("eth0", "192.0.2.21"), id="same-network"),
        pytest.param("192.0.2.20", ("eth0", "192.0.2.21"), id="held-with-a-host-mask"),
        pytest.param("198.51.100.15", ("eth1", "198.51.100.5"), id="last-of-a-small-network"),
        pytest.param("198.51.100.16", None, id="first-beyond"),
    ],
)
def test_an_address_belongs_to_the_interface_whose_network_holds_it(
    address: str, expected: tuple[str, str] | None
) -> None:
    assert node_info.interface_for(address, OWN) == expected


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a file with a key and a self-signed certificate for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(tz=datetime.UTC)
    built = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path / "pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + built.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Generator[str]:
    """Yield the address of a server that answers every request by 401 over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        plain, _ = listener.accept()
        with context.wrap_socket(plain, server_side=True) as stream:
            stream.recv(1024)
            stream.sendall(b"HTTP/1.1 401 Unauthorized\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    thread.join(10)
    listener.close()


def test_an_endpoint_that_refuses_strangers_is_an_endpoint(tls_server: str) -> None:
    assert node_info.endpoint(tls_server) == {"status": 401, "error": ""}


def test_an_endpoint_where_nobody_listens_tells_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    answer = run(capsys, endpoints=[address])["endpoints"][address]
    assert answer["status"] is None
    assert "refused" in answer["error"]


def test_waiting_ends_with_the_first_good_answer_and_at_the_deadline() -> None:
    answers = iter([{"good": False}, {"good": True}])
    start = time.monotonic()
    assert node_info.waited(lambda: next(answers), lambda answer: answer["good"], start + 30) == {"good": True}
    assert node_info.waited(lambda: {"good": False}, lambda answer: answer["good"], start) == {"good": False}
    assert time.monotonic() - start < 10
