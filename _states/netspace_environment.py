"""
Isolated environments as states
===============================

An environment is one isolated program. It shares nothing with another environment:
no file, no interface, no memory. The only way to talk is a link, see
:py:mod:`netspace_link <netspace.states.netspace_link>`.

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

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import apply_progress, state_return  # noqa: E402
from netspace.plugin import arguments as declared  # noqa: E402
from netspace.plugin.fileserver import SaltFiles  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]
    __context__: dict[str, Any]
    __salt__: dict[str, Any]

__virtualname__ = "netspace_environment"

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
    """Return the first of *states*; if any state has changes, first tell Salt to refresh its targets."""
    if any(state["changes"] for state in states) and not __opts__["test"]:
        declared.tell_targets(__salt__, __opts__, __pillar__)
    return states[0]


def managed(name: str, declaration: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Ensure that all declared environments run as declared (or are stopped, with ``state: stopped``), and that no
    others exist.

    An environment is restarted only if one of its own keys changed and needs a restart;
    ``changes`` names the key. An environment that demands more trust than this host has is not
    started, and is stopped if it runs. It fails; the others don't.

    The result has a row for each environment, with its own result, comment and changes. The changes of the state
    itself only name them. ``netspace.rows`` in the minion's configuration is the greatest number of rows (100).

    name
        Any text.

    declaration
        The host's declaration. By default, the value of ``pillar:netspace``.

    .. code-block:: yaml

        environments:
          netspace_environment.managed
    """
    test = bool(__opts__["test"])
    try:
        most = declared.rows(__opts__)
        wanted = declared.whole(declaration, __pillar__)
        result = _host().converge_environments(wanted, whole=True, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err)
    state = state_return.rows(name, result, "environment", wanted.environments, test=test, most=most)
    for each in declared.unaddressable(wanted, __opts__, __pillar__):
        state["comment"] = state_return.told(
            state["comment"], f"environment {each}: target: {declared.addressable(__opts__)}"
        )
    return _told(state)


def running(name: str, **kwargs: Any) -> dict[str, Any]:
    """
    Ensure that an environment exists as declared, and runs.

    name
        Its name: 1 to 48 of ``a-z``, ``0-9``, ``-`` and ``_``.

    image
        ``<source>:<absolute path>``; sources are ``tar``, ``oci``, ``dir`` and ``erofs``. A file may be
        on Salt's file server: ``tar:salt://images/shop.tar``. It is fetched when the master's hash of
        it changed, and must have that hash.

    kernel
        In place of an image: the absolute path of a unikernel's file. ``args`` are its arguments; its interface, if
        any, must be of kind ``tap``.

    source_hash
        ``sha256:<hex>`` that the source must have; see :py:func:`netspace_image.present
        <netspace.states.netspace_image.present>`.

    command
        Argument vector, in place of an ``oci`` image's Entrypoint **and** Cmd (as ``command`` in Kubernetes).

    args
        Arguments after ``command``; without ``command``, after the image's Entrypoint in place of its Cmd.

    env
        Variables of the program. **Don't put secrets here**; they can be read from the
        minion's cache.

    user
        User and group id inside, 1 to 65535. By default, the ``oci`` image's user unless that is root, else 1000.

    working_dir
        By default, the ``oci`` image's, else ``/``.

    limits
        ``memory`` (default 256M, no swap), ``cpus`` (1.0), ``pids`` (128), ``files``
        (1024 per process), ``shm`` (16M), ``tmp`` (64M), ``disk`` (of the writable layer; **by default
        as much as the host's disk has**), ``io`` (``read``, ``write``, ``read_ops``, ``write_ops`` per second).

    interface
        ``{kind: none}`` (default) or ``{kind: veth, ...}``, see
        :py:func:`netspace_interface.present <netspace.states.netspace_interface.present>`.

    volumes
        List of ``{target, source, read_only}``: a host folder, which belongs to one environment only; or of
        ``{target, size, read_only}``: a file system of that size, which netspace keeps.

    read_only
        Make the root read-only. Defaults to false: writes go to the environment's own layer.

    runtime
        ``crun``, ``runc`` or ``runsc``; with a kernel ``qemu`` or ``solo5``. By default, the one in
        ``pillar:netspace:runtimes``, else ``crun`` and ``qemu``.

    seccomp
        The system call profile: ``strict`` (default), ``standard``, which adds calls that some databases
        and older servers need, or ``file:/profile.json``: a file on the host in the format of OCI or Docker.

    restart
        ``on-failure`` (default), ``always`` or ``never``.

    stop_timeout
        Seconds between SIGTERM and SIGKILL. Defaults to 10.

    settle
        Seconds that the program must stay up before the state reports it as started; the state waits that long. A
        program that ends before that is an error. With 0 (the default), the state waits only until the program is
        idle, 0.1 s at most.

    init
        Run a small program of the host (``catatonit``) as process 1, which forwards signals and reaps orphaned
        processes. A program that doesn't handle SIGTERM then ends at once, not after ``stop_timeout``. Defaults to
        false.

    health
        ``{exec: [argument vector]}`` or ``{mailbox: true}``, with ``interval`` (10 s), ``timeout`` (5 s), ``retries``
        (3) and ``start_period`` (0 s). By default there is no check.

    after
        Environments that must be healthy (or, without a check, run) before this one is started.

    update
        ``{rolling: true, deadline: 60, rollback: true}``: how an environment with a health check is changed. If two
        instances can run at the same time, the new one is started beside the old one. If it isn't healthy within the
        deadline (seconds), the change is taken back, and this state fails.

    attestation
        ``{policy: require|prefer|off, minimum: L0..L5}``. By default, the host's
        (``pillar:netspace:attestation``).

    target
        Let Salt address it as a target (``T@netspace:MINION-NAME``) and run functions in it. Defaults to false.

    Supports ``aggregate: True``: any number of these states is then applied as one batch.
    """
    return _one(name, kwargs, "running")


