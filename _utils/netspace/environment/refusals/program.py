"""The BPF program that counts refused system calls: encoder of the program, and decoder of its counts. Pure.

The kernel runs the program at the end of each system call of the host (tracepoint ``sys_exit``), when the call's result
is already decided. The program can't change a result or wait. It records a call only if the result is EPERM, EACCES,
EROFS or ENOSYS, and if the caller's user id belongs to an audited environment. This is the host's user id, so a program
can't pretend to be another environment. (Calls by the environment's user id 0 are left out, because the runtime makes
them while it prepares a start.)

The call is counted, with its result, arguments and path, in one of two maps of the environment: one map for calls with
a path, the other for all other calls. So a search through many files doesn't crowd out other calls. A map has a fixed
size. Calls for which a full map has no room are counted together in one element (:data:`REST`). A key has only
arguments that a profile compares; otherwise a program could fill the map by varying an irrelevant argument. The path is
read from the program's memory when the call ends. This is good enough for a record, but not for a decision.

Sources: bpf-helpers(7); ``arch/*/include/asm/ptrace.h``.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import NamedTuple

from netspace.bpf.instructions import FRAME, R0, R1, R2, R3, R4, R6, R7, R8, R9, Code

MOST = 256
"""The most different refusals that are kept for one environment, the rest among them."""
CALLS = 1024
"""System calls with a number below this are recorded; the kernel has fewer than 500."""
PATH = 128
"""Bytes of a path that are kept, with the final zero."""
UIDS = 16
"""An environment's host user ids have all but this many bits in common."""

ANSWERS = (errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS)
_KEY = struct.Struct(f"=II6Q{PATH}s")
_VALUE = struct.Struct("=QQQ")
KEY, VALUE = _KEY.size, _VALUE.size
_REST = 2**32 - 1
REST = _KEY.pack(_REST, 0, *[0] * 6, b"")
"""The key under which a full map counts all further refusals."""
NOTHING = _VALUE.pack(0, 0, 0)

# Helpers: bpf-helpers(7), numbered as in linux/bpf.h.
_LOOK_UP, _UPDATE, _USER, _READ_KERNEL, _READ_TEXT, _CLOCK = 1, 2, 15, 113, 114, 125


class Registers(NamedTuple):
    """Layout of ``struct pt_regs`` on one architecture.

    :param pieces: the parts to read: offset and size.
    :param call: offset of the call's number.
    :param arguments: offsets of the call's arguments.
    """

    pieces: tuple[tuple[int, int], ...]
    call: int
    arguments: tuple[int, ...]


MACHINES = {
    "x86_64": Registers(((56, 72),), 120, (112, 104, 96, 56, 72, 64)),
    "aarch64": Registers(((8, 40), (272, 16)), 280, (272, 8, 16, 24, 32, 40)),
}

ARGUMENTS = 0b111111
"""The bits for arguments in an element of the map of calls."""
_PATHS, _LEFT_OUT = 8, 1 << 11

# The stack, downwards from FRAME: the key of an owner, a value, the registers, and the key of a refusal.
_OWNER = -8
_FIGURES = -32
_SAVED = -32 - 72
_LONG = _SAVED - KEY


class Seen(NamedTuple):
    """Equal refused calls, counted together.

    :param call: the call's number; -1 for the calls for which the full map had no room.
    :param answer: the call's error (errno).
    :param arguments: the six arguments; 0 for arguments that aren't recorded.
    :param path: the path that the program gave; empty if the call has no path or it couldn't be read.
    :param first: time of the first call, in nanoseconds of CLOCK_BOOTTIME.
    :param last: time of the last call, in the same unit.
    """

    call: int
    answer: int
    arguments: tuple[int, ...]
    path: bytes
    times: int
    first: int
    last: int


def seen(key: bytes, value: bytes) -> Seen:
    """Decode one element of an environment's map: key and value."""
    call, answer, *arguments, path = _KEY.unpack(key)
    times, first, last = _VALUE.unpack(value)
    text = path.partition(b"\0")[0]
    return Seen(-1 if call == _REST else call, answer, tuple(arguments), text, times, first, last)


def look(arguments: int = 0, path: int | None = None, *, left_out: bool = False) -> bytes:
    """Return an element for the map of calls. It selects the data that the program records of one call.

    :param arguments: bit mask of the arguments to record.
    :param path: index of the argument that is a path, 0 to 2.
    :param left_out: whether the call is not recorded at all.
    """
    return struct.pack("=I", arguments | (0 if path is None else 1 << _PATHS + path) | (_LEFT_OUT if left_out else 0))


def owner(uid: int) -> bytes:
    """Return an environment's key in the maps *calls* and *files* of :func:`code`.

    :param uid: any of the environment's user ids on the host.
    """
    return struct.pack("=I", uid >> UIDS)


