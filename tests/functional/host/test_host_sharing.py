"""A program in an environment tries to break out of it; every attempt fails."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.environments import probe_program
from support.hosts.whole_host import CHECKOUT, all_true, python, shop
from support.waiting import until

from netspace.layout import Layout
from netspace.link.topology import names
from netspace.spec.types import LocalBroker

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

PROBE = probe_program.text()
MARKER = "marker-5f2c1e"
HOST_PORT = 7001
OUTSIDE = {"ipv4": "198.18.7.2", "ipv6": "fd00:198:18:7::2"}
PEER = {
    "marker": MARKER,
    "locked": "/usr/bin/python3",
    "touched": "/etc/os-release",
    "shm_key": 7788,
    "abstract": "victim",
    "port": 7000,
}


def attacked(image):
    """Return the shop's declaration with a victim, and with an attacker that has a link and an interface."""
    declared = shop(image)
    every = [
        {"direction": direction, "cidr": cidr, "protocol": protocol}
        for direction in ("in", "out")
        for cidr in ("10.203.0.0/16", "fd6e:6574:7370::/64")
        for protocol in ("tcp", "udp")
    ]
    victim = declared["environments"].pop("stranger")
    victim["command"] = ["/usr/bin/python3", "-c", PROBE, "victim", json.dumps(PEER)]
    victim["env"] = {"MARKER": MARKER}
    # Both ends allow the whole range of environments: even so, one never reaches another.
    victim["interface"] = {"kind": "veth", "allow": every}
    attacker = declared["environments"].pop("web")
    attacker["interface"] = {"kind": "veth", "allow": copy.deepcopy(every)}
    declared["environments"].update(victim=victim, attacker=attacker)
    declared["links"] = [
        {"from": "attacker", "to": "orders", "pattern": "request"},
        {"from": "victim", "to": "orders", "pattern": "send"},
    ]
    return declared


@pytest.fixture
def outside():
    """A machine outside and a service on the host, both in network namespaces of this test."""

    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True)

    ip("netns", "add", "outside")
    ip("link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", "outside")
    for family, length in (("ipv4", 24), ("ipv6", 64)):
        inner = OUTSIDE[family]
        ip("address", "add", inner[:-1] + f"1/{length}", "dev", "up0", *(["nodad"] if family == "ipv6" else []))
        ip(
            "-n",
            "outside",
            "address",
            "add",
            f"{inner}/{length}",
            "dev",
            "eth0",
            *(["nodad"] if family == "ipv6" else []),
        )
    ip("link", "set", "up0", "up")
    for name in ("lo", "eth0"):
        ip("-n", "outside", "link", "set", name, "up")
    for version in ("ipv4", "ipv6"):
        Path(f"/proc/sys/net/{version}/conf/all/forwarding").write_text("1")
    answer = (
        "import socket, select\n"
        "t = socket.create_server(('::', {port}), family=socket.AF_INET6, dualstack_ipv6=True)\n"
        "u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
        "u.setsockopt(41, socket.IPV6_V6ONLY, 0); u.bind(('::', {port}))\n"
        "print('up', flush=True)\n"
        "while True:\n"
        "    for end in select.select([t, u], [], [])[0]:\n"
        "        end.accept()[0].close() if end is t else u.sendto(b'yes', u.recvfrom(9)[1])\n"
    )
    services = [
        subprocess.Popen([sys.executable, "-c", answer.format(port=HOST_PORT)], stdout=subprocess.PIPE),
        subprocess.Popen(
            ["ip", "netns", "exec", "outside", sys.executable, "-c", answer.format(port=80)], stdout=subprocess.PIPE
        ),
    ]
    for service in services:
        assert service.stdout.readline() == b"up\n"
    yield
    for service in services:
        service.kill()
        service.wait()
    ip("link", "delete", "up0")
    ip("netns", "delete", "outside")
    for version in ("ipv4", "ipv6"):
        Path(f"/proc/sys/net/{version}/conf/all/forwarding").write_text("0")


