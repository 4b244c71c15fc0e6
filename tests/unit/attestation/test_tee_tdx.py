"""TDX: recorded quotes are verified, and every changed quote is refused."""

from __future__ import annotations

import functools
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attestation import tee_forge
from support.attestation.boot_logs import THEN, recorded
from support.attestation.tee_forge import NOW, Intel

from netspace.attestation import refusals
from netspace.attestation.tee import tdx, tdx_tcb
from netspace.attestation.tee.x509 import Trust

QUOTES = (
    "go-tdx-guest/cos-113-tdx-quote.dat",
    "trustee/tdx_quote_4.dat",
    "trustee/tdx_quote_5.dat",
    "trustee/az-tdx-vtpm/td-quote.bin",
)
# SHA-256 of Intel's SGX Root CA (https://certificates.trustedservices.intel.com/IntelSGXRootCA.der).
INTEL_ROOT = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"


def intel() -> Trust:
    """Return Intel's root from a recorded quote."""
    root = tdx.parse(recorded(QUOTES[0])).chain[-1]
    assert hashlib.sha256(root).hexdigest() == INTEL_ROOT
    return Trust((root,))


@pytest.mark.parametrize("name", QUOTES)
def test_recorded_quotes_are_genuine(name: str) -> None:
    found = tdx.genuine(recorded(name), intel(), THEN)
    assert found.kind == "tdx" and len(found.registers) == 4 and found.status == "Unknown"
    assert bool(found.debug) == (name == "trustee/tdx_quote_4.dat")
    assert found.shown["version"] == (5 if name.endswith("_5.dat") else 4)


@pytest.mark.parametrize("name", QUOTES)
def test_a_recorded_quote_is_not_genuine_by_another_root(name: str) -> None:
    with pytest.raises(refusals.TeeUntrusted):
        tdx.genuine(recorded(name), Intel().trust(), THEN)


def test_a_recorded_quote_says_what_others_read_in_it() -> None:
    import json

    expected = json.loads(recorded("trustee/parse_tdx_claims_expected.json"))["quote"]["body"]
    found = tdx.genuine(recorded("trustee/tdx_quote_4.dat"), intel(), THEN)
    assert found.measurement.hex() == expected["mr_td"] and found.report_data.hex() == expected["report_data"]
    assert [value.hex() for value in found.registers.values()] == [expected[f"rtmr_{n}"] for n in range(4)]
    assert found.settings["config_id"].hex() == expected["mr_config_id"]
    assert found.settings["attributes"].hex() == expected["td_attributes"]
    assert found.settings["module"].hex() == expected["mr_seam"]


def test_text_after_a_recorded_quote_is_refused() -> None:
    raw = recorded("go-tdx-guest/tdx_prod_quote_SPR_E4.dat")
    with pytest.raises(refusals.TeeMalformed):
        tdx.genuine(raw, intel(), THEN)
    assert not tdx.genuine(raw[: raw.index(b"\nextra bytes")], intel(), THEN).debug


def test_every_20th_byte_of_a_recorded_quote_counts() -> None:
    """Every 20th byte up to the certificates is changed, and each changed quote is refused.

    Bytes between and after the PEM blocks have no meaning.
    """
    raw, trust = recorded("trustee/tdx_quote_5.dat"), intel()
    for at in range(0, raw.index(b"-----BEGIN"), 20):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        if 8 <= at < 12:
            continue
        with pytest.raises(refusals.Refused):
            tdx.genuine(changed, trust, THEN)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("pad", [b"", bytes(3000)])
def test_a_quote_is_verified(version: int, pad: bytes) -> None:
    maker = Intel()
    registers = [bytes([n]) * 48 for n in range(4)]
    found = tdx.genuine(maker.quote(b"d" * 64, version=version, pad=pad, registers=registers), maker.trust(), NOW)
    assert found.report_data == b"d" * 64 and found.measurement == tee_forge.MRTD and not found.debug
    assert dict(enumerate(registers)) == found.registers and found.status == "Unknown"
    assert found.shown["fmspc"] == tee_forge.FMSPC.hex() and found.shown["pce_svn"] == 11
    assert found.settings["services"] == (b"v" * 48 if version == 5 else bytes(48))


@pytest.mark.parametrize("version", [4, 5])
def test_each_flipped_byte_of_a_quote_is_refused(version: int) -> None:
    maker = Intel()
    raw, trust = maker.quote(b"d" * 64, version=version), maker.trust()
    for at in range(raw.index(b"-----BEGIN")):
        changed = raw[:at] + bytes([raw[at] ^ 0x40]) + raw[at + 1 :]
        with pytest.raises(refusals.Refused):
            tdx.genuine(changed, trust, NOW)


