"""The image store, and operators' actions on it, with a test source: no root, no mkfs.erofs."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import types
from pathlib import Path

import pytest

from netspace.environment.images import Store, mismatch, sources, verity
from netspace.environment.images.admin import Images, Wanted
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.plugin.fileserver import SaltFiles


class Fake(types.ModuleType):
    """A source whose image is its file's content. ``builds`` counts builds; further builds raise ``fail``."""

    def __init__(self):
        super().__init__("fake")
        self.builds = 0
        self.fail = None

    def split(self, location):
        path, colon, rest = location.partition("#")
        return path, colon + rest

    def fingerprint(self, location):
        return sources.of_stat(Path(self.split(location)[0]))

    def identity(self, location):
        return sources.of_content(Path(self.split(location)[0]))

    def build(self, location, target, scratch):
        self.builds += 1
        target.write_bytes(b"half")
        (scratch / "much").write_bytes(b"x" * 1000)
        if self.fail is not None:
            raise self.fail
        content = Path(self.split(location)[0]).read_bytes()
        if content == b"damaged":
            raise NetspaceError(f"image source {location}: damaged")
        target.write_bytes(content)
        return sources.Defaults(cmd=("x",), notes=("a note",))


class Master:
    """Salt's file server, with or without a master."""

    def __init__(self, files, *, local=False):
        self.files = files
        self.local = local
        self.calls = []
        self.lie = None

    def salt(self, **functions):
        own = {"cp.hash_file": self.hash_file, "cp.get_file": self.get_file, "cp.cache_file": self.cache_file}
        return SaltFiles({**own, **functions}, {"file_client": "local" if self.local else "remote"})

    def hash_file(self, path):
        self.calls.append("hash")
        if path not in self.files:
            return {}
        return {"hash_type": "sha256", "hsum": hashlib.sha256(self.files[path].read_bytes()).hexdigest()}

    def get_file(self, path, dest):
        self.calls.append("fetch")
        content = self.files[path].read_bytes() if self.lie is None else self.lie
        Path(dest).write_bytes(content)
        return dest

    def cache_file(self, path):
        assert self.local
        return str(self.files[path]) if path in self.files else False


@pytest.fixture
def fake(monkeypatch):
    module = Fake()
    monkeypatch.setitem(sys.modules, "netspace.environment.images.sources.tar", module)
    return module


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def store(tmp_path):
    return Store(Layout(root=tmp_path / "host"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def kept(store: Store) -> list[str]:
    folder = store.file("x").parent
    return sorted(os.listdir(folder)) if folder.exists() else []


# -- building -------------------------------------------------------------------------


def test_what_is_built_is_named_by_its_content_and_built_once(fake, store, source):
    image = store.ensure(f"tar:{source}")
    assert image.digest == sha256(b"content")
    assert image.identity == f"sha256:{sha256(b'content')}"
    assert store.ensure(f"tar:{source}") == image
    assert fake.builds == 1
    store.file(image.digest).unlink()
    assert store.ensure(f"tar:{source}") == image
    assert fake.builds == 2, "a lost one is built again"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), NetspaceError("odd"), KeyError("x")]
)
def test_a_build_that_fails_leaves_nothing(fake, store, source, error):
    fake.fail = error
    with pytest.raises((NetspaceError, KeyError)) as caught:
        store.ensure(f"tar:{source}")
    assert kept(store) == []
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)
        assert "netspace_image.prune" in str(caught.value)
    fake.fail = None
    store.ensure(f"tar:{source}")


def test_a_note_that_can_t_be_written_takes_the_image_with_it(fake, store, source, monkeypatch):
    def full(self, note):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_write_note", full)
        with pytest.raises(NetspaceError, match="No space left"):
            store.ensure(f"tar:{source}")
    assert kept(store) == []


