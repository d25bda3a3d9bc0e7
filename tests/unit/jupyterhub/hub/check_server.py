"""A user's server as the role has it started, at another pace: Jupyter's own, with a kernel, and nobody's hub."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from tornado.httpclient import HTTPRequest
from tornado.testing import bind_unused_port
from tornado.websocket import websocket_connect

TOKEN = {"Authorization": "token t"}
PACE = {"MappingKernelManager.cull_idle_timeout": "5", "ServerApp.shutdown_no_activity_timeout": "0"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return where a server answers that has the role's arguments and file; seconds are shorter there."""
    values = yaml.safe_load((Path(os.environ["LAB_HUB_DIRECTORY"]) / "secret/values.yaml").read_text())
    directory = tmp_path_factory.mktemp("server")
    [file] = values["singleuser"]["extraFiles"].values()
    assert file["mountPath"] == "/usr/local/etc/jupyter/jupyter_server_config.py"
    (directory / "jupyter_server_config.py").write_text(file["stringData"])
    given = dict(word.removeprefix("--").split("=", 1) for word in values["hub"]["config"]["KubeSpawner"]["args"])
    assert given.keys() >= PACE.keys()
    free, port = bind_unused_port()
    free.close()
    words = [f"--{name}={value}" for name, value in (given | PACE).items()]
    words += ["--MappingKernelManager.cull_interval=1", "--BusyIsActive.look_every=1", f"--port={port}"]
    command = [
        sys.executable,
        "-m",
        "jupyter_server",
        "--no-browser",
        "--allow-root",
        "--ServerApp.port_retries=0",
        *words,
    ]
    settings = os.environ | {"JUPYTER_CONFIG_PATH": str(directory), "JUPYTER_TOKEN": "t", "HOME": str(directory)}
    with subprocess.Popen(command, env=settings, cwd=directory) as running:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(url))
        yield url
        running.terminate()


def answers(url: str) -> bool:
    """Return whether the server is up."""
    try:
        return requests.get(f"{url}/api", headers=TOKEN, timeout=5).ok
    except requests.ConnectionError:
        return False


def eventually(done: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.2)


def told(url: str, path: str) -> Any:
    """Return what the server says, without being active for it."""
    return requests.get(f"{url}/api/{path}", params={"no_track_activity": "1"}, headers=TOKEN, timeout=10).json()


async def page(url: str, kernel: str, code: str = "") -> Any:
    """Open a page on a kernel, and have it compute."""
    where = f"ws{url.removeprefix('http')}/api/kernels/{kernel}/channels"
    opened = await websocket_connect(HTTPRequest(where, headers=TOKEN))
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "username": "",
        "session": "1",
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    await opened.write_message(json.dumps(message))
    return opened


def state(url: str, kernel: str) -> str:
    """Return what a kernel does, if it is there."""
    return next((one["execution_state"] for one in told(url, "kernels") if one["id"] == kernel), "")


def test_a_kernel_is_idle_or_busy_whatever_page_is_open_and_whatever_it_prints(server: str) -> None:
    silent = "import time; time.sleep(12)"

    async def both() -> None:
        made = requests.post(f"{server}/api/kernels", headers=TOKEN, json={"name": "python3"}, timeout=30)
        kernel = made.json()["id"]
        opened = await page(server, kernel, silent)
        eventually(lambda: state(server, kernel) == "busy")
        # Longer than an idle one lives, and all the while it is activity.
        time.sleep(7)
        assert state(server, kernel) == "busy"
        before = told(server, "status")["last_activity"]
        time.sleep(3)
        assert state(server, kernel) == "busy"
        assert told(server, "status")["last_activity"] > before
        # Then it is idle, with its page open.
        eventually(lambda: state(server, kernel) == "")
        opened.close()

    asyncio.run(both())
