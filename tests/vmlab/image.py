"""Build of the virtual machines' boot files: Debian's kernel and systemd, Salt, an agent.

They are built once, in ``.cache/vm``, from the host's package sources; nothing is installed on the host. ``root.img``
is the root file system (ext4), and ``vmlinuz`` and ``initrd`` start it. ``esp.img`` starts them by shim and GRUB as
Secure Boot requires. These files don't contain the checkout, which is copied into a running machine, so a change of the
code needs no new build.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
DEPENDENCIES = (
    "cryptography",
    "dnspython",
    "jeepney",
    "joserfc",
    "msgspec",
    "pyroute2",
)
CACHE = CHECKOUT / ".cache/vm"
# A processor that is translated keeps no secrets from its programs, and pays much for trying. On a busy host the
# kernel's check of the timer counts too few ticks, and the kernel stops with "IO-APIC + timer doesn't work".
COMMAND_LINE = "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0 no_timer_check"
SITE = "/opt/netspace"
COMPILED = "/opt/compiled"
PACKAGES = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "procps",
    "iproute2",
    "nftables",
    "crun",
    "runc",
    "runsc",
    "apparmor",
    "erofs-utils",
    "python3",
    "e2fsprogs",
    "busybox-static",
    "tpm2-tools",
    "libtss2-esys-3.0.2-0t64",
    "libtss2-fapi1t64",
    "libtss2-tctildr0t64",
    "libtss2-tcti-device0t64",
    "libtss2-rc0t64",
    "libtss2-mu-4.0.1-0t64",
    "libtss2-policy0t64",
    "libtss2-sys1t64",
]
# What the initrd loads before it mounts the root.
MODULES = ("virtio_blk",)
# Of no use in a test, and much of what is copied.
NEEDLESS = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists")

INIT = """#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do busybox insmod "$module"; done
until [ -b /dev/vda ]; do busybox usleep 10000; done
busybox mount -t ext4 /dev/vda /root
busybox mount --move /dev /root/dev
exec busybox switch_root /root /sbin/init
"""

AGENT_UNIT = """[Unit]
Description=What answers to the test
DefaultDependencies=no
After=systemd-udevd.service local-fs.target
Conflicts=shutdown.target