def test_a_cut_quote_is_refused() -> None:
    maker = Intel()
    raw, trust = maker.quote(), maker.trust()
    for end in range(0, len(raw), 7):
        with pytest.raises(refusals.TeeMalformed):
            tdx.genuine(raw[:end], trust, NOW)
    with pytest.raises(refusals.TeeMalformed, match="at most"):
        tdx.genuine(raw + bytes(tdx.MAX_QUOTE), trust, NOW)


FORGED = {
    "an enclave of one's own": {"signer": b"\1" * 32},
    "another enclave of Intel's": {"product": 1},
    "a debug enclave": {"enclave_attributes": b"\x13" + bytes(15)},
    "an enclave that vouches for another key": {"bound": b"\1" * 32},
    "a module of one's own": {"module_signer": b"\1" * 48},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED)
def test_a_quote_by_what_is_not_intels_is_refused(changes: dict[str, object]) -> None:
    """Quotes that the owner of a genuine platform forged are refused, each by another check."""
    maker = Intel()
    with pytest.raises(refusals.TeeSignature):
        tdx.genuine(maker.quote(**changes), maker.trust(), NOW)


@pytest.mark.parametrize("changes", [{"attributes": b"\1" + bytes(7)}, {"module_attributes": b"\1" + bytes(7)}])
def test_a_debug_guest_or_module_is_told(changes: dict[str, bytes]) -> None:
    maker = Intel()
    assert tdx.genuine(maker.quote(**changes), maker.trust(), NOW).debug


def test_a_quote_with_another_platforms_chain_is_refused() -> None:
    maker, forger = Intel(), Intel("forger")
    with pytest.raises(refusals.TeeSignature, match="platform did not sign"):
        tdx.genuine(forger.quote(chain=(maker.leaf(), maker.ca, maker.root)), maker.trust(), NOW)
    with pytest.raises(refusals.TeeUntrusted):
        tdx.genuine(forger.quote(), maker.trust(), NOW)
    with pytest.raises(refusals.TeeUntrusted):
        tdx.genuine(maker.quote(chain=(maker.leaf(),)), maker.trust(), NOW)


def test_a_chain_with_a_damaged_block_is_malformed() -> None:
    maker = Intel()
    raw = maker.quote()
    at = raw.rindex(b"-----END")
    with pytest.raises(refusals.TeeMalformed, match="certificates: PEM"):
        tdx.genuine(raw[:at] + b"-----end" + raw[at + 8 :], maker.trust(), NOW)


@pytest.mark.parametrize(
    "extension",
    [
        b"",
        b"\x30\x00",
        tee_forge.pck_extension()[:-1],
        tee_forge.pck_extension(fmspc=b"short"),
        tee_forge.pck_extension(pce=b"\1"),
        tee_forge.pck_extension(components=(1,) * 15),
        tee_forge.tlv(0x30, tee_forge.tlv(2, b"\1")),
    ],
)
def test_a_pck_certificate_without_its_extension_is_refused(extension: bytes) -> None:
    maker = Intel()
    with pytest.raises(refusals.TeeMalformed):
        tdx.genuine(maker.quote(chain=(maker.leaf(extension), maker.ca)), maker.trust(), NOW)


def test_a_revoked_platform_is_refused() -> None:
    maker = Intel()
    for serial, found in ((7, True), (70, False)):
        lists = [tee_forge.revocations("Intel SGX PCK Platform CA", maker.ca_key, [serial])]
        if found:
            with pytest.raises(refusals.TeeRevoked):
                tdx.genuine(maker.quote(), maker.trust(lists=lists), NOW)
        else:
            tdx.genuine(maker.quote(), maker.trust(lists=lists), NOW)


def standing(info: dict[str, object], enclave: dict[str, object] | None = None, now: float = NOW, **changes: object):
    maker = Intel()
    documents = [maker.document("tcbInfo", info), maker.document("enclaveIdentity", enclave or tee_forge.identity())]
    return tdx.genuine(maker.quote(**changes), maker.trust(*documents), now).status


