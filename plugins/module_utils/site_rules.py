"""The rules of a site: each looks at all of it and yields what is wrong. Nothing here reads a file or a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .site_files import GROUPS, Entry, Inventory
from .site_findings import Finding, nearest
from .site_values import (
    LABEL,
    Address,
    Network,
    name_problem,
    tame,
    to_address,
    to_network,
    to_range,
    to_release,
    to_url,
    type_problems,
)

# What a template gives that refers to something undefined; roles/preflight/vars/main.yml puts it there.
UNDEFINED = "(undefined)"
HIDDEN = "(hidden)"
SERVER_COUNTS = (1, 3, 5)
RESERVED = {"localhost", "kubernetes", "all", "ungrouped", "broadcasthost", "ip6-localhost", "ip6-loopback", *GROUPS}
# The only parameter of a site that its hosts have each for themselves.
OF_A_HOST = "site_node_address"
# How alike two names with the same prefix must be for one to be meant by the other.
ALIKE = 0.75
# Names of Ansible's own whose misspelling would go unseen.
CONNECTION = {f"ansible_{name}" for name in (
    "host port user password connection become become_user become_method become_password python_interpreter "
    "ssh_host ssh_port ssh_user ssh_pass ssh_private_key_file ssh_common_args ssh_extra_args"
).split()}  # fmt: skip


@dataclass(frozen=True)
class Secret:
    """What the check may know of a secret: never its value.

    length, distinct: characters, and different ones among them; length 0 when it is not set.
    weak: whether it holds a well-known word; spaces: whether it holds white space.
    full: whether it is a token in the form K10<hash>::<user>:<password>.
    same_as: the other secrets with the same value.
    """

    length: int = 0
    distinct: int = 0
    weak: bool = False
    spaces: bool = False
    full: bool = False
    same_as: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """Everything that is known of a site before any node is contacted.

    inventory: its files. schema: name of a site parameter or secret -> its spec.
    inputs: role -> the names of its inputs. compatibility: the table of files/compatibility.yml.
    groups: group -> hosts. addresses: node -> its site_node_address, as text.
    connections: host of `platform` -> ansible_connection. parameters: site parameter -> value after templating.
    secrets: name -> Secret. versions: parameter of the table -> value in force.
    bundle: what is wrong with a site_bundle that is a directory, a clause; empty when nothing is.
    """

    inventory: Inventory
    schema: dict[str, dict[str, Any]]
    inputs: dict[str, set[str]]
    compatibility: dict[str, Any]
    groups: dict[str, list[str]]
    addresses: dict[str, str]
    connections: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    bundle: str = ""

    def finding(self, key: str, what: str, fix: str, seen: object = None, where: str = "") -> Finding:
        """Return a finding at the place where `key` is set, showing its value unless something else is to be seen."""
        value = self.text(key) or key if seen is None else str(seen)
        return Finding(key, what, where or self.inventory.where(key), value, fix)

    def text(self, name: str) -> str:
        """Return a parameter that is a string, or an empty string for one that is missing or something else."""
        value = self.parameters.get(name)
        return value if isinstance(value, str) and value != UNDEFINED else ""

    def network(self, name: str) -> Network | None:
        """Return a parameter as a network, or None when it is not valid."""
        return to_network(self.text(name))

    def networks(self) -> dict[str, Network]:
        """Return the pod and service networks that are valid: parameter -> network."""
        found = {name: self.network(name) for name in ("site_pod_network", "site_service_network")}
        return {name: network for name, network in found.items() if network}

    def pool(self) -> tuple[Address, Address] | None:
        """Return the first and last address of the load balancer's pool, or None when it is not valid."""
        return to_range(self.text("site_load_balancer_pool"))

    def members(self, group: str) -> set[str]:
        """Return the hosts of a group; none for a group that is missing."""
        return set(self.groups.get(group, []))


