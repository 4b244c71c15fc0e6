"""``netspace_environment.audit``: a temporary twin of any environment is made, and removed without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.environments.twins import bare_root, traces, users
from support.hosts.whole_host import CHECKOUT, IDLE, all_true, python

from netspace.environment.audit import probe

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

SECRET = "secret-7c1d"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return bare_root(tmp_path_factory.mktemp("bare"))


def declared(image, bare, volume):
    limits = {"memory": "64M", "pids": 32, "tmp": "16M"}
    return {
        "environments": {
            "web": {
                "image": f"tar:{image}",
                "command": python(IDLE),
                "limits": limits,
                "env": {"TOKEN": SECRET},
                "interface": {"kind": "veth", "ipv4": "10.203.9.9"},
                "volumes": [{"source": str(volume), "target": "/data"}],
                "stop_timeout": 1,
            },
            "bare": {
                "image": f"dir:{bare}",
                "command": ["/bin/busybox", "sleep", "1000"],
                "limits": limits,
                "read_only": True,
                "init": True,
                "seccomp": "standard",
                "stop_timeout": 1,
            },
            "small": {
                "image": f"dir:{bare}",
                "command": ["/bin/busybox", "sleep", "1000"],
                "limits": {**limits, "disk": "32M"},
                "stop_timeout": 1,
            },
        },
        "links": [{"from": "web", "to": "bare"}],
    }


@pytest.fixture
def applied(salt, image, bare, tmp_path):
    volume = tmp_path / "data"
    wanted = declared(image, bare, volume)
    all_true(salt.apply(wanted))
    (volume / "file").write_text(SECRET)
    return wanted


def test_everything_is_refused_whatever_the_image(salt, applied):
    before = users()
    for name in ("web", "bare", "small"):
        rows = salt("netspace_environment.audit", name)
        assert [row for row in rows if row["outcome"] == "succeeded"] == []
        assert len(rows) == len(probe.ATTEMPTS)
        assert all(set(row) == {"name", "group", "outcome", "detail"} for row in rows)
        assert SECRET not in json.dumps(rows)
        skipped = {row["name"]: row["detail"] for row in rows if row["outcome"] == "skipped"}
        assert skipped.pop("reach outside by tcp") == "an audit sends nothing beyond this host"
        assert "peer" not in "".join(why for what, why in skipped.items() if "reach" not in what), skipped
        refused = {(row["group"], row["name"]) for row in rows if row["outcome"] == "refused"}
        if name == "web":
            assert {("network", "reach peer by tcp"), ("network", "reach host by tcp")} <= refused
        else:
            assert skipped["reach peer by tcp"] == "it has no interface"
        assert ("locks", "see another environment's flock on the same image") in refused
        assert ("files", "find a file of another environment") in refused
        if name == "small":
            assert ("resources", "fill the host's disk by its own layer") in refused
        assert ("resources", "use more memory than its limit") in refused
        assert traces() == []
    assert users() == before
    # The originals were not touched, and nothing is to be done.
    states = salt.apply(applied, "test=True")
    assert {state["result"] for state in states.values()} == {True}
    summary = salt("netspace_environment.audit", "web", "summary=True")
    assert summary["rows"] == []
    assert summary["succeeded"] == 0
    assert summary["comment"].startswith("all attempts were refused: ")


def test_an_unknown_name_is_told(salt, applied):
    done = salt.run("netspace_environment.audit", "wbe")
    assert "there is no environment wbe; did you mean web?" in done.stderr
    assert done.returncode != 0
    assert traces() == []


def test_limits_too_narrow_for_a_twin_are_told(salt, bare):
    limits = {"memory": "4M"}
    web = {"image": f"dir:{bare}", "command": ["/bin/busybox", "sleep", "1000"], "stop_timeout": 1, "limits": limits}
    all_true(salt.apply({"environments": {"narrow": web}}))
    done = salt.run("netspace_environment.audit", "narrow")
    assert done.returncode != 0
    assert "a twin can't be run: " in done.stderr
    assert traces() == []


def test_no_twin_is_seen_on_a_network_beyond_the_host(salt, bare):
    subprocess.run(["ip", "link", "add", "br-audit", "type", "bridge"], check=True)
    try:
        web = {"image": f"dir:{bare}", "command": ["/bin/busybox", "sleep", "1000"], "stop_timeout": 1}
        web["interface"] = {"kind": "bridge", "bridge": "br-audit", "ipv4": "198.51.100.7/24"}
        subprocess.run(["ip", "link", "set", "br-audit", "up"], check=True)
        all_true(salt.apply({"environments": {"lan": web}}))
        rows = {row["name"]: row for row in salt("netspace_environment.audit", "lan")}
        assert {row["outcome"] for row in rows.values()} == {"refused", "skipped"}
        assert "a twin has no interface of kind bridge" in rows["reach peer by tcp"]["detail"]
        assert rows["open a raw IP socket"]["outcome"] == "refused"
        assert [trace for trace in traces() if "br-audit" not in trace] == []
    finally:
        salt("netspace.teardown")
        subprocess.run(["ip", "link", "delete", "br-audit"], check=True)


WEAK = """
import sys, json; sys.path.insert(0, sys.argv[1])
from netspace.environment.container import oci_config as oci
genuine = oci.config
def weak(*arguments, **keys):
    config = genuine(*arguments, **keys)
    config["linux"]["seccomp"]["syscalls"].append({"names": ["keyctl", "ptrace"], "action": "SCMP_ACT_ALLOW"})
    config["linux"]["maskedPaths"] = []
    return config
oci.config = weak
from netspace.host.audit import audit; from netspace.host.host import Host; from netspace.layout import Layout
from netspace.spec.types import Network
json.dump(audit(Host(Layout()), "bare", Network()), sys.stdout)
"""


def test_a_weakness_of_the_configuration_is_found(applied):
    done = subprocess.run(
        [sys.executable, "-c", WEAK, str(CHECKOUT / "_utils")], capture_output=True, text=True, check=True, timeout=200
    )
    rows = {row["name"] for row in json.loads(done.stdout) if row["outcome"] == "succeeded"}
    assert {"keyctl", "trace a child of its own"} <= rows
    assert "read what tells of the kernel and of other programs" in rows
    assert "bpf" not in rows
    assert traces() == []


def test_success_is_an_exit_code():
    """An audit in which an attempt succeeded sets the exit code 2; refused and skipped attempts leave 0."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import netspace_environment as module\n"
        "from netspace.host import audit\n"
        "audit.audit = lambda *_: [{'name': 'x', 'group': 'files', 'outcome': sys.stdin.read(), 'detail': ''}]\n"
        "module.__opts__, module.__pillar__, module.__context__ = {}, {}, {}\n"
        "module.audit('web'); print(module.__context__.get('retcode', 0))\n"
    )
    for outcome, code in (("succeeded", "2"), ("skipped", "0"), ("refused", "0")):
        done = subprocess.run(
            [sys.executable, "-c", script, str(CHECKOUT / "_utils"), str(CHECKOUT / "_modules")],
            input=outcome,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == code


def test_what_a_killed_audit_leaves_the_next_apply_removes(salt, applied):
    before = users()
    command = salt.command("netspace_environment.audit", "web")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while len(users()) < len(before) + 2 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert users() > before
    assert traces()
    all_true(salt.apply(applied))
    assert traces() == []
    assert users() == before
