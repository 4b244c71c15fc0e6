"""Programs that an image lacks: a program is reported as missing only if that is certain."""

from __future__ import annotations

from pathlib import Path

import pytest

from netspace.environment import programs
from netspace.environment.images.bounds import Budget
from netspace.environment.images.sources import Defaults
from netspace.environment.images.tree import FILE, FOLDER, LINK, Node, Tree
from netspace.spec import parse
from netspace.spec.types import Environment


def tree() -> Tree:
    made = Tree(Budget("test"))
    made.add(b"usr/bin", Node(FOLDER))
    made.add(b"usr/bin/web", Node(FILE))
    made.add(b"bin", Node(LINK, target=b"usr/bin"))
    made.add(b"opt/tool", Node(LINK, target=b"/data/tool"))
    return made


def lack(defaults: Defaults = Defaults(), **declared: object) -> str:  # noqa: B008 (immutable)
    spec: Environment = parse.environment("web", {"image": "dir:/srv/shop", **declared})
    return programs._lack(spec, defaults, programs._listed(tree()))


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("/usr/bin/web", ""),
        ("/bin/web", ""),
        ("web", ""),
        ("/usr/bin/wab", "/usr/bin/wab"),
        ("wab", "wab in /usr/local/bin:/usr/bin:/bin"),
        ("bin/web", ""),
        ("bin/wab", "bin/wab"),
        ("./bin/wab", ""),  # a path that isn't plain
        ("/usr/bin/web/x", "/usr/bin/web/x"),
        ("/run/wab", ""),  # other file systems lie there
        ("/tmp/wab", ""),
        ("/dev/shm/wab", ""),
    ],
)
def test_program_that_an_image_lacks_is_named(command: str, missing: str) -> None:
    assert lack(command=[command]) == missing


def test_program_in_a_volume_is_not_missed() -> None:
    volumes = [{"source": "/srv/data", "target": "/data"}]
    assert lack(command=["/data/wab"], volumes=volumes) == ""
    assert lack(command=["/opt/tool/wab"], volumes=volumes) == "", "a link leads there"
    assert lack(command=["/opt/tool/wab"]) == "/opt/tool/wab"
    assert lack(command=["/opt/tool"], volumes=volumes) == "", "a link to the program itself"
    assert lack(command=["/usr/bin/wab"], volumes=volumes) == "/usr/bin/wab"


def test_link_in_a_root_counts_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/app").symlink_to("/opt/app/bin/app")
    has = programs._within(str(tmp_path))
    assert has("/bin/app", False) and not has("/bin/app", True)
    assert has("/bin", True) and not has("/bin/none", False)


def test_program_is_sought_where_image_and_declaration_say() -> None:
    image = Defaults(entrypoint=("wab",), env=(("PATH", "/opt/bin"),), working_dir="/usr")
    assert lack(image) == "wab in /opt/bin"
    assert lack(image, command=["bin/web"]) == ""
    assert lack(image, command=["web"]) == "web in /opt/bin"
    assert lack(image, command=["web"], env={"PATH": "/opt/bin:/bin"}) == ""
    assert lack() == "", "no command at all is told by the plan"
