"""Isolated environments as states
===============================

An environment is one isolated program. It shares no file, interface or memory with another environment. Environments
can communicate only through a link: see the state ``netspace_link.present``.

Everything that ``pillar:netspace:environments`` declares, in one state:

.. code-block:: yaml

    environments:
      netspace_environment.managed

One environment by itself:

.. code-block:: yaml

    orders:
      netspace_environment.running:
        - image: tar:/srv/images/shop.tar
        - command: [/usr/bin/orders]
        - limits: {memory: 128M, pids: 64}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import apply_progress, editions, failure_log, state_return  # noqa: E402
from netspace.plugin import arguments as declared  # noqa: E402
from netspace.plugin.fileserver import SaltFiles  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]
    __context__: dict[str, Any]
    __salt__: dict[str, Any]

__virtualname__ = "netspace_environment"
__running__: Mapping[str, Mapping[str, Any]] = {}  # while a state runs, Salt sets it: the results of earlier states

_RESULTS = "netspace_environment.aggregated"
# Salt's internal keys that every state has, and that are not conditions.
_UNCONDITIONAL = frozenset({"__env__", "__id__", "__sls__", "__sls_included_from__", "fun", "order", "state"})


def __virtual__() -> str:
    return __virtualname__


def _host() -> Host:
    return Host(
        declared.layout(__opts__),
        remote=SaltFiles(__salt__, __opts__),
        **apply_progress.hooks(__opts__, __salt__),
    )


def _told(*states: dict[str, Any]) -> dict[str, Any]:
    """Return the first of *states*. If any of *states* has changes, first tell Salt to refresh its targets."""
    if any(state["changes"] for state in states) and not __opts__["test"]:
        declared.tell_targets(__salt__, __opts__, __pillar__)
    return states[0]


def managed(name: str, declaration: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ensure that all declared environments run (or are stopped, with ``state:
    stopped``) and no others exist.

    An environment is restarted only if a change of its own declaration
    needs a restart; ``changes`` names the changed key. An environment
    that demands more trust than this host has is not started, and is
    stopped if it runs. Its result is then a failure; other environments
    are not affected.

    The result has a row for each environment, with its own result,
    comment and changes. The state's own changes only have the names of
    changed environments. ``netspace.rows`` in the minion's
    configuration limits the number of rows (default 100).

    name
        Any text.

    declaration
        The host's declaration. By default, the value of
        ``pillar:netspace``.

    .. code-block:: yaml

        environments:
          netspace_environment.managed
    """
    test = bool(__opts__["test"])
    try:
        most = declared.rows(__opts__)
        if declaration is None:
            editions.check(__opts__, __pillar__, note=not test)
        wanted = declared.whole(declaration, __pillar__)
        result = _host().converge_environments(wanted, whole=True, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err, __running__)
    state = state_return.rows(name, result, "environment", wanted.environments, test=test, most=most)
    for each in declared.unaddressable(wanted, __opts__, __pillar__):
        state["comment"] = state_return.told(
            state["comment"], f"environment {each}: target: {declared.addressable(__opts__)}"
        )
    failure_log.tell(state)
    return _told(state)


