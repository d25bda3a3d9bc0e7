"""A chart of a few lines is installed, changed, refused and taken back, from bundle, repository and registry."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import build
import nodes
from provisioner import bundle as bundles
from tests.lab.running import Lab, Recap, eventually

NAME = "release-test"
ARCHIVE = f"{NAME}-1.0.0.tgz"
KUBECONFIG = Path.home() / f".kube/metalhub-{nodes.PARAMETERS['site_name']}.yaml"
SETTINGS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: "{{ .Release.Name }}"}
data:
  mark: MARK
  text: {{ .Values.text | quote }}
"""
# What a value says is run before an upgrade; what it prints is what its pod is said to have ended with.
HOOK = """
{{- if .Values.hook }}
apiVersion: batch/v1
kind: Job
metadata:
  name: "{{ .Release.Name }}"
  annotations: {helm.sh/hook: pre-upgrade}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers:
        - name: hook
          image: docker.io/library/busybox:1.37.0
          imagePullPolicy: IfNotPresent
          command: [sh, -c, {{ .Values.hook | quote }}]
          terminationMessagePolicy: FallbackToLogsOnError
{{- end }}
"""


def packed(place: Path, mark: str) -> bytes:
    """The chart as Helm packs it; one with another mark is another chart of the same version."""
    chart = place / f"chart-{mark}" / NAME
    files = {
        "Chart.yaml": yaml.safe_dump({"apiVersion": "v2", "name": NAME, "version": "1.0.0"}),
        "values.yaml": yaml.safe_dump({"text": "the chart's own", "hook": ""}),
        "templates/settings.yaml": SETTINGS.replace("MARK", mark),
        "templates/hook.yaml": HOOK,
    }
    for name, text in files.items():
        path = chart / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [str(build.program("helm")), "package", str(chart), "--destination", str(chart.parent)]
    subprocess.run(command, check=True, capture_output=True)
    return (chart.parent / ARCHIVE).read_bytes()


@dataclass(frozen=True)
class Release:
    """One release in a namespace of its own, deployed by a playbook that has nothing but the role."""

    lab: Lab
    place: Path
    namespace: str
    inputs: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def play(self, *words: str, **different: Any) -> Recap:
        """Run the role with what is given once and what is different this time; its prefix goes before the names."""
        given = {
            "name": NAME,
            "namespace": self.namespace,
            "chart": NAME,
            "version": "1.0.0",
            "cache": str(self.place / "cache"),
            "timeout_seconds": 120,
        }
        task = {
            "name": "Bring the release",
            "ansible.builtin.import_role": {"name": "helm_release"},
            "vars": {f"helm_release_{key}": value for key, value in (given | self.inputs | different).items()},
        }
        play = {"hosts": "platform", "gather_facts": False, "environment": self.environment, "tasks": [task]}
        path = self.place / "play.yml"
        path.write_text(yaml.safe_dump([play]))
        # With -v the module's reasons are shown.
        recap = self.lab.play("-v", *words, playbooks=[str(path)])
        return Recap(recap.status, " ".join(recap.output.split()))

    def brought(self, **different: Any) -> str:
        """Run the role, which must change something, and return what it printed."""
        recap = self.play(**different)
        assert (recap.status, self.changed(recap)) == (0, True), recap.output[-3000:]
        return recap.output

    def left_alone(self, *words: str, **different: Any) -> None:
        """Run the role, which must change nothing: by its own word and by what the cluster has afterwards."""
        before = self.witness()
        recap = self.play(*words, **different)
        assert (recap.status, self.changed(recap)) == (0, False), recap.output[-3000:]
        assert self.witness() == before

    def refused(self, *words: str, **different: Any) -> str:
        """Run the role, which must fail and change nothing, and return what it printed."""
        before = self.witness()
        recap = self.play(*words, **different)
        assert (recap.status, self.changed(recap)) == (2, False), recap.output[-3000:]
        assert self.witness() == before
        return recap.output

    @staticmethod
    def changed(recap: Recap) -> bool:
        """Whether the run changed anything."""
        found = re.findall(r"localhost : ok=\d+ changed=(\d+)", recap.output)
        assert len(found) == 1, recap.output[-3000:]
        return found != ["0"]

    def kubectl(self, *words: str) -> str:
        """Ask for something in the namespace."""
        return self.lab.kubectl("--namespace", self.namespace, *words)

    def witness(self) -> list[str]:
        """The namespace's objects, Helm's revisions among them, each with the version of its content."""
        template = '{range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{"\\n"}{end}'
        kinds = "configmaps,jobs.batch,secrets"
        found = [self.lab.kubectl("get", "namespace", self.namespace, "--ignore-not-found", "-o", "name")]
        return found + sorted(self.kubectl("get", kinds, "-o", f"jsonpath={template}").splitlines())

    def settings(self) -> tuple[str, str]:
        """Mark and text of what the chart has made."""
        data = json.loads(self.kubectl("get", "configmap", NAME, "-o", "json"))["data"]
        return data["mark"], data["text"]

    def helm(self, *words: str) -> list[str]:
        """A command of the Helm that the role has brought."""
        programs = list((self.place / "cache").glob("helm-*/helm"))
        assert len(programs) == 1, programs
        return [str(programs[0]), *words, "--kubeconfig", str(KUBECONFIG), "--namespace", self.namespace]

    def history(self) -> list[str]:
        """Status of every revision, the oldest first."""
        done = subprocess.run(
            self.helm("history", NAME, "--output", "json"), check=True, capture_output=True, text=True
        )
        return [revision["status"] for revision in json.loads(done.stdout)]