def test_a_source_that_changes_meanwhile_is_refused(fake, store, source, monkeypatch):
    build = fake.build

    def slow(location, target, scratch):
        built = build(location, target, scratch)
        source.write_bytes(b"longer content")
        return built

    monkeypatch.setattr(fake, "build", slow)
    with pytest.raises(NetspaceError, match="changed while it was read"):
        store.ensure(f"tar:{source}")
    assert kept(store) == []


def test_what_a_killed_build_left_goes_and_nothing_else(fake, store, source):
    image = store.ensure(f"tar:{source}")
    before = kept(store)
    folder = store.file("x").parent
    (folder / ".building-killed/scratch").mkdir(parents=True)
    (folder / ".building-killed/image").write_bytes(b"half")
    (folder / ".0123.json.77.new").write_bytes(b"half")
    store.tidy()
    assert kept(store) == before
    store.prune([image.digest])
    assert kept(store) == before
    store.prune([])
    assert kept(store) == []


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"digest": 5}', b"\xff", b'{"digest": "../x"}'])
def test_a_note_that_can_t_be_read_is_no_note(fake, store, source, content):
    image = store.ensure(f"tar:{source}")
    (path,) = store.file("x").parent.glob("*.json")
    path.write_bytes(content)
    assert store.note(f"tar:{source}") is None
    assert store.notes() == []
    assert store.ensure(f"tar:{source}") == image
    assert len(store.notes()) == 1


# -- source_hash --------------------------------------------------------------------------


def test_a_source_must_be_what_source_hash_says(fake, store, source):
    image = f"tar:{source}"
    right, wrong = sha256(b"content"), "0" * 64
    for text in (f"sha256:{wrong}", wrong):
        with pytest.raises(NetspaceError, match=f"sha256:{right}, but source_hash says sha256:{wrong}"):
            store.ensure(image, text)
    assert fake.builds == 0
    for text in (f"sha256:{right}", f"sha256={right.upper()}", right):
        store.ensure(image, text)
    with pytest.raises(NetspaceError, match="but source_hash says"):
        store.ensure(image, wrong)


def test_a_folder_has_no_source_hash_and_an_unknown_one_is_not_judged():
    assert "no source_hash" in mismatch("tree:" + "0" * 64, "0" * 64)
    assert mismatch("manifest:sha256:" + "0" * 64, "sha256:" + "0" * 64) == ""
    assert mismatch("", "0" * 64) == ""
    assert mismatch("sha256:" + "0" * 64, "") == ""


# -- salt:// ----------------------------------------------------------------------------------

URL = "salt://images/a.tar"


@pytest.fixture(params=["master", "masterless"])
def master(request, source):
    return Master({URL: source}, local=request.param == "masterless")


def remote_store(tmp_path, master):
    return Store(Layout(root=tmp_path / "host"), master.salt())


def test_a_salt_source_is_fetched_once_and_again_only_when_its_hash_changes(fake, tmp_path, source):
    master = Master({URL: source})
    store = remote_store(tmp_path, master)
    image = store.ensure(f"tar:{URL}")
    assert image.digest == sha256(b"content")
    assert master.calls == ["hash", "fetch"]
    assert len(kept(store)) == 2, "the fetched file is not kept"
    for _ in range(2):
        assert remote_store(tmp_path, master).ensure(f"tar:{URL}") == image
    assert "fetch" not in master.calls[2:]
    source.write_bytes(b"newer")
    assert store.seen(f"tar:{URL}").identity != image.identity
    assert "fetch" not in master.calls[2:], "looking fetches nothing"
    assert store.ensure(f"tar:{URL}").digest == sha256(b"newer")
    assert master.calls[-2:] == ["hash", "fetch"]


def test_without_a_master_the_file_is_read_where_it_lies(fake, tmp_path, source, monkeypatch):
    master = Master({URL: source}, local=True)
    store = remote_store(tmp_path, master)
    image = store.ensure(f"tar:{URL}")
    assert image.identity == f"sha256:{sha256(b'content')}", "as with a master"
    with monkeypatch.context() as patch:
        patch.setattr(fake, "identity", None)
        assert store.ensure(f"tar:{URL}") == image, "told by its times, not by reading it"
        assert store.seen(f"tar:{URL}").identity == image.identity
    source.write_bytes(b"newer")
    assert store.ensure(f"tar:{URL}").digest == sha256(b"newer")
    assert master.calls == []


