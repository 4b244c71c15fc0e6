"""Records in the ledger of runs for the whole host: its declaration, and starts and ends that the ledger lacks."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

import msgspec

from netspace import files
from netspace.environment import runs
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout
from netspace.log import Log
from netspace.spec import parse
from netspace.spec.types import Declaration

if TYPE_CHECKING:
    from netspace.ledger.entries import Run
    from netspace.supervision.service import Supervisor

log = Log(__name__)

_ALIVE = ("running", "starting", "frozen")


def settle(layout: Layout, supervisor: Supervisor) -> None:
    """Record starts and ends of programs that the ledger lacks. The caller holds ``layout.lock``.

    A failure raises no error: the verifier sees it in the evidence.
    """
    if not runs.kept(layout):
        return
    from netspace.environment import record as records
    from netspace.environment.container import oci_runtime
    from netspace.ledger import journal

    def described(name: str) -> Run | None:
        try:
            found = records.read_one(layout, name)
        except StateError:
            return None
        return None if found is None else runs.described(layout, name, found)

    try:
        names = files.record_names(layout.records(records.KIND))
        there = supervisor.observe({oci_runtime.service_name(name) for name in names}) if names else {}
        alive = {
            name: functools.partial(described, name)
            for name in names
            if (status := there.get(oci_runtime.service_name(name))) is not None and status.state in _ALIVE
        }
        journal.settle(layout, alive)
    except (NetspaceError, OSError) as err:
        log.warning("the ledger of runs: %s", err)


def settle_now(layout: Layout) -> None:
    """Record starts and ends before evidence is made, without waiting for the lock.

    Do nothing while another run of netspace changes the host.
    """
    if not runs.kept(layout):
        return
    from netspace import supervision

    try:
        with files.locked(layout.lock, give_up=lambda: True):
            settle(layout, supervision.select(layout))
    except NetspaceError:
        return


def note(layout: Layout, declared: Declaration) -> None:
    """Record the digest of a whole declaration.

    The levels of other hosts, which the fleet's master fills in, are left out: they change without an operator.

    :raises NetspaceError: when that can't be written.
    """
    if not runs.kept(layout):
        return
    from netspace.ledger import journal

    journal.note_declaration(layout, digest(declared))


def digest(declared: Declaration) -> str:
    """Return the SHA-256 of a declaration as canonical JSON, in hex."""
    own = msgspec.structs.replace(declared, attestation=msgspec.structs.replace(declared.attestation, appraised={}))
    return hashlib.sha256(msgspec.json.encode(parse.encode(own), order="sorted")).hexdigest()
