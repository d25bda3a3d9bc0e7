"""A machine with the role's defaults, looked at from inside."""

from __future__ import annotations

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://node_default"]


@pytest.mark.parametrize("name", ["ca-certificates", "chrony", "iptables", "kmod", "procps"])
def test_package_is_installed(host: Host, name: str) -> None:
    assert host.package(name).is_installed


@pytest.mark.proves("node-time")
def test_time_synchronisation_runs_starts_at_boot_and_has_heard_from_a_source(host: Host) -> None:
    chrony = host.service("chrony")
    assert (chrony.is_running, chrony.is_enabled) == (True, True), host.check_output("journalctl -u chrony --no-pager")
    reach = [int(line.split(",")[5], 8) for line in host.check_output("chronyc -c sources").splitlines()]
    assert any(reach), host.check_output("chronyc sources")


@pytest.mark.proves("node-time")
def test_chrony_asks_the_sites_servers_and_no_others(host: Host) -> None:
    configured = set(host.ansible.get_variables()["site_time_servers"])
    assert configured, "the scenario names no time servers: nothing was checked"
    assert {line.split(",")[2] for line in host.check_output("chronyc -c -N sources").splitlines()} == configured


@pytest.mark.proves("node-hosts")
def test_names_of_all_machines_and_of_the_api_resolve(host: Host) -> None:
    variables = host.ansible.get_variables()
    found = [host.check_output(f"getent ahostsv4 {name}").split()[0] for name in variables["groups"]["rke2"]]
    assert len(set(found)) == len(found) >= 2
    assert not [address for address in found if address.startswith("127.")]
    assert host.check_output("getent ahostsv4 rke2-api").split()[0] == variables["site_api_address"]


@pytest.mark.proves("node-kernel")
@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"])
def test_kernel_parameter_is_set_now_and_for_the_next_boot(host: Host, name: str) -> None:
    assert host.sysctl(name) == 1
    assert f"{name} = 1" in host.file("/etc/sysctl.d/99-zz-metalhub.conf").content_string


@pytest.mark.proves("node-kernel")
def test_modules_are_loaded_at_the_next_boot(host: Host) -> None:
    lines = host.file("/etc/modules-load.d/metalhub.conf").content_string.splitlines()
    assert {"br_netfilter", "overlay", "vxlan"} <= set(lines)


@pytest.mark.parametrize("path", ["/etc/cloud", "/etc/metalhub/held_packages", "/etc/NetworkManager"])
def test_nothing_is_written_for_what_the_machine_does_not_have(host: Host, path: str) -> None:
    assert not host.file(path).exists
