"""Creates and destroys nodes: systemd containers on a network of their own, each with its own disk and SSH host key."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import docker
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

import egress
from build import CACHE, STATE, digest, gate_image, node_image, run, say

ROOT = Path(__file__).resolve().parents[2]
# Another site with other names and addresses is another lab beside this one, if XDG_STATE_HOME differs too.
SITE = Path(os.environ.get("LAB_SITE", ROOT / "inventories/lab"))
PARAMETERS: dict[str, Any] = yaml.safe_load((SITE / "group_vars/all/site.yml").read_text())
# Everything the lab makes in Docker carries this label; its value is the state directory it belongs to.
LABEL = "metalhub.lab"
DISK_GIB = 16
SSH = STATE / "ssh"
KUBECONFIG = Path.home() / f".kube/metalhub-{PARAMETERS['site_name']}.yaml"
CA_BUNDLE = KUBECONFIG.with_name(f"metalhub-{PARAMETERS['site_name']}-ca.pem")
# What all nodes share in place of a file server, by the server's name.
FILE_SERVER = STATE / "nfs"
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
HOSTS = Path("/etc/hosts")
# By this a browser on this machine finds the site, and `down` finds the line.
HOSTS_LINE = f"{PARAMETERS['site_ingress_address']} {PARAMETERS['site_host']} # metalhub {PARAMETERS['site_name']}\n"


@dataclass(frozen=True)
class Machine:
    """One node: its name and its address on the lab's network."""

    name: str
    address: str


def site_machines(*groups: str) -> list[Machine]:
    """The nodes of the lab's inventory, or of some of its groups; servers first."""
    found = yaml.safe_load((SITE / "hosts.yml").read_text())["all"]["children"]["rke2"]["children"]
    return [
        Machine(name, values["ansible_host"])
        for group in groups or ("rke2_server", "rke2_agent")
        for name, values in found[group]["hosts"].items()
    ]


NETWORK = f"metalhub-{PARAMETERS['site_name']}"
SUBNET = str(ip_network(f"{site_machines()[0].address}/24", strict=False))
GATEWAY = str(ip_network(SUBNET)[1])


def site_names() -> dict[str, str]:
    """The names that the site's DNS knows: name -> address."""
    names = {machine.name: machine.address for machine in site_machines()}
    return names | {
        "rke2-api": PARAMETERS["site_api_address"],
        PARAMETERS["site_host"]: PARAMETERS["site_ingress_address"],
    }


def client() -> docker.DockerClient:
    """The container engine."""
    return docker.from_env(timeout=120)


def private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as sink:
        sink.write(text)
    fresh.rename(path)


def keys() -> None:
    """Make the lab's SSH key pair, vault password and the site's secrets, once."""
    SSH.mkdir(parents=True, exist_ok=True)
    STATE.chmod(0o700)
    if not (SSH / "id_ed25519").exists():
        with tempfile.TemporaryDirectory(dir=SSH) as scratch:
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", NETWORK, "-f", f"{scratch}/id_ed25519")
            for name in ("id_ed25519.pub", "id_ed25519"):
                Path(scratch, name).rename(SSH / name)
    password, vault = STATE / "vault_password", STATE / "vault.yml"
    if not password.exists():
        private(password, secrets.token_hex(24))
    if not vault.exists():
        values = {
            "vault_site_rke2_token": secrets.token_hex(24),
            "vault_site_rke2_agent_token": secrets.token_hex(24),
            "vault_site_api_address_password": secrets.token_hex(4),
            **{
                f"vault_site_{name}": secrets.token_hex(32)
                for name in (
                    "keycloak_admin_password",
                    "keycloak_database_password",
                    "hub_client_secret",
                    "hub_cookie_secret",
                    "hub_proxy_token",
                    "hub_crypt_key",
                )
            },
        }
        sealed = VaultLib([("lab", VaultSecret(password.read_bytes()))]).encrypt(yaml.safe_dump(values), vault_id="lab")
        private(vault, sealed.decode())
    private(SITE / "group_vars/all/vault.yml", vault.read_text())


