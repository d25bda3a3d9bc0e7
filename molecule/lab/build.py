"""Builds what the lab is made of, cached by content: Go programs, root file systems, container images."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "metalhub" / "lab"
STATE = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "metalhub" / "lab"
COMPONENTS: dict[str, Any] = yaml.safe_load((HERE / "components.yml").read_text())
GO_CACHE = CACHE / "go"
# How often a long step says that it is alive.
PROGRESS_SECONDS = 20


IMAGE_LABEL = "metalhub.lab.image"
# Descriptors of the lock while this process holds it, and what its threads are making.
HELD: list[int] = []
MAKING: defaultdict[str, Lock] = defaultdict(Lock)


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"lab: {text}", flush=True)


@contextmanager
def alone() -> Generator[None]:
    """Keep other lab commands waiting; entering it again inside is free.

    Programs started by `run` inherit the lock: after a kill -9 the next command waits for what they still write.
    """
    if HELD:  # by this thread or by one that waits for it
        yield
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    HELD.append(os.open(CACHE / ".lock", os.O_RDWR | os.O_CREAT, 0o600))
    try:
        try:
            fcntl.flock(HELD[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another lab command is at work; waiting for it …")
            fcntl.flock(HELD[0], fcntl.LOCK_EX)
        yield
    finally:
        os.close(HELD.pop())


def run(*words: object, **options: Any) -> str:
    """Run a program and return its output; one that fails ends the lab's command with the program's last words."""
    command = [str(word) for word in words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    done = subprocess.run(command, check=False, pass_fds=HELD, **options)
    if done.returncode:
        shown = shlex.join(command)
        sys.exit(f"lab: {shown[:200]} ended with {done.returncode}:\n{str(done.stderr or '').strip()[-2000:]}")
    return done.stdout or ""


def digest(*parts: object) -> str:
    """Short hash of strings, and of the names and contents of files and of what is below directories."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path) and part.is_dir():
            files = sorted(path for path in part.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
            for path in files:
                found.update(f"{path.relative_to(part)}\0".encode() + path.read_bytes())
        elif isinstance(part, Path):
            found.update(f"{part.name}\0".encode() + part.read_bytes())
        else:
            found.update(f"{part}\0".encode())
    return found.hexdigest()[:16]


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cached(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return the cached file or directory `name-key`; make it first where it is missing, whole or not at all.

    Of each name the two that were used last are kept, and nothing that a killed build has left.
    """
    target = CACHE / f"{name}-{key}"
    any_key = "[0-9a-f]" * len(key)
    if not target.exists():
        with alone(), MAKING[target.name]:
            if not target.exists():
                for left in CACHE.glob(f".{name}-{any_key}.new"):
                    remove(left)
                staging = CACHE / f".{name}-{key}.new"
                began = time.monotonic()
                say(f"building {name} …")
                make(staging)
                staging.rename(target)
                say(f"built {name} in {time.monotonic() - began:.0f} s")
    os.utime(target)
    for old in sorted(CACHE.glob(f"{name}-{any_key}"), key=lambda path: path.stat().st_mtime, reverse=True)[2:]:
        remove(old)
    return target


GO_SETTINGS = {
    "CGO_ENABLED": "0",
    "GOPATH": str(GO_CACHE / "path"),
    "GOCACHE": str(GO_CACHE / "build"),
    "GOFLAGS": "-buildvcs=false -modcacherw",
    "GOTOOLCHAIN": "auto",
    # Compilers that collect their garbage less often take up to a quarter less time.
    "GOGC": "400",
}
# Debug information, which the linker would drop, is not made at all.
GO_FLAGS = ("-trimpath", "-gcflags=all=-dwarf=false")


def go_command() -> str:
    """The go program, the machine's or that of the environment."""
    return shutil.which("go") or str(HERE.parents[1] / ".venv/bin/go")


def required(graph: str, module: str) -> str:
    """The version of a module in one of the graphs in go/."""
    return str(re.findall(rf"^\t{re.escape(module)} (v\S+)", (HERE / "go" / graph).read_text(), re.MULTILINE)[0])


def go_module(module: str) -> Path:
    """The unpacked source of module@version, until the compiler's caches are deleted."""
    answer = run(go_command(), "mod", "download", "-json", module, env=os.environ | GO_SETTINGS)
    return Path(json.loads(answer)["Dir"])


def go(name: str, *words: str, cwd: Path) -> None:
    """Build with the lab's own caches; tells how far it is, and on failure what the go command said."""
    said: deque[str] = deque(maxlen=40)
    modules = packages = 0
    began = told = time.monotonic()
    with subprocess.Popen(
        [go_command(), "build", "-v", *words],
        cwd=cwd,
        env=os.environ | GO_SETTINGS,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=HELD,
    ) as child:
        for line in child.stderr or ():
            said.append(line)
            modules, packages = (modules + 1, packages) if line.startswith("go: ") else (modules, packages + 1)
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                say(f"  {name}: {modules} modules fetched, {packages} packages compiled in {told - began:.0f} s")
    if child.returncode:
        sys.exit(f"lab: go build of {name} failed:\n{''.join(said)[-3000:]}")


def go_built(name: str, graph: Path, package: str, stamp: str = "") -> Path:
    """The program of a package, of the graph's own module or of another in it; `stamp` is the linker's.

    One at a time: what two programs share is compiled once.
    """
    flags = (*GO_FLAGS, "-ldflags", f"-s -w{stamp}")
    key = digest(graph, *sorted((graph.parent / package).glob("*.go")), package, *flags)
    words = ("-modfile", graph.name, *flags, "-o")
    with MAKING["go"]:
        return cached(name, key, lambda target: go(name, *words, str(target), package, cwd=graph.parent))


def kubernetes(release: str) -> Path:
    """The multi-call binary stamped as `release`, for example v1.35.4+rke2r1."""
    minor = ".".join(release[1:].split(".")[:2])
    stamp = {
        "gitVersion": release,
        "gitMajor": "1",
        "gitMinor": minor[2:],
        "gitTreeState": "clean",
        "gitCommit": "lab",
        "buildDate": "1970-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    stamped = "".join(f" -X {package}.{key}={value}" for package in packages for key, value in stamp.items())
    return go_built(f"kubernetes-{release}", HERE / f"go/kubernetes/{minor}.mod", ".", stamped)


def program(name: str) -> Path:
    """One Go program: the directory beside a graph in go/ that is called so, or the tool in it whose path ends so."""
    for graph in sorted(HERE.glob("go/*/go.mod")):
        if (graph.parent / name).is_dir():
            return go_built(f"go-{name}", graph, f"./{name}")
        if found := re.search(rf"^\t(\S+/{re.escape(name)})$", graph.read_text(), re.MULTILINE):
            return go_built(f"go-{name}", graph, found[1])
    sys.exit(f"lab: {name} is no directory and no tool of a graph in {HERE / 'go'}")


def debian(name: str, packages: list[str], *options: str) -> Path:
    """A root file system of the distribution as a tar archive; `options` are mmdebstrap's."""

    def make(target: Path) -> None:
        include = f"--include={','.join(packages)}"
        with target.open("wb") as sink:
            run("mmdebstrap", "--quiet", "--variant=minbase", include, *options, COMPONENTS["debian"], "-", stdout=sink)

    return cached(name, digest(COMPONENTS["debian"], *packages, *options), make)


def tools() -> Path:
    """The directory with the distribution's programs that the artifact and the images carry."""
    archive = debian("debian-tools", COMPONENTS["debian_tools"])

    def make(target: Path) -> None:
        target.mkdir()
        run("tar", "-xf", archive, "-C", target, "--exclude=./dev/*")

    return cached("tools", digest(archive.name), make)


def image(kind: str, archive: Path) -> str:
    """The name of the container image made of a root file system and `<kind>/prepare.sh`; older ones are removed."""
    repository = f"metalhub-lab-{kind}"
    name = f"{repository}:{digest(archive.name, HERE / kind)}"
    if subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode:
        with alone():
            say(f"importing {repository} …")
            base = f"{name}-base"
            run("docker", "import", "--change", f"LABEL {IMAGE_LABEL}=1", archive, base)
            recipe = f"FROM {base}\nCOPY . /opt/\nRUN sh /opt/prepare.sh\n"
            environment = os.environ | {"DOCKER_BUILDKIT": "0"}
            run("docker", "build", "-q", "-t", name, "-f", "-", HERE / kind, input=recipe, env=environment)
            tags = run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}", repository).split()
            # One that a container still runs from stays until a later time.
            stale = [tag for tag in tags if tag != name]
            subprocess.run(["docker", "rmi", *stale], capture_output=True, check=False)
            run("docker", "image", "prune", "--force", "--filter", f"label={IMAGE_LABEL}")
    return name


def node_image() -> str:
    """The image of a node as its installer leaves it."""
    return image("node", debian("debian-node", COMPONENTS["debian_node"]))


def gate_image() -> str:
    """The image of the gate: the distribution's servers and what gate/ says."""
    return image("gate", debian("debian-gate", COMPONENTS["debian_gate"]))
