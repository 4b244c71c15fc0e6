"""Reader of the folder with the certificates of TPM makers that the operator trusts.

::

    roots/*.pem .crt .cer .der     makers' certificates, roots and intermediates: PEM (several in a file) or DER
    roots/*.crl                    their revocation lists, PEM or DER
    roots/ek/<SHA-256>.pem ...     an endorsement certificate that its TPM doesn't hold, and its intermediates

A file in ``ek/`` is named after the key of its first certificate (SHA-256 of SubjectPublicKeyInfo; ``hosts`` shows this
digest). The file adds no trust: its certificate must chain to a root, like a certificate from a TPM.

The folder is read by the master's registrar, and by hosts that judge themselves. A certificate that can't be read is
reported in ``unreadable``; the other certificates are still read. A revocation list that can't be read is an error:
without the list, revoked certificates would pass.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from netspace.attestation.endorsement import der, ek_certificates
from netspace.attestation.evidence import MAX_CHAIN, Enrolment
from netspace.errors import NetspaceError

SUFFIXES = (".pem", ".crt", ".cer", ".der")
GIVEN = "ek"
MAX_FILE = 4 * 1024 * 1024


@dataclass(frozen=True)
class Makers:
    """Content of the folder of roots.

    :param roots: certificates, DER.
    :param lists: revocation lists, DER.
    :param unreadable: file and problem of each certificate that can't be read.
    :param given: the folder with the operator's endorsement certificates; None if it does not exist.
    """

    roots: tuple[bytes, ...] = ()
    lists: tuple[bytes, ...] = ()
    unreadable: tuple[str, ...] = ()
    given: Path | None = None

    def completed(self, enrolment: Enrolment, fingerprint: str) -> Enrolment:
        """Return *enrolment* with the operator's certificate for its endorsement key, if the operator supplied one.

        The supplied certificate replaces the TPM's own, which may have expired. The supplied intermediates come before
        the intermediates from the TPM.

        :param fingerprint: fingerprint of the endorsement key.
        :raises NetspaceError: when the operator's file can't be read.
        """
        paths = [] if self.given is None else [self.given / f"{fingerprint}{suffix}" for suffix in SUFFIXES]
        path = next((one for one in paths if one.exists()), None)
        if path is None:
            return enrolment
        found, problems = _certificates(path)
        if problems:
            raise NetspaceError(f"{path}: no endorsement certificate that can be read: {problems[0]}")
        leaf, *chain = found
        return dataclasses.replace(enrolment, certificate=leaf, chain=(*chain, *enrolment.chain)[:MAX_CHAIN])


def read(folder: str | None) -> Makers:
    """Read the folder of roots. If *folder* is None, no maker is trusted.

    :raises NetspaceError: when the folder or a revocation list can't be read.
    """
    if folder is None:
        return Makers()
    roots: list[bytes] = []
    lists: list[bytes] = []
    unreadable: list[str] = []
    path = Path(folder)
    try:
        for path in sorted(Path(folder).iterdir()):
            if path.suffix == ".crl":
                lists.append(ek_certificates.revocations(path.read_bytes()))
            elif path.suffix in SUFFIXES:
                found, problems = _certificates(path)
                roots += found
                unreadable += (f"{path.name}: {problem}" for problem in problems)
    except (OSError, NetspaceError) as err:
        raise NetspaceError(f"attestation:roots: {path}: {err}") from err
    given = Path(folder) / GIVEN
    return Makers(tuple(roots), tuple(lists), tuple(unreadable), given if given.is_dir() else None)


def listed(folder: str | None) -> dict[str, object]:
    """Return an overview of the folder of roots for an operator: ``{certificates, lists, unreadable}``.

    :raises NetspaceError: as :func:`read`.
    """
    makers = read(folder)
    keys = ("subject", "key", "until")
    found = [dict(zip(keys, ek_certificates.described(one), strict=True)) for one in makers.roots]
    return {"certificates": found, "lists": len(makers.lists), "unreadable": list(makers.unreadable)}


def _certificates(path: Path) -> der.Pem:
    """Return the readable certificates of a file, and the problems of the unreadable certificates.

    At least one of the two lists is not empty.
    """
    try:
        found = _in_file(path)
    except (OSError, ValueError) as err:
        return der.Pem([], [str(err)])
    good: list[bytes] = []
    for one in found.contents:
        try:
            good.append(ek_certificates.readable(one))
        except NetspaceError as err:
            found.problems.append(str(err))
    return der.Pem(good, found.problems)


def _in_file(path: Path) -> der.Pem:
    """Return the certificates in a file, as DER. The file has PEM, or DER certificates one after another.

    :raises ValueError: when the file has no certificate, or is too large.
    """
    with path.open("rb") as stream:
        raw = stream.read(MAX_FILE + 1)
    if len(raw) > MAX_FILE:
        raise ValueError(f"more than {MAX_FILE} bytes")
    found = der.from_pem(raw) if b"-----BEGIN" in raw else der.Pem(der.split(raw, ek_certificates.MAX_ROOTS), [])
    if not any(found):
        raise ValueError("no certificate")
    return found
