"""A client sends requests while the answering program is updated: no request is lost, even if the update fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import CLIENT, IDLE, SERVE, Salt, all_true, changes, python

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

# Answers with its version; well once it reads its mailbox.
SERVES = SERVE.replace('card["name"] + " to "', 'os.environ["VERSION"] + " to "').replace(
    'print("serving"', 'open("/tmp/serving", "w").close()\nprint("serving"'
)
assert SERVES.count("VERSION") == SERVES.count("/tmp/serving") == 1
# Asks, one question after the other, until it is told to stop; how often, how it was answered, the longest wait.
ASKS = (
    CLIENT
    + """
import os, time
peer = next(peer for peer in card["peers"] if peer["to"] == "orders")
replies, by, asked, longest = peer["replies"], {}, 0, 0.0
answers = channel.consume(replies["queue"], auto_ack=True, inactivity_timeout=60)
key = uuid.uuid4().hex
channel.queue_bind(replies["queue"], replies["exchange"], key)
open("/tmp/asking", "w").close()
while not os.path.exists("/tmp/enough"):
    asked, began = asked + 1, time.monotonic()
    channel.basic_publish(peer["exchange"], "", b"?",
        pika.BasicProperties(reply_to=replies["exchange"] + "/" + key, message_id=str(asked)), mandatory=True)
    for method, properties, body in answers:
        if method is None:
            sys.exit("question %d is not answered in a minute; before: %s" % (asked, by))
        if properties.correlation_id == str(asked):
            break
    longest = max(longest, time.monotonic() - began)
    version = body.decode().split()[0]
    by[version] = by.get(version, 0) + 1
    time.sleep(0.01)
os.unlink("/tmp/enough")
print(json.dumps({"asked": asked, "by": by, "longest": longest}))
"""
)
EXISTS = "import os, sys; sys.exit(not os.path.exists(sys.argv[1]))"
HEALTH = {"exec": ["/usr/bin/python3", "-c", EXISTS, "/tmp/serving"], "interval": 1, "start_period": 60, "timeout": 60}


def declared(image: Path, version: str, script: str = SERVES, **update: Any) -> dict[str, Any]:
    common = {"image": f"tar:{image}", "stop_timeout": 10, "read_only": True}
    orders = {"command": python(f"import os\n{script}"), "env": {"VERSION": version}, "health": HEALTH}
    asker = {"command": python(IDLE), "health": {"exec": ["/usr/bin/python3", "-c", ""], "timeout": 60}}
    return {
        "environments": {"orders": {**common, **orders, "update": update}, "web": {**common, **asker}},
        "links": [{"from": "web", "to": "orders", "pattern": "request"}],
    }


def meanwhile(salt: Salt, act: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Call *act* while web sends requests; return the results of both."""
    told: dict[str, Any] = {}
    asking = threading.Thread(
        target=lambda: told.update(salt.exec("web", ["/usr/bin/python3", "-c", ASKS], timeout=300))
    )
    asking.start()
    try:
        there = "import os, time\nwhile not os.path.exists('/tmp/asking'): time.sleep(0.1)\nos.unlink('/tmp/asking')"
        salt.exec("web", ["/usr/bin/python3", "-c", there])
        done = act()
    finally:
        salt.exec("web", ["/usr/bin/python3", "-c", "open('/tmp/enough', 'w').close()"])
        asking.join()
    assert told["retcode"] == 0, told
    counted = json.loads(told["stdout"])
    assert sum(counted["by"].values()) == counted["asked"] > 0
    return done, counted


def test_no_question_is_lost_by_an_update_and_a_failed_one_is_not_noticed(salt: Salt, image: Path) -> None:
    all_true(salt.apply(declared(image, "one")))
    assert salt("netspace_environment.wait", "orders", "timeout=120")["orders"]["health"] == "healthy"
    first = salt("netspace_environment.list")

    planned = salt.apply(declared(image, "two"), "test=True")["netspace environments"]
    assert "rolling update: a second instance is started beside it first" in planned["comment"], planned
    # What asks is never there twice: an answer could reach the one that did not ask.
    assert salt("netspace_environment.wait", "web", "timeout=120")["web"]["health"] == "healthy"
    asker = declared(image, "one")
    asker["environments"]["web"]["env"] = {"A": "1"}
    planned = salt.apply(asker, "test=True")["netspace environments"]
    assert "an answer to one instance could reach the other" in planned["comment"], planned

    states, counted = meanwhile(salt, lambda: salt.apply(declared(image, "two")))
    all_true(states)
    assert set(changes(states)["netspace environments"]) == {"orders"}
    assert set(counted["by"]) == {"one", "two"}, counted
    second = salt("netspace_environment.list")
    assert second["orders"]["pid"] != first["orders"]["pid"] and not second["orders"]["updating"]
    assert second["web"] == first["web"]
    assert changes(salt.apply(declared(image, "two"))) == {}

    deaf = declared(image, "three", IDLE, deadline=5)
    states, counted = meanwhile(salt, lambda: salt.apply(deaf))
    failed = states["netspace environments"]
    assert failed["result"] is False
    assert "the update was not made: its second instance failed: it was not healthy" in failed["comment"]
    assert set(counted["by"]) == {"two"}
    assert salt("netspace_environment.list") == second
    again = salt.apply(deaf)["netspace environments"]
    assert again["result"] is False and "taken back" in again["comment"]
