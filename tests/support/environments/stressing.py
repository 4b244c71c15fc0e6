"""Stressors of ``stress-ng`` in an environment, each for two seconds; the host's state is compared afterwards.

``python stressing.py ENVIRONMENT NUMBER STRESSOR...`` runs these stressors on this host, which may be a virtual
machine. It looks at the host after each *NUMBER* of stressors, and prints a line of JSON for each stressor.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "_utils"))

from netspace.environment.operations import Operations
from netspace.errors import NetspaceError
from support.hosts import host_state
from support.waiting import until

WANTED = os.environ.get("NETSPACE_STRESS", "sample")
SEED = int(os.environ.get("NETSPACE_SEED") or time.time() // 86400)
REPORT = os.environ.get("NETSPACE_STRESS_REPORT", "")
PROFILES = ("strict", "standard")
SECONDS = 2
PATIENCE = 20.0  # seconds after which a stressor that doesn't end is killed
SETTLED = 5.0  # seconds for what takes its time to be as before
LIMITS = {"memory": "192M", "cpus": 1, "pids": 128, "disk": "64M"}


def known() -> list[str]:
    done = subprocess.run(["stress-ng", "--stressors"], capture_output=True, text=True, check=True)
    return sorted(done.stdout.split())


def chosen(sample: int, where: str = "{}") -> list[tuple[str, list[str]]]:
    """Return the profiles to try, each with the stressors to run under it.

    :param sample: the number of stressors that run on one day.
    """
    if WANTED == "all":
        return [(profile, known()) for profile in PROFILES]
    if WANTED == "rest":
        told = [json.loads(line) for line in Path(REPORT).read_text().splitlines()]
        done = {(row["profile"], row["stressor"]) for row in told}
        rest = {profile: [one for one in known() if (where.format(profile), one) not in done] for profile in PROFILES}
        return [(profile, stressors) for profile, stressors in rest.items() if stressors]
    if WANTED != "sample":
        return [(profile, WANTED.split(",")) for profile in PROFILES]
    return [(PROFILES[SEED % len(PROFILES)], sorted(random.Random(SEED).sample(known(), sample)))]


def fill(root: Path) -> Path:
    """Make *root* a root with stress-ng, the libraries that it loads, and a folder to write to; return *root*."""
    root.chmod(0o755)
    program = shutil.which("stress-ng") or ""
    loaded = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    paths = [program, *sorted(set(re.findall(r"(/\S+\.so[.\d]*)", loaded)))]
    archive = subprocess.run(["tar", "-C", "/", "-chf", "-", *(path[1:] for path in paths)], stdout=-1, check=True)
    subprocess.run(["tar", "-C", root, "-xf", "-"], input=archive.stdout, check=True)
    (root / "bin").mkdir(exist_ok=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "sleep"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "work").mkdir()
    (root / "work").chmod(0o777)
    return root


def run(operations: Operations, name: str, stressors: Sequence[str], patience: float) -> tuple[dict[str, str], str]:
    """Run stressors one after the other, each in two processes of an environment.

    Return the outcome of each stressor that stress-ng reported, and how stress-ng itself ended.
    """
    options = ["-t", str(SECONDS), "--temp-path", "/work", "--oomable", "--no-rand-seed"]
    command = ["/usr/bin/stress-ng", "--seq", "2", "--with", ",".join(stressors), *options]
    try:
        done = operations.exec(name, command, timeout=patience * len(stressors))
    except NetspaceError:  # the last one left as many processes behind as there may be
        operations.restart([name])
        done = operations.exec(name, command, timeout=patience * len(stressors))
    found: dict[str, str] = {}
    for outcome in ("skipped", "failed", "passed"):  # of one that told two, the last is taken
        for names in re.findall(rf"{outcome}: \d+: (.+)", done["stdout"] + done["stderr"]):
            found.update(dict.fromkeys(re.findall(r"(\S+) \(\d+\)", names), outcome))
    return found, "killed: it came to no end" if done["timed_out"] else f"ended: {done['retcode']}"


def outcomes_of(
    operations: Operations, name: str, stressors: Sequence[str], patience: float = PATIENCE
) -> dict[str, str]:
    """Run stressors; return the outcome of each.

    If a stressor ends the whole run, the stressors without an outcome are run again in two halves, until the stressor
    that ends the run is alone.
    """
    found, ended = run(operations, name, stressors, patience)
    # Whatever a stressor left behind is the environment's, and ends with it.
    if ended.startswith("killed") or operations.list()[name]["state"] != "running":
        operations.restart([name])
    missing = [one for one in stressors if one not in found]
    if len(stressors) == 1:
        return {stressors[0]: found.get(stressors[0], ended)}
    if missing:
        half = (len(missing) + 1) // 2
        for part in (missing[:half], missing[half:]):
            if part:
                found.update(outcomes_of(operations, name, part, patience))
    return {one: found[one] for one in stressors}


def each(
    operations: Operations,
    name: str,
    stressors: Sequence[str],
    patience: float = PATIENCE,
    settled: float = SETTLED,
    at_once: int = 1,
) -> Iterator[dict[str, Any]]:
    """Run stressors one after the other; yield ``stressor``, ``outcome`` and ``trouble`` (the host's changes).

    :param at_once: number of stressors between two comparisons of the host. These stressors get the same ``trouble``.
    """
    before = host_state.look()
    for first in range(0, len(stressors), at_once):
        outcomes = outcomes_of(operations, name, stressors[first : first + at_once], patience)
        if found := wrong(before, settled):
            before = host_state.look()
        for stressor, outcome in outcomes.items():
            yield {"stressor": stressor, "outcome": outcome, "trouble": found}


def wrong(before: host_state.State, settled: float = SETTLED) -> dict[str, Any]:
    """Return the differences between the host and *before*.

    Wait up to *settled* seconds for differences that disappear by themselves.
    """
    found: dict[str, Any] = {}

    def same() -> bool:
        found.clear()
        found.update(host_state.changed(before, host_state.look()))
        return not found

    try:
        until(same, patience=settled)
    except AssertionError:
        return found
    return {}


def reported(profile: str, rows: Iterator[dict[str, Any]]) -> tuple[dict[str, str], dict[str, Any]]:
    """Return outcomes and trouble by stressor; append each row to the file that ``NETSPACE_STRESS_REPORT`` names."""
    outcomes, trouble = {}, {}
    for row in rows:
        outcomes[row["stressor"]] = row["outcome"]
        if row["trouble"]:
            trouble[row["stressor"]] = row["trouble"]
        if REPORT:
            with open(REPORT, "a") as stream:
                stream.write(json.dumps({"profile": profile, **row}) + "\n")
    print(f"{profile}, seed {SEED}: {json.dumps(outcomes, indent=1)}")
    return outcomes, trouble


def main() -> None:
    from netspace.host.host import Host
    from netspace.layout import Layout

    name, number, *stressors = sys.argv[1:]
    # A machine without KVM is ten times slower.
    for row in each(Host(Layout()).operations, name, stressors, 10 * PATIENCE, 12 * SETTLED, int(number)):
        print(json.dumps(row, default=str), flush=True)


if __name__ == "__main__":
    main()
