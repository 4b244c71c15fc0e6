"""The errors that netspace raises on purpose.

Each says what is wrong and what to do about it; plugins turn them into a
``CommandExecutionError`` or a failed state, and nothing else is caught.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class NetspaceError(Exception):
    """Anything netspace refuses or fails at; the message is for the operator."""


def _short(text: str, most: int = 400) -> str:
    """Leave out the middle of what is too long to be read."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


class Problem(NamedTuple):
    """One thing wrong in a declaration: where, and what."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{_short(self.path)}: {_short(self.message)}"


class SpecError(NetspaceError):
    """A declaration that can't be accepted. ``problems`` names all that was found."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class MissingError(NetspaceError):
    """Something this host lacks: a program, a library, a kernel feature.

    :param what: what is missing, e.g. ``"the program crun"``.
    :param remedy: how to get it, e.g. ``"apt-get install crun"``.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what} is missing on this host; {remedy}")


class StateError(NetspaceError):
    """Recorded state that can't be read, or that contradicts what is asked."""


def raise_any(errors: Mapping[str, str]) -> None:
    """Raise one error that tells all of these (by name, as a supervisor returns them); nothing where there is none."""
    if errors:
        raise NetspaceError("; ".join(f"{name}: {text}" for name, text in errors.items()))


def unreadable(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Return the exceptions of ``cryptography`` for keys, certificates and requests that it can't read, and *more*.

    Several are no ValueError, and some come late, on use of a part.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    late = (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion)
    return (ValueError, TypeError, UnsupportedAlgorithm, *late, *more)
