"""Difference between a broker's observed objects and the desired ones. Pure.

The difference has the objects to delete, and the objects to import afterwards because they are missing or differ. It
contains only netspace's own objects (``found_objects.found`` selects them). Undeclared queues may hold mail, so they
are not in the list of deletions, but in the list *left*; ``apply`` deletes the empty queues among them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from netspace.link.topology import objects
from netspace.link.topology.found_objects import Found
from netspace.link.topology.names import MAIL, account, environments_of, is_dead
from netspace.link.topology.objects import Key, Objects

# Accounts are deleted first, which closes their connections; then objects that route; then queues.
_REVOKE_ORDER = {"user": 0, "permission": 1, "exchange": 2, "binding": 3, "shovel": 4, "queue": 5, "policy": 6}


@dataclass(frozen=True)
class Difference:
    """The changes to make on a broker.

    :param revoke: objects to delete, in this order.
    :param create: objects to import because they are absent (or deleted just before).
    :param change: objects to import because they differ.
    :param passwords: accounts whose password hash doesn't match the stored password.
    :param left: the full names of undeclared queues that may hold mail.
    :param stuck: queues that differ in arguments that can't be changed, and that may hold mail.
    :param last: objects to delete after the import. Old exchanges and policies of dead letters are deleted once the
        policies name the new exchanges. The binding of a link to its old queue is deleted once the link leads to its
        new one.
    """

    revoke: tuple[Key, ...] = ()
    create: tuple[Key, ...] = ()
    change: tuple[Key, ...] = ()
    passwords: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    stuck: tuple[Key, ...] = ()
    last: tuple[Key, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the broker needs no change."""
        return not self.touched

    @property
    def touched(self) -> set[Key]:
        return {*self.revoke, *self.create, *self.change, *self.last, *(("user", name) for name in self.passwords)}


def difference(wanted: Objects, there: Found, passwords: Mapping[str, str]) -> Difference:
    """Compare a broker's objects with the desired ones.

    :param wanted: all desired objects (``objects.objects``).
    :param there: the observed objects (``found_objects.found``).
    :param passwords: the stored password of each environment; an empty one if the environment logs in by certificate.
        If an environment is not in this mapping, its account counts as different, because it is about to get a
        password.
    """
    revoke: list[Key] = []
    change: list[Key] = []
    left: list[str] = []
    stuck: list[Key] = []
    fresh: set[Key] = set()
    for key, value in there.objects.items():
        target = wanted.get(key)
        if target is None:
            if key[0] == "queue" and (environments_of(key[1], *MAIL) is not None or is_dead(key[1])):
                left.append(key[1])
            elif not (_is_shared(key) or _answers(key, wanted)):
                revoke.append(key)
        elif target != value:
            if key[0] in ("exchange", "binding") or environments_of(key[1], "replies", "notices") is not None:
                revoke.append(key)
                fresh.add(key)
            elif key[0] == "queue":
                stuck.append(key)
            else:
                change.append(key)
    # RabbitMQ deletes the bindings of an exchange or a queue with it.
    gone = {(key[0], key[1]) for key in revoke if key[0] in ("exchange", "queue")}
    create = [
        key
        for key in wanted
        if key not in there.objects
        or key in fresh
        or (key[0] == "binding" and (("exchange", key[1]) in gone or (key[2], key[3]) in gone))
    ]
    revoke = [
        key
        for key in revoke
        if not (key[0] == "binding" and (("exchange", key[1]) in gone or (key[2], key[3]) in gone))
        and not (key[0] == "permission" and ("user", key[1]) not in wanted and ("user", key[1]) in there.objects)
    ]
    moved = [key for key in revoke if _moves(key, wanted, create)]
    revoke = [key for key in revoke if key not in moved]
    revoke.sort(key=lambda key: (_REVOKE_ORDER[key[0]], key))
    stale = []
    for environment in sorted(key[1].partition(".")[2] for key in wanted if key[0] == "user"):
        name = account(environment)
        password = passwords.get(environment)
        if password is None or not verify(password, there.hashes.get(name, "")):
            stale.append(name)
    return Difference(
        tuple(revoke),
        tuple(create),
        tuple(change),
        tuple(stale),
        tuple(sorted(left)),
        tuple(stuck),
        (*moved, *_old_letters(wanted, there)),
    )