def test_what_came_must_be_what_the_master_said(fake, tmp_path, source):
    master = Master({URL: source})
    master.lie = b"content, and more"
    store = remote_store(tmp_path, master)
    with pytest.raises(NetspaceError, match="the fetched file is sha256"):
        store.ensure(f"tar:{URL}")
    master.lie = b"cont"
    with pytest.raises(NetspaceError, match="the fetched file is sha256"):
        store.ensure(f"tar:{URL}")
    assert (kept(store), fake.builds) == ([], 0)


def test_source_hash_is_asked_before_anything_is_fetched(fake, tmp_path, master):
    with pytest.raises(NetspaceError, match="source_hash says"):
        remote_store(tmp_path, master).ensure(f"tar:{URL}", "0" * 64)
    assert "fetch" not in master.calls


def test_errors_name_the_url(fake, tmp_path, source, master):
    store = remote_store(tmp_path, master)
    source.write_bytes(b"damaged")
    named = source if master.local else URL
    with pytest.raises(NetspaceError, match=rf"image source {named}#tag: damaged"):
        store.ensure(f"tar:{URL}#tag")
    with pytest.raises(NetspaceError, match="no such file"):
        store.ensure("tar:salt://other.tar")
    assert "no such file" in store.seen("tar:salt://other.tar").error
    assert kept(store) == []


