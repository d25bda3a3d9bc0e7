#!/usr/bin/python3 -IS
"""Exit 0 when every given TCP port of an address accepts connections, 1 with the reason otherwise.

    check_listens ADDRESS PORT...

keepalived runs this every second, so it imports next to nothing. It tells a server that is down, or that has been
stopped, within two seconds; one that hangs is found by check_serves.
"""

import socket
import sys


def main(address: str, ports: list[str]) -> str | None:
    """Return None when all ports accept, otherwise what went wrong."""
    for port in ports:
        try:
            socket.create_connection((address, int(port)), 0.8).close()
        except OSError as error:
            return f"{address}:{port}: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
