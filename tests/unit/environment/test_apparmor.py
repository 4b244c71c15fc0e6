"""AppArmor's profile: its text, its loading, and failures of the loading. The kernel's files are stand-ins."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from netspace.environment.container import apparmor, apparmor_profile, oci_config
from netspace.environment.runtimes import USUAL, Runtime
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec import parse

MODE = "sys/module/apparmor/parameters/mode"
SECURITY = "sys/kernel/security/apparmor"
# Lists what it is given, as the kernel would; fails if there is a file "broken".
PARSER = """#!/bin/sh
root={root}
[ ! -e $root/broken ] || {{ echo "AppArmor parser error: no such thing" >&2; exit 1; }}
for last; do :; done
echo "$*" >>$root/called
[ -e $root/deaf ] || sed -n 's/^profile "\\(.*\\)" flags.*/\\1 (enforce)/p' "$last" >>$root/{security}/profiles
"""


def spec(**keys):
    return parse.environment("web", {"image": "tar:/x.tar", "command": ["/x"], **keys})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the root of a host that has AppArmor, its parser, and a profile of another program."""
    for name, content in {
        "sys/module/apparmor/parameters/enabled": "Y\n",
        MODE: "enforce\n",
        f"{SECURITY}/profiles": "firefox (enforce)\nnetspace-environment-mine (enforce)\n",
        "etc/apparmor.d/abi/4.0": "",
        "usr/sbin/apparmor_parser": PARSER.format(root=tmp_path, security=SECURITY),
        "run/netspace/any": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "usr/sbin/apparmor_parser").chmod(0o755)
    return tmp_path


@pytest.fixture
def layout(root: Path) -> Layout:
    return Layout(root=root)


def called(root: Path) -> int:
    path = root / "called"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_profile_is_loaded_once_and_its_text_kept(root, layout):
    confinement = apparmor.Confinement(layout)
    name = confinement.chosen(spec(), USUAL)
    assert apparmor.look(layout).loaded == {name}
    assert (layout.apparmor / name).read_text() == apparmor_profile.text(name, "4.0")
    assert stat.S_IMODE((layout.apparmor / name).stat().st_mode) == 0o600
    assert confinement.chosen(spec(apparmor="require"), Runtime("runc")) == name
    assert apparmor.Confinement(layout).chosen(spec(), USUAL) == name
    assert called(root) == 1
    assert not confinement.outdated(spec(), USUAL, name)
    assert confinement.outdated(spec(), USUAL, "")


def test_a_name_changes_with_the_text_of_its_profile():
    newer, older = (apparmor_profile.name("netspace", abi) for abi in ("4.0", "3.0"))
    assert newer != older
    assert apparmor_profile.pattern("netspace").fullmatch(newer)
    assert not apparmor_profile.pattern("other").fullmatch(newer)


@pytest.mark.parametrize("missing", ["enabled", "complain", "unconfined", "mode", "list", "parser", "broken", "deaf"])
def test_a_missing_part_is_told_and_never_weakens_a_demand(root, layout, missing):
    if missing == "enabled":
        (root / "sys/module/apparmor/parameters/enabled").write_text("N\n")
    elif missing in ("complain", "unconfined"):
        (root / MODE).write_text(f"{missing}\n")
    elif missing == "mode":
        (root / MODE).unlink()
    elif missing == "list":
        (root / SECURITY / "profiles").unlink()
    elif missing == "parser":
        (root / "usr/sbin/apparmor_parser").unlink()
    else:
        (root / missing).touch()
    said = {
        "enabled": "switched off; boot a kernel",
        "complain": "AppArmor is in mode 'complain', which refuses nothing; `echo enforce >/sys/module/apparmor/",
        "unconfined": "AppArmor is in mode 'unconfined', which refuses nothing",
        "mode": "AppArmor's mode can't be read",
        "list": "mount -t securityfs",
        "parser": "apt-get install apparmor",
        "broken": "AppArmor parser error: no such thing; reinstall the package apparmor",
        "deaf": "the kernel doesn't list it",
    }[missing]
    confinement = apparmor.Confinement(layout)
    with pytest.raises(NetspaceError, match=said):
        confinement.chosen(spec(apparmor="require"), USUAL)
    assert confinement.chosen(spec(), USUAL) == ""
    state = apparmor.look(layout)
    assert said in (state.problem or state.failed)
    assert bool(state.told) == (missing != "enabled")


