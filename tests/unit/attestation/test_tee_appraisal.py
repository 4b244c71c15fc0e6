"""A TEE report counts only for one challenge and one key, by the policy's rules, and alone raises no level."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from support.attestation import tee_forge
from support.attestation.tee_forge import LAUNCH, MRTD, NOW, Amd, Intel, rtmrs
from test_tee_ccel import EVENTS

from netspace.attestation import refusals
from netspace.attestation.evidence import Context, Evidence, TeeReport, parse
from netspace.attestation.refusals import Malformed
from netspace.attestation.tee import appraisal, kinds, rules
from netspace.attestation.tee.appraisal import Verdict, Worth
from netspace.attestation.tee.x509 import Trust

KEY = b"k" * 32
SNP = {"measurements": [LAUNCH.hex()]}
TDX = {"measurements": [MRTD.hex()], "statuses": ["Unknown"]}


def amd_evidence(context: Context, key: bytes = KEY, **changes: Any) -> Evidence:
    report = TeeReport("sev_guest", Amd().report(context.report_data(key), **changes))
    return Evidence("software", key, b"", b"", tee=report)


def intel_evidence(context: Context, log: bytes | None = None, **changes: Any) -> Evidence:
    quote = Intel().quote(context.report_data(KEY), **changes)
    return Evidence("software", KEY, b"", b"", tee=TeeReport("tdx_guest", quote, log=log))


def trust() -> Trust:
    amd, intel = Amd(), Intel()
    return Trust((amd.root, intel.root), (amd.ask, amd.leaf(), intel.tcb))


def judged(evidence: Evidence, context: Context, **section: Any) -> Verdict:
    return appraisal.appraise(evidence, context, rules.parse(section or {"snp": SNP, "tdx": TDX}), trust(), NOW)


def test_a_good_guest_is_good_and_the_result_says_what_it_is(context: Context) -> None:
    found = judged(amd_evidence(context), context)
    assert found.code == "ok"
    assert found.told == {"kind": "snp", "measurement": LAUNCH.hex(), "tcb": tee_forge.TCB, "code": "ok"}
    found = judged(intel_evidence(context), context)
    assert found.told == {"kind": "tdx", "measurement": MRTD.hex(), "status": "Unknown", "code": "ok"}


@pytest.mark.parametrize("field", ["nonce", "host", "verifier", "session", "binding", "environments"])
def test_a_report_for_another_challenge_is_refused(context: Context, field: str) -> None:
    other = b"\1" * 32 if field in ("nonce", "binding", "environments") else "other"
    with pytest.raises(refusals.TeeBinding):
        judged(amd_evidence(dataclasses.replace(context, **{field: other})), context)


def test_a_report_for_another_key_is_refused(context: Context) -> None:
    """A guest's report is relayed with the evidence of another host, and refused."""
    evidence = amd_evidence(context)
    with pytest.raises(refusals.TeeBinding):
        judged(dataclasses.replace(evidence, key=b"j" * 32), context)


def test_a_report_is_over_nothing_that_another_protocol_hashes(context: Context) -> None:
    assert context.report_data(KEY)[:32] != context.qualifying()
    assert len({context.report_data(one) for one in (b"", b"k", KEY)}) == 3 and len(context.report_data(KEY)) == 64


def test_a_host_without_a_report_is_told_so(context: Context) -> None:
    found = judged(Evidence("software", KEY, b"", b""), context)
    assert found.code == "tee-none" and found.told == {}


def test_a_provider_picks_the_parser_and_no_more(context: Context) -> None:
    evidence = amd_evidence(context)
    assert evidence.tee is not None
    unknown = dataclasses.replace(evidence, tee=dataclasses.replace(evidence.tee, provider="arm_cca_guest"))
    assert judged(unknown, context).code == "tee-kind"
    with pytest.raises(refusals.TeeMalformed):
        judged(dataclasses.replace(evidence, tee=dataclasses.replace(evidence.tee, provider="tdx_guest")), context)
    assert set(kinds.PROVIDERS) == {"sev_guest", "tdx_guest"}


