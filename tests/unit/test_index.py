"""The index of records always agrees with the records, even if the index or a record was changed or lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import sampling

from netspace import files
from netspace.environment import record as environment_records
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.reconciler import Environments
from netspace.errors import StateError
from netspace.index import Index
from netspace.interface import record as interface_records
from netspace.interface.reconciler import Interfaces
from netspace.layout import Layout
from netspace.plan import Step
from netspace.spec import parse

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
        st.tuples(
            st.just("a run"),
            st.booleans(),
            st.booleans(),
            st.none() | st.tuples(NAMES, st.integers(0, 9)),
            st.booleans(),
            st.none() | st.tuples(NAMES, st.integers(0, 9)),
        ),
    ),
    max_size=30,
)


class Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    base: int = 0


class Bench:
    """Records of one number each, their index, and the number of records that were decoded."""

    def __init__(self, root):
        self.layout = Layout(root=root)
        self.folder = self.layout.records("things")
        self.path = self.layout.run / "index/things.json"
        self.decoded = []
        self.ticks = 1_000_000_000
        self.version = "1"
        self.old = None
        self.overwritten = False  # a record was written in place, which no seal shows

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
            self.overwritten = True
        else:
            files.write_json(path, {"base": base})
        self.ticks += 1  # a clock of such steps that no two contents share one
        os.utime(path, (self.ticks, self.ticks))

    def run(self, later=True, killed=False, change=None, sealed=True, others=None):
        """Read the index, change a record, and note the change.

        With *others*, another program changes a record in between.
        """
        index = self.index(later)
        found = index.read(sealed=sealed and not self.overwritten)
        index.begin()
        if change is not None:
            self.write(*change)
        if others is not None:
            self.write(*others)
        if not killed:
            index.note([change[0]] if change is not None else [])
            self.overwritten = False
        return found

    def do(self, what, *how):
        if what in ("write", "in place"):
            self.write(*how, in_place=what == "in place")
        elif what == "remove":
            files.remove(self.folder / f"{how[0]}.json")
        elif what == "damage a record" and (path := self.folder / f"{how[0]}.json").exists():
            path.write_text("{")
            self.overwritten = True
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
    assert bench.run(later=False, sealed=False) == bench.run(later=False, sealed=False) == {"a": Claims(1)}
    assert bench.decoded == ["a", "a"]  # it may have been changed within one step of the clock


def test_sealed_records_are_neither_decoded_nor_looked_at(bench, monkeypatch):
    for name in "ab":
        bench.write(name, 1)
    bench.run(change=("a", 2))
    bench.run(change=("a", 3))
    bench.decoded.clear()
    monkeypatch.setattr(Index, "_stamps", lambda self: pytest.fail("it looked at all records"))
    assert bench.run(later=False, change=("b", 4)) == {"a": Claims(3), "b": Claims(1)}
    assert bench.run(later=False) == {"a": Claims(3), "b": Claims(4)}
    assert bench.decoded == ["b"]
    index = bench.index()
    index.read(sealed=True)
    index.begin()
    files.remove(bench.folder / "b.json")
    index.note(["b"])
    assert bench.run(later=False) == {"a": Claims(3)}
    assert bench.decoded == ["b"]


@pytest.mark.parametrize("when", ["before", "meanwhile", "after"])
@pytest.mark.parametrize("what", ["write", "remove", "write another"])
def test_change_by_others_of_a_sealed_folder_is_seen(bench, when, what):
    def others():
        bench.do(*{"write": ("write", "b", 7), "remove": ("remove", "b"), "write another": ("write", "c", 7)}[what])

    for name in "ab":
        bench.write(name, 1)
    bench.run(change=("a", 2))
    index = bench.index()
    index.read(sealed=True)
    if when == "before":
        others()
    index.begin()
    bench.write("a", 3)
    if when == "meanwhile":
        others()
    index.note(["a"])
    if when == "after":
        others()
    assert bench.index().read(sealed=True) == bench.truth()


def test_sum_of_weights_is_that_of_all_records(bench):
    def index():
        return Index(bench.layout, "things", Claims, "1", bench.claims, weigh=lambda name, its: its.base)

    for change in (("a", 1), ("b", 20), ("a", 300), ("c", 4000), None):
        one = index()
        found = one.read(sealed=True)
        assert one.weight() == sum(its.base for its in found.values())
        one.begin()
        if change is not None:
            bench.write(*change)
            one.note([change[0]])
    assert found == {"a": Claims(300), "b": Claims(20), "c": Claims(4000)}


OTHER_BYTES = {
    "gone": b"",
    "no text": b"\xff",
    "quote": b'"',
    "digit": b"7",
    "letter": b"x",
    "brace": b"}",
    "feed": b"\n",
    "zero": b"\0",
}
OTHER_VALUES = {
    "another type": b'{"base":"3"}',
    "a list": b"[3]",
    "nothing": b"",
    "null": b"null",
    "half": b'{"base":',
    "no text": b"\xff",
    "too deep": b"[" * 100_000,
}


def sealed(bench):
    """Seal an index of two records; return its content."""
    for name in "ab":
        bench.write(name, 1)
    bench.run(change=("a", 2))
    bench.run(change=("a", 3))
    return bench.path.read_bytes()


def rewrite(path, content):
    path.unlink()  # a file that is cut and written again goes to the disk each time
    path.write_bytes(content)


def answers(bench):
    """Return the results of all queries on a sealed index, each on an index that was just read."""
    one, few, all_, some = (bench.index().read(sealed=True) for _ in range(4))
    return one["a"], few.get("b"), dict(all_), set(some.examples().values()) <= {Claims(3), Claims(1)}


TRUE = (Claims(3), Claims(1), {"a": Claims(3), "b": Claims(1)}, True)


@pytest.mark.parametrize("other", OTHER_BYTES.values(), ids=OTHER_BYTES)
def test_an_index_with_any_byte_damaged_is_ignored(bench, other):
    whole = sealed(bench)
    for at in range(sum(other) % 7, len(whole), 7):
        rewrite(bench.path, whole[:at] + other + whole[at + 1 :])
        assert answers(bench) == TRUE, at


@pytest.mark.parametrize("other", OTHER_VALUES.values(), ids=OTHER_VALUES)
@pytest.mark.parametrize("part", [b'{"base":3}', b"[2,[", b"]\n"], ids=["value", "sorts", "stamp"])
def test_an_index_of_other_types_costs_only_time(bench, part, other):
    content = sealed(bench)[65:]
    assert part in content
    content = content.replace(part, other, 1)
    bench.path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    assert answers(bench) == TRUE
    assert dict(bench.index().read()) == TRUE[2]


def test_a_damaged_value_is_mended_in_the_file_too(bench):
    content = sealed(bench)[65:].replace(b'{"base":3}', b'{"base":?}')
    bench.path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    index = bench.index()
    assert index.read(sealed=True)["a"] == Claims(3)
    index.begin()
    bench.write("b", 4)
    index.note(["b"])
    bench.decoded.clear()
    assert bench.run(later=False) == {"a": Claims(3), "b": Claims(4)}
    assert bench.decoded == []


def environment_record(layout):
    spec = parse.environment("web", {"image": "dir:/srv/web", "command": ["/bin/web"], "limits": {"memory": "64M"}})
    image = Image("d" * 64, "i", Defaults())
    environment_records.write(layout, "web", environment_records.Record(spec, "running", 1 << 20, image, "c", "r", {}))
    return environment_records


def interface_record(layout):
    spec = parse.interface({"kind": "veth", "allow": [{"direction": "out", "cidr": "198.51.100.0/24"}]})
    one = interface_records.Record(spec, {"ipv4": "10.203.0.9"}, {"ipv4": "10.203.0.1"}, "nsx", owner=7)
    files.write_json(interface_records.path(layout, "web"), one.encoded())
    return interface_records


@pytest.mark.parametrize("make", [environment_record, interface_record])
def test_a_record_with_any_byte_damaged_is_named_or_read(tmp_path, make):
    layout = Layout(root=tmp_path)
    records = make(layout)
    path = records.path(layout, "web")
    whole = path.read_bytes()
    assert records.read_one(layout, "web") is not None
    for first, other in enumerate((b"", b"\xff", b'"', b"7", b"[", b"}", b"\0", b"1e999", b"null")):
        for at in sampling.todays(range(first % 3, len(whole), 3), 4):
            rewrite(path, whole[:at] + other + whole[at + 1 :])
            with contextlib.suppress(StateError):
                records.read_one(layout, "web")
    for cut in range(0, len(whole) - 1, 7):  # without the last line feed it is whole
        rewrite(path, whole[:cut])
        with pytest.raises(StateError, match=r"web\.json"):
            records.read_one(layout, "web")


@pytest.mark.parametrize("make", [environment_record, interface_record])
@pytest.mark.parametrize("other", [1e999, None, [], {}, "x", 7, [[]], {"x": None}, "1e999"])
def test_a_record_with_any_value_of_another_type_is_named_or_read(tmp_path, make, other):
    layout = Layout(root=tmp_path)
    records = make(layout)
    path = records.path(layout, "web")
    whole = path.read_text()
    for key in json.loads(whole):
        path.write_text(json.dumps({**json.loads(whole), key: other}))
        with contextlib.suppress(StateError):
            records.read_one(layout, "web")


def test_a_read_alone_writes_nothing(bench):
    bench.write("a", 1)
    bench.run(killed=True)
    assert not bench.path.exists()


@pytest.mark.parametrize("kind", ["interface", "environment"])
def test_apply_that_fails_leaves_no_descriptor(tmp_path, monkeypatch, kind):
    layout = Layout(root=tmp_path)
    index = Index(layout, "things", Claims, "1", lambda name: Claims())
    layout.records("things").mkdir(parents=True)
    if kind == "interface":
        reconciler, module = Interfaces(layout), "netspace.interface.reconciler"
    else:
        reconciler, module = Environments(layout, cast(Any, None)), "netspace.environment.reconciler"
    monkeypatch.setattr(reconciler, "_index", index)
    begun = []

    def fails(*args, **more):
        begun.append(index._watch)
        raise RuntimeError

    monkeypatch.setattr(f"{module}.ApplyRun", fails)
    index.read()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(RuntimeError):
        reconciler.apply([Step(kind, "a", "create")])
    assert begun != [None]
    assert os.listdir("/proc/self/fd") == before
