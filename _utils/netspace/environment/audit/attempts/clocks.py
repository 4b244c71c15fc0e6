"""Attempts on the host's clocks."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from typing import Any

from netspace.environment.audit.attempts.attempt import Attempt, Refused, attempt, syscall


def _clock(name: str, *arguments: Any) -> Attempt:
    def run(target: dict[str, Any]) -> str:
        # Set the present time, so that a success changes nothing.
        now = (ctypes.c_int64 * 2)(int(time.time()), 0)
        return f"returned {syscall(name, *(now if value is ... else value for value in arguments))}"

    return run


attempt("time", "set the clock (settimeofday)")(_clock("settimeofday", ..., None))
attempt("time", "set the clock (clock_settime)")(_clock("clock_settime", 0, ...))
attempt("time", "steer or read the clock's discipline (adjtimex)")(_clock("adjtimex", ctypes.create_string_buffer(256)))
attempt("time", "steer or read the clock's discipline (clock_adjtime)")(
    _clock("clock_adjtime", 0, ctypes.create_string_buffer(256))
)


@attempt("time", "make a time namespace by way of a user namespace")
def time_namespace(target: dict[str, Any]) -> str:
    with contextlib.suppress(OSError):
        syscall("unshare", 0x80)
        return "unshared the time namespace"
    syscall("unshare", 0x10000080)
    return "unshared a user and a time namespace"


@attempt("time", "shift its clocks (timens_offsets)")
def offsets(target: dict[str, Any]) -> str:
    with open("/proc/self/timens_offsets", "w") as stream:
        stream.write("monotonic 86400 0")
    return "written"


@attempt("time", "reach the machine's real-time clock")
def hardware_clock(target: dict[str, Any]) -> str:
    for path in ("/dev/rtc", "/dev/rtc0", "/dev/ptp0", "/dev/hpet"):
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
            return f"opened {path}"
    raise Refused("no device of a clock can be opened")