def test_an_error_is_forgotten_once_a_profile_is_loaded(root, layout):
    (root / "broken").touch()
    assert apparmor.Confinement(layout).chosen(spec(), USUAL) == ""
    assert apparmor.look(layout).told
    (root / "broken").unlink()
    assert apparmor.Confinement(layout).chosen(spec(), USUAL)
    assert apparmor.look(layout).told == ""


def test_runsc_and_off_get_no_profile(root, layout):
    confinement = apparmor.Confinement(layout)
    assert confinement.chosen(spec(apparmor="off"), USUAL) == ""
    assert confinement.chosen(spec(), Runtime("runsc")) == ""
    with pytest.raises(NetspaceError, match="runsc starts no program under an AppArmor profile"):
        confinement.chosen(spec(apparmor="require"), Runtime("runsc"))
    assert called(root) == 0


def test_profiles_that_nobody_names_are_removed(root, layout):
    name = apparmor.Confinement(layout).chosen(spec(), USUAL)
    removed = root / SECURITY / ".remove"
    apparmor.Confinement(layout).forget(lambda: {name})
    assert not removed.exists()
    assert (layout.apparmor / name).exists()
    apparmor.Confinement(layout).forget(lambda: {"", "another"})
    assert removed.read_text() == name
    assert not layout.apparmor.exists()


def test_an_older_profile_is_loaded_from_its_kept_text(root, layout):
    older = "netspace-environment-0123456789ab"
    layout.apparmor.mkdir(parents=True)
    (layout.apparmor / older).write_text(apparmor_profile.text(older, ""))
    apparmor.Confinement(layout).ensure(older)
    assert apparmor.look(layout).loaded == {older}
    with pytest.raises(NetspaceError, match="is missing; restart what runs under it"):
        apparmor.Confinement(layout).ensure("netspace-environment-ba9876543210")


def test_the_configuration_names_a_profile_only_if_there_is_one():
    assert "apparmorProfile" not in oci_config.process("web", spec())
    assert oci_config.process("web", spec(), confined="name")["apparmorProfile"] == "name"


def test_mode_that_kills_confines_too(root, layout):
    (root / MODE).write_text("kill\n")
    assert apparmor.Confinement(layout).chosen(spec(apparmor="require"), USUAL)
    assert apparmor.look(layout).problem == ""


def test_demanded_profile_is_not_started_while_nothing_refuses(root, layout):
    """AppArmor changes to the mode complain: an environment with ``apparmor: require`` isn't started any more."""
    confinement = apparmor.Confinement(layout)
    name = confinement.chosen(spec(apparmor="require"), USUAL)
    (root / MODE).write_text("complain\n")
    with pytest.raises(NetspaceError, match="apparmor: AppArmor is in mode 'complain'"):
        confinement.ensure(name, demanded=True)
    confinement.ensure(name)
    assert apparmor.look(layout).loaded == {name}, "what runs keeps its profile"


def test_programs_come_under_their_profiles_in_one_wait(monkeypatch):
    now, own = [1000.0], os.getpid()
    labels = {own: ["unconfined"], 1: ["unconfined", "a"], os.getppid(): ["a"]}

    def label(pid: int) -> str:
        return labels[pid].pop(0) if len(labels[pid]) > 1 else labels[pid][0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(apparmor, "label", label)
    monkeypatch.setattr(apparmor, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    programs = {f"lost-{number}": ("a", own) for number in range(5)}
    found = apparmor.loose({**programs, "young": ("a", 1), "confined": ("a", os.getppid())})
    assert found == set(programs)
    assert 2 <= now[0] - 1000 < 2.1
    assert apparmor.loose({}) == set()
    monkeypatch.setitem(labels, 2**30, ["another"])
    assert apparmor.loose({"ended": ("a", 2**30)}) == set()
