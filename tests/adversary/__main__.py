"""A long run: ``python tests/adversary [COUNT] [SEED]`` tries COUNT forgeries of boots (default 200,000).

It prints the number of worlds of each kind, and the shortest sequence of moves for each hole. It exits with 1 if there
is a hole.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "_utils")]

from adversary import search, worlds  # noqa: E402


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(2**32)
    start = time.monotonic()
    report = search.campaign(worlds.make, count, seed)
    print(report)
    print(f"refused as: {', '.join(f'{said} {number}' for said, number in report.codes().most_common())}")
    print(f"moves: {', '.join(f'{name} {number}' for name, number in report.moves.most_common())}")
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if report.holes else 0


if __name__ == "__main__":
    raise SystemExit(main())
