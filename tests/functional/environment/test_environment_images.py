"""Images by their content: every source, built once, the same everywhere, never trusted blindly."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from netspace.environment import mounts
from netspace.environment.images import Store, sources
from netspace.errors import NetspaceError
from netspace.layout import Layout

pytestmark = pytest.mark.root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Layout(root=tmp_path / "host"))


def other_store(store: Store, tmp_path: Path) -> Store:
    return Store(Layout(root=tmp_path / "other"))


def write_tar(path: Path, *members: tuple[str, dict[str, object], bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, attributes, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="session")
def layout_folder(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with one tagged image."""
    folder = tmp_path_factory.mktemp("oci") / "shop"
    for command in (
        ["init", "--layout", folder],
        ["new", "--image", f"{folder}:web"],
        ["raw", "add-layer", "--image", f"{folder}:web", tar],
        [
            *("config", "--image", f"{folder}:web", "--config.entrypoint", "/bin/sh", "--config.cmd", "-c"),
            *("--config.cmd", "echo $WHO; trap 'exit 0' TERM; while :; do sleep 0.05; done"),
            *("--config.env", "WHO=image", "--config.workingdir", "/etc/", "--config.user", "4242:4242"),
        ],
    ):
        subprocess.run(["umoci", *command], check=True, capture_output=True)
    return folder


def test_the_same_input_is_the_same_image(store, tmp_path, image, tar):
    copy = tmp_path / "copy"
    shutil.copytree(image, copy, symlinks=True)
    time.sleep(1.1)
    os.utime(copy / "etc/motd")
    second = other_store(store, tmp_path)
    assert store.ensure(f"dir:{image}").digest == second.ensure(f"dir:{copy}").digest
    shutil.copy(tar, tmp_path / "copy.tar")
    assert store.ensure(f"tar:{tar}").digest == second.ensure(f"tar:{tmp_path}/copy.tar").digest
    built = tmp_path / "built.erofs"
    shutil.copy(store.file(store.ensure(f"tar:{tar}").digest), built)
    assert store.ensure(f"erofs:{built}").digest == store.ensure(f"tar:{tar}").digest
    assert not [path for path in store.file("x").parent.iterdir() if path.name.startswith(".")]


def test_a_compressed_tar_is_the_same_image(store, tmp_path, tar):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar.read_bytes(), 1))
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(tar.read_bytes(), preset=0))
    digests = {store.ensure(f"tar:{path}").digest for path in (tar, tmp_path / "a.tar.gz", tmp_path / "a.tar.xz")}
    assert len(digests) == 1
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:1000])
    with pytest.raises(NetspaceError, match="damaged"):
        store.ensure(f"tar:{tmp_path}/cut.tar.gz")


def test_what_is_unchanged_is_neither_read_nor_built_again(store, tmp_path, tar, monkeypatch):
    copy = tmp_path / "a.tar"
    shutil.copy(tar, copy)
    first = store.ensure(f"tar:{copy}")

    def unexpected(*_):
        raise AssertionError("read or built again")

    with monkeypatch.context() as patch:
        patch.setattr(sources, "of_content", unexpected)
        patch.setattr(sources, "make_erofs", unexpected)
        assert store.ensure(f"tar:{copy}") == first
        assert store.seen(f"tar:{copy}").identity == first.identity
    os.utime(copy, ns=(5, 5))
    with monkeypatch.context() as patch:
        patch.setattr(sources, "make_erofs", unexpected)
        before = {path: path.read_bytes() for path in store.file("x").parent.iterdir()}
        assert store.seen(f"tar:{copy}").identity == first.identity
        assert {path: path.read_bytes() for path in store.file("x").parent.iterdir()} == before, "only looked at"
        store.note_seen()
        patch.setattr(sources, "of_content", unexpected)
        assert store.seen(f"tar:{copy}").identity == first.identity, "noted that it is the same"
        assert store.ensure(f"tar:{copy}") == first


def test_a_changed_folder_is_another_image(store, tmp_path, image):
    copy = tmp_path / "copy"
    shutil.copytree(image, copy, symlinks=True)
    first = store.ensure(f"dir:{copy}")
    (copy / "etc/motd").chmod(0o600)
    assert store.seen(f"dir:{copy}").identity != first.identity
    assert store.ensure(f"dir:{copy}").digest != first.digest


