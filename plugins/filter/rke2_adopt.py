# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Filters for clusters that others have installed: what a configuration means, and the site that describes it."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..module_utils.rke2_token import secret_part

DIRECTORY = "/etc/rancher/rke2/"
CONFIG = DIRECTORY + "config.yaml"
REGISTRIES = DIRECTORY + "registries.yaml"
OURS = ("80-node.yaml", "90-join.yaml")
KEEPALIVED = "/etc/keepalived/keepalived.conf"
KEEPALIVED_OURS = "Written by the role api_address of metalhub.platform"
ENVIRONMENT, AUDIT = "(environment)", "(audit policy)"

# What RKE2 does where a key is missing.
DEFAULTS = {
    "data-dir": ["/var/lib/rancher/rke2"],
    "cni": ["canal"],
    "cluster-cidr": ["10.42.0.0/16"],
    "service-cidr": ["10.43.0.0/16"],
    "cluster-domain": ["cluster.local"],
    "etcd-snapshot-schedule-cron": ["0 */12 * * *"],
    "etcd-snapshot-retention": ["5"],
    "disable-default-registry-endpoint": ["false"],
}
# They act when a node registers, or not at all in a member.
REGISTRATION = ("server", "node-label", "node-taint")
# RKE2 takes a text with commas as a list there.
COMMAS = ("cni", "cluster-cidr", "disable", "node-ip", "service-cidr", "tls-san")
SECRET_KEYS = tuple(f"etcd-s3-{name}" for name in ("access-key", "proxy", "secret-key", "session-token"))
HIDDEN = {"token", "agent-token", "registries.yaml", ENVIRONMENT, *SECRET_KEYS}

# A server that lacks one of these parts, or keeps its data elsewhere, is none that the role knows.
FOREIGN = (
    "datastore-endpoint disable-agent disable-apiserver disable-controller-manager disable-etcd disable-kube-proxy "
    "disable-scheduler cluster-reset cluster-reset-restore-path with-node-id node-name-from-cloud-provider-metadata "
    "container-runtime-endpoint"
).split()
LABEL_OF_OTHERS = re.compile(r"(.*\.)?(kubernetes\.io|k8s\.io|rke2\.io|k3s\.io|cattle\.io|nvidia\.com|universe\.tf)")
ROLE_LABEL, OWN_ROLES = "node-role.kubernetes.io", ("control-plane", "master", "etcd")
PLACES = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")
CONTROL_PLANE_TAINT = "node-role.kubernetes.io/control-plane:NoSchedule"
IMAGES = ["rke2-images-core.linux-amd64.tar.zst", "rke2-images-canal.linux-amd64.tar.zst"]


def plain(value: Any) -> Any:
    """Return a value of Ansible's as Python's own, so that any library takes it."""
    return json.loads(json.dumps(value))


def merged(files: Mapping[str, str]) -> dict[str, Any]:
    """Return config.yaml with config.yaml.d/*.yaml laid over it as RKE2 does: the last value wins, `key+` appends.

    Raises ValueError for a file that is no YAML mapping.
    """
    values: dict[str, Any] = {}
    layers = sorted(path for path in files if path.startswith(CONFIG + ".d/"))
    for path in [CONFIG, *layers]:
        for raw, value in mapping(path, files.get(path, "")).items():
            key, plus, _ = str(raw).partition("+")
            old = values.get(key, [])
            both = (old if isinstance(old, list) else [old]) + (value if isinstance(value, list) else [value])
            values[key] = both if plus else value
    if values.get("private-registry") == REGISTRIES:  # where it is anyway
        del values["private-registry"]
    return {key: value for key, value in values.items() if value not in (None, "", [], {})}


def mapping(path: str, text: str) -> dict[str, Any]:
    """Return what a YAML file holds; raises ValueError, which names it, for anything but a mapping."""
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        # Its own words quote the file, which may hold secrets.
        mark = getattr(error, "problem_mark", None)
        where = f", see line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path} is no valid YAML{where}") from None
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{path} holds no `key: value` lines")
    return found or {}


def listed(key: str, value: Any) -> list[str]:
    """Return a key's value as RKE2 gets it, a list of texts."""
    items = value if isinstance(value, list) else [value]
    texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in items]
    return [part.strip() for text in texts for part in text.split(",")] if key in COMMAS else texts


