"""Secrets of environments on a real host: tests of ``docs/secrets.md``."""

from __future__ import annotations

import contextlib
import json
import os
import secrets as random
import shutil
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import IDLE, Salt, python

from netspace.attestation.reconciler import Attestations
from netspace.environment.container import oci_runtime
from netspace.host import renew, restore
from netspace.host import secrets as hidden
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.plan import Plan, Result
from netspace.spec import parse

pytestmark = pytest.mark.root
LAYOUT = Layout()
FOLDERS = ("/var/lib", "/var/log", "/var/cache", "/etc/netspace", "/etc/salt")
"""Folders of a disk that an apply, Salt or a program could write to."""
BEGAN = time.time()


class Store:
    """A store of secrets, as a stand-in for Salt's sdb."""

    def __init__(self) -> None:
        self.secrets: dict[str, object] = {}

    def __call__(self, uri: str) -> object:
        if uri not in self.secrets:
            raise KeyError(f"the store is broken, and tells {self.secrets}")
        return self.secrets[uri]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture(scope="module", autouse=True)
def _torn_down() -> Iterator[None]:
    yield
    Host(LAYOUT).teardown()


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    apply({}, None)  # the image stays
    assert not hidden.recorded(LAYOUT) and not list(LAYOUT.opened_secrets.glob("*"))


def declared(image: Path, secrets: dict[str, Any], **more: Any) -> dict[str, Any]:
    common = {"image": f"tar:{image}", "limits": {"memory": "64M"}, "stop_timeout": 2, "command": python(IDLE)}
    return {"environments": {"web": {**common, "secrets": secrets}, "other": common}, **more}


def apply(declaration: dict[str, Any], store: Store | None, *, test: bool = False) -> Result:
    host, result = Host(LAYOUT, source=store), Result(Plan())
    for converge in host.each_kind(parse.declaration(declaration), test=test).values():
        result = result.joined(converge())
    assert not result.failures, result.failures
    return result


def refused(result: Result) -> list[str]:
    return [refusal.message for refusal in result.plan.refusals]


def inside(name: str, *command: str) -> dict[str, Any]:
    return dict(Host(LAYOUT).operations.exec(name, list(command), timeout=60))


def secret(name: str, environment: str = "web") -> str:
    """Return a secret as the environment's program reads it; empty if it can't."""
    return str(inside(environment, "/bin/cat", f"/run/netspace/secret.{name}")["stdout"])


def card(name: str = "web") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((LAYOUT.inside(name) / "environment.json").read_text())
    return found


def pid() -> int:
    found: int = Host(LAYOUT).supervisor.observe([oci_runtime.service_name("web")])[oci_runtime.service_name("web")].pid
    assert found
    return found


def found(words: Iterable[str], *more: Path) -> list[str]:
    """Return the paths that contain one of *words*: files on disk and in memory, arguments and variables of processes.

    Files in memory in which the secret belongs are left out.
    """
    sought = [form for word in words for form in forms(word)]
    hits = []
    folders = [Path(folder) for folder in (*FOLDERS, *map(str, more)) if Path(folder).is_dir()]
    listed = [path for folder in folders for path in _files(folder)]
    listed += [path for path in _files(Path("/run")) if not _permitted(path)]
    listed += [path for entry in Path("/proc").glob("[0-9]*") for path in (entry / "cmdline", entry / "environ")]
    for path in listed:
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if any(form in content for form in sought):
            hits.append(str(path))
    return hits


def forms(word: str) -> list[bytes]:
    """Return a secret as it could be written: plain, in hex, in base64 at each offset, and its digests."""
    import base64
    import hashlib

    raw = word.encode()
    coded = [base64.b64encode(b"x" * pad + raw)[4 if pad else 0 : -4] for pad in range(3)]
    digests = [hashlib.new(kind, raw).hexdigest().encode() for kind in ("md5", "sha1", "sha256")]
    return [raw, raw.hex().encode(), *coded, *digests]


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        # Images, whose names are the digests of what is in them. The layers above them are searched.
        folders[:] = [one for one in folders if Path(place, one) != LAYOUT.images and one != "rootfs"]
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(FileNotFoundError):
                info = path.lstat()
                # The time of a file's last change can't be set to an earlier one.
                if stat.S_ISREG(info.st_mode) and info.st_ctime >= BEGAN - 1:
                    yield path


