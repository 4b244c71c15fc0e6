"""Outcomes of the bridge, for each error of a link, each response of a local server and each exit status."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import create_autospec

import pytest

from netspace_client import card, errors
from netspace_client.bridge import worker
from netspace_client.bridge.execute import Execute
from netspace_client.bridge.forward import Forward
from netspace_client.bridge.message import Request, header_value
from netspace_client.bridge.server import Server
from netspace_client.bridge.wire import BODY
from netspace_client.bridge.worker import Done
from netspace_client.mailbox import Mailbox
from netspace_client.message import Message

BROKER = card.Broker("127.0.0.1", 5671, "v")
CARD = card.Card(
    "web",
    peers={
        "orders": card.Peer("orders", "request", "x1", BROKER),
        "audit@h2": card.Peer("audit@h2", "send", "x2", BROKER, local="log"),
    },
)


def mailbox() -> Any:
    made = create_autospec(Mailbox, instance=True)
    made.card = CARD
    return made


@pytest.mark.parametrize("name", ["log", "audit@h2"])
def test_a_url_has_the_peer_s_local_name_or_its_own(name: str) -> None:
    box = mailbox()
    box.send.return_value = "id 1"
    found = asyncio.run(Server(box).answer(Request(b"POST", f"/{name}/x".encode())))
    assert found.status == 202
    assert box.send.await_args.args[0] == name


@pytest.mark.parametrize("raw", ["log", "audit@h2"])
@pytest.mark.parametrize("name", ["log", "audit@h2"])
def test_peer_that_runs_no_bridge_is_known_by_each_of_its_names(name: str, raw: str) -> None:
    box = mailbox()
    box.send.return_value = "id 1"
    asyncio.run(Server(box, raw=[raw]).answer(Request(b"POST", f"/{name}/x".encode(), body=b"sold")))
    assert box.send.await_args.args[1] == b"sold"


def test_local_name_is_told_to_no_peer() -> None:
    box = mailbox()
    box.send.return_value = "id 1"
    asyncio.run(Server(box).answer(Request(b"POST", b"/log/x")))
    assert b"host: audit@h2\r\n" in box.send.await_args.args[1].lower()


def message(body: bytes = b"a body", kind: str | None = "text/plain; charset=utf-8", *, asks: bool = False) -> Any:
    made = create_autospec(Message, instance=True)
    made.sender, made.id, made.body, made.content_type = "web", "id 1", body, kind
    made.redelivered, made.wants_reply = False, asks
    return made


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NotDeclared, 404),
        (errors.Revoked, 410),
        (errors.Refused, 413),
        (errors.TooFast, 429),
        (errors.MailboxFull, 503),
        (errors.Timeout, 504),
        (errors.Unreachable, 502),
        (errors.NotAdmitted, 502),
        (errors.SealError, 502),
    ],
)
def test_each_error_of_a_link_is_a_status(error: type[errors.LinkError], status: int) -> None:
    box = mailbox()
    box.call.side_effect = error("so it is")
    found = asyncio.run(Server(box).answer(Request(b"GET", b"/orders/books")))
    assert found.status == status
    assert found.body == f"netspace: {error.__name__}: so it is\n".encode()


async def over_http(box: Any, raw: bytes) -> bytes:
    """Send bytes to the bridge's server; return all bytes of its response."""
    listening = await Server(box).listen("127.0.0.1", 0)
    async with listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname()[:2])
        writer.write(raw)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return answer


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("text/plain; charset=utf-8", b"text/plain; charset=utf-8"),
        ("text/html\n", b"text/html?"),
        ("a\r\nnetspace-sender: root", b"a??netspace-sender: root"),
        (None, b"application/octet-stream"),
        ("\N{SNOWMAN} ", b"?"),
    ],
)
def test_type_of_an_answer_is_one_header_whatever_the_peer_says(kind: str | None, shown: bytes) -> None:
    box = mailbox()
    box.call.return_value = message(b"made", kind)
    answer = asyncio.run(over_http(box, b"GET /orders HTTP/1.1\r\nhost: a\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\nmade")
    assert b"\r\ncontent-type: " + shown + b"\r\n" in answer
    assert b"\r\nnetspace-sender" not in answer


def test_body_beyond_the_bound_is_refused() -> None:
    box = mailbox()
    head = b"POST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: 8388609\r\n\r\n"
    assert asyncio.run(over_http(box, head + bytes(8 * 1024 * 1024 + 1))).startswith(b"HTTP/1.1 413 ")
    box.call.assert_not_called()


async def forwarded(answer: bytes, one: Any) -> tuple[Done, bytes]:
    """Send a message to a server that responds with *answer*; return the outcome, and the server's request."""
    got = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await Forward(f"http://127.0.0.1:{port}/hook", timeout=20)(one), bytes(got)


@pytest.mark.parametrize(
    ("status", "how"),
    [(200, "done"), (302, "done"), (399, "done"), (400, "never"), (404, "never"), (500, "later"), (503, "later")],
)
def test_status_of_the_local_server_decides(status: int, how: str) -> None:
    done, got = asyncio.run(forwarded(b"HTTP/1.1 %d x\r\ncontent-length: 2\r\n\r\nok" % status, message()))
    assert done.how == how
    assert done.answer is not None and done.answer[0].endswith(b"\r\n\r\nok")
    assert b"\r\ncontent-type: text/plain; charset=utf-8\r\n" in got.lower()
    assert b"\r\nnetspace-message-id: id 1\r\n" in got.lower()


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 ok\r\ncontent-length: 9\r\n\r\nok", b"no HTTP\r\n\r\n", b"HTTP/1.1 100 go on\r\n\r\n"],
    ids=["nothing", "cut off", "other bytes", "only an interim response"],
)
def test_server_that_gives_no_response_is_tried_again(answer: bytes) -> None:
    done, _ = asyncio.run(forwarded(answer, message()))
    assert done.how == "later"
    assert done.answer is not None and b" 502 " in done.answer[0].splitlines()[0]


