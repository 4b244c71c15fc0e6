"""Mutated reports of confidential guests, their certificates and logs, for ``attestation_fuzz``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from netspace.attestation.evidence import Evidence, TeeReport
from netspace.attestation.evidence import parse as parse_evidence
from netspace.attestation.logs import eventlog
from netspace.attestation.refusals import Malformed, Refused
from netspace.attestation.tee import ccel, hcl, rules, snp, tdx, tdx_tcb
from netspace.attestation.tee.report import UNKNOWN, Genuine
from netspace.attestation.tee.x509 import Trust
from netspace.errors import NetspaceError
from support.attestation import boot_logs, tee_forge
from support.attestation.tee_forge import NOW, Amd, Intel

DATA = b"d" * 64
EVENTS = ((1, b"firmware"), (1, b"secure boot"), (2, b"loader"), (3, b"kernel"))
Target = tuple[Callable[[bytes], object], list[bytes]]


def _same(work: Callable[[bytes], Genuine], genuine: bytes) -> Callable[[bytes], None]:
    """Check that a changed report is refused, or has the same content because only unsigned bytes changed.

    Unsigned bytes are padding and the form of PEM.
    """
    expected = work(genuine)

    def tried(raw: bytes) -> None:
        found = work(raw)
        # What Intel says of the TCB comes from other files, and is not part of the report.
        if (found.report_data, found.measurement, found.registers, found.settings) != (
            expected.report_data,
            expected.measurement,
            expected.registers,
            expected.settings,
        ):
            raise AssertionError("a forged report was accepted")

    return tried


def _json(parse: Callable[[Any], object]) -> Callable[[bytes], None]:
    def work(raw: bytes) -> None:
        try:
            parse(json.loads(raw))
        except Refused:
            raise
        except (NetspaceError, ValueError, RecursionError) as err:
            raise Malformed(str(err)) from err

    return work


def _area(raw: bytes) -> None:
    ccel.registers(raw)
    eventlog.unpadded(raw)


def targets() -> dict[str, Target]:
    """Return the parsers by name, each with genuine inputs."""
    amd, intel = Amd(), Intel()
    report, quote = amd.report(DATA, version=5, family=0x19), intel.quote(DATA)
    newer = intel.quote(DATA, version=5, pad=bytes(64))
    table = tee_forge.table((tee_forge.VCEK_GUID, amd.leaf()), (tee_forge.ASK_GUID, amd.ask))
    trust = Trust((amd.root, intel.root), (amd.ask, amd.leaf(), intel.tcb))
    alone = Trust((amd.root,))
    documents = [
        intel.document("tcbInfo", tee_forge.tcb_info()),
        intel.document("enclaveIdentity", tee_forge.identity()),
    ]
    document = tee_forge.vtpm(tee_forge.rsa_key("ak"), tee_forge.rsa_key("ek"))
    paravisor = tee_forge.hcl_report(report, document)
    made = Evidence("software", b"k" * 32, b"", b"", tee=TeeReport("tdx_guest", b"report", b"table", b"log"))
    section = {
        "rooted_key": True,
        "snp": {"measurements": ["00" * 48], "tcb": {"snp": 8}, "vmpls": [0], "keys": ["vcek"]},
        "tdx": {"measurements": ["00" * 48], "statuses": ["Unknown"], "rtmrs": {"0": ["00" * 48]}, "log": True},
    }
    recorded = boot_logs.tee("go-tdx-guest/ccel_data.dat")
    areas = [tee_forge.ccel(*EVENTS), tee_forge.ccel(*EVENTS, pad=bytes(64))]

    def with_documents(raw: bytes) -> None:
        """Check that a changed document is ignored.

        Changes of blanks around the document, and of case in its signature, don't count.
        """
        trusted = Trust(trust.roots, trust.known, (), (raw, documents[1]))
        if tdx.genuine(quote, trusted, NOW).status == UNKNOWN:
            raise Malformed("not Intel's")
        if raw.strip().lower() != documents[0].lower():
            raise AssertionError("a forged document was believed")

    def of_platform(raw: bytes) -> Genuine:
        """Replace only the platform's certificate by mutated bytes; the rest of the chain is genuine."""
        return tdx.genuine(intel.quote(DATA, chain=(intel.leaf(raw), intel.ca)), trust, NOW)

    return {
        "SNP report": (_same(lambda raw: snp.genuine(raw, b"", trust, NOW), report), [report]),
        "SNP certificates": (_same(lambda raw: snp.genuine(report, raw, alone, NOW), table), [table]),
        "TDX quote": (_same(lambda raw: tdx.genuine(raw, trust, NOW), quote), [quote]),
        "TDX quote 5": (_same(lambda raw: tdx.genuine(raw, trust, NOW), newer), [newer]),
        "PCK's extension": (_same(of_platform, tee_forge.pck_extension()), [tee_forge.pck_extension()]),
        "TCB information": (with_documents, documents[:1]),
        "Intel's document": (tdx_tcb.read, documents),
        "paravisor's report": (lambda raw: hcl.parse(raw).key(hcl.ATTESTATION_KEY), [paravisor]),
        "CCEL": (_area, [*areas, *([recorded.read_bytes()[:24_000]] if recorded else [])]),
        "TEE's wire": (_json(parse_evidence), [json.dumps(made.wire()).encode()]),
        "TEE's rules": (_json(rules.parse), [json.dumps(section).encode()]),
    }
