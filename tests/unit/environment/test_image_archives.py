"""Archives of images: accepted, refused and omitted members. Needs no root and no disk."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import random
import shutil
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.environments.image_files import hard, member, tar

from netspace.environment.images import archive, bounds, sources, streams
from netspace.environment.images.bounds import Budget
from netspace.environment.images.sources import dir as folders
from netspace.environment.images.tree import FILE, FOLDER, LINK, Node, Tree, printable
from netspace.errors import NetspaceError


def read(*layers: bytes, layer: bool = False, folder: Path | None = None) -> Tree:
    """Return the tree of these archives; each archive overlays the earlier ones."""
    budget = Budget("test")
    tree = Tree(budget)
    for content in layers:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the tree)
        file.write(content)
        file.flush()
        with streams.reader(sources.whole(file), budget, folder or Path("/tmp")) as reader:
            tree.apply(archive.members(reader, budget), layer=layer)
    return tree


def paths(tree: Tree) -> dict[str, str]:
    """Return every path except the root, with a file's content, a link's target (``-> target``), or ``/``."""
    shown = {}
    for path, node in tree.walk():
        if node.kind == FILE:
            shown[path.decode()] = b"".join(node.content.chunks()).decode() if node.content else ""
        else:
            shown[path.decode()] = f"-> {node.target.decode()}" if node.kind == LINK else "/"
    del shown["."]
    return shown


def canonical(tree: Tree) -> str:
    state = hashlib.sha256()
    tree.write(state.update)
    return state.hexdigest()


def refused(*layers: bytes, layer: bool = False) -> str:
    with pytest.raises(NetspaceError) as caught:
        read(*layers, layer=layer)
    assert str(caught.value).startswith("image source test: ")
    return str(caught.value)


# -- what is read ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_dialect_says_the_same(kind):
    deep = "/".join(["folder"] * 12)
    members = [
        member("./"),
        member("bin/"),
        member("bin/sh", b"#!", mode=0o755, uid=7, gid=8, mtime=9),
        member(f"{deep}/file", b"x"),
        member("link", linkname="/bin/sh"),
        hard("again", "bin/sh"),
    ]
    if kind != tarfile.USTAR_FORMAT:
        members += [member("n" * 200, b"long"), member("far", linkname="t" * 300)]
    tree = read(tar(members, kind))
    found = paths(tree)
    assert found["bin/sh"] == found["again"] == "#!"
    assert found[f"{deep}/file"] == "x"
    assert found["link"] == "-> /bin/sh"
    node = tree.find(b"again")
    assert (node.mode, node.uid, node.gid, node.mtime) == (0o755, 7, 8, 9)
    assert node is tree.find(b"bin/sh")
    if kind != tarfile.USTAR_FORMAT:
        assert found["n" * 200] == "long"
        assert found["far"] == f"-> {'t' * 300}"


def test_a_real_tar_is_read_as_tar_packed_it(tmp_path):
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_bytes(b"content" * 1000)
    (root / "a/hard").hardlink_to(root / "a/b/file")
    (root / "link").symlink_to("../../etc/passwd")
    (root / ("x" * 99)).write_text("long name")
    for form in ("gnu", "pax", "ustar"):
        packed = subprocess.run(["tar", "-C", root, f"--format={form}", "-c", "."], check=True, capture_output=True)
        found = paths(read(packed.stdout))
        assert found["a/b/file"] == found["a/hard"] == "content" * 1000
        assert found["link"] == "-> ../../etc/passwd"
        assert found["x" * 99] == "long name"


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, "zstd", lambda data: data])
def test_each_compression_gives_the_same(pack, tmp_path):
    plain = tar([member("a", b"a" * 100_000), member("b/", mtime=3), member("b/c", b"c")])
    if pack == "zstd":
        packed = subprocess.run(["zstd", "-q", "-c"], input=plain, check=True, capture_output=True).stdout
    else:
        packed = pack(plain)
    assert canonical(read(packed, folder=tmp_path)) == canonical(read(plain))
    assert list(tmp_path.iterdir()) == [], "nothing has a name"


def test_xz_streams_may_follow_each_other():
    plain = tar([member("a", b"a" * 5000)])
    packed = lzma.compress(plain[:700]) + bytes(8) + lzma.compress(plain[700:])
    assert canonical(read(packed)) == canonical(read(plain))


# -- the same is the same ----------------------------------------------------------------

NAMES = st.text("abc", min_size=1, max_size=2)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(PATHS, st.binary(max_size=700), max_size=8), st.randoms(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_the_order_of_members_means_nothing(wanted, order, form):
    folders = {parent for path in wanted for parent in _parents(path)}
    members = [member(f"{path}/", mtime=5) for path in folders]
    members += [member(path, content, mtime=len(path)) for path, content in wanted.items() if path not in folders]
    first = canonical(read(tar(members)))
    order.shuffle(members)
    for info, _ in members:
        info.name = ("./", "", "/", ".//")[form] + info.name
    formats = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT)
    assert canonical(read(tar(members, formats[form]))) == first


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def test_fractions_of_a_second_owners_names_and_unknown_records_mean_nothing():
    plain = canonical(read(tar([member("a", b"x", mtime=5)])))
    odd = member("a", b"x", mtime=5, uname="bin", gname="games", pax_headers={"mtime": "5.75", "comment": "hello"})
    assert canonical(read(tar([odd]))) == plain
    assert canonical(read(tar([member("a", b"x", mtime=6)]))) != plain
    assert canonical(read(tar([member("a", b"x", mtime=5, mode=0o755)]))) != plain


def test_a_folder_is_the_same_whatever_its_times_and_order(tmp_path):
    names = [f"file{number}" for number in range(40)]
    for copy in ("one", "two"):
        root = tmp_path / copy
        root.mkdir()
        random.Random(copy).shuffle(names)
        for name in names:
            (root / name).write_text(name)
        (root / "hard").hardlink_to(root / "file7")
        (root / "link").symlink_to("/nowhere")
    assert folders.identity(str(tmp_path / "one")) == folders.identity(str(tmp_path / "two"))
    (tmp_path / "two/file3").chmod(0o600)
    assert folders.identity(str(tmp_path / "one")) != folders.identity(str(tmp_path / "two"))


def test_the_last_of_two_members_counts():
    tree = read(
        tar([member("a", b"1"), member("d/"), member("d/x", b"x"), hard("h", "a"), member("a", b"2"), member("d/")])
    )
    assert paths(tree) == {"a": "2", "h": "1", "d": "/", "d/x": "x"}
    assert paths(read(tar([member("d/"), member("d/x"), member("d", b"now a file")]))) == {"d": "now a file"}


# -- whiteouts -----------------------------------------------------------------------------


@given(st.randoms())
def test_whiteouts_hide_what_lies_below_wherever_they_stand(order):
    below = tar(
        [member("d/"), member("d/old", b"1"), member("d/kept", b"k"), member("o/"), member("o/a"), member("o/s/")]
    )
    members = [
        member("d/.wh.old"),
        member("d/new", b"n"),
        member("o/.wh..wh..opq"),
        member("o/b", b"b"),
        member(".wh..wh.plnk"),
        member(".wh.nothing"),
        member("d/.wh.again"),
        member("d/again", b"this layer's own"),
    ]
    order.shuffle(members)
    tree = read(below, tar(members), layer=True)
    assert paths(tree) == {
        "d": "/",
        "d/kept": "k",
        "d/new": "n",
        "d/again": "this layer's own",
        "o": "/",
        "o/b": "b",
    }


def test_a_folder_that_comes_back_is_empty():
    below = tar([member("d/", mode=0o700), member("d/old", b"1")])
    assert paths(read(below, tar([member("d/"), member(".wh.d")]), layer=True)) == {"d": "/"}
    # A file over a folder, and a folder over a link, are the new one alone.
    assert paths(read(below, tar([member("d", b"f")]), layer=True)) == {"d": "f"}
    assert paths(read(tar([member("l", linkname="d")]), tar([member("l/"), member("l/x")]), layer=True)) == {
        "l": "/",
        "l/x": "",
    }


def test_outside_of_layers_a_whiteout_is_a_file():
    assert paths(read(tar([member("d/.wh.x", b"w"), member("d/x", b"x")]))) == {"d": "/", "d/.wh.x": "w", "d/x": "x"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "../.wh.x", "a/../.wh.x"])
def test_a_whiteout_of_nothing_or_of_elsewhere_is_refused(name):
    refused(tar([member("x")]), tar([member(name)]), layer=True)


def test_a_layer_writes_through_the_links_of_those_below_but_never_out():
    below = tar([member("usr/lib/"), member("lib", linkname="usr/lib"), member("up", linkname="../../../../usr")])
    tree = read(below, tar([member("lib/a", b"a"), member("up/b", b"b"), hard("lib/c", "lib/a")]), layer=True)
    assert {path: text for path, text in paths(tree).items() if path.startswith("usr/")} == {
        "usr/lib": "/",
        "usr/lib/a": "a",
        "usr/lib/c": "a",
        "usr/b": "b",
    }


# -- refused or made harmless, kind by kind ---------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "a/..", "./../x", "a/b/../../../etc/passwd"])
def test_what_leads_out_is_refused(name):
    assert "leads out" in refused(tar([member(name, b"x")]))
    assert "leads out" in refused(tar([member("a", b"x"), hard("h", name)]))


def test_an_absolute_name_is_meant_within():
    assert paths(read(tar([member("/etc/passwd", b"x")]))) == {"etc": "/", "etc/passwd": "x"}


def test_links_are_followed_within_only():
    tree = read(tar([member("a", linkname="../../.."), member("a/etc/x", b"x"), member("b", linkname="/a/etc")]))
    assert paths(tree) == {"a": "-> ../../..", "b": "-> /a/etc", "etc": "/", "etc/x": "x"}
    assert tree.find(b"b/x") is tree.find(b"etc/x")
    loop = tar([member("a", linkname="b"), member("b", linkname="a"), member("a/x", b"x")])
    assert "too many symbolic links" in refused(loop)


@pytest.mark.parametrize("target", ["nothing", "/etc/shadow", "d", "later"])
def test_a_hard_link_to_nothing_or_to_a_folder_is_refused(target):
    assert "hard link" in refused(tar([member("d/"), hard("h", target), member("later", b"x")]))


def test_what_lies_below_a_file_is_refused():
    refused(tar([member("a", b"x"), member("a/b", b"y")]))
    refused(tar([member("a", b"x"), member("l", linkname="a"), member("l/b", b"y")]))


@pytest.mark.parametrize(
    ("kind", "what"),
    [(tarfile.CHRTYPE, "device nodes"), (tarfile.BLKTYPE, "device nodes"), (tarfile.FIFOTYPE, "named pipes")],
)
def test_devices_and_pipes_are_left_out(kind, what):
    tree = read(tar([member("dev/null", b""), member("dev/null", type=kind, devmajor=1, devminor=3), member("a")]))
    assert paths(tree) == {"dev": "/", "a": ""}
    assert tree.notes() == (f"left out: 1 {what}",)


def test_special_bits_and_attributes_are_dropped():
    attributes = {
        "SCHILY.xattr.security.capability": "\x01\x00\x00\x02",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.overlay.whiteout": "y",
        "SCHILY.xattr.system.posix_acl_access": "x",
        "SCHILY.xattr.user.kept": "1",
    }
    tree = read(tar([member("su", b"x", mode=0o6755, pax_headers=attributes), member("t/", mode=0o3777)]))
    assert tree.find(b"su").mode == 0o755
    assert tree.find(b"t").mode == 0o1777
    assert tree.find(b"su").xattrs == ((b"user.kept", b"1"),)


def test_sparse_files_are_refused(tmp_path):
    with (tmp_path / "s").open("wb") as stream:
        stream.truncate(1 << 40)
    for form in ("gnu", "pax"):
        packed = subprocess.run(
            ["tar", "-C", tmp_path, f"--format={form}", "--sparse", "-c", "s"], check=True, capture_output=True
        ).stdout
        assert "sparse" in refused(packed)


def test_what_is_kept_in_memory_is_bounded(monkeypatch, tmp_path):
    """Archives and folders whose names or attributes would take too much memory are refused.

    A few megabytes of compressed zeros may unpack to gigabytes of attributes.
    """
    monkeypatch.setattr(bounds, "NAMES", 50_000)

    def attribute(number):
        one = member(f"f{number}", b"")
        one[0].pax_headers = {"SCHILY.xattr.user.a": "x" * 10_000}
        return one

    assert paths(read(tar([attribute(number) for number in range(4)])))
    assert "more than 0 MiB" in refused(gzip.compress(tar([attribute(number) for number in range(6)])))
    assert "more than 0 MiB" in refused(tar([member("n" * 200 + str(number), b"") for number in range(300)]))
    for number in range(20):
        (tmp_path / f"link{number}").symlink_to("t" * 3000)
    with pytest.raises(NetspaceError, match="more than 0 MiB"):
        folders.identity(str(tmp_path))


@pytest.mark.parametrize("kind", [b"M", b"V", b"D", b"N", b"S", b"z", b"\xff", b"8"])
def test_unknown_types_are_refused(kind):
    refused(tar([member("a", type=kind)]))


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_data_in_what_can_have_none_is_refused(kind):
    info, content = member("a", bytes(512), type=kind)
    info.linkname = "b" if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else ""
    assert "data" in refused(tar([member("b"), (info, content)]))


@pytest.mark.parametrize(
    "records",
    [
        {"size": "-1"},
        {"size": "1e9"},
        {"uid": "-5"},
        {"gid": "99999999999"},
        {"mtime": "soon"},
        {"path": "a\0b"},
        {"GNU.sparse.major": "1"},
        {"GNU.sparse.name": "x"},
    ],
)
def test_lies_in_extended_headers_are_refused(records):
    refused(tar([member("a", b"", pax_headers=records)]))


def test_a_header_for_all_members_can_t_name_or_size_them():
    for key in ("path", "linkpath", "size"):
        header = tarfile.TarInfo.create_pax_global_header({key: "1"})
        assert "global" in refused(header + tar([member("a")]))
    comment = tarfile.TarInfo.create_pax_global_header({"comment": "of git archive"})
    assert paths(read(comment + tar([member("a")]))) == {"a": ""}


def test_times_that_no_file_has_are_moved():
    late = member("late", mtime=2**40, pax_headers={})
    early = member("early", pax_headers={"mtime": "-5"})
    tree = read(tar([late, early], tarfile.PAX_FORMAT))
    assert (tree.find(b"late").mtime, tree.find(b"early").mtime) == (bounds.TIME, 0)


# -- bounds ---------------------------------------------------------------------------------


def test_too_deep_or_too_long_is_refused():
    assert "deep" in refused(tar([member("d/" * (bounds.DEPTH + 1) + "x", b"")]))
    paths(read(tar([member("d/" * (bounds.DEPTH - 1) + "x", b"")])))
    assert "name" in refused(tar([member("n" * (bounds.NAME + 1), b"")]))
    paths(read(tar([member("n" * bounds.NAME, b"")])))
    assert "path" in refused(tar([member("/".join(["n" * 200] * 21), b"")]))
    assert "symbolic link" in refused(tar([member("l", linkname="t" * (bounds.PATH + 1))]))


def test_links_don_t_make_it_deeper_than_that():
    half = "/".join(["d"] * (bounds.DEPTH // 2 + 1))
    members = [member(f"{half}/"), member("l", linkname=half), member(f"l/{half}/x", b"x")]
    assert "deep" in refused(tar(members))


def test_links_don_t_make_it_longer_than_that():
    far = "/".join(["n" * 200] * 12)
    members = [member(f"{far}/"), member("l", linkname=far), member(f"l/{far}/x", b"x")]
    assert f"more than {bounds.PATH} bytes" in refused(tar(members))


def test_too_many_files_are_refused(monkeypatch):
    monkeypatch.setattr(bounds, "ENTRIES", 20)
    read(tar([member(f"{number}") for number in range(20)]))
    assert "20 files" in refused(tar([member(f"{number}") for number in range(21)]))
    # Folders that nobody names count too, and so do both layers together.
    assert "20 files" in refused(tar([member("/".join("abcdefghijklmnopqrstuvw"))]))
    assert "20 files" in refused(*(tar([member(f"{n}{m}") for m in range(11)]) for n in range(2)))


def test_too_many_lookups_are_refused(monkeypatch):
    monkeypatch.setattr(bounds, "LOOKUPS", 50)
    refused(tar([member("d/"), member("l", linkname="d"), *(member(f"l/{number}") for number in range(60))]))


def test_too_many_bytes_are_refused_before_they_are_on_disk(monkeypatch):
    monkeypatch.setattr(bounds, "BYTES", 1 << 20)
    # Plain: by what the header says alone. Compressed: as soon as they come out.
    assert "unpacks to more" in refused(tar([member("a", bytes(900_000)), member("b", bytes(900_000))]))
    assert "unpacks to more" in refused(gzip.compress(tar([member("a", bytes(3 << 20))])))


@pytest.mark.parametrize("kind", ["gzip", "xz", "bzip2", "zstd"])
def test_a_bomb_is_refused_as_such(kind, monkeypatch):
    monkeypatch.setattr(bounds, "UNRATED", 1 << 20)
    plain = tar([member("zeros", bytes(64 << 20))])
    tool = {"gzip": ["gzip", "-9c"], "xz": ["xz", "-c"], "bzip2": ["bzip2", "-9c"], "zstd": ["zstd", "-q19c"]}[kind]
    if shutil.which(tool[0]) is None:
        pytest.skip(f"{tool[0]} is not installed")
    packed = subprocess.run(tool, input=plain, check=True, capture_output=True).stdout
    assert "a decompression bomb" in refused(packed)


def test_a_stream_that_asks_for_much_memory_is_refused():
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    packed = lzma.compress(tar([member("a")]), filters=filters)
    assert "damaged archive" in refused(packed)
    # --long=30 makes a window of a GiB, of which a stream of unknown length says nothing else.
    command = ["zstd", "-q", "--long=30", "-1", "-c"]
    packed = subprocess.run(command, input=tar([member("a")]), check=True, capture_output=True).stdout
    assert "damaged archive" in refused(packed)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_huge_extended_headers_are_refused(kind):
    info, content = member("n" * 300_000)
    assert "extended headers" in refused(tar([(info, content)], kind))
    # Said to be huge, and not there.
    header = tarfile.TarInfo("./PaxHeaders")
    header.type, header.size = tarfile.XHDTYPE, 1 << 60
    assert "extended headers" in refused(header.tobuf(tarfile.GNU_FORMAT))
    # Many small ones before one member.
    one = tarfile.TarInfo("././@LongLink")
    one.type, one.size = tarfile.GNUTYPE_LONGNAME, 100_000
    assert "extended headers" in refused((one.tobuf(tarfile.GNU_FORMAT) + b"n" * 100_000 + bytes(352)) * 3)


def test_extended_headers_don_t_count_as_files_but_are_bounded(monkeypatch):
    monkeypatch.setattr(bounds, "ENTRIES", 20)
    read(tar([member(f"{number}", pax_headers={"comment": "x"}) for number in range(20)]))
    empty = tarfile.TarInfo("x")
    empty.type = tarfile.XHDTYPE
    assert "extended headers" in refused(empty.tobuf(tarfile.GNU_FORMAT) * 100)


# -- damage -----------------------------------------------------------------------------------


def test_every_cut_archive_is_refused():
    whole = tar([member("a", b"a" * 700), member("b/"), member("n" * 200, b"b")])
    packed = gzip.compress(whole)
    for end in range(0, len(whole) - 1024, 256):
        refused(whole[:end])
    for end in range(0, len(packed) - 1, 7):
        refused(packed[:end])


def test_what_follows_the_end_is_not_read():
    whole = tar([member("a", b"1")])
    assert paths(read(whole + tar([member("a", b"2")]))) == {"a": "1"}


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_comes_is_read_or_refused(data):
    """Damaged archives and random bytes give a limited tree, or one clear error; no other exception is raised."""
    members = [
        member("a", b"a" * 600),
        member("d/"),
        member("n" * 150, b"b"),
        member("l", linkname="a"),
        hard("h", "a"),
    ]
    whole = bytearray(tar(members, data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(whole) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=12))
        whole[at : at + len(piece)] = piece
    if data.draw(st.booleans()):
        _sum(whole)
    pack = data.draw(st.sampled_from([bytes, gzip.compress, bz2.compress]))
    try:
        tree = read(pack(bytes(whole)))
    except NetspaceError:
        return
    for path, node in tree.walk():
        assert b".." not in path.split(b"/")
        assert not path.startswith(b"/")
        assert len(path) <= bounds.PATH
        assert node.kind in (FILE, FOLDER, LINK)
        assert not node.mode & (stat.S_ISUID | stat.S_ISGID)
    canonical(tree)


def _sum(whole: bytearray) -> None:
    """Correct the checksums of all headers, so that the reader doesn't stop at them."""
    for at in range(0, len(whole), 512):
        block = whole[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            whole[at + 148 : at + 156] = b"%06o\0 " % sum(block)


@given(st.binary(max_size=3000))
@settings(deadline=None)
def test_garbage_is_refused(garbage):
    try:
        read(garbage)
    except NetspaceError:
        return
    assert not garbage.strip(b"\0")[:1] or garbage[:512] == bytes(512)


@given(st.lists(st.tuples(PATHS, st.sampled_from("fdlh"), PATHS), max_size=12), st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_tree_reaches_beyond_its_root(steps, layer):
    """Archives with folders, files, links and hard links in any order give the same tree as a real tar in a chroot."""
    made = {
        "f": lambda name, other: member(name, other.encode()),
        "d": lambda name, other: member(f"{name}/"),
        "l": lambda name, other: member(name, linkname=f"{'../' * 3}{other}"),
        "h": hard,
    }
    try:
        tree = read(tar(made[kind](name, other) for name, kind, other in steps), layer=layer)
    except NetspaceError:
        return
    seen = set()
    for path, node in tree.walk():
        assert path not in seen
        seen.add(path)
        if path != b"." and b"/" in path:
            assert path.rpartition(b"/")[0] in seen
        assert node.children == {} or node.kind == FOLDER
    # What was written is what it says: read again, it is the same.
    written = io.BytesIO()
    tree.write(written.write)
    assert canonical(read(written.getvalue())) == canonical(tree)


def test_names_are_shown_without_tricks():
    assert printable(b"a\x1b[31m\nb\xff") == "a\\x1b[31m\\nb\\xff"
    assert len(printable(b"x" * 5000)) < 300


def test_a_name_of_any_bytes_comes_back():
    name = b"n\xff\xfe\n".decode("utf-8", "surrogateescape")
    tree = read(
        tar([member(name, b"x", pax_headers={"SCHILY.xattr.user.b": b"\xff\n=".decode("utf-8", "surrogateescape")})])
    )
    written = io.BytesIO()
    tree.write(written.write)
    again = read(written.getvalue())
    assert again.find(b"n\xff\xfe\n").xattrs == ((b"user.b", b"\xff\n="),)
    assert canonical(again) == canonical(tree)


def test_a_node_is_harmless_by_itself():
    node = Node(FILE, mode=0o7777, mtime=-1, xattrs=((b"security.capability", b"x"),))
    assert (node.mode, node.mtime, node.xattrs) == (0o1777, 0, ())
