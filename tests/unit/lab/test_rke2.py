"""Lab RKE2's decisions that need no machine: configuration, tokens, the list of servers."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

import agent
import config
import supervisor
import system
from config import Fatal

MAIN = Path(config.__file__).with_name("__main__.py")


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /etc/rancher/rke2."""
    monkeypatch.setattr(config, "CONFIG", tmp_path / "config.yaml")
    (tmp_path / "config.yaml.d").mkdir()
    return tmp_path


def load(role: str = "server", **flags: object) -> config.Config:
    """The merged configuration of a node called node, 192.0.2.1."""
    return config.load(role, {key.replace("_", "-"): value for key, value in flags.items()}, "node", "192.0.2.1")


@pytest.mark.proves("lab-config")
def test_nothing_configured_means_upstreams_defaults(etc: Path) -> None:
    values = load()
    assert (values.node_name, values.node_ip) == ("node", "192.0.2.1")
    assert (values.get("cluster-cidr"), values.get("service-cidr")) == ("10.42.0.0/16", "10.43.0.0/16")
    assert (values.get("etcd-snapshot-schedule-cron"), values.get("etcd-snapshot-retention")) == ("0 */12 * * *", 5)


@pytest.mark.proves("lab-config")
def test_later_files_win_and_the_command_line_wins_over_all(etc: Path) -> None:
    (etc / "config.yaml").write_text("node-name: one\nserver: https://one:9345\nprofile: cis\n")
    (etc / "config.yaml.d/20.yaml").write_text("node-name: three\n")
    (etc / "config.yaml.d/10.yaml").write_text("node-name: two\nserver: https://two:9345\n")
    (etc / "config.yaml.d/30.yml").write_text("node-name: not read\n")
    values = load(profile="etcd")
    assert (values.node_name, values.get("server"), values.get("profile")) == ("three", "https://two:9345", "etcd")


@pytest.mark.proves("lab-config")
def test_a_plus_appends_to_what_files_before_said_and_a_plain_key_begins_anew(etc: Path) -> None:
    (etc / "config.yaml").write_text("tls-san: one\nnode-label: [a=1]\ndisable+: [x]\n")
    (etc / "config.yaml.d/1.yaml").write_text("tls-san+: [two, three]\nnode-label: [b=2]\n")
    (etc / "config.yaml.d/2.yaml").write_text("tls-san+: four\n")
    values = load()
    assert values.all("tls-san") == ["one", "two", "three", "four"]
    assert (values.all("node-label"), values.all("disable"), values.all("kubelet-arg")) == (["b=2"], ["x"], [])


@pytest.mark.proves("lab-config")
@pytest.mark.parametrize(("role", "dropped"), [("server", ["no-such"]), ("agent", ["tls-san", "no-such"])])
def test_what_this_role_does_not_know_is_dropped_with_a_warning(
    etc: Path, capsys: pytest.CaptureFixture[str], role: str, dropped: list[str]
) -> None:
    (etc / "config.yaml").write_text("tls-san: [a]\nno-such: 1\nnode-label: [a=1]\n")
    values = load(role)
    told = [f'level=warning msg="Unknown flag --{key} found in config.yaml, skipping"' for key in dropped]
    assert capsys.readouterr().err.splitlines() == told
    assert not set(dropped) & values.values.keys()
    assert values.all("node-label") == ["a=1"]


@pytest.mark.proves("lab-config")
@pytest.mark.parametrize(
    ("text", "told"), [("a: [", "failed to load config file .*config.yaml"), ("profile: cis-1.23", "--profile flag")]
)
def test_what_cannot_be_is_fatal(etc: Path, text: str, told: str) -> None:
    (etc / "config.yaml").write_text(text)
    with pytest.raises(Fatal, match=told):
        load()


@pytest.mark.proves("lab-tokens")
def test_a_token_comes_from_its_key_or_from_its_file(etc: Path) -> None:
    (etc / "token").write_text("from the file\n")
    values = load(token_file=str(etc / "token"))
    assert (values.secret("token"), values.secret("agent-token")) == ("from the file", "")
    assert load(token="from the key", token_file=str(etc / "token")).secret("token") == "from the key"


@pytest.mark.proves("lab-tokens")
@pytest.mark.parametrize(
    ("token", "secret"),
    [("abc", "abc"), ("K10ff::server:abc", "abc"), ("K10ff::node:a:b", "a:b"), ("K10 is a name", "K10 is a name")],
)
def test_the_secret_of_a_token_is_the_same_in_both_forms(token: str, secret: str) -> None:
    assert supervisor.short(token) == secret
    ca = hashlib.sha256(b"ca").hexdigest()
    assert supervisor.secure(token, b"ca", "node") == f"K10{ca}::node:{secret}"


def flags(words: list[str]) -> dict[str, Any]:
    """What __main__ makes of a command line."""
    spec = importlib.util.spec_from_file_location("lab_rke2_main", MAIN)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Any] = module.flags(words)
    return found


@pytest.mark.proves("lab-config")
def test_flags_are_read_in_every_form() -> None:
    words = ["--data-dir", "/a", "--server=https://b:9345", "--cluster-reset", "--token", "x=y"]
    wanted = {"data-dir": "/a", "server": "https://b:9345", "cluster-reset": True, "token": "x=y"}
    assert flags(words) == wanted
    with pytest.raises(Fatal, match="unexpected argument 'stray'"):
        flags(["--server=a", "stray"])


@pytest.mark.proves("lab-load-balancer")
def test_the_list_of_servers_is_written_once_and_says_whether_it_changed(
    tmp_path: Path, etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "release", lambda: {"runtime": "r"})
    monkeypatch.setenv("PATH", "/bin")
    node = agent.Agent(load("agent", data_dir=str(tmp_path)))
    assert node.balance(["192.0.2.1", "192.0.2.2"])
    assert not node.balance(["192.0.2.1", "192.0.2.2"])
    assert node.balance(["192.0.2.2"])
    text = node.haproxy_config.read_text()
    assert "192.0.2.1" not in text
    for port, target in ((6443, 6443), (6444, 9345)):
        assert f"bind 127.0.0.1:{port}\n" in text and f"192.0.2.2:{target} check" in text


@pytest.mark.proves("lab-config")
def test_a_file_is_replaced_whole_and_only_when_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "deep/file"
    assert system.write(path, "one")
    first = path.stat()
    assert (first.st_mode & 0o777, system.write(path, "one"), path.stat().st_ino) == (0o600, False, first.st_ino)
    assert system.write(path, "two", 0o644)
    assert (path.read_text(), path.stat().st_mode & 0o777, [path]) == ("two", 0o644, list(path.parent.iterdir()))
