"""Ledger of runs at the verifier: forgeries by root of the host, each refused with its code.

Each forgery passes if the check against it is removed.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.attestation import ledger_forge
from support.attestation.honest_minion import MASTER
from support.attestation.ledger_forge import Ledger, digest, replaced, run
from support.attestation.small_fleet import BOOT
from support.mutation import mutate, mutate_json

from netspace.attestation import refusals
from netspace.attestation.evidence import Context, parse
from netspace.attestation.ledger_proof import LedgerProof
from netspace.attestation.tpm import structures
from netspace.attestation.verifier import ledger_rules
from netspace.attestation.verifier.ledger_rules import Judged
from netspace.ledger import entries, nv_public

CONTEXT = Context(MASTER, "web1", "session", bytes(32), binding=BOOT.encode())


@pytest.fixture
def ledger(fake_tpm: Any) -> Ledger:
    made = Ledger(fake_tpm)
    made.start("web", "orders")
    made.end("web")
    made.start("web")
    return made


def signer(ledger: Ledger) -> tuple[structures.Public, structures.Clock]:
    tpm = ledger.tpm
    return structures.public(tpm.ak_public), structures.quote(tpm.attest(bytes(32))).clock


def judge(
    ledger: Ledger,
    proof: LedgerProof,
    before: Judged | None = None,
    context: Context = CONTEXT,
    rules: Any = ledger_rules,
) -> Judged:
    found: Judged = rules.judged(proof, signer(ledger), context, before)
    return found


def test_genuine_ledger_tells_what_runs(ledger: Ledger) -> None:
    found = judge(ledger, ledger.proof(CONTEXT)).state
    assert (found.count, found.boot, found.declared) == (5, BOOT, digest("declaration"))
    assert {name: one.image for name, one in found.running.items()} == dict.fromkeys(("web", "orders"), run("").image)
    assert found.running["web"].number == 4 and found.running["orders"].number == 2


def test_lines_after_the_certified_value_wait(ledger: Ledger) -> None:
    ledger.value = ledger_forge.head(ledger.lines)
    ledger.end("orders")
    found = judge(ledger, ledger.proof(CONTEXT))
    assert found.state.count == 5 and "orders" in found.state.running
    ledger.value = None
    later = judge(ledger, ledger.proof(CONTEXT, 5), found)
    assert later.state.count == 6 and set(later.state.running) == {"web"}
    assert judge(ledger, ledger.proof(CONTEXT, 6), later) == later


def test_new_boot_begins_a_new_ledger(ledger: Ledger) -> None:
    found = judge(ledger, ledger.proof(CONTEXT))
    again = Ledger(ledger.tpm, "boot-2")
    again.tpm.clock = (5, 6, 0, 1)
    context = dataclasses.replace(CONTEXT, binding=b"boot-2")
    assert judge(again, again.proof(context), found, context).state.count == 2


def again(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Ledger], LedgerProof]:
    """Return a forgery: root defines the index again, extends it by changed lines, and sends these lines."""

    def make(ledger: Ledger) -> LedgerProof:
        ledger.lines = change(ledger.lines)
        return ledger.proof(CONTEXT)

    return make


def sent(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Ledger], LedgerProof]:
    """Return a forgery: root sends changed lines with the genuine certificate."""
    return lambda ledger: replaced(ledger.proof(CONTEXT), change)


def certified(**more: Any) -> Callable[[Ledger], LedgerProof]:
    return lambda ledger: ledger.proof(CONTEXT, **more)


def index(**changed: int) -> Callable[[Ledger], LedgerProof]:
    return certified(name=nv_public.name(**changed))


def foreign(ledger: Ledger) -> LedgerProof:
    """Return the ledger of another host, certified by that host's TPM."""
    made = Ledger(type(ledger.tpm)())
    made.start("web")
    return made.proof(CONTEXT)


def shortened(ledger: Ledger) -> LedgerProof:
    """Return the first lines with a certificate of the index's earlier value, and the signature of the present one."""
    lines = ledger.lines[:2]
    proof = ledger.proof(CONTEXT, content=ledger_forge.head(lines))
    return dataclasses.replace(proof, lines=b"".join(lines), signature=ledger.proof(CONTEXT).signature)


