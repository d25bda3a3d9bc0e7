"""The bundle: a directory that holds everything a site downloads, with the sha256 of every file in one manifest.

<bundle>/manifest.json, <bundle>/<kind>/…/<version>/<file>. The manifest is written last and replaced as a whole: what
it names is complete. A build that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import quote, urljoin

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from provisioner.errors import ExitCode, ProvisionError, command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MANIFEST = "manifest.json"
PART = ".part"  # a file that is not whole yet
CHUNK = 1 << 20
SOURCES = Path(__file__).with_name("bundle_sources.yml")

Progress = Callable[[str], None]


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or len(pure.parts) < 3:
        raise ValueError("a path in a bundle is <kind>/<version>/<file>")
    return path


class File(BaseModel):
    """One file of a bundle. path: below the bundle, with slashes. size: bytes."""

    path: Annotated[str, AfterValidator(_inside)]
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int
    kind: str
    version: str


class Manifest(BaseModel):
    """What a bundle holds. versions: kind -> its versions."""

    format: Literal[1] = 1
    versions: dict[str, list[str]] = Field(default_factory=dict)
    files: list[File] = Field(default_factory=list)


class Variable(BaseModel):
    """What a site says: the variable in its inventory, and the defaults that hold it otherwise."""

    variable: str
    defaults: str


class Source(BaseModel):
    """One upstream whose files lie beside their checksums. url: with {file}; it and the names may have {version}."""

    kind: str
    version: Variable
    url: str
    checksums: str
    files: list[str]


class Chart(BaseModel):
    """One chart; its checksum is what the index of its repository says."""

    kind: Literal["charts"]
    chart: str
    version: Variable
    repository: Variable | str


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file of a bundle."""

    path: str
    what: Literal["missing", "corrupt", "extra"]
    detail: str


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sources(path: Path = SOURCES) -> list[Source | Chart]:
    """Return the upstreams that are known."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [(Chart if "chart" in entry else Source).model_validate(entry) for entry in entries]


def read(bundle: Path) -> Manifest:
    """Return the manifest of a bundle."""
    path = bundle / MANIFEST
    again = f"Build it, or go on building it: {command('bundle', 'build', '--from', 'DIR', '--to', str(bundle))}"
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ProvisionError(
            f"{path} cannot be read: {error.strerror}; this is no bundle.", again, ExitCode.FAILED
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProvisionError(f"{path} is no manifest: {where} {first['msg']}", again, ExitCode.FAILED) from error


def write(bundle: Path, files: Iterable[File]) -> Manifest:
    """Replace the manifest of a bundle as a whole."""
    entries = sorted(files, key=lambda file: file.path)
    versions: dict[str, list[str]] = {}
    for file in entries:
        known = versions.setdefault(file.kind, [])
        if file.version not in known:
            known.append(file.version)
    manifest = Manifest(versions=versions, files=entries)
    fresh = bundle / f"{MANIFEST}{PART}"
    with fresh.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(manifest.model_dump(), indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(bundle / MANIFEST)
    return manifest


def entry(bundle: Path, path: Path) -> File:
    """Return the manifest's entry for a file that lies in the bundle."""
    relative = PurePosixPath(path.relative_to(bundle).as_posix())
    return File(
        path=str(relative),
        sha256=sha256(path),
        size=path.stat().st_size,
        kind=relative.parts[0],
        version=relative.parts[-2],
    )


def _found(directory: Path) -> list[Path]:
    return sorted(
        path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST and path.suffix != PART
    )


def add_directory(source: Path, bundle: Path, *, link: bool, progress: Progress) -> list[File]:
    """Bring the files of `source`, laid out as in a bundle, into the bundle, and return their entries.

    A file that is already there with the same content is left alone. link: make hard links where that is possible.
    """
    found = []
    for path in _found(source):
        relative = path.relative_to(source)
        if len(relative.parts) < 3:
            raise ProvisionError(
                f"{path} lies too high: the files of a bundle are <kind>/<version>/<file>.",
                f"Move it below {source}/<kind>/<version>/ and type the command again.",
            )
        progress(str(relative))
        target = bundle / relative
        wanted = sha256(path)
        if not (target.is_file() and target.stat().st_size == path.stat().st_size and sha256(target) == wanted):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(target.name + PART)
            part.unlink(missing_ok=True)
            try:
                if not link:
                    raise OSError
                part.hardlink_to(path)
            except OSError:
                shutil.copyfile(path, part)
            part.replace(target)
        fresh = entry(bundle, target)
        if fresh.sha256 != wanted:
            raise ProvisionError(
                f"{target} differs from {path} after copying.", "Look at the disk, then build again.", ExitCode.FAILED
            )
        found.append(fresh)
    return found


def _checksums(text: str) -> Mapping[str, str]:
    pairs = (line.split() for line in text.splitlines() if line.strip())
    return {words[1].lstrip("*").rpartition("/")[2]: words[0] for words in pairs if len(words) == 2}


