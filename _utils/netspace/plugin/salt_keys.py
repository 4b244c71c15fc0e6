"""Salt's keys, where master and minions keep them. Imports no Salt: the caller passes the needed functions of Salt.

Never writes a key, and never returns a private key but the minion's own, to the minion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from netspace.attestation.evidence import key_fingerprint
from netspace.attestation.refusals import WrongSaltKey
from netspace.errors import NetspaceError


def own(opts: Mapping[str, Any]) -> bytes:
    """Return a minion's own Salt key (PEM), which is private.

    :raises NetspaceError: it can't be read.
    """
    path = Path(opts["pki_dir"]) / "minion.pem"
    try:
        return path.read_bytes()
    except OSError as err:
        raise NetspaceError(f"{path}: {err.strerror}: this minion's Salt key can't be read") from err


def minions_master(opts: Mapping[str, Any]) -> str:
    """Return the fingerprint of the key of the master that a minion accepted.

    :raises NetspaceError: it has accepted none.
    """
    path = Path(opts["pki_dir"]) / "minion_master.pub"
    try:
        return key_fingerprint(path.read_bytes())
    except OSError as err:
        raise NetspaceError(f"{path}: {err.strerror}: this minion has accepted no master's key") from err


def master(opts: Mapping[str, Any]) -> str:
    """Return the fingerprint of a master's own public key, by which minions know it.

    :raises NetspaceError: it can't be read.
    """
    path = Path(opts["pki_dir"]) / "master.pub"
    try:
        return key_fingerprint(path.read_bytes())
    except OSError as err:
        raise NetspaceError(f"{path}: {err.strerror}: minions know the master by this key; start it once") from err


def accepted(
    opts: Mapping[str, Any], minion: str, valid_id: Callable[[Any, str], bool], cache: Callable[..., Any]
) -> bytes | None:
    """Return the Salt key (PEM) that a master accepted for a minion; None below another master (a syndic).

    :param valid_id: ``salt.utils.verify.valid_id``.
    :param cache: ``salt.cache.Cache``.
    :raises WrongSaltKey: when this master accepted no key of the minion.
    """
    pem: bytes | None = None
    if valid_id(opts, minion):
        driver = opts.get("keys.cache_driver")
        if driver not in (None, "localfs_key"):  # from Salt 3008 on, keys may lie elsewhere
            found = cache(opts, driver=driver).fetch("keys", minion) or {}
            pem = str(found["pub"]).encode() if found.get("state") == "accepted" else None
        else:
            folder = opts.get("cluster_pki_dir") if opts.get("cluster_id") else opts["pki_dir"]
            path = Path(str(folder)) / "minions" / minion
            pem = path.read_bytes() if path.is_file() else None
    if pem is None and not opts.get("order_masters"):
        raise WrongSaltKey(f"the master has no accepted Salt key of {minion}")
    return pem
