"""Strict parser of appraisal policies: rules for a good boot, and for the programs that may run after the boot.

A policy is a mapping (YAML, JSON)::

    version: 3                       # must not decrease; recorded in results
    boot:
      secure_boot: true              # on, with keys, not in debug mode
      dbx: [<sha256>, ...]           # the revocation list has at least these
      signers: [<sha256>, ...]       # certificates by which booted programs may be trusted
      sbat: {shim: 4, grub: 5}       # shim refuses lower generations than these
      mok: [<sha256>, ...]           # shim's lists of keys (PCR 14)
      applications: [<sha256>, ...]  # Authenticode digests of the UEFI programs that may run (PCR 4)
      started_by: {<sha256>: [firmware]}       # programs that may run right before each of them
      kernels: [<sha256>, ...]       # files; one of them must be loaded (PCR 9 or 11)
      initrds: [<sha256>, ...]
      files: [<sha256>, ...]         # other files that the boot loader may load (PCR 9, 11, 12)
      grub_commands: [<sha256>, ...] # commands that GRUB may run (PCR 8)
      command_lines: ["root=/dev/vda ro *"]    # * is any text that doesn't change how the rest is read
      pcrs: {0: [<hex>, ...]}        # plain values
      unchecked: [1, 5]              # quoted PCRs that may have any value
    ima:
      files: {/usr/bin/true: ["sha256:<hex>", ...]}
      keys: [<PEM of a certificate or public key>, ...]     # sign files (security.ima)
      exclude: ["/var/cache/*"]      # files that may have any content
      entries: [<sha256>, ...]       # digests of whole lines, for unknown templates
      violations: refuse             # or ignore
      kexec: refuse                  # or allow: another kernel may be started without a boot
    tcb: {network_boot: never, platform: [<sha256>, ...]}   # what lies below the kernel: the module tcb
    tee: {snp: {measurements: [<hex>, ...]}}                # a confidential guest: netspace.attestation.tee.rules
    environments: {images: [<sha256>, ...]}                 # what may run now: the module environments
    until:                           # further entries with an end: the old digests while an update is rolled out
      2026-12-24:
        boot: {kernels: [<sha256>, ...]}
        ima: {files: {...}}

The verifier refuses everything that no rule allows: each quoted PCR needs a rule, a value, or an entry in
``unchecked``. ``until`` only adds to lists. Only :mod:`netspace.attestation.verifier.appraisal` and the modules of
rules that it calls compare evidence with a policy. This module reads no file.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from netspace.attestation.logs.ima import BOOT_AGGREGATE, VIOLATION, Entry, File, line
from netspace.attestation.policy import boot as boot_policy
from netspace.attestation.policy import environments
from netspace.attestation.policy import tcb as tcb_policy
from netspace.attestation.policy.boot import Boot as Boot
from netspace.attestation.policy_reading import Pattern as Pattern
from netspace.attestation.policy_reading import PolicyError as PolicyError
from netspace.attestation.policy_reading import digests as _digests
from netspace.attestation.policy_reading import items as _list
from netspace.attestation.policy_reading import mapping as _mapping
from netspace.attestation.policy_reading import octets as _hex
from netspace.attestation.policy_reading import patterns as _patterns
from netspace.attestation.tee import rules
from netspace.errors import unreadable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    from netspace.attestation.tee.rules import Tee
    from netspace.attestation.tpm.structures import PublicKey

MAX_FILES = 1_000_000
MAX_PATH = 4096
MAX_CACHE = 65_536
MAX_TERMS = 16
# Rules that may stand under ``until``: lists of allowed things, but neither demands nor ``unchecked``.
PASSING_BOOT = (
    *("signers", "mok", "applications", "kernels", "initrds", "files", "grub_commands", "command_lines", "pcrs"),
)
PASSING_IMA = ("files", "keys", "exclude", "entries")
DIGESTS = {"sha256": 32, "sha384": 48, "sha512": 64}


class Keyring:
    """Public keys that check IMA's signatures of files (kernel: security/integrity/digsig_asymmetric.c).

    Good signatures are cached, because the same file has the same signature on each host.
    """

    # Numbers from include/uapi/linux/hash_info.h; weaker hashes than SHA-256 are refused.
    _HASHES: ClassVar[Mapping[int, bytes]] = {4: b"sha256", 5: b"sha384", 6: b"sha512"}

    def __init__(self, keys: Mapping[bytes, PublicKey]) -> None:
        self._keys = keys
        self._good: set[tuple[bytes, bytes]] = set()

    def __bool__(self) -> bool:
        return bool(self._keys)

    def signed(self, file: File) -> bool:
        """Return whether one of the keys signed the digest of *file*."""
        if not file.signature or not self._keys:
            return False
        seen = (file.digest, file.signature)
        if seen in self._good:
            return True
        if not self._verify(file):
            return False
        if len(self._good) >= MAX_CACHE:
            self._good.clear()
        self._good.add(seen)
        return True

    def _verify(self, file: File) -> bool:
        """Verify a file's signature. Its bytes are the type EVM_IMA_XATTR_DIGSIG (3) and a struct signature_v2_hdr."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding, utils

        raw = file.signature
        if len(raw) < 10 or raw[:2] != b"\3\2" or int.from_bytes(raw[7:9], "big") != len(raw) - 9:
            return False
        name = self._HASHES.get(raw[2])
        algorithm, _, digest = file.digest.partition(b":\0")
        key = self._keys.get(raw[3:7])
        if key is None or name is None or algorithm != name or len(digest) != DIGESTS[name.decode()]:
            return False
        hashed = utils.Prehashed({b"sha256": hashes.SHA256(), b"sha384": hashes.SHA384()}.get(name, hashes.SHA512()))
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(raw[9:], digest, ec.ECDSA(hashed))
            else:
                key.verify(raw[9:], digest, padding.PKCS1v15(), hashed)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class Ima:
    """Rules for the programs and other files that IMA measures.

    :param lines: for each allowed file, the data of its ``ima-ng`` line (:func:`netspace.attestation.logs.ima.line`).
        By a look-up in this set, :meth:`unlisted` judges most lines of a list without parsing them.
    """

    lines: frozenset[bytes]
    keys: Keyring
    exclude: tuple[Pattern, ...]
    entries: frozenset[bytes]
    ignore_violations: bool
    kexec: bool = False

    def unlisted(self, entries: Sequence[Entry], first: int = 0) -> Iterator[tuple[int, Entry]]:
        """Yield each entry that isn't the line of a listed file, with its number.

        Violations and lines with a signature are always yielded.

        :param first: number of the first entry.
        """
        lines = self.lines
        for number, entry in enumerate(entries, first):
            digest, template, data, _ = entry
            if template == b"ima-sig" and data[-4:] == b"\0\0\0\0":
                data = data[:-4]
            elif template != b"ima-ng":
                yield number, entry
                continue
            if data not in lines or digest == VIOLATION:
                yield number, entry

    def allows(self, file: File) -> bool:
        """Return whether *file* may run because it is listed, signed or excluded."""
        if line(file.path, file.digest) in self.lines:
            return True
        # Patterns come before signatures: these take longer, and a host could send many bad ones under excluded names.
        if self.exclude:
            path = file.path.decode("utf-8", "surrogateescape")
            if any(pattern.matches(path) for pattern in self.exclude):
                return True
        return self.keys.signed(file)