def test_a_kind_without_rules_is_not_accepted(context: Context) -> None:
    assert judged(intel_evidence(context), context, snp=SNP).code == "tee-kind"
    assert judged(amd_evidence(context), context, tdx=TDX).code == "tee-kind"


def test_a_chain_to_no_root_is_told_and_nothing_of_the_report(context: Context) -> None:
    section = rules.parse({"snp": SNP})
    for trusted in (Trust(), Amd("other").trust(Amd().leaf())):
        found = appraisal.appraise(amd_evidence(context), context, section, trusted, NOW)
        assert found.code == "tee-untrusted" and found.told == {}


def test_a_forged_report_refuses_the_whole_evidence(context: Context) -> None:
    evidence = amd_evidence(context)
    assert evidence.tee is not None
    for at in (0x50, 0x90, 0x2A0):
        raw = bytearray(evidence.tee.report)
        raw[at] ^= 1
        forged = dataclasses.replace(evidence.tee, report=bytes(raw))
        with pytest.raises(refusals.TeeSignature):
            judged(dataclasses.replace(evidence, tee=forged), context)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "debug": ({"policy": tee_forge.POLICY | tee_forge.DEBUG}, {}, "tee-debug"),
    "another measurement": ({"measurement": b"\1" * 48}, {}, "tee-measurement"),
    "an old TCB": ({}, {"tcb": {"snp": 9}}, "tee-tcb"),
    "a part that is not there": ({}, {"tcb": {"fmc": 0}}, "tee-tcb"),
    "an old launch": ({"launch_tcb": bytes([2, 0, 0, 0, 0, 0, 8, 115])}, {"tcb": {"bootloader": 3}}, "tee-tcb"),
    "SMT": ({}, {"smt": False}, "tee-policy"),
    "a migration agent": ({"policy": tee_forge.POLICY | 1 << 18}, {}, "tee-policy"),
    "two sockets": ({}, {"single_socket": True}, "tee-policy"),
    "no check for aliases": ({"platform": 1}, {"alias_check": True}, "tee-policy"),
    "another level": ({"vmpl": 1}, {}, "tee-policy"),
    "other host data": ({}, {"host_data": ["01" * 32]}, "tee-policy"),
    "another chip": ({}, {"chips": ["01" * 64]}, "tee-policy"),
    "an ID key": ({}, {"id_keys": ["01" * 48]}, "tee-policy"),
    "a VCEK": ({}, {"keys": ["vlek"]}, "tee-policy"),
    "no provider": ({}, {"providers": ["CN=cloud"]}, "tee-policy"),
}


@pytest.mark.parametrize(("changes", "rule", "code"), CASES.values(), ids=CASES)
def test_an_snp_guest_that_breaks_a_rule_is_told(
    context: Context, changes: dict[str, Any], rule: dict[str, Any], code: str
) -> None:
    found = judged(amd_evidence(context, **changes), context, snp={**SNP, **rule})
    assert found.code == code and found.told["code"] == code and found.remedy


TDX_CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "debug": ({"attributes": b"\1" + bytes(7)}, {}, "tee-debug"),
    "another measurement": ({"mrtd": b"\1" * 48}, {}, "tee-measurement"),
    "an unknown TCB": ({}, {"statuses": ["UpToDate"]}, "tee-tcb"),
    "another configuration": ({}, {"config_ids": ["01" * 48]}, "tee-policy"),
    "another module": ({}, {"modules": ["01" * 48]}, "tee-policy"),
    "migration": ({"attributes": bytes([0, 0, 0, 0x20, 0, 0, 0, 0])}, {}, "tee-policy"),
    "other attributes": ({"attributes": bytes([0, 0, 0, 0, 1, 0, 0, 0])}, {"attributes": ["00" * 8]}, "tee-policy"),
    "other features": ({"xfam": b"\1" + bytes(7)}, {"xfams": ["00" * 8]}, "tee-policy"),
    "a service TD": ({"version": 5}, {}, "tee-policy"),
    "another service TD": ({"version": 5}, {"services": ["01" * 48]}, "tee-policy"),
    "another register": ({}, {"rtmrs": {2: ["01" * 48]}}, "tee-measurement"),
    "no log": ({}, {"log": True}, "tee-log"),
}


