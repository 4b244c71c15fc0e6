"""A host whose environments really run: crun, mounts and cgroups, under netspace's own supervisor."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.environments.environment_host import Host

from netspace.environment.storage import mounts
from netspace.layout import Layout

PROGRAMS = ("/usr/bin/python3", "/usr/bin/perl", "/usr/bin/openssl", "/usr/bin/dash")
FOLDERS = ("/usr/lib/python3.*", "/usr/lib/*-linux-gnu/perl-base", "/etc/ssl/openssl.cnf", "/usr/lib/ssl")


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a static busybox, and a file that only some users may read."""
    root = tmp_path_factory.mktemp("image")
    root.chmod(0o755)
    binaries = root / "bin"
    binaries.mkdir(mode=0o755)
    shutil.copy("/bin/busybox", binaries / "busybox")
    for applet in (
        "sh",
        "sleep",
        "cat",
        "id",
        "flock",
        "head",
        "ls",
        "unshare",
        "mount",
        "kill",
        "touch",
        "mkdir",
        "true",
        "false",
        "wc",
    ):
        (binaries / applet).symlink_to("busybox")
    (root / "etc").mkdir(mode=0o755)
    (root / "etc/motd").write_text("hello\n")
    (root / "etc/shadow").write_text("secret\n")
    (root / "etc/shadow").chmod(0o600)
    return root


@pytest.fixture(scope="session")
def disk() -> Iterator[Path]:
    """A folder on the machine's disk: the kernel mounts erofs files from there, not from a tmpfs."""
    folder = Path(tempfile.mkdtemp(prefix="netspace-test-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def images_on_disk(disk: Path) -> Iterator[None]:
    images = Layout().images
    images.mkdir(parents=True, exist_ok=True)
    mounts.mount(disk, images, "none", mounts.BIND)
    yield
    mounts.unmount(images)


@pytest.fixture
def host(image: Path, images_on_disk: None) -> Iterator[Host]:
    host = Host(image)
    yield host
    host.clear()


@pytest.fixture(scope="session")
def tar(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tar") / "image.tar"
    subprocess.run(["tar", "-C", image, "-cf", path, "."], check=True)
    return path


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with some of this machine's own programs and their libraries."""
    root = tmp_path_factory.mktemp("debian")
    root.chmod(0o755)
    paths = [str(Path(program).resolve()) for program in PROGRAMS]
    for pattern in FOLDERS:
        paths += [str(path) for path in sorted(Path("/").glob(pattern[1:]))]
    libraries = [str(path) for path in Path("/").glob("usr/lib/python3.*/lib-dynload/*.so")]
    loaded = subprocess.run(["ldd", *paths[: len(PROGRAMS)], *libraries], capture_output=True, text=True).stdout
    paths += sorted(set(re.findall(r"(/\S+\.so[.\d]*)", loaded)))
    subprocess.run(
        ["tar", "-C", "/", "-chf", root / "t.tar", "--exclude=test", "--exclude=__pycache__", *(p[1:] for p in paths)],
        check=True,
    )
    subprocess.run(["tar", "-C", root, "-xf", root / "t.tar"], check=True)
    (root / "t.tar").unlink()
    (root / "usr/bin/python3").symlink_to(Path(PROGRAMS[0]).resolve().name)
    (root / "bin").mkdir(exist_ok=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "sleep"):
        (root / "bin" / applet).symlink_to("busybox")
    return root


@pytest.fixture
def writable(image: Path, tmp_path: Path) -> str:
    """An image with a folder that the environment's user may write to."""
    subprocess.run(["cp", "-a", image, tmp_path / "root"], check=True)
    (tmp_path / "root/var").mkdir()
    (tmp_path / "root/var").chmod(0o777)
    return f"dir:{tmp_path}/root"
