"""The verifier on the master
==========================

``replay``, ``verify_quote`` and ``verify_tee`` check logs, quotes and reports in files. They need no TPM, minion or
service.

The registrar binds TPMs to minions (``enroll``, ``release``), and its Privacy CA issues attestation certificates under
pseudonyms (``certificate``, ``revoke``, ``ca_*``).

The fleet's verifier challenges minions over Salt's bus and saves a signed result for each minion (``attest``).
``status`` and ``explain`` show the results.

Each refusal has a stable ``code`` (see the page on reason codes). On a refusal or an error, the command's exit status
is 1.

The master's configuration may have (these are the defaults)::

    netspace.attestation:
      folder: /var/lib/netspace-master   # the registrar's, 0700
      roots: null                        # a folder: certificates (.pem), revocation lists (.crl) of makers of TPMs
      timeout: 60                        # seconds that a minion may take
      concurrency: 32                    # number of minions that are asked at one time
      jitter: 1                          # maximum of seconds for which challenges are collected for one message
      tee_roots: null                    # a folder: certificates and other endorsements of makers of TEEs
      inventory: null                    # a file: the TPMs that each minion may have
      groups: []                         # groups of hosts, each with a policy: see the page on fleets
      pkcs11: null                       # a hardware module for keys: see the page on enrolling
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace import files  # noqa: E402
from netspace.attestation import appraised_token, ear, environment_token, hsm, identity  # noqa: E402
from netspace.attestation.endorsement import makers  # noqa: E402
from netspace.attestation.evidence import MAX_PCR, key_fingerprint  # noqa: E402
from netspace.attestation.fleet import (  # noqa: E402
    admission,
    admission_http,
    base_report,
    calls,
    fleet,
    groups,
    host_state,
    policies,
    rounds,
    window,
)
from netspace.attestation.fleet import bus as buses  # noqa: E402
from netspace.attestation.learning import policy as learning  # noqa: E402
from netspace.attestation.logs import ima as lists  # noqa: E402
from netspace.attestation.policy import policy as rules  # noqa: E402
from netspace.attestation.refusals import Refused  # noqa: E402
from netspace.attestation.registrar import audit_log, privacy_ca  # noqa: E402
from netspace.attestation.registrar.authorities import Authorities  # noqa: E402
from netspace.attestation.registrar.enrolment import Pending  # noqa: E402
from netspace.attestation.registrar.registrar import Registrar  # noqa: E402
from netspace.attestation.tee import roots as tee_roots  # noqa: E402
from netspace.attestation.verifier import ak_certificate, offline  # noqa: E402
from netspace.attestation.verifier import tee_offline as tees  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.plugin import arguments, dates, master, salt_keys, tables  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_attestation"

INSTANCE = "netspace"
MAX_POLICY = 256 * 1024 * 1024
MAX_KEYS = 1024 * 1024
# The most lines of a diff to return.
MAX_SHOWN = 2000
_BLOCK = re.compile(r"-----BEGIN [A-Z ]+-----.+?-----END [A-Z ]+-----", re.DOTALL)


def __virtual__() -> str:
    return __virtualname__


def replay(log: str = "", systemd: str = "", ima: str = "") -> dict[str, Any]:
    """Return a boot log's events, and the PCR values that result from
    replaying the log.

    The form is ``{banks: {sha256: {"0": hex}}, events: [...]}``.

    Each event has ``pcr``, ``type``, ``digests`` and its decoded data
    (``variable``, ``path``, ``text``, ...). **The data proves nothing**
    unless ``matches`` is true: only then does the measured digest cover
    the data. With an IMA list, the result also has ``ima`` with
    ``lines``, ``violations`` and ``edited``.

    A log proves nothing without a quote of the PCR values: see
    ``verify_quote``.

    CLI Example:

    .. code-block:: bash

        salt-run --out=json netspace_attestation.replay \\
            /sys/kernel/security/tpm0/binary_bios_measurements

    log
        The firmware's log: ``binary_bios_measurements`` of a host.

    systemd
        systemd's log of its own measurements,
        ``/run/log/systemd/tpm2-measure.log``.

    ima
        IMA's list, ``binary_runtime_measurements`` or
        ``ascii_runtime_measurements``, also in the form for one
        algorithm (``binary_runtime_measurements_sha256``).
    """

    def work() -> dict[str, Any]:
        if not (log or systemd or ima):
            raise NetspaceError("name a boot log, systemd's log or an IMA list")
        return offline.replay(_logs(log, systemd, ima))

    return _answer(work)


def verify_quote(
    msg: str,
    sig: str,
    ak: str,
    log: str = "",
    nonce: str = "",
    pcrs: str = "",
    systemd: str = "",
    ima: str = "",
    policy: str = "",
    certificate: str = "",
    ca: str = "",
    crl: str = "",
) -> dict[str, Any]:
    """Check a quote that ``tpm2_quote`` wrote, and return the result of
    each check.

    The form is ``{valid, code, reason, checks, quote}``.

    ``checks`` lists the checks in order, up to the first that failed. A
    check whose argument was not given is listed as ``unchecked``. This
    function can't check that the key is in a TPM. Enrolment checks
    that, and the Privacy CA's ``certificate`` attests it.

    CLI Example:

    .. code-block:: bash

        tpm2_quote -c ak.ctx -l sha256:0,1,2,3,4,5,6,7 -q 8a1c0d5f \\
            -m q.msg -s q.sig -o q.pcrs
        salt-run netspace_attestation.verify_quote msg=q.msg sig=q.sig \\
            ak=ak.pub nonce=8a1c0d5f pcrs=q.pcrs

    msg
        The file of ``tpm2_quote -m``.

    sig
        The file of ``tpm2_quote -s`` (``-f tss``, which is the
        default).

    ak
        The attestation key: TPM2B_PUBLIC or TPMT_PUBLIC
        (``tpm2_createak -u`` with ``-f tss``), PEM or DER. PEM and DER
        don't show whether the key is restricted.

    log
        The firmware's log: ``binary_bios_measurements``.

    nonce
        The qualifying data, in hex. **Without it an old quote passes.**

    pcrs
        The PCR values: ``tpm2_quote -o``, the text of ``tpm2_pcrread``,
        or JSON as ``replay`` shows it. With them, the function names
        the PCRs to which the log does not lead.

    systemd
        systemd's log, ``/run/log/systemd/tpm2-measure.log``.

    ima
        IMA's list, binary or ASCII. The list may have lines that are
        newer than the quote.

    policy
        A file (YAML or JSON) with rules for the boot, and for the
        programs that ran after the boot: see the page on policies.
        Needs ``pcrs`` and ``log``.

    certificate
        The certificate that a Privacy CA issued for the key (PEM), as
        ``certificate`` returns it. Needs ``ca``.

    ca
        The Privacy CA that you trust: its ``chain.pem``.

    crl
        The Privacy CA's revocation list, as ``ca_crl`` returns it.
        **Without it a revoked certificate passes.**
    """

    def work() -> dict[str, Any]:
        report = offline.verify_quote(
            _read(msg, 64 * 1024),
            _read(sig, 64 * 1024),
            _read(ak, 64 * 1024),
            nonce=_nonce(nonce),
            pcrs=_given(pcrs, 64 * 1024),
            logs=_logs(log, systemd, ima),
            policy=_policy(policy) if policy else None,
            issue=_issue(certificate, ca, crl),
        )
        return report.result()

    return _answer(work)


def verify_environment(
    evidence: str,
    nonce: str,
    environment: str,
    key: str = "",
    host: str = "",
    image: str = "",
    configuration: str = "",
    thumbprint: str = "",
    pcrs: dict[str, str] | None = None,
    minion: str = "",
    level: str = "L2",
) -> dict[str, Any]:
    """Check the proof that a program got from its host by the verb
    ``attest``.

    Returns ``{valid, code, reason, environment, host, boot, image,
    configuration, started, key, level, pcrs, minion, verifier}``. If
    the proof is refused, ``valid`` is false, and ``code`` and
    ``reason`` say why.

    Without ``key``, this master's verifier vouches for the host: the
    proof must contain the verifier's signed statement on the host, and
    the statement must agree with the verifier's last result of the
    host. ``level`` is the host's level.

    With ``key``, the host's own key vouches. Then ``level`` is ``L1``,
    because nothing proves that this key is in a TPM. For the same
    reason, ``pcrs`` are only the host's claim.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.verify_environment \\
            evidence=web.json nonce=bXkgb3duIHF1ZXN0aW9u \\
            environment=web minion=web1 level=L3

    evidence
        The file with the proof.

    nonce
        The nonce for which the program asked the proof. Use a new one
        for each proof, from 16 random bytes: **with an old nonce, an
        old proof is accepted**.

    environment
        The name of the environment that the proof must be about.

    key
        The file with the host's key (PEM), as
        ``netspace_attestation.host_key`` returns it. Defaults to none:
        the verifier vouches for the host.

    host
        The host's name in links, which the proof must have. Defaults to
        any. Without ``key``, it needs ``minion``, too.

    image
        Digest of the environment's image (``sha256:...``). Defaults to
        any.

    configuration
        Digest of the configuration of the environment's runtime.
        Defaults to any.

    thumbprint
        Thumbprint of the key that the program named as its own.
        Defaults to any.

    pcrs
        The values (hex) that must be quoted, by PCR: ``pcrs='{"7":
        "65ca..."}'``. Only with ``key``. Defaults to any.

    minion
        The id of the minion on which the environment must run. Not with
        ``key``. Defaults to any minion of this master.

    level
        The lowest level that the host must have (L1 to L5). Not with
        ``key``. Defaults to L2.
    """

    def work() -> dict[str, Any]:
        expected = environment_token.Expected(
            *(str(nonce), str(environment), host or None, image or None, configuration or None, thumbprint or None),
            _values(pcrs),
        )
        raw = _read(evidence, environment_token.MOST).decode("utf-8", "replace")
        if key and minion:
            raise NetspaceError("key: identifies the host already; leave out key or minion")
        if key:
            found = environment_token.verify(raw, _read(key, 64 * 1024), expected, time.time())
        else:
            found = _appraised(raw, expected, str(minion) or None, str(level))
        told = {**dataclasses.asdict(found), "pcrs": {str(pcr): value.hex() for pcr, value in found.pcrs.items()}}
        return {"valid": True, "code": "ok", "reason": "", **told}

    return _answer(work)


def _appraised(
    raw: str, expected: environment_token.Expected, minion: str | None, level: str
) -> environment_token.Attested:
    """Check a proof by its host appraisal, which must agree with the verifier's last result of the host."""
    if not re.fullmatch("L[1-5]", level):
        raise NetspaceError(f"level: {level!r:.40}: expected L1 to L5")
    if expected.pcrs or (expected.host is not None and minion is None):
        raise NetspaceError("pcrs need the host's key (key=), and host needs key= or minion=")
    made, now = _fleet(), time.time()
    found, word = appraised_token.verify(raw, [made.signer.jwk], expected, now, minion=minion, minimum=int(level[1]))
    standing = made.standing(word.minion, now)
    appraised_token.check_current(word, standing.record, int(standing.shown(now)["level"][1]))
    return found


