"""Runtimes: their names, command lines and settings. Nothing is run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from support.checkout import ROOT

from netspace.environment import plan as compare
from netspace.environment import runtimes, services
from netspace.environment.container import oci_config
from netspace.environment.container import oci_runtime as runtime
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.observe import Observed
from netspace.environment.runtimes import Runtime, qemu
from netspace.environment.storage import mounts
from netspace.errors import NetspaceError, SpecError
from netspace.layout import Layout
from netspace.spec import parse

ENVIRONMENT = {"image": "tar:/x.tar", "command": ["/x"]}


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that every program is installed."""
    monkeypatch.setattr(runtimes, "_program", lambda runtime, name, package, path: path or f"/usr/bin/{name}")


@pytest.mark.parametrize("name", runtimes.names())
def test_a_module_says_all_that_is_asked_of_one(name: str) -> None:
    module = runtimes.find(name)
    assert module.RUNS in ("images", "kernels")
    assert module.__doc__.startswith(f"``{name}``")
    assert issubclass(module.Settings, runtimes.Settings)
    if module.RUNS == "images":
        assert set(module.LACKS) <= set(runtimes.LACKS)
        assert isinstance(module.options(module.Settings()), tuple)
        assert module.ENTRIES and all("{" in entry for entry in module.ENTRIES)


@pytest.mark.parametrize("name", runtimes.names())
def test_what_a_missing_program_asks_to_install_is_installed_by_the_sls(name: str) -> None:
    packages = yaml.safe_load((ROOT / "states/netspace/packages.yaml").read_text())
    package = runtimes.find(name).PACKAGE
    if name == runtimes.DEFAULT:
        assert package in packages["host"]
    elif package:
        # By that it is found (packages.sls).
        assert package in packages["runtimes"] and package.split("-")[0] == name


def test_each_is_called_by_the_same_command_line(programs: None) -> None:
    spec = parse.environment("web", ENVIRONMENT)
    for name in runtimes.running("images"):
        service = services.service(Layout(), "web", spec, Runtime(name), {}, ())
        line, end = list(service.command), list(service.cleanup[0])
        assert f"/usr/bin/{name}" in line
        assert line[line.index("--root") + 1] == end[end.index("--root") + 1] == f"/run/netspace/{name}"
        assert line[line.index("run") : line.index("run") + 3] == ["run", "--detach", "--bundle"]
        own = runtime.container(Layout(), "web", Runtime(name))
        assert line[-1] == end[-1] == own
        assert end[-3:-1] == ["delete", "--force"]
        assert service.pid_file == Path("/run/netspace/environments/web/pid")


def test_names_that_begin_alike_are_told_apart_by_one_that_takes_a_beginning_for_the_name() -> None:
    one, other = (runtime.container(Layout(), name, Runtime("runsc")) for name in ("web", "web2"))
    assert len(one) == len(other)
    assert not other.startswith(one)


