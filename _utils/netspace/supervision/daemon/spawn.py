"""A child of the daemon, from its fork to its program: it writes its trace, then sets output, identity and environment.

A child never returns to the daemon's code: it becomes the program or reports the error.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import signal
from typing import NoReturn

from netspace.layout import Layout
from netspace.supervision import definitions, process
from netspace.supervision.daemon import host_mounts, logs, relay
from netspace.supervision.definitions import Trace
from netspace.supervision.service import Service

DESCRIPTORS = 1024  # a program's soft limit, as under systemd; it may raise it


def fork(
    layout: Layout,
    name: str,
    service: Service,
    argv: tuple[str, ...],
    trace: Trace | None,
    made: host_mounts.Namespace | None = None,
) -> tuple[int, int]:
    """Fork a child that becomes *argv*; return its PID and the reading end of a pipe.

    The pipe gives an error text, or nothing once the child has become its program.

    :param trace: the trace that the child writes, with its own PID, before anything else; None for a helper (cleanup,
        reload), which always runs as root.
    :param made: the mount namespace in which a container's runtime starts; None: the host's namespace.
    :raises OSError: the fork failed.
    """
    read, write = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(read)
        os.close(write)
        raise
    if not pid:
        _become(layout, name, service, argv, trace, write, made)
    os.close(write)
    return pid, read


def _become(
    layout: Layout,
    name: str,
    service: Service,
    argv: tuple[str, ...],
    trace: Trace | None,
    report: int,
    made: host_mounts.Namespace | None,
) -> NoReturn:
    """Become *argv* in the child, or write the error to *report* and exit. Never returns."""
    step = ""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        # A program must not inherit the supervisor's OOM score; a container runtime sets its program's score.
        process.weigh(0)
        if trace is not None:
            there = process.stat(os.getpid())
            assert there is not None
            own = trace._replace(pid=os.getpid(), ticks=there.ticks)
            definitions.write_trace(layout, name, own)
        assert service.log is not None
        detached = trace is not None and service.pid_file is not None
        output = relay.pipe(layout, name) if detached else service.log
        step = f"{output}: "
        log = relay.opened(output) if detached else logs.open_log(output)
        # Not /dev/null: a container runtime makes the program's user the owner of its standard
        # streams, and then a program could change the mode of the whole host's /dev/null.
        nothing, writer = os.pipe()
        os.close(writer)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.umask(0o077)
        if service.user and trace is not None:
            step = f"user {service.user}: "
            account = pwd.getpwnam(service.user)
            os.initgroups(service.user, account.pw_gid)
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            process.prctl(process.PR_SET_NO_NEW_PRIVS)
        if made is not None:
            step = "mount namespace: "
            host_mounts.enter(made, argv)
        step = f"{service.working_dir}: "
        os.chdir(service.working_dir)
        # This comes last: until now the child needs all of the supervisor's descriptors, two for each environment, and
        # more.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
        step = f"{argv[0]}: "
        os.execve(  # noqa: S606
            argv[0], argv, {**service.variables, process.MARK: f"{layout.instance}/{name}"}
        )
    except BaseException as err:
        text = os.strerror(err.errno) if isinstance(err, OSError) and err.errno else str(err)
        with contextlib.suppress(OSError):
            os.write(report, f"{step}{text}"[:4000].encode(errors="replace"))
    finally:
        os._exit(127)
