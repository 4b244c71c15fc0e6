"""The execution module, as Salt loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.loader
from salt.exceptions import CommandExecutionError
from support.interfaces.interface_bench import Bench, veth

pytestmark = pytest.mark.root
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def modules(tmp_path: Path) -> Any:
    opts = salt.config.DEFAULT_MINION_OPTS.copy()
    opts |= {
        "file_client": "local",
        "root_dir": str(tmp_path),
        "cachedir": str(tmp_path),
        "module_dirs": [str(REPOSITORY / "_modules")],
        "grains": {},
    }
    return salt.loader.minion_mods(opts)


def test_list_and_inspect_through_salt(bench: Bench, modules: Any) -> None:
    assert modules["netspace_interface.list"]() == {}
    bench.make(orders=veth(), idle={"kind": "none"})
    assert modules["netspace_interface.list"]() == bench.kind.list()
    seen = modules["netspace_interface.inspect"]("orders")
    assert seen["state"] == "present"
    assert seen["live"]["inside"]["addresses"]
    assert seen["drift"] == {}


def test_an_unknown_environment_is_an_error_that_names_the_known(bench: Bench, modules: Any) -> None:
    bench.make(idle={"kind": "none"})
    with pytest.raises(CommandExecutionError, match="there are: idle"):
        modules["netspace_interface.inspect"]("nope")