@dataclass(frozen=True)
class Policy:
    """A whole policy. It is parsed once and used for all hosts, because parsing a long policy takes time.

    :param fingerprint: SHA-256 of the rules in force.
    :param changes: the time at which the next section under ``until`` ends, in seconds since the epoch; None if none is
        in force.
    :param tee: rules for confidential guests; if set, each host must be a confidential guest.
    :param environments: what hosts may run; if set, each host must keep a ledger of runs.
    """

    version: int
    fingerprint: str
    boot: Boot | None
    ima: Ima | None
    changes: float | None = None
    tee: Tee | None = None
    environments: environments.Environments | None = None


def parse(data: Any, now: float | None = None) -> Policy:
    """Parse a policy.

    :param now: the time, in seconds since the epoch; sections under ``until`` with a later time are in force. None: no
        section under ``until`` is in force.
    :raises PolicyError: for unknown keys, wrong types and sizes out of bounds.
    """
    try:
        return _parsed(data, now)
    except (ValueError, RecursionError) as err:
        # Python can't convert the data to text: a number has thousands of digits, or the data contains itself.
        raise PolicyError(f"policy: {err}") from err


def _parsed(data: Any, now: float | None) -> Policy:
    found = _mapping(data, "policy", ("version", "boot", "ima", "tcb", "tee", "environments", "until"))
    version = found.get("version")
    if type(version) is not int or not 0 < version < 2**31:
        raise PolicyError(f"policy:version: {version!r:.40}: expected a whole number from 1 on")
    boot, ima = _rules(found)
    whole = {key: plain(found[key]) for key in ("boot", "ima", "tcb", "tee", "environments") if key in found}
    if "tcb" in whole:
        whole["tcb"] = tcb_policy.plain(whole["tcb"])
    terms = [(when(moment), section) for moment, section in _terms(found.get("until", {}), whole)]
    counting = [] if now is None else [(until, section) for until, section in terms if now < until]
    if terms:
        every = _rules(_joined(whole, terms))  # sections that are not in force are parsed as strictly
        if counting:
            whole = _joined(whole, counting)
            boot, ima = every if len(counting) == len(terms) else _rules(whole)
    canonical = json.dumps({"version": version, **whole}, sort_keys=True, separators=(",", ":"))
    changes = min((until for until, _ in counting), default=None)
    tee = rules.parse(found["tee"]) if "tee" in found else None
    runs = environments.read(found["environments"]) if "environments" in found else None
    return Policy(version, hashlib.sha256(canonical.encode()).hexdigest(), boot, ima, changes, tee, runs)


