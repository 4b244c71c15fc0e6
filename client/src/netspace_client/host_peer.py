"""Requests to the host of this environment, as the peer ``host``: ``mailbox.host.whoami()``.

``docs/host-peer.md`` is the specification of requests and answers. An answer is only the host's claim: it contains no
proof.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from netspace_client.errors import HostRefused, LinkError, NotDeclared, Timeout, Unreachable
from netspace_client.host_answers import Child, Delegation, Offer, Sealed, Self, Signature, Trust

if TYPE_CHECKING:
    from netspace_client.mailbox import Mailbox

NAME = "host"
VERSION = 1
CONTENT_TYPE = "application/vnd.netspace.host+json"
TIMEOUT = 30.0
PATIENCE = 30.0
"""The seconds for which a host waits for a change of its answer."""


class HostPeer:
    """The host of this environment, as the object ``mailbox.host``."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs that the declaration permits to this environment; empty: none."""
        peer = self._mailbox.card.peers.get(NAME)
        return () if peer is None else peer.verbs

    async def whoami(self, *, timeout: float = TIMEOUT) -> Self:
        """Return this environment as its host describes it. The errors are those of :meth:`ask`."""
        found = await self.ask("whoami", timeout=timeout)
        trust = _table(found, "trust")
        return Self(
            name=_text(found, "name"),
            image=_text(found, "image"),
            configuration=_text(found, "configuration"),
            started=_number(found, "started"),
            host=None if found.get("host") is None else _text(found, "host"),
            trust=Trust(_text(trust, "level"), _text(trust, "verifier"), _text(trust, "told_by")),
        )

    async def values(self, *, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Return the values that the declaration gives to this environment. The errors are those of :meth:`ask`.

        ``mailbox.values`` has the same values, without a message to the host.
        """
        return dict(_table(await self.ask("values", timeout=timeout), "values"))

    async def who(self, service: str, *, timeout: float = TIMEOUT) -> list[Offer]:
        """Return the peers that offer *service* and to which this environment may send, sorted by name.

        The errors are those of :meth:`ask`.
        """
        return _offers(await self.ask("who", {"service": service}, timeout=timeout))

    async def who_changes(self, service: str) -> AsyncIterator[list[Offer]]:
        """Yield the answer of :meth:`who` now, and then whenever it has changed.

        A change is noticed within two seconds. If there are several changes in this time, only the last one is yielded.
        If no answer comes, the iterator asks again.

        :raises HostRefused: the host refuses; the error's ``code`` is the reason.
        :raises NotDeclared: the declaration permits this environment no requests to its host, or no longer.
        """
        state: str | None = None
        while True:
            asked = time.monotonic()
            try:
                found = await self.ask(
                    "who", {"service": service, **({"unless": state} if state else {})}, timeout=PATIENCE + TIMEOUT
                )
            except (Timeout, Unreachable):
                await asyncio.sleep(1.0)
                continue
            if (now := _text(found, "state")) != state:
                state = now
                yield _offers(found)
            elif time.monotonic() - asked < 1.0:  # the host can't wait for a change now
                await asyncio.sleep(1.0)

    async def attest(self, nonce: str, *, key: str | None = None, timeout: float = TIMEOUT) -> str:
        """Return a proof of where this program runs, for the party that chose *nonce*.

        The proof is JSON text; pass it on unchanged. ``docs/host-peer.md`` describes its form. The errors are those of
        :meth:`ask`. If the host can't vouch for the program now, the error is ``HostRefused`` with the code
        ``not-available``.

        :param nonce: the other party's question: 16 to 88 characters of base64url.
        :param key: the thumbprint (RFC 7638, SHA-256) of a key that this program owns. The proof then names this key.
        """
        given = {"nonce": nonce, **({} if key is None else {"key": key})}
        return _text(await self.ask("attest", given, timeout=timeout), "evidence")

    async def spawn(
        self, template: str, name: str, values: Mapping[str, Any] | None = None, *, timeout: float = TIMEOUT
    ) -> Child:
        """Start a child by a template of the declaration, and return it; its program runs.

        The errors are those of :meth:`ask`; ``HostRefused`` has one of the codes ``template-unknown``, ``name-in-use``,
        ``too-many``, ``arguments-invalid`` (the values aren't those of the template) and ``not-available``.

        After ``Timeout`` it is unknown whether the child was started; :meth:`children` shows it.

        :param name: a name for the child, which no other child has: 1 to 48 of ``a-z``, ``0-9``, ``-`` and ``_``.
        :param values: values for the child, in place of those of the template.
        """
        given = {"template": template, "name": name, "values": dict(values or {})}
        return _child(await self.ask("spawn", given, timeout=timeout))

    async def end(self, name: str, *, timeout: float = TIMEOUT) -> None:
        """End a child, and wait until it is gone.

        The errors are those of :meth:`ask`; ``HostRefused`` has the code ``child-unknown`` if there is no child of this
        name.
        """
        await self.ask("end", {"name": name}, timeout=timeout)

    async def children(self, *, timeout: float = TIMEOUT) -> list[Child]:
        """Return the children of this environment that run, sorted by name. The errors are those of :meth:`ask`."""
        found = (await self.ask("children", timeout=timeout)).get("children")
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise LinkError("the host's answer has no children")
        return [_child(one) for one in found]

    async def delegate(
        self,
        link: str,
        to: str,
        *,
        rate: float | None = None,
        size: int | None = None,
        until: float | None = None,
        timeout: float = TIMEOUT,
    ) -> Delegation:
        """Let a peer send, for some time, to the receiver of one of our links; return the delegated right.

        The errors are those of :meth:`ask`; ``HostRefused`` has one of the codes ``link-unknown`` (this environment may
        not delegate this link to this peer), ``beyond-right`` (it may delegate only lower limits), ``name-in-use`` (the
        peer has the right already), ``too-many``, ``arguments-invalid`` (*until* is in the past) and ``not-available``.

        After ``Timeout`` it is unknown whether the peer has the right; :meth:`delegations` shows it.

        :param link: the receiver of the link, by the name by which this program sends to it.
        :param to: the peer, by the name by which this program sends to it.
        :param rate: the most messages per second. By default as declared.
        :param size: the most bytes of a message's body. By default as declared.
        :param until: when the right ends, in seconds since 1970. By default, and at the latest, after the declared
            lifetime.
        """
        given = {"rate": rate, "size": size, "until": until}
        limits = {key: value for key, value in given.items() if value is not None}
        return _delegation(await self.ask("delegate", {"link": link, "to": to, **limits}, timeout=timeout))

    async def revoke(self, link: str, to: str, *, timeout: float = TIMEOUT) -> None:
        """End a right that this environment delegated, and all rights that derive from it; wait until they are gone.

        Messages that were sent by these rights and not delivered yet are deleted. The errors are those of :meth:`ask`;
        ``HostRefused`` has the code ``delegation-unknown`` if there is no such right.
        """
        await self.ask("revoke", {"link": link, "to": to}, timeout=timeout)

    async def delegations(self, *, timeout: float = TIMEOUT) -> list[Delegation]:
        """Return the rights that this environment delegated and that are in force, sorted. Errors: see :meth:`ask`."""
        found = (await self.ask("delegations", timeout=timeout)).get("delegations")
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise LinkError("the host's answer has no delegations")
        return [_delegation(one) for one in found]

    async def seal(
        self,
        value: bytes,
        *,
        image: bool = True,
        boot: bool = True,
        at_least: str = "file",
        timeout: float = TIMEOUT,
    ) -> Sealed:
        """Let the host encrypt a value that only this environment on this host can open again.

        The errors are those of :meth:`ask`; ``HostRefused`` has the code ``not-available`` if the host's keys are kept
        in something weaker than *at_least*, or can't be used now.

        :param value: at most 4096 bytes.
        :param image: whether only the same image may open it. After an update, other images can't.
        :param boot: whether it may be opened only while the host's PCRs have the same values, which an update of the
            host's kernel or firmware changes. Only a TPM can enforce that; the result tells whether it does.
        :param at_least: the weakest holder of the key that the program accepts: ``file``, ``token`` or ``tpm``.
        """
        given = {"value": _encoded(value), "image": image, "boot": boot, "at_least": at_least}
        found = await self.ask("seal", given, timeout=timeout)
        return Sealed(_text(found, "sealed"), _text(found, "kept_in"), found.get("boot") is True)

    async def unseal(self, sealed: str, *, timeout: float = TIMEOUT) -> bytes:
        """Return the value that :meth:`seal` sealed.

        The errors are those of :meth:`ask`; ``HostRefused`` has the code ``sealed-elsewhere`` if it was sealed for
        another environment, image, host or boot, or was changed.

        :param sealed: the text of a :class:`Sealed`.
        """
        return _decoded(_text(await self.ask("unseal", {"sealed": sealed}, timeout=timeout), "value"))

    async def sign(
        self,
        message: bytes,
        *,
        image: bool = True,
        boot: bool = True,
        at_least: str = "file",
        key: str | None = None,
        timeout: float = TIMEOUT,
    ) -> Signature:
        """Sign a message (ES256) by a key of this environment, which no program can read.

        The errors are those of :meth:`ask`; ``HostRefused`` has the code ``key-changed`` if the key isn't *key*, or
        ``not-available`` as for :meth:`seal`.

        :param image: whether the key is one that other images don't have.
        :param boot: whether the key is one that can be used only while the host's PCRs have the same values.
        :param at_least: as for :meth:`seal`.
        :param key: the thumbprint (RFC 7638, SHA-256) of the expected key.
        """
        given = {"digest": _encoded(hashlib.sha256(message).digest()), "image": image, "boot": boot}
        more = {"at_least": at_least, **({} if key is None else {"key": key})}
        found = await self.ask("sign", {**given, **more}, timeout=timeout)
        public = {name: _text(_table(found, "key"), name) for name in ("crv", "kty", "x", "y")}
        return Signature(
            _decoded(_text(found, "signature")), public, _text(found, "kept_in"), found.get("boot") is True
        )

    async def ask(
        self, verb: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = TIMEOUT
    ) -> dict[str, Any]:
        """Send the request *verb* to the host, and return the answer.

        :param arguments: the arguments of the verb, as JSON values.
        :param timeout: seconds to wait for the answer.
        :raises NotDeclared: the declaration permits this environment no requests to its host.
        :raises HostRefused: the host refuses; the error's ``code`` is the reason.
        :raises LinkError: the same errors as :meth:`Mailbox.call`, or the answer can't be understood.
        """
        if NAME not in self._mailbox.card.peers:
            about = self._mailbox.card.name
            raise NotDeclared(f"{about} may not send {verb} to its host; list it under host: in its declaration")
        body = json.dumps({"v": VERSION, "verb": verb, "arguments": dict(arguments or {})})
        message = await self._mailbox.call(NAME, body, timeout, content_type=CONTENT_TYPE)
        return parse(message.body)


def parse(body: bytes) -> dict[str, Any]:
    """Return the answer in a message of the host.

    :raises HostRefused: the message is a refusal.
    :raises LinkError: the message can't be understood.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as err:
        raise LinkError(f"the host's answer can't be understood: {err}") from None
    if not isinstance(found, dict) or found.get("v") != VERSION:
        raise LinkError(f"the host's answer isn't of version {VERSION}")
    if found.get("error") is not None:
        error = _table(found, "error")
        raise HostRefused(_text(error, "code"), _text(error, "text"))
    return dict(_table(found, "answer"))


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except ValueError:
        raise LinkError("the host's answer has no base64url where it should") from None


def _offers(answer: Mapping[str, Any]) -> list[Offer]:
    found = answer.get("peers")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise LinkError("the host's answer has no peers")
    return [
        Offer(
            _text(one, "name"),
            _text(one, "pattern"),
            one.get("up") is True,
            None if one.get("health") is None else _text(one, "health"),
        )
        for one in found
    ]


def _child(answer: Mapping[str, Any]) -> Child:
    until = _number(answer, "until")
    if until is None:
        raise LinkError("the host's answer has no until")
    return Child(_text(answer, "name"), _text(answer, "environment"), until)


def _delegation(answer: Mapping[str, Any]) -> Delegation:
    until, size = _number(answer, "until"), _number(answer, "size")
    if until is None:
        raise LinkError("the host's answer has no until")
    return Delegation(
        _text(answer, "link"),
        _text(answer, "to"),
        _text(answer, "environment"),
        _number(answer, "rate"),
        None if size is None else int(size),
        until,
    )


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key)
    if not isinstance(value, dict):
        raise LinkError(f"the host's answer has no {key}")
    return value


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str):
        raise LinkError(f"the host's answer has no {key}")
    return value


def _number(table: Mapping[str, Any], key: str) -> float | None:
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise LinkError(f"the host's answer has no {key}")
    return float(value)
