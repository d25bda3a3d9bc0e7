"""Certificates: renewed at a start when they are about to expire, and made anew when somebody asks for it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from config import log
from paths import KUBEADM, Paths
from system import run

RENEW_DAYS = 120
AUTHORITIES = {"ca", "client-ca", "front-proxy-ca", "sa"}


def leaves(paths: Paths) -> list[Path]:
    """What a start makes again where it is missing: certificates, keys, kubeconfigs with one inside; never a CA's."""
    found = [path for kind in ("*.crt", "*.key", "etcd/*.crt", "etcd/*.key") for path in paths.tls.glob(kind)]
    kept = [path for path in found if not path.is_symlink() and path.stem not in AUTHORITIES]
    return [*kept, *KUBEADM.glob("*.conf"), *paths.agent.glob("kubeproxy.kubeconfig"), *paths.agent.glob("pki/*")]


def renew(paths: Paths) -> None:
    """Before a start: remove all of them where one expires within the window, or another authority has come."""
    every = leaves(paths)
    signed = ("openssl", "verify", "-CAfile", paths.tls / "ca.crt", paths.tls / "apiserver.crt")
    if every and (paths.tls / "ca.crt").exists() and run(*signed, check=False).returncode:
        log("info", "the certificates are another authority's than the cluster's, renewing certificates")
        for one in every:
            one.unlink()
        return
    for path in every:
        ask = ("openssl", "x509", "-noout", "-checkend", RENEW_DAYS * 86400, "-in", path)
        if path.suffix == ".crt" and run(*ask, check=False).returncode:
            log("info", f"certificate {path} will expire within {RENEW_DAYS} days, renewing certificates")
            for one in every:
                one.unlink()
            return


def rotate(paths: Paths) -> None:
    """Set them aside as upstream does, so that the next start makes new ones."""
    backup = (paths.server if paths.tls.exists() else paths.agent) / f"tls-{int(time.time())}"
    if paths.tls.exists():
        shutil.copytree(paths.tls, backup, symlinks=True)
    else:
        backup.mkdir(0o700)
    for path in leaves(paths):
        if paths.agent in path.parents:
            shutil.copy(path, backup, follow_symlinks=False)
        path.unlink()
    then = "please restart rke2 server or agent to rotate certificates"
    log("info", f"Successfully backed up certificates to {backup}, {then}")
