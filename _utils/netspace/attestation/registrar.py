"""The registrar on the master: which TPM is which minion's, and the Privacy CA's books.

``Registrar.begin`` makes a credential that only a minion's TPM can open. ``finish`` takes the answer, binds the minion
to the TPM, and has the attestation key certified. The books are a folder that only the master's user can read::

    root/                 the root, where it is here      (privacy_ca.save)
    ca/                   the intermediate that signs     (privacy_ca.save)
    requested.pem         key of a request that the root has not answered yet
    retired.pem           intermediates that signed before, until they run out
    hosts/<hash>.json     a minion: TPM, attestation key, level, certificate
    owners/<key>.json     the owner of an endorsement key, or of an attestation key that has a certificate
    revoked.json          serial numbers, and when
    audit.log             everything that was done       (audit_log)

Nothing here talks to a minion. An endorsement key is bound to one minion, and a minion to one TPM, until ``release``.
At a minion's first enrolment its TPM shows and proves all endorsement keys that it has: none of them can be another
minion's later.

Each certificate is for a new attestation key: :meth:`Registrar.request` chooses 16 random bytes (the period), from
which the minion's TPM derives the key. The minion's record has the period, and each challenge names it.

The log records a binding, a certificate and a revocation before they are written.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace import files
from netspace.attestation import audit_log, hsm, inventory, privacy_ca, structures, verifier
from netspace.attestation.enrolment import Pending
from netspace.attestation.evidence import PERIOD, Context, Enrolment, from_hex, parse_enrolment
from netspace.attestation.privacy_ca import Authority
from netspace.attestation.refusals import Malformed, Refused, SharedAttestationKey
from netspace.errors import NetspaceError, unreadable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

    from netspace.attestation.makers import Makers
    from netspace.attestation.verifier import Certified

NAME = "netspace Privacy CA"


class Registrar:
    """The books in *folder*. Time is an argument."""

    def __init__(self, folder: Path, module: hsm.Module | None = None, listed: Path | None = None) -> None:
        """Keep the books in a folder.

        :param module: where new keys are made, and where the keys are that were made there.
        :param listed: the operator's inventory of TPMs (``netspace.attestation.inventory``); None: there is none.
        """
        self.folder = folder
        self.module = module
        self.listed = listed
        self._requested: dict[str, bytes] = {}
        self._seen: tuple[object, list[Certificate]] = (None, [])
        self.log = folder / "audit.log"

    # -- the CA ---------------------------------------------------------------------
    def init(self, now: float, *, name: str = NAME, here: bool = True) -> dict[str, Any]:
        """Make the CA: root and intermediate here, or only an intermediate's request for a root elsewhere.

        :raises NetspaceError: when there is a CA already.
        """
        with files.locked(self.folder / "lock"):
            if (self.folder / "ca").exists() or (self.folder / "root").exists():
                raise NetspaceError(f"{self.folder} has a CA; 'ca_renew' makes its next intermediate")
            if here:
                self._log("ca-root", now, {"name": f"{name} root"})
                made = privacy_ca.root(f"{name} root", now, key=self._new("root"))
                privacy_ca.save(made, self.folder / "root")
            return self._intermediate(name, now)

    def renew(self, now: float, *, name: str = NAME) -> dict[str, Any]:
        """Make the next intermediate; what the last one signed stays good until it runs out."""
        with files.locked(self.folder / "lock"):
            return self._intermediate(name, now)

    def adopt(self, certificate: bytes, root: bytes, now: float) -> dict[str, Any]:
        """Take the certificate (PEM) that a root elsewhere made of the last request.

        :raises NetspaceError: when it is not for that request, or not by *root*.
        """
        with files.locked(self.folder / "lock"):
            path = self.folder / "requested.pem"
            try:
                raw = path.read_bytes()
            except OSError as err:
                raise NetspaceError(f"{path}: no request is waiting for a certificate: {type(err).__name__}") from err
            key = privacy_ca.private_key(raw, self.module, path)
            self._install(privacy_ca.adopt(key, certificate, root, now), now)
            files.remove(path)
            return self.status(now)

    def status(self, now: float) -> dict[str, Any]:
        """Return the state of the books: the CA and how long it lasts, and the number of hosts."""
        authority = self._authority() if (self.folder / "ca").exists() else None
        return {
            "ca": None if authority is None else authority.certificate.subject.rfc4514_string(),
            "key": None if authority is None else (hsm.reference(authority.key) or b"a file").decode().strip(),
            "until": None if authority is None else authority.certificate.not_valid_after_utc.timestamp(),
            "root_here": (self.folder / "root").exists(),
            "requested": (self.folder / "requested.pem").exists(),
            "retired": len(self._retired(now)),
            "hosts": len(self._hosts()),
        }

    def trusted(self, now: float) -> list[Certificate]:
        """Return the intermediates whose certificates count: the one that signs, and earlier ones until their end."""
        paths = self.folder / "ca/authority.pem", self.folder / "retired.pem"
        stamps = tuple(_stamp(path) for path in paths)
        if stamps != self._seen[0]:
            # Read again only when it changed: each host of a fleet is judged by them. Their keys aren't needed here.
            self._seen = stamps, [privacy_ca.load_certificate(self._ca()), *self._retired(0)]
        return [one for one in self._seen[1] if one.not_valid_after_utc.timestamp() > now or one is self._seen[1][0]]

    def revocations(self, now: float) -> bytes:
        """Return the revocation list (PEM) of the intermediate that signs."""
        revoked = {
            int(serial): since for serial, since in (files.read_json(self._revoked_path, files.KEPT) or {}).items()
        }
        return privacy_ca.revocations(self._authority(), revoked, now)

    # -- hosts ----------------------------------------------------------------------
    def request(self, minion: str) -> dict[str, Any]:
        """Return what the minion is to show next.

        ``template`` is that of the endorsement key that it had (empty for any), ``period`` selects a new attestation
        key each time, and ``others`` says whether the minion shows its other endorsement keys.
        """
        known = self.host(minion)
        self._requested[minion] = secrets.token_bytes(PERIOD)
        return {
            "template": "" if known is None else str(known["template"]),
            "period": self._requested[minion].hex(),
            # The other keys cost a slow TPM seconds, so it shows them once; one that never did must do so now.
            "others": known is None or not known.get("others"),
        }

    def begin(
        self,
        minion: str,
        enrolment: Any,
        master: str,
        makers: Makers,
        now: float,
    ) -> Pending:
        """Make a credential for the keys that *minion* showed.

        :param enrolment: the minion's answer of ``netspace_attestation.enroll`` to the last :meth:`request`.
        :param master: fingerprint of the master's key.
        :param makers: the operator's trusted makers of TPMs.
        :raises Refused: when the TPM fails a check; the log records it.
        """
        self._ca()
        with self._told(minion, now):
            known = self.host(minion)
            shown = parse_enrolment(enrolment)
            if shown.period != self._requested.get(minion):
                raise Malformed("enrolment: not an answer to what was asked last")
            del self._requested[minion]
            endorsement = structures.endorsement(shown.endorsement).fingerprint
            self._check_listed(minion, endorsement, shown)
            shown = makers.completed(shown, endorsement)
            context = Context(master, minion, secrets.token_hex(8), secrets.token_bytes(32))
            pinned = known["ek"] if known else None
            made = verifier.challenge(
                shown,
                context,
                roots=makers.roots,
                lists=makers.lists,
                unreadable=makers.unreadable,
                pinned=pinned,
                now=now,
            )
            return Pending(minion, shown, context, made, known, time.monotonic())

    def finish(self, pending: Pending, answer: Any, now: float) -> dict[str, Any]:
        """Bind a minion to its TPM, and have its attestation key certified.

        :param answer: what its ``netspace_attestation.activate`` returned, within 60 s, however long the bus may take.
        :param now: the time that :meth:`begin` was told.
        :raises Refused: when it is not the answer to *pending*; the log tells so.
        :raises NetspaceError: when the minion was enrolled, revoked or released meanwhile.
        """
        authority, minion, enrolment = self._authority(), pending.minion, pending.enrolment
        with self._told(minion, now):
            bound = pending.challenge.redeem(_answer(answer), now + time.monotonic() - pending.since)
            with files.locked(self.folder / "lock"):
                if self.host(minion) != pending.known:
                    # A renewal must not undo what somebody decided while it waited.
                    raise NetspaceError(f"{minion} was enrolled, revoked or released meanwhile; nothing was changed")
                others = {one.fingerprint for one in bound.others} | set((pending.known or {}).get("others", ()))
                mine = [bound.endorsement.fingerprint, *sorted(others - {bound.endorsement.fingerprint})]
                for endorsement in mine:
                    self._claim(endorsement, minion)
                self._check_new(bound.key, minion, pending.known)
                issued = privacy_ca.issue(authority, bound, now)
                record: dict[str, Any] = {
                    "v": 1,
                    "minion": minion,
                    "template": bound.template,
                    "ek": mine[0],
                    "others": mine[1:],
                    "period": enrolment.period.hex(),
                    "former": None if pending.known is None else bound_key(pending.known).fingerprint,
                    "ak": base64.b64encode(bound.key.raw).decode(),
                    "level": bound.level,
                    "reason": bound.reason,
                    "tpm": dict(enrolment.tpm),
                    "enrolled": now,
                    "pseudonym": issued.pseudonym,
                    "serial": str(issued.serial),
                    "expires": issued.expires,
                    "certificate": base64.b64encode(issued.certificate).decode(),
                }
                self._log("issued", now, {key: record[key] for key in ("minion", "ek", "level", "pseudonym", "serial")})
                # Before the host's: an owner without a host's record counts as none, a record without an owner might.
                for key in (*mine, bound.key.fingerprint):
                    files.write_json(self._owner(key), {"v": 1, "minion": minion})
                files.write_json(self._path(minion), record)
                if record["former"] is not None:
                    files.remove(self._owner(record["former"]))
        return record

    @contextlib.contextmanager
    def _told(self, minion: str, now: float) -> Iterator[None]:
        """Have the log tell of what is refused."""
        try:
            yield
        except Refused as err:
            with files.locked(self.folder / "lock"):
                self._log("refused", now, {"minion": minion, "code": err.code, "reason": err.args[0][:1000]})
            raise

    def certificate(self, minion: str) -> dict[str, Any]:
        """Return the certificate of a minion's attestation key (PEM), and the chain (PEM), for other verifiers.

        ``period`` selects this key at the minion, and is of no use to others.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        record = self._known(minion)
        found = x509.load_der_x509_certificate(base64.b64decode(record["certificate"]))
        return {
            "certificate": found.public_bytes(Encoding.PEM).decode(),
            "chain": (self.folder / "ca/chain.pem").read_text(),
            "pseudonym": record["pseudonym"],
            "expires": record["expires"],
            "period": record.get("period", ""),
        }

    def revoke(self, minion: str, why: str, now: float) -> dict[str, Any]:
        """Revoke the minion's certificate. It stays bound to its TPM, and may be enrolled again."""
        with files.locked(self.folder / "lock"):
            record = self._known(minion)
            revoked = files.read_json(self._revoked_path, files.KEPT) or {}
            self._log("revoked", now, {"minion": minion, "serial": record["serial"], "why": why[:1000]})
            # Those that have run out need no revocation any more.
            kept = {serial: since for serial, since in revoked.items() if since > now - 2 * 86400}
            files.write_json(self._revoked_path, {**kept, record["serial"]: now})
            # In the host's own record too: it stays revoked until somebody enrols it again.
            files.write_json(self._path(minion), {**record, "revoked": now})
            return record

    def is_revoked(self, serial: str) -> bool:
        """Return whether a certificate that may still be in its time was revoked, by its serial number."""
        return serial in (files.read_json(self._revoked_path, files.KEPT) or {})

    def release(self, minion: str, now: float) -> dict[str, Any]:
        """Forget which TPM the minion has, and revoke its certificate: for a host that gets another one."""
        record = self.revoke(minion, "released", now)
        with files.locked(self.folder / "lock"):
            self._log("released", now, {"minion": minion, "ek": record["ek"]})
            files.remove(self._path(minion))
            for key in keys_of(record):
                files.remove(self._owner(key))
        return record

    def host(self, minion: str) -> dict[str, Any] | None:
        """Return what is known of *minion*."""
        return files.read_json(self._path(minion), files.KEPT)

    def hosts(self) -> list[dict[str, Any]]:
        """Return what is known of every minion, by name."""
        return sorted(self._hosts(), key=lambda record: str(record["minion"]))

    def certified(self, record: dict[str, Any], now: float) -> Certified:
        """Return the attestation key of a host that is enrolled, where its certificate still counts.

        :raises Refused: when it doesn't.
        """
        try:
            key, certificate = (base64.b64decode(record[name], validate=True) for name in ("ak", "certificate"))
        except (KeyError, TypeError, ValueError) as err:
            raise NetspaceError(f"{self._path(str(record.get('minion')))}: not a record of an enrolment") from err
        return verifier.certified(
            key,
            certificate,
            record["level"],
            record["reason"],
            trusted=self.trusted(now),
            revoked="revoked" in record,
            now=now,
        )

    def note(self, event: str, data: dict[str, Any], now: float) -> None:
        """Have the log tell of something else that was decided here."""
        with files.locked(self.folder / "lock"):
            self._log(event, now, data)

    def verify_log(self, noted: audit_log.Head | None = None) -> audit_log.Head:
        """Check the log from its beginning; see :func:`netspace.attestation.audit_log.verify`."""
        try:
            with self.log.open("rb") as stream:
                return audit_log.verify(stream, noted)
        except FileNotFoundError:
            return audit_log.verify((), noted)

    # -- what they are made of ------------------------------------------------------
    @property
    def _revoked_path(self) -> Path:
        return self.folder / "revoked.json"

    def _owner(self, endorsement: str) -> Path:
        return self.folder / "owners" / f"{endorsement}.json"

    def _check_listed(self, minion: str, endorsement: str, shown: Enrolment) -> None:
        if self.listed is not None:
            others = [structures.endorsement(public).fingerprint for _, public in shown.others]
            inventory.read(self.listed).check(minion, endorsement, others)

    def _owned(self, key: str) -> dict[str, str]:
        """Return the owner of a key, from the key's own file: reading all hosts for each takes an hour for 10,000."""
        owner = (files.read_json(self._owner(key), files.KEPT) or {}).get("minion")
        known = self.host(str(owner)) if owner is not None else None
        return {key: str(owner)} if known is not None and key in keys_of(known) else {}

    def _claim(self, endorsement: str, minion: str) -> None:
        privacy_ca.claim(self._owned(endorsement), endorsement, minion)

    def _check_new(self, key: structures.Public, minion: str, known: dict[str, Any] | None) -> None:
        """Check that no other minion has this attestation key, and that this minion's last one was another."""
        owner = self._owned(key.fingerprint).get(key.fingerprint)
        if owner is not None and owner != minion:
            raise SharedAttestationKey(f"the attestation key is {owner}'s; {minion} needs its own")
        if known is not None and bound_key(known).fingerprint == key.fingerprint:
            raise SharedAttestationKey(
                f"{minion} shows the attestation key of its last certificate; a new key was requested"
            )

    def _path(self, minion: str) -> Path:
        return self.folder / "hosts" / f"{key_of(minion)}.json"

    def _hosts(self) -> list[dict[str, Any]]:
        return list(files.read_records(self.folder / "hosts", files.KEPT).values())

    def _known(self, minion: str) -> dict[str, Any]:
        record = self.host(minion)
        if record is None:
            raise NetspaceError(f"{minion} is not enrolled: netspace_attestation.enroll {minion}")
        return record

    def _ca(self) -> Path:
        """Return the folder of the intermediate that signs.

        :raises NetspaceError: when there is none.
        """
        folder = self.folder / "ca"
        if not folder.exists():
            raise NetspaceError("there is no Privacy CA: netspace_attestation.ca_init")
        return folder

    def _authority(self) -> Authority:
        """Return the intermediate that signs, with its key: for those that sign alone, a module may be slow or away."""
        return privacy_ca.load(self._ca(), self.module)

    def _new(self, use: str) -> EllipticCurvePrivateKey | None:
        """Make a key in the module, where one is configured; else whoever needs a key makes it."""
        return None if self.module is None else self.module.create(use)

    def _log(self, event: str, now: float, data: dict[str, Any]) -> None:
        audit_log.append(self.log, event, data, when=now)

    def _intermediate(self, name: str, now: float) -> dict[str, Any]:
        from cryptography.hazmat.primitives import serialization

        key, asked = privacy_ca.request(name, self._new("ca"))
        if (self.folder / "root").exists():
            root = privacy_ca.load(self.folder / "root", self.module)
            pem = root.certificate.public_bytes(serialization.Encoding.PEM)
            self._install(privacy_ca.adopt(key, privacy_ca.sign_request(root, asked, now), pem, now), now)
            return self.status(now)
        self._log("ca-requested", now, {"name": name})
        files.write(self.folder / "requested.pem", privacy_ca.private_bytes(key), mode=0o600)
        return {**self.status(now), "request": asked.decode()}

    def _install(self, authority: Authority, now: float) -> None:
        from cryptography.hazmat.primitives import serialization

        self._log("ca-intermediate", now, {"serial": str(authority.certificate.serial_number)})
        if (self.folder / "ca").exists():
            before = [self._authority().certificate, *self._retired(now)]
            pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in before)
            files.write(self.folder / "retired.pem", pem, mode=0o644)
        privacy_ca.save(authority, self.folder / "ca")

    def _retired(self, now: float) -> list[Certificate]:
        from cryptography import x509

        try:
            found = x509.load_pem_x509_certificates((self.folder / "retired.pem").read_bytes())
        except FileNotFoundError:
            return []
        except unreadable() as err:
            raise NetspaceError(f"{self.folder / 'retired.pem'}: {err}") from err
        return [one for one in found if one.not_valid_after_utc.timestamp() > now]


def bound_key(record: Mapping[str, Any]) -> structures.Public:
    """Return the attestation key that a minion's record is of, whether or not its certificate counts.

    :raises NetspaceError: when the record is none.
    """
    try:
        return structures.public(base64.b64decode(record["ak"], validate=True))
    except (KeyError, TypeError, ValueError, Malformed) as err:
        raise NetspaceError(f"{record.get('minion')}: not a record of an enrolment") from err


def keys_of(record: Mapping[str, Any]) -> list[str]:
    """Return the fingerprints of all keys in a minion's record."""
    return [record["ek"], *record.get("others", ()), bound_key(record).fingerprint]


def key_of(minion: str) -> str:
    """Return what a minion is filed by: its name may be anything, a file's may not."""
    return hashlib.sha256(minion.encode()).hexdigest()[:32]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        return files.stamp(path)
    except OSError:
        return None


def _answer(data: Any) -> bytes:
    raw = from_hex(data.get("answer"), 32) if isinstance(data, dict) else None
    if raw is None:
        raise Malformed("activation: the answer is not 32 bytes in hex")
    return raw
