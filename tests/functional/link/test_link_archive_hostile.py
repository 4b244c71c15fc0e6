"""Backups of messages while the broker's user is hostile, a file is damaged, or a run is killed. No broker runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netspace import files
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.mail import archive, backup

pytestmark = pytest.mark.root

KEYS = {"key": "11" * 32, "shared": False, "pairs": {}}
OTHER_KEYS = {**KEYS, "key": "22" * 32}


class Host:
    """A host with a broker's data. Its node is a stand-in that does nothing.

    :ivar starts: whether each of the node's next starts fails; later starts succeed.
    """

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root=root)
        self.data = self.layout.broker / "data"
        self.mnesia = self.data / "mnesia"
        self.restoring = self.layout.broker / "restoring"
        self.keys = self.layout.records("link") / "names.json"
        self.user = pwd.getpwnam("rabbitmq")
        self.file = root / "mail.tar"
        self.starts: list[bool] = []
        self.running = True
        self.layout.broker.mkdir(parents=True, mode=0o755)
        (self.mnesia / "queues").mkdir(parents=True)
        for number in range(6):
            (self.mnesia / f"queues/{number}").write_bytes(b"%d" % number * 3000)
        self.own()
        files.write_json(self.keys, KEYS)

    def own(self) -> None:
        for path in (self.data, *self.data.rglob("*")):
            os.chown(path, self.user.pw_uid, self.user.pw_gid, follow_symlinks=False)

    def stop(self, _: Any) -> dict[str, str]:
        self.running = False
        return {}

    def start(self, *_: Any) -> None:
        if self.starts and self.starts.pop(0):
            raise NetspaceError("the broker ended while starting")
        self.running = True

    def save(self) -> None:
        backup.save(self.layout, self, self.file, print)  # type: ignore[arg-type]

    def load(self) -> None:
        backup.load(self.layout, self, self.file, print)  # type: ignore[arg-type]

    def send(self, text: str) -> None:
        (self.mnesia / "queues/mail").write_text(text)
        self.own()

    @property
    def mail(self) -> str:
        return (self.mnesia / "queues/mail").read_text()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    root = Path(tempfile.mkdtemp(prefix="netspace-mail-", dir="/var/tmp"))  # the broker's user can get there
    root.chmod(0o755)
    made = Host(root)
    monkeypatch.setattr(backup, "_own", lambda _: None)
    monkeypatch.setattr(backup.node, "start", made.start)
    try:
        yield made
    finally:
        shutil.rmtree(root)


def killed(host: Host, at: Callable[[pytest.MonkeyPatch, Callable[..., None]], None]) -> None:
    """Restore the messages in a process; *at* patches the step at which the process is killed."""
    child = os.fork()
    if not child:
        try:
            at(pytest.MonkeyPatch(), lambda *_, **__: os._exit(9))
            host.load()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, "it wasn't killed"


# -- a hostile broker --------------------------------------------------------------


def test_what_root_restores_lies_where_the_brokers_user_gets_only_once_the_node_is_down(host, monkeypatch):
    host.save()

    def down(_: object) -> None:
        found = [path for path in host.layout.broker.rglob("5") if path.is_file()]
        assert len(found) == 2, "the present file and the restored one"
        seen = subprocess.run(
            ["find", host.layout.broker, "-name", "5"],
            user="rabbitmq",
            group="rabbitmq",
            extra_groups=(),
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        assert seen == [str(host.mnesia / "queues/5")]
        (restored,) = {path.relative_to(host.layout.broker).parts[0] for path in found} - {"data"}
        outer = (host.layout.broker / restored).stat()
        assert (outer.st_uid, outer.st_mode & 0o777) == (0, 0o700), "and nobody else can exchange what is in it"

    monkeypatch.setattr(backup, "_down", down)
    host.load()
    assert not host.restoring.exists()
    assert {path.lstat().st_uid for path in host.mnesia.rglob("*")} == {host.user.pw_uid}


def test_a_link_in_place_of_the_data_is_neither_saved_nor_replaced(host):
    host.save()
    other = host.data / "other"
    host.mnesia.rename(other)
    host.mnesia.symlink_to("other")
    for what in (host.save, host.load):
        with pytest.raises(NetspaceError, match="expected a folder that belongs to the broker's user"):
            what()
        assert host.running and host.mnesia.is_symlink() and (other / "queues/5").exists()
    assert not host.restoring.exists()


def test_a_link_that_takes_the_place_of_the_data_at_the_last_moment_is_put_back(host, monkeypatch):
    host.save()
    folder = archive.opened_folder
    checked: list[str] = []

    @contextlib.contextmanager
    def swapped(path: Path | str, within: int | None = None) -> Iterator[int]:
        with folder(path, within) as handle:
            yield handle
        if path == "mnesia" and not checked:
            checked.append(path)
            host.mnesia.rename(host.data / "other")
            host.mnesia.symlink_to("/etc")

    monkeypatch.setattr(archive, "opened_folder", swapped)
    with pytest.raises(NetspaceError, match="expected a folder that belongs to the broker's user"):
        host.load()
    assert host.mnesia.is_symlink() and not host.restoring.exists()


@pytest.mark.parametrize("kind", ["link", "link to its own", "hard link", "pipe", "socket", "root's", "too deep"])
def test_what_rabbitmq_does_not_make_is_refused_in_a_backup_and_nothing_of_it_is_left(host, kind):
    strange = host.mnesia / "queues/strange"
    if kind == "link":
        strange.symlink_to("/etc/shadow")
    elif kind == "link to its own":
        (host.data / "cookie").write_text("secret")
        strange.symlink_to("../../cookie")
    elif kind == "hard link":
        os.link(host.mnesia / "queues/5", strange)
    elif kind == "pipe":
        os.mkfifo(strange)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(strange))
    elif kind == "too deep":
        strange.joinpath(*["x"] * 40).mkdir(parents=True)
    host.own()
    if kind == "root's":
        strange.write_text("root's")
    with pytest.raises(NetspaceError, match=r"the broker's data: .*'mnesia/queues/"):
        host.save()
    assert host.running and not host.file.exists() and not host.file.with_name(".mail.tar.new").exists()


def test_names_that_change_hands_while_root_saves_put_nothing_of_roots_into_the_file(host, tmp_path):
    secret = host.layout.root / "secret"
    secret.write_text("root's alone" * 100)
    secret.chmod(0o600)
    for number in range(100, 300):
        (host.mnesia / f"queues/{number}").write_bytes(b"x" * 1200)
    host.own()
    swap = f"""
