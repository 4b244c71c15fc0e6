"""Environments' keys for sealed links: one pair to sign and one to decrypt for each, made and renewed here.

The files are ``<records>/seals/<environment>.json``, root's alone; each environment gets its own in ``/run/netspace``,
and in its card the public keys of those at the other ends. What is done with them is the environments'
business (``docs/seals.md``): the host seals and opens nothing.

A new key is known for a while before it is used (``nbf``), and an old one is kept for as long as what was
sealed for it may be under way: so none is lost when keys are renewed. The keys are kept on disk, as passwords
are, because mail that waits in a mailbox over a reboot could be read by nobody otherwise.

What other hosts know of a key to encrypt, they may not hear of its successor for long: it is promised to them for
``endorser.PROMISE``, and kept until then, also where the link is revoked meanwhile. What they must know of a key to
sign is told by each message, by the endorsement that this host's ``endorser`` gave it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netspace import files, jose
from netspace.errors import StateError
from netspace.layout import Layout
from netspace.link import between, endorser
from netspace.link.between import Others
from netspace.link.endorser import Endorser
from netspace.spec.types import Link

FILE = "seal.json"
PATH = f"/run/netspace/{FILE}"
LEAD = 60.0
"""Seconds from the making of a key to its use: by then all have heard of it."""
RENEW = 30 * 24 * 3600.0
KEEP = 8 * 24 * 3600.0
"""Seconds that a key is kept after its successor came into use: a seal holds for seven days."""
USES = ("sig", "enc")
PUBLIC = ("kty", "crv", "x", "y", "kid", "use", "nbf")

Keys = Sequence[Mapping[str, Any]]
"""One environment's private JWKs, oldest first."""


def members(links: Iterable[Link]) -> set[str]:
    """The environments of this host that need keys: those at an end of a sealed link."""
    return {end for link in links if link.seal for end in link.here}


# -- pure ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Promise:
    """A promise to other hosts: they know the keys of an environment, too.

    :param environment: its name.
    :param by: this host's endorser; None: there is none yet.
    """

    environment: str
    by: Endorser | None


def promises(by: Endorser | None, links: Iterable[Link]) -> dict[str, Promise]:
    """Return the promise of each environment whose keys other hosts know, by its name."""
    return {name: Promise(name, by) for name in between.members(links)}


def due(keys: Keys, now: float, promise: Promise | None = None) -> str:
    """Return why an environment's keys must change; empty: they needn't."""
    if old := _old(keys, now):
        return old
    if len(kept(keys, now, lasting=promise is not None)) < len(keys):
        return "some are outlived"
    return "not endorsed" if promise is not None and _unendorsed(keys, now, promise) else ""


def _old(keys: Keys, now: float) -> str:
    if not keys:
        return "none yet"
    age = now - max(key["nbf"] for key in keys)
    return f"{age / 86400:.0f} days old" if age >= RENEW else ""


def _unendorsed(keys: Keys, now: float, promise: Promise) -> list[Mapping[str, Any]]:
    """The keys to sign that other hosts don't know for certain, or soon won't."""
    by = promise.by
    return [
        key for key in keys if key["use"] == "sig" and (by is None or not by.endorsed(key, promise.environment, now))
    ]


def endorsed(keys: Keys, now: float, promise: Promise) -> list[Mapping[str, Any]]:
    """*keys*, with endorsements of those to sign that lack one."""
    assert promise.by is not None
    lacking = {key["kid"] for key in _unendorsed(keys, now, promise)}
    return [
        {**key, "endorsement": promise.by.endorse(key, promise.environment, now)} if key["kid"] in lacking else key
        for key in keys
    ]


def promised(keys: Keys, now: float) -> list[dict[str, Any]]:
    """Return the public keys to encrypt that other hosts get: the newest two, as the newest may not be in use yet."""
    newest = sorted((key for key in keys if key["use"] == "enc"), key=lambda key: float(key["nbf"]))[-2:]
    found = [{**_public(key), "exp": key["nbf"] + endorser.PROMISE} for key in newest]
    return [key for key in found if key["exp"] > now]


def awaited(keys: Keys, now: float) -> bool:
    """Whether other hosts may know of these keys, and seal for them still."""
    known = any("endorsement" in key for key in keys)
    return known and any(key["use"] == "enc" and now < key["nbf"] + endorser.PROMISE + KEEP for key in keys)


def renewed(keys: Keys, now: float, lead: float = LEAD, *, lasting: bool = False) -> list[Mapping[str, Any]]:
    """*keys* with a new pair of each use, without those that nobody needs any more.

    The very first are in use at once, for there are none to use meanwhile.
    """
    since = now + lead if keys else now
    return [*kept(keys, now, lasting=lasting), *(_made(use, since) for use in USES)]


def kept(keys: Keys, now: float, *, lasting: bool = False) -> list[Mapping[str, Any]]:
    """*keys* without those that were replaced so long ago that nothing sealed for them can be under way.

    :param lasting: those to encrypt are known to other hosts, which use them for as long as was promised.
    """
    gone = {
        old["kid"]
        for old in keys
        for new in keys
        if new["use"] == old["use"]
        and old["nbf"] < new["nbf"]
        and (old["nbf"] + endorser.PROMISE if lasting and old["use"] == "enc" else new["nbf"]) < now - KEEP
    }
    return [key for key in keys if key["kid"] not in gone]


