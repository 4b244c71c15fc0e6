"""Steps from README and the installation page for an operator with a Salt without netspace, done without a network."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import yaml

from netspace import REQUIREMENTS
from support import checkout
from support.hosts.salt_modes import Salt

PAGE = checkout.ROOT / "docs/installation.md"
README = checkout.ROOT / "README.md"


def section(page: Path, title: str) -> str:
    """Return the text of *page* below the heading *title*."""
    return re.split(r"^## ", page.read_text().split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def commands(text: str) -> list[list[str]]:
    """Return the command lines of the ``sh`` blocks in *text*."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line]


def settings(text: str) -> dict[str, Any]:
    """Return the first ``yaml`` block in *text*."""
    (block, *_) = re.findall(r"^( *)```yaml\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(block[1])
    return found


def wheels(folder: Path) -> Path:
    """Fill a folder with a wheel of each package that netspace needs and Salt doesn't; return the folder."""
    for module in REQUIREMENTS.keys() - {"cryptography"}:
        pack(module, folder)
    return folder


def pack(module: str, folder: Path) -> None:
    """Make a wheel of the installed package that contains *module*."""
    (name,) = re.findall(r"^[\w-]+", REQUIREMENTS[module])
    package = importlib.metadata.distribution(name)
    tag = re.search(r"^Tag: (.*)$", package.read_text("WHEEL") or "", re.MULTILINE)
    assert tag is not None and package.files is not None
    info = f"{name}-{package.version}.dist-info"
    names = [one for one in package.files if one.parts[0] == module and one.suffix != ".pyc"]
    names += [
        one for one in package.files if one.parts[0] == info and one.name in ("METADATA", "WHEEL", "top_level.txt")
    ]
    lines = []
    with zipfile.ZipFile(folder / f"{name}-{package.version}-{tag[1]}.whl", "w") as wheel:
        for one in names:
            content = one.locate().read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.append(f"{one.as_posix()},sha256={digest},{len(content)}")
            wheel.writestr(one.as_posix(), content)
        wheel.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]) + "\n")


def adjust(salt: Salt, **more: Any) -> None:
    """Add settings to the configurations of minion and master."""
    for path in (salt.config, salt.config.with_name("master")):
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **more}))