[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/vm-agent.py /dev/virtio-ports/agent
Restart=always
RestartSec=100ms
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

[Install]
WantedBy=sysinit.target
"""

SALT_CALL = f"""#!/bin/sh
export PYTHONPATH={SITE} PYTHONPYCACHEPREFIX={COMPILED}
exec /usr/bin/python3 -c 'import sys; from salt.scripts import salt_call; salt_call()' "$@"
"""

# Systems whose modules of Salt nobody needs here.
OTHERS = ("win", "mac", "napalm", "solaris", "nxos", "aix", "freebsd", "netbsd", "openbsd")

MASKED = """
    getty@tty1.service serial-getty@ttyS0.service console-getty.service systemd-timesyncd.service nftables.service
    systemd-networkd.service e2scrub_reap.service apt-daily.timer apt-daily-upgrade.timer fstrim.timer
    dpkg-db-backup.timer e2scrub_all.timer systemd-logind.service modprobe@.service systemd-pstore.service
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount systemd-binfmt.service
    apparmor.service
"""
# What udev would load at each boot for nothing that a test has.
DRIVERS = """
    kvm_amd kvm ahci evdev serio_raw aesni_intel ghash_clmulni_intel crct10dif_pclmul crc32_pclmul
"""


@dataclass(frozen=True)
class Image:
    """The files from which a machine boots."""

    root: Path
    kernel: Path
    initrd: Path
    esp: Path


@dataclass(frozen=True)
class Recipe:
    """The content of an image, beside kernel, systemd and Salt.

    :param cache: folder of the built image. It has the image of one version of the recipe.
    :param packages: Debian packages.
    :param furnish: function that changes the root file system last.
    :param version: a text or file that changes with *furnish*.
    """

    cache: Path
    packages: Sequence[str]
    furnish: Callable[[Path], None]
    version: bytes

    @property
    def made(self) -> Path:
        """The folder of the image of exactly this recipe."""
        parts = (Path(__file__).read_bytes(), *(name.encode() for name in self.packages), self.version)
        return self.cache / hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def build(recipe: Recipe | None = None, *, say: bool = True) -> Image:
    """Return an image; build it if no image of exactly this recipe exists.

    :param recipe: by default, the image of the tests' machines.
    :raises RuntimeError: a tool failed; the message has the end of the tool's output.
    """
    recipe = recipe or Recipe(CACHE, PACKAGES, _furnish_for_tests, _agent())
    made = recipe.made
    image = Image(made / "root.img", made / "vmlinuz", made / "initrd", made / "esp.img")
    if made.is_dir():
        return image
    if os.geteuid() != 0:
        raise RuntimeError("building the virtual machines' image needs root")
    recipe.cache.parent.mkdir(parents=True, exist_ok=True)
    with open(recipe.cache.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():  # nobody else has made it meanwhile
            _build(recipe, made, say)
    return image


def _build(recipe: Recipe, made: Path, say: bool) -> None:
    shutil.rmtree(recipe.cache, ignore_errors=True)
    work = made.with_suffix(".new")
    work.mkdir(parents=True)

    def progress(text: str) -> None:
        if say:
            print(f"vm image: {text}", file=sys.stderr, flush=True)

    progress("Debian (half a minute)")
    root = work / "root"
    # What it mounts in the root goes with it, also when it is killed.
    private = ("unshare", "--mount", "--propagation", "private", "--")
    _run(*private, "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--skip=output/dev",
         f"--include={','.join(recipe.packages)}", _suite(), root, *_sources())  # fmt: skip
    progress("kernel and boot loader")
    downloads = work / "packages"
    _packages(downloads, work / "unpacked")
    unpacked = work / "unpacked"
    version = next((unpacked / "usr/lib/modules").iterdir()).name
    shutil.copyfile(unpacked / f"boot/vmlinuz-{version}", work / "vmlinuz")
    shutil.copytree(unpacked / "usr/lib/modules", root / "usr/lib/modules")
    _run("depmod", "-b", root, version)
    _initrd(root, version, work)
    _esp(unpacked, work)
    progress("Salt (a minute)")
    _salt(root, work)
    _furnish(root)
    recipe.furnish(root)
    progress("file system")
    _run("mke2fs", "-q", "-t", "ext4", "-O", "verity", "-d", root, work / "root.img", "2G")
    for folder in (root, downloads, unpacked):
        shutil.rmtree(folder)
    work.rename(made)


def esp_with(image: Image, command_line: str, target: Path) -> None:
    """Write a copy of the boot partition to *target*, with another kernel command line."""
    shutil.copyfile(image.esp, target)
    _run("mcopy", "-o", "-i", target, "-", "::/EFI/debian/grub.cfg", stdin=_grub(command_line).encode())


def _agent() -> bytes:
    return Path(__file__).with_name("agent.py").read_bytes()


def _suite() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise RuntimeError("/etc/os-release names no release")


def _sources() -> list[Path]:
    """Return the files of package sources that apt reads."""
    folder = Path("/etc/apt/sources.list.d")
    found = [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))]
    return [path for path in found if path.exists() and path.stat().st_size]


def _packages(downloads: Path, unpacked: Path) -> None:
    """Download and unpack the packages of the boot files; install none of them."""
    downloads.mkdir()
    shown = _run("apt-cache", "depends", "linux-image-cloud-amd64").decode()
    kernel = next(line.split()[-1] for line in shown.splitlines() if "Depends: linux-image" in line)
    _run("apt-get", "-q", "download", kernel, "shim-signed", "grub-efi-amd64-signed", cwd=downloads)
    for package in downloads.glob("*.deb"):
        _run("dpkg-deb", "-x", package, unpacked)


def _initrd(root: Path, version: str, work: Path) -> None:
    tree = work / "initrd.d"
    for folder in ("bin", "dev", "root", "modules"):
        (tree / folder).mkdir(parents=True)
    shutil.copyfile(root / "usr/bin/busybox", tree / "bin/busybox")
    (tree / "bin/busybox").chmod(0o755)
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    for module in MODULES:
        packed = next((root / "usr/lib/modules" / version).rglob(f"{module}.ko.xz"))
        (tree / "modules" / f"{module}.ko").write_bytes(lzma.decompress(packed.read_bytes()))
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    archive = _run("cpio", "--quiet", "-o", "-H", "newc", cwd=tree, stdin="\n".join([".", *names]).encode())
    (work / "initrd").write_bytes(archive)
    shutil.rmtree(tree)


def _grub(command_line: str) -> str:
    return f"linux /vmlinuz {command_line}\ninitrd /initrd\nboot\n"


def _esp(unpacked: Path, work: Path) -> None:
    """Make the EFI system partition: shim, GRUB and kernel, with Debian's signatures."""
    esp = work / "esp.img"
    with esp.open("wb") as stream:
        stream.truncate(64 * 1024**2)
    _run("mkfs.vfat", "-F", "32", "-n", "ESP", esp)
    _run("mmd", "-i", esp, "::/EFI", "::/EFI/BOOT", "::/EFI/debian")
    for source, target in (
        (unpacked / "usr/lib/shim/shimx64.efi.signed", "EFI/BOOT/BOOTX64.EFI"),
        (unpacked / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "EFI/BOOT/grubx64.efi"),
        (work / "vmlinuz", "vmlinuz"),
        (work / "initrd", "initrd"),
    ):
        _run("mcopy", "-i", esp, source, f"::/{target}")
    _run("mcopy", "-i", esp, "-", "::/EFI/debian/grub.cfg", stdin=_grub(COMMAND_LINE).encode())


def _salt(root: Path, work: Path) -> None:
    """Install Salt and netspace's dependencies for the image's Python, which equals this machine's /usr/bin/python3."""
    venv = work / "venv"
    _run("/usr/bin/python3", "-m", "venv", venv)
    _run(venv / "bin/pip", "install", "-q", "--disable-pip-version-check", "--no-compile", "--target", f"{root}{SITE}",
         "-c", CHECKOUT / "scripts/constraints.txt", *DEPENDENCIES, "salt", "tpm2-pytss")  # fmt: skip
    shutil.rmtree(venv)
    # In each call Salt asks each package for its plugins dozens of times, and looks at each file of its own.
    for pattern in (
        "*.dist-info",
        *(f"salt/{kind}/{system}_*.py" for kind in ("modules", "states") for system in OTHERS),
    ):
        for path in Path(f"{root}{SITE}").glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    # A test may look at what is running: no compiler runs then.
    every = ("chroot", root, "/usr/bin/python3", "-m", "compileall", "-q", "-j", "2")
    # Salt takes what is compiled for files of its own, too: for Salt it lies elsewhere, with all that Salt imports.
    _run(*every, "-x", f"{SITE}/salt/", SITE, allowed=(0, 1))
    library = next((root / "usr/lib").glob("python3.*")).name
    _run(*every, SITE, f"/usr/lib/{library}", "/usr/lib/python3/dist-packages",
         allowed=(0, 1), variables={"PYTHONPYCACHEPREFIX": COMPILED})  # fmt: skip
    wrapper = root / "usr/local/bin/salt-call"
    wrapper.write_text(SALT_CALL)
    wrapper.chmod(0o755)


def _furnish_for_tests(root: Path) -> None:
    (root / "usr/local/lib/vm-agent.py").write_bytes(_agent())
    units = root / "etc/systemd/system"
    (units / "vm-agent.service").write_text(AGENT_UNIT)
    wants = units / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "vm-agent.service").symlink_to("../vm-agent.service")