def host_key(minion: str, timeout: int = 60) -> dict[str, Any]:
    """Return the public key by which a host vouches for the tokens of its
    environments.

    The result is ``{kind, key}``, with the key in PEM. The minion signs
    its answer with its Salt key, so no other minion can answer with a
    false key. ``kind`` is ``software`` or ``tpm-claimed``. With
    ``tpm-claimed``, the host says that the key is in its TPM; nothing
    proves that to the master.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.host_key web1

    minion
        The minion's id; no pattern.

    timeout
        Seconds to wait for the answer.
    """

    def work() -> dict[str, Any]:
        asked = master.minions(__opts__, import_module).asked
        told = asked(minion, "netspace_attestation.host_key", {}, arguments.seconds(timeout))
        return dict(environment_token.public_key(told))

    return _answer(work, lambda _: True)


def verify_tee(
    report: str,
    folder: str = "",
    certificates: str = "",
    quote: str = "",
    ccel: str = "",
    data: str = "",
    policy: str = "",
) -> dict[str, Any]:
    """Check the report of a confidential guest in a file, and return the
    result of each check.

    The form is ``{valid, code, reason, checks, report}``.

    The report is the kernel's ``outblob`` (SEV-SNP report, TDX quote),
    or that of Azure's paravisor (NV index 0x01400001 of the vTPM). For
    a paravisor's report, the result has the vTPM's keys for which the
    TEE vouches.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.verify_tee outblob \\
            folder=/etc/netspace/tee-roots certificates=auxblob

    report
        The file with the report.

    folder
        The folder with the makers' root certificates. Defaults to
        ``tee_roots`` of the master's configuration.

    certificates
        A file with the certificates that the host gave to its guest:
        the kernel's ``auxblob`` (SEV-SNP).

    quote
        The TDX quote, if the report is a paravisor's.

    ccel
        The guest's log, ``/sys/firmware/acpi/tables/data/CCEL``, which
        must lead to the quoted registers (TDX).

    data
        The data that the report must cover: up to 64 bytes in hex.
        **Without it an old report passes.**

    policy
        A file (YAML or JSON) with rules for the guest in its section
        ``tee``.
    """

    def work() -> dict[str, Any]:
        given = tees.Given(
            _read(report, tees.MAX_FILE),
            _given(certificates, tees.MAX_FILE),
            _given(quote, tees.MAX_FILE),
            _given(ccel, tees.MAX_LOG),
        )
        section = _policy(policy).tee if policy else None
        if policy and section is None:
            raise NetspaceError(f"{policy}: has no section 'tee'")
        trust = tee_roots.read(folder or _settings()["tee_roots"])
        return tees.verify(given, trust, time.time(), data=_nonce(data), section=section)

    return _answer(work)


