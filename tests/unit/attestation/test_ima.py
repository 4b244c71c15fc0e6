"""Measurement lists: parsed exactly and replayed to a TPM's value, or refused."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attestation import boot_logs

from netspace.attestation import refusals
from netspace.attestation.logs import ima
from netspace.attestation.refusals import Refused

RAW = boot_logs.read("shim-grub/ima_binary_runtime_measurements")


def sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def line(template: bytes, data: bytes, *, pcr: int = 10, digest: bytes | None = None) -> bytes:
    """Return a line of the binary list in the kernel's form."""
    hashed = data[:20] + data[24:].ljust(256, b"\0") if template == b"ima" else data
    head = struct.pack("<I", pcr) + (hashlib.sha1(hashed).digest() if digest is None else digest) + sized(template)
    return head + (data if template == b"ima" else sized(data))


def named(path: bytes, content: bytes = b"x", algorithm: bytes = b"sha256") -> bytes:
    return sized(algorithm + b":\0" + hashlib.new(algorithm.decode(), content).digest()) + sized(path + b"\0")


NG = line(b"ima-ng", named(b"/bin/true"))
OLD = line(b"ima", hashlib.sha1(b"x").digest() + sized(b"/bin/old"))
SIG = line(b"ima-sig", named(b"/bin/sig") + sized(b"\3\2"))
NG2 = line(b"ima-ngv2", sized(b"ima:sha256:\0" + bytes(32)) + sized(b"/bin/two\0"))
VERITY = line(b"ima-sigv2", sized(b"verity:sha256:\0" + bytes(32)) + sized(b"/bin/verity\0") + sized(b""))
BUF = line(b"ima-buf", named(b"kexec-cmdline") + sized(b"root=/dev/vda"))
OTHER = line(b"mine", b"whatever")
VIOLATION = line(b"ima-ng", sized(b"sha256:\0" + bytes(32)) + sized(b"/var/log/x\0"), digest=bytes(20))
ALL = [NG, OLD, SIG, NG2, VERITY, BUF, OTHER, VIOLATION]


@pytest.mark.parametrize("boot", ["shim-grub", "uki"])
def test_our_own_boots_lead_to_what_the_tpm_had(boot: str) -> None:
    entries = ima.parse(boot_logs.read(f"{boot}/ima_binary_runtime_measurements"))
    values = boot_logs.values(boot)
    assert all(ima.genuine(entry) for entry in entries)
    assert ima.match(entries, bytes(32), values[10]) in (len(entries), len(entries) - 1)
    assert all(ima.file(entry) for entry in entries)
    aggregate = hashlib.sha256(b"".join(values[pcr] for pcr in range(10))).digest()
    assert ima.boot_aggregate(entries) == b"sha256:\0" + aggregate


def test_the_ascii_form_is_the_binary_one() -> None:
    ascii_list = boot_logs.read("shim-grub/ima_ascii_head.txt")
    converted = ima.from_ascii(ascii_list)
    assert len(ima.parse(converted)) == 40
    assert RAW.startswith(converted)


@pytest.mark.skipif(boot_logs.others() is None, reason="there is no folder of others' logs (NETSPACE_EVENTLOGS)")
def test_lists_of_others() -> None:
    folder = boot_logs.others()
    assert folder is not None
    for boot in ("shim-grub", "uki"):
        converted = ima.from_ascii((folder / "own" / boot / "ima_ascii.txt").read_bytes())
        assert converted == (folder / "own" / boot / "ima_binary_runtime_measurements").read_bytes()
    entries = ima.parse(ima.from_ascii((folder / "rust-keylime/ascii_runtime_measurements").read_bytes()))
    assert len(entries) == 826 and all(ima.genuine(entry) for entry in entries)


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384"])
def test_every_template_is_measured_as_the_kernel_does(bank: str) -> None:
    value = bytes(hashlib.new(bank).digest_size)
    data = [raw[24 + 4 + size :] for raw, size in zip(ALL, (6, 3, 7, 8, 9, 7, 4, 6), strict=True)]
    for raw, body in zip(ALL, data, strict=True):
        if raw is OLD:
            part = hashlib.new(bank, body[:20] + b"/bin/old".ljust(256, b"\0")).digest()
        elif raw is VIOLATION:
            part = b"\xff" * len(value)
        else:
            part = hashlib.new(bank, body[4:]).digest()
        value = hashlib.new(bank, value + part).digest()
    entries = ima.parse(b"".join(ALL))
    assert list(ima.replay(entries, bank))[-1] == value
    if bank == "sha256":
        assert ima.match(entries, bytes(32), value) == len(ALL)


