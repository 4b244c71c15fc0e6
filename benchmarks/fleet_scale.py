"""The work of one master for a fleet of up to 1,000 hosts and 10,000 environments: each step's time, and its growth.

usage: python benchmarks/fleet_scale.py [--json | --markdown] [--counts N,N] [--rounds N]

A fleet has one host for each ten environments, and three links for each environment. These parts are real: the
compiler, the planner of environments, the signatures of hosts' answers, the window that limits how many hosts are asked
at once, the applies' bookkeeping, the verifier of quotes and boot logs, and the definitions of brokers. Hosts, Salt's
bus and TPMs are simulated, and their work isn't counted. The benchmark needs no root, and writes to one scratch folder.
Each round runs in a separate process. These figures are measured, in milliseconds of the master's processor time if no
other unit is given:

*compiled* -- one compilation. The peer is the YAML parser alone.

*planned* -- the plan of a change of all environments, with a compilation.

*applied* -- the apply of this plan: the answers, and each host's final slice of the declaration.

*messages* -- messages on Salt's bus for this plan and its apply; each message goes to many minions. The peer is the
number of hosts.

*looked* -- a check of the trust in all hosts, one in a hundred of which has just lost it.

*verified* -- the evidence of all hosts appraised by a boot policy, as after a reboot of each host.

*memory* -- the growth of the peak memory in kilobytes by all these steps, without the imports.

*broker* -- on a host: all definitions of its broker, made from nothing. The peer is their encoding as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import bench
import fleet
import yaml
from bench import Rounds, line, say
from fleet_plan import MASTER, PRIVATE, SimulatedBus, SimulatedMinions, written

from netspace.attestation.fleet import own_answers
from netspace.attestation.fleet.calls import Reply, Sent
from netspace.fleet import trust_watch
from netspace.fleet.planning import planner
from netspace.fleet.planning.planner import PlannedHosts
from netspace.fleet.trust import HostTrust

DONE = {"applied": True, "withheld": 0, "steps": 1, "reason": ""}


class ApplyingBus(SimulatedBus):
    """A bus whose simulated hosts answer requests for an apply too."""

    def send(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> Sent:
        asked = arguments.get("asked", {})
        if asked.get("function") == "netspace_fleet.plan":
            return super().send(minions, function, arguments)
        begin = time.process_time()
        self._jobs += 1
        for minion in minions if asked else ():
            functions = {str(asked["function"]): lambda **_: DONE}
            told = own_answers.answer(asked, functions, MASTER, minion, lambda: PRIVATE)
            self._replies.append(Reply(str(self._jobs), minion, told))
        self.theirs += time.process_time() - begin
        return Sent(str(self._jobs))

    @property
    def messages(self) -> int:
        return self._jobs


class Results:
    """A master whose attestation results say that some hosts failed. Its minions answer every request at once."""

    def __init__(self, failed: Collection[str]) -> None:
        self._failed = failed

    def states(self, minions: Collection[str]) -> Mapping[str, HostTrust]:
        failed, good = HostTrust("failed", "ak-unknown", "another key"), HostTrust("trusted", "", "")
        return {minion: failed if minion in self._failed else good for minion in minions}

    def attest(self, minions: Collection[str]) -> None: ...

    def ask(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {minion: [] for minion in minions}

    def ask_at_once(self, function: str, calls: own_answers.Calls) -> dict[str, Any]:
        return {minion: [] for minions, _ in calls for minion in minions}

    def tell(self, event: str, data: Mapping[str, Any]) -> None: ...


def declare(folder: Path, count: int) -> None:
    fleet.declare(folder, count)
    file = folder / "fleet.yaml"
    judged = f"defaults: {{attestation: {{verifier: master, verifier_keys: [{'A' * 43}]}}}}\n"
    file.write_text(f"apply: planned\n{judged}{file.read_text()}")
    long_ago = time.time() - 60
    os.utime(file, (long_ago, long_ago))  # a file that has just changed may be half-written, and isn't compiled yet


def worker(folder: Path, count: int) -> dict[str, float]:
    """Measure all steps for one fleet; runs in a separate process."""
    hosts, file, found = max(count // 10, 2), folder / "fleet.yaml", dict[str, float]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found["parsed"] = fleet.used(lambda: yaml.load(file.read_text(), loader))
    found["compiled"] = fleet.used(lambda: written(folder).check())
    written(folder).answer("h0")  # puts this declaration in force; each later one is planned first
    bus = ApplyingBus(written(folder))
    minions = SimulatedMinions(bus)

    def own(step: Callable[[], Any]) -> tuple[Any, float]:
        begin, theirs = time.process_time(), bus.theirs
        result = step()
        return result, (time.process_time() - begin - (bus.theirs - theirs)) * 1000

    record, found["planned"] = own(lambda: planner.make(written(folder), (), minions, 600))
    assert len(record.hosts) == hosts and not record.silent, record.silent
    found["plan messages"] = float(bus.messages)
    outcomes, found["applied"] = own(
        lambda: PlannedHosts(written(folder), record, minions, 600).apply(record.changing())
    )
    assert len(outcomes) == hosts and all(one.ok for one in outcomes.values())
    found["messages"] = float(bus.messages)
    failed = {f"h{number}" for number in range(0, hosts, 100)}
    trust_watch.look(written(folder), Results(()))
    looked = trust_watch.look
    found["looked"] = fleet.used(lambda: looked(written(folder), Results(failed)))
    assert len(written(folder).trust.read().hosts) == len(failed)
    found["verified"] = verified(hosts)
    found["memory"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    section = (written(folder).answer("h1").pillar or {})["netspace"]
    found |= broker(section)
    return found


def verified(hosts: int) -> float:
    """Return the milliseconds that the appraisal of *hosts* hosts' evidence takes."""
    import attestation
    from support.attestation import boot_forge, boot_logs

    from netspace.attestation.evidence import Context, Evidence, parse
    from netspace.attestation.policy import policy
    from netspace.attestation.tpm import structures
    from netspace.attestation.verifier import attestation_keys, verifier
    from netspace.attestation.verifier.attestation_keys import Bound
    from netspace.attestation.verifier.verifier import Expected

    values = boot_logs.values("shim-grub")
    tpm, context = attestation.Tpm(values), Context("verifier", "host", "session", bytes(range(32)))
    rules = policy.parse(boot_forge.policy("shim-grub"))
    key = structures.public(tpm.public)
    bound = Bound(key, key, "", 3, "", attestation_keys._SEAL)
    log = boot_logs.read("shim-grub/binary_bios_measurements")
    quote = tpm.quote(context.qualifying(), attestation.PCRS)
    wire = Evidence("tpm", tpm.public, *quote, {pcr: values[pcr] for pcr in attestation.PCRS}, log).wire()

    def judge() -> None:
        for _ in range(hosts):
            expected = Expected(context, attestation.PCRS, None, None, rules, None, b"", None)
            assert verifier.verify_quote(parse(wire), bound, expected).level == 4

    return fleet.used(judge)


