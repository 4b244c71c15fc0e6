"""Keys of environments for sealed links: each has a key pair to sign and one to encrypt, made and renewed here.

The files are ``<records>/seals/<environment>.json``, readable by root alone. Each environment gets its own keys in
``/run/netspace``, and in its card the public keys of its peers. Only the environments seal and open messages
(``docs/seals.md``); the host doesn't.

A new key is published for a while before it is used (``nbf``). An old key is kept for as long as a message that was
sealed for it may be under way. So no message is lost when keys are renewed. Like passwords, keys are on disk. Otherwise
nobody could open mail that waits in a mailbox over a reboot.

Other hosts may learn of a new encryption key late. So a published encryption key is promised to other hosts for
``endorser.PROMISE``, and kept for that time, even if the link is revoked meanwhile. Other hosts need no list of signing
keys: each message carries the endorsement of its signing key by this host's ``endorser``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netspace import files, jose
from netspace.errors import StateError
from netspace.layout import Layout
from netspace.link.seal import endorser, peers
from netspace.link.seal.endorser import Endorser
from netspace.link.seal.peers import PeerKeys
from netspace.link.topology.names import environments_of
from netspace.spec.types import Link

FILE = "seal.json"
PATH = f"/run/netspace/{FILE}"
LEAD = 60.0
"""Seconds from the making of a key to its use. By then it is in all cards."""
RENEW = 30 * 24 * 3600.0
KEEP = 8 * 24 * 3600.0
"""Seconds that a key is kept after its successor came into use. A seal is valid for seven days."""
USES = ("sig", "enc")
PUBLIC = ("kty", "crv", "x", "y", "kid", "use", "nbf")

Keys = Sequence[Mapping[str, Any]]
"""One environment's private JWKs, oldest first."""


def members(links: Iterable[Link]) -> set[str]:
    """Return the environments of this host that need keys: each environment with a sealed link."""
    return {end for link in links if link.seal for end in link.here}


# -- pure ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Promise:
    """The promise to other hosts for an environment whose keys they use.

    The environment's signing keys are endorsed, and its published encryption keys stay valid for ``endorser.PROMISE``.

    :param environment: the environment's name.
    :param by: this host's endorser; None: there is none yet.
    """

    environment: str
    by: Endorser | None


def promises(by: Endorser | None, links: Iterable[Link]) -> dict[str, Promise]:
    """Return a :class:`Promise` for each environment whose keys other hosts use, by environment."""
    return {name: Promise(name, by) for name in peers.members(links)}


def due(keys: Keys, now: float, promise: Promise | None = None) -> str:
    """Return why an environment's keys must be made, renewed, endorsed or deleted; empty if they can stay.

    :param promise: the promise for the environment; None: no other host uses its keys.
    """
    if old := _old(keys, now):
        return old
    if len(kept(keys, now, lasting=promise is not None)) < len(keys):
        return "some are no longer needed"
    return "not endorsed" if promise is not None and _unendorsed(keys, now, promise) else ""


def _old(keys: Keys, now: float) -> str:
    if not keys:
        return "none yet"
    age = now - max(key["nbf"] for key in keys)
    return f"{age / 86400:.0f} days old" if age >= RENEW else ""


def _unendorsed(keys: Keys, now: float, promise: Promise) -> list[Mapping[str, Any]]:
    """Return the signing keys that have no endorsement, or whose endorsement expires soon."""
    by = promise.by
    return [
        key for key in keys if key["use"] == "sig" and (by is None or not by.endorsed(key, promise.environment, now))
    ]


def endorsed(keys: Keys, now: float, promise: Promise) -> list[Mapping[str, Any]]:
    """Return *keys*, with a new endorsement for each signing key that needs one.

    :param promise: names the environment and the endorser.
    """
    assert promise.by is not None
    lacking = {key["kid"] for key in _unendorsed(keys, now, promise)}
    return [
        {**key, "endorsement": promise.by.endorse(key, promise.environment, now)} if key["kid"] in lacking else key
        for key in keys
    ]


def promised(keys: Keys, now: float) -> list[dict[str, Any]]:
    """Return the public encryption keys to publish to other hosts, each with its expiry ``exp``.

    They are the newest two, because the newest may not be in use yet.
    """
    newest = sorted((key for key in keys if key["use"] == "enc"), key=lambda key: float(key["nbf"]))[-2:]
    found = [{**_public(key), "exp": key["nbf"] + endorser.PROMISE} for key in newest]
    return [key for key in found if key["exp"] > now]


def awaited(keys: Keys, now: float) -> bool:
    """Return whether other hosts may still seal messages with these keys, so that the keys must be kept."""
    known = any("endorsement" in key for key in keys)
    return known and any(key["use"] == "enc" and now < key["nbf"] + endorser.PROMISE + KEEP for key in keys)


def renewed(keys: Keys, now: float, lead: float = LEAD, *, lasting: bool = False) -> list[Mapping[str, Any]]:
    """Return the keys to keep (:func:`kept`), and a new key pair for each use.

    An environment's first keys are in use at once, because there are no others to use meanwhile.

    :param lead: seconds until new keys come into use.
    :param lasting: whether other hosts use the encryption keys.
    """
    since = now + lead if keys else now
    return [*kept(keys, now, lasting=lasting), *(_made(use, since) for use in USES)]


