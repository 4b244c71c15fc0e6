"""Boot logs replay to the TPM's values; damaged logs are refused."""

from __future__ import annotations

import base64
import json
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attestation import boot_logs

from netspace.attestation import refusals
from netspace.attestation.logs import eventlog
from netspace.attestation.logs.events import report
from netspace.attestation.refusals import Refused

FIXTURES = Path(__file__).parents[2] / "fixtures/eventlogs"
SHIM = (FIXTURES / "shim-grub/binary_bios_measurements").read_bytes()


def pcrread(path: Path) -> dict[int, str]:
    """Return the PCR values from the output of ``tpm2_pcrread``."""
    return {int(pcr): value.lower() for pcr, value in re.findall(r"(\d+)\s*: 0x([0-9A-F]+)", path.read_text())}


@pytest.mark.parametrize("boot", ["shim-grub", "uki"])
def test_our_own_boots(boot: str) -> None:
    parsed = eventlog.parse((FIXTURES / boot / "binary_bios_measurements").read_bytes())
    assert set(parsed.banks) == {"sha1", "sha256", "sha384", "sha512"}
    measured = pcrread(FIXTURES / boot / "tpm2_pcrread_sha256.txt")
    replayed = {pcr: value.hex() for pcr, value in parsed.replay("sha256").items()}
    # What is measured after the firmware has gone is in other logs: IMA (10), systemd (11, 15).
    firmware = replayed.keys() - ({11} if boot == "uki" else set())
    assert {pcr: replayed[pcr] for pcr in firmware} == {pcr: measured[pcr] for pcr in firmware}
    parsed.check({pcr: bytes.fromhex(measured[pcr]) for pcr in range(8)})


Banks = dict[str, dict[int, str]]


def expectations() -> list[tuple[str, bytes, Banks]]:
    """Return other machines' logs with known PCR values: for each, its name, its bytes and these values.

    The values are in YAML of tpm2-tools, in a JSON file beside the log, or in a quote that contains the log.
    """
    folder = boot_logs.others()
    found: list[tuple[str, bytes, Banks]] = []
    for table in sorted(folder.glob("**/*")) if folder else []:
        if table.suffix == ".yaml":
            beside = table.with_suffix("") if table.suffixes[:-1] else table.parent / "binary_bios_measurements"
            found.append((str(table.relative_to(folder)), beside.read_bytes(), of_yaml(table.read_text())))
        elif table.name == "tpm_pcr_values.json":
            for name, values in json.loads(table.read_text()).items():
                if (table.parent / name).exists():
                    banks = {
                        bank.lower(): {int(pcr): value for pcr, value in pcrs.items()} for bank, pcrs in values.items()
                    }
                    found.append((name, (table.parent / name).read_bytes(), banks))
        elif table.name == "gce-cos-85-no-nonce.json":
            data = json.loads(table.read_text())
            banks = {
                eventlog.BANKS[quote["alg"]]: {int(pcr): value for pcr, value in quote["pcrs"].items()}
                for quote in data["quotes"]
            }
            found.append((table.name, bytes.fromhex(data["eventlog"]), banks))
        elif table.name == "windows_gcp_shielded_vm.json":
            log = json.loads(table.read_text())["Log"]
            pcrs = {one["Index"]: base64.b64decode(one["Digest"]).hex() for one in log["PCRs"]}
            found.append((table.name, base64.b64decode(log["Raw"]), {"sha1": pcrs}))
    return found


def of_yaml(text: str) -> Banks:
    banks: Banks = {}
    for line in text[text.index("\npcrs:") + 7 :].splitlines():
        if head := re.fullmatch(r"  (\w+):", line):
            current = banks.setdefault(head[1], {})
        elif entry := re.fullmatch(r"    (\d+)\s*: 0x([0-9a-f]+)", line):
            current[int(entry[1])] = entry[2]
    return banks


EXPECTATIONS = expectations()


