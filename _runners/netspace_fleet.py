"""
A fleet in one declaration, on the master
=========================================

``check`` tells whether the declaration is right, ``join`` brings hosts into the fleet and ``leave`` takes them out of
it. ``slice`` shows what one minion gets. ``can``, ``paths_to`` and ``graph`` show who may reach whom. The declaration's
file is named in the master's configuration, under ``ext_pillar``: see the page on fleets. On a refusal, the command's
exit status is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.fleet import joining, leaving  # noqa: E402
from netspace.fleet.compile import Compiled  # noqa: E402
from netspace.fleet.declaration import REGISTER, FleetDeclaration  # noqa: E402
from netspace.fleet.reach import Reach  # noqa: E402
from netspace.fleet.types import Fleet, Problem  # noqa: E402
from netspace.link.pki.root import configured  # noqa: E402
from netspace.plugin import arguments, fleet_files  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __salt__: dict[str, Any]

__virtualname__ = "netspace_fleet"

__func_alias__ = {"slice_": "slice"}

MAX_SHOWN = 1000
"""The most problems and moves that are shown."""


def __virtual__() -> str:
    return __virtualname__


def check() -> dict[str, Any]:
    """
    Check the declaration of the whole fleet; change nothing.

    Return ``ok`` and the numbers of hosts, environments and links; ``problems``, each with file, path and reason;
    ``missing``: things that the fleet waits for, though the declaration is right; and ``moves``: environments whose
    hosts change, with the reason. A declaration with problems isn't put in force. The exit status is then 1.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.check
    """

    def work() -> dict[str, Any]:
        compiled = _declaration().check()
        found: dict[str, Any] = {"ok": not compiled.problems}
        if compiled.declared is not None:
            found["hosts"] = len(compiled.declared.hosts)
            found["environments"] = len(compiled.declared.environments)
            found["links"] = len(compiled.declared.links)
        found["problems"] = [one._asdict() for one in compiled.problems[:MAX_SHOWN]]
        found["missing"] = [one.text for one in compiled.missing[:MAX_SHOWN]]
        found["moves"] = [
            {"environment": one.environment, "old": list(one.old), "new": list(one.new), "reason": one.reason}
            for one in compiled.moves[:MAX_SHOWN]
        ]
        return found

    return _answer(work, lambda found: bool(found["ok"]))


def slice_(minion: str) -> dict[str, Any]:
    """
    Return a minion's slice: the pillar that this minion, and no other, gets from the fleet's declaration.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.slice h1

    minion
        The minion's id.
    """

    def work() -> dict[str, Any]:
        answer = _declaration().answer(str(minion))
        if answer.pillar is None:
            raise NetspaceError(f"{minion} is no host of the fleet; declare it under hosts")
        return answer.pillar

    return _answer(work)


def can(source: str, target: str) -> dict[str, Any]:
    """
    Tell whether one end of the fleet may reach another by messages or packets, and by which rule of the declaration.

    Return the keys of ``netspace.can``. The answer is that of the declaration's files as they are now.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_fleet.can web orders
        salt-run --out=netspace netspace_fleet.can web@h1 198.51.100.7

    source
        An environment (all its replicas), one replica (``web@h1``), or an address or network outside.

    target
        Likewise. One of the two must be an environment.
    """
    return _answer(lambda: _reach().can(source, target))


def paths_to(end: str) -> dict[str, Any]:
    """
    Return everything in the fleet that may reach an end, directly or through other environments.

    Return the keys of ``netspace.paths_to``. The answer is that of the declaration's files as they are now.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_fleet.paths_to vault

    end
        An environment (all its replicas), one replica (``vault@h2``), or an address or network outside.
    """
    return _answer(lambda: _reach().paths_to(end))


def graph(form: str = "mermaid") -> str | dict[str, Any]:
    """
    Return a picture of the fleet as text: hosts, their environments, and who may reach whom.

    It shows the declaration's files as they are now. Equal declarations have equal pictures.

    CLI Example:

    .. code-block:: bash

        salt-run --out=newline_values_only netspace_fleet.graph
        salt-run --out=newline_values_only netspace_fleet.graph form=dot | dot -Tsvg > fleet.svg
        salt-run --out=newline_values_only netspace_fleet.graph form=html > fleet.html

    form
        ``mermaid``, ``dot`` (Graphviz), or ``html``: a page with a drawing and a table, which needs nothing else.
        Defaults to ``mermaid``.
    """
    from netspace.plugin.fleet_picture import picture

    try:
        return picture(form, _reach())
    except (NetspaceError, OSError, ValueError) as err:
        return {"error": str(err), "retcode": 1}


def join(*hosts: str, timeout: int = 60, **others: object) -> dict[str, Any]:
    """
    Bring hosts into the fleet. Joining a host again changes nothing, or does what was still missing.

    For each host: the master certifies the host's authority, which makes its own key and keeps it
    (``netspace_link.certify``). It learns the public half of the host's names key (``netspace_link.public_key``). If
    the host's ``attestation`` has ``verifier: master``, it enrols the host's TPM and attests it. Then the declaration
    is put in force with these facts, and hosts with sealed links to or from the new ones exchange their keys
    (``netspace_link.exchange_seals``).

    Return for each host ``changes``, and ``missing`` with the remedies. The exit status is 1 if a host can't join. It
    is 0 if only something is still missing.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.join h3
        salt-run netspace_fleet.join h1 h2 h3

    hosts
        Names of hosts, or ids of their minions.

    timeout
        Seconds to wait for each answer of a minion.
    """
    arguments.refuse_others(others)

    def work() -> dict[str, Any]:
        declaration = _declaration()
        compiled, fleet = _compiled(declaration, but=REGISTER)  # which joining repairs
        names = _named(fleet, hosts)
        found: dict[str, Any] = {}
        root = configured(__opts__.get("netspace.link"))
        for host in names:
            settings = compiled.slices[fleet.minion(host)]["netspace"]
            minion = _Minion(fleet.minion(host), timeout)
            try:
                joined = joining.join(fleet, host, settings, declaration.register, root, minion)
            except (NetspaceError, OSError, ValueError) as err:
                found[host] = {"error": str(err)}
                continue
            found[host] = {"changes": joined.changes, "missing": joined.missing}
        if (refusal := declaration.apply()) is not None:
            raise NetspaceError(f"{refusal.count} problems: salt-run netspace_fleet.check")
        after, _ = _compiled(declaration)
        for host in names:
            if "missing" in found[host]:
                found[host]["missing"] += _missing(after, fleet, host, timeout)
        return found

    return _answer(work, lambda found: not any("error" in one for one in found.values()))


def leave(*hosts: str, release: bool = False, **others: object) -> dict[str, Any]:
    """
    Take hosts out of the fleet. After the next apply, no other host has links to or from them.

    It works whatever state the declaration is in: if it has problems, the hosts are taken out of the slices in force,
    and there is a ``warning``. Return for each host whether it had joined (``left``), and the hosts that have to apply
    their pillar. The exit status is 1 if a host has an ``error``. To have its environments placed elsewhere, take the
    host out of the declaration, too.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.leave h3
        salt-run netspace_fleet.leave h3 release=True

    hosts
        Names of hosts, or ids of their minions.

    release
        Whether another machine may get the host's trust domain. **It revokes nothing**: see ``netspace_link.release``.
    """
    arguments.refuse_others(others)

    def work() -> dict[str, Any]:
        root = configured(__opts__.get("netspace.link")) if release else None
        return leaving.leave(_declaration(), list(map(str, hosts)), root)

    return _answer(work, lambda found: bool(found) and not any("error" in one for one in found.values()))


class _Minion:
    """One minion on Salt's bus, and the runners about it."""

    def __init__(self, minion: str, timeout: int) -> None:
        self._minion, self._timeout = minion, timeout

    def call(self, function: str, **given: Any) -> Any:
        answers = _ask([self._minion], function, given, self._timeout)
        answer = answers.get(self._minion, NetspaceError(f"no answer within {self._timeout} s; is its key accepted?"))
        if isinstance(answer, NetspaceError):
            raise NetspaceError(f"{self._minion}: {function}: {answer}")
        return answer

    def attest(self) -> str:
        for function, given in (("enroll", (self._minion,)), ("attest", ([self._minion], "list"))):
            found = __salt__[f"netspace_attestation.{function}"](*given)
            if "error" in found:
                raise NetspaceError(f"netspace_attestation.{function}: {found['error']}")
        standing = found.get(self._minion)
        if not isinstance(standing, dict) or "level" not in standing:
            raise NetspaceError(f"netspace_attestation.attest: {self._minion} did not answer")
        return str(standing["level"])