def enroll(minion: str) -> dict[str, Any]:
    """Bind a minion to its TPM. The Privacy CA certifies the minion's
    attestation key for a day.

    The master makes a credential that only a TPM with the minion's
    endorsement key and attestation key can open. The minion's answer
    proves that both keys are in one TPM. Until ``release`` is called, a
    minion stays bound to its first TPM, and a TPM to one minion.
    ``level`` is L3 if the TPM's endorsement certificate chains to a
    certificate in the folder ``netspace.attestation:roots``, else L2.
    ``unreadable_roots`` lists the files of that folder that can't be
    read.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.enroll web1

    minion
        The minion's id; no pattern.
    """

    def work() -> dict[str, Any]:
        settings = _settings()
        trusted = _trusted(settings)
        found = _enrolled(str(minion), settings, trusted)
        unreadable = trusted().unreadable
        return {**_shown(found), **({"unreadable_roots": list(unreadable)} if unreadable else {})}

    return _answer(work)


def roots() -> dict[str, Any]:
    """Return the certificates of the TPM makers that this master trusts.

    They are in the folder ``netspace.attestation:roots``. The result
    has ``certificates`` (subject, kind of key, end of validity), the
    number of revocation ``lists``, and ``unreadable`` files with the
    reason.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.roots
    """
    return _answer(lambda: makers.listed(_settings()["roots"]))


def hosts() -> dict[str, Any]:
    """Return the record of each enrolled minion.

    Each has the minion's TPM (SHA-256 of the endorsement key), its
    level and the reason why it is not higher, its pseudonym, and the
    end of its certificate.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.hosts
    """
    return _answer(lambda: {record["minion"]: _shown(record) for record in _registrar().hosts()})


def certificate(minion: str) -> dict[str, Any]:
    """Return the ``certificate`` of a minion's attestation key (PEM), the
    key's ``period``, and the CA's ``chain``.

    The minion's ``netspace_attestation.evidence`` selects the key by
    the ``period``. With the certificate, the chain and ``ca_crl``,
    third parties check the minion's quotes (``verify_quote
    certificate=... ca=... crl=...``). From the certificate, they learn
    only the minion's pseudonym.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.certificate web1

    minion
        The minion's id.
    """
    return _answer(lambda: _registrar().certificate(str(minion)))


def revoke(minion: str, why: str = "") -> dict[str, Any]:
    """
    Revoke a minion's attestation certificate. The minion stays bound to
    its TPM; ``enroll`` issues a new certificate.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.revoke web1 why="stolen"

    minion
        The minion's id.

    why
        The reason, for the log.
    """
    return _answer(lambda: _shown(_registrar().revoke(str(minion), str(why), time.time())))


def release(minion: str) -> dict[str, Any]:
    """Forget a minion's TPM and its last result, and revoke its
    certificate.

    Call this function after the TPM was replaced or cleared. **The next
    TPM that the minion shows is accepted.** If the minion has no TPM,
    its software key is forgotten.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.release web1

    minion
        The minion's id.
    """

    def work() -> dict[str, Any]:
        made, now = _fleet(), time.time()
        found = made.release(str(minion), now)
        _announce(made, made.standing(str(minion), now))
        if found is None:
            return {"minion": str(minion), "released": "the software key that it had at first"}
        return _shown(found)

    return _answer(work)


def ca_init(name: str = "netspace Privacy CA", root_elsewhere: bool = False) -> dict[str, Any]:
    """Create the Privacy CA: a root, and an intermediate that signs
    certificates.

    With ``root_elsewhere``, the function creates no root, and returns a
    certificate ``request`` for the intermediate. Sign the request on
    the machine that has the root (``ca_sign``), and install the
    certificate here (``ca_import``).

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_init

    name
        The intermediate's name.

    root_elsewhere
        True: create no root on this machine. Defaults to False.
    """
    return _change_ca(lambda ca, now: ca.init(now, name=str(name), here=not root_elsewhere))


def ca_renew(name: str = "netspace Privacy CA") -> dict[str, Any]:
    """Create the next intermediate. Certificates of the previous
    intermediate stay valid until they expire.

    If the root is on another machine, return a ``request``, as
    ``ca_init`` does.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_renew

    name
        The intermediate's name.
    """
    return _change_ca(lambda ca, now: ca.renew(now, name=str(name)))


def ca_sign(request: str, root: str) -> dict[str, Any]:
    """Sign an intermediate's request with a root, on the machine that has
    the root.

    Returns ``certificate`` (PEM) and ``root``, the path of the root's
    certificate.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_sign request=ca.csr \\
            root=/media/usb/root

    request
        A file with the ``request`` that ``ca_init root_elsewhere=True``
        returned.

    root
        The root's folder. If the folder does not exist, the function
        creates it with a new root.
    """

    def work() -> dict[str, Any]:
        now = time.time()
        folder = Path(root)
        asked = _read(request, 64 * 1024)
        module = hsm.module(_settings()["pkcs11"])
        if not folder.exists():
            made = privacy_ca.root("netspace Privacy CA root", now, key=module.create("root") if module else None)
            privacy_ca.save(made, folder)
        authority = privacy_ca.load(folder, module)
        return {
            "certificate": privacy_ca.sign_request(authority, asked, now).decode(),
            "root": str(folder / "chain.pem"),
        }

    return _answer(work)


def ca_import(certificate: str, root: str) -> dict[str, Any]:
    """Install an intermediate's certificate that was issued for the last
    request by a root on another machine.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_import certificate=ca.pem \\
            root=root.pem

    certificate
        A file with the certificate (PEM).

    root
        A file with the root's certificate (PEM).
    """
    return _change_ca(lambda ca, now: ca.adopt(_read(certificate, 64 * 1024), _read(root, 64 * 1024), now))


