"""
Trust of this host
==================

Shows the host's trust level, and makes evidence for a verifier.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace import files  # noqa: E402
from netspace.attestation import identity  # noqa: E402
from netspace.attestation.evidence import Context  # noqa: E402
from netspace.attestation.evidence import period as read_period  # noqa: E402
from netspace.attestation.minion import attester, master_result, self_appraisal, settings, software_key  # noqa: E402
from netspace.attestation.minion import host_key as public_key  # noqa: E402
from netspace.attestation.reconciler import NAME, Attestations  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import ledger  # noqa: E402
from netspace.host.peer import vouching  # noqa: E402
from netspace.layout import Layout  # noqa: E402
from netspace.plugin import arguments, dates, refusal, salt_keys  # noqa: E402
from netspace.spec import parse  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]

__virtualname__ = "netspace_attestation"
__outputter__ = {"status": "netspace"}


def __virtual__() -> str:
    return __virtualname__


def status() -> dict[str, Any]:
    """Return this host's trust, from the result of the last appraisal. The
    host is not appraised again.

    The result has

    - ``level``: L0 to L5;
    - ``verifier``;
    - ``reason``: why the host doesn't have the next level;
    - ``remedy``: how to reach the next level;
    - ``issued`` and ``expires``: seconds since the epoch; ``issued_at``
      and ``expires_at``: the same as ISO 8601;
    - ``fallback``: true if the configured TPM could not be used;
    - ``tpm``;
    - ``tee``, only if the master judged a confidential guest: the guest
      on which the level rests (``kind``, ``measurement``, ``tcb`` or
      ``status``, ``code``);
    - ``ledger``, only if the host keeps a ledger of runs: ``lines``,
      ``running`` (by environment: digests of its image and of its
      configuration), ``declaration`` (the digest of the last one) and
      ``full``.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_attestation.status
    """
    try:
        return dates.with_texts(Attestations(arguments.layout(__opts__)).status())
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def evidence(
    nonce: str,
    verifier: str = "",
    session: str = "",
    ima_from: int | None = None,
    tee: bool = False,
    period: str = "",
) -> dict[str, Any]:
    """Make evidence for a verifier: a quote of the TPM, with the PCR
    values and the logs of the boot.

    ``pillar:netspace:attestation:tpm`` names the TPM. If it names none,
    the evidence is a software key's signature.

    The result is ``{v, kind, key, attest, sig, bank, pcrs, bootlog,
    systemdlog, ima, env}`` with binary fields in base64, and ``host``,
    the host's id to which the evidence is bound. With a TEE's report,
    there is also ``tee``.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_attestation.evidence \\
            8a1c0d5f3e92b7640f1e2d3c4b5a6978

    nonce
        16 to 64 random bytes, in hex, used once.

    verifier
        Fingerprint of the verifier that asks for the evidence. Defaults
        to none.

    session
        The verifier's name for this exchange. Defaults to none.

    ima_from
        Number of the first line of IMA's measurement list to include.
        The list comes with its own quote of PCR 10. Defaults to none:
        no list. Without a TPM, there is never a list.

    tee
        Include the TEE's report, if this host is a confidential guest.
        Defaults to false.

    period
        The period (16 bytes, in hex) that selects the attestation key.
        ``salt-run netspace_attestation.certificate`` returns the period
        with the key's certificate. Defaults to none: the key that the
        host uses to judge itself, which never changes and has no
        certificate.
    """
    try:
        layout, chosen = _settings()
        try:
            raw = bytes.fromhex(nonce)
        except (TypeError, ValueError) as err:
            raise NetspaceError(f"nonce: {nonce!r:.40}: expected 16 to 64 bytes in hex") from err
        if ima_from is not None and (type(ima_from) is not int or not 0 <= ima_from < 2**31):
            raise NetspaceError(f"ima_from: {ima_from!r:.40}: expected a line's number, from 0 on")
        host = software_key.host_id(layout)
        context = Context(str(verifier), host, str(session), raw)
        made = self_appraisal.evidence(layout, chosen, context, ima_from, read_period(period))
        if tee:
            made = attester.with_tee(made, layout.root, context)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    return {**made.wire(), "host": host}


def host_key() -> dict[str, str]:
    """Return the public key by which this host vouches for the tokens of
    its environments.

    The result is ``{kind, key}``, with the key in PEM. ``kind`` is
    ``tpm-claimed`` for the attestation key of the TPM with which this
    host was appraised last. Without a TPM, ``kind`` is ``software``.
    The host claims that a ``tpm-claimed`` key is in a TPM; nothing
    proves the claim.

    A program gets a token from its host by the verb ``attest``. A
    relying party that trusts this key can check such tokens. The key
    stays the same, so two tokens under one key are from one host.

    **Don't trust a key that this function returned over Salt's bus**:
    another minion could answer in this minion's name. On the master,
    ``salt-run netspace_attestation.host_key`` gets the key with a proof
    of who answered.

    CLI Example:

    .. code-block:: bash

        salt-call netspace_attestation.host_key
    """
    try:
        layout = arguments.layout(__opts__)
        return public_key.public(layout, public_key.settings(layout))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def secret_key() -> str:
    """Return the public key to which the fleet's master encrypts secrets
    for this host.

    ``pillar:netspace:attestation:tpm`` names the TPM that alone opens
    them. Without a TPM, the private key is in a file of this host.

    CLI Example:

    .. code-block:: bash

        salt web1 netspace_attestation.secret_key
    """
    from netspace.attestation.minion import secret_key as own

    try:
        layout, chosen = _settings()
        return own.recipient(layout, chosen).text
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def enroll(template: str = "", asked: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the identity of this host's TPM, for the registrar on the
    master.

    ``pillar:netspace:attestation:tpm`` names the TPM. The result is
    ``{v, template, ek, cert, chain, ak, tpm, period, others}`` with
    binary fields in base64. With ``asked``, there is also ``salt``: the
    signature by this minion's Salt key, in hex.

    The master's ``netspace_attestation.enroll`` calls this function,
    and then ``activate``.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_attestation.enroll

    template
        Template of the endorsement key. By default, the first template
        whose key has a certificate in the TPM. Not used if ``asked`` is
        given.

    asked
        The master's requests, by minion's id. Each has ``template``,
        ``period`` (selects the attestation key, in hex), and ``others``
        (whether to show the TPM's other endorsement keys). By default,
        there is no request, and only ``template`` counts.
    """
    try:
        layout, chosen = _settings()
        given = {"template": str(template), "period": "", "others": False} if asked is None else _mine(asked)
        if not isinstance(given, dict) or set(given) != {"template", "period", "others"}:
            raise NetspaceError("asked: expected template, period and others")
        chosen_template, period = str(given["template"]) or None, read_period(given["period"])
        try:
            shown = self_appraisal.enroll(
                layout, chosen, chosen_template, period, others=given["others"] is True
            ).wire()
        except NetspaceError as err:
            if asked is None:
                raise
            # Without a signature it could be anybody's word: the master would wait until its time limit.
            shown = {"error": refusal.told(__opts__, err), "period": given["period"]}
        return shown if asked is None else _signed(identity.ENROLMENT, shown, {})
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def activate(credentials: dict[str, Any]) -> dict[str, Any]:
    """Open a credential that the master made for this TPM, and return
    ``{answer: hex, salt: hex}``.

    ``answer`` proves that the attestation key is in this TPM, and
    ``salt`` is the signature by this minion's Salt key. The
    credential's secret is not returned.

    The answer is bound to this minion's id and to the key of the master
    that the minion accepted. So a credential from another master, or
    for another minion, gives a wrong answer.

    CLI Example:

    .. code-block:: bash

        salt web1 netspace_attestation.activate \\
            credentials='{"web1": {"template": "EK-ECC256", ...}}'

    credentials
        Credentials, by minion's id. Each has ``template`` (of the
        endorsement key, from ``enroll``), ``blob`` (TPMS_ID_OBJECT) and
        ``encrypted`` (the seed) in base64, ``others`` (these three for
        each of the TPM's other endorsement keys), ``period`` (selects
        the attestation key), ``session``, and ``nonce`` in hex.
    """
    try:
        layout, chosen = _settings()
        given = _mine(credentials)
        names = {"template", "blob", "encrypted", "others", "period", "session", "nonce"}
        if not isinstance(given, dict) or set(given) != names or not isinstance(given["others"], list):
            raise NetspaceError(f"credential: expected {', '.join(sorted(names))}")
        try:
            made = [_credential(one) for one in (given, *given["others"])]
            context = Context(_master(), str(__opts__["id"]), str(given["session"]), bytes.fromhex(given["nonce"]))
        except (TypeError, ValueError, KeyError) as err:
            raise NetspaceError(f"credential: not base64, or not hex: {err}") from err
        opened = {"answer": self_appraisal.activate(layout, chosen, made, context, read_period(given["period"])).hex()}
        return _signed(identity.ACTIVATION, opened, identity.exchange(context.session, context.nonce))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def _signed(kind: str, data: dict[str, Any], more: dict[str, str]) -> dict[str, Any]:
    """Return *data* with a signature by this minion's Salt key. Salt's bus itself does not prove the sender."""
    message = identity.statement(kind, _master(), str(__opts__["id"]), {**data, **more})
    return {**data, identity.FIELD: identity.sign(_salt_key(), message)}


