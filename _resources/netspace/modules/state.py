"""``state`` in an environment
===========================

States inside a target of type ``netspace``. The minion renders the states with the target's ``id`` and grains, and with
the minion's own pillar. Each state runs inside, as the environment's own user. The image needs no Salt and no Python;
only ``cmd`` needs a program in the image. The states are ``cmd.run``, ``file.managed``, ``file.directory``,
``file.symlink``, ``file.absent`` and ``test.nop``, with all requisites. If an SLS file has any other state, no state of
the run is applied, and the result is an error. Calls of execution modules (``unless``, ``onlyif``, ``salt['cmd.run']``
in a template) run inside, too.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

import salt.fileclient  # noqa: E402
import salt.loader  # noqa: E402
import salt.state  # noqa: E402
import salt.utils.args  # noqa: E402
import salt.utils.dictupdate  # noqa: E402
import salt.utils.state  # noqa: E402
from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import salt_targets  # noqa: E402
from netspace.plugin import arguments as declared  # noqa: E402

if TYPE_CHECKING:
    __context__: dict[str, Any]
    __opts__: dict[str, Any]
    __resource__: dict[str, str]
    __resource_funcs__: dict[str, Callable[..., Any]]

__func_alias__ = {"apply_": "apply"}

_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "states")
KNOWN = {"cmd": ("run",), "file": ("absent", "directory", "managed", "symlink"), "test": ("nop",)}
_COMPILER_ERROR, _FAILURE = 1, 2


class _State(salt.state.State):  # type: ignore[misc]
    """Salt's state compiler, limited to states that act in an environment.

    Salt's own states would act on the host.
    """

    def load_modules(self, data: Any = None, proxy: Any = None) -> None:
        super().load_modules(data, proxy)
        # For its own calls between two states (a configuration, a pause), Salt uses the minion's functions.
        self._trusted_functions = self.minion_functions

    def _load_states(self) -> None:
        self.states = salt.loader.LazyLoader(
            [_FOLDER],
            self.opts,
            tag="states",
            pack={
                "__salt__": self.functions,
                "__context__": self.state_con,
                "__file_client__": salt.fileclient.ContextlessFileClient(self.file_client),
                "__resource__": {},
                "__resource_funcs__": self.resource_funcs,
            },
            whitelist=list(KNOWN),
            extra_module_dirs=self.utils.module_dirs,
            pack_self="__states__",
            loaded_base_name="netspace.inside",
        )

    def verify_data(self, data: Any) -> list[str]:
        """Verify a state as Salt does, and refuse states that need files of the environment that can't be read.

        A ``file`` state needs these files, and so does a state with ``creates``.
        """
        errors: list[str] = super().verify_data(data)
        if (data["state"] == "file" or "creates" in data) and not salt_targets.of(self.opts).has_files(self.opts["id"]):
            what = "file" if data["state"] == "file" else "creates"
            errors.append(
                f"{data['__id__']}: no {what} here: only this environment's own kernel has its files; use cmd.run"
            )
        return errors

    def _run_check_creates(self, low: Any) -> dict[str, Any]:
        """Check ``creates`` inside the environment; Salt's own method would look on the host."""
        wanted = low["creates"] if isinstance(low["creates"], list) else [low["creates"]]
        try:
            with salt_targets.of(self.opts).files(self.opts["id"]) as inside:
                there = bool(wanted) and all(inside.look(str(path)) is not None for path in wanted)
            comment = f"{', '.join(map(str, wanted))}: " + ("they exist" if there else "not all of them exist")
        except NetspaceError as err:
            there, comment = False, str(err)
        done = {"skip_watch": True} if there else {}
        return {"name": low.get("name"), "__id__": low.get("__id__"), "result": there, "comment": comment, **done}


