"""Signing keys in a hardware security module (PKCS#11): created and used in the module, which never exports them.

The master's configuration may put the keys of the Privacy CA and the verifier into such a module. A key's file then
holds a reference (RFC 7512, ``pkcs11:token=...;object=...``) instead of the key. A host may have a token, too, for the
keys of its programs (``minion.program_keys``). Only a machine with such keys needs ``python-pkcs11``, which is imported
when such a key is used. A key that can be exported from the module is refused. The PIN comes from a file that only its
owner can read, and appears in no message.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from netspace import ecdsa
from netspace.errors import MissingError, NetspaceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

PREFIX = b"pkcs11:"
_URI = re.compile(rb"pkcs11:token=([^;\r\n]{1,96});object=([A-Za-z0-9-]{1,64});type=private\r?\n")
_CURVE = "secp256r1"


@dataclass(frozen=True)
class Module:
    """Reference to a PKCS#11 module (a hardware security module's library), and to the token in it that holds the keys.

    :param path: path of the module's library.
    :param token: label of the token.
    :param pin: path of the file with the user's PIN.
    """

    path: str
    token: str
    pin: str

    def create(self, use: str) -> EllipticCurvePrivateKey:
        """Create a key on P-256 that can't be exported, and return the key.

        :param use: the key's purpose; part of its label.
        """
        label = f"netspace-{use}-{secrets.token_hex(8)}"
        with _session(self) as (pkcs11, session):
            from pkcs11.util.ec import encode_named_curve_parameters

            curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters(_CURVE)}
            domain = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
            own = {pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False, pkcs11.Attribute.SIGN: True}
            domain.generate_keypair(
                mechanism=pkcs11.Mechanism.EC_KEY_PAIR_GEN,
                store=True,
                label=label,
                id=secrets.token_bytes(16),
                capabilities=pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
                private_template=own,
            )
        return self.load(label)

    def load(self, label: str) -> EllipticCurvePrivateKey:
        """Return the key with this label.

        :raises NetspaceError: when there is no such key, when the key is not on P-256, or when the key can be exported.
        """
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_der_public_key

        with _session(self) as (pkcs11, session):
            from pkcs11.util.ec import encode_ec_public_key

            private = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=label)
            if private[pkcs11.Attribute.EXTRACTABLE] or not private[pkcs11.Attribute.SENSITIVE]:
                raise NetspaceError(f"{self.token}: the key {label} can be exported; make one that can't")
            public = session.get_key(object_class=pkcs11.ObjectClass.PUBLIC_KEY, label=label)
            key = load_der_public_key(encode_ec_public_key(public))
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise NetspaceError(f"{self.token}: the key {label} is not on P-256")
        return _key(self, label, key)

    def code(self, label: str, data: bytes) -> bytes:
        """Return the authentication code (HMAC with SHA-256) of *data* by the key with this label.

        If there is no such key, one is made that can't be exported.

        :raises NetspaceError: when the key can be exported, or the token can't do it.
        """
        with _session(self) as (pkcs11, session):
            try:
                key = session.get_key(object_class=pkcs11.ObjectClass.SECRET_KEY, label=label)
            except pkcs11.NoSuchKey:
                own = {pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False}
                key = session.generate_key(
                    pkcs11.KeyType.GENERIC_SECRET,
                    256,
                    store=True,
                    label=label,
                    id=secrets.token_bytes(16),
                    capabilities=pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
                    template=own,
                )
            if key[pkcs11.Attribute.EXTRACTABLE] or not key[pkcs11.Attribute.SENSITIVE]:
                raise NetspaceError(f"{self.token}: the key {label} can be exported; make one that can't")
            return bytes(key.sign(data, mechanism=pkcs11.Mechanism.SHA256_HMAC))


def module(data: Any, at: str = "master configuration: netspace.attestation:pkcs11") -> Module | None:
    """Return the module in the master's configuration (``{module, token, pin_file}``); None if *data* is None.

    :param at: where *data* is from, for messages.
    :raises NetspaceError: when *data* is neither None nor such a mapping.
    """
    if data is None:
        return None
    names = {"module", "token", "pin_file"}
    if not isinstance(data, Mapping) or set(data) != names or any(not isinstance(data[one], str) for one in names):
        raise NetspaceError(f"{at}: expected module, token and pin_file")
    token = data["token"]
    if not token or len(token.encode()) > 32 or not token.isprintable() or ";" in token:
        raise NetspaceError(f"{at}:token: {token!r:.80}: expected a token's label, at most 32 bytes, without ';'")
    return Module(data["module"], token, data["pin_file"])


def reference(key: object) -> bytes | None:
    """Return the reference to write into a key file, for a key in a hardware security module; None for other keys."""
    found = getattr(key, "reference", None)
    return found if isinstance(found, bytes) else None


def opened(raw: bytes, chosen: Module | None, path: Path) -> EllipticCurvePrivateKey:
    """Return the key that a file's reference names.

    :param chosen: the module that the configuration names.
    :raises NetspaceError: when the reference names another module, or the module has no such key.
    """
    found = _URI.match(raw)
    if found is None:
        raise NetspaceError(f"{path}: not a reference to a key in a module (PKCS#11)")
    token = found[1].decode("utf-8", "replace")
    if chosen is None or chosen.token != token:
        raise NetspaceError(f"{path}: the key is in the token {token!r}: name it in netspace.attestation:pkcs11")
    return chosen.load(found[2].decode())


@contextmanager
def _session(chosen: Module) -> Iterator[tuple[Any, Any]]:
    try:
        import pkcs11
        from pkcs11.exceptions import PKCS11Error
    except ImportError as err:
        raise MissingError("the Python library python-pkcs11", "pip install python-pkcs11") from err
    # Some of its errors are not PKCS11Error, such as the one for a library that can't be loaded.
    try:
        library = pkcs11.lib(chosen.path)
        with library.get_token(token_label=chosen.token).open(user_pin=_pin(chosen), rw=True) as session:
            yield pkcs11, session
    except (PKCS11Error, RuntimeError) as err:
        said = f"{type(err).__name__}: {err}" if str(err) else type(err).__name__
        raise NetspaceError(f"{chosen.path}, token {chosen.token!r}: {said}") from err


def _pin(chosen: Module) -> str:
    path = Path(chosen.pin)
    try:
        info = path.lstat()
        if info.st_mode & 0o077 or info.st_uid != os.geteuid() or not stat.S_ISREG(info.st_mode):
            raise NetspaceError(f"{path}: other users can access this file; run chmod go= on it")
        return path.read_text().rstrip("\n")
    except OSError as err:
        raise NetspaceError(f"{path}: {err.strerror}; put the PIN into this file") from err


def _key(chosen: Module, label: str, public: EllipticCurvePublicKey) -> EllipticCurvePrivateKey:
    """Return a private key object that ``cryptography`` uses to sign certificates.

    The class is defined in this function because ``cryptography`` is imported late.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    class Key(ec.EllipticCurvePrivateKey):
        """A private key that signs in the module and allows no other use."""

        reference = f"pkcs11:token={chosen.token};object={label};type=private\n".encode()

        def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
            if not isinstance(signature_algorithm.algorithm, hashes.SHA256):
                raise NetspaceError("a key in a PKCS#11 module signs only with SHA-256")
            with _session(chosen) as (pkcs11, session):
                private = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=label)
                made = private.sign(hashlib.sha256(data).digest(), mechanism=pkcs11.Mechanism.ECDSA)
            return ecdsa.to_der(made)

        def public_key(self) -> ec.EllipticCurvePublicKey:
            return public

        @property
        def curve(self) -> ec.EllipticCurve:
            return public.curve

        @property
        def key_size(self) -> int:
            return public.key_size

        def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
            return self._never()

        def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
            return self._never()

        def private_bytes(self, encoding: Any, format: Any, encryption_algorithm: Any) -> bytes:
            return self._never()

        def __copy__(self) -> Key:
            return self

        def __deepcopy__(self, memo: dict[Any, Any]) -> Key:
            return self

        def _never(self) -> NoReturn:
            raise NetspaceError(f"the key {label} is in the token {chosen.token!r} and stays there")

    return Key()
