"""The root of a fleet's links on the master
=========================================

Hosts with links between them trust one root certificate. Below the root, each host has an authority, which can issue
only names of that host. ``certify`` issues the certificate of a minion's authority over Salt's bus; the authority's key
never leaves the minion. ``sign`` issues such a certificate for a host without a master, or on the machine that keeps
the root. ``exchange_seals`` exchanges the keys for sealed links between hosts. On a refusal, a function returns
``error``, and the command's exit status is 1.

The master's configuration may have (this is the default)::

    netspace.link:
      root: /var/lib/netspace-master/link-root   # a folder, 0700: the root's key and certificate
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.link.pki.root import NAME, Root, configured  # noqa: E402
from netspace.plugin import arguments, master  # noqa: E402
from netspace.plugin.minions import Minions  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_link"


def __virtual__() -> str:
    return __virtualname__


def root() -> Any:
    """
    Return the root's certificate (PEM). Make the root if there is none.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.root
    """
    return _answer(lambda: _root().make(NAME))


def sign(request: str, trust_domain: str) -> Any:
    """Return the certificate (PEM) of a host's authority, followed by the
    root's.

    request
        File with the output of ``netspace_link.authority_request`` on
        the host.

    trust_domain
        The host's own trust domain. The host's authority can issue only
        names in this domain. **The sender of the request can act as
        this host**: make sure that the request came from the host.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.sign /root/h1.csr h1.example.org \\
            --out=newline_values_only > h1.pem
    """
    return _answer(lambda: _signed(Path(request).read_text(), trust_domain))


def certify(minion: str, trust_domain: str, folder: str = "/etc/netspace/authority", timeout: int = 60) -> Any:
    """Issue the certificate of a minion's authority and install it there;
    return whether it is a new one.

    The minion makes the authority's key, and the key stays there. The
    next apply of the minion's links makes this authority issue the
    certificates of all environments again.

    minion
        The minion's id; no pattern.

    trust_domain
        The host's own trust domain, as in its ``broker: {trust_domain:
        ...}``. No two hosts may have the same.

    folder
        The authority's folder on the minion, as in its ``broker:
        {authority: ...}``.

    timeout
        Seconds to wait for each of the minion's two answers.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.certify h1 h1.example.org
    """

    def work() -> bool:
        minions, seconds = _minions(), arguments.seconds(timeout)
        request = minions.asked(minion, "netspace_link.authority_request", {"folder": folder}, seconds)
        chain = _signed(str(request), trust_domain)
        return bool(minions.asked(minion, "netspace_link.authority_adopt", {"chain": chain, "folder": folder}, seconds))

    return _answer(work)


def certified() -> Any:
    """Return, for each issued trust domain, the key of the host's authority
    (SHA-256 of SubjectPublicKeyInfo).

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.certified
    """
    return _answer(lambda: _root().given())


def release(trust_domain: str) -> Any:
    """Release a trust domain, so that the next host that requests it gets it;
    return ``True``.

    Call this function for a host that was reinstalled and has lost its
    key.

    **The function revokes nothing**: anybody with the old key can act
    as the host until its certificate ends, two years after ``certify``.
    If somebody else may have the old key, don't release the trust
    domain; give the new host another one.

    trust_domain
        The trust domain of the old host.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.release h1.example.org
    """

    def work() -> bool:
        _root().release(trust_domain)
        return True

    return _answer(work)


def exchange_seals(target: str = "*", tgt_type: str = "glob", timeout: int = 60) -> dict[str, Any]:
    """Exchange the keys for sealed links between hosts.

    Return ``exchanged`` (for each host, the other hosts whose new keys
    it got) and ``problems``. If there are problems, the exit status is
    1.

    The keys are public, and the master can't forge them: each host
    verifies the others' keys by the root that it trusts. Call this
    function for new sealed links between hosts, and then once a day by
    a schedule: a key is valid for 90 days, and renewed after 30 days.

    target, tgt_type
        Salt target and its type. The target must match all minions with
        sealed links to or from other hosts.

    timeout
        Seconds to wait for each answer of the minions.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_link.exchange_seals
        salt-run netspace_link.exchange_seals 'h1,h2' list
    """
    from netspace.link.seal.exchange import exchange

    minions = _minions()

    def ask() -> dict[str, Any]:
        seconds = arguments.seconds(timeout)
        return minions.ask(minions.targeted(target, tgt_type), "netspace_link.seal_bundles", {}, seconds)

    def hand(minion: str, bundles: Sequence[str]) -> Any:
        answers = minions.ask([minion], "netspace_link.seal_adopt", {"bundles": list(bundles)}, timeout)
        return answers.get(minion, NetspaceError(f"did not answer within {timeout} s"))

    try:
        done = exchange(ask, hand)
    except NetspaceError as err:
        return {"error": str(err), "retcode": 1}
    return {**done, "retcode": 1} if done["problems"] else done


def _answer(work: Callable[[], Any]) -> Any:
    """Return the result of *work*. On a refusal, return its text with Salt's key for the exit status; never raise."""
    try:
        return work()
    except (NetspaceError, OSError, ValueError) as err:
        return {"error": str(err), "retcode": 1}


def _signed(request: str, trust_domain: str) -> str:
    found = _root()
    found.make(NAME)
    return found.certify(request, trust_domain)


def _root() -> Root:
    return configured(__opts__.get("netspace.link"))


def _minions() -> Minions:
    return master.minions(__opts__, import_module)
