"""
The verifier on the master
==========================

``replay`` and ``verify_quote`` look at logs and quotes that lie in files: no TPM, no minion and no
service is asked. The others are the registrar and its Privacy CA: which TPM is which minion's, and
attestation certificates under pseudonyms; and the verifier of the fleet: ``attest`` asks minions over
Salt's bus and keeps a signed result of each, ``status`` and ``explain`` show them. Each refusal has a
stable ``code`` (see the page on reason codes), and the command's exit status is 1 where something is wrong.

The master's configuration may have (these are the defaults)::

    netspace.attestation:
      folder: /var/lib/netspace-master   # the registrar's, 0700
      roots: null                        # a folder: certificates (.pem), revocation lists (.crl) of makers of TPMs
      timeout: 60                        # seconds that a minion may take
      concurrency: 32                    # minions that are asked at one time
      jitter: 1                          # seconds, at most, for which questions are collected for one message
      tee_roots: null                    # a folder: certificates of makers of TEEs, and what else is known of them
      inventory: null                    # a file: which TPM each minion may have
      groups: []                         # whose policy is which: see the page on fleets
      pkcs11: null                       # a module for keys: see the page on enrolling
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace import files  # noqa: E402
from netspace.attestation import (  # noqa: E402
    audit_log,
    ear,
    fleet,
    groups,
    hsm,
    identity,
    learning,
    makers,
    offline,
    privacy_ca,
    rounds,
    window,
)
from netspace.attestation import bus as buses  # noqa: E402
from netspace.attestation import ima as lists  # noqa: E402
from netspace.attestation import policy as rules  # noqa: E402
from netspace.attestation.enrolment import Pending  # noqa: E402
from netspace.attestation.evidence import key_fingerprint  # noqa: E402
from netspace.attestation.refusals import Refused, WrongSaltKey  # noqa: E402
from netspace.attestation.registrar import Registrar  # noqa: E402
from netspace.attestation.tee import offline as tees  # noqa: E402
from netspace.attestation.tee import roots as tee_roots  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_attestation"

INSTANCE = "netspace"
MAX_POLICY = 256 * 1024 * 1024
MAX_KEYS = 1024 * 1024
# Lines of a difference that are shown.
MAX_SHOWN = 2000
_BLOCK = re.compile(r"-----BEGIN [A-Z ]+-----.+?-----END [A-Z ]+-----", re.DOTALL)


def __virtual__() -> str:
    return __virtualname__


def replay(log: str = "", systemd: str = "", ima: str = "") -> dict[str, Any]:
    """
    Show a boot log's events, and the PCR values per bank that it leads to:
    ``{banks: {sha256: {"0": hex}}, events: [...]}``.

    Each event has ``pcr``, ``type``, ``digests`` and what its data says (``variable``, ``path``,
    ``text``, ...). **Data proves nothing** but where ``matches`` is true: its digest is what was
    measured. With an IMA list the answer has ``ima`` too: ``lines``, ``violations`` and ``edited``.

    A log proves nothing without a quote of the values: see ``verify_quote``.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.replay /sys/kernel/security/tpm0/binary_bios_measurements --out json

    log
        The firmware's log: ``binary_bios_measurements`` of a host.

    systemd
        systemd's log, ``/run/log/systemd/tpm2-measure.log``: what it measured after the firmware.

    ima
        IMA's list, ``binary_runtime_measurements`` or ``ascii_runtime_measurements``, also those of one
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
    """
    Check a quote as ``tpm2_quote`` writes it, and say precisely what is right and what is wrong:
    ``{valid, code, reason, checks, quote}``.

    ``checks`` are in the order in which they were made and end with the first that failed. What
    was not given can't be checked, and is listed as ``unchecked``. That the key belongs to a genuine
    TPM is what enrolment finds: the Privacy CA's ``certificate`` says so.

    CLI Example:

    .. code-block:: bash

        tpm2_quote -c ak.ctx -l sha256:0,1,2,3,4,5,6,7 -q 8a1c0d5f -m q.msg -s q.sig -o q.pcrs
        salt-run netspace_attestation.verify_quote msg=q.msg sig=q.sig ak=ak.pub nonce=8a1c0d5f pcrs=q.pcrs

    msg
        The file of ``tpm2_quote -m``.

    sig
        The file of ``tpm2_quote -s`` (``-f tss``, which is the default).

    ak
        The attestation key: TPM2B_PUBLIC or TPMT_PUBLIC (``tpm2_createak -u`` with ``-f tss``), PEM
        or DER. Of the latter two it can't be told whether the key is restricted.

    log
        The firmware's log: ``binary_bios_measurements``.

    nonce
        The qualifying data, in hex. **Without it an old quote passes.**

    pcrs
        The PCR values: ``tpm2_quote -o``, the text of ``tpm2_pcrread``, or JSON as ``replay`` shows it.
        With them a difference can be told PCR by PCR.

    systemd
        systemd's log, ``/run/log/systemd/tpm2-measure.log``.

    ima
        IMA's list, binary or ASCII. It may be ahead of the quote.

    policy
        A file (YAML or JSON) with what the boot must be, and what may have run after it: see the page
        on policies. It needs ``pcrs`` and ``log``.

    certificate
        The certificate that a Privacy CA issued for the key (PEM), as ``certificate`` returns it; with ``ca``.

    ca
        The Privacy CA that you trust: its ``chain.pem``.

    crl
        Its revocation list, as ``ca_crl`` returns it. **Without it a revoked certificate passes.**
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


def verify_tee(
    report: str,
    folder: str = "",
    certificates: str = "",
    quote: str = "",
    ccel: str = "",
    data: str = "",
    policy: str = "",
) -> dict[str, Any]:
    """
    Check a report of a confidential guest in a file, and return the result of each check:
    ``{valid, code, reason, checks, report}``.

    Takes the kernel's ``outblob`` (SEV-SNP report, TDX quote), or the report of Azure's paravisor (NV index 0x01400001
    of the vTPM), of which it shows the vTPM's keys that the TEE vouches for.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.verify_tee outblob folder=/etc/netspace/tee-roots certificates=auxblob

    report
        The file with the report.

    folder
        The folder with the makers' roots. Defaults to the one that the master's configuration names.

    certificates
        What the host handed to its guest: the kernel's ``auxblob`` (SEV-SNP).

    quote
        The TDX quote, where the report is a paravisor's.

    ccel
        The guest's log, ``/sys/firmware/acpi/tables/data/CCEL``, which must lead to the quoted registers (TDX).

    data
        The data that the report must be over: up to 64 bytes in hex. **Without it an old report passes.**

    policy
        A file (YAML or JSON) with rules for the guest in its section ``tee``.
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
    """
    Bind a minion to its TPM, and have its attestation key certified by the Privacy CA for a day.

    The master makes a credential that only this TPM can open, for this attestation key alone; its
    answer proves that both are in one TPM. A minion keeps the TPM that it had at first, and a TPM
    serves one minion, until ``release``. ``level`` is L3 where the TPM's endorsement certificate chains to
    a certificate in the folder that the master's ``netspace.attestation:roots`` names, else L2.
    ``unreadable_roots`` has the files of that folder that can't be read.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.enroll web1

    minion
        Its id; no pattern.
    """

    def work() -> dict[str, Any]:
        settings = _settings()
        trusted = _trusted(settings)
        found = _enrolled(str(minion), settings, trusted)
        unreadable = trusted().unreadable
        return {**_shown(found), **({"unreadable_roots": list(unreadable)} if unreadable else {})}

    return _answer(work)


