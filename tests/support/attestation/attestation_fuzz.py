"""Fuzzer of every parser of the verifier: each mutated input must soon give a value or a refusal.

``python tests/support/attestation/attestation_fuzz.py [COUNT] [SEED]``: try COUNT inputs (default 1,000,000), spread
over all parsers. It prints how many inputs each parser accepted and refused, and the slowest input. A finding ends the
run with a traceback and the input in hex. Small runs are part of the tests.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "_utils"))

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from netspace.attestation import ear
from netspace.attestation.endorsement import ek_certificates
from netspace.attestation.evidence import Enrolment, Evidence, Measurements, parse_enrolment
from netspace.attestation.evidence import parse as parse_evidence
from netspace.attestation.fleet import groups, transfer
from netspace.attestation.logs import events, ima, systemd
from netspace.attestation.logs.eventlog import parse as parse_log
from netspace.attestation.policy import policy
from netspace.attestation.refusals import Malformed, Refused
from netspace.attestation.tpm import pcr_values, structures
from netspace.attestation.verifier import appraisal, offline
from netspace.errors import NetspaceError
from support import fuzzing
from support.attestation import boot_forge, boot_logs, tee_fuzz
from support.fuzzing import Tally
from support.mutation import mutate


def _log(raw: bytes) -> None:
    log = parse_log(raw)
    for bank in log.banks:
        log.replay(bank)
    events.report(log)


def _judged(values: dict[int, bytes], rules: policy.Policy) -> Callable[[bytes], None]:
    """Return a parser that appraises a log with PCR values from the log itself, so that the policy is reached."""

    def work(raw: bytes) -> None:
        log = parse_log(raw)
        led = log.replay("sha256")
        quoted = {pcr: led.get(pcr, value) for pcr, value in values.items()}
        appraisal.judged_boot(Evidence("tpm", b"", b"", b"", quoted, raw), rules.boot, None)

    return work


def _ima(raw: bytes) -> None:
    for entry in ima.parse(raw):
        ima.file(entry)
        ima.genuine(entry)


def _public(raw: bytes) -> None:
    structures.public(raw).key()


def _told(parse: Callable[[Any], object]) -> Callable[[bytes], None]:
    """Return *parse*, with refusals of its own class turned into the verifier's :class:`Refused`.

    So the fuzzer counts them as refusals.
    """

    def work(raw: bytes) -> None:
        try:
            parse(raw)
        except Refused:
            raise
        except NetspaceError as err:
            raise Malformed(str(err)) from err

    return work


def _wire(parse: Callable[[Any], object]) -> Callable[[bytes], None]:
    """Return a parser of messages from Salt's bus, whose input is the messages as JSON."""

    def work(raw: bytes) -> None:
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError) as err:
            raise Malformed(str(err)) from err
        parse(data)

    return _told(work)


def _alone(genuine: bytes, parse: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """Return a parser of signed data that fails if it accepts anything except the genuine bytes."""

    def work(raw: bytes) -> None:
        parse(raw)
        if raw != genuine:
            raise AssertionError("something else than the genuine one was accepted")

    return work


def _parts(data: Any) -> None:
    head, *rest = data if isinstance(data, list) and data else [None]
    coming = transfer.Parts(head)
    for one in rest:
        if coming.next is None:
            break
        coming.add(one)
    coming.whole()


def _maker() -> tuple[bytes, bytes, bytes]:
    """Return a maker's certificate, an endorsement key's certificate and a revocation list, as DER.

    The bytes are the same at each call.
    """
    key = ec.derive_private_key(7, ec.SECP256R1())
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    end = start + datetime.timedelta(days=3650)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "maker")])
    usage = dict.fromkeys(("content_commitment", "data_encipherment", "encipher_only", "decipher_only"), False)

    def issue(subject: x509.Name, ca: bool) -> bytes:
        may = x509.KeyUsage(
            digital_signature=False,
            key_encipherment=not ca,
            key_agreement=False,
            key_cert_sign=ca,
            crl_sign=ca,
            **usage,
        )
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(7 + ca).not_valid_before(start).not_valid_after(end)
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True).add_extension(may, True)
        return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)

    revoked = x509.RevokedCertificateBuilder().serial_number(99).revocation_date(start).build()
    listed = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(start).next_update(end)
    listed = listed.add_revoked_certificate(revoked)
    crl = listed.sign(key, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)
    return issue(name, True), issue(x509.Name([]), False), crl


