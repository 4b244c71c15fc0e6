"""Bits per second that one environment can signal to another without a link: the remaining covert channels.

usage: sudo python benchmarks/channels.py [--json | --markdown] [--channels A,B] [--slots N]

It starts a sandbox (``scripts/sandbox``) with two environments of the demo's image (``scripts/demo-image``), without an
interface or a link. Both know the start time. In each time slot, ``sender`` does something if the bit is 1, and
``receiver`` measures one number. The host knows the bits: half of the slots give the threshold between 0 and 1, and the
threshold is then tested on the other half. With a share *e* of wrong bits, a slot carries 1 - H(e) bits (the capacity
of a binary symmetric channel). Each channel is tried with several slot lengths; the result is the best rate, with its
share of wrong bits. A better program reaches higher rates, by coding and better clocks, so these figures are orders of
magnitude. On a busy machine they are lower.

The peer is pure chance: the same measurement with a sender that does nothing.

*page cache* works in another way: the sender reads some pages of a file of the image, and the receiver's counter of
page faults (getrusage(2)) shows which pages were in memory, once for each page. It is tried with the image's shared
cache and with ``image_cache: own``.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import bench
from bench import line, say

sys.path.insert(0, str(bench.ROOT / "tests"))

LARGE, PAGES = "/srv/large", 4096
LENGTHS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # lengths of a slot, in seconds
BEGIN = 2.0  # seconds from the start of both programs to the first slot

# By channel: what the sender executes for a 1 (DEEDS), and which number the receiver measures.
DEEDS = {
    "processors": "while time.time() < end: pass",
    "memory and its caches": "while time.time() < end: block[:] = other",
    "synced writes": "os.pwrite(file, block[:65536], 0); os.fsync(file)",
    "free memory (/proc/meminfo)": "held = mmap.mmap(-1, 16 << 20); held.write(bytes(16 << 20)); rest(); held.close()",
    "open sockets (/proc/net/sockstat)": "held = [socket.socket() for _ in range(99)]; rest(); held.clear()",
    "packets (/proc/net/softnet_stat)": "[udp.send(b'') for _ in range(40)]",
    "sessions (/proc/self/autogroup)": "session()",
    "numbers of pipes": "[(os.close(a), os.close(b)) for a, b in (os.pipe() for _ in range(1200))]",
}
LOOKS = {
    "processors": "spun",
    "memory and its caches": "copied",
    "synced writes": "wrote",
    "free memory (/proc/meminfo)": "free",
    "open sockets (/proc/net/sockstat)": "sockets",
    "packets (/proc/net/softnet_stat)": "packets",
    "sessions (/proc/self/autogroup)": "session",
    "numbers of pipes": "pipes",
}
COMMON = """
import json, mmap, os, socket, sys, threading, time
given = json.load(sys.stdin)
begin, length, bits = given["begin"], given["length"], given["bits"]
def session():
    reads, writes = os.pipe()
    if not os.fork():
        os.setsid()
        os.write(writes, open("/proc/self/autogroup", "rb").read())
        os._exit(0)
    os.close(writes)
    told = os.read(reads, 100)
    os.close(reads)
    os.wait()
    return int(told.split(b"-")[1].split()[0])
def until(moment):
    while (left := moment - time.time()) > 0:
        time.sleep(min(left, 0.0005) if left > 0.001 else 0)
"""
SEND = (
    COMMON
    + """
block, other = bytearray(4 << 20), bytes(4 << 20)
file = os.open("/var/tmp/sent", os.O_RDWR | os.O_CREAT, 0o600)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(("127.0.0.1", 9))
def rest():
    until(end)
def work(number):
    global end
    for at, bit in enumerate(bits):
        until(begin + at * length)
        end = begin + (at + 0.8) * length
        if bit and time.time() < end:
            try:
                exec(deed)
            except OSError:
                pass
deed = compile(given["deed"], "deed", "exec")
udp.setblocking(False)
work(0)
"""
)
RECEIVE = (
    COMMON
    + """
block, other = bytearray(4 << 20), bytes(4 << 20)
file = os.open("/var/tmp/seen", os.O_RDWR | os.O_CREAT, 0o600)
def spun(stop):
    count = 0
    while time.time() < stop:
        count += 1
    return -count