@dataclass(frozen=True)
class Source:
    """A place that charts come from: what the role is told of it, and how a chart gets there."""

    inputs: dict[str, Any]
    publish: Callable[[bytes], None]
    environment: dict[str, str] = field(default_factory=dict)


@contextmanager
def served(files: dict[str, tuple[str, bytes]], pair: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Answer with these files, path -> kind and content, by TLS where there are a certificate and its key."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, content = files.get(self.path, ("", b""))
            self.send_response(200 if kind else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Docker-Content-Digest", digest(content))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        if pair:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*pair)
            serving.socket = context.wrap_socket(serving.socket, server_side=True)
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{serving.server_address[1]}"
        finally:
            serving.shutdown()


def digest(content: bytes) -> str:
    """The name of some bytes in a registry."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def in_bundle(bundle: Path, content: bytes) -> None:
    """Put the chart into a bundle and its manifest."""
    path = bundle / "charts" / NAME / "1.0.0" / ARCHIVE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    files = [path for path in bundle.rglob("*") if path.is_file() and path.name != bundles.MANIFEST]
    bundles.write(bundle, [bundles.entry(bundle, path) for path in files])


def in_repository(content: bytes) -> dict[str, tuple[str, bytes]]:
    """The files of a repository with the chart alone."""
    about = {"name": NAME, "version": "1.0.0", "apiVersion": "v2", "urls": [ARCHIVE]}
    about["digest"] = hashlib.sha256(content).hexdigest()
    index = yaml.safe_dump({"apiVersion": "v1", "entries": {NAME: [about]}})
    return {"/index.yaml": ("text/yaml", index.encode()), f"/{ARCHIVE}": ("application/gzip", content)}


def in_registry(content: bytes) -> dict[str, tuple[str, bytes]]:
    """What a registry with the chart alone answers: manifest, configuration and one layer."""
    about = json.dumps({"name": NAME, "version": "1.0.0", "apiVersion": "v2"}).encode()
    described = [
        {"mediaType": kind, "digest": digest(data), "size": len(data)}
        for kind, data in (
            ("application/vnd.cncf.helm.config.v1+json", about),
            ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", content),
        )
    ]
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": described[0], "layers": described[1:]}
    path = f"/v2/charts/{NAME}"
    files = {f"{path}/blobs/{digest(data)}": ("application/octet-stream", data) for data in (about, content)}
    return {f"{path}/manifests/1.0.0": (kind, json.dumps(manifest).encode()), **files}


@contextmanager
def source(kind: str, place: Path) -> Iterator[Source]:
    """A bundle, a repository or a registry without a chart."""
    if kind == "bundle":
        bundle = place / "bundle"
        yield Source({"bundle": str(bundle)}, lambda content: in_bundle(bundle, content))
        return
    files: dict[str, tuple[str, bytes]] = {}
    if kind == "repository":
        with served(files) as address:
            given = {"bundle": "", "repository": f"http://{address}"}
            yield Source(given, lambda content: files.update(in_repository(content)))
        return
    certificate, key = place / "registry.crt", place / "registry.key"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    words += ["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key)]
    subprocess.run(["openssl", *words, "-out", str(certificate)], check=True, capture_output=True)
    with served(files, (certificate, key)) as address:
        given = {"bundle": "", "repository": f"oci://{address}/charts"}
        trusted = {"SSL_CERT_FILE": str(certificate)}
        yield Source(given, lambda content: files.update(in_registry(content)), trusted)


@pytest.fixture
def release(lab: Lab, tmp_path: Path) -> Iterator[Release]:
    """A release that does not exist yet; its chart, and Helm, are in a bundle of its own."""
    shutil.copytree(lab.bundle / "helm", tmp_path / "bundle/helm")
    in_bundle(tmp_path / "bundle", packed(tmp_path, "one"))
    try:
        yield Release(lab, tmp_path, NAME, {"bundle": str(tmp_path / "bundle")})
    finally:
        lab.kubectl("delete", "namespace", NAME, "--ignore-not-found", "--wait=false")
        gone = ("get", "namespace", NAME, "--ignore-not-found", "-o", "name")
        eventually("the test's namespace is gone", lambda: not lab.kubectl(*gone).strip())


@pytest.mark.shard("platform")
@pytest.mark.proves("helm-release")
def test_a_release_is_installed_upgraded_and_left_alone_and_loses_the_value_that_is_taken_out(release: Release) -> None:
    nothing = release.witness()
    foretold = release.play("--check", values={"text": "first"})
    assert foretold.status == 0 and release.changed(foretold), foretold.output[-3000:]
    assert "it is not installed" in foretold.output
    assert release.witness() == nothing

    assert "it is not installed" in release.brought(values={"text": "first"}, namespace_labels={"test": NAME})
    assert release.settings() == ("one", "first")
    labels = json.loads(release.lab.kubectl("get", "namespace", NAME, "-o", "json"))["metadata"]["labels"]
    assert labels["test"] == NAME
    release.left_alone(values={"text": "first"})
    release.left_alone("--tags", "verify", values={"text": "first"})

    assert "differs from what is declared: its values are others" in release.refused(
        "--tags", "verify", values={"text": "second"}
    )
    assert "its values are others" in release.brought(values={"text": "second"})
    assert release.settings() == ("one", "second")
    assert "its values are others" in release.brought(values={})
    assert release.settings() == ("one", "the chart's own")
    release.left_alone(values={})
    assert release.history() == ["superseded", "superseded", "deployed"]


@pytest.mark.shard("platform")
@pytest.mark.proves("helm-release")
def test_a_hook_that_fails_is_told_with_its_reason_and_the_revision_before_stays(release: Release) -> None:
    release.brought(values={"text": "first"})
    recap = release.play(values={"text": "second", "hook": "echo the schema is too old; exit 3"})
    assert recap.status == 2, recap.output[-3000:]
    assert f"{NAME} 1.0.0 could not be installed in {NAME}: " in recap.output
    assert "pre-upgrade hooks failed" in recap.output
    assert "hook ended with 3 the schema is too old" in recap.output
    assert "scripts/provision.py deploy --site lab --resume" in recap.output
    assert release.settings() == ("one", "first")
    assert release.history() == ["deployed", "failed"]
    assert "its revision 2 is failed" in release.brought(values={"text": "second"})
    assert release.settings() == ("one", "second")
    release.left_alone(values={"text": "second"})


@pytest.mark.shard("platform")
@pytest.mark.proves("helm-release-stuck")
def test_a_release_whose_helm_was_killed_is_reported_and_taken_back_only_when_asked(release: Release) -> None:
    release.brought(values={"text": "first"})
    # The revision before the one that is stuck is no good.
    assert release.play(values={"text": "second", "hook": "exit 1"}).status == 2
    chart = release.place / "bundle/charts" / NAME / "1.0.0" / ARCHIVE
    with subprocess.Popen(
        release.helm("upgrade", NAME, str(chart), "--set", "hook=sleep 600,text=third"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as helm:
        try:
            stuck = ["deployed", "failed", "pending-upgrade"]
            eventually("Helm is at work on the release", lambda: release.history() == stuck, 60)
            job = ("get", "jobs.batch", NAME, "-o", "jsonpath={.spec.template.spec.containers[0].command[2]}")
            eventually("Helm waits for the hook", lambda: release.kubectl(*job) == "sleep 600", 60)
            # After that nothing changes any more by itself.
            ready = (*job[:-1], "jsonpath={.status.ready}")
            eventually("the hook runs", lambda: release.kubectl(*ready) == "1", 60)
        finally:
            helm.kill()

    told = release.refused(values={"text": "fourth"})
    assert f"The release {NAME}/{NAME} is pending-upgrade since " in told
    assert "helm_release_recover: true" in told
    look = re.search(rf"Look with: (\S+ --kubeconfig .*? history {NAME})", told)
    assert look, told[-3000:]
    assert "pending-upgrade" in release.lab.type(look[1])
    assert release.history() == stuck

    foretold = release.play("--check", values={"text": "fourth"}, recover=True)
    assert foretold.status == 0 and release.changed(foretold), foretold.output[-3000:]
    assert release.history() == stuck

    assert "it is pending-upgrade" in release.brought(values={"text": "fourth"}, recover=True)
    assert release.settings() == ("one", "fourth")
    assert release.history()[-1] == "deployed"
    revisions = subprocess.run(
        release.helm("history", NAME, "--output", "json"), check=True, capture_output=True, text=True
    ).stdout
    assert [one["revision"] for one in json.loads(revisions) if one["description"] == "Rollback to 1"] == [4]
    release.left_alone(values={"text": "fourth"})


@pytest.mark.shard("platform")
@pytest.mark.proves("helm-release-charts")
@pytest.mark.parametrize("kind", ["bundle", "repository", "registry"])
def test_a_chart_is_had_and_another_of_its_version_is_noticed_or_refused(release: Release, kind: str) -> None:
    # The role brings Helm by the bundle; without one it is there already.
    release.brought(values={"text": "before"})
    one, two = packed(release.place, "one"), packed(release.place, "two")
    with source(kind, release.place) as chosen:
        here = Release(release.lab, release.place, NAME, chosen.inputs, chosen.environment)
        chosen.publish(one)
        here.play()
        assert here.settings() == ("one", "the chart's own")
        here.left_alone()
        here.left_alone(sha256={ARCHIVE: hashlib.sha256(one).hexdigest()})

        chosen.publish(two)
        foretold = here.play("--check")
        assert "its chart is another" in foretold.output and here.changed(foretold)
        assert here.settings()[0] == "one"
        assert "its chart is another" in here.brought()
        assert here.settings()[0] == "two"
        here.left_alone()

        wrong = {ARCHIVE: "0" * 64}
        told = here.refused(sha256=wrong)
        assert f"has the sha256 {hashlib.sha256(two).hexdigest()}, helm_release_sha256 says {'0' * 64}" in told
        # Nor is the namespace of one that is not there made.
        elsewhere = Release(release.lab, release.place, f"{NAME}-refused", chosen.inputs, chosen.environment)
        assert "it is not used" in elsewhere.refused(sha256=wrong, namespace_labels={"test": NAME})
        here.left_alone(sha256={ARCHIVE: hashlib.sha256(two).hexdigest()})