def _salt_key() -> bytes:
    return salt_keys.own(__opts__)


def _credential(given: dict[str, Any]) -> attester.Credential:
    blob, encrypted = (base64.b64decode(given[name], validate=True) for name in ("blob", "encrypted"))
    return attester.Credential(str(given["template"]), blob, encrypted)


def _settings() -> tuple[Layout, dict[str, Any]]:
    section = (__pillar__.get("netspace") or {}).get("attestation")
    declared_settings = parse.declaration({} if section is None else {"attestation": section}).attestation
    return arguments.layout(__opts__), settings.of(declared_settings)


def _master() -> str:
    """Return the fingerprint of the master key that this minion accepted."""
    return salt_keys.minions_master(__opts__)


def forget() -> dict[str, Any]:
    """Delete the last result, **the pinned TPM** and the software key.

    Use this function if the host's TPM was replaced or cleared on
    purpose. The next appraisal accepts the TPM that it finds. Until
    then the host has trust level L0. The result is ``{forgotten:
    true}``, or ``false`` if there was nothing to delete.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_attestation.forget
    """
    try:
        layout = arguments.layout(__opts__)
        kind = Attestations(layout)
        with files.locked(layout.lock):
            plan = kind.plan(parse.declaration({}).attestation, kind.observe(), {NAME})
            outcomes = kind.apply(plan.steps)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        raise CommandExecutionError(refusal.told(__opts__, "; ".join(errors)))
    return {"forgotten": bool(plan.steps)}


