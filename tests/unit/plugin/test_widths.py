"""Tables are at most 80 columns wide, however long names are, and show times and sizes in units that people read."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
import salt.output
from hypothesis import given
from hypothesis import strategies as st
from support import checkout
from support.returns import NOW, RETURNS, times_without_text

from netspace.plugin import dates, inspected, tables, views

SCREEN = views.Screen(NOW, tables.plain)
_names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True) | st.just("a" * 64)
_ADDRESSES = st.ip_addresses(v=6).map(lambda one: one.exploded)


@given(
    st.sampled_from(RETURNS),
    st.fixed_dictionaries(dict.fromkeys(("web", "orders", "audit", "h1", "h2"), _names)),
    _ADDRESSES,
)
def test_long_names_and_addresses_fit_the_screen(data: dict[str, Any], names: dict[str, str], address: str) -> None:
    text = json.dumps(data)
    for number, (old, new) in enumerate(names.items()):  # the number keeps two things apart that get the same name
        text = re.sub(rf"\b{old}\b", f"{number}{new[:63]}", text)
    text = text.replace("10.203.54.242", address)
    lines = views.render(json.loads(text), SCREEN)
    assert lines is not None, "the table is still a table"
    assert max(map(tables.columns, lines)) <= tables.WIDTH, "\n".join(lines)


def test_each_table_has_a_sample_here() -> None:
    with_sample = {lines for data in RETURNS for knows, lines in views._VIEWS if knows(data)}
    assert {lines for _, lines in views._VIEWS} <= with_sample


MOMENT = 1_796_000_000
DAY = 86400


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"since": MOMENT - 3 * 3600.0}, {"since": "2026-11-29T21:53:20Z (3 h ago)"}),
        ({"a": [{"expires": MOMENT + 20 * DAY}]}, {"a": [{"expires": "2026-12-20T00:53:20Z (in 20 d)"}]}),
        ({"asked_again": {"h1": MOMENT - 3 * 3600}}, {"asked_again": {"h1": "2026-11-29T21:53:20Z (3 h ago)"}}),
        # Durations and counts have smaller numbers under the same keys.
        *((one, one) for one in ({"deadline": 600}, {"first": 12}, {"since": 0}, {"last": None}, {"until": "today"})),
        *(
            (one, one)
            for one in ({"bytes": MOMENT}, {"since": True}, {"since": 10**400}, [MOMENT], MOMENT, {1: MOMENT})
        ),
    ],
)
def test_times_without_a_table_are_dates(data: object, shown: object) -> None:
    assert dates.dated(data, MOMENT) == shown


def test_data_have_each_time_as_text_beside_its_number() -> None:
    data = {"since": MOMENT, "rows": [{"first": MOMENT + 0.9, "deadline": 600}], "x": {"last": None, "built": MOMENT}}
    text = "2026-11-30T00:53:20Z"
    found = dates.with_texts(data)
    assert found == {
        "since": MOMENT,
        "since_at": text,
        "rows": [{"first": MOMENT + 0.9, "first_at": text, "deadline": 600}],
        "x": {"last": None, "built": MOMENT, "built_at": text},
    }
    assert dates.dated(found, MOMENT) == dates.dated(data, MOMENT), "a terminal shows each time once"
    assert inspected.lines(found, MOMENT, tables.plain) == inspected.lines(data, MOMENT, tables.plain)


@pytest.mark.parametrize("data", RETURNS)
def test_each_time_of_a_table_has_its_text(data: dict[str, Any]) -> None:
    now = time.time()
    assert not list(times_without_text("netspace", dates.with_texts(_moved(data, now))))
    assert (_moved(data, now) != data) == bool(list(times_without_text("netspace", _moved(data, now)))), "it finds them"


def _moved(data: Any, now: float) -> Any:
    """Return a sample with its times moved to about *now*, since the samples' own present is long past."""
    if isinstance(data, dict):
        return {key: _moved(value, now) for key, value in data.items()}
    if isinstance(data, list):
        return [_moved(value, now) for value in data]
    return data - NOW + now if isinstance(data, float) and abs(data - NOW) < 11 * DAY else data


def test_return_without_a_table_has_dates() -> None:
    opts: dict[str, Any] = {
        "extension_modules": "", "outputter_dirs": [str(checkout.ROOT / "_output")], "optimization_order": [0],
        "color": False, "strip_colors": True, "fun": "netspace_environment.inspect",
    }  # fmt: skip
    one = {"name": "web", "since": MOMENT, "usage": {"memory": 4096}}
    told = salt.output.try_printout({"h1": one}, "netspace", opts)
    assert "2026-11-30T00:53:20Z (" in told and str(MOMENT) not in told and "4096" in told
    assert one["since"] == MOMENT