def told(
    content: dict[str, Any], links: Collection[Link], keys: Mapping[str, Keys], others: Others | None = None
) -> dict[str, Any]:
    """Return a card that has, for each sealed link, a ``seal`` with the public keys of its other end.

    :param content: the card without seals (``card.card``).
    :param others: knowledge of other hosts, where links lead there or come from there.
    """
    sealed = {link.name for link in links if link.seal}
    if not sealed:
        return content
    name = content["name"]

    def entry(one: dict[str, Any], link: str, other: str) -> dict[str, Any]:
        if link not in sealed:
            return one
        if others is not None and "@" in other:
            return {**one, "seal": others.told(name, other, link)}
        return {**one, "seal": {"link": link, "keys": [_public(key) for key in keys.get(other, ())]}}

    return {
        **content,
        "peers": [entry(peer, f"{name}.{peer['to']}", peer["to"]) for peer in content["peers"]],
        "senders": [entry(sender, f"{sender['from']}.{name}", sender["from"]) for sender in content["senders"]],
        "seal": {"keys_file": PATH},
    }


def _public(key: Mapping[str, Any]) -> dict[str, Any]:
    return {member: key[member] for member in PUBLIC}


def handed(name: str, links: Collection[Link], keys: Mapping[str, Keys]) -> dict[str, bytes]:
    """The file of its own keys that an environment is handed; nothing where none of its *links* is sealed."""
    own = keys.get(name)
    if not own or not any(link.seal for link in links):
        return {}
    return {FILE: files.encode({"keys": [dict(key) for key in own]})}


# -- on disk -----------------------------------------------------------------------------------------
def read_all(layout: Layout) -> dict[str, Keys]:
    """Every environment's keys."""
    found = files.read_records(layout.records("seals"))
    return {name: _checked(record, _path(layout, name)) for name, record in found.items()}


def ensure(layout: Layout, environments: Collection[str], now: float, promises: Mapping[str, Promise]) -> list[str]:
    """Make keys for environments that have none or old ones, endorse them, and forget outlived ones.

    :param promises: of those environments whose keys other hosts know.
    :return: the environments whose keys changed.
    """
    known = read_all(layout) if environments else {}
    changed = []
    for name in sorted(environments):
        promise = promises.get(name)
        left = kept(known.get(name, ()), now, lasting=promise is not None)
        wanted = renewed(left, now, lasting=promise is not None) if _old(left, now) else left
        if promise is not None:
            wanted = endorsed(wanted, now, promise)
        if _keep(layout, name, wanted):
            changed.append(name)
    return changed


def renew(
    layout: Layout,
    environments: Collection[str],
    now: float,
    lead: float = LEAD,
    promises: Mapping[str, Promise] | None = None,
) -> list[str]:
    """Make new keys for those of *environments* that have some; return these."""
    known = read_all(layout)
    chosen = sorted(set(environments) & known.keys())
    for name in chosen:
        promise = (promises or {}).get(name)
        made = renewed(known[name], now, lead, lasting=promise is not None)
        _keep(layout, name, made if promise is None else endorsed(made, now, promise))
    return chosen


def endorse(layout: Layout, now: float, promises: Mapping[str, Promise]) -> list[str]:
    """Renew endorsements of keys that stay; return the environments that got a new one."""
    known = read_all(layout) if promises else {}
    there = sorted(known.keys() & promises.keys())
    return [name for name in there if _keep(layout, name, endorsed(known[name], now, promises[name]))]


def _keep(layout: Layout, name: str, keys: Keys) -> bool:
    return files.write_json(_path(layout, name), {"keys": keys})


def leave(layout: Layout, environments: Collection[str], now: float) -> None:
    """Forget the keys of *environments* without a sealed link, unless other hosts may still seal for these.

    A link that went because trust was lost may be back soon, and mail in another host's outbox must be read then.
    """
    known = read_all(layout) if environments else {}
    remove(layout, [name for name in environments if not awaited(known.get(name, ()), now)])


def remove(layout: Layout, environments: Collection[str]) -> None:
    """Forget the keys of *environments*."""
    folder = layout.records("seals")
    if not folder.is_dir():
        return
    for name in environments:
        files.remove(_path(layout, name))
    try:
        folder.rmdir()
    except OSError:  # others' are in it
        return


def _path(layout: Layout, environment: str) -> Path:
    return layout.records("seals") / f"{environment}.json"


def _checked(record: Mapping[str, Any], path: Path) -> Keys:
    keys = record.get("keys")
    members = {*PUBLIC, "d"}
    if not isinstance(keys, list) or not all(
        isinstance(key, dict) and key.keys() - {"endorsement"} == members for key in keys
    ):
        raise StateError(f"{path} holds no keys; remove the file and apply again to make new ones")
    return keys


def _made(use: str, since: float) -> dict[str, Any]:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    public = jose.jwk(key.public_key())
    private = jose.number(key.private_numbers().private_value)
    return {**public, "d": private, "kid": jose.thumbprint(public), "use": use, "nbf": round(since, 3)}