def _permitted(path: Path) -> bool:
    """Return whether a file in memory is one of the two places where a secret may be."""
    return path.parent == LAYOUT.opened_secrets / "web" or (
        path.parent == LAYOUT.inside("web") and path.name.startswith("secret.")
    )


def test_program_has_its_secret_and_nobody_else_has(image: Path, store: Store) -> None:
    word = store.secrets["sdb://store/db"] = random.token_hex(16)
    told = apply(declared(image, {"db": "sdb://store/db"}), store)
    assert not refused(told), refused(told)
    assert secret("db") == word and card()["secrets"] == ["db"]
    assert word not in json.dumps(card()) and word not in str(told)
    assert secret("db", "other") == "" and "secrets" not in card("other")
    user = (LAYOUT.inside("web") / "secret.db").stat()
    assert user.st_mode & 0o777 == 0o440 and user.st_uid != 0
    assert inside("web", "/bin/sh", "-c", "echo x > /run/netspace/secret.db")["retcode"] != 0
    assert not apply(declared(image, {"db": "sdb://store/db"}), store).plan.steps, "applied twice"


def test_secret_changes_and_goes_without_a_restart(image: Path, store: Store) -> None:
    first, second = (random.token_hex(16) for _ in range(2))
    store.secrets["sdb://store/db"] = first
    here = declared(image, {"db": "sdb://store/db"})
    apply(declared(image, {}), store)
    before = pid()
    apply(here, store)
    assert secret("db") == first
    store.secrets["sdb://store/db"] = second
    planned = apply(here, store, test=True)
    changes = {key for step in planned.plan.steps for key in step.changes}
    assert changes == {"files:secret.db"} and secret("db") == first and second not in str(planned)
    apply(here, store)
    assert secret("db") == second and not found([first])
    apply(declared(image, {}), store)
    assert secret("db") == "" and "secrets" not in card() and not hidden.held(LAYOUT, "web")
    assert pid() == before and not hidden.recorded(LAYOUT)


def test_source_that_fails_leaves_the_secret_and_tells_nothing(image: Path, store: Store) -> None:
    word = store.secrets["sdb://store/db"] = random.token_hex(16)
    here = declared(image, {"db": "sdb://store/db"})
    apply(here, store)
    for bad in ({}, {"sdb://store/db": "sdb://store/db"}, {"sdb://store/db": ""}, {"sdb://store/db": {"a": word}}):
        store.secrets = dict(bad)
        told = apply(here, store)
        assert len(refused(told)) == 1 and word not in str(told), told
        assert secret("db") == word
    assert refused(apply(here, None)) and secret("db") == word


def test_restoration_opens_secrets_without_their_source(image: Path, store: Store) -> None:
    word = store.secrets["sdb://store/db"] = random.token_hex(16)
    apply(declared(image, {"db": "sdb://store/db"}), store)
    _forget_memory()
    assert restore.run(LAYOUT) == 0 and not Host(LAYOUT).environments.start(["web"])
    assert secret("db") == word


def test_disk_alone_shows_no_secret_and_another_machine_opens_none(image: Path, store: Store) -> None:
    word = store.secrets["sdb://store/db"] = random.token_hex(16)
    apply(declared(image, {"db": "sdb://store/db"}), store)
    assert not found([word])
    # Another machine id, as in a clone. (Whoever copies the id too, opens what is encrypted to a key in a file: L1.)
    _forget_memory()
    path = LAYOUT.records("attestation") / "secret-key.json"
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({**record, "host": "0" * 32}))
    assert restore.run(LAYOUT) == 1 and not Host(LAYOUT).environments.start(["web"])
    assert secret("db") == "" and not hidden.held(LAYOUT, "web")
    apply(declared(image, {"db": "sdb://store/db"}), store)
    assert secret("db") == word, "an apply with the source makes it again"


