"""Anonymous attestation with software TPMs: join through the Privacy CA, quotes, links, and what they don't hide."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.attestation import tate
from support.attestation.anonymous import attest
from support.attestation.software_tpm import Factory

from netspace.attestation.daa import curve, fields, quote, scheme
from netspace.attestation.daa.issuer import Issuer, member_key
from netspace.attestation.daa.member import Member
from netspace.attestation.daa.scheme import Credential, IssuerKey, Refusal, Request
from netspace.attestation.endorsement.makers import Makers
from netspace.attestation.minion import attester
from netspace.attestation.registrar.registrar import Registrar
from netspace.attestation.tpm import device as tpm
from netspace.attestation.tpm import structures

DAY = 86400.0
PCRS = (0, 7)
ROOT = Path(__file__).parents[3]


class Host:
    """A host with a software TPM."""

    def __init__(self, name: str, tcti: str, folder: Path) -> None:
        self.name, self.tcti, self.lock = name, tcti, folder / f"{name}.lock"

    def run(self, work: Callable[[tpm.Device], Any]) -> Any:
        return tpm.run(self.tcti, work, lock=self.lock)

    def enrol(self, registrar: Registrar, now: float) -> None:
        period = bytes.fromhex(registrar.request(self.name)["period"])

        def work(device: tpm.Device) -> None:
            shown = attester.enrol(device, None, period, others=False)
            pending = registrar.begin(self.name, shown.wire(), "master", Makers(), now)
            made = pending.challenge
            opened = [attester.Credential(shown.template, made.blob, made.encrypted)]
            answer = attester.activate(device, opened, pending.context, period)
            registrar.finish(pending, {"answer": answer.hex()}, now)

        self.run(work)

    def keys(self) -> tuple[str, bytes, bytes]:
        """Return the endorsement key's template, the endorsement key, and the member's key."""

        def work(device: tpm.Device) -> tuple[str, bytes, bytes]:
            shown = device.endorsement()
            return shown.template, shown.public, Member(device).public()

        found: tuple[str, bytes, bytes] = self.run(work)
        return found

    def join(self, issuer: Issuer, now: float, name: str = "") -> Credential:
        template, endorsement, public = self.keys()
        challenge = issuer.challenge(name or self.name, endorsement, public, now)
        answer = self.run(lambda device: Member(device).activate(template, *challenge))
        credential = Credential.decode(issuer.admit(name or self.name, answer, now))
        credential.check(issuer.public(), member_key(public).point)
        return credential

    def quote(self, credential: Credential, request: Request) -> tuple[bytes, dict[int, bytes]]:
        found: tuple[bytes, dict[int, bytes]] = self.run(lambda device: Member(device).quote(credential, request, PCRS))
        return found


@pytest.fixture
def registrar(tmp_path: Path) -> Registrar:
    made = Registrar(tmp_path / "master")
    made.ca.init(time.time() - DAY)
    return made


@pytest.fixture
def issuer(registrar: Registrar) -> Issuer:
    made = Issuer(registrar)
    made.make(time.time())
    return made


@pytest.fixture
def hosts(make_tpm: Callable, factory: Factory, registrar: Registrar, tmp_path: Path) -> list[Host]:
    found = [Host("web1", make_tpm(factory).tcti, tmp_path), Host("web2", make_tpm().tcti, tmp_path)]
    for host in found:
        host.enrol(registrar, time.time())
    return found


def asked(issuer: IssuerKey, basename: bytes | None = b"shop") -> Request:
    return Request(issuer.digest, os.urandom(32), basename)


def code_of(work: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as caught:
        work()
    return caught.value.code


def test_enrolled_tpms_join_and_quote_anonymously(hosts: list[Host], issuer: Issuer, registrar: Registrar) -> None:
    now, public = time.time(), issuer.public()
    credentials = [host.join(issuer, now) for host in hosts]
    seen: list[quote.Verified] = []
    shown = []
    for number, basename in ((0, b"shop"), (0, b"shop"), (1, b"shop"), (0, b"bank"), (0, None)):
        request = asked(public, basename)
        raw, values = hosts[number].quote(credentials[number], request)
        made = quote.verify(raw, public, request, values)
        seen.append(made)
        shown.append(raw)
        assert code_of(lambda raw=raw, values=values: quote.verify(raw, public, asked(public), values)) in (
            *("proof", "basename"),
        )
        wrong = {**values, PCRS[0]: bytes(31) + b"\1"}
        assert code_of(lambda raw=raw, wrong=wrong, request=request: quote.verify(raw, public, request, wrong)) == (
            "digest"
        )
    # The same by the second implementation of the equations.
    proof, _ = quote.decode(shown[0])
    assert tate.is_credential((public.x, public.y), (proof.r, proof.s, proof.t, proof.w))
    names = [made.pseudonym for made in seen]
    assert names[0] == names[1] != names[2]
    assert names[3] not in names[:3]
    assert names[4] == ""
    # The request is not in the quote: a TPM signs it beside the quote of an anonymous key. Nor is the signer's name.
    assert all(not made.quote.signer and not made.quote.extra for made in seen)
    # A refused pseudonym.
    request = asked(public)
    raw, values = hosts[1].quote(credentials[1], request)
    refused = quote.Rogues(pseudonyms=quote.pseudonyms([names[2]]))
    assert code_of(lambda: quote.verify(raw, public, request, values, refused)) == "pseudonym"
    # The issuer's log tells who joined.
    events = [json.loads(line)["event"] for line in registrar.log.read_text().splitlines()]
    assert events.count("anonymous-member") == 2
    registrar.verify_log()


def test_curve_is_the_one_of_the_tpm(make_tpm: Callable, tmp_path: Path) -> None:
    def parameters(device: tpm.Device) -> dict[str, int]:
        tss, esapi = device.tss, device.esapi
        found = esapi.ecc_parameters(tss.constants.TPM2_ECC.BN_P256)
        names = ("p", "a", "b", "gX", "gY", "n", "h")
        return {name: int.from_bytes(bytes(getattr(found, name)), "big") for name in names}

    x, y = curve.GENERATOR
    told = Host("web1", make_tpm().tcti, tmp_path).run(parameters)
    assert told == {"p": fields.P, "a": 0, "b": curve.B, "gX": x, "gY": y, "n": fields.N, "h": 1}


def test_quote_tells_clock_and_firmware_and_no_more(hosts: list[Host], issuer: Issuer) -> None:
    """A quote's statement differs between two TPMs of one make in clock and counters alone. Those can link quotes."""
    now, public = time.time(), issuer.public()
    statements = []
    for host in hosts:
        request = asked(public, None)
        raw, values = host.quote(host.join(issuer, now), request)
        statements.append(quote.verify(raw, public, request, values).quote)
    one, two = statements
    # In another hierarchy, each TPM would add a number of its own to the version.
    assert one.firmware == two.firmware
    assert one._replace(clock=two.clock, digest=two.digest) == two


