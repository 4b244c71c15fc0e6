"""A "machine" with systemd as PID 1, in namespaces, booted in about a second.

It serves tests of units, restarts and reboots. It has its own process, mount, network, host name, IPC and cgroup
namespaces, a private cgroup2 mount, an overlay over the real root (so its writes aren't visible outside), its own
``/run`` and ``/dev``, only ``lo``, and a ``/var/lib/netspace`` and ``/var/log/netspace`` that survive
:meth:`SystemdHost.reboot`. It never changes a mount, a cgroup setting or a file of the real machine. Its one cgroup is
removed when it is switched off.

It lacks a TPM, devices, udev, and the controllers that a hybrid machine keeps in cgroup v1 (so no ``MemoryMax=``).

Run as a program, this file boots a machine, runs a command (or a shell) in it, and ends the machine::

    sudo python tests/support/hosts/systemd_host.py [COMMAND ARGUMENT...]
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

KEPT = ("/var/lib/netspace", "/var/log/netspace")
HIDDEN = ("var/lib/netspace-broker",)
"""Folders of an instance that runs on the real machine: not seen here."""

# Units of the real machine that would reach for what is shared with it (devices,
# sysctls, binfmt) or have no business here.
MASKED = [
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service",
    "systemd-udev-load-credentials.service",
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-setup-dev-early.service",
    "systemd-random-seed.service",
    "systemd-pstore.service",
    "systemd-hwdb-update.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-logind.service",
    "getty.target",
    "console-getty.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "systemd-remount-fs.service",
    "systemd-machine-id-commit.service",
    "systemd-firstboot.service",
    "systemd-journal-catalog-update.service",
    "ldconfig.service",
    "systemd-update-done.service",
    "timers.target",
    "remote-fs.target",
    "nftables.service",
]

OUTER = r"""
set -eu
[ "${4-}" ] || exec unshare --mount --propagation private bash -c "$BASH_EXECUTION_STRING" outer "$@" private
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir -p "$1/cgroup/$2"
echo $$ >"$1/cgroup/$2/cgroup.procs"
umount "$1/cgroup"
exec unshare --cgroup --pid --ipc --uts --net --mount --fork --kill-child --propagation private bash -c "$3" inner "$1"
"""

INNER = r"""
set -eu
disk=$1 root=$1/root
mount -t overlay -o "lowerdir=$NETSPACE_LOWER,upperdir=$disk/upper,workdir=$disk/work" root "$root"
for folder in /tmp; do [ -d "$folder" ] && mount --rbind "$folder" "$root$folder"; done
mkdir -p "$root/var/lib/netspace" "$root/var/log/netspace"
mount --bind "$disk/var/lib/netspace" "$root/var/lib/netspace"
mount --bind "$disk/var/log/netspace" "$root/var/log/netspace"
mount -t tmpfs -o mode=755 run "$root/run"
mkdir "$root/run/lock"
mount -t tmpfs -o mode=755 dev "$root/dev"
for node in null zero full random urandom tty net/tun fuse; do
    [ -e "/dev/$node" ] || continue
    mkdir -p "$(dirname "$root/dev/$node")"
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
cd "$root"
mkdir -p "$disk/upper/.old"
pivot_root . .old
umount -l /.old
ip link set lo up
hostname systemd-host
exec env -i container=systemd-host PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=multi-user.target --show-status=no
"""

SWEEP = r"""
mount -t cgroup2 cgroup2 "$1/cgroup"
for try in $(seq 600); do
    [ -d "$1/cgroup/$2" ] || exit 0
    find "$1/cgroup/$2" -depth -type d -exec rmdir {} + 2>/dev/null
    sleep 0.05