def lend_inotify() -> None:
    """Raise the one limit of this machine that six nodes together exceed; the last lab's `down` puts it back."""
    if int(INOTIFY.read_text()) < 8192:
        private(CACHE / "inotify_instances", INOTIFY.read_text())
        INOTIFY.write_text("8192")


def return_inotify() -> None:
    """Put back what `lend_inotify` changed."""
    old = CACHE / "inotify_instances"
    if old.exists() and not client().containers.list(filters={"label": LABEL}):
        INOTIFY.write_text(old.read_text())
        old.unlink()


def with_line(text: str, line: str) -> str:
    """A hosts file with one line of ours before everybody else's, after those of earlier labs."""
    lines = text.splitlines(keepends=True)
    if line in lines:
        return text
    place = next((number for number, one in enumerate(lines) if " # metalhub " not in one), len(lines))
    return "".join([*lines[:place], line, *lines[place:]])


def without_line(text: str, line: str) -> str:
    """A hosts file as it was before `with_line`."""
    return "".join(one for one in text.splitlines(keepends=True) if one != line)


def lend_name() -> None:
    """Let this machine know the site's host; `down` takes it back."""
    rewrite(HOSTS, with_line(HOSTS.read_text(), HOSTS_LINE))


def return_name() -> None:
    """Put back what `lend_name` changed."""
    rewrite(HOSTS, without_line(HOSTS.read_text(), HOSTS_LINE))


def rewrite(path: Path, text: str) -> None:
    """Replace a system file at once, its mode kept; where it is a mount, as in a container, it is written in place."""
    if path.read_text() == text:
        return
    fresh = path.with_name(f".{path.name}.metalhub")
    try:
        shutil.copy2(path, fresh)
        fresh.write_text(text)
        fresh.rename(path)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        path.write_text(text)
    finally:
        fresh.unlink(missing_ok=True)


def host_state() -> dict[str, str]:
    """What the lab must never change on the machine below: kernel settings, swap, mounts, the offset of the clock."""
    listing = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, check=False).stdout.splitlines()
    # Counters and random numbers change by themselves; a network's own settings come and go with its bridge.
    moving = re.compile(
        r"^(fs\.(dentry|inode|file-nr|aio-nr|quota)|kernel\.(random|ns_last_pid|pty\.nr|sched_domain|perf_event"
        r"|osrelease|tainted)|net\.|dev\.|user\.|vm\.stat)"
    )
    state = {line.split(" = ")[0]: line for line in listing if " = " in line and not moving.match(line)}
    state["swaps"] = Path("/proc/swaps").read_text()
    mounts = (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())
    elsewhere = (str(STATE), "/var/lib/docker", "/run/docker", "/tmp")
    state["mounts"] = " ".join(sorted(mount for mount in mounts if not mount.startswith(elsewhere)))
    state["offset"] = str(round(time.time() - time.monotonic()))
    return state


def network(name: str = NETWORK, subnet: str = SUBNET, gateway: str = GATEWAY) -> None:
    """Create a bridge for nodes where it is missing, and count what its nodes send elsewhere (see egress.py)."""
    engine = client()
    bridge = name[:15]
    if not engine.networks.list(names=[f"^{name}$"]):
        pool = docker.types.IPAMPool(subnet=subnet, gateway=gateway)
        options = {"com.docker.network.bridge.name": bridge, "com.docker.network.driver.mtu": "1500"}
        # Internal: nothing is routed or translated to the world outside, whatever a node tries.
        engine.networks.create(
            name,
            driver="bridge",
            internal=True,
            ipam=docker.types.IPAMConfig(pool_configs=[pool]),
            options=options,
            labels={LABEL: str(STATE)},
        )
    egress.count(name, bridge, [subnet, PARAMETERS["site_pod_network"], PARAMETERS["site_service_network"]])


def gateway_of(net: str) -> str:
    """The machine's own address on a network; the next one is the gate's."""
    return str(client().networks.get(net).attrs["IPAM"]["Config"][0]["Gateway"])


def gate_address(gateway: str) -> str:
    """The address of a network's gate."""
    return str(ip_address(gateway) + 1)


