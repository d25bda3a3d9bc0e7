"""The hub answers by its public name, keeps what it was told, and a broken one is told by its verification."""

from __future__ import annotations

import json
import re
import ssl
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.running import SITE, Lab, eventually

STAGE = "playbooks/stages/jupyterhub.yml"
PARAMETERS = yaml.safe_load((SITE / "group_vars/all/site.yml").read_text())
URL = f"https://{PARAMETERS['site_host']}/jupyterhub/"


def open_url(path: str) -> Any:
    """Open a page of the hub from outside the cluster, trusting the site's bundle alone; redirects are followed."""
    trust = ssl.create_default_context(cafile=str(Path.home() / f".kube/metalhub-{PARAMETERS['site_name']}-ca.pem"))
    cookies = urllib.request.HTTPCookieProcessor()
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trust), cookies)
    return opener.open(URL + path, timeout=10)


def ready(lab: Lab) -> bool:
    """Return whether the proxy runs again."""
    status = json.loads(lab.kubectl("-n", "jupyterhub", "get", "deployment", "proxy", "-o", "json"))["status"]
    return bool(status.get("readyReplicas"))


@pytest.mark.proves("jupyterhub-answers")
def test_the_hub_answers_by_its_public_name_with_a_certificate_of_the_site(lab: Lab) -> None:
    with open_url("hub/api") as answer:
        assert json.load(answer)["version"]


@pytest.mark.proves("jupyterhub-login")
def test_a_login_leads_to_the_realm_and_names_the_one_callback(lab: Lab) -> None:
    with open_url("hub/oauth_login") as answer:
        asked = urllib.parse.urlsplit(answer.url)
        page = answer.read().decode()
    assert f"https://{asked.netloc}{asked.path}".startswith(f"https://{PARAMETERS['site_host']}/sso/realms/")
    query = urllib.parse.parse_qs(asked.query)
    assert query["redirect_uri"] == [f"{URL}hub/oauth_callback"]
    assert query["code_challenge_method"] == ["S256"]
    assert "password" in page


@pytest.mark.proves("jupyterhub-network")
def test_the_proxy_takes_no_address_of_its_own(lab: Lab) -> None:
    services = json.loads(lab.kubectl("-n", "jupyterhub", "get", "services", "-o", "json"))["items"]
    assert {service["spec"]["type"] for service in services} == {"ClusterIP"}


@pytest.mark.proves("jupyterhub-verify")
def test_a_hub_that_is_down_fails_the_verification_with_where_to_look(lab: Lab) -> None:
    lab.kubectl("-n", "jupyterhub", "scale", "deployment", "proxy", "--replicas=0")
    try:
        recap = lab.play("--tags", "verify", playbooks=(STAGE,))
    finally:
        lab.kubectl("-n", "jupyterhub", "scale", "deployment", "proxy", "--replicas=1")
    assert recap.status == 2
    assert "describe pods -l component=proxy" in recap.output
    eventually("the proxy is back", lambda: ready(lab))
    recap = lab.play("--tags", "verify", playbooks=(STAGE,))
    assert recap.status == 0, recap.output[-3000:]
    assert recap.changed == {}


@pytest.mark.proves("jupyterhub-guide-page")
def test_the_guide_is_linked_and_served_before_a_login_and_tells_of_this_site(lab: Lab) -> None:
    with open_url("hub/login") as answer:
        link = re.search(r'id="guide"[^>]* href="([^"]+)"', answer.read().decode())
    assert link, "the login page has no link to the guide"
    with open_url(urllib.parse.urljoin(URL, link[1]).removeprefix(URL)) as answer:
        page = answer.read().decode()
    assert URL in page
    capacity = yaml.safe_load((SITE / "group_vars/all/site.yml").read_text())["site_home_size"]
    assert f"<code>/home/jovyan</code>: {capacity}," in page