def check_files(site: Site) -> Iterator[Finding]:
    """Files that cannot be read as Ansible reads them, and names that are set twice for the same hosts."""
    yield from site.inventory.problems
    first: dict[tuple[str, str], Entry] = {}
    for entry in site.inventory.top():
        other = first.setdefault((entry.scope, entry.name), entry)
        if other.path != entry.path:
            what, seen = f"is set in two files for {entry.scope}", f"first in {other.where}"
            yield site.finding(entry.name, what, "remove one of the two", seen, entry.where)


def check_groups(site: Site) -> Iterator[Finding]:
    """Groups that are missing, hosts in the wrong one, an even number of servers."""
    others = [name for name in site.inventory.groups if name not in GROUPS and name != "all"]
    for group in (name for name in GROUPS if name not in site.groups):
        like = nearest(group, others)
        fix = f"rename {like} to {group}" if like else f"add the group {group}"
        seen = f"groups: {', '.join(others) or 'none'}"
        yield site.finding(group, "is no group of the inventory", fix, seen, site.inventory.where(like or "all"))
    servers, agents, nodes = (site.members(name) for name in ("rke2_server", "rke2_agent", "rke2"))
    if "rke2_server" in site.groups and len(servers) not in SERVER_COUNTS:
        what = f"has not {', '.join(map(str, SERVER_COUNTS[:-1]))} or {SERVER_COUNTS[-1]} hosts"
        fix = "add or remove one: an even number survives no more losses than one server less"
        yield site.finding("rke2_server", what, fix, f"{len(servers)} hosts")
    for host in sorted(servers & agents):
        yield site.finding(host, "is in rke2_server and in rke2_agent", "remove it from one of the two")
    for host in sorted(nodes - servers - agents):
        yield site.finding(
            host, "is in rke2 and neither in rke2_server nor in rke2_agent", "put it into one of the two"
        )
    for host in sorted((servers | agents) - nodes) if "rke2" in site.groups else ():
        yield site.finding(host, "is not in rke2", "make rke2_server and rke2_agent children of rke2")


def check_platform(site: Site) -> Iterator[Finding]:
    """A control machine that is not this one."""
    hosts = site.groups.get("platform", [])
    if "platform" in site.groups and hosts != ["localhost"]:
        fix = "let it hold localhost and nothing else"
        yield site.finding("platform", "is not the control machine alone", fix, ", ".join(hosts) or "no host")
    elif hosts and site.connections.get("localhost", "local") != "local":
        fix = "write ansible_connection: local"
        yield site.finding("localhost", "is reached by a connection", fix, site.connections["localhost"])


def check_host_names(site: Site) -> Iterator[Finding]:
    """Names of nodes that Kubernetes or the network would not take."""
    domain = site.text("site_cluster_domain")
    for host in sorted(site.addresses):
        problem = name_problem(host)
        if problem:
            yield site.finding(host, problem, f"rename it, for example to {tame(host)}")
        elif host in RESERVED:
            yield site.finding(host, "is a reserved name", "give the node another name")
        elif host.isdigit() or to_address(host):
            yield site.finding(host, "is a number, not a name", "give the node a name and its number as ansible_host")
        elif host == site.text("site_host"):
            yield site.finding(host, "is also site_host", "give the node another name: that one is the ingress's")
        elif domain and f".{host}".endswith(f".{domain}"):
            yield site.finding(host, "lies in the cluster's own domain", f"give the node a name outside {domain}")


