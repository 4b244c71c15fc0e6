"""Reader of an operator's own system call profile: a JSON file in the format of OCI runtimes or Docker.

The parser is strict and bounded: an unknown key, action or operator is an error, since a misread rule could allow too
much. Docker's conditions (``includes``, ``excludes``, ``archMap``) are evaluated for this machine and for a program
without capabilities. The operator decides which calls the profile allows. If it allows calls in ``seccomp.NEVER``, the
plan's notes name them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from netspace import paths
from netspace.environment.container import seccomp
from netspace.errors import NetspaceError
from netspace.patterns import pattern

PREFIX = "file:"
MAX_BYTES = 256 * 1024
MAX_RULES = 2000
MAX_NAMES = 2000  # in one rule

Action = Literal[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_KILL_PROCESS",
]
Operator = Literal[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
]
Flag = Literal["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
Call = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,64}$")]
Errno = Annotated[int, msgspec.Meta(ge=0, le=4095)]
_WORD = 2**64 - 1

# Docker's names of the architectures, by `uname -m`.
_DOCKER = {"x86_64": "amd64", "aarch64": "arm64"}
_KERNEL = pattern(r"(\d{1,4})\.(\d{1,4})")


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pass


class _Condition(_Strict, frozen=True):
    index: Annotated[int, msgspec.Meta(ge=0, le=5)]
    value: int
    op: Operator
    valueTwo: int = 0


class _Circumstances(_Strict, frozen=True):
    caps: tuple[str, ...] | None = None
    arches: tuple[str, ...] | None = None
    minKernel: str | None = None


class _Rule(_Strict, frozen=True):
    action: Action
    names: tuple[Call, ...] = ()
    name: Call | None = None
    args: tuple[_Condition, ...] | None = None
    errnoRet: Errno | None = None
    comment: str | None = None
    includes: _Circumstances = _Circumstances()
    excludes: _Circumstances = _Circumstances()


class _Architecture(_Strict, frozen=True):
    architecture: str
    subArchitectures: tuple[str, ...] | None = None


class _File(_Strict, frozen=True):
    defaultAction: Action
    defaultErrnoRet: Errno | None = None
    architectures: tuple[str, ...] | None = None
    archMap: tuple[_Architecture, ...] | None = None
    flags: tuple[Flag, ...] | None = None
    syscalls: tuple[_Rule, ...] | None = None


class Profile(msgspec.Struct, frozen=True):
    """A parsed profile, or the error.

    :param digest: hexadecimal SHA-256 of the file; shows whether the file has changed.
    :param rules: ``linux.seccomp`` of the OCI runtime configuration.
    :param dangers: allowed calls and arguments that no built-in profile allows.
    :param error: why the file could not be read; then there are no rules.
    """

    digest: str = ""
    rules: Mapping[str, Any] = msgspec.field(default_factory=dict)
    dangers: Sequence[str] = ()
    error: str = ""


def look(name: str) -> Profile | None:
    """Return the profile in the file that ``seccomp`` names; None if it names a built-in profile."""
    if not name.startswith(PREFIX):
        return None
    path = name.removeprefix(PREFIX)
    try:
        return parse(_read(path), path)
    except NetspaceError as err:
        return Profile(error=str(err))


def _read(path: str) -> bytes:
    try:
        # A FIFO must not block the open. The checks below are on the opened file, not on its path.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as err:
        raise NetspaceError(f"seccomp profile {path}: {getattr(err, 'strerror', None) or err}") from err
    with os.fdopen(fd, "rb") as stream:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise NetspaceError(f"seccomp profile {path}: no regular file")
        if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
            raise NetspaceError(
                f"seccomp profile {path}: users other than root can change it; chown root and chmod go-w {path}"
            )
        if folder := paths.loose(Path(path)) or paths.loose(Path(os.path.realpath(path))):
            remedy = f"chown root {folder} && chmod go-w {folder}"
            raise NetspaceError(f"seccomp profile {path}: users other than root can replace it; {remedy}")
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise NetspaceError(f"seccomp profile {path}: larger than {MAX_BYTES // 1024} KiB")
    return content


@functools.lru_cache(maxsize=64)
def parse(content: bytes, path: str, machine: str | None = None, kernel: str | None = None) -> Profile:
    """Parse a profile.

    :param path: the file's name for error messages.
    :param machine: the architecture, as ``uname -m`` prints it; by default, this machine's.
    :param kernel: the kernel's version, as ``uname -r`` prints it; by default, this machine's.
    :raises NetspaceError: when the profile is invalid; the message names the invalid part.
    """
    machine = machine or os.uname().machine
    try:
        found = msgspec.json.decode(content, type=_File)
        rules = _rules(found, machine, kernel or os.uname().release)
    except (msgspec.DecodeError, RecursionError, ValueError) as err:
        raise NetspaceError(f"seccomp profile {path}: {err}") from err
    return Profile(hashlib.sha256(content).hexdigest(), rules, tuple(dangers(rules, machine)))


def dangers(rules: Mapping[str, Any], machine: str) -> list[str]:
    """Return the dangerous calls that the profile allows, as texts for the operator.

    They include calls of other architectures.
    """
    found = seccomp.dangers(rules)
    if others := [name for name in rules["architectures"] if name != seccomp.ARCHITECTURES[machine]]:
        found.append(f"the calls of {', '.join(others)}")
    return found


def _rules(found: _File, machine: str, kernel: str) -> dict[str, Any]:
    if len(found.syscalls or ()) > MAX_RULES:
        raise ValueError(f"more than {MAX_RULES} rules")
    rules: dict[str, Any] = {"defaultAction": found.defaultAction, "architectures": _architectures(found, machine)}
    if found.defaultErrnoRet is not None:
        rules["defaultErrnoRet"] = found.defaultErrnoRet
    if found.flags:
        rules["flags"] = list(found.flags)
    rules["syscalls"] = [
        _encode(rule, index)
        for index, rule in enumerate(found.syscalls or ())
        if _applies(rule, index, machine, kernel)
    ]
    return rules


def _architectures(found: _File, machine: str) -> list[str]:
    if machine not in seccomp.ARCHITECTURES:
        raise ValueError(f"profiles are supported on {', '.join(seccomp.ARCHITECTURES)}, not on {machine}")
    own = seccomp.ARCHITECTURES[machine]
    if found.architectures and found.archMap:
        raise ValueError("has both architectures and archMap")
    named = found.architectures
    if found.archMap is not None:
        families = {entry.architecture: entry.subArchitectures or () for entry in found.archMap}
        named = (own, *families[own]) if own in families else ()
    if named is None:
        return [own]
    if own not in named:
        raise ValueError(f"is not for this machine: {own} is not among its architectures")
    if unknown := [name for name in named if not re.fullmatch(r"SCMP_ARCH_[A-Z0-9_]{1,32}", name)]:
        raise ValueError(f"{unknown[0]!r} is not an architecture")
    return list(named)


def _applies(rule: _Rule, index: int, machine: str, kernel: str) -> bool:
    """Return whether Docker would apply a rule on this machine to a program without capabilities."""
    name = _DOCKER[machine]
    wants, spares = rule.includes, rule.excludes
    if spares.minKernel is not None:
        raise ValueError(f"syscalls:{index}:excludes:minKernel: unknown")
    return (
        not wants.caps
        and (not wants.arches or name in wants.arches)
        and (wants.minKernel is None or _version(kernel, index) >= _version(wants.minKernel, index))
        and name not in (spares.arches or ())
    )


def _version(text: str, index: int) -> tuple[int, int]:
    match = _KERNEL.match(text)
    if match is None:
        raise ValueError(f"syscalls:{index}: {text!r} isn't a kernel version")
    return int(match[1]), int(match[2])


def _encode(rule: _Rule, index: int) -> dict[str, Any]:
    names = [*rule.names, *([rule.name] if rule.name else [])]
    if not names or len(names) > MAX_NAMES:
        raise ValueError(f"syscalls:{index}: names {len(names)} calls; expected 1 to {MAX_NAMES}")
    encoded: dict[str, Any] = {"names": names, "action": rule.action}
    if rule.errnoRet is not None:
        encoded["errnoRet"] = rule.errnoRet
    if rule.args:
        if len(rule.args) > 6:
            raise ValueError(f"syscalls:{index}: more than 6 conditions")
        for condition in rule.args:
            if not (0 <= condition.value <= _WORD and 0 <= condition.valueTwo <= _WORD):
                raise ValueError(f"syscalls:{index}: a value doesn't fit into 64 bits")
        encoded["args"] = [msgspec.to_builtins(condition) for condition in rule.args]
    return encoded
