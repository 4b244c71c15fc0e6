"""Stop of environments: the mark files that keep them stopped, and calls of the supervisor by environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from netspace.environment import runs
from netspace.environment.container import oci_runtime
from netspace.errors import NetspaceError
from netspace.layout import Layout


def halt(layout: Layout, names: Iterable[str]) -> None:
    """Create the halt marks of these environments, before they are stopped."""
    for name in names:
        mark = oci_runtime.halt_mark(layout, name)
        if mark.parent.is_dir():
            mark.touch(mode=0o600)


def answers(layout: Layout, call: Callable[[list[str]], Mapping[str, str]], names: Iterable[str]) -> dict[str, str]:
    """Stop or remove these environments' services by a method of the supervisor; return the errors, by environment."""
    services = {oci_runtime.service_name(name): name for name in names}
    try:
        errors = {services[service]: error for service, error in call(list(services)).items()}
    except (NetspaceError, OSError) as err:
        return dict.fromkeys(services.values(), str(err))
    runs.ended(layout, set(services.values()) - errors.keys())
    return errors
