"""A forger of enrolments: random attacks by root on two hosts on the messages to a registrar.

The forger is root on ``web1``, whose TPM is T1, and on ``web3``, which has no TPM. He owns T3, a genuine TPM from
another machine, and any number of software keys. ``web2`` with T2 is honest; the forger sees all messages of ``web2``.
A genuine TPM makes keys with any attributes, states each key's true attributes, and opens credentials only for its own
keys.

A scene is a few enrolments, each with changes to its messages, and an operator's actions between them. :func:`moves`
draws a scene. :func:`play` plays the scene against a real registrar and returns the forger's undeserved gain, or an
empty text. :func:`shortest` removes every part of a scene that the gain does not need.

For a minion that never had a TPM, the forger may get L2 with any TPM or software, since the first key is pinned. Each
of these outcomes counts as an undeserved gain:

- L3 for a key that no genuine TPM holds, or that could sign data that the TPM did not make;
- another TPM for a minion that has a TPM;
- a TPM that another minion has, if that minion was enrolled honestly, or there is an inventory;
- a key that another minion has, or a key that the last certificate of the forger's minion was for;
- the honest ``web2`` can't enrol;
- an exception other than a refusal.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netspace.attestation.endorsement.makers import Makers
from netspace.attestation.registrar.registrar import Registrar
from netspace.attestation.tpm import structures
from netspace.errors import NetspaceError
from support.attestation.enrolment_material import GOOD, NOW, Material, Tpm, Unknown, certificate

MASTER = "ab" * 32
MINE = ("web1", "web3")
# What an attestation key must be, and what else a TPM would make: not restricted, not fixed to it, for decryption, ...
ATTRIBUTES = (GOOD, 0x00040072, 0x00050070, 0x00050062, 0x00050052, 0x00070072, 0x00050872, 0x00010072, 0x00050076)
# fixedTPM, fixedParent, sensitiveDataOrigin, restricted and sign; neither decrypt nor encryptedDuplication.
NEEDED, FORBIDDEN = 0x00050032, 0x00020800
EKS = ("T1.ecc", "T1.rsa", "T2.ecc", "T2.rsa", "T3.ecc", "T3.rsa", "S.ecc", "S.rsa")
CHANGES = {
    "ek": (*EKS, "even", "twos", "signs", "policy", "nothing", "cut"),
    "cert": (*EKS, "none", "forged", "forged-key", "flipped", "padded", "nothing", "ca"),
    "chain": ("none", "maker", "forged", "forged+maker", "junk", "twice", "leaf"),
    "ak": ("T1", "T3", "S", "other", "last", "first", "web2", "rsa", "claimed", "flipped", "nothing"),
    "others": ("none", "all", "T2", "T3", "main", "S", "junk"),
    "period": ("none", "last", "random"),
    "template": ("EK-RSA2048", "X"),
    "wire": ("web2", "last", "text", "list"),
    "answer": ("zeros", "last", "web2", "as-web1", "as-web2", "other-master", "first-only", "other-name", "none"),
}


@dataclass(frozen=True)
class Move:
    """A step of a scene: an enrolment, or an operator's action.

    :param kind: ``forge``, ``honest``, ``renew`` (enrol again with the stock client), ``release``, ``revoke``.
    :param changes: names of the changes to the messages of this step.
    """

    kind: str
    minion: str
    source: str = ""
    changes: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in self.changes)
        return (
            f"{self.kind} {self.minion}"
            + (f" with {self.source}" if self.source else "")
            + (f": {told}" if told else "")
        )


def moves(chance: random.Random) -> list[Move]:
    """Draw the moves of a random scene."""
    scene: list[Move] = []
    for _ in range(chance.randint(1, 5)):
        kind = chance.choices(("forge", "honest", "release", "revoke"), (12, 4, 1, 1))[0]
        if kind == "honest":
            scene.append(Move("honest", *chance.choice((("web1", "T1"), ("web2", "T2")))))
        elif kind != "forge":
            scene.append(Move(kind, chance.choice(MINE)))
        else:
            fields = chance.sample(sorted(CHANGES), chance.choice((0, 1, 1, 2, 2, 3)))
            changes = tuple((one, chance.choice(CHANGES[one])) for one in fields)
            source = chance.choice(("T1.ecc", "T1.rsa", "T3.ecc", "T3.rsa", "S.ecc", "S.rsa"))
            scene.append(Move("forge", chance.choice(MINE), source, changes))
    return scene


class Scene:
    """One registrar, with the forger's knowledge and keys."""

    def __init__(self, material: Material, folder: Path, chance: random.Random, make: Callable[[Path], Any]) -> None:
        self.material, self.chance = material, chance
        self.registrar = make(folder)
        self.registrar.ca.init(NOW)
        self.now = NOW
        self.makers = Makers((material.root_certificate,))
        self.bound: dict[str, tuple[str, bool]] = {}
        self.certified: dict[str, str] = {}
        self.seen: dict[str, Any] = {}
        self.keys: list[bytes] = []

    # -- messages ------------------------------------------------------------------
    def wire(self, source: str, asked: dict[str, Any], key: bytes, *, others: bool) -> dict[str, Any]:
        """Return the stock client's message for an endorsement key of *source* and the attestation key *key*."""
        tpm, _, kind = source.partition(".")
        mine = self.material.tpms[tpm]
        more = [(name, one.ek_public) for name, one in mine.eks.items() if name != kind and others]
        return {
            "v": 2,
            "template": "EK-ECC256" if kind == "ecc" else "EK-RSA2048",
            "ek": _text(mine.eks[kind].ek_public),
            "cert": _text(mine.certificates[kind]),
            "chain": [_text(self.material.maker_certificate)],
            "ak": _text(key),
            "tpm": {},
            "period": asked["period"],
            "others": [{"template": name.upper(), "ek": _text(public)} for name, public in more],
        }

    def answer(self, pending: Any, wire: dict[str, Any], tpms: list[Tpm], change: str = "") -> dict[str, Any]:
        """Return the best answer that the holders of *tpms* can give, after *change*."""
        key = base64.b64decode(wire["ak"])
        publics = [wire["ek"], *(one["ek"] for one in wire["others"])]
        sent = pending.wire()
        secrets = []
        for text, one in zip(publics, [sent, *sent.get("others", [])], strict=False):
            public, blob, encrypted = (base64.b64decode(each) for each in (text, one["blob"], one["encrypted"]))
            opened = bytes(32)
            for tpm in tpms:
                with contextlib.suppress(Unknown):
                    opened = tpm.open(public, key, blob, encrypted)
            secrets.append(opened)
        context = pending.context
        if change == "first-only":
            secrets = secrets[:1]
        elif change in ("as-web1", "as-web2"):
            context = dataclasses.replace(context, host=change[3:])
        elif change == "other-master":
            context = dataclasses.replace(context, verifier="cd" * 32)
        name = structures.public(key).name
        if change == "other-name" and self.keys:
            name = structures.public(self.keys[0]).name
        return {"answer": context.activation(b"".join(secrets), name).hex()}

    # -- moves ---------------------------------------------------------------------
    def play(self, move: Move) -> str:
        """Play a move; return the forger's undeserved gain, or an empty text."""
        self.now += self.chance.choice((60.0, 3600.0, 50000.0))
        if move.kind in ("release", "revoke"):
            with contextlib.suppress(NetspaceError):
                if move.kind == "release":
                    self.registrar.release(move.minion, self.now)
                    self.bound.pop(move.minion, None)
                    self.certified.pop(move.minion, None)
                else:
                    self.registrar.revoke(move.minion, "", self.now)
            return ""
        return self.honest(move) if move.kind == "honest" else self.forged(move)

    def honest(self, move: Move) -> str:
        """Enrol with the stock client, on a host that is not compromised yet."""
        tpm = self.material.tpms[move.source]
        asked = self.registrar.request(move.minion)
        kind = "rsa" if asked["template"] == "EK-RSA2048" else "ecc"
        key = tpm.make(tpm.eks[kind])
        wire = self.wire(f"{move.source}.{kind}", asked, key, others=asked["others"])
        try:
            pending = self.registrar.begin(move.minion, wire, MASTER, self.makers, self.now)
            answer = self.answer(pending, wire, [tpm])
            record = self.registrar.finish(pending, answer, self.now)
        except NetspaceError as err:
            # The forger may have enrolled T1 as another minion's before: that is refused rightly.
            return f"web2 can't be enrolled: {err}" if move.minion == "web2" else ""
        self.seen[move.minion] = (wire, answer)
        self.keys.append(key)
        return self.undeserved(move.minion, record, honest=True)

    def forged(self, move: Move) -> str:
        changes = dict(move.changes)
        asked = self.registrar.request(move.minion)
        tpm = self.material.tpms[move.source[:-4]]
        like = self.material.key(move.source)
        wire = self.wire(move.source, asked, tpm.make(like), others="others" in changes)
        wire = self.changed(wire, changes, tpm, like)
        mine = [self.material.tpms[name] for name in ("T1", "T3", "S")]
        try:
            pending = self.registrar.begin(move.minion, wire, MASTER, self.makers, self.now)
            answer = self.chosen(pending, wire, mine, changes.get("answer", ""))
            record = self.registrar.finish(pending, answer, self.now)
        except NetspaceError:
            return ""
        except Exception as err:
            return f"{type(err).__name__} in the place of a refusal: {err}"[:200]
        self.seen["last"] = (wire, answer)
        self.keys.append(base64.b64decode(wire["ak"]))
        return self.undeserved(move.minion, record, honest=False)

    def chosen(self, pending: Any, wire: dict[str, Any], mine: list[Tpm], change: str) -> Any:
        if change == "zeros":
            return {"answer": "00" * 32}
        if change == "none":
            return None
        if change in ("last", "web2"):
            return self.seen.get(change, (None, None))[1]
        return self.answer(pending, wire, mine, change)

    def changed(self, wire: dict[str, Any], changes: dict[str, str], tpm: Tpm, like: Any) -> Any:
        """Return *wire* after the named changes."""
        made = dict(wire)
        if "ek" in changes:  # with the certificate that goes best with it
            value = changes["ek"]
            made["cert"] = self._cert(value if value in EKS else "none", None)
        for name, value in sorted(changes.items()):
            if name in ("ek", "cert"):
                made[name] = getattr(self, f"_{name}")(value, made[name])
            elif name == "ak":
                made["ak"] = _text(self._ak(value, tpm, like))
            elif name == "chain":
                made["chain"] = self._chain(value, made["cert"])
            elif name == "others":
                made["others"] = self._others(value, made)
            elif name == "period":
                seen = self.seen.get("last")
                made["period"] = {"none": "", "random": "5a" * 16}.get(value, seen[0]["period"] if seen else "00" * 16)
            elif name == "template":
                made["template"] = value
        if changes.get("wire") in self.seen:
            made = {**self.seen[changes["wire"]][0], "period": made["period"]}
        return {"text": "x", "list": [made]}.get(changes.get("wire", ""), made)

    def _ek(self, value: str, text: str) -> str:
        raw = base64.b64decode(text)
        if value in EKS:
            return _text(self.material.key(value).ek_public)
        modulus = {"even": 1 << 2047 | 1 << 100, "twos": (1 << 2048) - 2}.get(value)
        if modulus is not None:
            return _text(self.material.key("S.rsa").ek_public[:-256] + modulus.to_bytes(256, "big"))
        if value == "signs":
            raw = raw[:4] + (int.from_bytes(raw[4:8], "big") | structures.SIGN).to_bytes(4, "big") + raw[8:]
        elif value == "policy":
            raw = raw[:8] + b"\0\x20" + b"\7" * 32 + raw[10:]
        return _text({"nothing": b"", "cut": raw[:-1]}.get(value, raw))

    def _cert(self, value: str, text: str | None) -> str | None:
        raw = base64.b64decode(text or "")
        if value == "none" or (text is None and value not in EKS):
            return None
        if value in EKS:
            tpm, _, kind = value.partition(".")
            return _text(self.material.tpms[tpm].certificates[kind])
        if value == "forged":  # right in all but its signature: the maker's genuine certificate, for a key of ours
            return _text(self.material.tpms["S"].certificates["ecc"])
        if value == "forged-key":
            ours = self.material.key("S.ecc").ek.public_key()
            return _text(certificate("", ours, "root", self.material.evil))
        if value == "flipped" and raw:
            at = self.chance.randrange(len(raw))
            raw = raw[:at] + bytes((raw[at] ^ 1 << self.chance.randrange(8),)) + raw[at + 1 :]
        given = {"padded": raw + b"\xff" * 50, "nothing": b"", "ca": self.material.maker_certificate}
        return _text(given.get(value, raw))

    def _chain(self, value: str, leaf: str | None) -> list[str]:
        maker, evil = _text(self.material.maker_certificate), _text(self.material.evil_certificate)
        found = {"none": [], "maker": [maker], "forged": [evil], "forged+maker": [evil, maker], "junk": ["AAAA", maker]}
        return found.get(value, [maker, maker] if value == "twice" else [maker, *([leaf] if leaf else [])])

    def _ak(self, value: str, tpm: Tpm, like: Any) -> bytes:
        if value in ("T1", "T3", "S"):
            other = self.material.tpms[value]
            return other.make(other.eks["ecc"])
        if value == "other":
            return tpm.make(like, self.chance.choice(ATTRIBUTES[1:]))
        if value in ("last", "first") and self.keys:
            return self.keys[-1 if value == "last" else 0]
        if value == "web2" and "web2" in self.seen:
            return base64.b64decode(self.seen["web2"][0]["ak"])
        if value in ("last", "first", "web2"):
            return tpm.make(like)
        if value == "nothing":
            return b""
        made = tpm.make(like, self.chance.choice(ATTRIBUTES))
        if value == "claimed":  # its public area says that it is what it must be
            return made[:4] + GOOD.to_bytes(4, "big") + made[8:]
        if value == "flipped":
            at = self.chance.randrange(len(made))
            return made[:at] + bytes((made[at] ^ 1 << self.chance.randrange(8),)) + made[at + 1 :]
        return self.material.key("S.rsa").ek_public if value == "rsa" else made

    def _others(self, value: str, wire: dict[str, Any]) -> list[Any]:
        if value in ("T2", "T3", "S"):
            keys = [self.material.key(f"{value}.{kind}").ek_public for kind in ("ecc", "rsa")]
            return [*wire["others"], *({"template": "EK-ECC256", "ek": _text(one)} for one in keys)]
        given = {"none": [], "main": [{"template": "EK-ECC256", "ek": wire["ek"]}] * 2}
        return given.get(value, wire["others"] if value == "all" else [{"template": "EK-ECC256", "ek": "AAAA"}])

    # -- what is deserved ----------------------------------------------------------
    def undeserved(self, minion: str, record: dict[str, Any], *, honest: bool) -> str:
        key = base64.b64decode(record["ak"])
        holder = next((one for one in self.material.tpms.values() if key in one.made), None)
        genuine = holder is not None and holder.name != "S"
        owner = self.material.owners.get(record["ek"], f"S {record['ek'][:8]}")
        if owner == "S":
            owner = f"S {record['ek'][:8]}"
        if record["level"] >= 3 and not genuine:
            return f"L{record['level']} for a key that no genuine TPM holds"
        made = GOOD if holder is None else holder.made[key]
        if genuine and (made & NEEDED != NEEDED or made & FORBIDDEN):
            return f"L{record['level']} for a key that could sign anything, or leave its TPM"
        if not owner.startswith("S ") and (holder is None or holder.name != owner):
            return f"a key that {owner} does not hold is certified as its own"
        before = self.bound.get(minion)
        if before is not None and before[0] != owner:
            return f"{minion} had {before[0]}, and has {owner} now"
        listed = getattr(self.registrar, "listed", None) is not None
        for other, (theirs, was_honest) in self.bound.items():
            if other != minion and theirs == owner and (was_honest or listed) and not owner.startswith("S "):
                return f"{minion} and {other} have one TPM, {owner}"
        if listed and (minion, owner) not in (("web1", "T1"), ("web2", "T2")):
            return f"{minion} has {owner}, against the inventory"
        if record["ak"] in self.certified.values():
            return "a key that has a certificate has another"
        self.certified[minion] = record["ak"]
        self.bound[minion] = owner, honest or (before is not None and before[1])
        return ""


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def play(
    material: Material,
    scene: list[Move],
    seed: int,
    *,
    listed: bool = False,
    make: Callable[[Path], Any] = Registrar,
) -> str:
    """Play *scene*; return the forger's undeserved gain, or an empty text.

    :param seed: seed of the random choices within moves.
    :param listed: whether the registrar has an inventory: T1 for web1, T2 for web2.
    """
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="netspace-forger", dir=shared if shared.is_dir() else None))
    chance = random.Random(seed)
    try:
        made = Scene(material, folder / "master", chance, make)
        if listed:
            made.registrar.listed = folder / "tpms"
            keys = {name: [one for one, tpm in material.owners.items() if tpm == name] for name in ("T1", "T2")}
            made.registrar.listed.write_text(f"web1 {' '.join(keys['T1'])}\nweb2 {' '.join(keys['T2'])}\n")
        for move in [*scene, Move("honest", "web2", "T2")]:
            problem = made.play(move)
            if problem:
                return problem
        return ""
    finally:
        shutil.rmtree(folder)


