"""The archive that Ansible Galaxy would get: exactly these files, and its playbooks run by their full names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.contract import tree

pytestmark = pytest.mark.proves("collection-archive")

# Everything that may be in the archive. What is not listed here must be in galaxy.yml's build_ignore.
ALLOWED = re.compile(
    r"""
    (?:MANIFEST\.json|FILES\.json|LICENSE|README\.md|CHANGELOG\.(?:md|rst))
    | meta/runtime\.yml
    | changelogs/(?:config|changelog)\.yaml
    | changelogs/fragments/[a-z0-9_-]+\.yml
    | playbooks/(?:stages/|operations/)?[a-z0-9_]+\.yml
    | plugins/(?:modules|module_utils|action|filter|lookup|test|callback|inventory|doc_fragments)/[a-z0-9_]+\.(?:py|yml)
    | roles/[a-z0-9_]+/README\.md
    | roles/[a-z0-9_]+/(?:defaults|vars|meta|tasks|handlers)/[a-z0-9_./-]+\.yml
    | roles/[a-z0-9_]+/(?:templates|files)/[A-Za-z0-9_./-]+
    """,
    re.X,
)
# Parts of the tree that are product: every file of them must be in the archive.
PRODUCT = ("roles", "plugins", "playbooks", "meta", "LICENSE", "README.md")
GALAXY = Path(sys.executable).with_name("ansible-galaxy")
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
DOC = Path(sys.executable).with_name("ansible-doc")


def _run(command: list[str | Path], where: Path) -> str:
    """Return what a command prints when called in `where`, free of this shell's settings of Ansible."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    process = subprocess.run(
        command,
        cwd=where,
        check=False,
        env=inherited,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.returncode == 0, (
        f"{' '.join(map(str, command))} (in {where}) exited {process.returncode}:\n{process.stdout}"
    )
    return process.stdout


@pytest.fixture(scope="module")
def archive() -> Path:
    """Build the collection into dist/ and return the archive."""
    target = tree.ROOT / "dist"
    _run([GALAXY, "collection", "build", "--force", "--output-path", target], tree.ROOT)
    galaxy = tree.load(tree.ROOT / "galaxy.yml")
    return target / f"{galaxy['namespace']}-{galaxy['name']}-{galaxy['version']}.tar.gz"


@pytest.fixture(scope="module")
def members(archive: Path) -> dict[str, bytes]:
    """Return the files of the archive: name -> content."""
    found = {}
    with tarfile.open(archive) as bundle:
        for member in (member for member in bundle.getmembers() if not member.isdir()):
            stream = bundle.extractfile(member)
            found[member.name] = stream.read() if stream else b""
    return found


@pytest.fixture(scope="module")
def installed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the archive where no clone is near and return the directory to call Ansible from."""
    home = tmp_path_factory.mktemp("installed")
    (home / "ansible.cfg").write_text("[defaults]\ncollections_path = collections\n", encoding="utf-8")
    offline = ["--no-deps", "--offline", "-p", str(home / "collections")]
    _run([GALAXY, "collection", "install", archive, *offline], home)
    (home / "hosts.yml").write_text(
        """---
all:
  children:
    rke2:
      children:
        rke2_server: {hosts: {server: {ansible_host: 192.0.2.1}}}
        rke2_agent: {hosts: {agent: {ansible_host: 192.0.2.2}}}
    platform: {hosts: {localhost: {ansible_connection: local}}}
""",
        encoding="utf-8",
    )
    return home


def test_the_archive_holds_nothing_that_is_not_listed(members: dict[str, bytes]) -> None:
    problems = [name for name in members if not ALLOWED.fullmatch(name)]
    # One line a directory: a forgotten cache would fill the screen.
    shown = sorted({name if name.count("/") < 2 else "/".join(name.split("/")[:2]) + "/…" for name in problems})
    tree.refuse(shown, "add it to build_ignore in galaxy.yml, or to ALLOWED when it is product")


def test_the_archive_holds_the_whole_product(members: dict[str, bytes]) -> None:
    product = [tree.relative(path) for path in tree.tracked(*PRODUCT)]
    assert product
    tree.refuse([name for name in product if name not in members], "galaxy.yml's build_ignore matches too much")


def test_the_archive_holds_no_secret_no_site_and_no_test(members: dict[str, bytes]) -> None:
    problems = []
    for name, content in members.items():
        if content.startswith(b"$ANSIBLE_" + b"VAULT") or re.search(
            r"(^|/)(vault|hosts)\.yml$|(^|/)test_[^/]*\.py$|inventor", name
        ):
            problems.append(name)
    tree.refuse(problems, "add it to build_ignore in galaxy.yml at once")


def test_every_playbook_of_the_installed_collection_passes_a_syntax_check_by_its_full_name(installed: Path) -> None:
    home = installed / "collections/ansible_collections/metalhub/platform/playbooks"
    # Stages stand in site.yml; a playbook in a directory is called metalhub.platform.<directory>.<name>.
    playbooks = [
        path.relative_to(home).with_suffix("")
        for path in sorted(home.glob("*.yml")) + sorted(home.glob("operations/*.yml"))
    ]
    names = ["metalhub.platform." + ".".join(path.parts) for path in playbooks]
    assert "metalhub.platform.site" in names
    output = _run([PLAYBOOK, "--syntax-check", "-i", "hosts.yml", *names], installed)
    assert "ERROR" not in output, output
    # It tells each by its file.
    for path in playbooks:
        assert f"playbook: {home / path}.yml\n" in output, f"{path} was not checked:\n{output}"


def test_every_module_of_the_installed_collection_has_documentation(installed: Path) -> None:
    modules = [path.stem for path in tree.tracked("plugins/modules/*.py")]
    assert modules, "plugins/modules is empty: nothing was checked"
    names = [f"metalhub.platform.{name}" for name in modules]
    output = _run([DOC, "--type", "module", "--json", *names], installed)
    for name in names:
        assert f'"{name}": {{' in output, f"{name}: ansible-doc finds no documentation\n{output}"
    assert '"examples": null' not in output, "a module has no EXAMPLES"
    assert '"return": null' not in output, "a module has no RETURN"