def test_interim_response_comes_before_the_response() -> None:
    answer = b"HTTP/1.1 103 early hints\r\n\r\nHTTP/1.1 201 made\r\ncontent-length: 0\r\n\r\n"
    done, _ = asyncio.run(forwarded(answer, message()))
    assert done.how == "done"


@pytest.mark.parametrize(
    ("script", "how"),
    [("cat", "done"), ("exit 65", "never"), ("exit 1", "later"), ("kill -9 $$", "later")],
)
def test_end_of_a_program_decides(script: str, how: str) -> None:
    done = asyncio.run(Execute(["/bin/sh", "-c", script], timeout=20)(message(b"sold")))
    assert done.how == how
    assert (done.answer or (None,))[0] == (b"sold" if how == "done" else None)


def test_program_that_prints_too_much_is_ended() -> None:
    done = asyncio.run(Execute(["/bin/sh", "-c", "exec cat /dev/zero"], timeout=60)(message()))
    assert done == Done("never")


def test_child_that_keeps_the_output_open_keeps_nobody_waiting(tmp_path: Any) -> None:
    """The bridge doesn't wait for a child of an ended program that keeps the program's output open.

    The child runs in another session.
    """
    away = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 300' &"
    script = f"{away} until [ -s {tmp_path}/pid ]; do sleep 0.01; done; exec cat /dev/zero"
    try:
        done = asyncio.run(asyncio.wait_for(Execute(["/bin/sh", "-c", script], timeout=60)(message()), 50))
        assert done == Done("never")
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_program_that_reads_nothing_is_no_hindrance() -> None:
    done = asyncio.run(Execute(["/bin/sh", "-c", "echo sold"], timeout=20)(message(bytes(BODY))))
    assert done == Done("done", (b"sold\n", "application/octet-stream"))


@pytest.mark.parametrize("then", ["wait", "exit 0"])
def test_program_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Any, then: str) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/pid; {then}"
    begun = time.monotonic()
    done = asyncio.run(Execute(["/bin/sh", "-c", script], timeout=2)(message()))
    assert done == Done("later")
    assert time.monotonic() - begun < 200, "it waited for the child's end"
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 20
    while running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(pid)


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def settled(work: worker.Work, one: Any, patience: float) -> list[str]:
    """Work on one message; return how it was settled."""
    asyncio.run(worker._one(one, work, patience))
    return [name for name in ("ack", "requeue", "reject", "reply") if getattr(one, name).await_count]


def answering(*outcomes: Done) -> tuple[worker.Work, Callable[[], int]]:
    rest = list(outcomes)
    asked: list[Message] = []

    async def work(one: Message) -> Done:
        asked.append(one)
        return rest.pop(0) if len(rest) > 1 else rest[0]

    return work, lambda: len(asked)


def test_message_is_settled_as_its_work_ended() -> None:
    for how, wanted in (("never", ["reject"]), ("done", []), ("later", ["requeue"])):
        work, asked = answering(Done(how, (b"told", "text/plain")))  # type: ignore[arg-type]
        one = message()
        assert settled(work, one, 0.0) == wanted
        assert asked() == 1 and one.__aexit__.await_count == 1


def test_work_is_tried_again_for_as_long_as_patience_lasts() -> None:
    work, asked = answering(Done("later"), Done("later"), Done("done"))
    assert settled(work, message(), 60.0) == []
    assert asked() == 3
    work, asked = answering(Done("later"))
    assert settled(work, message(), 0.5) == ["requeue"]
    assert 1 <= asked() <= 2


def test_asker_is_answered_at_once_though_it_failed() -> None:
    work, asked = answering(Done("later", (b"503", "message/http")))
    one = message(asks=True)
    assert settled(work, one, 60.0) == ["reply"]
    assert asked() == 1 and one.reply.await_args.args == (b"503",)


def test_header_has_visible_characters_and_blanks() -> None:
    assert header_value(" a b\t\r\n\0\x7f\xff ") == b"a b??????"


def test_program_has_a_session_of_its_own() -> None:
    done = asyncio.run(Execute(["/bin/sh", "-c", "cut -d' ' -f6 /proc/$$/stat; echo $$"], timeout=20)(message()))
    assert done.answer is not None
    session, pid = done.answer[0].split()
    assert session == pid


@pytest.mark.parametrize(
    ("url", "host"), [("http://[::1]:8000/x", b"[::1]:8000"), ("http://127.0.0.1/x", b"127.0.0.1:80")]
)
def test_host_header_is_that_of_the_url(url: str, host: bytes) -> None:
    assert dict(Forward(url)._request(message()).headers)[b"host"] == host