def roots() -> dict[str, Any]:
    """
    Show the makers of TPMs that are trusted (the folder that ``netspace.attestation:roots`` names): ``certificates``
    with subject, kind of key and end, how many revocation ``lists``, and which files are ``unreadable``, and why.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.roots
    """
    return _answer(lambda: makers.listed(_settings()["roots"]))


def hosts() -> dict[str, Any]:
    """
    Show every enrolled minion: TPM (SHA-256 of its endorsement key), level and why it is not higher,
    pseudonym, and until when its certificate is good.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.hosts
    """
    return _answer(lambda: {record["minion"]: _shown(record) for record in _registrar().hosts()})


def certificate(minion: str) -> dict[str, Any]:
    """
    Return the certificate of a minion's attestation key (PEM), its ``period``, by which the minion's
    ``netspace_attestation.evidence`` selects the key, and the Privacy CA's ``chain``. With them and
    ``ca_crl`` others check its quotes (``verify_quote certificate=... ca=... crl=...``) and learn a pseudonym alone.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.certificate web1

    minion
        Its id.
    """
    return _answer(lambda: _registrar().certificate(str(minion)))


def revoke(minion: str, why: str = "") -> dict[str, Any]:
    """
    Revoke a minion's attestation certificate. The minion stays bound to its TPM; ``enroll`` gives it another.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.revoke web1 why="stolen"

    minion
        Its id.

    why
        For the log.
    """
    return _answer(lambda: _shown(_registrar().revoke(str(minion), str(why), time.time())))


