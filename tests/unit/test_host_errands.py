"""Requests about children: how the peer passes them to the keeper, and how the keeper answers them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from netspace import files
from netspace.errors import NetspaceError
from netspace.host import child_records, keeper
from netspace.host import children as use_cases
from netspace.host.child_records import Child, Run
from netspace.host.children import Refused
from netspace.host.pace import Pace
from netspace.host.peer import errands, process, requests
from netspace.host.peer.errands import Errands, Way
from netspace.layout import Layout
from netspace.link import host_peer

WAY = Way("asks.web", "key", "7")
VERBS = process.verbs()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[socket.socket]:
    """A keeper's socket, at ``keeper.sock`` in a folder of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as found:
        found.bind(str(tmp_path / "keeper.sock"))
        found.listen()
        yield found


@pytest.fixture
def mine(door: socket.socket) -> Errands:
    return Errands(door.getsockname())


def request(name: str) -> requests.Request:
    body = json.dumps({"v": 1, "verb": "end", "arguments": {"name": name}}).encode()
    return requests.parse(body, len(body))


def test_request_comes_back_with_its_way(mine: Errands, door: socket.socket) -> None:
    assert mine.begin(WAY, "web", request("a")) == "" and list(mine.done(VERBS)) == []
    there, _ = door.accept()
    asked = json.loads(there.recv(4096))
    assert 0 < asked.pop("at") <= child_records.now()
    assert asked == {"id": 1, "asker": "web", "verb": "end", "arguments": {"name": "a"}}
    there.send(b'{"id": 1, "answer": {"name": "a"}, "code": "failed", "text": ""}')
    ((way, name, body, result),) = mine.done(VERBS)
    assert (way, name, result) == (WAY, "web", "end")
    assert json.loads(body) == {"v": 1, "verb": "end", "answer": {"name": "a"}}
    assert mine.begin(WAY, "web", request("b")) == ""
    there.send(b'{"id": 2, "answer": null, "code": "child-unknown", "text": "no"}')
    ((_, _, body, result),) = mine.done(VERBS)
    assert json.loads(body)["error"] == {"code": "child-unknown", "text": "no"} and result == "end child-unknown"
    there.close()


def test_waiting_requests_of_one_asker_are_bounded(mine: Errands) -> None:
    said = [mine.begin(WAY, "web", request("a")) for _ in range(errands.EACH + 1)]
    assert said == [*[""] * errands.EACH, errands.BUSY]
    assert mine.begin(WAY, "other", request("a")) == "", "another one doesn't wait for it"


def test_requests_are_refused_when_the_keeper_ends(mine: Errands, door: socket.socket) -> None:
    assert mine.begin(WAY, "web", request("a")) == ""
    door.accept()[0].close()
    ((_, _, body, result),) = mine.done(VERBS)
    assert json.loads(body)["error"]["code"] == "not-available" and result == "end not-available"
    assert mine.begin(WAY, "web", request("a")) == "", "the next request finds the next keeper"


def test_request_waits_for_a_keeper_that_is_being_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "keeper.sock"
    early = Errands(str(place))
    assert early.begin(WAY, "web", request("a")) == "" and early.unsent and not list(early.done(VERBS))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(str(place))
        door.listen()
        assert not list(early.done(VERBS)) and not early.unsent
        assert json.loads(door.accept()[0].recv(4096))["arguments"] == {"name": "a"}
    place.unlink()
    monkeypatch.setattr(errands, "PATIENCE", -1.0)
    late = Errands(str(place))
    assert late.begin(WAY, "web", request("a")) == ""
    ((_, _, body, _),) = late.done(VERBS)
    assert json.loads(body)["error"]["text"] == errands.ABSENT and not late.unsent


class Recorded:
    """A host that keeps the requests that reach it."""

    def __init__(self, verbs: tuple[str, ...] = ("spawn", "end", "children")) -> None:
        self.environments = self
        self.verbs, self.seen = verbs, list[tuple[object, ...]]()
        self.spec, self.host = self, verbs

    def recorded(self, names: list[str]) -> dict[str, Recorded]:
        return {name: self for name in names if name == "web"}

    def spawn(self, *given: object) -> tuple[str, Child]:
        self.seen.append(given)
        if given[1] == "large":
            raise Refused("template-unknown", "large: web has worker")
        return "web-worker-1", Child("web", "worker", "w", {}, 7.0, 7.0, Run("", 1, 1))

    def end(self, *given: object) -> None:
        self.seen.append(given)
        raise OSError("broken")

    def children(self, _: str) -> dict[str, Child]:
        return {"web-worker-1": Child("web", "worker", "w", {}, 7.0, 7.0, Run("", 1, 1))}


def answered(host: Recorded, verb: str, arguments: object, asker: str = "web") -> dict[str, object]:
    mine = keeper.Keeper.__new__(keeper.Keeper)
    mine._pace = Pace()
    mine._host = lambda _: host  # type: ignore[method-assign,assignment,return-value]
    mine.settle = lambda _: None  # type: ignore[method-assign,assignment,return-value]
    body = msgspec.json.encode({"id": 3, "asker": asker, "verb": verb, "at": 5.0, "arguments": arguments})
    found: dict[str, object] = json.loads(mine.answer(body))
    return found


