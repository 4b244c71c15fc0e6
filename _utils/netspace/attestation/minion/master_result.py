"""Host's side of attestation by the master: it answers challenges, and stores the signed results.

An answer that is too large for Salt's bus (``PART``) waits in ``answer.json``, and the master fetches it in parts. A
host's measurement list can have 20 MiB, and Salt replaces values in messages above its ``max_event_size`` (1 MiB) by
``VALUE_TRIMMED``.

This module does not judge. It saves an accepted result in ``result.json``, which enforcement reads. ``master.json`` has
the last challenge, and the versions of the policies by which the master judged this host. The module accepts a result
only for the last answered challenge, and only in the same boot; see ``netspace.attestation.ear``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace import files, jose
from netspace.attestation import ear, identity, result, token_key
from netspace.attestation.evidence import PART, Context, Evidence, from_hex
from netspace.attestation.evidence import period as read_period
from netspace.attestation.minion import attester, run_ledger, self_appraisal, settings, software_key
from netspace.attestation.refusals import Malformed, ResultForged
from netspace.attestation.result import Result
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

WAITING = "answer.json"


def answer(
    layout: Layout,
    chosen: Mapping[str, Any],
    minion: str,
    master: str,
    challenge: Any,
    salt_key: Callable[[], bytes] | None = None,
    signing: EllipticCurvePrivateKey | None = None,
) -> dict[str, Any]:
    """Answer a challenge, record the challenge, and return ``{boot, evidence}``.

    If the answer is too large for one message, save the answer and return ``{parts, sha256}``: the number of parts and
    the digest of the answer's JSON. :func:`part` returns the parts.

    :param chosen: settings from :func:`netspace.attestation.minion.settings.of`.
    :param master: fingerprint of the master key that this minion trusts.
    :param salt_key: returns the minion's Salt key (PEM), which signs the answer if the challenge asks for a signature.
    :param signing: the key of environments' tokens, for which the evidence vouches; None: there is none.
    :raises NetspaceError: when the challenge is malformed, or the configured TPM can't be used.
    """
    session, nonce, pcrs, first, known, period, runs = _challenge(challenge)
    boot = result.boot_id(layout)
    if not boot:
        raise NetspaceError("the id of this boot can't be read: /proc is not mounted")
    if first is not None and attester.measurement_list(layout.root) is None:
        first = None  # the verifier also judges evidence without a list
    thumbprint = "" if signing is None else jose.thumbprint(jose.jwk(signing.public_key()))
    context = Context(master, minion, session, nonce, binding=boot.encode(), key=thumbprint)
    if chosen["tpm"] is None and runs is not None and (listed := run_ledger.unproved(layout, runs)) is not None:
        context = dataclasses.replace(context, environments=listed.binding())
        made = attester.by_key(software_key.load(layout), context, listed)
    else:
        certify = None if chosen["tpm"] is None or runs is None else run_ledger.certify(layout, runs)
        proved = {} if certify is None else {"ledger": certify}
        whole_evidence = self_appraisal.evidence(layout, {**chosen, "pcrs": pcrs}, context, first, period, **proved)
        made = _without_log(whole_evidence, known)
    if "tee" in challenge:
        made = attester.with_tee(made, layout.root, context)
    whole: dict[str, Any] = {"boot": boot, "evidence": made.wire()}
    if signing is not None:
        whole[token_key.FIELD] = token_key.shown(signing, context)
    if "salt" in challenge and salt_key is not None:
        told = {**identity.digest(whole), **identity.exchange(session, nonce)}
        whole[identity.FIELD] = identity.sign(salt_key(), identity.statement(identity.ANSWER, master, minion, told))
    text = json.dumps(whole).encode()
    with files.locked(_folder(layout) / "master.lock"):
        _save(layout, nonce.hex(), boot, _known(layout)[2])
        if len(text) <= PART:
            files.remove(_folder(layout) / WAITING)
            return whole
        files.write(_folder(layout) / WAITING, text)
    return {"parts": -(-len(text) // PART), "sha256": hashlib.sha256(text).hexdigest()}


def part(layout: Layout, number: Any) -> dict[str, str]:
    """Return one part of the saved answer: ``{text}``.

    :raises NetspaceError: when there is no saved answer, or no such part.
    """
    path = _folder(layout) / WAITING
    try:
        if type(number) is not int or number < 0:
            raise NetspaceError(f"part: {number!r:.40}: expected a number from 0 on")
        with path.open("rb") as stream:
            stream.seek(number * PART)
            text = stream.read(PART)
    except FileNotFoundError as err:
        raise NetspaceError("there is no saved answer") from err
    if not text:
        raise NetspaceError(f"the saved answer has no part {number}")
    return {"text": text.decode("ascii")}


def _without_log(made: Evidence, known: str | None) -> Evidence:
    """Return the evidence with the firmware log replaced by its digest, if the verifier already has the log."""
    if known is None or made.boot_log is None or hashlib.sha256(made.boot_log).hexdigest() != known:
        return made
    return dataclasses.replace(made, boot_log=None, known_log=known)


def accept(layout: Layout, chosen: Mapping[str, Any], minion: str, token: Any, key: Any) -> Result:
    """Check the master's result, and save it for enforcement.

    :param key: the verifier's key (JWK), which is trusted only if the declaration pins it.
    :raises Refused: when the result is not accepted. Then the last accepted result stays in force.
    """
    found = ear.parse_jwk(key)
    if jose.thumbprint(found) not in chosen["verifier_keys"]:
        raise ResultForged(f"the key {jose.thumbprint(found)} is not one of attestation:verifier_keys")
    with files.locked(_folder(layout) / "master.lock"):
        nonce, boot, versions = _known(layout)
        now = time.time()
        here = result.boot_id(layout)
        told = ear.check(
            token,
            [found],
            minion=minion,
            nonce=nonce,
            boot=here if here == boot else "",
            now=now,
            versions=versions,
        )
        made = Result(
            level=told.level,
            verifier=settings.MASTER,
            reason=told.reason,
            remedy=told.remedy,
            boot=here,
            issued=now,
            expires=told.deadline,
            # Save only the key that signed the result: the result stays valid while this key is pinned.
            settings={**chosen, "verifier_keys": [jose.thumbprint(found)]},
            sources=settings.sources(layout, chosen),
            tpm={},
            tee=told.tee,
            token_key=told.token_key,
            appraisal=told.appraisal,
        )
        result.save(layout, made)
        files.remove(_folder(layout) / WAITING)
        # Save this after the result. If this process is killed in between, only the same result can be accepted again.
        _save(layout, "", boot, {**versions, told.group: told.version})
    return made


def _challenge(
    data: Any,
) -> tuple[str, bytes, list[int], int | None, str | None, bytes, Mapping[str, Any] | None]:
    names = {"session", "nonce", "pcrs", "ima_from", "bootlog"}
    # A host that was enrolled before attestation keys had periods has no period.
    if not isinstance(data, Mapping) or set(data) - {"period", "salt", "tee", "ledger"} != names:
        raise Malformed(
            "challenge: expected session, nonce, pcrs, ima_from, bootlog; optional: period, salt, tee, ledger"
        )
    for name in ("salt", "tee"):
        if data.get(name, True) is not True:
            raise Malformed(f"challenge: {name}: expected true")
    session, pcrs, first = data["session"], data["pcrs"], data["ima_from"]
    if not isinstance(session, str) or not 0 < len(session) <= 64:
        raise Malformed("challenge: session: expected a text of at most 64 characters")
    try:
        nonce = bytes.fromhex(data["nonce"])
    except (TypeError, ValueError) as err:
        raise Malformed("challenge: nonce: expected hex") from err
    if not isinstance(pcrs, list) or not pcrs or any(type(one) is not int or not 0 <= one <= 23 for one in pcrs):
        raise Malformed("challenge: pcrs: expected numbers of PCRs")
    if first is not None and (type(first) is not int or not 0 <= first < 2**31):
        raise Malformed("challenge: ima_from: expected the number of a line")
    if data["bootlog"] is not None and from_hex(data["bootlog"], 32) is None:
        raise Malformed("challenge: bootlog: expected the SHA-256 of a log")
    runs = data.get("ledger")
    if "ledger" in data:
        if not isinstance(runs, Mapping) or set(runs) != {"boot", "first"} or not isinstance(runs["boot"], str):
            raise Malformed("challenge: ledger: expected boot and first")
        if type(runs["first"]) is not int or runs["first"] < 0:
            raise Malformed("challenge: ledger: first: expected the number of a line")
    return session, nonce, pcrs, first, data["bootlog"], read_period(data.get("period", "")), runs


def _folder(layout: Layout) -> Path:
    return layout.records("attestation")


def _known(layout: Layout) -> tuple[str, str, dict[str, int]]:
    """Return the nonce of the last answered challenge, the boot in which it was answered, and policies' versions.

    The versions are by group.
    """
    path = _folder(layout) / "master.json"
    record = files.read_json(path)
    if record is None:
        return "", "", {}
    nonce, boot, versions = record.get("nonce"), record.get("boot"), record.get("versions")
    good = isinstance(versions, dict) and all(type(one) is int for one in versions.values())
    if not good or not isinstance(nonce, str) or not isinstance(boot, str):
        raise StateError(f"{path}: damaged; remove the file, and let the master ask again")
    return nonce, boot, dict(versions or {})


def _save(layout: Layout, nonce: str, boot: str, versions: Mapping[str, int]) -> None:
    files.write_json(
        _folder(layout) / "master.json", {"v": 1, "nonce": nonce, "boot": boot, "versions": dict(versions)}
    )