def gate(names: Mapping[str, str], served: Path, net: str = NETWORK) -> None:
    """Start a network's gate: `served` by HTTP, `names` by DNS, the time. One made of anything else is replaced."""
    engine = client()
    name, address = f"{net}-gate", gate_address(gateway_of(net))
    image = gate_image()
    served.mkdir(parents=True, exist_ok=True)
    key = digest(image, *sorted(names.items()), served.resolve().stat().st_ino, address)
    found = engine.containers.list(all=True, filters={"name": f"^/{name}$"})
    if found and found[0].labels.get("metalhub.lab.gate") == key:
        found[0].start()
    else:
        if found:
            found[0].remove(force=True)
        engine.containers.run(
            image,
            ["/usr/local/sbin/serve"],
            detach=True,
            name=name,
            hostname=name,
            environment={"GATE_NAMES": "\n".join(f"{where} {what}" for what, where in names.items())},
            labels={LABEL: str(STATE), "metalhub.lab.gate": key},
            volumes=[f"{served}:/srv:ro"],
            restart_policy={"Name": "unless-stopped"},
            network=net,
            networking_config={net: engine.api.create_endpoint_config(ipv4_address=address)},
        )
    deadline = time.monotonic() + 30
    while not (answers(address, 80) and answers(address, 53)):
        if time.monotonic() > deadline:
            raise SystemExit(f"lab: {name} does not answer on {address}; look at: docker logs {name}")
        time.sleep(0.1)


def disk(name: str) -> Path:
    """Mount the node's own disk (a sparse file with ext4) and return where; one full disk then fills no other."""
    image, mount = STATE / "disks" / f"{name}.img", STATE / "mnt" / name
    mount.mkdir(parents=True, exist_ok=True)
    image.parent.mkdir(exist_ok=True)
    if os.path.ismount(mount):
        return mount
    if not image.exists():
        staging = image.with_suffix(".new")
        with staging.open("wb") as sink:
            sink.truncate(DISK_GIB << 30)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", staging)
        staging.rename(image)
    run("mount", "-o", "loop,noatime", image, mount)
    for part in ("rancher", "kubelet"):
        (mount / part).mkdir(exist_ok=True)
    return mount


def create(machine: Machine, image: str, net: str = NETWORK) -> None:
    """Start a node, or start it again; it has nothing but its operating system and the lab's public key."""
    engine = client()
    mounted = os.path.ismount(STATE / "mnt" / machine.name)
    mount = disk(machine.name)
    found = engine.containers.list(all=True, filters={"name": f"^/{machine.name}$"})
    if found and mounted:
        found[0].start()
    elif found:
        # It came back by itself after this machine's reboot and has not seen its disk.
        found[0].restart()
    else:
        gateway = gateway_of(net)
        engine.containers.run(
            image,
            ["/lib/systemd/systemd"],
            detach=True,
            name=machine.name,
            hostname=machine.name,
            environment={"container": "docker", "LAB_GATEWAY": gateway, "LAB_DNS": gate_address(gateway)},
            labels={LABEL: str(STATE)},
            stop_signal="SIGRTMIN+3",
            cgroupns="private",
            cap_add=["ALL"],
            cap_drop=["SYS_RESOURCE", "SYS_TIME", "SYS_BOOT", "SYS_MODULE"],
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            device_cgroup_rules=["a *:* rwm"],
            devices=["/dev/kmsg"],
            tmpfs={"/run": "exec", "/tmp": "", "/run/lock": ""},
            volumes=[
                f"{mount}/rancher:/var/lib/rancher",
                f"{mount}/kubelet:/var/lib/kubelet",
                f"{FILE_SERVER}:/srv/nfs",
                "/lib/modules:/lib/modules:ro",
            ],
            pids_limit=8192,
            restart_policy={"Name": "unless-stopped"},
            network=net,
            networking_config={net: engine.api.create_endpoint_config(ipv4_address=machine.address)},
        )
    run_in(
        machine.name,
        "install -d -m 0700 /root/.ssh && cat >/root/.ssh/authorized_keys && chmod 0600 /root/.ssh/authorized_keys",
        (SSH / "id_ed25519.pub").read_text(),
    )


