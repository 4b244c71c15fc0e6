"""A TD's log is accepted only if its replay gives the registers of the TD's quote."""

from __future__ import annotations

import pytest
from support.attestation import boot_forge
from support.attestation.boot_logs import recorded
from support.attestation.tee_forge import ccel as area
from support.attestation.tee_forge import rtmrs

from netspace.attestation import refusals
from netspace.attestation.logs import eventlog, events
from netspace.attestation.tee import ccel, tdx

EVENTS = ((1, b"firmware"), (1, b"secure boot"), (2, b"loader"), (3, b"kernel"))


def quoted(values: list[bytes]) -> dict[int, bytes]:
    return dict(enumerate(values))


def test_a_recorded_area_leads_to_its_recorded_quote() -> None:
    raw = recorded("go-tdx-guest/ccel_data.dat")
    found = tdx.parse(recorded("go-tdx-guest/cos-113-tdx-quote.dat")).body.registers
    ccel.check(raw, quoted(list(found)))
    assert len(raw) > 10 * len(eventlog.unpadded(raw))
    for number in range(3):
        other = {**quoted(list(found)), number: b"\1" * 48}
        with pytest.raises(refusals.TeeLog, match=f"RTMR {number}"):
            ccel.check(raw, other)


def test_a_log_leads_to_its_registers() -> None:
    ccel.check(area(*EVENTS), quoted(rtmrs(*EVENTS)))
    assert ccel.registers(area(*EVENTS)) == {n: v for n, v in quoted(rtmrs(*EVENTS)).items() if n < 3}


@pytest.mark.parametrize("left_out", range(len(EVENTS)))
def test_each_event_that_is_left_out_is_noticed(left_out: int) -> None:
    rest = EVENTS[:left_out] + EVENTS[left_out + 1 :]
    with pytest.raises(refusals.TeeLog, match="leads to"):
        ccel.check(area(*rest), quoted(rtmrs(*EVENTS)))


def test_events_in_another_register_or_order_are_noticed() -> None:
    for forged in (((2, b"firmware"), *EVENTS[1:]), (EVENTS[1], EVENTS[0], *EVENTS[2:])):
        with pytest.raises(refusals.TeeLog):
            ccel.check(area(*forged), quoted(rtmrs(*EVENTS)))


def test_the_last_register_is_the_running_systems() -> None:
    running = {**quoted(rtmrs(*EVENTS)), 3: b"\1" * 48}
    ccel.check(area(*EVENTS), running)
    with pytest.raises(refusals.TeeLog, match="RTMR 3"):
        ccel.check(area(*EVENTS, (4, b"logged")), running)


@pytest.mark.parametrize("index", [0, 5, 23])
def test_an_event_for_no_register_is_refused(index: int) -> None:
    with pytest.raises(refusals.TeeLog, match=f"register {index}"):
        ccel.registers(area((index, b"data")))


def test_a_cut_or_damaged_area_is_refused() -> None:
    whole = area(*EVENTS)
    for raw in (b"", whole[:40], whole[: len(whole) - 600], whole + b"\0", bytes(4096), b"\xff" * 4096):
        with pytest.raises(refusals.TeeLog):
            ccel.check(raw, quoted(rtmrs(*EVENTS)))


def test_a_log_without_sha384_is_refused() -> None:
    raw = boot_forge.packed([boot_forge.measured(register, events.IPL, data) for register, data in EVENTS])
    with pytest.raises(refusals.TeeLog, match="sha384"):
        ccel.registers(raw)
