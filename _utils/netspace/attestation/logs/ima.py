"""Parser of the kernel's measurement list (IMA); also replays the list, and matches it to a quote of PCR 10.

The parsed form is ``binary_runtime_measurements`` (kernel: security/integrity/ima,
Documentation/security/IMA-templates.rst). :func:`canonical` converts other forms to this form: text, and lists with
another algorithm (``binary_runtime_measurements_sha256``, since Linux 6.10), whose lines have a digest of that
algorithm in place of SHA-1. The kernel may append lines after the quote and before the list is read. These lines count
only in the next round. From a :class:`State`, a verifier knows the lines that it has judged, and asks only for the
following lines. This module reads no file, and ``netspace.attestation.verifier.ima_rules`` judges a list.

A rule of the kernel's IMA policy may name another PCR (``pcr=``). A quote of PCR 10 proves nothing about lines in
another PCR, so :func:`match` and :func:`replay` skip them.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from netspace.attestation.refusals import ListMalformed, ListMismatch

PCR = 10
PCRS = 24
BOOT_AGGREGATE = b"boot_aggregate"
MAX_LIST = 32 * 1024 * 1024
MAX_LINES = 500_000
MAX_ENTRY = 1024 * 1024
MAX_NAME = 255
# Bytes of the longest path in the kernel: PATH_MAX includes the NUL at the end.
MAX_PATH = 4095
# Algorithms whose lists can be read, by the length of a digest in hex.
_BANKS = {40: "sha1", 64: "sha256", 96: "sha384", 128: "sha512"}
# The digest that the list shows for a violation.
VIOLATION = bytes(20)
# Head of a line (struct ima_template_entry): PCR, SHA-1, length of the template's name.
_HEAD, _SIZE = struct.Struct("<I20sI"), struct.Struct("<I")
_TEXT = re.compile(rb"\s*\d{1,2} [0-9a-fA-F]{40}")
# The original template's file name is hashed as a buffer of this size (IMA_EVENT_NAME_LEN_MAX + 1).
_PADDED = 256
# Templates whose first fields are a digest with its algorithm and a file name.
_NAMED = frozenset((b"ima-ng", b"ima-sig", b"ima-buf", b"ima-modsig", b"evm-sig"))
_NAMED_V2 = frozenset((b"ima-ngv2", b"ima-sigv2"))
# File names of the programs that run as process 1.
_PROCESS_1 = frozenset(
    (b"init", b"systemd", b"busybox", b"openrc-init", b"runit", b"runit-init", b"dinit", b"shepherd")
)
_SIGNED = frozenset((b"ima-sig", b"ima-sigv2", b"ima-modsig"))


class Entry(NamedTuple):
    """One line of the list. The kernel measured *data*, or ``0xff`` bytes for a violation.

    **The TPM proves only** *data*. The template's name and the PCR's number are the sender's claims.

    :param digest: the SHA-1 of *data*; zeros for a violation.
    :param template: the template's name.
    :param pcr: number of the PCR that the kernel extended, by the line's claim.
    """

    digest: bytes
    template: bytes
    data: bytes
    pcr: int = PCR

    @property
    def violation(self) -> bool:
        """True if the file was written while it was measured or run.

        In this case, the TPM does not prove *data*.
        """
        return self.digest == VIOLATION


class File(NamedTuple):
    """A file, as described by a line of the list.

    :param digest: the digest in the kernel's form: ``algorithm:``, NUL, digest.
    :param signature: the file's signature (``security.ima``), if the template has one.
    """

    path: bytes
    digest: bytes
    signature: bytes = b""


@dataclass(frozen=True)
class State:
    """The judged part of a list: its first *lines* lines, which extend PCR 10 to *value* (SHA-256 bank).

    :param boot: (resetCount, restartCount) of the TPM; the state is void after a reboot.
    :param policy: fingerprint of the policy that judged the lines.
    :param refused: code and reason for the first line that the policy refuses; kept until the next boot.
    """

    lines: int = 0
    value: bytes = bytes(32)
    boot: tuple[int, int] = (0, 0)
    policy: str = ""
    refused: tuple[str, str] | None = None


def parse(raw: bytes, bank: str = "sha1") -> list[Entry]:
    """Parse lines of ``binary_runtime_measurements`` (little-endian).

    :param bank: the algorithm of the digests in the lines' heads.
    :raises ListMalformed: when a line is incomplete, or the list is too long.
    """
    size = len(raw)
    if size > MAX_LIST:
        raise ListMalformed(f"IMA list: {size} bytes; at most {MAX_LIST} are accepted at once")
    found: list[Entry] = []
    header = _HEAD if bank == "sha1" else struct.Struct(f"<I{hashlib.new(bank).digest_size}sI")
    head_of, size_of, make, add = header.unpack_from, _SIZE.unpack_from, tuple.__new__, found.append
    heading = header.size
    # The start of a line whose template's name is as long as that of the line before: most lines are read in one go.
    usual_of, named, taken = head_of, -1, 0
    at = 0
    try:
        while at < size:
            if named > 0 and at + taken <= size:
                pcr, digest, name, template, length = usual_of(raw, at)
                if name != named or pcr >= PCRS:
                    named = -1
                    continue
                at += taken
            else:
                pcr, digest, name = head_of(raw, at)
                if pcr >= PCRS or not 0 < name <= MAX_NAME:
                    raise ListMalformed(
                        f"IMA list: line {len(found)}: PCR {pcr}, or the template's "
                        f"name of {name} bytes, is out of bounds"
                    )
                head = at + heading
                at = head + name
                template = raw[head:at]
                if template == b"ima":  # the only template without a length before its data
                    length = 24 + size_of(raw, at + 20)[0]
                else:
                    length = size_of(raw, at)[0]
                    at += 4
                if name > 3:  # longer than "ima"
                    usual = struct.Struct(f"{header.format}{name}sI")
                    usual_of, named, taken = usual.unpack_from, name, usual.size
            end = at + length
            if length > MAX_ENTRY:
                raise ListMalformed(f"IMA list: line {len(found)}: {length} bytes; at most {MAX_ENTRY} are accepted")
            if len(found) == MAX_LINES:
                raise ListMalformed(f"IMA list: more than {MAX_LINES} lines")
            if end > size:
                raise _short(found, size)
            add(make(Entry, (digest, template, raw[at:end], pcr)))
            at = end
    except struct.error:
        raise _short(found, size) from None
    return found


def offset(raw: bytes, lines: int) -> int:
    """Return the byte offset at which line number *lines* begins, or the list's length if there is no such line.

    :raises ListMalformed: as :func:`parse`.
    """
    # The bytes of each line in the list: 28 or 32 for PCR, digest and lengths, then the template's name and the data.
    return sum(
        len(entry.template) + len(entry.data) + (28 if entry.template == b"ima" else 32) for entry in parse(raw)[:lines]
    )


def _short(found: list[Entry], size: int) -> ListMalformed:
    return ListMalformed(f"IMA list: ends after {size} bytes within line {len(found)}")


def measured(entry: Entry, bank: str = "sha256") -> bytes:
    """Return the digest with which the kernel extended the PCR of *bank* for *entry*."""
    if entry.digest == VIOLATION:
        return b"\xff" * hashlib.new(bank).digest_size
    data = entry.data
    if entry.template == b"ima":
        data = data[:20] + data[24:].ljust(_PADDED, b"\0")
    return hashlib.new(bank, data).digest()


def genuine(entry: Entry) -> bool:
    """Return whether the line's SHA-1 matches its data. A manually edited line does not match.

    Only a list without a SHA-256 quote needs this check.
    """
    return entry.violation or measured(entry, "sha1") == entry.digest


def replay(entries: list[Entry], bank: str = "sha256", value: bytes | None = None) -> Iterator[bytes]:
    """Yield PCR 10's value after each of *entries*, beginning with *value* (zero at boot)."""
    current = bytes(hashlib.new(bank).digest_size) if value is None else value
    for entry in entries:
        if entry.pcr == PCR:
            current = hashlib.new(bank, current + measured(entry, bank)).digest()
        yield current


