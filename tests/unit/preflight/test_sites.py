"""The repository's own sites pass, and the stage itself, run by ansible-playbook, refuses what is faulty."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from plugins.module_utils.site_files import read_inventory
from tests.unit.preflight import sites
from tests.unit.preflight.sites import PASSWORD, ROOT, SECRETS, Edit

HOSTS = "hosts.yml"
SITE = "group_vars/all/site.yml"
BIN = Path(sys.executable).parent


def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a control machine that has the password of the test's vaults and a home of its own."""
    password = tmp_path / "vault_password"
    password.write_text(PASSWORD, encoding="utf-8")
    return {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "METALHUB_VAULT_PASSWORD_FILE": str(password),
    }


def preflight(tmp_path: Path, inventory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the first play of the stage: the one that contacts no machine."""
    command = ["ansible-playbook", "-i", str(inventory), "playbooks/stages/preflight.yml", "--limit", "localhost"]
    return subprocess.run(
        [*command, *options],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def bundle(home: Path, inventory: Path) -> None:
    """Lay down what shows that the bundle of a site below its user's home holds the site's release."""
    release = yaml.safe_load((inventory / "group_vars/all/versions.yml").read_text(encoding="utf-8"))["rke2_version"]
    site = yaml.safe_load((inventory / SITE).read_text(encoding="utf-8"))
    below = re.sub(r"\{\{.*\}\}/", "", site["site_bundle"])
    directory = home / below / "rke2" / release
    directory.mkdir(parents=True)
    (directory / "sha256sum-amd64.txt").touch()


@pytest.mark.proves("preflight-good-sites")
def test_the_reference_site_passes(tmp_path: Path) -> None:
    assert sites.findings(sites.make(tmp_path, [])) == []


@pytest.mark.proves("preflight-good-sites")
def test_the_lab_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    inventory = sites.make(tmp_path, [], source="lab")
    bundle(tmp_path, inventory)
    assert sites.findings(inventory) == []


HUB = "group_vars/platform/jupyterhub.yml"
SAFE = "{consecutiveFailureLimit: 0, config: {KubeSpawner: {delete_pvc: false}, A: {validate_server_cert: true}}}"
GOOD = [
    pytest.param([(SITE, "", "site_bundle: https://mirror.icar.cnr.it/metalhub\n")], id="bundle-by-url"),
    pytest.param([(SITE, "101.101-192.168.101.150", "101.96/27")], id="pool-as-network"),
    pytest.param([(SITE, "", "site_time_servers: [ntp.icar.cnr.it, 192.168.101.1]\n")], id="time-servers"),
    pytest.param([(SITE, "", "site_proxy: http://proxy.icar.cnr.it:3128\n")], id="proxy"),
    pytest.param([(HUB, "", f"jupyterhub_values: {{hub: {SAFE}}}\n")], id="values-that-say-what-the-role-does"),
    pytest.param([(SITE, "", "site_state_storage_class: fast\n")], id="state-elsewhere"),
    pytest.param([(SITE, "", "local_helper: 1\n")], id="a-name-of-the-sites-own"),
    pytest.param(
        [
            (SITE, "", "site_api_address_mode: external\n"),
            (sites.VAULT, f"vault_site_api_address_password: {SECRETS['vault_site_api_address_password']}\n", ""),
        ],
        id="external-load-balancer-needs-no-password",
    ),
    pytest.param([("host_vars/uworker01.yml", "", "site_node_address: 192.168.102.24\n")], id="address-of-one-node"),
    pytest.param([("group_vars/all/versions.yml", "_helm_version: v3.18.6", "_helm_version: v3.17.3")], id="fits"),
]


@pytest.mark.proves("preflight-good-sites")
@pytest.mark.parametrize("edits", GOOD)
def test_what_is_allowed_is_not_refused(tmp_path: Path, edits: list[Edit]) -> None:
    assert sites.findings(sites.make(tmp_path, edits)) == []


@pytest.mark.proves("preflight-good-sites")
def test_the_stage_passes_the_reference_site_and_shows_no_secret_however_verbose(tmp_path: Path) -> None:
    done = preflight(tmp_path, sites.make(tmp_path, []), "-vvv")
    assert done.returncode == 0, done.stdout
    assert "ok=1" in done.stdout
    # The arguments were shown, so a secret among them would have been.
    assert "192.168.101.26" in done.stdout
    assert not [name for name, value in SECRETS.items() if value in done.stdout + done.stderr]


REFUSED = [
    pytest.param(
        [(SITE, "site_ingress_", "site_ingres_")], f"{SITE}:10", "write site_ingress", id="misspelt-parameter"
    ),
    pytest.param([(HOSTS, "    platform:", "    control:")], f"{HOSTS}:3", "add the group platform", id="no-platform"),
    pytest.param([(HOSTS, "    rke2:\n", "    rke2\n")], f"{HOSTS}:", "write valid YAML", id="broken-hosts-file"),
    pytest.param([(sites.VAULT, "", None)], sites.VAULT, "openssl rand -hex 32", id="no-secrets"),
    pytest.param([(SITE, "h2iosc.icar.cnr.it", '"{{ front }}"')], f"{SITE}:4", "define that variable", id="undefined"),
]


@pytest.mark.proves("preflight-faulty-sites")
@pytest.mark.parametrize(("edits", "where", "fix"), REFUSED)
def test_the_stage_itself_refuses_and_tells(tmp_path: Path, edits: list[Edit], where: str, fix: str) -> None:
    inventory = sites.make(tmp_path, edits)
    done = preflight(tmp_path, inventory)
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    assert f"{inventory}/{where}" in output
    assert fix in output


# Ansible reads the variables of localhost before any task and stops there without naming the file; whoever asks
# read_inventory first gets it named.
BROKEN = [
    pytest.param("site_name: 'h2iosc", id="open-quote"),
    pytest.param("site_name: h2iosc: icar", id="second-colon"),
    pytest.param("site_name h2iosc", id="no-colon"),
    pytest.param("\tsite_name: h2iosc", id="tab"),
    pytest.param("site_name: {h2iosc", id="open-brace"),
    pytest.param("site_name: \x00", id="no-text"),
]


@pytest.mark.proves("preflight-faulty-sites")
@pytest.mark.parametrize("text", BROKEN)
def test_a_variables_file_that_is_no_yaml_is_named_before_ansible_is_asked(tmp_path: Path, text: str) -> None:
    inventory = sites.make(tmp_path, [(SITE, "site_name: h2iosc", text)])
    problems = read_inventory([str(inventory)], ROOT).problems
    assert [problem.key for problem in problems] == ["site.yml"]
    assert problems[0].where.startswith(str(inventory / SITE))
    assert "valid YAML" in problems[0].what or "cannot be read" in problems[0].what


@pytest.mark.proves("preflight-faulty-sites")
def test_a_file_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    inventory = sites.make(tmp_path, [])
    (inventory / SITE).write_bytes(b"site_name: h2\xe9\n")
    problems = read_inventory([str(inventory)], ROOT).problems
    assert [(problem.key, problem.where) for problem in problems] == [("site.yml", str(inventory / SITE))]


@pytest.mark.proves("preflight-commands")
def test_the_printed_command_encrypts_what_was_readable(tmp_path: Path) -> None:
    inventory = sites.make(tmp_path, [])
    open_file = inventory / "group_vars/all/rke2.yml"
    (inventory / sites.VAULT).unlink()
    open_file.write_text(yaml.safe_dump(SECRETS), encoding="utf-8")
    refused = preflight(tmp_path, inventory)
    commands = set(re.findall(r"fix: +(ansible-vault encrypt .+)", refused.stdout))
    assert len(commands) == 1, refused.stdout
    subprocess.run(shlex.split(commands.pop()), cwd=ROOT, env=environment(tmp_path), check=True, capture_output=True)
    assert not any(value in open_file.read_text(encoding="utf-8") for value in SECRETS.values())
    passed = preflight(tmp_path, inventory)
    assert passed.returncode == 0, passed.stdout
