"""Search for moves by which a forger deceives a verifier, and for the shortest sequence of such moves.

The search doesn't depend on the kind of evidence. A :class:`World` gives the honest claim, proposes moves and asks the
verifier. The search continues with a claim if it got as far as the previous claim and is refused for a new reason. So
the search finds only sequences in which each move except the last changes the reason.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

Claim = TypeVar("Claim")

MAX_MOVES = 10
# Above this many moves each subset is no longer tried: moves are taken out one by one first.
MAX_SUBSETS = 8
_VARYING = re.compile(r"[0-9a-f]{8,}|\d+")


@dataclass(frozen=True)
class Move(Generic[Claim]):
    """One action of a forger.

    :param name: the kind of move, for counting.
    :param said: a description for people.
    :param apply: returns the changed claim. If the subject of the move is missing, it returns the claim unchanged, so
        that a sequence without one of its moves can be tried.
    """

    name: str
    said: str
    apply: Callable[[Claim], Claim]


class World(Protocol[Claim]):
    """A scene: the real events, the verifier's policy, and the forger's possible moves.

    :ivar kind: the kind of the bad event, for counting.
    :ivar name: a description of the whole world, for people.
    :ivar promised: whether the verifier's rules forbid the bad event. If they do, the verifier must not believe any
        claim, not even the honest one. If they don't, the search only counts the world, and tries no claim.
    :ivar hopeless: beginnings of refusals after which no further move is useful.
    """

    kind: str
    name: str
    promised: bool
    hopeless: tuple[str, ...]

    def honest(self) -> Claim:
        """Return the claim of an honest sender."""

    def propose(self, chance: random.Random, claim: Claim) -> Move[Claim]:
        """Return a move that may be useful after *claim*."""

    def refusal(self, claim: Claim) -> str:
        """Return why the verifier refuses *claim*; empty if the verifier believes the claim.

        A fault of the verifier, such as an exception other than a refusal, is raised.
        """


@runtime_checkable
class Ordered(Protocol):
    """A world whose verifier checks in a fixed order. A claim that fails an earlier check is no progress."""

    def progress(self, refusal: str) -> int:
        """Return the number of checks that the verifier passed before this refusal."""


@dataclass(frozen=True)
class Hole(Generic[Claim]):
    """A claim that deceives the verifier.

    :param moves: the shortest known sequence; empty if the verifier believes the honest claim.
    :param after: number of forgeries that were tried in this world before this one.
    """

    world: World[Claim]
    moves: tuple[Move[Claim], ...]
    after: int

    def claim(self) -> Claim:
        """Return the forged claim."""
        return applied(self.world.honest(), self.moves)

    @property
    def shape(self) -> tuple[str, ...]:
        """The kind and the moves' names. Holes of the same shape are mostly the same hole."""
        return (self.world.kind, *(move.name for move in self.moves))

    def __str__(self) -> str:
        steps = "; ".join(move.said for move in self.moves) or "the honest claim is believed"
        return f"{self.world.kind} ({self.world.name}): {steps} [after {self.after}]"


@dataclass
class Report(Generic[Claim]):
    """The outcome of a campaign.

    :ivar real: the number of worlds in which forgeries were tried, by kind.
    :ivar harmless: the number of worlds that break no rule, by kind.
    :ivar missing: the number of worlds that couldn't be made, by reason.
    """

    seed: int
    forgeries: int = 0
    real: Counter[str] = field(default_factory=Counter)
    harmless: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)
    holes: list[Hole[Claim]] = field(default_factory=list)

    def shortest(self) -> dict[tuple[str, ...], Hole[Claim]]:
        """Return one hole of each shape, the shortest shapes first."""
        found: dict[tuple[str, ...], Hole[Claim]] = {}
        for hole in sorted(self.holes, key=lambda one: (len(one.moves), one.after)):
            found.setdefault(hole.shape, hole)
        return found

    def codes(self) -> Counter[str]:
        """Return how often each code refused a claim. The code is the part of a refusal before the colon."""
        found: Counter[str] = Counter()
        for said, count in self.refusals.items():
            found[said.partition(":")[0]] += count
        return found

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.forgeries} forgeries in {sum(self.real.values())} worlds"]
        for name in ("real", "harmless", "missing"):
            counted = ", ".join(f"{key} {count}" for key, count in sorted(getattr(self, name).items()))
            lines.append(f"{name}: {counted or 'none'}")
        shapes = self.shortest()
        lines.append(f"holes: {len(self.holes)}, of {len(shapes)} shapes")
        lines += [f"  {hole}" for hole in shapes.values()]
        return "\n".join(lines)


