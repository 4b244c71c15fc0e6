"""Kind ``none``: only ``lo``. An environment that merely exchanges messages has no network at all."""

from __future__ import annotations

from netspace.spec.types import Interface


class NoInterface(Interface, frozen=True, tag="none"):
    """No interface but loopback (the default)."""
