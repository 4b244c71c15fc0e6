"""Calls of libbpf: maps, programs, attachments, and their names in a BPF file system.

Each function makes one system call bpf(2). The caller closes the returned file descriptors, which are close-on-exec.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HASH, ARRAY, HASH_OF_MAPS = 1, 2, 13
"""Kinds of maps (``enum bpf_map_type``)."""
_RAW_TRACEPOINT = 17  # a kind of program
_NEW = 1  # BPF_NOEXIST
_NAME = "libbpf.so.1"  # iproute2 needs it, too


class _MapOptions(ctypes.Structure):
    """The structure ``bpf_map_create_opts`` of libbpf."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    ]


class _MapInfo(ctypes.Structure):
    """The beginning of the kernel's structure ``bpf_map_info``."""

    _fields_ = [("type", ctypes.c_uint32), ("id", ctypes.c_uint32)]


@functools.cache
def _library() -> Any:
    return ctypes.CDLL(_NAME, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def create_map(kind: int, name: str, key: int, value: int, most: int, inner: int | None = None) -> int:
    """Create a map, and return its file descriptor.

    :param name: at most 15 characters.
    :param key: size of a key in bytes.
    :param value: size of a value in bytes.
    :param most: the greatest number of elements; the kernel allocates the memory for all of them at once.
    :param inner: for a map of maps: descriptor of a map with the form of the inner maps.
    :raises OSError: when this host has no libbpf, or the kernel refuses the map.
    """
    options = _MapOptions(sz=ctypes.sizeof(_MapOptions), inner_map_fd=0 if inner is None else inner)
    made = _library().bpf_map_create(kind, name.encode(), key, value, most, ctypes.byref(options))
    return _checked(made, "a BPF map")


def load_tracing(name: str, code: bytes) -> int:
    """Load a program for a tracepoint, and return its file descriptor.

    :raises OSError: when the kernel's check refuses the program.
    """
    made = _library().bpf_prog_load(_RAW_TRACEPOINT, name.encode(), b"GPL", code, ctypes.c_size_t(len(code) // 8), None)
    return _checked(made, "a BPF program")


def attach(tracepoint: str, program: int) -> int:
    """Attach a program to a tracepoint, and return the attachment's file descriptor.

    The attachment ends when the descriptor is closed, if the attachment has no name in a BPF file system
    (:func:`keep`).

    :raises OSError: when the kernel refuses the attachment.
    """
    return _checked(_library().bpf_raw_tracepoint_open(tracepoint.encode(), program), f"tracepoint {tracepoint}")


def keep(descriptor: int, path: Path) -> None:
    """Give an object a name in a BPF file system, so that it outlives its descriptor.

    :raises OSError: when the name exists, or *path* is not in a BPF file system.
    """
    _checked(_library().bpf_obj_pin(descriptor, os.fsencode(path)), str(path))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yield the descriptor of an object that has a name in a BPF file system; close it at the end.

    :raises OSError: when there is no such object.
    """
    descriptor = _checked(_library().bpf_obj_get(os.fsencode(path)), str(path))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def number(descriptor: int) -> int:
    """Return the kernel's id of a map.

    :raises OSError: when the descriptor is not of a map.
    """
    info = _MapInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _checked(_library().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size)), "a BPF map")
    return int(info.id)


def value(map_: int, key: bytes, size: int) -> bytes | None:
    """Return the value (*size* bytes) of the element with the key *key*; None if there is no such element."""
    found = ctypes.create_string_buffer(size)
    return found.raw if _library().bpf_map_lookup_elem(map_, key, found) == 0 else None


def put(map_: int, key: bytes, content: bytes, *, new: bool = False) -> None:
    """Add or replace an element.

    :param new: only add the element; fail if it exists.
    :raises OSError: when the map is full, or has the element already (with *new*).
    """
    flags = ctypes.c_uint64(_NEW if new else 0)
    _checked(_library().bpf_map_update_elem(map_, key, content, flags), "an element of a BPF map")


def drop(map_: int, key: bytes) -> None:
    """Remove an element, if the map has it."""
    _library().bpf_map_delete_elem(map_, key)


def keys(map_: int, size: int, most: int) -> list[bytes]:
    """Return at most *most* keys of a map, each of *size* bytes.

    The limit is needed because a map that changes during the listing could make it endless.
    """
    found: list[bytes] = []
    following = ctypes.create_string_buffer(size)
    while len(found) < most:
        if _library().bpf_map_get_next_key(map_, found[-1] if found else None, following) != 0:
            break
        found.append(following.raw)
    return found
