"""Parts of an audit's twin: the packed interpreter, and the files that the twin attacks."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from netspace.environment.audit import attempts, interpreter, probe, twin
from netspace.environment.audit.attempts import files
from netspace.errors import NetspaceError
from netspace.layout import Layout


@pytest.mark.parametrize(
    ("flags", "swapped", "own"),
    [(os.O_RDONLY, False, True), (os.O_RDWR, False, False), (os.O_PATH, False, False), (os.O_RDONLY, True, False)],
    ids=["reads", "writes", "handle", "another's file"],
)
def test_own_file_that_is_only_read_is_no_find(tmp_path: Path, flags: int, swapped: bool, own: bool) -> None:
    """A descriptor is the environment's own only if it reads the very file that the environment has at that path."""
    path = tmp_path / "libffi.so.8"
    path.write_text("own")
    descriptor = os.open(path, flags)
    try:
        if swapped:
            path.rename(tmp_path / "away")
            path.write_text("another")
        assert files._opened_by_itself(descriptor, str(path)) is own
    finally:
        os.close(descriptor)


def test_descriptor_of_a_folder_is_a_find(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert not files._opened_by_itself(descriptor, str(tmp_path))
    finally:
        os.close(descriptor)


def test_the_kit_has_all_that_the_probe_imports():
    imported = set()
    for path in (Path(probe.__file__), *Path(attempts.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    own = {name for name in imported if name.startswith("netspace.environment.audit.attempts")}
    assert own
    # Both are for what a twin has not: an account on the broker, a port that leads there.
    assert imported - own - {"pika", "ssl"} <= set(twin.MODULES)


def test_a_packed_interpreter_runs_from_its_folder_alone(tmp_path):
    packed = interpreter.pack(tmp_path / "kit", twin.MODULES)
    folder = str(tmp_path / "kit")
    script = tmp_path / "script.py"
    script.write_text(
        f"import {', '.join(twin.MODULES)}\n"
        "print([m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)])\n"
        "print({line.split()[-1] for line in open('/proc/self/maps') if '.so' in line or 'python' in line})\n"
    )
    variables = dict(entry.split("=", 1) for entry in packed.variables(folder))
    command = packed.command(folder, str(script))
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    modules, mapped = (ast.literal_eval(line) for line in done.stdout.splitlines())
    assert all(path.startswith((folder, str(script))) for path in modules), modules
    assert all(path.startswith(folder) for path in mapped), mapped


def test_an_image_can_t_have_its_own_code_loaded_with_the_kit(tmp_path):
    packed = interpreter.pack(tmp_path / "kit", ["os"])
    script = tmp_path / "script.py"
    script.write_text("print('ran')")
    variables = dict(entry.split("=", 1) for entry in packed.variables(str(tmp_path / "kit")))
    trace = ["strace", "-f", "-qq", "-e", "trace=file", "-o", str(tmp_path / "trace")]
    subprocess.run([*trace, *packed.command(str(tmp_path / "kit"), str(script))], env=variables, check=True)
    calls = (tmp_path / "trace").read_text()
    opened = {path for line in calls.splitlines() if "= -1" not in line for path in re.findall(r'open.*?"(.*?)"', line)}
    assert {path for path in opened if not path.startswith(str(tmp_path))} <= {"/dev/null", "/etc/ld.so.cache"}, opened
    assert "/etc/ld.so.preload" not in calls


def test_what_can_t_be_packed_is_told(tmp_path):
    with pytest.raises(NetspaceError, match="no_such_module"):
        interpreter.pack(tmp_path / "kit", ["no_such_module"])


def test_files_to_aim_at_are_readable_by_everybody(tmp_path):
    assert twin._readable(tmp_path) == ("", "")
    for name, mode in (("a/secret", 0o600), ("b/one", 0o644), ("hidden/x", 0o644), ("c/two", 0o644)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        path.chmod(mode)
        path.parent.chmod(0o755)
    (tmp_path / "hidden").chmod(0o700)
    os.symlink("b/one", tmp_path / "link")
    assert set(twin._readable(tmp_path)) == {"/b/one", "/c/two"}
    (tmp_path / "c/two").unlink()
    assert twin._readable(tmp_path) == ("/b/one", "/b/one")


def test_twins_are_noted_until_nothing_is_left(tmp_path):
    layout = Layout(root=tmp_path)
    assert twin.noted(layout) == []
    first, second = twin.names(), twin.names()
    assert not set(first) & set(second)
    twin.note(layout, first)
    twin.note(layout, second)
    assert sorted(twin.noted(layout)) == sorted([list(first), list(second)])
    twin.forget(layout, first)
    assert twin.noted(layout) == [list(second)]