def check_schema(site: Site) -> Iterator[Finding]:
    """Site parameters that are not known, not there, or not what they must be."""
    prefixes = ("site_", "vault_site_")
    given = {entry.name for entry in site.inventory.top() if entry.name.startswith(prefixes)}
    given |= site.parameters.keys() | {name for name, secret in site.secrets.items() if secret.length}
    for name in sorted(given - site.schema.keys()):
        like = nearest(name, site.schema, ALIKE)
        fix = f"write {like}" if like else "remove it; roles/preflight/README.md lists all"
        yield site.finding(name, "is no parameter of a site", fix, name)
    for name, spec in site.schema.items():
        value = site.parameters.get(name)
        if name == OF_A_HOST or name.startswith("vault_"):
            continue
        if value == UNDEFINED:
            fix = "define that variable, or write the value itself"
            yield site.finding(name, "refers to a variable that is not defined", fix, UNDEFINED)
        elif value is not None and value != "":
            for key, what, seen, fix in type_problems(value, spec, name):
                yield site.finding(key, what, fix, seen)
        elif spec.get("required"):
            yield site.finding(name, "is missing", f"write {name}: {_summary(spec)}", "nothing")


def _summary(spec: dict[str, Any]) -> str:
    """Return the first clause of a description, without Ansible's markup."""
    text = re.sub(r"\b[A-Z]\(([^)]*)\)", r"\1", str(spec["description"]))
    return re.split(r"[.;,](?:\s|$)", text)[0]


def check_scope(site: Site) -> Iterator[Finding]:
    """Site parameters that some hosts would see and others not."""
    for entry in site.inventory.top():
        if entry.name in site.schema and entry.name != OF_A_HOST and entry.scope != "all":
            fix = f"move it to {site.inventory.file_of_all('site')}: a site has one value"
            yield site.finding(entry.name, f"is set for {entry.scope} only", fix, where=entry.where)


def check_inputs(site: Site) -> Iterator[Finding]:
    """Names that look like a role's input, or like one of Ansible's own variables, and are none."""
    every = {name for names in site.inputs.values() for name in names} | CONNECTION | site.schema.keys()
    for entry in site.inventory.top():
        name = entry.name
        if name in every or name.startswith(("site_", "vault_site_")):
            continue
        role = max((role for role in site.inputs if name.startswith(f"{role}_")), key=len, default="")
        like = nearest(name, site.inputs[role], ALIKE) if role else nearest(name, every, 0.9)
        if role:
            fix = f"write {like}" if like else f"remove it; roles/{role}/README.md lists all"
            yield site.finding(name, f"is no input of the role {role}", fix, name, entry.where)
        elif like:
            yield site.finding(name, "is known to nobody", f"write {like}", name, entry.where)


# The identity in ansible.cfg whose password is the administrator's.
VAULT_ID = "site"
# Characters at least and at most, different ones at least, and what makes one.
TOKEN = (32, 512, 8, "openssl rand -hex 32")
SECRETS = {"vault_site_api_address_password": (8, 8, 4, "openssl rand -hex 4")}

# Made by others, whose rules are not ours.
FOREIGN = {
    "vault_site_certificate_authority_key",
    "vault_site_identity_provider_secret",
    "vault_site_ldap_password",
    "vault_site_smtp_password",
    "vault_site_snapshot_s3_access_key",
    "vault_site_snapshot_s3_secret_key",
}


def _secret_problem(name: str, secret: Secret) -> str:
    """Return what is wrong with a secret that is set, or an empty string."""
    if name in FOREIGN:
        return ""
    least, most, distinct, _ = SECRETS.get(name, TOKEN)
    wanted = f"exactly {least}" if least == most else f"{least} to {most}"
    problems = (
        (secret.spaces, "holds white space"),
        (secret.full, "is a token with a cluster's hash, of which only the part behind the last colon counts"),
        (secret.weak, "holds a word that everybody tries first"),
        (not least <= secret.length <= most, f"has {secret.length} characters, not {wanted}"),
        (secret.distinct < distinct, f"has only {secret.distinct} different characters"),
        (any(name < other for other in secret.same_as), f"is the same as {', '.join(secret.same_as)}"),
    )
    return next((what for wrong, what in problems if wrong), "")


