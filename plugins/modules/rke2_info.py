#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Answers every question about a node's RKE2 in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rke2_info
short_description: Everything about a node's RKE2 in one round trip
description:
  - Reports what is installed, what is running and with which configuration it was started, the datastore on disk, the
    nodes of the cluster as this server's API sees them, and which other servers are ready.
  - With O(wait) it asks again until the node is healthy and stays so, or gives up and returns the decisive journal
    lines.
  - Reads only; it is safe in check mode.
version_added: 0.1.0
author: The metalhub maintainers
options:
  service:
    description: Which of RKE2's two services this node runs.
    type: str
    choices: [server, agent]
    required: true
  data_dir:
    description: RKE2's data directory; the one in its configuration, or RKE2's own, when this is empty.
    type: str
    default: /var/lib/rancher/rke2
  configuration:
    description:
      - Whether to report the files that the service is configured by, secrets included. With C(unrecorded) only where a
        service runs of which nobody has recorded what it started with.
    type: str
    choices: [never, unrecorded, always]
    default: never
  watched:
    description:
      - Files whose joint digest tells whether a restart is due, compared with what the service was started with.
    type: list
    elements: path
    default: []
  peers:
    description: Addresses of servers to ask whether they are ready, in order of preference.
    type: list
    elements: str
    default: []
  token:
    description: The token to show to O(peers). Without it they are only asked whether they listen.
    type: str
  node_name:
    description: Name of this node in the cluster; an agent may see itself and no other.
    type: str
    default: ''
  sysctls:
    description: Kernel parameters to report.
    type: list
    elements: str
    default: []
  space:
    description: Directories, existing or not, to report the free space of.
    type: list
    elements: path
    default: []
  staging:
    description: Glob of the directories in which releases are staged.
    type: str
    default: ''
  certificates:
    description: Report when each certificate below the data directory expires.
    type: bool
    default: false
  wait:
    description:
      - Ask until the service is active, every node of C(nodes) is Ready at C(version), and every one of C(voters) votes
        in etcd, and none of C(gone) is known any more, for C(stable) seconds without a break; C(seconds) is the
        deadline. A server's API is of that version too.
    type: dict
    suboptions:
      seconds:
        description: The deadline in seconds.
        type: int
        required: true
      stable:
        description: For how many seconds the answer must stay the same.
        type: int
        default: 0
      version:
        description: The version every node must report.
        type: str
        default: ''
      nodes:
        description: Names of the nodes that must be Ready.
        type: list
        elements: str
        default: []
      voters:
        description: Names of the nodes that must vote in etcd.
        type: list
        elements: str
        default: []
      gone:
        description: Names of nodes that must be neither in the cluster nor in etcd; only a server can tell.
        type: list
        elements: str
        default: []
      devices:
        description: What every one of C(nodes) must offer beside cores and memory, GPUs above all, as name to number.
        type: dict
        default: {}
"""

EXAMPLES = r"""
- name: Ask for the state of RKE2
  metalhub.platform.rke2_info:
    service: server
  register: __rke2_info
"""

RETURN = r"""
installed_version:
  description: The version of the program on disk; empty where there is none.
  returned: always
  type: str
running_version:
  description: The version of the kubelet that runs; empty where none does.
  returned: always
  type: str
service:
  description: What systemd says of the service (active, sub, enabled, since; C(age), the seconds it has been active).
  returned: always
  type: dict
other_service_active:
  description: Whether RKE2's other service runs on this node.
  returned: always
  type: bool
datastore:
  description: Whether an etcd datastore lies on this node's disk.
  returned: always
  type: bool
joined:
  description: Whether this node has ever joined a cluster.
  returned: always
  type: bool
join_url:
  description: The registration address in this node's configuration.
  returned: always
  type: str
digest:
  description: Digest of the watched files as they are, and as they were when the service started.
  returned: always
  type: dict
peers:
  description: What each peer answered, one of C(ready), C(listening), C(refused) (wrong token), C(silent).
  returned: always
  type: dict
images:
  description: Names of the image archives in place.
  returned: always
  type: list
  elements: str
nodes:
  description:
    - The cluster's nodes by name (ready, voter, version, addresses, labels, taints, pod_network, devices …); empty
      without an API.
  returned: always
  type: dict
certificates:
  description: End of validity by file, in seconds since the epoch.
  returned: always
  type: dict
