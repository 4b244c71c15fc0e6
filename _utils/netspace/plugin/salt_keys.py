"""Salt's keys, in the folders of master and minion. Imports no Salt: the caller passes the needed functions of Salt.

The only private key that this module returns is the minion's own, on the minion. The only key that it writes is a
minion's public key, when a master accepts it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from netspace import files
from netspace.attestation.evidence import key_fingerprint
from netspace.attestation.refusals import WrongSaltKey
from netspace.errors import NetspaceError

MAX_KEY = 4096
"""Bytes of the largest public key."""


def own(opts: Mapping[str, Any]) -> bytes:
    """Return a minion's own Salt key (PEM), which is private.

    :param opts: the minion's configuration.
    :raises NetspaceError: the key can't be read.
    """
    path = Path(opts["pki_dir"]) / "minion.pem"
    try:
        return path.read_bytes()
    except OSError as err:
        raise NetspaceError(f"{path}: {err.strerror}: this minion's Salt key can't be read") from err


def minions_master(opts: Mapping[str, Any]) -> str:
    """Return the fingerprint of the master's key that this minion accepted.

    :param opts: the minion's configuration.
    :raises NetspaceError: the minion has accepted no master's key.
    """
    path = Path(opts["pki_dir"]) / "minion_master.pub"
    try:
        return key_fingerprint(path.read_bytes())
    except OSError as err:
        raise NetspaceError(f"{path}: {err.strerror}: this minion has accepted no master's key") from err


def master(opts: Mapping[str, Any]) -> str:
    """Return the fingerprint of a master's own public key. Minions recognize the master by this key.

    :param opts: the master's configuration.
    :raises NetspaceError: the key can't be read.
    """
    path = Path(opts["pki_dir"]) / "master.pub"
    try:
        return key_fingerprint(path.read_bytes())
    except OSError as err:
        remedy = "start the master once, which makes this key; minions know the master by it"
        raise NetspaceError(f"{path}: {err.strerror}: {remedy}") from err


def accepted(
    opts: Mapping[str, Any], minion: str, valid_id: Callable[[Any, str], bool], cache: Callable[..., Any]
) -> bytes | None:
    """Return the Salt key (PEM) that a master accepted for a minion.

    The result is None if only a lower master (syndic) may have accepted the minion's key.

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
            path = _folder(opts) / "minions" / minion
            pem = path.read_bytes() if path.is_file() else None
    if pem is None and not opts.get("order_masters"):
        raise WrongSaltKey(f"the master has no accepted Salt key of {minion}")
    return pem


def pending(opts: Mapping[str, Any], minion: str, valid_id: Callable[[Any, str], bool]) -> bytes | None:
    """Return the Salt key (PEM) of a minion that waits for the master's acceptance; None if no key waits.

    :param valid_id: ``salt.utils.verify.valid_id``.
    :raises NetspaceError: the master doesn't keep keys in files.
    """
    if opts.get("keys.cache_driver") not in (None, "localfs_key"):
        raise NetspaceError("keys.cache_driver: only keys in files (localfs_key) can be accepted by attestation")
    if not valid_id(opts, minion) or (_folder(opts) / "minions" / minion).exists():
        return None
    path = _folder(opts) / "minions_pre" / minion
    try:
        return files.read(path, MAX_KEY)
    except FileNotFoundError:
        return None


def accept(opts: Mapping[str, Any], minion: str, key: bytes, valid_id: Callable[[Any, str], bool]) -> None:
    """Accept exactly *key* of a minion. The master must have it as pending.

    The compared bytes are written, so that nobody can replace the pending file between the comparison and the
    acceptance. A key that was accepted in the meantime is never replaced.

    :raises WrongSaltKey: another key or no key is pending, or a key was accepted in the meantime.
    """
    found = pending(opts, minion, valid_id)
    if found is None or key_fingerprint(found) != key_fingerprint(key):
        raise WrongSaltKey(f"{minion:.80}: the compared key is no longer pending")
    folder = _folder(opts) / "minions"
    fd, aside = tempfile.mkstemp(prefix=".", dir=_folder(opts))  # not in minions: Salt takes each file there for a key
    try:
        with open(fd, "wb") as stream:
            os.fchmod(fd, 0o644)
            stream.write(found)  # Salt's own bytes: *key* may be the same key in another encoding
            stream.flush()
            os.fsync(fd)
        os.link(aside, folder / minion)  # fails if there is one
    except FileExistsError as err:
        raise WrongSaltKey(f"a key of {minion:.80} was accepted meanwhile") from err
    finally:
        os.unlink(aside)
    files.sync_folder(folder)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_folder(opts) / "minions_pre" / minion)


def _folder(opts: Mapping[str, Any]) -> Path:
    return Path(str(opts.get("cluster_pki_dir") if opts.get("cluster_id") else opts["pki_dir"]))