def copied(stop):
    began = time.perf_counter()
    block[:] = other
    return time.perf_counter() - began
def wrote(stop):
    began = time.perf_counter()
    os.pwrite(file, b"x", 0)
    os.fsync(file)
    return time.perf_counter() - began
def word(path, line, word):
    return int(next(one for one in open(path) if one.startswith(line)).split()[word])
def free(stop):
    until(stop - 0.4 * length)
    return -word("/proc/meminfo", "MemFree:", 1)
def sockets(stop):
    until(stop - 0.4 * length)
    return word("/proc/net/sockstat", "TCP:", 8)
last = {}
def since(key, value):
    before, last[key] = last.get(key, value), value
    return value - before
def packets(stop):
    until(stop)
    return since("packets", sum(int(one.split()[0], 16) for one in open("/proc/net/softnet_stat")))
def sessions(stop):
    until(stop)
    return since("sessions", session())
def pipes(stop):
    until(stop)
    reads, writes = os.pipe()
    number = os.fstat(reads).st_ino
    os.close(reads), os.close(writes)
    return since("pipes", number)
look = {"spun": spun, "copied": copied, "wrote": wrote, "free": free, "sockets": sockets, "packets": packets,
        "session": sessions, "pipes": pipes}[given["look"]]
seen = []
for at in range(len(bits)):
    until(begin + at * length)
    seen.append(look(begin + (at + 0.9) * length))
print(json.dumps(seen))
"""
)
READ = """
import json, os, sys
given = json.load(sys.stdin)
file = os.open(given["path"], os.O_RDONLY)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
for at, bit in enumerate(given["bits"]):
    if bit:
        os.pread(file, 1, at * 4096)
"""
FAULTS = """
import json, mmap, os, resource, sys
given = json.load(sys.stdin)
file = os.open(given["path"], os.O_RDONLY)
mapped = mmap.mmap(file, len(given["bits"]) * 4096, mmap.MAP_SHARED, mmap.PROT_READ)
mapped.madvise(mmap.MADV_RANDOM)
seen = []
for at in range(len(given["bits"])):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    mapped[at * 4096]
    seen.append(int(resource.getrusage(resource.RUSAGE_SELF).ru_majflt == before))