def release(minion: str) -> dict[str, Any]:
    """
    Forget which TPM a minion has and what was found of it, and revoke its certificate: **the next one that it shows
    is accepted**. Of a minion without a TPM, the software key is forgotten. For a TPM that was replaced or cleared.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.release web1

    minion
        Its id.
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
    """
    Make the Privacy CA: a root, and the intermediate that signs.

    With ``root_elsewhere`` the answer has ``request``, to be signed by a root that never was on this
    machine, and ``ca_import`` brings the certificate.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_init

    name
        The intermediate's name.

    root_elsewhere
        Make no root here. Defaults to False.
    """
    return _answer(lambda: _registrar().init(time.time(), name=str(name), here=not root_elsewhere))


def ca_renew(name: str = "netspace Privacy CA") -> dict[str, Any]:
    """
    Make the next intermediate. What the last one signed stays good until it runs out.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_renew

    name
        Its name.
    """
    return _answer(lambda: _registrar().renew(time.time(), name=str(name)))


def ca_sign(request: str, root: str) -> dict[str, Any]:
    """
    Sign an intermediate's request with a root, where the root is. Returns ``certificate`` (PEM).

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_sign request=ca.csr root=/media/usb/root

    request
        A file with what ``ca_init root_elsewhere=True`` returned as ``request``.

    root
        The root's folder. One is made where there is none.
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
    """
    Take the intermediate's certificate into use that a root elsewhere made of the last request.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_import certificate=ca.pem root=root.pem

    certificate
        A file with the certificate (PEM).

    root
        A file with the root's certificate (PEM).
    """
    return _answer(lambda: _registrar().adopt(_read(certificate, 64 * 1024), _read(root, 64 * 1024), time.time()))


def ca_status() -> dict[str, Any]:
    """
    Show the Privacy CA: its name, until when it may sign, whether its root is here, and how many hosts it knows.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_status
    """
    return _answer(lambda: _registrar().status(time.time()))


def ca_crl() -> dict[str, Any]:
    """
    Return the revocation list (``crl``, PEM), fresh for a day, for others that check certificates of the CA.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_crl
    """
    return _answer(lambda: {"crl": _registrar().revocations(time.time()).decode()})


