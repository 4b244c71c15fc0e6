"""Desired environments, and the work of the steps that lead to them."""

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

    :param spec: the declaration. Its ``attestation`` is the requirement in force, by default the host's. It is
        recorded, since an operator's start has no declaration.
    :param files: the files under ``/run/netspace`` inside, by name; may hold secrets.
    :param files_summary: the values to show in changes when the files differ; no secrets.
    :param state: ``running``; ``present``: it exists, and is left running or stopped;
        ``stopped``: it exists, and doesn't run.
    :param profile: the operator's own system call profile; None for a built-in one.
    :param runtime: the runtime to run it with.
    :param single: why it can't have a second instance, apart from reasons that *spec* gives; empty if it can.
    :param kept: the host lacks trust for it now, so no change stops or rebuilds it.
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

    @property
    def sized(self) -> bool:
        """Whether the environment has file systems of its own."""
        return bool(disk_sizes.sizes(self.spec))


class EnvironmentChange(msgspec.Struct, frozen=True):
    """The work of one step, decided by the plan and done by ``apply``.

    :param previous: the version to put back if the update does not become healthy.
    :param failed: the update that was taken back, if the declaration still asks for it.
    :param rolling: a second instance is started beside the running one first.
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