def accepted(data: Any, now: float | None = None, quoted: Collection[int] | None = None) -> Policy:
    """Parse a policy before it comes into force.

    :param quoted: PCRs that the policy's hosts quote; None if they are not known.
    :raises PolicyError: as :func:`parse`, and when a rule for the boot rests on a PCR that is not judged or not quoted.
        An attacker could satisfy such a rule.
    """
    found = parse(data, now)
    for gap in boot_policy.gaps(found.boot, quoted) if found.boot is not None else ():
        raise PolicyError(f"policy:{'' if gap.startswith('tcb:') else 'boot:'}{gap}")
    return found


def founded(found: Policy, quoted: Collection[int] | None = None) -> None:
    """Check that the rules for the boot prove everything on which the rules for IMA rest.

    :raises PolicyError: when the rules for the boot allow no host to reach L5.
    """
    if found.ima is not None:
        for gap in boot_policy.ima_gaps(found.boot, quoted):
            raise PolicyError(f"policy:ima: L5 needs proof of the boot: {gap}")


def when(moment: Any) -> float:
    """Convert a date or a time (ISO 8601; UTC if it has no time zone) to seconds since the epoch.

    :raises PolicyError: when *moment* is neither.
    """
    try:
        found = datetime.datetime.fromisoformat(str(moment).replace("Z", "+00:00"))
    except ValueError as err:
        raise PolicyError(f"policy:until: {moment!r:.40}: expected a date, or a time: 2026-12-24T18:00Z") from err
    return (found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)).timestamp()


def _terms(data: Any, whole: Mapping[str, Any]) -> Iterable[tuple[Any, Mapping[str, Any]]]:
    """Check the sections under ``until``, and return each with its time of expiry.

    Each list in a section must extend a list of the permanent rules. The parser checks the lists' entries later.

    :param whole: the permanent rules, which were parsed before.
    :raises PolicyError: when a section has other keys, or extends a list that does not exist.
    """
    at = "policy:until"
    if not isinstance(data, Mapping) or len(data) > MAX_TERMS:
        raise PolicyError(f"{at}: expected a mapping with at most {MAX_TERMS} dates")
    for moment, section in data.items():
        here = f"{at}:{moment!s:.40}"
        found = _mapping(section, here, ("boot", "ima"))
        boot = _mapping(plain(found.get("boot", {})), f"{here}:boot", PASSING_BOOT)
        _mapping(found.get("ima", {}), f"{here}:ima", PASSING_IMA)
        base = whole.get("boot", {})
        for key in boot:
            needs = {"initrds": "kernels", "files": "kernels"}.get(key, key)
            if needs not in base:
                raise PolicyError(f"{here}:boot:{key}: there is no list to extend; add boot:{needs}")
        pcrs = boot.get("pcrs", {})
        known = base.get("pcrs", {})
        given = found.get("boot", {}).get("pcrs", {})
        if not isinstance(pcrs, Mapping) or len(pcrs) != len(given) or not set(pcrs) <= set(known):
            raise PolicyError(f"{here}:boot:pcrs: expected only PCRs that policy:boot:pcrs lists, each once")
        if "ima" in found and "ima" not in whole:
            raise PolicyError(f"{here}:ima: policy:ima is missing, so there is no list to extend")
    return ((moment, plain(section)) for moment, section in data.items())


