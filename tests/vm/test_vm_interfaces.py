"""Interface kinds that not every kernel has: their functional tests, run in a machine with Debian's kernel.

So ipvlan, vlan, wireguard and the guide's example are tested, even if the kernel for the other tests lacks them.
"""

from __future__ import annotations

import io
import re
import tarfile
from importlib import import_module
from pathlib import Path

import pytest
from vmlab.machine import Machine

pytestmark = pytest.mark.vm

# What runs tests, from the interpreter that runs this one: all of it is Python alone.
NEEDED = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")
FILE = "/srv/netspace/tests/functional/interface/test_interface_kinds.py"
KINDS = "(ipvlan or vlan or wireguard) and not macvlan and not vxlan"
TESTS = "reaches_and or again_is or changes_in_place or only_the_kind or restore or kinds_change or no_name_yet"
WANTED = f"(({KINDS}) and ({TESTS})) or private_key or example"


def packed() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name in NEEDED:
            file = import_module(name).__file__
            assert file is not None
            place = Path(file).parent if file.endswith("__init__.py") else Path(file)
            archive.add(place, place.name, filter=lambda one: None if one.name.endswith("__pycache__") else one)
    return stream.getvalue()


def test_kinds_that_not_every_kernel_has(plain: Machine) -> None:
    plain.put("/tmp/pytest.tar.gz", packed())
    plain.sh("mkdir -p /opt/pytest && tar -C /opt/pytest -xzf /tmp/pytest.tar.gz")
    paths = "/opt/pytest:/opt/netspace:/srv/netspace/_utils:/srv/netspace/tests"
    done = plain.run(
        *("sh", "-c", f'cd /srv/netspace && PYTHONPATH={paths} exec /usr/bin/python3 -m pytest "$@"', "pytest"),
        *("-p", "no:cacheprovider", "-c", "/dev/null", "--confcutdir", str(Path(FILE).parent), "-q", "-rs"),
        *("-k", WANTED, FILE),
        check=False,
        timeout=600,
    )
    assert done.code == 0, done.out[-6000:] + done.err[-2000:]
    assert "this kernel has no" not in done.out, done.out[-3000:]
    passed = re.search(r"(\d+) passed", done.out.splitlines()[-1])
    assert passed and int(passed[1]) > 20, done.out[-3000:]
