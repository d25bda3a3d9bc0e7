#!/usr/bin/python
# Copyright: the metalhub maintainers
# Apache License 2.0 (see LICENSE)
"""Brings one Helm release to what is declared, in as few questions as that takes."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: helm_release
short_description: Bring a Helm release to what is declared
description:
  - Runs on the machine that talks to the cluster, as any user. Fetches Helm and the chart where they are missing,
    compares what comes from a bundle with the sha256 in the bundle's manifest, makes the namespace with its labels and
    installs or upgrades the release if anything differs.
  - Without a bundle the chart is asked for each time, so that one that was replaced under the same version is seen.
    What was kept is used where it has the O(sha256) that is asked for, and, with a warning, where nobody answers and
    none is asked for.
  - The checksums of chart and values are the description of a revision, so C(helm history) shows them. A chart that was
    replaced under the same version, a rollback by hand and a revision that failed are noticed without rendering.
  - Values go to Helm by its standard input, never by its arguments or a file.
  - What is wrong is not the module's failure but its RV(failure), a text without secrets, so that it can be shown where
    the task itself has C(no_log).
version_added: 0.1.0
author: The metalhub maintainers
options:
  name:
    description: Name of the release.
    type: str
    required: true
  namespace:
    description: Its namespace.
    type: str
    required: true
  namespace_labels:
    description: Labels that the namespace must have.
    type: dict
    default: {}
  chart:
    description: Name of the chart.
    type: str
    required: true
  version:
    description: Version of the chart.
    type: str
    required: true
  repository:
    description: URL of the chart's repository, or C(oci://REGISTRY/PATH); not asked where there is a bundle.
    type: str
    default: ""
  bundle:
    description: Directory or URL of the bundle.
    type: str
    default: ""
  sha256:
    description: What the chart's archive must have, wherever it comes from; empty for any.
    type: str
    default: ""
  values:
    description: The chart's values.
    type: dict
    default: {}
  sensitive:
    description: Whether the values hold secrets; nothing of them is returned then.
    type: bool
    default: false
  wait:
    description: Whether to wait until the release's pods are ready.
    type: bool
    default: true
  timeout_seconds:
    description: For how long Helm waits.
    type: int
    default: 600
  recover:
    description:
      - Whether to take a release that is stuck back to its last good revision first. One that has none, or whose
        removal was cut off, is uninstalled.
    type: bool
    default: false
  helm_version:
    description: Version of Helm, with its v.
    type: str
    required: true
  helm_url:
    description: Where Helm is downloaded from when there is no bundle.
    type: str
    default: https://get.helm.sh
  cache:
    description: Where Helm and charts are kept.
    type: path
    default: ~/.cache/metalhub
  kubeconfig:
    description: Credentials of the cluster's administrator, with the certificates in it.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Install MetalLB
  metalhub.platform.helm_release:
    name: metallb
    namespace: metallb-system
    chart: metallb
    version: 0.16.1
    repository: https://metallb.github.io/metallb
    helm_version: v3.20.0
    kubeconfig: ~/.kube/config
"""

RETURN = r"""
failure:
  description: What is wrong and what to do about it; empty when nothing is.
  returned: always
  type: str
reasons:
  description: What differs from the declaration; in check mode what would be changed.
  returned: always
  type: list
  elements: str
release:
  description: Namespace and name.
  returned: always
  type: str
revision:
  description: The revision that the cluster has now; 0 if none.
  returned: always
  type: int
"""

import base64
import json
import os
import platform
import re
import ssl
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import yaml
from ansible.module_utils.basic import AnsibleModule

from ..module_utils.bundle_files import Fault, archive, from_bundle, keep, read, sha256, unpacked

# A revision's description: what it was made of.
MADE_OF = "chart sha256:{chart} values sha256:{values}"
KEPT_REVISIONS = 5
SHOWN = 8
MERGE = "application/merge-patch+json"


def helm_program(cache: str, version: str, bundle: str, url: str) -> str:
    """Return the path of Helm; fetched and checked where it is missing."""
    path = os.path.join(cache, f"helm-{version}", "helm")
    if os.path.exists(path):
        return path
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"helm-{version}-{platform.system().lower()}-{machine}.tar.gz"
    packed = archive(bundle, url, "helm", name, f"{name}.sha256sum")
    return keep(path, unpacked(packed, name, "helm"), 0o755)


