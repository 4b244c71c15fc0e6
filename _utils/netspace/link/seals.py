"""Environments' keys for sealed links: one pair to sign and one to decrypt for each, made and renewed here.

The files are ``<records>/seals/<environment>.json``, root's alone; each environment gets its own in ``/run/netspace``,
and in its card the public keys of those at the other ends. What is done with them is the environments'
business (``docs/seals.md``): the host seals and opens nothing.

A new key is known for a while before it is used (``nbf``), and an old one is kept for as long as what was
sealed for it may be under way: so none is lost when keys are renewed. The keys are kept on disk, as passwords
are, because mail that waits in a mailbox over a reboot could be read by nobody otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from netspace import files, jose
from netspace.errors import StateError
from netspace.layout import Layout
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
    """The environments that need keys: those at an end of a sealed link."""
    return {end for link in links if link.seal for end in (link.source, link.target)}


# -- pure ----------------------------------------------------------------------------------------
def due(keys: Keys, now: float) -> str:
    """Why an environment's keys must change; empty: they mustn't."""
    if not keys:
        return "none yet"
    age = now - max(key["nbf"] for key in keys)
    if age >= RENEW:
        return f"{age / 86400:.0f} days old"
    return "some are outlived" if len(kept(keys, now)) < len(keys) else ""


def renewed(keys: Keys, now: float, lead: float = LEAD) -> list[Mapping[str, Any]]:
    """*keys* with a new pair of each use, without those that nobody needs any more.

    The very first are in use at once, for there are none to use meanwhile.
    """
    since = now + lead if keys else now
    return [*kept(keys, now), *(_made(use, since) for use in USES)]


def kept(keys: Keys, now: float) -> list[Mapping[str, Any]]:
    """*keys* without those that were replaced so long ago that nothing sealed for them can be under way."""
    gone = {
        old["kid"] for old in keys for new in keys if new["use"] == old["use"] and old["nbf"] < new["nbf"] < now - KEEP
    }
    return [key for key in keys if key["kid"] not in gone]


def told(content: dict[str, Any], links: Collection[Link], keys: Mapping[str, Keys]) -> dict[str, Any]:
    """A card that says of each sealed link that it is, with the public keys of its other end.

    :param content: the card without that (``card.card``).
    """
    sealed = {link.name for link in links if link.seal}
    if not sealed:
        return content
    name = content["name"]

    def entry(one: dict[str, Any], link: str, other: str) -> dict[str, Any]:
        if link not in sealed:
            return one
        public = [{member: key[member] for member in PUBLIC} for key in keys.get(other, ())]
        return {**one, "seal": {"link": link, "keys": public}}

    return {
        **content,
        "peers": [entry(peer, f"{name}.{peer['to']}", peer["to"]) for peer in content["peers"]],
        "senders": [entry(sender, f"{sender['from']}.{name}", sender["from"]) for sender in content["senders"]],
        "seal": {"keys_file": PATH},
    }


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


def ensure(layout: Layout, environments: Collection[str], now: float) -> None:
    """Make keys for those that have none, or old ones; forget the outlived."""
    known = read_all(layout) if environments else {}
    for name in sorted(environments):
        left = kept(known.get(name, ()), now)
        wanted = renewed(left, now) if due(left, now) else left
        if wanted != known.get(name):
            files.write_json(_path(layout, name), {"keys": wanted})


def renew(layout: Layout, environments: Collection[str], now: float, lead: float = LEAD) -> list[str]:
    """Make new keys for those of *environments* that have some; return which."""
    known = read_all(layout)
    chosen = sorted(set(environments) & known.keys())
    for name in chosen:
        files.write_json(_path(layout, name), {"keys": renewed(known[name], now, lead)})
    return chosen


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
    if not isinstance(keys, list) or not all(isinstance(key, dict) and key.keys() == members for key in keys):
        raise StateError(f"{path} holds no keys; remove the file and apply again to make new ones")
    return keys


def _made(use: str, since: float) -> dict[str, Any]:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    public = jose.jwk(key.public_key())
    private = jose.number(key.private_numbers().private_value)
    return {**public, "d": private, "kid": jose.thumbprint(public), "use": use, "nbf": round(since, 3)}
