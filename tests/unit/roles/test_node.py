"""What the role node decides from a machine's answers, without any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = Path(__file__).resolve().parents[3] / "roles/node"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----"


def answer(**different: Any) -> dict[str, Any]:
    """Return what node_info says of a Debian 12 machine on which nothing is left to do, with `different` parts.

    A dict among `different` is merged into the part of that name, everything else replaces it.
    """
    off = {"found": False, "state": "inactive", "enabled": ""}
    units = ("firewalld.service", "NetworkManager.service", "nm-cloud-setup.service", "nm-cloud-setup.timer")
    now: dict[str, Any] = {
        "hostname": "one",
        "os": {"id": "debian", "version": "12", "name": "Debian GNU/Linux 12 (bookworm)"},
        "swaps": [],
        "packages": {
            name: {"version": "1", "held": False}
            for name in ("ca-certificates", "chrony", "iptables", "kmod", "procps", "python3-apt")
        },
        "services": dict.fromkeys(units, off)
        | {"chrony.service": {"found": True, "state": "active", "enabled": "enabled"}},
        "sysctls": {"net.ipv4.ip_forward": "1"},
        "paths": {
            "/sys/module/vxlan": True,
            "/etc/cloud/cloud.cfg.d": False,
            "/etc/rancher/node/password": False,
            "/var/lib/rancher/rke2/agent": False,
        },
        "files": {
            "/etc/chrony/chrony.conf": "pool 2.debian.pool.ntp.org iburst\n",
            "/etc/fstab": "",
            "/etc/hostname": "one\n",
            "/etc/hosts": "127.0.0.1 localhost\n",
            "/etc/metalhub/held_packages": None,
            "/etc/ufw/ufw.conf": None,
            "/usr/share/chrony/chrony.conf": "pool 2.debian.pool.ntp.org iburst\n",
        },
        "globs": [],
        "contains": {},
        "time": {"running": True, "synchronised": True, "sources": {"192.0.2.1": True}},
    }
    for name, value in different.items():
        now[name] = now[name] | value if isinstance(value, dict) else value
    return now


def decide(name: str, now: dict[str, Any], **inputs: Any) -> Any:
    """Return the role's variable `name` for a machine that answers `now`, with the inputs given."""
    loader = DataLoader()
    variables: dict[str, Any] = {}
    for part in ("defaults", "vars"):
        variables |= loader.load_from_file(str(ROLE / part / "main.yml"), trusted_as_template=True)
    variables |= {
        "node_hostname": "one",
        "node_hosts": {"one": "192.0.2.21", "two": "192.0.2.22"},
        "node_api_address": "192.0.2.20",
        "node_kernel_modules": {"vxlan": "/sys/module/vxlan"},
        "node_sysctls": {"net.ipv4.ip_forward": 1},
        "node_time_servers": ["192.0.2.1"],
        "node_ca_certificates": {},
        "node_proxy": "",
        "node_proxy_bypass": [],
        "__node_now": now,
        "__node_laid_down": {"pending_paths": []},
    } | inputs
    return Templar(loader, variables=variables).template(variables[name])


