#!/usr/bin/python3 -IS
"""Exit 0 when the Kubernetes API on an address says that it is ready, 1 with the reason otherwise.

    check_serves ADDRESS PORT TLS_DIRECTORY

RKE2 lets nobody in without a certificate, so this shows the one that the API server itself uses as a client, and it
accepts no other API server than one of this cluster's authority. `/readyz` covers etcd.
"""

import socket
import ssl
import sys

SECONDS = 2.5


def main(address: str, port: str, tls: str) -> str | None:
    """Return None when `/readyz` answers 200, otherwise what came instead."""
    try:
        context = ssl.create_default_context(cafile=f"{tls}/server-ca.crt")
        # Who signed it matters; which of the server's names and addresses the certificate lists does not.
        context.check_hostname = False
        context.load_cert_chain(f"{tls}/client-kube-apiserver.crt", f"{tls}/client-kube-apiserver.key")
        with (
            socket.create_connection((address, int(port)), SECONDS) as plain,
            context.wrap_socket(plain) as stream,
        ):
            stream.sendall(f"GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            answer = stream.recv(256)
    except OSError as error:
        return f"{address}:{port}: {error}"
    line = answer.split(b"\r\n", 1)[0].decode(errors="replace")
    return None if line.split()[1:2] == ["200"] else f"{address}:{port}: {line or 'no answer'}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