def of_earlier_boot(ledger: Ledger) -> LedgerProof:
    now, ledger.tpm.clock = ledger.tpm.clock, (1000, 4, 2, 1)
    proof = ledger.proof(CONTEXT)
    ledger.tpm.clock = now
    return proof


def swapped(lines: list[bytes]) -> list[bytes]:
    return [line.replace(run("").image.encode(), digest("image evil").encode()) for line in lines]


VALUE = ("    if value is not None:\n        raise", "    if False:\n        raise")
SIGNED = ("quote_checks.check_signature(", "(lambda *_: None)(")
EXTRA = ("if not hmac.compare_digest(found.extra, context.qualifying())", "if False")
HIERARCHY = ("if not hmac.compare_digest(found.signer, key.qualified_name)", "if False")
NAME = ("if not hmac.compare_digest(found.name, nv_public.name())", "if False")
PART = ("if found.offset or len(found.content) != nv_public.SIZE", "if False")
CLOCK = (
    "if (found.clock.reset_count, found.clock.restart_count) != (clock.reset_count, clock.restart_count)",
    "if False",
)
BOOTED = ("if state.boot != boot", "if False")
SHORTER = ("if same is not None and state.count < same.count", "if False")
KNOWN = ("if known is not None and state.count == known.count and", "if False and")
WHOLE = ("not known.whole or ", "")
Check = tuple[str, str]

PLAIN = nv_public.ATTRIBUTES & ~(15 << 4) | nv_public.WRITTEN
LASTING = nv_public.ATTRIBUTES & ~nv_public.CLEAR_STCLEAR | nv_public.WRITTEN
OPEN = nv_public.ATTRIBUTES | 1 << 1 | nv_public.WRITTEN
# What root sends, the code of the refusal, and the checks without which it passes.
FORGERIES: dict[str, tuple[Callable[[Ledger], LedgerProof], str, tuple[Check, ...]]] = {
    "a swapped image": (sent(swapped), "ledger-mismatch", (VALUE,)),
    "a dropped start": (sent(lambda all: all[:2] + all[3:]), "ledger-mismatch", (VALUE,)),
    "a dropped end": (sent(lambda all: all[:3] + all[4:]), "ledger-mismatch", (VALUE,)),
    "another order": (sent(lambda all: [*all[:2], all[3], all[2], all[4]]), "ledger-mismatch", (VALUE,)),
    "a line twice": (sent(lambda all: [*all[:3], *all[2:]]), "ledger-mismatch", (VALUE,)),
    "the lines cut short": (sent(lambda all: all[:3]), "ledger-mismatch", (VALUE,)),
    "no line at all": (sent(lambda all: []), "ledger-mismatch", (VALUE, BOOTED)),
    "a value of its own": (shortened, "signature", (SIGNED,)),
    "another host's ledger": (foreign, "signature", (SIGNED, HIERARCHY)),
    "an earlier certificate": (
        lambda one: one.proof(dataclasses.replace(CONTEXT, nonce=bytes(range(32)))),
        "qualifying-data",
        (EXTRA,),
    ),
    "another host's challenge": (
        lambda one: one.proof(dataclasses.replace(CONTEXT, host="web2")),
        "qualifying-data",
        (EXTRA,),
    ),
    "another hierarchy": (certified(signer=b"\0\x0b" + bytes(32)), "ak-hierarchy", (HIERARCHY,)),
    "another index": (index(index=nv_public.INDEX + 1), "ledger-index", (NAME,)),
    "an index that is written at will": (index(attributes=PLAIN), "ledger-index", (NAME,)),
    "an index that the owner extends": (index(attributes=OPEN), "ledger-index", (NAME,)),
    "an index that outlives the boot": (index(attributes=LASTING), "ledger-index", (NAME,)),
    "a wrong name": (certified(name=b"\0\x0b" + bytes(32)), "ledger-index", (NAME,)),
    "a part of the index": (certified(offset=1), "ledger-index", (PART,)),
    "a certificate of another boot": (of_earlier_boot, "ledger-boot", (CLOCK,)),
    "another boot's lines": (again(lambda all: [entries.boot("boot-0"), *all[1:]]), "ledger-boot", (BOOTED,)),
}
# The same, by root of a host whose ledger was judged before: the index is defined again.
MADE_AGAIN: dict[str, tuple[Callable[[Ledger], LedgerProof], str, tuple[Check, ...]]] = {
    "without its last line": (again(lambda all: all[:-1]), "ledger-rolled-back", (SHORTER,)),
    "without any run": (again(lambda all: all[:2]), "ledger-rolled-back", (SHORTER,)),
    "with another image": (again(swapped), "ledger-rolled-back", (KNOWN,)),
    "with other runs, and longer": (
        again(lambda all: [*swapped(all), *entries.ended(["web"], 5)]),
        "ledger-rolled-back",
        (KNOWN,),
    ),
}
FOLLOWED: dict[str, tuple[Callable[[Ledger], LedgerProof], str, tuple[Check, ...]]] = {
    "from a line that was not judged": (lambda one: one.proof(CONTEXT, 3), "ledger-malformed", ()),
    "a ledger from the wrong line": (lambda one: one.proof(CONTEXT, 4), "ledger-malformed", ()),
}