done
[ ! -d "$1/cgroup/$2" ]
"""


class SystemdHost:
    """One machine with systemd. The context manager boots it and switches it off.

    :param disk: folder for the machine's writes, which survives :meth:`reboot`. Its file system must suit an overlay's
        upper layer (ext4, xfs, tmpfs; not an overlay).
    :param base: the root that the machine sees and never changes; by default the real root.
    """

    def __init__(self, disk: Path, base: Path = Path("/")) -> None:
        self.disk, self.base = disk, base
        self.cgroup = f"systemd-host-{os.getpid()}-{id(self):x}"
        self.pid = 0
        self._unshare: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SystemdHost:
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, where: TracebackType | None
    ) -> None:
        self.off()

    def boot(self, timeout: float = 240) -> None:
        """Start systemd and wait until it has started all enabled units."""
        for folder in ("upper", "work", "root", "cgroup", "var/lib/netspace", "var/log/netspace"):
            (self.disk / folder).mkdir(parents=True, exist_ok=True)
        os.chmod(self.disk / "upper", 0o755)
        units = self.disk / "upper/etc/systemd/system"
        if not units.exists():
            units.mkdir(parents=True)
            os.setxattr(units, "trusted.overlay.opaque", b"y")  # nothing of the real machine's own units
            for folder in HIDDEN:
                whiteout = self.disk / "upper" / folder
                whiteout.parent.mkdir(parents=True, exist_ok=True)
                os.mknod(whiteout, stat.S_IFCHR, os.makedev(0, 0))
            for name in MASKED:
                (units / name).symlink_to("/dev/null")
        console = (self.disk / "console").open("ab")
        with console:
            self._unshare = subprocess.Popen(
                # Whoever tests may be killed: then the machine goes with it.
                ["setpriv", "--pdeathsig", "KILL", "bash", "-c", OUTER, "outer", str(self.disk), self.cgroup, INNER],
                env={**os.environ, "NETSPACE_LOWER": str(self.base)},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout
        while not self._find_init():
            self._wait_a_little(deadline)
        while self.run("test", "-S", "/run/systemd/private", check=False).returncode:
            self._wait_a_little(deadline)
        while not self._started(max(deadline - time.monotonic(), 1)):
            self._wait_a_little(deadline)

    def _started(self, timeout: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            state = self.run("systemctl", "is-system-running", "--wait", check=False, timeout=timeout).stdout.strip()
            return state in ("running", "degraded")
        return False

    def _find_init(self) -> bool:
        """Set ``pid`` to the PID of the machine's systemd once systemd runs; return whether it runs."""
        assert self._unshare is not None
        parent = self._unshare.pid
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    self.pid = int(child)
                    return True
        return False

    def _wait_a_little(self, deadline: float) -> None:
        assert self._unshare is not None
        if self._unshare.poll() is not None or time.monotonic() > deadline:
            console = (self.disk / "console").read_text(errors="replace")
            self.off()
            raise RuntimeError(f"systemd does not boot in namespaces here:\n{console[-2000:]}")
        time.sleep(0.02)

    def off(self) -> None:
        """Switch the machine off as by a power cut: send SIGKILL to every process of the machine. Its disk stays."""
        if self._unshare is not None:
            if self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            # unshare(1) collects systemd and ends; killed before, it would leave a zombie to whoever is PID 1.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._unshare.wait(60 if self.pid else 0)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._unshare.pid, signal.SIGKILL)
            self._unshare.wait()
        self._unshare, self.pid = None, 0
        subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "bash", "-c", SWEEP, "sweep", self.disk, self.cgroup],
            check=True,
        )

    def reboot(self) -> None:
        """Switch the machine off as by a power cut, and boot it from the same disk. The content of ``/run`` is lost."""
        self.off()
        self.boot()

    def run(
        self,
        *command: str,
        check: bool = True,
        timeout: float = 120,
        variables: Mapping[str, str] | None = None,
        text_in: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run *command* in the machine as root, with cwd / and a minimal environment plus *variables*."""
        path = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-a", "--", *command],
            env={"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", **(variables or {})},
            cwd="/",
            input=text_in,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def path(self, inside: str) -> Path:
        """Return the path by which the real host sees a file of the running machine."""
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")


def main(command: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="systemd-host-") as folder, SystemdHost(Path(folder)) as host:
        return subprocess.run(["nsenter", "-t", str(host.pid), "-a", "--", *(command or ["bash"])], cwd="/").returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