def shortest(scene: list[Move], fails: Callable[[list[Move]], bool]) -> list[Move]:
    """Return the smallest part of *scene* that still fails: each of its moves and changes is necessary."""
    shorter = True
    while shorter:
        shorter = False
        for candidate in _less(scene):
            if fails(candidate):
                scene, shorter = candidate, True
                break
    return scene


def _less(scene: list[Move]) -> Iterator[list[Move]]:
    for at in range(len(scene)):
        yield scene[:at] + scene[at + 1 :]
    for at, move in enumerate(scene):
        for gone in move.changes:
            kept = tuple(one for one in move.changes if one != gone)
            yield [*scene[:at], dataclasses.replace(move, changes=kept), *scene[at + 1 :]]


def search(
    material: Material, count: int, first: int = 0, *, listed: bool = False, make: Callable[[Path], Any] = Registrar
) -> tuple[str, int, list[Move]]:
    """Play *count* forged enrolments.

    Return the first problem, the number of enrolments, and the problem's shortest scene.
    """
    played, seed = 0, first
    while played < count:
        scene = moves(random.Random(seed))
        problem = play(material, scene, seed, listed=listed, make=make)
        if problem:
            kind = problem.split(":")[0][:24]

            def fails(candidate: list[Move], seed: int = seed, kind: str = kind) -> bool:
                return play(material, candidate, seed, listed=listed, make=make).startswith(kind)

            return problem, played, shortest(scene, fails)
        played += sum(move.kind == "forge" for move in scene)
        seed += 1
    return "", played, []