def code(calls: int, files: int, looks: int, machine: str | None = None) -> bytes:
    """Return the encoded program.

    :param calls: descriptor of the map with each environment's map of calls without a path, by :func:`owner`.
    :param files: descriptor of the map with each environment's map of calls with a path, by :func:`owner`.
    :param looks: descriptor of the map of calls (:func:`look`).
    :raises KeyError: when the program doesn't support this machine.
    """
    registers = MACHINES[machine or os.uname().machine]
    it = Code()
    it.copy(R6, R1)
    it.load(R7, R6, 8)
    for answer in ANSWERS:
        it.jump_if(R7, "==", -answer, "refused")
    it.end()
    it.label("refused")
    it.call(_USER)
    it.copy(R1, R0)
    it.change(R1, "&", (1 << UIDS) - 1)
    it.jump_if(R1, "==", 0, "end")  # the runtime, which becomes the environment's user before its program begins
    it.change(R0, "<<", 32)  # the user id is the lower half of the answer
    it.change(R0, ">>", 32 + UIDS)
    it.store(FRAME, _OWNER, R0, 4)
    _look_up(it, calls, _OWNER)
    it.jump_if(R0, "==", 0, "end")
    it.copy(R8, R0)
    at = _save(it, registers)
    it.load(R1, FRAME, at[registers.call], 4)
    it.store(FRAME, _LONG, R1, 4)
    _look_up(it, looks, _LONG)
    it.jump_if(R0, "==", 0, "end")
    it.load(R9, R0, 0, 4)
    it.jump_if(R9, "has", _LEFT_OUT, "end")
    it.jump_if(R9, "has", 0b111 << _PATHS, "with a path")
    it.jump("chosen")
    it.label("with a path")
    _look_up(it, files, _OWNER)
    it.jump_if(R0, "==", 0, "end")
    it.copy(R8, R0)
    it.label("chosen")
    _make_key(it, [at[one] for one in registers.arguments])
    _find(it)
    it.jump_if(R0, "!=", 0, "count")
    it.call(_CLOCK)
    it.store_number(FRAME, _FIGURES, 1)
    it.store(FRAME, _FIGURES + 8, R0)
    it.store(FRAME, _FIGURES + 16, R0)
    it.copy(R1, R8)
    it.place(R2, _LONG)
    it.place(R3, _FIGURES)
    it.number(R4, 1)  # BPF_NOEXIST: another processor may have added it
    it.call(_UPDATE)
    it.jump_if(R0, "==", 0, "end")
    _find(it)
    it.jump_if(R0, "!=", 0, "count")
    for offset in range(8, KEY, 8):
        it.store_number(FRAME, _LONG + offset, 0)
    it.store_number(FRAME, _LONG, -1, 4)
    it.store_number(FRAME, _LONG + 4, 0, 4)
    _find(it)
    it.jump_if(R0, "==", 0, "end")
    it.label("count")
    it.copy(R9, R0)
    it.number(R1, 1)
    it.add_atomically(R9, 0, R1)
    it.call(_CLOCK)
    it.store(R9, 16, R0)
    it.load(R1, R9, 8)
    it.jump_if(R1, "!=", 0, "end")
    it.store(R9, 8, R0)
    it.label("end")
    it.end()
    return it.encoded()


def _look_up(it: Code, map_: int, key: int) -> None:
    it.map(R1, map_)
    it.place(R2, key)
    it.call(_LOOK_UP)


def _find(it: Code) -> None:
    """Emit code that looks up the key in the environment's map."""
    it.copy(R1, R8)
    it.place(R2, _LONG)
    it.call(_LOOK_UP)


def _save(it: Code, registers: Registers) -> dict[int, int]:
    """Emit code that copies registers of the call to the stack; return each stack address, by offset in ``pt_regs``."""
    places, free = {}, _SAVED
    for offset, size in registers.pieces:
        it.place(R1, free)
        it.number(R2, size)
        it.load(R3, R6, 0)
        it.change(R3, "+", offset)
        it.call(_READ_KERNEL)
        it.jump_if(R0, "!=", 0, "end")
        places.update({offset + step: free + step for step in range(0, size, 8)})
        free += size
    return places


def _make_key(it: Code, arguments: list[int]) -> None:
    """Emit code that makes the key of a call; the call's number is in the key already.

    The register R9 has the selection of the data to record (:func:`look`).
    """
    it.copy(R1, R7)
    it.change(R1, "neg")
    it.store(FRAME, _LONG + 4, R1, 4)
    for offset in range(8, KEY, 8):
        it.store_number(FRAME, _LONG + offset, 0)
    for index, place in enumerate(arguments):
        it.jump_if(R9, "has", 1 << index, f"take {index}")
        it.jump(f"leave {index}")
        it.label(f"take {index}")
        it.load(R1, FRAME, place)
        it.store(FRAME, _LONG + 8 + 8 * index, R1)
        it.label(f"leave {index}")
    for index, place in enumerate(arguments[:3]):
        it.load(R3, FRAME, place)
        it.jump_if(R9, "has", 1 << _PATHS + index, "read")
    it.jump("made")
    it.label("read")
    it.place(R1, _LONG + 56)
    it.number(R2, PATH)
    it.call(_READ_TEXT)
    it.label("made")
