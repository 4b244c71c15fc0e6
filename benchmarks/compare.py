"""Benchmarks of this checkout compared with those of an earlier commit, in turn.

usage: sudo python benchmarks/compare.py [--turns N] [--within R] [--clock] [--json] COMMIT BENCHMARK [ARGUMENT...]

The earlier commit's files are put into ``.cache/compare/COMMIT``. Each turn runs the benchmark of the earlier commit
and then that of this checkout, each with its own library, by the same interpreter, with the same arguments. A value is
the best of all turns, because other load on the machine only adds to a time. Lines that only one of both has are left
out.

By default only lines with *processor time* in their name are compared, since they don't change on a machine that is
busy with other work. ``--clock`` compares all times. It exits with 1 if a value is more than R times (default 1.05)
that of the earlier commit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench

TIMES = ("s", "ms", "us")
PROCESSOR = ", processor time"
Lines = dict[str, dict[str, Any]]


def former(commit: str) -> Path:
    """Return a folder with the files of a commit."""
    full = subprocess.run(
        ["git", "-C", str(bench.ROOT), "rev-parse", "--verify", f"{commit}^{{commit}}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    folder = bench.ROOT / ".cache/compare" / full[:12]
    if not (folder / "benchmarks").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "-C", str(bench.ROOT), "archive", full], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def measured(tree: Path, name: str, arguments: list[str]) -> Lines:
    """Run the benchmark of one tree; return its lines."""
    command = [sys.executable, str(tree / "benchmarks" / f"{name}.py"), "--json", *arguments]
    done = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{name} of {tree} exited with {done.returncode}; its messages are above")
    found: Lines = json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, metavar="N")
    parser.add_argument("--within", type=float, default=1.05, metavar="R")
    parser.add_argument("--clock", action="store_true", help="compare all times, not only processor time")
    parser.add_argument("--json", action="store_true", help="print one object, alone on stdout")
    parser.add_argument("commit")
    parser.add_argument("benchmark")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the benchmark")
    options = parser.parse_args()
    trees = {"before": former(options.commit), "now": bench.ROOT}
    best: dict[str, dict[str, float]] = {}
    units: dict[str, str] = {}
    wanted: set[str] = set()
    for turn in range(options.turns):
        for when, tree in trees.items():
            bench.say(f"turn {turn + 1} of {options.turns}: {options.benchmark}, {when}")
            found = measured(tree, options.benchmark, options.arguments)
            for told, one in found.items():
                if one["unit"].split()[0] not in TIMES:
                    continue
                short = told.removesuffix(PROCESSOR)  # one of both may not say it
                line = told if short in found else short
                if options.clock or told != short:
                    wanted.add(line)
                values = best.setdefault(line, {})
                values[when] = min(one["value"], values.get(when, one["value"]))
                units[line] = one["unit"]
    both = {line: values for line, values in best.items() if line in wanted and len(values) == 2 and values["before"]}
    if not both:
        sys.exit(f"{options.benchmark}: no line that both have; --clock compares more")
    ratios = {line: round(values["now"] / values["before"], 3) for line, values in both.items()}
    if options.json:
        print(json.dumps({line: {**both[line], "unit": units[line], "ratio": ratios[line]} for line in both}, indent=1))
    else:
        for line, values in both.items():
            before, now = (bench.figure(values[when], units[line]) for when in trees)
            print(f"{line:60} {before:>10} {now:>10} x{ratios[line]:.2f}")
    return int(any(ratio > options.within for ratio in ratios.values()))


if __name__ == "__main__":
    sys.exit(main())