def verify_log(records: int = 0, hash: str = "") -> dict[str, Any]:
    """
    Check the registrar's log from its beginning: each record is chained to the one before, so what was
    changed, removed or added is found. Returns ``{records, hash}``, the log's head.

    **Records that are cut off its end are found only by a head that was noted elsewhere**: give it.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.verify_log records=812 hash=5f2c...

    records
        How many records there were.

    hash
        The last one's hash then.
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
    """
    Challenge minions over Salt's bus, judge what they answer by their groups' policies, keep a signed result
    of each, and have those enforce it whose pillar says ``verifier: master``. The exit status is 1 unless
    all of them are *trusted*.

    Each minion gets a nonce of its own. Minions are asked in random order, ``concurrency`` of them at one time; once
    one has answered, the next is asked, and none waits for absent or slow ones. **A minion that does not answer
    is not judged**: its last result counts until its deadline, and then the host is *stale*. A certificate that expires
    soon is renewed first, each host's at a time of its own. Each change of state is an event,
    ``netspace/attestation/<minion>/<state>``.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.attest 'web*'

    target
        Which minions. Defaults to all.

    tgt_type
        How ``target`` is meant: ``glob`` (default), ``list``, ``grain``, ``compound``, ...
    """

    return _answer(
        lambda: _attest(_minions(target, tgt_type), _fleet()),
        lambda found: bool(found) and all(one["state"] == fleet.TRUSTED for one in found.values()),
    )


def status(target: str = "*") -> dict[str, Any]:
    """
    Show the state of each minion now, by its id: ``unknown``, ``enrolled``, ``trusted``, ``degraded``,
    ``stale``, ``failed`` or ``revoked``, with level, reason, remedy, group, age and deadline.

    Asks nobody. The state is computed from the last result and the time, so where nobody attested for too
    long, hosts are ``stale``.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.status

    target
        A pattern of minions' ids. Defaults to all that the master knows.
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