def test_where_a_line_begins() -> None:
    raw = b"".join(ALL)
    for number in range(len(ALL) + 1):
        assert ima.offset(raw, number) == len(b"".join(ALL[:number]))
    assert ima.offset(raw, 100) == len(raw) and ima.offset(b"", 3) == 0
    with pytest.raises(refusals.ListMalformed):
        ima.offset(raw[:-1], 1)


def test_files() -> None:
    found = [ima.file(entry) for entry in ima.parse(b"".join(ALL))]
    content = b"sha256:\0" + hashlib.sha256(b"x").digest()
    assert found[:3] == [
        ima.File(b"/bin/true", content),
        ima.File(b"/bin/old", b"sha1:\0" + hashlib.sha1(b"x").digest()),
        ima.File(b"/bin/sig", content, b"\3\2"),
    ]
    assert found[3] == ima.File(b"/bin/two", b"sha256:\0" + bytes(32))
    assert found[4] == ima.File(b"/bin/verity", b"verity:sha256:\0" + bytes(32))
    assert found[5] == ima.File(b"kexec-cmdline", content)
    assert found[6] is None


def test_a_list_ahead_of_the_quote_counts_up_to_it() -> None:
    entries = ima.parse(RAW)
    values = list(ima.replay(entries))
    assert ima.match(entries, bytes(32), bytes(32)) == 0
    for number in (0, 1, 100, len(entries) - 1):
        assert ima.match(entries, bytes(32), values[number]) == number + 1
    assert ima.match(entries[100:], values[99], values[200]) == 101


@pytest.mark.parametrize("change", ["left out", "reordered", "changed", "added before", "behind"])
def test_a_list_that_is_not_what_was_measured(change: str) -> None:
    entries = ima.parse(RAW)
    quoted = list(ima.replay(entries))[-1]
    if change == "left out":
        del entries[50]
    elif change == "reordered":
        entries[50], entries[51] = entries[51], entries[50]
    elif change == "changed":
        entries[50] = entries[50]._replace(data=entries[50].data.replace(b"/", b"_"))
    elif change == "added before":
        entries.insert(50, entries[50])
    else:
        entries.pop()
    with pytest.raises(refusals.ListMismatch):
        ima.match(entries, bytes(32), quoted)


def test_a_violation_extends_ones_and_its_words_are_not_measured() -> None:
    (one,) = ima.parse(VIOLATION)
    (other,) = ima.parse(VIOLATION.replace(b"/var/log/x", b"/tmp/other"))
    assert one.violation and ima.measured(one) == ima.measured(other) == b"\xff" * 32
    assert ima.measured(one, "sha1") == b"\xff" * 20


