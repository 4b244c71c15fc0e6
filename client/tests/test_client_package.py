"""The package that ``pip install ./client`` installs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

CLIENT = Path(__file__).parents[1]


def test_the_wheel_holds_the_package_and_its_types_and_asks_for_one_dependency(tmp_path):
    copy = shutil.copytree(
        CLIENT, tmp_path / "client", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    )
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(copy),
    ]
    subprocess.run(pip, check=True, stdin=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith("netspace_client-")}
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        text = archive.read(metadata).decode()
    source = CLIENT / "src"
    files = [path for path in (source / "netspace_client").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert names == {str(path.relative_to(source)) for path in files}
    assert "netspace_client/py.typed" in names
    needed = re.findall(r"^Requires-Dist: ([\w-]+)(.*)$", text, re.MULTILINE)
    assert [name for name, condition in needed if "extra" not in condition] == ["aiormq"]
