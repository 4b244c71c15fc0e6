"""Keys of programs on this host: they seal values for a program, open these again, and sign for it.

The key from which all others are derived never leaves its holder. The host chooses the holder:

=========  ===========================================================================================================
holder     when, and who can use the keys
=========  ===========================================================================================================
``tpm``    the host was appraised with a TPM: root of this host, with this TPM; keys that are bound to a boot policy,
           only while the PCRs have the same values
``token``  ``/etc/netspace/token.json`` names a token (PKCS #11): root of this host, while the token is there
``file``   otherwise: root of this host, and anybody who has a copy of its disk
=========  ===========================================================================================================

A TPM signs by a key of its own. A token and a file give a secret, from which the private key is computed for each
signature in this process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from netspace import ecdsa, files, jose
from netspace.attestation import bound_value, hsm
from netspace.attestation.bound_value import HOLDERS, Asker, Boot, BoundError, Head, Holder, TooWeak
from netspace.attestation.minion import host_key, self_appraisal, software_key
from netspace.attestation.tpm import bound_keys, structures
from netspace.attestation.tpm import device as tpm
from netspace.errors import NetspaceError
from netspace.layout import Layout

T = TypeVar("T")
SETTINGS = "etc/netspace/token.json"
"""The file that names the host's token."""
_LABEL = "netspace-programs"
_TIMEOUT = 10.0
"""Seconds for one use of the TPM."""


class Signed(NamedTuple):
    """A signature.

    :param signature: r and s, 32 bytes each.
    :param key: the public key (JWK).
    :param boot: whether the key is bound to the boot policy.
    """

    signature: bytes
    key: dict[str, str]
    kept_in: Holder
    boot: bool


class Keys(Protocol):
    """A holder of the key from which the keys of programs are derived."""

    kept_in: Holder

    def boot(self) -> Boot | None:
        """Return the present values of the PCRs that the declaration names; None: this holder can't bind to them."""

    def code(self, data: bytes, boot: Boot | None) -> bytes:
        """Return 32 bytes that only this holder can compute from *data*, and for *boot* only in such a boot."""

    def sign(self, context: bytes, hashed: bytes, boot: Boot | None) -> tuple[bytes, dict[str, str]]:
        """Return the signature of a digest by the key of *context*, and the public key (JWK)."""


def asker(layout: Layout, environment: str, image: str) -> Asker:
    """Return a program of this host, as keys are bound to it."""
    return Asker(software_key.host_id(layout), environment, image)


def seal(layout: Layout, who: Asker, plain: bytes, *, image: bool, boot: bool, at_least: Holder) -> tuple[Head, str]:
    """Seal a value; return its head, which tells what it is bound to, and the sealed value.

    :param who: the asking program, as the host knows it.
    :param image: whether to bind it to the image.
    :param boot: whether to bind it to the boot policy, where the holder can do that.
    :param at_least: the weakest holder that the program accepts.
    :raises NetspaceError: the holder is weaker, or can't be used.
    """
    keys = of(layout, at_least)
    about = bound_value.head(keys.kept_in, image, keys.boot() if boot else None)
    return about, bound_value.sealed(about, keys.code(bound_value.material(who, about), about.bound), plain)


def unseal(layout: Layout, who: Asker, text: str) -> tuple[Head, bytes]:
    """Open a sealed value, which need not be trusted; return its head and the value.

    :raises BoundError: it was sealed for another environment, image, host or boot.
    :raises NetspaceError: the holder can't be used.
    """
    about, body = bound_value.read(text)
    keys = of(layout)
    if about.kept_in != keys.kept_in:
        raise BoundError(f"it was sealed with a key in a {about.kept_in}; this host has its keys in a {keys.kept_in}")
    try:
        return about, bound_value.opened(keys.code(bound_value.material(who, about), about.bound), body)
    except bound_keys.OtherBootError as err:
        raise BoundError("it was sealed in a boot that measured something else") from err


def sign(layout: Layout, who: Asker, hashed: bytes, *, image: bool, boot: bool, at_least: Holder) -> Signed:
    """Sign a SHA-256 digest by the program's key; parameters and errors as for :func:`seal`."""
    keys = of(layout, at_least)
    bound = keys.boot() if boot else None
    signature, key = keys.sign(who.context("sign", image), hashed, bound)
    return Signed(signature, key, keys.kept_in, bound is not None)