def ca_status() -> dict[str, Any]:
    """Return the state of the Privacy CA.

    The result has the CA's name, the end of its certificate, whether
    its root is on this machine, and the number of enrolled hosts.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_status
    """
    return _answer(lambda: _registrar().status(time.time()))


def ca_crl() -> dict[str, Any]:
    """Return the Privacy CA's revocation list (``crl``, PEM), valid for a
    day.

    Third parties need the list to check the CA's certificates.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_crl
    """
    return _answer(lambda: {"crl": _registrar().revocations(time.time()).decode()})


def verify_log(records: int = 0, hash: str = "") -> dict[str, Any]:
    """Check the registrar's log from its beginning, and return its head:
    ``{valid, records, hash}``.

    Each record has the hash of the previous one, so the check finds
    changed, removed and inserted records. **It finds that the last
    records are missing only if you give a head that you noted
    elsewhere.** A head is the number of records and the last record's
    hash.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.verify_log records=812 \\
            hash=5f2c...

    records
        The number of records in the noted head.

    hash
        The hash of the last record in the noted head.
    """

    def work() -> dict[str, Any]:
        noted = audit_log.Head(int(records), str(hash)) if records or hash else None
        try:
            head = _registrar().verify_log(noted)
        except audit_log.LogBroken as err:
            return {"valid": False, "code": "audit-log", "reason": str(err)}
        return {"valid": True, "records": head.records, "hash": head.hash}

    return _answer(work)


def attest(target: str = "*", tgt_type: str = "glob") -> dict[str, Any]:
    """Challenge minions over Salt's bus, appraise their evidence, and save
    a signed result for each.

    The verifier appraises the evidence by the policy of the minion's
    group. Minions whose pillar says ``verifier: master`` enforce the
    result. The exit status is 0 only if all minions are *trusted*.

    Each minion gets a different nonce. The master asks minions in
    random order, ``concurrency`` of them at one time. After each answer
    it asks the next minion, so absent or slow minions don't hold up the
    others. **A minion that does not answer is not judged**: its last
    result counts until the result's deadline, and after that the minion
    is *stale*. A certificate that expires soon is renewed first, at a
    random time for each host. Each change of state fires an event,
    ``netspace/attestation/<minion>/<state>``.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.attest 'web*'

    target
        The minions to attest. Defaults to all.

    tgt_type
        The kind of ``target``: ``glob`` (default), ``list``, ``grain``,
        ``compound``, ...
    """

    return _answer(
        lambda: _attest(_minions(target, tgt_type), _fleet()),
        lambda found: bool(found) and all(one["state"] == host_state.TRUSTED for one in found.values()),
    )


def status(target: str = "*") -> dict[str, Any]:
    """Return the current attestation state of each minion, by the minion's
    id.

    The state is ``unknown``, ``enrolled``, ``trusted``, ``degraded``,
    ``stale``, ``failed`` or ``revoked``. With it come level, reason,
    remedy, group, age and deadline.

    The master asks no minion. It computes the state from the last
    result and the time, so hosts whose last result is past its deadline
    are ``stale``.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.status

    target
        A pattern of minions' ids. Defaults to all that the master
        knows.
    """

    def work() -> dict[str, Any]:
        made, now = _fleet(), time.time()
        found = {}
        for minion in _known(made, str(target)):
            standing = made.standing(minion, now)
            _announce(made, standing)
            found[minion] = standing.shown(now)
        return found

    return _answer(work)


def admissions(address: str = "127.0.0.1", port: int = 4507) -> dict[str, Any]:
    """Accept pending Salt keys of minions by attestation, until this
    command is ended.

    A minion's key is accepted if the minion's TPM is in the inventory,
    vouches for exactly this key, and proves a boot that makes the host
    *trusted*. See the page on accepting keys. The engine
    ``netspace_admission`` calls this function.

    For each verdict, the function sends an event,
    ``netspace/admission/<minion>/accepted`` or ``.../refused``, with
    the reason, and writes a record in the registrar's log.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.admissions address=198.51.100.254

    address
        The address to listen on. Defaults to loopback.

    port
        The TCP port.
    """

    def work() -> dict[str, Any]:
        desk = _desk()
        with admission_http.Service((str(address), int(port)), desk) as service:
            service.serve_forever()
        return {}

    return _answer(work)


def _desk() -> admission.Desk:
    """Return the object that handles minions whose keys are pending.

    :raises NetspaceError: when there is no inventory.
    """
    import salt.utils.verify

    if not _settings()["inventory"]:
        raise NetspaceError("only minions in an inventory are admitted; set netspace.attestation: {inventory: FILE}")
    valid_id = salt.utils.verify.valid_id
    return admission.Desk(
        _master(),
        lambda minion: salt_keys.pending(__opts__, minion, valid_id),
        _admitting,
        lambda claim: _accept(claim, valid_id),
        _admitted,
    )


def _admitting(claim: admission.Claim) -> admission.Work:
    """Return the generator that enrols and attests a minion with a pending key."""
    settings = _settings()
    if not settings["inventory"]:
        raise NetspaceError("there is no inventory any more")
    name = admission.name(_master(), claim.key)
    made = _fleet(name, identity.Identities(name, lambda minion: claim.key if minion == claim.minion else None))
    return admission.admitting(made, _credentials(made.registrar, _trusted(settings), name), claim.minion)


def _accept(claim: admission.Claim, valid_id: Callable[[Any, str], bool]) -> None:
    _registrar().note("admission", _verdict(claim), time.time())  # recorded before it is done
    salt_keys.accept(__opts__, claim.minion, claim.key, valid_id)


def _admitted(claim: admission.Claim, refused: str) -> None:
    """Send the verdict on a minion's pending key as an event.

    For a refusal, first write a record in the registrar's log.
    """
    import salt.utils.event

    data = {**_verdict(claim), "reason": refused[:1000]}
    if refused:
        _registrar().note("admission-refused", data, time.time())
    with salt.utils.event.get_event("master", opts=__opts__, listen=False) as bus:
        bus.fire_event(data, f"netspace/admission/{claim.minion}/{'refused' if refused else 'accepted'}")
        if not refused:  # as Salt's own acceptance does
            bus.fire_event({"result": True, "act": "accept", "id": claim.minion}, "salt/key")


def _verdict(claim: admission.Claim) -> dict[str, Any]:
    return {"minion": claim.minion, "key": key_fingerprint(claim.key)}


