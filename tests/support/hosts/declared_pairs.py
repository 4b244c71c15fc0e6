"""Random declarations for one host, with all keys that a declaration may have, and the changes between them.

Some declarations are drawn from nothing. The others are an earlier declaration after some changes: an environment
removed, or renamed, or with its interface swapped for another environment's. Things that only one environment may have
move between environments: an address, a port of the host, a folder, the ends of links, an order.

No declaration contains a value that netspace keeps on purpose after a change, such as an address that netspace chose.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.environments.environment_host import STAY, shell

Declared = dict[str, Any]

NAMES = ("a", "b", "c", "d")
# Links of the host that others own, and that environments' interfaces may use.
PARENT, BRIDGE = "somebodys", "somebridge"
# Of one queue each: with other bounds a link has another queue, and the former one is read until it is empty.
WAYS: tuple[Declared, ...] = (
    {},
    {"pattern": "request"},
    {"length": 10},
    {"pattern": "request", "ttl": 60},
    {"seal": True},
    {"full": "reject", "length": 5, "content_type": "text/plain"},
    {"length": 20, "full": "drop-head", "size": "4K"},
)
PORTS = ("443", "198.51.100.1:53", "8443")
FOLDERS = ("one", "two")


@dataclass
class Draft:
    """A declaration that is not complete yet.

    :param environments: settings by name.
    :param links: the sender's local name for the receiver, by (sender, receiver); empty if the link has none.
    """

    broker: Declared | None
    environments: dict[str, Declared]
    links: dict[tuple[str, str], str] = field(default_factory=dict)


def walk(number: int) -> Iterator[tuple[int, int]]:
    """Yield each ordered pair of the numbers below *number* once; each pair begins with the last pair's second number.

    The pairs of smaller numbers come first. (An Euler circuit of the complete directed graph.)
    """
    for new in range(1, number):
        # From 0 to the new one and back, by way of each other one: 0 new 1 new 2 new ... new 0.
        for old in range(new):
            yield old, new
            yield new, (old + 1) % new


class Chooser:
    """Source of random declarations.

    :param folder: folder of images and volumes.
    :param image: a root with busybox.
    :param brokers: possible values of ``broker``.
    :param kinds: the kinds of interface that this kernel has.
    """

    def __init__(self, seed: int, folder: Path, image: Path, brokers: list[Declared], kinds: list[str]) -> None:
        self._random = random.Random(seed)
        self._folder = folder
        self._images = [f"dir:{image}"]
        self._brokers = brokers
        self._kinds = kinds

    def several(self, number: int) -> list[Declared]:
        """Draw *number* different declarations.

        With the same seed, a larger *number* gives the same declarations first.
        """
        drafts = [self._draft()]
        made = [self._declared(drafts[0])]
        while len(made) < number:
            draft = self._draft() if self._often(0.4) else self._changed(self._choose(drafts))
            declared = self._declared(draft)
            if declared not in made:
                drafts.append(draft)
                made.append(declared)
        return made

    # -- a whole one ---------------------------------------------------------------------
    def _draft(self) -> Draft:
        names = [name for name in NAMES if self._often(0.6)] or [NAMES[0]]  # without any, images stay
        made = Draft(self._broker(), {name: self._environment(name) for name in names})
        for one, other in itertools.permutations(names, 2):
            if self._often(0.3):
                made.links[one, other] = self._local_name()
        return made

    def _broker(self) -> Declared | None:
        return self._choose(self._brokers) if self._often(0.9) else None

    def _local_name(self) -> str:
        return "peer" if self._often(0.2) else ""

    def _environment(self, name: str) -> Declared:
        choose = self._choose
        found: Declared = {
            "image": choose(self._images),
            "command": shell(STAY),
            "stop_timeout": 1,
            "env": {"TURN": choose(("1", "2"))},
            "user": choose((1000, 1001)),
            "read_only": choose((True, False)),
            "seccomp": choose(("strict", "standard")),
            "restart": choose(("always", "on-failure")),
            "init": self._often(0.3),
            "limits": {"pids": choose((64, 128)), "memory": choose(("64M", "96M")), "files": choose((512, 1024))},
            "interface": self._interface(),
        }
        if self._often(0.25):
            found["state"] = "stopped"
        if self._often(0.2):
            found["working_dir"] = "/bin"
        if self._often(0.15):
            found["limits"]["tmp"] = "8M"
        if self._often(0.15):
            found["health"] = {"exec": ["/bin/true"], "interval": choose((5, 10))}
        if self._often(0.15):
            found["update"] = {"rolling": False}
        if self._often(0.15):
            found["volumes"] = [{"target": "/kept", "size": "16M"}]
        if self._often(0.4):
            found["wants"] = choose(FOLDERS)
        if self._often(0.3):
            found["follows"] = choose(NAMES)
        return found

    def _interface(self) -> Declared:
        choose = self._choose
        if self._often(0.3):
            return {"kind": "none"}
        kind = choose(self._kinds)
        found: Declared = {"kind": kind, "place": choose(range(1, 6))}
        if self._often(0.5):
            found["allow"] = [{"direction": "out", "cidr": "198.51.100.0/24", "port": choose((80, 443))}]
        if self._often(0.3):
            found["connections"] = choose((512, 1024))
        if self._often(0.3):
            found["rate"] = choose(("10M", "20M"))
        if kind in ("veth", "tap") and self._often(0.5):
            found["publish"] = [f"{choose(PORTS)}:{choose(('8080', '8443', '53/udp'))}"]
        if kind == "macvlan":
            found.update(parent=PARENT, mode=choose(("private", "vepa")))
        elif kind == "bridge":
            found.update(bridge=BRIDGE, isolated=choose((True, False)))
        elif kind == "vxlan":
            found.update(remote=choose(("198.51.100.2", "198.51.100.3")))
        return found

    # -- changes -------------------------------------------------------------------------
    def _changed(self, first: Draft) -> Draft:
        made = copy.deepcopy(first)
        changes = (
            *(self._leave, self._rename, self._rename, self._trade_names, self._trade_interfaces, self._flip),
            *(self._redraw, self._redraw_interface, self._relink, self._relink, self._move_broker, self._join),
        )
        for _ in range(self._random.randint(1, 3)):
            self._choose(changes)(made)
        return made

    def _leave(self, made: Draft) -> None:
        if len(made.environments) > 1:
            self._without(made, self._choose(sorted(made.environments)))

    def _without(self, made: Draft, name: str) -> None:
        del made.environments[name]
        made.links = {ends: local for ends, local in made.links.items() if name not in ends}

    def _join(self, made: Draft) -> None:
        if free := sorted(set(NAMES) - made.environments.keys()):
            made.environments[free[0]] = self._environment(free[0])

    def _rename(self, made: Draft) -> None:
        if free := sorted(set(NAMES) - made.environments.keys()):
            self._named(made, {self._choose(sorted(made.environments)): self._choose(free)})

    def _trade_names(self, made: Draft) -> None:
        if len(made.environments) > 1:
            one, other = self._random.sample(sorted(made.environments), 2)
            self._named(made, {one: other, other: one})

    def _named(self, made: Draft, names: dict[str, str]) -> None:
        made.environments = {names.get(name, name): one for name, one in made.environments.items()}
        made.links = {
            (names.get(one, one), names.get(other, other)): local for (one, other), local in made.links.items()
        }

    def _trade_interfaces(self, made: Draft) -> None:
        if len(made.environments) > 1:
            one, other = (made.environments[name] for name in self._random.sample(sorted(made.environments), 2))
            one["interface"], other["interface"] = other["interface"], one["interface"]

    def _flip(self, made: Draft) -> None:
        one = made.environments[self._choose(sorted(made.environments))]
        one["state"] = "running" if one.get("state") == "stopped" else "stopped"

    def _redraw(self, made: Draft) -> None:
        name = self._choose(sorted(made.environments))
        made.environments[name] = self._environment(name)

    def _redraw_interface(self, made: Draft) -> None:
        made.environments[self._choose(sorted(made.environments))]["interface"] = self._interface()

    def _relink(self, made: Draft) -> None:
        ends = list(itertools.permutations(sorted(made.environments), 2))
        if ends:
            chosen = self._choose(ends)
            if chosen in made.links:
                del made.links[chosen]
            else:
                made.links[chosen] = self._local_name()

    def _move_broker(self, made: Draft) -> None:
        made.broker = self._broker()

    # -- as a declaration -------------------------------------------------------------------
    def _declared(self, draft: Draft) -> Declared:
        """Return a declaration that a host accepts: if several environments claim the same thing, the first gets it."""
        made: Declared = {"attestation": {"policy": "off"}, "environments": {}}
        taken: set[str] = set()
        names = sorted(draft.environments)
        for place, name in enumerate(names):
            one = copy.deepcopy(draft.environments[name])
            self._place(one["interface"], taken)
            wanted, followed = one.pop("wants", None), one.pop("follows", None)
            if wanted is not None and wanted not in taken:
                taken.add(wanted)
                source = self._folder / "volumes" / wanted
                one["volumes"] = [*one.get("volumes", []), {"source": str(source), "target": "/data"}]
            # Who is stopped is never healthy, so whoever follows would wait for ever.
            if followed in names[:place] and draft.environments[followed].get("state") != "stopped":
                one["after"] = [followed]
            made["environments"][name] = one
        if draft.broker is not None:
            made["broker"] = draft.broker
            made["links"] = [self._link(one, other, local) for (one, other), local in sorted(draft.links.items())]
            self._tell_apart(made["links"])
        return made

    def _link(self, one: str, other: str, local: str) -> Declared:
        way = WAYS[(NAMES.index(one) + 2 * NAMES.index(other)) % len(WAYS)]
        return {"from": one, "to": other, **way, **({"as": local} if local else {})}

    def _tell_apart(self, links: list[Declared]) -> None:
        """Remove links until no sender uses the same name for two receivers."""
        seen: set[tuple[str, str]] = set()
        for link in links:
            if "as" in link:
                if (link["from"], link["as"]) in seen:
                    del link["as"]
                else:
                    seen.add((link["from"], link["as"]))

    def _place(self, interface: Declared, taken: set[str]) -> None:
        """Give an interface addresses and ports that no other interface has."""
        place = interface.pop("place", None)
        if place is None:
            return
        kind = interface["kind"]
        network = {"veth": "10.203.77", "tap": "10.203.77", "macvlan": "198.51.100", "bridge": "192.0.2"}
        host = next(one for one in itertools.chain([place], range(1, 10)) if f"{kind} {one}" not in taken)
        if kind in ("veth", "tap"):
            host = next(one for one in itertools.chain([place], range(1, 10)) if f"veth {one}" not in taken)
            taken.add(f"veth {host}")
            interface["ipv4"] = f"{network[kind]}.{host}"
        elif kind == "vxlan":
            interface.update(id=host, ipv4=f"10.9.{host}.7/24")
        else:
            interface["ipv4"] = f"{network[kind]}.{host + 10}/24"
        taken.add(f"{kind} {host}")
        if "publish" in interface:
            port = interface["publish"][0].rpartition(":")[0]
            if f"port {port}" in taken:
                del interface["publish"]
            else:
                taken.add(f"port {port}")

    # -- chance ----------------------------------------------------------------------------
    def _often(self, share: float) -> bool:
        return self._random.random() < share

    def _choose(self, things: Any) -> Any:
        return self._random.choice(things)
