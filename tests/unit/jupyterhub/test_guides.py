"""The guides tell of this site and no other, and what they say to type can be typed."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from provisioner.cli import app
from tests.unit.jupyterhub.test_hub_code import ROLE, ROOT, decide, plugins

pytestmark = pytest.mark.proves("jupyterhub-guides")
__all__ = ["plugins"]  # a fixture that this file uses, too

GUIDES = ("users", "troubleshooting", "administrators")
SITE = {"inventory_dir": "/where/inventories/h2iosc"}
NAMESPACED = {"pods", "pod", "logs", "events", "persistentvolumeclaims"}


def guide(name: str, **inputs: Any) -> str:
    """Return one guide of a site."""
    return str(decide("__jupyterhub_guides", **SITE, **inputs)[name])


@pytest.fixture(scope="module")
def guides(plugins: None) -> dict[str, str]:
    """Return the guides of a site that sets nothing."""
    return dict(decide("__jupyterhub_guides", **SITE))


def commands(text: str) -> Iterator[str]:
    """Yield each line to be typed: those of fenced blocks, and spans of code that begin with a program."""
    for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S):
        yield from block.splitlines()
    yield from (span for span in re.findall(r"`([^`\n]+)`", text) if span.split()[0] in ("curl", "echo", "python"))


@pytest.mark.parametrize("name", GUIDES)
def test_every_command_is_one_that_a_shell_takes(guides: dict[str, str], name: str) -> None:
    found = list(commands(guides[name]))
    assert found
    for line in found:
        shell = subprocess.run(["bash", "-n", "-c", line], check=False, capture_output=True, text=True)
        assert not shell.stderr, line
        words = shlex.split(line)
        if words[0] == "python" and words[1] == "-c":
            ast.parse(words[2])


def test_every_question_to_the_cluster_names_the_sites_credentials_and_the_hubs_namespace(
    guides: dict[str, str],
) -> None:
    asked = [shlex.split(line) for line in commands(guides["administrators"]) if line.startswith("kubectl")]
    assert len(asked) > 10
    for words in asked:
        assert words[1:3] == ["--kubeconfig", "~/.kube/metalhub-test.yaml"]
        if NAMESPACED & set(words[3:]):
            assert words[words.index("-n") + 1] == "jupyterhub", words


def test_another_namespace_and_other_credentials_are_in_every_command() -> None:
    text = guide("administrators", jupyterhub_namespace="labs", jupyterhub_kubeconfig="/etc/cluster.yaml")
    assert "-n jupyterhub " not in text
    assert "metalhub-test" not in text
    assert "kubectl --kubeconfig /etc/cluster.yaml -n labs logs deployment/hub" in text


def test_machines_are_emptied_by_the_driver_which_tells_users_and_not_by_kubectl(guides: dict[str, str]) -> None:
    typed = list(commands(guides["administrators"]))
    assert [line for line in typed if "kubectl" in line and {"cordon", "drain", "uncordon"} & set(line.split())] == []
    assert {"reboot", "patch"} <= {line.split()[2] for line in typed if line.startswith("scripts/provision.py node ")}


def test_every_call_of_the_driver_is_one_that_it_takes(guides: dict[str, str]) -> None:
    called = [
        shlex.split(line)[1:] for line in commands(guides["administrators"]) if line.startswith("scripts/provision.py")
    ]
    assert len(called) >= 4
    for verb, *options in called:
        command: Any = typer.main.get_group(app).commands[verb]
        # A verb of two words, such as `node reboot`.
        if nested := getattr(command, "commands", {}):
            verb, *options = options  # noqa: PLW2901
            command = nested[verb]
        context = command.make_context(verb, options)
        assert context.params["site"] == "h2iosc"
        stages = [*(context.params.get("only") or []), *filter(None, [context.params.get("start")])]
        assert all((ROOT / f"playbooks/stages/{stage}.yml").is_file() for stage in stages)


def test_every_playbook_and_file_that_is_named_is_there(guides: dict[str, str]) -> None:
    playbooks = set(re.findall(r"playbooks/[\w/]+\.yml", guides["administrators"]))
    assert len(playbooks) >= 3
    assert [path for path in playbooks if not (ROOT / path).is_file()] == []
    specs = "".join(path.read_text() for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
    told = [
        re.match(r'(?:{")?(\w+)', words[place + 1])
        for words in map(shlex.split, commands(guides["administrators"]))
        for place, word in enumerate(words)
        if word == "-e"
    ]
    assert told
    assert [found[1] for found in told if found and f" {found[1]}:" not in specs] == []
    named = re.findall(r"`(inventories/[\w./]+)`", guides["administrators"])
    assert named
    assert [path for path in named if not (ROOT / path).parent.is_dir()] == []


def test_the_servers_in_the_guide_are_the_sites(guides: dict[str, str]) -> None:
    rows = [line.split(" | ") for line in guides["users"].splitlines() if line.startswith("| ")][1:]
    profiles = decide("jupyterhub_profiles")
    assert [row[0].removeprefix("| ") for row in rows] == [profile["display_name"] for profile in profiles]
    assert [row[1] for row in rows] == ["0", "1", "2", "4"]
    for row, profile in zip(rows, profiles, strict=True):
        for cell, part in ((row[2], "cpu"), (row[3], "memory")):
            sizes = [profile[part], *profile.get(f"{part}_choices", [])]
            assert cell == ", ".join(f"{size['guarantee']} / {size['limit']}" for size in sizes)
        assert row[4] == "`hub-users`, `hub-admins`"


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        pytest.param("users", {}, "<https://hub.example.org/jupyterhub/>", id="address"),
        pytest.param("users", {"jupyterhub_base_url": "/"}, "<https://hub.example.org/hub/token>", id="path"),
        pytest.param("users", {"site_identity_realm": "cnr"}, "https://hub.example.org/sso/realms/cnr/", id="realm"),
        pytest.param("administrators", {"site_identity_realm": "cnr"}, "/sso/admin/cnr/console/>", id="console"),
        pytest.param("users", {"jupyterhub_cull_idle_seconds": 7200}, "without activity for 2 hours", id="idle"),
        pytest.param("users", {"jupyterhub_cull_idle_seconds": 90}, "without activity for 90 seconds", id="seconds"),
        pytest.param("users", {"jupyterhub_cull_every_seconds": 60}, "looked for every 1 minute.", id="every"),
        pytest.param("users", {}, "computes nothing for 4 hours is ended", id="kernel"),
        pytest.param("administrators", {"jupyterhub_cull_kernel_seconds": 0}, "never ended", id="no-kernel"),
        pytest.param("users", {}, "There is no limit to its age.", id="no-age"),
        pytest.param("users", {"jupyterhub_cull_age_seconds": 172800}, "older than 2 days is stopped", id="age"),
        pytest.param("troubleshooting", {"jupyterhub_start_timeout_seconds": 900}, "15 minutes it is", id="start"),
        pytest.param("users", {"jupyterhub_home_capacity": "1000Gi"}, "`/home/jovyan`: 1000Gi", id="home"),
        pytest.param("users", {"jupyterhub_image": "a.example/b:c"}, "the image `a.example/b:c`", id="image"),
        pytest.param("users", {}, "fetch the image ahead of you, so a start takes seconds;", id="fetched"),
        pytest.param(
            "users", {"jupyterhub_image_prepull_enabled": False}, "first start on a machine fetches", id="not-fetched"
        ),
        pytest.param("users", {"site_user_group": "icar"}, "the group\n`icar`", id="group"),
        pytest.param("administrators", {"site_admin_group": "ops"}, "somebody in `ops`", id="administrators"),
        pytest.param("users", {}, "and no private networks.", id="no-networks"),
        pytest.param(
            "users", {"jupyterhub_user_networks": ["192.0.2.0/24"]}, "private networks `192.0.2.0/24`.", id="networks"
        ),
    ],
)
def test_a_value_of_the_site_is_in_the_guide(name: str, inputs: dict[str, Any], words: str) -> None:
    assert words in guide(name, **inputs)


def test_a_pipe_in_a_name_breaks_no_table() -> None:
    profile = {
        "slug": "odd", "display_name": "a | b", "gpus": 1, "resource": "nvidia.com/mig-1g.10gb",
        "cpu": {"guarantee": 1, "limit": 2}, "memory": {"guarantee": "1G", "limit": "2G"}, "groups": ["large"],
        "cpu_choices": [{"guarantee": 2, "limit": 4}],
    }  # fmt: skip
    text = guide("users", jupyterhub_profiles=[profile])
    assert r"| a \| b | 1 x nvidia.com/mig-1g.10gb | 1 / 2, 2 / 4 | 1G / 2G | `large` |" in text
    page = decide("__jupyterhub_guide_files", **SITE, jupyterhub_profiles=[profile])["metalhub-guide"]["stringData"]
    assert "<td>a | b</td>" in page


@pytest.mark.parametrize(
    ("wrong", "instead", "published"),
    [
        pytest.param(r"\bping\s+[^\n`]*\w\.\w", "curl", ["ping 8.8.8.8", "ping -c 3 google.com"], id="no-ping"),
        pytest.param(
            r"\bcu1\d\d\b|CUDA\s+\d", "nvidia-smi", ["whl/cu118", "driver compatible with CUDA 11.8+"], id="no-old-cuda"
        ),
        pytest.param(
            r"psutil\.\w+\(",
            "CPU_LIMIT",
            ["psutil.cpu_count()", "psutil.virtual_memory().total"],
            id="no-numbers-of-the-machine",
        ),
        pytest.param(r"\bclaim-[\w<{$]", "custom-columns", ["claim-USER", "claim-<user>"], id="no-guessed-claims"),
        pytest.param(
            r"labextension install|jupyterhub token",
            "hub/token",
            ["jupyter labextension install", "jupyterhub token --user --admin"],
            id="no-commands-of-old",
        ),
        pytest.param(
            r"panel\b[^.\n]*([,(:]\s*|(shows|has|gives) )((the|hub|server|its) )*logs\b",
            "shows no logs",
            ["the admin panel shows hub logs", "admin panel (list, access, stop, delete, edit, tokens, logs)"],
            id="no-logs-in-the-panel",
        ),
        pytest.param(
            r"conda create (?!.*--channel conda-forge)",
            "--channel conda-forge",
            ["conda create -n myenv python=3.11"],
            id="no-licensed-channel",
        ),
        pytest.param(
            r"\btabs?\b[^.\n]*\b((is|are|does|do|will) not (\w+ )*(activ\w+|count|keep)|is no activity|keeps)\b",
            "do not rely on it",
            [
                "idle open tab is not activity",
                "an open tab is not counted as activity",
                "a tab that is left open does not keep the server",
                "open tabs are not active",
                "an open tab keeps the server",
            ],
            id="no-promise-of-activity",
        ),
        pytest.param(
            r"GPUs?( \w+)? (is|are) shared|\(they are shared\)",
            "yours alone",
            ["GPU resources (they are shared)", "GPUs are shared"],
            id="no-shared-gpus",
        ),
        pytest.param(
            r"insecure|curl -k|--no-check|TLS_VERIFY=(false|0)",
            "certificate",
            ["OAUTH2_TLS_VERIFY=false"],
            id="no-verification-turned-off",
        ),
    ],
)
def test_the_published_guides_mistakes_are_not_repeated(
    guides: dict[str, str], wrong: str, instead: str, published: list[str]
) -> None:
    every = "\n".join(guides.values())
    # What would not find the mistake itself finds nothing.
    assert [sentence for sentence in published if not re.search(wrong, sentence)] == []
    assert not re.search(wrong, every)
    assert instead in every


def test_the_hubs_page_holds_the_users_guides_and_nothing_of_the_administrators() -> None:
    files = decide("__jupyterhub_guide_files", **SITE)
    page = files["metalhub-guide"]["stringData"]
    assert "<h1>Using the hub</h1>" in page
    assert "<h1>When something goes wrong</h1>" in page
    assert page.count("<table>") == 1
    assert "kubectl" not in page
    assert "{{" not in page
    assert '<a href="https://hub.example.org/jupyterhub/">Back to the hub</a>' in page


def test_html_in_a_value_is_shown_and_not_obeyed() -> None:
    evil = {"jupyterhub_image": "registry.example/<script>alert(1)</script>:1", "jupyterhub_home_capacity": "<b>1Gi"}
    page = decide("__jupyterhub_guide_files", **SITE, **evil)["metalhub-guide"]["stringData"]
    assert "<script>" not in page
    assert "<b>" not in page


def test_the_page_with_the_link_lies_where_the_hub_looks_for_pages_first() -> None:
    hub = decide("__jupyterhub_values", **SITE)["hub"]
    where = Path(hub["extraFiles"]["metalhub-page"]["mountPath"])
    assert [str(where.parent)] == hub["templatePaths"]
    assert where.name == "page.html"
    assert (ROLE / "files/hub/page.html").read_text() == hub["extraFiles"]["metalhub-page"]["stringData"]
