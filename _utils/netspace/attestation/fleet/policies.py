"""The policies in force, one for each group. The verifier signs each policy, and accepts no lower version.

:class:`Policies` keeps these files in the registrar's folder::

    policies/<group>.jws      the policy in force, signed by the verifier
    policies/versions.json    the highest version so far, by group

A policy is refused if the verifier did not sign it, if a higher version was in force, or if the policy's file is gone.
While a policy is refused, no host of its group is judged, so these hosts become stale. Nothing here judges a host.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from netspace import files
from netspace.attestation import ear
from netspace.attestation.ear import Signer
from netspace.attestation.policy import policy
from netspace.attestation.policy.policy import Policy
from netspace.attestation.refusals import PolicyDowngraded, PolicyForged, Refused
from netspace.errors import NetspaceError

MAX_POLICY = 512 * 1024 * 1024


class Policies:
    """The policies in force; see the module's docstring."""

    def __init__(self, folder: Path, signer: Signer, clock: Callable[[], float] = time.time) -> None:
        """Use the policies in a registrar's *folder*.

        :param clock: returns the time in seconds since the epoch; by it, expired parts of a policy are left out.
        """
        self._folder = folder / "policies"
        self._signer = signer
        self._clock = clock
        self._parsed: dict[str, Policy | None] = {}

    def data(self, group: str) -> dict[str, Any] | None:
        """Return the policy in force in its written form; None if the group never had a policy.

        :raises PolicyForged: when the verifier did not sign the policy.
        :raises PolicyDowngraded: when a higher version was in force.
        """
        path = self._path(group)
        floor = self._floor(group)
        try:
            with path.open("rb") as stream:
                raw = stream.read(MAX_POLICY + 1)
        except FileNotFoundError as err:
            if floor:
                raise PolicyDowngraded(f"{path} is gone, but version {floor} was in force already") from err
            return None
        try:
            payload = ear.opened(raw.decode("ascii", "replace"), ear.POLICY, [self._signer.jwk], MAX_POLICY)
        except Refused as err:
            raise PolicyForged(f"{path}: {err.args[0]}") from err
        if payload.get("group") != group or not isinstance(payload.get("policy"), dict):
            raise PolicyForged(f"{path}: the policy in it was signed for another group")
        found: dict[str, Any] = payload["policy"]
        if type(found.get("version")) is not int or found["version"] < floor:
            raise PolicyDowngraded(
                f"{path} has version {found.get('version')!r:.20}, but version {floor} was in force already"
            )
        return found

    def get(self, group: str) -> Policy | None:
        """Return the policy in force without its expired parts. Raise the same errors as :meth:`data`.

        The parsed policy is cached until one of its parts expires.
        """
        now = self._clock()
        known = self._parsed.get(group)
        if group not in self._parsed or (known is not None and known.changes is not None and now >= known.changes):
            data = self.data(group)
            self._parsed[group] = None if data is None else policy.parse(data, now)
        return self._parsed[group]

    def put(self, group: str, data: Any, quoted: Collection[int] | None = None) -> Policy:
        """Sign a policy and put it in force.

        :param quoted: PCRs that the group's hosts quote; None if they are not known.
        :raises PolicyDowngraded: when the policy's version is not higher than the last version.
        :raises PolicyError: when the policy can't be read, or one of its rules depends on an unjudged PCR
            (:func:`policy.accepted`).
        """
        found = policy.accepted(data, self._clock(), quoted)
        with files.locked(self._folder / "lock"):
            floor = self._floor(group)
            if found.version <= floor:
                raise PolicyDowngraded(f"version {found.version}: expected {floor + 1} or higher")
            token = self._signer.sign(ear.POLICY, {"group": group, "policy": policy.plain(data)})
            files.write(self._path(group), token.encode())
            # The version is saved after the policy: after a crash in between, the new policy is in force and accepted.
            versions = files.read_json(self._folder / "versions.json", files.KEPT) or {}
            files.write_json(self._folder / "versions.json", {**versions, group: found.version})
        self._parsed[group] = found
        return found

    def _path(self, group: str) -> Path:
        return self._folder / f"{group}.jws"

    def _floor(self, group: str) -> int:
        floor = (files.read_json(self._folder / "versions.json", files.KEPT) or {}).get(group, 0)
        if type(floor) is not int:
            raise NetspaceError(f"{self._folder / 'versions.json'}: {group}: not a version")
        return floor


def diff(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[str]:
    """Return the changes between two policies, as a unified diff. Each file in IMA's rules has its own line.

    :param before: the policy in force, in its written form; None: there is none.
    """
    old, new = _lines(before), _lines(after)
    found = list(difflib.unified_diff(old, new, "in force", "proposed", lineterm="", n=2))
    was, will = set(_files(before or {})), set(_files(after))
    return found + [f"-{one}" for one in sorted(was - will)] + [f"+{one}" for one in sorted(will - was)]


def _lines(data: Mapping[str, Any] | None) -> list[str]:
    """Return a policy line by line, without IMA's files."""
    if data is None:
        return []
    shown = policy.plain(data)
    for section in (shown, *(shown.get("until") or {}).values()):
        if "files" in (section.get("ima") or {}):
            section["ima"] = {key: value for key, value in section["ima"].items() if key != "files"}
    return json.dumps(shown, indent=1, sort_keys=True).splitlines()


def _files(data: Mapping[str, Any]) -> Iterator[str]:
    sections = {"": data, **{f"until:{moment}:": one for moment, one in (data.get("until") or {}).items()}}
    for name, section in sections.items():
        for path, digests in ((section.get("ima") or {}).get("files") or {}).items():
            shown = str(path).encode("utf-8", "backslashreplace").decode()
            yield from (f"{name}ima:files:{shown}: {one}" for one in digests)
