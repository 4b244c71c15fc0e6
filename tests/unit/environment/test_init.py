"""Process 1 of environments with ``init``: its file, refusals, and the effect of SIGTERM on a program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from netspace import paths
from netspace.environment import record as records
from netspace.environment import runtimes, sigterm, user_ids
from netspace.environment.container import oci_config
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.record import Record
from netspace.environment.runtimes import Runtime
from netspace.environment.storage import init
from netspace.errors import NetspaceError, SpecError
from netspace.layout import Layout
from netspace.spec import parse
from netspace.spec.types import Environment
from netspace.supervision import process

STATIC = b"\x7fELF\x02\x01" + bytes(48) + (56).to_bytes(2, "little") + bytes(8)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder in which the program is searched; it counts as root's even for another user."""
    folder = tmp_path / "bin"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(runtimes, "SEARCHED", str(folder))
    monkeypatch.setattr(init, "_ELSEWHERE", "")
    return folder


def put(place: Path, content: bytes = STATIC, mode: int = 0o755) -> Path:
    program = place / init.PROGRAM
    program.write_bytes(content)
    program.chmod(mode)
    return program


def spec(**keys: object) -> Environment:
    return parse.environment("web", {"image": "tar:/x.tar", "command": ["/x", "-v"], **keys})


def test_it_stands_before_the_program_and_before_no_other_command() -> None:
    own = oci_config.process("web", spec(init=True), Defaults())["args"]
    assert own == [init.INSIDE, "--", "/x", "-v"]
    assert oci_config.process("web", spec(), Defaults())["args"] == ["/x", "-v"]
    assert oci_config.process("web", spec(init=True), Defaults(), ["/check"])["args"] == ["/check"]


