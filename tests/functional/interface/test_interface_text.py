"""The table's text: nft lists the table as it was loaded, and a change in place equals a whole load.

Each test runs in a separate empty network namespace.
"""

from __future__ import annotations

import errno
import itertools
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import checkout
from support.interfaces.claimed import changes

from netspace.errors import MissingError, NetspaceError
from netspace.interface import host_filter, netns
from netspace.interface.claims import Claims, made
from netspace.interface.firewall import host_table
from netspace.interface.firewall.host_rules import HostFiltered, build
from netspace.layout import Layout
from netspace.nftables import library
from netspace.nftables.ruleset import Ruleset
from netspace.nftables.table import Chain, Table, difference, whole
from netspace.spec.publish import Publication
from netspace.spec.types import Allow, Cidr
from netspace.threads import in_thread

pytestmark = pytest.mark.root

NAME = "netspace"
LAYOUT = Layout()
Change = tuple[dict[str, Claims], dict[str, Claims], set[str]]
# libnftables ends a process that can open no socket for it.
WITHOUT_DESCRIPTORS = """
import os, resource
from netspace.nftables import library
library.run("list tables", removes=False)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + spare, 4096))
try:
    library.run("list tables", removes=False)
except OSError as err:
    os.write(1, f"errno {err.errno}".encode())
else:
    os.write(1, b"done")
"""
GATEWAYS = {"ipv4": "10.203.0.1", "ipv6": "fd00::1"}
NETWORKS = [
    *("0.0.0.0/0", "128.0.0.0/1", "198.51.0.0/16", "198.51.100.128/25", "198.51.100.7/32", "10.203.0.1/32"),
    *("::/0", "2000::/3", "fd00:5::/32", "fd00:5::/63", "fd00:51::7/128", "fd00::1/128"),
]
RULES = st.one_of(
    st.builds(
        Allow,
        direction=st.sampled_from(["in", "out"]),
        cidr=st.sampled_from(NETWORKS).map(Cidr),
        protocol=st.sampled_from(["tcp", "udp"]),
        port=st.sampled_from([None, 80, "8000-8100", "1-65535"]),
    ),
    st.builds(
        Allow,
        direction=st.sampled_from(["in", "out"]),
        cidr=st.sampled_from(NETWORKS).map(Cidr),
        protocol=st.just("icmp"),
    ),
)


def guarded(
    number: int, allow: Sequence[Allow], connections: int, families: Sequence[str], publish: Sequence[str] = ()
) -> HostFiltered:
    addresses = {"ipv4": f"10.203.1.{number}", "ipv6": f"fd00::1:{number}"}
    return HostFiltered(
        f"e{number}",
        f"nsp{number:012}"[:15],
        f"02:00:00:00:00:{number:02x}",
        {family: addresses[family] for family in families},
        GATEWAYS,
        tuple(allow),
        connections,
        # No two publish one port.
        tuple(Publication.parse(one.replace("N", str(number))) for one in publish),
    )


PUBLISHED = [
    "800N:80",
    "810N:80",
    "198.51.100.7:820N:443",
    "[fd00:51::7]:820N:443",
    "53N:53/udp",
    "[fd00:51::7]:54N:53/udp",
]
ELSEWHERE = st.lists(st.sampled_from(["198.51.100.9", "198.51.100.10", "fd00:51::9"]), unique=True)
HOSTS = st.dictionaries(
    st.integers(1, 8),
    st.tuples(
        st.lists(RULES, max_size=4),
        st.sampled_from([1, 3, 1024]),
        st.sampled_from([["ipv4", "ipv6"], ["ipv4"], ["ipv6"]]),
        st.lists(st.sampled_from(PUBLISHED), max_size=2, unique=True),
    ),
    min_size=1,
    max_size=6,
).map(lambda found: [guarded(number, *one) for number, one in found.items()])


