"""The pages on images are correct: the limits, the example of a source, and the arguments of states."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from support import checkout

from netspace.environment.images import bounds, sources

ROWS = {
    "bytes of all files": bounds.BYTES,
    "members": bounds.ENTRIES,
    "folders above": bounds.DEPTH,
    "bytes of a path": bounds.PATH,
    "bytes of a name": bounds.NAME,
    "layers": bounds.LAYERS,
    "bytes that come out of a compressed stream": bounds.RATIO,
    "bytes of one member's extended headers": bounds.HEADER,
    "bytes of all names": bounds.NAMES,
    "bytes of an OCI index": bounds.JSON,
    "bytes of memory": bounds.DICTIONARY,
    "symbolic links followed": bounds.LOOKUPS,
}


def test_the_bounds_are_those_of_the_page():
    page = (checkout.ROOT / "docs/images.md").read_text()
    table = page[page.index("| bound | value |") :].split("\n\n")[0]
    said = {row[0]: row[1] for row in re.findall(r"^\| (.*?) \| (\d.*?) \|$", table, re.MULTILINE)}
    assert len(said) == len(ROWS)
    for (text, value), (begins, bound) in zip(said.items(), ROWS.items(), strict=True):
        assert text.startswith(begins)
        assert int(value.split()[0]) * (1024**3 if value.endswith("GiB") else 1) == bound
    assert f"beyond {bounds.UNRATED // 1024**2} MiB" in page


def test_every_source_has_a_row():
    page = (checkout.ROOT / "docs/images.md").read_text()
    for path in Path(sources.__file__).parent.glob("*.py"):
        if path.stem != "__init__":
            assert f"| `{path.stem}:/" in page


def test_the_example_of_a_new_source_is_one_file_and_works(tmp_path):
    text = (checkout.ROOT / "CONTRIBUTING.md").read_text()
    code = text[text.index("## Add an image source") :].split("```python\n")[1].split("```")[0]
    library = tmp_path / "library"
    shutil.copytree(checkout.ROOT / "_utils", library, ignore=shutil.ignore_patterns("__pycache__"))
    (library / "netspace/environment/images/sources/zip.py").write_text(code)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bin/app", "app")
        archive.writestr("etc/", "")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../out", "x")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    script = f"""
from pathlib import Path
from netspace.environment.images import Store, sources
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec import parse
found = []
def pack(tree, target, budget):
    target.write_bytes(b"x")
    found.append([(path, b"".join(node.content.chunks()) if node.content else b"") for path, node in tree.walk()])
sources.pack = pack
folder = Path({str(tmp_path)!r})
store = Store(Layout(root=folder / "host"))
parse.environment("web", {{"image": f"zip:{{folder}}/a.zip", "command": ["/bin/app"]}})
store.ensure(f"zip:{{folder}}/a.zip")
assert found == [[(b".", b""), (b"bin", b""), (b"bin/app", b"app"), (b"etc", b"")]], found
for name, message in (("bad", "leads out"), ("cut", "damaged"), ("none", "No such file")):
    try:
        store.ensure(f"zip:{{folder}}/{{name}}.zip")
    except NetspaceError as err:
        assert message in str(err), err
    else:
        raise AssertionError(name)
print("fine")
"""
    environment = {"PYTHONPATH": str(library), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr
