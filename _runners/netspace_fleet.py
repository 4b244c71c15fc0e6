"""A fleet in one declaration, on the master
=========================================

- ``check`` checks the declaration, and ``slice`` shows the part of it that one minion gets.
- ``join`` brings hosts into the fleet, ``leave`` takes them out, ``replace`` puts another machine in a host's place,
  and ``drain`` moves environments away from a host.
- ``plan`` shows the changes on all hosts, ``apply`` makes exactly these changes, and ``rollout`` makes them batch by
  batch. ``drift`` shows manual changes. ``watch`` shows the progress of applies.
- ``status``, ``list`` and ``explain`` ask the hosts for their state. ``can``, ``paths_to`` and ``graph`` show who may
  reach whom.

The master's configuration names the declaration's file under ``ext_pillar``: see the page on fleets. On a refusal, the
command's exit status is 1.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.fleet import draining, join_hosts, leaving, replacing  # noqa: E402
from netspace.fleet import explain as fleet_explain  # noqa: E402
from netspace.fleet import hosts as fleet_hosts  # noqa: E402
from netspace.fleet import status as fleet_status  # noqa: E402
from netspace.fleet.declaration import FleetDeclaration  # noqa: E402
from netspace.fleet.hosts import Outcome  # noqa: E402
from netspace.fleet.planning import planner, records  # noqa: E402
from netspace.fleet.policy import Pace  # noqa: E402
from netspace.fleet.rollout import control, planned, progress  # noqa: E402
from netspace.fleet.rollout.journal import Journal  # noqa: E402
from netspace.fleet.rollout.machine import Edges, Event  # noqa: E402
from netspace.link.pki.root import configured  # noqa: E402
from netspace.plugin import apply_progress, arguments, fleet_files, fleet_state, master  # noqa: E402
from netspace.plugin.minions import Minions, OneMinion, forget_tpm  # noqa: E402
from netspace.plugin.runner_answers import answer as _answer  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __salt__: dict[str, Any]

log = logging.getLogger(__name__)

__virtualname__ = "netspace_fleet"

__func_alias__ = {"slice_": "slice", "list_": "list"}

SECONDS = 20
"""Seconds in which hosts must have answered, unless others are named."""
_DAY = 86400  # the most seconds that a host may take for a step


def __virtual__() -> str:
    return __virtualname__


def check() -> dict[str, Any]:
    """Check the declaration of the whole fleet. Changes nothing.

    Return

    - ``ok``, and the numbers of hosts, environments and links;
    - ``problems``, each with file, path and reason;
    - ``missing``: things that the fleet still needs although the
      declaration is valid;
    - ``moves``: environments whose hosts change, with the reason.

    If there are problems, the exit status is 1, and the declaration
    isn't put in force.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.check
    """

    return _answer(lambda: fleet_state.checked(_declaration().check()), lambda found: bool(found["ok"]))


def slice_(minion: str) -> dict[str, Any]:
    """Return a minion's slice: the pillar that only this minion gets from the
    fleet's declaration.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.slice h1

    minion
        The minion's id.
    """

    def found() -> dict[str, Any]:
        answer = _declaration().answer(str(minion))
        if answer.pillar is None:
            raise NetspaceError(f"{minion} gets no pillar of the fleet; declare it under hosts, or plan and apply")
        return answer.pillar

    return _answer(found, texts=False)  # it is a pillar, whose keys are declared


def status(timeout: int = SECONDS) -> dict[str, Any]:
    """Return the state of each host, and the things that need attention there,
    the most important first.

    The master asks all hosts at once. A host that doesn't answer within
    ``timeout`` seconds is ``unseen``. The expected state is that of the
    declaration's present files. If these have problems, it is that of
    the declaration in force, and the result has a note.

    Return ``hosts``, and ``nowhere``: the environments that no host
    runs, with the reason. Each host has ``state`` (``well``,
    ``attention`` or ``unseen``), ``trust``, ``environments`` (the
    number that are ``expected`` on the host, and the number that are
    ``well``), and ``attention``. Trust has ``level``, ``evidence`` (the
    time of the evidence), ``why``, and ``by`` (the source: the
    ``master``'s verifier, or the ``host`` itself). **Everything except
    trust by the** ``master`` **is the host's own claim.** Each minion
    signs its answer, so no minion can answer for another.

    The exit status is 1 if anything needs attention.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_fleet.status
        salt-run --out=json netspace_fleet.status timeout=5

    timeout
        Seconds to wait for answers. Defaults to 20.
    """
    return _answer(lambda: fleet_status.status(*_now(timeout)), lambda found: fleet_status.good(found))


def list_(timeout: int = SECONDS) -> dict[str, Any]:
    """Return each environment of the fleet on each of its hosts, with its
    state.

    Return a list, ``environments``, with the rows that need attention
    first. Each row has ``environment``, ``host``, ``mark`` (``well``;
    ``odd``: needs attention, for example during an update; ``bad``;
    ``off``: stopped as declared; ``unknown``: the host did not answer),
    ``state``, ``health``, ``since``, ``restarts``, and ``text``, the
    reason. All values are the hosts' own claims.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_fleet.list

    timeout
        Seconds to wait for answers. Defaults to 20.
    """
    return _answer(lambda: fleet_status.listed(*_now(timeout)))


def explain(environment: str, timeout: int = SECONDS) -> dict[str, Any]:
    """Explain why an environment is placed on its hosts, and why it works
    there or doesn't.

    Return ``placement`` with the reasons, and ``hosts``: for each host
    where the environment should run, the result of
    ``netspace.explain``, or an ``error`` if the host doesn't answer in
    time. Log lines and states are the hosts' own claims.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_fleet.explain web

    environment
        The environment's name.

    timeout
        Seconds to wait for answers. Defaults to 20.
    """

    def found() -> dict[str, Any]:
        minions, seconds = _minions(), arguments.seconds(timeout)
        return fleet_explain.explain(
            _declaration(),
            str(environment),
            lambda asked, function, arguments: minions.ask(asked, function, arguments, seconds),
        )

    return _answer(found)


def can(source: str, target: str) -> dict[str, Any]:
    """Return whether a source in the fleet may reach a target by messages or
    packets, and by which rules.

    Return the same keys as ``netspace.can``. The answer is computed
    from the present content of the declaration's files.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_fleet.can web orders
        salt-run --out=netspace netspace_fleet.can web@h1 198.51.100.7

    source
        An environment (all its replicas), one replica (``web@h1``), or
        an address or network outside.

    target
        The same forms as for ``source``. Source or target must be an
        environment.
    """
    return _answer(lambda: fleet_state.reach(_declaration()).can(source, target))


def paths_to(end: str) -> dict[str, Any]:
    """Return all sources in the fleet that may reach a target, directly or
    through other environments.

    Return the same keys as ``netspace.paths_to``. The answer is
    computed from the present content of the declaration's files.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_fleet.paths_to vault

    end
        The target: an environment (all its replicas), one replica
        (``vault@h2``), or an address or network outside.
    """
    return _answer(lambda: fleet_state.reach(_declaration()).paths_to(end))


def graph(
    form: str = "mermaid", format: str = "", live: bool = False, plan: str = "", timeout: int = SECONDS
) -> str | dict[str, Any]:
    """Return a picture of the fleet as text: hosts, their environments, and
    who may reach whom.

    The picture shows the present content of the declaration's files;
    with ``live``, also the state of hosts, environments and links.
    Equal declarations give equal pictures.

    CLI Example:

    .. code-block:: bash

        salt-run --out=newline_values_only netspace_fleet.graph
        salt-run --out=newline_values_only netspace_fleet.graph \\
            format=dot | dot -Tsvg > fleet.svg
        salt-run --out=newline_values_only netspace_fleet.graph \\
            format=html live=True > fleet.html
        salt-run --out=newline_values_only netspace_fleet.graph \\
            format=html plan=p3f9c0a1b2c3d4e5 > plan.html

    form
        ``mermaid``, ``dot`` (Graphviz), or ``html``: one page for a
        browser, which loads no other file. It has a search, filters,
        and details. Defaults to ``mermaid``.

    format
        Another name for ``form``. If both are given, ``format`` counts.

    live
        Ask all hosts for their state, as ``status`` does. Only ``html``
        shows it. Defaults to ``False``.

    plan
        The id of a plan (``netspace_fleet.plan``). The picture marks
        what the plan adds, changes and removes. Only ``html`` shows
        this.

    timeout
        Seconds to wait for answers. Defaults to 20.
    """
    from netspace.plugin.fleet_picture import picture
    from netspace.plugin.picture.planned import of_record

    try:
        declaration = _declaration()
        compiled, _ = fleet_hosts.compiled(declaration, edges=True)
        planned = of_record(planner.plans_of(declaration).read(plan)) if plan else None
        return picture(format or form, compiled, _now(timeout)[1] if live is True else None, planned)
    except (NetspaceError, OSError, ValueError) as err:
        return {"error": str(err), "retcode": 1}


def join(*hosts: str, timeout: int = 60, **others: object) -> dict[str, Any]:
    """Bring hosts into the fleet. Joining a host again completes the missing
    steps.

    For each host, the master

    1. issues the certificate of the host's authority, whose key stays
       on the host (``netspace_link.certify``);
    2. reads the public half of the host's key for links
       (``netspace_link.public_key``);
    3. enrols the host's TPM and attests the host, if the host's
       ``attestation`` has ``verifier: master``.

    Then the master puts the declaration in force with these facts.
    Hosts with sealed links to or from the new hosts exchange their keys
    (``netspace_link.exchange_seals``).

    Return for each host ``changes``, and ``missing`` (steps that can't
    be done yet) with the remedies. The exit status is 1 if a host can't
    join. Missing steps alone don't change the exit status.

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

    def found() -> dict[str, Any]:
        minions, root = _minions(), configured(__opts__.get("netspace.link"))
        seconds = arguments.seconds(timeout)
        return join_hosts.join(
            _declaration(),
            hosts,
            root,
            lambda minion: OneMinion(minions, minion, seconds, __salt__),
            lambda asked, function, given: minions.ask(asked, function, given, seconds),
        )

    return _answer(found, lambda found: not any("error" in one for one in found.values()))


def leave(*hosts: str, release: bool = False, **others: object) -> dict[str, Any]:
    """Take hosts out of the fleet. After the next apply, no other host has
    links to or from them.

    If the declaration has problems, the hosts are taken out of the
    slices in force, and the result has a ``warning``. Return for each
    host whether it had joined (``left``), and the hosts that have to
    apply their pillar. The exit status is 1 if a host has an ``error``.
    To place a host's environments on other hosts, also take the host
    out of the declaration.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.leave h3
        salt-run netspace_fleet.leave h3 release=True

    hosts
        Names of hosts, or ids of their minions.

    release
        Whether another machine may get the host's trust domain. **This
        revokes nothing**: see ``netspace_link.release``.
    """
    arguments.refuse_others(others)

    def found() -> dict[str, Any]:
        root = configured(__opts__.get("netspace.link")) if release else None
        return leaving.leave(_declaration(), list(map(str, hosts)), root)

    return _answer(found, lambda found: bool(found) and not any("error" in one for one in found.values()))


def plan(*hosts: str, timeout: int = 120, **others: object) -> dict[str, Any]:
    """Return the changes that an apply would make on all hosts, or on some
    hosts. Changes nothing.

    Each host returns a dry run of its own states. Equal changes are one
    entry, with the names of the changed things and of the hosts.

    Return ``plan``, the id for ``netspace_fleet.apply``; ``counts``;
    ``changes``, each with ``kind``, ``action``, ``changes`` by key,
    ``reason`` and ``places`` (each of ``names`` on each of ``hosts``);
    ``withheld``, the things that hosts omit, for example for lack of
    trust; ``without_plan``, hosts without a plan, by reason; and
    ``moves``. The id is a hash of all hosts' plans. If the declaration
    has ``apply: planned``, the plan is made from the present content of
    the declaration's files, which is not in force yet.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_fleet.plan
        salt-run --out=json netspace_fleet.plan h1 h2

    hosts
        Names of hosts, or ids of their minions. By default, all hosts.

    timeout
        Seconds that a host may take.
    """
    arguments.refuse_others(others)
    return _answer(
        lambda: records.told(planner.make(_declaration(), list(hosts), _minions(), arguments.seconds(timeout)))
    )


def apply(plan: str, *hosts: str, timeout: int = 900, **others: object) -> dict[str, Any]:
    """Apply exactly a plan. A host whose plan has changed refuses, changes
    nothing, and is named in the result.

    Each host computes its plan again and applies it under the same
    lock. Return ``applied``, the plan's id; ``counts``; ``done`` and
    ``failed``, hosts by reason. The exit status is 1 if a host failed.
    A repeated call does the remaining work.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_fleet.apply p0f3c2b1a9988776
        salt-run netspace_fleet.apply p0f3c2b1a9988776 h1 h2

    plan
        The id from ``netspace_fleet.plan``.

    hosts
        Hosts of the plan. By default, all.

    timeout
        Seconds that a host may take.
    """
    arguments.refuse_others(others)

    def done() -> dict[str, Any]:
        declaration, seconds = _declaration(), arguments.seconds(timeout, _DAY)
        record = planner.plans_of(declaration).read(plan)
        chosen = list(map(str, hosts)) or record.changing()
        acting = planner.PlannedHosts(declaration, record, _minions(), seconds, _progress)
        with control.alone(_journal()):
            return records.applied(record, acting.apply(chosen))

    return _answer(done, lambda found: not found["failed"])


def drift(*hosts: str, timeout: int = 120, **others: object) -> dict[str, Any]:
    """Return the differences between hosts and their last apply: manual
    changes, missing things, ended programs.

    Return the same keys as ``netspace_fleet.plan``, with ``drift`` in
    place of ``plan``. If anything differs, or a host does not answer,
    the exit status is 1, and Salt's bus has an event
    ``netspace/fleet/drift`` with ``drift``, ``counts``, and ``hosts``
    (the first 100 hosts that differ). The id ``drift`` stays the same
    as long as the differences stay the same.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_fleet.drift

    hosts
        Names of hosts, or ids of their minions. By default, all hosts.

    timeout
        Seconds that a host may take.
    """
    arguments.refuse_others(others)

    def found() -> dict[str, Any]:
        record = planner.drift(_declaration(), list(hosts), _minions(), arguments.seconds(timeout))
        told = records.told(record, what="drift")
        if _differs(told):
            differing = sorted({*record.changing(), *record.silent})[:100]
            _event("netspace/fleet/drift", {"drift": record.id, "counts": told["counts"], "hosts": differing})
        return told

    return _answer(found, lambda told: not _differs(told))


def diff(first: str, second: str) -> dict[str, Any]:
    """Return the differences between two plans. Changes nothing, and asks no
    host.

    Return

    - ``dropped`` and ``added``: changes that only the first plan has,
      and changes that only the second plan has, in the form of
      ``changes`` of ``netspace_fleet.plan``;
    - ``without_plan`` and ``with_plan``: hosts that have a plan only in
      the first, and hosts that have one only in the second;
    - ``redeclared``: hosts with equal steps but a different
      declaration.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_fleet.diff p0f3c2b1a9988776 \\
            p8877660f3c2b1a9

    first, second
        Ids from ``netspace_fleet.plan``.
    """

    def compared() -> dict[str, Any]:
        kept = planner.plans_of(_declaration())
        return records.compared(kept.read(first), kept.read(second))

    return _answer(compared)


def _differs(told: dict[str, Any]) -> bool:
    return bool(told["changes"] or told["withheld"] or told["without_plan"])


def _progress(host: str, outcome: Outcome) -> None:
    log.info("netspace: %s: %s", host, outcome.reason or ("done" if outcome.ok else "failed"))


def _event(tag: str, data: dict[str, Any]) -> None:
    import salt.utils.event

    with salt.utils.event.get_event("master", opts=__opts__, listen=False) as bus:
        bus.fire_event(data, tag)


def rollout(
    plan: str = "",
    canary: Any = None,
    step: Any = None,
    max_fail: Any = None,
    settle: Any = None,
    deadline: Any = None,
    gate: Any = None,
    timeout: int = 900,
    test: bool = False,
) -> dict[str, Any]:
    """Apply exactly a plan, batch by batch, and judge each batch before the
    next one; or show the last rollout.

    Without a plan's id, return the state of the last rollout: ``plan``;
    ``state`` (``running``, ``paused``, ``interrupted``, ``stopping``,
    ``done`` or ``stopped``); ``hosts``, the number of hosts in each
    state; ``bad``, the hosts that are not known to be good; ``failed``
    and ``held``, hosts with their reasons; and ``why`` the rollout
    stopped. With a plan's id, return the same when the rollout has
    ended or is paused. The exit status is 0 only if all hosts are good
    at that time.

    For each step of each host, the function writes a line to stderr and
    sends an event with the tag
    ``netspace/fleet/rollout/<plan>/<host>``. The page on fleets
    explains the order of hosts, the gate, and the limit of bad hosts.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.rollout
        salt-run netspace_fleet.rollout p0f3c2b1a9988776
        salt-run netspace_fleet.rollout p0f3c2b1a9988776 canary=h1,h2 \\
            step=10 max_fail=5% settle=60
        salt-run netspace_fleet.rollout p0f3c2b1a9988776 test=True

    plan
        The id from ``netspace_fleet.plan``.

    canary, step, max_fail, settle, deadline, gate
        Values to use in place of those under ``rollout`` in the
        declaration. ``gate=none`` judges nothing.

    timeout
        Seconds that a host may take for each step.

    test
        True: show the batches, and begin nothing.
    """

    def done() -> dict[str, Any]:
        if not plan:
            return control.status(_journal())
        declaration = _declaration()
        fleet = fleet_hosts.compiled(declaration)[1]
        given = {"canary": canary, "step": step, "max_fail": max_fail, "settle": settle, "deadline": deadline}
        given["gate"] = gate
        policy = control.chosen(fleet.rollout, given, fleet.hosts)
        changes = planned.changes(declaration, plan)
        if test:
            return control.preview(changes, policy)
        return control.start(_journal(), changes, policy, _edges(timeout))

    return _answer(done, control.good if plan else lambda found: "error" not in found)


def pause() -> dict[str, Any]:
    """Pause the rollout after the present batch is judged; return the
    rollout's state.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.pause
    """
    return _answer(lambda: control.pause(_journal()))


def resume(timeout: int = 900) -> dict[str, Any]:
    """Continue a rollout that was paused or whose process was killed; return
    its state at the end.

    Hosts that were found good aren't asked again.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.resume

    timeout
        Seconds that a host may take for each step.
    """
    return _answer(lambda: control.resume(_journal(), _edges(timeout)), control.good)


def stop(take_back: bool = False, timeout: int = 900) -> dict[str, Any]:
    """Stop the rollout for good, whether it runs, is paused or was killed;
    return its state.

    Hosts that are not known to be good get their previous declaration
    back.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.stop
        salt-run netspace_fleet.stop take_back=True

    take_back
        Whether the good hosts of the last batch get their previous
        declaration back, too.

    timeout
        Seconds that a host may take for each step.
    """
    return _answer(lambda: control.stop(_journal(), _edges(timeout), take_back=take_back))


def watch(timeout: int = 0) -> dict[str, Any]:
    """Show the steps and changes of applies on all hosts as they happen.

    The function writes a line to stderr for each step of an apply
    (``h1: starting web``) and for each change (``h1: create environment
    web``). Earlier steps are not shown. Return the numbers of
    ``changes`` and of ``failures``.

    Hosts send steps and changes as events, with the tags
    ``netspace/apply/<minion>/doing`` and
    ``netspace/apply/<minion>/changed``. Any minion can forge such
    events, also in another minion's name. The answers to
    ``netspace_fleet.status`` are signed.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.watch
        salt-run netspace_fleet.watch timeout=60

    timeout
        Seconds after which to end. Defaults to 0: end at Ctrl-C.
    """
    return _answer(lambda: _watched(None if timeout == 0 else arguments.seconds(timeout)))


def _watched(seconds: int | None) -> dict[str, Any]:
    import salt.utils.event

    last = None if seconds is None else time.monotonic() + seconds
    counts = {"changes": 0, "failures": 0}
    for line in apply_progress.lines("netspace", apply_progress.UNPROVED):
        print(line, file=sys.stderr, flush=True)
    with salt.utils.event.get_event("master", opts=__opts__, listen=True) as bus:
        while last is None or time.monotonic() < last:
            event = bus.get_event(wait=1, tag=f"{apply_progress.TAG}/", match_type="startswith", full=True)
            if event is None:
                continue
            for ok in apply_progress.verdicts(event["tag"], event["data"]):
                counts["changes" if ok else "failures"] += 1
            for line in apply_progress.told(event["tag"], event["data"]):
                print(line, file=sys.stderr, flush=True)
    return counts


def _journal() -> Journal:
    return Journal(fleet_files.folder(__opts__) / "rollout")


def _edges(timeout: object) -> control.MakeEdges:
    seconds = arguments.seconds(timeout, _DAY)

    def made(plan: str, pace: Pace) -> Edges:
        def tell(event: Event) -> None:
            print(progress.line(event), file=sys.stderr, flush=True)
            try:
                _event(*progress.message(plan, event))
            except Exception as err:  # a failing bus must not stop the rollout
                log.warning("netspace: an event of the rollout was not sent: %s", err)

        def attest(minions: Sequence[str]) -> None:
            found = __salt__["netspace_attestation.attest"](list(minions), "list")
            if "error" in found:
                raise NetspaceError(f"netspace_attestation.attest: {found['error']}")

        hosts = planned.RolledOut(_declaration(), plan, _minions(), attest, pace, seconds)
        return Edges(hosts, tell)

    return made


def replace(host: str, timeout: int = 60) -> dict[str, Any]:
    """Let another machine take the place of a host. Replacing a host again
    completes the missing steps.

    If the answering machine has the key that the master certified, it
    only joins. If it has another key, or no machine answers, the old
    host first leaves the fleet, and its trust domain and its TPM are
    released; then the new machine joins.

    Return the same keys as ``leave`` and ``join``. The exit status is 1
    if no machine can join yet.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.replace h2

    host
        The host's name, or the id of its minion.

    timeout
        Seconds to wait for each answer of a minion.
    """

    def done() -> dict[str, Any]:
        minions, seconds = _minions(), arguments.seconds(timeout)
        return replacing.replace(
            _declaration(),
            host,
            configured(__opts__.get("netspace.link")),
            lambda minion: OneMinion(minions, minion, seconds, __salt__),
            lambda minion: forget_tpm(__salt__, minion),
            lambda asked, function, given: minions.ask(asked, function, given, seconds),
        )

    return _answer(done, lambda found: not any("error" in one for one in found.values()))


def drain(*hosts: str, undo: bool = False, **others: object) -> dict[str, Any]:
    """Move environments away from hosts, as far as their placement rules
    allow, until the drain is undone.

    Return ``changed``; ``drained``: all drained hosts; ``moves``: the
    environments that move; ``stay``: the environments that can't move,
    with the reason; and ``apply``: the minions whose pillar changes. If
    the drain would cause a problem in the declaration, nothing is
    changed.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_fleet.drain h2
        salt-run netspace_fleet.drain h2 undo=True

    hosts
        Names of hosts, or ids of their minions.

    undo
        True: let these hosts have environments again. No environment
        moves back by itself.
    """
    arguments.refuse_others(others)
    return _answer(lambda: draining.drain(_declaration(), hosts, undo=undo))


def _declaration() -> FleetDeclaration:
    return master.declaration(__opts__, import_module)


def _now(timeout: object) -> tuple[fleet_status.Expected, fleet_status.Now]:
    return fleet_state.now(_declaration(), _minions(), _verdicts, arguments.seconds(timeout))


def _verdicts() -> dict[str, Any]:
    """Return the attestation state of each minion; empty if the master's verifier never judged a minion.

    The function does not call ``netspace_attestation.status`` for a verifier without a key, because the call would make
    a key.
    """
    found: dict[str, Any] = __salt__["netspace_attestation.status"]() if fleet_state.verifies(__opts__) else {}
    return found


def _minions() -> Minions:
    return master.minions(__opts__, import_module)
