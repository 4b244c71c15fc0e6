"""The client of systemd's bus, with a peer that behaves like systemd, or incorrectly."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jeepney import DBusAddress, HeaderFields, Message, Parser, Properties, new_error, new_method_return, new_signal

from netspace.supervision.systemd import dbus

SIGNAL = new_signal(DBusAddress("/a", "org.example.A", "org.example.A"), "Changed", "s", ("x",))
Answer = Callable[[Message], bytes]


def encoded(message: Message, sender: str | None = dbus.SYSTEMD) -> bytes:
    if sender is not None:
        message.header.fields[HeaderFields.sender] = sender
    return message.serialise(serial=7)


def active(call: Message) -> bytes:
    """Answer like systemd, with the requested property of the requested unit."""
    return encoded(new_method_return(call, "v", (("s", f"{call.header.fields[HeaderFields.path]} {call.body[1]}"),)))


def serve(end: socket.socket, answer: Answer, behind: bytes) -> None:
    """Act as systemd until the client closes the connection."""
    with end, contextlib.suppress(OSError):
        greeting = b""
        while not greeting.endswith(b"BEGIN\r\n"):
            greeting += end.recv(1)
        end.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n" + behind)
        parser = Parser()
        while data := end.recv(1 << 16):
            end.sendall(b"".join(map(answer, parser.feed(data))))


@contextlib.contextmanager
def systemd(answer: Answer, behind: bytes = b"") -> Iterator[dbus.Connection]:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs, answer, behind))
    thread.start()
    try:
        with ours:
            yield dbus.Connection(ours)
    finally:
        thread.join()


WANTED = [dbus.Property(dbus.object_path(f"u{number}.service"), dbus.UNIT, "ActiveState") for number in range(450)]
(CALL,) = Parser().feed(WANTED[0].call(1))


def reply(kind: str, content: object) -> Message:
    return new_method_return(CALL, "v", ((kind, content),))


@given(st.integers(1, 2**32 - 1), st.text(min_size=1, max_size=80), st.sampled_from(sorted(dbus.WANTED)))
def test_a_call_is_the_one_that_jeepney_encodes(serial: int, unit: str, name: str) -> None:
    wanted = dbus.Property(dbus.object_path(unit), dbus.WANTED[name], name)
    whole = Properties(DBusAddress(wanted.path, dbus.SYSTEMD, wanted.interface)).get(name)
    assert wanted.call(serial) == whole.serialise(serial)


# -- answers -----------------------------------------------------------------------------------------
def test_replies_come_in_the_order_of_their_calls() -> None:
    with systemd(lambda call: encoded(SIGNAL) + active(call), encoded(SIGNAL)) as connection:
        for _ in range(2):
            found = [dbus.value(one) for one in connection.ask(WANTED)]
            assert found == [f"{dbus.object_path(f'u{number}.service')} ActiveState" for number in range(450)]


@pytest.mark.parametrize(
    ("kind", "content", "shown"),
    [("s", "active", "active"), ("u", 4711, "4711"), ("i", -1, "-1"), ("t", 2**40, f"{2**40}")],
)
def test_a_property_is_text(kind: str, content: object, shown: str) -> None:
    assert dbus.value(reply(kind, content)) == shown


def test_an_unknown_unit_has_no_property() -> None:
    assert dbus.value(new_error(CALL, "org.freedesktop.DBus.Error.UnknownObject", "s", ("none",))) is None


@pytest.mark.parametrize(
    "message",
    [
        reply("as", ["a"]),
        reply("b", True),
        new_method_return(CALL),
        new_method_return(CALL, "s", ("a",)),
        SIGNAL,
    ],
)
def test_another_kind_of_reply_is_refused(message: Message) -> None:
    with pytest.raises(ValueError, match="not a property"):
        dbus.value(message)


# -- a peer that misbehaves --------------------------------------------------------------------------
@pytest.mark.parametrize("sender", [None, "org.freedesktop.systemd2", ":1.4"])
def test_a_reply_by_another_sender_is_refused(sender: str | None) -> None:
    with (
        pytest.raises(ValueError, match=r"not by org\.freedesktop\.systemd1"),
        systemd(lambda call: encoded(new_method_return(call, "v", (("s", "active"),)), sender)) as connection,
    ):
        connection.ask(WANTED[:1])


def test_signals_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus, "OTHERS", 64)
    with (
        pytest.raises(ValueError, match="more than 64 messages"),
        systemd(lambda call: encoded(SIGNAL) * 65) as connection,
    ):
        connection.ask(WANTED[:1])


def test_a_repeated_reply_does_not_count_for_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus, "OTHERS", 8)
    first = active(CALL)
    with pytest.raises(ValueError, match="besides the answers"), systemd(lambda call: first * 10) as connection:
        connection.ask(WANTED[:2])


def test_silence_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus, "TIMEOUT", 0.05)
    with pytest.raises(TimeoutError), systemd(lambda call: b"") as connection:
        connection.ask(WANTED[:1])


def test_signals_do_not_prolong_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer sends only signals, each before a single message's timeout; the client gives up at its deadline."""
    monkeypatch.setattr(dbus, "TIMEOUT", 0.1)
    ours, theirs = socket.socketpair()
    ended = threading.Event()

    def chatter() -> None:
        with theirs, contextlib.suppress(OSError):
            theirs.sendall(b"OK 0\r\n")
            while not ended.wait(0.02):
                theirs.sendall(encoded(SIGNAL))

    thread = threading.Thread(target=chatter)
    thread.start()
    with ours, pytest.raises(TimeoutError):
        dbus.Connection(ours).ask(WANTED[:1])
    ended.set()
    thread.join()


