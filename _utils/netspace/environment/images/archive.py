"""Strict reader of tar archives with size limits: ustar, pax and GNU long names.

The reader yields an archive's members and writes nothing. The standard library decodes the headers. An archive is
untrusted, so this module checks everything else (extended headers, sizes, types). It refuses sparse files, unknown
types, members with data although their type has none, and incomplete archives. Sources: pax(1) of POSIX.1-2017, and GNU
tar's manual.
"""

from __future__ import annotations

import functools
import re
import tarfile
from collections.abc import Iterator

from netspace.environment.images import bounds
from netspace.environment.images.bounds import Budget
from netspace.environment.images.streams import Reader
from netspace.environment.images.tree import FILE, FOLDER, LINK, Member, Node, printable

_BLOCK = 512
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_HEADERS = (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_ODD = {tarfile.CHRTYPE: "device nodes", tarfile.BLKTYPE: "device nodes", tarfile.FIFOTYPE: "named pipes"}
_MOST_HEADERS = 16  # extended headers before one member, of which there are three kinds
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
_NUMBER = re.compile(rb"\d{1,19}")
_TIME = re.compile(rb"(-?\d{1,19})(?:\.\d*)?")
_LENGTH = re.compile(rb"([1-9]\d{0,8}) ")
# Keys that a global header must not have: with them, two readers could read two different archives.
_NOT_GLOBAL = frozenset({b"path", b"linkpath", b"size"})


def members(reader: Reader, budget: Budget) -> Iterator[Member]:
    """Yield the archive's members in their order.

    :raises NetspaceError: when the archive is damaged, exceeds a limit, or contains something that this module refuses.
    """
    pax: dict[bytes, bytes] = {}
    headers = count = 0
    while True:
        block = reader.take(_BLOCK)
        if len(block) < _BLOCK:
            raise budget.refuse("not a tar archive, or only the beginning of one (was it copied in full?)")
        if not block.strip(b"\0"):
            if pax:
                raise budget.refuse("an extended header without a member after it")
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as err:
            raise budget.refuse(f"not a tar archive, or a damaged one: {err}") from err
        if info.size < 0:
            raise budget.refuse(f"{_shown(info)}: has a negative size")
        if info.type in _HEADERS:
            headers, count = headers + info.size, count + 1
            if headers > bounds.HEADER:
                raise budget.refuse(f"{_shown(info)}: has more than {bounds.HEADER} bytes of extended headers")
            if count > _MOST_HEADERS:
                raise budget.refuse(f"{_shown(info)}: has more than {_MOST_HEADERS} extended headers")
            data = _padded(reader, info.size, budget)
            if info.type == _PAX:
                pax.update(_records(data, budget))
            elif info.type == _PAX_GLOBAL:
                if _NOT_GLOBAL & _records(data, budget).keys():
                    raise budget.refuse("a global header that gives every member a name or a size")
            else:
                pax.setdefault(b"path" if info.type == _LONG_NAME else b"linkpath", data.split(b"\0", 1)[0])
            continue
        budget.take_entry()
        member = _member(info, pax, reader, budget)
        budget.take_names(member.length)
        yield member
        pax, headers, count = {}, 0, 0
    reader.finish()


def _member(info: tarfile.TarInfo, pax: dict[bytes, bytes], reader: Reader, budget: Budget) -> Member:
    path = pax.get(b"path") or _bytes(info.name)
    target = pax.get(b"linkpath") or _bytes(info.linkname)
    if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(_SPARSE) for key in pax):
        raise budget.refuse(f"{printable(path)}: is a sparse file; pack the archive without --sparse")
    size = info.size
    if b"size" in pax:
        if not _NUMBER.fullmatch(pax[b"size"]):
            raise budget.refuse(f"{printable(path)}: its size is not a number")
        size = int(pax[b"size"])
    if not path:
        raise budget.refuse("a member without a name")
    make = functools.partial(
        Node,
        mode=info.mode,
        uid=_id(info.uid, pax.get(b"uid"), path, budget),
        gid=_id(info.gid, pax.get(b"gid"), path, budget),
        mtime=_time(int(info.mtime), pax.get(b"mtime"), path, budget),
        xattrs=tuple((key[len(_XATTR) :], value) for key, value in pax.items() if key.startswith(_XATTR)),
    )
    if info.type in _FILES:
        if path.endswith(b"/"):  # a folder of an old archive: the standard library saw only the short name
            info.type = tarfile.DIRTYPE
        else:
            content = reader.content(size)
            if content is None or len(reader.take(-size % _BLOCK)) != -size % _BLOCK:
                raise budget.refuse(f"{printable(path)}: ends too early (was it copied in full?)")
            return Member(path, make(FILE, content=content))
    if size:
        raise budget.refuse(f"{printable(path)}: has data, although members of its type have none")
    if info.type == tarfile.DIRTYPE:
        return Member(path, make(FOLDER))
    if info.type == tarfile.SYMTYPE:
        if not target or len(target) > bounds.PATH or b"\0" in target:
            raise budget.refuse(f"{printable(path)}: a symbolic link to nothing, or to more than {bounds.PATH} bytes")
        return Member(path, make(LINK, target=target))
    if info.type == tarfile.LNKTYPE:
        return Member(path, same_as=target)
    if info.type in _ODD:
        return Member(path, odd=_ODD[info.type])
    raise budget.refuse(f"{printable(path)}: is a member of the unknown type {info.type!r}")


def _records(data: bytes, budget: Budget) -> dict[bytes, bytes]:
    """Return the ``<length> <key>=<value>\\n`` records of an extended header."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        match = _LENGTH.match(data, at)
        end = at + int(match[1]) if match else 0
        key, equals, value = data[match.end() : end - 1].partition(b"=") if match else (b"", b"", b"")
        if not match or end > len(data) or data[end - 1 : end] != b"\n" or not equals or not key:
            raise budget.refuse("a damaged extended header")
        records[key] = value
        at = end
    return records


def _padded(reader: Reader, size: int, budget: Budget) -> bytes:
    padded = size + -size % _BLOCK
    data = reader.take(padded)
    if len(data) < padded:
        raise budget.refuse("ends within a header (was it copied in full?)")
    return data[:size]


def _id(number: int, record: bytes | None, path: bytes, budget: Budget) -> int:
    if record is not None:
        number = int(record) if _NUMBER.fullmatch(record) else -1
    if not 0 <= number <= bounds.ID:
        raise budget.refuse(f"{printable(path)}: its owner is not a user or group id")
    return number


def _time(seconds: int, record: bytes | None, path: bytes, budget: Budget) -> int:
    if record is None:
        return seconds
    match = _TIME.fullmatch(record)
    if match is None:
        raise budget.refuse(f"{printable(path)}: has an invalid time")
    return int(match[1])


def _shown(info: tarfile.TarInfo) -> str:
    return printable(_bytes(info.name))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