def check_secrets(site: Site) -> Iterator[Finding]:
    """Secrets that are missing, weak, shared, or readable in a file. No value is ever shown."""
    vault = site.inventory.file_of_all("vault")
    keepalived = site.parameters.get("site_api_address_mode") in (None, "keepalived")
    adopted = site.parameters.get("site_adopted_secrets") or ()
    for name in (name for name in site.schema if name.startswith("vault_")):
        secret = site.secrets.get(name, Secret())
        needed = site.schema[name].get("required") or (keepalived and name == "vault_site_api_address_password")
        found = "" if name in adopted else _secret_problem(name, secret)
        what = found if secret.length else "is missing" if needed else ""
        if what:
            verb = "edit" if site.inventory.vault else f"create --encrypt-vault-id {VAULT_ID}"
            fix = f"ansible-vault {verb} {vault}, and there {name}: what `{SECRETS.get(name, TOKEN)[-1]}` prints"
            yield site.finding(name, what, fix, HIDDEN if secret.length else "nothing", vault)
    for entry in site.inventory.top():
        if entry.name.startswith("vault_") and not entry.encrypted and "{{" not in (entry.text or ""):
            fix = f"ansible-vault encrypt --encrypt-vault-id {VAULT_ID} {site.inventory.shown(entry.path)}"
            yield site.finding(entry.name, "can be read by everybody who has the file", fix, HIDDEN, entry.where)


def check_node_addresses(site: Site) -> Iterator[Finding]:
    """Addresses of nodes that are none, that two nodes share, or that lie inside the cluster."""
    owners: dict[Address, str] = {}
    for host, text in sorted(site.addresses.items()):
        where, key = site.inventory.where_of_host(host, (OF_A_HOST, "ansible_host")), f"{host} {OF_A_HOST}"
        address = to_address(text)
        if address is None:
            fix = f"write an IPv4 address as ansible_host, or as {OF_A_HOST} in host_vars/{host}.yml if that is a name"
            yield site.finding(key, "is no IPv4 address", fix, text or "nothing", where)
            continue
        if not _usable(address):
            fix = "write the node's own address"
            yield site.finding(key, "is an address that no machine has in a network", fix, text, where)
        other = owners.setdefault(address, host)
        if other != host:
            fix = f"give {host} or {other} an address of its own"
            yield site.finding(key, f"is also the address of {other}", fix, text, where)
        for name, network in site.networks().items():
            if address in network:
                fix = f"choose a {name} that no machine is in"
                yield site.finding(key, f"lies in {name}", fix, f"{text} in {network}", where)


def _usable(address: Address) -> bool:
    """Return whether a machine can have this address in a network."""
    special = address.is_loopback or address.is_multicast or address.is_link_local
    return not special and int(address) >> 24 not in (0, 255)


def check_networks(site: Site) -> Iterator[Finding]:
    """Pod and service networks that are none, too small, or that overlap."""
    for name in ("site_pod_network", "site_service_network"):
        network = site.network(name)
        if site.text(name) and not network:
            yield site.finding(
                name, "is no IPv4 network", "write one with its length and no bits behind it: 10.42.0.0/16"
            )
        elif network and not _usable(network[0]):
            yield site.finding(name, "is a network that no pod can use", "write a private one, such as 10.42.0.0/16")
    pods, services = site.network("site_pod_network"), site.network("site_service_network")
    if pods and services and pods.overlaps(services):
        fix = "choose two networks apart, such as 10.42.0.0/16 and 10.43.0.0/16"
        yield site.finding("site_service_network", "overlaps site_pod_network", fix, f"{services} and {pods}")
    room = int(2 ** (24 - pods.prefixlen)) if pods else 0
    if pods and room < max(len(site.addresses), 1):
        seen, fix = (
            f"{pods}, room for {room} nodes",
            "choose a larger one, such as 10.42.0.0/16: it never changes later",
        )
        yield site.finding("site_pod_network", "is too small: every node takes a /24 of it", fix, seen)
    if services and not 12 <= services.prefixlen <= 24:
        fix = "choose one from /12 to /24, such as 10.43.0.0/16"
        yield site.finding("site_service_network", "is too small or too large", fix)