def _declaration() -> FleetDeclaration:
    import salt.fileserver
    import salt.loader
    import salt.template
    import salt.utils.event

    return fleet_files.declaration(
        __opts__,
        fleet_files.root(__opts__),
        salt.fileserver.Fileserver,
        salt.loader.render,
        salt.template.compile_template,
        salt.utils.event.get_event,
    )


def _reach() -> Reach:
    """Return who may reach whom.

    :raises NetspaceError: the declaration has problems.
    """
    compiled = _declaration().check(edges=True)
    _sound(compiled.problems)
    return Reach(compiled.edges, compiled.placed)


def _sound(problems: Sequence[Problem]) -> None:
    """Refuse a declaration with problems.

    :raises NetspaceError: there are some.
    """
    if problems:
        raise NetspaceError(f"{len(problems)} problems (the first: {problems[0]}): salt-run netspace_fleet.check")


def _compiled(declaration: FleetDeclaration, but: str = "") -> tuple[Compiled, Fleet]:
    """Return the declaration as it is now.

    :param but: the path of problems that don't matter.
    :raises NetspaceError: it has problems.
    """
    compiled = declaration.check()
    _sound([one for one in compiled.problems if one.path != but])
    if compiled.declared is None:
        raise NetspaceError("the declaration can't be parsed: salt-run netspace_fleet.check")
    return compiled, compiled.declared