@pytest.mark.skipif(not EXPECTATIONS, reason="there is no folder of others' logs (NETSPACE_EVENTLOGS)")
@pytest.mark.parametrize(("raw", "banks"), [one[1:] for one in EXPECTATIONS], ids=[one[0] for one in EXPECTATIONS])
def test_logs_of_others(raw: bytes, banks: Banks) -> None:
    parsed = eventlog.parse(raw)
    assert banks
    for bank, pcrs in banks.items():
        replayed = {pcr: value.hex() for pcr, value in parsed.replay(bank).items()}
        if any(set(value) == {"f"} for value in pcrs.values()):  # all PCRs are listed, also those without an event
            assert {pcr: value for pcr, value in pcrs.items() if pcr in replayed and pcr != 10} == {
                pcr: value for pcr, value in replayed.items() if pcr != 10
            }
        else:
            assert {pcr: replayed[pcr] for pcr in pcrs} == pcrs


@pytest.mark.skipif(boot_logs.others() is None, reason="there is no folder of others' logs (NETSPACE_EVENTLOGS)")
def test_every_log_of_others_is_read_and_shown() -> None:
    """Each boot log of other machines, from many firmwares, is parsed and shown, also without expected values."""
    folder = boot_logs.others()
    assert folder is not None
    logs = [path for pattern in LOGS for path in folder.glob(pattern)]
    assert len(logs) > 30
    for path in logs:
        raw = path.read_bytes()
        shown = report(eventlog.parse(base64.b64decode(raw) if path.suffix == ".b64" else raw))
        assert shown["banks"] and shown["events"], path


LOGS = (
    *("go-attestation/*_eventlog", "go-tpm-tools/*.bin", "keylime/binary*", "keylime/mb_log.b64"),
    *("own/*/binary_bios_measurements", "rust-keylime/uefi_log.bin", "tpm2-tools/event*.bin"),
)


def legacy(pcr: int, kind: int, data: bytes, digest: bytes = bytes(20)) -> bytes:
    return struct.pack("<II", pcr, kind) + digest + struct.pack("<I", len(data)) + data


def spec_id(algorithms: list[tuple[int, int]], vendor: bytes = b"") -> bytes:
    body = b"Spec ID Event03\0" + bytes(8) + struct.pack("<I", len(algorithms))
    body += b"".join(struct.pack("<HH", *one) for one in algorithms)
    return legacy(0, 3, body + bytes([len(vendor)]) + vendor)


def event(pcr: int, kind: int, digests: list[tuple[int, bytes]], data: bytes = b"") -> bytes:
    body = struct.pack("<III", pcr, kind, len(digests))
    return (
        body + b"".join(struct.pack("<H", alg) + value for alg, value in digests) + struct.pack("<I", len(data)) + data
    )


SHA256 = [(0x000B, 32)]


def test_startup_locality_is_the_first_value_of_pcr_0() -> None:
    import hashlib

    log = spec_id(SHA256) + event(0, 3, [(0x000B, bytes(32))], b"StartupLocality\0\x03")
    log += event(0, 1, [(0x000B, b"\1" * 32)]) + event(1, 1, [(0x000B, b"\1" * 32)])
    replayed = eventlog.parse(log).replay("sha256")
    assert replayed[0] == hashlib.sha256(bytes(31) + b"\3" + b"\1" * 32).digest()
    assert replayed[1] == hashlib.sha256(bytes(32) + b"\1" * 32).digest()


def test_an_unknown_algorithm_is_skipped_by_its_announced_size() -> None:
    log = spec_id([*SHA256, (0x0012, 32)]) + event(0, 1, [(0x0012, bytes(32)), (0x000B, b"\1" * 32)])
    assert eventlog.parse(log).banks == ("sha256",)


def test_a_bank_that_one_event_lacks_is_no_bank() -> None:
    log = spec_id([*SHA256, (0x0004, 20)]) + event(0, 1, [(0x0004, bytes(20))])
    parsed = eventlog.parse(log)
    assert parsed.banks == ("sha1",)
    with pytest.raises(refusals.LogMismatch, match="has no sha256"):
        parsed.replay("sha256")


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (b"", "empty"),
        (spec_id([]), "0 algorithms"),
        (spec_id([*SHA256, *SHA256]), "twice"),
        (spec_id([(0x000B, 20)]), "wrong size of 20 bytes"),
        (spec_id(SHA256) + event(0, 1, [(0x0004, bytes(20))]), "not in the log's header"),
        (spec_id([*SHA256, (0x0004, 20)]) + event(0, 1, [(0x000B, bytes(32))] * 2), "occurs twice"),
        (spec_id(SHA256) + event(0, 1, [(0x000B, bytes(32))] * 2), "2 digests"),
        (spec_id(SHA256) + event(24, 1, [(0x000B, bytes(32))]), "PCR 24"),
        (spec_id(SHA256) + event(0, 3, [(0x000B, bytes(32))], b"StartupLocality\0\x05"), "locality"),
        (spec_id(SHA256) + struct.pack("<III", 0, 1, 0) + b"\xff\xff\xff\xff", "within an event"),
        (bytes(eventlog.MAX_LOG + 1), "at most"),
        (spec_id(SHA256) + event(0, 3, []) * eventlog.MAX_EVENTS, "more than"),
    ],
)
def test_malformed(log: bytes, message: str) -> None:
    with pytest.raises(refusals.LogMalformed, match=message):
        eventlog.parse(log)