def of(layout: Layout, at_least: Holder = "file") -> Keys:
    """Return this host's holder of keys.

    :raises TooWeak: it is weaker than *at_least*.
    """
    chosen = host_key.settings(layout)
    token = _token(layout)
    keys: Keys
    if chosen.get("tpm") is not None:
        keys = _InTpm(layout, str(chosen["tpm"]), tuple(chosen["pcrs"]))
    else:
        keys = _InFile(layout) if token is None else _InToken(token)
    if HOLDERS.index(keys.kept_in) < HOLDERS.index(at_least):
        raise TooWeak(f"keys of programs are kept in a {keys.kept_in} here, and not in a {at_least}")
    return keys


class _InTpm:
    kept_in: Holder = "tpm"

    def __init__(self, layout: Layout, tcti: str, pcrs: tuple[int, ...]) -> None:
        self._tcti, self._pcrs, self._lock = tcti, pcrs, self_appraisal.lock_path(layout)

    def boot(self) -> Boot | None:
        return Boot(self._pcrs, self._run(lambda one: bound_keys.boot(one, self._pcrs)).hex())

    def code(self, data: bytes, boot: Boot | None) -> bytes:
        return self._run(lambda one: bound_keys.code(one, data, *_measured(boot)))

    def sign(self, context: bytes, hashed: bytes, boot: Boot | None) -> tuple[bytes, dict[str, str]]:
        signature, public = self._run(lambda one: bound_keys.sign(one, context, hashed, *_measured(boot)))
        return signature, jose.jwk(structures.public(public).key())  # type: ignore[arg-type]  # on P-256, by its template

    def _run(self, work: Callable[[tpm.Device], T]) -> T:
        return tpm.run(self._tcti, work, lock=self._lock, timeout=_TIMEOUT)


def _measured(boot: Boot | None) -> tuple[tuple[int, ...], bytes]:
    """Return the PCRs of *boot* and the digest of their values, as ``bound_keys`` takes them."""
    return ((), b"") if boot is None else (boot.pcrs, bytes.fromhex(boot.digest))


class _Derived:
    """A holder that gives a secret, from which the key is computed."""

    def boot(self) -> Boot | None:
        return None

    def code(self, data: bytes, boot: Boot | None) -> bytes:
        raise NotImplementedError

    def sign(self, context: bytes, hashed: bytes, boot: Boot | None) -> tuple[bytes, dict[str, str]]:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
        from cryptography.hazmat.primitives.hashes import SHA256

        key = bound_value.private_key(self.code(context, boot))
        made = key.sign(hashed, ec.ECDSA(Prehashed(SHA256())))
        return ecdsa.to_raw(made, 32), jose.jwk(key.public_key())


class _InToken(_Derived):
    kept_in: Holder = "token"

    def __init__(self, module: hsm.Module) -> None:
        self._module = module

    def code(self, data: bytes, boot: Boot | None) -> bytes:
        _no_boot(boot)
        return self._module.code(_LABEL, data)


class _InFile(_Derived):
    kept_in: Holder = "file"

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def code(self, data: bytes, boot: Boot | None) -> bytes:
        import hmac

        _no_boot(boot)
        return hmac.digest(_private(self._layout), data, "sha256")


def _no_boot(boot: Boot | None) -> None:
    if boot is not None:
        raise BoundError("it is bound to a boot policy, and only a TPM can enforce that")


def _token(layout: Layout) -> hsm.Module | None:
    """Return the token of this host; None if it has none.

    :raises NetspaceError: the file that names it is malformed, or others than root can change it.
    """
    path = layout.root / SETTINGS
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if found.st_uid != os.geteuid() or found.st_mode & 0o022 or not stat.S_ISREG(found.st_mode):
        raise NetspaceError(f"{path}: others than root can change this file; run chown root and chmod go-w on it")
    return hsm.module(files.read_json(path, "correct it: module, token and pin_file"), str(path))


def _private(layout: Layout) -> bytes:
    """Return the key in the file. Make a new key if there is none, or if the key belongs to another machine.

    :raises StateError: when the file is damaged.
    """
    remedy = "remove the file to have a new one. What was sealed is lost then"
    return software_key.kept(layout, "program-key.json", lambda: os.urandom(32), remedy=remedy)
