"""A run of the checker: programs in environments, disturbances by a seed, and at the end the judge.

The hosts are those of ``support.links``: real brokers, forwarders and supervisors in namespaces, and netspace-client in
processes that are killed and paused like any other. The supervisor starts killed brokers and forwarders again; the run
starts killed programs again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.links.link_world import World
from support.links.linked_hosts import Cable
from support.links.programs import tell

from histories import faults, notes, program
from histories.faults import Disturbance, Target
from histories.judge import Bounds, Verdict, judge
from netspace.link.broker import node
from netspace.link.forwarder import process
from netspace.link.topology import peers
from netspace.spec.types import Link

SERVICES = {"broker": node.NODE, "forwarder": process.NAME}
IN_HAND = 200
"""Messages that a receiver may have unacknowledged: the client's ``capacity``."""
QUIET = 30.0
"""Seconds without a message after which nothing more is expected."""
PATIENCE = 10.0
"""Seconds after which a disturbance is left out, because its target is disturbed already or isn't there."""
PAUSE = 0.05


@dataclass(frozen=True)
class Road:
    """A link that carries messages of the run.

    :param how: ``send`` or ``call``.
    """

    link: Link
    how: str = "send"

    @property
    def ends(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Environment and host of the sender, and of the receiver."""
        source, target = (end.partition("@")[::2] for end in (self.link.source, self.link.target))
        return (source[0], source[1]), (target[0], target[1])

    @property
    def name(self) -> str:
        (source, _), (target, _) = self.ends
        return f"{source}>{target}"

    @property
    def between(self) -> bool:
        (_, here), (_, there) = self.ends
        return here != there

    def repeats(self) -> set[Target]:
        """Return the targets whose disturbance may make somebody send again."""
        (source, here), (_, there) = self.ends
        found = {Target("client", source), Target("lo", source), Target("forwarder", here), Target("broker", there)}
        if self.between:
            found |= {Target("forwarder", there), Target("cable", ""), Target("broker", here)}
        return found

    def silences(self) -> set[Target]:
        """Return the targets whose disturbance may end the receiver's connection without the broker's notice."""
        _, (target, there) = self.ends
        return {Target("lo", target), Target("client", target), Target("forwarder", there), Target("broker", there)}

    def bounds(self, done: Sequence[Disturbance]) -> Bounds:
        hits = Counter(one.target for one in done)
        carried = 0
        if self.how == "call":
            carried = program.QUESTIONS
        elif self.link.via == "buffered":
            carried = peers.PREFETCH
        return Bounds(
            in_flight=program.WINDOW if self.how == "send" else program.QUESTIONS,
            in_hand=IN_HAND,
            carried=carried,
            disturbed=sum(hits[target] for target in self.repeats()),
            # A kill closes the connection, which the broker notices.
            ordered=self.how == "send",
            silenced=sum(one.target in self.silences() and one.how != "kill" for one in done),
        )


@dataclass
class Report:
    """The outcome of a run.

    :ivar done: all disturbances.
    :ivar verdicts: the judgement on each link, by name.
    """

    done: list[Disturbance]
    verdicts: dict[str, Verdict]
    seconds: float
    strangers: int = 0
    ended: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.strangers or any(verdict.faults for verdict in self.verdicts.values()))

    def lines(self) -> Iterator[str]:
        total: Counter[str] = sum((verdict.counts for verdict in self.verdicts.values()), Counter())
        for name, verdict in self.verdicts.items():
            yield f"{name}: " + ", ".join(f"{what} {count}" for what, count in verdict.counts.items())
            yield from (f"  {text}" for text in verdict.shown)
        kinds = Counter(f"{one.how} {one.target.kind}" for one in self.done)
        yield "disturbances: " + ", ".join(f"{what} {count}" for what, count in sorted(kinds.items()))
        yield from (f"ended by itself: {text}" for text in self.ended)
        if self.strangers:
            yield f"received over no link: {self.strangers}"
        found: Counter[str] = sum((verdict.faults for verdict in self.verdicts.values()), Counter())
        yield (
            f"{total['sent']} sent, {total['confirmed']} confirmed, {total['received']} received, "
            f"{len(self.done)} disturbances, {self.seconds:.0f} s: "
            + (", ".join(f"{kind} {count}" for kind, count in found.items()) or "no fault")
        )


class Run:
    """Programs on some hosts, for *roads*.

    :param hosts: by name; a single host may have the name ``""``.
    :param folder: for cards and notes.
    :param numbers: messages of each road, by the road's name.
    :param late: receivers that begin only when all messages are sent.
    """

    def __init__(
        self,
        hosts: Mapping[str, World],
        cable: Cable | None,
        roads: Sequence[Road],
        folder: Path,
        numbers: Mapping[str, int],
        late: Collection[str] = (),
    ) -> None:
        self._hosts = hosts
        self._cable = cable
        self._roads = roads
        self._numbers = numbers
        self._late = set(late)
        self._folder = folder
        self._where = dict(end for road in roads for end in road.ends)
        self._commands: dict[str, list[str]] = {}
        self._programs: dict[str, subprocess.Popen[bytes]] = {}
        self._until: dict[Target, tuple[float, Callable[[], None]]] = {}
        self._ended: list[str] = []
        for part in ("cards", "progress"):
            (folder / part).mkdir()
        for name, host in self._where.items():
            tell(hosts[host], name, folder / "cards" / name)
        for road in roads:
            (source, _), (target, _) = road.ends
            peer = road.link.target if road.between else target
            self._command(source, road.how, road.name, peer, str(numbers[road.name]))
            self._command(target, "receive")

    def _command(self, name: str, how: str, *more: str) -> None:
        inside = ["ip", "netns", "exec", self._hosts[self._where[name]].layout.netns_name(name)]
        paths = [str(self._folder / part) for part in (f"cards/{name}", f"{name}.notes", "progress")]
        self._commands[name] = [*inside, sys.executable, str(Path(program.__file__)), how, *paths, *more]

    def targets(self) -> list[Target]:
        found = [Target(kind, host) for kind in SERVICES for host in self._hosts]
        found += [Target(kind, name) for kind in ("client", "lo") for name in self._where]
        return [*found, *([Target("cable", "")] if self._cable else [])]

    # -- the run -----------------------------------------------------------------------
    def __call__(
        self,
        disturbances: Iterator[Disturbance],
        say: Callable[[str], None] = lambda _: None,
        *,
        least: int = 0,
        at_end: Callable[[], None] = lambda: None,
    ) -> Report:
        """Run all programs until each message's outcome is known, and each confirmed one has had time to arrive.

        :param least: the number of disturbances over which the messages are spread.
        :param at_end: called when all messages are sent.
        """
        began = time.monotonic()
        done: list[Disturbance] = []
        self._allow(0, least)
        following = next(disturbances, None)
        due = began + (following.after if following else 0.0)
        try:
            while not self._sent():
                now = time.monotonic()
                self._heal(now)
                if following is not None and now >= due:
                    hit = self._disturb(following, now)
                    if hit:
                        done.append(following)
                        say(f"{now - began:7.1f} s: {following}")
                    if hit or now > due + PATIENCE:
                        following = next(disturbances, None)
                        due = now + (following.after if following else 0.0)
                        self._allow(len(done) if following else least, least)
                self._tend()
                time.sleep(PAUSE)
            self._heal(float("inf"))
            at_end()
            self._late.clear()
            self._drain()
        finally:
            self._heal(float("inf"))
            for one in self._programs.values():
                one.kill()
                one.wait()
        verdicts = {road.name: self.judged(road, done) for road in self._roads}
        strangers = sum(
            notes.strangers(self._folder / f"{name}.notes", [road.name for road in self._roads])
            for name in self._receivers()
        )
        return Report(done, verdicts, time.monotonic() - began, strangers, self._ended)

    def _allow(self, done: int, least: int) -> None:
        """Tell the senders how far they may go: a share of the messages for each disturbance."""
        if done <= least:
            for road in self._roads:
                number = self._numbers[road.name]
                share = number if done == least else number * (done + 1) // (least + 1)
                program.Progress(self._folder / "progress").allow(road.name, share)

    def judged(self, road: Road, done: Sequence[Disturbance]) -> Verdict:
        (source, _), (target, _) = road.ends
        sent = notes.sent(self._folder / f"{source}.notes")
        received = notes.received(self._folder / f"{target}.notes", road.name)
        return judge(sent, received, road.bounds(done))

    def _receivers(self) -> set[str]:
        return {road.ends[1][0] for road in self._roads}

    def _sent(self) -> bool:
        """Return whether all senders have ended well."""
        senders = {road.ends[0][0] for road in self._roads}
        return all(name in self._programs and self._programs[name].poll() == 0 for name in senders)

    def _tend(self) -> None:
        """Start the programs that don't run."""
        for name, command in self._commands.items():
            if name in self._late:
                continue
            running = self._programs.get(name)
            code = None if running is None else running.poll()
            if running is None or code not in (None, 0):
                if code not in (None, -signal.SIGKILL):
                    self._ended.append(f"{name} ({code})")
                with (self._folder / f"{name}.log").open("ab") as log:
                    self._programs[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def _drain(self) -> None:
        """Wait until no receiver has got a message for ``QUIET`` seconds, or all messages are there."""
        sizes: dict[str, int] = {}
        changed = time.monotonic()
        while time.monotonic() < changed + QUIET:
            self._tend()
            paths = [self._folder / f"{name}.notes" for name in self._receivers()]
            new = {path.name: path.stat().st_size for path in paths if path.exists()}
            if new != sizes:
                sizes, changed = new, time.monotonic()
            elif time.monotonic() > changed + 3 and not any(
                self.judged(road, ()).faults["lost"] for road in self._roads
            ):
                return
            time.sleep(1.0)

    # -- disturbances --------------------------------------------------------------------
    def _disturb(self, one: Disturbance, now: float) -> bool:
        """Begin a disturbance; return False if its target is disturbed already, or isn't there."""
        target = one.target
        if target in self._until:
            return False
        if one.how == "cut":
            return self._cut(target, now + one.seconds)
        pid = self._pid(target)
        if not pid:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if one.how == "kill" else signal.SIGSTOP)
            if one.how == "pause":
                self._until[target] = now + one.seconds, lambda: _continued(pid)
            return True
        return False

    def _cut(self, target: Target, until: float) -> bool:
        if target.kind == "cable":
            assert self._cable is not None
            self._cable.cut()
            self._until[target] = until, self._cable.mend
            return True
        namespace = self._hosts[self._where[target.name]].layout.netns_name(target.name)

        def loopback(state: str) -> None:
            subprocess.run(["ip", "-n", namespace, "link", "set", "lo", state], check=True)

        loopback("down")
        self._until[target] = until, lambda: loopback("up")
        return True

    def _heal(self, now: float) -> None:
        """End the disturbances whose time is over."""
        for target in [one for one, (until, _) in self._until.items() if until <= now]:
            self._until.pop(target)[1]()

    def _pid(self, target: Target) -> int:
        if target.kind == "client":
            running = self._programs.get(target.name)
            return running.pid if running is not None and running.poll() is None else 0
        service = self._hosts[target.name].supervisor.observe().get(SERVICES[target.kind])
        return 0 if service is None or service.state != "running" else service.pid


def _continued(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def with_seed(run: Run, seed: int, mean: float) -> Iterator[Disturbance]:
    """Yield disturbances of everything that a run has."""
    return faults.schedule(seed, run.targets(), mean)
