"""The time to verify evidence, compared with Keylime in the same run.

``python benchmarks/attestation.py [--json | --markdown] [--keylime PYTHON]``: no root, no TPM, no network. PYTHON
imports Keylime (default: .cache/keylime/bin/python, a venv with ``pip install keylime cryptography jsonschema tornado
sqlalchemy pyzmq lark requests pyasn1 pyasn1-modules packaging psutil jinja2 alembic pyyaml``; it needs tpm2_eventlog
from Debian's tpm2-tools, and libefivar1t64 to read boot entries). Without Keylime, figures are compared only with their
limits.

The evidence: a recorded boot (tests/fixtures/eventlogs/shim-grub: Secure Boot, shim, GRUB) that the benchmark's own key
signs, and 2,000 generated lines of an IMA list. Both verifiers do the same work: they check signature, nonce and PCR
values, replay and appraise the boot log, replay the IMA list, and compare each of its lines with an allow-list.

Figures are processor time, including that of started programs. Each figure is the best of 12 rounds in which both
verifiers work in turn, so that other work on the machine has little effect. For 10,000 hosts, Keylime's figure is
10,000 times its figure for one host with a boot log. netspace's figure for 10,000 hosts assumes that each host's boot
is remembered as good, as the fleet's verifier does for a day.

A fleet of N hosts is also attested by the runner, with certificates, a policy, and results in the files of salt.cache,
but without Salt's bus and the hosts' own work. The round over 10,000 hosts is simulated, with the real scheduler and a
clock that jumps.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "_utils"))

import bench
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from keylime_peer import Keylime
from support.attestation import boot_forge, boot_logs

from netspace.attestation.evidence import Context, Evidence, Measurements, parse
from netspace.attestation.logs import ima
from netspace.attestation.policy import policy
from netspace.attestation.registrar import privacy_ca
from netspace.attestation.tpm import structures
from netspace.attestation.verifier import attestation_keys, verifier
from netspace.attestation.verifier.appraisal import GoodBoot
from netspace.attestation.verifier.attestation_keys import Bound
from netspace.attestation.verifier.verifier import Expected

ROOT = Path(__file__).resolve().parent.parent
PCRS = boot_forge.PCRS["shim-grub"]
LINES = 2000
HOSTS = 10_000
ROUNDS = 12
# How often each verifier does each work in one round.
TIMES = {"quote": 40, "boot": 40, "list": 20, "hosts": 10}
# Hosts whose evidence is verified in one measured call; the figure is scaled to HOSTS.
BLOCK = HOSTS // 100
NONCE = "0123456789abcdef0123456789abcdef"


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


class Tpm:
    """A stand-in for a TPM with the recorded PCR values. It signs quotes as a TPM does."""

    def __init__(self, values: dict[int, bytes]) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.values = values
        numbers = self.key.public_key().public_numbers()
        head = struct.pack(">HHI", 0x0023, 0x000B, 0x00050072) + sized(b"")
        scheme = struct.pack(">HHHHH", 0x0010, 0x0018, 0x000B, 0x0003, 0x0010)
        self.public = head + scheme + sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))

    def quote(self, extra: bytes, pcrs: tuple[int, ...]) -> tuple[bytes, bytes]:
        bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
        digest = hashlib.sha256(b"".join(self.values[pcr] for pcr in sorted(pcrs))).digest()
        attest = struct.pack(">IH", 0xFF544347, 0x8018) + sized(structures.public(self.public).qualified_name)
        attest += sized(extra)
        attest += struct.pack(">QIIBQ", 1000, 5, 0, 1, 0) + struct.pack(">IHB", 1, 0x000B, 3) + bits + sized(digest)
        r, s = utils.decode_dss_signature(self.key.sign(attest, ec.ECDSA(hashes.SHA256())))
        signature = struct.pack(">HH", 0x0018, 0x000B) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
        return attest, signature

    def values_blob(self, pcrs: tuple[int, ...]) -> bytes:
        """Return the PCR values in the form of ``tpm2_quote -o``."""
        bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
        blob = struct.pack("<IHB", 1, 0x000B, 3) + bits + bytes(2) + bytes(8 * 15)
        groups = [sorted(pcrs)[at : at + 8] for at in range(0, len(pcrs), 8)]
        blob += struct.pack("<I", len(groups))
        for group in groups:
            blob += struct.pack("<I", len(group))
            blob += b"".join(struct.pack("<H", 32) + self.values[pcr].ljust(64, b"\0") for pcr in group)
            blob += bytes(66 * (8 - len(group)))
        return blob


def made_list(aggregate: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return an IMA list of LINES lines, and its files; the first line is the boot aggregate."""
    raw, files = b"", [("boot_aggregate", aggregate)]
    files.append(("/usr/lib/systemd/systemd", hashlib.sha256(b"1").digest()))
    files += [
        (f"/usr/lib/x86_64-linux-gnu/library-{n}.so.{n % 7}", hashlib.sha256(b"%d" % n).digest())
        for n in range(2, LINES)
    ]
    for path, digest in files:
        data = ima.line(path.encode(), b"sha256:\0" + digest) + bytes(4)
        raw += (
            struct.pack("<I", 10) + hashlib.sha1(data).digest() + struct.pack("<I7sI", 7, b"ima-sig", len(data)) + data
        )
    return raw, files


