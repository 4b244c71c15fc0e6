"""The health that results from probes, and its file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.environment import record as records
from netspace.environment import user_ids
from netspace.environment.health import probes, state, watcher
from netspace.environment.health import record as verdict
from netspace.environment.health.record import HealthVerdict
from netspace.environment.health.state import Judgement
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.record import Failed, Previous, Record
from netspace.layout import Layout
from netspace.spec import parse
from netspace.spec.types import Health

HEALTH = Health(exec=("/check",), interval=10, retries=3, start_period=5)


def after(health: Health, *probed: tuple[float, bool]) -> Judgement:
    known = Judgement()
    for age, passed in probed:
        known = state.judge(known, health, passed, "" if passed else "no", age)
    return known


def test_one_that_starts_has_its_allowance() -> None:
    assert state.allowance(HEALTH) == 35
    failing = [(age, False) for age in range(34)]
    assert after(HEALTH, *failing).state == "starting"
    assert after(HEALTH, *failing, (35, False)) == Judgement("unhealthy", 35, "no")
    assert after(HEALTH, *failing, (34.5, True)) == Judgement("healthy")


def test_a_healthy_one_is_unhealthy_after_so_many_failures_in_a_row_and_may_recover() -> None:
    well = (1.0, True)
    bad = (100.0, False)
    assert after(HEALTH, well, bad, bad).state == "healthy"
    assert after(HEALTH, well, bad, bad, well, bad, bad).state == "healthy"
    assert after(HEALTH, well, bad, bad, bad).state == "unhealthy"
    assert after(HEALTH, well, bad, bad, bad, well).state == "healthy"


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=40),
    st.integers(1, 10),
    st.floats(0.1, 100),
    st.floats(0, 100),
)
def test_a_success_always_makes_healthy_and_only_failures_make_unhealthy(
    probed: list[tuple[float, bool]], retries: int, interval: float, start: float
) -> None:
    health = Health(exec=("/x",), retries=retries, interval=interval, start_period=start)
    known = after(health, *sorted(probed))
    row = 0
    for _, passed in sorted(probed, reverse=True):
        if passed:
            break
        row += 1
    assert known.failures == row
    if probed and sorted(probed)[-1][1]:
        assert known == Judgement("healthy")
    if known.state == "unhealthy":
        assert row >= 1
    if any(passed for _, passed in probed):
        assert (known.state == "unhealthy") == (row >= retries)
    assert 0 < state.pause(known, health) <= health.interval
    assert len(known.detail) <= state.DETAIL


def test_a_judgement_survives_the_disk_and_damage_is_none(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    assert verdict.read(layout, "web") is None
    verdict.folder(layout).mkdir(parents=True)
    known = HealthVerdict(Judgement("unhealthy", 3, "exit 3: not well"), 7, 99, 1.5)
    verdict.write(layout, "web", known)
    verdict.mark(verdict.up(layout, "web"), True)
    assert verdict.read(layout, "web") == known
    verdict.clear(layout, ["web", "other"])
    assert list(verdict.folder(layout).iterdir()) == []
    for text in ("", "[]", "{}", '{"state": "fine", "failures": 1, "detail": "", "pid": 1, "ticks": 1, "since": 1}'):
        (verdict.folder(layout) / "web.json").write_text(text)
        assert verdict.read(layout, "web") is None


@pytest.mark.parametrize(("count", "well"), [(1, True), (0, False)])
def test_a_mailbox_is_well_while_somebody_reads_it(count: int, well: bool) -> None:
    assert probes.mailbox("web", lambda name: count)[0] is well


def test_a_broker_that_can_not_be_asked_is_no_news() -> None:
    def refuse(name: str) -> int:
        raise OSError("connection refused")

    found = probes.mailbox("web", refuse)
    assert found == (None, "connection refused")
    for before in (Judgement(), Judgement("healthy"), Judgement("healthy", 2, "no"), Judgement("unhealthy", 3, "no")):
        after = state.judge(before, HEALTH, *found, 1e6)
        assert after == msgspec.structs.replace(before, detail="connection refused")


def record(**keys: object) -> Record:
    spec = parse.environment("web", {"image": "tar:/x.tar", **keys})
    return Record(spec, "running", user_ids.FIRST, Image("d" * 64, "i", Defaults()), "c", "r", {})


def test_who_is_watched() -> None:
    known = {
        "checked": record(health={"exec": ["/check"]}),
        "awaited": record(),
        "waiting": record(after=["awaited"]),
        "plain": record(),
    }
    assert set(watcher.needed(known)) == {"checked", "awaited"}


def test_what_to_go_back_to_and_what_failed_survive_the_disk(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    before = record(command=["/old"])
    now = msgspec.structs.replace(
        record(command=["/new"], health={"mailbox": True}),
        previous=Previous(before.spec, before.image),
        failed=Failed("f" * 64, "tar:/x.tar", "i", "d" * 64, "it ended (exit 3)"),
    )
    records.write(layout, "web", now)
    read = records.read(layout)["web"]
    assert (read.previous, read.failed, read.spec.health) == (now.previous, now.failed, now.spec.health)
    records.write(layout, "web", before)
    assert records.read(layout)["web"].previous is None
    assert records.fingerprint(now.spec, None, now.runtime) != records.fingerprint(before.spec, None, before.runtime)
