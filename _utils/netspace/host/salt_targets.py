"""Environments as targets of Salt: the list of targets, and the operations that Salt may use on a target.

A target's id is ``<minion>-<environment>``. Every environment of this host that is declared with ``target: true`` and
isn't to be stopped is a target. Ids of other hosts' environments are refused. Each call reads the present records, not
a list that Salt cached when it started.

An environment's output is untrusted: it is bounded, decoded, and without control characters. This module doesn't import
Salt; ``_resources/`` and its overlays call it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netspace.errors import NetspaceError
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.plugin import arguments as declared
from netspace.spec.types import NAME

MOST = 256 * 1024  # characters of each stream: a master drops events of more than 1 MiB
SHELL = "/bin/sh"
TIMEOUT = 60.0
_LONGEST = 24 * 3600.0

_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
_OS_SIZE = 16 * 1024
_OS_LINE = re.compile(r"""(NAME|ID|VERSION_ID|VERSION_CODENAME|PRETTY_NAME)=(["']?)([A-Za-z0-9 ._+()~/-]{1,64})\2\s*""")
_OS_GRAINS = {
    "NAME": "os",
    "ID": "os_id",
    "VERSION_ID": "osrelease",
    "VERSION_CODENAME": "oscodename",
    "PRETTY_NAME": "osfullname",
}


def of(opts: Mapping[str, Any]) -> Targets:
    """Return the targets of the minion with this configuration.

    :raises NetspaceError: the configured instance name is invalid.
    """
    return Targets(declared.layout(opts), declared.minion(opts))


@dataclass(frozen=True)
class Answer:
    """The result of a command. After a timeout, ``retcode`` is 124."""

    retcode: int
    stdout: str
    stderr: str
    truncated: bool
    timed_out: bool


class Targets:
    """The targets of one host.

    :param minion: the id of the host's minion.
    """

    def __init__(self, layout: Layout, minion: str) -> None:
        self._layout = layout
        self._minion = minion
        self._host = Host(layout)

    def list(self) -> dict[str, str]:
        """Return the names of the environments that are targets, by target id."""
        from netspace.environment import record as records

        known, _ = records.read_each(self._layout)
        return {self.id(name): name for name, record in sorted(known.items()) if _offered(record)}

    def id(self, name: str) -> str:
        return f"{self._minion}-{name}"

    def environment(self, target: str) -> str:
        """Return the name of the environment with this target id.

        :raises NetspaceError: it is not (or no longer) a target of this host.
        """
        return self._found(target)[0]

    def ping(self, target: str) -> bool:
        """Return whether the target runs, and its user can read its ``/run/netspace/environment.json``.

        If the runtime has its own kernel (gVisor), the file isn't read.
        """
        try:
            if not self.has_files(target):
                return bool(self._process(self.environment(target)))
            with self.files(target) as inside:
                return inside.read("/run/netspace/environment.json") is not None
        except NetspaceError:
            return False

    def has_files(self, target: str) -> bool:
        """Return whether :meth:`files` can reach the target's files, which needs a runtime on the host's kernel.

        :raises NetspaceError: it is not (or no longer) a target of this host.
        """
        return not self._found(target)[1].runtime.module.OWN_KERNEL

    def run(
        self,
        target: str,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        stdin: str = "",
        folder: str | None = None,
        variables: Mapping[str, str] | None = None,
        shell: str | None = None,
    ) -> Answer:
        """Run a command inside an environment, as its user, with its limits and its system call filter.

        :param command: an argument vector, or a text for a shell of the image.
        :param timeout: seconds; None: a minute.
        :param stdin: the text for the command's standard input.
        :param folder: the working directory inside.
        :param variables: additional environment variables.
        :param shell: the shell for a text; None: the default shell.
        :raises NetspaceError: the environment doesn't run, or lacks the program.
        """
        name = self.environment(target)
        whole = [shell or SHELL, "-c", command] if isinstance(command, str) else command
        arguments = [str(one) for one in whole]
        for text in (*arguments, *(variables or {}), *(variables or {}).values(), folder or ""):
            if "\0" in text:
                raise NetspaceError("a command, a variable or a folder can't have a NUL character in it")
        if any("=" in key or not key for key in variables or {}):
            raise NetspaceError("env: the name of a variable is empty, or has a '=' in it")
        if folder is not None and not folder.startswith("/"):
            raise NetspaceError(f"cwd: expected an absolute path in the environment, got {folder!r}")
        done = self._host.operations.exec(
            name, arguments, timeout=_seconds(timeout), stdin=stdin, folder=folder, variables=variables
        )
        out, err = done["stdout"], done["stderr"]
        cut = done["truncated"] or len(out) > MOST or len(err) > MOST
        return Answer(done["retcode"], out[:MOST], err[:MOST], cut, done["timed_out"])

    @contextlib.contextmanager
    def files(self, target: str) -> Iterator[Any]:
        """Open access to a running environment's files (:class:`~netspace.environment.storage.guest_files.GuestFiles`).

        :raises NetspaceError: the environment doesn't run, or has its own kernel.
        """
        from netspace.environment.container import oci_config
        from netspace.environment.storage import guest_files

        name, record = self._found(target)
        pid = self._process(name)
        if record.runtime.module.OWN_KERNEL:
            raise NetspaceError(
                f"environment {name}: its files are in its own kernel ({record.runtime.name}); use cmd instead"
            )
        uid, gid = (of(record.spec, record.image.defaults) for of in (oci_config.user_of, oci_config.group_of))
        root = str(self._layout.bundle(name) / "rootfs")
        with guest_files.entered(pid, record.base, uid, gid, root) as inside:
            yield inside

    def grains(self, target: str) -> dict[str, Any]:
        """Return the grains of a target. Grains from its image (``os``...) are claims of the image, not facts."""
        from netspace.environment.container import unikernel
        from netspace.environment.storage import guest_files
        from netspace.interface import kinds
        from netspace.interface import record as interfaces

        name, record = self._found(target)
        interface = interfaces.read_one(self._layout, name)
        addresses = {} if interface is None else interface.addresses
        trust = self._host.trust()
        release = b""
        for path in _OS_RELEASE:
            release = release or guest_files.beginning(str(self._layout.bundle(name) / "rootfs"), path, _OS_SIZE)
        return {
            "id": target,
            "resource_type": "netspace",
            "resource_id": target,
            "minion": self._minion,
            "environment": name,
            "image": unikernel.source(record.spec, record.runtime),
            "image_digest": f"sha256:{record.image.digest}",
            "trust": {"level": trust.name, "verifier": trust.verifier},
            "interface": "none" if interface is None else kinds.name(interface.interface),
            "ipv4": [addresses["ipv4"]] if addresses.get("ipv4") else [],
            "ipv6": [addresses["ipv6"]] if addresses.get("ipv6") else [],
            "kernel": "Linux",
            "virtual": "netspace",
            **os_grains(release),
        }

    def _process(self, name: str) -> int:
        """Return the id of the environment's main process, as the host numbers it.

        :raises NetspaceError: the environment doesn't run.
        """
        from netspace.environment.container import oci_runtime

        service = oci_runtime.service_name(name)
        status = self._host.supervisor.observe([service]).get(service)
        if status is None or status.state != "running" or not status.pid:
            raise NetspaceError(f"environment {name} does not run")
        return int(status.pid)

    def _found(self, target: str) -> tuple[str, Any]:
        from netspace.environment import record as records

        name = target.removeprefix(f"{self._minion}-")
        # An invalid name could be a path.
        if not target.startswith(f"{self._minion}-") or not NAME.fullmatch(name):
            raise NetspaceError(
                f"{target} is not an environment of this host: its targets are {self._minion}-<environment>"
            )
        record = records.read_one(self._layout, name)
        if record is None:
            raise NetspaceError(f"{target}: there is no environment {name} on this host")
        if not record.spec.target:
            raise NetspaceError(f"{target}: environment {name} is not declared with 'target: true'")
        return name, record


def _offered(record: Any) -> bool:
    return bool(record.spec.target) and record.state != "stopped"


def _seconds(timeout: Any) -> float:
    if timeout is None:
        return TIMEOUT
    try:
        seconds = float(timeout)
    except (TypeError, ValueError) as err:
        raise NetspaceError(f"timeout: expected a number of seconds, got {timeout!r}") from err
    if not 0 < seconds <= _LONGEST:
        raise NetspaceError(f"timeout: expected more than 0 and at most {_LONGEST:.0f} seconds, got {timeout!r}")
    return seconds


def os_grains(release: bytes) -> dict[str, str]:
    """Return Salt's ``os`` grains from an ``os-release(5)`` file.

    Values that aren't plain words are left out, because templates use these grains.
    """
    found = {}
    for line in release.decode("ascii", errors="replace").splitlines():
        match = _OS_LINE.fullmatch(line)
        if match is not None:
            found[_OS_GRAINS[match[1]]] = match[3].strip()
    return {grain: value for grain, value in found.items() if value}
