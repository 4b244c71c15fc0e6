"""The audit's probe finds nothing in an environment, and finds each weakness in a weakened one."""

from __future__ import annotations

import copy
import json
import os
import subprocess

import pytest
from support.environments import probe_program
from support.waiting import until

from netspace.environment.audit import probe
from netspace.environment.container import oci_config

pytestmark = pytest.mark.root

PROGRAM = probe_program.text()
LIMITS = {"memory": 64 * 1024**2, "pids": 64, "files": 256, "tmp": 32 * 1024**2, "shm": 8 * 1024**2}
DECLARED = {"memory": "64M", "pids": 64, "files": 256, "tmp": "32M", "shm": "8M"}
PEER = {
    "marker": "marker-81ac",
    "locked": "/bin/busybox",
    "touched": "/etc/ssl/openssl.cnf",
    "shm_key": 4711,
    "abstract": "victim",
    "port": 7000,
    "addresses": ["127.0.0.1"],
}


def attack(hosts, name, **target):
    given = {"limits": LIMITS, **target}
    done = hosts.operations.exec(name, ["/usr/bin/python3", "-c", PROGRAM], stdin=json.dumps(given), timeout=300)
    assert done["retcode"] == 0, done
    return json.loads(done["stdout"])


def run_victim(host, debian, peer=PEER):
    host.run(
        "victim",
        image=f"dir:{debian}",
        limits={"pids": 64},
        stop_timeout=0.5,
        command=["/usr/bin/python3", "-c", PROGRAM, "victim", json.dumps(peer)],
        env={"MARKER": peer["marker"]},
    )
    until(lambda: "ready" in host.operations.logs("victim")["lines"])


def test_there_is_enough_to_try_in_every_group():
    rows = [(group, name) for group, name, _ in probe.ATTEMPTS]
    assert len(set(rows)) == len(rows) >= 100
    for group in probe.GROUPS:
        assert len([name for its, name in rows if its == group]) >= 5, group
    assert {group for group, _ in rows} == set(probe.GROUPS)


@pytest.mark.parametrize("profile", ["strict", "standard"])
def test_nothing_succeeds(host, debian, profile):
    run_victim(host, debian)
    host.run("web", image=f"dir:{debian}", limits=DECLARED, seccomp=profile)
    rows = attack(host, "web", peer=PEER, host={"broker_ports": [15682], "addresses": []})
    assert [row for row in rows if row["outcome"] == "succeeded"] == []
    refused = {group: [r for r in rows if (r["group"], r["outcome"]) == (group, "refused")] for group in probe.GROUPS}
    assert min(len(of_group) for of_group in refused.values()) >= 3, refused
    assert host.kind.list()["victim"]["restarts"] == 0


LET_THROUGH = "unshare ptrace keyctl add_key adjtimex fanotify_init"
WEAKNESSES = {
    "files": "find a file of another environment",
    "locks": "see another environment's flock on the same image",
    "memory": "see the peer's marker in shared anonymous memory of /dev/shm",
    "processes": "trace a child of its own",
    "namespaces": "unshare a user namespace",
    "kernel": "keyctl",
    "devices": "open a device beyond the minimal set",
    "network": "bind a host interface or see one",
    "broker": "reach the broker's management or distribution port",
    "time": "steer or read the clock's discipline (adjtimex)",
    "resources": "open more files than its limit",
}


@pytest.fixture
def weakened(monkeypatch, tmp_path_factory):
    """Weaken every configuration: hardening is missing, and all environments share a folder of the host."""
    shared = tmp_path_factory.mktemp("shared")
    shared.chmod(0o1777)
    (shared / "busybox").write_text(f"locked; {PEER['marker']}")
    (shared / "busybox").chmod(0o644)
    os.mknod(shared / "extra", 0o666 | 0o020000, os.makedev(1, 7))
    (shared / "extra").chmod(0o666)
    genuine = oci_config.config

    def weak(name, spec, **keys):
        config = copy.deepcopy(genuine(name, spec, **keys))
        config["linux"]["seccomp"]["syscalls"].append({"names": LET_THROUGH.split(), "action": "SCMP_ACT_ALLOW"})
        config["linux"]["maskedPaths"] = []
        mounts = [mount for mount in config["mounts"] if mount["destination"] != "/dev/shm"]
        for target in ("/dev/shm", "/mnt"):
            mounts.append({"destination": target, "type": "bind", "source": str(shared), "options": ["bind", "rw"]})
        source = str(shared / "extra")
        mounts.append({"destination": "/dev/extra", "type": "bind", "source": source, "options": ["bind", "rw"]})
        config["mounts"] = mounts
        return config

    process = oci_config.process
    monkeypatch.setattr(oci_config, "config", weak)
    monkeypatch.setattr(oci_config, "process", lambda *given, **more: {**process(*given, **more), "rlimits": []})
    return shared


def test_each_weakness_is_found(host, debian, weakened):
    """A check of the probe: without the hardening, at least one attempt of every group succeeds."""
    namespace = host.layout.netns_name("web")
    host.namespace("web")
    subprocess.run(["ip", "-n", namespace, "link", "add", "leak0", "type", "veth"], check=True)
    subprocess.run(["ip", "-n", namespace, "link", "set", "lo", "up"], check=True)
    peer = {**PEER, "locked": "/mnt/busybox"}
    host.run("web", image=f"dir:{debian}", limits=DECLARED)
    run_victim(host, debian, peer)
    listen = (
        "import socket, signal; s = socket.create_server(('127.0.0.1', 15682)); print('up', flush=1); signal.pause()"
    )
    broker = subprocess.Popen(
        ["ip", "netns", "exec", namespace, "python3", "-c", listen], stdout=subprocess.PIPE, text=True
    )
    try:
        assert broker.stdout.readline() == "up\n"
        rows = attack(host, "web", peer=peer, host={"broker_ports": [15682], "addresses": []})
    finally:
        broker.kill()
        broker.wait()
    found = {(row["group"], row["name"]): row for row in rows}
    missed = [found[weakness] for weakness in WEAKNESSES.items() if found[weakness]["outcome"] != "succeeded"]
    assert missed == []
    for weakness in (
        ("kernel", "read what tells of the kernel and of other programs"),
        ("kernel", "tell this host from another (boot id, counters of open files)"),
        ("locks", "watch a whole file system (fanotify)"),
    ):
        assert found[weakness]["outcome"] == "succeeded", found[weakness]
    # What was not taken away still holds.
    assert found["namespaces", "mount a tmpfs"]["outcome"] == "refused"
    assert found["kernel", "bpf"]["outcome"] == "refused"
