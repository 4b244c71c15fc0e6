"""The time to plan a change of all images in a fleet of 1,000 hosts, with one environment and one link each.

usage: python benchmarks/fleet_plan.py [--json | --markdown] [--hosts N] [--environments N] [--rounds N]

It needs no root. The declaration, its compilation, the hosts' plans (by the planner of environments), the signatures of
their answers, the window that limits how many hosts are asked at once, the grouping of equal plans and the table are
real. Hosts and Salt's bus are simulated, and their time isn't counted. These figures are measured, in this process's
processor time:

*gathered* -- the answers of all hosts: asked, received, their signatures verified, parsed. The peer only verifies as
many RSA signatures.

*folded* -- the plan's id, the grouping of equal plans, and the table. The peer is the encoding of all plans as JSON.

*whole* -- a plan with all these steps, the compilation of the declaration, and the storing of the plan.

*lines* -- lines of the table.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import bench
import msgspec
import yaml
from bench import ROOT, Rounds, line, say

sys.path.insert(0, str(ROOT / "tests"))

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from support.fleet.fleets import published

from netspace.attestation import identity
from netspace.attestation.fleet import own_answers
from netspace.attestation.fleet.bus import Bus
from netspace.attestation.fleet.calls import Reply, Sent
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.images import Image, Seen
from netspace.environment.images.sources import Defaults
from netspace.environment.observe import Observed, ObservedEnvironment
from netspace.environment.reconciler import Environments
from netspace.environment.record import Record
from netspace.environment.storage import injected_files
from netspace.fleet.declaration import FleetDeclaration, Sources
from netspace.fleet.planning import planner, plans, records
from netspace.fleet.published import Register
from netspace.plan import Plan
from netspace.plugin import tables, views
from netspace.plugin.minions import Minions
from netspace.spec import parse
from netspace.supervision.service import Status

LINES, SECONDS = 40, 10_000.0
MASTER = "ab" * 32
FILES = {"environment.json": b"{}"}
KEY = rsa.generate_private_key(65537, 2048)
PRIVATE = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def declare(folder: Path, hosts: int, environments: int) -> None:
    """Write a fleet's declaration, and the facts that its hosts published."""
    lines = ["apply: planned", "hosts:"]
    lines += [f"  h{number}: {{address: 10.{number // 250}.{number % 250}.1}}" for number in range(hosts)]
    lines.append("environments:")
    body = "image: tar:salt://images/shop.tar, command: [/usr/bin/web, --serve], limits: {memory: 64M, pids: 32}"
    lines += [f"  e{number}: {{on: h{number % hosts}, {body}}}" for number in range(environments)]
    lines.append("links:")
    lines += [f"  - {{from: e{number}, to: e{(number + 1) % environments}}}" for number in range(environments)]
    (folder / "fleet.yaml").write_text("\n".join(lines) + "\n")
    register = Register(folder / "kept/hosts")
    register.folder.mkdir(parents=True)
    for minion, facts in published(f"h{number}" for number in range(hosts)).items():
        register.path(minion).write_bytes(msgspec.json.encode(facts))  # no fsync of a thousand files


