"""Policies, read strictly: what a good boot is, and which programs may run after it.

A policy is a mapping (YAML, JSON)::

    version: 3                       # never falls; recorded in results
    boot:
      secure_boot: true              # on, with keys, not in debug mode
      dbx: [<sha256>, ...]           # the revocation list has at least these
      signers: [<sha256>, ...]       # certificates that whatever was booted may be trusted for
      sbat: {shim: 4, grub: 5}       # shim refuses lower generations than these
      mok: [<sha256>, ...]           # shim's lists of keys (PCR 14)
      applications: [<sha256>, ...]  # Authenticode digests of all UEFI programs that were run (PCR 4)
      started_by: {<sha256>: [firmware]}       # what may come right before each of them
      kernels: [<sha256>, ...]       # files; one of them was loaded (PCR 9 or 11)
      initrds: [<sha256>, ...]
      files: [<sha256>, ...]         # whatever else the boot loader may load (PCR 9, 11, 12)
      grub_commands: [<sha256>, ...] # each command that GRUB may run (PCR 8)
      command_lines: ["root=/dev/vda ro *"]    # * stands for anything but what hides the rest
      pcrs: {0: [<hex>, ...]}        # plain values
      unchecked: [1, 5]              # quoted PCRs that may have any value
    ima:
      files: {/usr/bin/true: ["sha256:<hex>", ...]}
      keys: [<PEM of a certificate or public key>, ...]     # sign files (security.ima)
      exclude: ["/var/cache/*"]      # files that may be anything
      entries: [<sha256>, ...]       # whole lines, for templates that are not known
      violations: refuse             # or ignore
      kexec: refuse                  # or allow: another kernel may be started without a boot
    tee: {snp: {measurements: [<hex>, ...]}}                # a confidential guest: netspace.attestation.tee.rules
    until:                           # what is good besides, for a time: the old while an update is rolled out
      2026-12-24:
        boot: {kernels: [<sha256>, ...]}
        ima: {files: {...}}

Everything that no rule allows is refused: each quoted PCR needs a rule, a value, or an entry in
``unchecked``. ``until`` only makes lists longer. Only :mod:`netspace.attestation.judge`, and
the modules of rules that it calls, compare evidence with a policy. No file is read here.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from netspace.attestation import boot_policy
from netspace.attestation.boot_policy import Boot as Boot
from netspace.attestation.ima import BOOT_AGGREGATE, Entry, File, line
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

    from netspace.attestation.structures import PublicKey
    from netspace.attestation.tee.rules import Tee

MAX_FILES = 1_000_000
MAX_PATH = 4096
MAX_CACHE = 65_536
MAX_TERMS = 16
# What may be good for a time: lists of what is allowed. What a policy demands, or leaves unchecked, is none.
PASSING_BOOT = (
    *("signers", "mok", "applications", "kernels", "initrds", "files", "grub_commands", "command_lines", "pcrs"),
)
PASSING_IMA = ("files", "keys", "exclude", "entries")
DIGESTS = {"sha256": 32, "sha384": 48, "sha512": 64}


class Keyring:
    """Keys that sign files, as IMA does (kernel: security/integrity/digsig_asymmetric.c).

    Remembers signatures that it found good: the same file is signed alike on each host.
    """

    # include/uapi/linux/hash_info.h; nothing below SHA-256.
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
        """struct signature_v2_hdr, after the type EVM_IMA_XATTR_DIGSIG (3)."""
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
    """Rules for what is run.

    :param lines: what :func:`netspace.attestation.ima.line` makes of each allowed file: so most lines of a
        list are judged by one look-up, without being taken apart.
    """

    lines: frozenset[bytes]
    keys: Keyring
    exclude: tuple[Pattern, ...]
    entries: frozenset[bytes]
    ignore_violations: bool
    kexec: bool = False

    def listed(self, entry: Entry) -> bool:
        """Return whether a line is one of an allowed file, without a signature or with an empty one."""
        data = entry[2]
        if entry[1] == b"ima-sig" and data[-4:] == b"\0\0\0\0":
            data = data[:-4]
        elif entry[1] != b"ima-ng":
            return False
        return data in self.lines

    def allows(self, file: File) -> bool:
        """Return whether *file* may run: listed, signed, or excluded."""
        if line(file.path, file.digest) in self.lines:
            return True
        # Before the signature, which takes longer: a host chooses how many bad ones it brings under excluded names.
        if self.exclude:
            path = file.path.decode("utf-8", "surrogateescape")
            if any(pattern.matches(path) for pattern in self.exclude):
                return True
        return self.keys.signed(file)


@dataclass(frozen=True)
class Policy:
    """A whole policy. It is made once and used for every host: parsing a long list takes time.

    :param fingerprint: SHA-256 of the parts that count.
    :param changes: the time at which the next part ceases to count, seconds since the epoch; None where no part does.
    :param tee: rules for confidential guests: with them each host must be a confidential guest.
    """

    version: int
    fingerprint: str
    boot: Boot | None
    ima: Ima | None
    changes: float | None = None
    tee: Tee | None = None


def parse(data: Any, now: float | None = None) -> Policy:
    """Read a policy.

    :param now: what is good ``until`` a later time counts. None: nothing of it does.
    :raises PolicyError: for unknown keys, wrong types and sizes out of bounds.
    """
    try:
        return _parsed(data, now)
    except (ValueError, RecursionError) as err:
        # A number of thousands of digits, or what contains itself: it can't even be shown.
        raise PolicyError(f"policy: {err}") from err


def _parsed(data: Any, now: float | None) -> Policy:
    found = _mapping(data, "policy", ("version", "boot", "ima", "tee", "until"))
    version = found.get("version")
    if type(version) is not int or not 0 < version < 2**31:
        raise PolicyError(f"policy:version: {version!r:.40}: expected a whole number from 1 on")
    boot, ima = _rules(found)
    whole = {key: plain(found[key]) for key in ("boot", "ima", "tee") if key in found}
    terms = [(when(moment), section) for moment, section in _terms(found.get("until", {}), whole)]
    counting = [] if now is None else [(until, section) for until, section in terms if now < until]
    if terms:
        every = _rules(_joined(whole, terms))  # what does not count is read as strictly
        if counting:
            whole = _joined(whole, counting)
            boot, ima = every if len(counting) == len(terms) else _rules(whole)
    canonical = json.dumps({"version": version, **whole}, sort_keys=True, separators=(",", ":"))
    changes = min((until for until, _ in counting), default=None)
    tee = rules.parse(found["tee"]) if "tee" in found else None
    return Policy(version, hashlib.sha256(canonical.encode()).hexdigest(), boot, ima, changes, tee)


def accepted(data: Any, now: float | None = None, quoted: Collection[int] | None = None) -> Policy:
    """Read a policy that is to be put in force.

    :param quoted: PCRs that its hosts quote; None where that is not known.
    :raises PolicyError: as :func:`parse`, and when a rule for the boot rests on a PCR that is not judged or not quoted:
        such a rule looks strict, and a forger satisfies it.
    """
    found = parse(data, now)
    for gap in boot_policy.gaps(found.boot, quoted) if found.boot is not None else ():
        raise PolicyError(f"policy:boot:{gap}")
    return found


def founded(found: Policy, quoted: Collection[int] | None = None) -> None:
    """Check that the rules for the boot support those for IMA.

    :raises PolicyError: when L5 can't be reached, whatever the hosts run.
    """
    if found.ima is not None:
        for gap in boot_policy.ima_gaps(found.boot, quoted):
            raise PolicyError(f"policy:ima: L5 rests on the boot: {gap}")


def when(moment: Any) -> float:
    """Return a date or a time (ISO 8601, UTC where it doesn't say) as seconds since the epoch.

    :raises PolicyError: when it is none.
    """
    try:
        found = datetime.datetime.fromisoformat(str(moment).replace("Z", "+00:00"))
    except ValueError as err:
        raise PolicyError(f"policy:until: {moment!r:.40}: expected a date, or a time: 2026-12-24T18:00Z") from err
    return (found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)).timestamp()


def _terms(data: Any, whole: Mapping[str, Any]) -> Iterable[tuple[Any, Mapping[str, Any]]]:
    """Check the rules that count for a time, except for the lists themselves. Each extends a list of the lasting rules.

    :param whole: rules that were read.
    """
    at = "policy:until"
    if not isinstance(data, Mapping) or len(data) > MAX_TERMS:
        raise PolicyError(f"{at}: expected a mapping of at most {MAX_TERMS} times")
    for moment, section in data.items():
        here = f"{at}:{moment!s:.40}"
        found = _mapping(section, here, ("boot", "ima"))
        boot = _mapping(plain(found.get("boot", {})), f"{here}:boot", PASSING_BOOT)
        _mapping(found.get("ima", {}), f"{here}:ima", PASSING_IMA)
        base = whole.get("boot", {})
        for key in boot:
            needs = {"initrds": "kernels", "files": "kernels"}.get(key, key)
            if needs not in base:
                raise PolicyError(f"{here}:boot:{key}: makes a list longer that is not there: boot:{needs}")
        pcrs = boot.get("pcrs", {})
        known = base.get("pcrs", {})
        given = found.get("boot", {}).get("pcrs", {})
        if not isinstance(pcrs, Mapping) or len(pcrs) != len(given) or not set(pcrs) <= set(known):
            raise PolicyError(f"{here}:boot:pcrs: expected values for PCRs that are among boot:pcrs")
        if "ima" in found and "ima" not in whole:
            raise PolicyError(f"{here}:ima: makes lists longer that are not there: ima")
    return ((moment, plain(section)) for moment, section in data.items())


def _joined(whole: Mapping[str, Any], terms: Iterable[tuple[float, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return rules with longer lists. Whatever is no list is left for its own check to find."""
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
    return (
        boot_policy.read(whole["boot"]) if "boot" in whole else None,
        _ima(whole["ima"]) if "ima" in whole else None,
    )


def plain(data: Any) -> Any:
    """YAML has numbers as keys where JSON has text: text everywhere, so that both are the same policy."""
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
        if raw != BOOT_AGGREGATE:  # the kernel's own line, which the PCRs judge
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
    """``sha256:<hex>`` as the kernel writes it."""
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
    """Keys by the last four bytes of their identifier (RFC 5280, 4.2.1.2), as IMA's signatures name them."""
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
    raise PolicyError(f"{at}: neither RSA of 2048 bits or more nor on a curve of 256 or more")