def canonical(values: Any) -> bytes:
    """Return the same bytes for the same values."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def scrubbed(text: str, values: Any) -> str:
    """Return a text without the strings that are among the values; a short one cannot be told from any other word."""
    if isinstance(values, dict):
        values = list(values.values())
    for value in values if isinstance(values, list) else []:
        if isinstance(value, str) and len(value) >= 6:
            for line in (value, *(one for one in value.splitlines() if len(one) >= 6)):
                text = text.replace(line, "…")
        text = scrubbed(text, value)
    return text


class Api:
    """The cluster's API, asked directly: importing a client takes longer than everything else here together."""

    def __init__(self, kubeconfig: str) -> None:
        try:
            with open(kubeconfig) as file:
                config = yaml.safe_load(file)
            contexts = {one["name"]: one["context"] for one in config["contexts"]}
            context = contexts[config["current-context"]]
            cluster = {one["name"]: one["cluster"] for one in config["clusters"]}[context["cluster"]]
            user = {one["name"]: one["user"] for one in config["users"]}[context["user"]]
            self.server = cluster["server"].rstrip("/")
            authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
            self.context = ssl.create_default_context(cadata=authority)
            self.headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
            if not self.headers:
                pair = (user["client-certificate-data"], user["client-key-data"])
                # Python reads a key from a file only.
                with tempfile.NamedTemporaryFile() as file:
                    file.write(b"\n".join(base64.b64decode(one) for one in pair))
                    file.flush()
                    self.context.load_cert_chain(file.name)
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise Fault(
                f"{kubeconfig} gives no access to a cluster ({error}). The role rke2 writes it: deploy with --only "
                "rke2_server."
            ) from error

    def ask(self, path: str, method: str = "GET", body: Any = None, kind: str = "application/json") -> dict[str, Any]:
        """Return the API's answer; empty where there is no such object."""
        request = urllib.request.Request(  # noqa: S310  (the administrator's own file says where the API is)
            self.server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={**self.headers, "Content-Type": kind},
        )
        # No proxy stands between an administrator and the API.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.context)
        )
        try:
            with opener.open(request, timeout=30) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {}
            said = error.read().decode(errors="replace")
            raise Fault(f"{self.server}{path}: {error.code} {said[:300]}") from error
        except (OSError, ValueError) as error:
            raise Fault(f"{self.server} does not answer: {getattr(error, 'reason', None) or error}.") from error


def pod_troubles(pods: list[dict[str, Any]]) -> list[str]:
    """Return what keeps pods from being ready, a line each."""
    found = []
    for pod in pods:
        status, name = pod.get("status", {}), pod["metadata"]["name"]
        conditions = {one["type"]: one for one in status.get("conditions", [])}
        if status.get("phase") == "Succeeded" or conditions.get("Ready", {}).get("status") == "True":
            continue
        said = []
        for one in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
            waiting = one.get("state", {}).get("waiting") or {}
            ended = one.get("state", {}).get("terminated") or one.get("lastState", {}).get("terminated") or {}
            if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
                said.append(f"{one['name']}: {waiting['reason']} {waiting.get('message', '')}".strip())
            if ended.get("exitCode"):
                said.append(f"{one['name']} ended with {ended['exitCode']} {ended.get('message', '')}".strip())
        scheduled = conditions.get("PodScheduled", {})
        if scheduled.get("status") == "False":
            said.append(scheduled.get("message", "not scheduled"))
        found.append(f"pod {name} is {status.get('phase', 'Unknown')}: {'; '.join(said) or 'not ready'}")
    return found


def troubles(api: Api, namespace: str, name: str) -> list[str]:
    """Return what the cluster says of a release that did not come up; nothing where it cannot be asked."""
    base = f"/api/v1/namespaces/{namespace}"
    try:
        pods = api.ask(f"{base}/pods").get("items", [])
        events = api.ask(f"{base}/events?fieldSelector=type%3DWarning&limit=200").get("items", [])
    except Fault as fault:
        return [str(fault)]
    ours = [pod for pod in pods if name in (pod["metadata"].get("labels") or {}).values()]
    found = pod_troubles(ours or pods)[:SHOWN]
    events.sort(key=lambda one: one.get("lastTimestamp") or one.get("eventTime") or "")
    said = [
        f"{one['involvedObject'].get('name')}: {one.get('reason')} {one.get('message', '')[:300]}" for one in events
    ]
    return found + list(dict.fromkeys(said))[-SHOWN:]


