"""Refused system calls, and the declaration that would permit each."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest

from netspace.environment.container import seccomp
from netspace.environment.container.seccomp_file import Profile
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.record import Record
from netspace.environment.refusals import calls, program, reading, recording
from netspace.environment.refusals.program import Seen
from netspace.environment.refusals.reading import Refusal
from netspace.fleet import seen as fleet_seen
from netspace.host import called, glance
from netspace.spec import parse
from netspace.spec.suggest import Setting


def record(**keys: Any) -> Record:
    spec = parse.environment("web", {"image": "dir:/srv/web", "audit": True, **keys})
    return Record(spec, "running", 1, Image("", "", Defaults()), "", "")


def refusal(call: str, by: reading.By = "profile", *arguments: int, path: str = "", answer: int = 1) -> Refusal:
    given = (*arguments, *[0] * (6 - len(arguments)))
    return Refusal(by, call, given, path, answer, 1, 0.0, 0.0, bool(path))


def test_call_of_standard_is_permitted_by_it() -> None:
    part = called._told(refusal("io_setup"), record()).part
    assert isinstance(part, Setting)
    assert (part.key, part.value) == ("seccomp", "standard")


def test_call_that_the_profile_permits_is_never_permitted_now() -> None:
    standard = record(seccomp="standard")
    assert reading._by(standard, "msgget", seen("msgget", errno.EPERM)) == "kernel"
    told = called._told(refusal("msgget", "kernel"), standard)
    assert (told.part, told.why) == (None, called._EARLIER)
    assert called._told(refusal("setuid", "kernel"), standard).why.startswith("the kernel refuses it")


def test_call_that_an_own_profile_refuses_suggests_no_line() -> None:
    own = msgspec.structs.replace(record(), profile=Profile("0" * 64, {"defaultAction": "SCMP_ACT_ERRNO"}))
    assert reading._by(own, "io_setup", seen("io_setup", errno.EPERM)) == "profile"
    told = called._told(refusal("io_setup"), own)
    assert (told.part, told.why) == (None, called._OPERATORS)


def test_profiles_are_made_once_for_a_whole_record(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = seccomp.profile

    def profile(name: str, machine: str | None = None) -> dict[str, Any]:
        made.append(name)
        return make(name, machine)

    monkeypatch.setattr(seccomp, "profile", profile)
    recording.built_in.cache_clear()
    for _ in range(9):
        reading._by(record(), "chroot", seen("chroot", errno.EPERM))
        called._told(refusal("chroot"), record())
    assert sorted(made) == ["standard", "strict"]


@pytest.mark.parametrize("call", ["chroot", "bpf", "no_such_call"])
def test_call_of_no_profile_has_a_reason(call: str) -> None:
    told = called._told(refusal(call), record())
    assert told.part is None and told.why


def test_only_the_refused_arguments_of_a_call_are_shown() -> None:
    told = called._told(refusal("socket", "profile", 17, 3, 768), record())
    assert told.what == "socket(17, 3, 768)"
    assert called._told(refusal("chroot"), record()).what == "chroot"


@pytest.mark.parametrize(
    "path, answer, why",
    [
        ("/srv/x", errno.EROFS, ""),
        ("x", errno.EROFS, ""),
        ("//proc/sysrq-trigger", errno.EROFS, "netspace mounts"),
        ("/tmp/../sys/x", errno.EROFS, "netspace mounts"),
        ("proc/sys/x", errno.EROFS, "netspace mounts"),
        ("/srv//../data/x", errno.EROFS, "the volume at /data"),
        ("/proc/sys/x", errno.EROFS, "netspace mounts"),
        ("/run/netspace/x", errno.EROFS, "netspace mounts"),
        ("/data/x", errno.EROFS, "the volume at /data"),
        ("/srv/x", errno.EACCES, "its owner and mode"),
    ],
)
def test_file_is_permitted_by_its_root_alone(path: str, answer: int, why: str) -> None:
    volumes = [{"target": "/data", "source": "/srv/data", "read_only": True}]
    told = called._told(refusal("openat", "kernel", path=path, answer=answer), record(read_only=True, volumes=volumes))
    assert told.why.startswith(why) and bool(told.why) == bool(why)
    assert (told.part is not None) == (not why)


def test_file_of_a_writable_root_is_never_permitted_now() -> None:
    told = called._told(refusal("openat", "kernel", path="/x", answer=errno.EROFS), record())
    assert (told.part, told.why) == (None, called._MOUNT)


def test_path_is_one_word_without_control_characters() -> None:
    path = "/x: Read-only\n  files  openat\33[31m\u202e /y"
    told = called._told(refusal("openat", "kernel", path=path, answer=errno.EACCES), record())
    call, word, error = told.what.split(maxsplit=2)
    assert (call, error) == ("openat", "Permission denied")
    assert word.isprintable() and word.endswith("\\x1b[31m\\u202e\\x20/y:")


def test_glance_with_the_longest_path_is_understood() -> None:
    path = (b"\xff" * (program.PATH - 1)).decode("utf-8", "backslashreplace")
    told = called._told(refusal("openat", "kernel", path=path, answer=errno.EACCES), record())
    row = {"kind": told.kind, "what": told.what, "count": 1, "last": 0.0, "first": 0.0, "why": told.why}
    trust = {"level": "L0", "verifier": "self", "reason": ""}
    answer = {"trust": trust, "refused": {"web": glance._newest([row])}}
    (found,) = fleet_seen.answers(["h1"], {"h1": answer}, 1).values()
    assert found.glance is not None, found.problem


def seen(call: str, answer: int, *arguments: int) -> Seen:
    return Seen(calls.number(call), answer, (*arguments, *[0] * (6 - len(arguments))), b"", 1, 0, 0)


@pytest.mark.parametrize(
    "call, answer, arguments, by",
    [
        ("chroot", errno.EPERM, (), "profile"),
        ("io_setup", errno.ENOSYS, (), "profile"),
        ("socket", errno.EPERM, (17, 3, 768), "profile"),
        ("socket", errno.EACCES, (2, 1, 0), "kernel"),
        ("setuid", errno.EPERM, (), "kernel"),
        ("mseal", errno.ENOSYS, (), None),  # this kernel doesn't have it
        ("connect", errno.EPERM, (), None),  # the packet filter dropped a packet, and counts it
    ],
)
def test_refuser_follows_from_the_profile(call: str, answer: int, arguments: tuple[int, ...], by: str | None) -> None:
    assert reading._by(record(), call, seen(call, answer, *arguments)) == by


def test_element_of_a_map_is_decoded() -> None:
    key = program._KEY.pack(257, errno.EACCES, *range(6), b"/x\xff\0rest")
    assert program.seen(key, program._VALUE.pack(3, 1, 2)) == Seen(257, 13, tuple(range(6)), b"/x\xff", 3, 1, 2)
    assert program.seen(program.REST, program.NOTHING).call == -1


def test_paths_are_of_calls_that_this_machine_has() -> None:
    named = [name for names in calls.PATHS.values() for name in names.split()]
    assert len(named) == len(set(named))
    assert "openat" in named and calls.name(calls.number("openat")) == "openat"


def test_path_of_a_call_with_compared_arguments_is_recorded() -> None:
    own = {"syscalls": [{"names": ["openat"], "args": [{"index": 2, "value": 0, "op": "SCMP_CMP_EQ"}]}]}
    assert dict(calls.looks([own]))[calls.number("openat")] == program.look(0b100, 1)