def file_of(path: str, now: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    """Return the entry for `path` among the files that the role would lay down."""
    found: list[dict[str, Any]] = [file for file in decide("__node_files", now, **inputs) if file["path"] == path]
    assert len(found) == 1, f"{path} is laid down {len(found)} times"
    return found[0]


def steps(now: dict[str, Any], **inputs: Any) -> dict[str, list[str]]:
    """Return the steps that are needed: what -> argv."""
    return {step["what"]: step["argv"] for step in decide("__node_steps", now, **inputs) if step["needed"]}


def test_a_machine_that_is_as_wanted_needs_no_step_and_is_not_refused() -> None:
    assert steps(answer()) == {}
    assert decide("__node_refusals", answer()) == []
    assert decide("__node_packages_missing", answer()) == []


@pytest.mark.parametrize(
    ("different", "what", "argv"),
    [
        pytest.param(
            {"paths": {"/sys/module/vxlan": False}}, "load kernel modules", ["modprobe", "--all", "vxlan"], id="module"
        ),
        pytest.param(
            {"sysctls": {"net.ipv4.ip_forward": "0"}},
            "set kernel parameters",
            ["sysctl", "-w", "net.ipv4.ip_forward=1"],
            id="sysctl",
        ),
        pytest.param({"hostname": "two"}, "set the host name", ["hostnamectl", "set-hostname", "one"], id="host-name"),
        pytest.param(
            {"time": {"sources": {"192.0.2.9": True}}},
            "restart time synchronisation",
            ["systemctl", "restart", "chrony.service"],
            id="chrony-runs-with-other-servers",
        ),
        pytest.param(
            {"time": {"running": False}},
            "restart time synchronisation",
            ["systemctl", "restart", "chrony.service"],
            id="chrony-stopped",
        ),
        pytest.param(
            {"services": {"chrony.service": {"found": True, "state": "active", "enabled": "disabled"}}},
            "start time synchronisation at boot",
            ["systemctl", "enable", "chrony.service"],
            id="chrony-not-at-boot",
        ),
    ],
)
def test_one_difference_needs_exactly_its_step(different: dict[str, Any], what: str, argv: list[str]) -> None:
    assert steps(answer(**different)) == {what: argv}


@pytest.mark.proves("node-blocked-modules")
def test_a_blocked_module_is_not_loaded_again_and_one_that_is_loaded_asks_for_a_reboot() -> None:
    blocked = {"node_blocked_modules": ["nouveau"]}
    path = "/etc/modprobe.d/metalhub.conf"
    clean = answer(paths={"/sys/module/nouveau": False})
    loaded = answer(paths={"/sys/module/nouveau": True})
    assert file_of(path, clean, **blocked)["content"].splitlines()[1:] == [
        "blacklist nouveau",
        "install nouveau /bin/false",
    ]
    assert file_of(path, clean)["state"] == "absent"
    assert "/sys/module/nouveau" in decide("__node_ask_paths", clean, **blocked)
    assert steps(clean, **blocked) == {}
    (argv,) = steps(loaded, **blocked).values()
    assert argv[0] == "update-initramfs"
    (said,) = (one for one in decide("__node_findings", loaded, **blocked) if "nouveau" in one)
    assert "reboot" in said
    assert not [one for one in decide("__node_findings", clean, **blocked) if "nouveau" in one]


@pytest.mark.proves("node-swap")
def test_swap_is_turned_off_now_and_for_the_next_boot() -> None:
    fstab = (
        "# /etc/fstab\n"
        "UUID=1 / ext4 defaults 0 1\n"
        "UUID=2\tnone\tswap\tsw\t0\t0\n"
        "/swap.img none swap sw 0 0\n"
        "# /old none swap sw 0 0\n"
        "server:/swap /srv/swap nfs defaults 0 0\n"
    )
    now = answer(swaps=[{"device": "/dev/sda2", "unit": "dev-sda2.swap"}], files={"/etc/fstab": fstab})
    assert steps(now) == {
        "keep swap off after a reboot": ["systemctl", "mask", "--", "dev-sda2.swap"],
        "turn swap off": ["swapoff", "--all"],
    }
    after = file_of("/etc/fstab", now)["content"]
    left = [line for line in after.splitlines() if not line.startswith("#")]
    assert left == ["UUID=1 / ext4 defaults 0 1", "server:/swap /srv/swap nfs defaults 0 0"]
    assert file_of("/etc/fstab", answer(files={"/etc/fstab": after}))["content"] == after


@pytest.mark.proves("node-swap")
def test_swap_of_somebody_else_is_left_alone() -> None:
    now = answer(
        swaps=[{"device": "/dev/sda2", "unit": "dev-sda2.swap"}], files={"/etc/fstab": "/a none swap sw 0 0\n"}
    )
    assert steps(now, node_swap_managed=False) == {}
    assert "/etc/fstab" not in [file["path"] for file in decide("__node_files", now, node_swap_managed=False)]


BLOCK = "# BEGIN metalhub\n192.0.2.21 one\n192.0.2.22 two\n192.0.2.20 rke2-api\n# END metalhub\n"


@pytest.mark.proves("node-hosts")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("a b\n", "a b\n" + BLOCK, id="no-block-yet"),
        pytest.param("a b", "a b\n" + BLOCK, id="no-final-newline"),
        pytest.param("", BLOCK, id="empty"),
        pytest.param(None, BLOCK, id="missing"),
        pytest.param("a\n" + BLOCK + "z\n", "a\n" + BLOCK + "z\n", id="as-wanted-in-the-middle"),
        pytest.param("a\n# BEGIN metalhub\nold\n# END metalhub\nz\n", "a\n" + BLOCK + "z\n", id="outdated"),
        pytest.param(
            "# BEGIN metalhub\nold\nmine\n" + BLOCK,
            "# BEGIN metalhub\nold\nmine\n" + BLOCK,
            id="an-end-was-lost-before",
        ),
    ],
)
def test_lines_outside_the_block_in_the_hosts_file_are_never_touched(before: str | None, after: str) -> None:
    assert file_of("/etc/hosts", answer(files={"/etc/hosts": before}))["content"] == after