print(json.dumps(seen))
"""


def capacity(wrong: float) -> float:
    """Return the information in one transmitted bit, in bits, if *wrong* is the share of wrong bits."""
    wrong = min(wrong, 1 - wrong)
    return 1.0 if wrong == 0 else 1 + wrong * math.log2(wrong) + (1 - wrong) * math.log2(1 - wrong)


def wrong_part(bits: list[int], seen: list[float]) -> float:
    """Return the share of wrong bits in the second half of the slots, with the best threshold of the first half."""
    half = len(bits) // 2
    known = sorted(zip(seen[:half], bits[:half], strict=True))
    best, threshold, errors = half, 0.0, sum(1 for _, bit in known if not bit)  # all below the threshold are 0
    for value, bit in [(-math.inf, 1), *known]:
        errors += (1 if bit else -1) if value != -math.inf else 0
        if errors < best:
            best, threshold = errors, value
    return sum((value > threshold) != bool(bit) for value, bit in zip(seen[half:], bits[half:], strict=True)) / half


class World:
    """The sending and the receiving environment."""

    def __init__(self, folder: Path) -> None:
        from support.hosts.whole_host import IMAGE, python

        from netspace.host.host import Host
        from netspace.layout import Layout

        assert IMAGE.exists(), f"{IMAGE} is missing: scripts/demo-image makes it"
        root = folder / "root"
        root.mkdir()
        subprocess.run(["tar", "-C", root, "-xf", IMAGE], check=True)
        (root / LARGE[1:]).parent.mkdir(exist_ok=True)
        (root / LARGE[1:]).write_bytes(os.urandom(PAGES * 4096))
        self.host = Host(Layout())
        self.limits = {"memory": "128M", "cpus": 1, "pids": 128}
        self.image, self.command = f"dir:{root}", python("import signal; signal.pause()")
        self.apply()

    def apply(self, **keys: Any) -> None:
        from netspace.spec import parse

        common = {"image": self.image, "command": self.command, "limits": self.limits, "stop_timeout": 1, **keys}
        declared = parse.declaration({"environments": {"sender": common, "receiver": common}})
        for converge in (self.host.converge_interfaces, self.host.converge_environments):
            result = converge(declared)
            assert result.ok, result.failures

    def run(self, name: str, script: str, given: dict[str, Any]) -> Any:
        command = ["/usr/bin/python3", "-c", script]
        done = self.host.operations.exec(name, command, timeout=120, stdin=json.dumps(given))
        assert done["retcode"] == 0, done["stderr"][-600:]
        return json.loads(done["stdout"] or "null")

    def signalled(self, channel: str, deed: str, length: float, bits: list[int]) -> float:
        """Signal *bits* over a channel; return the share of wrong bits."""
        given = {"begin": time.time() + BEGIN, "length": length, "bits": bits, "deed": deed, "look": LOOKS[channel]}
        sender = threading.Thread(target=self.run, args=("sender", SEND, given))
        sender.start()
        seen = self.run("receiver", RECEIVE, given)
        sender.join()
        return wrong_part(bits, seen)

    def rate(self, channel: str, deed: str, slots: int) -> tuple[float, float, float]:
        """Return the best rate in bits per second, with its slot length and its share of wrong bits."""
        found = []
        for length in LENGTHS:
            bits = [random.getrandbits(1) for _ in range(slots)]
            wrong = self.signalled(channel, deed, length, bits)
            # With so few slots, some bits are right by chance: assume a share of wrong bits one standard error higher.
            surely = min(0.5, wrong + 1 / math.sqrt(slots / 2)) if wrong > 0.25 else wrong
            found.append((capacity(surely) / length, length, wrong))
        return max(found)

    def pages(self, cache: str) -> tuple[float, float]:
        """Return the page cache channel's rate in bits per second, and its share of wrong bits."""
        self.apply(image_cache=cache)
        bits = [random.getrandbits(1) for _ in range(PAGES)]
        for name in ("sender", "receiver"):
            self.forget(name)
        given = {"path": LARGE, "bits": bits}
        began = time.perf_counter()
        self.run("sender", READ, given)
        seen = self.run("receiver", FAULTS, given)
        took = time.perf_counter() - began
        wrong = sum(one != bit for one, bit in zip(seen, bits, strict=True)) / PAGES
        return (capacity(wrong) if wrong < 0.45 else 0.0) * PAGES / took, wrong

    def forget(self, name: str) -> None:
        """Drop the file's pages from the page cache, as root on the host."""
        pid = self.host.operations.inspect(name)["pid"]
        file = os.open(f"/proc/{pid}/root{LARGE}", os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def main() -> None:
    parser = bench.arguments(__doc__, rounds=1)
    parser.add_argument("--channels", default="", help="channels to measure, separated by commas (default: all)")
    parser.add_argument("--slots", type=int, default=200, help="number of slots of each length (default 200)")
    options = parser.parse_args()
    bench.on_a_host_of_its_own()
    wanted = options.channels.split(",") if options.channels else ["page cache", *DEEDS]
    lines: dict[str, dict[str, Any]] = {}
    with bench.disk(in_memory=options.memory_disk) as folder:
        world = World(folder)
        try:
            for channel in wanted:
                say(channel)
                if channel == "page cache":
                    shared, wrong = world.pages("shared")
                    own, _ = world.pages("own")
                    lines[f"page cache of a shared image, once for each page ({wrong:.1%} wrong)"] = line(
                        shared, "bit/s", "with image_cache: own", own
                    )
                    world.apply()
                    continue
                rate, length, wrong = world.rate(channel, DEEDS[channel], options.slots)
                chance, *_ = world.rate(channel, "pass", options.slots)
                name = f"{channel}, slots of {length * 1000:g} ms ({wrong:.1%} wrong)"
                lines[name] = line(rate, "bit/s", "chance", chance)
        finally:
            world.host.teardown()
    bench.tell(lines, options, "the best of some lengths of a slot")


if __name__ == "__main__":
    main()