def applied(claim: Claim, moves: Sequence[Move[Claim]]) -> Claim:
    """Return *claim* after *moves*."""
    for move in moves:
        claim = move.apply(claim)
    return claim


def shortest(world: World[Claim], moves: Sequence[Move[Claim]]) -> tuple[Move[Claim], ...]:
    """Return the shortest part of *moves* (in order) that still deceives the verifier."""
    kept = list(moves)
    at = 0
    while len(kept) > MAX_SUBSETS and at < len(kept):
        without = kept[:at] + kept[at + 1 :]
        if world.refusal(applied(world.honest(), without)):
            at += 1
        else:
            kept = without
    for size in range(min(len(kept), MAX_SUBSETS)):
        for some in itertools.combinations(kept, size):
            if not world.refusal(applied(world.honest(), some)):
                return some
    return tuple(kept)


def _nowhere(refusal: str) -> int:
    """Return 0, the same progress for every refusal: used for worlds whose checks have no known order."""
    return 0


def hunt(world: World[Claim], chance: random.Random, count: int, report: Report[Claim]) -> Hole[Claim] | None:
    """Try *count* forgeries in *world* until the verifier believes one; return it with as few moves as possible."""
    far = world.progress if isinstance(world, Ordered) else _nowhere
    first = world.refusal(world.honest())
    known: list[tuple[tuple[Move[Claim], ...], Claim, int]] = [((), world.honest(), far(first))]
    heard = {_VARYING.sub("#", first)}
    for number in range(1, count + 1):
        # Half of the time from the latest three, which got furthest.
        moves, claim, before = chance.choice(known[-3:] if chance.random() < 0.5 else known)
        for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4))):
            if len(moves) == MAX_MOVES:
                break
            move = world.propose(chance, claim)
            report.moves[move.name] += 1
            moves, claim = (*moves, move), move.apply(claim)
        report.forgeries += 1
        said = world.refusal(claim)
        if not said:
            return Hole(world, shortest(world, moves), number)
        reason = _VARYING.sub("#", said)
        report.refusals[reason[:100]] += 1
        if reason not in heard and not said.startswith(world.hopeless) and far(said) >= before:
            heard.add(reason)
            known.append((moves, claim, far(said)))
    return None


def campaign(
    make: Callable[[random.Random], World[Claim] | str], count: int, seed: int, each: int = 100
) -> Report[Claim]:
    """Try *count* forgeries, in a new world after every few forgeries.

    :param make: returns a world, or the reason why it could make none.
    :param each: number of forgeries per world.
    """
    chance = random.Random(seed)
    report: Report[Claim] = Report(seed)
    made = 0
    while report.forgeries < count:
        made += 1
        if made > 100 + 20 * count:
            raise AssertionError(f"hardly any world is real: {report}")
        world = make(chance)
        if isinstance(world, str):
            report.missing[world] += 1
            continue
        if not world.promised:
            report.harmless[world.kind] += 1
            continue
        report.real[world.kind] += 1
        if not world.refusal(world.honest()):
            report.forgeries += 1
            report.holes.append(Hole(world, (), 0))
            continue
        hole = hunt(world, chance, min(each, count - report.forgeries), report)
        if hole is not None:
            report.holes.append(hole)
    return report
