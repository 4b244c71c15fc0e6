"""systemd's log continues the firmware's log: it is parsed exactly, or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attestation import boot_logs

from netspace.attestation import refusals
from netspace.attestation.logs import eventlog, systemd
from netspace.attestation.refusals import Refused

RAW = boot_logs.read("uki/systemd-tpm2-measure.log")


def record(**changes: object) -> bytes:
    data = {
        "pcr": 11,
        "digests": [{"hashAlg": "sha256", "digest": "00" * 32}],
        "content_type": "systemd",
        "content": {"string": "x", "eventType": "phase"},
        **changes,
    }
    return b"\x1e" + json.dumps({key: value for key, value in data.items() if value is not None}).encode() + b"\n"


def test_our_own_boot_leads_to_what_the_tpm_had() -> None:
    records = systemd.parse(RAW)
    assert [(one.pcr, one.kind) for one in records] == [(15, "machine-id"), (11, "phase"), (11, "phase")]
    assert all(one.proved("sha256") and one.describe()["matches"] for one in records)
    log = eventlog.parse(boot_logs.read("uki/binary_bios_measurements"))
    values = boot_logs.values("uki")
    led = systemd.extend(log.replay("sha256"), records, "sha256")
    assert {11, 15} <= led.keys()
    assert led == {pcr: values[pcr] for pcr in led}
    log.check({pcr: values[pcr] for pcr in (*range(10), 11, 15)}, "sha256", led)
    with pytest.raises(refusals.LogMismatch, match="PCR 11"):
        log.check({pcr: values[pcr] for pcr in (*range(10), 11)})


def test_a_record_whose_text_is_not_what_was_measured() -> None:
    (one,) = systemd.parse(record())
    assert not one.proved("sha256") and one.describe()["matches"] is False


def test_what_systemd_measured_into_nv_indices_is_passed_over() -> None:
    assert systemd.parse(record(pcr=None, nv_index=25)) == ()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"x" + record(), "begin with"),
        (record()[:-1], "is cut"),
        (b"\x1e[]\n", "not an object"),
        (b"\x1e{\n", "record 0"),
        (b"\x1e" + b"[" * 100_000 + b"\n", "record 0"),
        (b'\x1e{"pcr":1,"pcr":2}\n', "twice"),
        (record(pcr=24), "no PCR"),
        (record(pcr=True), "no PCR"),
        (record(digests=[]), "1 to 16"),
        (record(digests=[{}]), "a malformed digest"),
        (record(digests=[{"hashAlg": "sha256", "digest": "00"}]), "1 bytes"),
        (record(digests=[{"hashAlg": "sha256", "digest": "zz"}]), "record 0"),
        (record(digests=[{"hashAlg": "sha256", "digest": "00" * 32}] * 2), "twice"),
        (record(content_type="pcclient"), "its content is not of systemd's type"),
        (record(content={"string": 1}), "a text"),
        (record(content={"string": "\ud800"}), "record 0"),
        (record() * (systemd.MAX_RECORDS + 1), "more than"),
        (bytes(systemd.MAX_LOG + 1), "at most"),
    ],
)
def test_malformed(raw: bytes, message: str) -> None:
    with pytest.raises(refusals.LogMalformed, match=message):
        systemd.parse(raw)


def test_a_bank_that_a_record_lacks() -> None:
    with pytest.raises(refusals.LogMalformed, match="no sha384"):
        systemd.extend({}, systemd.parse(record()), "sha384")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutations_give_records_or_a_refusal(data: st.DataObject) -> None:
    raw = bytearray(RAW)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        records = systemd.parse(bytes(raw))
        systemd.extend({}, records, "sha256")
        assert all(one.describe() for one in records)
    except Refused as err:
        assert err.code == "log-malformed"