def forged(host: Host, credential: Credential, request: Request, pcrs: dict[int, bytes]) -> bytes:
    """Return a quote of made-up PCRs: the host, who has all rights, lets its TPM hash and sign what a quote would be.

    :raises tpm.DeviceError: the TPM refuses.
    """
    stated = attest(pcrs)
    r, s, t, w = credential.randomized()

    def work(device: tpm.Device) -> bytes:
        tss, esapi, member = device.tss, device.esapi, Member(device)
        with member._key() as (key, _):
            made = member._commit(key, s, None)
            qualifying = request.qualifying((r, s, t, w), [made.first])
            whole = qualifying + hashlib.sha256(stated).digest()
            hashed, ticket = esapi.hash(
                tss.TPM2B_MAX_BUFFER(whole), tss.constants.TPM2_ALG.SHA256, tss.ESYS_TR.ENDORSEMENT
            )
            way = tss.TPMT_SIG_SCHEME(scheme=tss.constants.TPM2_ALG.ECDAA)
            way.details.ecdaa.hashAlg = tss.constants.TPM2_ALG.SHA256
            way.details.ecdaa.count = made.counter
            signature = esapi.sign(key, hashed, way, ticket)  # it must live as long as its parts
        signed = signature.signature.ecdaa
        response = int.from_bytes(bytes(signed.signatureS), "big")
        return quote.encode(scheme.Proof(r, s, t, w, None, qualifying, bytes(signed.signatureR), response), stated)

    found: bytes = host.run(work)
    return found


