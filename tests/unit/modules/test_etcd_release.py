"""Programs of etcd: from the bundle or from upstream, never with another byte, and none where there is none."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from plugins.modules import etcd_release

pytestmark = pytest.mark.proves("etcd-tools")
NAME = "etcd-v3.6.14-linux-amd64"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a release in which one program is a link to another, as well as upstream's own list."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(f"{NAME}/etcd")
        info.size = 7
        archive.addfile(info, io.BytesIO(b"program"))
        link = tarfile.TarInfo(f"{NAME}/etcdutl")
        link.type, link.linkname = tarfile.SYMTYPE, "etcd"
        archive.addfile(link)
    content = gzip.compress(buffer.getvalue())
    place = tmp_path / "bundle/etcd/v3.6.14"
    place.mkdir(parents=True)
    (place / f"{NAME}.tar.gz").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    (place / "SHA256SUMS").write_text(f"{'0' * 64}  etcd-v3.6.14.tar.gz\n{sha256}  {NAME}.tar.gz\n")
    files = [{"path": f"etcd/v3.6.14/{NAME}.tar.gz", "sha256": sha256}]
    (tmp_path / "bundle/manifest.json").write_text(json.dumps({"files": files}))
    return tmp_path / "bundle"


def run(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run the module; return its result."""
    with patch_module_args({"version": "v3.6.14"} | arguments), pytest.raises(SystemExit):
        etcd_release.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize("upstream", [False, True], ids=["bundle", "upstream"])
def test_programs_are_kept_by_release_and_not_fetched_again(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], upstream: bool
) -> None:
    where = {"bundle": "", "url": str(bundle / "etcd")} if upstream else {"bundle": str(bundle)}
    told = run(capsys, cache=str(tmp_path / "cache"), programs=["etcd", "etcdutl"], **where)
    assert told["programs"] == {name: str(tmp_path / f"cache/etcd-v3.6.14/{name}") for name in ("etcd", "etcdutl")}
    for path in map(Path, told["programs"].values()):
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"program", 0o755)
    (bundle / f"etcd/v3.6.14/{NAME}.tar.gz").unlink()
    assert run(capsys, cache=str(tmp_path / "cache"), **where)["programs"]


@pytest.mark.parametrize("upstream", [False, True], ids=["bundle", "upstream"])
def test_another_byte_is_refused_and_nothing_is_kept(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], upstream: bool
) -> None:
    path = bundle / f"etcd/v3.6.14/{NAME}.tar.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    where = {"bundle": "", "url": str(bundle / "etcd")} if upstream else {"bundle": str(bundle)}
    told = run(capsys, cache=str(tmp_path / "cache"), **where)
    assert told["failed"]
    assert "has the sha256" in told["msg"]
    assert not (tmp_path / "cache").exists()


def test_a_bundle_without_it_is_a_warning(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ansible.module_utils.basic.AnsibleModule.warn", lambda _, warning: said.append(warning))
    told = run(capsys, version="v3.5.21", cache=str(tmp_path / "cache"), bundle=str(bundle))
    assert (told["programs"], told["changed"]) == ({}, False)
    assert "lacks etcd-v3.5.21-linux-amd64.tar.gz" in told["reason"]
    assert "cannot raise the revision" in said[0]