class _HighState(salt.state.HighState):  # type: ignore[misc]
    """Salt's highstate, limited to states that act in an environment.

    Salt renders it with the minion's own connection to the master.
    """

    def __init__(self, opts: dict[str, Any], pillar: dict[str, Any], client: Any) -> None:
        self.opts = opts
        self.client = client
        self.preserve_client = False
        salt.state.BaseHighState.__init__(self, opts)
        self.state = _State(opts, initial_pillar=pillar, file_client=client)
        self.matchers = salt.loader.matchers(self.opts)
        self.proxy = None
        self._pydsl_all_decls: dict[str, Any] = {}
        self._pydsl_render_stack: list[Any] = []

    def render_highstate(self, matches: Any, *arguments: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        high, errors = super().render_highstate(matches, *arguments, **kwargs)
        return high, [*errors, *_unknown(high)]


def _unknown(high: Any) -> list[str]:
    """Return a problem for each rendered state or function that isn't possible inside an environment."""
    return [
        f"{identifier}: {problem}"
        for identifier, body in (high or {}).items()
        if isinstance(body, dict) and not identifier.startswith("__")
        for state, parts in body.items()
        if not state.startswith("__")
        for problem in _foreign(state, parts)
    ]


def _foreign(state: str, parts: Any) -> list[str]:
    """Return the reasons why a state can't be applied inside an environment.

    :param parts: the list of the state's arguments. A text in the list is the name of the state's function.
    """
    kind = state.partition(".")[0]
    if kind not in KNOWN:
        return [f"state {state} acts on a host; an environment has only: {', '.join(KNOWN)}"]
    functions = [part for part in parts if isinstance(part, str)] if isinstance(parts, list) else []
    there = ", ".join(f"{kind}.{function}" for function in KNOWN[kind])
    return [
        f"an environment has no {kind}.{function}; use one of: {there}"
        for function in functions
        if function not in KNOWN[kind]
    ]


def _options(kwargs: dict[str, Any], test: bool | None) -> dict[str, Any]:
    """Return the minion's configuration, adapted to the target."""
    opts = salt.utils.state.get_sls_opts(dict(__opts__), **kwargs)
    opts["netspace.minion"] = declared.minion(__opts__)
    opts["id"] = __resource__["id"]
    opts["grains"] = __resource_funcs__["netspace.grains"]()
    opts["resource_type"] = "netspace"
    opts["autoload_dynamic_modules"] = False
    opts["test"] = bool(opts.get("test")) if test is None else test
    return opts


def _pillar(given: Any) -> dict[str, Any]:
    """Return the minion's pillar merged with *given*. The master isn't asked, because it has no pillar for targets."""
    own = __opts__.get("pillar") or {}
    own = copy.deepcopy(dict(own.value() if hasattr(own, "value") else own))
    if given is not None and not isinstance(given, dict):
        raise CommandExecutionError(f"pillar: expected names and values, got {given!r}")
    merged: dict[str, Any] = salt.utils.dictupdate.merge(own, given or {}, strategy="smart")
    return merged or {"netspace": {}}


def _applied(test: bool | None, kwargs: dict[str, Any], act: Callable[[_HighState], Any]) -> Any:
    pillar = _pillar(kwargs.get("pillar"))
    # Use the minion's options: the connection to the master is the minion's, not the target's.
    client = salt.fileclient.get_file_client(dict(__opts__))
    with _HighState(_options(kwargs, test), pillar, client) as high:
        high.push_active()
        try:
            done = act(high)
        finally:
            high.pop_active()
    if isinstance(done, list):
        __context__["retcode"] = _COMPILER_ERROR
    else:
        failed = any(isinstance(one, dict) and one.get("result") is False for one in done.values())
        __context__["retcode"] = _FAILURE if failed else 0
    return done


def sls(mods: str | list[str], saltenv: str | None = None, test: bool | None = None, **kwargs: Any) -> Any:
    """
    Apply some SLS files in the environment.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' state.sls web.content test=True

    mods
        The files' names, in a list or with commas between them.

    saltenv
        Salt's file server environment. Defaults to the minion's, or ``base``.

    test
        True: return what would change, and change nothing.

    pillar
        Values in addition to the minion's pillar.

    exclude
        Names of SLS files to leave out.
    """
    names = mods.split(",") if isinstance(mods, str) else mods
    names = [str(name).strip() for name in names if str(name).strip()]
    where = saltenv or __opts__.get("saltenv") or "base"

    def act(high: _HighState) -> Any:
        rendered, errors = high.render_highstate({where: names})
        exclude = kwargs.get("exclude")
        if exclude:
            rendered["__exclude__"] = exclude.split(",") if isinstance(exclude, str) else list(exclude)
        return errors or high.state.call_high(rendered)

    return _applied(test, kwargs, act)


def highstate(test: bool | None = None, **kwargs: Any) -> Any:
    """
    Apply the top file's SLS files for the target's id in the environment.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' state.highstate

    test
        True: return what would change, and change nothing.
    """
    name = f"netspace-{__resource__['id']}"
    return _applied(
        test, kwargs, lambda high: high.call_highstate(exclude=kwargs.get("exclude"), cache_name=name)
    )  # fmt: skip


def apply_(mods: str | list[str] | None = None, **kwargs: Any) -> Any:
    """Apply the named SLS files; without names, apply the top file's SLS files for the target's id.

    See :py:func:`sls` and :py:func:`highstate`.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' state.apply web.content
    """
    return sls(mods, **kwargs) if mods else highstate(**kwargs)


def single(fun: str, name: str, test: bool | None = None, **kwargs: Any) -> Any:
    """
    Apply one state in the environment.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' state.single file.managed /srv/motd contents=hello

    fun
        The state and its function.

    name
        The state's name.

    test
        True: return what would change, and change nothing.
    """
    state, _, function = fun.partition(".")
    low = {
        key: value for key, value in salt.utils.args.clean_kwargs(**kwargs).items() if key not in ("pillar", "saltenv")
    }
    low = {**low, "state": state, "fun": function, "name": name, "__id__": name, "__sls__": "single"}

    def act(high: _HighState) -> Any:
        errors = [*_unknown({name: {fun: []}}), *high.state.verify_data(low)]
        return errors or {f"{state}_|-{name}_|-{name}_|-{function}": high.state.call(low)}

    return _applied(test, kwargs, act)