def answer(challenges: dict[str, Any]) -> dict[str, Any]:
    """Answer a challenge of the master's verifier with ``{boot,
    evidence}``; with ``token_key``, too, if the host has a key that
    signs the tokens of its environments.

    The evidence is bound to this minion's id, to the key of the master
    that the minion accepted, to the challenge and to this boot. If the
    answer is too large for one message, the function returns ``{parts,
    sha256}``; call ``part`` for each part of the answer.

    The master's ``netspace_attestation.attest`` calls this function,
    and then ``accept``. One message has the challenges of many minions.

    CLI Example:

    .. code-block:: bash

        salt web1 netspace_attestation.answer \\
            challenges='{"web1": {"session": "1f", ...}}'

    challenges
        Challenges, by minion's id. This minion answers only the
        challenge under its own id.
    """
    try:
        layout, chosen = _settings()
        ledger.settle_now(layout)
        key = vouching.key(layout)
        return master_result.answer(layout, chosen, str(__opts__["id"]), _master(), _mine(challenges), _salt_key, key)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def part(parts: dict[str, int]) -> dict[str, str]:
    """Return ``{text}``: one part of an answer that is too large for one
    message of Salt's bus.

    An answer is that large if it has a long measurement list.
    ``answer`` returns the number of parts.

    The master's ``netspace_attestation.attest`` calls this function.

    CLI Example:

    .. code-block:: bash

        salt web1 netspace_attestation.part parts='{"web1": 0}'

    parts
        The part's number (from 0 on), by minion's id.
    """
    try:
        return master_result.part(arguments.layout(__opts__), _mine(parts))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def accept(tokens: dict[str, str], key: dict[str, str]) -> dict[str, Any]:
    """Check and save the attestation result that the master signed; return
    ``{level, expires, stored}``.

    The result is an EAR (a JWT). netspace enforces the saved result.

    The minion accepts the result only if
    ``pillar:netspace:attestation:verifier`` is ``master``, the key is
    one of ``verifier_keys``, and the result is for this minion, this
    boot and the last answered challenge.

    CLI Example:

    .. code-block:: bash

        salt web1 netspace_attestation.accept \\
            tokens='{"web1": "<token>"}' key='<JWK>'

    tokens
        Results, by minion's id.

    key
        The verifier's public key, as JWK.
    """
    try:
        layout, chosen = _settings()
        if chosen["verifier"] != settings.MASTER:
            return {"stored": False, "reason": "attestation:verifier is 'self' here"}
        found = master_result.accept(layout, chosen, str(__opts__["id"]), _mine(tokens), key)
        vouching.hand_on(layout)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    return {"stored": True, "level": f"L{found.level}", "expires": found.expires}


def _mine(given: Any) -> Any:
    found = given.get(__opts__["id"]) if isinstance(given, dict) else None
    if found is None:
        raise NetspaceError("the argument has no entry for this minion")
    return found
