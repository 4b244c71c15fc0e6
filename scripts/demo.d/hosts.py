"""The demonstration of ``scripts/demo --hosts``: two linked hosts, each made of namespaces, with its own Salt.

Each host is managed only by its own ``scripts/salt-call``. The demonstration leaves nothing on the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from show import ROWS, Failed, paint, run, say, step

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
FOLDER = ROOT / ".cache/hosts"
ADDRESSES = {"h1": "198.51.100.1", "h2": "198.51.100.2"}
PORT = 5671

PYTHON = "/usr/bin/python3"
ENVIRONMENTS = {"h1": {"web": "web.py", "till": "till.py"}, "h2": {"orders": "orders.py"}}
LINKS = [
    {"from": "web@h1", "to": "orders@h2", "pattern": "request"},
    {"from": "till@h1", "to": "orders@h2", "via": "buffered"},
]


class Host:
    """One of the demo's hosts. A process in its sandbox, which also runs this file, executes commands there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.domain = f"{name}.example.org"
        self.home = FOLDER / name
        self._process = subprocess.Popen(
            [str(SCRIPTS / "sandbox"), sys.executable, "-B", __file__, "--obey"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NETSPACE_SALT_HOME": str(self.home / "salt")},
        )
        self.run("true")  # it is there

    def run(self, *command: str) -> str:
        """Run a command on the host; return its output.

        :raises Failed: the command failed; the error has its output.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Failed(f"{self.name} ended")
        code, output = json.loads(answer)
        if code != 0 and not output.startswith("{"):
            raise Failed(f"{self.name}: {' '.join(command)}: exit {code}: {output}")
        return str(output)

    def salt(self, *arguments: str) -> Any:
        """Call a Salt function on the host; return its result."""
        output = self.run(str(SCRIPTS / "salt-call"), "--out", "json", "--log-level", "error", *arguments)
        try:
            return json.loads(output)["local"]
        except (ValueError, KeyError) as err:
            raise Failed(f"{self.name}: salt-call {' '.join(arguments)}: {output}") from err

    def shown(self, *arguments: str) -> str:
        """Call a Salt function on the host; return the text that Salt prints."""
        return self.run(str(SCRIPTS / "salt-call"), "--log-level", "error", *arguments)

    def declare(self, key: str) -> None:
        """Write this host's pillar: its own environments, and the links of both hosts.

        :param key: the other host's public key.
        """
        other = next(name for name in ADDRESSES if name != self.name)
        broker = {
            "kind": "local",
            "host": self.name,
            "listen": f"{ADDRESSES[self.name]}:{PORT}",
            "trust_domain": self.domain,
            "authority": str(self.home / "authority"),
            "hosts": {
                other: {
                    "trust_domain": f"{other}.example.org",
                    "address": f"{ADDRESSES[other]}:{PORT}",
                    "public_key": key,
                }
            },
        }
        environments = {
            name: {
                "image": f"tar:{ROOT}/.cache/demo.tar",
                "command": [PYTHON, f"/demo/{script}"],
                "limits": {"memory": "64M", "cpus": 0.5, "pids": 16},
            }
            for name, script in ENVIRONMENTS[self.name].items()
        }
        pillar = self.home / "pillar"
        pillar.mkdir()
        (pillar / "top.sls").write_text("base: {'*': [shop]}\n")
        section = {"broker": broker, "environments": environments, "links": LINKS}
        (pillar / "shop.sls").write_text(json.dumps({"netspace": section}, indent=1))
        more = self.home / "salt/etc/minion.d"
        more.mkdir(parents=True, exist_ok=True)
        (more / "demo.conf").write_text(json.dumps({"id": self.name, "pillar_roots": {"base": [str(pillar)]}}))

    def apply(self) -> int:
        """Apply this host's declaration; return how many things changed."""
        result = self.salt("state.apply", "netspace")
        if not isinstance(result, dict):
            raise Failed(f"{self.name}: {result}")
        bad = [state["comment"] for state in result.values() if state["result"] is not True]
        if bad:
            raise Failed(f"{self.name}: {'; '.join(bad)}")
        return sum(len(state["changes"]) for tag, state in result.items() if not tag.endswith(ROWS))

    def inside(self, environment: str, *command: str) -> dict[str, Any]:
        found = self.salt("netspace_environment.exec", environment, json.dumps(command))
        if not isinstance(found, dict):
            raise Failed(f"{self.name}: {environment}: {found}")
        return found

    def process(self) -> int:
        """Return the PID, as seen from this process, of one of the host's processes."""
        found = self._process.pid
        while below := Path(f"/proc/{found}/task/{found}/children").read_text().split():
            found = int(below[0])
        return found

    def end(self) -> None:
        """End the host; its namespaces end with it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(120)


def obey() -> None:
    """Run each incoming command, inside the sandbox; answer with its exit code and output."""
    for line in sys.stdin:
        done = subprocess.run(json.loads(line), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        print(json.dumps([done.returncode, done.stdout.strip()]), flush=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(mode=0o700, parents=True)
    with contextlib.ExitStack() as after:
        after.callback(shutil.rmtree, FOLDER, ignore_errors=True)
        made = []
        for name in ADDRESSES:
            (FOLDER / name).mkdir()
            made.append(Host(name))
            after.callback(made[-1].end)
        h1, h2 = made
        ends = [
            "cable",
            "netns",
            str(h1.process()),
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            str(h2.process()),
        ]
        subprocess.run(["ip", "link", "add", *ends], check=True)
        for host in made:
            host.run("ip", "address", "add", f"{ADDRESSES[host.name]}/24", "dev", "cable")
            host.run("ip", "link", "set", "cable", "up")
        yield h1, h2


def authority(host: Host) -> None:
    """Give the host a CA for its own names, signed by the common root CA; the host's CA key stays on the host."""
    folder = f"folder={host.home / 'authority'}"
    request, answer = host.home / "request.pem", host.home / "answer.pem"
    request.write_text(host.salt("netspace_link.authority_request", folder))
    home = {**os.environ, "NETSPACE_SALT_HOME": str(FOLDER / "master")}
    more = FOLDER / "master/etc/master.d"
    more.mkdir(parents=True, exist_ok=True)
    (more / "demo.conf").write_text(json.dumps({"netspace.link": {"root": str(FOLDER / "root")}}))
    command = [str(SCRIPTS / "salt-run"), "--out", "json", "--log-level", "error"]
    done = subprocess.run(
        [*command, "netspace_link.sign", str(request), host.domain],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=home,
    )
    try:
        answer.write_text(json.loads(done.stdout))
    except (ValueError, TypeError) as err:
        raise Failed(f"salt-run netspace_link.sign: {done.stdout}") from err
    if host.salt("netspace_link.authority_adopt", str(answer), folder) is not True:
        raise Failed(f"{host.name} got no authority")
    say(f"   {host.name}: an authority for names of {host.domain}, and no others")


def ask(h1: Host, text: str, seconds: float = 180.0) -> float:
    """Let web send requests to orders until an answer comes; return the seconds that this took."""
    began = time.monotonic()
    while True:
        result = h1.inside("web", PYTHON, "/demo/web.py", text)
        if result["retcode"] == 0:
            say(f"   orders@h2 answers: {result['stdout'].strip()}")
            return time.monotonic() - began
        if time.monotonic() - began > seconds:
            raise Failed(f"no answer: {result['stdout']}{result['stderr']}")
        say(paint(f"   {result['stdout'].strip() or 'no answer'}; again", "2"))
        time.sleep(1.0)


def show() -> None:
    with two_hosts() as (h1, h2):
        with step("Two hosts, a cable between them, and one root that both trust"):
            keys = [
                str(host.salt("netspace_link.public_key", f"folder={host.home / 'authority'}")) for host in (h1, h2)
            ]
            for host, key in zip((h1, h2), reversed(keys), strict=True):
                host.declare(key)
                authority(host)
        with step("Apply on both: state.apply netspace, with the same list of links"):
            for host in (h2, h1):
                say(f"   {host.name}: {host.apply()} things changed")
        with step("The links, as each host knows them"):
            for host in (h1, h2):
                say(f"   on {host.name}:")
                say(host.shown("netspace_link.list"))
        with step("A request across hosts"):
            say("   web on h1 asks orders@h2 for '3 pears'")
            ask(h1, "3 pears")
        with step("The broker of h2 is killed (SIGKILL) in the middle"):
            h2.run("pkill", "-KILL", "-x", "beam.smp")
            say("   web asks again at once; till sends to orders@h2, buffered")
            for _ in range(5):  # on a busy machine its own broker may take its time
                sent = h1.inside("till", PYTHON, "/demo/till.py", "orders@h2", "while it was away")
                if sent["retcode"] == 0:
                    break
            else:
                raise Failed(f"the environment till could not send: {sent['stdout']}{sent['stderr']}")
            say(f"   till: {sent['stdout'].strip()} (its own broker has it)")
            say(f"   answered after {ask(h1, '4 plums'):.1f} s")
        with step("What was sent while it was away has arrived"):
            arrived(h2, "while it was away")
        with step("Apply again"):
            for host in (h1, h2):
                if host.apply():
                    raise Failed(f"{host.name}: the second apply changed something")
                say(f"   {host.name}: nothing to do")


def arrived(h2: Host, text: str, seconds: float = 180.0) -> None:
    until = time.monotonic() + seconds
    while True:
        logged = str(h2.salt("netspace_environment.logs", "orders"))
        if f"from till@h1: {text}" in logged:
            say(f"   orders@h2 logs: from till@h1: {text}")
            return
        if time.monotonic() > until:
            raise Failed(f"the log of orders@h2 lacks the message: {logged[-500:]}")
        time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(run(obey if "--obey" in sys.argv[1:] else show))
