"""Desired environments, and the changes that lead to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from netspace.environment.container import unikernel
from netspace.environment.container.seccomp_file import Profile
from netspace.environment.record import Failed, Previous, Record, RunState
from netspace.environment.runtimes import USUAL, Runtime
from netspace.environment.storage import disk_sizes
from netspace.spec.types import Environment

KIND = "environment"


class DesiredEnvironment(msgspec.Struct, frozen=True):
    """The desired configuration and state of one environment.

    :param spec: the declaration. Its ``attestation`` is the requirement in force (by default, the host's). The
        requirement is recorded, because a start by an operator reads the record, not the declaration.
    :param files: the files under ``/run/netspace`` inside, by name; may hold secrets.
    :param files_summary: the values to show in changes when the files differ; no secrets.
    :param state: ``running``; ``stopped``: the environment exists, but doesn't run; ``present``: it exists, and is left
        running or stopped.
    :param profile: the operator's own system call profile; None for a built-in one.
    :param runtime: the OCI runtime to use.
    :param single: why the environment can't have a second instance, apart from reasons in *spec*; empty if there is no
        such reason.
    :param kept: whether the host lacks trust for the environment now, so that no change stops or rebuilds it.
    """

    spec: Environment
    files: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    files_summary: Mapping[str, Any] = msgspec.field(default_factory=dict)
    state: RunState = "running"
    profile: Profile | None = None
    runtime: Runtime = USUAL
    single: str = ""
    kept: bool = False

    @property
    def image(self) -> str:
        """The image source of the environment's root."""
        return unikernel.source(self.spec, self.runtime)

    def __repr__(self) -> str:
        """Return a text without the files, which may hold secrets: a log or an error may have it."""
        return f"DesiredEnvironment({self.spec!r}, files={sorted(self.files)}, state={self.state!r})"

    @property
    def sized(self) -> bool:
        """Whether the environment has file systems with a declared size."""
        return bool(disk_sizes.sizes(self.spec))


class EnvironmentChange(msgspec.Struct, frozen=True):
    """The work of one step. The plan decides on it, and ``apply`` does it.

    :param previous: the version to restore if the update does not become healthy.
    :param failed: the update that was rolled back, if the declaration still asks for it.
    :param rolling: whether a second instance is first started beside the running one.
    """

    want: DesiredEnvironment
    record: Record | None
    build: bool = False
    assemble: bool = False
    stop: bool = False
    start: bool = False
    tune: bool = False
    previous: Previous | None = None
    failed: Failed | None = None
    rolling: bool = False
