"""The tokens by which nodes join a cluster of RKE2."""

from __future__ import annotations


def secret_part(token: str) -> str:
    """Return what of a token is secret: its part behind the hash of a cluster and the name of a user."""
    token = token.strip()
    return token.split("::", 1)[-1].split(":", 1)[-1] if token.startswith("K10") else token
