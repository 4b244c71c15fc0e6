"""Format of requests to the host, and of its answers. Pure: bytes in, bytes out.

A request is JSON: ``{"v": 1, "verb": "whoami", "arguments": {}}``. The answer has either ``answer`` or ``error``. An
error has a stable code (:data:`Code`). A request doesn't say who asks; the broker authenticates the sender.
"""

from __future__ import annotations

from types import ModuleType
from typing import Annotated, Literal, Protocol, cast, get_args

import msgspec

from netspace.host.peer.asker import Asker

VERSION = 1
SIZE = 16 * 1024
"""The most bytes of a request."""

Code = Literal[
    "request-malformed",
    "request-too-large",
    "version-unknown",
    "verb-unknown",
    "verb-not-permitted",
    "arguments-invalid",
    "not-available",
    "template-unknown",
    "name-in-use",
    "too-many",
    "child-unknown",
    "link-unknown",
    "beyond-right",
    "delegation-unknown",
    "sealed-elsewhere",
    "key-changed",
    "failed",
]
CODES: tuple[str, ...] = get_args(Code)

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9_-]*$(?!\n)")]


class Verb(Protocol):
    """Interface of a module in ``verbs``."""

    Arguments: type[msgspec.Struct]
    Answer: type[msgspec.Struct]

    def answer(self, asker: Asker, arguments: msgspec.Struct, /) -> msgspec.Struct:
        """Return the answer to one request.

        :raises Refused: the request is refused.
        :raises Unchanged: the answer comes once it has changed.
        :raises Later: the answer comes from the keeper of children.
        """


class Refused(Exception):
    """The refusal of a request, with its code and a text for the program's author."""

    def __init__(self, code: Code, text: str) -> None:
        self.code = code
        super().__init__(text)


class _Versioned(msgspec.Struct):
    v: int


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request.

    :param v: the version of this format: 1.
    :param verb: the kind of request.
    :param arguments: the verb's arguments.
    """

    v: Literal[1]
    verb: Word
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class Error(msgspec.Struct, frozen=True):
    """The refusal of a request.

    :param code: a code that stays the same from version to version.
    :param text: an explanation for people; it may change.
    """

    code: Code
    text: str


class _Answered(msgspec.Struct, frozen=True):
    verb: str
    answer: msgspec.Struct
    v: Literal[1] = 1


class _Refusal(msgspec.Struct, frozen=True):
    error: Error
    v: Literal[1] = 1


_ENCODER = msgspec.json.Encoder()
_VERSIONED = msgspec.json.Decoder(_Versioned)
_REQUEST = msgspec.json.Decoder(Request)


def parse(body: bytes | bytearray, size: int) -> Request:
    """Parse a request.

    :param body: the first bytes of the request, or all.
    :param size: the number of bytes of the whole request.
    :raises Refused: it is too large, malformed, or of another version.
    """
    if size > SIZE:
        raise Refused("request-too-large", f"{size} bytes; a request has {SIZE} at most")
    try:
        version = _VERSIONED.decode(body).v
        if version != VERSION:
            raise Refused("version-unknown", f"v: {version}; this host knows {VERSION}")
        return _REQUEST.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as err:
        raise Refused("request-malformed", str(err)[:200]) from None


def compact(body: bytes | bytearray) -> bytes:
    """Return a copy of a request without white space, which uses none of the memory of *body*.

    :param body: a request that :func:`parse` accepts.
    """
    return _ENCODER.encode(msgspec.json.decode(body))


def answer(asker: Asker, request: Request, verbs: dict[str, ModuleType]) -> bytes:
    """Return the answer to a request, encoded.

    :raises Refused: the request is refused.
    """
    module = verbs.get(request.verb)
    if module is None:
        raise Refused("verb-unknown", f"{request.verb}: unknown request; this host answers {', '.join(sorted(verbs))}")
    if request.verb not in asker.own.verbs:
        permitted = ", ".join(asker.own.verbs) or "nothing"
        why = f"{request.verb}: {asker.name} may ask for {permitted}; the key host of its declaration doesn't list it"
        raise Refused("verb-not-permitted", why)
    verb = cast(Verb, module)
    try:
        arguments = msgspec.json.decode(request.arguments, type=verb.Arguments)
    except (msgspec.MsgspecError, ValueError, RecursionError) as err:
        raise Refused("arguments-invalid", str(err)[:200]) from None
    return answered(request.verb, verb.answer(asker, arguments))


def answered(verb: str, content: msgspec.Struct) -> bytes:
    """Return the encoded answer to a request that is granted."""
    return _ENCODER.encode(_Answered(verb, content))


def refusal(code: Code, text: str) -> bytes:
    """Return the encoded answer that refuses a request."""
    return _ENCODER.encode(_Refusal(Error(code, text)))
