"""``cmd`` in an environment
=========================

Run commands inside a target of type ``netspace``: with the environment's user, limits and system call filter. At most
256 KiB of each output stream are returned.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import salt_targets  # noqa: E402

if TYPE_CHECKING:
    __context__: dict[str, Any]
    __opts__: dict[str, Any]
    __resource__: dict[str, str]
    __salt__: dict[str, Callable[..., Any]]

# Arguments of Salt's own cmd.run that have no effect in an environment. Accept them, because Salt passes them.
_SAID = {"output_loglevel", "hide_output", "use_vt", "log_callback", "bg", "rstrip", "redirect_stderr", "saltenv"}


def _variables(env: Any) -> dict[str, str]:
    parts = env if isinstance(env, list) else [env or {}]
    found: dict[str, str] = {}
    for part in parts:
        if not isinstance(part, Mapping):
            raise CommandExecutionError(f"env: expected names and values, got {part!r}")
        found.update({str(name): "" if value is None else str(value) for name, value in part.items()})
    return found


def _run(
    cmd: str | list[str],
    cwd: str | None = None,
    stdin: str | None = None,
    env: Any = None,
    timeout: float | None = None,
    shell: str | None = None,
    python_shell: bool | None = None,
    ignore_retcode: bool = False,
    success_retcodes: list[int] | None = None,
    **kwargs: Any,
) -> salt_targets.Answer:
    unknown = [key for key, value in kwargs.items() if not key.startswith("__") and key not in _SAID and value]
    if unknown:
        raise CommandExecutionError(f"in an environment, cmd has no {', '.join(sorted(unknown))}")
    if isinstance(cmd, str) and python_shell is False:
        cmd = shlex.split(cmd)
    try:
        answer = salt_targets.of(__opts__).run(
            __resource__["id"], cmd, timeout=timeout, stdin=stdin or "", folder=cwd, variables=_variables(env),
            shell=shell,
        )  # fmt: skip
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    fine = ignore_retcode or answer.retcode in (success_retcodes or [0])
    __context__["retcode"] = 0 if fine else answer.retcode
    return answer


def run(cmd: str | list[str], **kwargs: Any) -> str:
    """Run a command inside an environment and return its standard output and standard error.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' cmd.run 'id; ls /srv'
        salt -C 'T@netspace:shop1-web' cmd.run '["/usr/bin/web", "--version"]'

    cmd
        A text for a shell, **which the image must have**, or an argument vector, which needs no shell.

    cwd
        The working directory inside. Defaults to that of the environment's program.

    stdin
        The command's standard input.

    env
        Variables, in addition to the environment's own.

    timeout
        Seconds after which the command is killed; its return code is then 124. Defaults to 60.

    shell
        The shell inside. Defaults to ``/bin/sh``.

    python_shell
        False: split a text into an argument vector, without a shell.

    ignore_retcode
        True: the job succeeds with any return code.

    success_retcodes
        The return codes that mean success. Defaults to 0.
    """
    answer = _run(cmd, **kwargs)
    return "\n".join(part.rstrip("\n") for part in (answer.stdout, answer.stderr) if part)


def run_stdout(cmd: str | list[str], **kwargs: Any) -> str:
    """
    Run a command inside and return its standard output. See :py:func:`run`.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' cmd.run_stdout 'ls /srv'
    """
    return _run(cmd, **kwargs).stdout.rstrip("\n")


def run_stderr(cmd: str | list[str], **kwargs: Any) -> str:
    """
    Run a command inside and return its standard error. See :py:func:`run`.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' cmd.run_stderr 'ls /srv'
    """
    return _run(cmd, **kwargs).stderr.rstrip("\n")


def run_all(cmd: str | list[str], **kwargs: Any) -> dict[str, Any]:
    """Run a command inside and return its return code and output. See :py:func:`run`.

    Returns ``retcode``, ``stdout``, ``stderr`` and ``truncated`` (whether output was cut off).

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' cmd.run_all 'ls /srv'
    """
    answer = _run(cmd, **kwargs)
    return {
        "retcode": answer.retcode,
        "stdout": answer.stdout.rstrip("\n"),
        "stderr": answer.stderr.rstrip("\n"),
        "truncated": answer.truncated,
    }


def retcode(cmd: str | list[str], **kwargs: Any) -> int:
    """
    Run a command inside and return its return code. See :py:func:`run`.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' cmd.retcode 'test -e /srv/ready'
    """
    return _run(cmd, **kwargs).retcode
