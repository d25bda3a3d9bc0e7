"""A home is mounted for the person it was made for, not for whoever has the same name later.

Names come back: a user leaves, another gets the name. So a home's claim carries the identity that Keycloak never gives
twice (`sub`), and a server whose owner has another identity is not started. A claim without the mark was not made by
this hub; only an administrator can say whose it is.
"""

from __future__ import annotations

from typing import Any

from metalhub_profiles import Refused

MARK = "metalhub/identity"


def identity(auth_state: Any, name: str) -> str:
    """Return what Keycloak calls the person of this login."""
    found = ((auth_state or {}).get("oauth_user") or {}).get("sub")
    if not isinstance(found, str) or not found:
        raise Refused(403, f"Nobody knows whose home {name}'s is: {name} has to log in first.")
    return found


def mark(spawner: Any, auth_state: Any) -> None:
    """Have a home that is made from now on carry its owner's identity, whoever starts the server."""
    found = identity(auth_state, spawner.user.name)
    # KubeSpawner reads every value as a template.
    written = found.replace("{", "{{").replace("}", "}}")
    spawner.storage_extra_annotations = {**spawner.storage_extra_annotations, MARK: written}


async def check(spawner: Any, pod: Any) -> Any:
    """Return the pod as it is, if the home it mounts is its owner's.

    The claim is there by now, made a moment ago or long before, under the name that the pod will mount.
    """
    if not spawner.storage_pvc_ensure:
        return pod
    owner = identity(await spawner.user.get_auth_state(), spawner.user.name)
    claim = await spawner.api.read_namespaced_persistent_volume_claim(
        name=spawner.pvc_name, namespace=spawner.namespace, _request_timeout=spawner.k8s_api_request_timeout
    )
    found = (claim.metadata.annotations or {}).get(MARK)
    if found == owner:
        return pod
    whose = "belongs to another account that had this name" if found else "does not say whose it is"
    raise Refused(
        403,
        f"The home {spawner.pvc_name} {whose}, so no server was started. Ask an administrator, who either gives it to "
        f"this account: kubectl -n {spawner.namespace} annotate pvc {spawner.pvc_name} --overwrite {MARK}={owner}, or "
        f"puts it away: renames its directory on the file server, then deletes the claim.",
    )


def configure(config: Any) -> None:
    """Mark homes when they are made and look at the mark before they are mounted."""
    config.KubeSpawner.auth_state_hook = mark
    config.KubeSpawner.modify_pod_hook = check
