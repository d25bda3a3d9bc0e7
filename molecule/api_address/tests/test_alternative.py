"""A server behind a load balancer of the site's own."""

from __future__ import annotations

from testinfra.host import Host

testinfra_hosts = ["ansible://api_address_alternative"]


def test_nothing_is_installed(host: Host) -> None:
    assert not host.package("keepalived").is_installed


def test_what_an_earlier_run_had_laid_down_is_gone(host: Host) -> None:
    for name in ("keepalived.conf", "check_serves", "check_listens"):
        assert not host.file(f"/etc/keepalived/{name}").exists
