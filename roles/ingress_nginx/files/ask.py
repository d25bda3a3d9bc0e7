"""Exit 0 when an ingress address answers 404 to what does not exist, under a certificate of the site's host.

    ask.py ADDRESS HOST CA_FILE

Goes to the address whatever DNS says, and still checks the certificate by the host's name. Waits a little: the address
has just been announced, or the certificate has just been signed. On failure it prints what came instead and exits 1.
"""

import http.client
import socket
import ssl
import sys
import time

SECONDS = 45


class Pinned(http.client.HTTPSConnection):
    """A connection for `host` that goes to another address."""

    def __init__(self, address: str, host: str, context: ssl.SSLContext) -> None:
        super().__init__(host, 443, timeout=5, context=context)
        self.address, self.tls = address, context

    def connect(self) -> None:
        """Open the connection to the address, TLS by the host's name."""
        plain = socket.create_connection((self.address, 443), self.timeout)
        self.sock = self.tls.wrap_socket(plain, server_hostname=self.host)


def status(address: str, host: str, context: ssl.SSLContext, asked: str) -> int:
    """The status of a path that nobody serves, asked for a host in a connection to the site's."""
    connection = Pinned(address, host, context)
    try:
        connection.request("GET", "/metalhub-does-not-exist", headers={"Host": asked})
        return connection.getresponse().status
    finally:
        connection.close()


def fault(address: str, host: str, authorities: str) -> str:
    """What is wrong, empty when nothing is."""
    try:
        context = ssl.create_default_context(cafile=authorities)
        for asked in (host, "does-not-exist.invalid"):
            seen = status(address, host, context, asked)
            if seen != http.client.NOT_FOUND:
                return f"https://{asked}/metalhub-does-not-exist by {address} answers {seen} and not 404"
    except ssl.SSLError as error:
        return f"{address} has no certificate for {host} that {authorities} vouches for: {error}"
    except FileNotFoundError:
        return f"{authorities} is not there"
    except (OSError, http.client.HTTPException) as error:
        return f"https://{host}/ by {address} does not answer: {str(error) or type(error).__name__}"
    return ""


def main(address: str, host: str, authorities: str) -> str:
    """Ask until the answer is right or the time is over."""
    deadline = time.monotonic() + SECONDS
    while (found := fault(address, host, authorities)) and time.monotonic() < deadline:
        time.sleep(1)
    return found


if __name__ == "__main__":
    wrong = main(*sys.argv[1:])
    print(wrong)
    sys.exit(1 if wrong else 0)