def states(minions: list[str]) -> dict[str, Any]:
    """Return the same as ``status``, but only for the given minions.

    The time that this takes doesn't depend on the size of the fleet.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.states '[web1, web2]'

    minions
        Minions' ids; no patterns.
    """

    def work() -> dict[str, Any]:
        made, now = _fleet(), time.time()
        found = {}
        for minion in minions:
            standing = made.standing(str(minion), now)
            _announce(made, standing)
            found[standing.minion] = standing.shown(now)
        return found

    return _answer(work)


def standing(minion: str) -> dict[str, Any]:
    """Return the facts that decide whether a minion's host may have a
    secret.

    These are its ``level`` by the last valid result, and the ``keys``
    of its enrolled TPM (SHA-256 of the endorsement keys).

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.standing web1

    minion
        The minion's id.
    """

    def work() -> dict[str, Any]:
        now = time.time()
        found = _fleet().standing(str(minion), now)
        host = found.host or {}
        keys = [host["ek"], *host.get("others", ())] if "ek" in host else []
        return {"level": found.shown(now)["level"], "keys": [str(one) for one in keys]}

    return _answer(work)


def explain(minion: str) -> dict[str, Any]:
    """Explain on one screen why a minion has its trust level, and how to
    raise the level.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.explain web1

    minion
        The minion's id.
    """

    def work() -> dict[str, Any]:
        made, now = _fleet(), time.time()
        standing = made.standing(str(minion), now)
        _announce(made, standing)
        record, host = standing.record, standing.host
        shown = standing.shown(now)
        try:
            policy = made.policies.get(standing.group.name)
            in_force = "none: L3 at most" if policy is None else f"version {policy.version}"
        except Refused as err:
            in_force = str(err)
        return {
            "minion": str(minion),
            "state": f"{standing.state}, {shown['level']} (asked for: {shown['minimum']} or more)",
            "why": standing.reason,
            "to raise it": standing.remedy or "nothing: there is no next level",
            "last evidence": "none"
            if record is None
            else f"{dates.text(record['issued'])}, {tables.age(record['issued'], now)} ago",
            "counts until": "-" if record is None else dates.text(shown["deadline"]),
            "group": f"{standing.group.name}; its policy: {in_force}",
            "judged by": "-"
            if record is None
            else f"version {record['version']}"
            if record["version"]
            else "no policy",
            "tpm": "none is enrolled" if host is None else f"{host['ek'][:16]}..., seen {dates.text(host['enrolled'])}",
            "certificate": "-" if host is None else f"until {dates.text(host['expires'])}",
            "tee": shown["tee"] or "none is known",
        }

    return _answer(work)


def tcb(minion: str = "*") -> dict[str, Any]:
    """Return the trusted computing base below each host's kernel (firmware
    and hardware), with the source of each fact.

    A fact is *measured in PCR n* if the host's last boot log leads to
    the quoted value, and if the digest has a known meaning. Everything
    else is *told by the host*: root of the host can give any value.
    These values come from the host's grain ``netspace_tcb`` in the
    master's cache, so the host is not asked. ``term`` is the policy's
    term for the part, ``holds`` whether the fact satisfies the term.
    **A term that only the host's claim satisfies gives no level.**

    ``tcb_of`` has the hosts: ``rows`` (``part``, ``value``, ``source``,
    ``term``, ``holds``), ``measured`` (the time of the evidence; None
    without evidence), and ``note`` (why nothing is measured).

    The return code is 1 if a term does not hold.

    CLI Example:

    .. code-block:: bash

        salt-run --out=netspace netspace_attestation.tcb web1
        salt-run netspace_attestation.tcb 'web*' --out json

    minion
        A minion's id, or a pattern (glob). Defaults to all.
    """

    def work() -> dict[str, Any]:
        import salt.utils.minions

        made = _fleet()
        found = {}
        for one in _known(made, str(minion)):
            grains = salt.utils.minions.get_minion_data(one, __opts__)[1]
            told = grains.get("netspace_tcb") if isinstance(grains, Mapping) else None
            found[one] = base_report.of_host(made, one, told)
        if not found:
            raise NetspaceError(f"no minion matches {str(minion)!r:.80}")
        return {"tcb_of": found}

    return _answer(work, lambda data: not any(row["holds"] is False for row in _rows(data)))


