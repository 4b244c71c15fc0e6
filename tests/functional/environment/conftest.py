"""A host whose environments run for real: crun, mounts and cgroups, under our own supervisor."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from environment_host import Host

from netspace.environment import mounts
from netspace.layout import Layout


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a static busybox, and a file that only some may read."""
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
        "true",
        "false",
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
