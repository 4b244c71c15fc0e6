"""The lab's switch: a network namespace with a bridge, to which every host has a cable."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from hosts import PATIENCE, Host
from processes import Failed, launch, remembered, run, works

BRIDGE = "lab"
CABLE = "eth0"
# Packets between two addresses of a set are dropped, whichever way they go. ARP passes: a switch knows who is there.
TABLE = """\
table bridge lab {
  set cut { type ipv4_addr . ipv4_addr; }
  set cut6 { type ipv6_addr . ipv6_addr; }
  chain forward {
    type filter hook forward priority 0;
    ip saddr . ip daddr @cut drop
    ip6 saddr . ip6 daddr @cut6 drop
  }
}
"""


class Switch:
    """The switch of the lab in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._pid = folder / "switch.pid"

    def start(self, lock: int) -> None:
        """Start the switch; existing parts of it are kept.

        :param lock: descriptor of the lab's lock.
        """
        launched = None
        if not remembered(self._pid):
            launched = launch(self._pid, ["unshare", "--net", "sleep", "infinity"], lock)
        deadline = time.monotonic() + PATIENCE
        # It is there once it has become sleep: then its namespace is its own.
        while _program(remembered(self._pid)) != "sleep":
            ended = not remembered(self._pid) and (launched is None or launched.poll() is not None)
            if ended or time.monotonic() > deadline:
                raise Failed("switch: it did not start")
            time.sleep(0.01)
        if not works(*self._inside, "ip", "link", "show", "dev", BRIDGE):
            run(*self._inside, "ip", "link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0")
        for device in (BRIDGE, "lo"):  # machines' shells listen at lo
            run(*self._inside, "ip", "link", "set", "dev", device, "up")
        if not works(*self._inside, "nft", "list", "table", "bridge", "lab"):
            run(*self._inside, "nft", "-f", "-", text=TABLE)

    def stop(self) -> None:
        """Stop the switch; its namespace ends with it."""
        pid = remembered(self._pid)
        if pid:
            subprocess.run(["kill", "-KILL", str(pid)], check=False)
        self._pid.unlink(missing_ok=True)

    def connect(self, host: Host, address: str) -> None:
        """Connect a host to the switch, if this isn't done yet; give it its *address*, unless it is a machine."""
        if host.shares_kernel:
            self._lay_cable(host, address)
        run(*self._inside, "ip", "link", "set", "dev", host.name, "master", BRIDGE, "up")

    def _lay_cable(self, host: Host, address: str) -> None:
        """Make a veth pair between a host and the switch, and give the host its *address*."""
        first, pid = str(host.init()), str(remembered(self._pid))
        inside = ["nsenter", f"--target={first}", "--net", "ip"]
        if not works(*inside, "link", "show", "dev", CABLE):
            self._await_free(host.name)
            ends = ["netns", first, "type", "veth", "peer", "name", host.name, "netns", pid]
            run("ip", "link", "add", CABLE, *ends)
        six = ":" in address
        # Every other address is reached by the switch, or not at all.
        run(*inside, "address", "replace", f"{address}/{128 if six else 32}", "dev", CABLE, *(["nodad"] if six else []))
        run(*inside, "link", "set", "dev", CABLE, "up")
        run(*inside, *(["-6"] if six else []), "route", "replace", "default", "dev", CABLE)

    def _await_free(self, name: str) -> None:
        """Wait until a host's old veth pair is gone. The kernel removes it some time after the host's processes."""
        deadline = time.monotonic() + PATIENCE
        while works(*self._inside, "ip", "link", "show", "dev", name):
            if time.monotonic() > deadline:
                raise Failed(f"{name}: its former cable stays; repeat the command")
            time.sleep(0.05)

    def cut(self, one: str, other: str) -> None:
        """Drop all packets between two addresses from now on."""
        self._change("add", one, other)

    def mend(self, one: str, other: str) -> None:
        """Let packets between two addresses pass again."""
        if (one, other) in self.cuts():
            self._change("delete", one, other)

    def cuts(self) -> set[tuple[str, str]]:
        """Return the pairs of addresses between which packets are dropped, each pair in both orders."""
        listed = json.loads(run(*self._inside, "nft", "--json", "list", "table", "bridge", "lab"))["nftables"]
        elements = [element for part in listed for element in part.get("set", {}).get("elem", [])]
        return {tuple(element["concat"]) for element in elements}

    def _change(self, verb: str, one: str, other: str) -> None:
        if (":" in one) != (":" in other):
            return  # they have no address family in common
        name = "cut6" if ":" in one else "cut"
        change = f"{verb} element bridge lab {name} {{ {one} . {other}, {other} . {one} }}\n"
        run(*self._inside, "nft", "-f", "-", text=change)

    @property
    def _inside(self) -> list[str]:
        """Return the beginning of a command that runs in the switch's namespace."""
        pid = remembered(self._pid)
        if not pid:
            raise Failed("no lab is up; start one: lab up")
        return ["nsenter", f"--target={pid}", "--net"]


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
