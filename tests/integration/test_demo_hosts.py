"""``scripts/demo --hosts`` as an operator sees it: two hosts, each with its own Salt, and a request between them."""

from __future__ import annotations

import subprocess

import pytest
from support import checkout

pytestmark = pytest.mark.root


def test_two_hosts_are_linked_and_a_killed_broker_loses_nothing() -> None:
    before = _everything()
    done = subprocess.run([checkout.ROOT / "scripts/demo", "--hosts"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "orders@h2 answers: order " in done.stdout and "for web@h1: 3 pears, thank you" in done.stdout
    assert "for web@h1: 4 plums, thank you" in done.stdout.partition("is killed")[2]
    assert "orders@h2 logs: from till@h1: while it was away" in done.stdout
    assert done.stdout.count("nothing to do") == 2
    assert _everything() == before
    assert not (checkout.ROOT / ".cache/hosts").exists()


def _everything() -> list[str]:
    """Return all possible traces of the demo: namespaces, interfaces, mounts, processes of broker and forwarder."""
    commands = (["ip", "netns"], ["ip", "-o", "link"], ["findmnt", "-rno", "TARGET"], ["pgrep", "-a", "beam|haproxy"])
    return [subprocess.run(command, capture_output=True, text=True).stdout for command in commands]