def test_whatever_salt_raises_is_a_clear_error(fake, tmp_path, source):
    master = Master({URL: source})

    def broken(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(Layout(root=tmp_path / "host"), master.salt(**{"cp.get_file": broken}))
    with pytest.raises(NetspaceError, match=rf"{URL}: cp.get_file: .*No space left.*netspace_image.prune"):
        store.ensure(f"tar:{URL}")
    store = Store(Layout(root=tmp_path / "host"), master.salt(**{"cp.get_file": lambda *_: False}))
    with pytest.raises(NetspaceError, match="could not fetch"):
        store.ensure(f"tar:{URL}")
    md5 = {"hash_type": "md5", "hsum": "0" * 32}
    store = Store(Layout(root=tmp_path / "host"), master.salt(**{"cp.hash_file": lambda *_: md5}))
    with pytest.raises(NetspaceError, match="hash_type: sha256"):
        store.ensure(f"tar:{URL}")
    assert kept(store) == []


def test_without_salt_what_was_built_counts(fake, tmp_path, source, master):
    image = remote_store(tmp_path, master).ensure(f"tar:{URL}")
    alone = Store(Layout(root=tmp_path / "host"))
    assert alone.seen(f"tar:{URL}").identity == image.identity
    with pytest.raises(NetspaceError, match="apply by Salt"):
        alone.ensure(f"tar:{URL}")


# -- operators ------------------------------------------------------------------------------------


@pytest.fixture
def users():
    return {}


@pytest.fixture
def images(store, users):
    return Images(store, lambda: users)


def present(images, name, **keys):
    wanted = {name: Wanted(**{"source": name, **keys})}
    plan = images.plan(wanted)
    return plan, images.apply(plan.steps)


def test_present_builds_once_and_says_both_digests(fake, images, source):
    name = f"tar:{source}"
    plan, outcomes = present(images, name)
    assert plan.steps[0].changes == {"digest": {"old": None, "new": f"the present {name}"}}
    assert outcomes[0].step.changes["digest"] == {"old": None, "new": f"sha256:{sha256(b'content')}"}
    assert present(images, name)[0].steps == []
    source.write_bytes(b"newer")
    _, (outcome,) = present(images, name)
    assert outcome.step.changes["digest"] == {
        "old": f"sha256:{sha256(b'content')}",
        "new": f"sha256:{sha256(b'newer')}",
    }
    assert sorted(images.list()) == sorted(f"sha256:{sha256(text)}" for text in (b"content", b"newer"))


def test_present_plans_without_writing_and_refuses_what_can_t_be(fake, images, store, source):
    name = f"tar:{source}"
    for wanted, message in (
        (Wanted(name, source_hash="0" * 64), "source_hash says"),
        (Wanted(name, source_hash="md5:0"), "source_hash: "),
        (Wanted(name, digest="x"), "digest: "),
        (Wanted("tar:relative"), "absolute"),
        (Wanted("tar:/nowhere.tar"), "No such file"),
        (Wanted("zip:/x"), "one of"),
    ):
        (refusal,) = images.plan({"x": wanted}).refusals
        assert message in refusal.message
    assert kept(store) == []
    assert fake.builds == 0


def test_an_image_must_be_what_digest_says(fake, images, store, source):
    name = f"tar:{source}"
    _, (outcome,) = present(images, name, digest="0" * 64)
    assert "but digest says" in outcome.error
    assert kept(store) == [], "what was built for nothing is gone"
    present(images, name, digest=f"sha256:{sha256(b'content')}")
    assert "but digest says" in images.plan({"x": Wanted(name, digest="0" * 64)}).refusals[0].message


def test_an_image_has_names_users_and_a_description(fake, images, users, source):
    name = f"tar:{source}"
    present(images, name)
    digest = sha256(b"content")
    users[digest] = ["web", "shop"]
    users["f" * 64] = ["lost"]
    row = images.list()[f"sha256:{digest}"]
    assert (row["sources"], row["size"], row["used_by"], row["mounted"]) == ([name], 7, ["shop", "web"], False)
    assert images.list()[f"sha256:{'f' * 64}"]["size"] is None
    for text in (name, digest, f"sha256:{digest}", digest[:12], f"sha256:{digest[:12]}"):
        found = images.inspect(text)
        assert found["digest"] == f"sha256:{digest}"
        assert found["sources"][name]["cmd"] == ["x"]
        assert found["sources"][name]["notes"] == ["a note"]
    for text in (digest[:11], "tar:/other", "", "sha256:"):
        with pytest.raises(NetspaceError, match="no such image"):
            images.inspect(text)
    assert images.inspect("f" * 64)["verity"] == "none: the file is missing"


def test_a_flipped_byte_is_found_and_says_what_to_do(fake, images, store, source):
    present(images, f"tar:{source}")
    digest = sha256(b"content")
    assert images.verify() == {f"sha256:{digest}": ""}
    path = store.file(digest)
    path.write_bytes(b"c0ntent")
    (error,) = images.verify([digest]).values()
    assert re.search(rf"was changed .*{sha256(b'c0ntent')}.*apply again: rm {path}", error)
    with pytest.raises(NetspaceError, match="was changed"):
        store.mount(digest, {})
    path.unlink()
    assert present(images, f"tar:{source}")[1][0].error == "", "as it says"
    assert images.verify() == {f"sha256:{digest}": ""}


def test_what_is_used_stays_and_what_is_not_goes_on_demand(fake, images, store, users, source, tmp_path):
    other = tmp_path / "b.tar"
    other.write_bytes(b"other")
    for path in (source, other):
        present(images, f"tar:{path}")
    users[sha256(b"content")] = ["web"]
    (refusal,) = images.plan_absent(f"tar:{source}").refusals
    assert "used by web" in refusal.message
    assert images.plan_absent("tar:/nothing") == images.plan_absent("0" * 64)
    assert images.plan_absent("tar:/nothing").steps == ()
    (refusal,) = images.plan_absent(sha256(b"content")[:6]).refusals
    assert "12 digits or more" in refusal.message
    (step,) = images.plan_prune().steps
    assert step.changes["digest"]["old"] == f"sha256:{sha256(b'other')}"
    assert len(kept(store)) == 4
    images.apply_removal(images.plan_prune().steps)
    assert len(kept(store)) == 2
    assert images.plan_prune().steps == []
    users.clear()
    images.apply_removal(images.plan_absent(f"tar:{source}").steps)
    assert kept(store) == []


@pytest.mark.parametrize("swapped", [False, True])
def test_what_has_a_hash_is_built_as_it_was_hashed(fake, store, source, monkeypatch, swapped):
    """The source changes between hash and build; the built image is still the hashed one.

    A writer with a shared mapping can make such a change without changing the file's times.
    """
    build = fake.build

    def meanwhile(location, target, scratch):
        info = source.stat()
        source.write_bytes(b"c0ntent")
        os.utime(source, ns=(info.st_atime_ns, info.st_mtime_ns))
        return build(location, target, scratch)

    monkeypatch.setattr(fake, "fingerprint", lambda location: "same")
    if swapped:
        monkeypatch.setattr(fake, "build", meanwhile)
    assert store.ensure(f"tar:{source}", sha256(b"content")).digest == sha256(b"content")
    assert kept(store) == sorted([store.file(sha256(b"content")).name, store._note_path(f"tar:{source}").name])


def test_what_changes_before_it_is_copied_is_refused(fake, store, source, monkeypatch):
    monkeypatch.setattr(fake, "fingerprint", lambda location: "same")
    identity, seen = fake.identity, []

    def once(location):
        seen.append(identity(location))
        source.write_bytes(b"c0ntent")
        return seen[-1]

    monkeypatch.setattr(fake, "identity", once)
    with pytest.raises(NetspaceError, match="changed while it was read"):
        store.ensure(f"tar:{source}", sha256(b"content"))
    assert kept(store) == []


# -- fs-verity ---------------------------------------------------------------------------------------


def test_verity_s_requests_are_as_the_kernel_s_header_says():
    """The ioctl numbers are those of linux/fsverity.h: _IOW('f', 133, 128 bytes), _IOWR('f', 134, 4 bytes)."""

    def number(direction: int, code: int, size: int) -> int:
        return direction << 30 | size << 16 | ord("f") << 8 | code

    request = verity.request()
    assert number(1, 133, len(request)) == verity.ENABLE
    assert number(3, 134, 4) == verity.MEASURE
    assert len(request) == 128
    assert request[:16] == b"\x01\0\0\0" + b"\x01\0\0\0" + b"\0\x10\0\0" + bytes(4)
    assert not any(request[16:])
    assert verity.answer(b"\x01\0\x20\0" + b"\xab" * 32) == f"sha256:{'ab' * 32}"
    with pytest.raises(ValueError, match="unknown algorithm 2"):
        verity.answer(b"\x02\0\x40\0" + bytes(32))


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM])
def test_a_host_without_verity_is_told_as_one(tmp_path, monkeypatch, number):
    def ioctl(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(verity.fcntl, "ioctl", ioctl)
    path = tmp_path / "file"
    path.touch()
    assert verity.enable(path) != ""
    assert verity.measure(path) == ("", verity.enable(path))


def test_verity_that_is_there_already_is_fine(tmp_path, monkeypatch):
    def ioctl(fd, request, argument):
        if request == verity.ENABLE:
            raise OSError(errno.EEXIST, "")
        argument[:] = b"\x01\0\x20\0" + b"\xcd" * 32

    monkeypatch.setattr(verity.fcntl, "ioctl", ioctl)
    path = tmp_path / "file"
    path.touch()
    assert verity.enable(path) == ""
    assert verity.measure(path) == (f"sha256:{'cd' * 32}", "")


def test_every_source_offers_what_a_source_must():
    folder = Path(sources.__file__).parent
    schemes = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert schemes == {"dir", "erofs", "oci", "tar"}
    for scheme in schemes:
        module, location = sources.split(f"{scheme}:/x")
        assert location == "/x"
        assert all(callable(getattr(module, name)) for name in ("fingerprint", "identity", "build"))
    with pytest.raises(NetspaceError, match="no source"):
        sources.split("zip:/x")
