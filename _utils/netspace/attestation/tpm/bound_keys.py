"""Keys of a TPM for programs: one for authentication codes, and one that signs; each may be bound to values of PCRs.

They are primary keys like all others (``device``): derived again for each use, and stored nowhere. A key that is bound
to PCRs has the policy TPM2_PolicyPCR, and no other way to be used: in another boot the TPM itself refuses.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from netspace.attestation.tpm.device import Device, DeviceError

_MAC_LABEL = b"netspace-program/1 authentication codes"
_POLICY_PCR = 0x0000017F
_POLICY_FAIL = 0x9D
_FORMAT_ONE = 0xBF  # the bits of a TPM_RC that tell the error, without the session or parameter (Part 2, 6.6.2)


class OtherBootError(DeviceError):
    """Error: the PCRs have other values than those to which the key is bound."""


def boot(device: Device, pcrs: Sequence[int]) -> bytes:
    """Return SHA-256 of the values of PCRs, in their order (Part 1, 17.5)."""
    values = device.read(pcrs)
    return hashlib.sha256(b"".join(values[pcr] for pcr in sorted(values))).digest()


def policy(pcrs: Sequence[int], digest: bytes) -> bytes:
    """Return the digest of the policy that demands these values of PCRs (TPM2_PolicyPCR, Part 3, 23.7)."""
    selection = b"\0\0\0\1\0\x0b\3" + sum(1 << pcr for pcr in set(pcrs)).to_bytes(3, "little")
    return hashlib.sha256(bytes(32) + _POLICY_PCR.to_bytes(4, "big") + selection + digest).digest()


def code(device: Device, data: bytes, pcrs: Sequence[int] = (), digest: bytes = b"") -> bytes:
    """Return the authentication code (HMAC with SHA-256) of *data*, by the key that is bound to these PCRs.

    :param pcrs: the PCRs; empty: a key that is bound to none.
    :param digest: what :func:`boot` returned for them when the key was used first.
    :raises OtherBootError: the PCRs have other values now.
    """
    tss, esapi = device.tss, device.esapi
    template = tss.TPM2B_PUBLIC.parse("hmac:sha256", objectAttributes=_attributes(tss, pcrs))
    template.publicArea.authPolicy = policy(pcrs, digest) if pcrs else b""
    template.publicArea.unique.keyedHash = hashlib.sha256(_MAC_LABEL).digest()
    with device.primary(template) as (key, _), _authorized(device, pcrs) as session:
        return bytes(esapi.hmac(key, data, tss.constants.TPM2_ALG.SHA256, session1=session))


def sign(
    device: Device, label: bytes, hashed: bytes, pcrs: Sequence[int] = (), digest: bytes = b""
) -> tuple[bytes, bytes]:
    """Sign a SHA-256 digest by ECDSA on P-256; return (r and s, 32 bytes each; TPMT_PUBLIC of the key).

    :param label: what makes this key differ from others.
    :param pcrs: as for :func:`code`.
    :raises OtherBootError: the PCRs have other values now.
    """
    tss, esapi = device.tss, device.esapi
    template = tss.TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=_attributes(tss, pcrs))
    template.publicArea.authPolicy = policy(pcrs, digest) if pcrs else b""
    template.publicArea.unique.ecc.x = hashlib.sha256(label).digest()
    scheme = tss.TPMT_SIG_SCHEME(scheme=tss.constants.TPM2_ALG.NULL)
    with device.primary(template) as (key, public), _authorized(device, pcrs) as session:
        made = esapi.sign(key, hashed, scheme, None, session1=session)  # it must live as long as its parts
        numbers = (bytes(made.signature.ecdsa.signatureR), bytes(made.signature.ecdsa.signatureS))
        return b"".join(number.rjust(32, b"\0") for number in numbers), public


def _attributes(tss: Any, pcrs: Sequence[int]) -> Any:
    kinds = tss.constants.TPMA_OBJECT
    found = kinds.FIXEDTPM | kinds.FIXEDPARENT | kinds.SENSITIVEDATAORIGIN | kinds.SIGN_ENCRYPT
    return found if pcrs else found | kinds.USERWITHAUTH


@contextlib.contextmanager
def _authorized(device: Device, pcrs: Sequence[int]) -> Iterator[Any]:
    """Yield the session that authorizes the use of a key which is bound to *pcrs*.

    :raises OtherBootError: the TPM refused the use.
    """
    tss, esapi = device.tss, device.esapi
    if not pcrs:
        yield tss.ESYS_TR.PASSWORD
        return
    session = esapi.start_auth_session(
        tpm_key=tss.ESYS_TR.NONE,
        bind=tss.ESYS_TR.NONE,
        session_type=tss.constants.TPM2_SE.POLICY,
        symmetric=tss.TPMT_SYM_DEF(algorithm=tss.constants.TPM2_ALG.NULL),
        auth_hash=tss.constants.TPM2_ALG.SHA256,
    )
    try:
        esapi.policy_pcr(session, b"", "sha256:" + ",".join(str(pcr) for pcr in sorted(set(pcrs))))
        yield session
    except tss.TSS2_Exception as err:
        if err.rc & _FORMAT_ONE == _POLICY_FAIL:
            raise OtherBootError("the PCRs have other values than in the boot to which this is bound") from err
        raise
    finally:
        # A session that was used is gone already.
        with contextlib.suppress(tss.TSS2_Exception):
            esapi.flush_context(session)
