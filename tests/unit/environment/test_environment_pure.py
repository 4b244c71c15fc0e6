"""User ids, system call profile, configuration and mount table, as pure functions."""

from __future__ import annotations

import itertools
import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.environment import moments, services, user_ids
from netspace.environment.builder import each
from netspace.environment.container import oci_config, oci_runtime, seccomp
from netspace.environment.container.seccomp_arguments import NARROWED, changing
from netspace.environment.images.bounds import Budget
from netspace.environment.images.sources import Defaults
from netspace.environment.images.sources import oci as oci_source
from netspace.environment.images.tree import Tree
from netspace.environment.operations import Operations
from netspace.environment.runtimes import Runtime
from netspace.environment.storage import mounts, volumes
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec import parse
from netspace.spec.types import Volume

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)


@given(st.sets(NAMES, max_size=60), st.sets(NAMES, max_size=60))
def test_ranges_never_overlap_and_never_move(first, second):
    before = user_ids.allocate(sorted(first), {})
    after = {**before, **user_ids.allocate(sorted(second), before)}
    assert all(after[name] == base for name, base in before.items())
    bases = sorted(after.values())
    assert all(base >= user_ids.FIRST and base + user_ids.COUNT - 1 <= user_ids.LAST for base in bases)
    assert all(low + user_ids.COUNT <= high for low, high in itertools.pairwise(bases))


@given(NAMES)
def test_a_name_mostly_gets_the_same_ids(name):
    base = user_ids.allocate([name], {})[name]
    assert user_ids.allocate([name], {})[name] == base
    moved = user_ids.allocate([name], {"other": base})[name]
    assert moved == (base + user_ids.COUNT if base + user_ids.COUNT <= user_ids.LAST else user_ids.FIRST)


def test_no_ids_left_is_an_error():
    taken = {str(number): user_ids.FIRST + number * user_ids.COUNT for number in range(user_ids.RANGES)}
    del taken["17"]
    assert user_ids.allocate(["last"], taken) == {"last": user_ids.FIRST + 17 * user_ids.COUNT}
    with pytest.raises(NetspaceError, match="all 4096 ranges"):
        user_ids.allocate(["a", "b"], taken)


