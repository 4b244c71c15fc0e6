"""Ledger of runs with a real (software) TPM: kept, proved, repaired after a crash, and forged by root."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.attestation.ledger_forge import digest, run

from netspace.attestation import refusals
from netspace.attestation.evidence import Context, parse
from netspace.attestation.minion import run_ledger, self_appraisal, settings
from netspace.attestation.tpm import device as tpm
from netspace.attestation.tpm import structures
from netspace.attestation.verifier import ledger_rules
from netspace.attestation.verifier.ledger_rules import Judged
from netspace.layout import Layout
from netspace.ledger import entries, journal, nv_index, nv_public, setting
from netspace.ledger.nv_index import IndexFailure
from netspace.spec.types import Attestation


@dataclass
class Host:
    layout: Layout
    tpm: Any
    asked: int = 0

    @property
    def path(self) -> Path:
        return Path(self.tpm.folder) / "tpm"

    def start(self, *names: str, image: str = "good") -> None:
        journal.note_starts(self.layout, {name: run(name, image) for name in names})

    def judge(self, before: Judged | None = None) -> Judged:
        """Let the verifier ask for the ledger's entries after those it has judged already, and judge them.

        :param before: the earlier judgement; None: the whole ledger is judged.
        """
        self.asked += 1
        boot = (self.layout.root / "proc/sys/kernel/random/boot_id").read_text().strip()
        context = Context("verifier", "host", f"session {self.asked}", os.urandom(32), binding=boot.encode())
        asked = {"boot": "", "first": 0} if before is None else {"boot": before.state.boot, "first": before.state.count}
        chosen = settings.of(Attestation(tpm=self.tpm.tcti, pcrs=(0, 1)))
        made = self_appraisal.evidence(
            self.layout, chosen, context, ledger=run_ledger.certify(self.layout, asked)
        ).wire()
        evidence = parse(made)
        if evidence.ledger is None:
            raise refusals.NoLedger("none")
        clock = structures.quote(evidence.attest).clock
        return ledger_rules.judged(evidence.ledger, (structures.public(evidence.key), clock), context, before)

    def root(self, work: Callable[[nv_index.Send], None]) -> None:
        """Run *work* with access to the TPM itself, which root has."""
        with nv_index.opened(self.path, 5) as send:
            work(send)

    def auth(self) -> bytes:
        found = setting.setting(self.layout)
        assert found is not None
        return found.auth

    def lines(self) -> list[bytes]:
        return entries.split(journal.content(self.layout))

    def put(self, lines: list[bytes]) -> None:
        """Replace the ledger's log by these lines, and the record of the log's end."""
        state = entries.last(lines)
        (journal.folder(self.layout) / "log").write_bytes(b"".join(lines))
        size = sum(map(len, lines))
        journal._save(self.layout, journal._Head(state.boot, state.count, state.head, size, state.declared))


@pytest.fixture
def host(layout: Layout, make_tpm: Callable) -> Host:
    made = Host(layout, make_tpm())
    run_ledger.set_up(layout, made.tpm.tcti)
    return made


def running(found: Judged) -> set[str]:
    return set(found.state.running)


def test_starts_and_ends_are_proved(host: Host) -> None:
    journal.note_declaration(host.layout, digest("declaration"))
    journal.note_declaration(host.layout, digest("declaration"))
    host.start("web", "orders")
    first = host.judge()
    assert running(first) == {"web", "orders"} and first.state.declared == digest("declaration")
    assert first.state.count == 3, "the same declaration is recorded once"
    assert first.state.running["web"].certificate == run("web").certificate
    journal.note_ends(host.layout, ["web", "unknown"])
    journal.note_ends(host.layout, ["web"])
    second = host.judge(first)
    assert running(second) == {"orders"} and second.state.count == 4
    assert host.judge(second) == second
    assert host.judge() == second, "another verifier replays it from the beginning"


def test_setting_is_readable_by_root_alone(host: Host) -> None:
    assert setting.path(host.layout).stat().st_mode & 0o777 == 0o600
    for name in ("log", "head.json"):
        assert (journal.folder(host.layout) / name).stat().st_mode & 0o777 == 0o600


def test_settle_records_what_nobody_recorded(host: Host) -> None:
    host.start("web", "orders")
    journal.settle(host.layout, {"orders": lambda: None, "found": lambda: run("found"), "unreadable": lambda: None})
    assert running(host.judge()) == {"orders", "found"}


# -- crashes -----------------------------------------------------------------------


class Killed(BaseException):
    pass


POINTS = ("before the line", "half a line", "before the extension", "after the extension", "between two extensions")


@pytest.mark.parametrize("point", POINTS)
def test_crash_is_repaired_by_the_next_run(host: Host, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host.start("first")
    before, names = host.judge(), ["web"] if point != "between two extensions" else [f"e{n}" for n in range(300)]
    genuine, write, save = nv_index.extend, journal._write, journal._save
    extended: list[bytes] = []

    def kill(*_: Any) -> None:
        raise Killed

    def half(path: Path, raw: bytes) -> None:
        write(path, raw[: len(raw) // 2])
        raise Killed

    def once(*given: Any) -> None:
        if extended:
            raise Killed
        extended.append(given[2])
        genuine(*given)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_write", {"before the line": kill, "half a line": half}.get(point, write))
        patch.setattr(
            nv_index, "extend", {"before the extension": kill, "between two extensions": once}.get(point, genuine)
        )
        # The position is saved by the killed process in none of these cases.
        patch.setattr(journal, "_save", kill if "extension" in point else save)
        with pytest.raises(Killed):
            host.start(*names)
    found = host.judge(before)
    lost = point in ("before the line", "half a line")
    assert running(found) == {"first", *([] if lost else names)}
    host.start("later")
    after = host.judge(found)
    assert "later" in running(after) and host.judge() == after


def test_crash_at_the_first_line_loses_no_start(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.forget(host.layout)
    run_ledger.set_up(host.layout, host.tpm.tcti)
    journal.forget(host.layout)
    host.root(lambda send: (nv_index.undefine(send), nv_index.define(send, host.auth())))
    with monkeypatch.context() as patch:
        patch.setattr(nv_index, "extend", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            host.start("web")
    host.start("orders")
    assert running(host.judge()) == {"web", "orders"}


def test_busy_tpm_delays_no_start(host: Host) -> None:
    held, release = threading.Event(), threading.Event()

    def work(_: tpm.Device) -> None:
        held.set()
        release.wait(20)

    other = threading.Thread(
        target=lambda: tpm.run(host.tpm.tcti, work, lock=self_appraisal.lock_path(host.layout)), daemon=True
    )
    other.start()
    assert held.wait(10)
    began = time.monotonic()
    host.start("web")
    assert time.monotonic() - began < journal.PATIENCE + 5
    release.set()
    other.join()
    assert running(host.judge()) == {"web"}


def test_tpm_that_hangs_delays_no_start(host: Host) -> None:
    host.tpm.pause()
    host.start("web")
    host.tpm.stop()
    host.tpm.start()  # a reset: the value is gone, so this boot has no proof any more
    with pytest.raises((refusals.NoLedger, refusals.LedgerMismatch)):
        host.judge()


def test_new_boot_begins_again(host: Host) -> None:
    host.start("web")
    before = host.judge()
    host.tpm.stop()
    host.tpm.start()
    (host.layout.root / "proc/sys/kernel/random/boot_id").write_text("second\n")
    host.start("orders")
    after = host.judge(before)
    assert running(after) == {"orders"} and after.state.boot == "second" and after.epoch != before.epoch


# -- what root can do ----------------------------------------------------------------


def again(host: Host, lines: list[bytes]) -> None:
    """Delete and define the TPM's index again, and extend it by these lines."""

    def work(send: nv_index.Send) -> None:
        nv_index.undefine(send)
        nv_index.define(send, host.auth())
        for line in lines:
            nv_index.extend(send, host.auth(), entries.measured(line))

    host.root(work)
    host.put(lines)