def _moves(key: Key, wanted: Objects, create: Collection[Key]) -> bool:
    """Return whether *key* binds a wanted link to its old queue while its new binding is still to be made.

    The old binding is deleted after the new one is made. A message that is sent in between may be in both queues,
    with the same id. In the other order, the message would be in neither queue.
    """
    if key[0] != "binding" or key in wanted or ("exchange", key[1]) not in wanted:
        return False
    link = environments_of(key[1], "link")
    if link is None or environments_of(key[3], *MAIL) not in (link, link[1:]):
        return False
    return any(other[:2] == key[:2] for other in create) and ("exchange", key[1]) not in create


def undeclared(before: Objects, after: Objects) -> list[Key]:
    """Return the revoked objects that can be deleted before the broker's definitions are read.

    They are the accounts, exchanges, shovels, and queues for answers or notices that are in *before* and not in
    *after*, in the order of their deletion.
    """
    gone = (key for key in before if key not in after)
    routes = [
        key
        for key in gone
        if key[0] in ("user", "exchange", "shovel")
        or (key[0] == "queue" and environments_of(key[1], "replies", "notices") is not None)
    ]
    return sorted((key for key in routes if not _is_shared(key)), key=lambda key: (_REVOKE_ORDER[key[0]], key))


def _old_letters(wanted: Objects, there: Found) -> list[Key]:
    """Return the policies and the exchanges of dead letters that are on the broker but not desired.

    The result is empty if hosts share the virtual host, because a host with another version of netspace may need these
    objects. It is also empty if no object at all is desired.
    """
    if not (wanted and there.whole):
        return []
    gone = [key for key in there.objects if key not in wanted]
    return [key for key in gone if key[0] == "policy" or (key[0] == "exchange" and is_dead(key[1]))]


def _is_shared(key: Key) -> bool:
    """Return whether all links of a virtual host share this object, so that other hosts may need it."""
    return key[0] == "policy" or (key[0] in ("exchange", "binding") and is_dead(key[1]))


def _answers(key: Key, wanted: Objects) -> bool:
    """Return whether *key* binds the replies queue of an environment to the exchange of a peer's answers.

    The environment itself makes such a binding, to receive the answers to its requests.
    """
    if key[0] != "binding" or key[2] != "queue":
        return False
    asker = environments_of(key[3], "replies")
    if asker is None or environments_of(key[1], "reply") is None or ("queue", key[3]) not in wanted:
        return False
    read = wanted.get(("permission", account(asker[0])), {}).get("read", "")
    return f"|{objects.literal(key[1])}|" in f"|{read[2:-2]}|"


def document(wanted: Objects, change: Difference, vhost: str, passwords: Mapping[str, str]) -> dict[str, Any]:
    """Return the definitions to import for *change*: only the missing and the differing objects.

    :param passwords: the passwords of the accounts in *wanted*, by the environment that owns the account.
    """
    sections: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("users", "permissions", "queues", "exchanges", "bindings", "policies", "parameters")
    }
    users = set(change.passwords)
    for key in (*change.create, *change.change):
        value = wanted[key]
        if key[0] == "user":
            users.add(key[1])
        elif key[0] == "permission":
            sections["permissions"].append({"user": key[1], "vhost": vhost, **value})
        elif key[0] == "binding":
            sections["bindings"].append(
                {
                    "source": key[1],
                    "vhost": vhost,
                    "destination_type": key[2],
                    "destination": key[3],
                    "routing_key": key[4],
                    **value,
                }
            )
        elif key[0] == "shovel":
            sections["parameters"].append({"component": "shovel", "name": key[1], "vhost": vhost, **value})
        else:
            section = "policies" if key[0] == "policy" else f"{key[0]}s"
            sections[section].append({"name": key[1], "vhost": vhost, **value})
    for name in sorted(users):
        sections["users"].append(
            {
                "name": name,
                "password_hash": hashed(passwords[name.partition(".")[2]]),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                **wanted["user", name],
            }
        )
    return {name: entries for name, entries in sections.items() if entries}


def hashed(password: str, salt: bytes | None = None) -> str:
    """Return RabbitMQ's salted SHA-256 hash of a password: ``base64(salt || sha256(salt || password))``.

    The salt has 4 bytes. https://www.rabbitmq.com/docs/passwords#computing-password-hash

    :param salt: the salt; None: a random one.
    """
    if not password:
        return ""  # the account logs in by certificate; RabbitMQ accepts no password for an empty hash
    salt = secrets.token_bytes(4) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def verify(password: str, known: str) -> bool:
    """Return whether *known* is a hash that :func:`hashed` made from *password*."""
    if not password:
        return not known
    try:
        raw = base64.b64decode(known, validate=True)
    except ValueError:
        return False
    return len(raw) == 36 and hmac.compare_digest(hashed(password, raw[:4]), known)
