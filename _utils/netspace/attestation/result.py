"""Result of the last appraisal of this host: the file that enforcement reads.

Every apply reads this file, so the module needs only the standard library. If the result is expired, of another boot,
from the future or damaged, the host has trust level L0, as without a result. This module appraises nothing and never
raises a level.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace import files
from netspace.attestation.clocks import SKEW
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout

if TYPE_CHECKING:
    from netspace.spec.trust import Trust

VERSION = 1
# Seconds after which a host that judges itself appraises again; RETRY applies if it fell back to a software key.
LIFETIME = 24 * 3600.0
RETRY = 600.0


@dataclass(frozen=True)
class Result:
    """Outcome of one appraisal.

    :param level: 0 to 5; 0: evidence was refused, or could not be collected.
    :param verifier: name of the verifier.
    :param reason: why the host does not have the next level.
    :param remedy: how to reach the next level.
    :param boot: the kernel's boot id at the time of the appraisal.
    :param issued: time of the appraisal, in seconds since the epoch (the unit of *expires*, too).
    :param settings: settings of the appraisal (:func:`netspace.attestation.minion.settings.of`).
    :param sources: fingerprint of the TPM's presence, and of the files that the settings name.
    :param tpm: manufacturer, firmware, endorsement key's fingerprint; empty without a TPM.
    :param fallback: whether the host used a software key although a TPM is configured.
    :param tee: the confidential guest on which the level rests, as the master reported it; empty if there is none.
    :param token_key: thumbprint of the key that signs the tokens of this host's environments, as the verifier knows it;
        empty if there is none.
    :param appraisal: the host appraisal, which names that key; empty without a key.
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
    token_key: str = ""
    appraisal: str = ""


def path(layout: Layout) -> Path:
    return layout.records("attestation") / "result.json"


def boot_id(layout: Layout) -> str:
    """Return the kernel's id of this boot (``random(4)``); empty if it can't be read."""
    try:
        return files.boot_id(layout.root)
    except OSError:
        return ""


def save(layout: Layout, result: Result) -> bool:
    """Write the result; return whether anything changed."""
    return files.write_json(path(layout), {"v": VERSION, **asdict(result)})


def load(layout: Layout) -> Result | None:
    """Return the last result, even if it is not valid any more; None if there is none.

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
        "token_key": (str,),
        "appraisal": (str,),
    }
    for name, absent in {"tee": {}, "token_key": "", "appraisal": ""}.items():
        record.setdefault(name, absent)  # results of earlier versions lack these fields
    version = record.pop("v", None)
    wrong = [
        one.name
        for one in fields(Result)
        if type(record.get(one.name)) not in types[one.name]  # isinstance() would accept True as a number
    ]
    if version != VERSION or wrong or record.keys() != types.keys() or not 0 <= record["level"] <= 5:
        raise StateError(f"{path(layout)}: not a result of an appraisal; remove the file and apply again")
    return Result(**record)


def invalid(result: Result, boot: str, now: float) -> str:
    """Return why *result* is not valid any more; empty if it is valid."""
    if not boot or result.boot != boot:
        return "the host was restarted since its last appraisal"
    if now > result.expires:
        return "the last appraisal has expired"
    if result.issued > now + SKEW:
        return "the last appraisal is from the future: the clock was set back"
    return ""


def trust(layout: Layout, now: float | None = None) -> Trust:
    """Return this host's trust level, for :func:`netspace.spec.trust.judge`.

    If the file is damaged, the level is L0, with the reason; no error is raised.
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