def test_search_finds_each_leak(image: Path, store: Store, tmp_path: Path) -> None:
    word = store.secrets["sdb://store/db"] = random.token_hex(16)
    apply(declared(image, {"db": "sdb://store/db"}), store)
    assert not found([word])
    leaks = {
        "a record": LAYOUT.state / "environments" / "leak.json",
        "a log": LAYOUT.logs / "leak.log",
        "a bundle": LAYOUT.bundle("web") / "leak.json",
        "another environment": LAYOUT.inside("other") / "leak",
    }
    for number, form in enumerate(forms(word)):
        path = list(leaks.values())[number % len(leaks)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{" + form + b"}")
        assert found([word]) == [str(path)], form
        path.unlink()
    for how in ({"args": ["/bin/sh", "-c", "sleep 30; :", word]}, {"args": ["/bin/sleep", "30"], "env": {"X": word}}):
        with subprocess.Popen(**how) as process:  # type: ignore[call-overload]
            hits = found([word])
            process.kill()
        assert hits and all(hit.startswith("/proc/") for hit in hits), how


def test_lost_trust_withdraws_a_secret(image: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    word = store.secrets["sdb://store/db"] = random.token_hex(16)
    high = declared(image, {"db": {"source": "sdb://store/db", "minimum": "L2"}})
    told = apply(high, store)
    assert len(refused(told)) == 1 and "needs trust level L2, this host has L1" in refused(told)[0]
    assert secret("db") == "" and not found([word]) and not hidden.recorded(LAYOUT)
    apply(declared(image, {"db": "sdb://store/db"}), store)
    assert secret("db") == word
    result = LAYOUT.records("attestation") / "result.json"
    kept = result.read_bytes()
    result.write_text(json.dumps({**json.loads(kept), "expires": 1.0}))
    assert renew.run(LAYOUT) == 0 and secret("db") == word, "the host judged itself again"
    with monkeypatch.context() as patched:
        patched.setattr(Attestations, "restore", lambda _: [])  # a new judgement that finds no trust
        result.unlink()
        assert renew.run(LAYOUT) == 0
        assert secret("db") == "" and not hidden.held(LAYOUT, "web")
    result.write_bytes(kept)
    assert renew.run(LAYOUT) == 0 and secret("db") == word, "the host opens it again, without its source"
    apply(high, store)
    assert secret("db") == "" and not hidden.held(LAYOUT, "web")


def test_no_file_of_salt_has_a_secret(salt: Salt, image: Path, tmp_path: Path) -> None:
    word, plain = random.token_hex(16), tmp_path / "sdb.yaml"
    here = declared(image, {"db": "sdb://store/db"})
    plain.write_text(json.dumps({"db": word}))
    pillar = {"netspace": here, "store": {"driver": "yaml", "files": [str(plain)]}}
    (salt.pillar / "declared.sls").write_text("#!json\n" + json.dumps(pillar))
    log = Path("/var/log/secrets-test.log")
    try:
        done = salt.run(f"--log-file={log}", "--log-file-level=trace", "state.apply", "netspace")
        assert done.returncode == 0, done.stdout + done.stderr
        assert secret("db") == word and word not in done.stdout + done.stderr
        shown = [
            salt.run(*call) for call in (["netspace.diff"], ["netspace_environment.inspect", "web"], ["pillar.items"])
        ]
        assert all(word not in one.stdout + one.stderr for one in shown)
        assert "(new content)" not in salt.run("netspace.diff").stdout
        assert not found([word], Path(os.environ.get("NETSPACE_SALT_HOME", ".cache/salt")))
    finally:
        log.unlink(missing_ok=True)


def _forget_memory() -> None:
    """End the programs, and lose what is in memory, as a reboot does."""
    host = Host(LAYOUT)
    host.environments.stop(["web", "other"])
    shutil.rmtree(LAYOUT.opened_secrets)
    for name in ("web", "other"):
        for path in LAYOUT.inside(name).iterdir():
            path.unlink()