def _joined(whole: Mapping[str, Any], terms: Iterable[tuple[float, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return *whole* with its lists extended by *terms*. The parser checks the entries' types later."""
    made = {key: dict(value) if isinstance(value, Mapping) else value for key, value in whole.items()}
    for _, section in terms:
        for kind, lists in section.items():
            for key, more in lists.items():
                rules = made[kind]
                if not isinstance(rules, dict):
                    continue
                if isinstance(more, Mapping):
                    known = rules.get(key, {})
                    if isinstance(known, Mapping):
                        rules[key] = {**known, **{one: _both(known.get(one, []), new) for one, new in more.items()}}
                else:
                    rules[key] = _both(rules.get(key, []), more)
    return made


def _both(known: Any, more: Any) -> Any:
    return [*known, *more] if isinstance(known, list) and isinstance(more, list) else more


def _rules(whole: Mapping[str, Any]) -> tuple[Boot | None, Ima | None]:
    tcb = tcb_policy.read(whole["tcb"]) if "tcb" in whole else None
    if tcb is not None and "boot" not in whole:
        raise PolicyError("policy:boot is missing; policy:tcb is judged only together with it")
    return (
        boot_policy.read(whole["boot"], tcb) if "boot" in whole else None,
        _ima(whole["ima"]) if "ima" in whole else None,
    )


def plain(data: Any) -> Any:
    """Return *data* with all keys as text.

    In YAML, keys may be numbers; in JSON, they are always text. Both forms must give the same policy.
    """
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    return data


def _ima(data: Any) -> Ima:
    at = "policy:ima"
    found = _mapping(data, at, ("files", "keys", "exclude", "entries", "violations", "kexec"))
    choices = {"violations": ("refuse", "ignore"), "kexec": ("refuse", "allow")}
    chosen = {key: found.get(key, allowed[0]) for key, allowed in choices.items()}
    for key, allowed in choices.items():
        if chosen[key] not in allowed:
            raise PolicyError(f"{at}:{key}: {chosen[key]!r:.40}: expected {' or '.join(allowed)}")
    listed = found.get("files", {})
    if not isinstance(listed, Mapping) or len(listed) > MAX_FILES:
        raise PolicyError(f"{at}:files: expected a mapping of at most {MAX_FILES} paths")
    lines: set[bytes] = set()
    for path, digests in listed.items():
        if not isinstance(path, str) or not path or len(path) > MAX_PATH:
            raise PolicyError(f"{at}:files: {path!r:.60}: not a path")
        raw, where = _text(path, f"{at}:files"), f"{at}:files:{path[:60]}"
        listed_lines = [line(raw, _named(one, where)) for one in _list(digests, where)]
        if raw != BOOT_AGGREGATE:  # the PCRs judge the kernel's own line, not a list
            lines.update(listed_lines)
    exclude = _patterns(found.get("exclude", []), f"{at}:exclude")
    for pattern in exclude:
        if not pattern.text.strip("*/"):
            raise PolicyError(f"{at}:exclude: {pattern.text!r} would exclude every file")
    return Ima(
        frozenset(lines),
        Keyring(_keys(found.get("keys", []), f"{at}:keys")),
        exclude,
        _digests(found.get("entries", []), f"{at}:entries"),
        chosen["violations"] == "ignore",
        chosen["kexec"] == "allow",
    )


def _named(text: Any, at: str) -> bytes:
    """Convert ``sha256:<hex>`` to the kernel's form of a digest."""
    algorithm, _, digest = text.partition(":") if isinstance(text, str) else ("", "", "")
    if algorithm not in DIGESTS:
        raise PolicyError(f"{at}: {text!r:.40}: expected sha256:, sha384: or sha512: and a digest in hex")
    return algorithm.encode() + b":\0" + _hex(digest, DIGESTS[algorithm], at)


def _text(text: str, at: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as err:
        raise PolicyError(f"{at}: {text!r:.60}: {err}") from err


def _keys(data: Any, at: str) -> dict[bytes, PublicKey]:
    """Return keys by the last four bytes of their identifier (RFC 5280, 4.2.1.2), which IMA's signatures contain.

    :param at: the value's path in the policy, for messages.
    """
    found: dict[bytes, PublicKey] = {}
    for one in _list(data, at, 1024):
        key = _key(one, at)
        from cryptography import x509

        found[x509.SubjectKeyIdentifier.from_public_key(key).digest[-4:]] = key
    return found


def _key(pem: Any, at: str) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        raw = pem.encode()
        if b"BEGIN CERTIFICATE" in raw:
            key: object = x509.load_pem_x509_certificate(raw).public_key()
        else:
            key = load_pem_public_key(raw)
    except unreadable(AttributeError) as err:
        raise PolicyError(f"{at}: not a certificate or public key in PEM: {err}") from err
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.key_size >= 256:
        return key
    raise PolicyError(f"{at}: expected an RSA key of 2048 bits or more, or a key on a curve of 256 bits or more")