def run_in(name: str, script: str, stdin: str = "", check: bool = True) -> str:
    """Run a shell script inside a node, not through SSH: for the lab's own doings and for tests that break things."""
    done = subprocess.run(
        ["docker", "exec", "-i", name, "sh", "-c", script], input=stdin, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise RuntimeError(f"{name}: {script[:60]}: {done.stderr.strip()[-500:]}")
    return done.stdout


def pin(machines: Sequence[Machine], known_hosts: Path = SSH / "known_hosts") -> None:
    """Wait until SSH answers and record the host keys read inside the nodes: nothing is trusted on first use."""
    lines = []
    for machine in machines:
        key = ""
        deadline = time.monotonic() + 60
        while not (key.startswith("ssh-ed25519") and answers(machine.address, 22)):
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"lab: {machine.name} does not answer on {machine.address}:22; look at: docker logs {machine.name}"
                )
            key = run_in(machine.name, "cat /etc/ssh/ssh_host_ed25519_key.pub 2>/dev/null || true").strip()
            time.sleep(0.2)
        lines.append(f"{machine.address} {' '.join(key.split()[:2])}\n")
    renewed = {machine.address for machine in machines}
    old = known_hosts.read_text().splitlines(keepends=True) if known_hosts.exists() else []
    private(known_hosts, "".join([line for line in old if line.split()[0] not in renewed] + lines))


def answers(address: str, port: int) -> bool:
    """Whether a TCP connection is accepted."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex((address, port)) == 0


def up(machines: Sequence[Machine], net: str = NETWORK, images: Mapping[str, str] | None = None) -> None:
    """Create all machines at once and wait until SSH answers on each; `images` names other images for some."""
    image = node_image()
    baseline = STATE / "host.json"
    if not baseline.exists():
        private(baseline, json.dumps(host_state()))
    lend_inotify()
    (FILE_SERVER / "nfs.lab.test/homes").mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with ThreadPoolExecutor(len(machines)) as pool:
        list(pool.map(lambda machine: create(machine, (images or {}).get(machine.name, image), net), machines))
    pin(machines)
    say(f"{len(machines)} nodes up in {time.monotonic() - began:.0f} s")


def end_connections(machines: Sequence[Machine]) -> None:
    """End the SSH connections to nodes that Ansible keeps open in the background."""
    wanted = " or ".join(f"dst {machine.address}" for machine in machines)
    listing = run("ss", "-Htnp", wanted)
    for pid in {int(word) for word in re.findall(r'"ssh",pid=(\d+)', listing)}:
        if b"[mux]" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, 15)


def destroy(name: str, keep_disk: bool = False, state: Path = STATE) -> None:
    """Remove a node and, unless told otherwise, its disk."""
    subprocess.run(["docker", "rm", "-f", "-v", name], capture_output=True, check=False)
    mount, image = state / "mnt" / name, state / "disks" / f"{name}.img"
    if os.path.ismount(mount):
        run("umount", mount)
    if not keep_disk:
        shutil.rmtree(mount, ignore_errors=True)
        image.unlink(missing_ok=True)


def down() -> None:
    """Remove every node, network, disk and secret of this lab, and other labs' nodes that have the same names."""
    engine = client()
    machines = site_machines()
    end_connections(machines)
    mounts = STATE / "mnt"
    targets = {path.name: STATE for path in (mounts.iterdir() if mounts.exists() else ())}
    named = {machine.name for machine in machines} | {f"{NETWORK}-gate"}
    for container in engine.containers.list(all=True, filters={"label": LABEL}):
        owner = container.labels[LABEL]
        if owner == str(STATE) or container.name in named:
            targets.setdefault(container.name, Path(owner))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: destroy(name, state=targets[name]), targets))
    for net in engine.networks.list(filters={"label": LABEL}):
        if net.attrs["Labels"][LABEL] == str(STATE) or net.name == NETWORK:
            egress.forget(net.name)
            net.remove()
    (SITE / "group_vars/all/vault.yml").unlink(missing_ok=True)
    for file in (KUBECONFIG, CA_BUNDLE):
        file.unlink(missing_ok=True)
    return_name()
    return_inotify()
    shutil.rmtree(STATE, ignore_errors=True)