@pytest.mark.proves("node-kernel-hold")
def test_a_hold_of_the_administrators_own_is_never_released() -> None:
    kernels = {
        "linux-image-ours": {"version": "1", "held": False},
        "linux-image-theirs": {"version": "1", "held": True},
    }
    now = answer(packages=kernels)
    assert steps(now, node_kernel_hold_enabled=True) == {"hold the kernel": ["apt-mark", "hold", "linux-image-ours"]}
    marker = file_of("/etc/metalhub/held_packages", now, node_kernel_hold_enabled=True)
    assert marker["content"] == "linux-image-ours\n"
    kernels["linux-image-ours"]["held"] = True
    now = answer(packages=kernels, files={"/etc/metalhub/held_packages": marker["content"]})
    assert steps(now, node_kernel_hold_enabled=True) == {}
    assert file_of("/etc/metalhub/held_packages", now, node_kernel_hold_enabled=True)["content"] == marker["content"]
    assert steps(now) == {"release the kernel": ["apt-mark", "unhold", "linux-image-ours"]}
    assert file_of("/etc/metalhub/held_packages", now)["state"] == "absent"


@pytest.mark.proves("node-time")
def test_a_site_that_names_no_servers_any_more_goes_back_to_the_distributions() -> None:
    ours = decide("__node_chrony_content", answer())
    assert file_of("/etc/chrony/chrony.conf", answer())["content"] == ours
    now = answer(files={"/etc/chrony/chrony.conf": ours})
    assert file_of("/etc/chrony/chrony.conf", now, node_time_servers=[])["content"].startswith("pool 2.debian.pool")
    untouched = [file["path"] for file in decide("__node_files", answer(), node_time_servers=[])]
    assert "/etc/chrony/chrony.conf" not in untouched


def test_packages_of_the_site_are_installed_too_and_a_foreign_clock_needs_no_chrony() -> None:
    now = answer()
    del now["packages"]["chrony"]
    assert decide("__node_packages_missing", now, node_packages_extra=["nfs-common"]) == ["chrony", "nfs-common"]
    assert decide("__node_packages_missing", now, node_time_sync_managed=False) == []


