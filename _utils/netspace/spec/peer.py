"""The host as a peer of its environments: its reserved name, and the links that lead to it. Pure.

An environment with ``host: [whoami, ...]`` may send requests to the peer ``host``. This key implies the link, so nobody
declares the link under ``links``. Each such link has a queue of its own, in memory. So an environment that floods the
host fills only its own queue, and a broker that restarts drops the requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from netspace.spec.types import Declaration, Environment, Link, Size

NAME = "host"
CONTENT_TYPE = "application/vnd.netspace.host+json"
"""The media type of requests and answers. It also marks a link to the host among recorded ones: an environment that an
earlier version of netspace let be named ``host`` has no link of this type."""
SIZE = Size(16 * 1024)
"""The most bytes of a request."""
LENGTH = 64
"""The most requests of one environment that may wait."""
SECONDS = 60.0
"""The most seconds that a request may wait."""
KEYED = frozenset({"seal", "unseal", "sign"})
"""The verbs for which the host uses a key of the environment."""

RESERVED = (
    "the name host is reserved for the host itself, to which environments may send requests; give this environment "
    "another name, here and in links (an environment that already has this name keeps running until then)"
)
SHARED = "needs netspace's own broker: on a broker that hosts share, each would have a peer named host"
_NO_LINK = "host is the host itself, which no link names; give the environment that asks a key such as host: [whoami]"


def link(environment: str) -> Link:
    """Return the link by which an environment sends requests to its host."""
    return Link(
        source=environment,
        target=NAME,
        pattern="request",
        ttl=SECONDS,
        length=LENGTH,
        durable=False,
        size=SIZE,
        content_type=CONTENT_TYPE,
    )


def is_link(one: Link) -> bool:
    """Return whether a link leads to the host itself.

    The target of such a link is named ``host``. An environment that an earlier version of netspace made may have this
    name, too.
    """
    return one.target == NAME and one.content_type == CONTENT_TYPE


def links(environments: Mapping[str, Environment]) -> tuple[Link, ...]:
    """Return the links to the host that the environments' key ``host`` implies."""
    return tuple(link(name) for name, spec in sorted(environments.items()) if spec.host)


def with_links(declared: Declaration) -> Declaration:
    """Return *declared* with the links to the host that its environments imply."""
    return msgspec.structs.replace(declared, links=(*declared.links, *links(declared.environments)))


def misnamed(one: Link) -> Iterator[tuple[str, str]]:
    """Yield a problem for each end of a declared link that names the host: (key, message)."""
    for key, end in (("from", one.source), ("to", one.target)):
        if end.partition("@")[0] == NAME:
            yield key, _NO_LINK
