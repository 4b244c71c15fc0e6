"""The key that signs environments' tokens, and the host's signed statement about this key.

Root makes the key for the peer while an environment may ask for tokens. The key is in a folder in memory, so it is gone
after a reboot. A statement is valid for three hours. After half of this time, the next apply or hourly run of the
renewer makes a new statement. Neither Salt's master nor a pillar ever has a part of the key.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from netspace import files, jose
from netspace.attestation import environment_token, host_appraisal, result
from netspace.errors import NetspaceError
from netspace.host.peer.told import APPRAISAL, KEY, Appraisal, Vouched
from netspace.layout import Layout
from netspace.link import host_peer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_AGAIN = environment_token.KEY_LIFETIME / 2
_PAUSE = 60.0
"""Seconds after a failure until the next try: a TPM that hangs would hold up an apply several times."""


def ensure(layout: Layout, host: str | None, before: Vouched | None) -> Vouched:
    """Return the host's signed statement about the tokens' key. Make key and statement if they are missing or due.

    :param host: the host's name in links; None: the host's id is used as its name.
    :param before: the statement that the peer has now; None: the peer has none.
    """
    from netspace.attestation.minion import host_key, software_key

    name, boot, now = host or software_key.host_id(layout), result.boot_id(layout), time.time()
    depends: dict[str, Any] = {"host": name, "boot": boot, "for": environment_token.KEY_LIFETIME}
    same, age = False, 0.0
    try:
        chosen = host_key.settings(layout)
        depends["by"] = [chosen.get("tpm"), chosen.get("pcrs")]
        if before is not None and before.about == _text(depends, _present(layout)):
            same, age = True, now - before.since
            if (before.message and 0 <= age < _AGAIN) or 0 <= now - before.tried < _PAUSE:
                return before
        public = _key(layout)
        said = environment_token.statement(name, boot, public, now)
        message = host_key.vouch(layout, chosen, said)
        return Vouched(_text(depends, _present(layout)), now, name, boot, jose.thumbprint(public), message)
    except (NetspaceError, OSError) as err:
        tried = time.time()  # after the TPM's time limit
        if before is not None and same and before.message and 0 <= age < environment_token.KEY_LIFETIME:
            return msgspec.structs.replace(before, tried=tried)
        problem = f"the host can't vouch for its tokens: {err}"
        return Vouched(_text(depends, _present(layout)), now, name, boot, "", "", problem, tried)


def _text(about: Mapping[str, Any], key: bytes) -> str:
    """Return the facts on which a statement depends, as text: *about*, and the digest of the key."""
    return json.dumps({**about, "key": hashlib.sha256(key).hexdigest()}, sort_keys=True)


def _present(layout: Layout) -> bytes:
    """Return the content of the key's file; empty if there is no file."""
    try:
        return files.read(host_peer.folder(layout) / KEY)
    except FileNotFoundError:
        return b""


def forget(layout: Layout) -> None:
    """Delete the tokens' key, and the host appraisal that names it."""
    files.remove(host_peer.folder(layout) / KEY)
    files.remove(host_peer.folder(layout) / APPRAISAL)


def hand_on(layout: Layout) -> None:
    """Give the peer the host appraisal (the verifier's statement on this host) in the last accepted result.

    Nothing is done if there is no token key. An outdated host appraisal does no harm: the peer compares key, boot and
    time.

    :raises StateError: the recorded result is damaged.
    """
    folder = host_peer.folder(layout)
    if not (folder / KEY).exists():
        return
    # An apply and the call that accepts a result may both do this. The last one reads the last result.
    with files.locked(folder / f"{APPRAISAL}.lock"):
        last = result.load(layout)
        if last is None or not last.appraisal:
            files.remove(folder / APPRAISAL)
            return
        until = min(last.expires, last.issued + host_appraisal.LONGEST)
        raw = msgspec.json.encode(Appraisal(last.token_key, last.boot, until, last.appraisal))
        files.write(folder / APPRAISAL, raw, mode=0o640, owner=(0, host_peer.ids(layout)))


def key(layout: Layout) -> EllipticCurvePrivateKey | None:
    """Return the tokens' key, for which the host vouches to its verifier; None if there is no usable key."""
    raw = _present(layout)
    return _parsed(raw) if raw else None


def _key(layout: Layout) -> dict[str, str]:
    """Return the tokens' public key (JWK). Make a new key if there is no usable one."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = host_peer.folder(layout) / KEY
    key = _parsed(_present(layout))
    if key is None:
        key = ec.generate_private_key(ec.SECP256R1())
        encoding, form = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
        raw = key.private_bytes(encoding, form, serialization.NoEncryption())
        files.write(path, raw, mode=0o640, owner=(0, host_peer.ids(layout)))
    return jose.jwk(key.public_key())


def _parsed(raw: bytes) -> EllipticCurvePrivateKey | None:
    """Return the key in *raw* (DER); None if there is no key on P-256."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        found = serialization.load_der_private_key(raw, None)
    except (ValueError, TypeError):
        return None
    return found if isinstance(found, ec.EllipticCurvePrivateKey) and isinstance(found.curve, ec.SECP256R1) else None