def ordinary(host: Host, value: bytes) -> None:
    """Replace the index by an ordinary one of the same number, to which root can write any value."""

    def work(send: nv_index.Send) -> None:
        nv_index.undefine(send)
        area = nv_public.public(nv_public.ATTRIBUTES & ~(15 << 4))
        auth = host.auth()
        given = struct.pack(">H", len(auth)) + auth + struct.pack(">H", len(area)) + area
        nv_index._command(send, nv_index._DEFINE, (nv_index.OWNER,), b"", given)
        content = struct.pack(">H", len(value)) + value + bytes(2)
        nv_index._command(send, 0x137, (nv_public.INDEX, nv_public.INDEX), auth, content)

    host.root(work)


def swapped(lines: list[bytes]) -> list[bytes]:
    return [line.replace(run("").image.encode(), digest("image evil").encode()) for line in lines]


def of_another_boot(host: Host) -> None:
    again(host, [entries.boot("zero"), *host.lines()[1:]])
    journal._save(host.layout, journal._Head("first", 3, entries.last(host.lines()).head, 10**6))


FORGERIES: dict[str, tuple[Callable[[Host], None], str, bool]] = {
    "swapped image": (lambda host: host.put(swapped(host.lines())), "ledger-mismatch", True),
    "dropped line": (lambda host: host.put([host.lines()[0], *host.lines()[2:]]), "ledger-mismatch", True),
    "other order": (lambda host: host.put([host.lines()[0], *host.lines()[:0:-1]]), "ledger-mismatch", True),
    "cut short": (lambda host: host.put(host.lines()[:-1]), "ledger-mismatch", True),
    "index made again, and shorter": (lambda host: again(host, host.lines()[:-1]), "ledger-rolled-back", False),
    "index made again, another image": (lambda host: again(host, swapped(host.lines())), "ledger-rolled-back", False),
    "another kind of index": (lambda host: ordinary(host, entries.last(host.lines()).head), "ledger-index", True),
    "lines of another boot": (of_another_boot, "ledger-boot", True),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_by_root_is_refused(host: Host, name: str) -> None:
    host.start("web")
    host.start("orders")
    before = host.judge()
    forge, code, also_unknown = FORGERIES[name]
    forge(host)
    with pytest.raises(refusals.Refused) as refused:
        _whole(host, Judged(before.epoch, before.state, whole=False))
    assert refused.value.code in (code, "ledger-rolled-back")
    if also_unknown:  # also by a verifier that has judged nothing before
        with pytest.raises(refusals.Refused) as refused:
            _whole(host, None)
        assert refused.value.code == code


def _whole(host: Host, before: Judged | None) -> Judged:
    """Judge the whole ledger again, without the earlier judgement."""
    genuine = run_ledger.lines
    try:
        run_ledger.lines = lambda layout, asked: genuine(layout, {"boot": "", "first": 0})  # type: ignore[assignment]
        return host.judge(before)
    finally:
        run_ledger.lines = genuine


def test_index_without_its_authorization_is_not_extended(host: Host) -> None:
    host.start("web")

    def work(send: nv_index.Send) -> None:
        for auth in (b"", b"x" * 32):
            with pytest.raises(IndexFailure):
                nv_index.extend(send, auth, bytes(32))
            with pytest.raises(IndexFailure):
                nv_index.read(send, auth)
        with pytest.raises(IndexFailure):  # the owner
            content = struct.pack(">H", 32) + bytes(32)
            nv_index._command(send, 0x136, (nv_index.OWNER, nv_public.INDEX), b"", content)

    host.root(work)
    assert running(host.judge()) == {"web"}


def test_index_of_somebody_else_is_left_alone(layout: Layout, make_tpm: Callable) -> None:
    host = Host(layout, make_tpm())
    area = nv_public.public(nv_public.ATTRIBUTES | 2)

    def work(send: nv_index.Send) -> None:
        given = bytes(2) + struct.pack(">H", len(area)) + area
        nv_index._command(send, nv_index._DEFINE, (nv_index.OWNER,), b"", given)

    host.root(work)
    with pytest.raises(IndexFailure, match="other properties"):
        run_ledger.set_up(layout, host.tpm.tcti)
    assert not setting.enabled(layout)


def test_removal_leaves_no_index(host: Host) -> None:
    host.start("web")
    run_ledger.remove(host.layout)
    found: list[int | None] = []
    host.root(lambda send: found.append(nv_index.attributes(send)))
    assert found == [None] and not setting.enabled(host.layout)
    host.start("orders")
    assert not journal.content(host.layout)


def test_full_ledger_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "MOST_LINES", 4)
    for number in range(6):
        host.start(f"e{number}")
    found = host.judge()
    assert found.state.full and len(found.state.running) < 6
    journal.note_ends(host.layout, ["e0"])
    assert host.judge(found) == found
