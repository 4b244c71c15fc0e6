"""Images of every source: each is built once, is the same on every host, and is checked before its use."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from support.environments.environment_host import STAY
from support.environments.image_files import Layout as OciLayout
from support.environments.image_files import hard, member
from support.environments.image_files import tar as tar_of
from support.waiting import until

from netspace.environment.images import Store, bounds, sources, verity
from netspace.environment.images.admin import Images
from netspace.environment.images.sources import oci
from netspace.environment.storage import mounts, rootfs
from netspace.errors import NetspaceError
from netspace.layout import Layout

pytestmark = pytest.mark.root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Layout(root=tmp_path / "host"))


def other_store(store: Store, tmp_path: Path) -> Store:
    return Store(Layout(root=tmp_path / "other"))


def leftovers(store: Store, built: int = 0) -> list[str]:
    """Return the files in the images' folder, except the two that each of *built* builds leaves there.

    A build leaves the image and its note. If the number of such files isn't as expected, all files are returned.
    """
    images = store.file("x").parent
    found = sorted(path.name for path in images.iterdir()) if images.exists() else []
    kept = [name for name in found if not name.startswith(".")]
    return found if len(kept) != 2 * built else [name for name in found if name not in kept]


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
        patch.setattr(sources, "pack", unexpected)
        assert store.ensure(f"tar:{copy}") == first
        assert store.seen(f"tar:{copy}").identity == first.identity
    os.utime(copy, ns=(5, 5))
    with monkeypatch.context() as patch:
        patch.setattr(sources, "pack", unexpected)
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
    link = member("l", linkname=str(tmp_path))
    members = [
        member("../../escaped", b"x"),
        member(f"{tmp_path}/absolute", b"x"),
        member("l/through", b"x"),
        hard("hard", "../../../etc/shadow"),
    ]

    def found() -> set[Path]:
        return {entry for entry in tmp_path.rglob("*") if not entry.is_relative_to(tmp_path / "host")}

    for index, odd in enumerate(members):
        path = tmp_path / f"{index}.tar"
        path.write_bytes(tar_of([member("motd", b"m"), link, odd]))
        before = found()
        try:
            digest = store.ensure(f"tar:{path}").digest
        except NetspaceError:
            continue  # refused is as good
        finally:
            assert found() == before
        folder = store._unpack(digest)
        assert found() == before
        assert not any(entry.is_symlink() and entry.name != "l" for entry in folder.rglob("*"))


def test_an_image_has_neither_devices_nor_special_bits(store, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(
        tar_of(
            [
                member("su", b"x", mode=0o6755, pax_headers={"SCHILY.xattr.security.capability": "\x01\x00\x00\x02"}),
                member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
                member("pipe", type=tarfile.FIFOTYPE),
                member("kept", b"k", mode=0o640, uid=7, gid=8, mtime=9, pax_headers={"SCHILY.xattr.user.a": "b"}),
                hard("again", "kept"),
            ]
        )
    )
    image = store.ensure(f"tar:{path}")
    assert image.defaults.notes == ("left out: 1 device nodes", "left out: 1 named pipes")
    folder = store._unpack(image.digest)
    assert sorted(entry.name for entry in folder.iterdir()) == ["again", "kept", "su"]
    assert (folder / "su").stat().st_mode & 0o7777 == 0o755
    assert os.listxattr(folder / "su") == []
    kept = (folder / "again").stat()
    assert (kept.st_mode & 0o7777, kept.st_uid, kept.st_gid, kept.st_mtime) == (0o640, 7, 8, 9)
    assert kept.st_ino == (folder / "kept").stat().st_ino
    assert os.getxattr(folder / "kept", "user.a") == b"b"


def test_a_folder_s_odd_entries_and_links_are_not_copied(store, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text("f")
    (root / "file").chmod(0o4755)
    (root / "out").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe")
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "socket"))
    image = store.ensure(f"dir:{root}")
    assert image.defaults.notes == tuple(f"left out: 1 {what}" for what in ("device nodes", "named pipes", "sockets"))
    folder = store._unpack(image.digest)
    assert sorted(entry.name for entry in folder.iterdir()) == ["file", "out"]
    assert (folder / "file").stat().st_mode & 0o7777 == 0o755
    assert os.readlink(folder / "out") == "/etc/passwd"


def test_a_folder_that_changes_while_it_is_copied_is_refused(store, tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d/file").write_text("f")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_text("s")
    real = sources.pack

    def swapped(tree, target, budget):
        (root / "d").rename(root / "e")
        (root / "d").symlink_to(tmp_path / "secret")
        real(tree, target, budget)

    monkeypatch.setattr(sources, "pack", swapped)
    with pytest.raises(NetspaceError):
        store.ensure(f"dir:{root}")
    assert leftovers(store) == []


def test_a_folder_is_bounded_too(store, tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    with (root / "huge").open("wb") as stream:
        stream.truncate(bounds.BYTES + 1)
    with pytest.raises(NetspaceError, match="more than 16 GiB"):
        store.ensure(f"dir:{root}")
    monkeypatch.setattr(bounds, "ENTRIES", 3)
    (root / "huge").unlink()
    for name in "abc":
        (root / name).touch()
    with pytest.raises(NetspaceError, match="more than 3 files"):
        store.ensure(f"dir:{root}")


def test_an_erofs_file_is_checked_before_the_kernel_sees_it(store, tmp_path, tar, monkeypatch):
    built = tmp_path / "built.erofs"
    shutil.copy(store.file(store.ensure(f"tar:{tar}").digest), built)
    whole = built.read_bytes()
    built.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NetspaceError, match="damaged"):
        store.ensure(f"erofs:{built}")
    root = tmp_path / "bomb"
    root.mkdir()
    (root / "zeros").write_bytes(bytes(4 << 20))
    packed = tmp_path / "bomb.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", "-zlz4", packed, root], check=True, capture_output=True)
    assert packed.stat().st_size < 1 << 20
    monkeypatch.setattr(bounds, "BYTES", 1 << 20)
    with pytest.raises(NetspaceError, match="unpacks to more"):
        store.ensure(f"erofs:{packed}")
    assert leftovers(store, built=1) == []


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
    until(lambda: host.operations.logs("web") == {"lines": ["image"]})
    assert host.sh("web", "id; cat motd") == "uid=4242 gid=4242\nhello"
    assert host.plan({"web": host.desired("web", image=f"oci:{layout_folder}:web", command=[])}).steps == []
    host.run("web", image=f"oci:{layout_folder}:web", command=[], env={"WHO": "declared"}, user=7, working_dir="/bin")
    until(lambda: host.operations.logs("web", 1) == {"lines": ["declared"]})
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
    with pytest.raises(NetspaceError, match="does not match its digest"):
        other_store(store, tmp_path).ensure(f"oci:{copy}:web")


def test_a_full_disk_is_a_clear_error_and_nothing_is_left(store, tmp_path, tar):
    images = store._layout.images
    images.mkdir(parents=True)
    packed = tmp_path / "image.tar.gz"
    packed.write_bytes(gzip.compress(tar.read_bytes()))
    for source in (f"tar:{tar}", f"tar:{packed}"):
        mounts.mount("tmpfs", images, "tmpfs", data="size=512k")
        try:
            with pytest.raises(NetspaceError, match=r"No space left on device.*netspace_image\.prune") as caught:
                store.ensure(source)
            assert source in str(caught.value)
            assert list(images.iterdir()) == []
        finally:
            mounts.unmount(images)
        store.ensure(source)


def test_a_build_that_is_killed_is_made_good_by_the_next_run(host, tmp_path, image):
    code = """