@pytest.mark.proves("node-refuses")
@pytest.mark.parametrize(
    ("different", "inputs", "said"),
    [
        pytest.param(
            {"os": {"id": "rocky", "version": "9", "name": "Rocky Linux 9"}},
            {},
            ["Rocky Linux 9", "debian-12, ubuntu-22.04, ubuntu-24.04"],
            id="other-system",
        ),
        pytest.param(
            {"hostname": "old", "paths": {"/etc/rancher/node/password": True}},
            {},
            ["is the node old", "node_hostname: old"],
            id="would-rename-a-node",
        ),
        pytest.param(
            {"services": {"firewalld.service": {"found": True, "state": "active", "enabled": "enabled"}}},
            {},
            ["systemctl disable --now firewalld", "node_firewall_policy: disable"],
            id="firewalld",
        ),
        pytest.param({"files": {"/etc/ufw/ufw.conf": "ENABLED=yes\n"}}, {}, ["ufw disable"], id="ufw"),
        pytest.param({}, {"node_proxy": "http://me:secret@proxy:3128"}, ["password"], id="proxy-with-password"),
        pytest.param({}, {"node_ca_certificates": {"a": CERTIFICATE * 2}}, ["a is not", "one certificate"], id="chain"),
        pytest.param({}, {"node_ca_certificates": {"a/b": CERTIFICATE}}, ["a/b is not"], id="path-as-name"),
    ],
)
def test_what_cannot_be_prepared_is_refused_with_the_remedy(
    different: dict[str, Any], inputs: dict[str, Any], said: list[str]
) -> None:
    refusals = decide("__node_refusals", answer(**different), **inputs)
    assert len(refusals) == 1
    assert [text for text in said if text not in refusals[0]] == []
    assert "secret" not in refusals[0]


def test_a_firewall_that_the_site_gives_up_is_turned_off() -> None:
    now = answer(files={"/etc/ufw/ufw.conf": "ENABLED=yes\n"})
    assert decide("__node_refusals", now, node_firewall_policy="disable") == []
    assert steps(now, node_firewall_policy="disable") == {"turn ufw off": ["ufw", "disable"]}


@pytest.mark.proves("node-trust")
def test_a_certificate_taken_out_of_the_list_is_removed_and_the_list_of_trust_rebuilt() -> None:
    paths = ["/etc/ssl/certs/metalhub-old.pem", "/usr/local/share/ca-certificates/metalhub-old.crt"]
    now = answer(globs=paths, contains={"new": True})
    assert list(steps(now, node_ca_certificates={"new": CERTIFICATE})) == ["rebuild the list of trusted certificates"]
    assert file_of(paths[1], now, node_ca_certificates={"new": CERTIFICATE})["state"] == "absent"
    kept = file_of("/usr/local/share/ca-certificates/metalhub-new.crt", now, node_ca_certificates={"new": CERTIFICATE})
    assert kept["content"] == CERTIFICATE + "\n"


@pytest.mark.parametrize(
    ("different", "said"),
    [
        pytest.param({"hostname": "two"}, "host name is two", id="host-name"),
        pytest.param({"sysctls": {"net.ipv4.ip_forward": None}}, "net.ipv4.ip_forward", id="sysctl"),
        pytest.param({"paths": {"/sys/module/vxlan": False}}, "vxlan", id="module"),
        pytest.param({"time": {"running": False}}, "journalctl -u chrony", id="chrony-down"),
        pytest.param(
            {"time": {"synchronised": False, "sources": {"192.0.2.1": False}}},
            "no time server answers (192.0.2.1)",
            id="no-source",
        ),
        pytest.param({"contains": {"a": False}}, "not trusted: a", id="trust"),
        pytest.param({"swaps": [{"device": "/dev/sda2", "unit": "u"}]}, "/dev/sda2", id="swap"),
    ],
)
def test_verification_names_what_is_wrong(different: dict[str, Any], said: str) -> None:
    fine = answer(files={"/etc/hosts": BLOCK})
    assert decide("__node_findings", fine) == []
    found = decide("__node_findings", answer(files={"/etc/hosts": BLOCK}, **different))
    assert len(found) == 1
    assert said in found[0]
