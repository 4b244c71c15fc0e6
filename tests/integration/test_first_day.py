"""The first day by README and the installation page: from Salt alone to a request over a link.

The fleet has a real master and a real minion ``shop1``, in a Python that has only Salt. The test extracts the commands
from the pages, and replaces only their paths. The pillar is README's own, with an image and programs that exist on the
test machine, and without a TPM.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt.loader
import yaml
from support import checkout
from support.hosts import as_written
from support.hosts.as_written import PAGE, README, commands, section, settings
from support.hosts.salt_modes import bare
from support.hosts.whole_host import ASK, IDLE, IMAGE, SERVE, python
from support.sampling import todays
from support.waiting import until

pytestmark = [pytest.mark.root]

USE = "Use it in a repository of your own"
TARGETS = hasattr(salt.loader, "resource")  # since Salt 3008
PATIENCE = 1200  # seconds; a line that installs packages runs a dozen processes of pip
PROGRAMS = {"orders": python(SERVE), "web": python(IDLE)}


class Fleet:
    """A master and its minion, in a Python that has only Salt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = bare(folder / "venv")
        self.source = checkout.copy(folder / "netspace")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        common = {
            "root_dir": str(folder), "log_level_logfile": "warning", "enable_gpu_grains": False, "user": "root",
            "publish_port": 14505, "ret_port": 14506, "interface": "127.0.0.1",
        }  # fmt: skip
        self._config = {
            "master": {
                **common, "auto_accept": True, "worker_threads": 3, "fileserver_list_cache_time": 0,
                "pillar_roots": {"base": [str(folder / "pillar")]}, "timeout": 300,
            },
            "minion": {
                **common, "id": "shop1", "master": "127.0.0.1", "master_port": 14506, "enable_fqdns_grains": False,
                "acceptance_wait_time": 1, "request_channel_timeout": 120, "return_retry_tries": 10,
            },
        }  # fmt: skip
        for name in self._config:
            self.adjust(name)

    def adjust(self, name: str, **more: Any) -> None:
        """Write a daemon's configuration, with *more* in it."""
        self._config[name].update(more)
        (self.folder / name).write_text(yaml.safe_dump(self._config[name]))

    def declare(self, declared: dict[str, Any]) -> None:
        (self.folder / "pillar").mkdir(exist_ok=True)
        (self.folder / "pillar/top.sls").write_text("base: {'shop*': [shop]}\n")
        (self.folder / "pillar/shop.sls").write_text("#!json\n" + json.dumps(declared))

    def start(self) -> None:
        """Start master and minion, or restart them."""
        self.stop()
        for name in ("master", "minion"):
            with (self.folder / f"{name}.out").open("ab") as out:
                self._running[name] = subprocess.Popen(
                    self._command(f"salt_{name}"), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    start_new_session=True, cwd="/",
                )  # fmt: skip
        until(lambda: "True" in self.typed(["salt", "-t", "5", "shop1", "test.ping"], check=False)[1], patience=300)

    def stop(self) -> None:
        for process in reversed(self._running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._running.clear()

    def _command(self, script: str, *words: str) -> list[str]:
        code = f"import sys; from salt.scripts import {script} as run; sys.argv[0] = {script!r}; run()"
        return [str(self.python), "-c", code, "-c", str(self.folder), *words]

    def typed(self, words: list[str], check: bool = True) -> tuple[int, str]:
        """Type one line of a page; return its exit status and its output."""
        words = [word.replace("/srv/netspace", str(self.source)) for word in words]
        scripts = {"salt": "salt_main", "salt-run": "salt_run"}
        pythons = {"salt-pip": [str(self.python), "-m", "pip"], "/opt/saltstack/salt/bin/python3": [str(self.python)]}
        if words[0] in scripts:
            command = self._command(scripts[words[0]], *words[1:])
        else:
            # Nothing is fetched here but what the test itself offers.
            offline = ["--no-build-isolation"] if words[1] == "install" else []
            command = [*pythons[words[0]], *words[1:], *offline]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=PATIENCE)
        except subprocess.TimeoutExpired as err:
            log = (self.folder / "var/log/salt/minion").read_text()[-5000:]
            raise AssertionError(f"{words}: not done in {PATIENCE} s; the minion's log ends with:\n{log}") from err
        if check:
            told = (words, done.stdout, done.stderr)
            assert done.returncode == 0, told
            assert words[0] != "salt" or "shop1" in done.stdout, told
            assert "did not return" not in done.stdout, told
        return done.returncode, done.stdout

    def json(self, *words: str) -> Any:
        """Return the value of one function of the minion."""
        _, told = self.typed(["salt", "--out=json", "--static", *words])
        (value,) = json.loads(told).values()
        return value


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    assert IMAGE.exists(), f"{IMAGE} is missing: run scripts/demo-image"
    (tmp_path / "wheels").mkdir()
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)  # this Salt has compiled modules of its own
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(as_written.wheels(tmp_path / "wheels")))
    # Salt's sockets lie in there, and a path of a socket has 107 bytes at most (unix(7)).
    with tempfile.TemporaryDirectory(prefix="day-") as folder:
        made = Fleet(Path(folder))
        made.declare({})
        try:
            yield made
            made.typed(["salt", "shop1", "netspace.teardown"])
        finally:
            made.stop()


