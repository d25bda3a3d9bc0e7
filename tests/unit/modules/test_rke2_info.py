"""What the module rke2_info makes of a machine: real files, real processes, stand-ins for programs."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from plugins.modules import rke2_info

pytestmark = pytest.mark.proves("rke2-info")

VERSION = "v1.35.4+rke2r1"
# systemd's answers lie in files by the unit's name; a unit without one is unknown.
SYSTEMCTL = """#!/bin/sh
cat "{root}/units/$2" 2>/dev/null || printf 'ActiveState=inactive\\nSubState=dead\\nUnitFileState=\\n'
"""


class Machine:
    """A machine made of a temporary directory."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lay down programs and point the module at them."""
        self.root, self.data_dir = root, root / "data"
        for name in ("programs", "units", "data", "etc"):
            (root / name).mkdir(parents=True)
        self.program("programs/systemctl", SYSTEMCTL)
        self.program("programs/journalctl", '#!/bin/sh\ncat "{root}/journal"\n')
        (root / "journal").write_text("")
        monkeypatch.setenv("PATH", f"{root}/programs:{os.environ['PATH']}")
        monkeypatch.setattr(rke2_info, "PROGRAMS", (str(root / "programs/rke2"),))
        monkeypatch.setattr(rke2_info, "CONFIG", str(root / "etc/config.yaml"))
        monkeypatch.setattr(rke2_info, "KUBECONFIG", str(root / "etc/rke2.yaml"))
        monkeypatch.setattr(rke2_info, "STARTED", str(root / "started"))
        self.answers: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str]] = []
        self.served = VERSION
        monkeypatch.setattr(rke2_info, "ask_api", self.ask_api)

    def ask_api(self, kubeconfig: str, path: str) -> dict[str, Any]:
        """Give the next answer; the last one stays."""
        if path == "/version":
            return {"gitVersion": self.served}
        self.asked.append((kubeconfig, path))
        return self.answers.pop(0) if len(self.answers) > 1 else dict(*self.answers)

    def program(self, path: str, text: str) -> None:
        """Write a program."""
        (self.root / path).write_text(text.replace("{root}", str(self.root)))
        (self.root / path).chmod(0o755)

    def unit(self, name: str, active: str = "active", sub: str = "running", enabled: str = "enabled") -> None:
        """Set what systemd says of a unit."""
        (self.root / "units" / name).write_text(
            f"ActiveState={active}\nSubState={sub}\nUnitFileState={enabled}\nActiveEnterTimestampMonotonic=5000000\n"
            "NRestarts=2\n"
        )

    def serves(self, *answers: dict[str, Any]) -> None:
        """Give it an API that answers one thing after the other."""
        (self.root / "etc/rke2.yaml").touch()
        self.answers += answers


