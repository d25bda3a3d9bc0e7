#!/usr/bin/python3
"""Stands in for RKE2 on a server: 9345 accepts connections, 6443 answers /readyz as a Kubernetes API does.

200 with a certificate of the cluster, 401 without, 500 while /run/unready exists. SIGSTOP makes it hang.
"""

from __future__ import annotations

import http.server
import ssl
import threading
from pathlib import Path

TLS = Path("/var/lib/rancher/rke2/server/tls")


class Readyz(http.server.BaseHTTPRequestHandler):
    """Answers every GET with the state of this server."""

    def do_GET(self) -> None:
        """Say 401 to strangers and 200 or 500 to the cluster's own."""
        connection = self.connection
        known = isinstance(connection, ssl.SSLSocket) and connection.getpeercert()
        self.send_response(401 if not known else 500 if Path("/run/unready").exists() else 200)
        self.end_headers()


def main() -> None:
    """Serve both ports until killed."""
    supervisor = http.server.ThreadingHTTPServer(("", 9345), Readyz)
    threading.Thread(target=supervisor.serve_forever, daemon=True).start()
    api = http.server.ThreadingHTTPServer(("", 6443), Readyz)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "client-kube-apiserver.crt", TLS / "client-kube-apiserver.key")
    context.load_verify_locations(TLS / "server-ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    api.socket = context.wrap_socket(api.socket, server_side=True, do_handshake_on_connect=False)
    api.serve_forever()


if __name__ == "__main__":
    main()
