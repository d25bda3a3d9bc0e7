"""Makes lab RKE2's release files, under upstream's names: programs, images, charts and units in archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from build import COMPONENTS, HERE, cached, digest, kubernetes, pause, program, tools

REPOSITORY = "docker.io/lab"
CNI_PLUGINS = ("bandwidth", "bridge", "firewall", "host-local", "loopback", "portmap", "tuning")
MULTI_CALL = (
    "etcd",
    "etcdctl",
    "etcdutl",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubeadm",
    "kubectl",
    "kubelet",
)


def libraries(root: Path, *programs: str) -> list[str]:
    """Paths of the shared libraries that programs below `root` need, the loader included, as seen inside."""
    found: set[str] = set()
    for one in programs:
        listing = subprocess.run(["chroot", root, "ldd", one], capture_output=True, text=True, check=False).stdout
        found |= {word for line in listing.splitlines() for word in line.split() if word.startswith("/")}
    return sorted(found)


def tar_layer(entries: Iterable[tuple[str, Path | str | bytes, int]]) -> bytes:
    """A reproducible uncompressed layer: (path, file | link target | content, mode)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        made: set[str] = set()
        for path, content, mode in entries:
            for depth in range(1, len(path.split("/"))):
                parent = "/".join(path.split("/")[:depth])
                if parent and parent not in made:
                    made.add(parent)
                    info = tarfile.TarInfo(parent)
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(info)
            info = tarfile.TarInfo(path)
            info.mode = mode
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                data = content.read_bytes() if isinstance(content, Path) else content
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def image_archive(target: Path, images: dict[str, tuple[list[bytes], list[str]]]) -> None:
    """Write a zstd-compressed docker archive; images (name -> layers, entry point) share equal layers."""
    plain = target.with_suffix(".tar")
    manifest: list[dict[str, Any]] = []
    with tarfile.open(plain, "w") as archive:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))

        names: dict[str, str] = {}
        groups: dict[str, dict[str, Any]] = {}
        for reference, (layers, entrypoint) in images.items():
            hashes = [hashlib.sha256(layer).hexdigest() for layer in layers]
            for value, layer in zip(hashes, layers, strict=True):
                if value not in names:
                    names[value] = f"{value}/layer.tar"
                    add(names[value], layer)
            config = {
                "architecture": "amd64",
                "os": "linux",
                "created": "1970-01-01T00:00:00Z",
                "config": {
                    "Entrypoint": entrypoint,
                    # A HelmChart's job must not run as root, and the kubelet takes the image's word for it.
                    "User": "1000" if entrypoint == ["/entry"] else "",
                    "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                },
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{value}" for value in hashes]},
            }
            data = json.dumps(config, sort_keys=True).encode()
            name = f"{hashlib.sha256(data).hexdigest()}.json"
            if name not in groups:
                add(name, data)
                groups[name] = {"Config": name, "RepoTags": [], "Layers": [names[value] for value in hashes]}
                manifest.append(groups[name])
            groups[name]["RepoTags"].append(reference)
        add("manifest.json", json.dumps(manifest).encode())
    subprocess.run(["zstd", "-q", "-f", "-T0", "-3", "--rm", plain, "-o", target], check=True)


def base_layer() -> bytes:
    """The distribution's network tools with their libraries and a shell."""
    root = tools()
    # Paths without symbolic links: an absolute one would lead out of the root, to this machine's own programs.
    programs = ["/usr/sbin/xtables-nft-multi", "/usr/bin/ip", "/usr/sbin/bridge", "/usr/sbin/conntrack"]
    extensions = [
        f"/{path.relative_to(root)}" for path in sorted((root / "usr/lib/x86_64-linux-gnu/xtables").glob("*.so"))
    ]
    entries: list[tuple[str, Path | str | bytes, int]] = []
    for name in dict.fromkeys([*programs, *libraries(root, *programs, *extensions), *extensions]):
        entries.append(
            (
                name[1:],
                (root / name[1:]).resolve()
                if not (root / name[1:]).is_symlink()
                else root / os.path.relpath(os.path.realpath(root / name[1:]), root),
                0o755,
            )
        )
    entries.append(
        (
            "bin/busybox",
            root / "usr/bin/busybox" if (root / "usr/bin/busybox").exists() else root / "bin/busybox",
            0o755,
        )
    )
    applets = (
        "sh awk base64 cat cp date echo env grep head hostname httpd id ls mkdir mv nc nslookup ping printf rm sed"
        " sleep sort tail test touch tr true wc wget"
    )
    entries += [(f"bin/{applet}", "busybox", 0o777) for applet in applets.split()]
    entries += [
        (f"usr/sbin/{name}", "xtables-nft-multi", 0o777)
        for name in (
            "iptables",
            "ip6tables",
            "iptables-save",
            "iptables-restore",
            "ip6tables-save",
            "ip6tables-restore",
        )
    ]
    entries += [
        ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644),
        ("tmp/.keep", b"", 0o644),
    ]
    return tar_layer(entries)


def chart_archive(chart: Path) -> bytes:
    """A chart's directory as Helm's own archive, the same bytes every time."""
    files = sorted(path for path in chart.rglob("*") if path.is_file())
    layer = tar_layer((f"{chart.name}/{path.relative_to(chart)}", path, 0o644) for path in files)
    return gzip.compress(layer, mtime=0)


