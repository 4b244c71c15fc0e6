"""Delegation and revocation of rights, by the records of the last apply alone. A request's claims aren't believed.

A program delegates a right: the host makes a link for a peer, from a list of possible links that an apply has recorded
(``netspace.spec.delegations``). The record of the delegation is written before the link is made, and removed after the
link is gone. So the next attempt finishes the work of a killed one.

A delegation ends at the broker first: netspace deletes the link's exchange and waiting messages before it takes the
lock. So a revocation doesn't wait for an apply.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from netspace.errors import NetspaceError
from netspace.host import child_records
from netspace.host import delegation_records as record
from netspace.host.children import Refused, run_that_asked
from netspace.host.converge import Converge
from netspace.host.delegation_records import Delegation
from netspace.plan import Result
from netspace.spec import delegations, peer
from netspace.spec.types import Environment, Link, Size


class Limits(NamedTuple):
    """Limits that a program asks for; None: as declared.

    :param rate: messages per second.
    :param size: bytes of a message's body.
    :param until: the end, in seconds since 1970 by the host's clock.
    """

    rate: float | None = None
    size: int | None = None
    until: float | None = None


class Delegations(Converge):
    """Operations of a host that make and end delegations."""

    def delegate(self, holder: str, link: str, to: str, limits: Limits, asked: float = math.inf) -> Delegation:
        """Give a peer a right that is at most as strong as the holder's link; return the record of the delegation.

        :param link: the receiver of the holder's link, as the holder calls it.
        :param to: the peer, as the holder calls it.
        :param limits: the limits that the holder asks for.
        :param asked: the time of the holder's request, in seconds since the boot. If the holder's program was started
            after this time, the request is refused.
        :raises Refused: the holder may not delegate that.
        :raises NetspaceError: it can't be made now. The text is for the host's log, not for the holder.
        """
        with self._lock(False):
            # First end what fell due while this waited for the lock: no right may derive from it, and it doesn't count.
            self._unmake(record.due(self.layout))
            spec = self._holder(holder)
            own, given = self._called(holder, link), self._called(holder, to)
            bound = spec.delegates.get(own.target)
            if bound is None or given.target not in bound.to:
                raise Refused("link-unknown", f"{holder} may not delegate its link {link} to {to}")
            within = run_that_asked(self.layout, holder, asked)
            one = delegations.Possible(holder, given.target, own.target)
            self._room(one, delegations.at_most(bound))
            most = delegations.most({holder: spec}, one, own)
            made = msgspec.structs.replace(
                most,
                rate=most.rate if limits.rate is None else limits.rate,
                size=most.size if limits.size is None else Size(limits.size),
            )
            if why := delegations.exceeds(made, most):
                raise Refused("beyond-right", why)
            above = record.read(self.layout, own.name)
            until, ends = self._end(bound.lifetime, limits.until, above)
            there = Delegation(
                id=os.urandom(8).hex(),
                holder=holder,
                to=one.to,
                target=one.target,
                rate=made.rate,
                size=None if made.size is None else int(made.size),
                length=made.length,
                until=until,
                ends=ends,
                within=within,
                child=self._child(one.to),
                under="" if above is None else above.id,
            )
            record.write(self.layout, there)
            try:
                self._make(made)
            except (NetspaceError, OSError) as err:
                self._unmake([one.name])
                raise NetspaceError(f"{one.name} can't be made: {err}") from err
            there = msgspec.structs.replace(there, made=True)
            record.write(self.layout, there)
            return there

    def revoke(self, holder: str, link: str, to: str) -> None:
        """End a delegation, and all delegations that derive from it.

        :raises Refused: the holder has delegated no such right.
        :raises NetspaceError: it can't be ended now.
        """
        self.end_revocation(self.begin_revocation(holder, link, to))

    def begin_revocation(self, holder: str, link: str, to: str) -> str:
        """End a delegation at the broker, without the lock; return the name of its link, for :meth:`end_revocation`.

        :raises Refused: the holder has delegated no such right.
        """
        found = self.delegated(holder).get((link, to))
        if found is None:
            raise Refused("delegation-unknown", f"{holder} has delegated no right to {link} to {to}")
        record.write(self.layout, msgspec.structs.replace(found, revoked=True))
        self.sever_due()
        return found.name

    def end_revocation(self, name: str) -> None:
        """Remove the records of a delegation that :meth:`begin_revocation` has ended at the broker.

        :param name: the name of its link.
        :raises NetspaceError: it can't be ended now.
        """
        _, errors = self.settle_delegations()
        if name in errors:
            raise NetspaceError(errors[name])

    def sever_due(self, but: Collection[str] = ()) -> set[str]:
        """End due delegations at the broker, without the lock; return the names of their links.

        :param but: names of links for which this was done already.
        """
        due = record.due(self.layout).keys() - set(but)
        if due:
            known = self._linked().links
            self._severed([known[name] for name in sorted(due) if name in known])  # at once: the lock may take long
        return due

    def delegated(self, holder: str) -> dict[tuple[str, str], Delegation]:
        """Return an environment's delegations that are in force, by receiver and peer as its program calls them.

        Changes nothing.
        """
        due, called = record.due(self.layout), self._names_of(holder)
        found = {}
        for name in sorted(record.names(self.layout) - due.keys()):
            one = record.read(self.layout, name)
            if one is not None and one.holder == holder:
                found[called.get(one.target, one.target), called.get(one.to, one.to)] = one
        return found

    def settle_delegations(self) -> tuple[dict[str, str], dict[str, str]]:
        """End the delegations that are due: at the broker first and without the lock, then in the records.

        :return: two mappings by the names of links: the reason for each end, and the errors.
        """
        self.sever_due()
        due = record.due(self.layout)
        if not due:
            return {}, {}
        try:
            with self._lock(False):
                due = record.due(self.layout)
                self._unmake(due)
        except (NetspaceError, OSError) as err:
            return due, dict.fromkeys(due, str(err))
        return due, {}

    def _end_delegations(self, keep: Collection[str]) -> None:
        there = {name: record.read(self.layout, name) for name in record.names(self.layout)}
        self._unmake({name for name, one in there.items() if one is None or one.holder not in keep})

    # -- parts --------------------------------------------------------------------------
    def _holder(self, holder: str) -> Environment:
        known = self.environments.recorded([holder]).get(holder)
        if known is None or delegations.VERB not in known.spec.host:
            raise Refused(
                "verb-not-permitted", f"{holder}: the key host of its declaration doesn't list {delegations.VERB}"
            )
        return known.spec

    def _own(self, holder: str) -> list[Link]:
        """Return the holder's links that are in force and lead to other environments of this host."""
        known = self._linked().links.values()
        return [link for link in known if link.source == holder and link.to_host is None and not peer.is_link(link)]

    def _called(self, holder: str, name: str) -> Link:
        """Return the holder's link to the receiver that its program calls *name*."""
        for link in self._own(holder):
            if name == (link.local or link.target):
                return link
        raise Refused("link-unknown", f"{holder} has no link to {name} now")

    def _names_of(self, holder: str) -> dict[str, str]:
        return {link.target: link.local or link.target for link in self._own(holder)}

    def _room(self, one: delegations.Possible, most: int) -> None:
        there = [found for name in record.names(self.layout) if (found := record.read(self.layout, name)) is not None]
        if one.name in {found.name for found in there} or one.name in self._linked().links:
            raise Refused("name-in-use", f"{one.to} has a right to {one.target} already; revoke it first")
        if sum(found.of == one.of for found in there) >= most:
            raise Refused("too-many", f"{most} peers have this right already, which is the limit; revoke one")

    def _end(self, lifetime: float, until: float | None, above: Delegation | None) -> tuple[float, float]:
        """Return the end of a new delegation: in seconds since 1970, and in seconds since the boot.

        :param lifetime: the longest time that the declaration permits, in seconds.
        :param until: the end that the holder asks for, in seconds since 1970; None: after *lifetime*.
        :param above: the delegation from which the holder has its own right; None: its link is declared.
        """
        today, now = time.time(), child_records.now()
        left = lifetime if until is None else min(lifetime, until - today)
        if above is not None:
            left = min(left, above.ends - now)
        if left <= 0:
            raise Refused("arguments-invalid", "until: this time is past")
        return today + left, now + left

    def _child(self, to: str) -> child_records.Run | None:
        """Return the run of the child at *to*, which gets a right; None if *to* is no place for children.

        :raises Refused: *to* is a free place: no child runs there now.
        """
        if not self._parents_of([to]):
            return None
        there = child_records.read(self.layout, to)
        if there is None or there.begun is None or child_records.over(self.layout, to, there):
            raise Refused("not-available", f"{to}: no such child runs")
        return there.begun

    def _make(self, link: Link) -> None:
        """Make a link, and update the cards of its two ends."""
        self.links.sever([link])  # leftovers of an earlier delegation whose end was interrupted
        broker = self._linked().broker
        if broker is None:
            raise NetspaceError("no links are applied")
        _checked(self._links(broker, (link,), {link.name}, False, False))
        _checked(self._refresh_cards({link.source, link.target}, False))
        self._tell_peer(False)

    def _unmake(self, doomed: Collection[str]) -> None:
        """Remove delegations, their links and their records. The caller holds the lock.

        :raises NetspaceError: one can't be ended now.
        """
        if not doomed:
            return
        names = {*doomed} | self._lapsed([link for name, link in self._linked().links.items() if name not in doomed])
        there = names & self._linked().links.keys()

        def remove() -> Result:
            return self._links(self.links.recorded_broker(), (), there, False, False)

        if there:
            _checked(self._end_with(names, remove))
        else:
            record.remove(self.layout, names)
        if record.names(self.layout, names):
            raise NetspaceError("the messages that wait can't be deleted now")
        _checked(self._refresh_cards({end for name in there for end in name.split(".")}, False))
        self._tell_peer(False)


def _checked(result: Result) -> None:
    refused: Mapping[str, str] = {one.name: one.message for one in result.plan.refusals}
    if errors := [*refused.values(), *(failure.error for failure in result.failures)]:
        raise NetspaceError("; ".join(dict.fromkeys(errors)))
