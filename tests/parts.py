"""Run the tests in parts, some of them at once.

    tests/parts.py [--at-once N] unit|functional|integration|vm...

Each part has its own Salt and its own host (scripts/sandbox); unit tests need no root and no host. The output of a part
is shown when the part ends. Exits with 1 if a part failed; the last line names the failed parts.

Tests in virtual machines take a third of all processor time. So by default only a fourth of their parts run, another
fourth each day. All of them run if no other folder is chosen (scripts/test vm), or with NETSPACE_MACHINES=all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support import sampling

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / ".cache/tests"


def files(form: str, names: str) -> list[str]:
    """Return the paths of test files whose names differ in one word."""
    return [f"tests/{form.format(name)}.py" for name in names.split()]


HOST, LINK = "functional/host/test_host_{}", "functional/link/test_link_{}"
VM, WHOLE, FLEET = "vm/test_vm_{}", "integration/test_{}", "integration/test_{}_fleet"

# By name: where its tests lie, but for what another part has below there.
PARTS = {
    "unit": {
        "unit-attestation": ["tests/unit/attestation"],
        "unit-objects": [f"tests/unit/{what}" for what in ("environment", "interface", "link", "fleet")],
        "unit": ["tests/unit", "client/tests"],
    },
    "functional": {
        "links-afar": files(LINK, "remote remote_memory buffered shared sealed_hosts renaming"),
        # Each with a broker of its own, or without one.
        "links-own": files(
            LINK,
            "archive archive_hostile cluster deaf entrance every_pair floods names parked "
            "ports probes stand_in upgrade",
        ),
        "links": ["tests/functional/link"],
        "host-killed": files(HOST, "faults crash"),
        "host-peer": files(
            HOST, "peer spawn delegate secrets tenants services seals mailbox rolling stopped trust explained"
        ),
        "host": ["tests/functional/host"],
        "environments": ["tests/functional/environment"],
        "salt": ["tests/functional/salt"],
        "functional": ["tests/functional"],
    },
    "integration": {
        "fleets": [
            *files(FLEET, "attestation registrar seals targets secrets"),
            "tests/integration/test_attestation_schedule.py",
        ],
        "lab": files(WHOLE, "lab lab_between"),
        "lab-tpm": files(WHOLE, "lab_tpm lab_faults"),
        "integration": ["tests/integration"],
    },
    "vm": {
        "vm-attestation": files(VM, "attestation"),
        "vm-supervision": files(VM, "supervision reboot runtimes lower_levels"),
        "vm-kinds": files(VM, "images interfaces apparmor stress"),
        "vm": ["tests/vm"],
    },
}
# Long parts first, so that the last ones end at about the same time. Machines need a processor each, all the time:
# no more than two of those parts meet.
ORDER = (
    *("vm-attestation", "vm-supervision", "lab", "integration", "links", "host", "vm", "vm-kinds"),
    *("lab-tpm", "salt", "environments", "host-peer", "links-own", "unit-objects", "unit", "fleets"),
    *("links-afar", "functional", "unit-attestation", "host-killed"),
)

# By folder: what must be made before its tests, outside the sandbox, which has no network. Without runtimetest one test
# is skipped and says so.
MADE = {
    "tests/functional/environment": "{ scripts/runtimetest || true; }",
    "tests/vm": "scripts/vm --build",
}

# Parts of machines, and a lab of its own: those in one place run on one day, those in the next on the next.
TURNS = (("vm-attestation",), ("vm-supervision",), ("vm-kinds", "lab-tpm"), ("vm",))

# Files by turns of the same kind: each follows pages, a command or a setting, and other tests need what these use every
# day. The four days, machines included, take about as long as each other.
FILES = (
    (
        *files(FLEET, "attestation"),
        *files(HOST, "services delegate"),
        *files(LINK, "budget histories"),
    ),
    (
        *files(WHOLE, "lab demo_hosts demo_programs systemd_kernel"),
        *files(FLEET, "seals"),
        *files(HOST, "tenants"),
        *files(LINK, "cluster upgrade"),
    ),
    (
        *files(WHOLE, "day_two systemd_whole_host"),
        *files(FLEET, "targets"),
        *files(HOST, "mailbox other_tools"),
        *files(LINK, "archive sealed_hosts"),
    ),
    (
        *files(WHOLE, "lab_between attestation_schedule"),
        *files(FLEET, "secrets registrar"),
        *files(HOST, "explained stopped planned"),
        *files(LINK, "buffered parked renaming shared"),
        "tests/functional/salt/test_install.py",
    ),
)


def of_another_day(folders: list[str], day: int | None) -> list[str]:
    """Return the files of FILES that don't run on this day. Parameters as for :func:`in_order`."""
    if day is None or len(folders) == 1:
        return []
    return sorted({file for turn in FILES for file in turn}.difference(FILES[day % len(FILES)]))