def match(entries: list[Entry], start: bytes, quoted: bytes) -> int:
    """Return how many of *entries* extend the PCR from *start* to the *quoted* value.

    The entries after them are newer than the quote.

    :raises ListMismatch: when the entries never reach the quoted value.
    """
    if hmac.compare_digest(start, quoted):
        return 0
    sha256 = hashlib.sha256
    value = start
    for index, entry in enumerate(entries, 1):
        # measured() inlined for speed: this loop runs for each line of each host.
        digest, template, data, pcr = entry
        if pcr != PCR:
            continue
        part = measured(entry) if template == b"ima" or digest == VIOLATION else sha256(data).digest()
        value = sha256(value + part).digest()
        if value == quoted:
            return index
    raise ListMismatch(
        f"IMA list: {len(entries)} lines from {start.hex()[:16]}... lead to {value.hex()[:16]}..., "
        f"but the TPM has {quoted.hex()[:16]}... in PCR {PCR}"
    )


def file(entry: Entry) -> File | None:
    """Return the file that *entry* names; None if the template is unknown, or the data does not fit the template.

    The path may be a file's name without folders: the kernel gives only a name if the file's mount is detached
    (``ima_d_path``).
    """
    data = entry.data
    template = entry.template
    if template == b"ima":
        # This template doesn't name the digest's algorithm: SHA-1, the kernel's default (20 bytes), or MD5.
        # Data of another template under this name would show a NUL in the path.
        known = 24 < len(data) <= 24 + _PADDED and b"\0" not in data[24:]
        return File(data[24:], b"sha1:\0" + data[:20]) if known else None
    if template not in _NAMED and template not in _NAMED_V2:
        return None
    size = len(data)
    end = 4 + int.from_bytes(data[:4], "little")
    digest = data[4:end]
    start = end + 4
    if start > size:
        return None
    end = start + int.from_bytes(data[end:start], "little")
    path = data[start:end]
    if end > size or not 0 < len(path) <= MAX_PATH + 1 or path.find(b"\0") != len(path) - 1 or digest.find(b":\0") < 1:
        return None
    if template in _NAMED_V2:
        kind, _, digest = digest.partition(b":")
        if kind != b"ima":  # fs-verity: a digest of a Merkle tree, not of the file's content
            digest = kind + b":" + digest
    signature = b""
    if template in _SIGNED:
        start = end + 4
        if start > size:
            return None
        end = start + int.from_bytes(data[end:start], "little")
        signature = data[start:end]
        if end > size:
            return None
    return File(path[:-1], digest, signature)