def test_a_closed_connection_is_an_os_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"OK 0\r\n")
        connection = dbus.Connection(ours)
        theirs.close()
        with pytest.raises(OSError, match=r"."):
            connection.ask(WANTED[:1])


def test_a_refused_login_is_a_value_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"REJECTED EXTERNAL\r\n")
        with pytest.raises(ValueError, match="REJECTED"):
            dbus.Connection(ours)


def test_a_message_beyond_the_bound_is_refused() -> None:
    head = struct.pack("<cBBBIII", b"l", 2, 0, 1, dbus.LARGEST + 1, 1, 0)
    with pytest.raises(ValueError, match="more than"), systemd(lambda call: head) as connection:
        connection.ask(WANTED[:1])


GOOD = active(CALL)


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)).map(
        lambda one: GOOD[: one[0]] + bytes([one[1]]) + GOOD[one[0] + 1 :]
    )
)
def test_any_other_bytes_are_an_error_or_an_answer(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"OK 0\r\n" + raw)
        connection = dbus.Connection(ours)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ValueError, OSError):
            assert isinstance(dbus.value(connection.ask(WANTED[:1])[0]), str | None)


# -- a list of units ---------------------------------------------------------------------------------
WORD = st.text(max_size=20).filter(lambda text: "\0" not in text)
PATH = st.from_regex("(/[A-Za-z0-9_]{1,9}){1,3}|/", fullmatch=True)
UNIT = st.tuples(WORD, WORD, WORD, WORD, WORD, WORD, PATH, st.integers(0, 2**32 - 1), WORD, PATH)


def listed(units: list[tuple[object, ...]], signature: str = dbus.LISTED, sender: str = dbus.SYSTEMD) -> bytes:
    """Return the answer with these units to a client's first call."""
    answer = new_method_return(CALL, signature, (units,))
    answer.header.fields[HeaderFields.reply_serial] = 1
    return encoded(answer, sender)


def unit(name: str) -> tuple[object, ...]:
    return (name, "a program", "loaded", "active", "running", "", dbus.object_path(name), 0, "", "/")


@settings(deadline=None)
@given(st.lists(UNIT, max_size=20))
def test_names_of_a_list_are_those_that_jeepney_decodes(units: list[tuple[object, ...]]) -> None:
    with systemd(lambda call: encoded(SIGNAL) + listed(units)) as connection:
        assert connection.active("netspace-*") == [one[0] for one in units]


def test_active_units_are_asked_for_by_pattern() -> None:
    calls: list[Message] = []

    def answer(call: Message) -> bytes:
        calls.append(call)
        return listed([unit("netspace-a.service")])

    with systemd(answer) as connection:
        assert connection.active("netspace-*.service") == ["netspace-a.service"]
    (call,) = calls
    assert call.header.fields[HeaderFields.member] == "ListUnitsByPatterns"
    assert call.body == (["active"], ["netspace-*.service"])


@pytest.mark.parametrize(
    "answer",
    [
        listed([unit("netspace-a.service")], sender=":1.4"),
        listed(["netspace-a.service"], "as"),
        struct.pack("<cBBBIII", b"l", 2, 0, 1, dbus.MOST_UNITS, 1, 8),
        struct.pack(">cBBBIII", b"B", 2, 0, 1, 0, 1, 0),
    ],
)
def test_an_answer_that_is_no_list_of_units_is_refused(answer: bytes) -> None:
    refused = pytest.raises(ValueError, match=r"not systemd's list|a message of")
    with refused, systemd(lambda call: answer) as connection:
        connection.active("netspace-*")


def test_no_list_among_messages_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus, "OTHERS", 64)
    with (
        pytest.raises(ValueError, match="more than 64 messages"),
        systemd(lambda call: encoded(SIGNAL) * 65) as connection,
    ):
        connection.active("netspace-*")


LIST = listed([unit(f"netspace-{name}.service") for name in "abc"])


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.tuples(st.integers(0, len(LIST) - 1), st.integers(0, 255)).map(
        lambda one: LIST[: one[0]] + bytes([one[1]]) + LIST[one[0] + 1 :]
    )
)
def test_any_other_bytes_are_an_error_or_names(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"OK 0\r\n" + raw)
        connection = dbus.Connection(ours)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ValueError, OSError):
            assert all(isinstance(name, str) for name in connection.active("netspace-*"))


# -- names and versions ------------------------------------------------------------------------------
def test_an_object_path_escapes_a_units_name() -> None:
    assert dbus.object_path("netspace-a_b.service") == "/org/freedesktop/systemd1/unit/netspace_2da_5fb_2eservice"


@pytest.mark.parametrize(("text", "number"), [("257.9-1~deb13u1", 257), ("252", 252), ("v255-rc1", 255)])
def test_a_version_begins_with_its_release(text: str, number: int) -> None:
    assert dbus.release(text) == number


@pytest.mark.parametrize("text", ["", "unknown", "-1"])
def test_a_text_without_a_number_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="no version"):
        dbus.release(text)


def test_a_long_number_is_cut() -> None:
    assert dbus.release("9" * 4000) == 999999
