"""Files in the peer's folder, which root writes from the records: facts for answers, the peer's card, its credentials.

The folder is in memory only, so the files are made again after a reboot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from netspace import files
from netspace.attestation import result
from netspace.environment import record as records
from netspace.environment.container import oci_runtime
from netspace.environment.record import Record
from netspace.errors import StateError
from netspace.host.peer import told
from netspace.host.peer.told import Known, Offering, Reached, Told, Trust
from netspace.layout import Layout
from netspace.link import host_peer
from netspace.link.reconciler import Links
from netspace.spec import peer
from netspace.spec.trust import Trust as Trusted
from netspace.spec.types import Link
from netspace.supervision.cgroup import payload_cgroups


def publish(layout: Layout, links: Links) -> None:
    """Write the files for the recorded links and environments, as far as they have changed.

    Nothing is written if no environment has a link to the peer ``host``.

    :raises NetspaceError: the record of links can't be read.
    """
    recorded = links.recorded()
    if not host_peer.wanted(recorded):
        return
    host_peer.ensure(layout)
    content = {
        **links.handed()(peer.NAME),
        told.CARD: files.encode(links.cards()(peer.NAME, recorded)),
        told.FILE: _encoded(_with_key(layout, knowledge(layout, recorded, links.recorded_broker().host))),
    }
    owner = (0, host_peer.ids(layout))
    folder = host_peer.folder(layout)
    for name, raw in content.items():
        files.write(folder / name, raw, mode=0o640, owner=owner)


def knowledge(layout: Layout, recorded: Collection[Link], host: str | None) -> Told:
    """Return the facts that the peer gets for these links.

    An environment with a damaged record is left out, so the peer ignores its requests.

    :param host: the host's name in links; None: none is declared.
    """
    asking = [link.source for link in recorded if peer.is_link(link)]
    peers: dict[str, list[Link]] = {name: [] for name in asking}
    for link in recorded:
        if link.source in peers and link.to_host is None and not peer.is_link(link):
            peers[link.source].append(link)
    group = payload_cgroups(layout)
    groups = {name: group(oci_runtime.service_name(name)) for name in {*asking, *_targets(peers)}}
    there, _ = records.read_each(layout, groups)
    known = {name: _known(there[name], groups[name], peers[name]) for name in asking if name in there}
    offering = {
        name: Offering(there[name].spec.offers, groups[name], there[name].spec.health is not None)
        for name in _targets(peers)
        if name in there and there[name].spec.offers
    }
    return Told(told.VERSION, host, _trust(layout), known, offering)


def _with_key(layout: Layout, known: Told) -> Told:
    """Return *known*, with the host's signed statement about the tokens' key if an environment may ask for tokens.

    If no environment may ask for tokens, the key is deleted.
    """
    from netspace.host.peer import vouching

    if not any("attest" in one.verbs for one in known.environments.values()):
        vouching.forget(layout)
        return known
    import msgspec

    try:
        before = msgspec.json.decode((host_peer.folder(layout) / told.FILE).read_bytes(), type=Told).vouched
    except (OSError, ValueError):
        before = None
    vouched = vouching.ensure(layout, known.host, before)
    vouching.hand_on(layout)
    return msgspec.structs.replace(known, vouched=vouched)


def _targets(peers: Mapping[str, Iterable[Link]]) -> set[str]:
    return {link.target for links in peers.values() for link in links}


def _known(record: Record, group: str, peers: Iterable[Link]) -> Known:
    image, configuration = f"sha256:{record.image.digest}", f"sha256:{record.config}"
    reached = tuple(Reached(link.target, link.local or link.target, link.pattern) for link in peers)
    return Known(record.spec.host, image, configuration, group, record.spec.values, reached)


def _trust(layout: Layout) -> Trust:
    now: Trusted = result.trust(layout)
    last = result.load(layout) if now.level else None
    if last is None:
        return Trust(verifier=now.verifier)
    return Trust(now.name, now.verifier, last.expires)  # type: ignore[arg-type]  # L0 to L5, as result.load checks


def _encoded(content: Told) -> bytes:
    import msgspec

    raw = msgspec.json.encode(content, order="sorted")
    if len(raw) > told.MOST:  # the peer would read the beginning alone
        raise StateError(
            f"{told.FILE}: {len(raw)} bytes, and the host's peer reads {told.MOST} at most; shorten the values of "
            "environments that may ask their host, or let fewer ask"
        )
    return raw
