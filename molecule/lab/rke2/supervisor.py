"""The supervisor on port 9345: how nodes join, and how a node asks one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from config import Fatal, log

PORT = 9345


class Refused(Exception):
    """A request that the supervisor answers with an HTTP status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Route:
    """What answers a path: who may ask (`server`, `node` or empty for everybody), and the function."""

    user: str
    answer: Callable[[dict[str, Any]], Any]


def short(token: str) -> str:
    """The secret part of a token: `K10<hash>::user:secret` or the secret alone."""
    return token.split("::", 1)[1].split(":", 1)[1] if token.startswith("K10") and "::" in token else token


def secure(token: str, ca: bytes, user: str) -> str:
    """The secure form of a token: it carries the hash of the cluster's CA."""
    return f"K10{hashlib.sha256(ca).hexdigest()}::{user}:{short(token)}"


def serve(tls: Path, routes: dict[str, Route], tokens: Callable[[str], list[str]]) -> None:
    """Listen in the background; `tokens(user)` names the secrets that a user may show."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            route = routes.get(f"{self.command} {self.path}")
            # Read before anything is refused: what is left unread would cut the answer off.
            body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 1 << 20))
            try:
                if not route:
                    raise Refused(404, "404 page not found")
                if route.user:
                    self.authorise(route.user)
                answer = route.answer(json.loads(body) if body else {})
                status, body = 200, answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            except Refused as refused:
                status, body = refused.status, str(refused).encode()
            except (Fatal, OSError) as error:
                status, body = 503, str(error).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = handle_one

        def authorise(self, user: str) -> None:
            scheme, _, value = self.headers.get("Authorization", "").partition(" ")
            name, _, secret = base64.b64decode(value).decode().partition(":") if scheme == "Basic" else ("", "", "")
            wanted = ["server"] if user == "server" else ["server", "node"]
            good = any(hmac.compare_digest(short(secret), short(token)) for token in tokens(user))
            if name not in wanted or not good:
                raise Refused(401, "401 Unauthorized")

        def log_message(self, *_: object) -> None:
            """Say nothing: a request line may name a node, never more, and the journal is for decisions."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def finish_request(self, request: Any, client_address: Any) -> None:
            request.settimeout(60)
            super().finish_request(context.wrap_socket(request, server_side=True), client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A port scan or a client that went away is no news."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "apiserver.crt", tls / "apiserver.key")
    listener = Server(("", PORT), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    log("info", f"Running supervisor on port {PORT}")


class Client:
    """Asks one supervisor; its CA is fetched first, and checked when the token carries its hash."""

    def __init__(self, url: str, token: str, user: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.url = parts.hostname or "", parts.port or PORT, url
        blind = ssl.create_default_context()
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
        self.context = blind
        self.authorization = ""
        self.ca = self.ask("GET", "/cacerts")
        if token.startswith("K10") and secure(token, self.ca, "x").split("::")[0] != token.split("::", maxsplit=1)[0]:
            raise Fatal(f"token CA hash does not match the Cluster CA certificate hash of {url}")
        self.context = ssl.create_default_context(cadata=self.ca.decode())
        self.authorization = "Basic " + base64.b64encode(f"{user}:{short(token)}".encode()).decode()

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, timeout: float = 10) -> bytes:
        """Send one request; anything but 200 is fatal and names URL and answer."""
        connection = http.client.HTTPSConnection(self.host, self.port, context=self.context, timeout=timeout)
        headers = {"Authorization": self.authorization} if self.authorization else {}
        try:
            connection.connect()
            connection.sock.settimeout(60)  # an answer may take its time, a connection may not
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            asked = f'Get "https://{self.host}:{self.port}{path}"'
            raise Fatal(f"failed to reach server {self.url}: {asked}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise Fatal(f"https://{self.host}:{self.port}{path}: {content.decode().strip()}")
        return content

    def json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send one request and decode its answer."""
        return json.loads(self.ask(method, path, body))
