"""The page's reactor and schedule, unchanged: the master attests a host after the host's start, and by schedule."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from saltfactories.manager import FactoriesManager
from saltfactories.utils import random_string
from support import checkout
from support.waiting import until

pytestmark = pytest.mark.root

PAGE = checkout.ROOT / "docs/attestation-fleet.md"


def snippet(begins: str) -> str:
    """Return the page's only YAML or Jinja block that begins with *begins*."""
    blocks = re.findall(r"```(?:yaml|jinja)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (found,) = (block for block in blocks if block.startswith(begins))
    return str(found)


@pytest.fixture
def instance() -> Iterator[str]:
    name = f"fleet{secrets.token_hex(4)}"  # /var/lib is the machine's
    yield name
    shutil.rmtree(f"/var/lib/{name}", ignore_errors=True)


def test_a_start_and_a_schedule_attest(salt_factories: FactoriesManager, tmp_path: Path, instance: str) -> None:
    source = checkout.copy(tmp_path / "source")
    (tmp_path / "attest.sls").write_text(snippet("# /srv/reactor/attest.sls"))
    settings: dict[str, Any] = yaml.safe_load(snippet("schedule:"))
    ((tag, files),) = settings["reactor"][0].items()
    assert files == ["/srv/reactor/attest.sls"]
    master = salt_factories.salt_master_daemon(
        random_string("master-"),
        overrides={
            "interface": "127.0.0.1",
            "worker_threads": 3,
            "loop_interval": 1,
            "reactor_refresh_interval": 1,  # else it knows of runners that are synced a minute later
            "file_roots": {"base": [str(source)]},
            "reactor": [{tag: [str(tmp_path / "attest.sls")]}],
            "netspace.attestation": {"folder": str(tmp_path / "books"), "jitter": 0},
        },
    )
    minion = master.salt_minion_daemon(
        random_string("host-"), overrides={"enable_fqdns_grains": False, "netspace.instance": instance}
    )
    run = master.salt_run_cli(timeout=120)

    def shown() -> dict[str, Any]:
        return dict(run.run("netspace_attestation.status").data[minion.id])

    def written() -> float:
        """Return when the master wrote last to its files of attestation."""
        times = [0.0]
        for path in (tmp_path / "books").rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # it was replaced
                times.append(path.stat().st_mtime)
        return max(times)

    def attested(after: float) -> dict[str, Any]:
        """Wait until the host has sent evidence after the time *after*; return its status.

        The status is asked for only when the master has written to its files again, since each call of the runner
        starts a process that imports Salt.
        """
        asked = -1.0

        def new() -> bool:
            nonlocal asked
            former, asked = asked, written()
            return asked != former and (shown()["evidence"] or 0) > after

        until(new, "it was not attested", patience=300, pause=0.1)
        return shown()

    with master.started(start_timeout=120), minion.started(start_timeout=120):
        # As the page says: the master's side comes by a sync of its own.
        assert "runners.netspace_attestation" in run.run("saltutil.sync_all").data["runners"]
        assert master.salt_cli(timeout=120).run("saltutil.sync_all", minion_tgt=minion.id).returncode == 0
        assert shown()["state"] == "unknown", "at its first start it did not know how to answer"
        with minion.stopped():
            pass
        found = attested(0)
        assert (found["level"], found["code"]) == ("L1", "software-key"), found

        # From here on by the schedule alone; sooner than an operator would, and no word of it else is changed.
        with master.stopped():
            path = Path(master.config["conf_file"])
            config = yaml.safe_load(path.read_text())
            del config["reactor"]
            settings["schedule"]["attest"].update(minutes=0, seconds=2, splay=1)
            # Salt skips each round beside one that waits for a minion that is not back yet: that one ends soon.
            config["netspace.attestation"]["timeout"] = 20
            path.write_text(yaml.safe_dump({**config, "schedule": settings["schedule"]}))
        assert attested(found["evidence"])["level"] == "L1"
