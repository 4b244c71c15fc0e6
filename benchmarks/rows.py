"""The processor time that the rows of a state's result add, compared with the same result without rows.

usage: .venv/bin/python benchmarks/rows.py [--json | --markdown] [--count N] [--rounds N]

A result has a row for each thing that it reports, such as an environment. The benchmark needs no root and no host. A
real Salt runs a state that returns a prepared result of netspace. These figures are measured, in milliseconds of this
process's processor time:

*run* -- the state's return and all that Salt does with it, as in ``state.apply``.

*shown* -- the text that Salt's ``highstate`` output makes of the result.

Each is measured for a result in which everything changed, and for a result in which nothing changed. The goal is at
most 200 ms more than without rows, for 1,000 rows.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
from bench import Rounds, line

COUNT = 1000
MOST = 200.0
STATE = """
from netspace.plan import Outcome, Plan, Result, Step
from netspace.plugin import state_return

def managed(name, count, changed, rows):
    things = [f"e{number}" for number in range(count)]
    change = {"image": {"old": "tar:/srv/a.tar", "new": "tar:/srv/b.tar"}}
    steps = [Step("environment", thing, "restart", change) for thing in things] if changed else []
    result = Result(Plan(steps), [Outcome(step) for step in steps])
    return state_return.rows(name, result, "environment", things, test=False, most=count if rows else 0)
"""


def measure(options: Any, *, shown: bool = True) -> Rounds:
    """Return the milliseconds of each round.

    :param shown: whether to make Salt's output, too.
    """
    import salt.config
    import salt.output
    import salt.state

    rounds = Rounds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "states").mkdir()
        (folder / "states/bench_rows.py").write_text(STATE)
        opts = {
            **salt.config.minion_config(os.devnull),
            "file_client": "local", "states_dirs": [str(folder / "states")], "cachedir": str(folder / "cache"),
            "extension_modules": str(folder / "ext"), "sock_dir": name, "pki_dir": name, "root_dir": name,
            "id": "bench", "grains": {}, "color": False, "fun": "state.apply",
        }  # fmt: skip
        running = salt.state.State(opts)
        for number in range(options.rounds + 1):  # the first one imports modules; not recorded
            for changed in (False, True):
                for rows in (False, True):
                    arguments = [{"count": options.count}, {"changed": changed}, {"rows": rows}]
                    start = time.process_time()
                    found = running.call_high({"things": {"bench_rows": ["managed", *arguments]}})
                    ran = time.process_time()
                    assert len(found) == (options.count + 1 if rows else 1), found
                    if shown:
                        salt.output.out_format({"local": found}, "highstate", opts)
                    ended = time.process_time()
                    if number:
                        which = f"{'changed' if changed else 'same'} {'rows' if rows else 'none'}"
                        rounds.note(f"run {which}", (ran - start) * 1000)
                        rounds.note(f"shown {which}", (ended - ran) * 1000)
    return rounds


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help=f"things (default {COUNT})")
    options = parser.parse_args()
    bench.note_load()
    rounds = measure(options)
    found = {}
    for kind, told in (("run", "Salt's run"), ("shown", "Salt's output")):
        for which, changed in (("same", "nothing changed"), ("changed", "all changed")):
            value, without = rounds.middle(f"{kind} {which} rows"), rounds.middle(f"{kind} {which} none")
            name = f"{told}, {options.count} rows, {changed}"
            found[name] = line(value, "ms", "without rows", without, limit=without + MOST if kind == "run" else None)
    bench.tell(found, options)


if __name__ == "__main__":
    main()