def test_an_edited_line_is_seen_without_a_quote() -> None:
    (entry,) = ima.parse(NG.replace(b"/bin/true", b"/bin/fake"))
    assert not ima.genuine(entry)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (NG[:-1], "within line 0"),
        (NG + b"\0", "within line 1"),
        (line(b"ima-ng", b"", pcr=24), "PCR 24"),
        (line(b"", b""), "name of 0 bytes"),
        (line(b"x" * 256, b""), "name of 256 bytes"),
        (NG[:34] + b"\xff\xff\xff\xff" + NG[38:], "4294967295 bytes"),
        (OLD[:51] + b"\xff\xff\xff\xff" + OLD[55:], "bytes"),
        (b"\n", "within line 0"),
    ],
)
def test_malformed(raw: bytes, message: str) -> None:
    with pytest.raises(refusals.ListMalformed, match=message):
        ima.parse(raw)


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(refusals.ListMalformed, match="at once"):
        ima.parse(bytes(ima.MAX_LIST + 1))
    with pytest.raises(refusals.ListMalformed, match="at once"):
        ima.from_ascii(bytes(ima.MAX_LIST + 1))
    monkeypatch.setattr(ima, "MAX_LINES", 2)
    with pytest.raises(refusals.ListMalformed, match="more than 2 lines"):
        ima.parse(NG * 3)


def test_ascii_names_with_spaces_and_what_can_not_be_converted() -> None:
    def shown(raw: bytes, rest: bytes) -> bytes:
        return b"10 " + raw[4:24].hex().encode() + b" " + rest

    spaced = line(b"ima-sig", named(b"/a b ") + sized(b"\3\2\1"))
    digest = hashlib.sha256(b"x").hexdigest().encode()
    assert ima.from_ascii(shown(spaced, b"ima-sig sha256:" + digest + b" /a b  030201\n")) == spaced
    unsigned = line(b"ima-sig", named(b"/a b") + sized(b""))
    assert ima.from_ascii(shown(unsigned, b"ima-sig sha256:" + digest + b" /a b \n")) == unsigned
    assert ima.from_ascii(shown(OLD, b"ima " + hashlib.sha1(b"x").hexdigest().encode() + b" /bin/old")) == OLD
    for bad in (b"mine x y", b"ima-ng sha256:zz /x", b"ima-ng sha256:" + digest + b" /other"):
        with pytest.raises(refusals.ListMalformed, match="line 0"):
            ima.from_ascii(shown(NG, bad))


TEMPLATES = (b"abc", b"mine", b"ima-ng", b"ima-sig", b"evm-sig", b"n" * 255)
LINES = st.one_of(
    st.tuples(st.sampled_from(TEMPLATES), st.binary(max_size=40)),
    st.tuples(st.just(b"ima"), st.binary(max_size=20).map(lambda path: bytes(20) + sized(path))),
)


@given(st.lists(LINES, max_size=12), st.data())
def test_lines_of_any_templates_in_any_order_are_read_and_no_part_of_one(
    told: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    """Lines of any templates are parsed in any order; a list that is cut within a line is refused.

    The parser first tries the previous line's form if the template's name has the same length.
    """
    raws = [line(template, content, pcr=number % 24) for number, (template, content) in enumerate(told)]
    found = ima.parse(b"".join(raws))
    assert [(one.template, one.data, one.pcr) for one in found] == [(*one, n % 24) for n, one in enumerate(told)]
    cut = data.draw(st.integers(0, len(b"".join(raws))))
    ends = [len(b"".join(raws[:count])) for count in range(len(raws) + 1)]
    if cut in ends:
        assert ima.parse(b"".join(raws)[:cut]) == found[: ends.index(cut)]
    else:
        with pytest.raises(refusals.ListMalformed, match=f"within line {sum(end <= cut for end in ends) - 1}"):
            ima.parse(b"".join(raws)[:cut])


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_mutations_give_lines_or_a_refusal(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([RAW[:2000], b"".join(ALL)])))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        for entry in ima.parse(bytes(raw)):
            ima.file(entry)
            ima.measured(entry)
    except Refused as err:
        assert err.code == "ima-malformed"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations_of_the_ascii_form_are_lines_or_a_refusal(data: st.DataObject) -> None:
    raw = bytearray(boot_logs.read("shim-grub/ima_ascii_head.txt")[:600])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        ima.parse(ima.from_ascii(bytes(raw)))
    except Refused as err:
        assert err.code == "ima-malformed"
