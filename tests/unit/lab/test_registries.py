"""registries.yaml as lab RKE2 hands it to containerd."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

import registries
from config import Fatal


def hosts(document: dict[str, Any], default_endpoint: bool = True) -> dict[str, dict[str, Any]]:
    """Every hosts.toml, parsed."""
    files = registries.hosts_files(document, default_endpoint)
    return {name: tomllib.loads(text) for name, text in files.items()}


def test_a_mirror_of_everything_is_containerds_default() -> None:
    found = hosts({"mirrors": {"*": {"endpoint": ["http://198.51.100.2"]}}})
    assert found == {"_default": {"host": {"http://198.51.100.2/v2": {"capabilities": ["pull", "resolve"]}}}}


def test_a_mirror_by_host_asks_the_registry_itself_last() -> None:
    found = hosts({"mirrors": {"docker.io": {"endpoint": ["https://one/v2", "two:5000"]}}})["docker.io"]
    assert list(found["host"]) == ["https://one/v2", "https://two:5000/v2"]
    assert found["server"] == "https://registry-1.docker.io/v2"


def test_without_default_endpoints_nothing_but_the_mirror_is_left() -> None:
    document = {"mirrors": {"*": {"endpoint": ["http://m"]}, "quay.io": {"endpoint": ["http://m"]}}}
    assert {one["server"] for one in hosts(document, default_endpoint=False).values()} == {"http://m/v2"}


def test_what_a_host_needs_goes_with_every_endpoint_on_it() -> None:
    tls = {"ca_file": "/ca.pem", "cert_file": "/c.pem", "key_file": "/k.pem", "insecure_skip_verify": True}
    found = hosts({"mirrors": {"quay.io": {"endpoint": ["https://m:5000"]}}, "configs": {"m:5000": {"tls": tls}}})
    assert found["quay.io"]["host"]["https://m:5000/v2"] == {
        "capabilities": ["pull", "resolve"],
        "ca": ["/ca.pem"],
        "client": [["/c.pem", "/k.pem"]],
        "skip_verify": True,
    }
    assert found["m:5000"]["server"] == "https://m:5000/v2"
    assert found["m:5000"]["skip_verify"] is True


def test_credentials_go_to_containerds_own_configuration() -> None:
    auth = {"username": "u", "password": 'p"\\'}
    text = registries.credentials({"configs": {"m:5000": {"auth": auth}, "other": {}}})
    found = tomllib.loads(text)["plugins"]["io.containerd.cri.v1.images"]["registry"]["configs"]
    assert found == {"m:5000": {"auth": auth}}
    assert registries.credentials({}) == ""


def test_no_file_is_no_mirror_and_a_broken_one_is_fatal(tmp_path: Path) -> None:
    path = tmp_path / "registries.yaml"
    assert registries.hosts_files(registries.load(path)) == {}
    path.write_text("mirrors: {")
    with pytest.raises(Fatal, match="failed to load registry configuration"):
        registries.load(path)
