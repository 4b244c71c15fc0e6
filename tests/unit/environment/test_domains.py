"""Kernels in Xen's domains: what xl is told, and when a host refuses. No domain is made."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.environment import plan, runtimes, services
from netspace.environment.container import domain, oci_runtime, unikernel
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.observe import Observed
from netspace.environment.runtimes import Domain, Runtime, xen
from netspace.errors import MissingError, NetspaceError, SpecError
from netspace.interface.endpoints import EndpointContext
from netspace.interface.kinds import tap
from netspace.layout import DOMAIN, DOMAIN_PEER, Layout
from netspace.spec import parse
from netspace.supervision.systemd import unit_file

KERNEL = {"kernel": "/srv/clock", "runtime": "xen", "args": ["zone=UTC", "x"], "limits": {"memory": "16M", "cpus": 1.5}}
ONE = Domain("netspace-clock", "/srv/clock", ("a",), 16 * 1024**2, 1.0, "/run/x.tar", "", 0)
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60)
# What a quoting that is too simple lets through.
TELLING = st.one_of(TEXTS, st.sampled_from(['"', "\\", '\\"', '"\npci = ["01:00.0"]\n#', "'", "\n", "\r", "]", ";"]))


def parsed(text: str) -> dict[str, Any]:
    """Read a configuration as libxlu's lexer and grammar do, but with no freedom: one setting a line, each key once.

    :raises ValueError: when it has anything else.
    """
    found: dict[str, Any] = {}
    for line in text.removesuffix("\n").split("\n"):
        told = re.fullmatch(r"([a-z_]+) = (.*)", line, re.ASCII)
        if told is None or told[1] in found:
            raise ValueError(line)
        found[told[1]] = value(told[2])
    return found


def value(text: str) -> Any:
    if re.fullmatch("[0-9]+", text):
        return int(text)
    if text.startswith("[ ") and text.endswith(" ]"):
        return [value(text[2:-2])]
    # It knows numbers after a backslash, too, but refuses each of them (xlu__cfgl_dequote).
    told = re.fullmatch(r'"((?:[^"\\\n\0]|\\["\'\\nr])*)"', text)
    if told is None:
        raise ValueError(text)
    return re.sub(r"\\(.)", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), told[1])


def fuzzed(quote: Callable[[str], str], patch: pytest.MonkeyPatch) -> None:
    """Try names, paths and arguments of all kinds: each is read back as it is, and no key is added."""
    patch.setattr(xen, "quoted", quote)

    @settings(max_examples=400, deadline=None, database=None, report_multiple_bugs=False)
    @given(TELLING, TELLING, st.lists(TELLING, max_size=3), TELLING, st.booleans())
    def attack(name: str, kernel: str, arguments: list[str], ramdisk: str, wired: bool) -> None:
        mac, mtu = ("02:00:00:00:00:09", 1500) if wired else ("", 0)
        one = Domain(name, kernel, tuple(arguments), 8 * 1024**2, 2.0, ramdisk, mac, mtu)
        told = parsed(xen.configuration(xen.Settings(), one))
        vif = {"vif": ["mac=02:00:00:00:00:09,type=vif,mtu=1500,script=/bin/true"]} if wired else {}
        assert told == {
            "name": name,
            "type": "pvh",
            "kernel": kernel,
            "ramdisk": ramdisk,
            "extra": " ".join(arguments),
            "memory": 8,
            "maxmem": 8,
            "vcpus": 2,
            **vif,
            **{f"on_{end}": "destroy" for end in ("poweroff", "reboot", "watchdog", "crash", "soft_reset")},
        }

    attack()


def test_no_value_adds_a_line_to_what_xl_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzzed(xen.quoted, monkeypatch)


@pytest.mark.parametrize(
    "quote",
    [
        lambda text: f'"{text}"',
        lambda text: '"' + text.replace('"', '\\"') + '"',
        lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"',
    ],
    ids=["none", "quotes", "quotes and backslashes"],
)
def test_a_quoting_with_a_hole_is_found(quote: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, ValueError)):
        fuzzed(quote, monkeypatch)


def test_a_nul_character_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        xen.quoted("a\0b")


def test_a_domain_has_what_the_declaration_gives_it() -> None:
    spec = parse.environment("clock", {**KERNEL, "interface": {"kind": "tap", "mtu": 1400}})
    told = parsed(domain.configuration(Layout(), "clock", spec, Runtime("xen", {"type": "pv"})).decode())
    assert told["name"] == "netspace-clock"
    assert told["type"] == "pv"
    assert told["kernel"] == "/run/netspace/environments/clock/rootfs/kernel"
    assert told["ramdisk"] == "/run/netspace/environments/clock/inside/handout.tar"
    assert told["extra"] == "zone=UTC x"
    assert (told["memory"], told["maxmem"], told["vcpus"], told["cap"]) == (16, 16, 2, 150)
    assert told["vif"] == [f"mac={Layout().mac('clock')},type=vif,mtu=1400,script=/bin/true"]
    whole = parse.environment("clock", {**KERNEL, "limits": {"memory": "16M", "cpus": 2}})
    told = parsed(domain.configuration(Layout(), "clock", whole, Runtime("xen")).decode())
    assert told["vcpus"] == 2 and not {"cap", "vif", "disk"} & told.keys()


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"args": ["x" * 1000, "y" * 23]}, "args", "xen gives a kernel one line of at most 1023 bytes"),
        ({"args": ["a b"]}, "args:0", "xen gives a kernel one line"),
        ({"seccomp": "file:/etc/x.json"}, "seccomp", "xen runs no program on this host whose calls could be filtered"),
        ({"interface": {"kind": "veth"}}, "interface:kind", "use tap"),
        ({"limits": {"memory": "4M"}}, "limits:memory", "a kernel under xen needs at least 8M"),
    ],
)
def test_what_a_domain_cannot_have_is_an_error(keys: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse.declaration({"environments": {"clock": {**KERNEL, **keys}}})
    (problem,) = caught.value.problems
    assert problem.path == f"netspace:environments:clock:{path}" and message in problem.message


def test_a_host_without_xen_refuses_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtimes._program.cache_clear()
    monkeypatch.setattr(runtimes, "SEARCHED", str(tmp_path))
    spec = parse.environment("clock", KERNEL)
    missing = DesiredEnvironment(spec, runtime=runtimes.look("xen", {}))
    (refusal,) = plan.plan({"clock": missing}, Observed({}, {}, "r")).refusals
    assert refusal.message == (
        "netspace:environments:clock:runtime: xen can't be used here: the program xl is missing on this host; "
        "install Xen (apt-get install xen-system-amd64) and boot it, or choose the runtime qemu"
    )
    for name in ("xl", "xenstore-read", "xenstore-write", "ip"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(xen, "_DOM0", str(tmp_path / "dom0"))
    monkeypatch.setattr(xen, "_CONTROL", str(tmp_path / "privcmd"))
    for there, text, message in (
        ("", "", "this host is not Xen's dom0; install Xen"),
        ("dom0", "0\n", "this host is not Xen's dom0; install Xen"),
        ("dom0", "1\n", f"{tmp_path}/privcmd is missing; load the kernel's module xen-privcmd"),
        ("privcmd", "", "the program tc is missing; apt-get install iproute2"),
        ("tc", "", ""),
    ):
        if there:
            (tmp_path / there).write_text(text)
            (tmp_path / there).chmod(0o755)
        assert message in runtimes.look("xen", {}).error and bool(message) == bool(runtimes.look("xen", {}).error)
    runtimes._program.cache_clear()


def test_the_supervisor_runs_the_toolstack_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_program", lambda runtime, name, package, path: f"/usr/sbin/{name}")
    spec = parse.environment("clock", {**KERNEL, "interface": {"kind": "tap"}, "stop_timeout": 7})
    service = services.service(Layout(), "clock", spec, Runtime("xen"), {}, ("memory", "cpu", "pids"))
    assert "/usr/bin/crun" not in service.command and service.pid_file is None and service.user == ""
    assert service.command[:2] == ("/bin/sh", "-c")
    assert service.command[4] == "/run/netns/netspace-clock"
    assert service.command[6:8] == ("/usr/sbin/xl", "netspace-clock")
    assert service.command[-2:] == (DOMAIN_PEER, "1500")
    (cleanup,) = service.cleanup
    assert cleanup[-2:] == ("/usr/sbin/xl", "netspace-clock") and "destroy" in cleanup[2]
    assert service.stop_timeout == 7
    assert service.limits["memory"] == 16 * 1024**2 + 128 * 1024**2
    unit = unit_file.render(Layout(), service)
    # A line of the kernel's console is never taken for the host's own emergency.
    assert "SyslogLevelPrefix=no" in unit and "Type=exec" in unit
    alone = services.service(Layout(), "clock", parse.environment("clock", KERNEL), Runtime("xen"), {}, ())
    assert alone.command[-2:] == ("", "0")


def test_a_removal_ends_a_domain_of_which_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the supervisor's state was lost with the domain's watch, no service ends the domain any more."""
    xl, layout = tmp_path / "xl", Layout(root=tmp_path)
    xl.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n')
    xl.chmod(0o755)
    monkeypatch.setattr(runtimes, "_program", lambda *_: str(xl))
    oci_runtime.delete(layout, "clock", {}, Runtime("xen"))
    assert (tmp_path / "asked").read_text() == "destroy netspace-clock\n"
    oci_runtime.delete(layout, "clock", {}, Runtime("qemu"))
    assert (tmp_path / "asked").read_text().count("\n") == 1

    def missing(*_: object) -> str:
        raise MissingError("the program xl", "install Xen")

    monkeypatch.setattr(runtimes, "_program", missing)
    oci_runtime.delete(layout, "clock", {}, Runtime("xen"))


