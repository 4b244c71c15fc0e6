"""The content of cards is computed once for all environments of a host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netspace import files
from netspace.environment import runtimes
from netspace.errors import SpecError
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.link.record import Record, write
from netspace.spec import parse
from netspace.spec.trust import TrustVerdict
from netspace.spec.types import Declaration, Environment, Link, LocalBroker


def test_more_environments_are_no_more_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(Layout(root=tmp_path))
    links = tuple(parse.link({"from": "a", "to": to}, "links") for to in ("b", "c"))
    write(host.layout, Record(LocalBroker(), {link.name: link for link in links}, ()))
    read: list[Path] = []
    real = files.read_json
    monkeypatch.setattr(files, "read_json", lambda path: read.append(path) or real(path))

    def told(*names: str) -> dict[str, list[str]]:
        wanted: dict[str, Any] = {name: (Environment(image="dir:/"), "running", None, runtimes.USUAL) for name in names}
        desired = host._desired(wanted, links)
        return {name: one.files_summary["links"] for name, one in desired.items()}

    assert told("x") == {"x": []}
    few, read[:] = len(read), []
    assert told("x", "y", "z") == {"x": [], "y": [], "z": []}
    assert len(read) == few > 0
    assert told("a", "b") == {"a": ["a.b (send)", "a.c (send)"], "b": ["a.b (send)"]}


NAMED = Link(source="a", target="b", local="shop")


def declared(*links: Link) -> Declaration:
    return Declaration(links=links)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(Layout(root=tmp_path))
    write(made.layout, Record(LocalBroker(), {NAMED.name: NAMED}, ()))
    return made


def test_a_local_name_is_told_whom_it_is_for(host: Host) -> None:
    wanted: dict[str, Any] = {
        name: (Environment(image="dir:/"), "running", None, runtimes.USUAL) for name in ("a", "b")
    }
    desired = host._desired(wanted, (NAMED,))
    assert {name: one.files_summary["links"] for name, one in desired.items()} == {
        "a": ["a.b (send, as shop)"],
        "b": ["a.b (send)"],
    }


def test_a_link_by_itself_can_not_have_the_local_name_of_one_that_was_applied(host: Host) -> None:
    other = Link(source="a", target="c", local="shop")
    with pytest.raises(SpecError, match=r"a\.c:as: a already uses shop for b; remove that link,"):
        host.converge_links(declared(other))
    assert any("remove that link," in note for note in host.converge_links(declared(other), test=True).plan.notes)


def test_a_link_that_goes_on_without_trust_has_the_local_name_that_is_declared(host: Host) -> None:
    now, other = Link(source="a", target="b", local="store"), Link(source="a", target="c", local="shop")
    verdicts = {now.name: TrustVerdict(False, "too low", on_loss="report"), other.name: TrustVerdict(True)}
    assert host._permitted(declared(now, other), verdicts) == (now, other)
