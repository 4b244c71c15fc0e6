"""Intel's status of a TDX platform's TCB, from the operator's files of TCB information and enclave identities.

The documents come from Intel's Provisioning Certification Service, version 4 (``/tdx/certification/v4/tcb`` and
``.../qe/identity``). They are JSON texts, signed by Intel's TCB signing key, whose certificate must be in the same
folder. The comparison follows "Intel TDX DCAP Quote Verification Library", TCB status evaluation.

The module ignores a document that Intel did not sign, or that has expired. Without a document, the status is unknown.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netspace import ecdsa
from netspace.attestation.refusals import Refused, TeeMalformed
from netspace.attestation.tee import x509
from netspace.attestation.tee.report import OUT_OF_DATE, STATUSES, UNKNOWN
from netspace.attestation.tee.x509 import Trust

MAX_DOCUMENT = 1024 * 1024
_SIGNER = "TCB Signing"
_TCB, _IDENTITY = b"tcbInfo", b"enclaveIdentity"
_DOCUMENT = re.compile(rb'\s*\{"(tcbInfo|enclaveIdentity)":(\{.+\}),"signature":"([0-9a-fA-F]{128})"\}\s*', re.DOTALL)


@dataclass(frozen=True)
class Platform:
    """Versions by which a platform's TCB is judged.

    :param components: security versions of SGX's 16 components, from the PCK certificate (as is *pce_svn*).
    :param tcbs: TEE_TCB_SVN of the TD's report, and TEE_TCB_SVN_2 if the report has it; both are judged.
    :param module_signer: signer of the TDX module, from the TD's report (as are *module_attributes*).
    """

    fmspc: bytes
    pce: bytes
    components: tuple[int, ...]
    pce_svn: int
    tcbs: tuple[bytes, ...]
    module_signer: bytes
    module_attributes: bytes


@dataclass(frozen=True)
class Enclave:
    """Fields of the quoting enclave's own report."""

    misc: bytes
    attributes: bytes
    signer: bytes
    product: int
    svn: int
    report_data: bytes


