"""A whole host driven by Salt, with real crun, netlink, nftables and RabbitMQ, in the test's own namespaces."""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from support.hosts.warm_salt import WarmSalt
from support.returns import times_without_text

CHECKOUT = Path(__file__).parents[3]
IMAGE = CHECKOUT / ".cache" / "demo.tar"

CLIENT = """
import json, ssl, sys, uuid, pika
card = json.load(open("/run/netspace/environment.json"))
account = card["broker"]
about = account["tls"]
tls = ssl.create_default_context(cafile=about["ca_file"])
tls.load_cert_chain(about["certificate_file"], about["key_file"])
connection = pika.BlockingConnection(pika.ConnectionParameters(
    account["host"], account["port"], account["vhost"], pika.credentials.ExternalCredentials(),
    ssl_options=pika.SSLOptions(tls, about["server_name"]), socket_timeout=10))
channel = connection.channel()
channel.confirm_delivery()
"""

ASK = (
    CLIENT
    + """
peer = next(peer for peer in card["peers"] if peer["to"] == sys.argv[1])
key = uuid.uuid4().hex
replies = peer["replies"]
channel.queue_bind(replies["queue"], replies["exchange"], key)
channel.basic_publish(peer["exchange"], "", sys.argv[2].encode(),
    pika.BasicProperties(reply_to=replies["exchange"] + "/" + key, message_id=key), mandatory=True)
for method, properties, body in channel.consume(replies["queue"], auto_ack=True, inactivity_timeout=50):
    if method is None:
        sys.exit("no reply in 50 s")
    if properties.correlation_id == key:
        print(body.decode())
        break
"""
)

SERVE = (
    CLIENT
    + """
def answer(channel, method, properties, body):
    card = json.load(open("/run/netspace/environment.json"))  # links come and go while this runs
    sender = next(sender for sender in card["senders"] if sender["exchange"] == method.exchange)
    if properties.reply_to:
        exchange, key = properties.reply_to.rsplit("/", 1)
        channel.basic_publish(exchange, key, (card["name"] + " to " + sender["from"] + ": ").encode() + body,
            pika.BasicProperties(correlation_id=properties.message_id))
    channel.basic_ack(method.delivery_tag)
channel.basic_consume(card["mailbox"], answer)
print("serving", flush=True)
channel.start_consuming()
"""
)

IDLE = "import signal; print('idle', flush=True); signal.pause()"


def python(script: str, *arguments: str) -> list[str]:
    """Return an environment's command that runs *script*, and ends on SIGTERM."""
    return ["/usr/bin/python3", "-c", f"import signal; signal.signal(15, lambda *_: exit(0))\n{script}", *arguments]


def shop(image: Path) -> dict[str, Any]:
    """Return a declaration of three environments: web may send requests to orders; stranger has no link."""
    limits = {"memory": "64M", "cpus": 1, "pids": 16}
    common = {"image": f"tar:{image}", "limits": limits, "stop_timeout": 2}
    declared = {
        "environments": {
            "orders": {**common, "command": python(SERVE), "interface": {"kind": "veth"}, "restart": "always"},
            "web": {**common, "command": python(IDLE)},
            "stranger": {**common, "command": python(IDLE), "interface": {"kind": "veth"}},
        },
        "links": [{"from": "web", "to": "orders", "pattern": "request"}],
    }
    # A copy in which no part is another's.
    copy: dict[str, Any] = json.loads(json.dumps(declared))
    return copy


class Salt:
    """``scripts/salt-call`` as an operator runs it, with the test's own pillar.

    :param pillar: folder to keep the pillar in.
    """

    # All share it: what it has imported is the same whatever the pillar.
    _warm = WarmSalt(
        CHECKOUT / "scripts/salt-call", Path(os.environ.get("NETSPACE_SALT_HOME", CHECKOUT / ".cache/salt"))
    )
    atexit.register(_warm.end)

    def __init__(self, pillar: Path) -> None:
        self.pillar = pillar
        (pillar / "top.sls").write_text("base: {'*': [declared]}\n")
        self.declare({})

    def declare(self, declaration: dict[str, Any]) -> None:
        """Write *declaration* into the pillar."""
        (self.pillar / "declared.sls").write_text("#!json\n" + json.dumps({"netspace": declaration}))

    def __call__(self, *arguments: str, check: bool = True) -> Any:
        """Run a function; return its value."""
        done = self.run(*arguments)
        try:
            returned = json.loads(done.stdout)["local"]
        except (ValueError, KeyError):
            raise AssertionError(f"{arguments}: {done.stdout}\n{done.stderr}") from None
        if check:
            assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        assert not list(times_without_text(arguments[0], returned)), arguments
        return returned

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._warm.run(*self._options(), *arguments, timeout=600)

    def shown(self, *arguments: str) -> str:
        """Return the stdout that a terminal without colours would show, whether the function succeeds or fails."""
        options = [one for one in self._options() if not one.startswith("--out=")]
        return self._warm.run("--no-color", *options, *arguments, timeout=600).stdout

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs the function in a new process."""
        return [str(CHECKOUT / "scripts/salt-call"), *self._options(), *arguments]

    def _options(self) -> list[str]:
        return ["--out=json", "--retcode-passthrough", f"--pillar-root={self.pillar}"]

    def apply(self, declaration: dict[str, Any], *arguments: str) -> dict[str, dict[str, Any]]:
        """Run ``state.apply netspace`` with *declaration*; return each state's result by its id."""
        self.declare(declaration)
        returned = self("state.apply", "netspace", *arguments, check=False)
        assert isinstance(returned, dict), returned
        return by_id(returned)

    def exec(self, name: str, command: list[str], **options: Any) -> dict[str, Any]:
        arguments = [f"{key}={json.dumps(value)}" for key, value in options.items()]
        returned: dict[str, Any] = self("netspace_environment.exec", name, json.dumps(command), *arguments, check=False)
        return returned


def by_id(returned: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each state's result by its id, with its rows replaced by the rows' changes.

    A wrapped line of a comment becomes one line again.
    """
    found: dict[str, dict[str, Any]] = {}
    for tag, state in sorted(returned.items(), key=lambda one: one[1]["__run_num__"]):
        state["comment"] = unfolded(state["comment"])
        whole = found.setdefault(state["__id__"], state)
        if whole is not state and state["changes"]:
            thing = tag.split("_|-")[2]
            name = thing if thing in whole["changes"] else thing.partition(" ")[2]
            assert isinstance(whole["changes"][name], str), "a change is told twice"
            whole["changes"][name] = state["changes"]
    return found


def unfolded(comment: str) -> str:
    """Return a state's comment without the line breaks that fit it to a terminal's width."""
    return re.sub(r"\n  (?! )", " ", comment)


def all_true(states: dict[str, dict[str, Any]]) -> None:
    failed = {name: state["comment"] for name, state in states.items() if state["result"] is not True}
    assert not failed, failed


def changes(states: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: state["changes"] for name, state in states.items() if state["changes"]}
