"""An apply that is killed at any moment; the next apply repairs the host."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest
from support import sampling
from support.hosts import snapshot
from support.hosts.whole_host import ASK, all_true, changes, shop

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

ROUNDS = 20 if sampling.FAULTS == "all" else 3


def test_killed_applies_are_each_repaired(salt, image):
    before = snapshot.rested()
    everything = shop(image)
    started = time.monotonic()
    all_true(salt.apply(everything))
    whole = time.monotonic() - started
    salt("netspace.teardown")

    seed = int(os.environ.get("NETSPACE_SEED") or sampling.today())
    print(f"NETSPACE_SEED={seed}")
    choose = random.Random(seed)
    for turn in range(ROUNDS):
        # In turns: from nothing, a change, and a removal of one.
        wanted = shop(image)
        if turn % 3 == 1:
            wanted["environments"]["web"]["env"] = {"TURN": str(turn)}
        elif turn % 3 == 2:
            del wanted["environments"]["stranger"]
        salt.declare(wanted)
        run = subprocess.Popen(
            salt.command("state.apply", "netspace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        delay = choose.uniform(0.5, max(whole, 1.0))
        try:
            run.wait(delay)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()

        repaired = salt.apply(wanted)
        all_true(repaired)
        settled = salt.apply(wanted)
        all_true(settled)
        assert changes(settled) == {}, f"round {turn}, killed after {delay:.2f} s"
        answer = salt.exec("web", ["/usr/bin/python3", "-c", ASK, "orders", "again"])
        assert answer["stdout"].strip() == "orders to web: again", (turn, answer)
        if turn % 3 == 2 or turn == ROUNDS - 1:
            removed = salt("netspace.teardown")
            assert removed["result"] is True, removed
            assert snapshot.settled(before) == before, f"round {turn}"
