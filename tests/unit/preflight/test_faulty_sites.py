"""Sites with one thing wrong: each is refused with the file, the line, the key and the way to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.preflight import sites
from tests.unit.preflight.sites import SECRETS, VAULT, Edit

HOSTS = "hosts.yml"
SITE = "group_vars/all/site.yml"
VERSIONS = "group_vars/all/versions.yml"
HUB = "group_vars/platform/jupyterhub.yml"
SERVER = "group_vars/rke2_server/preflight.yml"
TOKEN, AGENT_TOKEN, PASSWORD, *_ = SECRETS.values()
THIRD = "            umaster03:\n              ansible_host: 192.168.101.23\n"
# Put together here, so that nobody who searches the repository for keys finds one.
KEY = f"-----BEGIN {'PRIVATE'} KEY-----"

# Edits of the reference site; then of the finding they must lead to: the key, the place (`place` below says how it is
# written), a part of what is wrong and a part of the fix.
# fmt: off
FAULTY = [
    # The files themselves
    pytest.param([(HOSTS, "          hosts:\n            uworker01", "          hosts\n            uworker01")],
                 HOSTS, f"{HOSTS}@uworker01:", "no valid YAML", "write valid YAML", id="yaml-syntax"),
    pytest.param([(HOSTS, "    ansible_user", "\tansible_user")],
                 HOSTS, f"{HOSTS}@\tansible_user", "no valid YAML", "write valid YAML", id="yaml-tab"),
    pytest.param([(SITE, "", "site_name: second\n")],
                 "site_name", f"{SITE}@site_name: second", "written twice", "remove one", id="key-twice-in-a-file"),
    pytest.param([(HOSTS, "uworker02:", "uworker01:")],
                 "uworker01", f"{HOSTS}@ansible_host: 192.168.101.25@-1", "written twice", "remove one",
                 id="host-twice"),
    pytest.param([("group_vars/all/network.yml", "", "site_pod_network: 10.42.0.0/16\n")],
                 "site_pod_network", f"{SITE}@site_pod_network", "two files", "remove one", id="key-in-two-files"),
    pytest.param([("more.yml", "", "- uworker04\n")],
                 "more.yml", "more.yml@- uworker04", "holds no variables", "`name: value`", id="list"),
    pytest.param([("group_vars/rke2_agent/", "", "group_vars/rke2_agents")],
                 "rke2_agents", "group_vars/rke2_agents", "is no group", "rename it to rke2_agent",
                 id="group-vars-of-no-group"),
    pytest.param([("host_vars/uworker1.yml", "", "rke2_node_labels: {}\n")],
                 "uworker1", "host_vars/uworker1.yml", "is no host", "rename it to uworker01.yml",
                 id="host-vars-of-no-host"),
    pytest.param([(HOSTS, "          hosts:\n            umaster01", "          host:\n            umaster01")],
                 "rke2_server.host", f"{HOSTS}@host:", "nothing that a group can have", "write hosts",
                 id="word-in-a-group"),

    # Groups and hosts
    pytest.param([(HOSTS, "rke2_server:", "rke2_servers:")],
                 "rke2_server", f"{HOSTS}@rke2_servers:", "is no group", "rename rke2_servers to rke2_server",
                 id="group-misspelt"),
    pytest.param([(HOSTS, "    platform:", "    control:")],
                 "platform", f"{HOSTS}@all:", "is no group", "add the group platform", id="no-control-machine"),
    pytest.param([(HOSTS, "        localhost:\n          ansible_connection: local\n", "        control:\n")],
                 "platform", f"{HOSTS}@platform:", "control machine alone", "localhost",
                 id="control-machine-elsewhere"),
    pytest.param([(HOSTS, "          ansible_connection: local\n", "          ansible_connection: ssh\n")],
                 "localhost", f"{HOSTS}@localhost:", "reached by a connection", "ansible_connection: local",
                 id="ssh-to-itself"),
    pytest.param([(HOSTS, THIRD, "")],
                 "rke2_server", f"{HOSTS}@rke2_server:", "has not 1, 3 or 5 hosts", "add or remove one",
                 id="two-servers"),
    pytest.param([(HOSTS, THIRD, f"{THIRD}            umaster04:\n              ansible_host: 192.168.101.27\n")],
                 "rke2_server", f"{HOSTS}@rke2_server:", "has not 1, 3 or 5 hosts", "an even number",
                 id="four-servers"),
    pytest.param([(HOSTS, "            uworker01:\n", "            umaster01:\n            uworker01:\n")],
                 "umaster01", f"{HOSTS}@umaster01:", "in rke2_server and in rke2_agent", "one of the two",
                 id="server-and-agent"),
    pytest.param([(HOSTS, "    rke2:\n", "    rke2:\n      hosts:\n        spare: {ansible_host: 192.168.101.30}\n")],
                 "spare", f"{HOSTS}@spare:", "neither in rke2_server nor", "put it into one",
                 id="neither-server-nor-agent"),
    pytest.param([(HOSTS, "uworker01:", "UWorker_01:")],
                 "UWorker_01", f"{HOSTS}@UWorker_01", "is no host name", "uworker-01", id="host-name-characters"),
    pytest.param([(HOSTS, "uworker01:", f"{'w' * 64}:")],
                 "w" * 64, f"{HOSTS}@wwww", "longer than a host name may be", "w" * 63, id="host-name-length"),
    pytest.param([(HOSTS, "uworker01:", "kubernetes:")],
                 "kubernetes", f"{HOSTS}@kubernetes:", "reserved", "another name", id="host-name-reserved"),
    pytest.param([(HOSTS, "uworker01:", '"1001":')],
                 "1001", f"{HOSTS}@1001", "a number", "a name", id="host-name-number"),
    pytest.param([(HOSTS, "uworker01:", "h2iosc.icar.cnr.it:")],
                 "h2iosc.icar.cnr.it", f"{HOSTS}@h2iosc.icar.cnr.it:", "is also site_host", "another name",
                 id="host-is-site-host"),
    pytest.param([(HOSTS, "uworker01:", "uworker01.cluster.local:")],
                 "uworker01.cluster.local", f"{HOSTS}@cluster.local:", "cluster's own domain", "outside",
                 id="host-in-cluster-domain"),

    # Names
    pytest.param([(SITE, "site_ingress_address", "site_ingres_address")],
                 "site_ingres_address", f"{SITE}@site_ingres_", "no parameter", "write site_ingress_address",
                 id="parameter-misspelt"),
    pytest.param([(SITE, "", "site_zebra: 1\n")],
                 "site_zebra", f"{SITE}@site_zebra", "no parameter", "README.md", id="parameter-unknown"),
    pytest.param([(VERSIONS, "rke2_version", "rke2_verison")],
                 "rke2_verison", f"{VERSIONS}@rke2_verison", "no input of the role rke2", "write rke2_version",
                 id="input-misspelt"),
    pytest.param([(SERVER, "preflight_server_cores_min", "preflight_servers_cores_min")],
                 "preflight_servers_cores_min", f"{SERVER}@servers_cores", "no input of the role preflight",
                 "write preflight_server_cores_min", id="input-of-preflight-misspelt"),
    pytest.param([(VERSIONS, "rke2_version", "rke_version")],
                 "rke_version", f"{VERSIONS}@rke_version", "known to nobody", "write rke2_version",
                 id="prefix-misspelt"),
    pytest.param([(HOSTS, "ansible_host: 192.168.101.21", "ansible_hots: 192.168.101.21")],
                 "ansible_hots", f"{HOSTS}@ansible_hots", "known to nobody", "write ansible_host",
                 id="ansible-name-misspelt"),
    pytest.param([("host_vars/uworker01.yml", "", "site_pod_network: 10.44.0.0/16\n")],
                 "site_pod_network", "host_vars/uworker01.yml@site_pod", "set for uworker01 only", "one value",
                 id="of-one-host"),

    # Types
    pytest.param([(SITE, "site_name: h2iosc\n", "")],
                 "site_name", SITE, "is missing", "write site_name: Short name of the site", id="missing"),
    pytest.param([(SITE, "site_name: h2iosc", "site_name:")],
                 "site_name", f"{SITE}@site_name:", "is missing", "write site_name", id="empty"),
    pytest.param([(SITE, "site_name: h2iosc", "site_name: 2026")],
                 "site_name", f"{SITE}@site_name", "is a whole number, not a text", "in quotes", id="number-for-text"),
    pytest.param([(SITE, "site_cluster_domain: cluster.local", "site_cluster_domain: yes")],
                 "site_cluster_domain", f"{SITE}@_domain: yes", "is true or false, not a text", "quotes",
                 id="yes-for-text"),
    pytest.param([(SITE, "", "site_time_servers: ntp.icar.cnr.it\n")],
                 "site_time_servers", f"{SITE}@site_time", "is a text, not a list", "a list", id="text-for-list"),
    pytest.param([(SITE, "", "site_time_servers: [[ntp.icar.cnr.it]]\n")],
                 "site_time_servers", f"{SITE}@site_time", "is a list, not a text", "a text", id="list-in-list"),
    pytest.param([(SITE, "site_cluster_cni: canal", "site_cluster_cni: calico")],
                 "site_cluster_cni", f"{SITE}@site_cluster_cni", "none of its choices", "canal", id="cni-unsupported"),
    pytest.param([(SITE, "", "site_api_address_mode: keepalive\n")],
                 "site_api_address_mode", f"{SITE}@_mode", "none of its choices", "write keepalived",
                 id="mode-misspelt"),
    pytest.param([(SITE, "h2iosc.icar.cnr.it", '"{{ front_name }}"')],
                 "site_host", f"{SITE}@front_name", "not defined", "define that variable", id="undefined-variable"),

    # Secrets
    pytest.param([(VAULT, f"vault_site_rke2_token: {TOKEN}\n", "")],
                 "vault_site_rke2_token", VAULT, "is missing", "ansible-vault edit", id="secret-missing"),
    pytest.param([(VAULT, "", None)],
                 "vault_site_rke2_token", VAULT, "is missing", "ansible-vault create", id="no-vault"),
    pytest.param([(VAULT, TOKEN, "7d1f2a90c4b85e36")],
                 "vault_site_rke2_token", VAULT, "has 16 characters, not 32 to 512", "openssl rand -hex 32",
                 id="secret-short"),
    pytest.param([(VAULT, TOKEN, "ChangeMe" * 5)],
                 "vault_site_rke2_token", VAULT, "everybody tries first", "openssl rand", id="secret-well-known"),
    pytest.param([(VAULT, TOKEN, "ab" * 20)],
                 "vault_site_rke2_token", VAULT, "only 2 different", "openssl rand", id="secret-repeats"),
    pytest.param([(VAULT, TOKEN, f'"{TOKEN}\\n"')],
                 "vault_site_rke2_token", VAULT, "white space", "openssl rand", id="secret-with-newline"),
    pytest.param([(VAULT, TOKEN, f"K10{TOKEN}::server:{AGENT_TOKEN}")],
                 "vault_site_rke2_token", VAULT, "cluster's hash", "openssl rand", id="secret-full-token"),
    pytest.param([(VAULT, AGENT_TOKEN, TOKEN)],
                 "vault_site_rke2_agent_token", VAULT, "same as vault_site_rke2_token", "openssl", id="secret-shared"),
    pytest.param([(VAULT, PASSWORD, "5e0b91c7a")],
                 "vault_site_api_address_password", VAULT, "not exactly 8", "openssl rand -hex 4",
                 id="password-cut-off"),
    pytest.param([(VAULT, "vault_site_rke2_agent_token", "vault_site_rke2_agents_token")],
                 "vault_site_rke2_agents_token", SITE, "no parameter", "write vault_site_rke2_agent_token",
                 id="secret-misspelt"),
    pytest.param([("group_vars/all/secrets.yml", "", f"vault_site_rke2_token: {TOKEN}\n")],
                 "vault_site_rke2_token", "group_vars/all/secrets.yml@vault_site", "can be read by everybody",
                 "ansible-vault encrypt --encrypt-vault-id site", id="secret-in-clear-text"),

    # Addresses of nodes
    pytest.param([(HOSTS, "192.168.101.25", "192.168.101.24")],
                 "uworker02 site_node_address", f"{HOSTS}@192.168.101.24@2", "also the address of uworker01", "its own",
                 id="address-twice"),
    pytest.param([(HOSTS, "192.168.101.25", "192.168.101.256")],
                 "uworker02 site_node_address", f"{HOSTS}@192.168.101.256", "is no IPv4 address", "IPv4",
                 id="address-invalid"),
    pytest.param([(HOSTS, "192.168.101.25", "uworker02.icar.cnr.it")],
                 "uworker02 site_node_address", f"{HOSTS}@uworker02.icar", "is no IPv4 address", "host_vars/uworker02",
                 id="address-is-a-name"),
    pytest.param([(HOSTS, "              ansible_host: 192.168.101.25\n", "")],
                 "uworker02 site_node_address", f"{HOSTS}@uworker02:", "is no IPv4 address", "ansible_host",
                 id="no-address"),
    pytest.param([(HOSTS, "192.168.101.25", "127.0.0.1")],
                 "uworker02 site_node_address", f"{HOSTS}@127.0.0.1", "no machine has", "own address",
                 id="address-loopback"),
    pytest.param([(HOSTS, "192.168.101.25", "10.42.0.25")],
                 "uworker02 site_node_address", f"{HOSTS}@10.42.0.25", "lies in site_pod_network", "choose a site_pod_",
                 id="address-in-pod-network"),

    # Networks of the cluster
    pytest.param([(SITE, "10.42.0.0/16", "10.42.0.0")],
                 "site_pod_network", f"{SITE}@site_pod", "is no IPv4 network", "10.42.0.0/16",
                 id="network-without-length"),
    pytest.param([(SITE, "10.42.0.0/16", "10.42.0.1/16")],
                 "site_pod_network", f"{SITE}@site_pod", "is no IPv4 network", "no bits behind",
                 id="network-host-bits"),
    pytest.param([(SITE, "10.43.0.0/16", "10.42.128.0/17")],
                 "site_service_network", f"{SITE}@site_service", "overlaps site_pod_network", "apart",
                 id="networks-overlap"),
    pytest.param([(SITE, "10.42.0.0/16", "10.42.0.0/23")],
                 "site_pod_network", f"{SITE}@site_pod", "too small", "a larger one", id="pod-network-too-small"),
    pytest.param([(SITE, "10.43.0.0/16", "10.43.0.0/28")],
                 "site_service_network", f"{SITE}@site_service", "too small", "from /12 to /24",
                 id="service-network-too-small"),
    pytest.param([(SITE, "10.43.0.0/16", "192.168.0.0/16"), (SITE, "10.42.0.0/16", "127.0.0.0/8")],
                 "site_pod_network", f"{SITE}@site_pod", "no pod can use", "private", id="pod-network-loopback"),

    # The address of the API
    pytest.param([(SITE, "192.168.101.20", "192.168.101.2O")],
                 "site_api_address", f"{SITE}@site_api", "is no IPv4 address", "free address",
                 id="api-address-invalid"),
    pytest.param([(SITE, "192.168.101.20", "192.168.101.21")],
                 "site_api_address", f"{SITE}@site_api", "is the address of umaster01", "free",
                 id="api-address-of-a-node"),
    pytest.param([(SITE, "192.168.101.20", "192.168.101.120")],
                 "site_api_address", f"{SITE}@site_api", "lies in site_load_balancer_pool", "move",
                 id="api-address-in-pool"),
    pytest.param([(SITE, "192.168.101.20", "10.43.0.20")],
                 "site_api_address", f"{SITE}@site_api", "lies in site_service_network", "servers'",
                 id="api-address-in-services"),

    # The pool
    pytest.param([(SITE, "192.168.101.101-192.168.101.150", "192.168.101.101:150")],
                 "site_load_balancer_pool", f"{SITE}@_pool", "is no range", "FIRST-LAST", id="pool-invalid"),
    pytest.param([(SITE, "101.101-192.168.101.150", "101.150-192.168.101.101")],
                 "site_load_balancer_pool", f"{SITE}@_pool", "ends before it begins", "192.168.101.101-192.168.101.150",
                 id="pool-backwards"),
    pytest.param([(SITE, "192.168.101.101-192.168.101.150", "192.168.101.22-192.168.101.150")],
                 "site_load_balancer_pool", f"{SITE}@_pool", "holds the address of umaster02", "no machine",
                 id="pool-over-nodes"),
    pytest.param([(SITE, "192.168.101.101-192.168.101.150", "10.42.7.0/24")],
                 "site_load_balancer_pool", f"{SITE}@_pool", "overlaps site_pod_network", "nodes' own",
                 id="pool-in-pods"),
    pytest.param([(SITE, "address: 192.168.101.102", "address: 192.168.101.151")],
                 "site_ingress_address", f"{SITE}@site_ingress", "not in site_load_balancer_pool", "out of",
                 id="ingress-outside"),
    pytest.param([(SITE, "address: 192.168.101.102", "address: ingress.icar.cnr.it")],
                 "site_ingress_address", f"{SITE}@site_ingress", "is no IPv4 address", "out of",
                 id="ingress-is-a-name"),

    # Names of the site
    pytest.param([(SITE, "site_name: h2iosc", "site_name: H2IOSC at ICAR")],
                 "site_name", f"{SITE}@site_name", "no short name", "write h2iosc-at-icar", id="site-name"),
    pytest.param([(SITE, "h2iosc.icar.cnr.it", "https://h2iosc.icar.cnr.it/jupyterhub")],
                 "site_host", f"{SITE}@site_host", "no bare host name", "write h2iosc.icar.cnr.it",
                 id="host-with-path"),
    pytest.param([(SITE, "h2iosc.icar.cnr.it", "h2iosc")],
                 "site_host", f"{SITE}@site_host", "no full host name", "with its domain", id="host-without-domain"),
    pytest.param([(SITE, "cluster.local", "icar.cnr.it")],
                 "site_cluster_domain", f"{SITE}@_domain", "swallow site_host", "cluster.local",
                 id="domain-swallows-host"),
    pytest.param([(SITE, "cluster.local", "cluster_local")],
                 "site_cluster_domain", f"{SITE}@_domain", "is no DNS domain", "cluster.local", id="domain-invalid"),

    # Sources
    pytest.param([(SITE, "", "site_bundle: bundle\n")],
                 "site_bundle", f"{SITE}@site_bundle", "neither an absolute path nor a URL", "/PATH",
                 id="bundle-relative"),
    pytest.param([(SITE, "", "site_bundle: /nonexistent/bundle\n")],
                 "site_bundle", f"{SITE}@site_bundle", "not there", "provision.py bundle build --site h2iosc",
                 id="bundle-not-there"),
    pytest.param([(SITE, "", "site_bundle: '{{ inventory_dir }}'\n")],
                 "site_bundle", f"{SITE}@site_bundle", "holds no rke2/v1.30.14+rke2r4", "bundle build",
                 id="bundle-of-another-release"),
    pytest.param([(SITE, "", "site_proxy: proxy.icar.cnr.it:3128\n")],
                 "site_proxy", f"{SITE}@site_proxy", "is no URL", "http://HOST:PORT", id="proxy-without-scheme"),
    pytest.param([(SITE, "", "site_proxy: http://luigi:geheim@proxy.icar.cnr.it:3128\n")],
                 "site_proxy", f"{SITE}@site_proxy", "holds a password", "by their addresses",
                 id="proxy-with-password"),
    pytest.param([(SITE, "", "site_time_servers: [ntp.icar.cnr.it, 'ntp icar']\n")],
                 "site_time_servers", f"{SITE}@site_time", "no host", "a name or an address", id="time-server"),
    pytest.param([(SITE, "", "site_ca_certificates:\n  icar: /etc/ssl/icar.pem\n")],
                 "site_ca_certificates.icar", f"{SITE}@icar: /etc", "is no certificate", "PEM text itself",
                 id="authority-is-a-path"),
    pytest.param([(SITE, "", f"site_ca_certificates:\n  icar: '{KEY}'\n")],
                 "site_ca_certificates.icar", f"{SITE}@icar: '---", "private key", "make a new key",
                 id="authority-with-key"),

    # Values of charts
    pytest.param([(HUB, "",
                   "jupyterhub_values: {hub: {extraEnv: {OAUTH2_TLS_VERIFY: 'false'}}}\n")],
                 "jupyterhub_values.hub.extraEnv.OAUTH2_TLS_VERIFY",
                 f"{HUB}@TLS_VERIFY", "or seems to", "site_ca_certificates", id="verification-off"),
    pytest.param([(HUB, "",
                   "jupyterhub_values:\n  hub:\n    extraEnv:\n      - name: OAUTH_TLS_VERIFY\n        value: 0\n")],
                 "jupyterhub_values.hub.extraEnv.0.name",
                 f"{HUB}@TLS_VERIFY", "or seems to", "site_ca_certificates", id="verification-off-in-a-list"),
    pytest.param([(HUB, "",
                   "jupyterhub_values: {hub: {config: {GenericOAuthenticator: {validate_server_cert: no}}}}\n")],
                 "jupyterhub_values.hub.config.GenericOAuthenticator.validate_server_cert",
                 f"{HUB}@validate", "verification of certificates", "site_ca_certificates", id="server-not-verified"),
    pytest.param([(HUB, "",
                   "jupyterhub_values: {hub: {config: {KubeSpawner: {delete_pvc: true}}}}\n")],
                 "jupyterhub_values.hub.config.KubeSpawner.delete_pvc",
                 f"{HUB}@delete_pvc", "deletes a home", "outlive", id="homes-deleted"),
    pytest.param([(HUB, "",
                   "jupyterhub_values: {hub: {config: {GenericOAuthenticator: {allow_all: true}}}}\n")],
                 "jupyterhub_values.hub.config.GenericOAuthenticator.allow_all",
                 f"{HUB}@allow_all", "every account", "site_user_group", id="everybody-allowed"),
    pytest.param([(HUB, "",
                   "jupyterhub_values: {hub: {consecutiveFailureLimit: 5}}\n")],
                 "jupyterhub_values.hub.consecutiveFailureLimit",
                 f"{HUB}@FailureLimit", "ends the hub for everybody", "the role's 0", id="hub-ends-itself"),
    pytest.param([(HUB, "",
                   "jupyterhub_values: {hub: {networkPolicy: {egressAllowRules: {privateIPs: true}}}}\n")],
                 "jupyterhub_values.hub.networkPolicy.egressAllowRules.privateIPs",
                 f"{HUB}@privateIPs", "every private address", "jupyterhub_user_networks", id="private-networks-open"),
    pytest.param([(HUB, "",
                   "jupyterhub_values: {singleuser: {cloudMetadata: {blockWithIptables: true}}}\n")],
                 "jupyterhub_values.singleuser.cloudMetadata.blockWithIptables",
                 f"{HUB}@blockWith", "privileged container", "a policy", id="privileged-container"),
    pytest.param([(HUB, "",
                   "jupyterhub_values: {hub: {config: {JupyterHub: {tornado_settings: {cookie_options: {}}}}}}\n")],
                 "jupyterhub_values.hub.config.JupyterHub.tornado_settings",
                 f"{HUB}@tornado", "the chart has made", "update(...)", id="settings-replaced"),
    pytest.param([(HUB, "",
                   "jupyterhub_values: {proxy: {service: {type: LoadBalancer}}}\n")],
                 "jupyterhub_values.proxy.service.type",
                 f"{HUB}@LoadBalancer", "second address", "site_ingress_address", id="second-address"),
    pytest.param([(HUB, "",
                   "keycloak_values: {service: {annotations: {metallb.io/loadBalancerIPs: 192.168.101.108}}}\n")],
                 "keycloak_values.service.annotations.metallb.io/loadBalancerIPs",
                 f"{HUB}@101.108", "second address", "site_ingress_address", id="second-address-by-annotation"),
    pytest.param([(SITE, "",
                   "site_home_storage_class: local-path\n")],
                 "site_home_storage_class",
                 f"{SITE}@site_home_storage_class", "nodes' own disks", "file server", id="homes-on-a-node"),

    # Versions
    pytest.param([(VERSIONS, "v1.30.14+rke2r4", "1.30.14")],
                 "rke2_version", f"{VERSIONS}@rke2_version", "is no release", "with its v and its +rke2rN",
                 id="version-format"),
    pytest.param([(VERSIONS, "v1.30.14+rke2r4", "v1.37.0+rke2r1")],
                 "rke2_version", f"{VERSIONS}@rke2_version", "does not have", "1.36", id="version-of-the-future"),
    pytest.param([(VERSIONS, "v1.30.14+rke2r4", "v1.30.6+rke2r1")],
                 "rke2_version", f"{VERSIONS}@rke2_version", "CVE-2025-1974", "v1.30.11+rke2r1",
                 id="version-with-a-hole"),
    pytest.param([(VERSIONS, "", "helm_release_helm_version: v3.19.0\n")],
                 "helm_release_helm_version", f"{VERSIONS}@helm_", "does not go with Kubernetes 1.30", "3.18",
                 id="helm-too-new"),
    pytest.param([(VERSIONS, "", "gpu_operator_chart_version: v26.3.3\n")],
                 "gpu_operator_chart_version", f"{VERSIONS}@gpu_", "does not go with", "25.3",
                 id="gpu-operator-too-new"),
    pytest.param([(VERSIONS, "", "certificates_chart_version: v1.21.1\n")],
                 "certificates_chart_version", f"{VERSIONS}@certif", "does not go with", "1.18",
                 id="cert-manager-too-new"),
]
# fmt: on


def place(inventory: Path, spec: str) -> str:
    """Return `file` or `file:line` for `file@text@n`: the line of the first text in it, n lines further down."""
    name, _, rest = spec.partition("@")
    text, _, further = rest.partition("@")
    path = inventory / name
    if not text:
        return str(path)
    numbers = [number for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if text in line]
    return f"{path}:{numbers[0] + int(further or 0)}"


@pytest.mark.proves("preflight-faulty-sites", "preflight-unsafe-values")
@pytest.mark.parametrize(("edits", "key", "where", "what", "fix"), FAULTY)
def test_a_faulty_site_is_refused_with_file_key_and_fix(
    tmp_path: Path, edits: list[Edit], key: str, where: str, what: str, fix: str
) -> None:
    inventory = sites.make(tmp_path, edits)
    found = sites.findings(inventory)
    mine = [finding for finding in found if finding.key == key and what in finding.what]
    assert mine, f"nothing about {key}: {what}; found {found}"
    assert mine[0].where == place(inventory, where)
    assert fix in mine[0].fix
    assert mine[0].seen


@pytest.mark.proves("preflight-faulty-sites")
def test_there_are_more_than_forty_kinds_of_fault() -> None:
    assert len(FAULTY) >= 40


@pytest.mark.proves("preflight-faulty-sites")
def test_all_faults_of_a_site_are_told_at_once(tmp_path: Path) -> None:
    edits: list[Edit] = [
        (SITE, "site_name: h2iosc\n", ""),
        (SITE, "192.168.101.20", "192.168.101.21"),
        (HOSTS, THIRD, ""),
        (VERSIONS, "rke2r4", "rke2"),
        (VAULT, TOKEN, "short"),
    ]
    keys = {finding.key for finding in sites.findings(sites.make(tmp_path, edits))}
    assert keys == {"site_name", "site_api_address", "rke2_server", "rke2_version", "vault_site_rke2_token"}


@pytest.mark.proves("preflight-secrets")
def test_a_secret_that_others_have_made_is_not_judged_by_our_rules(tmp_path: Path) -> None:
    given = 'vault_site_certificate_authority_key: "-----BEGIN KEY-----\\nMA==\\n"\nvault_site_ldap_password: Sommer1\n'
    assert sites.findings(sites.make(tmp_path, [(VAULT, "", given)])) == []


@pytest.mark.proves("preflight-secrets")
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("Zq9-canary-4f", id="short"),
        pytest.param(f"K10{TOKEN}::server:Zq9-canary-4f", id="full-token"),
        pytest.param("Zq9-canary-password" * 3, id="well-known"),
        pytest.param('"Zq9-canary 4f"', id="white-space"),
    ],
)
def test_no_finding_shows_a_secret(tmp_path: Path, value: str) -> None:
    found = sites.findings(sites.make(tmp_path, [(VAULT, TOKEN, value)]))
    assert found
    assert "canary" not in repr(found)


@pytest.mark.proves("preflight-secrets")
def test_secrets_of_an_adopted_cluster_are_taken_as_they_are_and_no_other(tmp_path: Path) -> None:
    edits: list[Edit] = [(VAULT, TOKEN, "change-me"), (VAULT, AGENT_TOKEN, "change-me"), (VAULT, PASSWORD, "weak")]
    named = "site_adopted_secrets: [vault_site_rke2_token, vault_site_rke2_agent_token]\n"
    found = sites.findings(sites.make(tmp_path, [*edits, (SITE, "", named)]))
    assert [finding.key for finding in found] == ["vault_site_api_address_password"]


@pytest.mark.proves("preflight-secrets")
def test_no_finding_shows_a_secret_in_clear_text_or_in_a_proxy(tmp_path: Path) -> None:
    edits: list[Edit] = [
        ("group_vars/all/open.yml", "", "vault_site_rke2_agent_token: Zq9-canary-4f\n"),
        (SITE, "", "site_proxy: http://luigi:Zq9-canary@proxy.icar.cnr.it:3128\n"),
    ]
    found = sites.findings(sites.make(tmp_path, edits))
    assert {"vault_site_rke2_agent_token", "site_proxy"} <= {finding.key for finding in found}
    assert "canary" not in repr(found)