def targets() -> dict[str, tuple[Callable[[bytes], object], list[bytes]]]:
    """Return the parsers, each with genuine inputs from which the fuzzer starts."""
    shim = boot_logs.read("shim-grub/binary_bios_measurements")
    uki = boot_logs.read("uki/binary_bios_measurements")
    sha1 = b"".join(struct.pack("<II20sI", pcr, 0x80000007, bytes(20), 4) + b"text" for pcr in range(8))
    small = boot_forge.packed(list(boot_forge.log("shim-grub").events[1:20]))
    text_lines = b"".join(boot_logs.read("shim-grub/ima_ascii_head.txt").splitlines(keepends=True)[:4])
    lines = ima.from_ascii(text_lines)
    head = struct.pack(">HHIHHHHHH", 0x23, 0x0B, 0x50072, 0, 0x10, 0x18, 0x0B, 3, 0x10)
    rsa = struct.pack(">HHIHHHHHI", 1, 0x0B, 0x50072, 0, 0x10, 0x14, 0x0B, 2048, 0) + b"\1\0" + b"\xc1" * 256
    msg, sig = boot_logs.read("uki/quote.msg"), boot_logs.read("uki/quote.sig")
    chosen = [("sha256", sorted(structures.quote(msg).selections[0][1]))]
    rules = policy.parse(boot_forge.policy("shim-grub"))
    root, leaf, crl = _maker()
    now = datetime.datetime(2027, 1, 1, tzinfo=datetime.timezone.utc).timestamp()
    made = Evidence("tpm", head, msg, sig, {0: bytes(32)}, b"log", b"more", Measurements(msg, sig, bytes(32), 3, lines))
    known = dataclasses.replace(made, boot_log=None, known_log="00" * 32, ima=None)
    enrolment = Enrolment("EK-ECC256", head, leaf, head, (root,), {"manufacturer": "TEST"})
    whole = json.dumps({"boot": "b"})
    parts = [
        {"parts": 2, "sha256": hashlib.sha256(whole.encode()).hexdigest()},
        {"text": whole[:5]},
        {"text": whole[5:]},
    ]
    signer = ear.Signer(ec.derive_private_key(9, ec.SECP256R1()))
    told = ear.AppraisalClaims("web1", 3, 2, "policy-none", "why", "how", "ab" * 32, "boot", "web", 2, int(now) + 60)
    token = ear.make(signer, told, now, "1").encode()
    asked = {"minion": "web1", "nonce": "ab" * 32, "boot": "boot", "now": now, "versions": {}}
    text = b"sha256:\n  0 : 0x" + b"00" * 32 + b"\n"
    return {
        **tee_fuzz.targets(),
        "quote": (structures.quote, [msg, boot_logs.read("shim-grub/quote.msg")]),
        "signature": (structures.signature, [sig, b"\0\x14\0\x0b\1\0" + bytes(256)]),
        "public": (_public, [head + (b"\0\x20" + b"\1" * 32) * 2, rsa]),
        "key": (lambda raw: offline.key(raw), [boot_logs.read("uki/ak.pub"), head + (b"\0\x20" + b"\1" * 32) * 2]),
        "boot log": (_log, [small, sha1]),
        "whole boot log": (lambda raw: parse_log(raw), [shim, uki]),
        "boot policy": (
            _judged({pcr: boot_logs.values("shim-grub")[pcr] for pcr in boot_forge.PCRS["shim-grub"]}, rules),
            [boot_forge.packed(list(boot_forge.log("shim-grub").events[1:]))],
        ),
        "systemd's log": (lambda raw: systemd.parse(raw), [boot_logs.read("uki/systemd-tpm2-measure.log")]),
        "IMA list": (_ima, [lines]),
        "IMA list, ASCII": (
            lambda raw: ima.parse(ima.from_ascii(raw)),
            [text_lines],
        ),
        "evidence's wire": (
            _wire(parse_evidence),
            [json.dumps(made.wire()).encode(), json.dumps(known.wire()).encode()],
        ),
        "enrolment's wire": (_wire(parse_enrolment), [json.dumps(enrolment.wire()).encode()]),
        "answer in parts": (_wire(_parts), [json.dumps(parts).encode()]),
        "result": (_alone(token, lambda raw: ear.check(raw.decode("latin-1"), [signer.jwk], **asked)), [token]),
        "maker's certificate": (
            _alone(leaf, _told(lambda raw: ek_certificates.check(raw, [], [root], now, [crl]))),
            [leaf],
        ),
        "maker's root": (_told(lambda raw: ek_certificates.check(leaf, [raw], [root, raw], now, [crl])), [root]),
        "revocation list": (
            _told(lambda raw: ek_certificates.check(leaf, [], [root], now, [ek_certificates.revocations(raw)])),
            [crl],
        ),
        "groups": (
            _wire(lambda data: groups.parse(data, {"n": "L@a or b*"})),
            [b'[{"name": "a", "match": ["web*", "N@n", "E@x+$"], "minimum": "L4", "pcrs": [0, 7], "deadline": 99}]'],
        ),
        "PCR values": (
            lambda raw: pcr_values.parse(raw, chosen),
            [boot_logs.read("uki/quote.pcr"), text, b'{"sha256": {"0": "' + b"00" * 32 + b'"}}'],
        ),
    }


def run(count: int, seed: int) -> dict[str, Tally]:
    """Try *count* inputs.

    :raises AssertionError: a parser accepted or raised something that it must not; the error has the input.
    """
    chance = random.Random(seed)
    found: dict[str, Tally] = {}
    parsers = targets()
    for name, (parse, seeds) in parsers.items():
        tally = found[name] = Tally()
        for _ in range(count // len(parsers) + 1):
            tally.give(name, mutate(chance, chance.choice(seeds)), functools.partial(_read, parse))
    return found


def _read(parse: Callable[[bytes], Any], raw: bytes) -> bool:
    try:
        parse(raw)
    except Refused:
        return False
    return True


if __name__ == "__main__":
    fuzzing.main(run, "no unexpected exception")
