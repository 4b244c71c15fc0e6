"""Problems of links: codes, severities, and one problem for one cause."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from netspace.link import problems
from netspace.link.problems import Code, Problem
from netspace.plugin.explanation import ADVICE

CODES = get_args(Code)
KEYS = st.sampled_from(["", "forwarder-down", "broker-down", "mailbox-full:a", "host-unreachable:h2"])
PROBLEMS = st.builds(Problem, st.sampled_from(CODES), st.text(), st.sampled_from(["", "a", "h2"]), KEYS)


def test_dead_forwarder_is_one_problem() -> None:
    found = problems.forwarder(None, "")
    found += [problems.entrance(f"e{number}", "it can't reach the broker") for number in range(50)]
    found.append(Problem("mailbox-unread", "nobody reads it", "e1", "forwarder-down"))
    assert [one.code for one in problems.causes(found)] == ["forwarder-down"]
    told = problems.told(found)
    assert len(told["problems"]) == 1 and len(told["findings"]) == 52  # type: ignore[arg-type]


def test_dead_peer_of_the_host_is_one_problem() -> None:
    assert problems.host_peer("running") == []
    found = [*problems.host_peer("failed"), Problem("mailbox-unread", "nobody reads it", "web.host", "peer-down")]
    assert [(one.key, one.severity) for one in problems.causes(found)] == [("peer-down", "error")]
    assert "the host's peer is missing" in problems.host_peer(None)[0].text


def test_unreachable_host_is_one_problem() -> None:
    found = problems.hosts([("h2", "no route"), ("h2", "no route"), ("h3", "refused")])
    found += [problems.across(f"web.{n}@h2", "unknown", "h2 can't be asked", "h2") for n in range(9)]
    assert [one.key for one in problems.causes(found)] == ["host-unreachable:h2", "host-unreachable:h3"]


def test_consequence_without_its_cause_is_a_cause() -> None:
    (row,) = problems.rows([problems.entrance("web", "its loopback is down")])
    assert (row["code"], row["depends_on"]) == ("entrance-shut", "")
    assert problems.cause_keys([row]) == ["entrance-shut:web"]


def test_running_or_absent_broker_is_no_problem() -> None:
    assert problems.broker("running", "") == problems.broker("absent", "") == []
    for state in ("stopped", "starting", "deaf", "unreachable"):
        (one,) = problems.broker(state, "why")
        assert (one.key, one.severity, one.text) == (
            "broker-down",
            "error",
            f"the broker is {state}: why; links are unknown",
        )


@given(st.lists(PROBLEMS, max_size=8))
def test_rows_are_plain_and_keep_each_problem(found: list[Problem]) -> None:
    rows = problems.rows(found)
    assert json.loads(json.dumps(rows)) == rows and len(rows) == len(found)
    keys = {one.key for one in found}
    assert all(not row["depends_on"] or row["depends_on"] in keys for row in rows)
    assert [problems.from_row(row)[:3] for row in rows] == [one[:3] for one in found]


def test_each_code_is_documented_and_advised() -> None:
    page = Path("docs/links.md").read_text()
    listed = re.findall(r"^\| `([a-z-]+)` \|[^|]*\| (error|warning) \|", page, re.MULTILINE)
    assert listed == [(code, Problem(code, "").severity) for code in CODES]
    assert {"broker-down", "forwarder-down", "entrance-shut", "host-unreachable"} <= ADVICE.keys()
