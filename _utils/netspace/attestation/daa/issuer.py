"""The issuer: admits each TPM once, by its endorsement key as the Privacy CA recorded it.

Its files are in the folder ``anonymous`` of the registrar's folder: the secret key (readable by root only), and a file
for each member. The issuer knows who its members are. It doesn't know which of them made a quote.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netspace import files
from netspace.attestation.daa import curve
from netspace.attestation.daa.curve import G1
from netspace.attestation.daa.scheme import IssuerKey, IssuerSecret, Refusal
from netspace.attestation.refusals import Refused
from netspace.attestation.registrar.host_record import key_of
from netspace.attestation.registrar.registrar import Registrar
from netspace.attestation.tpm import credential, structures
from netspace.attestation.tpm.structures import Reader
from netspace.errors import NetspaceError

FOLDER = "anonymous"
SECONDS = 60.0
"""Time for the answer to a challenge."""
ECDAA, SHA256, BN_P256 = 0x001A, 0x000B, 0x0010
_ATTRIBUTES = (
    structures.FIXED_TPM
    | structures.FIXED_PARENT
    | structures.SENSITIVE_DATA_ORIGIN
    | structures.USER_WITH_AUTH
    | structures.NO_DA
    | structures.RESTRICTED
    | structures.SIGN
)


@dataclass(frozen=True)
class MemberKey:
    """A member's key, as its TPM describes it.

    :param name: its TPM name.
    """

    name: bytes
    point: G1


def member_key(raw: bytes) -> MemberKey:
    """Return the key that a TPMT_PUBLIC describes.

    It must be a restricted ECDAA key on BN_P256: a key that a TPM made and never gives away, and with which the TPM
    signs only its own statements. With any other key, a member could sign a quote that no TPM made.

    :raises Refusal: when it is any other key.
    """
    try:
        reader = Reader(raw, "the member's key")
        head = [reader.number(2), reader.number(2), reader.number(4), reader.number(2)]
        # No policy, no symmetric algorithm; ECDAA with SHA-256 (its counter is 0 in a template); no key derivation.
        about = [reader.number(2) for _ in range(6)]
        x, y = reader.sized(32, "x"), reader.sized(32, "y")
        reader.end()
    except Refused as err:
        raise Refusal("malformed", str(err)) from err
    null = structures.NULL
    if head != [structures.ECC, SHA256, _ATTRIBUTES, 0] or about != [null, ECDAA, SHA256, 0, BN_P256, null]:
        raise Refusal("key", "the member's key is not a restricted ECDAA key of a TPM on BN_P256")
    point = int.from_bytes(x, "big"), int.from_bytes(y, "big")
    if not curve.on_curve(point):
        raise Refusal("key", "the member's key is not a point of BN_P256")
    return MemberKey(SHA256.to_bytes(2, "big") + hashlib.sha256(raw).digest(), point)


class Issuer:
    """The issuer of a registrar's hosts. Nothing is issued before :meth:`make`."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar
        self._folder = registrar.folder / FOLDER
        self._secret = self._folder / "issuer.key"

    def make(self, now: float) -> IssuerKey:
        """Make a new issuer's key, and forget all members; return the public key.

        This is also the only way to revoke credentials: credentials by the former key are worthless with the new key.
        """
        secret = IssuerSecret.new()
        public = secret.public()
        with files.locked(self._registrar.folder / "lock"):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for known in (*self._folder.glob("member-*.json"), *self._folder.glob("pending-*.json")):
                files.remove(known)
            files.write(self._secret, secret.encode())
            files.write(self._folder / "issuer.pub", public.encode(), mode=0o644)
        self._registrar.note("anonymous-issuer", {"issuer": public.digest.hex()}, now)
        return public

    def public(self) -> IssuerKey:
        return IssuerKey.decode(self._read(self._folder / "issuer.pub"))

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise NetspaceError("anonymous attestation: there is no issuer's key here; make it first") from None

    def challenge(self, minion: str, endorsement: bytes, public: bytes, now: float) -> tuple[bytes, bytes]:
        """Return a challenge (TPM2B_ID_OBJECT, encrypted secret) that only a host can answer whose TPM has both keys.

        :param endorsement: TPMT_PUBLIC of the host's endorsement key.
        :param public: TPMT_PUBLIC of the member's key.
        :raises Refusal: the host isn't enrolled with this TPM, is revoked, or is a member by another key already.
        """
        self.public()
        key = member_key(public)
        known = self._enrolled(minion)
        try:
            theirs = structures.endorsement(endorsement)
        except Refused as err:
            raise Refusal("malformed", str(err)) from err
        if theirs.fingerprint not in _endorsements(known):
            raise Refusal("host", f"{minion} is enrolled with the endorsement key of another TPM")
        self._check_once(minion, known, key)
        secret = secrets.token_bytes(32)
        pending = {"v": 1, "secret": secret.hex(), "public": public.hex(), "since": now}
        files.write_json(self._pending(minion), pending)
        return credential.make(theirs, key.name, secret)

    def _pending(self, minion: str) -> Path:
        return self._folder / f"pending-{key_of(minion)}.json"

    def _enrolled(self, minion: str) -> dict[str, Any]:
        known = self._registrar.host(minion)
        if known is None or "revoked" in known:
            raise Refusal("host", f"{minion} isn't enrolled at the Privacy CA, or is revoked")
        return known

    def _check_once(self, minion: str, known: Mapping[str, Any], key: MemberKey) -> None:
        """Check that neither this host nor this TPM is a member by another key.

        A TPM with several keys would count as several members, with as many pseudonyms for one basename.
        """
        for path in self._folder.glob("member-*.json"):
            member = files.read_json(path, files.KEPT) or {}
            same = minion == member.get("minion") or _endorsements(known) & set(member.get("eks", ()))
            if same and member.get("name") != key.name.hex():
                raise Refusal("member", f"{minion} is a member by another key; a new issuer's key forgets all members")

    def admit(self, minion: str, answer: bytes, now: float) -> bytes:
        """Return the credential for a member that answered its last challenge. A challenge can be answered once.

        :raises Refusal: the answer is wrong, or too late, or there is no challenge.
        """
        secret = IssuerSecret.decode(self._read(self._secret))
        with files.locked(self._registrar.folder / "lock"):
            pending = files.read_json(self._pending(minion), files.KEPT)
            files.remove(self._pending(minion))
            if pending is None or not 0 <= now - pending["since"] <= SECONDS:
                raise Refusal(
                    "late", f"no challenge waits for {minion}'s answer since {SECONDS:g} s or less; begin again"
                )
            if not hmac.compare_digest(answer, bytes.fromhex(pending["secret"])):
                raise Refusal("answer", "the member's key isn't in the host's TPM")
            key = member_key(bytes.fromhex(pending["public"]))
            known = self._enrolled(minion)
            self._check_once(minion, known, key)
            eks = sorted(_endorsements(known))
            record = {"v": 1, "minion": minion, "eks": eks, "name": key.name.hex()}
            files.write_json(self._folder / f"member-{key_of(minion)}.json", record)
        issued = secret.issue(key.point)
        try:
            issued.check(self.public(), key.point)
        except Refusal as err:
            # A run that made the key was killed between its two files.
            raise NetspaceError("the issuer's two files don't belong together; make the key again") from err
        self._registrar.note("anonymous-member", {"minion": minion}, now)
        return issued.encode()


def _endorsements(record: Mapping[str, Any]) -> set[str]:
    """Return the fingerprints of all endorsement keys of a host's TPM."""
    return {record["ek"], *record.get("others", ())}
