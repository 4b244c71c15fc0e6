"""Extensions of the declaration: interface kinds, runtimes, image sources and verbs of the host. Each has its own file.

A new extension needs only a new file. No other module of ``netspace.spec`` imports extensions. This module imports them
when one of its functions is called.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

if TYPE_CHECKING:
    from netspace.spec.types import Interface


@functools.cache
def image_sources() -> tuple[str, ...]:
    """Return the names of the image sources: the modules of ``netspace.environment.images.sources``."""
    folder = Path(__file__).parents[1] / "environment/images/sources"
    return tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__"))


@functools.cache
def host_verbs() -> tuple[str, ...]:
    """Return the verbs that environments may request from their host: the modules of ``netspace.host.peer.verbs``."""
    folder = Path(__file__).parents[1] / "host/peer/verbs"
    return tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__"))


@functools.cache
def interface_kinds() -> Any:
    """Return the types of all interface kinds as one union type."""
    from netspace.interface import kinds

    return Union[tuple(kinds.specs())]  # noqa: UP007 (built at run time)


def interface_type(kind: object) -> Any:
    """Return the type of one interface kind. If *kind* isn't the name of a kind, return the union of all types.

    A process imports only the kinds that it meets: all of them take 10 ms.
    """
    from netspace.interface import kinds

    return kinds.spec(kind) or interface_kinds()


def interface_kind(spec: Interface) -> str:
    """Return the name of an interface's kind."""
    from netspace.interface import kinds

    return kinds.name(spec)


def runtimes() -> tuple[str, ...]:
    """Return the names of all runtimes."""
    from netspace.environment import runtimes

    return runtimes.names()


def runtime(name: str) -> Any:
    """Return the module of a runtime.

    :param name: one of the names that :func:`runtimes` returns.
    """
    from netspace.environment import runtimes

    return runtimes.find(name)


def runtimes_of(thing: Literal["images", "kernels"]) -> list[str]:
    """Return the names of the runtimes that run *thing*: images or kernels."""
    from netspace.environment import runtimes

    return runtimes.running(thing)