def artifacts(release: str) -> Path:
    """The directory of upstream-named files of one release of lab RKE2."""
    binary = kubernetes(release)
    programs = {name: program(name) for name in COMPONENTS["programs"]}
    root = tools()
    key = digest(
        HERE / "rke2",
        HERE / "units",
        HERE / "canal",
        HERE / "charts",
        HERE / "helm",
        HERE / "artifacts.py",
        binary.name,
        root.name,
        pause().name,
        *(path.name for path in programs.values()),
    )
    tag = release.replace("+", "_")

    def make(target: Path) -> None:
        target.mkdir()
        runtime: list[tuple[str, Path | str]] = [("bin/kubernetes", binary)]
        runtime += [(f"bin/{name}", "kubernetes") for name in MULTI_CALL]
        runtime += [(f"bin/{name}", path) for name, path in programs.items() if name not in ("coredns", "helm")]
        runtime += [(f"bin/{name}", root / "usr/lib/cni" / name) for name in CNI_PLUGINS]
        distribution = [
            name if (root / name[1:]).exists() else name.replace("/usr", "")
            for name in ("/usr/sbin/runc", "/usr/sbin/haproxy")
        ]
        runtime += [(f"bin/{Path(name).name}", root / name[1:]) for name in distribution]
        for library in libraries(root, *distribution):
            if not any(
                part in library for part in ("libc.so", "ld-linux", "libpthread", "libm.so", "libdl.so", "librt.so")
            ):
                runtime.append((f"lib/{Path(library).name}", Path(os.path.realpath(root / library[1:]))))
        stamp = {
            "version": release,
            "tag": tag,
            "repository": REPOSITORY,
            "runtime": f"{release.replace('+', '-')}-{key[:12]}",
            "commit": key,
            "go": "go",
        }
        program_file = target / "rke2"
        with program_file.open("wb") as sink:
            sink.write(b"#!/usr/bin/python3\n")
            with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for path in sorted((HERE / "rke2").glob("*.py")):
                    archive.write(path, path.name)
                for path in sorted(Path(yaml.__file__).parent.glob("*.py")):
                    archive.write(path, f"yaml/{path.name}")
                archive.writestr("release.json", json.dumps(stamp))
                for chart in sorted((HERE / "charts").iterdir()):
                    archive.writestr(f"charts/{chart.name}.tgz", chart_archive(chart))
                for name, content in runtime:
                    info = zipfile.ZipInfo(f"runtime/{name}")
                    info.compress_type = zipfile.ZIP_DEFLATED
                    info.external_attr = (0o120777 if isinstance(content, str) else 0o100755) << 16
                    archive.writestr(info, content if isinstance(content, str) else content.read_bytes())
        program_file.chmod(0o755)
        with (
            gzip.open(target / "rke2.linux-amd64.tar.gz", "wb", compresslevel=1) as stream,
            tarfile.open(fileobj=stream, mode="w") as archive_file,
        ):
            members = [
                ("bin/rke2", program_file, 0o755),
                ("share/rke2/rke2-cis-sysctl.conf", HERE / "units/rke2-cis-sysctl.conf", 0o644),
            ]
            members += [
                (f"bin/{name}", HERE / "units" / name, 0o755) for name in ("rke2-killall.sh", "rke2-uninstall.sh")
            ]
            members += [
                (f"lib/systemd/system/{name}", HERE / "units" / name, 0o644)
                for name in ("rke2-server.service", "rke2-agent.service")
            ]
            for name, path, mode in members:
                member = archive_file.gettarinfo(path, name)
                member.mode, member.uid, member.gid, member.uname, member.gname = mode, 0, 0, "root", "root"
                with path.open("rb") as source:
                    archive_file.addfile(member, source)
            for role in ("server", "agent"):
                member = tarfile.TarInfo(f"lib/systemd/system/rke2-{role}.env")
                member.mode = 0o644
                archive_file.addfile(member, io.BytesIO(b""))
        program_file.unlink()
        base = base_layer()
        kube = tar_layer(
            [
                ("usr/local/bin/kubernetes", binary, 0o755),
                *((f"usr/local/bin/{name}", "kubernetes", 0o777) for name in MULTI_CALL),
            ]
        )
        core: dict[str, tuple[list[bytes], list[str]]] = {}
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "etcd"):
            core[f"{REPOSITORY}/{name}:{tag}"] = ([base, kube], [])
        core[f"{REPOSITORY}/pause:1"] = ([tar_layer([("pause", pause(), 0o755)])], ["/pause"])
        core[f"{REPOSITORY}/coredns:1"] = ([tar_layer([("coredns", programs["coredns"], 0o755)])], ["/coredns"])
        helm: list[tuple[str, Path | str | bytes, int]] = [
            ("usr/local/bin/helm", programs["helm"], 0o755),
            ("entry", HERE / "helm/entry.sh", 0o755),
        ]
        core[f"{REPOSITORY}/klipper-helm:1"] = ([base, tar_layer(helm)], ["/entry"])
        image_archive(target / "rke2-images-core.linux-amd64.tar.zst", core)
        canal: dict[str, tuple[list[bytes], list[str]]] = {
            f"{REPOSITORY}/canal:1": (
                [
                    base,
                    tar_layer(
                        [
                            ("opt/canal.sh", HERE / "canal/canal.sh", 0o755),
                            ("usr/local/bin/kubectl", "/var/lib/rancher/rke2/bin/kubectl", 0o777),
                        ]
                    ),
                ],
                [],
            )
        }
        image_archive(target / "rke2-images-canal.linux-amd64.tar.zst", canal)
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(target.iterdir())]
        (target / "sha256sum-amd64.txt").write_text("".join(sums))

    return cached(f"artifacts-{release}", key, make)