def running(name: str, **kwargs: Any) -> dict[str, Any]:
    """Ensure that an environment exists as declared, and runs.

    name
        The environment's name: 1 to 48 characters of ``a-z``, ``0-9``,
        ``-`` and ``_``.

    image
        ``<source>:<absolute path>``; sources are ``tar``, ``oci``,
        ``dir`` and ``erofs``. A file may be on Salt's file server:
        ``tar:salt://images/shop.tar``. The minion fetches the file when
        the master's hash of the file has changed. The fetched file must
        have this hash.

    kernel
        In place of an image: the absolute path of a unikernel's file.
        ``args`` are the unikernel's arguments; the environment's
        interface, if any, must be of kind ``tap``.

    source_hash
        ``sha256:<hex>`` that the source must have; see
        ``netspace_image.present``.

    command
        Argument vector, in place of an ``oci`` image's Entrypoint
        **and** Cmd (as ``command`` in Kubernetes).

    args
        Arguments after ``command``. Without ``command``, they replace
        the image's Cmd and follow its Entrypoint.

    env
        Variables of the program. **Don't put secrets here**; they can
        be read from the minion's cache.

    user
        User and group id inside, 1 to 65535. By default, the user of
        the ``oci`` image; 1000 if the image has no user, or root.

    working_dir
        Working directory of the program. By default, the ``oci``
        image's, or ``/`` if there is none.

    limits
        ``memory`` (default 256M, no swap), ``cpus`` (1.0), ``pids``
        (128), ``files`` (1024 per process), ``shm`` (16M), ``tmp``
        (64M), ``disk`` (size of the writable layer; **by default
        limited only by the host's disk**), ``io`` (``read``, ``write``,
        ``read_ops``, ``write_ops`` per second).

    interface
        ``{kind: none}`` (default) or ``{kind: veth, ...}``, see
        ``netspace_interface.present``.

    volumes
        List of ``{target, source, read_only}``: a host folder, which
        only one environment may use; or of ``{target, size,
        read_only}``: a file system of this size, which netspace makes
        and keeps.

    read_only
        Make the root file system read-only. Defaults to false: writes
        go to the environment's own layer.

    runtime
        ``crun``, ``runc`` or ``runsc``; with a kernel ``qemu`` or
        ``solo5``. By default, the runtime in
        ``pillar:netspace:runtimes``; if there is none, ``crun`` for an
        image and ``qemu`` for a kernel.

    seccomp
        The system call profile: ``strict`` (default), ``standard``,
        which adds calls that some databases and older servers need, or
        ``file:/profile.json``: a file on the host in the format of OCI
        or Docker.

    restart
        ``on-failure`` (default), ``always`` or ``never``.

    stop_timeout
        Seconds between SIGTERM and SIGKILL. Defaults to 10.

    settle
        Seconds that the program must run before the state reports
        success; the state waits so long. If the program ends earlier,
        the state fails. With 0 (the default), the state waits only
        until the program is idle, at most 0.1 s.

    init
        Run a small program of the host (``catatonit``) as process 1,
        which forwards signals and reaps orphaned processes. A program
        that doesn't handle SIGTERM then ends at once, not after
        ``stop_timeout``. Defaults to false.

    health
        ``{exec: [argument vector]}`` or ``{mailbox: true}``, with
        ``interval`` (10 s), ``timeout`` (5 s), ``retries`` (3) and
        ``start_period`` (0 s). By default there is no check.

    after
        Environments that must be healthy (or, without a check, run)
        before this one is started.

    update
        ``{rolling: true, deadline: 60, rollback: true}``: the way in
        which an environment with a health check is updated. If two
        instances can run at the same time, the new one is started
        beside the old one. If the new instance isn't healthy within the
        deadline (seconds), netspace rolls the change back, and this
        state fails.

    attestation
        ``{policy: require|prefer|off, minimum: L0..L5}``. By default,
        the host's policy and minimum (``pillar:netspace:attestation``).

    target
        Let Salt address the environment as a target
        (``T@netspace:MINION-NAME``) and run functions in it. Defaults
        to false.

    Supports ``aggregate: True``: any number of these states is then
    applied as one batch.
    """
    return _one(name, kwargs, "running")


def present(name: str, **kwargs: Any) -> dict[str, Any]:
    """
    Ensure that an environment exists as declared, and leave it running
    or stopped.

    Takes the arguments of ``netspace_environment.running``.
    """
    return _one(name, kwargs, "present")


def stopped(name: str, **kwargs: Any) -> dict[str, Any]:
    """Ensure that an environment exists as declared, and that its program runs
    neither now nor after a boot.

    The environment's root, volumes, interface and links exist, and its
    mailbox still receives messages. In pillar, and in the declaration
    of ``netspace_environment.managed``, write ``state: stopped`` for
    this.

    Takes the arguments of ``netspace_environment.running``.

    .. code-block:: yaml

        orders:
          netspace_environment.stopped:
            - image: tar:/srv/images/shop.tar
            - command: [/usr/bin/orders]
    """
    return _one(name, kwargs, "stopped")