def test_an_image_that_names_no_command_is_refused_with_an_init_too() -> None:
    bare = parse.environment("web", {"image": "tar:/x.tar", "init": True})
    with pytest.raises(NetspaceError, match="names no command"):
        oci_config.process("web", bare, Defaults())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kernel": "/srv/k", "init": True}, "web:init: a kernel runs no processes of the host"),
        (
            {"image": "tar:/x", "init": True, "limits": {"pids": 1}},
            "web:limits:pids: init needs one process",
        ),
        ({"image": "tar:/x", "init": "/sbin/init"}, "web:init: "),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(keys: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse.environment("web", keys)


def test_where_it_is_missing_the_remedy_is_said(place: Path) -> None:
    assert init.problem() == (
        "the program catatonit is missing on this host; install it: apt-get install catatonit "
        "(netspace.packages does), or leave out init"
    )


def test_what_a_host_needs_has_it() -> None:
    packages = yaml.safe_load((Path(__file__).parents[3] / "states/netspace/packages.yaml").read_text())
    assert init.PACKAGE in packages["host"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a file that isn't root's is refused for that")
def test_a_program_that_can_not_be_trusted_or_used_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(place)
    assert init.problem() == ""
    put(place, mode=0o775)
    assert "users other than root may change" in init.problem()
    os.chown(put(place), 1000, 1000)
    assert "users other than root may change" in init.problem()
    (place / init.PROGRAM).unlink()
    put(place, b"#!/bin/sh\n")
    assert "no 64-bit little-endian ELF file; install Debian's catatonit" in init.problem()
    put(place, Path(shutil.which("ls") or "/bin/ls").resolve().read_bytes())
    assert "which an image may lack or falsify" in init.problem()
    put(place, STATIC + bytes(init._LARGEST))
    assert "more than 16 MiB" in init.problem()
    put(place)
    monkeypatch.setattr(paths, "loose", lambda path: place if path == place / init.PROGRAM else None)
    assert f"users other than root may change {place}; " in init.problem()


@pytest.mark.skipif(os.geteuid() != 0, reason="a file that isn't root's is refused for that")
def test_a_layer_is_made_once_whole_and_never_changed(place: Path, tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    put(place)
    umask = os.umask(0o077)
    try:
        folder = init.layer(layout)
    finally:
        os.umask(umask)
    (program,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, program.stat().st_mode & 0o777) == (0o755, 0o555)
    assert program.read_bytes() == STATIC
    before = program.stat()
    assert init.layer(layout) == folder and program.stat() == before
    # Another version has a layer of its own; a part of it that a killed run left is none.
    put(place, STATIC + b"2")
    newer = init.layer(layout)
    assert newer != folder and program.stat() == before
    shutil.rmtree(newer)
    left = newer.with_suffix(".new")
    left.mkdir()
    (left / ".netspace-init.half").write_bytes(b"\x7f")
    assert init.layer(layout) == newer
    assert [path.name for path in newer.iterdir()] == [init.NAME] and not left.exists()


# -- SIGTERM ---------------------------------------------------------------------------------

TERM = 1 << 14
MASKS = st.integers(0, 2**64 - 1).map(lambda mask: mask & ~TERM)


def status(**masks: int) -> dict[str, str]:
    return {f"Sig{name}": f"{masks.get(name, 0):016x}" for name in ("Cgt", "Blk", "Ign")}


@pytest.mark.parametrize(
    ("masks", "first", "said"),
    [
        ({"Cgt": TERM}, True, "handled"),
        ({"Cgt": TERM, "Blk": TERM}, False, "handled"),
        ({"Blk": TERM}, True, "blocked: "),
        ({"Ign": TERM}, True, "ignored: the program chose that"),
        ({"Ign": TERM}, False, "ignored: the program chose that"),
        ({}, True, "ignored: the program is process 1 and has no handler"),
        ({}, False, "ends it"),
    ],
)
@given(noise=st.fixed_dictionaries(dict.fromkeys(("Cgt", "Blk", "Ign"), MASKS)))
def test_what_sigterm_does(noise: dict[str, int], masks: dict[str, int], first: bool, said: str) -> None:
    text = sigterm.judge(status(**{name: noise[name] | masks.get(name, 0) for name in noise}), 7.5, first=first)
    assert text.startswith(said)
    assert ("(7.5 s)" in text) is (said not in ("handled", "ends it"))
    # An init is no remedy where there is one, or where the program itself ignores the signal.
    assert ("set init: true" in text) is (first and not masks)


@given(st.dictionaries(st.sampled_from(["SigCgt", "SigBlk", "SigIgn", "PPid"]), st.text(max_size=20)))
def test_a_status_that_can_not_be_read_says_nothing_and_raises_nothing(found: dict[str, str]) -> None:
    assert isinstance(sigterm.judge(found, 10, first=True), str)
    assert sigterm.judge({}, 10, first=True) == ""


def test_a_name_of_a_program_s_own_choice_is_no_line_of_its_status() -> None:
    script = (
        "import sys\n"
        "open('/proc/self/comm', 'w').write('x\\nSigCgt:\\tff')\n"
        "print('named', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "named\n"
        found = process.status(child.pid)
        child.communicate()
    assert found["Name"].startswith("x\\nSigCgt:")
    assert found["SigCgt"] != "ff" and found["PPid"] == str(os.getpid())


def test_children_are_listed_in_the_order_in_which_they_came() -> None:
    script = "sleep 60 & first=$!; sleep 60 & echo $!; read end; kill $first $!; wait"
    with subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        second = int(shell.stdout.readline())
        first = process.first_child(shell.pid)
        assert process.status(first)["PPid"] == str(shell.pid) and first != second
        shell.communicate("\n")
    assert process.first_child(shell.pid) == 0 and process.status(shell.pid) == {}


def test_of_another_s_process_or_another_kernel_s_nothing_is_said() -> None:
    record = Record(spec(), "running", user_ids.FIRST, Image("d" * 64, "i", Defaults()), "c", "r")
    assert sigterm.told(record, 0) == ""
    # The number was given to another process meanwhile: process 1 of no namespace below ours.
    assert sigterm.told(record, os.getpid()) == ""
    assert sigterm.told(msgspec.structs.replace(record, runtime=Runtime("runsc")), os.getpid()) == ""


def test_it_is_recorded_and_counts_for_an_update_that_was_taken_back() -> None:
    assert parse.encode(spec(init=True))["init"] is True
    prints = {records.fingerprint(spec(init=wanted), None, Runtime()) for wanted in (False, True)}
    assert len(prints) == 2