def test_tpm_signs_no_quote_that_its_host_made_up(
    hosts: list[Host], issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The qualifying data begins with a value that keeps a TPM from signing it otherwise than in a quote."""
    now, public, wanted = time.time(), issuer.public(), {0: bytes(31) + b"\1", 7: bytes(32)}
    host = hosts[0]
    credential = host.join(issuer, now)
    with pytest.raises(tpm.DeviceError, match="invalid ticket"):
        forged(host, credential, asked(public, None), wanted)
    # Without the value, the TPM signs it, and every check passes.
    monkeypatch.setattr(scheme, "PREFIX", b"")
    monkeypatch.setattr(quote, "QUALIFYING", 32)
    request = asked(public, None)
    quote.verify(forged(host, credential, request, wanted), public, request, wanted)


def test_host_joins_with_its_own_tpm_and_one_key(
    hosts: list[Host], issuer: Issuer, registrar: Registrar, tmp_path: Path
) -> None:
    now = time.time()
    web1, web2 = hosts
    template, endorsement, public = web1.keys()
    _, theirs, other = web2.keys()
    # By the name of another, with another's endorsement key, without an enrolment.
    assert code_of(lambda: issuer.challenge("web2", endorsement, public, now)) == "host"
    assert code_of(lambda: issuer.challenge("nobody", endorsement, public, now)) == "host"
    # The key of another TPM: the challenge can't be opened here.
    challenge = issuer.challenge("web1", endorsement, other, now)
    with pytest.raises(tpm.DeviceError):
        web1.run(lambda device: Member(device).activate(template, *challenge))
    assert code_of(lambda: issuer.admit("web1", bytes(32), now)) == "answer"
    assert code_of(lambda: issuer.admit("web1", bytes(32), now)) == "late"  # a challenge counts once
    # Too late.
    challenge = issuer.challenge("web1", endorsement, public, now)
    answer = web1.run(lambda device: Member(device).activate(template, *challenge))
    assert code_of(lambda: issuer.admit("web1", answer, now + 61)) == "late"
    # Keys that aren't a TPM's restricted key on this curve.
    for wrong in (
        public[:4] + (0x00040472).to_bytes(4, "big") + public[8:],  # not restricted
        public[:4] + (0x00050470).to_bytes(4, "big") + public[8:],  # not fixed to the TPM
        public[:-1] + bytes([public[-1] ^ 1]),
        endorsement,
        public + b"\0",
        b"",
    ):
        assert code_of(lambda wrong=wrong: issuer.challenge("web1", endorsement, wrong, now)) in ("key", "malformed")
    assert web1.join(issuer, now) != web1.join(issuer, now)  # again with the same key
    # Another key of a member: by the record of an earlier key.
    record = next(issuer._folder.glob("member-*.json"))
    record.write_text(record.read_text().replace(json.loads(record.read_text())["name"][4:12], "00000000"))
    assert code_of(lambda: issuer.challenge("web1", endorsement, public, now)) == "member"
    # A new issuer's key forgets members, and former credentials are of no use.
    former, public_before = web2.join(issuer, now), issuer.public()
    issuer.make(now)
    request = asked(issuer.public())
    raw, values = web2.quote(former, request)
    assert code_of(lambda: quote.verify(raw, issuer.public(), request, values)) == "credential"
    assert issuer.public() != public_before
    web1.join(issuer, now)
    # A revoked host.
    registrar.revoke("web2", "lost", now)
    assert code_of(lambda: issuer.challenge("web2", theirs, other, now)) == "host"


def test_all_of_it_by_commands(hosts: list[Host], registrar: Registrar, tmp_path: Path) -> None:
    host = hosts[0]

    def run(command: str, *arguments: object, into: str = "") -> subprocess.CompletedProcess[str]:
        chosen = ("--tpm", host.tcti, "--lock", str(host.lock)) if command in ("request", "answer", "quote") else ()
        done = subprocess.run(
            [sys.executable, "-m", "netspace.attestation.daa", command, *map(str, arguments), *chosen],
            env={**os.environ, "PYTHONPATH": str(ROOT / "_utils")},
            capture_output=True,
            text=True,
            check=False,
        )
        if into:
            assert done.returncode == 0, done.stderr
            (tmp_path / into).write_text(done.stdout)
        return done

    def at(name: str) -> Path:
        return tmp_path / name

    run("make", registrar.folder, into="issuer")
    run("request", into="request")
    run("challenge", registrar.folder, host.name, at("request"), into="challenge")
    run("answer", at("challenge"), into="answer")
    run("admit", registrar.folder, host.name, at("answer"), into="credential")
    run("check", at("issuer"), at("credential"), at("request"), into="checked")
    run("nonce", into="nonce")
    run("quote", at("issuer"), at("credential"), at("nonce"), 0, 7, "--basename", "shop", into="quote")
    run("verify", at("issuer"), at("quote"), at("nonce"), at("quote"), "--basename", "shop", into="verified")
    verified = json.loads(at("verified").read_text())
    assert verified["good"] is True
    assert len(verified["pseudonym"]) == 2 * curve.SIZE
    at("rogues").write_text(json.dumps({"pseudonyms": [verified["pseudonym"]]}))
    refused = ("verify", at("issuer"), at("quote"), at("nonce"), at("quote"), "--basename", "shop", "--rogues")
    done = run(*refused, at("rogues"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "[pseudonym]" in done.stderr
    run("nonce", into="other")
    done = run("verify", at("issuer"), at("quote"), at("other"), at("quote"), "--basename", "shop")
    assert (done.returncode, done.stdout) == (1, "")
    assert "[proof]" in done.stderr


def make_vectors(host: Host, credential: Credential, issuer: IssuerKey, folder: Path) -> None:
    """Write vectors for the unit tests: with and without a basename, and with a nonce of fewer bytes than 32.

    Call it by hand, from a test, to make them anew.
    """
    wanted: dict[str, tuple[bytes | None, bool]] = {
        "linked": (b"shop", False),
        "unlinked": (None, False),
        "short-nonce": (b"shop", True),
    }
    for name, (basename, short) in wanted.items():
        while True:
            request = asked(issuer, basename)
            raw, values = host.quote(credential, request)
            proof, _ = quote.decode(raw)
            if short == (len(proof.nonce) < scheme.SCALAR):
                break
        made = quote.verify(raw, issuer, request, values)
        lines = {
            "issuer": base64.b64encode(issuer.encode()).decode(),
            "nonce": request.nonce.hex(),
            "basename": "-" if basename is None else basename.hex(),
            "pcrs": ",".join(f"{pcr}:{value.hex()}" for pcr, value in values.items()),
            "quote": base64.b64encode(raw).decode(),
            "pseudonym": made.pseudonym or "-",
            "nonce-size": str(len(proof.nonce)),
        }
        text = "".join(f"{key} {value}\n" for key, value in lines.items())
        (folder / f"swtpm-{name}.txt").write_text(text)
        assert structures.quote(quote.decode(raw)[1]).extra == b""
