"""Calls of libnftables(3), which parses nft's text and loads it in one transaction.

It acts in the network namespace of the calling thread. An ``nft`` process for the same work takes 3 to 6 ms.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
import threading
from collections.abc import Callable

from netspace.errors import MissingError
from netspace.patterns import pattern

_NAME = "libnftables.so.1"
_SAID = pattern(r"^(?:.*: )?Error: (.*)$", re.MULTILINE)
_DESCRIPTORS = 4  # sockets that a context may open
# The parts of libnftables that all contexts share aren't thread-safe.
_lock = threading.Lock()


def _unlock() -> None:
    """Make a new lock in a forked process, since a thread that exists only in the parent may hold the old one."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock)


class NftablesError(OSError):
    """Error: the text was refused. ``errno`` is the kernel's reason; ``strerror`` also names the refused command."""


class LibraryMissingError(NftablesError):
    """Error: libnftables isn't installed on this host."""


def missing(error: LibraryMissingError) -> MissingError:
    """Return the error about missing libnftables for the operator, with its remedy."""
    return MissingError(f"libnftables ({error.strerror})", "install it: salt-call state.apply netspace.packages")


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        found = ctypes.CDLL(_NAME, use_errno=True)
    except OSError as err:
        raise LibraryMissingError(errno.ENOPKG, str(err)) from None
    found.nft_ctx_new.restype = ctypes.c_void_p
    found.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for function in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(found, function).argtypes = [ctypes.c_void_p]
    found.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
    found.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    found.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return found


def run(text: str, *, removes: bool) -> None:
    """Run the commands of *text*, all or none.

    :param removes: whether the text removes something.
    :raises NftablesError: the text was refused; nothing has changed.
    """
    library = _library()
    line = text.replace("\n", ";")  # with several lines, an error would show the first
    with _lock:
        _need_descriptors()
        context = library.nft_ctx_new(0)
        if not context:
            raise NftablesError(errno.ENOMEM, "libnftables can't be used")
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        refused = library.nft_run_cmd_from_buffer(context, line.encode())
        said = library.nft_ctx_get_error_buffer(context).decode(errors="replace") if refused else ""

    def free() -> None:
        with _lock:
            library.nft_ctx_free(context)

    close(free, removed=removes)
    if refused:
        raise _explained(said)


def _need_descriptors() -> None:
    """Check that libnftables can open its sockets. If it couldn't, it would end the whole process.

    :raises OSError: this process has no descriptors left.
    """
    found: list[int] = []
    try:
        while len(found) < _DESCRIPTORS:
            found.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    finally:
        for one in found:
            os.close(one)


def close(work: Callable[[], object], *, removed: bool) -> None:
    """Call *work*, which closes a netfilter socket.

    After a removal (*removed*) it is called in another thread. The removal itself is complete before close() is called,
    but close() waits 10 ms or more, until no packet in flight can refer to the removed objects.
    """
    if removed:
        try:
            threading.Thread(target=work, name="netspace-close").start()
            return
        except RuntimeError:  # no more threads
            pass
    work()


def _explained(said: str) -> NftablesError:
    """Return the error that libnftables' output describes.

    The output has a line with the reason, then all commands, then a line that marks the refused command.
    """
    match = _SAID.search(said)
    reason = match[1] if match is not None else said
    commands, _, marks = said[match.end() + 1 :].partition("\n") if match is not None else ("", "", "")
    start = commands.rfind(";", 0, max(marks.find("^"), 0)) + 1
    command = commands[start:].partition(";")[0].strip()
    code = next((code for code in errno.errorcode if reason.endswith(os.strerror(code))), errno.EINVAL)
    return NftablesError(code, f"{reason}{f' ({command[:200]})' if command else ''}")
