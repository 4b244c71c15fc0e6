"""The cost of a row for each thing in a state's result, by the benchmark that measures it in a real Salt."""

from __future__ import annotations

import argparse
import sys

import pytest
from support import checkout


@pytest.mark.parametrize("which", ["same", "changed"])
def test_thousand_rows_add_a_fifth_of_a_second(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(checkout.ROOT / "benchmarks"), *sys.path])
    import rows

    rounds = rows.measure(argparse.Namespace(count=1000, rounds=2), shown=False)
    with_rows, without = (min(rounds.values[f"run {which} {kind}"]) for kind in ("rows", "none"))
    assert without < with_rows < without + rows.MOST
