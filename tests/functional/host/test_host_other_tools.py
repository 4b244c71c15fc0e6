"""The Ansible module and the Puppet type bring a host to its declaration, each run by its own tool."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import CHECKOUT, IDLE, python

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]
Tool = Callable[[dict[str, Any], bool], tuple[str, str]]
LINES = 150


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, cwd="/")


@pytest.fixture
def interpreter(tmp_path: Path) -> str:
    """A Python interpreter that can import netspace."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={CHECKOUT / "_utils"} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(params=["ansible", "puppet"])
def tool(request: pytest.FixtureRequest, tmp_path: Path, interpreter: str) -> Tool:
    """Return a function that applies a declaration by the tool, and returns the outcome and the output.

    If its second argument is true, the tool only plans.
    """
    if shutil.which(request.param) is None:
        package = {"ansible": "ansible-core", "puppet": "puppet-agent"}[request.param]
        pytest.skip(f"{request.param} is not installed: apt-get install {package}")

    def ansible(declared: dict[str, Any], check: bool) -> tuple[str, str]:
        arguments = json.dumps({"declaration": declared, "python": interpreter})
        where = ["-i", "localhost,", "-c", "local", "-M", str(CHECKOUT / "contrib/ansible")]
        done = run("ansible", "localhost", *where, "-m", "netspace", "-a", arguments, "--diff", *["--check"][:check])
        words = {"SUCCESS": "unchanged", "CHANGED": "changed", "FAILED!": "failed"}
        return next((words[word] for word in words if f"localhost | {word} =>" in done.stdout), "lost"), done.stdout

    def puppet(declared: dict[str, Any], check: bool) -> tuple[str, str]:
        modules, manifest = tmp_path / "modules", tmp_path / "site.pp"
        modules.mkdir(exist_ok=True)
        if not (modules / "netspace").is_symlink():
            (modules / "netspace").symlink_to(CHECKOUT / "contrib/puppet")
        value = json.dumps(declared, separators=(", ", " => "))
        manifest.write_text(f"netspace {{ 'here': declaration => {value}, python => '{interpreter}' }}\n")
        own = [f"--modulepath={modules}", *(f"--{name}={tmp_path / name}" for name in ("confdir", "vardir"))]
        noop = ["--noop"] if check else []
        done = run("puppet", "apply", "--color=false", "--detailed-exitcodes", *own, *noop, str(manifest))
        if check and done.returncode == 0 and "(noop)" in done.stdout:
            return "changed", done.stdout
        return {0: "unchanged", 2: "changed"}.get(done.returncode, "failed"), done.stdout

    return {"ansible": ansible, "puppet": puppet}[request.param]


def test_tool_makes_a_host_as_declared_once(salt, image: Path, tool: Tool) -> None:
    web = {"image": f"tar:{image}", "command": python(IDLE)}
    declared = {"attestation": {"policy": "off"}, "environments": {"web": web}}
    for check, there in ((True, []), (False, ["web"])):
        outcome, told = tool(declared, check)
        assert outcome == "changed" and "create environment web" in told, told
        assert list(salt("netspace_environment.list")) == there
    for check in (True, False):
        outcome, told = tool(declared, check)
        assert outcome == "unchanged", told

    # A declaration with a mistake, and one that this host can do in part.
    outcome, told = tool({"environmnets": {}}, False)
    assert outcome == "failed" and "netspace:environmnets: unknown; did you mean environments?" in told
    more = {"lost": {"image": "tar:/no/such.tar"}, "idle": {**web, "state": "stopped"}, "web": web}
    for check in (True, False):
        outcome, told = tool({**declared, "environments": more}, check)
        assert outcome == "failed" and "netspace:environments:lost: " in told, told
    assert sorted(salt("netspace_environment.list")) == ["idle", "web"]


def test_interpreter_without_netspace_is_told(tool: Tool, interpreter: str) -> None:
    Path(interpreter).write_text('#!/bin/sh\nexec /usr/bin/python3 -I "$@"\n')
    outcome, told = tool({}, False)
    assert outcome == "failed" and "No module named netspace" in told, told


def test_module_and_type_are_small() -> None:
    for folder in ("ansible", "puppet"):
        files = [path for path in (CHECKOUT / "contrib" / folder).rglob("*") if path.suffix in (".py", ".rb")]
        assert files and sum(len(path.read_text().splitlines()) for path in files) < LINES