def command(paths: list[str], others: list[str]) -> list[str]:
    """Return the command that runs the tests at *paths*, except those in *others*."""
    left_out = [f"--ignore={other}" for other in others if any(other.startswith(f"{path}/") for path in paths)]
    host = [] if paths[0].startswith("tests/unit") else ["scripts/sandbox"]
    for folder, made in MADE.items():
        if any(f"{path}/".startswith(f"{folder}/") for path in paths):
            host = ["sh", "-c", f'{made} && exec scripts/sandbox "$@"', "sh"]
    slowest = ["--durations=12", "--durations-min=5"]
    return [*host, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *slowest, *left_out, *paths]


class Runner:
    """A runner of parts. A signal to end kills all parts that still run."""

    def __init__(self, shared: Path) -> None:
        self._shared = shared
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, name: str, argv: list[str]) -> bool:
        """Run one part, then print its output; return whether it passed."""
        log, home, noted = LOGS / f"{name}.log", LOGS / f"salt-{name}", LOGS / f"{name}.used"
        noted.unlink(missing_ok=True)
        began = time.monotonic()
        self._say(f"== {name} begins")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                argv,
                cwd=ROOT,
                env={
                    **os.environ,
                    "NETSPACE_SALT_HOME": str(home),
                    "NETSPACE_TEST_RUN": str(self._shared),
                    "NETSPACE_USED": str(noted),
                },
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
            with self._lock:
                self._running.add(process)
            _, status, used = os.wait4(process.pid, 0)
            code = process.returncode = os.waitstatus_to_exitcode(status)
        shutil.rmtree(home, ignore_errors=True)
        with self._lock:
            self._running.discard(process)
            sys.stdout.write(log.read_text(errors="replace"))
            sys.stdout.flush()
        took, busy = time.monotonic() - began, used.ru_utime + used.ru_stime
        if noted.exists():  # by the sandbox: what was killed at its end counts, too
            busy = max(busy, int(noted.read_text()) / 1000)
        self._say(f"== {name}: {'passed' if code == 0 else 'FAILED'} in {took:.0f} s, {busy:.0f} s of a processor")
        return code == 0

    def end(self, *_: object) -> None:
        for process in list(self._running):
            os.killpg(process.pid, signal.SIGTERM)
        shutil.rmtree(self._shared, ignore_errors=True)
        os._exit(1)

    def _say(self, text: str) -> None:
        with self._lock:
            print(text, file=sys.stderr, flush=True)


def in_order(folders: list[str], day: int | None = None) -> dict[str, list[str]]:
    """Return the parts of *folders* and their paths, in the order in which they begin.

    :param day: number of the day, which selects parts of virtual machines, and files; None: all of them run.
    """
    other_files = of_another_day(folders, day)
    chosen = {
        name: today
        for folder in folders
        for name, paths in PARTS[folder].items()
        if (today := [path for path in paths if path not in other_files])
    }
    if day is not None and len(folders) > 1:
        others = [name for turn in TURNS if turn != TURNS[day % len(TURNS)] for name in turn]
        chosen = {name: paths for name, paths in chosen.items() if name not in others}
    return {name: chosen[name] for name in sorted(chosen, key=ORDER.index)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("folder", nargs="+", choices=sorted(PARTS))
    arguments = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    day = None if os.environ.get("NETSPACE_MACHINES") == "all" else sampling.today()
    chosen = in_order(arguments.folder, day)
    # Those of parts that another day has, too: else a part with a whole folder would run them.
    everything = [path for parts in PARTS.values() for paths in parts.values() for path in paths]
    everything += of_another_day(arguments.folder, day)
    shared = Path(tempfile.mkdtemp(prefix="netspace-tests-", dir="/var/tmp"))  # what parts share, such as snapshots
    runner = Runner(shared)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, runner.end)
    with ThreadPoolExecutor(arguments.at_once) as pool:
        passed = dict(
            zip(chosen, pool.map(lambda name: runner.run(name, command(chosen[name], everything)), chosen), strict=True)
        )
    shutil.rmtree(shared)
    failed = [name for name, good in passed.items() if not good]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