def nft(*arguments: str, text: str = "") -> str:
    done = subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def listing() -> list[str]:
    """Return nft's listing, with elements and objects sorted."""

    def ordered(match: re.Match[str]) -> str:
        return ",".join(sorted(" ".join(element.split()) for element in match[1].split(",")))

    text = re.sub(r"elements = \{([^}]*)\}", ordered, nft("-s", "list", "ruleset"))
    return sorted(re.split(r"\n\t}\n+", text.removeprefix(f"table inet {NAME} {{\n")))


def alone(work: object) -> None:
    """Run *work* in a new network namespace, which ends afterwards."""

    def inside() -> None:
        netns.unshare()
        work()  # type: ignore[operator]

    in_thread(inside)


property_ = settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)


@property_
@given(HOSTS, ELSEWHERE)
def test_it_lists_as_the_text_does(host: list[HostFiltered], elsewhere: list[str]) -> None:
    def compare() -> None:
        loaded = host_table.put(NAME, build(host, elsewhere), None, {})
        ours = listing()
        assert host_table.state(NAME, loaded) == "intact"
        # Also by a look at all of it: nothing is held against the kernel but what it was given.
        assert host_table.state(NAME, {**loaded, "generation": 0}) == "intact"
        nft("-f", "-", text=nft("-s", "list", "ruleset"))  # nft can read what it says of it
        nft("-f", "-", text=whole(NAME, build(host, elsewhere)))
        assert listing() == ours

    alone(compare)


@property_
@given(st.lists(st.tuples(HOSTS, ELSEWHERE), min_size=2, max_size=5))
def test_a_change_in_place_ends_where_a_whole_load_does(hosts: list[tuple[list[HostFiltered], list[str]]]) -> None:
    def compare() -> None:
        loaded = host_table.put(NAME, build(*hosts[0]), None, {})
        handle = netlink_handle()
        for before, after in itertools.pairwise(hosts):
            loaded = host_table.put(NAME, build(*after), build(*before), loaded)
            assert host_table.state(NAME, {**loaded, "generation": 0}) == "intact"
        assert netlink_handle() == handle, "the table was never made anew"
        in_place = listing()
        host_table.put(NAME, build(*hosts[-1]), None, {})
        assert listing() == in_place

    alone(compare)


@property_
@given(st.lists(changes(), min_size=1, max_size=4))
def test_a_change_by_parts_ends_where_a_whole_load_does(steps: list[Change]) -> None:
    def compare() -> None:
        for before, after, changed in steps:
            whole = [host_filter.table(LAYOUT, known) for known in (before, after)]
            loaded = host_table.put(NAME, whole[0], None, {})
            parts = host_filter.parts(LAYOUT, before, after, changed)
            loaded = host_table.put(NAME, parts[1], parts[0], loaded, lambda whole=whole: whole, {"mark": "m"})
            by_parts = listing()
            assert loaded.get("mark", "") == ("m" if whole[1].chains else "")
            if loaded:
                known = {**loaded, "generation": 0}
                assert host_table.state(NAME, known, lambda whole=whole: whole[1].elements) == "intact"
            host_table.put(NAME, whole[1], None, {})
            assert listing() == by_parts

    alone(compare)


def test_parts_on_a_changed_ruleset_still_give_the_whole_table() -> None:
    def compare() -> None:
        before = {f"e{n}": made("veth", {"ipv4": f"10.203.1.{n}"}, {}, f"ns{n}", connections=64) for n in range(1, 5)}
        after = {name: its for name, its in before.items() if name != "e1"}
        whole = [host_filter.table(LAYOUT, known) for known in (before, after)]
        parts = host_filter.parts(LAYOUT, before, after, {"e1"})
        loaded = host_table.put(NAME, whole[0], None, {})
        nft("add", "table", "ip", "somebody")  # so the generation is another
        loaded = host_table.put(NAME, parts[1], parts[0], loaded, lambda: whole)
        assert host_table.state(NAME, {**loaded, "generation": 0}, lambda: whole[1].elements) == "intact"
        nft("delete", "element", "inet", NAME, "ends", "{", "ns2", "}")
        loaded = host_table.put(NAME, parts[1], parts[0], loaded, lambda: whole)
        assert host_table.state(NAME, {**loaded, "generation": 0}, lambda: whole[1].elements) == "intact"

    alone(compare)