def aim(salt, declared):
    """Return the attacker's targets. It contains names and addresses that a real attacker wouldn't know."""
    interfaces = salt("netspace_interface.list")
    broker = declared.get("broker", {})
    called = names.ensure(Layout(), LocalBroker())
    return {
        "peer": {
            **PEER,
            "addresses": list(interfaces["victim"]["addresses"].values()),
            "mailbox": called.of("mailbox.victim"),
            "link": called.of("link.victim.orders"),
            "account": "env.victim",
        },
        "host": {
            "addresses": ["10.203.0.1", "fd6e:6574:7370::1", "198.18.7.1", "fd00:198:18:7::1"],
            "port": HOST_PORT,
            "broker_ports": [broker.get("port", 5682), 15682, 25682, 4379],
        },
        "outside": {"addresses": list(OUTSIDE.values()), "port": 80},
        "limits": {"memory": 64 * 1024**2, "pids": 16, "files": 1024, "tmp": 64 * 1024**2, "shm": 16 * 1024**2},
    }


def probe(salt, name, target):
    done = salt.exec(name, ["/usr/bin/python3", "-c", PROBE], stdin=json.dumps(target), timeout=300)
    assert done["retcode"] == 0, done
    return json.loads(done["stdout"])


def test_every_attempt_to_break_out_fails(salt, image, outside):
    declared = attacked(image)
    all_true(salt.apply(declared))
    target = aim(salt, declared)
    # The targets are really there: the host and the outside answer on the host itself.
    for address in (*target["host"]["addresses"][2:], *OUTSIDE.values()):
        port = HOST_PORT if address.endswith("1") else 80
        socket.create_connection((address, port), timeout=5).close()
    until(lambda: salt("netspace_environment.logs", "victim") == ["ready"], pause=0.2)
    rows = probe(salt, "attacker", target)
    assert len(rows) >= 100
    succeeded = [row for row in rows if row["outcome"] == "succeeded"]
    assert not succeeded, succeeded
    skipped = {row["name"] for row in rows if row["outcome"] == "skipped"}
    assert skipped <= {"run a setuid program as root", "fill the host's disk by its own layer"}, rows
    # And the victim never noticed: it still runs as it did.
    assert salt("netspace_environment.inspect", "victim")["restarts"] == 0


def test_the_probe_finds_what_a_plain_process_can_do():
    """A check of the probe: without isolation, as a plain user of the host, its attempts succeed."""
    target = {"peer": PEER, "host": {"addresses": ["127.0.0.1"], "port": HOST_PORT}}
    with socket.create_server(("127.0.0.1", HOST_PORT)):
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", PROBE],
            input=json.dumps(target),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    rows = {row["name"]: row["outcome"] for row in json.loads(done.stdout)}
    for name in (
        "hold any capability",  # no_new_privs and the filter are missing
        "unshare a user namespace",
        "clone with a new user namespace",
        "trace a child of its own",
        "keyctl",
        "reach host by tcp",
        "read what tells of the kernel and of other programs",
        "open a device beyond the minimal set",
    ):
        assert rows[name] == "succeeded", name


def test_one_system_call_let_through_is_found(salt, image, tmp_path):
    """The profile also permits ``keyctl`` and ``add_key``; the probe reports that such a call succeeded.

    All other hardening stays.
    """
    library = tmp_path / "loose"
    subprocess.run(["cp", "-r", str(CHECKOUT / "_utils"), str(library)], check=True)
    seccomp = library / "netspace/environment/container/seccomp.py"
    assert seccomp.exists()
    script = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from netspace.environment.container import seccomp\n"
        "profile = seccomp.profile('strict')\n"
        "profile['syscalls'].append({'names': ['keyctl', 'add_key'], 'action': 'SCMP_ACT_ALLOW'})\n"
        "seccomp.profile = lambda *_: profile\n"
        "from netspace.host.host import Host; from netspace.layout import Layout; from netspace.spec import parse\n"
        "host = Host(Layout()); declared = parse.declaration(json.load(sys.stdin))\n"
        "result = host.converge_environments(declared)\n"
        "assert result.ok, result\n"
    )
    declared = {"environments": {"loose": {"image": f"tar:{image}", "command": python("signal.pause()")}}}
    subprocess.run([sys.executable, "-c", script, str(library)], input=json.dumps(declared), text=True, check=True)
    rows = {row["name"]: row["outcome"] for row in probe(salt, "loose", {})}
    assert "succeeded" in (rows["keyctl"], rows["add_key"])
    assert rows["bpf"] == "refused"
    os.sync()
