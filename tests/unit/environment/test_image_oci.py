"""OCI images: selection of an image by its tag, checks of blobs and layers, and the settings for its program."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.environments.image_files import MACHINE, Layout, member, saved, sha256, tar

from netspace.environment.images import bounds, sources, users
from netspace.environment.images.sources import oci
from netspace.environment.images.tree import FILE, Tree
from netspace.errors import NetspaceError

PASSWD = b"root:x:0:0::/:/bin/sh\nshop:x:33:34::/:/bin/sh\ntoor:x:0:0::/:\nfar:x:70000:70000::/:\nbad\n:::\n"
GROUP = b"root:x:0:\nsales:x:77:shop\n"
LOWER = tar([member("etc/"), member("etc/passwd", PASSWD), member("etc/group", GROUP), member("gone", b"g")])
UPPER = tar([member(".wh.gone"), member("app", b"app")])


@pytest.fixture
def packed(monkeypatch):
    """Collect the trees that would become erofs files, in order."""
    trees: list[dict[str, str]] = []

    def keep(tree: Tree, target: Path, budget: Any) -> None:
        trees.append(
            {path.decode(): b"".join(node.content.chunks()).decode() for path, node in tree.walk() if node.kind == FILE}
        )

    monkeypatch.setattr(sources, "pack", keep)
    return trees


def build(location: Any, scratch: Path) -> sources.Defaults:
    return oci.build(str(location), scratch / "target", scratch)


def layout(**config: Any) -> Layout:
    made = Layout()
    made.tag(made.image([LOWER, UPPER], config), "web")
    return made


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=content, check=True, capture_output=True).stdout


@pytest.mark.parametrize("pack", [gzip.compress, zstd, bytes])
def test_layers_are_put_together_from_a_folder_or_a_tar(packed, tmp_path, pack):
    made = Layout()
    made.tag(made.image([LOWER, UPPER], {"Cmd": ["/app"]}, pack=pack), "web")
    (tmp_path / "web.tar").write_bytes(made.archive())
    (tmp_path / "web.tar.gz").write_bytes(gzip.compress(made.archive()))
    (tmp_path / "saved.tar").write_bytes(saved([LOWER, UPPER], ["example.org/shop:web"], {"Cmd": ["/app"]}))
    folder = made.write(tmp_path / "layout")
    for source in (folder, tmp_path / "web.tar", tmp_path / "web.tar.gz", tmp_path / "saved.tar"):
        assert build(f"{source}:web", tmp_path).cmd == ("/app",)
        assert build(source, tmp_path).cmd == ("/app",), "the only image needs no tag"
    assert all(tree == {"etc/passwd": PASSWD.decode(), "etc/group": GROUP.decode(), "app": "app"} for tree in packed)
    assert len(packed) == 8


def test_the_identity_is_the_manifest_s_or_the_archive_s(tmp_path):
    made = layout()
    folder = made.write(tmp_path / "layout")
    digest = made.entries[0]["digest"]
    assert oci.identity(f"{folder}:web") == oci.fingerprint(f"{folder}:web") == f"manifest:{digest}"
    (tmp_path / "web.tar").write_bytes(made.archive())
    assert oci.identity(f"{tmp_path}/web.tar:web") == sha256(made.archive())


def test_the_tag_says_which(packed, tmp_path):
    made = Layout()
    for name in ("a", "b", "latest", "b", "example.org/x:c", "example.org/y:d", "example.org/z:d"):
        made.tag(made.image([tar([member("is", name.encode())])]), name)
    folder = made.write(tmp_path)
    for tag in ("a", "c", "latest"):
        build(f"{folder}:{tag}", tmp_path)
    build(folder, tmp_path)
    assert [tree["is"] for tree in packed] == ["a", "example.org/x:c", "latest", "latest"]
    for tag in ("b", "d", "e"):
        with pytest.raises(NetspaceError, match="no single image is tagged"):
            build(f"{folder}:{tag}", tmp_path)


def test_an_index_is_asked_for_this_machine(packed, tmp_path):
    made = Layout()
    ours, other = (
        made.image([tar([member("is", name)])], machine=name.decode()) for name in (MACHINE.encode(), b"mips")
    )
    attestation = {**other, "platform": {"os": "unknown", "architecture": "unknown"}}
    made.tag(made.index([attestation, other, made.index([ours])]), "web")
    made.tag(made.index([other]), "other")
    made.tag(other, "plain")
    folder = made.write(tmp_path)
    build(f"{folder}:web", tmp_path)
    assert packed == [{"is": MACHINE}]
    for tag, message in (("other", f"no image for linux on {MACHINE}"), ("plain", "is for linux on mips")):
        with pytest.raises(NetspaceError, match=message):
            build(f"{folder}:{tag}", tmp_path)
    loop = ours
    for _ in range(9):
        loop = made.index([loop])
    made.tag(loop, "deep")
    with pytest.raises(NetspaceError, match="indexes nested too deep"):
        build(f"{made.write(tmp_path)}:deep", tmp_path)


def test_every_flipped_byte_of_a_blob_is_refused(packed, tmp_path):
    made = layout()
    for name, content in list(made.files.items()):
        if not name.startswith("blobs/"):
            continue
        for at in range(0, len(content), 37):
            flipped = bytearray(content)
            flipped[at] ^= 1
            (made.write(tmp_path / "layout") / name).write_bytes(flipped)
            with pytest.raises(NetspaceError, match="does not match its digest"):
                build(f"{tmp_path}/layout:web", tmp_path)
    assert packed == []


@pytest.mark.parametrize("change", [lambda blob: blob[:4] + b"\1" + blob[5:], lambda blob: blob + gzip.compress(b"")])
def test_a_layer_that_unpacks_to_the_same_is_another_all_the_same(packed, tmp_path, change):
    made = layout()
    name = max((name for name in made.files if "blobs" in name), key=lambda name: made.files[name][:1] == b"\x1f")
    blob = made.files[name]
    made.files[name] = change(blob)
    assert gzip.decompress(made.files[name]) == gzip.decompress(blob)
    with pytest.raises(NetspaceError, match="does not match its digest"):
        build(f"{made.write(tmp_path)}:web", tmp_path)


def test_a_saved_image_is_checked_by_what_its_config_says(packed, tmp_path):
    whole = saved([LOWER, UPPER], ["shop:web"])
    for text in (b'"architecture"', b"app:x:33"):
        at = whole.index(text) if text in whole else whole.index(b"shop:x:33")
        flipped = bytearray(whole)
        flipped[at + 1] ^= 1
        (tmp_path / "a.tar").write_bytes(flipped)
        with pytest.raises(NetspaceError, match="does not match its digest"):
            build(f"{tmp_path}/a.tar:web", tmp_path)
    assert packed == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made.files.pop("index.json"), "neither"),
        (lambda made: made.files.update({"index.json": b"{"}), "index.json"),
        (lambda made: made.files.update({"index.json": b"[" * 100_000}), "index.json"),
        (lambda made: made.files.update({"index.json": b"[]"}), "not a JSON object"),
        (lambda made: made.files.update({"index.json": b" " * (bounds.JSON + 1)}), "more than"),
        (lambda made: made.files.pop(next(name for name in made.files if "blobs" in name)), "missing"),
    ],
)
def test_half_a_layout_is_refused(packed, tmp_path, change, message):
    made = layout()
    change(made)
    (tmp_path / "web.tar").write_bytes(made.archive())
    with pytest.raises(NetspaceError, match=message):
        build(f"{tmp_path}/web.tar:web", tmp_path)


def test_a_half_copied_archive_is_refused(packed, tmp_path):
    whole = layout().archive()
    for end in range(0, len(whole) - 1024, 512):
        (tmp_path / "web.tar").write_bytes(whole[:end])
        with pytest.raises(NetspaceError, match="copied in full"):
            build(f"{tmp_path}/web.tar:web", tmp_path)


def test_too_many_layers_or_none_or_odd_ones_are_refused(packed, tmp_path):
    made = Layout()
    made.tag(made.image([LOWER] * (bounds.LAYERS + 1)), "many")
    made.tag(made.image([]), "none")
    odd = made.image([LOWER])
    manifest = json.loads(made.files[f"blobs/sha256/{odd['digest'][7:]}"])
    manifest["layers"][0]["mediaType"] += "+encrypted"
    made.tag({**made.blob(json.dumps(manifest).encode(), odd["mediaType"])}, "odd")
    folder = made.write(tmp_path)
    for tag, message in (("many", "more than 128 layers"), ("none", "no layers"), ("odd", "unknown kind")):
        with pytest.raises(NetspaceError, match=message):
            build(f"{folder}:{tag}", tmp_path)


def test_no_name_in_an_archive_reaches_the_host(packed, tmp_path):
    (tmp_path / "secret.tar").write_bytes(LOWER)
    about = json.dumps({"rootfs": {"diff_ids": [sha256(LOWER)]}}).encode()
    for name in (f"{tmp_path}/secret.tar", "../secret.tar", "link"):
        manifest = [{"Config": "c.json", "RepoTags": ["x:web"], "Layers": [name]}]
        (tmp_path / "a.tar").write_bytes(
            tar(
                [
                    member("c.json", about),
                    member("link", linkname=f"{tmp_path}/secret.tar"),
                    member("manifest.json", json.dumps(manifest).encode()),
                ]
            )
        )
        with pytest.raises(NetspaceError, match="missing"):
            build(f"{tmp_path}/a.tar:web", tmp_path)


def test_a_folder_is_a_layout_or_nothing(packed, tmp_path):
    """An unpacked archive of ``docker save`` is refused, because its paths could lead out of the folder."""
    (tmp_path / "secret.tar").write_bytes(LOWER)
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "c.json").write_text(json.dumps({"rootfs": {"diff_ids": [sha256(LOWER)]}}))
    manifest = [{"Config": "c.json", "RepoTags": ["x:web"], "Layers": ["../secret.tar"]}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(NetspaceError, match="neither an OCI layout"):
        build(f"{folder}:web", tmp_path)
    with pytest.raises(NetspaceError, match="is this an OCI layout"):
        oci.fingerprint(f"{folder}:web")


def test_a_layer_bomb_is_refused(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "UNRATED", 1 << 20)
    made = Layout()
    made.tag(made.image([tar([member("zeros", bytes(32 << 20))])]), "web")
    with pytest.raises(NetspaceError, match="a decompression bomb"):
        build(f"{made.write(tmp_path)}:web", tmp_path)


# -- how to run it ---------------------------------------------------------------------------


def test_what_the_config_says_is_kept(packed, tmp_path):
    folder = layout(
        Entrypoint=["/app"],
        Cmd=["serve", ""],
        Env=["A=1", "B=x=y", "bad-name=1", "NOEQUALS"],
        WorkingDir="/srv/../etc/",
        User="shop:sales",
    ).write(tmp_path)
    found = build(f"{folder}:web", tmp_path)
    assert (found.entrypoint, found.cmd, found.env) == (("/app",), ("serve", ""), (("A", "1"), ("B", "x=y")))
    assert (found.working_dir, found.user, found.group, found.notes) == ("/etc", 33, 77, ())


@pytest.mark.parametrize(
    ("user", "ids", "note"),
    [
        ("", (0, 0), "names no user"),
        ("0", (0, 0), "root, which netspace never allows"),
        ("root", (0, 0), "root, which netspace never allows"),
        ("toor:sales", (0, 0), "root, which netspace never allows"),
        ("nobody", (0, 0), "not in its /etc/passwd"),
        ("shop:nobody", (0, 0), "not in its /etc/group"),
        ("far", (0, 0), "beyond 65535"),
        ("4242:70000", (0, 0), "beyond 65535"),
        ("shop", (33, 34), ""),
        ("33", (33, 34), ""),
        ("4242", (4242, 4242), ""),
        ("4242:sales", (4242, 77), ""),
        ("4242:5", (4242, 5), ""),
        ("shop:0", (33, 33), "its group is root's"),
        ("00", (0, 0), "root, which netspace never allows"),
    ],
)
def test_users_by_number_and_by_name_but_never_root(packed, tmp_path, user, ids, note):
    folder = layout(User=user).write(tmp_path)
    found = build(f"{folder}:web", tmp_path)
    assert (found.user, found.group) == ids
    assert (note in " ".join(found.notes)) if note else found.notes == ()


@given(st.text(), st.binary(max_size=200), st.binary(max_size=200))
def test_whatever_passwd_says_nobody_is_root(user, passwd, group):
    uid, gid, note = users.resolve(user, lambda path, most: passwd if path == "/etc/passwd" else group)
    assert (0 < uid <= 65535 and 0 < gid <= 65535) or (uid == gid == 0 and note)


def test_passwd_is_found_through_the_image_s_own_links_only(packed, tmp_path):
    made = Layout()
    layer = tar([member("etc/"), member("etc/passwd", linkname="../../../../../etc/passwd")])
    made.tag(made.image([layer], {"User": "daemon"}), "web")
    assert build(f"{made.write(tmp_path)}:web", tmp_path).user == 0
