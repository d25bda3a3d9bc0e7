#!/usr/bin/python3 -IS
"""Print for how many seconds at most a TCP port did not answer, as {"gap": SECONDS}.

    longest_gap.py ADDRESS PORT SECONDS

One connection after the other, ten times a second, for so long. Silence is from one answer to the next one.
"""

import json
import socket
import sys
import time


def main(address: str, port: str, seconds: str) -> float:
    """Return the longest time between two answers, less the pause between two questions."""
    end = time.monotonic() + float(seconds)
    last, gap = time.monotonic(), 0.0
    while (now := time.monotonic()) < end:
        try:
            socket.create_connection((address, int(port)), 0.5).close()
            last, gap = time.monotonic(), max(gap, time.monotonic() - last - 0.1)
        except OSError:
            gap = max(gap, time.monotonic() - last - 0.1)
        time.sleep(max(0.0, 0.1 - (time.monotonic() - now)))
    return round(max(0.0, gap), 2)


if __name__ == "__main__":
    print(json.dumps({"gap": main(*sys.argv[1:])}))
