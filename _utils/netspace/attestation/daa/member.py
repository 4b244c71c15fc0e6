"""A member's side: its key in the TPM, the join, and anonymous quotes (TPM2_Commit, TPM2_Quote).

The key is a restricted ECDAA key on BN_P256. It is a primary key of the endorsement hierarchy, derived again for each
use, and never stored. In the other hierarchies, a TPM adds a number to the firmware version. The number never changes,
and no other TPM has it, so it would link all quotes of a host (Part 1, 36.7).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from netspace.attestation.daa import curve, quote
from netspace.attestation.daa.curve import G1
from netspace.attestation.daa.scheme import SCALAR, Credential, Proof, Refusal, Request

if TYPE_CHECKING:
    from typing import Any

    from netspace.attestation.tpm.device import Device

_LABEL = hashlib.sha256(b"netspace-daa/1 member").digest()
_ATTEMPTS = 5
_PCR_CHANGED = 0x128


class _Commitment(NamedTuple):
    """The TPM's answer to TPM2_Commit.

    :param k: f*J, or None without J; so is *second*.
    :param second: r*J, encoded.
    :param first: r*S, encoded.
    :param counter: names r in the signature that follows.
    """

    k: G1 | None
    second: bytes | None
    first: bytes
    counter: int


class Member:
    """A member's key in an open TPM.

    :param device: from ``netspace.attestation.tpm.device.run``.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._tss, self._esapi = device.tss, device.esapi

    @contextlib.contextmanager
    def _key(self) -> Iterator[tuple[Any, bytes]]:
        """Derive the key, yield (handle, TPMT_PUBLIC), and then flush it."""
        tss = self._tss
        constants, attributes = tss.constants, tss.constants.TPMA_OBJECT
        template = tss.TPMT_PUBLIC(
            type=constants.TPM2_ALG.ECC,
            nameAlg=constants.TPM2_ALG.SHA256,
            objectAttributes=attributes.FIXEDTPM
            | attributes.FIXEDPARENT
            | attributes.SENSITIVEDATAORIGIN
            | attributes.USERWITHAUTH
            | attributes.NODA  # its authorization value is empty: there is nothing to guess
            | attributes.RESTRICTED
            | attributes.SIGN_ENCRYPT,
        )
        about = template.parameters.eccDetail
        about.symmetric.algorithm = about.kdf.scheme = constants.TPM2_ALG.NULL
        about.scheme.scheme = constants.TPM2_ALG.ECDAA
        about.scheme.details.ecdaa.hashAlg = constants.TPM2_ALG.SHA256
        about.curveID = constants.TPM2_ECC.BN_P256
        template.unique.ecc.x = _LABEL
        handle, public, *_ = self._esapi.create_primary(
            tss.TPM2B_SENSITIVE_CREATE(),
            tss.TPM2B_PUBLIC(publicArea=template),
            primary_handle=tss.ESYS_TR.ENDORSEMENT,
        )
        try:
            yield handle, bytes(public.publicArea.marshal())
        finally:
            self._esapi.flush_context(handle)

    def public(self) -> bytes:
        """Return the key's TPMT_PUBLIC."""
        with self._key() as (_, public):
            return public

    def activate(self, template: str, blob: bytes, encrypted: bytes) -> bytes:
        """Open the issuer's challenge, which proves that the key is in this TPM; return the secret.

        :param template: of the endorsement key that the challenge was made for.
        """
        with self._key() as (key, _):
            return self._device.activate(key, template, blob, encrypted)

    def quote(self, credential: Credential, request: Request, pcrs: Sequence[int]) -> tuple[bytes, dict[int, bytes]]:
        """Return an anonymous quote of *pcrs*, and their values.

        The caller has checked the credential once (:meth:`Credential.check`).

        :raises Refusal: the TPM's answers aren't as the scheme demands, or the PCRs keep changing.
        """
        r, s, t, w = credential.randomized()
        with self._key() as (key, _):
            for _ in range(_ATTEMPTS):
                values = self._device.read(pcrs)
                made = self._commit(key, s, request.basename)
                points = (r, s, t, w) if made.k is None else (r, s, t, w, made.k)
                commitments = [part for part in (made.first, made.second) if part is not None]
                qualifying = request.qualifying(points, commitments)
                attest, nonce, response = self._sign(key, qualifying, pcrs, made.counter)
                if attest is not None and attest.endswith(quote.digest(values)):
                    return quote.encode(Proof(r, s, t, w, made.k, qualifying, nonce, response), attest), values
        raise Refusal("pcrs", f"the PCRs {', '.join(map(str, pcrs))} keep changing")

    def _commit(self, key: Any, point: G1, basename: bytes | None) -> _Commitment:
        tss = self._tss
        seed, y = b"", b""
        if basename is not None:
            seed, (_, number) = curve.hashed(basename)
            y = number.to_bytes(SCALAR, "big")
        first = tss.TPM2B_ECC_POINT(tss.TPMS_ECC_POINT(x=point[0].to_bytes(32, "big"), y=point[1].to_bytes(32, "big")))
        k, second, e, counter = self._esapi.commit(
            key, first, tss.TPM2B_SENSITIVE_DATA(seed), tss.TPM2B_ECC_PARAMETER(y)
        )
        if basename is None:
            return _Commitment(None, None, curve.encode(_read(e)), int(counter))
        return _Commitment(_read(k), curve.encode(_read(second)), curve.encode(_read(e)), int(counter))

    def _sign(self, key: Any, qualifying: bytes, pcrs: Sequence[int], counter: int) -> tuple[bytes | None, bytes, int]:
        """Quote with the random number of a commitment; the first value is None if PCRs changed meanwhile."""
        tss = self._tss
        scheme = tss.TPMT_SIG_SCHEME(scheme=tss.constants.TPM2_ALG.ECDAA)
        scheme.details.ecdaa.hashAlg = tss.constants.TPM2_ALG.SHA256
        scheme.details.ecdaa.count = counter
        selection = tss.TPML_PCR_SELECTION.parse("sha256:" + ",".join(str(pcr) for pcr in sorted(pcrs)))
        try:
            attest, signature = self._esapi.quote(key, selection, tss.TPM2B_DATA(qualifying), scheme)
        except tss.TSS2_Exception as err:
            if err.rc == _PCR_CHANGED:
                return None, b"", 0
            raise
        made = signature.signature.ecdaa
        return bytes(attest), bytes(made.signatureR), int.from_bytes(bytes(made.signatureS), "big")


def _read(point: Any) -> G1:
    """Return a point that the TPM computed.

    :raises Refusal: it isn't a point of the curve.
    """
    x, y = (int.from_bytes(bytes(part), "big") for part in (point.point.x, point.point.y))
    if not curve.on_curve((x, y)):
        raise Refusal("commit", "the TPM's commitment isn't a point of BN_P256")
    return x, y