def kept(keys: Keys, now: float, *, lasting: bool = False) -> list[Mapping[str, Any]]:
    """Return the keys in *keys* that may still be needed.

    A key isn't needed if it was replaced so long ago that no message sealed for it can be under way.

    :param lasting: whether other hosts use the encryption keys, each for ``endorser.PROMISE``.
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
    content: dict[str, Any], links: Collection[Link], keys: Mapping[str, Keys], others: PeerKeys | None = None
) -> dict[str, Any]:
    """Return the card with a ``seal`` entry for each sealed link, which has the public keys of the other end.

    :param content: the card without seals (``card.card``).
    :param keys: the keys of this host's environments.
    :param others: the keys of other hosts' environments.
    """
    sealed = {link.name for link in links if link.seal}
    if not sealed:
        return content
    name = content["name"]

    def entry(one: dict[str, Any], link: str, other: str) -> dict[str, Any]:
        if link not in sealed:
            return one
        was = environments_of(one["exchange"], "link") if one.get("former") else None
        former = was if was is not None and ".".join(was) != link else None
        if others is not None and "@" in other:
            return {**one, "seal": others.told(name, other, link, former)}
        public = [_public(key) for key in keys.get(other, ())]
        seal = {"link": link if former is None else ".".join(former), "keys": public}
        ends = {} if former is None else {"own": former[1], "peer": former[0]}
        return {**one, "seal": {**seal, **ends}}

    return {
        **content,
        "peers": [entry(peer, f"{name}.{peer['to']}", peer["to"]) for peer in content["peers"]],
        "senders": [entry(sender, f"{sender['from']}.{name}", sender["from"]) for sender in content["senders"]],
        "seal": {"keys_file": PATH},
    }


def _public(key: Mapping[str, Any]) -> dict[str, Any]:
    return {member: key[member] for member in PUBLIC}


def handed(name: str, links: Collection[Link], keys: Mapping[str, Keys]) -> dict[str, bytes]:
    """Return the file with an environment's own keys, by file name; nothing if none of its *links* is sealed."""
    own = keys.get(name)
    if not own or not any(link.seal for link in links):
        return {}
    return {FILE: files.encode({"keys": [dict(key) for key in own]})}


# -- on disk -----------------------------------------------------------------------------------------
def read_all(layout: Layout) -> dict[str, Keys]:
    """Return the recorded keys, by environment."""
    found = files.read_records(layout.records("seals"))
    return {name: _checked(record, _path(layout, name)) for name, record in found.items()}


def ensure(layout: Layout, environments: Collection[str], now: float, promises: Mapping[str, Promise]) -> list[str]:
    """Bring the keys of environments up to date; return the environments whose keys changed.

    Missing keys are made, old ones renewed and endorsed, and keys that are no longer needed are deleted.

    :param promises: the promises for environments whose keys other hosts use, by environment.
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
    """Make new keys for the environments in *environments* that have keys; return their names.

    :param lead: seconds until the new keys come into use.
    :param promises: for each environment whose keys other hosts use, the promise to keep these keys (:class:`Promise`).
    """
    known = read_all(layout)
    chosen = sorted(set(environments) & known.keys())
    for name in chosen:
        promise = (promises or {}).get(name)
        made = renewed(known[name], now, lead, lasting=promise is not None)
        _keep(layout, name, made if promise is None else endorsed(made, now, promise))
    return chosen


def endorse(layout: Layout, now: float, promises: Mapping[str, Promise]) -> list[str]:
    """Renew endorsements without changing keys; return the environments that got a new endorsement."""
    known = read_all(layout) if promises else {}
    there = sorted(known.keys() & promises.keys())
    return [name for name in there if _keep(layout, name, endorsed(known[name], now, promises[name]))]


def inherit(layout: Layout, renamed: Mapping[str, str]) -> None:
    """Give renamed environments the keys of their former names, so that what was sealed for these can be opened.

    The keys of a former name are deleted after they are stored under the new name.

    :param renamed: the present names, by the former ones.
    """
    known = read_all(layout) if renamed else {}
    for old, new in sorted(renamed.items()):
        if old not in known:
            continue
        there = known.get(new, ())
        has = {key["kid"] for key in there}
        given = [{name: value for name, value in key.items() if name != "endorsement"} for key in known[old]]
        _keep(layout, new, [*(key for key in given if key["kid"] not in has), *there])
        remove(layout, [old])


def _keep(layout: Layout, name: str, keys: Keys) -> bool:
    return files.write_json(_path(layout, name), {"keys": keys})


def leave(layout: Layout, environments: Collection[str], now: float) -> None:
    """Delete the keys of *environments*, which have no sealed link any more, unless other hosts may still use them.

    A link that was withheld for lack of trust may come back soon. Its environment must then still be able to read mail
    that waits in another host's outbox.
    """
    known = read_all(layout) if environments else {}
    remove(layout, [name for name in environments if not awaited(known.get(name, ()), now)])


def remove(layout: Layout, environments: Collection[str]) -> None:
    """Delete the keys of *environments*."""
    folder = layout.records("seals")
    if not folder.is_dir():
        return
    for name in environments:
        files.remove(_path(layout, name))
    try:
        folder.rmdir()
    except OSError:  # it has keys of other environments
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
