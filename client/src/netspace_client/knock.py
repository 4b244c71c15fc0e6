"""Attempts to send to a peer without a link. The broker refuses them, and its host records the refusals.

Only an environment with ``audit: true`` makes such attempts, so that its operator sees which links its programs need.
For an attempt, the library makes the exchange name ``link.<sender>.<peer>``. No exchange has such a name, and no
account may write to it.
"""

from __future__ import annotations

import contextlib
import re

from netspace_client.errors import LinkError
from netspace_client.host import Host
from netspace_client.lines import Lines
from netspace_client.session import FAILURES, answer, hang_up

MOST = 16
"""The most peers to which one program makes an attempt."""
_PEER = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,46}[a-z0-9])?")


class Knocks:
    """The peers to which this program has tried to send without a link, each once."""

    def __init__(self, host: Host, lines: Lines) -> None:
        self._host = host
        self._lines = lines
        self._asked: set[str] = set()

    def knock(self, peer: str) -> None:
        """Try in the background to send to *peer*, to which no link leads: the host then records the refusal.

        Nothing is sent without ``audit: true``, twice to one peer, or to more than ``MOST`` peers.
        """
        about = self._host.card
        if not about.audit or about.broker is None or len(self._asked) >= MOST or peer in self._asked:
            return
        if _PEER.fullmatch(peer):
            self._asked.add(peer)
            self._lines.later(self._refused(peer))

    async def _refused(self, peer: str) -> None:
        broker = self._host.card.broker
        if broker is None:
            return
        with contextlib.suppress(LinkError, *FAILURES):
            channel = await self._lines.session(broker).channel()
            try:
                about = self._host.card  # the link may have been declared meanwhile: it would get an empty message
                if about.audit and peer not in about.called:
                    exchange = f"link.{about.name}.{peer}"
                    await answer(channel.basic_publish(b"", exchange=exchange, routing_key=""))
            finally:
                await hang_up(channel)