def shown(raw: bytes) -> str:
    """Return the IMA list in the form of ascii_runtime_measurements, which Keylime reads."""
    lines = []
    for entry in ima.parse(raw):
        file = ima.file(entry)
        assert file is not None
        algorithm, _, digest = file.digest.partition(b":\0")
        lines.append(f"10 {entry.digest.hex()} ima-sig {algorithm.decode()}:{digest.hex()} {file.path.decode()} ")
    return "\n".join(lines) + "\n"


def best(works: Mapping[str, Callable[[], Any]], keylime: Keylime | None) -> tuple[dict[str, float], dict[str, float]]:
    """Return netspace's and Keylime's seconds of processor time, each as a mapping from the names of works.

    Each value is the best of all rounds. In each round, both verifiers do each work in turn.
    """
    ours: dict[str, list[float]] = {name: [] for name in works}
    theirs: dict[str, list[float]] = {name: [] for name in works if keylime is not None and name != "hosts"}
    for _ in range(ROUNDS):
        for name, work in works.items():
            work()
            for _ in range(TIMES[name]):
                start = time.process_time()
                work()
                ours[name].append(time.process_time() - start)
            if keylime is not None and name in theirs:
                theirs[name] += [keylime.time(name) for _ in range(2)]
    return {name: min(times) for name, times in ours.items()}, {name: min(times) for name, times in theirs.items()}


