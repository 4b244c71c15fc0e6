"""A catalogue of forgeries.

Each forgery goes the whole way from the wire to the result, and is refused with its own code. The genuine evidence
from which the forgeries are made reaches L5.

The attacker may send and boot anything; he has his own TPMs and keys, and old evidence of this host. He can't make this
host's TPM sign anything that a real TPM would not sign. So forgeries use ``tpm`` only for such signatures.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import struct
from collections.abc import Callable
from typing import Any

import pytest
from support.attestation import boot_forge, boot_logs
from support.attestation.boot_forge import PCRS, index, measured

from netspace.attestation import refusals
from netspace.attestation.evidence import Context, Evidence, parse
from netspace.attestation.logs import events, ima
from netspace.attestation.policy import policy
from netspace.attestation.tpm.structures import Clock
from netspace.attestation.verifier import attestation_keys, verifier
from netspace.attestation.verifier.verifier import Expected

NOW = 1_700_000_000.0
QUOTED = PCRS["shim-grub"]
NONCE = bytes(range(32))
CONTEXT = Context("verifier", "host", "session", NONCE)
LINES = boot_logs.read("shim-grub/ima_binary_runtime_measurements")


class Scene:
    """A host after the recorded boot, its verifier, and an attacker in between."""

    def __init__(self, tpm: Any, other: Any) -> None:
        self.tpm, self.other = tpm, other
        self.log = boot_logs.read("shim-grub/binary_bios_measurements")
        self.lines = LINES
        tpm.pcrs = boot_logs.values("shim-grub")
        self.certified = True
        self.clock = Clock(900, 5, 2, True)
        files: dict[str, list[str]] = {}
        for entry in ima.parse(LINES):
            file = ima.file(entry)
            assert file is not None
            files.setdefault(file.path.decode(), []).append("sha256:" + file.digest.partition(b":\0")[2].hex())
        self.rules = {**boot_forge.policy("shim-grub"), "ima": {"files": files}}

    def evidence(self, context: Context = CONTEXT, pcrs: tuple[int, ...] = QUOTED, **changes: Any) -> Evidence:
        return dataclasses.replace(
            self.tpm.evidence(context, pcrs, **changes),
            boot_log=self.log,
            ima=self.tpm.measurements(context, self.lines),
        )

    def boot(self, edit: Callable[[list], None]) -> None:
        self.log, self.tpm.pcrs = boot_forge.edited("shim-grub", edit)

    def verdict(self, wire: Any) -> str:
        try:
            made = attestation_keys.challenge(self.tpm.enrolment(), CONTEXT, roots=[], pinned=None, now=NOW)
            bound = made.redeem(CONTEXT.activation(self.tpm.activate(made.blob, made.encrypted), made._key.name), NOW)
            if self.certified:
                bound = dataclasses.replace(bound, level=3)
            expected = Expected(CONTEXT, QUOTED, self.clock, None, policy.parse(self.rules))
            return verifier.verify_quote(parse(wire), bound, expected).code
        except refusals.Refused as err:
            return err.code


@pytest.fixture
def scene(fake_tpm: Any) -> Scene:
    return Scene(fake_tpm, type(fake_tpm)())


def resigned(scene: Scene, made: Evidence, attest: bytes, key: Any = None) -> dict:
    """Return evidence with another statement, signed by *key*, or by the TPM's own key if a TPM would sign it."""
    return dataclasses.replace(made, attest=attest, signature=(key or scene.tpm).sign(attest)).wire()


def edited(made: Evidence, **changes: Any) -> dict:
    return {**made.wire(), **changes}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


FORGERIES: dict[str, tuple[str, Callable[[Scene], Any]]] = {}


