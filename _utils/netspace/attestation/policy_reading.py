"""Parsers of the parts of policies: lists of digests, patterns, flags, PCR numbers.

*at* is the path of the parsed part in the policy, such as ``policy:boot:pcrs``. Each error is a :class:`PolicyError`
whose message begins with this path. Pure: no file is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netspace.attestation.evidence import PCR_NAMES, from_hex
from netspace.errors import NetspaceError

MAX_ITEMS = 65_536
MAX_PATTERN = 4096
MAX_PATTERNS = 256


class PolicyError(NetspaceError):
    """Error: a policy can't be accepted. The message begins with the path of the invalid part."""


class Pattern:
    """A text in which ``*`` matches any text. Matching takes linear time."""

    __slots__ = ("_parts", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts = text.split("*")

    @property
    def exact(self) -> bool:
        return len(self._parts) == 1

    def matches(self, text: str) -> bool:
        first, *middle = self._parts
        if not middle:
            return text == first
        last = middle.pop()
        if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
            return False
        at, end = len(first), len(text) - len(last)
        for part in middle:
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True


def mapping(data: Any, at: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    """Return *data*, which must be a mapping with keys from *known* only.

    :param at: the value's path in the policy, for messages.
    """
    if not isinstance(data, Mapping):
        raise PolicyError(f"{at}: expected a mapping")
    for key in data:
        if key not in known:
            raise PolicyError(f"{at}:{key!s:.40}: unknown; there are {', '.join(known)}")
    return data


def items(data: Any, at: str, limit: int = MAX_ITEMS) -> list[Any]:
    """Return *data*, which must be a list of at most *limit* items.

    :param at: the value's path in the policy, for messages.
    """
    if not isinstance(data, list) or len(data) > limit:
        raise PolicyError(f"{at}: expected a list of at most {limit}")
    return data


def digests(data: Any, at: str, size: int = 32, limit: int = MAX_ITEMS) -> frozenset[bytes]:
    """Parse a list of at most *limit* digests of *size* bytes each (default: SHA-256).

    :param at: the value's path in the policy, for messages.
    """
    return frozenset(octets(one, size, at) for one in items(data, at, limit))


def octets(text: Any, size: int, at: str) -> bytes:
    """Parse *size* bytes in hex.

    :param at: the value's path in the policy, for messages.
    """
    raw = from_hex(text, size)
    if raw is None:
        raise PolicyError(f"{at}: {text!r:.40}: expected {size} bytes in hex")
    return raw


def flag(found: Mapping[str, Any], name: str, at: str, default: bool) -> bool:
    """Parse the flag *name* in *found*, the section of the policy with the path *at*."""
    value = found.get(name, default)
    if type(value) is not bool:
        raise PolicyError(f"{at}:{name}: {value!r:.40}: expected true or false")
    return value


def patterns(data: Any, at: str) -> tuple[Pattern, ...]:
    """Parse a list of patterns.

    :param at: the value's path in the policy, for messages.
    """
    for one in items(data, at, MAX_PATTERNS):
        if not isinstance(one, str) or not 0 < len(one) <= MAX_PATTERN:
            raise PolicyError(f"{at}: {one!r:.40}: expected text of 1 to {MAX_PATTERN} characters")
    return tuple(Pattern(one) for one in data)


def pcr(number: Any, at: str) -> int:
    """Parse a PCR's number. As the key of a mapping, it is a number in YAML and text in JSON.

    :param at: the value's path in the policy, for messages.
    """
    text = str(number)
    if isinstance(number, bool) or not isinstance(number, (int, str)) or text not in PCR_NAMES:
        raise PolicyError(f"{at}: {number!r:.40}: expected the number of a PCR, 0 to 23")
    return int(text)
