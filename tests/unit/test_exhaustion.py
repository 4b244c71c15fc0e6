"""Verdicts of the exhaustion audit: others got too little, or had to wait; and the program that takes units."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from netspace.environment.audit import exhaust, pools, rivals, storms
from netspace.errors import NetspaceError
from netspace.host import exhaustion
from netspace.host.exhaustion import CHARGED, Share, Used, compare, judge

ALL = Share(16, 16, 16)
NONE = Share(0, 0, 0)


@pytest.mark.parametrize(
    ("outcome", "taken", "ended", "root", "neighbour", "host", "charged"),
    [
        ("held", 128, "EMFILE", ALL, ALL, None, 0),
        ("held", 0, "EPERM", ALL, NONE, None, 0),
        ("leak", 128, "EMFILE", Share(16, 3, 16), ALL, None, 0),
        ("leak", 128, "EMFILE", ALL, Share(16, 0, 16), None, 0),
        ("leak", 128, "EMFILE", ALL, Share(16, 16, 15), None, 0),
        ("leak", 900, "", ALL, ALL, Used(10, 900, 1000), CHARGED * 9),
        ("held", 900, "EAGAIN", ALL, ALL, Used(10, 899, 1000), 0),
        ("held", 900, "EAGAIN", ALL, ALL, Used(950, 990, 1000), 0),
        ("open", 20_000, "", ALL, ALL, None, 0),
        ("open", 20_000, "", ALL, ALL, None, CHARGED - 1),
        ("open", 20_000_000, "", ALL, ALL, None, CHARGED),
        ("held", 20_000, "", ALL, ALL, None, CHARGED),
        ("held", 20_000, "", ALL, ALL, Used(5, 5, 1000), 0),
        ("open", 20_000, "", ALL, ALL, Used(5, 205, 1000), 0),
        ("skipped", 0, "ENOMEM", NONE, NONE, None, 0),
    ],
)
def test_the_verdict_on_a_pool(outcome, taken, ended, root, neighbour, host, charged):
    assert judge("x", taken, ended, root, neighbour, host, charged).outcome == outcome


def test_memory_is_no_price_for_a_disk():
    assert judge("disk (MiB)", 512, "", ALL, ALL, None, 10 * CHARGED).outcome == "open"
    assert judge("disk (MiB)", 57, "ENOSPC", ALL, ALL, None, 10 * CHARGED).outcome == "held"


def test_a_row_tells_who_got_how_many():
    row = judge("x", 1024, "EAGAIN", Share(16, 0, 14), Share(16, 2, 16), Used(0, 1024, 1024))
    assert row.detail == (
        "took 1024, then EAGAIN; of the host's 1024 0 were in use, then 1024; root got 0 of 16 meanwhile; "
        "root got 14 of 16 afterwards; a neighbour got 2 of 16 meanwhile; the host has no more"
    )
    assert msgspec.to_builtins(row)["root"] == {"before": 16, "during": 0, "after": 14}
    assert "each for 4096 bytes" in judge("x", 1024, "", ALL, ALL, None, 4096 * 1024).detail


def test_the_verdict_on_waiting():
    alone = {"answer": 0.02, "exec": 0.1, "look": 0.001, "restart": 0.2}
    assert compare("x", alone, alone).outcome == "held"
    assert compare("x", alone, {**alone, "answer": 0.039, "exec": 0.149, "restart": 0.29}).outcome == "held"
    assert compare("x", alone, {**alone, "look": 0.019}).outcome == "held"  # nobody notices
    for what, much in (("answer", 0.041), ("exec", 0.16), ("look", 0.021), ("restart", 0.31)):
        row = compare("x", alone, {**alone, what: much})
        assert row.outcome == "slow"
        assert row.detail.endswith(f"; more than it should: {what}")
        assert row.seconds[what] == [alone[what], much]


def test_what_the_kernel_tells_is_about_pools_that_there_are(tmp_path):
    assert set(exhaustion.readings(tmp_path)) <= set(pools.POOLS)


def test_the_page_names_each_pool():
    page = (Path(__file__).parents[2] / "docs/limits.md").read_text()
    assert [name for name in (*pools.POOLS, *storms.STORMS) if f"`{name}`" not in page] == []


# -- the program that takes ------------------------------------------------------------------------
@pytest.fixture
def program(tmp_path):
    """Run the program as a separate process."""
    library = Path(exhaust.__file__).parents[3]
    command = [sys.executable, exhaust.__file__, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    process = subprocess.Popen(command, env={"PYTHONPATH": str(library)}, **pipes)
    rival = rivals.Rival(lambda: process, lambda _: process.wait(20))
    yield rival
    rival.end()
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_it_takes_until_it_is_refused_and_gives_all_back(program):
    first = program.ask(take="queued signals")
    held = program.ask(share="files in memory")
    program.ask(drop=True)
    assert first.ended in ("EAGAIN", "")  # as many as whoever runs this may have; without a limit 5,000
    assert first.taken > exhaust.SHARE
    assert (held.taken, held.ended) == (exhaust.SHARE, "")
    again = program.ask(take="queued signals")
    assert again.taken >= first.taken - 64  # others of this user may queue some


def test_what_outlives_it_is_given_back_when_its_input_ends(program, tmp_path):
    taken = program.ask(take="files in memory").taken
    assert len(list(tmp_path.iterdir())) == taken > exhaust.SHARE
    # the fixture looks again when it has ended


def test_a_storm_ends_when_it_is_told(program):
    assert program.ask(storm="forks").taken == exhaust.WORKERS
    assert program.ask(drop=True) == rivals.Answer(0, "")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("{}", "can't be understood"),
        ('{"taken": -1, "ended": ""}', "can't be understood"),
        ('{"taken": 1, "ended": "' + "x" * 65 + '"}', "can't be understood"),
        ('{"taken": 1, "ended": "", "more": 1}', "can't be understood"),
        ("x" * 9000, "too long"),
    ],
)
def test_an_answer_from_inside_is_read_with_bounds(said, problem):
    with pytest.raises(NetspaceError, match=problem):
        _saying(said).ask(echo=True)


def _saying(said):
    script = "import sys; sys.stdin.readline(); print(sys.argv[1], flush=True)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    return rivals.Rival(lambda: subprocess.Popen([sys.executable, "-c", script, said], **pipes), lambda p: p.wait(20))


def test_an_answer_commands_no_terminal_and_one_that_is_gone_begins_anew():
    rival = _saying('{"taken": 1, "ended": "\\u001b[2J"}')
    assert rival.ask(echo=True).ended == "\\x1b[2J"
    assert rival.ask(echo=True) == rivals.Answer(0, rivals.GONE)
    assert rival.ask(echo=True).taken == 1
    rival.end()
