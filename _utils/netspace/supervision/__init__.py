"""Supervision of programs: by systemd if it is PID 1, else by netspace's own daemon.

``Service`` is a program to run; ``Supervisor`` is the interface of both implementations, and
:func:`select` picks one. Environments, the broker and the forwarder are all services.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netspace.supervision.cgroup import booted
from netspace.supervision.service import Supervisor

if TYPE_CHECKING:
    from netspace.layout import Layout


def select(layout: Layout) -> Supervisor:
    """Return the supervisor for this host: systemd if it is PID 1, else netspace's own daemon."""
    if booted():
        from netspace.supervision.systemd.supervisor import Systemd

        return Systemd(layout)
    from netspace.supervision.daemon.client import DaemonSupervisor

    return DaemonSupervisor(layout)