def undoubled(items: list[str]) -> list[str]:
    """Return a list without a tail that only repeats what stands before it, which no option takes for more.

    A first deploy that was killed leaves one: the whole list is written, and the layer that appends to it still there.
    """
    for size in range(1, len(items) // 2 + 1):
        if items[-size:] == items[-2 * size : -size]:
            return undoubled(items[:-size])
    return items


def environment(text: str) -> dict[str, str]:
    """Return the variables of a systemd environment file."""
    found = {}
    for line in text.splitlines():
        name, sign, value = line.strip().partition("=")
        if sign and not name.startswith(("#", ";")):
            quoted = re.fullmatch(r"""(["'])(.*)\1""", value.strip())
            found[name.strip()] = quoted.group(2) if quoted else value.strip()
    return found


def known_keys(known: Mapping[str, Any], service: str) -> set[str]:
    """Return the keys that RKE2 does not drop on a node of this kind."""
    return {*known["agent"], *(known["server"] if service == "server" else ())}


def meaning(
    files: Mapping[str, str], service: str, node: str, addresses: list[str], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a service makes of its files, the same for the same effect: defaults filled in, order and form gone.

    node, addresses: what the node is called and has in the cluster, which stands for keys that are missing.
    """
    found = {
        key: undoubled(listed(key, value))
        for key, value in merged(files).items()
        if key in known_keys(known, service) and key not in REGISTRATION
    }
    result: dict[str, Any] = {key: value for key, value in DEFAULTS.items() if key in known_keys(known, service)}
    result |= {"node-name": [node], "node-ip": addresses[:1]} | found
    if "tls-san" in result:
        result["tls-san"] = sorted(set(result["tls-san"]))
    for key in ("token", "agent-token"):
        path = result.pop(f"{key}-file", [""])[0]
        secret = secret_part(result[key][0] if key in result else files.get(path, ""))
        result.pop(key, None)
        if secret:
            result[key] = secret
    result["node-name"] = [name.lower() for name in result["node-name"]]
    audit = result.pop("audit-policy-file", [""])[0]
    if audit and service == "server":  # an agent makes nothing of it
        result[AUDIT] = mapping(audit, files[audit]) if audit in files else audit
    if "private-registry" not in result:
        registries = mapping(REGISTRIES, files.get(REGISTRIES, ""))
        result |= {"registries.yaml": registries} if registries else {}
    variables = environment(files.get(f"/etc/default/rke2-{service}", ""))
    return result | ({ENVIRONMENT: variables} if variables else {})


def shown(key: str, value: Any) -> str:
    """Return a value for people; of what may be secret, only that it is there."""
    if value is None:
        return "nothing"
    return (
        "(hidden)" if key in HIDDEN else json.dumps(value[0] if isinstance(value, list) and len(value) == 1 else value)
    )


def texts(files: Mapping[str, str]) -> dict[str, str]:
    """Return the text of files that come in base64, by path."""
    return {path: base64.b64decode(content).decode() for path, content in files.items()}


def rke2_differences(
    found: Mapping[str, Any],
    files: Iterable[Mapping[str, Any]],
    service: str,
    node: str,
    addresses: list[str],
    known: Mapping[str, Any],
) -> dict[str, list[str]]:
    """Return what a start would make of files that are to be written and does not make of those that are there.

    due: what takes a restart. waits: what may wait for the next one, whoever causes it.
    """
    before = texts(plain(found["files"]))
    after = dict(before)
    for file in plain(list(files)):
        if file.get("state", "present") == "present":
            after[file["path"]] = file["content"]
        else:
            after.pop(file["path"], None)
    try:
        was, becomes = (meaning(those, service, node, addresses, known) for those in (before, after))
    except ValueError as error:
        return {"due": [f"{error}, so nobody knows what it meant"], "waits": []}
    if service == "server" and "/server/token" in " ".join(before):
        own = next(text for path, text in before.items() if path.endswith("/server/token"))
        was.setdefault("token", secret_part(own))
    if service == "server":  # without one of their own, agents have the servers'
        for side in (was, becomes):
            side.setdefault("agent-token", side.get("token"))
    differs: dict[str, list[str]] = {"due": [], "waits": []}
    for key in sorted(was.keys() | becomes.keys()):
        old, new = was.get(key), becomes.get(key)
        # More names in a certificate and another token to ask a server by take nothing from a service that runs.
        added = key == "tls-san" and set(old or []) <= set(new or [])
        if old != new:
            kind = "waits" if added or (key == "token" and service == "agent") else "due"
            differs[kind].append(f"{key}: {shown(key, old)} becomes {shown(key, new)}")
    return differs


# The site that describes a cluster


@dataclass
class Machine:
    """A machine as it was found. values: its configuration. inputs: variable -> value that describe it."""

    name: str
    service: str
    node: dict[str, Any]
    look: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """Return the text of its files by path."""
        return texts(self.look["configuration"]["files"])

    @property
    def layers(self) -> list[str]:
        """Return the names of the files in config.yaml.d that are not the role's."""
        return sorted(path.rpartition("/")[2] for path in self.files if path.startswith(CONFIG + ".d/")
                      and not path.endswith(OURS))  # fmt: skip

    @property
    def address(self) -> str:
        """Return its first address in the cluster."""
        return str((self.node["addresses"] or [""])[0])


@dataclass
class Site:
    """What is written of a cluster, and what is to be said of it.

    files: path below the site -> (comment, variables). secrets: of the vault. generate: secret to be made -> its bytes.
    notes: (machine or file, what, what to do). refusals: reasons to write nothing.
    """

    name: str
    machines: list[Machine]
    files: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    secrets: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, int] = field(default_factory=dict)
    notes: list[tuple[str, str, str]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def of(self, service: str) -> list[Machine]:
        """Return the machines of a kind."""
        return [machine for machine in self.machines if machine.service == service]

    def note(self, where: str, what: str, do: str) -> None:
        """Say something once."""
        if (where, what, do) not in self.notes:
            self.notes.append((where, what, do))

    def refuse(self, where: str, what: str) -> None:
        """Name a reason to write nothing."""
        self.refusals.append(f"{where} {what}")


def ipv4(text: str) -> str:
    """Return the text if it is an IPv4 address, or an empty one."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        return ""


def own_labels(node: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels that people gave a node, without those of Kubernetes, RKE2 and operators."""
    found = {}
    for name, value in sorted(node["labels"].items()):
        domain, _, rest = name.rpartition("/")
        role = domain == ROLE_LABEL and rest not in OWN_ROLES
        if role or name in PLACES or not LABEL_OF_OTHERS.fullmatch(domain):
            found[name] = value
    return found


def own_taints(node: Mapping[str, Any]) -> list[str]:
    """Return the taints that people gave a node, without those that Kubernetes sets by itself."""
    taints = [re.sub("=:", ":", taint) for taint in node["taints"]]
    return sorted(t for t in taints if t != CONTROL_PLANE_TAINT and not t.startswith("node.kubernetes.io/"))


def judge_machine(site: Site, machine: Machine) -> None:
    """Refuse a machine that is not well, or that is started in a way that no inventory can describe."""
    name, look = machine.name, machine.look
    running, installed = look["running_version"], look["installed_version"]
    if look["service"]["active"] != "active":
        site.refuse(name, f"does not run rke2-{machine.service}: start it, or take its node out of the cluster")
    elif running != installed:
        site.refuse(name, f"runs {running or 'nothing'} and has {installed or 'nothing'} on disk: restart it first")
    if not machine.node["ready"]:
        site.refuse(name, "is not Ready: bring it back first")
    if machine.service == "server" and not look["datastore"]:
        site.refuse(name, "has no member of etcd: only servers with an etcd of RKE2's own are known here")
    if not ipv4(machine.address):
        site.refuse(name, f"has the address {machine.address or 'nothing'} in the cluster, and IPv4 is needed")
    if look["configuration"]["arguments"]:
        keys = ", ".join(part.partition("=")[0] for part in look["configuration"]["arguments"] if part.startswith("-"))
        what = f"starts with arguments in its unit ({keys}): move them to config.yaml, drop them there, and restart it"
        site.refuse(name, what)
    for path, text in machine.files.items():
        if path.endswith((".env", f"/rke2-{machine.service}")):
            told = sorted(key for key in environment(text) if key.startswith("RKE2_") and "TOKEN" not in key)
            if told:
                site.refuse(name, f"has {', '.join(told)} in {path}: move that to config.yaml and restart it first")


def read_machine(site: Site, machine: Machine, known: Mapping[str, Any]) -> None:
    """Read a machine's configuration, and refuse what of it no site can have."""
    name = machine.name
    try:
        values = merged(machine.files)
        mapping(REGISTRIES, machine.files.get(REGISTRIES, ""))
    except ValueError as error:
        site.refuse(name, f"cannot be described: {error}")
        return
    for key in sorted(values.keys() & {*FOREIGN}):
        if values[key] not in (False, "false"):
            site.refuse(name, f"has {key} in its configuration, which no role here can describe or should repeat")
    if values.get("profile") not in (None, "cis", "etcd"):
        site.refuse(name, f"has the profile {values['profile']}: only cis and etcd are known here")
    audit = values.get("audit-policy-file")
    if audit and machine.service == "server" and audit not in machine.files:
        site.refuse(name, f"names {audit} as its audit policy, and that is not there")
    dropped = sorted(values.keys() - known_keys(known, machine.service))
    for key in dropped:
        what = f"{key} in its configuration is no key that RKE2 knows for a node of kind {machine.service}"
        site.note(name, what, "It had no effect and is left out; correct it where it is a slip of the pen")
    machine.values = {key: value for key, value in values.items() if key not in dropped}


def describe_machine(machine: Machine, own: Mapping[str, str]) -> None:
    """Put what a machine is configured by into the inputs of roles."""
    values, found, given = machine.values, machine.look["configuration"], machine.inputs
    files = machine.files
    registries = {} if "private-registry" in values else mapping(REGISTRIES, files.get(REGISTRIES, ""))
    config = {key: value for key, value in values.items() if key not in own}
    if "*" in (registries.get("mirrors") or {}):
        config.setdefault("disable-default-registry-endpoint", False)
    data_dir = listed("data-dir", values.get("data-dir", DEFAULTS["data-dir"]))
    if data_dir != DEFAULTS["data-dir"]:
        given |= {"rke2_data_dir": data_dir[0], "canal_data_dir": data_dir[0]}
    if found["hostname"] != machine.name:
        given["node_hostname"] = found["hostname"]
    if set(machine.look["images"]) & set(IMAGES) != set(IMAGES):
        given["rke2_images"] = sorted(image for image in machine.look["images"] if image.startswith("rke2-images"))
    optional = {
        "rke2_kubelet_args": listed("kubelet-arg", values.get("kubelet-arg", [])),
        "rke2_profile": values.get("profile"),
        "rke2_node_labels": own_labels(machine.node),
        "rke2_node_taints": own_taints(machine.node),
        "rke2_config_superseded": machine.layers,
        "rke2_environment": environment(files.get(f"/etc/default/rke2-{machine.service}", "")),
        "rke2_registries": registries,
        "rke2_config": config,
    }
    given |= {name: value for name, value in optional.items() if value}


def describe_server(site: Site, machine: Machine, api: str) -> None:
    """Put what only servers are configured by into the inputs of roles."""
    values, given = machine.values, machine.inputs
    written = {api, *(server.address for server in site.of("server"))}  # by the role itself
    names = sorted({*listed("tls-san", values.get("tls-san", []))} - written)
    for key, name in (("schedule-cron", "schedule"), ("retention", "retention")):
        value = listed(key, values.get(f"etcd-snapshot-{key}", DEFAULTS[f"etcd-snapshot-{key}"]))[0]
        given[f"rke2_snapshot_{name}"] = int(value) if value.isdigit() else value
    if CONTROL_PLANE_TAINT not in [re.sub("=:", ":", taint) for taint in machine.node["taints"]]:
        given["rke2_control_plane_taint_enabled"] = False
    audit = str(values.get("audit-policy-file", ""))
    optional = {
        "api_address_tls_directory": f"{given['rke2_data_dir']}/server/tls" if "rke2_data_dir" in given else "",
        "rke2_tls_san": names,
        "rke2_kube_apiserver_args": listed("kube-apiserver-arg", values.get("kube-apiserver-arg", [])),
        "rke2_audit_policy": mapping(audit, machine.files.get(audit, "")),
    }
    given |= {name: value for name, value in optional.items() if value}


def hide(site: Site) -> None:
    """Move what is secret in the machines' inputs to the vault, the same value once."""

    def sealed(machine: Machine, name: str, value: Any) -> str:
        key = f"vault_{name}"
        if site.secrets.get(key, value) != value:
            key = re.sub(r"\W", "_", f"{key}_{machine.name}")
        site.secrets[key] = value
        return f"{{{{ {key} }}}}"

    for machine in site.machines:
        given = machine.inputs
        hidden = json.dumps(given.get("rke2_registries", {}).get("configs", {}))
        if re.search(r'"(auth|password|identity_token)"|//[^/"]*@', hidden):
            given["rke2_registries"] = sealed(machine, "rke2_registries", given["rke2_registries"])
        for key in SECRET_KEYS:
            if key in given.get("rke2_config", {}):
                value = given["rke2_config"][key]
                given["rke2_config"] = given["rke2_config"] | {
                    key: sealed(machine, "rke2_" + key.replace("-", "_"), value)
                }
        variables = given.get("rke2_environment", {})
        if any(re.search("(?i)pass|secret|token|key", k) or re.search("//[^/]*@", v) for k, v in variables.items()):
            given["rke2_environment"] = sealed(machine, "rke2_environment", variables)


def spread(site: Site) -> None:
    """Write the machines' inputs where they hold: for all, for a kind, for one machine; one file a role."""
    scopes = {"rke2": site.machines, "rke2_server": site.of("server"), "rke2_agent": site.of("agent")}
    left = {machine.name: dict(machine.inputs) for machine in site.machines}
    absent = object()
    for group, machines in scopes.items():
        for name in sorted({name for machine in machines for name in left[machine.name]}):
            values = [left[machine.name].get(name, absent) for machine in machines]
            if all(value == values[0] for value in values):
                add(site, f"group_vars/{group}", name, values[0])
                for machine in machines:
                    del left[machine.name][name]
    for host, inputs in left.items():
        for name, value in inputs.items():
            add(site, f"host_vars/{host}", name, value)


ROLES = ("api_address", "canal", "node", "rke2")


def add(site: Site, scope: str, name: str, value: Any) -> None:
    """Set a variable in the file of its role."""
    role = next(role for role in ROLES if name.startswith(role + "_"))
    _, variables = site.files.setdefault(f"{scope}/{role}.yml", ("As the cluster was found.", {}))
    variables[name] = value


def api_address(site: Site) -> tuple[str, str]:
    """Return the address by which machines register and who holds it, `keepalived` or `external`; empty if unknown."""
    own = {machine.address for machine in site.machines}
    named, listed_names = [], []
    for machine in site.machines:
        host = re.sub(r"^\w+://|:\d+/?$", "", str(machine.values.get("server", "")))
        named.append(host)
        listed_names += listed("tls-san", machine.values.get("tls-san", []))
    fronts = [ipv4(name) for name in named if ipv4(name) and ipv4(name) not in own]
    others = sorted({ipv4(name) for name in listed_names if ipv4(name) and ipv4(name) not in own})
    address = fronts[0] if fronts else (others[0] if len(others) == 1 else "")
    if not address and len(site.of("server")) == 1:
        return site.of("server")[0].address, "external"
    conf = [server.files.get(KEEPALIVED, "") for server in site.of("server")]
    kept = address and all(KEEPALIVED_OURS in text and re.search(rf"\b{address}/", text) for text in conf)
    if kept:
        password, number = (re.search(rf"{word} +(\S+)", conf[0]) for word in ("auth_pass", "virtual_router_id"))
        site.secrets |= {"vault_site_api_address_password": password.group(1)} if password else {}
        if number and number.group(1) != str(max(1, int(address.rpartition(".")[2]))):
            add(site, "group_vars/rke2_server", "api_address_router_id", int(number.group(1)))
        return address, "keepalived"
    if not address:
        told = ", ".join(sorted({name for name in named if name})) or "nothing"
        do = (
            "Write site_api_address into group_vars/all/site.yml: that of a balancer in front of the servers, and"
            " site_api_address_mode: external; or a free one, which keepalived will hold. After the first deploy one"
            f" that no certificate names needs new ones: scripts/provision.py rotate certificates --site {site.name}"
        )
        site.generate["vault_site_api_address_password"] = 4
        site.note("site.yml", f"no address in front of the servers was found (machines register at {told})", do)
        return "", ""
    what = f"who holds {address} (keepalived, kube-vip, a balancer) cannot be seen"
    site.note("site.yml", what, "It stays as it is and is only checked: site_api_address_mode: external")
    return address, "external"


def describe_site(site: Site, api: str, mode: str, connection: Mapping[str, Any]) -> None:
    """Write hosts.yml, site.yml and versions.yml, and the tokens."""
    first = site.of("server")[0]
    hosts = {
        f"rke2_{service}": {"hosts": {machine.name: {"ansible_host": machine.address} for machine in site.of(service)}}
        for service in ("server", "agent")
    }
    control = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    # Not for all: nobody logs in to the control machine or becomes another there.
    groups = {"rke2": {"vars": dict(connection), "children": hosts}, "platform": {"hosts": {"localhost": control}}}
    site.files["hosts.yml"] = ("The machines of a cluster that was there before.", {"all": {"children": groups}})
    network = {key: listed(key, first.values.get(key, DEFAULTS[key])) for key in DEFAULTS}
    parameters: dict[str, Any] = {
        "site_name": site.name,
        "site_host": "",
        "site_node_address": "{{ ansible_host }}",
        "site_api_address": api,
        **({"site_api_address_mode": mode} if mode == "external" else {}),
        "site_load_balancer_pool": "",
        "site_ingress_address": "",
        "site_cluster_cni": network["cni"][0],
        "site_pod_network": network["cluster-cidr"][0],
        "site_service_network": network["service-cidr"][0],
        "site_cluster_domain": network["cluster-domain"][0],
    }
    empty = ("site_host", "site_load_balancer_pool", "site_ingress_address")
    site.note(
        "site.yml", f"{', '.join(empty)} stand in no configuration of RKE2", "Write them into group_vars/all/site.yml"
    )
    do = f"Deploy with --until rke2_agent first, and look at what check says of each later stage: --site {site.name}"
    site.note("site.yml", "what runs in the cluster (ingress, load balancer, GPUs, storage) is not taken over", do)
    tokens = {"vault_site_rke2_token": token_of(first, "token")}
    tokens["vault_site_rke2_agent_token"] = token_of(first, "agent-token") or tokens["vault_site_rke2_token"]
    site.secrets |= tokens
    shared = len(set(tokens.values())) == 1
    weak = {name for name, value in tokens.items() if len(value) < 32 or len(set(value)) < 8 or WEAK.search(value)}
    adopted = sorted(weak | ({"vault_site_rke2_agent_token"} if shared else set()))
    for name in adopted:
        kind = "token" if name == "vault_site_rke2_token" else "agent-token"
        why = "is the servers' own" if shared and kind == "agent-token" else "is a weak one"
        rotate = f"scripts/provision.py rotate {kind} --site {site.name}"
        do = f"Some day write another into the vault, run {rotate}, and take the name out"
        site.note("vault.yml", f"{name} {why}, and stands in site_adopted_secrets so that it is accepted", do)
    parameters |= {"site_adopted_secrets": adopted} if adopted else {}
    site.files["group_vars/all/site.yml"] = (
        "What this site IS. Every name is described in roles/preflight/README.md.",
        parameters,
    )
    site.files["group_vars/all/versions.yml"] = (
        "The release that was found: nothing is upgraded by adopting.", {"rke2_version": first.look["running_version"]}
    )  # fmt: skip


WEAK = re.compile(r"(?i)\s|change.?me|password|default|example|secret|placeholder|qwerty|12345678")


def token_of(server: Machine, key: str) -> str:
    """Return a token's secret part, from what RKE2 itself has stored, else from the configuration."""
    stored = next((text for path, text in server.files.items() if path.endswith(f"/server/{key}")), "")
    said = str(server.values.get(key) or server.files.get(str(server.values.get(f"{key}-file")), ""))
    return secret_part(stored or said)


def judge_cluster(site: Site, nodes: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a cluster of releases or of servers that no site can have."""
    releases = sorted({machine.look["running_version"] for machine in site.machines} - {""})
    if len(releases) > 1:
        site.refuse("The cluster", f"runs {' and '.join(releases)}: end its upgrade first")
    minor = ".".join((releases or [""])[0].removeprefix("v").split(".")[:2])
    if minor not in known["minors"]:
        site.refuse("The cluster", f"runs {minor or 'no release'}, and {', '.join(known['minors'])} are known here")
    if len(site.of("server")) not in (1, 3, 5):
        site.refuse("The cluster", f"has {len(site.of('server'))} servers: make them 1, 3 or 5 first")
    for name in sorted(nodes.keys() - {machine.name for machine in site.machines}):
        site.refuse(name, "is a node of the cluster and was not looked at")
    for server in site.of("server"):
        for key in ("cni", "cluster-cidr", "service-cidr"):
            values = listed(key, server.values.get(key, DEFAULTS[key]))
            if len(values) > 1 or (key == "cni" and values != DEFAULTS[key]):
                wanted = "canal" if key == "cni" else "one IPv4 network"
                site.refuse(server.name, f"has {key}: {', '.join(values)}, and {wanted} is all that is known here")
    differing = {key: {json.dumps(listed(key, server.values.get(key, DEFAULTS[key]))) for server in site.of("server")}
                 for key in ("cni", "cluster-cidr", "service-cidr", "cluster-domain")}  # fmt: skip
    for key in sorted(key for key, values in differing.items() if len(values) > 1):
        site.refuse("The servers", f"differ in {key}, which must be the same on all")


def say_what_stays(site: Site, machine: Machine) -> None:
    """Note what a deploy leaves as it is, and what may surprise."""
    found = machine.look["configuration"]
    for path in found["edited"]:
        if path.startswith(DIRECTORY):
            what = f"{path} is younger than the start of rke2-{machine.service}"
            site.note(
                machine.name, what, "What it says is carried over and takes effect at the next restart, as before"
            )
    for path, text in machine.files.items():
        # What every release brings with it says where root is at home.
        more = environment(text).keys() - {"HOME"} if path.endswith(".env") or "/sysconfig/" in path else set()
        if more or (".service.d/" in path and not path.endswith("50-metalhub.conf")):
            site.note(machine.name, f"{path} configures the service too", "It stays as it is; nobody but you keeps it")
    for name in found["charts"]:
        what = f"{name} among the manifests gives a packaged chart values"
        do = "It stays as it is; to have it kept, write the values into rke2_packaged_chart_values instead of it"
        site.note(machine.name, what, do)
    if found["program"].startswith("/usr/bin/"):
        do = "Deploys leave it; `upgrade` would lay an archive beside the package: replace that first"
        site.note(machine.name, "has RKE2 as a package of the distribution", do)
    if not found["system"].startswith(("debian 12", "ubuntu 22.04", "ubuntu 24.04")):
        do = "preflight will refuse it unless preflight_systems in group_vars/rke2/preflight.yml names it"
        site.note(machine.name, f"runs {found['system'] or 'an unknown system'}, which is not tested", do)
    if machine.node["unschedulable"]:
        site.note(machine.name, "takes no new pods (cordoned)", "It stays so until you say: kubectl uncordon")


def rke2_adopted(
    looks: Iterable[Mapping[str, Any]],
    name: str,
    known: Mapping[str, Any],
    own: Mapping[str, str],
    connection: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the site that describes a cluster: its files, its secrets, what is to be said, reasons to write nothing.

    looks: what rke2_info said of each machine, with its configuration. known: keys of config.yaml. own: those that the
    role writes, to its inputs. connection: how machines are reached, as Ansible's variables.
    """
    given: list[dict[str, Any]] = [plain(look) for look in looks]
    nodes: dict[str, Any] = max((look["nodes"] for look in given), key=len, default={})
    site = Site(name, [])
    for look in given:
        node = look["configuration"]["node"]
        if node in nodes:
            server = "node-role.kubernetes.io/control-plane" in nodes[node]["labels"]
            site.machines.append(Machine(node, "server" if server else "agent", nodes[node], look))
        else:
            site.refuse(node, "is no node of a cluster that answers: start its RKE2, or name another by --server")
    site.machines.sort(key=lambda machine: machine.name)
    for machine in site.machines:
        judge_machine(site, machine)
        read_machine(site, machine, known)
    if site.of("server"):
        judge_cluster(site, nodes, known)
    elif site.machines:
        site.refuse(site.machines[0].name, "is no server of its cluster: name one by --server")
    if not site.refusals:
        api, mode = api_address(site)
        for machine in site.machines:
            describe_machine(machine, own)
            if machine.service == "server":
                describe_server(site, machine, api)
            say_what_stays(site, machine)
        hide(site)
        spread(site)
        describe_site(site, api, mode, connection)
    return {
        "machines": [
            {"name": one.name, "kind": one.service, "address": one.address, "release": one.look["running_version"]}
            for one in site.machines
        ],
        "files": {path: {"about": about, "values": values} for path, (about, values) in site.files.items()},
        "secrets": site.secrets,
        "generate": site.generate,
        "notes": [list(note) for note in site.notes],
        "refusals": site.refusals,
    }


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"rke2_adopted": rke2_adopted, "rke2_differences": rke2_differences}