def forgery(code: str) -> Callable[[Callable[[Scene], Any]], Callable[[Scene], Any]]:
    def keep(make: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
        FORGERIES[make.__name__] = (code, make)
        return make

    return keep


# -- what is signed -----------------------------------------------------------------
@forgery("qualifying-data")
def replay_of_old_evidence(s: Scene) -> Any:
    return s.evidence(dataclasses.replace(CONTEXT, nonce=bytes(32))).wire()


@forgery("qualifying-data")
def evidence_of_another_session(s: Scene) -> Any:
    return s.evidence(dataclasses.replace(CONTEXT, session="other")).wire()


@forgery("qualifying-data")
def evidence_relayed_from_another_minion(s: Scene) -> Any:
    return s.evidence(dataclasses.replace(CONTEXT, host="other")).wire()


@forgery("qualifying-data")
def evidence_relayed_by_another_verifier(s: Scene) -> Any:
    return s.evidence(dataclasses.replace(CONTEXT, verifier="other")).wire()


@forgery("qualifying-data")
def bound_to_a_key_of_the_attackers(s: Scene) -> Any:
    return s.evidence(dataclasses.replace(CONTEXT, binding=b"key")).wire()


@forgery("ak-unknown")
def attestation_key_substituted(s: Scene) -> Any:
    s.other.pcrs = s.tpm.pcrs
    return s.other.evidence(CONTEXT, QUOTED).wire()


@forgery("signature")
def attestation_key_claimed_and_signed_by_another(s: Scene) -> Any:
    made = s.evidence()
    return resigned(s, made, made.attest, s.other)


@forgery("ak-unknown")
def a_software_key_in_the_place_of_a_tpm(s: Scene) -> Any:
    return edited(s.evidence(), kind="software")


@forgery("magic")
def a_statement_that_no_tpm_made(s: Scene) -> Any:
    made = s.evidence()
    return dataclasses.replace(made, attest=b"\0" + made.attest[1:]).wire()


@forgery("type")
def a_certification_passed_off_as_a_quote(s: Scene) -> Any:
    return s.evidence(kind=0x8017).wire()


@forgery("scheme")
def signature_scheme_swapped(s: Scene) -> Any:
    made = s.evidence()
    return dataclasses.replace(made, signature=b"\0\x14\0\x0b\1\0" + bytes(256)).wire()


@forgery("scheme")
def signature_hash_downgraded_to_sha1(s: Scene) -> Any:
    made = s.evidence()
    return dataclasses.replace(made, signature=made.signature[:2] + b"\0\x04" + made.signature[4:]).wire()


@forgery("signature")
def a_bit_of_the_quote_flipped(s: Scene) -> Any:
    made = s.evidence()
    return dataclasses.replace(made, attest=made.attest[:-1] + bytes([made.attest[-1] ^ 1])).wire()


@forgery("malformed")
def something_after_the_quote(s: Scene) -> Any:
    made = s.evidence()
    return dataclasses.replace(made, attest=made.attest + b"\0").wire()


@forgery("malformed")
def fields_larger_than_can_be(s: Scene) -> Any:
    return edited(s.evidence(), attest=b64(bytes(5000)))


@forgery("malformed")
def an_inner_length_beyond_the_end(s: Scene) -> Any:
    made = s.evidence()
    return dataclasses.replace(made, attest=made.attest[:6] + b"\xff\xff" + made.attest[8:]).wire()


@forgery("malformed")
def an_unknown_field(s: Scene) -> Any:
    return edited(s.evidence(), level=5)


# -- PCRs ---------------------------------------------------------------------------
@forgery("pcr-selection")
def pcrs_relabelled(s: Scene) -> Any:
    """Present the quote of PCR 16, which any program can reset, as PCR 7."""
    made = s.evidence(pcrs=tuple(16 if pcr == 7 else pcr for pcr in QUOTED))
    values = {7 if pcr == 16 else pcr: value for pcr, value in made.pcrs.items()}
    return dataclasses.replace(made, pcrs=values).wire()


@forgery("pcr-selection")
def fewer_pcrs_than_asked(s: Scene) -> Any:
    return s.evidence(pcrs=QUOTED[1:]).wire()


@forgery("pcr-selection")
def bank_downgraded_to_sha1(s: Scene) -> Any:
    return s.evidence(bank=0x0004).wire()


@forgery("malformed")
def bank_claimed_on_the_wire(s: Scene) -> Any:
    return edited(s.evidence(), bank="sha1")


@forgery("pcr-selection")
def duplicate_pcr_selections(s: Scene) -> Any:
    bits = sum(1 << pcr for pcr in QUOTED).to_bytes(3, "little")
    return s.evidence(selections=struct.pack(">I", 2) + (struct.pack(">HB", 0x000B, 3) + bits) * 2).wire()


@forgery("malformed")
def a_pcr_twice_under_two_spellings(s: Scene) -> Any:
    made = s.evidence().wire()
    return {**made, "pcrs": {**made["pcrs"], "07": made["pcrs"]["7"]}}


@forgery("pcr-digest")
def values_of_a_better_boot(s: Scene) -> Any:
    made = s.evidence()
    return dataclasses.replace(made, pcrs={**made.pcrs, 7: bytes(32)}).wire()


# -- time ---------------------------------------------------------------------------
@forgery("clock")
def clock_rolled_back(s: Scene) -> Any:
    s.tpm.clock = (800, 5, 2, 1)
    return s.evidence().wire()


@forgery("clock")
def quote_from_an_earlier_boot(s: Scene) -> Any:
    s.tpm.clock = (10_000, 4, 9, 1)
    return s.evidence().wire()


@forgery("ima-boot")
def measurements_quoted_in_another_boot(s: Scene) -> Any:
    made = s.evidence()
    s.tpm.clock = (1, 4, 0, 1)
    return dataclasses.replace(made, ima=s.tpm.measurements(CONTEXT, LINES)).wire()


# -- the boot log -------------------------------------------------------------------
@forgery("log-malformed")
def truncated_log(s: Scene) -> Any:
    s.log = s.log[:-1]
    return s.evidence().wire()


@forgery("log-mismatch")
def log_with_its_last_events_cut_off(s: Scene) -> Any:
    s.log = boot_forge.packed(list(boot_forge.log("shim-grub").events[1:-12]))
    return s.evidence().wire()


@forgery("log-mismatch")
def reordered_log(s: Scene) -> Any:
    found = list(boot_forge.log("shim-grub").events[1:])
    first, second = index(found, 4, events.APPLICATION), index(found, 4, events.APPLICATION, number=1)
    found[first], found[second] = found[second], found[first]
    s.log = boot_forge.packed(found)
    return s.evidence().wire()


@forgery("log-mismatch")
def log_with_an_event_that_was_not_measured(s: Scene) -> Any:
    found = list(boot_forge.log("shim-grub").events[1:])
    s.log = boot_forge.packed([*found, measured(7, events.EFI_ACTION, b"x")])
    return s.evidence().wire()


@forgery("log-mismatch")
def another_startup_locality(s: Scene) -> Any:
    found = list(boot_forge.log("shim-grub").events[1:])
    data = b"StartupLocality\0\3"
    s.log = boot_forge.packed([measured(0, 3, data), *found])
    s.rules["boot"]["unchecked"].remove(0)
    s.rules["boot"]["pcrs"]["0"] = [s.tpm.pcrs[0].hex()]
    return s.evidence().wire()


@forgery("log-mismatch")
def log_without_the_bank_that_was_quoted(s: Scene) -> Any:
    raw = b""
    for event in boot_forge.log("shim-grub").events[1:]:
        raw += struct.pack("<II", event.pcr, event.type) + event.digests["sha1"]
        raw += struct.pack("<I", len(event.data)) + event.data
    s.log = raw
    return s.evidence().wire()


@forgery("log-none")
def no_log(s: Scene) -> Any:
    return dataclasses.replace(s.evidence(), boot_log=None).wire()


@forgery("boot-event")
def log_that_says_something_else_than_was_measured(s: Scene) -> Any:
    old, new = ("SecureBoot".encode("utf-16-le"), "SecureB00t".encode("utf-16-le"))
    assert old in s.log
    s.log = s.log.replace(old, new)
    return s.evidence().wire()


@forgery("secure-boot")
def secure_boot_off(s: Scene) -> Any:
    def edit(found: list) -> None:
        at = index(found, 7, events.VARIABLE_DRIVER_CONFIG, "SecureBoot")
        found[at] = measured(7, events.VARIABLE_DRIVER_CONFIG, found[at].data[:-1] + b"\0")

    s.boot(edit)
    return s.evidence().wire()


@forgery("dbx-old")
def an_emptied_revocation_list(s: Scene) -> Any:
    def edit(found: list) -> None:
        at = index(found, 7, events.VARIABLE_DRIVER_CONFIG, "dbx")
        found[at] = measured(7, events.VARIABLE_DRIVER_CONFIG, found[at].data[:24] + bytes(8) + found[at].data[32:38])

    s.boot(edit)
    return s.evidence().wire()


@forgery("boot-signer")
def a_loader_signed_by_another(s: Scene) -> Any:
    def edit(found: list) -> None:
        at = index(found, 7, events.VARIABLE_AUTHORITY, "db")
        found[at] = measured(7, events.VARIABLE_AUTHORITY, found[at].data[:-1] + b"\0")

    s.boot(edit)
    return s.evidence().wire()


@forgery("boot-application")
def a_shell_before_the_loader(s: Scene) -> Any:
    s.boot(lambda found: found.insert(30, measured(4, events.APPLICATION, b"x", b"shell")))
    return s.evidence().wire()


@forgery("boot-file")
def another_initrd(s: Scene) -> Any:
    s.boot(lambda found: found.append(measured(9, events.IPL, b"/tiny.img\0", b"evil")))
    return s.evidence().wire()


@forgery("command-line")
def another_command_line(s: Scene) -> Any:
    s.boot(lambda found: found.append(measured(8, events.IPL, b"kernel_cmdline: init=/bin/sh\0", b"init=/bin/sh")))
    return s.evidence().wire()


@forgery("policy-uncovered")
def a_policy_that_forgot_a_pcr(s: Scene) -> Any:
    s.rules["boot"]["unchecked"].remove(14)
    return s.evidence().wire()


@forgery("ek-untrusted")
def missing_endorsement_certificate(s: Scene) -> Any:
    s.certified = False
    return s.evidence().wire()


# -- IMA ----------------------------------------------------------------------------
@forgery("ima-none")
def no_measurement_list(s: Scene) -> Any:
    return dataclasses.replace(s.evidence(), ima=None).wire()


@forgery("ima-malformed")
def a_measurement_list_that_is_cut(s: Scene) -> Any:
    s.lines = LINES[:-1]
    return s.evidence().wire()


@forgery("ima-mismatch")
def a_program_left_out_of_the_list(s: Scene) -> Any:
    entries = ima.parse(LINES)
    start = sum(28 + len(one.template) + 4 + len(one.data) for one in entries[:9])
    s.lines = LINES[:start] + LINES[start + 28 + len(entries[9].template) + 4 + len(entries[9].data) :]
    return s.evidence().wire()


@forgery("ima-gap")
def only_the_harmless_end_of_the_list(s: Scene) -> Any:
    made = s.evidence()
    assert made.ima is not None
    return dataclasses.replace(made, ima=dataclasses.replace(made.ima, first=400)).wire()


def run(s: Scene, raw: bytes) -> Any:
    s.lines = LINES + raw
    s.tpm.pcrs[10] = list(ima.replay(ima.parse(s.lines)))[-1]
    return s.evidence().wire()


def line(path: bytes, digest: bytes) -> bytes:
    data = ima.line(path, b"sha256:\0" + digest) + bytes(4)
    return struct.pack("<I", 10) + hashlib.sha1(data).digest() + struct.pack("<I7sI", 7, b"ima-sig", len(data)) + data


@forgery("ima-file")
def a_program_that_nobody_allowed(s: Scene) -> Any:
    return run(s, line(b"/tmp/evil", hashlib.sha256(b"evil").digest()))


@forgery("ima-file")
def an_allowed_path_with_other_content(s: Scene) -> Any:
    return run(s, line(b"/bin/busybox", hashlib.sha256(b"evil").digest()))


@forgery("ima-file")
def an_allowed_content_under_another_path(s: Scene) -> Any:
    entry = ima.file(ima.parse(LINES)[2])
    assert entry is not None
    return run(s, line(b"/sbin/init", entry.digest[8:]))


@forgery("ima-violation")
def a_program_written_while_it_was_measured(s: Scene) -> Any:
    raw = line(b"/bin/busybox", bytes(32))
    return run(s, raw[:4] + bytes(20) + raw[24:])


@forgery("ima-aggregate")
def the_list_of_another_boot_replayed_into_the_tpm(s: Scene) -> Any:
    s.lines = boot_logs.read("uki/ima_binary_runtime_measurements")
    s.tpm.pcrs[10] = list(ima.replay(ima.parse(s.lines)))[-1]
    return s.evidence().wire()


def test_the_genuine_evidence_beside_them(scene: Scene) -> None:
    assert scene.verdict(scene.evidence().wire()) == "ok"


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery(name: str, scene: Scene) -> None:
    code, make = FORGERIES[name]
    assert scene.verdict(make(scene)) == code


def test_there_are_many() -> None:
    assert len(FORGERIES) >= 50
    assert len({code for code, _ in FORGERIES.values()}) >= 25