class Release:
    """One release: what is declared and what the cluster has."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module, self.given = module, module.params
        self.name, self.namespace = self.given["name"], self.given["namespace"]
        self.cache = os.path.expanduser(self.given["cache"])
        self.api = Api(os.path.expanduser(self.given["kubeconfig"]))
        self.program = helm_program(
            self.cache, self.given["helm_version"], self.given["bundle"], self.given["helm_url"]
        )

    def helm(self, *words: str, data: str | None = None) -> tuple[int, str, str]:
        """Run Helm in the release's namespace and return its status, output and last words."""
        command = [self.program, *words, "--namespace", self.namespace]
        environment = {"KUBECONFIG": os.path.expanduser(self.given["kubeconfig"])}
        status, output, said = self.module.run_command(command, data=data, environ_update=environment)
        return status, output, scrubbed(said.strip(), self.given["values"]) if self.given["sensitive"] else said.strip()

    def look(self) -> dict[str, Any]:
        """Return the last revision as the cluster has it; empty where there is none."""
        status, output, said = self.helm("status", self.name, "--output", "json")
        if status and "release: not found" in said:
            return {}
        if status:
            raise Fault(f"Helm cannot tell the state of {self.namespace}/{self.name}: {said}")
        found: dict[str, Any] = json.loads(output)
        return {} if found["info"]["status"] == "uninstalled" else found

    def chart(self) -> tuple[str, str]:
        """Return path and sha256 of the chart's archive."""
        name = f"{self.given['chart']}-{self.given['version']}.tgz"
        bundle, repository = self.given["bundle"], self.given["repository"]
        source = bundle or repository
        if not source:
            raise Fault(f"{name} has neither a bundle nor a repository; give helm_release_repository.")
        path = os.path.join(self.cache, "charts", sha256(source.encode())[:12], name)
        kept = read("/", path) if os.path.exists(path) else b""
        wanted = self.given["sha256"]
        if bundle:
            content = from_bundle(bundle, "charts", name, path)
        elif kept and sha256(kept) == wanted:
            content = kept
        else:
            content = self.pull(repository, b"" if wanted else kept)
        found = sha256(content)
        if wanted and found != wanted:
            raise Fault(
                f"{name} of {source} has the sha256 {found}, helm_release_sha256 says {wanted}: it is not used. Ask "
                "whoever publishes the chart which is right, and correct the one that is not."
            )
        if content != kept:
            keep(path, content)
        return path, found

    def pull(self, repository: str, kept: bytes) -> bytes:
        """Return the chart as a repository or registry has it now, or as it was kept where that does not answer."""
        oci = repository.startswith("oci://")
        words = (
            [f"{repository.rstrip('/')}/{self.given['chart']}"] if oci else [self.given["chart"], "--repo", repository]
        )
        with tempfile.TemporaryDirectory() as where:
            status, _, said = self.helm("pull", *words, "--version", self.given["version"], "--destination", where)
            made = os.listdir(where)
            if not status and len(made) == 1:
                return read(where, made[0])
        told = f"{self.given['chart']} {self.given['version']} cannot be had from {repository}: {said}."
        if not kept:
            raise Fault(f"{told} Mend the connection, or give the site a bundle: site_bundle.")
        self.module.warn(f"{told} The copy that was kept is used.")
        return kept

    def label(self, dry: bool) -> list[str]:
        """Make the namespace, or the labels that it lacks, and return what was to be done."""
        path, wanted = f"/api/v1/namespaces/{self.namespace}", self.given["namespace_labels"]
        wanted = {key: str(value) for key, value in wanted.items()}
        found = self.api.ask(path)
        if not found:
            metadata = {"name": self.namespace, "labels": wanted}
            if not dry:
                namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
                self.api.ask("/api/v1/namespaces", "POST", namespace)
            return [f"the namespace {self.namespace} is missing"]
        if found.get("status", {}).get("phase") == "Terminating":
            raise Fault(
                f"The namespace {self.namespace} is being deleted. Wait until it is gone; what holds it up is said by: "
                f"kubectl get namespace {self.namespace} -o yaml"
            )
        labels = found["metadata"].get("labels") or {}
        differ = {key: value for key, value in wanted.items() if labels.get(key) != value}
        if differ and not dry:
            self.api.ask(path, "PATCH", {"metadata": {"labels": differ}}, MERGE)
        return [f"the namespace {self.namespace} has no label {key}={value}" for key, value in differ.items()]

    def last_good(self) -> int:
        """Return the last revision that came up; 0 where none did."""
        status, output, said = self.helm("history", self.name, "--output", "json")
        if status:
            raise Fault(f"Helm cannot tell the history of {self.namespace}/{self.name}: {said}")
        revisions = json.loads(output)
        # A rollback that failed leaves the revision it was to replace as superseded, so what is deployed comes first.
        for state in ("deployed", "superseded"):
            found = [int(one["revision"]) for one in revisions if one["status"] == state]
            if found:
                return max(found)
        return 0

    def recover(self, now: dict[str, Any]) -> None:
        """Take a stuck release back to its last good revision; uninstall one without, or that was being removed."""
        # Without a number Helm takes the revision before, which may have failed.
        last = self.last_good() if now["info"]["status"] in ("pending-upgrade", "pending-rollback") else 0
        words = ["rollback", self.name, str(last)] if last else ["uninstall", self.name, "--no-hooks"]
        status, _, said = self.helm(*words, "--timeout", f"{self.given['timeout_seconds']}s")
        if status:
            raise Fault(f"helm {' '.join(words)} --namespace {self.namespace} failed: {said}")

    def stuck(self, now: dict[str, Any]) -> Fault:
        """Return what is said of a release that another Helm has begun and not ended."""
        history = (
            f"{self.program} --kubeconfig {self.given['kubeconfig']} --namespace {self.namespace} history {self.name}"
        )
        return Fault(
            f"The release {self.namespace}/{self.name} is {now['info']['status']} since "
            f"{now['info'].get('last_deployed')}: another Helm is at work on it, or was killed. Look with: {history}\n"
            "If none is at work, set helm_release_recover: true for one deploy: the release is taken back to its last "
            "good revision (uninstalled if it has none or was being removed) and installed again."
        )

    def upgrade(self, chart: str, made_of: str) -> None:
        """Install or upgrade the release; what keeps it from coming up is asked of the cluster."""
        words = ["upgrade", "--install", self.name, chart, "--reset-values", "--values", "-", "--description", made_of]
        words += ["--history-max", str(KEPT_REVISIONS), "--timeout", f"{self.given['timeout_seconds']}s"]
        words += ["--wait"] if self.given["wait"] else []
        status, _, said = self.helm(*words, data=canonical(self.given["values"]).decode())
        if status:
            seen = " | ".join(troubles(self.api, self.namespace, self.name))
            seen = scrubbed(seen, self.given["values"]) if self.given["sensitive"] else seen
            raise Fault(
                f"{self.name} {self.given['version']} could not be installed in {self.namespace}: {said[-1500:]}\n"
                f"The cluster says: {seen or 'nothing'}.\nLook closer with: kubectl --kubeconfig "
                f"{self.given['kubeconfig']} --namespace {self.namespace} get pods,events"
            )


