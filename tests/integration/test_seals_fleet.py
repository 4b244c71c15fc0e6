"""A real master certifies two real minions and exchanges their seals, over Salt's bus.

One of the minions forges answers in the other's name.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import salt.config
import salt.utils.event
from cryptography import x509
from saltfactories.manager import FactoriesManager
from saltfactories.utils import random_string
from support import checkout

from netspace.layout import Layout
from netspace.link.pki import authority
from netspace.link.pki.root import BUNDLE, Root, adopt, request
from netspace.link.record import Record, write
from netspace.link.seal import bundle, endorser, keys
from netspace.spec import hosts as words
from netspace.spec.types import Link, LocalBroker, RemoteHost

pytestmark = pytest.mark.root

HOSTS = ("h1", "h2")
LINK = Link(source="web@h1", target="vault@h2", pattern="request", seal=True)


class Fleet:
    """A master and two minions, each with a separate instance. Links are only recorded; there is no broker."""

    def __init__(self, folder: Path, salt_factories: FactoriesManager) -> None:
        self.layouts = {name: Layout(f"{name}{secrets.token_hex(4)}") for name in HOSTS}
        self.master = salt_factories.salt_master_daemon(
            random_string("master-"),
            overrides={
                "interface": "127.0.0.1",
                "worker_threads": 3,
                "runner_dirs": [str(checkout.ROOT / "_runners")],
                "utils_dirs": [str(checkout.ROOT / "_utils")],
                "netspace.link": {"root": str(folder / "masters")},
            },
        )
        self.minions = {
            name: self.master.salt_minion_daemon(
                random_string(f"{name}-"),
                overrides={"enable_fqdns_grains": False, "netspace.instance": layout.instance, **checkout.in_place()},
            )
            for name, layout in self.layouts.items()
        }
        root = Root(folder / "root")
        root.make("root")
        for name, layout in self.layouts.items():
            adopt(folder / name, root.certify(request(folder / name), f"{name}.example.org"))
            broker = self.broker(folder, name)
            links = words.local([LINK], broker)
            write(layout, Record(broker, {link.name: link for link in links}))
            authority.ensure(layout, broker, time.time())

    def broker(self, folder: Path, name: str) -> LocalBroker:
        (other,) = set(HOSTS) - {name}
        return LocalBroker(
            host=name,
            listen="198.51.100.1:5671",
            trust_domain=f"{name}.example.org",
            authority=str(folder / name),
            names_key=str(folder / "names.key"),
            hosts={other: RemoteHost(trust_domain=f"{other}.example.org", address="198.51.100.2:5671")},
        )

    def runner(self, *words: str) -> Any:
        return self.master.salt_run_cli(timeout=240).run(*words)

    def exchange(self, *arguments: str) -> Any:
        return self.runner("netspace_link.exchange_seals", *arguments)


@pytest.fixture(scope="module")
def fleet(salt_factories: FactoriesManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("fleet"), salt_factories)
    h1, h2 = made.minions.values()
    try:
        with made.master.started(start_timeout=120), h1.started(start_timeout=120), h2.started(start_timeout=120):
            yield made
    finally:
        for layout in made.layouts.values():
            shutil.rmtree(layout.state, ignore_errors=True)


def test_each_hears_of_the_other_and_the_second_time_there_is_no_news(fleet: Fleet) -> None:
    done = fleet.exchange()
    assert done.returncode == 0, done
    assert done.data == {"exchanged": {"h1": ["h2"], "h2": ["h1"]}, "problems": []}
    for name, other, environment in (("h1", "h2", "vault"), ("h2", "h1", "web")):
        heard = bundle.read_all(fleet.layouts[name])[other]
        own = endorser.read(fleet.layouts[name])
        assert own is not None and heard.knows == own.kid
        theirs = keys.read_all(fleet.layouts[other])[environment]
        assert [key["kid"] for key in heard.keys[environment]] == [theirs[1]["kid"]]
    again = fleet.exchange()
    assert (again.returncode, again.data) == (0, {"exchanged": {}, "problems": []})


def test_what_lacks_is_told_and_the_exit_status_says_so(fleet: Fleet) -> None:
    alone = fleet.exchange(fleet.minions["h1"].id)
    assert alone.returncode == 1, alone
    assert "has sealed links with h2, for which no minion answers, or several" in alone.data["problems"][0]
    nobody = fleet.exchange("nobody")
    assert (nobody.returncode, nobody.data["problems"]) == (1, ["no minion answers"])
    # A host that refuses is told by name; the other one is served.
    fleet.layouts["h1"].records("bundles").joinpath("h2.json").write_text("{")
    damaged = fleet.exchange()
    assert damaged.returncode == 1
    assert fleet.minions["h1"].id in damaged.data["problems"][0]
    fleet.layouts["h1"].records("bundles").joinpath("h2.json").unlink()
    # Which had said meanwhile that it knows nothing of the other any more.
    assert fleet.exchange().data == {"exchanged": {"h1": ["h2"], "h2": ["h1"]}, "problems": []}


class Forger:
    """Root of h2, who answers each call of h1 in h1's name with a chosen text, before h1 answers.

    The test learns of a job from the master's own event; a real attacker would read the messages that the master
    publishes to all minions. The forged answer takes the way of any minion's answer: ``event.fire_master`` on h2.
    """

    def __init__(self, fleet: Fleet, answer: Any) -> None:
        self.fleet, self.answer = fleet, answer
        self.fired: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Forger:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        opts = dict(self.fleet.master.config)
        victim, evil = (self.fleet.minions[name].id for name in HOSTS)
        cli = self.fleet.master.salt_cli(timeout=120)
        with salt.utils.event.get_event("master", opts=opts, sock_dir=opts["sock_dir"], listen=True) as events:
            while not self._ended.is_set():
                event = events.get_event(wait=0.5, tag="salt/job/", match_type="startswith", full=True)
                if event is None or not event["tag"].endswith("/new") or event["data"]["minions"] != [victim]:
                    continue
                job = event["data"]["jid"]
                data = {"id": victim, "jid": job, "return": self.answer, "retcode": 0, "success": True}
                tag = f"salt/job/{job}/ret/{victim}"
                # Without preload, Salt wraps the data in a mapping with the sender's id.
                preload = json.dumps({"events": [{"tag": tag, "data": data}]})
                done = cli.run("event.fire_master", "{}", tag, f"preload={preload}", minion_tgt=evil)
                assert done.data is True, done
                self.fired.append(tag)


def test_what_h2_answers_for_h1_is_passed_over(fleet: Fleet, tmp_path: Path) -> None:
    """h2 answers a certificate request in h1's name; the master ignores this answer and certifies h1's own request.

    Salt delivers the forged answer. h1 is stopped until it was sent.
    """
    h1, folder = fleet.minions["h1"], tmp_path / "h1"
    evil = request(tmp_path / "evil")
    running = processes(h1.pid)
    opts = dict(fleet.master.config)
    heard: list[str] = []

    with (
        Forger(fleet, {"answer": evil, "salt": "00" * 256}) as forger,
        salt.utils.event.get_event("master", opts=opts, sock_dir=opts["sock_dir"], listen=True) as events,
        stopped(running) as go_on,
    ):
        done: list[Any] = []
        words = ("netspace_link.certify", h1.id, "h1.example.net", f"folder={folder}", "timeout=120")
        asking = threading.Thread(target=lambda: done.append(fleet.runner(*words)))
        asking.start()
        event = events.get_event(wait=120, tag=f"salt/job/*/ret/{h1.id}", match_type="fnmatch", full=True)
        assert event is not None and event["data"]["return"]["answer"] == evil, "Salt let the forged answer through"
        heard.append(event["tag"])
        time.sleep(1)  # for the runner to hear it, too
        go_on()
        asking.join()
    assert heard[0] in forger.fired
    assert (done[0].returncode, done[0].data) == (0, True), done[0]
    own, _ = x509.load_pem_x509_certificates((folder / BUNDLE).read_bytes())
    assert own.public_key() == x509.load_pem_x509_csr(request(folder).encode()).public_key()
    assert own.public_key() != x509.load_pem_x509_csr(evil.encode()).public_key()
    given = fleet.runner("netspace_link.certified").data
    assert list(given) == ["h1.example.net"]


@contextlib.contextmanager
def stopped(running: list[psutil.Process]) -> Iterator[Any]:
    """Stop processes until the yielded function is called, or until the block ends."""

    def go_on() -> None:
        for one in running:
            one.resume()

    for one in running:
        one.suspend()
    try:
        yield go_on
    finally:
        go_on()


def processes(pid: int) -> list[psutil.Process]:
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]
