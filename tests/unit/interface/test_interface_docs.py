"""The pages on interface kinds are correct: the table, and the example of a new kind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from support import checkout

from netspace.interface import kinds

PLAN = """
from netspace.interface import kinds
from netspace.interface.plan import DesiredInterfaces
from netspace.interface.reconciler import Interfaces
from netspace.interface.observe import Observed
from netspace.layout import Layout
from netspace.spec import parse

spec = parse.interface({"kind": "dummy", "ipv4": "198.51.100.7/24", "connections": 5})
host = Observed(forwarding={"ipv4": "0", "ipv6": "0"})
(step,) = [s for s in Interfaces(Layout()).plan(DesiredInterfaces(interfaces={"a": spec}), host).steps if s.name == "a"]
assert step.action == "create"
(message,) = step.data.create(9)
assert b"dummy" in message.body
assert "dummy" in kinds.modules()
"""


def test_every_kind_has_a_row_and_what_it_says_of_filter_module_and_rebuilding_is_so() -> None:
    page = (checkout.ROOT / "docs/interfaces.md").read_text()
    table = page[page.index("\n| kind |") :].strip().partition("\n\n")[0]  # other tables of the page list other things
    cells = (line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `"))
    rows = {row[0]: row for row in cells}
    said = {re.sub(r"[ `]", "", name): [cell.strip() for cell in row] for name, row in rows.items()}
    assert set(said) == set(kinds.modules())
    for name, module in kinds.modules().items():
        row = said[name]
        assert row[-2].strip("`") == module.NEEDS
        assert row[-1] == {"host": "at the host's end", "inside": "inside", "": "there are none"}[module.FILTER]
        assert re.findall(r"`(\w+)`", row[-3]) == list(getattr(module, "FIXED", ()))


def test_the_example_of_a_new_kind_is_one_file_and_works(tmp_path: Path) -> None:
    library = checkout.with_example_kind(tmp_path / "library")
    done = subprocess.run(
        [sys.executable, "-c", PLAN], env={"PYTHONPATH": str(library)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
