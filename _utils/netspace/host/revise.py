"""Revision of a host's links to other hosts, after the fleet's master began to trust or distrust those hosts.

Only links to and from the named hosts are made or revoked. Other changes of the declaration wait for an apply.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from netspace.host import cuts
from netspace.host.host import Host
from netspace.plan import Plan, Result
from netspace.spec.types import Declaration, Link


def links(host: Host, declared: Declaration, others: Collection[str]) -> Result:
    """Make and revoke links to and from other hosts, as declared.

    :param others: names of the other hosts; empty: all.
    """

    def concerned(link: Link) -> bool:
        far = link.to_host or link.from_host
        return bool(far) and (not others or far in others)

    wanted = tuple(link for link in declared.links if concerned(link))
    there = {link.name for link in host.links.recorded() if concerned(link)}
    gone = there - {link.name for link in wanted}
    result = host.remove_links(gone) if gone else Result(Plan())
    return result.joined(host.converge_links(replace(declared, links=wanted))) if wanted else result


def note(
    host: Host, declared: Declaration, others: Collection[str], at_once: Collection[str], asked: float
) -> list[str]:
    """Note which links the master ended, so that a run that began earlier doesn't make them again; return failures.

    :param others: names of the hosts whose trust changed; empty: all.
    :param at_once: names of the hosts whose links end at once.
    :param asked: the time before the pillar was requested (``cuts.clock``).
    """
    gone = cuts.ended(host.links.recorded(), declared.links, others, at_once)
    return cuts.note(host.layout, gone, declared.links, asked)


def part(host: Host, others: Collection[str]) -> list[str]:
    """End all links to and from other hosts at once, by this host's record alone; return why a part of this failed.

    This waits for no lock, no pillar and no other change. :func:`links` has to follow, and removes what is left.

    :param others: names of the other hosts.
    """
    noted = cuts.note(host.layout, {f"@{other}" for other in others}, (), cuts.clock())
    return noted + host.links.part(
        [link for link in host.links.recorded() if (link.to_host or link.from_host) in others]
    )


def whole(host: Host, declared: Declaration) -> Result:
    """Apply a whole declaration, because the trust in this host changed, not only the trust in other hosts."""
    result = Result(Plan())
    for converge in host.each_kind(declared).values():
        result = result.joined(converge())
    return result


def problems(result: Result) -> list[str]:
    """Return the errors of a result. Refusals for lack of trust are intended here, so they are left out."""
    return [f"{one.step}: {one.error}" for one in result.failures]
