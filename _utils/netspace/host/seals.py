"""Seal keys (keys of sealed links) of a host: renewed, published to other hosts and adopted from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from netspace.errors import NetspaceError
from netspace.host.cards import Cards
from netspace.plan import Result
from netspace.text import hint


class Seals(Cards):
    """Operations of a host that renew, publish or adopt keys of sealed links, and update the cards that list them."""

    def renew_seals(self, names: Collection[str] = ()) -> tuple[list[str], Result]:
        """Give environments new keys for their sealed links, and update the cards of their peers.

        :param names: the environments; empty: all that have sealed links.
        :return: the environments with new keys, and the result of updating the cards.
        """
        from netspace.link.seal import keys as seals

        with self._lock(False):
            sealed = [link for link in self.links.recorded() if link.seal]
            ends = seals.members(sealed)
            for name in sorted(set(names) - ends):
                raise NetspaceError(f"{name:.100} has no sealed link on this host; {hint(name, ends)}")
            renewed = self.links.renew_keys(ends & set(names) if names else ends)
            told = seals.members(link for link in sealed if {link.source, link.target} & set(renewed))
            return renewed, self._refresh_cards(told, False)

    def seal_bundles(self) -> tuple[dict[str, str], Result]:
        """Renew due keys for sealed links, update the cards of the peers, and return this host's bundles.

        :return: the bundles of public keys for other hosts (``link.seal.bundle``), by host, and the result of updating
            the cards.
        """
        from netspace.link.seal import keys as seals

        with self._lock(False):
            bundles, renewed = self.links.seal_bundles()
            told = seals.members(link for link in self.links.recorded() if {link.source, link.target} & set(renewed))
            return bundles, self._refresh_cards(told, False)

    def adopt_seals(self, bundles: Iterable[str]) -> tuple[dict[str, bool], list[str], Result]:
        """Adopt other hosts' bundles of public keys for sealed links, and update the cards concerned.

        :return: for each host with an accepted bundle, whether the bundle was new; the reasons for refused bundles; and
            the result of updating the cards.
        """
        from netspace.link.seal import peers

        adopted, refused = {}, []
        with self._lock(False):
            for bundle in bundles:
                try:
                    host, news = self.links.adopt_seals(bundle)
                    adopted[host] = news
                except NetspaceError as err:
                    refused.append(str(err))
            new = {host for host, news in adopted.items() if news}
            told = peers.members(link for link in self.links.recorded() if {link.to_host, link.from_host} & new)
            return adopted, refused, self._refresh_cards(told, False)