leaf_certificates:
  description:
    - Those of C(certificates) that are no authority's, by file. C(expires) is the end of validity in seconds since the
      epoch, C(age) for how many seconds the file has been there.
  returned: always
  type: dict
token_kept:
  description: Whether RKE2 itself has stored O(token) as the cluster's, in the file C(server/token) of a server.
  returned: always
  type: bool
sysctls:
  description: The kernel parameters asked for, name to value; one that the kernel lacks is empty.
  returned: always
  type: dict
space:
  description: Free bytes for each directory asked for, of the file system that it lies on or would lie on.
  returned: always
  type: dict
etcd_releases:
  description: Releases of etcd whose tool has been laid down on this node.
  returned: always
  type: list
  elements: str
staged:
  description: Directories of staged releases, with the bytes that each takes.
  returned: always
  type: dict
etcd_account:
  description: Whether this machine has the local user and group that the hardening profiles want for etcd.
  returned: always
  type: bool
chart_configs:
  description: Names of the packaged charts for which this role has laid down values.
  returned: always
  type: list
  elements: str
configuration:
  description:
    - The text, in base64, of every file that configures the service, by path (C(files)); those that are younger than
      its start (C(edited)); the arguments of its unit (C(arguments)), the names of the host and of the node, the
      operating system, the program, the data directory, and the names of the charts with values of their own
      (C(charts)).
  returned: as O(configuration) says
  type: dict
healthy:
  description: Whether what O(wait) asked for came true.
  returned: when O(wait) is set
  type: bool
waiting_for:
  description: What was missing when the deadline passed.
  returned: when O(wait) is set
  type: list
  elements: str
journal:
  description: The service's last decisive journal lines, and the kubelet's last errors.
  returned: when O(wait) is set and the node is not healthy
  type: list
  elements: str
"""

import base64
import glob
import hashlib
import http.client
import json
import os
import re
import ssl
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.etcd_gateway import Gateway, Silent
from ..module_utils.rke2_token import secret_part

PROGRAMS = ("/usr/local/bin/rke2", "/opt/rke2/bin/rke2", "/usr/bin/rke2")
CONFIG = "/etc/rancher/rke2/config.yaml"
ETCDUTL = "/var/lib/metalhub/etcd/*/etcdutl"
KUBECONFIG = "/etc/rancher/rke2/rke2.yaml"
STARTED = "/run/rke2-started.sha256"
BANNER = "# Written by metalhub.platform"
DATA_DIR = "/var/lib/rancher/rke2"
# Files beside those in RKE2's own directory that decide how a service starts; % is its name.
ABOUT_SERVICE = (
    "/etc/default/%",
    "/etc/sysconfig/%",
    "/usr/local/lib/systemd/system/%.env",
    "/usr/lib/systemd/system/%.env",
    "/opt/rke2/lib/systemd/system/%.env",
    "/etc/systemd/system/%.env",
    "/etc/systemd/system/%.service.d/*.conf",
    "/etc/keepalived/keepalived.conf",
)
# Kubernetes writes a thousand devices as 1k.
THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
VERSION = re.compile(r"v\d+\.\d+\.\d+[+-]rke2r\d+")
AUTHORITY = re.compile(r"(^|-)ca(\.nochain)?\.crt$")
# An error of the kubelet's, whose time and thread say nothing here.
KUBELET = re.compile(r"[EF]\d{4} \S+ +\d+ [^\]]*\] ")
DECISIVE = re.compile(
    r"level=(fatal|error|panic)|level=warning msg=\"Unknown flag"
    r"|Failed|denied|No space left|refused|rejected|mismatch"
)


def output(*command: str) -> str:
    """Return a program's standard output; empty when it fails or is not there. Raises nothing."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def full_version(text: str) -> str:
    """Return `vX.Y.Z+rke2rN` from a text that holds it, with `+` or `-`; empty when it holds none."""
    found = VERSION.search(text)
    return found.group(0).replace("-rke2r", "+rke2r") if found else ""


def running_version(data_dir: str) -> str:
    """Return the version of the running kubelet, read from the directory its program was started from."""
    for link in glob.glob("/proc/[0-9]*/exe"):
        try:
            target = os.readlink(link)
            if not target.startswith(data_dir + "/data/"):
                continue
            with open(os.path.dirname(link) + "/cmdline", "rb") as source:
                if os.path.basename(source.read().split(b"\0")[0]) == b"kubelet":
                    return full_version(target)
        except OSError:
            continue
    return ""


