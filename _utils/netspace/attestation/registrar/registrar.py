"""Registrar on the master: binds each minion to a TPM, and keeps the certificates of its attestation keys.

``Registrar.begin`` makes a credential that only the minion's TPM can open. ``finish`` takes the minion's answer, binds
the minion to the TPM, and has the attestation key certified. The records are in a folder that only the master's user
can read::

    root/                 the root, if it is on this master                         (authorities)
    ca/                   the current intermediate                                  (authorities)
    requested.pem         key of a certificate request without a certificate yet    (authorities)
    retired.pem           earlier intermediates, until they expire                  (authorities)
    hosts/<hash>.json     a minion: TPM, attestation key, level, certificate
    owners/<key>.json     the owner of an endorsement key, or of an attestation key that has a certificate
    revoked.json          serial numbers and times of revoked certificates
    audit.log             every change and refusal                                  (audit_log)

This module sends nothing to a minion. An endorsement key is bound to one minion, and a minion to one TPM, until
``release``. At a minion's first enrolment, the TPM proves all of its endorsement keys, so that no other minion can be
bound to the same TPM by another endorsement key.

Each certificate is for a new attestation key: :meth:`Registrar.request` chooses 16 random bytes (the period), from
which the minion's TPM derives the key. The period is in the minion's record and in each challenge.

The log records a binding, a certificate or a revocation before the files are written.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace import files
from netspace.attestation import hsm
from netspace.attestation.evidence import PERIOD, Context, Enrolment, from_hex, parse_enrolment
from netspace.attestation.refusals import Malformed, Refused, SharedAttestationKey
from netspace.attestation.registrar import audit_log, inventory, privacy_ca
from netspace.attestation.registrar.authorities import Authorities
from netspace.attestation.registrar.enrolment import Pending
from netspace.attestation.registrar.host_record import bound_key, key_of, keys_of
from netspace.attestation.tpm import structures
from netspace.attestation.verifier import attestation_keys
from netspace.errors import NetspaceError

if TYPE_CHECKING:
    from netspace.attestation.endorsement.makers import Makers
    from netspace.attestation.verifier.attestation_keys import Certified


class Registrar:
    """Registrar whose records are in *folder*. Methods take the time as an argument."""

    def __init__(self, folder: Path, module: hsm.Module | None = None, listed: Path | None = None) -> None:
        """Use the records in *folder*.

        :param module: hardware security module that makes and holds new keys; None: new keys are in files.
        :param listed: the file with the operator's inventory of TPMs (``netspace.attestation.registrar.inventory``);
            None: no inventory.
        """
        self.folder = folder
        self.module = module
        self.listed = listed
        self._requested: dict[str, bytes] = {}
        self.ca = Authorities(folder, module)
        self.log = folder / "audit.log"

    def status(self, now: float) -> dict[str, Any]:
        """Return the state of the CA, and the number of hosts."""
        return {**self.ca.status(now), "hosts": len(self._hosts())}

    def revocations(self, now: float) -> bytes:
        """Return a new revocation list (PEM) of the current intermediate."""
        revoked = {
            int(serial): since for serial, since in (files.read_json(self._revoked_path, files.KEPT) or {}).items()
        }
        return privacy_ca.revocations(self.ca.current(), revoked, now)

    # -- hosts ----------------------------------------------------------------------
    def request(self, minion: str) -> dict[str, Any]:
        """Return the request for a minion's next enrolment.

        ``template`` is the template of the recorded endorsement key; it is empty if no key is recorded, and then the
        minion may use any template. ``period`` is a new random value, from which the TPM derives a new attestation key.
        ``others`` tells whether the minion shows the TPM's other endorsement keys, too.
        """
        known = self.host(minion)
        self._requested[minion] = secrets.token_bytes(PERIOD)
        return {
            "template": "" if known is None else str(known["template"]),
            "period": self._requested[minion].hex(),
            # The other keys take a slow TPM seconds, so the minion shows them only until they are on record.
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
        """Make a credential for the keys in a minion's enrolment.

        :param enrolment: the minion's answer of ``netspace_attestation.enroll`` to the last :meth:`request`.
        :param master: fingerprint of the master's key.
        :param makers: the operator's trusted makers of TPMs.
        :raises Refused: when the TPM fails a check; the log records it.
        """
        self.ca.place()
        with self._told(minion, now):
            known = self.host(minion)
            shown = parse_enrolment(enrolment)
            if shown.period != self._requested.get(minion):
                raise Malformed("enrolment: not an answer to the last request")
            del self._requested[minion]
            endorsement = structures.endorsement(shown.endorsement).fingerprint
            self._check_listed(minion, endorsement, shown)
            shown = makers.completed(shown, endorsement)
            context = Context(master, minion, secrets.token_hex(8), secrets.token_bytes(32))
            pinned = known["ek"] if known else None
            made = attestation_keys.challenge(
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

        :param answer: the result of the minion's ``netspace_attestation.activate``. It must arrive within 60 s,
            including the time on Salt's bus.
        :param now: the same value as for :meth:`begin`.
        :raises Refused: when *answer* is not the answer to *pending*; the log records the refusal.
        :raises NetspaceError: when the minion was enrolled, revoked or released since :meth:`begin`.
        """
        authority, minion, enrolment = self.ca.current(), pending.minion, pending.enrolment
        with self._told(minion, now):
            bound = pending.challenge.redeem(_answer(answer), now + time.monotonic() - pending.since)
            with files.locked(self.folder / "lock"):
                if self.host(minion) != pending.known:
                    # A renewal must not undo an operator's decision that was made while it waited.
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
                # Owners are written before the host's record. After a crash in between, an owner without a record is
                # ignored; a record without an owner would let another minion claim the key.
                for key in (*mine, bound.key.fingerprint):
                    files.write_json(self._owner(key), {"v": 1, "minion": minion})
                files.write_json(self._path(minion), record)
                if record["former"] is not None:
                    files.remove(self._owner(record["former"]))
        return record

    @contextlib.contextmanager
    def _told(self, minion: str, now: float) -> Iterator[None]:
        """Context manager that logs a refusal raised in its body."""
        try:
            yield
        except Refused as err:
            with files.locked(self.folder / "lock"):
                self._log("refused", now, {"minion": minion, "code": err.code, "reason": err.args[0][:1000]})
            raise

    def certificate(self, minion: str) -> dict[str, Any]:
        """Return the certificate of a minion's attestation key (PEM), and the chain (PEM), for other verifiers.

        The result's ``period`` selects this key on the minion. Other verifiers don't need ``period``.
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
        """Revoke the minion's certificate. The minion stays bound to its TPM, and can be enrolled again."""
        with files.locked(self.folder / "lock"):
            record = self._known(minion)
            revoked = files.read_json(self._revoked_path, files.KEPT) or {}
            self._log("revoked", now, {"minion": minion, "serial": record["serial"], "why": why[:1000]})
            # Certificates that were revoked two days ago have expired, and need no revocation.
            kept = {serial: since for serial, since in revoked.items() if since > now - 2 * 86400}
            files.write_json(self._revoked_path, {**kept, record["serial"]: now})
            # Also marked in the host's record, so that it stays revoked until somebody enrols the minion again.
            files.write_json(self._path(minion), {**record, "revoked": now})
            return record

    def is_revoked(self, serial: str) -> bool:
        """Return whether the list of revoked certificates has *serial*.

        The list keeps entries for at least two days, longer than a certificate is valid.
        """
        return serial in (files.read_json(self._revoked_path, files.KEPT) or {})

    def release(self, minion: str, now: float) -> dict[str, Any]:
        """Delete the minion's record and revoke its certificate, so that the minion can be bound to another TPM."""
        record = self.revoke(minion, "released", now)
        with files.locked(self.folder / "lock"):
            self._log("released", now, {"minion": minion, "ek": record["ek"]})
            files.remove(self._path(minion))
            for key in keys_of(record):
                files.remove(self._owner(key))
        return record

    def host(self, minion: str) -> dict[str, Any] | None:
        """Return the record of *minion*; None if the minion is not enrolled."""
        return files.read_json(self._path(minion), files.KEPT)

    def hosts(self) -> list[dict[str, Any]]:
        """Return the records of all minions, sorted by name."""
        return sorted(self._hosts(), key=lambda record: str(record["minion"]))

    def certified(self, record: dict[str, Any], now: float) -> Certified:
        """Return the certified attestation key of an enrolled host.

        :raises Refused: when the certificate is not valid any more.
        :raises NetspaceError: when the record is malformed.
        """
        try:
            key, certificate = (base64.b64decode(record[name], validate=True) for name in ("ak", "certificate"))
        except (KeyError, TypeError, ValueError) as err:
            raise NetspaceError(f"{self._path(str(record.get('minion')))}: not a record of an enrolment") from err
        return attestation_keys.certified(
            key,
            certificate,
            record["level"],
            record["reason"],
            trusted=self.ca.trusted(now),
            revoked="revoked" in record,
            now=now,
        )

    def note(self, event: str, data: dict[str, Any], now: float) -> None:
        """Write an event of another module into the log."""
        with files.locked(self.folder / "lock"):
            self._log(event, now, data)

    def verify_log(self, noted: audit_log.Head | None = None) -> audit_log.Head:
        """Check the log from its beginning; see :func:`netspace.attestation.registrar.audit_log.verify`."""
        try:
            with self.log.open("rb") as stream:
                return audit_log.verify(stream, noted)
        except FileNotFoundError:
            return audit_log.verify((), noted)

    # -- internals ------------------------------------------------------------------
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
        """Return ``{key: owner}``, or an empty mapping if no minion has the key.

        The owner is read from the key's file in ``owners``, because reading the records of all minions would take too
        long.
        """
        owner = (files.read_json(self._owner(key), files.KEPT) or {}).get("minion")
        known = self.host(str(owner)) if owner is not None else None
        return {key: str(owner)} if known is not None and key in keys_of(known) else {}

    def _claim(self, endorsement: str, minion: str) -> None:
        privacy_ca.claim(self._owned(endorsement), endorsement, minion)

    def _check_new(self, key: structures.Public, minion: str, known: dict[str, Any] | None) -> None:
        """Check that an attestation key is new: no other minion has it, and it differs from this minion's last key.

        :raises SharedAttestationKey: when the key is not new.
        """
        owner = self._owned(key.fingerprint).get(key.fingerprint)
        if owner is not None and owner != minion:
            raise SharedAttestationKey(f"the attestation key belongs to {owner}; {minion} needs its own")
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
            raise NetspaceError(f"{minion} is not enrolled; run netspace_attestation.enroll {minion}")
        return record

    def _log(self, event: str, now: float, data: dict[str, Any]) -> None:
        audit_log.append(self.log, event, data, when=now)


def _answer(data: Any) -> bytes:
    raw = from_hex(data.get("answer"), 32) if isinstance(data, dict) else None
    if raw is None:
        raise Malformed("activation: the answer is not 32 bytes in hex")
    return raw
