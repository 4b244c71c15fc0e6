"""The errors that netspace raises on purpose.

Each message states the problem and the remedy. Plugins catch only these errors, and turn them into a
``CommandExecutionError`` or a failed state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class NetspaceError(Exception):
    """Base class of all errors of netspace; the message is for the operator."""


def short(text: str, most: int = 400) -> str:
    """Return *text*, without its middle if it is longer than *most* characters."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


class Problem(NamedTuple):
    """One problem in a declaration: its path (keys joined by ``:``) and a message."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{short(self.path)}: {short(self.message)}"


class SpecError(NetspaceError):
    """An invalid declaration. ``problems`` lists every problem found in it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class MissingError(NetspaceError):
    """A thing that this host lacks: a program, a library, a kernel feature.

    :param what: what is missing, e.g. ``"the program crun"``.
    :param remedy: how to get it, e.g. ``"apt-get install crun"``.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what} is missing on this host; {remedy}")


class StateError(NetspaceError):
    """A damaged record on disk, or a record that contradicts the request."""


def raise_any(errors: Mapping[str, str]) -> None:
    """Raise one error with all *errors* (texts by name, as a supervisor returns them); do nothing if there are none.

    :raises NetspaceError: *errors* isn't empty.
    """
    if errors:
        raise NetspaceError("; ".join(f"{name}: {text}" for name, text in errors.items()))


def unreadable(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Return the exceptions that ``cryptography`` raises for malformed keys, certificates and requests, and *more*.

    Several of these exceptions aren't ValueErrors. Some are raised only when a part of the loaded object is used.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    late = (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion)
    return (ValueError, TypeError, UnsupportedAlgorithm, *late, *more)
