"""``cmd`` states in an environment
================================

States that run commands inside an environment, as the environment's own user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __salt__: dict[str, Callable[..., Any]]

# Arguments that Salt itself evaluates.
_SALTS = {"creates", "unless", "onlyif", "check_cmd"}


def run(
    name: str | list[str],
    cwd: str | None = None,
    env: Any = None,
    shell: str | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
    success_retcodes: list[int] | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """
    Run a command inside. Salt checks ``unless``, ``onlyif`` and ``creates`` inside, too.

    name
        A text for a shell, **which the image must have**, or an argument vector.

    cwd
        The working directory inside.

    env
        Variables, in addition to the environment's own.

    shell
        The shell inside. Defaults to ``/bin/sh``.

    stdin
        The command's standard input.

    timeout
        Seconds after which the command is killed. Defaults to 60.

    success_retcodes
        The return codes that mean success. Defaults to 0.
    """
    ret: dict[str, Any] = {"name": name, "result": False, "changes": {}, "comment": ""}
    unknown = [key for key in kwargs if not key.startswith("__") and key not in _SALTS]
    if unknown:
        return {**ret, "comment": f"in an environment, cmd.run has no {', '.join(sorted(unknown))}"}
    if __opts__["test"]:
        return {**ret, "result": None, "comment": f"Command {name!r} would have been executed."}
    try:
        done = __salt__["cmd.run_all"](
            name, cwd=cwd, env=env, shell=shell, stdin=stdin, timeout=timeout, ignore_retcode=True
        )
    except CommandExecutionError as err:
        return {**ret, "comment": str(err)}
    fine = done["retcode"] in (success_retcodes or [0])
    return {**ret, "result": fine, "changes": done, "comment": f"Command {name!r} ended with {done['retcode']}."}