def _rows(data: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for host in data.get("tcb_of", {}).values():
        yield from host["rows"]


def learn(
    target: str,
    sign: bool = False,
    tgt_type: str = "glob",
    ima: bool = False,
    keys: str = "",
    overlap: float | None = None,
    file: str = "",
) -> dict[str, Any]:
    """Attest known good hosts, and return the changes that make their
    group's policy accept their boots.

    **Only** ``sign=True`` **puts the new policy in force.**

    The first policy of a group gets the rules that the boot logs allow:
    Secure Boot on, the entries of dbx that all hosts have, the signers
    of booted programs, UEFI programs, kernels, initrds, other loaded
    files, and command lines. PCRs without such a rule get plain PCR
    values. ``notes`` says which rules are missing, and why.

    An existing policy keeps its form and its demands; only its lists of
    allowed values get longer. Old entries stay; with ``overlap``, they
    end after that many days. The version rises by one. A long ``diff``
    is cut off.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.learn web1
        salt-run netspace_attestation.learn 'golden*'
        salt-run netspace_attestation.learn web1 sign=True
        salt-run netspace_attestation.learn web1 ima=True \\
            keys=/etc/keys/ima.pem file=/root/web.json
        salt-run netspace_attestation.learn web1 overlap=14 sign=True

    target
        The minions to learn from, all of one group.

    sign
        Put the policy in force. Defaults to False.

    tgt_type
        The kind of ``target``: ``glob`` (default), ``list``, ...

    ima
        Also learn from the hosts' measurement lists (IMA) the files
        that may run, by path and digest. Files that the policy
        excludes, or that one of the policy's keys signed, are left out.
        ``notes`` names files that changed while a host ran, and signing
        keys that are unknown. Defaults to False.

    keys
        A file with certificates or public keys (PEM). The new policy
        also gets those of them that signed files in the measurement
        lists.

    overlap
        Number of days after which old entries end. Old entries are
        those that none of these hosts shows. (For IMA: the previous
        digests of files whose digests have changed.) By default, old
        entries have no end.

    file
        Write the whole policy to this new file (JSON), for an editor,
        ``policy_check`` and ``policy_set``.
    """

    def work() -> dict[str, Any]:
        minions = sorted(_minions(target, tgt_type))
        wish = _wish(ima, keys, overlap)
        if file and Path(file).exists():
            raise NetspaceError(f"{file} exists already: name a new file")
        made = _fleet()
        found = _attest(list(minions), made, listed=wish.ima)
        silent = [minion for minion in minions if not found[minion]["answered"]]
        if silent:
            raise NetspaceError(f"{silent[0]}: {found[silent[0]]['answer']}")
        group, learned = made.learn(minions, wish)
        shown = {
            "group": group,
            "learned_from": minions,
            "diff": _some(policies.diff(learned.before, learned.after)),
            "notes": list(learned.notes),
            "signed": False,
        }
        if file:
            files.write(Path(file), json.dumps(learned.after, indent=1).encode())
        if sign is True and learned.before != learned.after:
            _put(made, group, learned.after)
            shown["signed"] = True
        return {**shown, "version": learned.after["version"]}

    return _answer(work)


def policy_set(group: str, file: str) -> dict[str, Any]:
    """Sign a policy and put it in force. The version must be higher than
    that of the last policy.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.policy_set web policy.yaml

    group
        A group in the master's configuration, or ``default``.

    file
        The policy (YAML or JSON): see the page on policies.
    """

    def work() -> dict[str, Any]:
        made = _fleet()
        data = _policy_data(file)
        try:
            before = made.policies.data(made.named(str(group)).name)
        except Refused:
            before = None  # the policy in force is unusable; the new one replaces it
        found = _put(made, str(group), data)
        return {"group": str(group), "version": found.version, "diff": _some(policies.diff(before, data))}

    return _answer(work)


def policy_show(group: str = groups.DEFAULT) -> dict[str, Any]:
    """Check the signature and version of the policy in force, and return
    the policy.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.policy_show web --out yaml

    group
        The policy's group. Defaults to ``default``.
    """

    def work() -> dict[str, Any]:
        made = _fleet()
        found = made.policies.data(made.named(str(group)).name)
        if found is None:
            raise NetspaceError(f"the group {group} has no policy")
        return found

    return _answer(work)


def policy_check(group: str, file: str, ima: bool = False) -> dict[str, Any]:
    """Compare the present level of each host of a group with its level
    under a new policy.

    The function uses each host's last evidence. It puts nothing in
    force, and asks no host (except with ``ima``). ``changes`` has the
    hosts whose level would change, ``same`` the hosts whose level would
    stay, and ``untried`` the hosts without usable evidence.

    The function refuses two kinds of policies, because they would prove
    less than they seem to: policies with a rule on a PCR that is not
    quoted or not judged, and policies with rules for IMA but no rules
    for the kernel and its command line.

    Without ``ima``, only the rules for the boot are tried (up to L4),
    because the master doesn't keep measurement lists.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.policy_check web policy.yaml
        salt-run netspace_attestation.policy_check web policy.yaml \\
            ima=True

    group
        A group in the master's configuration, or ``default``.

    file
        The policy (YAML or JSON): see the page on policies.

    ima
        Attest the hosts now, with their whole measurement lists, by the
        policy in force. Then also try the new policy's rules for IMA.
        Defaults to False.
    """

    def work() -> dict[str, Any]:
        made = _fleet()
        chosen = made.named(str(group))
        data = _policy_data(file)
        proposed = rules.accepted(data, time.time(), chosen.pcrs)
        rules.founded(proposed, chosen.pcrs)
        in_force = made.policies.get(chosen.name)
        hosts = [minion for minion in _known(made, "*") if made.group(minion) == chosen]
        tried = {}
        for start in range(0, len(hosts), fleet.MAX_LISTED):
            some = hosts[start : start + fleet.MAX_LISTED]
            if ima is True:
                _attest(list(some), made, listed=True)
            tried.update((minion, made.tried(minion, proposed, listed=ima is True)) for minion in some)
        changes = {minion: one for minion, one in tried.items() if one["new"] is not None and one["old"] != one["new"]}
        return {
            "group": chosen.name,
            "version": {"in_force": None if in_force is None else in_force.version, "proposed": proposed.version},
            "changes": changes,
            "not_tried": ["ima (ima=True tries it)"] if proposed.ima is not None and ima is not True else [],
            "same": sorted(one for one in tried if tried[one]["new"] is not None and one not in changes),
            "untried": {one: tried[one]["reason"] for one in tried if tried[one]["new"] is None},
        }

    return _answer(work)


def jwks() -> dict[str, Any]:
    """Return the verifier's public key as a JWK set, for third parties
    that check results.

    ``kid`` is the thumbprint that minions pin in
    ``attestation:verifier_keys``.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.jwks --out json
    """
    return _answer(lambda: ear.jwks([ear.signer((made := _registrar()).folder, made.module).jwk]))


def ear_token(minion: str) -> dict[str, Any]:
    """Return a minion's last result as a signed token (EAR, JWT, ES256):
    ``{token, expires}``.

    A token is valid for ten minutes.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ear_token web1

    minion
        The minion's id.
    """

    def work() -> dict[str, Any]:
        record = _fleet().results.record(str(minion))
        if record is None:
            raise NetspaceError(f"{minion} was never attested")
        if time.time() > record["issued"] + ear.LIFETIME:
            raise NetspaceError(f"the last result of {minion} is older than ten minutes: attest it")
        return {"token": record["token"], "expires": int(record["issued"] + ear.LIFETIME)}

    return _answer(work)


def _attest(minions: list[str], made: fleet.Fleet, *, listed: bool = False) -> dict[str, Any]:
    settings = _settings()
    ready = _credentials(made.registrar, _trusted(settings))
    turn = rounds.Round(made, ready, lambda one: _announce(made, one), listed=listed)
    with _bus(settings) as bus:
        return turn.run(minions, bus, _pace(settings), _seen(rounds.doubtful(made.registrar.folder, minions)))


def _enrolled(minion: str, settings: dict[str, Any], trusted: Callable[[], makers.Makers]) -> dict[str, Any]:
    """Enrol one minion; return its record."""
    registrar = _registrar(settings)
    found: list[dict[str, Any]] = []

    def work() -> calls.Work:
        found.append((yield from rounds.enrolled(registrar, minion, _credentials(registrar, trusted), _identities())))

    with _bus(settings) as bus:
        window.Window(bus, calls.Pace(1, 0.0, settings["timeout"])).run([(minion, work())])
    return found[0]


def _trusted(settings: dict[str, Any]) -> Callable[[], makers.Makers]:
    """Return a function that returns the TPM makers' certificates. Only the function's first call reads the folder."""
    return functools.cache(lambda: makers.read(settings["roots"]))


def _change_ca(change: Callable[[Authorities, float], dict[str, Any]]) -> dict[str, Any]:
    """Change the Privacy CA, and return its new state with the number of enrolled hosts."""

    def work() -> dict[str, Any]:
        registrar = _registrar()
        return {**change(registrar.ca, time.time()), "hosts": len(registrar.hosts())}

    return _answer(work)


def _credentials(registrar: Registrar, trusted: Callable[[], makers.Makers], name: str = "") -> rounds.Ready:
    """Return a function that returns the object that makes credentials for TPMs.

    Only the first call of the returned function reads the makers' certificates.

    :param name: the verifier's name in the hosts' signed statements. Defaults to the master's fingerprint.
    """

    @functools.cache
    def ready() -> rounds.Begin:
        known, master = trusted(), name or _master()

        def begin(minion: str, shown: Any, now: float) -> Pending:
            return registrar.begin(minion, shown, master, known, now)

        return begin

    return ready


def _pace(settings: dict[str, Any]) -> calls.Pace:
    return calls.Pace(settings["concurrency"], settings["jitter"], settings["timeout"])


@contextlib.contextmanager
def _bus(settings: dict[str, Any]) -> Iterator[buses.Bus]:
    """Yield Salt's bus, for messages to minions.

    :raises NetspaceError: when the master can't be reached.
    """
    import salt.client
    from salt.exceptions import SaltException

    try:
        with salt.client.get_local_client(mopts=__opts__) as client:
            yield buses.SaltBus(client, "netspace_attestation", settings["timeout"], SaltException)
    except SaltException as err:
        raise NetspaceError(f"the master can't be reached: {err}") from err


def _seen(minions: Collection[str]) -> set[str]:
    """Return those of *minions* that are connected to this master. The master asks these first."""
    import salt.utils.minions

    return set(salt.utils.minions.CkMinions(__opts__).connected_ids(subset=minions)) if minions else set()


def _minions(target: Any, tgt_type: str) -> list[str]:
    """Return the minions that match a target.

    The target only selects the minions to ask; it has no influence on verdicts.

    :raises NetspaceError: when no minion matches.
    """
    import salt.utils.minions

    found = buses.hosts(salt.utils.minions.CkMinions(__opts__), target, tgt_type)
    if not found:
        raise NetspaceError(f"no minion matches {target!r:.80}")
    return found


def _known(made: fleet.Fleet, pattern: str) -> list[str]:
    """Return the minions that match *pattern* and have an accepted key or are enrolled."""
    import fnmatch

    import salt.utils.minions

    accepted = buses.hosts(salt.utils.minions.CkMinions(__opts__), pattern, "glob")
    enrolled = [str(one["minion"]) for one in made.registrar.hosts()]
    return sorted({*accepted, *(one for one in enrolled if fnmatch.fnmatchcase(one, pattern))})


def _announce(made: fleet.Fleet, standing: host_state.HostState) -> None:
    """Record a minion's change of state in the registrar's log, and then send it as an event on Salt's bus."""
    before = made.results.announced(standing)
    if before is None:
        return
    import salt.utils.event

    data = {"minion": standing.minion, "old": before, "new": standing.state, "reason": standing.reason[:1000]}
    made.registrar.note("state", data, time.time())
    with salt.utils.event.get_event("master", opts=__opts__, listen=False) as bus:
        bus.fire_event(data, f"netspace/attestation/{standing.minion}/{standing.state}")


def _put(made: fleet.Fleet, group: str, data: Any) -> rules.Policy:
    chosen = made.named(group)
    found = made.policies.put(chosen.name, data, chosen.pcrs)
    noted = {"group": group, "version": found.version, "fingerprint": found.fingerprint}
    made.registrar.note("policy", noted, time.time())
    return found


def _wish(ima: Any, keys: str, overlap: Any) -> learning.Wish:
    """Return the options for learning a policy, made from the arguments of :func:`learn`.

    :raises NetspaceError: when an argument is invalid.
    """
    now = time.time()
    until = ""
    if overlap is not None:
        if type(overlap) not in (int, float) or not 0 < overlap <= 366:
            raise NetspaceError(f"overlap: {overlap!r:.40}: expected days, up to 366")
        until = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(now + overlap * 86400))
    if keys and ima is not True:
        raise NetspaceError("keys: used only for files that IMA measures; give ima=True, too")
    raw = _given(keys, MAX_KEYS)
    if len(raw) > MAX_KEYS:
        raise NetspaceError(f"{keys}: more than {MAX_KEYS} bytes; name a file with fewer keys")
    blocks = _BLOCK.findall(raw.decode("ascii", "replace"))
    if keys and not blocks:
        raise NetspaceError(f"{keys}: no certificate or public key (PEM)")
    return learning.Wish(now, ima is True, blocks, until)


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_SHOWN
    return lines if more <= 0 else [*lines[:MAX_SHOWN], f"... and {more} lines more: 'file' has all of the policy"]


