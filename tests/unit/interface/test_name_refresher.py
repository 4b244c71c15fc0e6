"""The service that looks up names: each answer counts as soon as it comes, even if other name servers are silent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from netspace import files
from netspace.interface import record as records
from netspace.interface.names import answers, record, resolver, sets
from netspace.interface.names.answers import Known
from netspace.interface.names.record import Key
from netspace.interface.names.refresher import OF_ENVIRONMENT, OF_OWNER, OF_SILENT, THREADS, Refresher, chosen
from netspace.interface.record import Record
from netspace.layout import Layout
from netspace.spec import checks, parse

NOW = 1_800_000_000.0
NAME = "deb.example.org"
PUBLIC = "151.101.2.132"


@pytest.fixture(autouse=True)
def filled(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """A list of the names whose sets are filled, without a kernel."""
    found: list[set[str]] = []

    def fill(layout: Layout, names: Collection[str], now: float, known: Mapping[Key, Known]) -> dict[str, str]:
        found.append({name for name in names if any(key[0] == name and one.until for key, one in known.items())})
        return {}

    monkeypatch.setattr(sets, "fill", fill)
    return found


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(root=tmp_path)
    found.records(records.KIND).mkdir(parents=True)
    return found


def declare(layout: Layout, environment: str, *names: str) -> None:
    rules = [{"direction": "out", "name": name, "cidr": "0.0.0.0/0"} for name in names]
    spec = parse.interface({"kind": "veth", "allow": rules})
    one = Record(spec, {"ipv4": "10.203.0.5"}, {"ipv4": "10.203.0.1"}, "ns0")
    files.write_json(records.path(layout, environment), one.encoded())


class Servers:
    """Stand-ins for name servers. The server of ``evil.example`` is silent until ``over`` is set."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.asked: list[str] = []

    def ask(self, name: str, family: str, configuration: Path) -> dict[str, float]:
        self.asked.append(name)
        if name.endswith("evil.example"):
            self.over.wait()
            raise resolver.UnansweredError("name-unanswered", "silent")
        return {PUBLIC: 300.0}


@pytest.fixture
def servers() -> Iterator[Servers]:
    found = Servers()
    yield found
    found.over.set()


def stepped(watch: Refresher, now: float, done: Callable[[], bool]) -> None:
    for _ in range(60):
        if done():
            return
        watch.step(now)
    raise AssertionError("60 steps were not enough")


def test_silent_server_holds_up_no_other_name(layout: Layout, servers: Servers, filled: list[set[str]]) -> None:
    declare(layout, "bad", *(f"a{number}.evil.example" for number in range(checks.NAMES)))
    declare(layout, "good", NAME)
    with ThreadPoolExecutor(THREADS) as pool, ExitStack() as last:
        last.callback(servers.over.set)
        watch = Refresher(layout, servers.ask, pool)
        stepped(watch, NOW, lambda: (NAME, "ipv4") in watch.known)
        assert watch.known.keys() == record.read(layout).keys() == {(NAME, "ipv4")}
        assert NAME in filled[-1]
        assert len(servers.asked) == 1 + OF_OWNER
        # It is asked again while the silent questions are still open.
        stepped(watch, NOW + 1000, lambda: watch.known[NAME, "ipv4"].asked > NOW)
        servers.over.set()
        stepped(watch, NOW + 1000, lambda: len(watch.known) == 1 + checks.NAMES)
    assert {one.code for key, one in watch.known.items() if key[0] != NAME} == {"name-unanswered"}


def test_questions_of_one_environment_are_bounded() -> None:
    mine = {(f"a.n{number}.org", "ipv4"): {"bad"} for number in range(128)}
    other: Key = ("z.example.net", "ipv4")
    found = chosen([*mine, other], [], {}, {**mine, other: {"good"}})
    assert other in found and len(found) == OF_ENVIRONMENT + 1
    assert chosen([*mine, other], found, {}, {**mine, other: {"good"}}) == []
    # A name that both have counts as the other's.
    shared = ("zz.example.com", "ipv4")
    assert chosen([*mine, shared], found, {}, {**mine, other: {"good"}, shared: {"bad", "good"}}) == [shared]


def test_questions_to_one_owner_are_bounded() -> None:
    keys = {(f"n{number}.evil.example", "ipv4"): {f"e{number}"} for number in range(64)}
    assert len(chosen(keys, [], {}, keys)) == OF_OWNER


def test_questions_that_failed_before_leave_room() -> None:
    failed = answers.failed(Known(), "name-unanswered", "silent", NOW)
    silent = {(f"a.n{number}.org", "ipv4"): {f"e{number}"} for number in range(64)}
    about = dict.fromkeys(silent, failed)
    assert len(chosen(silent, [], about, silent)) == OF_SILENT
    new = {(f"z.n{number}.net", "ipv4"): {f"f{number}"} for number in range(64)}
    found = chosen([*silent, *new], [], about, {**silent, **new})
    assert len(found) == THREADS and set(found) <= new.keys()


def test_name_that_waited_longest_is_asked_first() -> None:
    early, late = ("z.example.org", "ipv4"), ("a.example.net", "ipv4")
    about = {early: Known(due=NOW), late: Known(due=NOW + 1)}
    assert chosen([late, early], [], about, {early: {"a"}, late: {"a"}}) == [early, late]


def test_name_without_a_rule_is_forgotten(layout: Layout, servers: Servers) -> None:
    declare(layout, "good", NAME)
    watch = Refresher(layout, servers.ask)
    watch.step(NOW)
    assert record.read(layout).keys() == {(NAME, "ipv4")}
    files.remove(records.path(layout, "good"))
    watch.step(NOW + 1)
    assert watch.known == record.read(layout) == {}


def test_full_disk_keeps_no_answer_from_the_sets(
    layout: Layout,
    servers: Servers,
    filled: list[set[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    declare(layout, "good", NAME)
    watch = Refresher(layout, servers.ask)

    def full(path: Path, content: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> bool:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write", full)
        watch.step(NOW)
        watch.step(NOW + 1)
    assert filled == [{NAME}] and capsys.readouterr().err.count("No space left") == 1
    watch.step(NOW + 2)
    assert record.read(layout) == watch.known != {}


def test_names_over_the_bound_are_told(
    layout: Layout, servers: Servers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "KEYS", 2)
    declare(layout, "b", "b.example.org", "c.example.org")
    watch = Refresher(layout, servers.ask)
    watch.step(NOW)
    declare(layout, "a", "a.example.org")  # it takes nobody's place
    watch.step(NOW + 1)
    assert {name for name, _ in watch.known} == {"b.example.org", "c.example.org"}
    assert "more than 2 names; 1 are not looked up" in capsys.readouterr().err
    told = sets.described(records.some(layout, ["a"])["a"], watch.known, answers.Own(), NOW)
    assert told["a.example.org"]["problem"]["code"] == "name-refused"


def test_hostile_answers_stay_within_the_bound_and_are_told(
    layout: Layout, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "ADDRESSES", answers.MOST)
    declare(layout, "good", NAME, "a.many.example")

    def ask(name: str, family: str, configuration: Path) -> dict[str, float]:
        many = {f"151.102.1.{number}": 300.0 for number in range(answers.MOST)}
        return {PUBLIC: 300.0} if name == NAME else many

    watch = Refresher(layout, ask)
    watch.step(NOW)
    assert watch.known[NAME, "ipv4"].until.keys() == {PUBLIC} and not watch.known[NAME, "ipv4"].code
    refused = watch.known["a.many.example", "ipv4"]
    assert len(refused.until) == answers.MOST // 2 and refused.code == "name-refused" and "32 of them" in refused.why