def declared() -> dict[str, Any]:
    """Return README's pillar, with the settings that make ``web`` a target."""
    (block,) = re.findall(r"^```yaml\n(# pillar/shop\.sls\n.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    pillar: dict[str, Any] = yaml.safe_load(block)
    del pillar["netspace"]["attestation"]  # of a TPM
    for name, one in pillar["netspace"]["environments"].items():
        one.pop("attestation", None)
        one.update(image=f"tar:{IMAGE}", command=PROGRAMS[name], stop_timeout=2)
    said = section(README, USE)
    assert "`target: true`" in said and "`resources: {netspace: {}}`" in said
    pillar["netspace"]["environments"]["web"]["target"] = True
    return {**pillar, "resources": {"netspace": {}}}


def by_folder(fleet: Fleet) -> list[list[str]]:
    """Make netspace available to Salt as README's first choice describes it; return README's remaining lines."""
    text = section(README, USE)
    roots = settings(text)["file_roots"]["base"]
    fleet.adjust("master", file_roots={"base": [one.replace("/srv/netspace", str(fleet.source)) for one in roots]})
    fleet.start()
    lines = commands(text)
    fleet.typed(lines[0])
    return lines[1:]


def by_pip(fleet: Fleet) -> list[list[str]]:
    """Make netspace available to Salt as the page's section on pip describes it; return README's lines after that."""
    fleet.start()  # as it was before
    for words in commands(section(PAGE, "By pip")):
        _, printed = fleet.typed(words)
    fleet.adjust("master", file_roots={"base": [printed.strip()]})
    fleet.start()
    return commands(section(README, USE))[1:]


@pytest.mark.parametrize("way", todays([by_folder, by_pip], 2))
def test_readme_leads_to_answer_and_target(fleet: Fleet, way: Any) -> None:
    packages, refresh, check, dry, apply, target = way(fleet)
    assert [packages[2:], refresh[2:], check[2:], dry[2:], apply[2:]] == [
        ["state.apply", "netspace.packages"], ["saltutil.refresh_pillar", "wait=True"], ["netspace.check"],
        ["state.apply", "netspace", "test=True"], ["state.apply", "netspace"],
    ]  # fmt: skip
    # One operator writes the pillar, with its target, before a host has what netspace needs; the other one afterwards.
    if way is by_folder:
        fleet.declare(declared())
        fleet.typed(refresh)
    fleet.typed(packages)
    fleet.declare(declared())
    for line in (refresh, check, dry, apply):
        fleet.typed(line)
    listed = fleet.json("shop1", "netspace_environment.list")
    assert {name: one["state"] for name, one in listed.items()} == {"orders": "running", "web": "running"}

    asked = ["/usr/bin/python3", "-c", ASK, "orders", "two apples"]
    done = fleet.json("shop1", "netspace_environment.exec", "web", f"command={json.dumps(asked)}", "timeout=300")
    assert isinstance(done, dict), done
    assert (done["retcode"], done["stdout"]) == (0, "orders to web: two apples\n"), done

    # README's last line, by which the environment itself is addressed.
    assert target == ["salt", "-C", "T@netspace:shop1-web", "cmd.run", "ls /srv"]
    if not TARGETS:
        return
    until(lambda: "shop1-web" in fleet.typed(["salt", "-t", "20", *target[1:3], "test.ping"], check=False)[1])
    _, told = fleet.typed([*target[:4], "ls /demo"])  # this image has no /srv
    assert told.splitlines()[0].strip() == "shop1-web:" and "web.py" in told, told
    _, inside = fleet.typed([*target[:4], "id -u; cat /run/netspace/environment.json"])
    assert '"name":"web"' in inside.replace(" ", ""), inside