class _Store:
    """A store of records in ``salt.cache``: localfs, or the driver that the master's ``cache`` names (redis, ...)."""

    def __init__(self) -> None:
        import salt.cache

        self._cache = salt.cache.factory(__opts__)

    def fetch(self, kind: str, key: str) -> dict[str, Any]:
        with self._reached():
            found = self._cache.fetch(f"netspace_attestation/{kind}", key)
        return found if isinstance(found, dict) else {}

    def store(self, kind: str, key: str, data: dict[str, Any]) -> None:
        with self._reached():
            self._cache.store(f"netspace_attestation/{kind}", key, data)

    @staticmethod
    @contextlib.contextmanager
    def _reached() -> Iterator[None]:
        """Convert an error of the cache into NetspaceError, so that the caller doesn't take it for a missing record."""
        from salt.exceptions import SaltException

        try:
            yield
        except SaltException as err:
            raise NetspaceError(f"results can't be read or kept (the master's cache): {err}") from err


def _fleet(master: str = "", identities: identity.Identities | None = None) -> fleet.Fleet:
    """Return the fleet's verifier.

    :param master: the verifier's name in the hosts' signed statements. Defaults to the master's fingerprint.
    :param identities: checks signatures by minions' Salt keys; by default, by the keys that this master accepted.
    """
    settings = _settings()
    registrar = _registrar(settings)
    deadline = rounds.deadline(registrar.folder, time.time())
    return fleet.Fleet(
        registrar,
        master or _master(),
        groups.parse(settings["groups"], __opts__.get("nodegroups"), deadline),
        _Store(),
        netspace.__version__,
        functools.cache(lambda: tee_roots.read(settings["tee_roots"])),
        identities or _identities(),
    )