def test_no_member_of_a_tar_reaches_the_host(store, tmp_path):
    link = ("l", {"type": tarfile.SYMTYPE, "linkname": str(tmp_path)}, b"")
    members = [
        ("../../escaped", {}, b"x"),
        (f"{tmp_path}/absolute", {}, b"x"),
        ("l/through", {}, b"x"),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "../../../etc/shadow"}, b""),
    ]
    for index, member in enumerate(members):
        path = write_tar(tmp_path / f"{index}.tar", ("motd", {}, b"m"), link, member)
        before = {entry for entry in tmp_path.rglob("*") if not entry.is_relative_to(tmp_path / "host")}
        try:
            digest = store.ensure(f"tar:{path}").digest
        except NetspaceError:
            continue  # refused is as good
        finally:
            after = {entry for entry in tmp_path.rglob("*") if not entry.is_relative_to(tmp_path / "host")}
            assert after == before
        folder = store._unpack(digest)
        assert {entry for entry in tmp_path.rglob("*") if not entry.is_relative_to(tmp_path / "host")} == before
        assert not any(entry.is_symlink() and entry.name != "l" for entry in folder.rglob("*"))


def test_garbage_is_refused_and_leaves_nothing(store, tmp_path):
    (tmp_path / "garbage").write_bytes(b"garbage" * 10_000)
    for image in (f"tar:{tmp_path}/garbage", f"erofs:{tmp_path}/garbage", "dir:/nowhere", "oci:/nowhere:x", "ftp:/x"):
        with pytest.raises(NetspaceError):
            store.ensure(image)
    images = store.file("x").parent
    assert not images.exists() or list(images.iterdir()) == []


@pytest.mark.parametrize("module", [gzip, lzma, bz2])
def test_a_damaged_archive_is_a_clear_error(store, tmp_path, tar, module):
    whole = bytearray(module.compress(tar.read_bytes()))
    middle = len(whole) // 2
    whole[middle : middle + 64] = b"\xff" * 64
    (tmp_path / "damaged").write_bytes(whole)
    with pytest.raises(NetspaceError, match="damaged"):
        store.ensure(f"tar:{tmp_path}/damaged")


def test_leftovers_of_a_killed_build_are_removed(store, tar):
    used = store.ensure(f"tar:{tar}")
    images = store.file("x").parent
    (images / ".building-killed").mkdir()
    (images / ".building-killed/image").write_bytes(b"half")
    store.prune([used.digest])
    assert sorted(path.suffix for path in images.iterdir()) == [".erofs", ".json"]
    store.prune([])
    assert list(images.iterdir()) == []


def check_mounted(store: Store, image: Path, kind: str) -> None:
    digest = store.ensure(f"dir:{image}").digest
    try:
        target = store.mount(digest, {})
        assert (mounts.table()[str(target)].kind == "erofs") == (kind == "erofs")
        assert (target / "etc/motd").read_text() == "hello\n"
        assert (target / "etc/shadow").stat().st_mode & 0o777 == 0o600
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
        assert store.mount(digest, mounts.table()) == target
    finally:
        store.prune([])
    assert str(target) not in mounts.table()


def test_an_image_is_mounted_straight_from_its_file(image, images_on_disk):
    check_mounted(Store(Layout()), image, "erofs")


def test_an_image_is_unpacked_where_the_kernel_can_t_mount_the_file(store, image):
    images = store._layout.images
    images.mkdir(parents=True)
    mounts.mount("tmpfs", images, "tmpfs")  # which can't back an erofs
    try:
        check_mounted(store, image, "folder")
        assert list(images.iterdir()) == []
    finally:
        mounts.unmount(images)


def test_an_oci_image_says_how_to_run_it(host, layout_folder):
    host.run("web", image=f"oci:{layout_folder}:web", command=[])
    assert host.operations.logs("web") == {"lines": ["image"]}
    assert host.sh("web", "id; cat motd") == "uid=4242 gid=4242\nhello"
    assert host.plan({"web": host.desired("web", image=f"oci:{layout_folder}:web", command=[])}).steps == []
    host.run("web", image=f"oci:{layout_folder}:web", command=[], env={"WHO": "declared"}, user=7, working_dir="/bin")
    assert host.operations.logs("web", 1) == {"lines": ["declared"]}
    assert host.sh("web", "id; pwd") == "uid=7 gid=7\n/bin"


def test_an_oci_image_is_reproducible_and_checked(store, tmp_path, layout_folder):
    first = store.ensure(f"oci:{layout_folder}:web")
    copy = tmp_path / "copy"
    shutil.copytree(layout_folder, copy)
    time.sleep(1.1)
    assert other_store(store, tmp_path).ensure(f"oci:{copy}:web").digest == first.digest
    with pytest.raises(NetspaceError, match="tags: web"):
        store.ensure(f"oci:{copy}:wbe")
    index = json.loads((copy / "index.json").read_text())
    manifest = json.loads((copy / "blobs/sha256" / index["manifests"][0]["digest"][7:]).read_text())
    layer = copy / "blobs/sha256" / manifest["layers"][0]["digest"][7:]
    layer.chmod(0o600)
    with layer.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"tampered")
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(NetspaceError, match="not what its digest says"):
        other_store(store, tmp_path).ensure(f"oci:{copy}:web")