def unit(name: str) -> dict[str, Any]:
    """Return what systemd says of a service."""
    asked = "ActiveState,SubState,UnitFileState,ActiveEnterTimestampMonotonic,NRestarts"
    listing = output("systemctl", "show", name, "-p", asked)
    fields = dict(line.split("=", 1) for line in listing.splitlines() if "=" in line)
    since = int(fields.get("ActiveEnterTimestampMonotonic") or 0) // 1000000
    active = fields.get("ActiveState", "")
    return {
        "active": active,
        "age": int(time.monotonic()) - since if active == "active" else 0,
        "sub": fields.get("SubState", ""),
        "enabled": fields.get("UnitFileState") == "enabled",
        "since": since,
        "restarts": int(fields.get("NRestarts") or 0),
    }


def digest(paths: list[str]) -> str:
    """Return the joint digest of files, as `cat FILES | sha256sum` makes it; missing ones count as empty."""
    found = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as source:
                found.update(source.read())
        except OSError:
            pass
    return found.hexdigest()


def text(path: str) -> str:
    """Return a file's content, with a mark for each byte that is no text; empty when it cannot be read."""
    try:
        with open(path, errors="replace") as source:
            return source.read()
    except OSError:
        return ""


def ask_peer(address: str, token: str | None, user: str) -> str:
    """Return `ready`, `listening`, `refused` or `silent`; a join, not this question, judges the peer's certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(address, 9345, context=context, timeout=3)
    try:
        if not token:
            connection.request("GET", "/ping")
            connection.getresponse().read()
            return "listening"
        basic = base64.b64encode(f"{user}:{secret_part(token)}".encode()).decode()
        connection.request("GET", "/v1-rke2/readyz", headers={"Authorization": "Basic " + basic})
        status = connection.getresponse().status
        return {200: "ready", 401: "refused", 403: "refused"}.get(status, "listening")
    except (OSError, http.client.HTTPException):
        return "silent"
    finally:
        connection.close()


def ask_api(kubeconfig: str, path: str) -> dict[str, Any]:
    """Return what the API answers to the holder of a kubeconfig; empty without an answer.

    Asked every half second while six nodes start, kubectl would take most of a processor for its own start.
    """
    found = dict(
        re.findall(
            r"^ *(server|certificate-authority|client-certificate|client-key)(?:-data)?: *(\S+)$",
            text(kubeconfig),
            re.M,
        )
    )
    try:
        with tempfile.TemporaryDirectory(prefix=".rke2-info-") as scratch:  # for root alone
            for name, value in found.items():
                if name != "server" and not value.startswith("/"):
                    found[name] = os.path.join(scratch, name)
                    with open(found[name], "wb") as sink:
                        sink.write(base64.b64decode(value))
            context = ssl.create_default_context(cafile=found["certificate-authority"])
            context.load_cert_chain(found["client-certificate"], found["client-key"])
        connection = http.client.HTTPSConnection(found["server"].split("://", 1)[1], context=context, timeout=8)
        try:
            connection.request("GET", path, headers={"Accept": "application/json"})
            answer = connection.getresponse()
            document = json.loads(answer.read()) if answer.status == 200 else {}
        finally:
            connection.close()
        return document
    except (OSError, KeyError, ValueError, http.client.HTTPException):
        return {}


def still_known(gone: list[str], nodes: dict[str, Any], data_dir: str) -> list[str]:
    """Return, in words, what still knows nodes that are to be gone. A member has its node's name and a random tail."""
    if not gone:
        return []
    try:
        members = [member.get("name", "") for member in Gateway(data_dir).members()]
    except Silent as error:
        return [f"etcd does not tell its members: {error}"]
    lacks = [f"node {name} is still in the cluster" for name in gone if name in nodes]
    for name in gone:
        tail = re.compile(re.escape(name) + "(-[0-9a-f]{8})?")
        lacks += [f"{member} is still a member of etcd" for member in members if tail.fullmatch(member)]
    return lacks