def status(platform: Platform, enclave: Enclave, trust: Trust, now: float) -> str:
    """Return Intel's status of the TCB: the worst status of platform, TDX module and enclave.

    If a valid document is missing for one of the three, the status is unknown at best.
    """
    try:
        found = [document for raw in trust.documents if (document := _genuine(raw, platform, trust, now)) is not None]
        levels = (
            *_of_platform(platform, [data for kind, data in found if kind == _TCB]),
            _of_enclave(enclave, [data for kind, data in found if kind == _IDENTITY]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return UNKNOWN  # Intel signed it, but this version doesn't know the document's form
    worst = max(levels, key=STATUSES.index)
    if worst == OUT_OF_DATE and any(level.startswith("Configuration") for level in levels):
        return "OutOfDateConfigurationNeeded"
    return worst


def read(raw: bytes) -> tuple[bytes, dict[str, Any], bytes, bytes]:
    """Split a document into its kind, its content, the signed bytes, and the signature (r and s).

    :raises TeeMalformed: when the document can't be parsed. The document must have exactly the signed bytes, for
        example no added blanks.
    """
    found = _DOCUMENT.fullmatch(raw) if len(raw) <= MAX_DOCUMENT else None
    try:
        data = json.loads(found[2]) if found else None
    except (ValueError, RecursionError) as err:
        raise TeeMalformed(f"Intel's document: {err}") from err
    if found is None or not isinstance(data, dict):
        raise TeeMalformed("neither TCB information nor an enclave's identity in the form of Intel's service")
    return found[1], data, found[2], bytes.fromhex(found[3].decode())


def _genuine(raw: bytes, platform: Platform, trust: Trust, now: float) -> tuple[bytes, dict[str, Any]] | None:
    """Return kind and content of a document that Intel signed for this platform and that is valid now; else None."""
    found = _signed(raw, trust.known)
    if found is None:
        return None
    kind, data, signer = found
    if kind == _TCB and bytes.fromhex(data["fmspc"]) != platform.fmspc:
        return None
    if not _time(data["issueDate"]) - 300 <= now <= _time(data["nextUpdate"]):
        return None
    try:
        x509.check(x509.load(signer), (), trust, now)
    except Refused:
        return None
    return kind, data


@functools.lru_cache(maxsize=256)
def _signed(raw: bytes, known: tuple[bytes, ...]) -> tuple[bytes, dict[str, Any], bytes] | None:
    """Return kind, content and signer of a document; None if no certificate in *known* has the signing key.

    The signer is the certificate whose key signed the document. The result is cached, because each report needs it.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        kind, data, signed, signature = read(raw)
    except Refused:
        return None
    der = ecdsa.to_der(signature)
    for one in known:
        # Platforms' keys chain to the same root, so the TCB signing key is recognized by its name, which Intel's root
        # gives to no other key. The search for its bytes avoids parsing thousands of other certificates.
        if _SIGNER.encode() not in one:
            continue
        certificate = x509.load(one)
        key = certificate.public_key()
        if _SIGNER not in certificate.subject.rfc4514_string() or not isinstance(key, ec.EllipticCurvePublicKey):
            continue
        try:
            key.verify(der, signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return kind, data, one
    return None


def _time(text: Any) -> float:
    return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()


def _of_platform(platform: Platform, documents: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the statuses of the platform and of its TDX module, for each TCB version in the report (one or two)."""
    for data in documents:
        if data["id"] == "TDX" and data["version"] == 3 and bytes.fromhex(data["pceId"]) == platform.pce:
            levels = (_level(platform, tcb, data["tcbLevels"]) for tcb in platform.tcbs)
            return (*levels, *(_module(platform, tcb, data) for tcb in platform.tcbs))
    return (UNKNOWN,)


def _level(platform: Platform, svn: bytes, levels: Sequence[Mapping[str, Any]]) -> str:
    """Return the status of the first TCB level that the platform reaches; out of date if it reaches no level.

    For a separate TDX module (since 1.5), the first two versions are not compared here: :func:`_module` judges them.
    """
    first = 2 if svn[1] else 0
    for level in levels:
        tcb = level["tcb"]
        sgx = [one["svn"] for one in tcb["sgxtcbcomponents"]]
        tdx = [one["svn"] for one in tcb["tdxtcbcomponents"]]
        if len(sgx) != 16 or len(tdx) != 16:
            raise ValueError("not 16 components")
        if (
            all(has >= needs for has, needs in zip(platform.components, sgx, strict=True))
            and platform.pce_svn >= tcb["pcesvn"]
            and all(has >= needs for has, needs in zip(svn[first:], tdx[first:], strict=True))
        ):
            return _known(level["tcbStatus"])
    return OUT_OF_DATE


def _module(platform: Platform, svn: bytes, data: Mapping[str, Any]) -> str:
    """Return the status of the TDX module, by its major version (TEE_TCB_SVN[1]).

    For version 0 there is no separate status, because the platform's levels include it.
    """
    if not svn[1]:
        module = data["tdxModule"]
        return "UpToDate" if _same_module(platform, module) else UNKNOWN
    for module in data["tdxModuleIdentities"]:
        if module["id"] == f"TDX_{svn[1]:02X}" and _same_module(platform, module):
            return _by_svn(module["tcbLevels"], svn[0])
    return UNKNOWN


def _same_module(platform: Platform, module: Mapping[str, Any]) -> bool:
    return bytes.fromhex(module["mrsigner"]) == platform.module_signer and _masked(
        platform.module_attributes, module["attributes"], module["attributesMask"]
    )


def _of_enclave(enclave: Enclave, documents: Iterable[Mapping[str, Any]]) -> str:
    for data in documents:
        if data["id"] != "TD_QE" or data["version"] != 2:
            continue
        same = (
            bytes.fromhex(data["mrsigner"]) == enclave.signer
            and data["isvprodid"] == enclave.product
            and _masked(enclave.attributes, data["attributes"], data["attributesMask"])
            # In the document, MISCSELECT is a number with the most significant byte first.
            and _masked(enclave.misc[::-1], data["miscselect"], data["miscselectMask"])
        )
        return _by_svn(data["tcbLevels"], enclave.svn) if same else UNKNOWN
    return UNKNOWN


def _by_svn(levels: Iterable[Mapping[str, Any]], svn: int) -> str:
    for level in levels:
        if svn >= level["tcb"]["isvsvn"]:
            return _known(level["tcbStatus"])
    return OUT_OF_DATE


def _known(text: str) -> str:
    return text if text in STATUSES else UNKNOWN


def _masked(value: bytes, expected: str, mask: str) -> bool:
    bits, allowed = bytes.fromhex(mask), bytes.fromhex(expected)
    if len(bits) != len(value) or len(allowed) != len(value):
        raise ValueError(f"expected a value and a mask of {len(value)} bytes, got {len(allowed)} and {len(bits)}")
    return all(one & bit == good & bit for one, bit, good in zip(value, bits, allowed, strict=True))
