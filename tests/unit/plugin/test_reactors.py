"""The pages' reactors, compiled and called by Salt's own classes, for events whose ids a hostile minion chose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt.config
from salt.utils.reactor import Reactor, ReactWrap
from support import checkout

EXAMPLES = {"join": "docs/fleet.md", "attest": "docs/attestation-fleet.md", "look": "docs/fleet-trust.md"}
ID = {"join": "id", "attest": "id", "look": "minion"}
"""The key of the event's data that holds the id."""
INJECTED = "h1'\"]\n    - kwarg: {timeout: 1}\nmore:\n  runner.cmd.run:\n    - arg: ['id'] #{{ 7 * 7 }}"
IDS = ("h1", "1", "null", "*", "a: b", INJECTED, "h1}, x: {", ["h1"], {"h1": 1})


def example(name: str) -> str:
    """Return the page's reactor file."""
    text = (checkout.ROOT / EXAMPLES[name]).read_text()
    found = re.findall(rf"^```jinja\n(?:#.*\n)?({name}:\n  runner\..*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{EXAMPLES[name]}: one reactor"
    return str(found[0])


class Runners:
    """A ``RunnerClient`` that only records the calls. Its functions have the runners' own parameters."""

    def __init__(self) -> None:
        self.called: list[tuple[str, list[Any], dict[str, Any]]] = []

        def join(*hosts: str, timeout: int = 60) -> None: ...

        def attest(target: str = "*", tgt_type: str = "glob") -> None: ...

        def look(*hosts: str, timeout: int = 30) -> None: ...

        self.functions = {
            "netspace_fleet.join": join,
            "netspace_attestation.attest": attest,
            "netspace_trust.look": look,
        }

    def low(self, function: str, low: dict[str, Any]) -> None:
        self.called.append((function, list(low["arg"]), dict(low["kwarg"])))


@pytest.fixture(scope="module")
def reactor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reactor]:
    folder = tmp_path_factory.mktemp("master")
    opts = salt.config.master_config(None)
    opts.update(root_dir=str(folder), cachedir=str(folder / "cache"), pki_dir=str(folder / "pki"), __role="master")
    opts.update(sock_dir=str(folder / "run"), extension_modules=str(folder / "ext"), id="master", file_client="local")
    made = Reactor(opts)
    yield made
    made.minion.destroy()


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch, reactor: Reactor) -> Iterator[Runners]:
    made = Runners()
    monkeypatch.setattr(ReactWrap, "client_cache", {"runner": made})
    yield made


@pytest.mark.parametrize("chosen", IDS, ids=repr)
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_event_calls_one_runner_with_the_id_it_has(
    reactor: Reactor, runners: Runners, tmp_path: Path, name: str, chosen: Any
) -> None:
    path = tmp_path / "reaction.sls"
    path.write_text(example(name))
    chunks = reactor.reactions("salt/minion/x/start", {ID[name]: chosen}, [str(path)])
    assert len(chunks) == 1
    wrap = ReactWrap({"reactor_refresh_interval": 60, "reactor_worker_threads": 1, "reactor_worker_hwm": 10})
    wrap.pool.fire_async = lambda function, args: function(*args)
    wrap.run(chunks[0])
    if name != "attest":
        assert runners.called == [({"join": "netspace_fleet.join", "look": "netspace_trust.look"}[name], [chosen], {})]
    else:
        assert runners.called == [("netspace_attestation.attest", [], {"target": chosen, "tgt_type": "list"})]