def netlink_handle() -> str:
    return re.findall(r"table inet netspace \{ # handle (\d+)", nft("-a", "list", "ruleset"))[0]


def host(*numbers: int) -> list[HostFiltered]:
    rule = Allow(direction="out", cidr=Cidr("198.51.100.0/24"), protocol="tcp", port=80)
    return [guarded(number, [rule], 3, ["ipv4", "ipv6"]) for number in numbers]


def test_one_more_and_one_less_touch_elements_only() -> None:
    few, more = build(host(1, 2)), build(host(*range(1, 200)))
    one = build(host(*range(1, 201)))
    assert few.same_structure(more)
    for old, new in ((more, one), (one, more)):
        lines = difference(NAME, old, new).splitlines()
        assert 0 < len(lines) < 12
        assert all(" element inet netspace " in line and "," not in line for line in lines)
    assert not difference(NAME, few, build(host(2, 1)))


@pytest.mark.parametrize(
    "command",
    [
        "delete element inet netspace ends { nsp000000000001 }",
        "add element inet netspace ends { eth0 }",
        'add element inet netspace ends { eth0 comment "not ours" }',
        "add rule inet netspace input accept",
        "flush chain inet netspace beyond",
        "add chain inet netspace more",
        "add set inet netspace more { type ifname; }",
        "delete element inet netspace out { nsp000000000001 }",
        "delete table inet netspace",
    ],
)
@pytest.mark.parametrize("meanwhile", [False, True], ids=["before the look", "after the look"])
def test_nothing_is_changed_in_place_that_somebody_else_changed(command: str, *, meanwhile: bool) -> None:
    def compare() -> None:
        loaded = host_table.put(NAME, build(host(1, 2)), None, {})
        nft(*command.split())
        seen = host_table.state(NAME, loaded)
        assert seen == ("absent" if command.startswith("delete table") else "changed")
        if meanwhile:  # it was seen intact, and planned upon
            loaded = host_table.put(NAME, build(host(1, 2, 3)), build(host(1, 2)), loaded)
        else:
            loaded = host_table.put(NAME, build(host(1, 2, 3)), None, loaded)
        ours = listing()
        assert host_table.state(NAME, loaded) == "intact"
        nft("flush", "ruleset")
        nft("-f", "-", text=whole(NAME, build(host(1, 2, 3))))
        assert listing() == ours

    alone(compare)


def test_others_changes_are_no_drift_and_another_boot_is_told() -> None:
    def compare() -> None:
        loaded = host_table.put(NAME, build(host(1)), None, {})
        nft("add", "table", "inet", "foreign")
        nft("add", "table", "ip", NAME)
        assert host_table.state(NAME, loaded) == "intact"
        assert host_table.put(NAME, Table(), None, loaded) == {}
        assert "foreign" in nft("list", "tables")
        assert f"table ip {NAME}" in nft("list", "tables")
        assert f"table inet {NAME}" not in nft("list", "tables")
        # After a reboot the ruleset may be at the same generation by chance.
        with Ruleset() as ruleset:
            now = ruleset.generation()
        assert host_table.state(NAME, {**loaded, "boot": "another", "generation": now}) == "absent"

    alone(compare)


def test_a_foreign_change_just_after_ours_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Ruleset.load

    def and_somebody(ruleset: Ruleset, text: str, since: int | None) -> int | None:
        made = load(ruleset, text, since)
        nft("add", "rule", "inet", NAME, "input", "accept")
        return made

    def compare() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Ruleset, "load", and_somebody)
            loaded = host_table.put(NAME, build(host(1)), None, {})
        assert host_table.state(NAME, loaded) == "changed"

    alone(compare)