class Download:
    """Fetches files with retries; a file that broke off is continued."""

    def __init__(self) -> None:
        import requests  # noqa: PLC0415  (a tenth of a second that only downloads need)
        from requests.adapters import HTTPAdapter  # noqa: PLC0415
        from urllib3.util import Retry  # noqa: PLC0415

        retry = Retry(total=5, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=("GET",))
        self._errors = requests.RequestException
        self._session = requests.Session()
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def get(self, url: str, target: Path) -> None:
        """Bring `url` to `target`, which appears when it is whole."""
        part = target.with_name(target.name + PART)
        target.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        try:
            headers = {"Range": f"bytes={have}-"} if have else {}
            with self._session.get(url, headers=headers, stream=True, timeout=(15, 60)) as answer:
                if answer.status_code != 416:  # "nothing is left": the part is whole
                    answer.raise_for_status()
                    with part.open("ab" if answer.status_code == 206 else "wb") as file:
                        for chunk in answer.iter_content(CHUNK):
                            file.write(chunk)
        except self._errors as error:
            raise ProvisionError(
                f"{url} cannot be downloaded: {error}",
                "Mend the connection or the version and type the same command again: it goes on where it was.",
                ExitCode.FAILED,
            ) from error
        part.replace(target)


def _verified(download: Download, url: str, target: Path, wanted: str, said_by: str) -> None:
    """Bring `url` to `target` unless it is there, and remove it again when its sha256 is not the one `wanted`."""
    if target.is_file() and sha256(target) == wanted:
        return
    download.get(url, target)
    seen = sha256(target)
    if seen != wanted:
        target.unlink()
        raise ProvisionError(
            f"{url}: sha256 is {seen}, {said_by} says {wanted}; the file was removed.",
            "Type the same command again; if it fails again, upstream or something on the way changed the file.",
            ExitCode.FAILED,
        )


def add_upstream(source: Source, version: str, bundle: Path, progress: Progress) -> list[File]:
    """Download one version of an upstream, verified against its own checksums, and return the entries."""
    directory = bundle / source.kind / version
    download = Download()
    checksums, *names = (name.format(version=version) for name in (source.checksums, *source.files))

    def url(name: str) -> str:
        return source.url.format(version=quote(version, safe=""), file=quote(name))

    progress(f"{source.kind} {version}: {checksums}")
    listing = directory / checksums
    download.get(url(checksums), listing)
    wanted = _checksums(listing.read_text(encoding="utf-8"))
    for name in names:
        if name not in wanted:
            raise ProvisionError(
                f"{url(checksums)} has no checksum for {name}.",
                f"Compare {SOURCES} with what upstream publishes for {version}.",
                ExitCode.FAILED,
            )
        progress(f"{source.kind} {version}: {name}")
        _verified(download, url(name), directory / name, wanted[name], checksums)
    return [entry(bundle, directory / name) for name in (checksums, *names)]


def add_chart(chart: str, version: str, repository: str, bundle: Path, progress: Progress) -> list[File]:
    """Download one version of a chart, verified against the index of its repository, and return its entry.

    Raises ProvisionError for a chart without a checksum there: none is made up.
    """
    progress(f"charts {chart} {version}")
    name = f"{chart}-{version}.tgz"
    download, listing = Download(), f"{repository.rstrip('/')}/index.yaml"
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch, "index.yaml")
        download.get(listing, index)
        charts = yaml.load(index.read_bytes(), yaml.CSafeLoader)["entries"].get(chart, [])
    by_hand = f"{command('bundle', 'build', '--from', 'DIR', '--to', str(bundle))}, DIR/charts/{chart}/{version}/{name}"
    found = [one for one in charts if str(one["version"]).removeprefix("v") == version.removeprefix("v")]
    if not found:
        raise ProvisionError(
            f"{listing} has no {chart} {version}.",
            f"Correct the version or the repository, or bring the chart by hand: {by_hand}",
            ExitCode.FAILED,
        )
    wanted = str(found[0].get("digest") or "").removeprefix("sha256:")
    if not wanted:
        raise ProvisionError(
            f"{listing} has no checksum for {chart} {version}, so what is downloaded could be anything.",
            f"Compare it with upstream by yourself and bring it by hand: {by_hand}",
            ExitCode.FAILED,
        )
    target = bundle / "charts" / chart / version / name
    _verified(download, urljoin(f"{repository.rstrip('/')}/", found[0]["urls"][0]), target, wanted, listing)
    return [entry(bundle, target)]


def verify(bundle: Path, progress: Progress) -> list[Fault]:
    """Compare every file of a bundle with its manifest and return what is missing, corrupt or extra."""
    named = {file.path: file for file in read(bundle).files}
    faults = []
    for path, file in named.items():
        progress(path)
        place = bundle / path
        if not place.is_file():
            faults.append(Fault(path, "missing", "is in the manifest and not in the directory"))
        elif place.stat().st_size != file.size:
            faults.append(Fault(path, "corrupt", f"{place.stat().st_size} bytes instead of {file.size}"))
        elif (seen := sha256(place)) != file.sha256:
            faults.append(Fault(path, "corrupt", f"sha256 {seen} instead of {file.sha256}"))
    present = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    faults += [
        Fault(path, "extra", "is in the directory and not in the manifest")
        for path in sorted(present - {*named, MANIFEST})
    ]
    return faults