def test_only_one_that_cannot_do_with_hybrid_cgroups_is_called_apart(
    programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    hybrid = {"/sys/fs/cgroup/unified": mounts.Mount("/sys/fs/cgroup/unified", "cgroup2", "", "", "")}
    calls = {name: runtime.call(Layout(), Runtime(name), hybrid, "list") for name in ("crun", "runc", "runsc")}
    assert {name for name, call in calls.items() if call[0] == "/usr/bin/unshare"} == {"crun"}


@pytest.mark.parametrize("name", ["crun", "runc", "runsc"])
def test_what_a_runtime_lacks_is_not_asked_of_it(name: str) -> None:
    lacks = Runtime(name).lacks
    spec = parse.environment("web", {**ENVIRONMENT, "volumes": [{"source": "/srv/x", "target": "/data"}]})
    config = oci_config.config("web", spec, layout=Layout(), base=65536, cgroup="/x", machine="x86_64", lacks=lacks)
    kinds = {one["type"] for one in config["linux"]["namespaces"]}
    assert {"user", "pid", "ipc", "uts", "mount", "cgroup", "network"} <= kinds
    assert ("time" in kinds) == ("time" not in lacks)
    (volume,) = [mount for mount in config["mounts"] if mount["destination"] == "/data"]
    assert ("idmap" in volume["options"]) == ("idmap" not in lacks)
    assert (volume["source"] == "/srv/x") == ("idmap" not in lacks)
    # No hardening goes but what is listed.
    usual = oci_config.config("web", spec, layout=Layout(), base=65536, cgroup="/x", machine="x86_64")
    assert config["process"] == usual["process"]
    assert config["linux"]["seccomp"] == usual["linux"]["seccomp"]
    assert config["linux"]["maskedPaths"] == usual["linux"]["maskedPaths"]


def test_runc_is_told_of_no_network_namespace_when_it_is_called_from_within(tmp_path: Path) -> None:
    state = {
        "config": {"namespaces": [{"type": "NEWNET", "path": "/run/netns/x"}, {"type": "NEWPID", "path": ""}]},
        "namespace_paths": {"NEWNET": "/proc/1/ns/net", "NEWPID": "/proc/1/ns/pid"},
        "kept": 1,
    }
    (tmp_path / "root/web").mkdir(parents=True)
    (tmp_path / "root/web/state.json").write_text(json.dumps(state))
    (tmp_path / "scratch").mkdir()
    folder = runtimes.find("runc").elsewhere(tmp_path / "root", "web", tmp_path / "scratch")
    told = json.loads((folder / "web/state.json").read_text())
    assert told == {
        "config": {"namespaces": [{"type": "NEWPID", "path": ""}]},
        "namespace_paths": {"NEWPID": "/proc/1/ns/pid"},
        "kept": 1,
    }
    assert json.loads((tmp_path / "root/web/state.json").read_text()) == state


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-01-31T12:00:00.000000Z: no such file\n", "no such file"),
        ('{"level":"warning","msg":"w"}\n{"level":"error","msg":"bad"}\n{"level":"info","msg":"i"}\n', "bad"),
        ('{"level":"error","msg":"first"}{"level":"error","msg":"la{s}t"}{"level":"info","msg":"i"}', "la{s}t"),
        ('{"level":"error","msg":"no more\\ninput\\n"}{"level":"err', "no more input"),
        ('{"level":"error"\n', ""),
        ("", ""),
    ],
)
def test_what_a_runtime_complained_of(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log").write_text(text)
    assert runtime.complaint(tmp_path / "log") == message


# -- what is declared --------------------------------------------------------------------


def problems(section: dict) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse.declaration(section)
    return [str(problem) for problem in caught.value.problems]


def test_an_unknown_runtime_is_an_error_with_its_path() -> None:
    (message,) = problems({"environments": {"web": {**ENVIRONMENT, "runtime": "docker"}}})
    assert message == (
        "netspace:environments:web:runtime: 'docker' is not a runtime for images; choose from crun, runc, runsc"
    )
    assert problems({"runtimes": {"default": "x"}})[0].startswith("netspace:runtimes:default: 'x' is not a runtime")
    assert problems({"runtimes": {"runx": {}}}) == ["netspace:runtimes:runx: unknown; did you mean runc?"]
    (message,) = problems({"runtimes": {"runsc": {"platfrom": "kvm"}}})
    assert message == "netspace:runtimes:runsc:platfrom: unknown; did you mean platform?"
    (message,) = problems({"runtimes": {"runsc": {"platform": "wings"}}})
    assert message.startswith("netspace:runtimes:runsc:platform: 'wings' is not accepted here")
    assert "absolute path" in problems({"runtimes": {"runc": {"program": "runc"}}})[0]
    assert "expected a mapping" in problems({"runtimes": ["runc"]})[0]


@pytest.mark.parametrize(
    ("runtime", "limits", "expected"),
    [
        ("crun", {"pids": 1}, {"limits:pids": "the runtime crun needs a part of it for itself; give at least 2"}),
        ("runsc", {"pids": 47}, {"limits:pids": "the runtime runsc needs a part of it for itself; give at least 48"}),
        (
            "runsc",
            {"memory": "23M", "pids": 48},
            {"limits:memory": "the runtime runsc needs a part of it for itself; give at least 24M"},
        ),
        ("runsc", {"memory": "24M", "pids": 48}, {}),
        ("crun", {"memory": "4M", "pids": 2}, {}),
    ],
)
def test_a_limit_that_a_runtime_itself_would_exceed_is_an_error(runtime: str, limits: dict, expected: dict) -> None:
    named = {"environments": {"web": {**ENVIRONMENT, "runtime": runtime, "limits": limits}}}
    usual = {"environments": {"web": {**ENVIRONMENT, "limits": limits}}, "runtimes": {"default": runtime}}
    for section in (named, usual):
        messages = problems(section) if expected else []
        assert messages == [f"netspace:environments:web:{key}: {text}" for key, text in expected.items()]
        if not expected:
            parse.declaration(section)


def test_settings_are_kept_where_they_differ_from_what_is_usual() -> None:
    section = {"default": "runc", "runsc": {"platform": "ptrace", "program": None}, "runc": {}}
    declared = parse.declaration({"runtimes": section})
    assert declared.runtimes.default == "runc"
    assert declared.runtimes.settings == {"runsc": {"platform": "ptrace"}, "runc": {}}
    assert parse.declaration(parse.encode(declared)) == declared


def test_a_program_is_looked_for_where_it_is_said_to_be(tmp_path: Path) -> None:
    found = runtimes.look("runsc", {"program": str(tmp_path / "none")})
    assert found.error == f"the program {tmp_path}/none is missing on this host; install it there, or name another path"
    with pytest.raises(NetspaceError, match="there is no runtime 'docker'"):
        runtimes.find("docker")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (None, "/dev/kvm: No such file or directory; use accelerator: tcg"),
        (0o020660, "/dev/kvm is not for every user: chmod 666"),
        (0o020666, ""),
    ],
)
def test_kvm_that_an_environment_could_not_use_is_told(
    monkeypatch: pytest.MonkeyPatch, mode: int | None, message: str
) -> None:
    def stat(path: str) -> SimpleNamespace:
        assert path == "/dev/kvm"
        if mode is None:
            raise FileNotFoundError(2, "No such file or directory")
        return SimpleNamespace(st_mode=mode)

    monkeypatch.setattr(qemu, "files", lambda settings: {})
    monkeypatch.setattr(qemu, "os", SimpleNamespace(stat=stat))
    assert qemu.problem(qemu.Settings(accelerator="kvm")).startswith(message)
    assert bool(qemu.problem(qemu.Settings(accelerator="kvm"))) == bool(message)
    assert qemu.problem(qemu.Settings()) == ""


def test_one_that_is_missing_is_refused_in_the_plan_and_nothing_is_done() -> None:
    spec = parse.environment("web", {**ENVIRONMENT, "runtime": "runsc"})
    missing = Runtime("runsc", {}, "the program runsc is missing on this host; install it: apt-get install runsc")
    plan = compare.plan({"web": DesiredEnvironment(spec, runtime=missing)}, Observed({}, {}, "r"))
    assert plan.steps == []
    (refusal,) = plan.refusals
    assert refusal.message == (
        "netspace:environments:web:runtime: runsc can't be used here: "
        "the program runsc is missing on this host; install it: apt-get install runsc"
    )