def allowed(profile):
    return {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


@pytest.mark.parametrize("name", seccomp.PROFILES)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_profile_denies_by_default_and_what_it_must(name, machine):
    profile = seccomp.profile(name, machine)
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    assert len(profile["architectures"]) == 1, "no 32-bit calls"
    assert not allowed(profile) & {call for family in seccomp.NEVER.values() for call in family.calls.split()}
    assert seccomp.dangers(profile) == []
    assert {"landlock_restrict_self", "seccomp", "futex", "execve"} <= allowed(profile)
    families = [*seccomp.ALLOWED.values(), *(seccomp.STANDARD.values() if name == "standard" else ())]
    every = [call for family in families for call in family.calls.split()]
    assert set(every) <= allowed(profile)
    assert len(every) == len(set(every))
    assert not set(every) & {"clone", "socket", "socketpair", "mknod", "mknodat", "personality"}, "filtered by argument"
    told_absent = {call for rule in profile["syscalls"] if rule.get("errnoRet") == 38 for call in rule["names"]}
    assert not set(every) & told_absent
    assert {"clone3", "io_uring_setup"} <= told_absent
    assert ("io_setup" in told_absent) == (name == "strict")


def test_clone_with_a_namespace_and_sockets_of_other_families_match_no_rule():
    rules = seccomp.profile("strict", "x86_64")["syscalls"]

    def passes(name, *args):
        for rule in rules:
            if name in rule["names"] and rule["action"] == "SCMP_ACT_ALLOW":
                checks = []
                for arg in rule.get("args", ()):
                    value = args[arg["index"]]
                    if arg["op"] == "SCMP_CMP_EQ":
                        checks.append(value == arg["value"])
                    else:
                        checks.append(value & arg["value"] == arg["valueTwo"])
                if all(checks):
                    return True
        return False

    assert passes("clone", 0x01200011)
    for bit in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert not passes("clone", 0x01200011 | bit)
    assert passes("socket", 1, 1, 0)
    assert passes("socket", 2, 1, 6)
    assert passes("socket", 16, 3, 0)
    for call in ((16, 3, 9), (17, 3, 0), (40, 1, 0), (38, 5, 0), (2, 1, 132), (10, 1, 33), (2 | 1 << 32, 1, 0)):
        assert not passes("socket", *call)
    for family, echo in ((2, 1), (10, 58)):
        for flags in (0, 0o2000000, 0o2000000 | 0o4000):
            for kind, protocol in ((1, 0), (1, 6), (2, 0), (2, 17), (2, echo)):
                assert passes("socket", family, kind | flags, protocol)
            # SOCK_RAW, SOCK_SEQPACKET, SOCK_DCCP; a protocol that the type has not
            for kind, protocol in ((3, 0), (3, echo), (5, 0), (6, 0), (6, 33), (10, 0), (1, echo), (1, 17), (2, 6)):
                assert not passes("socket", family, kind | flags, protocol)
    assert passes("mknod", 0, 0o010644)
    assert not passes("mknod", 0, 0o020644)
    assert not passes("mknod", 0, 0o060644)


def test_what_is_refused_by_argument_is_so_whatever_the_upper_bits():
    for profile in (*(seccomp.profile(name) for name in seccomp.PROFILES), seccomp.tender()):
        for call, narrow in NARROWED.items():

            def passes(value, call=call, narrow=narrow, profile=profile):
                return seccomp.answer(profile, call, changing(narrow, value)).passes

            for value in narrow.refused.values():
                assert not passes(value) and not passes(1 << 32 | value), (call, value)
            if seccomp.answer(profile, call).passes:
                # Each value of a range, and none beside it.
                ranges = {value for first, last in narrow.passes for value in range(first, min(last, 2047) + 1)}
                assert {value for value in range(2048) if passes(value)} >= {one for one in ranges if one < 2048}
                assert not narrow.passes or not any(passes(value) for value in range(2048) if value not in ranges)


@pytest.mark.parametrize("name", seccomp.PROFILES)
def test_limit_on_core_files_can_be_asked_for_and_stays(name):
    """A program that sets the limit on core files gets success, but the limit stays (setrlimit(2), 4: RLIMIT_CORE)."""
    profile = seccomp.profile(name)
    done, denied = seccomp.Answer("ERRNO", 0), seccomp.Answer("ERRNO", 1)
    assert seccomp.answer(profile, "setrlimit", (4, 1)) == done
    assert seccomp.answer(profile, "setrlimit", (7, 1)).passes
    assert seccomp.answer(profile, "prlimit64", (0, 4, 0, 1)).passes
    assert seccomp.answer(profile, "prlimit64", (0, 4, 1, 0)) == done
    assert seccomp.answer(profile, "prlimit64", (0, 4, 1, 1)) == denied, "what it was is not told"
    assert seccomp.answer(profile, "prlimit64", (0, 7, 1, 1)).passes


def test_unknown_profile_or_machine():
    with pytest.raises(NetspaceError):
        seccomp.profile("loose")
    with pytest.raises(NetspaceError, match="riscv64"):
        seccomp.profile("strict", "riscv64")


def render(**keys):
    declared = {"image": "tar:/x", "command": ["/x"], **keys.pop("declared", {})}
    return oci_config.config(
        "web",
        parse.environment("web", declared),
        **{"layout": Layout(), "base": user_ids.FIRST, "cgroup": "/n/web", "machine": "x86_64", **keys},
    )


def test_a_limit_that_no_controller_keeps_is_left_out():
    def resources(*controllers):
        return set(render(controllers=controllers)["linux"]["resources"])

    assert resources() == {"devices"}
    assert resources("pids", "memory", "io") == {"devices", "memory", "pids"}
    own = parse.environment("web", {"image": "tar:/x", "limits": {"memory": "32M", "cpus": 2, "pids": 9}})
    assert services.service(Layout(), "web", own, Runtime(), {}, {"cpu", "pids"}).limits == {"cpus": 2, "pids": 9}


def test_the_configuration_has_all_hardening():
    config = render(declared={"limits": {"memory": "32M", "cpus": 0.001 + 0.02, "pids": 9}, "read_only": True})
    process, linux = config["process"], config["linux"]
    assert {entry["type"] for entry in linux["namespaces"]} == {
        *("user", "pid", "ipc", "uts", "mount", "cgroup", "time", "network")
    }
    assert {"type": "network", "path": "/run/netns/netspace-web"} in linux["namespaces"]
    assert set(process["capabilities"]) == {"bounding", "effective", "inheritable", "permitted", "ambient"}
    assert not any(process["capabilities"].values())
    assert process["noNewPrivileges"] is True
    assert process["user"]["umask"] == 0o077
    assert {entry["type"] for entry in process["rlimits"]} == {
        f"RLIMIT_{kind}" for kind in ("NOFILE", "CORE", "MEMLOCK", "SIGPENDING", "NPROC", "MSGQUEUE")
    }
    assert linux["rootfsPropagation"] == "private"
    assert linux["resources"]["memory"] == {"limit": 32 * 1024**2, "swap": 32 * 1024**2}
    assert linux["resources"]["cpu"] == {"quota": 2100, "period": 100000}
    assert linux["resources"]["pids"] == {"limit": 9}
    assert config["root"]["readonly"] is True
    assert {entry["destination"] for entry in config["mounts"]} == {
        *("/proc", "/dev", "/dev/shm", "/tmp", "/run/netspace")
    }
    assert all("nosuid" in entry["options"] for entry in config["mounts"])
    assert "annotations" not in config
    assert "hooks" not in config


@given(st.dictionaries(st.sampled_from(["PATH", "HOME", "LANG", "X"]), st.text("abc=", max_size=5)))
def test_the_declaration_s_word_counts_before_the_image_s(env):
    defaults = Defaults(("/image",), ("serve",), (("LANG", "C"), ("PATH", "/image/bin")), "/srv", 33, 34)
    silent = render(defaults=defaults, declared={"command": [], "env": env})["process"]
    assert silent["args"] == ["/image", "serve"]
    assert silent["cwd"] == "/srv"
    assert (silent["user"]["uid"], silent["user"]["gid"]) == (33, 34)
    expected = {"PATH": "/image/bin", "HOME": "/tmp", "LANG": "C", **env}
    assert silent["env"] == [f"{key}={expected[key]}" for key in sorted(expected)]
    said = render(defaults=defaults, declared={"user": 1000, "working_dir": "/"})["process"]
    assert (said["args"], said["cwd"], said["user"]["uid"], said["user"]["gid"]) == (["/x"], "/", 1000, 1000)
    nobody = render(defaults=Defaults(("/image",)))["process"]
    assert (nobody["cwd"], nobody["user"]["uid"], nobody["user"]["gid"]) == ("/", 1000, 1000)


@pytest.mark.parametrize(
    ("declared", "run"),
    [
        ({}, ["/entry", "cmd"]),
        ({"args": ["a", "b"]}, ["/entry", "a", "b"]),
        ({"args": []}, ["/entry"]),
        ({"command": ["/x", "y"]}, ["/x", "y"]),
        ({"command": ["/x"], "args": ["a"]}, ["/x", "a"]),
    ],
)
def test_command_replaces_entrypoint_and_cmd_args_replaces_cmd(declared, run):
    defaults = Defaults(("/entry",), ("cmd",))
    assert render(defaults=defaults, declared={"command": [], **declared})["process"]["args"] == run


def test_nothing_to_run_is_an_error():
    with pytest.raises(NetspaceError, match="names no command"):
        render(declared={"command": []})


def test_volumes_are_bound_with_ids_mapped():
    config = render(declared={"volumes": [{"source": "/srv/a", "target": "/data", "read_only": True}]})
    assert config["mounts"][-1] == {
        "destination": "/data",
        "type": "bind",
        "source": "/srv/a",
        "options": ["bind", "nosuid", "nodev", "private", "idmap", "ro"],
    }


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=9,
    )
)
def test_whatever_an_image_says_gives_sane_defaults(value):
    keys = ("Entrypoint", "Cmd", "Env", "WorkingDir", "User")
    for config in [{key: value} for key in keys]:
        defaults = oci_source._defaults(config, Tree(Budget("x")))
        assert 0 <= defaults.user <= 65535
        assert 0 <= defaults.group <= 65535
        assert defaults.working_dir == "" or defaults.working_dir.startswith("/")
        assert all("\0" not in text and "=" not in name for name, text in defaults.env)
        assert Defaults.decode(json.loads(json.dumps(defaults.encode()))) == defaults


