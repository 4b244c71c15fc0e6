"""All messages of a host in one archive: a restore is complete, and an invalid archive is refused without a change."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from support.links.link_world import World
from support.sampling import EVERY, todays

from netspace.errors import NetspaceError
from netspace.link.broker import versions
from netspace.link.mail import backup
from netspace.spec.types import Link

pytestmark = pytest.mark.root

LINK = Link(source="web", target="orders")


@pytest.fixture(scope="module")
def linked(world: World) -> World:
    world.environment("web", "orders")
    world.apply(LINK)
    return world


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / "mail.tar"


def waiting(world: World) -> list[bytes]:
    """Read all messages that wait for ``orders``."""
    found = []
    with world.client("orders") as channel:
        while True:
            method, _, body = channel.basic_get(world.n("mailbox.orders"), auto_ack=True)
            if method is None:
                return found
            found.append(body)


def send(world: World, *texts: bytes) -> None:
    with world.client("web") as channel:
        channel.confirm_delivery()
        for text in texts:
            channel.basic_publish(world.n("link.web.orders"), "", text, mandatory=True)


def load(world: World, file: Path) -> None:
    backup.load(world.layout, world.supervisor, file, lambda _: None)


def test_mail_comes_back_also_where_all_names_are_others(linked, file):
    texts = [b"letter %d" % number for number in range(100)]
    send(linked, *texts)
    made = backup.save(linked.layout, linked.supervisor, file, lambda _: None)
    assert made == {"file": str(file), "size": file.stat().st_size} and file.stat().st_mode & 0o777 == 0o600
    assert waiting(linked) == texts
    send(linked, b"since then")
    # As on a host that was made anew, all names are others by now.
    (linked.layout.records("link") / "names.json").unlink()
    linked.apply(LINK)
    load(linked, file)
    linked.apply(LINK)
    assert not linked.plan(LINK).steps
    assert waiting(linked) == texts
    send(linked, b"and on")
    assert waiting(linked) == [b"and on"]


def test_what_is_no_such_file_changes_nothing(linked, file):
    waiting(linked)
    send(linked, b"here")
    pid = linked.supervisor.observe()["broker"].pid
    about = {"netspace": 1, "instance": linked.layout.instance, "rabbitmq": list(versions.server()), "names": {}}

    def packed(first: object, *members: tuple[str, bytes]) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as made:
            content = json.dumps(first).encode()
            head = tarfile.TarInfo("about.json")
            head.size = len(content)
            made.addfile(head, io.BytesIO(content))
            for name, kind in members:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, "/etc/passwd"
                made.addfile(member)
        return stream.getvalue()

    for content, why in (
        (b"", "not an archive of mail"),
        (b"\0" * 10240, "not an archive of mail"),
        (b"rubbish" * 1000, "not an archive of mail"),
        (packed([]), "not an archive of mail"),
        (packed({**about, "instance": "other"}), "its instance is 'other'"),
        (packed({**about, "rabbitmq": [99, 0, 0]}), "RabbitMQ 99.0.0; install that version"),
        (packed({**about, "rabbitmq": ["4"]}), "install that version"),
        (packed({**about, "names": None}), "lacks the keys for the broker's names"),
        (packed(about, ("mnesia/../../x", tarfile.REGTYPE)), "is not part of an archive of mail"),
        (packed(about, ("/etc/x", tarfile.REGTYPE)), "is not part of an archive of mail"),
        (packed(about, ("plugins/x", tarfile.REGTYPE)), "is not part of an archive of mail"),
        (packed(about, ("mnesia/x", tarfile.SYMTYPE)), "is not part of an archive of mail"),
        (packed(about, ("mnesia/x", tarfile.LNKTYPE)), "is not part of an archive of mail"),
        (packed(about, ("mnesia/x", tarfile.FIFOTYPE)), "is not part of an archive of mail"),
    ):
        file.write_bytes(content)
        file.chmod(0o600)
        with pytest.raises(NetspaceError, match=why):
            load(linked, file)
    file.chmod(0o666)
    with pytest.raises(NetspaceError, match="a file that belongs to root"):
        load(linked, file)
    with pytest.raises(NetspaceError, match="No such file"):
        load(linked, file.with_name("none"))
    with pytest.raises(NetspaceError, match="an absolute path"):
        backup.save(linked.layout, linked.supervisor, Path("mail.tar"), lambda _: None)
    assert linked.supervisor.observe()["broker"].pid == pid, "the broker was not stopped for any of them"
    assert not (linked.layout.broker / "restoring").exists()
    assert waiting(linked) == [b"here"]


@pytest.mark.parametrize("moment", todays(["stopped", "exchanged"], 2, every=EVERY))
def test_killed_restoration_is_finished_by_the_next_apply(linked, file, monkeypatch, moment):
    waiting(linked)
    send(linked, b"saved")
    backup.save(linked.layout, linked.supervisor, file, lambda _: None)
    waiting(linked)
    send(linked, b"later")

    child = os.fork()
    if not child:
        try:
            where, step = (backup, "_exchange") if moment == "stopped" else (backup.node, "start")
            monkeypatch.setattr(where, step, lambda *_, **__: os._exit(9))
            load(linked, file)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    linked.apply(LINK)
    assert waiting(linked) == [b"later" if moment == "stopped" else b"saved"]
    backup._drop(linked.layout.broker / "restoring")  # as the next restoration does


def test_if_the_broker_does_not_start_with_the_restored_mail_it_goes_on_with_the_former(linked, file, monkeypatch):
    waiting(linked)
    send(linked, b"saved")
    backup.save(linked.layout, linked.supervisor, file, lambda _: None)
    waiting(linked)
    send(linked, b"later")
    start = backup.node.start
    begun: list[bool] = []

    def failing(*told: Any) -> None:
        start(*told)
        begun.append(True)
        if len(begun) == 1:
            raise NetspaceError("the broker ended while starting")

    with monkeypatch.context() as patched, pytest.raises(NetspaceError, match="ended while starting"):
        patched.setattr(backup.node, "start", failing)
        load(linked, file)
    assert len(begun) == 2 and not linked.plan(LINK).steps
    assert not (linked.layout.broker / "restoring").exists()
    assert waiting(linked) == [b"later"]