def explain(minion: str) -> dict[str, Any]:
    """
    Say on one screen why a minion has its level, and what would raise it.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.explain web1

    minion
        Its id.
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
            "last evidence": "none" if record is None else f"{_when(record['issued'])}, {shown['age']} s ago",
            "counts until": "-" if record is None else _when(shown["deadline"]),
            "group": f"{standing.group.name}; its policy: {in_force}",
            "judged by": "-"
            if record is None
            else f"version {record['version']}"
            if record["version"]
            else "no policy",
            "tpm": "none is enrolled" if host is None else f"{host['ek'][:16]}..., seen {_when(host['enrolled'])}",
            "certificate": "-" if host is None else f"until {_when(host['expires'])}",
            "tee": shown["tee"] or "none is known",
        }

    return _answer(work)


def learn(
    target: str,
    sign: bool = False,
    tgt_type: str = "glob",
    ima: bool = False,
    keys: str = "",
    overlap: float | None = None,
    file: str = "",
) -> dict[str, Any]:
    """
    Learn from hosts that are known to be good: attest them now, and show what the policy of their group would
    become if it also took how they were booted. **Nothing is written without** ``sign=True``.

    The first policy of a group gets rules wherever the boot logs allow them: Secure Boot on, the entries of
    dbx that all of them have, who signed what was booted, UEFI programs, kernels, initrds, whatever else was loaded,
    and command lines. The rest are plain PCR values. ``notes`` says what could not be told by rules, and why.

    A policy that is there keeps its form: its lists get longer, what was good stays so (or for ``overlap`` days), and
    what it demands is not lowered. The next version is one higher. Of a long ``diff`` the beginning is shown.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.learn web1
        salt-run netspace_attestation.learn 'golden*'
        salt-run netspace_attestation.learn web1 sign=True
        salt-run netspace_attestation.learn web1 ima=True keys=/etc/keys/ima.pem file=/root/web.json
        salt-run netspace_attestation.learn web1 overlap=14 sign=True

    target
        Which minions, all of one group.

    sign
        Put it in force. Defaults to False.

    tgt_type
        How ``target`` is meant: ``glob`` (default), ``list``, ...

    ima
        Learn from the hosts' measurement lists (IMA), too, which files may run: by path and digest. Files that a
        key of the policy signed, or that it excludes, need none. ``notes`` names what changed while a host ran, and
        which unknown keys signed files. Defaults to False.

    keys
        A file with certificates or public keys (PEM) that may have signed files: those that did are proposed, too.

    overlap
        Days for which counts what was good before and none of these hosts shows (of IMA's files: the former digests of
        those that have others now). Defaults to none: for ever.

    file
        Write the whole policy there (JSON), for an editor, ``policy_check`` and ``policy_set``. It must not exist.
    """

    def work() -> dict[str, Any]:
        minions = sorted(_minions(target, tgt_type))
        wish = _wish(ima, keys, overlap)
        if file and Path(file).exists():
            raise NetspaceError(f"{file} is there already: name a new file")
        made = _fleet()
        found = _attest(list(minions), made, listed=wish.ima)
        silent = [minion for minion in minions if not found[minion]["answered"]]
        if silent:
            raise NetspaceError(f"{silent[0]}: {found[silent[0]]['answer']}")
        group, learned = made.learn(minions, wish)
        shown = {
            "group": group,
            "learned_from": minions,
            "diff": _some(groups.diff(learned.before, learned.after)),
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
    """
    Sign a policy and put it in force. Its version must be higher than the last one's.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.policy_set web policy.yaml

    group
        Of the master's configuration, or ``default``.

    file
        YAML or JSON: see the page on policies.
    """

    def work() -> dict[str, Any]:
        made = _fleet()
        data = _policy_data(file)
        try:
            before = made.policies.data(made.named(str(group)).name)
        except Refused:
            before = None  # what is there can't be used: this is how it is mended
        found = _put(made, str(group), data)
        return {"group": str(group), "version": found.version, "diff": _some(groups.diff(before, data))}

    return _answer(work)


def policy_show(group: str = groups.DEFAULT) -> dict[str, Any]:
    """
    Return the policy that is in force, after its signature and version were checked.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.policy_show web --out yaml

    group
        Defaults to ``default``.
    """

    def work() -> dict[str, Any]:
        made = _fleet()
        found = made.policies.data(made.named(str(group)).name)
        if found is None:
            raise NetspaceError(f"the group {group} has no policy")
        return found

    return _answer(work)


def policy_check(group: str, file: str, ima: bool = False) -> dict[str, Any]:
    """
    Show the level that a policy would give each host of the group, by its last evidence: nothing is put
    in force, and no host is asked. ``changes`` has the hosts whose level would change.

    A policy that only looks strict is refused: with a rule that rests on an unjudged or unquoted PCR, or with rules for
    IMA but none for the kernel that measures and its command line.

    Only the boot is tried (up to L4). Measurement lists are judged as they come and not kept, so with ``ima`` the hosts
    are asked for them.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.policy_check web policy.yaml
        salt-run netspace_attestation.policy_check web policy.yaml ima=True

    group
        Of the master's configuration, or ``default``.

    file
        YAML or JSON: see the page on policies.

    ima
        Attest the hosts now, by the policy in force, and have them bring their whole measurement lists: the rules for
        what runs are tried, too. Defaults to False.
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
    """
    Return the verifier's public key as a JWK set, for others that check results. ``kid`` is the thumbprint
    that minions pin in ``attestation:verifier_keys``.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.jwks --out json
    """
    return _answer(lambda: ear.jwks([ear.signer((made := _registrar()).folder, made.module).jwk]))


def ear_token(minion: str) -> dict[str, Any]:
    """
    Return the last result of a minion as a signed token (EAR, JWT, ES256), which is good for ten minutes after it
    was made: ``{token, expires}``.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ear_token web1

    minion
        Its id.
    """

    def work() -> dict[str, Any]:
        record = _fleet().record(str(minion))
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

    def work() -> window.Work:
        found.append((yield from rounds.enrolled(registrar, minion, _credentials(registrar, trusted), _identities())))

    with _bus(settings) as bus:
        window.Window(bus, window.Pace(1, 0.0, settings["timeout"])).run([(minion, work())])
    return found[0]


def _trusted(settings: dict[str, Any]) -> Callable[[], makers.Makers]:
    """Return a reader of the makers' certificates; it reads their folder once, when it is first called."""
    return functools.cache(lambda: makers.read(settings["roots"]))


