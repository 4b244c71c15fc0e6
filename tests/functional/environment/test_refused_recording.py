"""Refused calls that the kernel counts: the environment to which each is assigned, and the remains of a killed run."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from netspace import supervision
from netspace.bpf import library as bpf
from netspace.environment import record as records
from netspace.environment.container.seccomp_file import Profile
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.plan import DesiredEnvironment
from netspace.environment.reconciler import Environments
from netspace.environment.record import Record
from netspace.environment.refusals import calls, program, reading, recording
from netspace.environment.user_ids import COUNT, FIRST, RANGES
from netspace.host import recorded_calls
from netspace.layout import Layout
from netspace.spec.types import Environment

pytestmark = pytest.mark.root

LAYOUT = Layout()
# The kernel counts by user ids, and other tests' environments may run on it. So these ids are no other test's.
BASE = FIRST + secrets.randbelow(RANGES - 3) * COUNT
NAMES = ("web", "orders")


class Killed(BaseException):
    """Exception that stands for the kill of a run. The library doesn't catch it."""


def recorded(profile: Profile | None = None) -> dict[str, Record]:
    """Write the records of two audited environments, and return them."""
    image = Image("0" * 64, "x", Defaults())
    LAYOUT.records(records.KIND).mkdir(parents=True, exist_ok=True)
    known = {}
    for number, name in enumerate(NAMES):
        spec = Environment(image="tar:/x", command=("/x",), audit=True)
        known[name] = Record(spec, "running", BASE + number * COUNT, image, "", "", profile=profile)
        records.write(LAYOUT, name, known[name])
    return known


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    recording.end(LAYOUT)
    for name in NAMES:
        records.path(LAYOUT, name).unlink(missing_ok=True)


def refuse(uid: int, path: Path) -> None:
    """Try to open a file and to call chroot(2) as the user *uid*, without the right to either."""
    child = os.fork()
    if child == 0:
        os.setresuid(uid, uid, uid)
        for attempt in (lambda: os.close(os.open(path, os.O_RDONLY)), lambda: os.chroot("/")):
            with contextlib.suppress(PermissionError):
                attempt()
        os._exit(0)
    os.waitpid(child, 0)


def comparing(call: str, index: int) -> Profile:
    """Return a profile that compares one argument of *call*."""
    condition = {"index": index, "value": 0, "op": "SCMP_CMP_EQ"}
    rule = {"names": [call], "action": "SCMP_ACT_ALLOW", "args": [condition]}
    return Profile(f"{call:0<64}", {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})


def counts(known: dict[str, Record], name: str) -> dict[tuple[str, str], int]:
    found = reading.refusals(LAYOUT, name, known[name])
    assert found.unseen == ""
    return {(one.call, one.path): one.times for one in found.found}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    for folder in (tmp_path, tmp_path.parent):
        folder.chmod(0o755)
    path = tmp_path / "secret"
    path.touch(0o600)
    return path


def test_calls_are_counted_for_their_own_user_ids(secret: Path) -> None:
    known = recorded()
    recording.begin(LAYOUT, known)
    base = known["web"].base
    for uid in (base + 1000, base + COUNT - 1, base, base - 1, base + 2 * COUNT + 1, 1000):
        refuse(uid, secret)
    # The id 0 inside is the runtime's; the others are nobody's. A folder above may refuse the path itself.
    assert {call: times for (call, _), times in counts(known, "web").items()} == {"openat": 2, "chroot": 2}
    assert counts(known, "orders") == {}
    refuse(known["orders"].base + 1, secret)
    assert sum(counts(known, "orders").values()) == 2