def measure(keylime: Path | None, hosts: int) -> tuple[dict[str, float], dict[str, float], str]:
    """Return netspace's figures, Keylime's figures, and Keylime's version."""
    values = boot_logs.values("shim-grub")
    aggregate = hashlib.sha256(b"".join(values[pcr] for pcr in range(10))).digest()
    raw, files = made_list(aggregate)
    values[10] = list(ima.replay(ima.parse(raw)))[-1]
    tpm = Tpm(values)
    log = boot_logs.read("shim-grub/binary_bios_measurements")
    context = Context("verifier", "host", "session", bytes(range(32)))
    rules = boot_forge.policy("shim-grub")
    allowed = {path: [f"sha256:{digest.hex()}"] for path, digest in files[1:]}
    judged = policy.parse(rules)
    whole = policy.parse({**rules, "ima": {"files": allowed}})
    bound = Bound(structures.public(tpm.public), structures.public(tpm.public), "", 3, "", attestation_keys._SEAL)
    attest, signature = tpm.quote(context.qualifying(), PCRS)
    attest10, signature10 = tpm.quote(context.qualifying(), (10,))
    made = Evidence("tpm", tpm.public, attest, signature, {pcr: values[pcr] for pcr in PCRS}, log)
    listed = Evidence(
        "tpm", tpm.public, attest, signature, made.pcrs, log, None,
        Measurements(attest10, signature10, values[10], 0, raw),
    )  # fmt: skip
    wire, wire_listed = made.wire(), listed.wire()

    def ask(
        evidence: Evidence, rules: policy.Policy | None, start: ima.State | None = None, good: GoodBoot | None = None
    ) -> verifier.Verified:
        return verifier.verify_quote(evidence, bound, Expected(context, PCRS, None, None, rules, start, b"", good))

    assert ask(made, None).level == 3 and ask(made, judged).level == 4 and ask(listed, whole).level == 5
    # What the hosts of a fleet send all day, as received from the network: nothing new since the last time.
    first = ask(listed, whole)
    state, good = first.ima, first.boot
    assert state is not None and good is not None
    again = Evidence(
        "tpm", tpm.public, attest, signature, made.pcrs, log, None,
        Measurements(attest10, signature10, values[10], LINES, b""),
    )  # fmt: skip
    wire_again = again.wire()
    assert ask(parse(wire_again), whole, state, good).level == 5
    works: dict[str, Callable[[], Any]] = {
        "quote": lambda: ask(parse(wire), None),
        "boot": lambda: ask(parse(wire), judged),
        "list": lambda: ask(parse(wire_listed), whole),
        "hosts": lambda: [ask(parse(wire_again), whole, state, good) for _ in range(BLOCK)],
    }
    theirs: dict[str, Any] = {
        "nonce": NONCE,
        "pcrs": [*PCRS],
        "log": base64.b64encode(log).decode(),
        "list": shown(raw),
    }
    theirs["ak"] = base64.b64encode(sized(tpm.public)).decode()
    for name, pcrs in (("quote", PCRS), ("quote10", (*PCRS, 10))):
        parts = (*tpm.quote(NONCE.encode(), pcrs), tpm.values_blob(pcrs))
        theirs[name] = "r" + ":".join(base64.b64encode(part).decode() for part in parts)
    theirs["digests"] = {path: [digest.hex()] for path, digest in files}
    with tempfile.TemporaryDirectory() as folder:
        peer = None if keylime is None else Keylime(keylime, theirs, Path(folder))
        ours, found = best(works, peer)
        if peer is not None:
            peer.close()
            found["hosts"] = found["boot"] * HOSTS
    ours["hosts"] *= HOSTS / BLOCK
    seconds = {"hosts"}
    ours, found = ({n: v if n in seconds else v * 1000 for n, v in one.items()} for one in (ours, found))
    return {**ours, "bomb": bomb(), **fleet(hosts), **simulated()}, found, "" if peer is None else peer.version