def _host(fleet: Fleet, name: str) -> str | None:
    """Return the host that a name or a minion's id means; None if there is none."""
    if name in fleet.hosts:
        return name
    return next((host for host in fleet.hosts if fleet.minion(host) == name), None)


def _named(fleet: Fleet, hosts: Iterable[str]) -> list[str]:
    names = [(str(name), _host(fleet, str(name))) for name in hosts]
    if unknown := [name for name, host in names if host is None]:
        raise NetspaceError(f"{', '.join(unknown)}: no host of the fleet; declare it under hosts first")
    if not names:
        raise NetspaceError("name one host or several")
    return list(dict.fromkeys(host for _, host in names if host is not None))


def _missing(compiled: Compiled, fleet: Fleet, host: str, timeout: int) -> list[str]:
    """Return what a joined host still lacks, after an exchange of seals with its peers."""
    minion = fleet.minion(host)
    ends = {name for name, placed in compiled.placed.items() if host in placed}
    others = {end for link in fleet.links if {link.source, link.target} & ends for end in (link.source, link.target)}
    concerned = {host} | ends | {other for end in others for other in compiled.placed.get(end, ())}
    missing = [one.text for one in compiled.missing if one.subject in concerned]
    sealed = {fleet.minion(peer): peer for peer in joining.sealed_peers(compiled.slices[minion]["netspace"])}
    if sealed:
        problems, answers = _exchanged([minion, *sorted(sealed)], timeout)
        missing += [f"seals: {problem}" for problem in problems[:5]]
        missing += joining.unapplied(answers, minion, host, sealed)
    return missing


def _exchanged(minions: Sequence[str], timeout: int) -> tuple[list[str], dict[str, Any]]:
    """Exchange seals between hosts; return the problems, and the last answers of the minions."""
    from netspace.link.seal.exchange import exchange

    answers: dict[str, Any] = {}

    def ask() -> dict[str, Any]:
        answers.update(_ask(list(minions), "netspace_link.seal_bundles", {}, timeout))
        return answers

    def hand(minion: str, bundles: Sequence[str]) -> Any:
        adopted = _ask([minion], "netspace_link.seal_adopt", {"bundles": list(bundles)}, timeout)
        return adopted.get(minion, NetspaceError(f"did not answer within {timeout} s"))

    return exchange(ask, hand)["problems"], answers


def _ask(minions: list[str], function: str, arguments: dict[str, Any], timeout: int) -> dict[str, Any]:
    """Return the minions' own answers within *timeout* seconds, by minion; an error for a minion that failed."""
    import salt.cache
    import salt.client
    import salt.utils.verify
    from salt.exceptions import SaltException

    from netspace.attestation import identity
    from netspace.attestation.fleet import bus, own_answers
    from netspace.plugin import salt_keys

    identities = identity.Identities(
        salt_keys.master(__opts__),
        lambda minion: salt_keys.accepted(__opts__, minion, salt.utils.verify.valid_id, salt.cache.Cache),
    )
    try:
        with salt.client.get_local_client(mopts=__opts__) as client:
            salt_bus = bus.SaltBus(client, own_answers.MODULE, timeout, SaltException)
            return own_answers.ask(salt_bus, identities, minions, function, arguments, timeout)
    except SaltException as err:
        raise NetspaceError(f"{', '.join(minions)}: can't be asked: {err}") from err


def _answer(work: Callable[[], dict[str, Any]], good: Callable[[dict[str, Any]], bool] = bool) -> dict[str, Any]:
    """Return the result of *work*, with Salt's key for the exit status if it isn't good; never raise."""
    try:
        found = work()
    except (NetspaceError, OSError, ValueError) as err:
        return {"error": str(err), "retcode": 1}
    return found if good(found) else {**found, "retcode": 1}