def check_api_address(site: Site) -> Iterator[Finding]:
    """An API address that is none, or that somebody else has."""
    name = "site_api_address"
    text, pool = site.text(name), site.pool()
    address = to_address(text)
    if address is None:
        if text:
            yield site.finding(name, "is no IPv4 address", "write a free address of the servers' network")
        return
    holders = [host for host, own in sorted(site.addresses.items()) if to_address(own) == address]
    single = holders == site.groups.get("rke2_server") and site.text("site_api_address_mode") == "external"
    if holders and not single:
        fix = "write a free address: it has to outlive that machine"
        yield site.finding(name, f"is the address of {holders[0]}", fix)
    if pool and pool[0] <= address <= pool[1]:
        seen = f"{text} in {site.text('site_load_balancer_pool')}"
        yield site.finding(name, "lies in site_load_balancer_pool", "move one of the two: a Service would get it", seen)
    for other, network in site.networks().items():
        if address in network:
            fix = "write an address of the servers' network"
            yield site.finding(name, f"lies in {other}", fix, f"{text} in {network}")


def check_pool(site: Site) -> Iterator[Finding]:
    """A pool of load balancer addresses that is none, or in which somebody lives."""
    name = "site_load_balancer_pool"
    text, pool = site.text(name), site.pool()
    if text and pool is None:
        parts = [to_address(part.strip()) for part in text.split("-", 1)]
        turned = all(parts) and len(parts) == 2
        fix = f"write {parts[1]}-{parts[0]}" if turned else "write FIRST-LAST, such as 192.0.2.101-192.0.2.150"
        yield site.finding(name, "ends before it begins" if turned else "is no range of addresses", fix)
    if pool is None:
        return
    for host, own in sorted(site.addresses.items()):
        address = to_address(own)
        if address and pool[0] <= address <= pool[1]:
            fix = "choose a range that no machine is in"
            yield site.finding(name, f"holds the address of {host}", fix, f"{own} in {text}")
    for other, network in site.networks().items():
        if pool[0] <= network[-1] and network[0] <= pool[1]:
            fix = "choose a range of the nodes' own network"
            yield site.finding(name, f"overlaps {other}", fix, f"{text} and {network}")


def check_ingress_address(site: Site) -> Iterator[Finding]:
    """An ingress address that is none or not in the pool."""
    name, pool = "site_ingress_address", site.pool()
    text, address = site.text("site_ingress_address"), to_address(site.text("site_ingress_address"))
    fix = f"write an address out of {site.text('site_load_balancer_pool') or 'site_load_balancer_pool'}"
    if text and address is None:
        yield site.finding(name, "is no IPv4 address", fix)
    elif address and pool and not pool[0] <= address <= pool[1]:
        yield site.finding(name, "is not in site_load_balancer_pool", fix)


def check_names(site: Site) -> Iterator[Finding]:
    """The site's name, its public host name, the cluster's domain."""
    name, host, domain = (site.text(key) for key in ("site_name", "site_host", "site_cluster_domain"))
    if name and (not LABEL.fullmatch(name) or len(name) > 32):
        fix = f"write {tame(name)[:32].replace('.', '-')}: at most 32 lower-case letters, digits and hyphens"
        yield site.finding("site_name", "is no short name", fix)
    bare = re.sub(r"^\w+://", "", host).split("/")[0].split(":")[0].lower()
    if bare != host:
        fix = f"write {bare}; paths below it are the roles' business"
        yield site.finding("site_host", "is no bare host name in lower case", fix)
    elif host and (to_address(host) or name_problem(host) or "." not in host):
        yield site.finding("site_host", "is no full host name", "write one with its domain, such as hub.example.org")
    if domain and (name_problem(domain) or to_address(domain)):
        yield site.finding("site_cluster_domain", "is no DNS domain", "write cluster.local")
    elif host and domain and f".{host}".endswith(f".{domain}"):
        seen = f"{host} in {domain}"
        yield site.finding(
            "site_cluster_domain", "would swallow site_host inside the cluster", "write cluster.local", seen
        )


