"""Data from an environment or an image is read or refused, and never contains characters that control a terminal.

A short run; ``python tests/support/environments/reader_fuzz.py`` is the long run.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.environments import reader_fuzz

from netspace.environment.container import oci_runtime
from netspace.supervision import process
from netspace.supervision.daemon import log_times

INPUTS = int(os.environ.get("NETSPACE_READER_INPUTS", "4000"))


def test_mutated_inputs_are_read_or_refused(record_property) -> None:
    seed = random.SystemRandom().randrange(2**32)
    found = reader_fuzz.run(INPUTS, seed)
    record_property("seed", seed)
    assert all(tally.read for tally in found.values())


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, reader_fuzz.Reader]:
    folder = tmp_path_factory.mktemp("readers")
    return {name: read for name, (read, _) in reader_fuzz.targets(folder).items()}


_ANY = st.one_of(
    st.binary(max_size=400),
    st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass")),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(raw=_ANY)
@example(raw=b"")
def test_any_input_is_read_or_refused_by_each_reader(readers, raw: bytes) -> None:
    for read in readers.values():
        reader_fuzz.one(read, raw)


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "wrong"),
    [
        ("errors of a runtime", oci_runtime, "harmless", lambda text: text),
        ("times of a log", log_times, "_LARGEST", 2**62),
        ("name of a process", process, "stat", lambda pid: None),
    ],
)
def test_fuzzer_of_readers_finds_what_is_wrong(name, owner, attribute, wrong, monkeypatch, tmp_path: Path) -> None:
    """A check of the fuzzer: with one check of the library removed, it reports the reader and the input."""
    whole = reader_fuzz.targets
    monkeypatch.setattr(reader_fuzz, "targets", lambda folder: {name: whole(folder)[name]})
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError, match=rf"(?s)^{name}: .*: [0-9a-f]*$"):
        reader_fuzz.run(3000, 1)