@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4096])
def test_the_padding_of_a_log_area_is_cut_off(fill: bytes, size: int) -> None:
    log = spec_id(SHA256) + event(0, 1, [(0x000B, b"\1" * 32)])
    assert eventlog.unpadded(log + fill * size) == log


@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
@pytest.mark.parametrize("at", [0, 8, 100, 4095])
def test_padding_with_anything_in_it_is_refused(fill: bytes, at: int) -> None:
    padding = bytearray(fill * 4096)
    padding[at] = 0x55
    with pytest.raises(refusals.LogMalformed):
        eventlog.unpadded(spec_id(SHA256) + bytes(padding))


@pytest.mark.parametrize("area", [b"", bytes(4096), b"\xff" * 4096])
def test_an_area_without_a_log_is_refused(area: bytes) -> None:
    with pytest.raises(refusals.LogMalformed, match="empty"):
        eventlog.unpadded(area)


def test_a_log_area_cut_within_an_event_is_refused() -> None:
    log = spec_id(SHA256) + event(1, 1, [(0x000B, b"\1" * 32)], b"data")
    for end in range(len(spec_id(SHA256)) + 1, len(log)):
        with pytest.raises(refusals.LogMalformed):
            eventlog.unpadded(log[:end])


def test_padding_is_no_part_of_a_log() -> None:
    with pytest.raises(refusals.LogMalformed):
        eventlog.parse(spec_id(SHA256) + b"\xff" * 64)


def quoted() -> dict[int, bytes]:
    values = pcrread(FIXTURES / "shim-grub/tpm2_pcrread_sha256.txt")
    return {pcr: bytes.fromhex(values[pcr]) for pcr in range(10)}


def events(raw: bytes) -> list[bytes]:
    """Cut the log into its events, and return them; the first event is the header."""
    sizes = [len(spec) for spec in _walk(raw)]
    cut, at = [], 0
    for size in sizes:
        cut.append(raw[at : at + size])
        at += size
    return cut


def _walk(raw: bytes):
    parsed = eventlog.parse(raw)
    yield bytes(32 + len(parsed.events[0].data))
    for one in parsed.events[1:]:
        yield bytes(12 + sum(2 + len(value) for value in one.digests.values()) + 4 + len(one.data))


def test_every_event_that_is_left_out_is_noticed() -> None:
    cut = events(SHIM)
    assert b"".join(cut) == SHIM
    eventlog.parse(SHIM).check(quoted())
    for index in range(1, len(cut)):
        pcr, kind = struct.unpack("<II", cut[index][:8])
        if kind != eventlog.NO_ACTION and pcr in quoted():
            with pytest.raises(refusals.LogMismatch):
                eventlog.parse(b"".join(cut[:index] + cut[index + 1 :])).check(quoted())


def test_a_reordered_log_is_noticed() -> None:
    cut = events(SHIM)
    same = [i for i in range(1, len(cut)) if struct.unpack("<II", cut[i][:8])[0] == 4]
    first, last = same[0], same[-1]
    assert cut[first] != cut[last]
    cut[first], cut[last] = cut[last], cut[first]
    with pytest.raises(refusals.LogMismatch):
        eventlog.parse(b"".join(cut)).check(quoted())


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_mutations_give_a_log_or_a_refusal(data: st.DataObject) -> None:
    raw = bytearray(SHIM[: data.draw(st.integers(0, 4000))])
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        parsed = eventlog.parse(bytes(raw))
        for bank in parsed.banks:
            parsed.replay(bank)
    except Refused as err:
        assert err.code.startswith("log-")
