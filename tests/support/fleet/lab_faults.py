"""A fleet of two hosts in a lab, in which tests roll out plans while something fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.hosts.lab import LAB, Lab
from support.hosts.lab import lab as lab_of
from support.waiting import until

IMAGE = "tar:salt://images/shop.tar"
FLEET = f"""\
hosts:
  h1: {{address: 198.51.100.1}}
  h2: {{address: 198.51.100.2}}
environments:
  web:    {{on: h1, image: "{IMAGE}", command: [/usr/bin/web]}}
  orders: {{on: h2, image: "{IMAGE}", command: [/usr/bin/orders]}}
links:
  - {{from: web, to: orders, pattern: request, seal: true}}
"""
WRONG_CLOCK = """
import runpy, sys, time
real, sys.argv = time.time, ["web", "{seconds}", "seconds"]
time.time = lambda: real() + {seconds}
runpy.run_path("/usr/bin/web", run_name="__main__")
"""
"""``web`` with a clock that is wrong: in the lab, all hosts have the machine's."""


@contextlib.contextmanager
def joined(folder: Path, fleet: str) -> Iterator[Lab]:
    """Run a lab with the fleet's file *fleet*, in which h1 and h2 have joined and are as declared."""
    (folder / "fleet.yaml").write_text(fleet)
    with lab_of(folder / "lab") as made:
        made.do("up", str(folder / "fleet.yaml"))
        made.warm()
        made.runner("netspace_fleet.join", "h1", "h2")
        made.apply()
        made.runner("netspace_fleet.join", "h1", "h2")
        yield made


def plan_of(lab: Lab) -> str:
    """Declare another memory limit for both environments; return the id of the plan, which changes h2 first."""
    changed = FLEET.replace("command: [", "limits: {memory: 96M}, command: [")
    lab.fleet.write_text(f"{changed}apply: planned\nrollout: {{canary: [h2], settle: 0, deadline: 45}}\n")
    plan = lab.runner("netspace_fleet.plan")
    assert plan["counts"]["change"] == 2 and plan["without_plan"] == [], plan
    return str(plan["plan"])


PATIENCE = 600.0
"""Seconds after which a rollout is ended. It prints nothing while it waits, so a test of it would wait for ever."""


class Running:
    """A rollout that runs as a process, and the lines that it has printed."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        self.lines: list[str] = []
        command = [str(LAB), "salt-run", "--out=json", *arguments]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=lab.environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._bell = threading.Timer(PATIENCE, self._end)
        self._bell.daemon = True
        self._bell.start()

    def _end(self) -> None:
        """Kill the command with all processes that it began, which hold its output open, too."""
        self.lines.append(f"killed by the test after {PATIENCE:.0f} s\n")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def read_to(self, beginning: str) -> None:
        """Read the rollout's output until it prints a line that begins with *beginning*."""
        for line in self._output:
            self.lines.append(line)
            if line.startswith(beginning):
                return
        raise AssertionError(f"{beginning} never came: {''.join(self.lines)}")

    def ended(self) -> dict[str, Any]:
        """Wait until the rollout has ended; return its answer, or an empty mapping if it printed no answer."""
        self.lines += self._output
        self._process.wait()
        text = "".join(line for line in self.lines if not line.startswith(("rollout: ", "h1: ", "h2: ")))
        with contextlib.suppress(ValueError):
            found: dict[str, Any] = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
            return found
        return {}

    def good(self) -> set[str]:
        """Return the hosts that the rollout has reported as good."""
        return {host for host in ("h1", "h2") if f"{host}: good\n" in self.lines}

    def close(self) -> None:
        self._bell.cancel()
        self._process.kill()
        self._process.wait()
        self._output.close()


@contextlib.contextmanager
def rolled_out(lab: Lab, plan: str) -> Iterator[Running]:
    with contextlib.closing(Running(lab, "netspace_fleet.rollout", plan, "timeout=30")) as made:
        yield made


def limits(lab: Lab) -> list[str]:
    """Return the memory limit in each host's slice of the declaration, h1's first; ``None`` stands for no limit."""
    slices = [lab.runner("netspace_fleet.slice", host)["netspace"]["environments"] for host in ("h1", "h2")]
    return [str(body.get("limits", {}).get("memory")) for environments in slices for body in environments.values()]


def answers(lab: Lab, host: str, text: str) -> None:
    """Wait until ``orders`` on *host* answers the request *text* of ``web``."""
    wanted = f"orders@{host}: sealed: thank you, web@h1, for the sealed order of {text}"
    until(lambda: lab.asks(text) == wanted, f"orders on {host} answers", patience=300)


def lose_power(lab: Lab, host: str) -> None:
    """Switch a host off as ``lab kill`` does, but at once: a rollout goes on while the command would start."""
    pid = int((lab.folder / host / "pid").read_text().split()[0])
    for _ in range(2):  # the shell's child is unshare, and its child the host's first process
        pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    lab.do("kill", host)


def settle(lab: Lab) -> None:
    """Apply each host's pillar until all states succeed, and check that one more apply has nothing to do.

    After a fault, a broker may still be starting, so that the first apply fails.

    :raises AssertionError: a state goes on failing, or applies again and again.
    """
    until(lambda: not any(lab.apply_failures(host) for host in ("h1", "h2")), "all states succeed", patience=300)
    assert lab.apply() == 0
