"""The result of the last appraisal of this host: the file that enforcement reads.

Read with the standard library alone, since every apply reads it. A result that is expired,
of another boot, from the future or damaged counts as none: trust is L0. This file appraises
nothing and never raises a level.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace import files
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout

if TYPE_CHECKING:
    from netspace.spec.trust import Trust

VERSION = 1
# A host that judges itself does so once a day and boot; sooner where it had to fall back.
LIFETIME = 24 * 3600.0
RETRY = 600.0
# How far a clock may have been set back before a result is "from the future".
SKEW = 300.0


@dataclass(frozen=True)
class Result:
    """The outcome of one appraisal.

    :param level: 0 to 5; 0: evidence was refused, or could not be had.
    :param verifier: the judge's name.
    :param reason: why this level and not the next.
    :param remedy: what would raise it.
    :param boot: the kernel's boot id at the time.
    :param issued: seconds since the epoch. *expires* likewise.
    :param settings: what the appraisal was asked to do (policy, tpm, roots, references, pcrs).
    :param sources: fingerprint of the files that the settings name, and whether the TPM was there.
    :param tpm: manufacturer, firmware, endorsement key's fingerprint; empty without a TPM.
    :param fallback: a TPM is configured, but the level is a software key's.
    :param tee: the confidential guest that the level rests on, as the master reported it; empty where there is none.
    """

    level: int
    verifier: str
    reason: str
    remedy: str
    boot: str
    issued: float
    expires: float
    settings: Mapping[str, Any]
    sources: str
    tpm: Mapping[str, str]
    fallback: bool = False
    tee: Mapping[str, Any] = field(default_factory=dict)


def path(layout: Layout) -> Path:
    return layout.records("attestation") / "result.json"


def boot_id(layout: Layout) -> str:
    """Return the kernel's id of this boot (``random(4)``); empty where it can't be read."""
    try:
        return (layout.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def save(layout: Layout, result: Result) -> bool:
    """Write the result; return whether anything changed."""
    return files.write_json(path(layout), {"v": VERSION, **asdict(result)})


def load(layout: Layout) -> Result | None:
    """Return the last result, valid or not; None where there was none.

    :raises StateError: when the file is damaged.
    """
    record = files.read_json(path(layout))
    if record is None:
        return None
    types: dict[str, tuple[type, ...]] = {
        "level": (int,),
        "verifier": (str,),
        "reason": (str,),
        "remedy": (str,),
        "boot": (str,),
        "issued": (int, float),
        "expires": (int, float),
        "settings": (dict,),
        "sources": (str,),
        "tpm": (dict,),
        "fallback": (bool,),
        "tee": (dict,),
    }
    record.setdefault("tee", {})  # results of before there were any have none
    version = record.pop("v", None)
    wrong = [
        one.name
        for one in fields(Result)
        if type(record.get(one.name)) not in types[one.name]  # not isinstance: True is no number
    ]
    if version != VERSION or wrong or record.keys() != types.keys() or not 0 <= record["level"] <= 5:
        raise StateError(f"{path(layout)}: not a result of an appraisal; remove the file and apply again")
    return Result(**record)


def invalid(result: Result, boot: str, now: float) -> str:
    """Return why *result* counts no longer; empty when it does."""
    if not boot or result.boot != boot:
        return "the host was restarted since its last appraisal"
    if now > result.expires:
        return "the last appraisal has expired"
    if result.issued > now + SKEW:
        return "the last appraisal is from the future: the clock was set back"
    return ""


def trust(layout: Layout, now: float | None = None) -> Trust:
    """Return what is known of this host's trust, for :func:`netspace.spec.trust.judge`.

    Never raises for a damaged file: that is L0, with the reason.
    """
    from netspace.spec.trust import Trust

    try:
        result = load(layout)
    except (NetspaceError, OSError) as err:
        return Trust(reason=str(err))
    if result is None:
        return Trust()
    reason = "" if result.level == 0 else invalid(result, boot_id(layout), time.time() if now is None else now)
    if reason:
        return Trust(reason=reason)
    return Trust(result.level, result.verifier, result.reason)