def devices(allocatable: dict[str, str]) -> dict[str, int]:
    """Return what a node offers beside cores and memory, GPUs above all, as name to number; zeros left out."""
    told = {kind: re.fullmatch(r"(\d+)([kMG]?)", quantity) for kind, quantity in allocatable.items() if "/" in kind}
    found = {kind: int(match[1]) * THOUSANDS[match[2]] for kind, match in told.items() if match}
    return {kind: number for kind, number in sorted(found.items()) if number}


def cluster_nodes(data_dir: str, names: list[str]) -> dict[str, Any]:
    """Return the cluster's nodes as this node may see them (a server: all, an agent: itself); empty without an API."""
    own = data_dir + "/agent/kubelet.kubeconfig"
    kubeconfig = KUBECONFIG if os.path.exists(KUBECONFIG) else own
    if kubeconfig == own and not names:
        return {}
    document = ask_api(kubeconfig, "/api/v1/nodes" + (f"/{names[0]}" if kubeconfig == own else ""))
    nodes = {}
    for item in document.get("items", [document] if document else []):
        conditions = {c["type"]: c["status"] for c in item["status"].get("conditions", [])}
        nodes[item["metadata"]["name"]] = {
            "ready": conditions.get("Ready") == "True",
            "voter": conditions.get("EtcdIsVoter") == "True",
            "addresses": [a["address"] for a in item["status"].get("addresses", []) if a["type"] == "InternalIP"],
            "version": item["status"]["nodeInfo"]["kubeletVersion"],
            "labels": item["metadata"].get("labels", {}),
            "annotations": item["metadata"].get("annotations", {}),
            "taints": [f"{t['key']}={t.get('value', '')}:{t['effect']}" for t in item["spec"].get("taints", [])],
            "unschedulable": item["spec"].get("unschedulable", False),
            "pod_network": item["spec"].get("podCIDR", ""),
            "devices": devices(item["status"].get("allocatable", {})),
        }
    return nodes


def certificates(data_dir: str) -> dict[str, int]:
    """Return the end of validity of each certificate, in seconds since the epoch."""
    found = {}
    places = ("server/tls/*.crt", "server/tls/etcd/*.crt", "agent/*.crt")
    for path in sorted(path for place in places for path in glob.glob(os.path.join(data_dir, place))):
        line = output("openssl", "x509", "-noout", "-enddate", "-in", path)
        if line.startswith("notAfter="):
            found[path] = int(ssl.cert_time_to_seconds(line.strip().split("=", 1)[1]))
    return found


def leaves(certificates: dict[str, int]) -> dict[str, dict[str, int]]:
    """Return end of validity and age of the certificates that a rotation makes anew."""
    return {
        path: {"expires": end, "age": int(time.time() - os.stat(path).st_mtime)}
        for path, end in certificates.items()
        if not AUTHORITY.search(os.path.basename(path))
    }


def sysctl(name: str) -> str:
    """Return a kernel parameter's value; empty when there is none of this name."""
    return text("/proc/sys/" + name.replace(".", "/")).strip()


def free(path: str) -> int:
    """Return the free bytes of the file system that a directory lies on, or would lie on when it is made."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def size(directory: str) -> int:
    """Return the bytes that the files below a directory take."""
    return sum(os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(directory) for name in names)


def etcd_account() -> bool:
    """Return whether /etc/passwd and /etc/group name etcd; RKE2 looks nowhere else."""
    return all(re.search(r"^etcd:", text(path), re.M) for path in ("/etc/passwd", "/etc/group"))


def ask_peers(peers: list[str], token: str | None, user: str) -> dict[str, Any]:
    """Return what each peer says (see ask_peer), all asked at once: one that is silent costs its time only once."""
    if not peers:
        return {}
    with ThreadPoolExecutor(len(peers)) as pool:
        return dict(zip(peers, pool.map(lambda peer: ask_peer(peer, token, user), peers), strict=True))


def chart_configs(data_dir: str) -> list[str]:
    """Return the packaged charts whose values this role has laid down."""
    found = sorted(glob.glob(data_dir + "/server/manifests/*-config.yaml"))
    return [os.path.basename(path)[: -len("-config.yaml")] for path in found if text(path).startswith(BANNER)]


def configured(key: str) -> str:
    """Return the last value of a key that is a plain text in RKE2's configuration; empty without one."""
    found = ""
    for path in [CONFIG, *sorted(glob.glob(CONFIG + ".d/*.y*ml"))]:
        for value in re.findall(rf"""^["']?{key}["']?:[ ]*["']?([^"'\s#]+)""", text(path), re.M):
            found = value
    return found


