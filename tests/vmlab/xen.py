"""A machine that boots Xen, and a small dom0: Debian's kernel and toolstack for Xen, Python and the library.

The packages are fetched once, into ``.cache/xen``; nothing is installed on the host. Programs, their libraries and
Python are the host's own.
"""

from __future__ import annotations

import fcntl
import lzma
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from vmlab import qemu
from vmlab.flavours import Flavour
from vmlab.image import CHECKOUT, Image
from vmlab.machine import Machine

CACHE = CHECKOUT / ".cache/xen"
RELEASE = "4.20"
PACKAGES = (
    *(
        f"xen-hypervisor-{RELEASE}-amd64",
        f"xen-utils-{RELEASE}",
        f"libxenmisc{RELEASE}",
        "xenstore-utils",
        "libxen-dev",
    ),
    *("libxencall1", "libxendevicemodel1", "libxenevtchn1", "libxenforeignmemory1", "libxengnttab1", "libxenhypfs1"),
    *("libxenstore4", "libxentoolcore1", "libxentoollog1", "libyajl2", "libfdt1"),
)
KERNEL = "linux-image-amd64"  # the one of the cloud can't be dom0
# Of the kernel's modules: those of Xen, and what the library uses.
MODULES = re.compile(
    r"drivers/xen/(xen-evtchn|xen-gnt\w+|xen-privcmd|xenfs/xenfs)|drivers/net/(xen-netback/xen-netback|tun|veth)"
    r"|drivers/block/(loop|virtio_blk)|fs/(erofs|overlayfs|ext4|jbd2|netfs)/\w+|fs/mbcache|lib/(crc16|libcrc32c|lz4/\w+)"
    r"|crypto/(crc32c_generic)|lib/(zstd|xxhash|842|zlib_inflate)/?\w*|drivers/net/vxlan/vxlan|drivers/net/dummy"
    r"|net/(netfilter|ipv4/netfilter|ipv6/netfilter)/(nf_|nft_|nfnetlink)\w*|net/sched/(sch_ingress|cls_bpf|act_mirred|sch_tbf)"
)
PROGRAMS = ("/usr/bin/dash", "/usr/sbin/ip", "/usr/sbin/tc", "/usr/bin/nsenter", "/usr/bin/unshare", "/usr/bin/kmod",
            "/usr/bin/mkfs.erofs", "/usr/bin/zstd", "/usr/bin/setpriv")  # fmt: skip
LOADED = ("libnftables.so.1", "libgcc_s.so.1", "libnss_files.so.2")
SITE = ("msgspec", "jeepney", "pyroute2", "joserfc", "cryptography", "dns", "cffi", "_cffi_backend*", "yaml", "_yaml")
UNUSED = ("test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data", "site-packages", "config-*")

EARLY = ("virtio_blk", "crc16", "crc32c_generic", "mbcache", "jbd2", "ext4")  # of them, those that the root needs
START = """#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
for module in MODULES; do busybox insmod /modules/$module.ko; done
until [ -b /dev/vda ]; do busybox usleep 10000; done
busybox mount -t ext4 /dev/vda /root
busybox mount --move /dev /root/dev
exec busybox switch_root /root /init
""".replace("MODULES", " ".join(EARLY))

INIT = f"""#!/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts; mount -t tmpfs run /run; mount -t cgroup2 cgroup /sys/fs/cgroup
for module in xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs xen-netback tun; do modprobe $module; done
mount -t xenfs xenfs /proc/xen
mkdir -p /run/xen /run/xenstored /run/lock /run/netns /var/lib/xen /var/log/xen; ip link set lo up
xenstored --pid-file /run/xenstored.pid; xen-init-dom0; xenconsoled --pid-file /run/xenconsoled.pid
for port in /sys/class/virtio-ports/*; do
  [ "$(cat $port/name)" != agent ] || exec {sys.executable} /agent.py /dev/${{port##*/}}
done
"""


