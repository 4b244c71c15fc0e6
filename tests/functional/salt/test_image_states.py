"""Images by Salt's states and functions, and image sources by ``salt://`` without a master."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.environments.image_files import member, sha256, tar
from support.hosts import salt_forks
from support.hosts.salt_modes import Salt, build
from support.hosts.whole_host import unfolded

from netspace.environment.storage import mounts
from netspace.layout import Layout

pytestmark = pytest.mark.root

NAME = "tar:salt://images/a.tar"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Salt]:
    with tempfile.TemporaryDirectory(prefix="salts-") as folder, salt_forks.served(Path(folder)) as programs:
        yield build("sync", tmp_path_factory.mktemp("images"), programs)


@pytest.fixture
def archive(here: Salt) -> Iterator[Path]:
    """A file on Salt's file server. No image exists before and after the test."""
    path = here.source / "images/a.tar"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tar([member("bin/"), member("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)]))
    yield path
    for target in mounts.table():
        if Path(target).is_relative_to(Layout().run):
            mounts.unmount(Path(target))
    shutil.rmtree(Layout().images, ignore_errors=True)


def state(salt: Salt, function: str, *arguments: str) -> dict[str, Any]:
    result, _ = salt.call("state.single", f"netspace_image.{function}", *arguments)
    (only,) = result.values()
    return only


def stored() -> list[str]:
    folder = Layout().images
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_present_fetches_and_builds_once_and_absent_removes(here: Salt, archive: Path) -> None:
    digest = sha256(archive.read_bytes())
    tested = state(here, "present", f"name={NAME}", f"source_hash={digest}", "test=True")
    assert tested["result"] is None
    assert tested["changes"] == {"digest": {"old": None, "new": f"the present {NAME}"}}
    assert stored() == [], "a test fetches nothing"

    made = state(here, "present", f"name={NAME}", f"source_hash={digest}")
    assert made["result"] is True, made
    image = made["changes"]["digest"]["new"]
    assert made["changes"] == {"digest": {"old": None, "new": image}}
    kept = stored()
    assert len(kept) == 2

    for arguments in ((), ("test=True",), (f"digest={image}",)):
        again = state(here, "present", "name=any", f"source={NAME}", *arguments)
        assert (again["result"], again["changes"]) == (True, {}), again
    for text, comment in (("sha256:" + "0" * 64, "source_hash says"), ("0" * 64, "'0': expected sha256: and 64")):
        wrong = state(here, "present", f"name={NAME}", f"source_hash={text}")
        assert (wrong["result"], wrong["changes"]) == (False, {})
        assert comment in unfolded(wrong["comment"])
    assert stored() == kept

    listed, _ = here.call("netspace_image.list")
    assert listed[image]["sources"] == [NAME]
    assert listed[image]["used_by"] == []
    assert here.call("netspace_image.inspect", image[7:19])[0]["sources"][NAME]["identity"] == digest
    assert here.call("netspace_image.verify")[0] == {image: "ok"}

    tested = state(here, "absent", f"name={NAME}", "test=True")
    assert tested["result"] is None
    assert tested["changes"]["digest"] == {"old": image, "new": None}
    assert stored() == kept
    assert state(here, "absent", f"name={NAME}")["result"] is True
    assert stored() == []
    gone = state(here, "absent", f"name={NAME}")
    assert (gone["result"], gone["changes"]) == (True, {})


def test_a_flipped_byte_is_told_by_verify_and_by_the_return_code(here: Salt, archive: Path) -> None:
    image = state(here, "present", f"name={NAME}")["changes"]["digest"]["new"]
    path = Layout().images / f"sha256-{image[7:]}.erofs"
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    (told,) = here.call("netspace_image.verify")[0].values()
    assert "was changed" in told
    assert f"rm {path}" in told


def test_an_environment_s_image_comes_from_salt_and_can_t_be_removed(here: Salt, archive: Path) -> None:
    command = json.dumps(["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do /bin/busybox sleep 0.05; done"])
    arguments = ("name=web", f"image={NAME}", f"command={command}", f"source_hash={sha256(archive.read_bytes())}")

    def run(*more: str) -> dict[str, Any]:
        result, _ = here.call("state.single", "netspace_environment.running", *arguments, *more)
        (only,) = result.values()
        return only

    try:
        tested = run("test=True")
        assert tested["result"] is None, tested
        assert stored() == []
        made = run()
        assert made["result"] is True, made
        assert run()["changes"] == {}
        (image,) = here.call("netspace_image.list")[0]
        assert here.call("netspace_image.list")[0][image]["used_by"] == ["web"]
        refused = state(here, "absent", f"name={NAME}")
        assert refused["result"] is False
        assert "is used by web" in unfolded(refused["comment"])
        assert here.call("netspace_image.prune")[0]["changes"] == {}
        # Another file on the server, and it is another environment.
        archive.write_bytes(archive.read_bytes()[:-1024] + tar([member("new", b"n")]))
        changed = run()
        assert "source_hash says" in unfolded(changed["comment"]), changed
        result, _ = here.call("state.single", "netspace_environment.running", *arguments[:3])
        (changed,) = result.values()
        assert changed["changes"]["image"]["old"] == image, changed
        assert changed["result"] is True
    finally:
        removed, _ = here.call("netspace.teardown")
    assert removed["result"] is True, removed
    assert not Layout().images.exists()


def test_prune_says_what_it_removes(here: Salt, archive: Path) -> None:
    image = state(here, "present", f"name={NAME}")["changes"]["digest"]["new"]
    tested, _ = here.call("netspace_image.prune", "test=True")
    assert tested["result"] is None
    assert tested["changes"][image]["digest"] == {"old": image, "new": None}
    assert len(stored()) == 2
    assert here.call("netspace_image.prune")[0]["result"] is True
    assert stored() == []