from netspace.environment.images import Store
from netspace.layout import Layout
with Store(Layout()).aside() as aside:
    (aside / "image").write_bytes(b"half")
    print("half", flush=True)
    import time
    time.sleep(600)
"""
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], env=path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        half = process.stdout.readline()
        process.kill()
    assert half == "half\n"
    images = host.layout.images
    assert [path for path in images.iterdir() if path.name.startswith(".building-")]
    host.run("web")
    assert not [path for path in images.iterdir() if path.name.startswith(".")]


def test_what_is_no_regular_file_is_no_source(store, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for scheme in ("tar", "oci", "erofs"):
        for path in (tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(NetspaceError, match="not a regular file"):
                store.ensure(f"{scheme}:{path}")
    with pytest.raises(NetspaceError, match="not a regular file"):
        store.ensure(f"tar:{tmp_path}")


def test_an_image_that_is_asked_for_twice_at_once_is_built_once(tmp_path, tar):
    code = f"""
import sys
from netspace import files
from netspace.environment.images import Store
from netspace.layout import Layout
layout = Layout(root=__import__("pathlib").Path({str(tmp_path / "host")!r}))
print("ready", flush=True)
sys.stdin.readline()
import logging
logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
with files.locked(layout.lock):
    Store(layout).ensure("tar:{tar}")
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum(text.count("building") for text in told) == 1
    assert len(list((tmp_path / "host/var/lib/netspace/images").iterdir())) == 2