def broker(section: Mapping[str, Any]) -> dict[str, float]:
    """Return the time to make the definitions of a host's broker, and the number of their objects."""
    from netspace.link.topology import diff, found_objects, names, objects
    from netspace.spec import parse

    declared = parse.declaration(dict(section)).links
    made: list[Any] = []

    def define() -> None:
        wanted = objects.objects(declared, names.PLAIN)
        there = found_objects.found({}, "netspace", [], whole=True)
        change = diff.difference(wanted, there, dict.fromkeys(objects.members(declared), ""))
        made[:] = [wanted, diff.document(wanted, change, "netspace", defaultdict(str))]

    took = fleet.used(define)
    return {"broker": took, "objects": float(len(made[0])), "encoded": fleet.used(lambda: json.dumps(made[1]))}


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(Path(sys.argv[2]), int(sys.argv[3]))))
        return
    parser = bench.arguments(__doc__, rounds=3)
    parser.add_argument("--counts", default="100,1000,10000", help="numbers of environments (default 100,1000,10000)")
    options = parser.parse_args()
    bench.note_load()
    lines: dict[str, dict[str, Any]] = {}
    for count in map(int, options.counts.split(",")):
        rounds = Rounds()
        for turn in range(options.rounds):
            say(f"{count} environments, round {turn + 1} of {options.rounds}")
            with tempfile.TemporaryDirectory(prefix="fleet-scale-") as name:
                declare(Path(name), count)
                command = [sys.executable, __file__, "--worker", name, str(count)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            for key, value in json.loads(done.stdout.splitlines()[-1]).items():
                rounds.note(key, value)
        middle, hosts = rounds.middle, max(count // 10, 2)
        lines |= {
            f"compiled, {count}": line(middle("compiled"), "ms", "YAML alone", middle("parsed")),
            f"planned, {count}": line(middle("planned"), "ms", "compiled", middle("compiled")),
            f"applied, {count}": line(middle("applied"), "ms", "planned", middle("planned")),
            f"messages, {count}": line(middle("messages"), "messages", "hosts", float(hosts)),
            f"looked, {count}": line(middle("looked"), "ms", "compiled", middle("compiled")),
            f"verified, {count}": line(middle("verified"), "ms", "compiled", middle("compiled")),
            f"memory, {count}": line(middle("memory"), "kB", "nothing", 0.0),
            f"broker of a host, {count}": line(middle("broker"), "ms", "as JSON", middle("encoded")),
            f"objects of a host's broker, {count}": line(middle("objects"), "objects", "nothing", 0.0),
        }
    bench.tell(lines, options, "medians of processor time")


if __name__ == "__main__":
    main()
