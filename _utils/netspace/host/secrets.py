"""Secrets of environments on this host: read or opened, held in memory, withdrawn when trust is lost.

=============================  =====================================================================================
``secrets/<environment>.json``  on disk: each secret encrypted to this host (``sealed_value``), and what it demands
``/run/.../secrets/<env>/``     in memory: the secrets that this host's trust permits now; only root can read them
``/run/netspace/secret.<name>`` inside: a copy in memory, which the program's group can read (``injected_files``)
=============================  =====================================================================================

A secret comes from a source (``sdb://``), which this host reads at each apply; or the fleet's master gives its
ciphertext. A secret from a source is encrypted to this host at once, so that a reboot finds it again without the
source. No plan, record, message or log has a secret or a digest of one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from netspace import files
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.plan import Plan, Refusal, Result
from netspace.spec import secrets as declared_secrets
from netspace.spec.trust import Trust
from netspace.spec.types import Environment, ProvedLevel, Secret
from netspace.spec.values import NAME

if TYPE_CHECKING:
    from netspace.attestation.sealed_value import Place

KIND = "secrets"
_MODE = 0o600

Source = Callable[[str], object]
"""Returns the secret at a source (``sdb://...``). Its errors may have anything in their text."""
Opened = dict[str, dict[str, bytes]]
"""Secrets by environment and name."""


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A secret on disk, encrypted to this host.

    :param sealed: the ciphertext.
    :param minimum: the lowest trust level of a host that gets it.
    :param host: this host's name as the master that sealed the secret knows it; empty: this host sealed it.
    """

    sealed: str
    minimum: ProvedLevel
    host: str = ""


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    secrets: dict[str, Kept]
    version: int = 1


class Taken(NamedTuple):
    """The outcome of reading and opening secrets.

    :param opened: the secrets to hold, by environment.
    :param kept: the secrets to keep on disk, by environment.
    :param result: why other secrets are withheld.
    """

    opened: Opened
    kept: dict[str, dict[str, Kept]]
    result: Result


class _Wanted(NamedTuple):
    environment: str
    name: str
    secret: Secret
    kept: Kept | None
    held: bytes | None


def take(
    layout: Layout,
    wanted: Mapping[str, Environment],
    trust: Trust,
    source: Source | None,
    minion: str,
    *,
    test: bool = False,
) -> Taken:
    """Read or open the secrets of these environments. Changes nothing but this host's key, if it has none yet.

    If a source can't be read, or a ciphertext can't be opened, the secret stays as it was held.

    :param source: reads sources; None: the caller has no such reader.
    :param minion: the id by which the master knows this host.
    :param test: whether nothing is encrypted to this host.
    """
    opened: Opened = {}
    kept: dict[str, dict[str, Kept]] = {}
    why: list[Refusal] = []
    read: dict[str, bytes] = {}
    to_open: dict[Place, _Wanted] = {}
    of_sources: list[_Wanted] = []
    for environment, spec in wanted.items():
        opened[environment], kept[environment] = {}, {}
        before, now = _read(layout, environment), held(layout, environment)
        for name, secret in declared_secrets.of(spec).items():
            one = _Wanted(environment, name, secret, before.get(name), now.get(name))
            if one.kept is not None and one.kept.minimum == secret.minimum:
                kept[environment][name] = one.kept
            if secret.source is not None:
                of_sources.append(one)
            try:
                _permit(secret, trust)
                if secret.source is not None:
                    opened[environment][name] = _from(secret.source, source, read)
                elif one.kept is not None and one.kept.sealed == secret.sealed and one.held is not None:
                    opened[environment][name] = one.held
                elif secret.unread:
                    raise NetspaceError("the fleet's master can't read its source now; the master's log has more")
                elif secret.sealed is None:
                    kept[environment].pop(name, None)
                    raise _LostError("the fleet's master withholds it from this host; the master's log has more")
                else:
                    to_open[_place(one, minion)] = one
            except _LostError as err:
                why.append(_refusal(one, str(err)))
            except NetspaceError as err:
                why.append(_refusal(one, str(err)))
                if one.held is not None:
                    opened[environment][name] = one.held
    opened_now, errors = _open(layout, {place: str(one.secret.sealed) for place, one in to_open.items()})
    for place, one in to_open.items():
        if (plain := opened_now.get(place)) is not None:
            opened[one.environment][one.name] = plain
            kept[one.environment][one.name] = Kept(str(one.secret.sealed), one.secret.minimum, minion)
        else:
            why.append(_refusal(one, errors[place]))
            if one.held is not None:
                opened[one.environment][one.name] = one.held
    if not test:
        _sealed(layout, [one for one in of_sources if one.name in opened[one.environment]], opened, kept, why)
    return Taken(opened, kept, Result(Plan(refusals=why)))


class _LostError(NetspaceError):
    """Error: this host must not have the secret (any more)."""


def _permit(secret: Secret, trust: Trust) -> None:
    if trust.level < int(secret.minimum[1:]):
        raise _LostError(
            f"needs trust level {secret.minimum}, this host has {trust.name} "
            f"({trust.reason}; verifier: {trust.verifier}); withheld"
        )


def _from(uri: str, source: Source | None, read: dict[str, bytes]) -> bytes:
    """Return the secret at a source. No error has a text of the source: that could be the secret.

    :param read: the secrets that were read so far, by source.
    :raises NetspaceError: it can't be read.
    """
    if uri in read:
        return read[uri]
    remedy = f"see: salt-call sdb.get {uri}"
    if source is None:
        raise NetspaceError("its source is read by Salt; apply it by salt-call state.apply netspace")
    try:
        found = source(uri)
    except Exception as err:  # a plugin of somebody else
        raise NetspaceError(f"its source can't be read ({type(err).__name__}); {remedy}") from None
    plain = found.encode() if isinstance(found, str) else found
    if not isinstance(plain, bytes) or found == uri:
        raise NetspaceError(f"its source has no text; {remedy}")
    if not 0 < len(plain) <= declared_secrets.SIZE:
        raise NetspaceError(f"its source has {len(plain)} bytes; expected 1 to {declared_secrets.SIZE}")
    read[uri] = plain
    return plain


def _sealed(
    layout: Layout, todo: Sequence[_Wanted], opened: Opened, kept: dict[str, dict[str, Kept]], why: list[Refusal]
) -> None:
    """Encrypt secrets from sources to this host, if they are new or changed, or if this host has a new key.

    :param todo: the secrets from sources that could be opened.
    :param opened: the plain secrets.
    :param kept: the ciphertexts, to which this function adds.
    :param why: the refusals, to which this function adds.
    """
    if not todo:
        return
    from netspace.attestation import sealed_value
    from netspace.attestation.minion import host_key, secret_key

    chosen = host_key.settings(layout)
    kind = "software" if chosen.get("tpm") is None else "tpm"
    to = None
    for one in todo:
        environment, name, secret = one.environment, one.name, one.secret
        plain, old = opened[environment][name], kept[environment].get(name)
        same = old is not None and not old.host and sealed_value.read(old.sealed).kind == kind
        if same and one.held == plain:
            continue
        try:
            if kind == "software" and int(secret.minimum[1:]) >= int(secret_key.LEAST_OF_TPM[1:]):
                raise NetspaceError(f"demands {secret.minimum}, and this host has no TPM to encrypt it to; withheld")
            to = to or secret_key.recipient(layout, chosen)
            place = sealed_value.Place("", environment, name, secret.minimum)
            kept[environment][name] = Kept(sealed_value.seal(to, place, plain), secret.minimum)
        except NetspaceError as err:
            why.append(Refusal("environment", environment, f"secret {name}: {err}"))
            del opened[environment][name]
            kept[environment].pop(name, None)


def hold(layout: Layout, taken: Taken) -> None:
    """Write the ciphertexts to disk, then the secrets to memory. The environments' own copies follow later.

    :raises OSError: a file can't be written.
    """
    for environment, kept in taken.kept.items():
        path = layout.records(KIND) / f"{environment}.json"
        if kept:
            files.write(path, msgspec.json.encode(_Record(dict(sorted(kept.items()))), order="deterministic"))
        else:
            files.remove(path)
    _hold(layout, taken.opened)


def _hold(layout: Layout, opened: Mapping[str, Mapping[str, bytes]]) -> None:
    for environment, secrets in opened.items():
        folder = layout.opened_secrets / environment
        for name, content in secrets.items():
            files.write(folder / name, content, mode=_MODE)
        for entry in _names(folder):
            if entry not in secrets:
                os.unlink(folder / entry)
        if not secrets and folder.is_dir():
            folder.rmdir()


def withdraw(layout: Layout, environments: Iterable[str]) -> None:
    """Remove the secrets of these environments from memory; their ciphertexts stay on disk."""
    _hold(layout, {environment: {} for environment in environments})


def held(layout: Layout, environment: str) -> dict[str, bytes]:
    """Return the secrets of an environment that are held in memory now."""
    folder = layout.opened_secrets / environment
    return {name: files.read(folder / name) for name in _names(folder) if NAME.fullmatch(name)}


def _names(folder: os.PathLike[str]) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def forget(layout: Layout, environments: Iterable[str]) -> None:
    """Delete all secrets of removed environments: first from memory, then their ciphertexts."""
    if not (layout.records(KIND).is_dir() or layout.opened_secrets.is_dir()):
        return
    for environment in environments:
        shutil.rmtree(layout.opened_secrets / environment, ignore_errors=True)
        files.remove(layout.records(KIND) / f"{environment}.json")


def recorded(layout: Layout) -> set[str]:
    """Return the names of the environments with ciphertexts on disk."""
    return files.record_names(layout.records(KIND))


def lacking(layout: Layout, trust: Trust) -> bool:
    """Return whether a secret on disk demands more trust than there is."""
    kept = (one for environment in recorded(layout) for one in _read(layout, environment).values())
    return any(trust.level < int(one.minimum[1:]) for one in kept)


def revise(layout: Layout, trust: Trust, without: Collection[str] = ()) -> dict[str, str]:
    """Hold in memory exactly those secrets on disk that this host's trust permits; return the errors, by environment.

    This restores secrets after a reboot, and withdraws them after a loss of trust. It needs neither their source nor
    the master.

    :param without: environments that must not have their secrets now.
    """
    from netspace.attestation.sealed_value import Place

    opened: Opened = {}
    to_open: dict[Place, str] = {}
    errors: dict[str, str] = {}
    for environment in sorted(recorded(layout)):
        try:
            kept, now = _read(layout, environment), held(layout, environment)
        except NetspaceError as err:
            errors[environment] = str(err)
            continue
        opened[environment] = {}
        for name, one in kept.items():
            if environment in without or trust.level < int(one.minimum[1:]):
                continue
            if name in now:
                opened[environment][name] = now[name]
            else:
                to_open[Place(one.host, environment, name, one.minimum)] = one.sealed
    found, failed = _open(layout, to_open)
    for place, plain in found.items():
        opened[place.environment][place.name] = plain
    errors |= {place.environment: f"secret {place.name}: {error}" for place, error in failed.items()}
    _hold(layout, opened)
    return errors


def _open(layout: Layout, wanted: Mapping[Place, str]) -> tuple[dict[Place, bytes], dict[Place, str]]:
    if not wanted:
        return {}, {}
    from netspace.attestation.minion import host_key, secret_key

    return secret_key.open_all(layout, host_key.settings(layout), wanted)


def _read(layout: Layout, environment: str) -> dict[str, Kept]:
    """Return the ciphertexts of an environment; none if their file is damaged, since an apply makes them again."""
    try:
        raw = files.read(layout.records(KIND) / f"{environment}.json", files.MAX_RECORD)
        return msgspec.json.decode(raw, type=_Record).secrets
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return {}


def _place(one: _Wanted, minion: str) -> Place:
    from netspace.attestation.sealed_value import Place

    return Place(minion, one.environment, one.name, one.secret.minimum)


def _refusal(one: _Wanted, why: str) -> Refusal:
    return Refusal("environment", one.environment, f"secret {one.name}: {why}")