def test_a_flipped_byte_is_refused_at_the_mount_and_made_good_as_it_says(host, image):
    want = {"web": host.run("web")}
    digest = host.kind.recorded()["web"].image.digest
    host.kind.stop(["web"])
    file = host.kind.store.file(digest)
    # As after a boot.
    rootfs.dismantle(host.layout, "web")
    mounts.unmount(host.kind.store.mountpoint(digest))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)
    error = host.kind.restore()["web"]
    assert "was changed" in error
    assert f"rm {file}" in error
    assert host.apply(want)["web"].error == error
    file.unlink()
    assert host.apply(want)["web"].error == ""
    assert host.sh("web", "cat /etc/motd") == "hello"


def test_unused_images_stay_until_they_are_pruned(host, tmp_path, image):
    second = tmp_path / "second"
    shutil.copytree(image, second, symlinks=True)
    (second / "etc/motd").write_text("second\n")
    host.run("web")
    first = host.kind.recorded()["web"].image.digest
    host.run("web", image=f"dir:{second}")
    images = Images(host.kind.store, lambda: {r.image.digest: [n] for n, r in host.kind.recorded().items()})
    assert images.list()[f"sha256:{first}"]["used_by"] == []
    assert host.kind.store.file(first).exists()
    host.run("web")
    assert images.list()[f"sha256:{first}"]["used_by"] == ["web"]
    steps = images.plan_prune().steps
    assert [step.name for step in steps] != [f"sha256:{first}"]
    assert [outcome.error for outcome in images.apply_removal(steps)] == [""]
    assert list(images.list()) == [f"sha256:{first}"]
    assert host.sh("web", "cat /etc/motd") == "hello", "what runs is not touched"
    assert images.verify() == {f"sha256:{first}": ""}


def test_a_hash_that_is_declared_later_restarts_nothing(host, tar):
    image = f"tar:{tar}"
    host.run("web", image=image)
    pid = host.pid("web")
    right = sources.of_content(tar)
    (step,) = host.plan({"web": host.desired("web", image=image, source_hash=right)}).steps
    assert step.action == "update"
    host.run("web", image=image, source_hash=right)
    assert host.pid("web") == pid
    wrong = host.plan({"web": host.desired("web", image=image, source_hash="0" * 64)})
    assert wrong.steps == []
    assert "source_hash says" in wrong.refusals[0].message
    assert (
        "source_hash says" in host.apply({"new": host.desired("new", image=image, source_hash="0" * 64)})["new"].error
    )


def test_what_has_a_hash_is_built_as_it_was_hashed(store, tmp_path, monkeypatch):
    """The index of an OCI layout is replaced during a build and restored; the built image is still the hashed one."""
    made = OciLayout()
    for tag in ("right", "wrong"):
        made.tag(made.image([tar_of([member("etc/motd", tag.encode())])], {}), tag)
    folder = made.write(tmp_path / "layout")
    image = f"oci:{folder}:right"
    wanted = store.seen(image).identity.rpartition("sha256:")[2]
    index = folder / "index.json"
    right = index.read_bytes()
    wrong = right.replace(b'"right"', b'"other"').replace(b'"wrong"', b'"right"')
    build = oci.build

    def meanwhile(*arguments):
        index.write_bytes(wrong)
        try:
            return build(*arguments)
        finally:
            index.write_bytes(right)

    digest = other_store(store, tmp_path).ensure(image).digest
    monkeypatch.setattr(oci, "build", meanwhile)
    assert store.ensure(image, wanted).digest == digest


