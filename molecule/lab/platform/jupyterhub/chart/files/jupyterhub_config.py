"""Turns the lab chart's values into the hub's settings, in the way that Zero to JupyterHub turns its own.

Beside the settings, what the order means is kept: the chart's, then `hub.config`, then jupyterhub_config.d by name.
"""

from __future__ import annotations

import os
import sys
from binascii import a2b_hex
from pathlib import Path
from typing import Any

import yaml
from tornado.httpclient import AsyncHTTPClient

# Where the chart mounts everything; another place only when the file is tried without a cluster.
HERE = Path(os.environ.get("LAB_HUB_DIRECTORY", "/usr/local/etc/jupyterhub"))
settings: Any = c  # type: ignore[name-defined]  # noqa: F821  (what JupyterHub calls its configuration)
values: dict[str, Any] = yaml.safe_load((HERE / "secret/values.yaml").read_text())
# Files beside this one are modules.
sys.path.insert(0, str(HERE))


def get(path: str, default: Any = None) -> Any:
    """Return the value at a dotted path, or `default` where there is none or it is null."""
    found: Any = values
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return default if found is None else found


def secret(name: str) -> str:
    """Return what the chart keeps in the hub's Secret under a name."""
    return (HERE / "secret" / name).read_text().strip()


def take(section: Any, prefix: str, **paths: str) -> None:
    """Set traits of a class from values; those that are null stay as the class has them."""
    for trait, path in paths.items():
        if (value := get(f"{prefix}.{path}")) is not None:
            section[trait] = value


AsyncHTTPClient.configure("tornado.curl_httpclient.CurlAsyncHTTPClient")

settings.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
settings.JupyterHub.hub_bind_url = "http://:8081"
settings.JupyterHub.hub_connect_url = f"http://hub:{os.environ.get('HUB_SERVICE_PORT', '8081')}"
settings.JupyterHub.cleanup_servers = False
settings.JupyterHub.last_activity_interval = 60
settings.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
settings.JupyterHub.cookie_secret = a2b_hex(secret("hub.config.JupyterHub.cookie_secret"))
settings.CryptKeeper.keys = secret("hub.config.CryptKeeper.keys").split(";")
settings.ConfigurableHTTPProxy.should_start = False
settings.ConfigurableHTTPProxy.api_url = f"http://proxy-api:{os.environ.get('PROXY_API_SERVICE_PORT', '8001')}"
settings.ConfigurableHTTPProxy.auth_token = secret("hub.config.ConfigurableHTTPProxy.auth_token")
if get("hub.db.type") == "sqlite-pvc":
    settings.JupyterHub.db_url = "sqlite:///jupyterhub.sqlite"
take(settings.JupyterHub, "hub", base_url="baseUrl", template_paths="templatePaths")
take(settings.JupyterHub, "hub", concurrent_spawn_limit="concurrentSpawnLimit")
take(settings.Spawner, "hub", consecutive_failure_limit="consecutiveFailureLimit")

spawner = settings.KubeSpawner
release = os.environ.get("HELM_RELEASE_NAME", "jupyterhub")
spawner.namespace = os.environ.get("POD_NAMESPACE", "default")
spawner.common_labels = {"app": "jupyterhub", "release": release, "chart": "jupyterhub", "heritage": "jupyterhub"}
spawner.image = f"{get('singleuser.image.name')}:{get('singleuser.image.tag')}"
spawner.extra_labels = {"hub.jupyter.org/network-access-hub": "true"}
spawner.allow_privilege_escalation = False
settings.Spawner.cmd = "jupyterhub-singleuser"
take(
    spawner,
    "singleuser",
    uid="uid",
    fs_gid="fsGid",
    start_timeout="startTimeout",
    mem_guarantee="memory.guarantee",
    environment="extraEnv",
    profile_list="profileList",
    node_affinity_required="extraNodeAffinity.required",
)
spawner.tolerations = get("scheduling.userPods.tolerations", []) + get("singleuser.extraTolerations", [])
if get("scheduling.userScheduler.enabled"):
    spawner.scheduler_name = f"{release}-user-scheduler"
if get("singleuser.cloudMetadata.blockWithIptables"):
    spawner.init_containers = [
        {
            "name": "block-cloud-metadata",
            "image": "quay.io/jupyterhub/k8s-network-tools:4.4.0",
            "command": ["iptables", "-A", "OUTPUT", "-d", "169.254.169.254", "-j", "DROP"],
            "securityContext": {"privileged": True, "runAsUser": 0, "capabilities": {"add": ["NET_ADMIN"]}},
        }
    ]

volumes: list[dict[str, Any]] = []
mounts: list[dict[str, Any]] = []
if get("singleuser.storage.type") == "dynamic":
    spawner.storage_pvc_ensure = True
    take(spawner, "singleuser.storage", storage_capacity="capacity", storage_class="dynamic.storageClass")
    take(spawner, "singleuser.storage.dynamic", storage_access_modes="storageAccessModes")
    # A running home keeps its claim, whatever the template says by now.
    volumes = [{"name": "volume-{user_server}", "persistentVolumeClaim": {"claimName": "{pvc_name}"}}]
    mounts = [{"name": "volume-{user_server}", "mountPath": get("singleuser.storage.homeMountPath")}]
files = get("singleuser.extraFiles", {})
if files:
    items = [{"key": name, "path": name} for name in files]
    volumes.append({"name": "files", "secret": {"secretName": "singleuser", "items": items}})
    mounts += [{"name": "files", "mountPath": file["mountPath"], "subPath": name} for name, file in files.items()]
spawner.volumes = volumes + get("singleuser.storage.extraVolumes", [])
spawner.volume_mounts = mounts + get("singleuser.storage.extraVolumeMounts", [])

settings.JupyterHub.services = []
settings.JupyterHub.load_roles = []
if get("cull.enabled"):
    culler = "jupyterhub-idle-culler"
    command = [sys.executable, "-m", "jupyterhub_idle_culler"]
    command.append(f"--url=http://localhost:8081{get('hub.baseUrl')}hub/api")
    numbers = {"timeout": "timeout", "cull-every": "every", "concurrency": "concurrency", "max-age": "maxAge"}
    command += [f"--{flag}={get(f'cull.{name}')}" for flag, name in numbers.items()]
    switches = {"cull-users": "users", "remove-named-servers": "removeNamedServers"}
    command += [f"--{flag}" for flag, name in switches.items() if get(f"cull.{name}")]
    scopes = ["list:users", "read:users:activity", "read:servers", "delete:servers"]
    settings.JupyterHub.load_roles.append({"name": culler, "scopes": scopes, "services": [culler]})
    settings.JupyterHub.services.append({"name": culler, "command": command})

for section, traits in get("hub.config", {}).items():
    # As upstream's: a class in small letters would be a setting that nobody reads.
    if section[:1] != section[:1].upper():
        raise SystemExit(f"hub.config.{section}: a class begins with a capital letter")
    if section != "CryptKeeper":
        settings[section].update(traits)

for file in sorted((HERE / "jupyterhub_config.d").glob("*.py")):
    print(f"Loading {file}", flush=True)
    exec(compile(file.read_text(), file.name, "exec"))  # noqa: S102  (it sees this file's names, as upstream's does)
