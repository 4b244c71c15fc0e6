"""The messages between client and daemon: one JSON object each way per connection.

A request is ``{"do": "start", "names": ["web"], "version": "..."}``; the answer is ``{"version": "...", "errors":
{"web": "..."}}``. If the versions of daemon and request differ, the daemon does nothing and answers with its own
version. A daemon executes a request without a version in any case. Older daemons ignore the version and execute all
requests. The request ``look`` has an answer of its own (``look``); older daemons give none. All messages are parsed
strictly and limited in size, because both sides run as root. Pure: no input or output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from netspace.supervision.definitions import NAME

LARGEST = 4 * 1024 * 1024
MOST_NAMES = 20_000
VERBS = frozenset({"start", "stop", "reload", "remove", "resume", "renew", "hello", "look"})
NAMELESS = ("resume", "renew", "hello", "look")


class Request(NamedTuple):
    """A request to the daemon.

    ``hello``, ``look`` (which services run), ``resume`` (start the desired services) and ``renew`` (reload the library)
    take no names.

    :param version: the version of the library that must execute the request; empty: any version.
    """

    do: str
    names: tuple[str, ...] = ()
    version: str = ""


class Answer(NamedTuple):
    """The daemon's answer.

    :param version: the version of the library that the daemon runs.
    :param errors: error texts by service.
    """

    version: str
    errors: dict[str, str]


def _object(raw: bytes, keys: set[str], optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    if len(raw) > LARGEST:
        raise ValueError(f"larger than {LARGEST} bytes")
    try:
        value = json.loads(raw)
    except RecursionError as err:
        raise ValueError("nested too deeply") from err
    if not isinstance(value, dict) or value.keys() - optional != keys:
        raise ValueError(f"expected an object with {', '.join(sorted(keys))}")
    return value


def parse_request(raw: bytes) -> Request:
    """Return the request in *raw*.

    :raises ValueError: when *raw* is not a valid request.
    """
    value = _object(raw, {"do", "names"}, frozenset({"version"}))
    do, names, version = value["do"], value["names"], value.get("version", "")
    if not isinstance(do, str) or do not in VERBS:
        raise ValueError("do: unknown request")
    if not isinstance(names, list) or len(names) > MOST_NAMES:
        raise ValueError(f"names: expected a list of at most {MOST_NAMES}")
    if not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
        raise ValueError("names: expected names of services")
    if do in NAMELESS and names:
        raise ValueError(f"{do} takes no names")
    if not isinstance(version, str):
        raise ValueError("version: expected a text")
    return Request(do, tuple(dict.fromkeys(names)), version)


def parse_answer(raw: bytes) -> Answer:
    """Return the answer in *raw*.

    :raises ValueError: when *raw* is not a valid answer.
    """
    value = _object(raw, {"version", "errors"})
    version, errors = value["version"], value["errors"]
    if not isinstance(version, str) or not isinstance(errors, dict):
        raise ValueError("not an answer")
    if not all(isinstance(text, str) for text in errors.values()):
        raise ValueError("errors: expected texts")
    return Answer(version, errors)


def render(message: Request | Answer) -> bytes:
    value = message._asdict()
    if isinstance(message, Request) and not message.version:
        del value["version"]
    return json.dumps(value).encode()


def render_look(running: Mapping[str, tuple[int, float, int, str, int, bool]]) -> bytes:
    """Return the answer to ``look``.

    :param running: the fields of ``look.Running`` of each service. They are plain values, because the supervisor would
        take 4 MB more memory for good if it loaded msgspec.
    """
    return json.dumps({"running": running}).encode()