def line(path: bytes, digest: bytes) -> bytes:
    """Return the data of an ``ima-ng`` line. ``ima-sig`` appends the signature's length and the signature."""
    return _sized(digest) + _sized(path + b"\0")


def boot_aggregate(entries: Sequence[Entry]) -> bytes | None:
    """Return the boot aggregate in the first line, as a :class:`File`; None if the first line has no boot aggregate."""
    if not entries or entries[0].violation or entries[0].pcr != PCR:
        return None
    first = file(entries[0])
    return first.digest if first is not None and first.path == BOOT_AGGREGATE else None


def measures_programs(entries: Sequence[Entry]) -> bool:
    """Return whether process 1 is among *entries*.

    A kernel may measure no programs; with Secure Boot alone, for example, it measures only modules. The list of such a
    kernel is short and has no bad line. So a list without process 1 proves nothing about programs. No list proves that
    it is complete.
    """
    return any(
        (found := file(entry)) is not None
        and found.path.startswith(b"/")
        and found.path.rpartition(b"/")[2] in _PROCESS_1
        for entry in entries
        if entry.pcr == PCR and not entry.violation
    )


def canonical(raw: bytes) -> bytes:
    """Convert any of the kernel's forms of the list to ``binary_runtime_measurements``.

    :raises ListMalformed: when the list has no known form, or a line's digest does not match the line.
    """
    if _TEXT.match(raw):
        return from_ascii(raw)
    for bank in _BANKS.values():
        if bank == "sha1" or not _of(raw, bank):
            continue
        out = []
        for number, entry in enumerate(parse(raw, bank)):
            violation = not any(entry.digest)
            if not violation and measured(entry, bank) != entry.digest:
                raise ListMalformed(f"IMA list: line {number}: the {bank} digest does not match the line")
            out.append(_binary(entry, violation))
        return b"".join(out)
    return raw