def test_killed_run_is_repaired_by_the_next(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = recorded()
    kept = recording.bpf.keep
    whole = 3 + 2 * len(known) + 1
    for ended in range(whole + 1):
        steps = iter(range(whole))

        def keep(descriptor: int, path: Path, steps: Iterator[int] = steps, ended: int = ended) -> None:
            if next(steps) == ended:
                raise Killed
            kept(descriptor, path)

        with monkeypatch.context() as patched:
            patched.setattr(recording.bpf, "keep", keep)
            with contextlib.suppress(Killed):
                recording.begin(LAYOUT, known)
        recording.begin(LAYOUT, known)
        assert not recording.difference(LAYOUT, known, ())
        refuse(known["orders"].base + 1, secret)
        assert sum(counts(known, "orders").values()) == 2, ended
        recording.end(LAYOUT)
    assert not recording.folder(LAYOUT).exists()


def test_removed_environment_leaves_nothing(secret: Path) -> None:
    known = recorded()
    recording.begin(LAYOUT, known)
    records.path(LAYOUT, "web").unlink()
    left = {"orders": known["orders"]}
    what = recording.difference(LAYOUT, left, ())
    assert what == recording.Difference((), ("web",))
    recording.apply(LAYOUT, what, left)
    for which in recording.MAPS:
        with bpf.opened(recording.folder(LAYOUT) / which) as owners:
            assert bpf.value(owners, program.owner(known["web"].base), 4) is None
    refuse(known["web"].base + 1, secret)
    refuse(known["orders"].base + 1, secret)
    assert sum(counts(left, "orders").values()) == 2
    # Another environment with the same user ids begins with nothing.
    records.write(LAYOUT, "web", known["web"])
    recording.begin(LAYOUT, known)
    assert counts(known, "web") == {}


def test_arguments_that_an_own_profile_compares_are_told(secret: Path) -> None:
    known = recorded(comparing("chroot", 0))
    recording.begin(LAYOUT, known)
    refuse(known["web"].base + 1, secret)
    (one,) = [one for one in reading.refusals(LAYOUT, "web", known["web"]).found if one.call == "chroot"]
    assert one.by == "profile"
    assert one.arguments[0] != 0


def test_record_begins_anew_with_other_settings(secret: Path) -> None:
    known = recorded()
    recording.begin(LAYOUT, known)
    for name in NAMES:
        refuse(known[name].base + 1, secret)
    strict = known["web"]
    own = msgspec.structs.replace(strict, profile=comparing("chroot", 0))
    writable = msgspec.structs.replace(strict, spec=msgspec.structs.replace(strict.spec, read_only=True))
    for changed in (own, msgspec.structs.replace(strict, profile=comparing("openat", 2)), writable):
        known["web"] = changed
        assert reading.refusals(LAYOUT, "web", changed).unseen, "another's record was shown"
        assert recording.difference(LAYOUT, known, ()) == recording.Difference(("web",), ())
        recording.begin(LAYOUT, known)
        assert not recording.difference(LAYOUT, known, ())
        assert counts(known, "web") == {}
        refuse(changed.base + 1, secret)
        (one,) = [one for one in reading.refusals(LAYOUT, "web", changed).found if one.call == "chroot"]
        assert one.times == 1
        assert one.arguments[0] != 0, "the arguments that an own profile compares stay recorded"
    # The paths of others stay, though an own profile compares another argument of the call.
    refuse(known["orders"].base + 1, secret)
    assert {path for call, path in counts(known, "orders") if call == "openat"} == {str(secret)}
    recording.apply(LAYOUT, recording.Difference((), NAMES), {})
    assert not recording.folder(LAYOUT).exists()


def test_arguments_that_are_missing_are_recorded_again(secret: Path) -> None:
    known = recorded(comparing("chroot", 0))
    recording.begin(LAYOUT, known)
    with bpf.opened(recording.folder(LAYOUT) / "looks") as looks:
        bpf.put(looks, calls.number("chroot").to_bytes(4, sys.byteorder), program.look(path=0))
    assert recording.difference(LAYOUT, known, ()).add == tuple(sorted(NAMES))
    recording.begin(LAYOUT, known)
    assert not recording.difference(LAYOUT, known, ())


def test_reboot_begins_the_record_anew(secret: Path) -> None:
    known = recorded()
    kind = Environments(LAYOUT, supervision.select(LAYOUT))
    recording.begin(LAYOUT, known)
    refuse(known["web"].base + 1, secret)
    recording.end(LAYOUT)
    assert reading.refusals(LAYOUT, "web", known["web"]).unseen
    assert recorded_calls.restore(kind) == ""
    assert counts(known, "web") == {}
    refuse(known["web"].base + 1, secret)
    assert sum(counts(known, "web").values()) == 2


def test_kernel_that_refuses_a_map_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = recorded()
    create = recording.bpf.create_map
    whole = 4 + len(recording.MAPS) * len(known)
    for ended in range(whole):
        steps = iter(range(whole))

        def refused(
            kind: int,
            name: str,
            key: int,
            value: int,
            most: int,
            inner: int | None = None,
            steps: Iterator[int] = steps,
            ended: int = ended,
        ) -> int:
            if next(steps) == ended:
                raise PermissionError(1, "no map")
            return create(kind, name, key, value, most, inner)

        with monkeypatch.context() as patched:
            patched.setattr(recording.bpf, "create_map", refused)
            with pytest.raises(PermissionError, match="no map"):
                recording.begin(LAYOUT, known)
        assert not recording.folder(LAYOUT).exists(), ended


def test_end_that_was_killed_is_repaired_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    known = recorded()
    kind = Environments(LAYOUT, supervision.select(LAYOUT))
    recording.begin(LAYOUT, known)

    def killed(layout: Layout) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(recording, "end", killed)
        with pytest.raises(Killed):
            recording.apply(LAYOUT, recording.Difference((), NAMES), {})
    quiet = {name: msgspec.structs.replace(one.spec, audit=False) for name, one in known.items()}
    desired = {name: DesiredEnvironment(spec) for name, spec in quiet.items()}
    recorded_calls.converge(kind, desired, (), True)
    assert recording.folder(LAYOUT).exists(), "test=True changed something"
    assert recorded_calls.converge(kind, desired, (), False).ok
    assert not recording.folder(LAYOUT).exists()


def test_kernel_that_refuses_is_told_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    known = recorded()
    kind = Environments(LAYOUT, supervision.select(LAYOUT))

    def refused(name: str, code: bytes) -> int:
        raise PermissionError(1, "lockdown")

    monkeypatch.setattr(recording.bpf, "load_tracing", refused)
    assert "lockdown" in recorded_calls.restore(kind)
    assert not recording.folder(LAYOUT).exists()
    desired = {name: DesiredEnvironment(one.spec) for name, one in known.items()}
    result = recorded_calls.converge(kind, desired, (), False)
    assert result.ok and "lockdown" in result.plan.notes[0]
    assert reading.refusals(LAYOUT, "web", known["web"]).unseen