def present(name: str, **kwargs: Any) -> dict[str, Any]:
    """
    Ensure that an environment exists as declared, and leave it running or stopped.

    Takes the arguments of :py:func:`running`.
    """
    return _one(name, kwargs, "present")


def stopped(name: str, **kwargs: Any) -> dict[str, Any]:
    """
    Ensure that an environment exists as declared, and that its program doesn't run, neither now nor after a boot.

    Its root, volumes, interface and links exist, and its mailbox still receives. In pillar, and in the
    declaration of :py:func:`managed`, write ``state: stopped`` for this.

    Takes the arguments of :py:func:`running`.

    .. code-block:: yaml

        orders:
          netspace_environment.stopped:
            - image: tar:/srv/images/shop.tar
            - command: [/usr/bin/orders]
    """
    return _one(name, kwargs, "stopped")


def healthy(name: str, timeout: float = 60) -> dict[str, Any]:
    """
    Wait until an environment is healthy or, without a health check, runs. Changes nothing.

    Use it in requisites: a state that requires it runs only when the environment does its work.

    name
        Its name.

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
    """
    Ensure that an environment doesn't exist: neither its program nor its layer, links or interface.

    Its volumes stay.

    name
        Its name.

    purge
        Delete the mail in its mailbox too, **and its volumes that have a size** (never a host folder), also
        those that an environment of this name left when it was removed without ``purge``.
        By default, unread mail is parked, and the result says so.
    """
    test = bool(__opts__["test"])
    try:
        result = _host().remove_environments({name}, test=test, purge=purge)
    except NetspaceError as err:
        return state_return.failure(name, err)
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
                results[each] = state_return.failure(each, err)
            else:
                wanted = declared.merged(wanted, alone)
        if wanted is not None:
            result = host.converge_environments(wanted, test=test, state=state)  # type: ignore[arg-type]
            for each in wanted.environments:
                others = set(wanted.environments) - {each}
                results[each] = state_return.state(each, result, test=test, only=each, others=others)
    except NetspaceError as err:
        for each in batch:
            results.setdefault(each, state_return.failure(each, err))
    own = results.pop(name)
    _told(own, *results.values())
    if results:
        __context__.setdefault(_RESULTS, {}).update({(each, state): entry for each, entry in results.items()})
    return own


def mod_aggregate(low: dict[str, Any], chunks: list[dict[str, Any]], running: dict[str, Any]) -> dict[str, Any]:
    """
    Make one batch of all states of the same function that have ``aggregate: True``.

    Each state still reports its own result and changes. A state with a requisite or a condition
    (``require``, ``onlyif``...) is not part of the batch: it runs in its own turn, when the
    condition can be decided.
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