def fetched() -> Path:
    """Return the folder with the unpacked packages; fetch them if they aren't there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (CACHE / "ready").exists():
            aside = CACHE / "new"
            shutil.rmtree(aside, ignore_errors=True)
            (aside / "debs").mkdir(parents=True)
            shown = subprocess.run(["apt-cache", "depends", KERNEL], check=True, capture_output=True, text=True).stdout
            (kernel,) = re.findall(r"Depends: (linux-image-\S+)", shown)
            command = ["apt-get", "download", "-qq", *PACKAGES, kernel]
            subprocess.run(command, cwd=aside / "debs", check=True, capture_output=True)
            for package in (aside / "debs").iterdir():
                subprocess.run(["dpkg-deb", "-x", package, aside / "root"], check=True)
            shutil.rmtree(aside / "debs")
            shutil.rmtree(CACHE / "packages", ignore_errors=True)
            aside.rename(CACHE / "packages")
            (CACHE / "ready").touch()
    return CACHE / "packages/root"


def headers() -> Path:
    """Return the folder with Xen's public headers."""
    return fetched() / "usr/include"


class Dom0:
    """The files of a dom0, built in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.packages = fetched()
        self.libraries = self.root / "usr/lib/x86_64-linux-gnu"

    def build(self, extra: Iterable[Path] = ()) -> Image:
        """Build kernel, initrd and disk.

        :param extra: files for the dom0's folder ``/guests``.
        """
        for name in ("dev", "proc", "sys", "run", "tmp", "etc", "root", "guests", "usr/bin", "usr/sbin", "usr/lib64",
                     "usr/lib/x86_64-linux-gnu", "var/lib", "var/log", "usr/local/bin"):  # fmt: skip
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / name).symlink_to(f"usr/{name}")
        (self.root / "var/run").symlink_to("../run")
        (self.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
        (self.root / "etc/group").write_text("root:x:0:\n")
        self._programs()
        self._python()
        self._modules()
        for file in extra:
            shutil.copy(file, self.root / "guests")
        (self.root / "init").write_text(INIT)
        (self.root / "init").chmod(0o755)
        self._loader_and_libraries()
        self._initrd()
        disk = self.folder / "disk.img"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", "-d", self.root, disk, "400M"], check=True)
        (kernel,) = (self.packages / "boot").glob("vmlinuz-*")
        with (self.folder / "xen").open("wb") as stream:  # QEMU wants an ELF file
            subprocess.run(["zcat", self.packages / f"boot/xen-{RELEASE}-amd64.gz"], stdout=stream, check=True)
        shutil.rmtree(self.root)
        return Image(root=disk, kernel=kernel, initrd=self.folder / "initrd", esp=self.folder / "xen")

    def _initrd(self) -> None:
        root = self.folder / "early"
        for name in ("bin", "dev", "root", "modules"):
            (root / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin")
        for name in EARLY:
            (module,) = self.root.rglob(f"{name}.ko")
            shutil.copy(module, root / "modules")
        (root / "init").write_text(START)
        (root / "init").chmod(0o755)
        listing = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True).stdout
        with (self.folder / "initrd").open("wb") as stream:
            command = ["cpio", "--quiet", "-o", "-H", "newc"]
            subprocess.run(command, cwd=root, input=listing, stdout=stream, check=True)
        shutil.rmtree(root)

    def _programs(self) -> None:
        shutil.copy("/bin/busybox", self.root / "bin/busybox")
        applets = subprocess.run(["/bin/busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
        for applet in applets:
            if applet not in ("busybox", "ip", "tc", "nsenter", "unshare", "sh", "setpriv", "modprobe", "depmod"):
                (self.root / "bin" / applet).symlink_to("busybox")
        for program in PROGRAMS:
            shutil.copy(os.path.realpath(program), self.root / program.lstrip("/"))
        (self.root / "bin/sh").symlink_to("dash")
        (self.root / "usr/sbin/modprobe").symlink_to("/usr/bin/kmod")
        tools = self.packages / f"usr/lib/xen-{RELEASE}/bin"
        for name in ("xl", "xenstored", "xenconsoled", "xen-init-dom0", "libxl-save-helper"):
            target = self.root / f"usr/lib/xen-{RELEASE}/bin" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tools / name, target)
            (self.root / "usr/sbin" / name).symlink_to(f"/usr/lib/xen-{RELEASE}/bin/{name}")
        shutil.copy(self.packages / "usr/bin/xenstore", self.root / "usr/bin")
        for name in ("read", "write", "list", "ls"):
            (self.root / f"usr/bin/xenstore-{name}").symlink_to("xenstore")

    def _python(self) -> None:
        standard = Path(sysconfig.get_path("stdlib"))
        copied = self.root / str(standard).lstrip("/")
        shutil.copytree(standard, copied, ignore=shutil.ignore_patterns(*UNUSED, "*.a", "*.opt-?.pyc"))
        site = self.root / "site"
        for pattern in SITE:
            for found in Path(sysconfig.get_path("purelib")).glob(pattern):
                if found.is_dir():
                    shutil.copytree(found, site / found.name, ignore=shutil.ignore_patterns("tests"))
                else:
                    site.mkdir(exist_ok=True)
                    shutil.copy(found, site)
        shutil.copytree(CHECKOUT / "_utils/netspace", site / "netspace", ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-m", "compileall", "-q", "-s", self.root, "-p", "/", site]
        subprocess.run(command, check=True, env={"PATH": os.defpath})
        target = self.root / sys.executable.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        real = Path(os.path.realpath(sys.executable))
        (self.root / str(real.parent).lstrip("/")).mkdir(parents=True, exist_ok=True)
        shutil.copy(real, self.root / str(real).lstrip("/"))
        target.symlink_to(real)
        shutil.copy(Path(__file__).with_name("agent.py"), self.root / "agent.py")

    def _modules(self) -> None:
        (version,) = (path.name for path in (self.packages / "usr/lib/modules").iterdir())
        source = self.packages / "usr/lib/modules" / version
        target = self.root / "usr/lib/modules" / version
        for packed in (source / "kernel").rglob("*.ko.xz"):
            name = str(packed.relative_to(source / "kernel"))
            if MODULES.fullmatch(name.removesuffix(".ko.xz")):
                unpacked = target / "kernel" / name.removesuffix(".xz")
                unpacked.parent.mkdir(parents=True, exist_ok=True)
                unpacked.write_bytes(lzma.decompress(packed.read_bytes()))
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            if (source / name).exists():
                shutil.copy(source / name, target)
        subprocess.run(["depmod", "-b", self.root, version], check=True)

    def _loader_and_libraries(self) -> None:
        """Copy what programs and Python's own modules load, from the packages or else from the host."""
        own = self.packages / "usr/lib/x86_64-linux-gnu"
        files = [path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink()]
        maybe = [path for path in files if os.access(path, os.X_OK) or ".so" in path.name]
        binaries = [path for path in maybe if path.read_bytes()[:4] == b"\x7fELF"]
        listed = subprocess.run(["ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
        for name in LOADED:
            found = re.search(rf"^\s+{re.escape(name)} \(.*x86-64.*\) => (\S+)$", listed, re.MULTILINE)
            if found:
                binaries.append(Path(found[1]))
                shutil.copy(found[1], self.libraries / name)
        command = ["ldd", *map(str, binaries)]
        shown = subprocess.run(command, capture_output=True, text=True, env={"LD_LIBRARY_PATH": str(own)}).stdout
        for path in set(re.findall(r"=> (/\S+) \(", shown)):
            if not path.startswith(str(self.root)):
                shutil.copy(path, self.libraries / Path(path).name)
                if not (self.root / path.lstrip("/")).exists():  # for what is found by a path of its own
                    (self.root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, self.root / path.lstrip("/"))
        shutil.copy("/lib64/ld-linux-x86-64.so.2", self.root / "usr/lib64")


class XenMachine(Machine):
    """A machine with Xen. Its dom0 obeys the agent, and has no systemd."""

    def __init__(self, image: Image, folder: Path, *, memory: int = 600, dom0: int = 360) -> None:
        super().__init__(image, Flavour("xen", tpm=False), folder)
        self.memory, self.dom0 = memory, dom0

    def wait(self) -> None:
        self._until_answer()

    def _command(self) -> list[str]:
        path, image = self.folder, self.image
        own = f"dom0_mem={self.dom0}M,max:{self.dom0}M dom0_max_vcpus=1"
        xen = f"console=com1 com1=115200,8n1 {own} loglvl=warning no-real-mode edid=no"
        linux = "console=hvc0 quiet panic=-1 mitigations=off init_on_alloc=0"
        return [
            *qemu.board(self.flavour, memory=self.memory),
            "-nic", "none",
            "-qmp", f"unix:{path}/qmp,server=on,wait=off",
            "-serial", f"file:{path}/console",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=agent,path={path}/agent,server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=agent",
            *qemu.disk(path, "disk"),
            "-kernel", str(image.esp), "-append", xen,
            "-initrd", f"{image.kernel} {linux},{image.initrd}",
        ]  # fmt: skip
