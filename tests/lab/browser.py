"""A headless Chromium that trusts what a user's would: the site's authority in its own store, no error ever ignored."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
from playwright.sync_api import BrowserContext, Page, Playwright, Response, WebSocket

ROOT = Path(__file__).resolve().parents[2]
# Where screenshots of failures lie.
SHOTS = ROOT / ".cache/browser"

# Runs a cell by the page's own session, as JupyterLab does, in a new kernel unless one is named; ends when it is idle.
CELL = """
async ([base, code, kernel]) => {
  const token = (document.cookie.match(/(?:^|; )_xsrf=([^;]*)/) || [])[1] || "";
  if (!kernel) {
    const answer = await fetch(base + "api/kernels", {method: "POST", headers: {"X-XSRFToken": token}, body: "{}"});
    if (!answer.ok) throw new Error(`kernels: ${answer.status} ${await answer.text()}`);
    kernel = (await answer.json()).id;
  }
  const session = crypto.randomUUID(), id = crypto.randomUUID();
  const query = `session_id=${session}&_xsrf=${encodeURIComponent(token)}`;
  const socket = new WebSocket(`wss://${location.host}${base}api/kernels/${kernel}/channels?${query}`);
  await new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error("the kernel did not finish within 120 s")), 120000);
    socket.onerror = () => reject(new Error("the websocket failed"));
    socket.onclose = event => reject(new Error(`the websocket was closed: ${event.code} ${event.reason}`));
    socket.onmessage = event => {
      const message = JSON.parse(event.data);
      if (message.parent_header.msg_id === id && message.content.execution_state === "idle") {
        clearTimeout(late);
        resolve();
      }
    };
    socket.onopen = () => socket.send(JSON.stringify({
      channel: "shell", parent_header: {}, metadata: {}, buffers: [],
      header: {msg_id: id, session, username: "", msg_type: "execute_request", version: "5.3", date: new Date()},
      content: {code, silent: false, store_history: false, user_expressions: {}, allow_stdin: false},
    }));
  });
  socket.onclose = null;
  socket.close();
  return [id, kernel];
}
"""
# A request to the hub by the page's own session.
REQUEST = """
async ([method, path, body]) => {
  const headers = {"X-XSRFToken": window.jhdata.xsrf_token, "Content-Type": "application/json"};
  const answer = await fetch(path, {method, headers, body: body === null ? undefined : JSON.stringify(body)});
  return [answer.status, await answer.text()];
}
"""


class Visitor:
    """One person with a browser of their own: nothing is shared with others."""

    def __init__(self, name: str, context: BrowserContext) -> None:
        self.name, self.context, self.kernel = name, context, ""
        self.page: Page = context.pages[0] if context.pages else context.new_page()
        self.answers: list[tuple[int, str]] = []
        self.said: list[str] = []
        self.frames: list[str] = []
        self.page.on("response", self._answered)
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("requestfailed", lambda request: self.said.append(f"failed: {request.url} {request.failure}"))
        self.page.on("websocket", self._opened)

    def _answered(self, response: Response) -> None:
        self.answers.append((response.status, response.url))

    def _opened(self, socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: self.frames.append(frame if isinstance(frame, str) else ""))

    def text(self) -> str:
        """What the page shows."""
        return self.page.locator("body").inner_text(timeout=5000)

    def until(self, what: str, condition: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait for something to become true and return it; what was waited for is told otherwise."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} waited {seconds:.0f} s for {what}")
            self.page.wait_for_timeout(250)
        return found

    def sees(self, *selectors: str) -> str:
        """The first of some selectors that is visible now, empty when none is."""
        return next((one for one in selectors if self.page.locator(one).first.is_visible()), "")

    def log_in(self, hub: str, password: str) -> None:
        """Open the hub and show Keycloak the password; where that leads is the caller's to judge."""
        self.page.goto(hub)
        service = ".service-login a"
        if self.until("a login page", lambda: self.sees("#username", service)) == service:
            self.page.locator(service).first.click()
            self.until("Keycloak's form", lambda: self.sees("#username"))
        self.page.fill("#username", self.name)
        self.page.fill("#password", password)
        self.page.click("#kc-login")

    def profiles(self, hub: str) -> list[str]:
        """The profiles that the spawn page offers."""
        self.page.goto(f"{hub}hub/spawn")
        self.until("the spawn page", lambda: self.sees("#spawn_form"))
        found = self.page.eval_on_selector_all("input[name=profile]", "all => all.map(one => one.value)")
        return [str(value) for value in found]

    def spawn(self, profile: str, seconds: float = 300) -> str:
        """Choose a profile on the spawn page and wait for the server; returns its path."""
        choice = f"input[name=profile][value='{profile}']"
        if self.until(f"profile {profile}", lambda: self.sees(choice, "a#start")) == "a#start":
            self.page.click("a#start")
            self.until(f"profile {profile}", lambda: self.sees(choice))
        self.page.locator(choice).first.check(force=True)
        self.page.locator("#spawn_form [type=submit]").first.click()

        def there() -> str:
            if "spawn failed" in (text := self.text().lower()) or "failed to start" in text:
                raise AssertionError(f"{self.name}'s server did not start")
            found = re.match(r"(.*/user/[^/]+/)", urlsplit(self.page.url).path)
            return found.group(1) if found and self.page.locator("#jupyter-config-data").count() else ""

        return str(self.until("JupyterLab", there, seconds))

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Ask the hub as its own pages do, one of which is open; returns status and text."""
        status, text = self.page.evaluate(REQUEST, [method, path, body])
        return int(status), str(text)

    def shot(self, name: str) -> None:
        """Leave a picture of what is on the screen."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", timeout=10000)

    def run(self, base: str, code: str, kernel: str = "") -> str:
        """Run a cell, in a new kernel unless one is named; what it printed is read from the websocket's frames.

        The kernel is remembered in `self.kernel`.
        """
        asked, self.kernel = self.page.evaluate(CELL, [base, code, kernel])
        printed = ""
        for message in map(json.loads, filter(None, self.frames)):
            if message.get("parent_header", {}).get("msg_id") != asked:
                continue
            if message["header"]["msg_type"] == "error":
                raise AssertionError("\n".join(message["content"]["traceback"]))
            if message["header"]["msg_type"] == "stream":
                printed += message["content"]["text"]
        return printed

    def report(self) -> str:
        """Everything that helps to understand where this visitor got stuck; a screenshot is left."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        shot = SHOTS / f"failed-{self.name}-{time.strftime('%H%M%S')}.png"
        try:
            self.page.screenshot(path=shot, full_page=True, timeout=10000)
            text = self.text()
        except Exception as error:  # noqa: BLE001 - the browser may be gone; the failure itself must not be hidden
            text = f"({error})"
        bad = [f"{status} {url}" for status, url in self.answers if status >= 400]
        visited = [f"{status} {url}" for status, url in self.answers[-15:]]
        parts = {
            "page": [self.page.url, f"screenshot: {shot}", text[:3000]],
            "refused": bad[-15:],
            "last answers": visited,
            "console": self.said[-15:],
        }
        return "\n".join(f"--- {name}\n" + "\n".join(lines) for name, lines in parts.items() if lines)


def trust(home: Path, authorities: Path) -> None:
    """Put certificate authorities, one PEM file of them, into the store of the browser whose HOME this is.

    Public ones are left out, as the browser brings them with it.
    """
    store = home / ".pki/nssdb"
    store.mkdir(parents=True)
    subprocess.run(["certutil", "-N", "-d", f"sql:{store}", "--empty-password"], check=True, capture_output=True)
    pattern = r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----"
    public = Path(certifi.where()).read_text()
    own = [pem for pem in re.findall(pattern, authorities.read_text(), re.S) if pem not in public]
    for number, pem in enumerate(own):
        add = ["certutil", "-A", "-d", f"sql:{store}", "-n", f"site-{number}", "-t", "C,,", "-a"]
        subprocess.run(add, input=pem + "\n", text=True, check=True, capture_output=True)


@contextmanager
def visitor(
    playwright: Playwright, name: str, home: Path, authorities: Path, arguments: Sequence[str] = ()
) -> Iterator[Visitor]:
    """A person with a fresh browser; what they saw is added to a failure inside."""
    program = shutil.which("chromium")
    assert program, "no chromium on this machine; run: scripts/setup.sh"
    trust(home, authorities)
    environment: dict[str, str | float | bool] = {"HOME": str(home), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    context = playwright.chromium.launch_persistent_context(
        home / "profile",
        executable_path=program,
        headless=True,
        env=environment,
        # A shared memory of 64 MB, as in containers, is too small for it.
        args=["--disable-dev-shm-usage", *arguments],
        ignore_https_errors=False,
        viewport={"width": 1280, "height": 900},
        locale="en-GB",
    )
    context.set_default_timeout(60000)
    person = Visitor(name, context)
    try:
        yield person
    except BaseException as error:
        error.add_note(person.report())
        raise
    finally:
        context.close()
