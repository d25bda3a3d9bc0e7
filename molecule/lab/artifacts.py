"""Makes lab RKE2's release files, under upstream's names: programs, images, charts and units in archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from build import COMPONENTS, HERE, cached, digest, kubernetes, program, run, tools

REPOSITORY = "docker.io/lab"
CNI_PLUGINS = ("bandwidth", "bridge", "firewall", "host-local", "loopback", "portmap", "tuning")
MULTI_CALL = (
    *("etcd", "etcdctl", "etcdutl", "kubeadm", "kubectl", "kubelet"),
    *("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler"),
)
# Programs that nodes have in an image only.
IN_IMAGES = ("coredns", "helm", "pause")
APPLETS = (
    "sh awk base64 cat cp date echo env grep head hostname httpd id ls mkdir mv nc nslookup ping printf rm sed sleep"
    " sort tail test touch tr true wc wget"
)
# What a layer or archive is made of: path, content (of a file | itself | a link's target), mode.
Entry = tuple[str, Path | bytes | str, int]


def libraries(root: Path, *programs: str) -> list[str]:
    """Paths of the shared libraries that programs below `root` need, the loader included, as seen inside."""
    found: set[str] = set()
    for one in programs:
        listing = subprocess.run(["chroot", root, "ldd", one], capture_output=True, text=True, check=False).stdout
        found |= {word for line in listing.splitlines() for word in line.split() if word.startswith("/")}
    return sorted(found)


def inside(root: Path, name: str) -> Path:
    """The file that `name` is below `root`: a symbolic link must not lead to this machine's own."""
    return root / run("chroot", root, "realpath", name).strip()[1:]


def tar_layer(entries: Iterable[Entry]) -> bytes:
    """A reproducible uncompressed archive, directories included."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        made: set[str] = set()
        for path, content, mode in entries:
            for parent in reversed([str(parent) for parent in PurePosixPath(path).parents][:-1]):
                if parent not in made:
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
    entries: dict[str, Entry] = {}
    manifest: dict[str, dict[str, Any]] = {}
    for reference, (layers, entrypoint) in images.items():
        hashes = [hashlib.sha256(layer).hexdigest() for layer in layers]
        entries |= {value: (f"{value}/layer.tar", layer, 0o644) for value, layer in zip(hashes, layers, strict=True)}
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
        entries[name] = (name, data, 0o644)
        about = {"Config": name, "RepoTags": [], "Layers": [entries[value][0] for value in hashes]}
        manifest.setdefault(name, about)["RepoTags"].append(reference)
    entries["manifest"] = ("manifest.json", json.dumps(list(manifest.values())).encode(), 0o644)
    run("zstd", "-q", "-f", "-T0", "-3", "-", "-o", target, input=tar_layer(entries.values()), text=False)


def base_layer() -> bytes:
    """The distribution's network tools with their libraries and a shell."""
    root = tools()
    programs = ["/usr/sbin/xtables-nft-multi", "/usr/bin/ip", "/usr/sbin/bridge", "/usr/sbin/conntrack"]
    extensions = [f"/{path.relative_to(root)}" for path in sorted(root.glob("usr/lib/x86_64-linux-gnu/xtables/*.so"))]
    names = dict.fromkeys([*programs, *libraries(root, *programs, *extensions), *extensions])
    entries: list[Entry] = [(name[1:], inside(root, name), 0o755) for name in names]
    entries.append(("bin/busybox", root / "usr/bin/busybox", 0o755))
    entries += [(f"bin/{applet}", "busybox", 0o777) for applet in APPLETS.split()]
    tables = [f"{tool}{what}" for tool in ("iptables", "ip6tables") for what in ("", "-save", "-restore")]
    entries += [(f"usr/sbin/{name}", "xtables-nft-multi", 0o777) for name in tables]
    entries += [
        ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644),
        ("tmp/.keep", b"", 0o644),
    ]
    return tar_layer(entries)


