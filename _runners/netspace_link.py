"""
The root of a fleet's links on the master
=========================================

Hosts whose environments are linked trust one root, and each has an authority below it that is good for
names of that host alone. ``certify`` gives a minion its own, over Salt's bus; the minion's key never leaves it.
``sign`` does the same for a host without a master, or where the root is kept elsewhere. ``exchange_seals`` has hosts
know what they need of each other for sealed links. What is refused is told as ``error``, and the command's exit
status is 1.

The master's configuration may have (this is the default)::

    netspace.link:
      root: /var/lib/netspace-master/link-root   # a folder, 0700: the root's key and certificate
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.link.root import Root  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_link"

ROOT = "/var/lib/netspace-master/link-root"
NAME = "netspace links"


def __virtual__() -> str:
    return __virtualname__


def root() -> Any:
    """
    Return the root's certificate (PEM); the root is made where there is none.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.root
    """
    return _answer(lambda: _root().make(NAME))


def sign(request: str, trust_domain: str) -> Any:
    """
    Return the certificate (PEM) of a host's authority, and the root's after it.

    request
        File of what ``netspace_link.authority_request`` gave on that host.

    trust_domain
        The host's own: its authority is good for names of it alone. **Whoever has it, is that host**: make sure that
        the request is of it.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.sign /root/h1.csr h1.example.org --out=newline_values_only > h1.pem
    """
    return _answer(lambda: _signed(Path(request).read_text(), trust_domain))


def certify(minion: str, trust_domain: str, folder: str = "/etc/netspace/authority", timeout: int = 60) -> Any:
    """
    Give a minion an authority for its links; return whether it is another than before.

    Its key is made there and stays there. The next apply of its links issues everything by it.

    minion
        The minion's id; no pattern.

    trust_domain
        The host's own, as its ``broker: {trust_domain: ...}`` says: no two hosts may have the same.

    folder
        Where the minion keeps it: its ``broker: {authority: ...}``.

    timeout
        Seconds that the minion may take for each of two answers.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.certify h1 h1.example.org
    """

    def work() -> bool:
        request = _asked(minion, "authority_request", {"folder": folder}, timeout)
        chain = _signed(str(request), trust_domain)
        return bool(_asked(minion, "authority_adopt", {"chain": chain, "folder": folder}, timeout))

    return _answer(work)


def certified() -> Any:
    """
    Return which trust domain was given to which host's key (SHA-256 of its SubjectPublicKeyInfo).

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.certified
    """
    return _answer(lambda: _root().given())


def release(trust_domain: str) -> Any:
    """
    Let the next host that asks for a trust domain have it; return ``True``. For a host that was installed anew and has
    lost its key.

    **It revokes nothing**: whoever has the former key can be that host until its certificate ends, two years after
    ``certify``. If somebody else may have that key, give the new host another trust domain, and release none.

    trust_domain
        That of the host which is gone.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.release h1.example.org
    """

    def work() -> bool:
        _root().release(trust_domain)
        return True

    return _answer(work)


def exchange_seals(target: str = "*", tgt_type: str = "glob", timeout: int = 60) -> dict[str, Any]:
    """
    Have minions know what they need of each other's keys for sealed links between hosts; return per host of which
    others it heard something new (``exchanged``), and what went wrong (``problems``; the exit status is then 1).

    Nothing secret is carried, and nothing that the master could forge: each host checks what the others say by the root
    that it trusts. Do it when sealed links between hosts are new, and from then on by a schedule, once a day: a key is
    good for 90 days, and renewed after 30.

    target, tgt_type
        The minions, all of those that such links lead to or come from: what only some say is not enough.

    timeout
        Seconds that minions may take for each answer.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.exchange_seals
        salt-run netspace_link.exchange_seals 'h1,h2' list
    """
    from netspace.link.exchange import exchange

    def ask() -> dict[str, Any]:
        return _ask(target, tgt_type, "seal_bundles", {}, timeout)

    def hand(minion: str, bundles: Sequence[str]) -> Any:
        answers = _ask([minion], "list", "seal_adopt", {"bundles": list(bundles)}, timeout)
        return answers.get(minion, NetspaceError(f"did not answer within {timeout} s"))

    try:
        done = exchange(ask, hand)
    except NetspaceError as err:
        return {"error": str(err), "retcode": 1}
    return {**done, "retcode": 1} if done["problems"] else done


def _answer(work: Callable[[], Any]) -> Any:
    """Return what *work* returns; of a refusal its text, with Salt's key for the exit status, and no traceback."""
    try:
        return work()
    except (NetspaceError, OSError, ValueError) as err:
        return {"error": str(err), "retcode": 1}


def _signed(request: str, trust_domain: str) -> str:
    found = _root()
    found.make(NAME)
    return found.certify(request, trust_domain)


def _root() -> Root:
    given = __opts__.get("netspace.link") or {}
    if not isinstance(given, dict) or set(given) - {"root"} or not isinstance(given.get("root", ROOT), str):
        raise NetspaceError("master configuration: netspace.link: there is root, a folder, and nothing else")
    return Root(Path(given.get("root", ROOT)))


def _asked(minion: str, function: str, arguments: dict[str, Any], timeout: int) -> Any:
    answers = _ask([minion], "list", function, arguments, timeout)  # a name may look like a pattern
    if minion not in answers:
        raise NetspaceError(f"{minion} did not answer within {timeout} s")
    if isinstance(answers[minion], NetspaceError):
        raise NetspaceError(f"{minion}: {answers[minion]}")
    return answers[minion]


def _ask(
    target: str | list[str], tgt_type: str, function: str, arguments: dict[str, Any], timeout: int
) -> dict[str, Any]:
    """Return each minion's answer that comes within *timeout* seconds; an error where a minion failed."""
    import salt.client
    import salt.utils.minions
    from salt.exceptions import SaltException

    from netspace.attestation import bus

    minions = bus.hosts(salt.utils.minions.CkMinions(__opts__), target, tgt_type)
    if not minions:
        return {}
    try:
        with salt.client.get_local_client(mopts=__opts__) as client:
            salt_bus = bus.SaltBus(client, "netspace_link", timeout, SaltException)
            replies = bus.ask(salt_bus, minions, function, arguments, timeout)
    except SaltException as err:
        raise NetspaceError(f"{target} can't be asked: {err}") from err
    return {minion: NetspaceError(reply.problem) if reply.problem else reply.value for minion, reply in replies.items()}