def test_its_image_is_the_kernel_alone(tmp_path: Path) -> None:
    kernel = tmp_path / "clock"
    kernel.write_bytes(b"k")
    assert unikernel.identity(f"xen:{kernel}") == unikernel.identity(f"xen:{kernel}")
    assert unikernel._parts(f"xen:{kernel}")[2:] == ({}, ())
    with pytest.raises((NetspaceError, OSError)):
        unikernel.identity(f"xen:{tmp_path}/none")


def test_the_filter_is_that_of_a_tap_device() -> None:
    spec = parse.interface({"kind": "tap"})
    given_ = {"addresses": {"ipv4": "10.203.7.8"}, "gateways": {"ipv4": "10.203.0.1"}}
    context = {"host_name": "x", "mac": "02:00:00:00:00:09", "alias": "a", **given_}
    user, own = (EndpointContext(**context, owner=owner) for owner in (1000, DOMAIN))  # type: ignore[arg-type]
    tables = {}
    for place, device in ((user, "tap0"), (own, "xen0")):
        ends = tap.ends(spec, place)  # type: ignore[arg-type]
        (table,) = tap.guard(ends, place)
        bases = {name: chain.base for name, chain in table.chains.items()}
        assert {base.device for base in bases.values() if base} == {device, "eth0"}
        assert all(base is not None and base.policy == "drop" for base in bases.values())
        tables[device] = {name: chain.rules for name, chain in table.chains.items()}
    assert tables["tap0"] == tables["xen0"]