def _credentials(registrar: Registrar, trusted: Callable[[], makers.Makers]) -> rounds.Ready:
    """Return the maker of credentials; it reads the makers' certificates before the first credential."""

    @functools.cache
    def ready() -> rounds.Begin:
        known, master = trusted(), _master()

        def begin(minion: str, shown: Any, now: float) -> Pending:
            return registrar.begin(minion, shown, master, known, now)

        return begin

    return ready


def _pace(settings: dict[str, Any]) -> window.Pace:
    return window.Pace(settings["concurrency"], settings["jitter"], settings["timeout"])


@contextlib.contextmanager
def _bus(settings: dict[str, Any]) -> Iterator[buses.Bus]:
    """Salt's bus; only the named minions are asked."""
    import salt.client
    from salt.exceptions import SaltException

    try:
        with salt.client.get_local_client(mopts=__opts__) as client:
            yield buses.SaltBus(client, "netspace_attestation", settings["timeout"], SaltException)
    except SaltException as err:
        raise NetspaceError(f"the master can't be reached: {err}") from err


def _seen(minions: Collection[str]) -> set[str]:
    """Return those of *minions* that are connected to this master, as far as Salt can tell. They are asked first."""
    import salt.utils.minions

    return set(salt.utils.minions.CkMinions(__opts__).connected_ids(subset=minions)) if minions else set()


def _minions(target: Any, tgt_type: str) -> list[str]:
    """Return the minions that a target means. A target chooses who is asked, and never how they are judged."""
    import salt.utils.minions

    found = buses.hosts(salt.utils.minions.CkMinions(__opts__), target, tgt_type)
    if not found:
        raise NetspaceError(f"no minion matches {target!r:.80}")
    return found


def _known(made: fleet.Fleet, pattern: str) -> list[str]:
    """Return the minions whose keys are accepted or that were enrolled: one whose key was deleted is not forgotten."""
    import fnmatch

    import salt.utils.minions

    accepted = buses.hosts(salt.utils.minions.CkMinions(__opts__), pattern, "glob")
    enrolled = [str(one["minion"]) for one in made.registrar.hosts()]
    return sorted({*accepted, *(one for one in enrolled if fnmatch.fnmatchcase(one, pattern))})


def _announce(made: fleet.Fleet, standing: fleet.Standing) -> None:
    """Tell of a change of state: in the log, then on Salt's bus."""
    before = made.announced(standing)
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
    """Read the further parts that are to be learned, and until when the entries that they replace count."""
    now = time.time()
    until = ""
    if overlap is not None:
        if type(overlap) not in (int, float) or not 0 < overlap <= 366:
            raise NetspaceError(f"overlap: {overlap!r:.40}: expected days, up to 366")
        until = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(now + overlap * 86400))
    if keys and ima is not True:
        raise NetspaceError("keys are of files that IMA measures: say ima=True, too")
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


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


class _Store:
    """Records in ``salt.cache``: localfs, or what the master's ``cache`` names (redis, ...)."""

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
        """Raise for results that can't be read or kept: nothing is said of any host then."""
        from salt.exceptions import SaltException

        try:
            yield
        except SaltException as err:
            raise NetspaceError(f"results can't be read or kept (the master's cache): {err}") from err


def _fleet() -> fleet.Fleet:
    settings = _settings()
    registrar = _registrar(settings)
    deadline = rounds.deadline(registrar.folder, time.time())
    return fleet.Fleet(
        registrar,
        _master(),
        groups.parse(settings["groups"], __opts__.get("nodegroups"), deadline),
        _Store(),
        netspace.__version__,
        functools.cache(lambda: tee_roots.read(settings["tee_roots"])),
        _identities(),
    )


def _identities() -> identity.Identities:
    return identity.Identities(_master(), _salt_key)