def test_the_status_is_the_worst_of_platform_module_and_enclave() -> None:
    info, enclave = tee_forge.tcb_info, tee_forge.identity
    assert standing(info()) == "UpToDate"
    assert standing(info("SWHardeningNeeded")) == "SWHardeningNeeded"
    assert standing(info(), enclave("OutOfDate")) == "OutOfDate"
    assert standing(info(), enclave(svn=7)) == "OutOfDate"
    assert standing(info("ConfigurationNeeded"), enclave("OutOfDate")) == "OutOfDateConfigurationNeeded"
    assert standing(info("ConfigurationNeeded", module="OutOfDate")) == "OutOfDateConfigurationNeeded"
    assert standing(info("SWHardeningNeeded", module="OutOfDate")) == "OutOfDate"
    assert standing(info(), version=5) == "UpToDate"
    assert standing(info(), version=5, current_tcb=bytes([3, 1, 7, *bytes(13)])) == "OutOfDate"
    assert standing(info(), version=5, current_tcb=bytes(16)) == "OutOfDate"
    assert standing(info(svn=8)) == "OutOfDate"
    assert standing(info(module="OutOfDate")) == "OutOfDate"
    assert standing(info(), tcb=bytes([3, 1, 7, *bytes(13)])) == "OutOfDate"
    assert standing(info(), tcb=bytes([4, 1, 6, *bytes(13)])) == "OutOfDate"
    assert standing(info(), tcb=bytes([5, 0, 7, *bytes(13)])) == "UpToDate"
    assert standing(info(), tcb=bytes([4, 0, 7, *bytes(13)])) == "OutOfDate"
    with pytest.raises(refusals.TeeRevoked):
        standing(info("Revoked"))


def test_a_document_that_does_not_fit_leaves_the_status_unknown() -> None:
    info, enclave = tee_forge.tcb_info, tee_forge.identity
    assert standing(info(fmspc="00" * 6)) == "Unknown"
    assert standing(info(pceId="0001")) == "Unknown"
    assert standing(info(id="SGX")) == "Unknown"
    assert standing(info("SomethingNew")) == "Unknown"
    assert standing(info(tdxModuleIdentities=[])) == "Unknown"
    assert standing(info(tcbLevels=[{}])) == "Unknown"
    assert standing(info(), enclave(mrsigner="00" * 32)) == "Unknown"
    assert standing(info(), enclave(attributesMask="00")) == "Unknown"
    assert standing(info(), enclave(miscselect="00000001")) == "Unknown"
    assert standing(info(nextUpdate="2026-04-02T00:00:00Z")) == "Unknown"
    assert standing(info(issueDate="2026-04-30T00:00:00Z")) == "Unknown"
    assert standing(info(issueDate=7)) == "Unknown"


def test_a_document_that_intel_did_not_sign_counts_as_none() -> None:
    maker, forger = Intel(), Intel("forger")
    identity = maker.document("enclaveIdentity", tee_forge.identity())
    good = maker.document("tcbInfo", tee_forge.tcb_info())
    assert tdx.genuine(maker.quote(), maker.trust(good, identity), NOW).status == "UpToDate"
    forged = maker.document("tcbInfo", tee_forge.tcb_info(), forger.signer)
    changed = good.replace(b'"pcesvn":11', b'"pcesvn":10')
    platform = maker.document("tcbInfo", tee_forge.tcb_info(), maker.pck)
    for one in (forged, changed, platform, good + b"x", b" " * 2**21, b"{}", b'{"tcbInfo":{},"signature":""}'):
        assert tdx.genuine(maker.quote(), maker.trust(one, identity), NOW).status == "Unknown"
    without_signer = Trust((maker.root,), (), (), (good, identity))
    assert tdx.genuine(maker.quote(), without_signer, NOW).status == "Unknown"


def test_intels_recorded_documents_are_read() -> None:
    for name, kind in (("trustee/tcbInfo.json", b"tcbInfo"), ("trustee/enclaveIdentity.json", b"enclaveIdentity")):
        found, data, signed, signature = tdx_tcb.read(recorded(name))
        assert found == kind and data["id"] in ("TDX", "TD_QE") and len(signature) == 64 and signed[:1] == b"{"


@functools.cache
def quote_of(version: int) -> bytes:
    """Return a quote. It is made once, since signatures and certificates vary in size."""
    return Intel().quote(b"d" * 64, version=version)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations_give_a_quote_or_a_refusal(data: st.DataObject) -> None:
    maker = Intel()
    raw = bytearray(quote_of(data.draw(st.sampled_from([4, 5]))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(1, 3))] = data.draw(st.binary(max_size=4))
    try:
        found = tdx.genuine(bytes(raw), maker.trust(), NOW)
    except refusals.Refused as err:
        assert err.code.startswith("tee-")
    else:
        assert found.report_data == b"d" * 64 and found.measurement == tee_forge.MRTD