class Fleet:
    """HOSTS hosts on the runner's bus, each with a TPM and the recorded boot.

    The time of their signatures isn't counted.
    """

    def __init__(self, folder: Path, hosts: int) -> None:
        from support.attestation import runner_bus  # needs Salt

        values = boot_logs.values("shim-grub")
        self.tpm, self.log = Tpm(values), boot_logs.read("shim-grub/binary_bios_measurements")
        self.names = [f"host{number:05}" for number in range(hosts)]
        group = {"name": "default", "minimum": "L4", "pcrs": list(PCRS)}
        self.runner, self.master = runner_bus.load(folder, {"groups": [group], "concurrency": 100})
        runner_bus.join(self.runner, self.ask)
        self.runner._minions = lambda target, kind: list(self.names)
        self.runner._announce = lambda fleet, standing: fleet.results.announced(standing)
        self.known, self.bytes, self.theirs = "", 0, 0.0
        fleet = self.runner._fleet()
        fleet.registrar.ca.init(time.time())
        fleet.policies.put("default", boot_forge.policy("shim-grub"))
        for name in self.names:
            self.enrol(fleet.registrar, name)

    def enrol(self, registrar: Any, name: str) -> None:
        """Write a host's record, as the registrar does after the host has answered a credential."""
        key = structures.public(self.tpm.public)
        bound = Bound(key, key, "EK-ECC256", 3, "", attestation_keys._SEAL)
        issued = privacy_ca.issue(registrar.ca.current(), bound, time.time())
        record = {
            "v": 1, "minion": name, "template": "EK-ECC256", "ek": key.fingerprint, "level": 3, "reason": "", "tpm": {},
            "ak": base64.b64encode(key.raw).decode(), "enrolled": time.time(), "pseudonym": issued.pseudonym,
            "serial": str(issued.serial), "expires": issued.expires,
            "certificate": base64.b64encode(issued.certificate).decode(),
        }  # fmt: skip
        path = registrar._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))

    def ask(self, minions: list[str], function: str, arguments: Any) -> dict[str, Any]:
        start = time.process_time()
        if function == "accept":
            answers: dict[str, Any] = {name: ({"stored": True}, "") for name in minions}
        else:
            answers = {name: (self.answer(name, arguments["challenges"][name]), "") for name in minions}
        self.theirs += time.process_time() - start
        return answers

    def answer(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        context = Context(self.master, name, asked["session"], bytes.fromhex(asked["nonce"]), binding=b"boot")
        attest, signature = self.tpm.quote(context.qualifying(), tuple(asked["pcrs"]))
        pcrs = {pcr: self.tpm.values[pcr] for pcr in asked["pcrs"]}
        log, known = (None, asked["bootlog"]) if asked["bootlog"] else (self.log, None)
        made = Evidence("tpm", self.tpm.public, attest, signature, pcrs, log, None, None, known)
        from support.attestation import runner_bus

        plain = {"boot": "boot", "evidence": made.wire()}
        reply: dict[str, Any] = runner_bus.signed("answer", self.master, name, asked, plain)
        self.bytes += len(json.dumps(reply))
        return reply

    def attest(self) -> tuple[float, int]:
        """Attest the whole fleet; return the seconds of the master's processor, and the bytes that the hosts sent."""
        self.bytes, self.theirs, start = 0, 0.0, time.process_time()
        found = self.runner.attest()
        taken = time.process_time() - start - self.theirs
        states = {one["state"] for one in found.values() if isinstance(one, dict)}
        assert states == {"trusted"} and len(found) == len(self.names), (states, str(found)[:500])
        return taken, self.bytes


def fleet(hosts: int) -> dict[str, float]:
    """Measure a fleet by the runner, with records, certificates and results in files, but without Salt's bus."""
    with tempfile.TemporaryDirectory() as folder:
        made = Fleet(Path(folder), hosts)
        first, brought = made.attest()
        again, less = made.attest()
        start = time.process_time()
        made.runner._known = lambda fleet, pattern: list(made.names)
        assert len(made.runner.status()) == hosts
        status = time.process_time() - start
    return {
        "first": first / hosts * 1000,
        "again": again / hosts * 1000,
        "status": status / hosts * 1000,
        "first_bytes": brought / hosts,
        "again_bytes": less / hosts,
    }


BOMB = """
import hashlib, resource, sys
sys.path[:0] = sys.argv[1:]
from netspace.attestation.fleet import transfer
from netspace.attestation.minion import master_result as verdict
from netspace.attestation.refusals import Refused
size, number = verdict.PART // 3, transfer.Parts.MOST // verdict.PART
def cut():  # [[],[],...]
    yield "[[]" + ",[]" * (size - 1)
    for _ in range(number - 2):
        yield ",[]" * size
    yield ",[]" * (size - 1) + "]"
whole = hashlib.sha256()
for one in cut():
    whole.update(one.encode())
parts = transfer.Parts({"parts": number, "sha256": whole.hexdigest()})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for one in cut():
    parts.add({"text": one})
try:
    parts.whole()
except Refused:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def bomb() -> float:
    """Return the MiB of memory that parsing the largest permitted answer takes if it contains only empty lists."""
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(ROOT / "_utils")], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def simulated() -> dict[str, float]:
    """Simulate rounds over 10,000 hosts, with and without 500 absent and 20 dripping hosts; return simulated times.

    Dripping hosts send their answers very slowly. The other hosts answer within three seconds, or at once in the rounds
    called ``fast``.
    """
    from support.attestation.simulated_round import fleet as hosts_of
    from support.attestation.simulated_round import folder, good, round_of

    found: dict[str, float] = {"late": 0}
    for kind, seconds in (("", None), ("fast_", 0.0)):
        random.seed(3)
        hosts = hosts_of(HOSTS, 500, 20, seconds=seconds)
        present = good(hosts)
        with folder() as here, folder() as other:
            first, second = round_of(hosts, here), round_of(hosts, here)
            without = round_of({name: hosts[name] for name in present}, other)
        found[f"{kind}first_round"], found[f"{kind}round"] = first.took, second.took
        found[f"{kind}first_good"] = max(first.judged[name] for name in present)
        found[f"{kind}round_without"] = without.took
        found["late"] += sum(one.judged[name] > 7200 for one in (first, second) for name in present)
    return found


def lines(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, dict[str, Any]]:
    def line(name: str, limit: float, unit: str = "ms") -> dict[str, Any]:
        peer = theirs.get(name)
        return bench.line(
            ours[name], unit, "limit" if peer is None else "Keylime", limit if peer is None else peer, limit=limit
        )

    def beside(name: str, kind: str = "") -> dict[str, Any]:
        return bench.line(ours[kind + name], "s", "the round without them", ours[f"{kind}round_without"], ratio=1.3)

    return {
        "a quote, processor time": line("quote", 0.2),
        "a quote with boot log and policy, processor time": line("boot", 0.5),
        f"a quote with boot log, policy and {LINES} new IMA lines, processor time": line("list", 6),
        f"{HOSTS} hosts again, nothing new, processor time": line("hosts", 5.0, "s"),
        "a host at first, through the runner and its books, processor time": line("first", 10.0),
        "a host again, through the runner and its books, processor time": line("again", 5.0),
        "a host's state, as status shows it, processor time": line("status", 1.0),
        "a first round, 500 of 10000 away and 20 that drip, simulated": beside("first_round"),
        "the next such round, simulated": beside("round"),
        "the same of hosts that answer at once: a first round, until its last good host is judged": beside(
            "first_good", "fast_"
        ),
        "... until the last host that is away was waited for": bench.line(
            ours["fast_first_round"], "s", "the round without them", ours["fast_round_without"]
        ),
        "... the next such round": beside("round", "fast_"),
        "good hosts in these four that were judged later than the deadline": line("late", 0, "hosts"),
        "memory that 45 MiB of empty lists in parts take": line("bomb", 100, "MiB"),
        "what a host sends at first": line("first_bytes", 64_000, "B"),
        "what a host sends again": line("again_bytes", 4_000, "B"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one object, alone on stdout")
    form.add_argument("--markdown", action="store_true", help="print a table for docs/performance.md, alone on stdout")
    parser.add_argument("--keylime", type=Path, help="Python that has Keylime (default .cache/keylime/bin/python)")
    parser.add_argument("--fleet", type=int, default=500, metavar="N", help="hosts behind the runner (default 500)")
    options = parser.parse_args()
    keylime = options.keylime or ROOT / ".cache/keylime/bin/python"
    if not keylime.exists():
        if options.keylime:
            parser.error(f"{keylime} does not exist")
        print(f"attestation: no Keylime in {keylime}; beside limits alone", file=sys.stderr)
        keylime = None
    bench.note_load()
    ours, theirs, version = measure(keylime, options.fleet)
    told = f"best of {ROUNDS} rounds of both in turn" + (f"; Keylime {version}" if version else "")
    bench.tell(lines(ours, theirs), options, told)


if __name__ == "__main__":
    main()