def test_keeper_answers_each_verb() -> None:
    host, given = Recorded(), {"template": "worker", "name": "w", "values": {"a": 1}}
    row = {"name": "w", "environment": "web-worker-1", "until": 7.0}
    assert answered(host, "spawn", given)["answer"] == row
    assert host.seen == [("web", "worker", "w", {"a": 1}, 5.0)]
    assert answered(host, "children", {})["answer"] == {"children": [{**row, "template": "worker"}]}
    assert answered(host, "spawn", {**given, "template": "large"})["code"] == "template-unknown"
    assert answered(host, "end", {"name": "w"})["code"] == "failed"


def test_error_of_the_host_is_told_to_no_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Recorded()

    def broken(*_: object) -> None:
        raise NetspaceError("/var/lib/netspace/x.json: remove the file")

    monkeypatch.setattr(host, "end", broken)
    told = answered(host, "end", {"name": "w"})
    assert told["code"] == "not-available" and "/var/lib" not in str(told)
    assert "/var/lib/netspace/x.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "asker", "code"),
    [
        ({"template": "worker", "name": "../w"}, "web", "arguments-invalid"),
        ({"template": "worker", "name": "w" * 49}, "web", "arguments-invalid"),
        ({"template": "worker", "name": "w", "image": "x"}, "web", "arguments-invalid"),
        ({"template": "worker", "name": "w"}, "stranger", "verb-not-permitted"),
    ],
)
def test_keeper_believes_nothing_of_a_request(arguments: object, asker: str, code: str) -> None:
    host = Recorded()
    assert answered(host, "spawn", arguments, asker)["code"] == code and not host.seen
    assert answered(Recorded(("whoami",)), "spawn", {"template": "a", "name": "b"})["code"] == "verb-not-permitted"


@pytest.mark.parametrize("asker", ["../web", "web/..", "", "a" * 49, "web\n"])
def test_keeper_ends_for_a_name_that_no_peer_sends(asker: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        answered(Recorded(), "children", {}, asker)
    with pytest.raises(msgspec.ValidationError):
        answered(Recorded(), "reboot", {})


def test_records_of_children_tell_who_lasts(tmp_path: Path) -> None:
    layout, own = Layout(root=tmp_path), Run(files.boot_id(), os.getpid(), 1)
    there = child_records.process.stat(os.getpid())
    assert there is not None and not own.lasts()
    own = msgspec.structs.replace(own, ticks=there.ticks)
    assert own.lasts() and not msgspec.structs.replace(own, boot="other").lasts()
    child = Child("web", "worker", "w", {"a": [1]}, 7.0, 2.0**40, own)
    layout.state.mkdir(parents=True)
    child_records.write(layout, "web-worker-1", child)
    assert child_records.read(layout, "web-worker-1") == child
    assert child_records.due(layout, "web-worker-1") == "its start was interrupted"
    begun = msgspec.structs.replace(child, begun=own)
    child_records.write(layout, "web-worker-1", begun)
    assert child_records.read(layout, "web-worker-1") == begun and child_records.places(layout) == {"web-worker-1"}
    (layout.records(child_records.KIND) / "web-worker-1.json").write_text("{")
    assert child_records.read(layout, "web-worker-1") is None
    assert child_records.due(layout, "web-worker-1") == "its record is damaged"
    child_records.remove(layout, "web-worker-1")
    assert not layout.records(child_records.KIND).exists()


def test_keeper_listens_to_the_peer_alone(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    folder = host_peer.folder(layout)
    folder.mkdir(parents=True)
    for user, served in ((os.getuid(), True), (os.getuid() + 1, False)):
        mine = keeper.Keeper(layout, user if served else os.getuid())
        mine._user = user
        assert mine.settle() is None and mine._watch() and not mine._watched
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.connect(str(folder / host_peer.KEEPER))
            peer.settimeout(60)
            peer.send(b'{"id": 1, "asker": "web", "verb": "children", "at": 1.0, "arguments": {}}')
            mine._serve()
            if not served:
                with contextlib.suppress(ConnectionResetError):
                    assert peer.recv(4096) == b""
                continue
            assert b"verb-not-permitted" in peer.recv(4096), "no record permits it"
            peer.send(b"{")
            mine._serve()
            assert peer.recv(4096) == b"" and mine._way is None
        mine._door.close()
    assert use_cases.Refused("too-many", "x").code in requests.CODES


def test_keeper_never_waits_for_a_peer_that_reads_nothing(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    host_peer.folder(layout).mkdir(parents=True)
    mine = keeper.Keeper(layout, os.getuid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.connect(str(host_peer.folder(layout) / host_peer.KEEPER))
        mine._serve()
        assert mine._way is not None and not mine._way.getblocking()
        for _ in range(5000):
            if mine._way is None:
                break
            with contextlib.suppress(BlockingIOError):
                peer.send(
                    b'{"id": 1, "asker": "web", "verb": "children", "at": 1.0, "arguments": {}}', socket.MSG_DONTWAIT
                )
            mine._serve()
        assert mine._way is None, "the connection ends once no answer can be sent"
    mine._door.close()