def configuration(data_dir: str, name: str, since: int) -> dict[str, Any]:
    """Return what a service is configured by. since: when it started, in seconds of the monotonic clock; 0 if not."""
    own = os.path.dirname(CONFIG)
    patterns = [CONFIG, CONFIG + ".d/*.y*ml", own + "/registries.yaml"]
    patterns += [place.replace("%", name) for place in ABOUT_SERVICE]
    patterns += [configured(key) for key in ("token-file", "agent-token-file", "audit-policy-file")]
    patterns += [data_dir + "/server/token", data_dir + "/server/agent-token"]
    paths = [path for pattern in patterns for path in sorted(glob.glob(pattern)) if os.path.isfile(path)]
    started = time.time() - (time.monotonic() - since)
    begins = output("systemctl", "show", name, "-p", "ExecStart")
    begun = re.search(r"argv\[\]=\S+ (?:server|agent)\b ?([^;]*);", begins)
    system = dict(re.findall(r"^(ID|VERSION_ID)=\"?([^\"\n]*)", text("/etc/os-release"), re.M))
    charts = [path for path in glob.glob(data_dir + "/server/manifests/*.yaml") if "HelmChartConfig" in text(path)]
    hostname = os.uname().nodename
    return {
        # In base64: Ansible hides the token that a module was given wherever it stands in the answer.
        "files": {path: base64.b64encode(text(path).encode()).decode() for path in dict.fromkeys(paths)},
        "edited": [path for path in dict.fromkeys(paths) if since and os.stat(path).st_mtime > started],
        "arguments": begun.group(1).split() if begun else [],
        "hostname": hostname,
        "node": (configured("node-name") or hostname).lower(),
        "system": f"{system.get('ID', '')} {system.get('VERSION_ID', '')}".strip(),
        "program": next((path for path in PROGRAMS if os.path.exists(path)), ""),
        "data_dir": data_dir,
        "charts": sorted(os.path.basename(path) for path in charts),
    }


def missing(wait: dict[str, Any], service: dict[str, Any], nodes: dict[str, Any], served: str = "") -> list[str]:
    """Return, in words, what keeps the node from being healthy; empty when nothing does."""
    lacks = []
    if service["active"] != "active":
        lacks.append(f"the service is {service['active'] or 'unknown'} ({service['sub'] or 'unknown'})")
    for name in wait["nodes"]:
        node = nodes.get(name)
        if not node:
            lacks.append(f"node {name} has not registered")
        elif not node["ready"]:
            lacks.append(f"node {name} is not Ready")
        elif wait["version"] and node["version"] != wait["version"]:
            lacks.append(f"node {name} runs {node['version']}")
        else:
            offered = {kind: node["devices"].get(kind, 0) for kind in wait["devices"]}
            wanted = {kind: int(number) for kind, number in wait["devices"].items()}
            lacks += [
                f"node {name} offers {offered[kind]} of {number} {kind}"
                for kind, number in wanted.items()
                if offered[kind] < number
            ]
    # The API server is a pod, which may follow the kubelet's new release only later.
    if served and wait["version"] and served != wait["version"]:
        lacks.append(f"the API of this server is still {served}")
    lacks += [f"node {name} does not vote in etcd" for name in wait["voters"] if not nodes.get(name, {}).get("voter")]
    return lacks