def test_an_image_s_user_is_found_by_name_and_root_is_never_given(host, tmp_path, image):
    layers = [subprocess.run(["tar", "-C", image, "-c", "."], check=True, capture_output=True).stdout]
    layers.append(tar_of([member("etc/passwd", b"shop:x:33:34::/:\nroot:x:0:0::/:\n")]))
    made = OciLayout()
    for user in ("shop", "root"):
        made.tag(made.image(layers, {"User": user, "Entrypoint": ["/bin/sh", "-c"], "Cmd": [STAY]}), user)
    folder = made.write(tmp_path / "layout")
    host.run("shop", image=f"oci:{folder}:shop", command=[])
    host.run("root", image=f"oci:{folder}:root", command=[])
    assert host.sh("shop", "id") == "uid=33(shop) gid=34"
    assert host.sh("root", "id") == "uid=1000 gid=1000"
    assert "netspace never allows" in host.kind.recorded()["root"].image.defaults.notes[0]
    host.run("shop", image=f"oci:{folder}:shop", command=[], args=[f"echo args; {STAY}"], user=1000)
    until(lambda: host.operations.logs("shop", 1) == {"lines": ["args"]})
    assert host.sh("shop", "id") == "uid=1000 gid=1000"


def test_verity_is_used_where_the_file_system_has_it(host, image):
    digest = host.kind.store.ensure(f"dir:{image}").digest
    file = host.kind.store.file(digest)
    measured, why = verity.measure(file)
    if not measured:
        pytest.skip(f"fs-verity: {why}")
    assert measured == f"sha256:{merkle(file.read_bytes())}"
    with pytest.raises(PermissionError):
        file.open("r+b")


def merkle(content: bytes) -> str:
    """Return the fs-verity digest, computed as Documentation/filesystems/fsverity.rst defines it."""
    level = [content[at : at + 4096] for at in range(0, len(content), 4096)]
    hashes = [hashlib.sha256(block.ljust(4096, b"\0")).digest() for block in level]
    while len(hashes) > 1:
        level = [b"".join(hashes[at : at + 128]) for at in range(0, len(hashes), 128)]
        hashes = [hashlib.sha256(block.ljust(4096, b"\0")).digest() for block in level]
    about = bytes([1, 1, 12, 0]) + bytes(4) + len(content).to_bytes(8, "little") + hashes[0].ljust(64, b"\0")
    return hashlib.sha256(about.ljust(256, b"\0")).hexdigest()


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_what_skopeo_makes_of_an_image_is_that_image(store, tmp_path, layout_folder, kind):
    made = tmp_path / "made.tar"
    command = ["skopeo", "copy", f"oci:{layout_folder}:web", f"{kind}:{made}:shop:web"]
    subprocess.run(command, check=True, capture_output=True)
    first = store.ensure(f"oci:{layout_folder}:web")
    again = other_store(store, tmp_path).ensure(f"oci:{made}:web")
    assert again.digest == first.digest
    assert (again.defaults.entrypoint, again.defaults.user) == (first.defaults.entrypoint, 4242)


def test_umoci_s_layers_are_put_together_as_umoci_does(store, tmp_path, layout_folder):
    layout = tmp_path / "layout"
    shutil.copytree(layout_folder, layout)
    image = f"{layout}:web"
    bundle = tmp_path / "bundle"
    run = lambda *command: subprocess.run(command, check=True, capture_output=True)  # noqa: E731
    run("umoci", "unpack", "--image", image, bundle)
    (bundle / "rootfs/etc/motd").unlink()
    shutil.rmtree(bundle / "rootfs/bin")
    (bundle / "rootfs/bin").mkdir()
    (bundle / "rootfs/bin/new").write_text("new")
    (bundle / "rootfs/link").symlink_to("etc")
    run("umoci", "repack", "--image", image, bundle)
    run("umoci", "raw", "unpack", "--image", image, tmp_path / "expected")
    folder = store._unpack(store.ensure(f"oci:{image}").digest)

    def listed(root: Path) -> dict[str, object]:
        return {
            str(path.relative_to(root)): (
                path.lstat().st_mode,
                path.lstat().st_uid,
                path.is_file() and path.read_bytes(),
            )
            for path in root.rglob("*")
        }

    assert listed(folder) == listed(tmp_path / "expected")
