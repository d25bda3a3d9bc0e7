"""A machine with a past and every switch the other way, looked at from inside."""

from __future__ import annotations

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://node_alternative"]


@pytest.mark.proves("node-host-name")
def test_the_machine_is_renamed_now_and_for_the_next_boot(host: Host) -> None:
    assert host.check_output("hostname") == "renamed"
    assert host.file("/etc/hostname").content_string.strip() == "renamed"


def test_the_api_has_the_name_that_was_chosen(host: Host) -> None:
    assert host.ansible.get_variables()["site_api_address"] in host.check_output("getent ahostsv4 api.example.test")


def test_a_clock_kept_by_somebody_else_is_left_alone(host: Host) -> None:
    assert not host.file("/etc/chrony/conf.d/metalhub.conf").exists
    assert "metalhub" not in host.run("cat /etc/chrony/chrony.conf").stdout


@pytest.mark.proves("node-trust")
def test_the_sites_authority_is_trusted_and_one_taken_out_no_longer(host: Host) -> None:
    assert (
        host.run("openssl verify -CApath /etc/ssl/certs /usr/local/share/ca-certificates/metalhub-molecule.crt").rc == 0
    )
    assert host.file("/etc/ssl/certs/metalhub-molecule.pem").exists
    for gone in ("/usr/local/share/ca-certificates/metalhub-gone.crt", "/etc/ssl/certs/metalhub-gone.pem"):
        assert not host.file(gone).exists
        assert not host.file(gone).is_symlink


@pytest.mark.proves("node-firewall")
@pytest.mark.parametrize("unit", ["firewalld", "nm-cloud-setup"])
def test_what_meddles_with_canals_network_is_off_now_and_at_boot(host: Host, unit: str) -> None:
    assert not host.service(unit).is_running
    assert not host.service(unit).is_enabled


@pytest.mark.proves("node-firewall")
def test_ufw_is_off(host: Host) -> None:
    assert "ENABLED=no" in host.file("/etc/ufw/ufw.conf").content_string


@pytest.mark.proves("node-network-manager")
def test_networkmanager_leaves_canals_interfaces_alone_and_was_told_so(host: Host) -> None:
    content = host.file("/etc/NetworkManager/conf.d/rke2-canal.conf").content_string
    line = next(line for line in content.splitlines() if line.startswith("unmanaged-devices="))
    assert {"interface-name:flannel*", "interface-name:cali*"} <= set(line.partition("=")[2].split(";"))
    assert host.file("/run/network-manager-reloaded").exists


@pytest.mark.proves("node-kernel-hold")
def test_the_kernel_is_held(host: Host) -> None:
    assert host.check_output("apt-mark showhold") == "linux-image-6.0.0-stand-in"


@pytest.mark.proves("node-kernel")
def test_a_value_in_sysctl_conf_does_not_win_at_the_next_boot(host: Host) -> None:
    assert host.sysctl("net.ipv4.ip_forward") == 1
    order = host.check_output("ls /etc/sysctl.d").splitlines()
    assert order.index("99-zz-metalhub.conf") > order.index("99-sysctl.conf")


@pytest.mark.proves("node-proxy")
def test_apt_asks_the_proxy_but_not_for_the_mirror(host: Host) -> None:
    proxies = host.check_output("apt-config dump Acquire::http::Proxy").splitlines()
    assert 'Acquire::http::Proxy "http://proxy.example.test:3128";' in proxies
    assert 'Acquire::http::Proxy::mirror.example.test "DIRECT";' in proxies
    assert not [line for line in proxies if "10.0.0.0" in line or "Proxy::." in line]