def journal(name: str, data_dir: str) -> list[str]:
    """Return the last decisive lines of a service's journal and of the kubelet's own log, without repetition.

    Any last lines of the journal when none is decisive.
    """
    lines = output("journalctl", "-u", name, "-n", "300", "-o", "cat", "--no-pager").splitlines()
    decisive = [line for line in lines if DECISIVE.search(line)] or lines
    kubelet = [line for line in text(data_dir + "/agent/logs/kubelet.log")[-20000:].splitlines() if KUBELET.match(line)]
    return [*dict.fromkeys(decisive)][-6:] + [*dict.fromkeys(KUBELET.sub("kubelet: ", line) for line in kubelet)][-2:]


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "service": {"type": "str", "required": True, "choices": ["server", "agent"]},
            "data_dir": {"type": "str", "default": DATA_DIR},
            "configuration": {"type": "str", "choices": ["never", "unrecorded", "always"], "default": "never"},
            "watched": {"type": "list", "elements": "path", "default": []},
            "peers": {"type": "list", "elements": "str", "default": []},
            "token": {"type": "str", "no_log": True},
            "node_name": {"type": "str", "default": ""},
            "sysctls": {"type": "list", "elements": "str", "default": []},
            "space": {"type": "list", "elements": "path", "default": []},
            "staging": {"type": "str", "default": ""},
            "certificates": {"type": "bool", "default": False},
            "wait": {
                "type": "dict",
                "options": {
                    "seconds": {"type": "int", "required": True},
                    "stable": {"type": "int", "default": 0},
                    "version": {"type": "str", "default": ""},
                    "nodes": {"type": "list", "elements": "str", "default": []},
                    "voters": {"type": "list", "elements": "str", "default": []},
                    "gone": {"type": "list", "elements": "str", "default": []},
                    "devices": {"type": "dict", "default": {}},
                },
            },
        },
        supports_check_mode=True,
    )
    kind, wait = module.params["service"], module.params["wait"]
    data_dir = module.params["data_dir"] or configured("data-dir") or DATA_DIR
    name, user = "rke2-" + kind, "server" if kind == "server" else "node"
    result: dict[str, Any] = {"changed": False}
    if wait:
        deadline = time.time() + wait["seconds"]
        good_since = None
        while True:
            service = unit(name)
            nodes = cluster_nodes(data_dir, wait["nodes"]) if service["active"] == "active" else {}
            served = ask_api(KUBECONFIG, "/version").get("gitVersion", "") if nodes and kind == "server" else ""
            lacks = missing(wait, service, nodes, served) or still_known(wait["gone"], nodes, data_dir)
            now = time.time()
            good_since = None if lacks else (good_since or now)
            if good_since is not None and now - good_since >= wait["stable"]:
                break
            if now > deadline:
                break
            time.sleep(0.5)
        result["healthy"] = not lacks
        result["waiting_for"] = lacks
        if lacks:
            result["journal"] = journal(name, data_dir)
    else:
        service = unit(name)
        own = module.params["node_name"]
        seen = service["active"] == "active" and (kind == "server" or own)
        nodes = cluster_nodes(data_dir, [own] if own else []) if seen else {}
    program = next((path for path in PROGRAMS if os.path.exists(path)), "")
    token, found = module.params["token"], certificates(data_dir) if module.params["certificates"] else {}
    stored = secret_part(text(data_dir + "/server/token").strip())
    join = re.search(r"^server:\s*[\"']?([^\"'\s]+)", text(CONFIG + ".d/90-join.yaml"), re.M)
    result.update(
        installed_version=full_version(output(program, "--version")) if program else "",
        running_version=running_version(data_dir),
        service=service,
        other_service_active=unit("rke2-agent" if kind == "server" else "rke2-server")["active"] == "active",
        datastore=os.path.isdir(data_dir + "/server/db/etcd/member"),
        joined=os.path.exists(data_dir + "/agent/kubelet.kubeconfig"),
        join_url=join.group(1) if join else "",
        digest={"now": digest(module.params["watched"]), "started": (text(STARTED).split() or [""])[0]},
        peers=ask_peers(module.params["peers"], token, user),
        images=sorted(os.path.basename(path) for path in glob.glob(data_dir + "/agent/images/*.tar*")),
        nodes=nodes,
        sysctls={name: sysctl(name) for name in module.params["sysctls"]},
        space={path: free(path) for path in module.params["space"]},
        etcd_releases=[os.path.basename(os.path.dirname(path)) for path in sorted(glob.glob(ETCDUTL))],
        staged={path: size(path) for path in sorted(glob.glob(module.params["staging"]))},
        etcd_account=etcd_account(),
        chart_configs=chart_configs(data_dir),
        certificates=found,
        leaf_certificates=leaves(found),
        token_kept=bool(token) and stored == secret_part(token),
    )
    unrecorded = service["active"] == "active" and not result["digest"]["started"]
    if module.params["configuration"] == "always" or (module.params["configuration"] == "unrecorded" and unrecorded):
        result["configuration"] = configuration(data_dir, name, service["since"] if service["age"] else 0)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