def _furnish(root: Path) -> None:
    units = root / "etc/systemd/system"
    for name in MASKED.split():
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    # What writes units for what none of these machines has, at each boot and each reload.
    generators = root / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for path in (root / "usr/lib/systemd/system-generators").iterdir():
        (generators / path.name).symlink_to("/dev/null")
    (root / "etc/hostname").write_text("vm\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost vm\n::1 localhost\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")
    (root / "etc/fstab").write_text("")
    for path in [*(root / "etc/apt").glob("sources.list*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (root / "etc/modprobe.d/lab.conf").write_text("".join(f"blacklist {name}\n" for name in DRIVERS.split()))
    for name in NEEDLESS:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in ("etc/.updated", "var/.updated"):  # nothing has to be brought up to date at its first boot
        (root / name).touch()


def _run(
    *command: object,
    cwd: Path | None = None,
    stdin: bytes = b"",
    allowed: Sequence[int] = (0,),
    variables: Mapping[str, str] | None = None,
) -> bytes:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "MTOOLS_SKIP_CHECK": "1",
                   "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", **(variables or {})}  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, input=stdin, capture_output=True, env=environment, check=False
    )
    if done.returncode not in allowed:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()[-1500:]
        raise RuntimeError(f"{command[0]} failed with {done.returncode}: {words}")
    return done.stdout
