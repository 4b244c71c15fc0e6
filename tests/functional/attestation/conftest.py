"""Software TPMs (swtpm), each on a separate socket. Some are manufactured with a certificate by the test's own CA."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.attestation.software_tpm import Factory, listening, manufacture, missing
from support.waiting import until

from netspace.layout import Layout


@dataclass
class SoftwareTpm:
    """A running swtpm."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    started: list[int] = field(default_factory=list)

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self.folder}/tpm"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                "swtpm",
                "socket",
                "--tpm2",
                "--server",
                f"type=unixio,path={self.folder}/tpm",
                "--ctrl",
                f"type=unixio,path={self.folder}/tpm.ctrl",
                "--tpmstate",
                f"dir={self.folder}/state",
                "--flags",
                "not-need-init,startup-clear",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._ready, "swtpm did not start")

    def _ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, "swtpm ended"
        return listening(self.folder / "tpm")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None
        for name in ("tpm", "tpm.ctrl"):
            (self.folder / name).unlink(missing_ok=True)

    def pause(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    if reason := missing():
        pytest.skip(reason)
    pytest.importorskip("tpm2_pytss", reason="pip install tpm2-pytss")


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return manufacture(tmp_path_factory.mktemp("maker"))


@pytest.fixture(scope="session")
def other_factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return manufacture(tmp_path_factory.mktemp("other-maker"))


@pytest.fixture
def make_tpm() -> Iterator[Callable[[Factory | None], SoftwareTpm]]:
    """A function that starts a TPM from a factory, or a blank TPM without any certificate."""
    made: list[SoftwareTpm] = []

    def make(origin: Factory | None = None) -> SoftwareTpm:
        one = SoftwareTpm(Path(tempfile.mkdtemp(prefix="swtpm")))  # short: a socket's path has 107 bytes
        made.append(one)
        if origin is None:
            (one.folder / "state").mkdir()
        else:
            shutil.copytree(origin.state, one.folder / "state")
        one.start()
        return one

    yield make
    for one in made:
        one.stop()
        shutil.rmtree(one.folder)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A host for one test, with a machine id and a boot id."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    boot(tmp_path, "first")
    return Layout(root=tmp_path)


def boot(root: Path, name: str) -> None:
    path = root / "proc/sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name}\n")
