"""The time since which a link is allowed, from the links' record. It stays if only a limit of the link changes."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from netspace import files
from netspace.layout import Layout
from netspace.link import record
from netspace.link.record import Record
from netspace.spec.types import Link, LocalBroker

ASK = Link(source="web", target="orders", pattern="request")
SALE = Link(source="till", target="orders@h2", pattern="send")


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    now = iter(range(1000, 9000, 1000))
    monkeypatch.setattr(record.time, "time", lambda: float(next(now)))
    return Layout(root=tmp_path)


def written(layout: Layout, *links: Link) -> dict[str, float]:
    record.write(layout, Record(LocalBroker(), {link.name: link for link in links}))
    return record.since(layout)


def test_link_keeps_the_time_at_which_it_was_made(layout: Layout) -> None:
    assert record.since(layout) == {}
    assert written(layout, ASK) == {ASK.name: 1000}
    assert written(layout, ASK, SALE) == {ASK.name: 1000, SALE.name: 2000}
    assert written(layout, msgspec.structs.replace(ASK, rate=5.0), SALE) == {ASK.name: 1000, SALE.name: 2000}


def test_link_that_was_gone_or_says_more_has_a_new_time(layout: Layout) -> None:
    written(layout, ASK, SALE)
    assert written(layout, ASK) == {ASK.name: 1000}
    assert written(layout, ASK, SALE) == {ASK.name: 1000, SALE.name: 3000}
    assert written(layout, msgspec.structs.replace(ASK, pattern="send"), SALE)[ASK.name] == 4000


def test_link_of_an_earlier_version_has_no_time(layout: Layout) -> None:
    written(layout, ASK)
    path = layout.records("link") / "applied.json"
    old = json.loads(path.read_text())
    del old["since"]
    files.write_json(path, old)
    assert record.since(layout) == {}
    assert written(layout, ASK, SALE) == {SALE.name: 2000}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"links": [], "since": [1]}', '{"links": 1}', '{"links": [[]]}'])
def test_damaged_record_tells_no_time(content: str, layout: Layout) -> None:
    files.write(layout.records("link") / "applied.json", content.encode())
    assert record.since(layout) == {}