def _identities() -> identity.Identities:
    return identity.Identities(_master(), _salt_key)


def _salt_key(minion: str) -> bytes | None:
    """Return the Salt key that this master accepted for a minion; None for minions below another master (a syndic).

    :raises WrongSaltKey: when this master accepted no key of the minion.
    """
    import salt.cache
    import salt.utils.verify

    return salt_keys.accepted(__opts__, minion, salt.utils.verify.valid_id, salt.cache.Cache)


def _registrar(settings: Mapping[str, Any] | None = None) -> Registrar:
    chosen = settings or _settings()
    listed = chosen["inventory"]
    return Registrar(Path(str(chosen["folder"])), hsm.module(chosen["pkcs11"]), Path(str(listed)) if listed else None)


def _settings() -> dict[str, Any]:
    """Return the master's configuration under ``netspace.attestation``."""
    settings: dict[str, Any] = {"folder": f"/var/lib/{INSTANCE}-master", "roots": None, "timeout": 60}
    settings.update(concurrency=32, jitter=1, groups=[], pkcs11=None, tee_roots=None, inventory=None)
    given = __opts__.get("netspace.attestation") or {}
    unknown = sorted(set(given) - set(settings)) if isinstance(given, dict) else [repr(given)]
    if unknown:
        raise NetspaceError(
            f"master configuration: netspace.attestation: {unknown[0]:.40}: unknown; there are {', '.join(settings)}"
        )
    settings.update(given)
    if type(settings["concurrency"]) is not int or settings["concurrency"] < 1:
        raise NetspaceError("master configuration: netspace.attestation:concurrency: expected a whole number from 1 on")
    if type(settings["timeout"]) is not int or not 1 <= settings["timeout"] <= 3600:
        raise NetspaceError("master configuration: netspace.attestation:timeout: expected 1 to 3600 whole seconds")
    if type(settings["jitter"]) not in (int, float) or not 0 <= settings["jitter"] <= 3600:
        raise NetspaceError("master configuration: netspace.attestation:jitter: expected 0 to 3600 seconds")
    return settings


def _master() -> str:
    """Return the fingerprint of this master's public key. Minions identify the master by this fingerprint."""
    return salt_keys.master(__opts__)


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    keys = ("reason", "ek", "template", "tpm", "pseudonym", "serial", "enrolled", "expires")
    return {"minion": record["minion"], "level": f"L{record['level']}", **{key: record[key] for key in keys}}


def _valid(found: Mapping[str, Any]) -> bool:
    """Return False for a result with ``valid: False``. Most results have no such key."""
    return found.get("valid") is not False


def _answer(work: Callable[[], dict[str, Any]], good: Callable[[Mapping[str, Any]], bool] = _valid) -> dict[str, Any]:
    """Return the result of *work*. If the result is not *good*, add ``retcode: 1``, Salt's key for the exit status.

    If *work* raises a refusal or an error, the function returns it as a result, since Salt shows a traceback when a
    runner raises.
    """
    try:
        found = dates.with_texts(work())
        passed = good(found)
    except Refused as err:
        found = {"valid": False, "code": err.code, "reason": err.args[0], "remedy": err.remedy}
        passed = False
    except (NetspaceError, OSError) as err:
        found, passed = {"valid": False, "code": "input", "reason": str(err)}, False
    return found if passed else {**found, "retcode": 1}


def _issue(certificate: str, ca: str, crl: str) -> offline.Issue | None:
    if not certificate:
        if ca or crl:
            raise NetspaceError("ca and crl: no certificate to check; give certificate=, too")
        return None
    if not ca:
        raise NetspaceError("certificate: name the Privacy CA that you trust, too (ca=chain.pem)")
    revoked = _given(crl, ak_certificate.MAX_LIST)
    return offline.Issue(_read(certificate, 64 * 1024), _read(ca, 64 * 1024), time.time(), revoked)


def _logs(log: str, systemd: str, ima: str) -> offline.Logs:
    return offline.Logs(
        _given(log, lists.MAX_LIST),
        _given(systemd, lists.MAX_LIST),
        _given(ima, lists.MAX_LIST),
    )


def _given(path: str, limit: int) -> bytes:
    """Return the content of the file *path* as :func:`_read` does. Return no bytes if *path* is empty."""
    return _read(path, limit) if path else b""


def _read(path: str, limit: int) -> bytes:
    """Return a file's content. If it is longer than *limit* bytes, return *limit* + 1 bytes, which parsers refuse.

    Read the file to its end, since files in securityfs report a size of 0.
    """
    with Path(path).open("rb") as stream:
        raw = stream.read(limit + 1)
    if not raw:
        raise NetspaceError(f"{path} is empty")
    return raw


def _values(given: dict[str, str] | None) -> dict[int, bytes]:
    """Return SHA-256 values of PCRs, as they are given on a command line."""
    found = given or {}
    try:
        values = {int(pcr): bytes.fromhex(value) for pcr, value in found.items()}
    except (AttributeError, TypeError, ValueError) as err:
        raise NetspaceError(f"pcrs: {given!r:.80}: expected values in hex by the numbers of PCRs") from err
    if wrong := [pcr for pcr, value in values.items() if not 0 <= pcr <= MAX_PCR or len(value) != 32]:
        raise NetspaceError(f"pcrs: {wrong[0]}: expected a PCR from 0 to {MAX_PCR}, with 32 bytes in hex")
    return values


def _policy(path: str) -> Any:
    return rules.parse(_policy_data(path), time.time())


def _policy_data(path: str) -> Any:
    from salt.utils.yaml import YAMLError, safe_load

    raw = _read(path, MAX_POLICY)
    if len(raw) > MAX_POLICY:
        raise NetspaceError(f"{path}: more than {MAX_POLICY} bytes")
    try:
        # Parsing YAML is slow, so long lists of files come as JSON.
        data = json.loads(raw) if raw.lstrip()[:1] == b"{" else safe_load(raw)
    except (ValueError, RecursionError, YAMLError) as err:
        raise NetspaceError(f"{path}: {err}") from err
    return data


def _nonce(text: Any) -> bytes | None:
    """Return the nonce as bytes; None for an empty nonce.

    :raises NetspaceError: when the nonce is not hex, or is a number, because Salt's command line drops the leading
        zeros of a number.
    """
    if text == "" or text is None:
        return None
    if not isinstance(text, str):
        raise NetspaceError(f"nonce: {text!r:.40} was read as a number; quote it twice: nonce='\"00...\"'")
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError as err:
        raise NetspaceError(f"nonce: {text!r:.40}: not hex") from err
