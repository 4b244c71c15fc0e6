"""The time from a host's loss of trust until the host at the other end has ended its links with it, in a lab.

usage: sudo python benchmarks/revocation.py [--json] [--rounds N] [--busy N]

A real master and two minions run on this machine (scripts/lab). Host h1 has a link to h2, a link from h2, and a link
between two of its own environments, which keeps its broker running. In each round, h2's attestation key is moved away,
so h2 answers with another key and the master no longer trusts it. The time begins with the event in the master's audit
log. *Ended* is the moment when h1's forwarder no longer connects to h2; *recorded*, when h1's record has no link with
h2. The peer is the time of an empty job (test.ping) on the same minion, requested by a process that has its modules
loaded.

The master and both minions share this machine, and h2 works at the same time. So the times are longer than on separate
machines.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import bench
from bench import Rounds, line, say

sys.path.insert(0, str(bench.ROOT / "tests"))

IMAGE = "tar:salt://images/shop.tar"
FLEET = f"""\
hosts:
  h1: {{address: 198.51.100.1}}
  h2: {{address: 198.51.100.2}}
environments:
  web:    {{on: h1, image: "{IMAGE}", command: [/usr/bin/web]}}
  log:    {{on: h1, image: "{IMAGE}", command: [/usr/bin/web]}}
  orders: {{on: h2, image: "{IMAGE}", command: [/usr/bin/orders]}}
links:
  - {{from: web, to: orders, pattern: request, seal: true}}
  - {{from: orders, to: web}}
  - {{from: web, to: log}}
"""
PING = """
import os, sys, time
import salt.client, salt.config
client = salt.client.LocalClient(mopts=salt.config.client_config(os.environ["SALT_CONFIG_DIR"] + "/master"))
for number in range(int(sys.argv[1]) + 1):
    began = time.time()
    assert client.cmd("h1", "test.ping") == {"h1": True}
    if number:  # the first one loads modules
        print("took", time.time() - began)
"""
KEY = "/var/lib/netspace/attestation/key"
BOUND = 5.0
PATIENCE = 180.0


def first_process(home: Path) -> int:
    """Return the PID, on this machine, of the first process of a lab's host."""
    pid = int((home / "pid").read_text().split()[0])
    for _ in range(2):  # from the shell to its child, unshare, and on to the host's first process
        pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return pid


def appraised(folder: Path) -> float:
    """Return the time of the master's last verdict on h2, from its audit log."""
    lines = (folder / "master/attestation/audit.log").read_text().splitlines()
    times = [one["time"] for one in map(json.loads, lines) if one["event"] == "state" and one["data"]["minion"] == "h2"]
    return float(times[-1])


@contextlib.contextmanager
def busy(programs: int) -> Iterator[None]:
    """Run programs during the context, each of which keeps a processor busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def measure(rounds: Rounds, options: object, folder: Path) -> None:
    from support.hosts.lab import lab as lab_of
    from support.waiting import until

    count, programs = int(vars(options)["rounds"]), int(vars(options)["busy"])
    (folder / "fleet.yaml").write_text(FLEET)
    with lab_of(folder / "lab") as lab:
        say("a lab begins")
        lab.do("up", str(folder / "fleet.yaml"))
        lab.warm()
        lab.runner("netspace_fleet.join", "h1", "h2")
        lab.apply()
        (key,) = lab.runner("netspace_attestation.jwks")["keys"]
        required = {"verifier": "master", "verifier_keys": [key["kid"]], "policy": "require", "minimum": "L1"}
        lab.fleet.write_text(f"{FLEET}defaults: {{attestation: {json.dumps(required)}}}\n")
        until(lambda: "attestation" in lab.runner("netspace_fleet.slice", "h2")["netspace"], patience=60)
        lab.salt("*", "saltutil.refresh_pillar", "wait=True")
        lab.runner("netspace_attestation.attest")
        lab.apply()
        home = lab.folder / "h1"
        served = Path(f"/proc/{first_process(home)}/root/run/netspace/forwarder/served.cfg")
        record = home / "disk/netspace/link/applied.json"

        def leads() -> bool:
            text = served.read_text()
            return "backend to:web:h2" in text and "# closed:" not in text

        def recorded() -> bool:
            return "orders@h2" in record.read_text()

        for number in range(count):
            until(lambda: leads() and recorded(), "the links are there", patience=PATIENCE)
            say(f"round {number + 1}")
            with busy(programs):
                printed = lab.do("sh", "master", sys.executable, "-c", PING, "3")
                took = [float(one.split()[1]) for one in printed.splitlines() if one.startswith("took ")]
                rounds.note("ping", sorted(took)[len(took) // 2])
                lab.do("sh", "h2", "mv", f"{KEY}.json", f"{KEY}.kept")
                before = appraised(lab.folder)
                attest = ["salt-run", "--out=json", "netspace_attestation.attest", "h2"]
                asked = subprocess.Popen(
                    [bench.ROOT / "scripts/lab", *attest], env=lab.environment, stdout=subprocess.DEVNULL
                )
                until(lambda: not leads(), "it is ended", patience=PATIENCE, pause=0.002)
                ended = time.time()
                until(lambda: not recorded(), "it is recorded", patience=PATIENCE, pause=0.002)
                gone = time.time()
                asked.wait()
            assert appraised(lab.folder) > before
            rounds.note("ended", ended - appraised(lab.folder))
            rounds.note("recorded", gone - appraised(lab.folder))
            until(lambda: lab.runner("netspace_trust.status", code=1)["waiting"] == {}, patience=PATIENCE)
            lab.do("sh", "h2", "mv", f"{KEY}.kept", f"{KEY}.json")
            lab.runner("netspace_attestation.attest", "h2")


def main() -> None:
    parser = bench.arguments(__doc__, rounds=3)
    parser.add_argument(
        "--busy", type=int, default=0, metavar="N", help="programs that keep a processor busy meanwhile (default 0)"
    )
    options = parser.parse_args()
    bench.on_a_host_of_its_own()
    rounds = Rounds()
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as name:
        measure(rounds, options, Path(name))
    ping, load = rounds.middle("ping"), f"with {options.busy} busy programs" if options.busy else "no further load"
    bench.tell(
        {
            f"links ended at the peer after the event, {load}": line(
                rounds.middle("ended"), "s", "test.ping", ping, limit=BOUND
            ),
            "links gone from the peer's record": line(rounds.middle("recorded"), "s", "test.ping", ping),
        },
        options,
    )


if __name__ == "__main__":
    main()
