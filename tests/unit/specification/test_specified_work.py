"""The limits of SPECIFICATION.md on calls of the library's own functions, for planning and compiling.

These counts depend neither on the machine nor on Python's version.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from support.fleet import pictures
from support.fleet.fleets import published, written
from support.specification import calls, hold

from netspace.environment import images, user_ids
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.observe import Observed as ObservedEnvironments
from netspace.environment.observe import ObservedEnvironment
from netspace.environment.reconciler import Environments
from netspace.environment.record import Record
from netspace.environment.storage import injected_files
from netspace.fleet.published import Register
from netspace.interface.observe import Observed as ObservedInterfaces
from netspace.interface.plan import DesiredInterfaces
from netspace.interface.reconciler import Interfaces
from netspace.layout import Layout
from netspace.link.topology import objects
from netspace.link.topology.names import Names
from netspace.spec import hosts, parse
from netspace.spec.types import Link, LocalBroker
from netspace.supervision.service import Status

MANY = 1000
FILES = {"environment.json": b"{}"}


def desired(number: int) -> DesiredEnvironment:
    spec = parse.environment(f"e{number}", {"image": "tar:/x.tar", "command": ["/x"]})
    return DesiredEnvironment(spec, FILES, {"links": []}, "running")


def seen(want: DesiredEnvironment, number: int) -> ObservedEnvironment:
    base = user_ids.FIRST + number * user_ids.COUNT
    record = Record(want.spec, "running", base, Image("d" * 64, "i", Defaults()), "c", "r", want.files_summary)
    return ObservedEnvironment(record, Status("running", pid=7), True, injected_files.digests(want.files))


def test_calls_to_plan_unchanged_environments() -> None:
    wanted = {f"e{number}": desired(number) for number in range(MANY)}
    there = {name: seen(want, number) for number, (name, want) in enumerate(wanted.items())}
    observed = ObservedEnvironments(there, {"tar:/x.tar": images.Seen("i")}, "r")
    plans = []
    number = calls(lambda: plans.append(Environments.plan(wanted, observed)))
    assert plans[0].steps == []
    hold("plan.unchanged-environments", number)


def test_calls_to_plan_new_environments() -> None:
    wanted = {f"e{number}": desired(number) for number in range(MANY)}
    observed = ObservedEnvironments({}, {"tar:/x.tar": images.Seen("i")}, "r")
    plans = []
    number = calls(lambda: plans.append(Environments.plan(wanted, observed)))
    assert len(plans[0].steps) == MANY
    hold("plan.new-environments", number)


def test_calls_to_plan_new_interfaces() -> None:
    veth = parse.interface(
        {"kind": "veth", "allow": [{"direction": "out", "cidr": "192.0.2.7/32", "protocol": "tcp", "port": 443}]}
    )
    wanted = DesiredInterfaces(interfaces={f"e{number}": veth for number in range(MANY)})
    nothing = ObservedInterfaces(forwarding={"ipv4": "0", "ipv6": "0"})
    plans = []
    number = calls(lambda: plans.append(Interfaces(Layout()).plan(wanted, nothing)))
    assert len(plans[0].steps) > MANY
    hold("plan.new-interfaces", number)


def fleet() -> list[Link]:
    """Return links between many environments, on 100 hosts."""
    dice = random.Random(1)
    ends = [f"e{number}@h{number % 100}" for number in range(MANY)]
    return [Link(source=source, target=target) for source, target in (dice.sample(ends, 2) for _ in range(MANY))]


def test_calls_to_compile_one_host_s_slice() -> None:
    links = fleet()
    found: list[tuple[Link, ...]] = []
    number = calls(lambda: found.append(hosts.local(links, LocalBroker(host="h7"))))
    assert 0 < len(found[0]) < 50
    hold("slice.links", number)


def test_calls_to_compile_a_fleet() -> None:
    data = pictures.large(MANY, 100)
    made = []
    number = calls(lambda: made.append(pictures.compiled(data)))
    assert len(made[0].placed) == MANY
    hold("slice.fleet", number)


def test_calls_to_hand_out_a_slice_of_an_unchanged_fleet(tmp_path: Path) -> None:
    data = pictures.large(100, 10)
    (tmp_path / "fleet.yaml").write_text(json.dumps(data))
    os.utime(tmp_path / "fleet.yaml", (1, 1))  # long ago, so that nobody waits for the clock
    register = Register(tmp_path / "kept/hosts")
    for facts in published(data["hosts"]).values():
        register.write(facts)
    assert written(tmp_path).apply() is None
    fleet = written(tmp_path)
    fleet.answer("h1")
    answers = []
    number = calls(lambda: answers.append(fleet.answer("h2")))
    assert len(answers[0].pillar["netspace"]["environments"]) == 10
    hold("slice.answer", number)


def test_calls_and_objects_of_links() -> None:
    names = Names(b"a key of this test's")
    links = [Link(source=f"a{number}", target=f"b{number}", pattern="request") for number in range(MANY)]
    made: list[objects.Objects] = []
    number = calls(lambda: made.append(objects.objects(links, names)))
    hold("links.calls", number)
    one = objects.objects(links[:1], names)
    two = objects.objects(links[:2], names)
    hold("link.objects", len(two) - len(one))
    again = objects.objects([links[0], Link(source="a0", target="b1")], names)
    hold("link.objects-again", len(again) - len(one))
