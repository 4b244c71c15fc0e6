"""System calls that are allowed only with certain arguments. Pure tables.

A filter can compare only arguments that are not pointers, such as the command of ``fcntl`` or the advice of
``madvise``. The values are those of <linux/fcntl.h>, <linux/fadvise.h>, <asm-generic/mman-common.h>, <linux/memfd.h>,
<linux/shm.h>, <asm-generic/resource.h> and <linux/prctl.h>, which are the same on both architectures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_WORD = 2**32 - 1


class Narrow(NamedTuple):
    """Conditions under which a call passes the filter, on one argument of the call.

    :param why: the reason for the conditions, for the documentation.
    :param place: index of the argument, from 0. Only its lower 32 bits count.
    :param refused: values that must not pass, by their names in the manual pages.
    :param passes: ranges of values that pass (first, last).
    :param bits: used if *passes* is empty: a value passes if it has none of these bits.
    :param asks: index of a pointer argument. If this pointer is null, the call changes nothing, and passes.
    :param told: selects the refused calls that report success, since some programs would exit at an error. An index:
        the calls whose pointer argument at this index, the place for the result, is null. -1: all calls, as the call
        stores no result. None: no call.
    """

    why: str
    place: int
    refused: Mapping[str, int]
    passes: Sequence[tuple[int, int]] = ()
    bits: int = 0
    asks: int | None = None
    told: int | None = None


_MAP_HUGETLB, _MFD_HUGETLB, _SHM_HUGETLB = 0x40000, 0x4, 0o4000
_HUGE = "huge pages come from a pool of the whole host, and no limit of an environment counts them"
_CORE = "with a limit of 0, a crash starts the host's crash handler, as root; with 1 it doesn't"
_CORES, _NOT_CORES = {"RLIMIT_CORE": 4}, ((0, 3), (5, 15))
_MERGED = "the time of a write to a merged page reveals that another environment has the same content"

# Calls that a family lets through with some arguments only.
NARROWED: Mapping[str, Narrow] = {
    "fcntl": Narrow(
        "whoever opens a file on which a program has a lease has to wait, by default 45 s",
        1,
        {"F_SETLEASE": 1024, "F_NOTIFY": 1026, "F_SETDELEG": 1040},
        ((0, 63), (1025, 1025), (1027, 1038)),
    ),
    "fadvise64": Narrow(
        "drops pages of a shared image from memory; the time of the next read then shows whether others have read them",
        3,
        {"POSIX_FADV_DONTNEED": 4},
        ((0, 3), (5, 5)),
    ),
    "madvise": Narrow(
        _MERGED,
        2,
        {"MADV_MERGEABLE": 12, "MADV_HWPOISON": 100, "MADV_SOFT_OFFLINE": 101},
        ((0, 4), (8, 11), (13, 25), (102, 103)),
    ),
    # Small numbers; and PR_GET_AUXV, PR_SET_VMA, PR_SET_PTRACER.
    "prctl": Narrow(
        _MERGED,
        0,
        {"PR_SET_MEMORY_MERGE": 67},
        ((0, 66), (68, 79), *((word, word) for word in (0x41555856, 0x53564D41, 0x59616D61))),
    ),
    "setrlimit": Narrow(_CORE, 0, _CORES, _NOT_CORES, told=-1),
    "prlimit64": Narrow(_CORE, 1, _CORES, _NOT_CORES, asks=2, told=3),
    "mmap": Narrow(_HUGE, 3, {"MAP_HUGETLB": _MAP_HUGETLB}, bits=_MAP_HUGETLB),
    "memfd_create": Narrow(_HUGE, 1, {"MFD_HUGETLB": _MFD_HUGETLB}, bits=_MFD_HUGETLB),
    "shmget": Narrow(_HUGE, 2, {"SHM_HUGETLB": _SHM_HUGETLB}, bits=_SHM_HUGETLB),
}


def conditions(narrow: Narrow) -> Iterator[list[dict[str, Any]]]:
    """Yield alternatives under which a call passes. Each is a list of conditions that must all hold.

    A comparison for "less" or "not equal" would look at all 64 bits of an argument, but the kernel reads only 32. With
    an upper bit set, a refused value would pass. So a range is split into blocks, as a range of addresses is split into
    CIDR networks: a block's size is a power of 2, and its first value a multiple of its size. Each block needs one
    masked comparison.
    """
    if not narrow.passes:
        yield [masked(narrow.place, narrow.bits, 0)]
    for first, last in narrow.passes:
        while first <= last:
            size = first & -first or _WORD + 1
            while first + size - 1 > last:
                size //= 2
            yield [masked(narrow.place, _WORD ^ (size - 1), first)]
            first += size
    if narrow.asks is not None:
        # Compare the value, too: libseccomp mixes up rules that differ in their first argument.
        for value in narrow.refused.values():
            yield [masked(narrow.place, _WORD, value), equal(narrow.asks, 0)]


def changing(narrow: Narrow, value: int) -> list[int]:
    """Return six arguments with which the call changes something.

    The compared argument is *value*; the pointer at ``narrow.asks`` isn't null.
    """
    return [value if place == narrow.place else int(place == narrow.asks) for place in range(6)]


def pretended(narrow: Narrow) -> Iterator[list[dict[str, Any]]]:
    """Yield alternatives under which a refused call reports success.

    Each alternative is a list of conditions that must all hold.
    """
    if narrow.told is None:
        return
    for value in narrow.refused.values():
        found = [masked(narrow.place, _WORD, value)]
        if narrow.asks is not None:
            found.append({"index": narrow.asks, "value": 0, "op": "SCMP_CMP_NE"})
        if narrow.told >= 0:
            found.append(equal(narrow.told, 0))
        yield found


def equal(index: int, value: int) -> dict[str, Any]:
    """Return the condition that all 64 bits of an argument are *value*."""
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


def masked(index: int, mask: int, value: int) -> dict[str, Any]:
    """Return the condition that the bits of *mask* in an argument are *value*."""
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