def node(name: str, ready: bool = True, voter: bool = True, version: str = VERSION, **spec: Any) -> dict[str, Any]:
    """Return a Node as the API gives it."""
    conditions = [{"type": "Ready", "status": str(ready)}, {"type": "EtcdIsVoter", "status": str(voter)}]
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {"a": "b"}, "annotations": {"c": "d"}},
        "spec": spec,
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.21"}, {"type": "Hostname", "address": name}],
            "conditions": conditions,
            "nodeInfo": {"kubeletVersion": version},
        },
    }


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return an empty machine."""
    return Machine(tmp_path, monkeypatch)


def run(capsys: pytest.CaptureFixture[str], at: Machine, service: str = "server", **arguments: Any) -> dict[str, Any]:
    """Run the module in this process and return its JSON result."""
    with (
        patch_module_args({"service": service, "data_dir": str(at.data_dir), **arguments}),
        pytest.raises(SystemExit),
    ):
        rke2_info.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["changed"] is False
    return result


def test_an_empty_machine_has_nothing_and_says_so(capsys: pytest.CaptureFixture[str], machine: Machine) -> None:
    result = run(capsys, machine, staging=str(machine.root / ".staging-*"))
    assert (result["installed_version"], result["running_version"], result["join_url"]) == ("", "", "")
    assert (result["datastore"], result["joined"], result["other_service_active"]) == (False, False, False)
    assert (result["nodes"], result["images"], result["staged"], result["chart_configs"]) == ({}, [], {}, [])
    nothing = {"active": "inactive", "sub": "dead", "enabled": False, "since": 0, "age": 0, "restarts": 0}
    assert result["service"] == nothing
    assert result["digest"]["started"] == ""


def test_a_member_is_told_in_one_answer(capsys: pytest.CaptureFixture[str], machine: Machine) -> None:
    machine.unit("rke2-server")
    machine.program("programs/rke2", f"#!/bin/sh\necho 'rke2 version {VERSION} (abc)'\n")
    taints = [{"key": "k", "effect": "NoSchedule"}, {"key": "l", "value": "v", "effect": "NoExecute"}]
    machine.serves({"items": [node("a", podCIDR="10.42.0.0/24", taints=taints), node("b", ready=False, voter=False)]})
    for path in ("server/db/etcd/member", "agent/images"):
        (machine.data_dir / path).mkdir(parents=True)
    (machine.data_dir / "agent/kubelet.kubeconfig").touch()
    (machine.data_dir / "agent/images/rke2-images-core.tar.zst").touch()
    (machine.root / "etc/config.yaml.d").mkdir()
    (machine.root / "etc/config.yaml.d/90-join.yaml").write_text('# ours\nserver: "https://192.0.2.20:9345"\n')
    watched = [machine.root / "one", machine.root / "missing", machine.root / "two"]
    watched[0].write_text("1")
    watched[2].write_text("2")
    (machine.root / "started").write_text("abc  -\n")
    result = run(capsys, machine, watched=[str(path) for path in watched], node_name="a")
    assert (result["installed_version"], result["join_url"]) == (VERSION, "https://192.0.2.20:9345")
    assert (result["datastore"], result["joined"], result["images"]) == (True, True, ["rke2-images-core.tar.zst"])
    assert result["service"].pop("age") > 0
    assert result["service"] == {"active": "active", "sub": "running", "enabled": True, "since": 5, "restarts": 2}
    assert result["digest"] == {"now": hashlib.sha256(b"12").hexdigest(), "started": "abc"}
    assert result["nodes"]["a"] == {
        "ready": True,
        "voter": True,
        "addresses": ["192.0.2.21"],
        "version": VERSION,
        "labels": {"a": "b"},
        "annotations": {"c": "d"},
        "taints": ["k=:NoSchedule", "l=v:NoExecute"],
        "unschedulable": False,
        "pod_network": "10.42.0.0/24",
        "devices": {},
    }
    assert (result["nodes"]["b"]["ready"], result["nodes"]["b"]["voter"]) == (False, False)


def test_an_agent_asks_for_itself_alone_with_its_kubelets_rights(
    capsys: pytest.CaptureFixture[str], machine: Machine
) -> None:
    machine.unit("rke2-agent")
    machine.serves(node("w"))
    (machine.root / "etc/rke2.yaml").unlink()
    (machine.data_dir / "agent").mkdir()
    (machine.data_dir / "agent/kubelet.kubeconfig").touch()
    assert set(run(capsys, machine, "agent", node_name="w")["nodes"]) == {"w"}
    assert machine.asked == [(f"{machine.data_dir}/agent/kubelet.kubeconfig", "/api/v1/nodes/w")]


def test_the_running_version_is_that_of_the_kubelets_program(machine: Machine) -> None:
    program = machine.data_dir / f"data/{VERSION.replace('+', '-')}-abc/bin/kubelet"
    program.parent.mkdir(parents=True)
    shutil.copy("/bin/sleep", program)
    assert rke2_info.running_version(str(machine.data_dir)) == ""
    process = subprocess.Popen([program, "60"])
    try:
        assert rke2_info.running_version(str(machine.data_dir)) == VERSION
        assert rke2_info.running_version("/elsewhere") == ""
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        pytest.param("rke2 version v1.30.14+rke2r4 (x)", "v1.30.14+rke2r4", id="program"),
        pytest.param("/data/v1.36.3-rke2r1-1a2b/bin", "v1.36.3+rke2r1", id="directory"),
        pytest.param("v1.36.3", "", id="not-rke2"),
    ],
)
def test_a_version_is_read_in_both_spellings(text: str, version: str) -> None:
    assert rke2_info.full_version(text) == version


def test_what_a_node_lacks_is_told_in_words() -> None:
    wait: dict[str, Any] = {"nodes": ["a", "b", "c"], "voters": ["a", "c"], "version": VERSION, "devices": {}}
    nodes = {
        "a": {
            "ready": True,
            "version": VERSION,
            "voter": True,
            "devices": {"nvidia.com/gpu": 3, "nvidia.com/mig-1g.10gb": 2},
        },
        "b": {"ready": False, "version": VERSION, "voter": False},
        "c": {"ready": True, "version": "v1.34.1+rke2r1", "voter": False},
    }
    assert rke2_info.missing(wait, {"active": "activating", "sub": "start"}, nodes) == [
        "the service is activating (start)",
        "node b is not Ready",
        "node c runs v1.34.1+rke2r1",
        "node c does not vote in etcd",
    ]
    wait["nodes"] = wait["voters"] = ["a"]
    assert rke2_info.missing(wait, {"active": "active", "sub": "running"}, nodes) == []
    wait["devices"] = {"nvidia.com/gpu": 4, "nvidia.com/mig-1g.10gb": 2}
    assert rke2_info.missing(wait, {"active": "active", "sub": "running"}, nodes) == [
        "node a offers 3 of 4 nvidia.com/gpu"
    ]
    wait["devices"] = {}
    assert rke2_info.missing(wait, {"active": "active", "sub": "running"}, {}) == [
        "node a has not registered",
        "node a does not vote in etcd",
    ]


def test_waiting_ends_when_the_node_is_healthy(capsys: pytest.CaptureFixture[str], machine: Machine) -> None:
    machine.unit("rke2-server")
    machine.serves({"items": []}, {"items": [node("a", ready=False)]}, {"items": [node("a")]})
    result = run(capsys, machine, wait={"seconds": 60, "nodes": ["a"], "voters": ["a"], "version": VERSION})
    assert (result["healthy"], result["waiting_for"]) == (True, [])
    assert len(machine.asked) == 3


@pytest.mark.proves("upgrade-proven")
def test_a_server_whose_api_is_still_of_the_release_before_is_waited_for(
    capsys: pytest.CaptureFixture[str], machine: Machine
) -> None:
    machine.unit("rke2-server")
    machine.serves({"items": [node("a")]})
    machine.served = "v1.35.7+rke2r0"
    result = run(capsys, machine, wait={"seconds": 0, "nodes": ["a"], "voters": ["a"], "version": VERSION})
    assert result["waiting_for"] == ["the API of this server is still v1.35.7+rke2r0"]
    machine.served = VERSION
    assert run(capsys, machine, wait={"seconds": 60, "nodes": ["a"], "version": VERSION})["healthy"]


def test_a_relapse_starts_the_stable_time_anew(capsys: pytest.CaptureFixture[str], machine: Machine) -> None:
    machine.unit("rke2-server")
    machine.serves({"items": [node("a")]}, {"items": [node("a", ready=False)]}, {"items": [node("a")]})
    result = run(capsys, machine, wait={"seconds": 60, "stable": 1, "nodes": ["a"]})
    assert result["healthy"] is True
    assert len(machine.asked) >= 4


def test_a_missed_deadline_ends_with_the_decisive_lines(capsys: pytest.CaptureFixture[str], machine: Machine) -> None:
    machine.unit("rke2-server", active="activating", sub="start")
    chatter = [f'level=info msg="chatter {number}"' for number in range(50)]
    decisive = ['level=fatal msg="no"', 'level=fatal msg="no"', 'level=warning msg="Unknown flag --x found"']
    (machine.root / "journal").write_text("\n".join([*decisive, *chatter]))
    (machine.data_dir / "agent/logs").mkdir(parents=True)
    errors = [f'E1121 10:0{turn}:00.1   {turn}77 run.go:72] "command failed" err="unknown flag"' for turn in range(3)]
    (machine.data_dir / "agent/logs/kubelet.log").write_text("\n".join(["I1121 10:00:00.1  7 a.go:1] hello", *errors]))
    result = run(capsys, machine, wait={"seconds": 0, "nodes": ["a"]})
    assert result["healthy"] is False
    assert result["waiting_for"] == ["the service is activating (start)", "node a has not registered"]
    assert result["journal"] == [*decisive[1:], 'kubelet: "command failed" err="unknown flag"']


def test_without_a_decisive_line_the_last_ones_are_given(machine: Machine) -> None:
    (machine.root / "journal").write_text("\n".join(f"line {number}" for number in range(30)))
    lines = [f"line {number}" for number in range(24, 30)]
    assert rke2_info.journal("rke2-server", str(machine.data_dir)) == lines


def test_space_staging_kernel_and_charts_are_reported(capsys: pytest.CaptureFixture[str], machine: Machine) -> None:
    staging = machine.root / ".staging-v1"
    staging.mkdir()
    (staging / "half").write_bytes(b"x" * 1000)
    manifests = machine.data_dir / "server/manifests"
    manifests.mkdir(parents=True)
    (manifests / "rke2-canal-config.yaml").write_text(f"{rke2_info.BANNER}; and more\n")
    (manifests / "rke2-coredns-config.yaml").write_text("# somebody else's\n")
    (manifests / "rke2-traefik.yaml").write_text(f"{rke2_info.BANNER}\n")
    deep = str(machine.root / "not/yet/there")
    result = run(
        capsys,
        machine,
        space=[deep],
        staging=str(machine.root / ".staging-*"),
        sysctls=["kernel.ostype", "no.such.parameter"],
    )
    assert result["staged"] == {str(staging): 1000}
    assert result["chart_configs"] == ["rke2-canal"]
    assert result["sysctls"] == {"kernel.ostype": "Linux", "no.such.parameter": ""}
    # Others write to this disk as well, so the two readings differ by a little.
    assert abs(result["space"][deep] - shutil.disk_usage(machine.root).free) < 1 << 30


def test_the_etcd_account_needs_user_and_group(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/etc/passwd": "root:x:0:0\netcd:x:52034:52034\n", "/etc/group": "root:x:0:\n"}
    monkeypatch.setattr(rke2_info, "text", files.__getitem__)
    assert rke2_info.etcd_account() is False
    files["/etc/group"] += "etcd:x:52034:\n"
    assert rke2_info.etcd_account() is True
    files["/etc/passwd"] = "notetcd:x:1:1\n"
    assert rke2_info.etcd_account() is False


def test_certificates_end_when_openssl_says(tmp_path: Path) -> None:
    place = tmp_path / "server/tls"
    place.mkdir(parents=True)
    certificate(place, "server-ca", days=10)
    (place / "broken.crt").write_text("nonsense")
    found = rke2_info.certificates(str(tmp_path))
    assert list(found) == [str(place / "server-ca.crt")]
    left = found[str(place / "server-ca.crt")] - (place / "server-ca.crt").stat().st_mtime
    assert abs(left - 10 * 86400) < 60


def test_only_what_a_rotation_makes_anew_is_a_leaf(tmp_path: Path) -> None:
    kept = ("server-ca.crt", "ca.crt", "client-ca.nochain.crt", "request-header-ca.crt")
    for name in (*kept, "client-admin.crt", "serving-kubelet.crt"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "client-admin.crt", (time.time() - 500, time.time() - 500))
    found = rke2_info.leaves({str(path): 7 for path in tmp_path.iterdir()})
    assert {Path(path).name for path in found} == {"client-admin.crt", "serving-kubelet.crt"}
    assert 500 <= found[str(tmp_path / "client-admin.crt")]["age"] < 600
    assert found[str(tmp_path / "serving-kubelet.crt")]["expires"] == 7


@pytest.mark.parametrize(
    ("stored", "shown", "kept"),
    [
        ("K10ff::server:abc\n", "abc", True),
        ("K10ff::server:abc\n", "abd", False),
        ("", "", False),
        ("abc", "abc", True),
    ],
)
def test_the_token_that_a_server_has_stored_is_compared_without_its_hash(
    capsys: pytest.CaptureFixture[str], machine: Machine, stored: str, shown: str, kept: bool
) -> None:
    (machine.data_dir / "server").mkdir()
    (machine.data_dir / "server/token").write_text(stored)
    assert run(capsys, machine, token=shown)["token_kept"] is kept


@pytest.mark.parametrize("inline", [True, False])
def test_the_api_is_asked_with_the_kubeconfig_s_certificate_and_only_of_its_authority(
    tmp_path: Path, inline: bool
) -> None:
    for name in ("server", "client", "stranger"):
        certificate(tmp_path, name)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"asked": self.path}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    context.load_verify_locations(tmp_path / "client.crt")
    context.verify_mode = ssl.CERT_REQUIRED

    def kubeconfig(authority: str, client: str) -> str:
        files = {"certificate-authority": f"{authority}.crt", "client-certificate": f"{client}.crt"}
        lines = [f"    server: https://127.0.0.1:{serving.server_port}"]
        for key, file in {**files, "client-key": f"{client}.key"}.items():
            path = tmp_path / file
            value = f"-data: {base64.b64encode(path.read_bytes()).decode()}" if inline else f": {path}"
            lines.append(f"    {key}{value}")
        path = tmp_path / f"{authority}-{client}.yaml"
        path.write_text("\n".join(["apiVersion: v1", "clusters:", "- cluster:", *lines, "kind: Config", ""]))
        return str(path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.socket = context.wrap_socket(serving.socket, server_side=True)
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        assert rke2_info.ask_api(kubeconfig("server", "client"), "/api/v1/nodes") == {"asked": "/api/v1/nodes"}
        assert rke2_info.ask_api(kubeconfig("server", "stranger"), "/api/v1/nodes") == {}
        assert rke2_info.ask_api(kubeconfig("stranger", "client"), "/api/v1/nodes") == {}
        serving.shutdown()
        thread.join()
    assert rke2_info.ask_api(kubeconfig("server", "client"), "/api/v1/nodes") == {}
    assert rke2_info.ask_api(str(tmp_path / "none"), "/api/v1/nodes") == {}


def certificate(directory: Path, name: str, days: int = 1) -> None:
    """Make a certificate and its key."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", f"{directory}/{name}.key", "-out", f"{directory}/{name}.crt"]
    subprocess.run(
        [*command, "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1", "-days", str(days), *files],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """Serve RKE2's port at an address of this machine alone: (address, password by which it answers -> status)."""
    answers: dict[str, int] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
            self.send_response(200 if self.path == "/ping" else answers.get(given, 401))
            self.end_headers()

        def log_request(self, *_: object) -> None:
            pass

    certificate(tmp_path, "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    address = f"127.77.{os.getpid() >> 8 & 255}.{os.getpid() & 255 or 1}"
    with http.server.ThreadingHTTPServer((address, 9345), Handler) as serving:
        serving.socket = context.wrap_socket(serving.socket, server_side=True)
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield address, answers
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("token", "user", "answer"),
    [
        pytest.param("right", "server", "ready", id="short-token"),
        pytest.param("K10abc::server:right", "server", "ready", id="full-token"),
        pytest.param("right", "node", "listening", id="not-ready-yet"),
        pytest.param("wrong", "server", "refused", id="another-token"),
        pytest.param(None, "server", "listening", id="no-token"),
    ],
)
def test_a_peer_answers_one_of_four_ways(
    supervisor: tuple[str, dict[str, int]], token: str | None, user: str, answer: str
) -> None:
    address, answers = supervisor
    answers |= {"server:right": 200, "node:right": 503}
    assert rke2_info.ask_peer(address, token, user) == answer


def test_a_peer_that_is_not_there_is_silent() -> None:
    assert rke2_info.ask_peer("127.78.0.1", "x", "server") == "silent"


@pytest.mark.proves("machines-reboot")
def test_gpus_are_told_and_cores_are_not() -> None:
    offered = {"cpu": "8", "memory": "1Ki", "hugepages-2Mi": "0", "nvidia.com/gpu": "7", "nvidia.com/mig-1g.10gb": "0"}
    assert rke2_info.devices(offered | {"rdma/hca": "1k"}) == {"nvidia.com/gpu": 7, "rdma/hca": 1000}


def test_a_node_is_gone_once_neither_cluster_nor_etcd_knows_it(
    capsys: pytest.CaptureFixture[str], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.unit("rke2-server")
    machine.serves({"items": [node("a"), node("b")]}, {"items": [node("b")]})
    told = iter([["a-1a2b3c4d", "b-11112222"], ["a-1a2b3c4d", "b-11112222"]])
    now = ["a-b-11112222", "b-11112222"]

    class Etcd:
        def __init__(self, _: str) -> None:
            pass

        def members(self) -> list[dict[str, str]]:
            return [{"name": name} for name in next(told, now)]

    monkeypatch.setattr(rke2_info, "Gateway", Etcd)
    result = run(capsys, machine, wait={"seconds": 60, "gone": ["a"]})
    assert (result["healthy"], result["waiting_for"]) == (True, [])
    now = ["a", "b"]
    assert rke2_info.still_known(["a"], {"a": {}}, "") == [
        "node a is still in the cluster",
        "a is still a member of etcd",
    ]


def test_an_etcd_that_is_silent_is_no_evidence(tmp_path: Path) -> None:
    (told,) = rke2_info.still_known(["a"], {}, str(tmp_path))
    assert told.startswith("etcd does not tell its members")


def test_every_file_that_configures_the_service_is_told_with_what_is_younger_than_its_start(
    capsys: pytest.CaptureFixture[str], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = machine.root / "about"
    monkeypatch.setattr(rke2_info, "ABOUT_SERVICE", (f"{about}/%.env", f"{about}/%.service.d/*.conf"))
    data, token = machine.root / "elsewhere", machine.root / "token"
    files = {
        machine.root / "etc/config.yaml": f"data-dir: {data}\nnode-name: 'Found-1'\n",
        machine.root / "etc/config.yaml.d/10-a.yaml": f'token-file: "{token}"  # theirs\n',
        about / "rke2-server.env": "A=1\n",
        about / "rke2-server.service.d/10.conf": "[Service]\n",
        data / "server/token": "K10::server:x\n",
        token: "correct-horse-battery\n",
    }
    charts = {"rke2-canal-config.yaml": "kind: HelmChartConfig\n", "other.yaml": "kind: Job\n"}
    for path, content in (files | {data / "server/manifests" / name: text for name, text in charts.items()}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, (0, 0))
    os.utime(token)
    (machine.root / "units/rke2-server").write_text(
        f"ActiveState=active\nActiveEnterTimestampMonotonic={int((time.monotonic() - 60) * 1000000)}\n"
        "ExecStart={ path=/usr/local/bin/rke2 ; argv[]=/usr/local/bin/rke2 server --debug ; ignore_errors=no }\n"
    )
    machine.serves({"items": []})
    assert "configuration" not in run(capsys, machine)
    machine.data_dir = ""  # type: ignore[assignment]
    found = run(capsys, machine, configuration="always")["configuration"]

    def told(found: dict[str, Any]) -> dict[str, str]:
        return {path: base64.b64decode(content).decode() for path, content in found["files"].items()}

    assert told(found) == {str(path): content for path, content in files.items()}
    # Ansible hides a token in answers, and the files would then mean something else.
    content = token.read_text()
    assert (
        told(run(capsys, machine, configuration="always", token=content.strip())["configuration"])[str(token)]
        == content
    )
    assert found["edited"] == [str(token)]
    assert (found["node"], found["data_dir"], found["arguments"]) == ("found-1", str(data), ["--debug"])
    assert found["charts"] == ["rke2-canal-config.yaml"]
    # A comment in another encoding than ours.
    (about / "rke2-server.env").write_bytes(b"# f\xfcr uns\nA=1\n")
    found = run(capsys, machine, configuration="always")["configuration"]
    assert told(found)[str(about / "rke2-server.env")] == "# f\N{REPLACEMENT CHARACTER}r uns\nA=1\n"
    # Nobody has recorded what it started with, and then somebody has.
    assert "configuration" in run(capsys, machine, configuration="unrecorded")
    (machine.root / "started").write_text("0123  -\n")
    assert "configuration" not in run(capsys, machine, configuration="unrecorded")
    # As most units are.
    path = machine.root / "units/rke2-server"
    path.write_text(path.read_text().replace(" --debug", ""))
    assert run(capsys, machine, configuration="always")["configuration"]["arguments"] == []
