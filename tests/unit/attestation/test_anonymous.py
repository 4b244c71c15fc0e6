"""Anonymous attestation: the pairing, the scheme, its forgers, and each check shown to matter."""

from __future__ import annotations

import ast
import base64
import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attestation import anonymous, tate
from support.attestation.anonymous import PCRS, Club, SoftMember, attest, times

from netspace.attestation.daa import __main__ as command
from netspace.attestation.daa import curve, fields, pairing, quote, scheme
from netspace.attestation.daa.issuer import member_key
from netspace.attestation.daa.quote import Rogues
from netspace.attestation.daa.scheme import Credential, IssuerKey, IssuerSecret, Refusal
from netspace.attestation.minion import self_appraisal
from netspace.attestation.tpm import device
from netspace.layout import Layout

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests/fixtures/anonymous"
SCALARS = st.integers(1, fields.N - 1)


@pytest.fixture(scope="module")
def club() -> Club:
    return Club()


def code_of(work: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as caught:
        work()
    return caught.value.code


# -- the curve and the pairing ------------------------------------------------------------------------
def test_curve_has_its_order() -> None:
    assert (fields.P, fields.N) == (tate.P, tate.N)
    assert curve.on_curve(curve.GENERATOR)
    assert curve.on_twist(curve.GENERATOR_2)
    assert curve.multiply_2(curve.GENERATOR_2, fields.N) is None
    assert curve.multiply(curve.GENERATOR, fields.N) is None
    assert curve.multiply(curve.GENERATOR, fields.N - 1) == curve.negate(curve.GENERATOR)


@given(SCALARS, SCALARS)
@settings(max_examples=25, deadline=None)
def test_points_add_up_as_by_chords_and_tangents(a: int, b: int) -> None:
    one, two = curve.multiply(curve.GENERATOR, a), curve.multiply(curve.GENERATOR, b)
    assert one == tate.times(curve.GENERATOR, a)
    assert curve.add(one, two) == tate.add(one, two) == curve.multiply(curve.GENERATOR, a + b)


@given(SCALARS)
@settings(max_examples=10, deadline=None)
def test_fields_invert(a: int) -> None:
    value = fields.power_12(pairing.pairing(curve.GENERATOR, curve.GENERATOR_2), a)
    assert fields.multiply_12(value, fields.invert_12(value)) == fields.ONE_12
    assert fields.conjugate_12(value) == fields.invert_12(value)
    other = (value[0], *[(index + a % 97, a % 89) for index in range(5)])
    assert fields.multiply_12(other, fields.invert_12(other)) == fields.ONE_12  # type: ignore[arg-type]
    assert fields.frobenius_12(other, 12) == other  # type: ignore[arg-type]


@given(st.integers(1, 2**64), st.integers(1, 2**64))
@settings(max_examples=8, deadline=None)
def test_pairing_is_bilinear(a: int, b: int) -> None:
    base = pairing.pairing(curve.GENERATOR, curve.GENERATOR_2)
    assert base != fields.ONE_12
    one, two = times(curve.GENERATOR, a), curve.multiply_2(curve.GENERATOR_2, b)
    assert two is not None
    assert pairing.pairing(one, two) == fields.power_12(base, a * b)
    product = times(curve.GENERATOR, a * b)
    assert pairing.is_one([(one, two), (curve.negate(product), curve.GENERATOR_2)])
    assert not pairing.is_one([(one, two), (curve.negate(curve.add(product, one)), curve.GENERATOR_2)])


def test_second_pairing_agrees_with_the_first(club: Club) -> None:
    """The Tate pairing accepts what the library accepts, and refuses what it refuses."""
    credential = club.credentials[0]
    issuer = club.issuer.x, club.issuer.y
    points = credential.randomized()
    assert tate.is_credential(issuer, points)
    scheme.check_credential(club.issuer, *points)
    for place in range(4):
        wrong = list(points)
        wrong[place] = times(points[place], 2)
        four = wrong[0], wrong[1], wrong[2], wrong[3]
        assert not tate.is_credential(issuer, four)
        assert code_of(lambda four=four: scheme.check_credential(club.issuer, *four)) == "credential"


def test_published_credential_is_accepted_by_both() -> None:
    """The member's credential that the project xtt publishes with its group's key, by another implementation.

    It is of FIDO ECDAA's scheme on this curve. Its proof isn't published: the pairing equations are tried.
    """
    key, credential, secret = ((VECTORS / f"xtt-{name}.hex").read_text() for name in ("group", "credential", "secret"))
    raw = bytes.fromhex(key)
    assert raw[0] == raw[129] == 4  # uncompressed
    x, y = curve.decode_2(raw[1:129]), curve.decode_2(raw[130:])
    points = bytes.fromhex(credential)
    a, b, c, d = (curve.decode(points[start + 1 : start + 65]) for start in range(0, 260, 65))
    issuer = IssuerKey(x, y, 0, 0, 0)
    scheme.check_credential(issuer, a, b, c, d)
    assert tate.is_credential((x, y), (a, b, c, d))
    assert curve.multiply(b, int(secret, 16)) == d
    assert code_of(lambda: scheme.check_credential(issuer, a, b, d, c)) == "credential"


# -- the scheme -------------------------------------------------------------------------------------
def test_member_s_quote_is_accepted(club: Club) -> None:
    for basename in (None, b"shop", b"\0" * 256):
        request = club.request(basename)
        raw = club.members[0].quote(club.credentials[0], request)
        made = quote.verify(raw, club.issuer, request, PCRS)
        assert bool(made.pseudonym) == (basename is not None)
        assert made.quote.selections == ((0x000B, frozenset(PCRS)),)


def test_quotes_are_linked_by_basename_and_nothing_else(club: Club) -> None:
    shown = []
    for member, basename in ((0, b"shop"), (0, b"shop"), (1, b"shop"), (0, b"bank")):
        request = club.request(basename)
        raw = club.members[member].quote(club.credentials[member], request)
        shown.append((quote.verify(raw, club.issuer, request, PCRS).pseudonym, quote.decode(raw)[0]))
    names = [name for name, _ in shown]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    # No point but the pseudonym comes twice.
    points = [point for _, proof in shown for point in (proof.r, proof.s, proof.t, proof.w)]
    assert len(set(points)) == len(points)


def test_credential_is_checked_by_its_member(club: Club) -> None:
    first, second = club.credentials
    member = club.members[0].point
    first.check(club.issuer, member)
    assert Credential.decode(first.encode()) == first
    assert code_of(lambda: second.check(club.issuer, member)) == "credential"
    assert code_of(lambda: first.check(Club().issuer, member)) == "credential"
    # A marked one: B and D with different factors, so that the issuer knows the member again.
    marked = dataclasses.replace(first, d=times(first.d, 2))
    assert code_of(lambda: marked.check(club.issuer, member)) == "credential"
    for name in ("challenge", "response"):
        wrong = dataclasses.replace(first, **{name: getattr(first, name) ^ 1})
        assert code_of(lambda wrong=wrong: wrong.check(club.issuer, member)) == "credential"


def test_issuer_s_key_needs_its_proof(club: Club) -> None:
    good = club.issuer
    assert IssuerKey.decode(good.encode()) == good
    assert club.secret.public().x == good.x
    assert IssuerSecret.decode(club.secret.encode()) == club.secret
    for name in ("challenge", "response_x", "response_y"):
        wrong = dataclasses.replace(good, **{name: getattr(good, name) ^ 1})
        assert code_of(lambda wrong=wrong: IssuerKey.decode(wrong.encode())) == "issuer"
    swapped = dataclasses.replace(good, x=good.y, y=good.x)
    assert code_of(lambda: IssuerKey.decode(swapped.encode())) == "issuer"


def test_point_of_the_twist_outside_the_group_is_refused() -> None:
    """The twist has more points than the group has: one of them, with small factors, would give a secret away."""
    for real in range(1, 200):
        x = (real, 0)
        square = fields.add(fields.multiply(fields.multiply(x, x), x), curve.B_2)
        y = _root(square)
        if y is not None:
            point = (x, y)
            assert curve.on_twist(point)
            with pytest.raises(ValueError, match="not a point of G2"):
                curve.decode_2(curve.encode_2(point))
            return
    pytest.fail("no point found")


def _root(square: fields.F2) -> fields.F2 | None:
    """Return a square root in F_p2, for p = 3 mod 4."""
    a = fields.power(square, (fields.P - 3) // 4)
    alpha = fields.multiply(fields.multiply(a, a), square)
    first = fields.multiply(a, square)
    if alpha == (fields.P - 1, 0):
        found = fields.multiply((0, 1), first)
    else:
        found = fields.multiply(fields.power(fields.add(fields.ONE, alpha), (fields.P - 1) // 2), first)
    return found if fields.multiply(found, found) == square else None


# -- the forger -------------------------------------------------------------------------------------
class Forger:
    """An attacker who saw an honest member's quotes, and has a member of his own whose key has left its TPM."""

    def __init__(self, club: Club) -> None:
        self.club = club
        self.request = club.request()
        self.seen_request = club.request()
        self.seen = club.members[0].quote(club.credentials[0], self.seen_request)

    def no_credential(self) -> bytes:
        """Make four points up, for an own f."""
        member = SoftMember()
        points = [times(curve.GENERATOR, scheme.random_scalar()) for _ in range(3)]
        made = member.proof((*points, times(points[1], member.secret)), self.request, attest())  # type: ignore[arg-type]
        return quote.encode(made, attest())

    def own_issuer(self) -> bytes:
        """Use a credential by an issuer of his own."""
        other = Club()
        return other.members[0].quote(other.credentials[0], self.request)

    def another_s_credential(self) -> bytes:
        """Use the points of another's quote with an own f."""
        proof, stated = quote.decode(self.seen)
        points = proof.r, proof.s, proof.t, proof.w
        return quote.encode(SoftMember().proof(points, self.request, stated), stated)

    def replay(self) -> bytes:
        return self.seen

    def another_s_pseudonym(self) -> bytes:
        """Show the pseudonym of another member."""
        proof, _ = quote.decode(self.seen)
        assert proof.k is not None
        member, credential = self.club.members[1], self.club.credentials[1]
        return quote.encode(member.proof(credential.randomized(), self.request, attest(), k=proof.k), attest())

    def fresh_pseudonym(self) -> bytes:
        """Show a random pseudonym, in order to be another each time."""
        member, credential = self.club.members[1], self.club.credentials[1]
        k = times(curve.GENERATOR, scheme.random_scalar())
        return quote.encode(member.proof(credential.randomized(), self.request, attest(), k=k), attest())

    def no_pseudonym(self) -> bytes:
        """Show no pseudonym, in a proof that is right otherwise."""
        made = self.club.members[1].proof(self.club.credentials[1].randomized(), self.request, attest(), shown=0)
        return quote.encode(made, attest())

    def other_statement(self) -> bytes:
        """Have a TPM quote the PCRs that it has, and put the expected ones in their place."""
        bad = {0: b"\3" * 32, 7: b"\2" * 32}
        proof, _ = quote.decode(self.club.members[1].quote(self.club.credentials[1], self.request, bad))
        return quote.encode(proof, attest())

    def randomized_again(self) -> bytes:
        """Multiply all points of another's quote for this request by a factor."""
        proof, stated = quote.decode(self.club.members[0].quote(self.club.credentials[0], self.request))
        points = {name: times(getattr(proof, name), 3) for name in "rstw"}
        return quote.encode(dataclasses.replace(proof, **points), stated)

    def other_pcrs(self) -> bytes:
        return self.club.members[1].quote(self.club.credentials[1], self.request, {0: b"\3" * 32, 7: b"\2" * 32})

    def wrong_pcrs(self) -> bytes:
        """Quote another PCR that has the expected value."""
        return self.club.members[1].quote(self.club.credentials[1], self.request, {1: PCRS[0], 7: PCRS[7]})

    def signed_something_else(self) -> bytes:
        """Sign a statement of another type."""
        member, stated = self.club.members[1], attest(kind=0x8014)
        return quote.encode(member.proof(self.club.credentials[1].randomized(), self.request, stated), stated)

    def named_signer(self) -> bytes:
        member, stated = self.club.members[1], attest(signer=b"\0\x0b" + b"s" * 32)
        return quote.encode(member.proof(self.club.credentials[1].randomized(), self.request, stated), stated)

    def rogue(self) -> bytes:
        """Use the key that came out of its TPM."""
        return self.club.members[1].quote(self.club.credentials[1], self.request)

    def refused_pseudonym(self) -> bytes:
        return self.rogue()


WAYS = {
    "no_credential": "credential",
    "own_issuer": "credential",
    "another_s_credential": "proof",
    "replay": "proof",
    "another_s_pseudonym": "proof",
    "fresh_pseudonym": "proof",
    "no_pseudonym": "basename",
    "other_statement": "proof",
    "randomized_again": "proof",
    "other_pcrs": "digest",
    "wrong_pcrs": "selection",
    "signed_something_else": "quote",
    "named_signer": "quote",
    "rogue": "rogue",
    "refused_pseudonym": "pseudonym",
}


def rogues_for(club: Club, way: str) -> Rogues:
    _, base = curve.hashed(b"shop")
    lost = club.members[1].secret
    if way == "rogue":
        return Rogues(keys=frozenset({5, lost}))
    if way == "refused_pseudonym":
        return Rogues(pseudonyms=frozenset({curve.encode(times(base, lost))}))
    return Rogues()


@pytest.mark.parametrize("way", WAYS)
def test_forgery_is_refused_with_its_reason(club: Club, way: str) -> None:
    forger = Forger(club)
    raw = getattr(forger, way)()
    assert code_of(lambda: quote.verify(raw, club.issuer, forger.request, PCRS, rogues_for(club, way))) == WAYS[way]


def without(code: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the verifier without its refusals with this code: each ``raise Refusal(code, ...)`` is taken out."""

    class Out(ast.NodeTransformer):
        taken = 0

        def visit_Raise(self, node: ast.Raise) -> ast.stmt:
            call = node.exc
            if isinstance(call, ast.Call) and isinstance(call.args[0], ast.Constant) and call.args[0].value == code:
                self.taken += 1
                return ast.copy_location(ast.Pass(), node)
            return node

    out = Out()
    for module in (scheme, quote):
        source = Path(module.__file__ or "").read_text()
        found = ModuleType(module.__name__)
        monkeypatch.setitem(sys.modules, module.__name__, found)
        monkeypatch.setattr(f"netspace.attestation.daa.{module.__name__.rpartition('.')[2]}", found)
        exec(compile(out.visit(ast.parse(source)), module.__name__, "exec"), found.__dict__)
    assert out.taken
    return found


# A statement of another type has other fields than a quote has: without its check, there is nothing to read.
@pytest.mark.parametrize("way", [way for way in WAYS if way != "signed_something_else"])
def test_forgery_passes_when_its_check_is_out(club: Club, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forger = Forger(club)
    raw, rogues = getattr(forger, way)(), rogues_for(club, way)
    without(WAYS[way], monkeypatch).verify(raw, club.issuer, forger.request, PCRS, rogues)


def test_quote_for_another_request_is_refused(club: Club) -> None:
    request = club.request()
    raw = club.members[0].quote(club.credentials[0], request)
    for wrong in (
        dataclasses.replace(request, nonce=bytes(32)),
        dataclasses.replace(request, basename=b"bank"),
        dataclasses.replace(request, issuer=bytes(32)),
    ):
        assert code_of(lambda wrong=wrong: quote.verify(raw, club.issuer, wrong, PCRS)) in ("proof", "issuer")
    assert code_of(lambda: club.request(b"")) == code_of(lambda: club.request(b"b" * 257)) == "malformed"


# -- bytes ------------------------------------------------------------------------------------------
def test_changed_bytes_are_refused(club: Club) -> None:
    """A quote with any change of a byte, a part or the length is refused, by a Refusal and nothing else."""
    request = club.request()
    raw = club.members[0].quote(club.credentials[0], request)
    assert quote.encode(*quote.decode(raw)) == raw
    chance = random.Random(20261201)
    codes = set()
    for number in range(400):
        wrong = bytearray(raw)
        place = chance.randrange(len(wrong))
        if number % 4 == 0:
            del wrong[place : place + chance.randint(1, 40)]
        elif number % 4 == 1:
            wrong[place:place] = chance.randbytes(chance.randint(1, 40))
        else:
            wrong[place] ^= 1 << chance.randrange(8)
        codes.add(code_of(lambda wrong=wrong: quote.verify(bytes(wrong), club.issuer, request, PCRS)))
    assert {"malformed", "proof"} <= codes


@given(st.binary(max_size=1200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused(raw: bytes) -> None:
    for decode in (quote.decode, Credential.decode, IssuerKey.decode):
        assert code_of(lambda decode=decode: decode(raw)) == "malformed"


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_no_member_s_key(raw: bytes) -> None:
    head = bytes.fromhex("0023000b0005047200000010001a000b000000100010")
    for tried in (raw, head + raw, head + b"\0\x20" + raw):
        assert code_of(lambda tried=tried: member_key(tried)) in ("malformed", "key")


def test_command_tells_each_mistake(club: Club, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command's files come from a stranger: a mistake is one line and exit code 1, never a traceback."""
    request = club.request(b"shop")
    raw = club.members[0].quote(club.credentials[0], request)
    text = base64.b64encode
    good = {
        "issuer": {"issuer": text(club.issuer.encode()).decode()},
        "quote": {"quote": text(raw).decode()},
        "nonce": {"nonce": request.nonce.hex()},
        "values": {"pcrs": {str(pcr): value.hex() for pcr, value in PCRS.items()}},
        "rogues": {"keys": ["05"], "pseudonyms": []},
    }

    def run(**changed: object) -> tuple[int, str, str]:
        for name, content in {**good, **changed}.items():
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        at = [str(tmp_path / name) for name in good]
        code = command.main(["verify", *at[:4], "--basename", "shop", "--rogues", at[4]])
        return (code, *capsys.readouterr())

    code, said, _ = run()
    assert code == 0
    assert json.loads(said)["good"] is True
    lost = club.members[0].secret.to_bytes(32, "big").hex()
    for mistake in (
        {"issuer": "{"},
        {"issuer": []},
        {"issuer": {"issuer": "AA"}},
        {"issuer": {"issuer": 5}},
        {"quote": {"quote": text(raw + b"x").decode()}},
        {"quote": {}},
        {"nonce": {"nonce": "zz"}},
        {"nonce": {"nonce": "00"}},
        {"values": {"pcrs": {}}},
        {"values": {"pcrs": {"24": "00"}}},
        {"values": {"pcrs": {"-1": "00"}}},
        {"values": {"pcrs": {"0": "00", "7": "00" * 63}}},
        {"values": {"pcrs": {"0": "xx"}}},
        {"values": {"pcrs": 5}},
        {"rogues": {"keys": [5]}},
        {"rogues": {"keys": ["00"]}},
        {"rogues": {"keys": ["ff" * 32]}},
        {"rogues": {"keys": 5}},
        {"rogues": {"key": []}},
        {"rogues": {"pseudonyms": ["00" * 64]}},
        {"rogues": {"pseudonyms": [[]]}},
        {"rogues": {"keys": [lost]}},
    ):
        code, said, told = run(**mistake)
        assert (code, said) == (1, ""), mistake
        assert told.startswith("anonymous attestation: "), mistake
        assert told.count("\n") == 1, mistake


def test_infinity_and_large_coordinates_are_no_points(club: Club) -> None:
    good = club.members[0].point
    large = (good[0] + fields.P).to_bytes(33, "big")[-32:] if good[0] + fields.P < 2**256 else b"\xff" * 32
    for wrong in (bytes(64), b"", bytes(63), large + good[1].to_bytes(32, "big"), fields.P.to_bytes(32, "big") * 2):
        with pytest.raises(ValueError, match="point"):
            curve.decode(wrong)


@given(st.binary(min_size=1, max_size=64))
@settings(max_examples=40, deadline=None)
def test_basename_has_one_point(basename: bytes) -> None:
    seed, point = curve.hashed(basename)
    assert curve.on_curve(point)
    assert curve.hashed(basename) == (seed, point)
    assert curve.hashed(basename + b"x")[1] != point


def test_nothing_else_imports_it() -> None:
    """It is off by default: the library, its plugins and its commands work without it."""
    found = [
        path
        for folder in ("_utils", "_modules", "_runners", "_states", "client")
        for path in (ROOT / folder).rglob("*.py")
        if "attestation/daa/" not in str(path) and "attestation.daa" in path.read_text()
    ]
    assert found == []


def test_commands_share_the_lock_of_the_host_s_tpm(monkeypatch: pytest.MonkeyPatch) -> None:
    """All uses of a TPM share one lock, which lies where no other user can take it first."""
    locks: list[Path] = []

    def run(tcti: str, work: object, *, lock: Path) -> dict[str, str]:
        locks.append(lock)
        return {}

    monkeypatch.setattr(device, "run", run)
    assert command.main(["request"]) == 0
    assert command.main(["request", "--lock", "/run/other"]) == 0
    assert locks == [self_appraisal.lock_path(Layout()), Path("/run/other")]


def test_verifier_needs_neither_tpm_nor_cryptography() -> None:
    """A verifier's process loads neither libtss2 nor a compiled package but msgspec."""
    code = (
        "import sys; from netspace.attestation.daa import quote; "
        "print([one for one in ('tpm2_pytss', 'cryptography', 'salt') if one in sys.modules])"
    )
    environment = {"PYTHONPATH": str(ROOT / "_utils"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_software_member_encodes_as_a_tpm_does(club: Club) -> None:
    """Quotes that swtpm made (``make_vectors`` of the functional test), and their issuer's key, stay valid."""
    for path in sorted(VECTORS.glob("swtpm-*.txt")):
        vector = dict(line.split(" ", 1) for line in path.read_text().splitlines())
        issuer = IssuerKey.decode(base64.b64decode(vector["issuer"]))
        basename = bytes.fromhex(vector["basename"]) if vector["basename"] != "-" else None
        request = scheme.Request(issuer.digest, bytes.fromhex(vector["nonce"]), basename)
        pcrs = {int(part.split(":")[0]): bytes.fromhex(part.split(":")[1]) for part in vector["pcrs"].split(",")}
        made = quote.verify(base64.b64decode(vector["quote"]), issuer, request, pcrs)
        assert made.pseudonym == vector["pseudonym"].replace("-", "")
        proof, _ = quote.decode(base64.b64decode(vector["quote"]))
        if path.stem == "swtpm-linked":
            assert tate.is_credential((issuer.x, issuer.y), (proof.r, proof.s, proof.t, proof.w))
        assert len(proof.nonce) == int(vector["nonce-size"])
    assert len(list(VECTORS.glob("swtpm-*.txt"))) >= 3
    assert anonymous.PCRS
