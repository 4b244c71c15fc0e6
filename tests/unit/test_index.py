"""The index of records: it always agrees with the records, whatever happens to either."""

from __future__ import annotations

import json
import os
import shutil
import time

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netspace import files
from netspace.errors import StateError
from netspace.index import Index
from netspace.layout import Layout

NAMES = st.sampled_from(["a", "b", "c"])
HISTORY = st.lists(
    st.one_of(
        st.tuples(st.just("write"), NAMES, st.integers(0, 9)),
        st.tuples(st.just("in place"), NAMES, st.integers(0, 9)),
        st.tuples(st.just("remove"), NAMES),
        st.tuples(st.just("damage a record"), NAMES),
        st.tuples(st.just("damage the index"), st.integers(0, 400), st.integers(1, 255)),
        st.tuples(st.just("cut the index"), st.integers(0, 400)),
        st.tuples(st.just("put an old index back")),
        st.tuples(st.just("leave half an index")),
        st.tuples(st.just("lose the index")),
        st.tuples(st.just("another version"), st.sampled_from(["1", "2"])),
        st.tuples(st.just("a run"), st.booleans(), st.booleans(), st.none() | st.tuples(NAMES, st.integers(0, 9))),
    ),
    max_size=30,
)


class Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    base: int = 0


class Bench:
    """Records of one number each, their index, and the count of records that were decoded."""

    def __init__(self, root):
        self.layout = Layout(root=root)
        self.folder = self.layout.records("things")
        self.path = self.layout.run / "index/things.json"
        self.decoded = []
        self.ticks = 1_000_000_000
        self.version = "1"
        self.old = None

    def index(self, later=True):
        now = time.time_ns() + (10**10 if later else 0)
        return Index(self.layout, "things", Claims, self.version, self.claims, lambda: now)

    def claims(self, name):
        self.decoded.append(name)
        record = files.read_json(self.folder / f"{name}.json")
        return None if record is None else Claims(record["base"])

    def truth(self):
        return {name: Claims(record["base"]) for name, record in files.read_records(self.folder).items()}

    def write(self, name, base, in_place=False):
        path = self.folder / f"{name}.json"
        if in_place and path.exists():
            path.write_text(json.dumps({"base": base}))
        else:
            files.write_json(path, {"base": base})
        self.ticks += 1  # a clock of such steps that no two contents share one
        os.utime(path, (self.ticks, self.ticks))

    def run(self, later=True, killed=False, change=None):
        index = self.index(later)
        found = index.read()
        if change is not None:
            self.write(*change)
        if not killed:
            index.note([change[0]] if change is not None else [])
        return found

    def do(self, what, *how):
        if what in ("write", "in place"):
            self.write(*how, in_place=what == "in place")
        elif what == "remove":
            files.remove(self.folder / f"{how[0]}.json")
        elif what == "damage a record" and (path := self.folder / f"{how[0]}.json").exists():
            path.write_text("{")
        elif what == "another version":
            self.version = how[0]
        elif what == "leave half an index":
            self.path.parent.mkdir(parents=True, exist_ok=True)
            (self.path.parent / f".{self.path.name}.new").write_bytes(b"{")
        elif what == "put an old index back" and self.old is not None:
            self.path.write_bytes(self.old)
        elif self.path.exists() and what in ("damage the index", "cut the index", "lose the index"):
            content = bytearray(self.path.read_bytes())
            if what == "lose the index":
                self.path.unlink()
            elif what == "cut the index":
                self.path.write_bytes(content[: how[0]])
            else:
                content[how[0] % len(content)] ^= how[1]
                self.path.write_bytes(content)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(history=HISTORY)
def test_any_history_and_the_index_says_what_records_say(tmp_path, history):
    shutil.rmtree(tmp_path / "host", ignore_errors=True)
    bench = Bench(tmp_path / "host")
    for what, *how in [*history, ("a run", True, False, None), ("a run", True, False, None)]:
        if what != "a run":
            bench.do(what, *how)
            continue
        bench.old = bench.path.read_bytes() if bench.path.exists() else bench.old
        try:
            truth = bench.truth()
        except StateError:
            with pytest.raises(StateError):
                bench.run(*how)
        else:
            assert bench.run(*how) == truth


def test_an_unchanged_record_is_decoded_once(bench):
    bench.write("a", 1)
    bench.write("b", 2)
    bench.run()
    bench.write("b", 3)
    assert bench.decoded == ["a", "b"]
    assert bench.run() == {"a": Claims(1), "b": Claims(3)}
    assert bench.decoded == ["a", "b", "b"]
    assert bench.run() == {"a": Claims(1), "b": Claims(3)}
    assert bench.decoded == ["a", "b", "b"]


def test_a_record_of_just_now_is_decoded_again(bench):
    bench.write("a", 1)
    assert bench.run(later=False) == bench.run(later=False) == {"a": Claims(1)}
    assert bench.decoded == ["a", "a"]  # it may have been changed within one step of the clock


def test_a_read_alone_writes_nothing(bench):
    bench.write("a", 1)
    bench.run(killed=True)
    assert not bench.path.exists()