def _of(raw: bytes, bank: str) -> bool:
    """Return whether the first line's digest matches the line, computed by the algorithm of *bank*."""
    header = struct.Struct(f"<I{hashlib.new(bank).digest_size}sI")
    if len(raw) < header.size + 4:
        return False
    digest, length = header.unpack_from(raw)[1:]
    start = header.size + length
    if not 0 < length <= MAX_NAME or start + 24 > len(raw):
        return False
    template = raw[header.size : start]
    if template == b"ima":
        data = raw[start : start + 24 + _SIZE.unpack_from(raw, start + 20)[0]]
    else:
        data = raw[start + 4 : start + 4 + _SIZE.unpack_from(raw, start)[0]]
    entry = Entry(b"\1", template, data)  # b"\1": not a violation, so measured() digests the data
    return measured(entry, bank) == bytes(digest)


def from_ascii(raw: bytes) -> bytes:
    """Convert ``ascii_runtime_measurements`` to the binary form.

    Each converted line must match its digest, so that no field is guessed. (Violations have no digest.) Only these
    templates can be converted: ima, ima-ng, ima-sig, ima-ngv2, ima-sigv2, ima-buf.

    :raises ListMalformed: for a line that can't be converted.
    """
    if len(raw) > MAX_LIST:
        raise ListMalformed(f"IMA list: {len(raw)} bytes; at most {MAX_LIST} are accepted at once")
    out: list[bytes] = []
    for number, line in enumerate(raw.split(b"\n")):
        if line:
            out.append(_line(line, number))
    return b"".join(out)


def _line(line: bytes, number: int) -> bytes:
    try:
        pcr, digest, template, shown, rest = line.lstrip(b" ").split(b" ", 4)
        raw_digest = bytes.fromhex(digest.decode("ascii"))
        bank = _BANKS.get(len(digest))
        if not pcr.isdigit() or len(pcr) > 2 or int(pcr) >= PCRS or bank is None:
            raise ValueError("not a measurement into a PCR")
        violation = not any(raw_digest)
        for data in _datas(template, shown, rest):
            # In the text form, a name that ends with a space looks like a name before an empty last field.
            made = Entry(b"\1", template, data, int(pcr))
            if violation or measured(made, bank) == raw_digest:
                return _binary(made, violation)
    except ValueError as err:
        raise ListMalformed(f"IMA list: line {number}: {err}") from err
    raise ListMalformed(f"IMA list: line {number}: the digest does not match the line")


def _binary(entry: Entry, violation: bool) -> bytes:
    """Return the bytes of a line in ``binary_runtime_measurements``."""
    sha1 = VIOLATION if violation else measured(entry, "sha1")
    body = entry.data if entry.template == b"ima" else _sized(entry.data)
    return entry.pcr.to_bytes(4, "little") + sha1 + _sized(entry.template) + body


def _datas(template: bytes, shown: bytes, rest: bytes) -> Iterator[bytes]:
    name, _, last = rest.rpartition(b" ")
    if template == b"ima":
        digest = bytes.fromhex(shown.decode("ascii"))
        yield digest + _sized(rest)
    elif template in (b"ima-ng", b"ima-ngv2"):
        yield _sized(_shown(shown)) + _sized(rest + b"\0")
    elif template in (b"ima-sig", b"ima-sigv2", b"ima-buf"):
        with contextlib.suppress(ValueError):
            yield _sized(_shown(shown)) + _sized(name + b"\0") + _sized(bytes.fromhex(last.decode("ascii")))
        yield _sized(_shown(shown)) + _sized(rest + b"\0") + _sized(b"")
    else:
        raise ValueError(f"the template {template[:40]!r} can be read from the binary list only")


def _shown(text: bytes) -> bytes:
    algorithm, _, digest = text.rpartition(b":")
    return algorithm + b":\0" + bytes.fromhex(digest.decode("ascii"))


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data
