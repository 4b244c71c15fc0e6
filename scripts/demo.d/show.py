"""The demonstration of ``scripts/demo``, step by step, through ``scripts/salt-call``.

This script changes nothing itself, and reads only Salt's returns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SALT = Path(__file__).resolve().parents[1] / "salt-call"
ROWS = ("_|-present", "_|-absent")
"""Ends of the keys of a state's rows."""
COLOUR = sys.stdout.isatty()
WIDTH = 80
SENDERS = ("web", "till")
"""The environments that send to orders in the demo's declaration."""


class Failed(Exception):
    """Error: a step of the demo failed; the message has the reason."""


def paint(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def say(text: str = "") -> None:
    print(text, flush=True)


def tell_line(text: str) -> None:
    """Print a sentence of a step, in lines that fit a terminal."""
    lines = textwrap.wrap(text, WIDTH, initial_indent=" " * 3, subsequent_indent=" " * 5, break_on_hyphens=False)
    say("\n".join(lines))


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print a heading, and the duration of the context."""
    started = time.monotonic()
    say(paint(f"\n== {title}", "1"))
    yield
    say(paint(f"   ({time.monotonic() - started:.1f} s)", "2"))


def salt(*arguments: str) -> Any:
    """Call a Salt function; return its result.

    :raises Failed: Salt itself failed.
    """
    command = [str(SALT), "--out", "json", "--log-level", "error", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        return json.loads(done.stdout)["local"]
    except (ValueError, KeyError) as err:
        raise Failed(f"salt-call {' '.join(arguments)}: {done.stdout.strip() or f'exit {done.returncode}'}") from err


def shown(*arguments: str) -> None:
    """Call a Salt function and let Salt print its result, as on any terminal.

    :raises Failed: the function failed.
    """
    command = [str(SALT), "--log-level", "error", *arguments]
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
        raise Failed(f"salt-call {' '.join(arguments)}: failed")


def apply() -> dict[str, dict[str, Any]]:
    """Apply the declaration; return the states' results.

    :raises Failed: a state failed; the error has the state's comment.
    """
    result = salt("state.apply", "netspace")
    if not isinstance(result, dict):
        raise Failed("\n".join(map(str, result if isinstance(result, list) else [result])))
    states = {state["__id__"]: state for tag, state in result.items() if not tag.endswith(ROWS)}
    bad = [f"{name}: {state['comment']}" for name, state in states.items() if state["result"] is not True]
    if bad:
        raise Failed("\n".join(bad))
    return states


def tell(states: dict[str, dict[str, Any]]) -> bool:
    """Print the comment of each state that changed something; return whether a state did."""
    changed = {name: state["comment"] for name, state in states.items() if state["changes"]}
    for name, comment in changed.items():
        say(f"   {name}: {comment}".replace("\n", "\n   "))
    return bool(changed)


def inside(environment: str, *command: str) -> dict[str, Any]:
    """Run a command inside an environment; return its result."""
    result = salt("netspace_environment.exec", environment, json.dumps(command))
    if not isinstance(result, dict):
        raise Failed(f"{environment}: {result}")
    return result


def until(done: Callable[[dict[str, Any]], bool], *command: str, seconds: float = 20) -> dict[str, Any]:
    """Run a command inside an environment until *done* accepts its result, because its peer may still be starting."""
    end = time.monotonic() + seconds
    while True:
        result = inside(*command)
        if done(result) or time.monotonic() > end:
            return result
        time.sleep(0.5)


def python(script: str, *arguments: str) -> list[str]:
    return ["/usr/bin/python3", f"/demo/{script}", *arguments]


def request() -> None:
    """Send a request over a declared link."""
    result = until(lambda result: result["retcode"] == 0, "web", *python("web.py", "3 pears"))
    say("   web asks orders for '3 pears'")
    if result["retcode"] != 0:
        raise Failed(f"no answer: {result['stdout']}{result['stderr']}")
    say(f"   orders answers: {result['stdout'].strip()}")


def refusal() -> None:
    """Try to send a message without a link, and print the broker's refusal.

    :raises Failed: the message was sent, or could not be tried.
    """
    result = inside("till", *python("till.py", "web", "psst"))
    if result["retcode"] == 0:
        raise Failed("the broker took a message from till to web, which no link of the demo allows")
    if "refused" not in result["stdout"]:
        raise Failed(f"till could not try to send: {result['stdout']}{result['stderr']}")
    say("   till sends to web, which no link declares")
    tell_line(f"the broker: {result['stdout'].strip()}")


def check_pillar() -> None:
    """Check that the pillar declares what the demo shows, before anything is changed.

    :raises Failed: it doesn't.
    """
    try:
        found = salt("netspace.paths_to", "orders", "declared=True")  # Salt masks the values of a pillar
    except Failed:  # orders isn't declared; Salt has reported it
        found = {}
    paths = found.get("paths", ()) if isinstance(found, dict) else ()
    senders = {path["from"] for path in paths if not (path["through"] or path["answers"])}
    if not senders.issuperset(SENDERS):
        raise Failed(
            "this pillar isn't the demo's: in it, web and till may not both send to orders. Nothing was changed. For "
            "the demo, remove the setting pillar_roots from the files in .cache/salt/etc/minion.d/. To apply this "
            "pillar: scripts/salt-call state.apply netspace"
        )


def up() -> None:
    check_pillar()
    with step("Apply the declaration (pillar/netspace/demo.sls)"):
        say("   salt-call state.apply netspace")
        if not tell(apply()):
            say("   nothing to do: everything is as declared")
    with step("What there is now (salt-call netspace.overview)"):
        shown("netspace.overview")
    with step("A request along a declared link"):
        request()
    with step("A message that no link declares"):
        refusal()
    with step("Apply again"):
        if tell(apply()):
            raise Failed("the second apply changed something")
        say("   nothing to do: everything is as declared")
    say("\nLook around:  sudo scripts/salt-call netspace.overview")
    say("Remove it:    sudo scripts/demo --down")


def down() -> None:
    with step("Remove everything (salt-call netspace.teardown)"):
        result = salt("netspace.teardown")
        if not isinstance(result, dict) or result.get("result") is not True:
            raise Failed(result.get("comment") if isinstance(result, dict) else str(result))
        for name, changes in result["changes"].items():
            tell_line(f"{name}: {', '.join(changes)}")
        if not result["changes"]:
            say("   nothing was there")
    left = leftovers()
    if left:
        raise Failed("still there:\n  " + "\n  ".join(left))
    say("   no process, namespace, mount, packet filter, cgroup or file of it is left")


def leftovers() -> list[str]:
    """Return all traces of the instance 'netspace' on this host."""
    folders = [Path("/run/netspace"), *Path("/var/lib").glob("netspace*"), Path("/var/log/netspace")]
    # A mount point stays where it is, empty.
    left = [str(path) for path in folders if path.exists() and not (path.is_mount() and not any(path.iterdir()))]
    left += [str(path) for path in Path("/run/netns").glob("netspace-*")]
    # By the supervisor's name in any hierarchy, or systemd's slice. (A test's sandbox has a cgroup beside it.)
    for pattern in ("netspace", "*/netspace", "netspace.slice", "*/netspace.slice"):
        left += [str(path) for path in Path("/sys/fs/cgroup").glob(pattern)]
    left += [str(path) for path in Path("/etc/systemd/system").glob("**/netspace*")]
    left += [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/netspace/" in line]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    left += [line for line in tables.splitlines() if line.split()[-1].startswith("netspace")]
    left += [f"process {pid}: {command}" for pid, command in _processes() if "/var/lib/netspace" in command]
    return left


def _processes() -> Iterator[tuple[str, str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.parent.name, path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue


def folded(text: str) -> str:
    """Return *text* in lines that fit a terminal; its own ends of lines stay."""
    lines = [textwrap.wrap(line, WIDTH, break_on_hyphens=False) or [""] for line in text.splitlines()]
    return "\n".join(line for wrapped in lines for line in wrapped)


def run(work: Callable[[], None]) -> int:
    """Run *work*; return the exit status, and print the problem if it failed."""
    try:
        work()
    except Failed as err:
        say(paint(f"\n{folded(f'demo: {err}')}", "31"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(down if "--down" in sys.argv[1:] else up))
