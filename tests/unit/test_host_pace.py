"""The keeper's time: shared out equally, bounded for all together, and never refused to who uses little."""

from __future__ import annotations

import random

import pytest

from netspace.host.pace import BURST, SHARE, Pace


def busy(names: list[str], seconds: float, seed: int = 1) -> dict[str, float]:
    """Have environments ask for work without end; return the seconds of work of each."""
    pace, now, worked, chosen = Pace(), 0.0, dict.fromkeys(names, 0.0), random.Random(seed)
    while now < seconds:
        ready = [name for name in names if not pace.wait(name, now)]
        if not ready:
            now += min(pace.wait(name, now) for name in names) + 1e-6
            continue
        took = chosen.uniform(0.05, 0.5)
        now += took
        pace.spend(name := chosen.choice(ready), took, now)
        worked[name] += took
    return worked


@pytest.mark.parametrize("number", [1, 2, 7])
def test_together_they_have_a_part_of_the_time(number: int) -> None:
    worked = busy([f"foe-{one}" for one in range(number)], 4000.0)
    assert sum(worked.values()) <= number * (BURST + 0.5) + SHARE * 4000
    assert sum(worked.values()) >= 0.95 * SHARE * 4000, "and no less"
    assert max(worked.values()) <= 1.3 * min(worked.values()), "in equal shares"


def test_who_asks_now_and_then_never_waits() -> None:
    pace, now = Pace(), 0.0
    for number in range(3000):
        for foe in ("one", "other", "third"):
            if not pace.wait(foe, now):
                now += 0.3
                pace.spend(foe, 0.3, now)
        if number % 40 == 0:
            assert not pace.wait("web", now)
            now += 0.2
            pace.spend("web", 0.2, now)
        now += 0.1


def test_debt_is_paid_off_and_forgotten() -> None:
    pace = Pace()
    assert pace.wait("web", 100.0) == 0
    pace.spend("web", 2 * BURST, 100.0)
    assert pace.wait("web", 100.0) == pytest.approx(BURST / SHARE)
    assert pace.wait("web", 100.0, -BURST) == 0, "what is important may overdraw"
    assert pace.wait("till", 100.0) == 0
    assert pace.wait("web", 100.0 + BURST / SHARE) == pytest.approx(0)
    pace.wait("web", 1e6)
    assert not pace._left