def test_the_mount_table_is_read():
    text = (
        "36 35 98:0 /mnt1 /a\\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        "37 36 0:5 / /run rw shared:2 - tmpfs tmpfs rw\n"
        "38 37 0:6 / /run ro - overlay over\\134lay rw\n"
    )
    table = mounts.Table(text)
    assert set(table) == {"/a b", "/run"}
    assert table["/run"] == mounts.Mount("/run", "overlay", "over\\lay", "0:6", "/")


def test_a_container_name_is_ours():
    assert oci_runtime.container(Layout("shop"), "a-b_c", Runtime()) == "shop-a-b_c"
    assert oci_runtime.service_name("a-b_c") == "environment-a-b_c"


@pytest.mark.parametrize("items", [["good", "bad"], ["bad"]])
def test_whatever_fails_for_one_is_its_own_error(items):
    def act(item):
        if item == "bad":
            raise KeyError("surprise")

    assert each(items, act) == {"bad": "KeyError: 'surprise'"}


@pytest.mark.parametrize(
    "source", ["var/lib/netspace/x", "var/lib", "run/netspace", "var/lib/netspace-broker", "var/log/netspace/a"]
)
def test_netspace_s_own_folders_are_no_volumes(tmp_path, source):
    with pytest.raises(NetspaceError, match="belongs to netspace"):
        volumes.ensure(Layout(root=tmp_path), "web", Volume(source=str(tmp_path / source), target="/data"), 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lines", ["many", None, float("inf")])
def test_a_number_of_lines_that_is_none(lines):
    with pytest.raises(NetspaceError, match="expected a whole number"):
        object.__new__(Operations).logs("web", lines)


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("given", "moment"),
    [
        (600, NOW - 600),
        ("0.5", NOW - 0.5),
        ("2026-01-31T12:00:00Z", 1_769_860_800.0),
        ("2026-01-31T13:00:00+01:00", 1_769_860_800.0),
    ],
)
def test_a_moment_is_seconds_ago_or_a_time(given, moment):
    assert moments.since(given, NOW) == moment


