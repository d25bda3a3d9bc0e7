"""Runs inside a hub's own environment: its pages, as it renders them itself, have the link to the guide."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from jupyterhub.app import JupyterHub
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

PLACE = "/usr/local/etc/jupyterhub"


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    """Return a hub that knows its pages and has not been started."""
    path = Path(os.environ["LAB_HUB_CONFIG"])
    config: Config = PyFileConfigLoader(path.name, str(path.parent)).load_config()
    where = [found.replace(PLACE, os.environ["LAB_HUB_DIRECTORY"]) for found in config.JupyterHub.template_paths]
    # JupyterHub's own template and static files, as installed; where the role mounts a page, a copy.
    made = JupyterHub(config=Config({"JupyterHub": {"template_paths": where, "base_url": "/jupyterhub/"}}))
    made.db_url = f"sqlite:///{tmp_path}/hub.sqlite"
    return made


def render(hub: Any, page: str, **words: Any) -> str:
    """Return a page as the hub shows it."""

    async def everything() -> str:
        hub.init_db()
        hub.init_hub()
        hub.init_proxy()
        hub.init_oauth()
        hub.init_eventlog()
        hub.init_tornado_settings()
        settings = hub.tornado_settings
        namespace = {
            "base_url": "/jupyterhub/hub/",
            "authenticator": None,
            "static_url": lambda name, **_: f"/jupyterhub/hub/static/{name}?v=1",
            "user": None,
            "parsed_scopes": {},
            "services": [],
            "maintenance": str,
            **words,
        }
        return str(await settings["jinja2_env"].get_template(page).render_async(**namespace))

    return asyncio.run(everything())


@pytest.mark.parametrize("page", ["login.html", "error.html"])
def test_every_page_leads_to_the_guide(hub: Any, page: str) -> None:
    text = render(hub, page, status_code=403, status_message="Forbidden", message="")
    assert 'href="/jupyterhub/hub/static/guide.html?v=1">Guide</a>' in text
    # The hub's own header stands beside it.
    assert 'id="jupyterhub-logo"' in text
