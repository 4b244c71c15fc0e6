"""The end of services in netspace's own supervisor, without processes: the effects of a changed declaration."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from netspace import files
from netspace.layout import Layout
from netspace.supervision import definitions
from netspace.supervision.daemon.children import Children
from netspace.supervision.daemon.ending import Stopper
from netspace.supervision.daemon.loop import Loop
from netspace.supervision.daemon.oom import OomTracker
from netspace.supervision.daemon.relay import Relay
from netspace.supervision.daemon.units import Unit, Units
from netspace.supervision.service import Service


@pytest.mark.parametrize(
    ("restart", "exit", "error", "started", "state"),
    [
        ("always", "exit 0", "", True, ""),
        ("on-failure", "exit 3", "", True, ""),
        ("on-failure", "exit 0", "", False, "stopped"),
        ("on-failure", "", "can't be started: no such file", True, ""),
        ("never", "exit 3", "", False, "failed"),
        ("never", "exit 0", "", False, "stopped"),
        ("never", "", "can't be started: no such file", False, "failed"),
    ],
)
def test_a_policy_of_the_last_moment_counts_at_a_retry(
    tmp_path: Path, restart: str, exit: str, error: str, started: bool, state: str
) -> None:
    """Another restart policy is declared while a service waits for its restart; the new policy counts."""
    layout = Layout(root=tmp_path)
    service = Service("a", ("/bin/true",), restart="always")
    again: list[Unit] = []
    units = Units(layout, lambda unit: None)
    stopper = Stopper(
        units, cast(Loop, None), cast(Children, None), cast(OomTracker, None), cast(Relay, None), again.append
    )
    unit = units.get("a")
    unit.service, unit.wanted, unit.phase, unit.exit, unit.error = service, True, "backoff", exit, error
    for folder in (definitions.folder(layout), definitions.traces(layout)):
        folder.mkdir(parents=True)
    declared = service._replace(restart=restart)
    files.write_json(definitions.folder(layout) / "a.json", definitions.encode(declared))
    assert definitions.read(layout, "a") == declared
    stopper._retry(unit)
    assert again == ([unit] if started else [])
    if not started:
        trace = definitions.read_trace(layout, "a")
        assert unit.phase == "idle" and trace is not None and trace.state == state
