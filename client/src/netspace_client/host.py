"""The host's files in ``/run/netspace``. They are read again whenever they were replaced. Reads only."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from netspace_client import card as cards
from netspace_client.card import Card, Peer
from netspace_client.errors import CardError, LinkError, NotDeclared
from netspace_client.keys import Ring

log = logging.getLogger("netspace_client")


class Host:
    """Reader of the host's files in *folder*: the newest card, and the environment's own keys."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "environment.json"
        self._card: Card | None = None
        self._card_state: tuple[int, ...] = ()
        self._ring: Ring | None = None
        self._ring_state: tuple[int, ...] = ()

    @property
    def card(self) -> Card:
        """The newest card; the same object as long as its file stays the same.

        If a new file is invalid, the previous card stays in use.
        """
        state = _state(self._path)
        if self._card is None or state != self._card_state:
            try:
                self._card = cards.load(self._path.parent)
            except LinkError as err:
                if self._card is None:
                    raise
                log.warning("%s; the previous one stays in use", err)
            self._card_state = state
        return self._card

    @property
    def folder(self) -> Path:
        """The folder of the card."""
        return self._path.parent

    @property
    def known(self) -> Card:
        """The card as it was read last; used for a message whose link was just looked up in ``card``."""
        return self._card or self.card

    @property
    def keys(self) -> Ring:
        """This environment's own keys for sealed links, from the file that the last read card names.

        :raises CardError: the card names no keys, or their file is invalid.
        """
        path = self.known.keys
        if path is None:
            raise CardError("a link is sealed, but the card names no keys of ours")
        state = _state(path)
        if self._ring is None or state != self._ring_state:
            self._ring, self._ring_state = cards.load_keys(path), state
        return self._ring

    def peer(self, name: str) -> Peer:
        """Return a peer to which this environment may send.

        :param name: the peer's local name, or its own name.
        :raises NotDeclared: no link leads to a peer of this name.
        """
        about = self.card
        if name not in about.called:
            known = ", ".join(peer.called for peer in about.peers.values()) or "nobody"
            raise NotDeclared(f"no link to {name} is declared; {about.name} may send to {known}")
        return about.called[name]


def _state(path: Path) -> tuple[int, ...]:
    """Return inode, time and size of a file, which change when it is replaced; empty if stat(2) failed."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)
