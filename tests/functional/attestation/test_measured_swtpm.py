"""A host whose TPM has measured a recorded boot and later programs. Its evidence reaches L5 repeatedly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.attestation import boot_forge, boot_logs

from netspace.attestation.endorsement import makers
from netspace.attestation.evidence import Context, parse
from netspace.attestation.logs import eventlog, ima
from netspace.attestation.minion import attester, self_appraisal, settings, software_key
from netspace.attestation.policy import policy
from netspace.attestation.tpm import device as tpm
from netspace.attestation.verifier import appraisal as judge
from netspace.attestation.verifier import attestation_keys, verifier
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec.types import Attestation

PCRS = boot_forge.PCRS["uki"]
LINES = boot_logs.read("uki/ima_binary_runtime_measurements")
ENTRIES = ima.parse(LINES)


@dataclass
class Host:
    layout: Layout
    tcti: str
    lock: Path
    roots: str
    measured: int = 0
    nonces: Iterator[int] = field(default_factory=lambda: iter(range(1, 1000)))

    def extend(self, digests: list[tuple[int, bytes]]) -> None:
        def work(device: tpm.Device) -> None:
            tss = device._tss
            for pcr, value in digests:
                digest = tss.TPMT_HA(hashAlg=tss.constants.TPM2_ALG.SHA256)
                digest.digest.sha256 = value
                device._esapi.pcr_extend(tss.ESYS_TR(pcr), tss.TPML_DIGEST_VALUES([digest]))

        tpm.run(self.tcti, work, lock=self.lock)

    def run(self, until: int) -> None:
        """Measure the programs up to this line of the recorded list."""
        self.extend([(10, ima.measured(entry)) for entry in ENTRIES[self.measured : until]])
        self.measured = until

    def verify(self, rules: policy.Policy, start: ima.State | None, first: int | None) -> verifier.Verified:
        context = Context("verifier", "host", "session", next(self.nonces).to_bytes(32, "big"))
        chosen = settings.of(Attestation(tpm=self.tcti, pcrs=list(PCRS)))
        made = self_appraisal.evidence(self.layout, chosen, context, first)
        lock = {"lock": self.lock}
        enrolment = tpm.run(self.tcti, attester.enrol, **lock)
        roots = makers.read(self.roots).roots
        asked = attestation_keys.challenge(enrolment, context, roots=roots, pinned=None, now=time.time())
        answer = tpm.run(
            self.tcti,
            lambda dev: attester.activate(
                dev, [attester.Credential(enrolment.template, asked.blob, asked.encrypted)], context
            ),
            **lock,
        )
        bound = asked.redeem(answer, time.time())
        return verifier.verify_quote(
            parse(made.wire()), bound, verifier.Expected(context, PCRS, None, None, rules, start)
        )


@pytest.fixture
def host(layout: Layout, make_tpm: Callable, factory: Any, tmp_path: Path) -> Host:
    made = Host(layout, make_tpm(factory).tcti, tmp_path / "lock", str(factory.roots))
    for path, name in (
        (attester.BOOT_LOG, "uki/binary_bios_measurements"),
        (attester.SYSTEMD_LOG, "uki/systemd-tpm2-measure.log"),
        (attester.IMA_LIST, "uki/ima_binary_runtime_measurements"),
    ):
        (layout.root / path).parent.mkdir(parents=True, exist_ok=True)
        (layout.root / path).write_bytes(boot_logs.read(name))
    from netspace.attestation.logs import systemd

    log = [(one.pcr, one.digests["sha256"]) for one in boot_forge.log("uki").events if one.type != eventlog.NO_ACTION]
    after = [(one.pcr, one.digests["sha256"]) for one in systemd.parse(boot_logs.read("uki/systemd-tpm2-measure.log"))]
    made.extend(log + after)
    return made


def rules(**changes: Any) -> policy.Policy:
    files: dict[str, list[str]] = {}
    for entry in ENTRIES:
        file = ima.file(entry)
        assert file is not None
        files.setdefault(file.path.decode(), []).append("sha256:" + file.digest.partition(b":\0")[2].hex())
    return policy.parse({**boot_forge.policy("uki"), "ima": {"files": files, **changes}})


def test_from_evidence_to_l5_and_on(host: Host) -> None:
    allowed = rules()
    host.run(100)  # the file has all the lines: it is ahead of the quote
    first = host.verify(allowed, None, judge.ask_from(allowed, None))
    assert (first.level, first.code) == (5, "ok"), first.reason
    assert first.ima is not None and first.ima.lines == 100
    host.run(200)
    second = host.verify(allowed, first.ima, judge.ask_from(allowed, first.ima))
    assert (second.level, second.code) == (5, "ok"), second.reason
    assert second.ima is not None and second.ima.lines == 200
    # What was run is not what the list says.
    host.extend([(10, b"\1" * 32)])
    third = host.verify(allowed, second.ima, judge.ask_from(allowed, second.ima))
    assert (third.level, third.code) == (4, "ima-mismatch")


def test_evidence_without_the_list_stops_at_l4(host: Host) -> None:
    host.run(10)
    assert host.verify(rules(), None, None).code == "ima-none"


def test_the_hosts_own_evidence_has_the_logs_that_explain_pcr_11(host: Host) -> None:
    (host.layout.root / attester.SYSTEMD_LOG).unlink()
    found = host.verify(rules(), None, None)
    assert (found.level, found.code) == (3, "log-mismatch") and "PCR 11" in found.reason


def test_a_list_that_is_not_there_is_an_error_not_evidence_without_it(host: Host) -> None:
    (host.layout.root / attester.IMA_LIST).unlink()
    with pytest.raises(NetspaceError, match="no measurement list"):
        host.verify(rules(), None, 0)


def test_a_host_that_has_fewer_lines_than_asked_for(host: Host) -> None:
    host.run(10)
    start = host.verify(rules(), None, 0).ima
    assert start is not None
    (host.layout.root / attester.IMA_LIST).write_bytes(LINES[: ima.offset(LINES, 5)])
    assert host.verify(rules(), start, 10).level == 5  # nothing new since, and no line is brought
    assert host.verify(rules(), None, 10).code == "ima-gap"


def test_no_list_by_a_software_key(layout: Layout) -> None:
    context = Context("verifier", "host", "session", bytes(32))
    made = self_appraisal.evidence(layout, settings.of(Attestation()), context, 0)
    assert made.ima is None and verifier.verify_software(made, software_key.load(layout).public, context).level == 1