def weakened(checks: Sequence[Check]) -> Any:
    """Return the verifier's rules without some checks."""
    source = Path(str(ledger_rules.__file__)).read_text()
    for there, without in checks:
        assert there in source, f"{there}: the check has another form now"
        source = source.replace(there, without)
    module = types.ModuleType("netspace.attestation.verifier.ledger_rules_weakened")
    sys.modules[module.__name__] = module
    exec(compile(source, "weakened", "exec"), vars(module))
    return module


def tried(made: Callable[[Ledger], LedgerProof], ledger: Ledger, code: str, before: Judged | None) -> LedgerProof:
    proof = made(ledger)
    with pytest.raises(refusals.Refused) as refused:
        judge(ledger, proof, before)
    assert refused.value.code == code, refused.value
    return proof


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_ledger_is_refused_with_its_code(ledger: Ledger, name: str) -> None:
    make, code, checks = FORGERIES[name]
    proof = tried(make, ledger, code, None)
    assert judge(ledger, proof, None, rules=weakened(checks)), "it passes without the check"


@pytest.mark.parametrize("name", MADE_AGAIN)
def test_index_defined_again_is_noticed(ledger: Ledger, name: str) -> None:
    before = judge(ledger, ledger.proof(CONTEXT))
    make, code, checks = MADE_AGAIN[name]
    proof = tried(make, ledger, code, before)
    assert judge(ledger, proof, before, rules=weakened(checks)), "it passes without the check"
    assert judge(ledger, proof, None), "who has judged nothing before can't notice"


@pytest.mark.parametrize("name", FOLLOWED)
def test_lines_from_elsewhere_are_refused(ledger: Ledger, name: str) -> None:
    before = judge(ledger, ledger.proof(CONTEXT))
    make, code, _ = FOLLOWED[name]
    tried(make, ledger, code, before)
    tried(make, ledger, code, None)


def test_runs_that_the_verifier_lost_are_asked_again(ledger: Ledger) -> None:
    before = judge(ledger, ledger.proof(CONTEXT))
    lost = Judged(before.epoch, dataclasses.replace(before.state, running={}), whole=False)
    proof = tried(lambda one: one.proof(CONTEXT, 5), ledger, "ledger-malformed", lost)
    assert not judge(ledger, proof, lost, rules=weakened([WHOLE])).state.running, "two runs would be hidden"
    assert judge(ledger, ledger.proof(CONTEXT), lost) == before


def test_runs_after_the_last_judgement_may_be_lost(ledger: Ledger) -> None:
    """Root can remove a start that the verifier hasn't judged yet, as the documentation says."""
    before = judge(ledger, ledger.proof(CONTEXT))
    ledger.start("evil")
    ledger.lines.pop()  # the index is defined again, and extended by all lines but the last one
    assert "evil" not in judge(ledger, ledger.proof(CONTEXT), before).state.running


def test_certificate_of_another_kind_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    tried(certified(kind=0x8018), ledger, "type", None)
    proof = tried(certified(magic=0x41424344), ledger, "magic", None)
    known = signer(ledger)
    monkeypatch.setattr(structures, "GENERATED", 0x41424344)
    assert ledger_rules.certified(proof, *known, CONTEXT)


