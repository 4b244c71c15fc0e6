"""BPF instructions with labels, encoded for the kernel. Pure.

Only forward jumps are encoded, so a program always ends. Source: the kernel's ``Documentation/bpf/standardization``
(RFC 9669), ``linux/bpf.h``.
"""

from __future__ import annotations

import struct
import sys
from typing import Literal

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FRAME = range(11)
"""Registers. A call of a helper takes R1 to R5, and answers in R0. FRAME is the end of the stack (512 bytes)."""

_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_JUMPS = {"==": 0x15, "!=": 0x55, ">": 0x25, "has": 0x45}
_OPERATIONS = {"+": 0x07, "&": 0x57, "<<": 0x67, ">>": 0x77, "neg": 0x87}
_CALL, _EXIT, _ALWAYS, _WIDE, _ADD_ATOMICALLY = 0x85, 0x95, 0x05, 0x18, 0xDB
_MAP = 1  # a pseudo source of _WIDE: the number is a map's file descriptor

Comparison = Literal["==", "!=", ">", "has"]
Operation = Literal["+", "&", "<<", ">>", "neg"]


class Code:
    """Assembler for one program. Each method appends an instruction."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, int, int | str, int]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Give the next instruction a name, to which earlier instructions can jump."""
        assert name not in self._labels
        self._labels[name] = len(self._lines)

    def copy(self, to: int, source: int) -> None:
        """Copy a register."""
        self._lines.append((0xBF, to, source, 0, 0))

    def number(self, to: int, value: int) -> None:
        """Set a register to a signed number of 32 bits."""
        self._lines.append((0xB7, to, 0, 0, value))

    def change(self, register: int, operation: Operation, value: int = 0) -> None:
        """Apply an operation with a number to all 64 bits of a register."""
        self._lines.append((_OPERATIONS[operation], register, 0, 0, value))

    def load(self, to: int, at: int, offset: int, size: int = 8) -> None:
        """Load *size* bytes from the address in the register *at*."""
        self._lines.append((0x61 | _SIZES[size], to, at, offset, 0))

    def store(self, at: int, offset: int, source: int, size: int = 8) -> None:
        """Store the lower *size* bytes of a register at the address in the register *at*."""
        self._lines.append((0x63 | _SIZES[size], at, source, offset, 0))

    def store_number(self, at: int, offset: int, value: int, size: int = 8) -> None:
        """Store a number at the address in the register *at*."""
        self._lines.append((0x62 | _SIZES[size], at, 0, offset, value))

    def add_atomically(self, at: int, offset: int, source: int) -> None:
        """Add a register atomically to the 8 bytes at the address in the register *at*."""
        self._lines.append((_ADD_ATOMICALLY, at, source, offset, 0))

    def map(self, to: int, descriptor: int) -> None:
        """Set a register to the address of a map."""
        self._lines += [(_WIDE, to, _MAP, 0, descriptor), (0, 0, 0, 0, 0)]

    def place(self, to: int, offset: int) -> None:
        """Set a register to an address on the stack."""
        self.copy(to, FRAME)
        self.change(to, "+", offset)

    def call(self, helper: int) -> None:
        """Call a helper of the kernel (``bpf_helpers(7)``) by its number."""
        self._lines.append((_CALL, 0, 0, 0, helper))

    def jump(self, label: str) -> None:
        self._lines.append((_ALWAYS, 0, 0, label, 0))

    def jump_if(self, register: int, comparison: Comparison, value: int, label: str) -> None:
        """Jump if *comparison* is true for a register and a number.

        The comparison ``has`` is true if the register and the number have at least one set bit in common.
        """
        self._lines.append((_JUMPS[comparison], register, 0, label, value))

    def end(self) -> None:
        """End the program with the return value 0."""
        self.number(R0, 0)
        self._lines.append((_EXIT, 0, 0, 0, 0))

    def encoded(self) -> bytes:
        """Return the program in the kernel's binary form."""
        found = []
        low, high = (0, 4) if sys.byteorder == "little" else (4, 0)
        for number, (code, to, source, offset, value) in enumerate(self._lines):
            if isinstance(offset, str):
                offset = self._labels[offset] - number - 1
                assert offset >= 0, "a jump backwards"
            found.append(struct.pack("=BBhi", code, to << low | source << high, offset, value))
        return b"".join(found)
