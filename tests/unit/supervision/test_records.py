"""Definitions, desired state and traces on disk."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace import files
from netspace.errors import StateError
from netspace.layout import Layout
from netspace.supervision import definitions
from netspace.supervision.daemon import client
from netspace.supervision.service import Service

words = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=12)
argv = st.tuples(words.map("/{}".format), words, words)
service_names = st.from_regex(definitions.NAME.pattern, fullmatch=True).filter(
    lambda name: name not in definitions.RESERVED
)
services = st.builds(
    Service,
    name=service_names,
    command=argv,
    description=st.text("abc %$\"'", max_size=8),
    variables=st.dictionaries(st.from_regex(definitions.VARIABLE.pattern, fullmatch=True), words, max_size=3),
    working_dir=st.sampled_from(("/", "/srv/a")),
    pid_file=st.none() | st.just(Path("/run/x.pid")),
    cleanup=st.tuples(argv) | st.just(()),
    reload=argv | st.just(()),
    restart=st.sampled_from(definitions.POLICIES),
    stop_timeout=st.floats(min_value=0.1, max_value=3600),
    after=st.tuples(service_names) | st.just(()),
    until=st.tuples(st.just(Path("/run/a")), st.just(Path("/run/b"))) | st.just(()),
    condemned=st.none() | st.just(Path("/run/c")),
    log=st.none() | st.just(Path("/var/log/x")),
    limits=st.dictionaries(st.sampled_from(sorted(definitions.LIMITS)), st.integers(1, 2**40)),
    user=st.just(""),
    delegate=st.booleans(),
    init=st.booleans(),
)


@given(services)
def test_a_definition_survives_the_disk(service: Service) -> None:
    assert definitions.decode(definitions.encode(service)) == service


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"name": "restore"},
        {"name": ""},
        {"command": ["relative"]},
        {"command": []},
        {"command": "/bin/true"},
        {"command": ["/bin/true", "a\0b"]},
        {"description": "two\nlines"},
        {"variables": {"a b": "c"}},
        {"variables": {"A": 1}},
        {"cleanup": "/bin/true"},
        {"until": "/run/a"},
        {"until": ["a"]},
        {"condemned": "x"},
        {"restart": "sometimes"},
        {"stop_timeout": 0},
        {"stop_timeout": True},
        {"user": "root:x"},
        {"user": "nobody", "pid_file": "/run/x.pid"},
        {"after": ["a/b"]},
        {"log": "relative"},
        {"limits": {"memroy": 1}},
        {"limits": {"memory": 0}},
        {"delegate": 1},
        {"init": "yes"},
        {"more": 1},
    ],
    ids=str,
)
def test_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StateError):
        definitions.decode({**definitions.encode(Service("a", ("/bin/true",))), **change})


def test_only_a_service_with_an_init_is_defined_otherwise_than_by_former_versions() -> None:
    assert "init" not in definitions.encode(Service("a", ("/bin/true",)))
    service = Service("a", ("/bin/true",), init=True)
    assert definitions.decode(definitions.encode(service)) == service


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(StateError, match="twice"):
        definitions.validate([Service("a", ("/bin/true",)), Service("a", ("/bin/false",))])


def test_what_shall_run_is_one_file(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    assert definitions.desired(layout) == set()
    definitions.desire(layout, add=["b", "a"])
    definitions.desire(layout, add=["c"], drop=["b", "x"])
    assert definitions.desired(layout) == {"a", "c"}
    assert definitions.defined(layout) == []
    definitions.desire(layout, drop=["a", "c"])
    assert sorted(path.name for path in definitions.folder(layout).iterdir()) == [".lock"]


def test_a_trace_survives_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    folder = definitions.traces(layout)
    folder.mkdir(parents=True)
    trace = definitions.Trace("running", 12, 345, 1.5, 2, "exit 1", {"name": "a"})
    definitions.write_trace(layout, "a", trace)
    assert definitions.read_trace(layout, "a") == trace
    assert definitions.traced(layout) == ["a"]
    for damage in (b"", b"[]", b"{}", b'{"state": 1}', (folder / "a.json").read_bytes().replace(b"12", b'"12"')):
        (folder / "a.json").write_bytes(damage)
        assert definitions.read_trace(layout, "a") is None


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefxy"), max_size=4)), st.data())
def test_order(after: dict[str, list[str]], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.sampled_from("abcdefxy")))
    order = definitions.in_order(wanted, after)
    assert len(order) == len(set(order))
    assert set(wanted) & set(after) <= set(order) <= set(after)
    for name in order:
        for other in after[name]:
            assert other not in after or other in order


def test_order_without_a_circle_puts_each_behind_what_it_comes_after() -> None:
    after = {"a": ["b", "c"], "b": ["d"], "c": ["d", "x"], "d": []}
    assert definitions.in_order(["a"], after) == ["d", "b", "c", "a"]
    assert definitions.in_order(["d", "a", "zzz"], after) == ["d", "b", "c", "a"]


_VALUES = {
    "state": st.sampled_from(["running", "stopping", "", "failed"]),
    "pid": st.integers(-5, 2**22),
    "ticks": st.integers(0, 2**40),
    "since": st.floats(0, 2**40) | st.integers(0, 2**40),
    "restarts": st.integers(0, 100),
    "exit": st.text(st.characters(codec="utf-8"), max_size=5),
    "service": st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 5) | st.none(), max_size=2),
    "oom_kills": st.integers(0, 9),
    "oom_seen": st.integers(0, 9),
}
_WRONG = st.sampled_from([None, True, 1, 1.5, "x", [], {}])


@given(st.data())
def test_brief_trace_is_read_as_the_whole_one(data: st.DataObject) -> None:
    layout = Layout(root=Path(tempfile.mkdtemp()))
    try:
        record = {key: data.draw(value) for key, value in _VALUES.items()}
        for key in data.draw(st.lists(st.sampled_from([*_VALUES, "more"]), max_size=2)):
            record[key] = data.draw(_WRONG)
        for key in data.draw(st.lists(st.sampled_from([*_VALUES]), max_size=1)):
            record.pop(key, None)
        text = json.dumps(record) if data.draw(st.booleans()) else json.dumps(record)[: data.draw(st.integers(0, 300))]
        path = definitions.traces(layout) / "a.json"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        with files.folder(path.parent) as folder:
            assert folder is not None
            whole, brief = definitions.read_trace(layout, "a"), client._brief("a.json", folder)
        assert (whole is None) == (brief is None)
        if whole is not None and brief is not None:
            keys = ("state", "pid", "ticks", "since", "restarts", "exit", "oom_kills", "oom_seen")
            assert [getattr(whole, key) for key in keys] == [getattr(brief, key) for key in keys]
    finally:
        shutil.rmtree(layout.root)