import ctypes, os
os.chdir({str(host.mnesia / "queues")!r})
os.symlink({str(secret)!r}, "../../link")
libc = ctypes.CDLL(None)
print(flush=True)
while True:
    libc.renameat2(-100, b"200", -100, b"../../link", 2)
"""
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", swap], stdout=subprocess.PIPE, user="rabbitmq", group="rabbitmq", extra_groups=()
    ) as hostile:
        try:
            assert hostile.stdout is not None and hostile.stdout.readline()
            for _ in range(40):
                try:
                    host.save()
                except NetspaceError:
                    continue
                assert b"root's alone" not in host.file.read_bytes()
        finally:
            hostile.kill()


# -- a damaged file ----------------------------------------------------------------


def test_a_file_that_is_cut_or_changed_anywhere_is_refused_before_the_broker_stops(host, monkeypatch):
    host.send("present")
    host.save()
    whole = host.file.read_bytes()
    with tarfile.open(host.file) as made:
        members = made.getmembers()
    assert [members[0].name, members[-1].name] == ["about.json", "end.json"]
    cut = [whole[: at + more] for at in (one.offset for one in members) for more in (0, 100)]
    flipped = []
    for one in members:
        for at in (one.offset + 2, one.offset + 150, one.offset_data, one.offset_data + one.size - 1):
            flipped.append(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
    ends = [one.offset for one in members] + [members[-1].offset + 1024]
    parts = [whole[start:end] for start, end in itertools.pairwise(ends)]
    moved = [
        b"".join([*parts[:3], *parts[4:]]),
        b"".join([*parts[:3], parts[4], parts[3], *parts[5:]]),
        b"".join([*parts[:-1], parts[-2], parts[-1]]),
        b"".join([*parts, parts[-2]]),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(backup, "_down", lambda _: pytest.fail("the broker was stopped"))
        for content in (*cut, *flipped, *(one + bytes(10240) for one in moved)):
            assert content != whole
            host.file.write_bytes(content)
            with pytest.raises(NetspaceError, match=r"mail\.tar: "):
                host.load()
            assert not host.restoring.exists()
    host.file.write_bytes(b"".join(parts) + bytes(10240))
    host.load()


def test_keys_that_cannot_be_used_are_refused_before_the_broker_stops(host, monkeypatch):
    files.write_json(host.keys, {"key": "no hex"})
    host.save()
    monkeypatch.setattr(backup, "_down", lambda _: pytest.fail("the broker was stopped"))
    with pytest.raises(NetspaceError, match="its keys for the names of queues can't be used; take another backup"):
        host.load()


# -- a lack of space ---------------------------------------------------------------


def test_without_room_nothing_is_written_and_the_broker_runs(host, monkeypatch):
    host.send("saved")
    host.save()
    host.send("present")
    before = host.file.read_bytes()
    usage = shutil.disk_usage(host.file)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: usage._replace(free=archive.RESERVE + 1000))
    for what in (host.save, host.load):
        with pytest.raises(NetspaceError, match="no room for"):
            what()
    assert host.running and host.mail == "present" and host.file.read_bytes() == before
    assert not host.restoring.exists() and not host.file.with_name(".mail.tar.new").exists()


def test_a_folder_is_no_target_and_a_target_that_cannot_be_replaced_leaves_nothing(host, monkeypatch):
    host.file.mkdir()
    with pytest.raises(NetspaceError, match="it is a folder; name a file"):
        host.save()
    monkeypatch.setattr(backup, "_writable", lambda _: None)
    with pytest.raises(NetspaceError, match="the system refuses"):
        host.save()
    assert host.running and not host.file.with_name(".mail.tar.new").exists()


# -- the former mail ---------------------------------------------------------------


@pytest.fixture
def saved(host: Host) -> Host:
    host.send("saved")
    host.save()
    host.send("present")
    files.write_json(host.keys, OTHER_KEYS)
    return host


def test_the_restored_mail_brings_its_keys(saved):
    saved.load()
    assert (saved.mail, files.read_json(saved.keys)) == ("saved", KEYS)


def test_a_broker_without_data_gets_those_of_the_file(saved):
    shutil.rmtree(saved.mnesia)
    saved.load()
    assert saved.mail == "saved" and not saved.restoring.exists()


@pytest.mark.parametrize("keys", [OTHER_KEYS, None])
def test_if_the_broker_does_not_start_the_former_mail_and_keys_are_put_back(saved, keys):
    if keys is None:
        saved.keys.unlink()
    saved.starts = [True]
    with pytest.raises(NetspaceError, match="ended while starting"):
        saved.load()
    assert (saved.mail, files.read_json(saved.keys), saved.running) == ("present", keys, True)
    assert not saved.restoring.exists()


def stopped(patched: pytest.MonkeyPatch, end: Callable[..., None]) -> None:
    patched.setattr(backup, "_note", end)


def noted(patched: pytest.MonkeyPatch, end: Callable[..., None]) -> None:
    patched.setattr(backup.names, "adopt", end)


def adopted(patched: pytest.MonkeyPatch, end: Callable[..., None]) -> None:
    patched.setattr(backup, "_exchange", end)


def exchanged(patched: pytest.MonkeyPatch, end: Callable[..., None]) -> None:
    patched.setattr(backup.node, "start", end)


def started(patched: pytest.MonkeyPatch, end: Callable[..., None]) -> None:
    patched.setattr(backup, "_drop", lambda place: end() if place.exists() else None)


def dropping(patched: pytest.MonkeyPatch, end: Callable[..., None]) -> None:
    patched.setattr(backup.shutil, "rmtree", end)


@pytest.mark.parametrize("step", [stopped, noted, adopted, exchanged, started, dropping])
def test_a_restoration_that_was_killed_is_repaired_by_the_next_one(saved, step):
    killed(saved, step)
    assert saved.mail == ("saved" if step in (exchanged, started, dropping) else "present")
    saved.load()
    assert (saved.mail, files.read_json(saved.keys)) == ("saved", KEYS)
    assert not saved.restoring.exists()


@pytest.mark.parametrize("step", [stopped, noted, adopted, exchanged, started, dropping])
def test_a_file_that_is_no_archive_changes_nothing_after_a_killed_restoration(saved, step):
    killed(saved, step)
    kept, good = saved.mail, saved.file.read_bytes()
    saved.file.write_bytes(b"no such file")
    with pytest.raises(NetspaceError, match="not an archive of mail"):
        saved.load()
    assert saved.mail == kept
    saved.file.write_bytes(good)
    saved.load()
    assert saved.mail == "saved" and not saved.restoring.exists()


@pytest.mark.parametrize("step", [exchanged, started])
def test_mail_that_a_killed_restoration_replaced_comes_back_if_the_broker_does_not_start_with_the_other(saved, step):
    killed(saved, step)
    saved.starts = [True, False, True]  # with the restored mail, with the former, and with what is restored now
    with pytest.raises(NetspaceError):
        saved.load()
    assert (saved.mail, files.read_json(saved.keys), saved.running) == ("present", OTHER_KEYS, True)
    assert not saved.restoring.exists()
