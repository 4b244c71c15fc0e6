"""An apply with nothing to do changes nothing: the test counts its state-changing system calls."""

from __future__ import annotations

import collections
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts import system_calls
from support.hosts.whole_host import IDLE, Salt, all_true, changes, python

from netspace.layout import Layout

COUNT = 50

APPLY = """
import json, sys
sys.path.insert(0, sys.argv[1])
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.spec import parse
declared = parse.declaration(json.load(open(sys.argv[2])))
host = Host(Layout())
results = [
    host.converge_attestation(declared.attestation),
    host.converge_interfaces(declared, whole=True),
    host.converge_links(declared, whole=True),
    host.converge_environments(declared, whole=True),
]
print(json.dumps([len(result.plan.steps) for result in results]))
"""


@pytest.fixture(scope="module")
def declared(salt: Salt, image: Path) -> Iterator[dict[str, Any]]:
    """A host that equals its declaration, with many environments, half of them with an interface."""
    limits = {"memory": "64M", "pids": 16}
    one = {"image": f"tar:{image}", "command": python(IDLE), "limits": limits, "stop_timeout": 2}
    declaration = {
        "environments": {
            f"idle{number}": {**one, "interface": {"kind": "veth" if number % 2 else "none"}} for number in range(COUNT)
        }
    }
    salt("netspace.teardown")
    all_true(salt.apply(declaration))
    yield declaration
    salt("netspace.teardown")


def test_an_apply_with_nothing_to_do_makes_no_change_by_any_system_call(declared, tmp_path):
    written = tmp_path / "declaration.json"
    written.write_text(json.dumps(declared))
    library = Path(__file__).parents[3] / "_utils"
    command = [sys.executable, "-B", "-c", APPLY, str(library), str(written)]
    calls = system_calls.of(command, tmp_path / "trace")
    # The lock is held by opening a file, which is there: that is all.
    assert set(calls.opened) == {str(Layout().lock)}
    assert [line for line in calls.changes if f'"{Layout().lock}"' not in line] == []
    # The kernel was asked, inside and outside, but told nothing; and nobody was started to do so.
    assert len(calls.asked) > COUNT and "RTM_GETLINK" in calls.asked
    assert (calls.started, calls.forks) == ([sys.executable], 0)


def test_through_salt_too(declared, salt, tmp_path):
    calls = system_calls.of(salt.command("state.apply", "netspace"), tmp_path / "trace")
    ours = (str(Layout().state), str(Layout().run), str(Layout().logs), "/run/netns", "/proc/sys", "/sys")
    assert {path for path in calls.opened if path.startswith(ours)} == {str(Layout().lock)}
    assert [line for line in calls.changes if any(path in line for path in ours) and "O_CREAT" not in line] == []
    assert [line for line in calls.changes if "nlmsg_type" in line or "mount" in line.split("(")[0]] == []
    programs = {Path(path).name for path in calls.started}
    assert not programs & {"crun", "nft", "haproxy", "rabbitmqctl", "mkfs.erofs"}, programs


def test_salt_counts_each_environment_and_interface(declared, salt):
    done = salt.run("state.apply", "netspace", "--out=highstate")
    returned = salt("state.apply", "netspace")
    kinds = collections.Counter((tag.split("_|-")[0], tag.split("_|-")[3]) for tag in returned)
    assert kinds["netspace_environment", "present"] == kinds["netspace_interface", "present"] == COUNT
    assert re.search(rf"^Succeeded: +{2 * COUNT + 4}$", done.stdout, re.MULTILINE)
    names = {tag.split("_|-")[2] for tag in returned if tag.startswith("netspace_environment_|-")}
    assert names == {*declared["environments"], "netspace environments"}


@pytest.mark.parametrize("function", ["diff", "drift"])
def test_comparison_of_an_unchanged_host_writes_nothing(declared, salt, tmp_path, function):
    calls = system_calls.of(salt.command(f"netspace.{function}"), tmp_path / "trace")
    ours = (str(Layout().state), str(Layout().run), str(Layout().logs), "/run/netns", "/proc/sys", "/sys")
    assert {path for path in calls.opened if path.startswith(ours)} == set()
    assert [line for line in calls.changes if any(path in line for path in ours)] == []
    assert [line for line in calls.changes if "nlmsg_type" in line or "mount" in line.split("(")[0]] == []
    assert salt(f"netspace.{function}")["differences"] == []


def test_a_change_would_be_seen(declared, salt, tmp_path):
    """A check of the measurement: an apply with one change shows the system calls that these tests count."""
    settings = json.loads(json.dumps(declared))
    settings["environments"]["idle1"]["limits"]["pids"] = 17
    settings["environments"]["idle1"]["interface"]["mtu"] = 1400
    salt.declare(settings)
    calls = system_calls.of(salt.command("state.apply", "netspace"), tmp_path / "trace")
    told = "\n".join(calls.changes)
    assert "nlmsg_type=0x13" in told or "nlmsg_type=RTM_SETLINK" in told
    assert f"{Layout().state}/environments/" in told and "rename(" in told and "mount(" in told
    assert changes(salt.apply(declared)), "and it is put back"


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ('7  openat(AT_FDCWD</>, "/x", O_RDONLY|O_CLOEXEC) = 3</x>', False),
        ('7  openat(AT_FDCWD</>, "/x", O_WRONLY|O_CREAT, 0600) = 3</x>', True),
        ('7  unlink("/x") = 0', True),
        ('7  unlink("/x") = -1 ENOENT (No such file or directory)', False),
        ('7  write(3</x>, "y", 1) = 1', True),
        ('7  write(5<pipe:[1]>, "y", 1) = 1', False),
        ("7  sendto(3<socket:[1]>, [{nlmsg_len=40, nlmsg_type=0x12 /* NLMSG_??? */, x}], 40) = 40", False),
        ("7  sendto(3<socket:[1]>, [{nlmsg_type=0x12 /* RTM_GETLINK */}, {nlmsg_type=0x10}], 40) = 40", True),
        ("7  sendto(3<socket:[1]>, {nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_GETGEN, x}, 20) = 20", False),
        ("7  sendto(3<socket:[1]>, {nlmsg_type=0xa00 /* NFT_MSG_NEWTABLE */, x}, 20) = 20", True),
        ('7  mount("x", "/y", "none", MS_BIND, NULL) = 0', True),
    ],
)
def test_what_counts_as_a_change(line, changed):
    assert bool(system_calls.judged(line).changes) is changed
