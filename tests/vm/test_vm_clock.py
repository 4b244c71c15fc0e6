"""A jump of the clock, forwards or back, restarts nothing, changes nothing, and breaks no waiting."""

from __future__ import annotations

import pytest
from support.hosts.whole_host import all_true, changes
from support.waiting import until
from vmlab.lab import STAY, Salt, environment
from vmlab.machine import Machine

pytestmark = pytest.mark.vm

NAMES = ("here", "there")
DECLARED = {
    "environments": {
        "here": environment(STAY, restart="always", interface={"kind": "veth"}),
        "there": environment(STAY, restart="on-failure", read_only=True),
    }
}


def test_a_clock_that_jumps_changes_nothing(plain: Machine, salt: Salt) -> None:
    def pids() -> list[str]:
        return [plain.sh(f"systemctl show -P MainPID netspace-environment-{name}") for name in NAMES]

    all_true(salt.apply(DECLARED))
    before = pids()
    for jump in ("+ 400 days", "- 800 days"):
        plain.sh(f'date -s "$(date) {jump}"')
        settled = salt.apply(DECLARED)
        all_true(settled)
        # An appraisal from long ago, or from a time to come, is none: the host is appraised anew. Nothing else is done.
        assert set(changes(settled)) <= {"netspace attestation"}
        assert pids() == before
    # What ends after the jumps is started again.
    plain.sh(f"kill -9 {before[0]}")
    until(lambda: pids()[0] not in ("0", before[0]), "here is not started again", pause=0.2)
    assert pids()[1] == before[1]