def healthy(name: str, timeout: float = 60) -> dict[str, Any]:
    """Wait until an environment is healthy or, without a health check, runs.
    Changes nothing.

    Use this state in requisites: a state that requires it runs only if
    the environment is healthy.

    name
        The environment's name.

    timeout
        Seconds. Defaults to 60. ``test=True`` doesn't wait.

    .. code-block:: yaml

        orders:
          netspace_environment.healthy:
            - timeout: 120
            - require:
              - netspace_environment: netspace environments
    """
    test = bool(__opts__["test"])
    try:
        row = _host().operations.wait([name], timeout=0.0 if test else float(timeout))[name]
    except NetspaceError as err:
        return {"name": name, "result": None if test else False, "changes": {}, "comment": state_return.told(str(err))}
    how = "healthy" if row["health"] else "running"
    return {"name": name, "result": True, "changes": {}, "comment": f"{name} is {how}."}


def absent(name: str, purge: bool = False) -> dict[str, Any]:
    """Ensure that an environment doesn't exist.

    Its program, layer, links and interface are removed. Its volumes
    stay.

    name
        The environment's name.

    purge
        Also delete the mail in the environment's mailbox **and its
        volumes that have a size** (never a host folder). This includes
        the mail and volumes that stayed when an environment of this
        name was removed without ``purge``. By default, unread mail is
        kept, and the result says so.
    """
    test = bool(__opts__["test"])
    try:
        result = _host().remove_environments({name}, test=test, purge=purge)
    except NetspaceError as err:
        return state_return.failure(name, err, __running__)
    return _told(state_return.state(name, result, test=test, only=name))


def _one(name: str, kwargs: dict[str, Any], state: str) -> dict[str, Any]:
    aggregated = __context__.get(_RESULTS, {}).pop((name, state), None)
    if aggregated is not None:
        return aggregated
    batch: dict[str, dict[str, Any]] = kwargs.pop("batch", None) or {name: kwargs}
    test = bool(__opts__["test"])
    results: dict[str, dict[str, Any]] = {}
    try:
        host = _host()
        wanted = None
        for each, arguments in batch.items():
            try:
                # A Salt state can't have an argument named "state": the function sets it.
                said = {"state": "stopped"} if state == "stopped" else {}
                alone = declared.one_environment(each, {**arguments, **said}, __pillar__)
            except NetspaceError as err:
                results[each] = state_return.failure(each, err, __running__)
            else:
                wanted = declared.merged(wanted, alone)
        if wanted is not None:
            result = host.converge_environments(wanted, test=test, state=state)  # type: ignore[arg-type]
            for each in wanted.environments:
                others = set(wanted.environments) - {each}
                results[each] = state_return.state(each, result, test=test, only=each, others=others)
    except NetspaceError as err:
        for each in batch:
            results.setdefault(each, state_return.failure(each, err, __running__))
    own = results.pop(name)
    _told(own, *results.values())
    if results:
        __context__.setdefault(_RESULTS, {}).update({(each, state): entry for each, entry in results.items()})
    return own


def mod_aggregate(low: dict[str, Any], chunks: list[dict[str, Any]], running: dict[str, Any]) -> dict[str, Any]:
    """Make one batch of all states of the same function that have ``aggregate:
    True``.

    Each state still reports its own result and changes. A state with a
    requisite or a condition (``require``, ``onlyif``...) is not part of
    the batch: it runs separately in its normal order, when Salt can
    evaluate the condition.
    """
    from salt.state import STATE_INTERNAL_KEYWORDS
    from salt.utils import state as state_utils

    every = bool(__opts__.get("state_aggregate"))

    def own(chunk: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value for key, value in chunk.items() if key not in (*STATE_INTERNAL_KEYWORDS, "name", "aggregate")
        }

    def free(chunk: dict[str, Any]) -> bool:
        wanted = chunk.get("aggregate", every)
        conditions = [key for key in chunk if key in STATE_INTERNAL_KEYWORDS and key not in _UNCONDITIONAL]
        return bool(wanted) and not conditions and state_utils.gen_tag(chunk) not in running

    if low.get("fun") not in ("running", "present", "stopped"):
        return low
    batch = {low["name"]: own(low)}
    for chunk in chunks:
        same = chunk.get("state") == low["state"] and chunk.get("fun") == low["fun"]
        if same and not chunk.get("__agg__") and chunk["name"] not in batch and free(chunk):
            batch[chunk["name"]] = own(chunk)
            chunk["__agg__"] = True
    if len(batch) > 1:
        low["batch"] = batch
    return low