def written(folder: Path) -> FleetDeclaration:
    """Return the declaration, read by the YAML parser that Salt uses."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    sources = Sources(lambda name: None, lambda path: yaml.load(Path(path).read_text(), loader))
    return FleetDeclaration(str(folder / "fleet.yaml"), folder / "kept", sources, {})


def host_plan(section: Mapping[str, Any]) -> Plan:
    """Return the plan of a host that runs the declared environments with another image."""
    wanted, seen = {}, {}
    for name, body in section["environments"].items():
        new = parse.environment(name, body)
        old = msgspec.structs.replace(new, image="tar:/srv/images/former.tar")
        image = Image("d" * 64, "i", Defaults())
        wanted[name] = DesiredEnvironment(new, FILES, {"links": []})
        record = Record(old, "running", 100_000, image, "c", "r", {"links": []})
        seen[name] = ObservedEnvironment(record, Status("running", pid=7), True, injected_files.digests(FILES))
    sources = {one.spec.image: Seen("j") for one in wanted.values() if one.spec.image is not None}
    return Environments.plan(wanted, Observed(seen, sources, "r"))


class SimulatedBus:
    """A bus on which all minions answer at once. The processor time of their work is counted in ``theirs``."""

    def __init__(self, declaration: FleetDeclaration) -> None:
        self._declaration, self._replies, self._jobs = declaration, list[Reply](), 0
        self.theirs = 0.0

    def clock(self) -> float:
        return time.monotonic()

    def send(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> Sent:
        begin = time.process_time()
        self._jobs += 1
        for minion in minions:

            def plan(generation: str, minion: str = minion) -> Any:
                pillar = self._declaration.given.candidate_slice(generation, minion)
                section = pillar["netspace"] if pillar is not None else {}
                return plans.plain(plans.host_plan(minion, section, host_plan(section)))

            functions = {"netspace_fleet.plan": plan}
            told = own_answers.answer(arguments["asked"], functions, MASTER, minion, lambda: PRIVATE)
            self._replies.append(Reply(str(self._jobs), minion, told))
        self.theirs += time.process_time() - begin
        return Sent(str(self._jobs))

    def receive(self, seconds: float) -> Reply | None:
        if self._replies:
            return self._replies.pop(0)
        time.sleep(min(seconds, 0.01))
        return None


class SimulatedMinions(Minions):
    """Minions on a simulated bus."""

    def __init__(self, bus: SimulatedBus) -> None:
        self.bus, self.gathered = bus, 0.0

    def each(self, *arguments: Any, **more: Any) -> None:
        begin, theirs = time.process_time(), self.bus.theirs
        super().each(*arguments, **more)
        self.gathered += time.process_time() - begin - (self.bus.theirs - theirs)

    def _identities(self) -> identity.Identities:
        return identity.Identities(MASTER, lambda minion: PUBLIC)

    @contextlib.contextmanager
    def _bus(self, minions: Collection[str], module: str, timeout: float) -> Iterator[Bus]:  # type: ignore[override]
        yield self.bus


def verified(count: int) -> float:
    """Return the milliseconds that it takes to verify so many signatures, without any other work."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    form = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256().digest_size)
    signature = KEY.sign(b"x", form, hashes.SHA256())
    begin = time.process_time()
    for _ in range(count):
        KEY.public_key().verify(signature, b"x", form, hashes.SHA256())
    return (time.process_time() - begin) * 1000


def measure(folder: Path, hosts: int, rounds: Rounds) -> int:
    """Make one plan and record its times in *rounds*; return the number of lines of its table."""
    bus = SimulatedBus(written(folder))
    minions = SimulatedMinions(bus)
    begin = time.process_time()
    record = planner.make(written(folder), (), minions, 60)
    rounds.note("whole", (time.process_time() - begin - bus.theirs) * 1000)
    rounds.note("gathered", minions.gathered * 1000)
    assert len(record.hosts) == hosts and not record.silent, record.silent
    found = record.plans
    begin = time.process_time()
    plans.identity(found)
    shown = views.render(records.told(record), views.Screen(0.0, tables.plain))
    rounds.note("folded", (time.process_time() - begin) * 1000)
    begin = time.process_time()
    hashlib.sha256(json.dumps([plans.plain(one) for one in found.values()]).encode())
    rounds.note("json", (time.process_time() - begin) * 1000)
    rounds.note("verified", verified(hosts))
    assert shown is not None
    return len(shown)


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--hosts", type=int, default=1000, help="number of hosts (default 1000)")
    parser.add_argument("--environments", type=int, default=0, help="number of environments (default: one per host)")
    options = parser.parse_args()
    bench.note_load()
    rounds, shown = Rounds(), 0
    with tempfile.TemporaryDirectory(prefix="fleet-plan-") as name:
        folder = Path(name)
        declare(folder, options.hosts, options.environments or options.hosts)
        written(folder).answer("h0")  # from now on, declarations are planned before they are in force
        for turn in range(options.rounds):
            say(f"{options.hosts} hosts, round {turn + 1} of {options.rounds}")
            shown = measure(folder, options.hosts, rounds)
    middle = rounds.middle
    lines = {
        "gathered": line(middle("gathered"), "ms", "bare verification", middle("verified")),
        "folded": line(middle("folded"), "ms", "as JSON", middle("json")),
        "whole": line(middle("whole"), "ms", "nothing", 0.0, limit=SECONDS),
        "lines": line(float(shown), "lines", "nothing", 0.0, limit=float(LINES)),
    }
    bench.tell(lines, options, "medians of processor time")


if __name__ == "__main__":
    main()
