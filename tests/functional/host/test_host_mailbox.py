"""Health by mailbox, with a real broker: an environment that stops reading its mailbox is restarted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import CLIENT, IDLE, Salt, all_true, changes, python
from support.waiting import until

from netspace.environment.health import record
from netspace.host.host import Host
from netspace.layout import Layout

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

# Reads its mailbox; told to, it reads no more, but lives on.
READS = (
    CLIENT
    + """
def take(channel, method, properties, body):
    channel.basic_ack(method.delivery_tag)
    if body == b"stop reading":
        channel.basic_cancel(method.consumer_tag)
channel.basic_consume(card["mailbox"], take)
channel.start_consuming()
print("deaf", flush=True)
while True:
    connection.process_data_events(time_limit=60)
"""
)
TELL = CLIENT + 'channel.basic_publish(card["peers"][0]["exchange"], "", sys.argv[1].encode(), mandatory=True)'


def declared(image: Path, script: str = READS, **keys: Any) -> dict[str, Any]:
    common = {"image": f"tar:{image}", "limits": {"memory": "64M"}, "stop_timeout": 2}
    health = {"mailbox": True, "interval": 0.5, "retries": 1, "start_period": 120}
    reader = {**common, "command": python(script), "health": health, "restart": "on-failure", **keys}
    return {
        "environments": {"reader": reader, "web": {**common, "command": python(IDLE)}},
        "links": [{"from": "web", "to": "reader", "pattern": "send"}],
    }


def reader(salt: Salt) -> dict[str, Any]:
    found: dict[str, Any] = salt("netspace_environment.list")["reader"]
    return found


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """A list of PIDs: a test stops these processes. They are continued after the test, even if it failed."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_what_reads_its_mailbox_is_healthy_and_what_stops_is_restarted(
    salt: Salt, image: Path, stopped: list[int]
) -> None:
    everything = declared(image)
    all_true(salt.apply(everything))
    assert salt("netspace_environment.wait", "reader", "timeout=120")["reader"]["health"] == "healthy"
    layout = Layout()
    assert record.up(layout, "reader").exists()
    before = reader(salt)

    # A broker that doesn't answer tells nothing of the program: it is left alone, and what is known is said.
    stopped.append(Host(layout).supervisor.observe()["broker"].pid)
    os.kill(stopped[0], signal.SIGSTOP)

    def check() -> Any:
        found = record.read(layout, "reader")
        return None if found is None else found.judgement

    until(lambda: "no answer" in check().detail)
    assert (check().state, check().failures) == ("healthy", 0)
    os.kill(stopped[0], signal.SIGCONT)
    until(lambda: check().detail == "")
    assert reader(salt)["pid"] == before["pid"]

    # It stops reading, and runs on: it is ended, started again, and healthy once it reads.
    told = salt.exec("web", python(TELL, "stop reading"))
    assert told["retcode"] == 0, told
    until(lambda: record.condemned(layout, "reader").exists() or reader(salt)["pid"] != before["pid"])
    until(lambda: reader(salt)["pid"] not in (0, before["pid"]), patience=120, pause=0.2)
    assert salt("netspace_environment.wait", "reader", "timeout=120")["reader"]["health"] == "healthy"
    after = reader(salt)
    assert after["restarts"] >= 1
    log = salt("netspace_environment.logs", "reader")
    assert "deaf" in json.dumps(log)
    assert changes(salt.apply(everything)) == {}
    assert reader(salt)["pid"] == after["pid"]


def test_an_update_that_does_not_read_is_taken_back_though_the_one_before_did(salt: Salt, image: Path) -> None:
    """An update to a program that doesn't read its mailbox is rolled back, although the old program did read.

    The broker may still count the old program's consumer; this count must not make the new program healthy.
    """
    all_true(salt.apply(declared(image)))
    assert salt("netspace_environment.wait", "reader", "timeout=120")["reader"]["health"] == "healthy"
    deaf = declared(image, IDLE, update={"deadline": 30})
    state = salt.apply(deaf)["netspace environments"]
    assert state["result"] is False
    assert "taken back" in state["comment"], state
    assert "nobody reads its mailbox" in state["comment"], state
    assert salt("netspace_environment.wait", "reader", "timeout=120")["reader"]["health"] == "healthy"
    assert "basic_consume" in json.dumps(salt("netspace_environment.inspect", "reader")["spec"]["command"])