@pytest.mark.parametrize(("changes", "rule", "code"), TDX_CASES.values(), ids=TDX_CASES)
def test_a_td_that_breaks_a_rule_is_told(
    context: Context, changes: dict[str, Any], rule: dict[str, Any], code: str
) -> None:
    assert judged(intel_evidence(context, **changes), context, tdx={**TDX, **rule}).code == code


def test_a_tds_log_must_lead_to_its_registers(context: Context) -> None:
    good = intel_evidence(context, tee_forge.ccel(*EVENTS), registers=rtmrs(*EVENTS))
    values = {"rtmrs": {0: [rtmrs(*EVENTS)[0].hex()]}}
    assert judged(good, context, tdx={**TDX, "log": True, **values}).code == "ok"
    for log in (tee_forge.ccel(*EVENTS[1:]), tee_forge.ccel(*EVENTS)[:100], b""):
        bad = intel_evidence(context, log, registers=rtmrs(*EVENTS))
        assert judged(bad, context, tdx=TDX).code == "tee-log"


BASES = {
    "L1": Worth(1, "software-key", "a key", "a TPM"),
    "L2": Worth(2, "ek-untrusted", "no chain", "roots"),
    "L3": Worth(3, "pcr-value", "a value", "add it"),
    "L5": Worth(5, "ok", "good", ""),
}
BAD = Verdict("tee-measurement", "another guest", "add it", {"kind": "snp"})
GOOD = Verdict("ok", told={"kind": "snp", "measurement": LAUNCH.hex(), "code": "ok"})


def weighed(kind: str, base: str, verdict: Verdict, rooted: bool = False) -> tuple[int, str]:
    section = rules.parse({"snp": SNP, "rooted_key": rooted})
    found = appraisal.weigh(kind, BASES[base], verdict, section)
    return found.level, found.code


def test_without_a_good_tee_a_tpm_is_worth_l2() -> None:
    assert weighed("tpm", "L5", BAD) == (2, "tee-measurement")
    assert weighed("tpm", "L3", BAD) == (2, "tee-measurement")
    assert weighed("tpm", "L2", BAD) == (2, "ek-untrusted")


def test_with_a_good_tee_a_tpm_is_worth_what_it_is() -> None:
    for base in ("L2", "L3", "L5"):
        for rooted in (False, True):
            assert weighed("tpm", base, GOOD, rooted) == (BASES[base].level, BASES[base].code)


def test_a_software_key_is_rooted_where_the_policy_says_so_alone() -> None:
    assert weighed("software", "L1", GOOD) == (1, "software-key")
    assert weighed("software", "L1", GOOD, rooted=True) == (3, "tee-boot")
    assert weighed("software", "L1", BAD, rooted=True) == (1, "tee-measurement")
    section = rules.parse({"snp": SNP, "rooted_key": True})
    assert "there is no TPM" in appraisal.weigh("software", BASES["L1"], GOOD, section).reason


def test_a_report_travels_and_comes_back(context: Context) -> None:
    evidence = amd_evidence(context)
    assert parse(evidence.wire()) == evidence
    with_log = intel_evidence(context, b"log")
    assert parse(with_log.wire()) == with_log
    assert "tee" not in dataclasses.replace(evidence, tee=None).wire()


@pytest.mark.parametrize(
    "tee",
    [
        None,
        {},
        {"provider": "sev_guest", "report": "", "certs": ""},
        {"provider": "SEV", "report": "", "certs": "", "log": None},
        {"provider": "x" * 33, "report": "", "certs": "", "log": None},
        {"provider": "sev_guest", "report": "A" * 24000, "certs": "", "log": None},
        {"provider": "sev_guest", "report": "", "certs": "A" * 90000, "log": None},
        {"provider": "sev_guest", "report": "", "certs": "", "log": "A" * 720000},
        {"provider": "sev_guest", "report": "!", "certs": "", "log": None},
    ],
)
def test_a_report_out_of_bounds_is_malformed(context: Context, tee: Any) -> None:
    with pytest.raises(Malformed):
        parse({**amd_evidence(context).wire(), "tee": tee})