def test_a_time_without_an_offset_is_the_hosts(monkeypatch):
    monkeypatch.setenv("TZ", "Etc/GMT-2")
    time.tzset()
    try:
        assert moments.since("2026-01-31 14:00", NOW) == 1_769_860_800.0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("given", ["yesterday", "", -1, NOW + 1, float("nan"), "inf", True, [], "0001-01-01", 10**400])
def test_a_moment_that_is_none(given):
    with pytest.raises(NetspaceError, match="not a time; give a number of seconds ago, or a time such as"):
        moments.since(given, NOW)


def test_a_moment_is_past():
    with pytest.raises(NetspaceError, match="lies in the future"):
        moments.since("2999-01-31T12:00:00Z", NOW)


def test_a_volumes_folder_has_its_name_once_it_is_its_users(tmp_path, monkeypatch):
    """A volume's folder appears only with its final owner: a killed run leaves no folder that belongs to root.

    Such a folder would count as the operator's.
    """
    source, given = tmp_path / "made" / "data", []

    def killed(path, user, group):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "chown", killed)
    with pytest.raises(KeyboardInterrupt):
        volumes._make(source, 1000)
    assert not source.exists()
    monkeypatch.setattr(os, "chown", lambda path, user, group: given.append((path.exists(), user, group)))
    volumes._make(source, 1000)
    assert given == [(True, 1000, 1000)]
    assert [path.name for path in source.parent.iterdir()] == ["data"]
    # Another environment's, made at the same time, may have made the folder above.
    volumes._make(tmp_path / "made" / "other", 1000)


def test_a_device_is_there_for_the_kind_of_interface_that_needs_it_alone():
    def config(interface):
        spec = parse.environment("web", {"image": "tar:/x.tar", "command": ["/x"], "interface": interface})
        return oci_config.config("web", spec, layout=Layout(), base=user_ids.FIRST, cgroup="/web")["linux"]

    for kind in ({"kind": "none"}, {"kind": "veth"}):
        assert "devices" not in config(kind)
        assert config(kind)["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    linux = config({"kind": "tap"})
    assert [device["path"] for device in linux["devices"]] == ["/dev/net/tun"]
    assert linux["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rw"},
    ]
