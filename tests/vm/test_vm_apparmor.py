"""AppArmor's profile of environments, on Debian's kernel under systemd."""

from __future__ import annotations

import json

import pytest
from support.hosts.whole_host import all_true, changes
from vmlab.lab import STAY, Salt, environment
from vmlab.machine import Machine

pytestmark = pytest.mark.vm

PROFILES = "/sys/kernel/security/apparmor/profiles"
# A profile of an operator's own that refuses nothing.
OPEN = "/srv/open.json"
PARSER = "/usr/sbin/apparmor_parser"


def profiles(machine: Machine) -> list[str]:
    return machine.sh(f"grep ^netspace- {PROFILES} || true").splitlines()


def label(machine: Machine, name: str) -> str:
    pid = machine.sh(f"systemctl show -P MainPID netspace-environment-{name}").strip()
    return machine.sh(f"cat /proc/{pid}/attr/apparmor/current").strip()


def test_the_profile_refuses_what_an_own_filter_allows(plain: Machine, salt: Salt) -> None:
    plain.put(OPEN, json.dumps({"defaultAction": "SCMP_ACT_ALLOW"}))
    tries = {
        "user namespace": "busybox unshare -U true",
        "mount": "busybox unshare -Urm busybox mount -t tmpfs none /tmp",
    }
    script = "; ".join(f"{one} 2>/dev/null && echo '{name}'" for name, one in tries.items())
    own = f"({script}); {STAY}"
    declared = {
        "environments": {
            "open": environment(own, seccomp=f"file:{OPEN}", apparmor="off"),
            "locked": environment(own, seccomp=f"file:{OPEN}", apparmor="require"),
            "usual": environment(own),
            "other": environment(own, runtime="runc", seccomp=f"file:{OPEN}"),
        }
    }
    all_true(salt.apply(declared))
    (profile,) = profiles(plain)
    assert profile.endswith(" (enforce)")
    assert {name: label(plain, name) for name in declared["environments"]} == {
        "open": "unconfined",
        **dict.fromkeys(("locked", "usual", "other"), profile),
    }
    # Without the profile they succeed: each try is a good one.
    assert salt("netspace_environment.logs", "open") == list(tries)
    for name in ("locked", "usual", "other"):
        assert salt("netspace_environment.logs", name) == []
    # What is run beside a program has no more than the program.
    for name in ("locked", "other"):
        done = salt.exec(name, ["/bin/sh", "-c", f"cat /proc/self/attr/current; {script}"])
        assert done["stdout"].strip() == profile
    assert salt("netspace_environment.inspect", "locked")["apparmor"] == profile.removesuffix(" (enforce)")
    assert changes(salt.apply(declared)) == {}
    # A profile in use is not another's to remove; the last environment's removal removes it.
    del declared["environments"]["locked"]
    salt.apply(declared)
    assert profiles(plain) == [profile]
    salt.apply({"environments": {}})
    assert profiles(plain) == []
    assert plain.sh("ls /var/lib/netspace/apparmor 2>/dev/null || true") == ""


def test_a_profile_that_was_unloaded_is_loaded_again(plain: Machine, salt: Salt) -> None:
    declared = {"environments": {"web": environment(STAY), "idle": environment(STAY, state="stopped")}}
    all_true(salt.apply(declared))
    (profile,) = profiles(plain)
    plain.sh(f"printf %s '{profile.removesuffix(' (enforce)')}' >/sys/kernel/security/apparmor/.remove")
    assert profiles(plain) == []
    assert label(plain, "web") != profile
    states = salt.apply(declared)
    all_true(states)
    assert "AppArmor" in states["netspace environments"]["comment"]
    assert profiles(plain) == [profile]
    assert label(plain, "web") == profile
    assert changes(salt.apply(declared)) == {}
    # A boot forgets all profiles: what starts then has one again.
    plain.reboot()
    assert profiles(plain) == [profile]
    assert label(plain, "web") == profile


def test_without_a_parser_nobody_runs_weaker_than_is_demanded(plain: Machine, salt: Salt) -> None:
    declared = {
        "environments": {"must": environment(STAY, apparmor="require"), "may": environment(STAY)},
    }
    plain.sh(f"mv {PARSER} {PARSER}.away")
    states = salt.apply(declared)
    comment = states["netspace environments"]["comment"]
    assert "must:apparmor: the program apparmor_parser is missing; install it: apt-get install apparmor" in comment
    assert "environments are made without an AppArmor profile (may): the program apparmor_parser is missing" in comment
    assert set(salt("netspace_environment.list")) == {"may"}
    assert label(plain, "may") == "unconfined"
    # One that is there, but broken.
    plain.put(PARSER, "#!/bin/sh\necho it is broken >&2; exit 1\n")
    plain.sh(f"chmod 755 {PARSER}")
    comment = salt.apply(declared)["netspace environments"]["comment"]
    assert "it is broken" in comment
    assert set(salt("netspace_environment.list")) == {"may"}
    row = next(row for row in salt("netspace.check_host", check=False) if row["name"] == "AppArmor profile")
    assert row["outcome"] == "weak"
    assert "it is broken" in row["found"]
    # Mended: what is demanded is there; what runs keeps what it has until it is started again.
    plain.sh(f"mv {PARSER}.away {PARSER}")
    all_true(salt.apply(declared))
    (profile,) = profiles(plain)
    assert (label(plain, "must"), label(plain, "may")) == (profile, "unconfined")
    assert changes(salt.apply(declared)) == {}
    assert salt("netspace_environment.restart", "may") is True
    assert label(plain, "may") == profile
    assert changes(salt.apply(declared)) == {}