def difference(now: dict[str, Any], chart: str, values: str) -> list[str]:
    """Return how the last revision differs from chart and values, given by their checksums."""
    if not now:
        return ["it is not installed"]
    if now["info"]["status"] != "deployed":
        return [f"its revision {now['version']} is {now['info']['status']}: {now['info'].get('description', '')[:200]}"]
    made = re.fullmatch(MADE_OF.format(chart="([0-9a-f]+)", values="([0-9a-f]+)"), now["info"].get("description", ""))
    if not made:
        return [f"its revision {now['version']} was made by somebody else"]
    found = ["its chart is another"] if made[1] != chart else []
    return found + (["its values are others"] if made[2] != values else [])


def work(module: AnsibleModule, result: dict[str, Any]) -> None:
    """Fill in the result; what was done before a fault stands in it too."""
    release = Release(module)
    path, chart = release.chart()
    now = release.look()
    result["revision"] = now.get("version", 0)
    values = sha256(canonical(module.params["values"]))[:32]
    if now and (now["info"]["status"].startswith("pending-") or now["info"]["status"] == "uninstalling"):
        if not module.params["recover"]:
            raise release.stuck(now)
        result["reasons"].append(f"it is {now['info']['status']}")
        if not module.check_mode:
            result["changed"] = True
            release.recover(now)
            now = release.look()
    labels = release.label(dry=module.check_mode)
    reasons = difference(now, chart, values)
    result["reasons"] += labels + reasons
    result["changed"] = bool(result["reasons"])
    if reasons and module._diff:
        shown = {} if module.params["sensitive"] else {"values": module.params["values"]}
        before = {} if module.params["sensitive"] or not now else {"values": now.get("config") or {}}
        result["diff"] = {
            "before": yaml.safe_dump({"made of": now.get("info", {}).get("description", ""), **before}),
            "after": yaml.safe_dump({"made of": MADE_OF.format(chart=chart, values=values), **shown}),
        }
    if reasons and not module.check_mode:
        release.upgrade(path, MADE_OF.format(chart=chart, values=values))
        result["revision"] = release.look().get("version", 0)


def main() -> None:
    """Run the module."""
    text, required = {"type": "str", "default": ""}, {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "name": required,
            "namespace": required,
            "namespace_labels": {"type": "dict", "default": {}},
            "chart": required,
            "version": required,
            "repository": text,
            "bundle": text,
            "sha256": text,
            "values": {"type": "dict", "default": {}},
            "sensitive": {"type": "bool", "default": False},
            "wait": {"type": "bool", "default": True},
            "timeout_seconds": {"type": "int", "default": 600},
            "recover": {"type": "bool", "default": False},
            "helm_version": required,
            "helm_url": {"type": "str", "default": "https://get.helm.sh"},
            "cache": {"type": "path", "default": "~/.cache/metalhub"},
            "kubeconfig": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    result: dict[str, Any] = {
        "changed": False,
        "failure": "",
        "reasons": [],
        "release": f"{given['namespace']}/{given['name']}",
        "revision": 0,
    }
    try:
        work(module, result)
    except Fault as fault:
        result["failure"] = str(fault)
    # The invocation holds the values.
    module.exit_json(**result)


if __name__ == "__main__":
    main()
