"""Snapshots of a host, to compare its states before and after."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from support.rulesets import uncounted
from support.waiting import PATIENCE, until

STATE = (Path("/var/lib/netspace"), Path("/run/netspace"), Path("/var/log/netspace"))


def _run(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def files(*roots: Path) -> dict[str, tuple[int, ...]]:
    """Return every file below *roots* (without mounted file systems), with the metadata that a write would change."""
    found: dict[str, tuple[int, ...]] = {}
    for root in roots:
        if not root.exists():
            continue
        device = root.stat().st_dev
        for folder, folders, names in os.walk(root):
            there: dict[str, os.stat_result] = {}
            for name in [*folders, *names]:
                with contextlib.suppress(FileNotFoundError):  # gone since
                    there[name] = os.lstat(os.path.join(folder, name))
            folders[:] = [name for name in folders if name in there and there[name].st_dev == device]
            for name in [*folders, *names]:
                if info := there.get(name):
                    path = os.path.join(folder, name)
                    found[path] = (info.st_ino, info.st_mode, info.st_uid, info.st_size, info.st_mtime_ns)
    return found


def processes() -> dict[int, str]:
    """Return every process except kernel threads, by command line."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if command or state == "Z":
                found[int(entry)] = command if state != "Z" else "a zombie"
    return found


def _owner(path: str) -> tuple[int, int, int]:
    info = os.stat(path)
    return info.st_uid, info.st_gid, info.st_mode


def host() -> dict[str, object]:
    """Return all parts of a host in which netspace could leave something."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    cgroups = [os.path.join(folder, name) for folder, folders, _ in os.walk("/sys/fs/cgroup") for name in folders]
    return {
        "mounts": sorted(f"{fields[4]} {fields[fields.index('-') + 1]}" for fields in mounts),
        "namespaces": sorted(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else [],
        "interfaces": sorted(line.split(":")[1].strip() for line in _run("ip", "-o", "link")),
        # Sorted: the kernel lists multicast routes in the order in which their devices came up.
        "routes": sorted(
            [
                *_run("ip", "-4", "route", "show", "table", "all"),
                *_run("ip", "-6", "route", "show", "table", "all"),
            ]
        ),
        "nftables": uncounted("\n".join(_run("nft", "list", "ruleset"))).split("\n"),
        "processes": sorted(processes().values()),
        "cgroups": sorted(cgroups),
        "devices": [(name, *_owner(f"/dev/{name}")) for name in ("null", "zero", "full", "random", "urandom", "tty")],
        "ipv4 forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "files": sorted(
            files(Path("/run"), Path("/var/lib/netspace"), Path("/var/log/netspace"), Path("/etc/systemd"))
        ),
    }


def rested(look: Callable[[], dict[str, Any]] = host) -> dict[str, Any]:
    """Return a snapshot once it hasn't changed for two seconds, so that ending processes are gone."""
    before, since = look(), time.monotonic()
    deadline = since + PATIENCE
    while time.monotonic() - since < 2:
        assert time.monotonic() < deadline, "it doesn't come to rest"
        time.sleep(0.3)
        now = look()
        if now != before:
            before, since = now, time.monotonic()
    return before


def settled(wanted: Mapping[str, object]) -> dict[str, object]:
    """Take snapshots for a while, until one equals *wanted*, since processes take time to end.

    Return the last snapshot.
    """
    looks: list[dict[str, object]] = []

    def as_wanted() -> bool:
        looks[:] = [host()]
        return looks[0] == wanted

    with contextlib.suppress(AssertionError):  # whoever compares tells what differs
        until(as_wanted, pause=0.1)
    return looks[0]