@pytest.mark.parametrize("command", ["add table inet foreign", f"add rule inet {NAME} input accept"])
@pytest.mark.parametrize("rules", [False, True], ids=["elements", "rules, too"])
def test_foreign_change_between_look_and_load_is_noticed(
    monkeypatch: pytest.MonkeyPatch, command: str, *, rules: bool
) -> None:
    run = library.run
    more = [guarded(3, [Allow(direction="in", cidr=Cidr("198.51.100.0/24"))], 1, ["ipv4"])] if rules else host(2)

    def compare() -> None:
        before, after = build(host(1)), build([*host(1), *more])
        loaded = host_table.put(NAME, before, None, {})
        handle, left = netlink_handle(), [command]

        def somebody_first(text: str, *, removes: bool) -> None:
            if left:
                nft(*left.pop().split())
            run(text, removes=removes)

        with monkeypatch.context() as patched:
            patched.setattr(library, "run", somebody_first)
            loaded = host_table.put(NAME, after, before, loaded)
        assert host_table.state(NAME, loaded) == "intact"
        assert host_table.state(NAME, {**loaded, "generation": 0}) == "intact"
        if not rules and NAME not in command:
            assert netlink_handle() == handle, "only elements differ, so it is compared with what it should be"
        nft("delete", "table", "inet", NAME)
        assert host_table.put(NAME, after, None, {})["structure"] == loaded["structure"]

    alone(compare)


def test_host_that_others_change_all_the_time_gets_its_table_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run, number = library.run, itertools.count()

    def compare() -> None:
        before, after = build(host(1)), build([guarded(3, [], 1, ["ipv4"])])
        loaded = host_table.put(NAME, before, None, {})

        def somebody_too(text: str, *, removes: bool) -> None:
            nft("add", "table", "inet", f"foreign{next(number)}")
            run(text, removes=removes)

        with monkeypatch.context() as patched:
            patched.setattr(library, "run", somebody_too)
            loaded = host_table.put(NAME, after, before, loaded)
        assert host_table.state(NAME, loaded) == "changed", "nobody knows whether it is as it was loaded"
        loaded = host_table.put(NAME, after, None, loaded)
        assert host_table.state(NAME, loaded) == "intact"

    alone(compare)


def test_what_is_refused_changes_nothing_and_is_explained() -> None:
    def compare() -> None:
        old = build(host(1))
        loaded = host_table.put(NAME, old, None, {})
        before = listing()
        chains = {**old.chains, "beyond": Chain(["goto nowhere"])}
        with pytest.raises(MissingError, match=r"nftables in the kernel .*goto nowhere"):
            host_table.put(NAME, Table(chains, old.sets, old.timeouts), old, loaded)
        assert listing() == before
        assert host_table.state(NAME, loaded) == "intact"

    alone(compare)


def test_a_table_that_a_program_owns_is_left_to_it() -> None:
    def compare() -> None:
        owner = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert owner.stdin is not None
        try:
            owner.stdin.write(f"add table inet {NAME} {{ flags owner; }}\nlist tables\n")
            owner.stdin.flush()
            assert owner.stdout is not None
            while f"table inet {NAME}" not in owner.stdout.readline():
                pass
            with pytest.raises(NetspaceError, match="another program owns"):
                host_table.put(NAME, build(host(1)), None, {})
        finally:
            owner.communicate("quit\n")

    alone(compare)


@pytest.mark.parametrize("spare", range(8))
def test_process_without_descriptors_gets_an_error(spare: int) -> None:
    code = f"spare = {spare}\n{WITHOUT_DESCRIPTORS}"
    library_path = {"PYTHONPATH": str(checkout.ROOT / "_utils")}
    done = subprocess.run([sys.executable, "-c", code], env=library_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) in ((0, f"errno {errno.EMFILE}"), (0, "done")), done.stderr
    assert done.stdout == "done" or spare < 4