def test_software_key_vouches_for_all_lines(ledger: Ledger) -> None:
    proof = LedgerProof(0, b"".join(ledger.lines))
    found = ledger_rules.judged(proof, None, CONTEXT, None)
    assert found.epoch == f"boot {BOOT}" and set(found.state.running) == {"web", "orders"}
    shorter = LedgerProof(0, b"".join(ledger.lines[:3]))
    with pytest.raises(refusals.LedgerRolledBack):
        ledger_rules.judged(shorter, None, CONTEXT, found)
    with pytest.raises(refusals.LedgerMalformed):
        ledger_rules.judged(ledger.proof(CONTEXT), None, CONTEXT, None)
    assert proof.binding() != shorter.binding() != LedgerProof(3, shorter.lines).binding()


LINES = {
    "a second boot": [entries.boot("x")],
    "no declaration's digest": [b'{"declared":"' + b"g" * 64 + b'"}\n'],
    "a blank": [b'{"full": true}\n'],
    "not full": [b'{"full":false}\n'],
    "another key": [b'{"at":1,"end":["web"],"why":1}\n'],
    "an end of nothing": [b'{"at":1,"end":[]}\n'],
    "an end twice": [b'{"at":1,"end":["web","web"]}\n'],
    "a name of a path": [b'{"at":1,"end":["../web"]}\n'],
    "a time that is true": [b'{"at":true,"end":["web"]}\n'],
    "a time before 1970": [b'{"at":-1,"end":["web"]}\n'],
    "a start without digests": [b'{"at":1,"start":{"web":["","",""]}}\n'],
    "no runs": [b'{"at":1,"start":{}}\n'],
    "a line after the last": [entries.full(), entries.ended(["web"], 1)[0]],
    "a number": [b"1\n"],
    "deep": [b"[" * 30_000 + b"\n"],
    "long": [b'"' + b"x" * entries.MOST_LINE + b'"\n'],
    "no text": [b"\xff\n"],
    "half a line": [b'{"full":true}'],
    "no JSON": [b"{\n"],
}


@pytest.mark.parametrize("name", LINES)
def test_malformed_line_is_refused(ledger: Ledger, name: str) -> None:
    ledger.value = bytes([1]) * 32
    ledger.lines += LINES[name]
    tried(lambda one: one.proof(CONTEXT), ledger, "ledger-malformed", None)


def test_first_line_names_the_boot(ledger: Ledger) -> None:
    ledger.value = bytes([1]) * 32
    ledger.lines = ledger.lines[1:]
    tried(lambda one: one.proof(CONTEXT), ledger, "ledger-malformed", None)


def test_too_many_lines_are_refused(ledger: Ledger) -> None:
    ledger.value = bytes([1]) * 32
    ledger.lines = [ledger.lines[0]] + [entries.declared(digest(""))] * (entries.MOST_LINES + 1)
    tried(lambda one: one.proof(CONTEXT), ledger, "ledger-malformed", None)


def test_mutations_give_a_ledger_or_a_refusal(ledger: Ledger) -> None:
    chance, genuine = random.Random(90), ledger.proof(CONTEXT)
    whole = judge(ledger, genuine)
    for _ in range(2000):
        field = chance.choice(("lines", "attest", "signature"))
        proof = dataclasses.replace(genuine, **{field: mutate(chance, getattr(genuine, field))})
        try:
            assert judge(ledger, proof) == whole
        except refusals.Refused as err:
            assert err.code


def test_wire_form_is_strict(ledger: Ledger) -> None:
    evidence = dataclasses.replace(ledger.tpm.evidence(CONTEXT), ledger=ledger.proof(CONTEXT, 2))
    wire = evidence.wire()
    assert parse(json.loads(json.dumps(wire))) == evidence
    assert parse(ledger.tpm.evidence(CONTEXT).wire()).ledger is None
    chance = random.Random(90)
    for _ in range(500):
        raw = mutate_json(chance, json.dumps(wire["env"]).encode())
        try:
            found = parse({**wire, "env": json.loads(raw)}).ledger
        except refusals.Malformed:
            continue
        assert found is None or found.wire() == json.loads(raw)
