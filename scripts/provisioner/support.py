"""What goes into a support bundle, free of secrets. Without effects but for writing the archive."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import tarfile
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SHORTEST = 4  # characters; what is shorter stands everywhere and hides nothing
SECRETS = "vault_"
HIDDEN = "[redacted]"
# Secrets that no vault knows: made by the cluster, or by a person in a command.
PATTERNS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
    re.compile(r"(?<=::)(server|node):[0-9A-Za-z]{8,}"),
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?<=://)[^/\s:@\"']+:[^/\s@\"']+(?=@)"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"),
    re.compile(
        r"(?i)(?<=[\"'\s_-])((?:auth_pass|password|passwd|passphrase|secret|token|client-key-data)[\"']?\s*[:=]\s*[\"']?)"
        r"(?P<value>[^\s\"',;}\\]{4,})"
    ),
)


def secrets_of(variables: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return every secret of a site's vault by its name. variables: of each host."""

    def texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from texts(f"{name}.{key}", inner)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                yield from texts(f"{name}.{number}", inner)
        elif not isinstance(value, bool) and value is not None:
            yield name, str(value)

    found = [pair for one in variables.values() for name, value in one.items() if name.startswith(SECRETS)
             for pair in texts(name, value)]  # fmt: skip
    return {name: text for name, text in found if len(text) >= SHORTEST}


def _shapes(secret: str) -> set[str]:
    """Return a secret as it may stand in a text: plain, in JSON, in a URL, and wherever base64 may have put it."""
    data = secret.encode()
    found = {secret, json.dumps(secret)[1:-1], quote(secret, safe=""), quote(secret)}
    for line in secret.splitlines():
        found.add(line.strip())
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + data).decode().rstrip("=")
        # The characters at both ends are its neighbours' too.
        inner = coded[(0, 2, 3)[offset] : None if (offset + len(data)) % 3 == 0 else -1]
        found |= {inner, inner.translate(str.maketrans("+/", "-_"))}
    return {shape for shape in found if len(shape) >= SHORTEST}


def redact(text: str, secrets: Mapping[str, str]) -> str:
    """Return the text with every secret hidden, the site's by their names."""
    shapes = {shape: name for name, secret in secrets.items() for shape in _shapes(secret)}
    if shapes:
        # The longest first: one secret may be part of another.
        every = re.compile("|".join(re.escape(shape) for shape in sorted(shapes, key=len, reverse=True)))
        text = every.sub(lambda match: f"[redacted {shapes[match[0]]}]", text)
    for pattern in PATTERNS:
        text = pattern.sub(lambda match: (match[1] if "value" in match.groupdict() else "") + HIDDEN, text)
    return text


def sections(text: str) -> dict[str, str]:
    """Return the parts of a text by the names in its lines `==> NAME`; what stands before the first is dropped."""
    parts = re.split(r"^==> (.+)\n", text, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _object(item: Mapping[str, Any]) -> str:
    """Return what one object of the cluster says of itself; never what it is made of: a spec may hold anything."""
    about = item.get("metadata", {})
    kept: dict[str, Any] = {"kind": item.get("kind"), "name": f"{about.get('namespace', '')}/{about.get('name', '')}"}
    if item.get("kind") == "Event":
        kept |= {key: item.get(key) for key in ("lastTimestamp", "type", "reason", "message", "count")}
        kept["about"] = item.get("involvedObject", {}).get("name")
    else:
        status = {key: value for key, value in item.get("status", {}).items() if key != "images"}
        kept |= {"labels": about.get("labels", {}), "status": status}
        kept["on"] = item.get("spec", {}).get("nodeName")
    return json.dumps(kept, sort_keys=True)


def files_of(
    report: Mapping[str, Any], journals: Mapping[str, str], secrets: Mapping[str, str], about: Mapping[str, Any]
) -> dict[str, str]:
    """Return the bundle's files, path to redacted text.

    report: what the playbook wrote. journals: name -> text of this machine's. about: what the bundle says of itself.
    """
    found = {"about.json": json.dumps(about, indent=1)}
    found |= {f"journals/{name}": text for name, text in journals.items()}
    for machine, told in report.get("machines", {}).items():
        parts = sections(told) if isinstance(told, str) else {"silent": "This machine did not answer.\n"}
        found |= {f"machines/{machine}/{name}": text for name, text in parts.items()}
    objects: dict[str, list[str]] = {}
    for item in report.get("cluster", ()):
        objects.setdefault(str(item.get("kind")), []).append(_object(item))
    found |= {f"cluster/{kind}.jsonl": "\n".join(lines) + "\n" for kind, lines in objects.items()}
    return {path: redact(text, secrets) for path, text in sorted(found.items())}


def write(target: Path, files: Mapping[str, str]) -> None:
    """Write a gzipped tar archive that its owner alone can read; a half-written one is never left under its name."""
    fresh = target.with_name(f".{target.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for path, text in files.items():
                data = text.encode()
                entry = tarfile.TarInfo(f"support/{path}")
                entry.size, entry.mode = len(data), 0o600
                archive.addfile(entry, io.BytesIO(data))
        fresh.rename(target)
    finally:
        fresh.unlink(missing_ok=True)