def check_sources(site: Site) -> Iterator[Finding]:
    """Where things come from: bundle and proxy."""
    bundle, proxy = site.text("site_bundle"), site.text("site_proxy")
    if bundle and not bundle.startswith("/") and not to_url(bundle):
        yield site.finding("site_bundle", "is neither an absolute path nor a URL", "write /PATH or https://HOST/PATH")
    elif site.bundle:
        fix = f"scripts/provision.py bundle build --site {site.text('site_name') or 'SITE'}"
        yield site.finding("site_bundle", site.bundle, fix)
    url = to_url(proxy)
    if proxy and url is None:
        yield site.finding("site_proxy", "is no URL", "write http://HOST:PORT", proxy.rpartition("@")[2])
    elif url and "@" in url.netloc:
        fix = "let the proxy admit the machines by their addresses: every process could read the password"
        yield site.finding("site_proxy", "holds a password", fix, f"{url.scheme}://{HIDDEN}@{url.hostname}")


def check_lists(site: Site) -> Iterator[Finding]:
    """Time servers and certificate authorities that are none."""
    servers, authorities = (site.parameters.get(name) for name in ("site_time_servers", "site_ca_certificates"))
    for server in servers if isinstance(servers, list) else ():
        if not isinstance(server, str) or (not to_address(server) and name_problem(server)):
            yield site.finding(
                "site_time_servers", "has an entry that is no host", "write a name or an address", server
            )
    for name, text in authorities.items() if isinstance(authorities, dict) else ():
        key = f"site_ca_certificates.{name}"
        if "PRIVATE KEY" in str(text):
            yield site.finding(key, "holds a private key", "write the certificate alone, and make a new key", HIDDEN)
        elif not re.search(r"-----BEGIN CERTIFICATE-----.+-----END CERTIFICATE-----", str(text), re.S):
            fix = "write the PEM text itself, for example by lookup('ansible.builtin.file', ...)"
            yield site.finding(key, "is no certificate", fix, str(text)[:40])


@dataclass(frozen=True)
class Unsafe:
    """A value of a chart that takes away what the platform promises.

    name: an expression for the end of its path. wrong: an expression for the texts that are refused, empty for all.
    what, fix: as in a Finding.
    """

    name: str
    wrong: str
    what: str
    fix: str


ON, OFF = "true|yes|on|1", "false|no|off|0"
TRUST = "remove it, and let the site trust its authority by site_ca_certificates"
UNSAFE = (
    Unsafe(r"\w*TLS_VERIFY", "", "turns the verification of certificates off, or seems to", TRUST),
    Unsafe("validate_server_cert|validate_certs", OFF, "turns the verification of certificates off", TRUST),
    Unsafe("insecure_?skip_?(tls_?)?verify", ON, "turns the verification of certificates off", TRUST),
    Unsafe("delete_pvc", ON, "deletes a home with its user", "remove it: homes outlive their users"),
    Unsafe("allow_all", ON, "lets every account of the realm in", "remove it, and name the group: site_user_group"),
    Unsafe(
        "consecutive_?failure_?limit",
        "(?!0$).*",
        "ends the hub for everybody after that many starts that failed in a row",
        "remove it: with the role's 0 a start fails alone",
    ),
    Unsafe(
        r"egressAllowRules\.privateIPs",
        ON,
        "opens every private address",
        "remove it, and name the networks that users need: jupyterhub_user_networks",
    ),
    Unsafe(
        "blockWithIptables", ON, "takes a privileged container in every server", "remove it: a policy does the same"
    ),
    Unsafe(
        r"JupyterHub\.tornado_settings",
        "",
        "replaces the settings that the chart has made",
        "remove it, and change single ones in hub.extraConfig: c.JupyterHub.tornado_settings.update(...)",
    ),
)
# Roles with an Ingress behind the site's one address; a Service with an address of its own would be a second one.
BEHIND_THE_ADDRESS = ("jupyterhub_values.", "keycloak_values.")


