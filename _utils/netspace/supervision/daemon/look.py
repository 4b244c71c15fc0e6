"""The answer to the request ``look``, as the client reads it: the services that run. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from netspace.supervision.daemon.protocol import LARGEST

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Running(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """A running service, by its trace and the kernel.

    :param frozen: whether a signal has stopped its main process.

    The other fields are those of :class:`~netspace.supervision.service.Status`.
    """

    pid: _Count
    since: float
    restarts: _Count
    exit: str
    oom_kills: _Count
    frozen: bool


class _Look(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    running: dict[str, Running]


_decode = msgspec.json.Decoder(_Look).decode


def parse(raw: bytes) -> dict[str, Running]:
    """Return the services whose main process runs, by name. All others are left out.

    :raises ValueError: when *raw* is not an answer to ``look``.
    """
    if len(raw) > LARGEST:
        raise ValueError(f"larger than {LARGEST} bytes")
    return _decode(raw).running
