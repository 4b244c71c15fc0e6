"""Attestation results in the store that the master's ``cache`` names: Redis gives the same results as files."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.attestation import runner_bus
from support.attestation.runner_bus import Bus
from support.waiting import until

from netspace.attestation.registrar import host_record

MINIONS = [f"web{number}" for number in range(5)]


@pytest.fixture
def redis() -> Iterator[Any]:
    """A server for these tests: one socket, no port, nothing on disk."""
    client = pytest.importorskip("redis", reason="pip install redis")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server missing: apt-get install redis-server")
    folder = Path(tempfile.mkdtemp(prefix="redis"))  # short: a socket's path has 107 bytes
    command = ["redis-server", "--port", "0", "--unixsocket", folder / "s", "--save", "", "--dir", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until((folder / "s").exists, "redis-server did not start")
        connected = client.StrictRedis(unix_socket_path=str(folder / "s"))

        def answers() -> bool:
            try:
                return bool(connected.ping())
            except client.ConnectionError:
                return False

        until(answers, "redis-server does not answer")
        yield connected
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)


def test_states_and_evidence_are_kept_in_redis_and_losing_them_costs_no_false_trust(
    redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = redis.connection_pool.connection_kwargs["path"]
    runner, master = runner_bus.load(
        tmp_path,
        {"groups": [{"name": "default", "minimum": "L1"}]},
        **{"cache": "redis", "cache.redis.unix_socket_path": socket},
    )
    bus = Bus(tmp_path / "host", master)
    runner_bus.join(runner, bus.ask)
    monkeypatch.setattr(runner, "_minions", lambda target, kind: list(MINIONS))
    monkeypatch.setattr(runner, "_known", lambda fleet, pattern: list(MINIONS))
    monkeypatch.setattr(runner, "_announce", lambda fleet, standing: fleet.results.announced(standing))

    found = runner.attest()
    assert {one["state"] for one in found.values()} == {"trusted"}, found
    assert {one["level"] for one in runner.status().values()} == {"L1"}
    assert redis.hlen("$KEYS_netspace_attestation/state/") == len(MINIONS)
    assert not (tmp_path / "cache/netspace_attestation").exists(), "nothing lies in files beside it"

    # Another master's word, or noise, in the place of a result counts as nothing.
    stored = runner._Store()
    key = host_record.key_of("web1")
    good = stored.fetch("state", key)
    for forged in ({"jws": good["jws"][:-4] + "AAAA"}, {"jws": 7}, {"x": 1}):
        stored.store("state", key, forged)
        assert runner.status()["web1"]["state"] == "unknown", forged
    stored.store("state", key, stored.fetch("state", host_record.key_of("web2")))
    assert runner.status()["web1"]["state"] == "unknown", "one host's result is not another's"

    # A restarted Redis has forgotten all: hosts are unknown, not green, and one run mends it.
    redis.flushall()
    assert {one["state"] for one in runner.status().values()} == {"unknown"}
    assert {one["state"] for one in runner.attest().values()} == {"trusted"}


def test_a_redis_that_is_gone_is_an_error_not_a_state(redis: Any, tmp_path: Path, monkeypatch: Any) -> None:
    runner, _ = runner_bus.load(tmp_path, {}, **{"cache": "redis", "cache.redis.unix_socket_path": "/nonexistent/s"})
    monkeypatch.setattr(runner, "_known", lambda fleet, pattern: ["web1"])
    found = runner.status()
    assert (found["code"], found["retcode"]) == ("input", 1) and "the master's cache" in found["reason"], found