def _salt_key(minion: str) -> bytes | None:
    """Return the Salt key that this master accepted for a minion; None for minions below another master (a syndic)."""
    import salt.utils.verify

    pem: bytes | None = None
    if salt.utils.verify.valid_id(__opts__, minion):
        driver = __opts__.get("keys.cache_driver")
        if driver not in (None, "localfs_key"):  # from Salt 3008 on, keys may be elsewhere
            import salt.cache

            found = salt.cache.Cache(__opts__, driver=driver).fetch("keys", minion) or {}
            pem = str(found["pub"]).encode() if found.get("state") == "accepted" else None
        else:
            folder = __opts__.get("cluster_pki_dir") if __opts__.get("cluster_id") else __opts__["pki_dir"]
            path = Path(str(folder)) / "minions" / minion
            pem = path.read_bytes() if path.is_file() else None
    if pem is None and not __opts__.get("order_masters"):
        raise WrongSaltKey(f"the master has no accepted Salt key of {minion}")
    return pem


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
    """Fingerprint of this master's key, as minions know it."""
    path = Path(__opts__["pki_dir"]) / "master.pub"
    try:
        return key_fingerprint(path.read_bytes())
    except OSError as err:
        raise NetspaceError(f"{path}: {err.strerror}: minions know this master by it; start the master once") from err


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "minion": record["minion"],
        "level": f"L{record['level']}",
        "reason": record["reason"],
        "ek": record["ek"],
        "template": record["template"],
        "tpm": record["tpm"],
        "pseudonym": record["pseudonym"],
        "serial": record["serial"],
        "enrolled": record["enrolled"],
        "expires": record["expires"],
    }


def _valid(found: Mapping[str, Any]) -> bool:
    """Return whether an answer does not call itself invalid; most say nothing of it."""
    return found.get("valid") is not False


def _answer(work: Callable[[], dict[str, Any]], good: Callable[[Mapping[str, Any]], bool] = _valid) -> dict[str, Any]:
    """Return what *work* returns, with Salt's key for the exit status where that is not *good*.

    A refusal is returned, too: a runner that raises shows a traceback.
    """
    try:
        found = work()
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
            raise NetspaceError("ca and crl are for a certificate: name it, too")
        return None
    if not ca:
        raise NetspaceError("certificate: name the Privacy CA that you trust, too (ca=chain.pem)")
    revoked = _given(crl, privacy_ca.MAX_LIST)
    return offline.Issue(_read(certificate, 64 * 1024), _read(ca, 64 * 1024), time.time(), revoked)


def _logs(log: str, systemd: str, ima: str) -> offline.Logs:
    return offline.Logs(
        _given(log, lists.MAX_LIST),
        _given(systemd, lists.MAX_LIST),
        _given(ima, lists.MAX_LIST),
    )


def _given(path: str, limit: int) -> bytes:
    """Read the file *path* as :func:`_read` does; return no bytes for an empty *path*."""
    return _read(path, limit) if path else b""


def _read(path: str, limit: int) -> bytes:
    """Read a file to its end (those in securityfs claim to be empty), or a byte more than its parser takes."""
    with Path(path).open("rb") as stream:
        raw = stream.read(limit + 1)
    if not raw:
        raise NetspaceError(f"{path} is empty")
    return raw


def _policy(path: str) -> Any:
    return rules.parse(_policy_data(path), time.time())


def _policy_data(path: str) -> Any:
    from salt.utils.yaml import YAMLError, safe_load

    raw = _read(path, MAX_POLICY)
    if len(raw) > MAX_POLICY:
        raise NetspaceError(f"{path}: more than {MAX_POLICY} bytes")
    try:
        # YAML is read slowly, and long lists of files come as JSON.
        data = json.loads(raw) if raw.lstrip()[:1] == b"{" else safe_load(raw)
    except (ValueError, RecursionError, YAMLError) as err:
        raise NetspaceError(f"{path}: {err}") from err
    return data


def _nonce(text: Any) -> bytes | None:
    """Return the nonce as bytes; refuse a number, since Salt's command line takes the zeros from digits."""
    if text == "" or text is None:
        return None
    if not isinstance(text, str):
        raise NetspaceError(f"nonce: {text!r:.40} was read as a number; quote it twice: nonce='\"00...\"'")
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError as err:
        raise NetspaceError(f"nonce: {text!r:.40}: not hex") from err