def check_values(site: Site) -> Iterator[Finding]:
    """Values of charts that are unsafe, or that give the site's one host a second address."""
    for entry in site.inventory.entries:
        role, _, path = entry.name.partition("_values.")
        if not path or role not in site.inputs:
            continue
        # A container's variables may be a list whose entries say their names.
        named = f"{path}.{entry.text}" if re.search(r"\.\d+\.name$", path) else path
        for rule in UNSAFE:
            meant = re.search(rf"(^|\.)({rule.name})$", named, re.I)
            if meant and (not rule.wrong or re.fullmatch(rule.wrong, entry.text or "", re.I)):
                yield site.finding(entry.name, rule.what, rule.fix, entry.text, entry.where)
        takes = re.search(r"service\.type$", path) and entry.text == "LoadBalancer"
        if entry.name.startswith(BEHIND_THE_ADDRESS) and (takes or re.search("loadBalancerIPs?$", path)):
            what = "takes a second address for the site's one host"
            fix = "remove it: site_ingress_address is the one, and paths tell what is meant"
            yield site.finding(entry.name, what, fix, entry.text, entry.where)


def check_homes(site: Site) -> Iterator[Finding]:
    """Homes on a node's own disk, where a lost node takes them with it."""
    name, other = "site_home_storage_class", "site_state_storage_class"
    homes, state = (site.text(key) or site.schema[key].get("default", "") for key in (name, other))
    if homes == state:
        fix = f"name the class on the file server; without it, that is {site.schema[name].get('default')}"
        yield site.finding(name, "is the class of the nodes' own disks", fix, homes)


def check_release(site: Site) -> Iterator[Finding]:
    """A release of RKE2 that is none, is not in the table, or is known to be open."""
    minors: dict[str, Any] = site.compatibility["minors"]
    name = site.compatibility["components"]["rke2"]
    text = site.versions.get(name, "")
    release, row = to_release(text), minors.get(_minor(text))
    if release is None and text:
        yield site.finding(
            name, "is no release of RKE2", "write one such as v1.35.7+rke2r1, with its v and its +rke2rN", text
        )
    elif release and row is None:
        fix = f"choose a release of {', '.join(minors)}"
        yield site.finding(name, "is of a minor that the compatibility table does not have", fix, text)
    elif release and row and "minimum" in row:
        least = row["minimum"]
        if release < (to_release(least["rke2"]) or release):
            fix = f"write {least['rke2']} or a later one"
            yield site.finding(name, f"is older than the release that closes {least['closes']}", fix, text)


def _minor(version: str) -> str:
    return ".".join(version.removeprefix("v").split(".")[:2])


def check_versions(site: Site) -> Iterator[Finding]:
    """Versions that do not go with the release of RKE2."""
    parameters: dict[str, str] = site.compatibility["components"]
    minor = _minor(site.versions.get(parameters["rke2"], ""))
    row = site.compatibility["minors"].get(minor)
    for component, name in parameters.items() if row else ():
        version = site.versions.get(name, "")
        if component != "rke2" and version and _minor(version) not in row[component]:
            fix = f"choose a release of {', '.join(row[component])}, or another {parameters['rke2']}"
            yield site.finding(name, f"does not go with Kubernetes {minor}", fix, version)


RULES: tuple[Callable[[Site], Iterator[Finding]], ...] = (
    check_files,
    check_groups,
    check_platform,
    check_host_names,
    check_schema,
    check_scope,
    check_inputs,
    check_secrets,
    check_node_addresses,
    check_networks,
    check_api_address,
    check_pool,
    check_ingress_address,
    check_names,
    check_sources,
    check_lists,
    check_values,
    check_homes,
    check_release,
    check_versions,
)


def check(site: Site) -> list[Finding]:
    """Return everything that is wrong with a site, in the order of the rules."""
    return [finding for rule in RULES for finding in rule(site)]