def chart_archive(chart: Path, name: str = "") -> bytes:
    """A chart's directory as Helm's own archive, the same bytes every time."""
    files = sorted(path for path in chart.rglob("*") if path.is_file())
    layer = tar_layer((f"{name or chart.name}/{path.relative_to(chart)}", path, 0o644) for path in files)
    return gzip.compress(layer, mtime=0)


def artifacts(release: str) -> Path:
    """The directory of upstream-named files of one release of lab RKE2."""
    binary = kubernetes(release)
    programs = {name: program(name) for name in COMPONENTS["programs"]}
    root = tools()
    ours = [HERE / name for name in ("rke2", "units", "canal", "charts", "helm", "artifacts.py")]
    key = digest(*ours, *(path.name for path in (binary, root, *programs.values())))
    tag = release.replace("+", "_")

    def make(target: Path) -> None:
        target.mkdir()
        runtime: list[tuple[str, Path | str]] = [("bin/kubernetes", binary)]
        runtime += [(f"bin/{name}", "kubernetes") for name in MULTI_CALL]
        runtime += [(f"bin/{name}", path) for name, path in programs.items() if name not in IN_IMAGES]
        runtime += [(f"bin/{name}", root / "usr/lib/cni" / name) for name in CNI_PLUGINS]
        distribution = ["/usr/sbin/runc", "/usr/sbin/haproxy"]
        runtime += [(f"bin/{Path(name).name}", root / name[1:]) for name in distribution]
        # The node's own C library serves; another beside the node's loader would not.
        foreign = re.compile("lib(c|pthread|m|dl|rt).so|ld-linux")
        for library in (name for name in libraries(root, *distribution) if not foreign.search(name)):
            runtime.append((f"lib/{Path(library).name}", inside(root, library)))
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
        units, system = HERE / "units", "lib/systemd/system"
        members: list[Entry] = [("bin/rke2", program_file, 0o755)]
        members += [(f"bin/{name}", units / name, 0o755) for name in ("rke2-killall.sh", "rke2-uninstall.sh")]
        members += [("share/rke2/rke2-cis-sysctl.conf", units / "rke2-cis-sysctl.conf", 0o644)]
        for name in ("rke2-server", "rke2-agent"):
            members.append((f"{system}/{name}.service", units / f"{name}.service", 0o644))
            members.append((f"{system}/{name}.env", b"", 0o644))
        (target / "rke2.linux-amd64.tar.gz").write_bytes(gzip.compress(tar_layer(members), 1, mtime=0))
        program_file.unlink()
        base, links = base_layer(), [(f"usr/local/bin/{name}", "kubernetes", 0o777) for name in MULTI_CALL]
        kube = tar_layer([("usr/local/bin/kubernetes", binary, 0o755), *links])
        core: dict[str, tuple[list[bytes], list[str]]] = {}
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "etcd"):
            core[f"{REPOSITORY}/{name}:{tag}"] = ([base, kube], [])
        core[f"{REPOSITORY}/pause:1"] = ([tar_layer([("pause", programs["pause"], 0o755)])], ["/pause"])
        core[f"{REPOSITORY}/coredns:1"] = ([tar_layer([("coredns", programs["coredns"], 0o755)])], ["/coredns"])
        helm = [("usr/local/bin/helm", programs["helm"], 0o755), ("entry", HERE / "helm/entry.sh", 0o755)]
        core[f"{REPOSITORY}/klipper-helm:1"] = ([base, tar_layer(helm)], ["/entry"])
        image_archive(target / "rke2-images-core.linux-amd64.tar.zst", core)
        script = ("opt/canal.sh", HERE / "canal/canal.sh", 0o755)
        kubectl = ("usr/local/bin/kubectl", "/var/lib/rancher/rke2/bin/kubectl", 0o777)
        canal = {f"{REPOSITORY}/canal:1": ([base, tar_layer([script, kubectl])], list[str]())}
        image_archive(target / "rke2-images-canal.linux-amd64.tar.zst", canal)
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(target.iterdir())]
        (target / "sha256sum-amd64.txt").write_text("".join(sums))

    return cached(f"artifacts-{release}", key, make)
