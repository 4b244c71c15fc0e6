"""Pending keys of minions: a key that the host's TPM proves to be the host's is accepted, any other refused."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import salt.utils.event
import salt.utils.verify
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from support.attestation import boot_forge, enrolment_material, runner_bus

from netspace.attestation import identity
from netspace.attestation.endorsement import makers
from netspace.attestation.evidence import Context, key_fingerprint
from netspace.attestation.fleet import admission, admission_http
from netspace.attestation.fleet.admission import Claim, Desk, NotNow
from netspace.attestation.refusals import WrongSaltKey
from netspace.attestation.tpm import structures
from netspace.errors import NetspaceError
from netspace.plugin import salt_keys

BOOT = "0f0e0d0c-boot"
MINIONS = [f"web{number:02}" for number in range(100)]
GOOD = boot_forge.edited("shim-grub", lambda found: None)
OTHER = boot_forge.edited("shim-grub", lambda found: found.append(boot_forge.measured(4, 0x80000007, b"another")))
"""Log and values of PCRs of a boot that the policy allows, and of another boot."""


class Host:
    """A host that requests the acceptance of its minion's key, honestly unless a test changes it.

    :ivar name: returns the name that the TPM signs in place of the verifier's, from the fingerprint of the master's
        key.
    """

    def __init__(self, minion: str, tpm: Any, certificate: bytes | None) -> None:
        self.minion, self.tpm, self.certificate = minion, tpm, certificate
        self.boots(*GOOD)
        made = rsa.generate_private_key(65537, 1024)
        self.key = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.public = made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.name: Callable[[str], str] = lambda master: admission.name(master, self.public)
        self.sealed: Callable[[str], str] = lambda master: admission.name(master, self.public)
        self.nonce: Callable[[bytes], bytes] = lambda nonce: nonce

    def boots(self, log: bytes, pcrs: dict[int, bytes]) -> None:
        """Set the host's boot: its log and the values of PCRs."""
        self.log = log
        if self.tpm is not None:
            self.tpm.pcrs.update(pcrs)

    def do(self, master: str, function: str, value: Any) -> Any:
        if function == "enroll":
            period = bytes.fromhex(value["period"])
            self.tpm.take(period)
            shown = self.tpm.enrolment(tpm={"manufacturer": "TEST"}, period=period, certificate=self.certificate)
            return self._signed(master, identity.ENROLMENT, shown.wire(), {})
        if function == "activate":
            self.tpm.take(bytes.fromhex(value["period"]))
            secret = self.tpm.activate(*(base64.b64decode(value[part]) for part in ("blob", "encrypted")))
            context = Context(self.name(master), self.minion, value["session"], bytes.fromhex(value["nonce"]))
            answer = {"answer": context.activation(secret, structures.public(self.tpm.ak_public).name).hex()}
            return self._signed(master, identity.ACTIVATION, answer, identity.exchange(context.session, context.nonce))
        assert function == "answer"
        nonce = bytes.fromhex(value["nonce"])
        context = Context(self.name(master), self.minion, value["session"], self.nonce(nonce), binding=BOOT.encode())
        whole = {"boot": BOOT, "evidence": self.tpm.evidence(context).wire()}
        whole["evidence"]["bootlog"] = base64.b64encode(self.log).decode()
        return self._signed(
            master, identity.ANSWER, whole, identity.exchange(value["session"], nonce), identity.digest(whole)
        )

    def _signed(self, master: str, kind: str, data: Any, more: Any, told: Any = None) -> Any:
        message = identity.statement(
            kind, self.sealed(master), self.minion, {**(data if told is None else told), **more}
        )
        return {**data, identity.FIELD: identity.sign(self.key, message)}


class Scene:
    """A master with an inventory, a policy, and minions whose keys are pending."""

    def __init__(self, folder: Path, tpm: Any) -> None:
        self.tpm, self.folder = tpm, folder
        self.events: list[str] = []
        maker = ec.generate_private_key(ec.SECP256R1())
        self.certify = lambda one: enrolment_material.certificate("", one.ek.public_key(), "root", maker)
        root = enrolment_material.certificate("root", maker.public_key(), "root", maker, ca=True)
        (folder / "roots").mkdir()
        (folder / "roots/maker.der").write_bytes(root)
        self.inventory = folder / "tpms"
        self.inventory.write_text("")
        given = {"roots": str(folder / "roots"), "inventory": str(self.inventory)}
        given["groups"] = [{"name": "web", "match": ["web*"], "minimum": "L4"}]  # type: ignore[assignment]
        self.runner, self.master = runner_bus.load(folder, given)
        self.pki = folder / "pki"
        for name in ("minions", "minions_pre"):
            (self.pki / name).mkdir()
        assert "retcode" not in self.runner.ca_init()
        good = {"version": 1, "boot": {"pcrs": {str(number): [GOOD[1][number].hex()] for number in range(8)}}}
        (folder / "policy.json").write_text(json.dumps(good))
        assert "retcode" not in self.runner.policy_set("web", str(folder / "policy.json"))
        self.desk: Desk = self.runner._desk()

    def host(self, minion: str, *, listed: bool = True, tpm: Any = None) -> Host:
        """Return a host whose key is pending."""
        tpm = tpm or self.tpm()
        made = Host(minion, tpm, self.certify(tpm))
        (self.pki / "minions_pre" / minion).write_bytes(made.public)
        if listed:
            with self.inventory.open("a") as stream:
                stream.write(f"{minion} {structures.endorsement(tpm.ek_public).fingerprint}\n")
        return made

    def apply(self, host: Host) -> dict[str, Any]:
        """Run a host's request to the end; return the result."""
        try:
            reply = self.desk.open({"minion": host.minion, "key": host.public.decode()})
        except NetspaceError as err:
            return {"refused": str(err)}
        session, master = reply["session"], reply["master"]
        while (call := admission.replied(reply)) is not None:
            reply = self.desk.step(session, host.do(master, *call))
        return reply

    def accepted(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.pki / "minions").iterdir()}


@pytest.fixture
def scene(tmp_path: Path, fake_tpm: Any, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(enrolment_material, "NOW", time.time())
    events: list[str] = []

    @contextlib.contextmanager
    def bus(*_: Any, **__: Any) -> Iterator[Any]:
        class Fire:
            @staticmethod
            def fire_event(data: dict[str, Any], tag: str) -> None:
                events.append(tag)

        yield Fire

    monkeypatch.setattr(salt.utils.event, "get_event", bus)
    made = Scene(tmp_path, type(fake_tpm))
    made.events = events
    return made


def lies(scene: Scene, hosts: dict[str, Host]) -> dict[str, tuple[Host, str]]:
    """Return hosts with false claims, by minion, each with a part of the reason for its refusal."""
    found: dict[str, tuple[Host, str]] = {}

    def lie(reason: str, *, listed: bool = True) -> Host:
        one = scene.host(f"web{90 + len(found)}", listed=listed)
        found[one.minion] = one, reason
        return one

    lie("by the inventory, the TPM").tpm = scene.tpm()
    lie("the inventory does not name web91", listed=False)
    lie("is web07, not").tpm = hosts["web07"].tpm
    # It passes on the answers of the genuine host's TPM, and signs with its own Salt key.
    relaying, genuine = lie("activation"), Host("", None, None)
    relaying.name = lambda master: admission.name(master, genuine.public)
    # It has no private key to the key that is pending.
    lie("salt-key").key = genuine.key
    lie("pcr-value").boots(*OTHER)
    lie("qualifying-data").nonce = lambda nonce: bytes(32)
    # The TPM's answers to an ordinary attestation by the master.
    lie("activation").name = lambda master: master
    by_another = ec.generate_private_key(ec.SECP256R1())
    evil = lie("does not chain to a root")
    evil.certificate = enrolment_material.certificate("", evil.tpm.ek.public_key(), "root", by_another)
    # Another key is put in its place while it is being proved.
    late, do = lie("web99: the compared key is no longer pending"), Host.do

    def replaced(master: str, function: str, value: Any) -> Any:
        if function == "answer":
            (scene.pki / "minions_pre" / late.minion).write_bytes(genuine.public)
        return do(late, master, function, value)

    late.do = replaced  # type: ignore[method-assign]
    return found


def test_a_hundred_are_pending_and_ten_lie(scene: Scene) -> None:
    honest = {minion: scene.host(minion) for minion in MINIONS[:90]}
    liars = lies(scene, honest)
    assert sorted([*honest, *liars]) == MINIONS
    verdicts = {minion: scene.apply(host) for minion, host in honest.items()}
    assert {minion: one for minion, one in verdicts.items() if one != {"accepted": True, "level": "L4"}} == {}
    for minion, (host, reason) in liars.items():
        refused = scene.apply(host)["refused"]
        assert reason in refused, (minion, refused)
    assert scene.accepted() == {minion: host.public for minion, host in honest.items()}
    assert sorted(path.name for path in (scene.pki / "minions_pre").iterdir()) == sorted(liars)
    assert scene.events.count("salt/key") == 90
    assert {f"netspace/admission/{minion}/accepted" for minion in honest} <= set(scene.events)
    assert sum(tag.endswith("/refused") for tag in scene.events) >= 8
    assert scene.runner.verify_log()["valid"] is True
    # An accepted host is known: the master attests it like others.
    assert {one["state"] for one in scene.runner.states(list(honest)).values()} == {"trusted"}


def test_a_relayed_tpm_passes_without_the_name_of_the_key(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the binding to the pending key removed, an impostor that relays a genuine TPM's answers is accepted."""
    monkeypatch.setattr(admission, "name", lambda master, key: master)
    host = scene.host("web01")
    host.name = host.sealed = lambda master: master
    assert scene.apply(host)["accepted"] is True


def test_a_refused_host_may_apply_again_later(scene: Scene) -> None:
    host = scene.host("web01")
    host.boots(*OTHER)
    assert "pcr-value" in scene.apply(host)["refused"]
    assert "was refused a moment ago" in scene.apply(host)["refused"]
    clock = time.monotonic
    scene.desk._clock = lambda: clock() + admission.PAUSE
    host.boots(*GOOD)
    assert scene.apply(host)["accepted"] is True
    assert "isn't pending" in scene.apply(host)["refused"]


def test_each_refusal_of_a_key_doubles_its_pause(scene: Scene) -> None:
    # Sums of whole seconds are exact; those of a real clock's reading are rounded, which made 10 s into 11 s.
    host, now = scene.host("web01"), 1_000.0
    scene.desk._clock = lambda: now
    host.boots(*OTHER)
    pauses = []
    for _ in range(9):
        assert "pcr-value" in scene.apply(host)["refused"]
        waits = scene.apply(host)["refused"]
        assert "was refused a moment ago" in waits
        pauses.append(float(waits.split()[-2]))
        now += pauses[-1]
    assert pauses == [10, 20, 40, 80, 160, 320, 640, 640, 640]
    assert scene.events.count("netspace/admission/web01/refused") == 9, "the waiting leaves no trace"
    now += admission.LONGEST
    assert "pcr-value" in scene.apply(host)["refused"]
    assert scene.apply(host)["refused"].endswith("again in 10 s"), "that was long ago"
    # The host is installed again, with another key: nobody waits for what another key did.
    again = scene.host("web01", listed=False, tpm=host.tpm)
    assert again.public != host.public
    again.boots(*GOOD)
    assert scene.apply(again)["accepted"] is True


def test_rubbish_in_a_minions_name_leaves_no_trace(scene: Scene) -> None:
    host = scene.host("web01")
    log = (scene.folder / "books/audit.log").read_bytes()
    for value in (None, 7, [], {}, {"salt": "00"}, {"v": 1, "salt": "00" * 128}, "x" * 100_000):
        session = scene.desk.open({"minion": "web01", "key": host.public.decode()})["session"]
        assert scene.desk.step(session, value)["refused"]
        with pytest.raises(NotNow):
            scene.desk.step(session, value)
    assert (scene.folder / "books/audit.log").read_bytes() == log and scene.events == []
    assert scene.apply(host)["accepted"] is True, "nobody can keep it waiting"


def test_what_a_pending_key_signed_wrongly_is_paused(scene: Scene) -> None:
    """The holder of a pending key sends signed invalid messages in many sessions: one is refused, the others wait.

    Another minion is accepted meanwhile.
    """
    host, other = scene.host("web01"), scene.host("web02")
    opened = [scene.desk.open({"minion": "web01", "key": host.public.decode()}) for _ in range(admission.EACH)]

    def rubbish(one: dict[str, Any]) -> dict[str, Any]:
        shown = {"v": 1, "period": one["call"]["value"]["period"]}
        return scene.desk.step(one["session"], host._signed(one["master"], identity.ENROLMENT, shown, {}))

    def lines() -> int:
        return len((scene.folder / "books/audit.log").read_bytes().splitlines())

    before = lines()
    assert "malformed" in rubbish(opened[0])["refused"]
    assert (scene.events, after := lines()) == (["netspace/admission/web01/refused"], before + 2)
    for one in opened[1:]:
        with pytest.raises(NotNow, match="refused a moment ago"):
            rubbish(one)
    assert "refused a moment ago" in scene.apply(host)["refused"] and lines() == after
    assert scene.apply(other)["accepted"] is True, "it keeps no other waiting"


def test_an_answer_replayed_in_another_session_is_no_refusal(scene: Scene) -> None:
    """An attacker replays a minion's first answer in other sessions: this isn't logged, and the minion is accepted."""
    host, log = scene.host("web01"), scene.folder / "books/audit.log"
    opening = {"minion": "web01", "key": host.public.decode()}
    first = scene.desk.open(opening)
    seen = host.do(first["master"], *admission.replied(first))
    before = log.read_bytes()
    for _ in range(3):
        assert (
            "not an answer to this session's call"
            in scene.desk.step(scene.desk.open(opening)["session"], seen)["refused"]
        )
    assert log.read_bytes() == before and scene.events == [] and scene.apply(host)["accepted"] is True


def test_an_id_outside_the_inventory_opens_no_session(scene: Scene) -> None:
    """Hosts whose ids aren't in the inventory get no session, and leave nothing in the log or on the bus."""
    before = (scene.folder / "books/audit.log").read_bytes()
    for number in range(3):
        host = scene.host(f"evil{number}", listed=False)
        with pytest.raises(NetspaceError, match=f"the inventory does not name evil{number};"):
            scene.desk.open({"minion": host.minion, "key": host.public.decode()})
    assert scene.desk._sessions == {}
    assert (scene.folder / "books/audit.log").read_bytes() == before and scene.events == []
    assert scene.apply(scene.host("web01"))["accepted"] is True


def test_nobody_waits_while_files_are_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The desk reads the pending key and begins its work without holding its lock.

    It reads the makers' roots only after the holder of the pending key has signed a message.
    """
    desk, free, read = scene.desk, list[bool](), list[str]()
    pending, begin, roots = desk._pending, desk._begin, makers.read
    desk._pending = lambda minion: (free.append(desk._lock.locked()), pending(minion))[1]
    desk._begin = lambda claim: (free.append(desk._lock.locked()), begin(claim))[1]
    monkeypatch.setattr(makers, "read", lambda folder: (read.append(folder), roots(folder))[1])
    host = scene.host("web01")
    reply = desk.open({"minion": "web01", "key": host.public.decode()})
    assert desk.step(reply["session"], {"salt": "00"})["refused"]
    assert free == [False, False] and read == []
    assert scene.apply(host)["accepted"] is True and len(read) == 1


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"minion": "web01"}, {"minion": 7, "key": ""}, {"minion": "../web01", "key": "x"},
     {"minion": "web01", "key": "x" * 5000}, {"minion": "", "key": "x"}, {"minion": "web01", "key": "x", "more": 1}],
)  # fmt: skip
def test_what_is_no_application_is_refused(scene: Scene, data: Any) -> None:
    scene.host("web01")
    with pytest.raises(NetspaceError):
        scene.desk.open(data)


def test_sessions_are_bounded_and_end(scene: Scene) -> None:
    now = [0.0]
    scene.desk._clock = lambda: now[0]
    data = {"minion": "web01", "key": scene.host("web01").public.decode()}
    for _ in range(admission.EACH):
        session = scene.desk.open(data)["session"]
    with pytest.raises(NotNow, match="too many"):
        scene.desk.open(data)
    assert scene.desk.known(session)
    now[0] = admission.LIFETIME + 1
    assert not scene.desk.known(session) and scene.desk.open(data)


def test_no_inventory_admits_nobody(scene: Scene) -> None:
    scene.runner.__opts__["netspace.attestation"]["inventory"] = None
    found = scene.runner.admissions()
    assert found["retcode"] == 1 and "inventory" in found["reason"]


# -- Salt's folders --------------------------------------------------------------------
def test_only_the_proved_key_is_accepted(scene: Scene) -> None:
    opts, valid = scene.runner.__opts__, salt.utils.verify.valid_id
    one, other = scene.host("web01"), scene.host("web02")
    waiting, taken = scene.pki / "minions_pre/web01", scene.pki / "minions/web01"
    with pytest.raises(WrongSaltKey, match="no longer pending"):
        salt_keys.accept(opts, "web01", other.public, valid)
    assert not taken.exists() and waiting.exists()
    salt_keys.accept(opts, "web01", one.public, valid)
    assert taken.read_bytes() == one.public and not waiting.exists() and taken.stat().st_mode & 0o777 == 0o644
    # Accepted already: nothing replaces it, whatever is pending.
    waiting.write_bytes(other.public)
    assert salt_keys.pending(opts, "web01", valid) is None
    with pytest.raises(WrongSaltKey):
        salt_keys.accept(opts, "web01", other.public, valid)
    assert taken.read_bytes() == one.public and [path.name for path in (scene.pki / "minions").iterdir()] == ["web01"]
    for name in ("../web02", "web02/", "", "."):
        assert salt_keys.pending(opts, name, valid) is None
    with pytest.raises(NetspaceError, match="only keys in files"):
        salt_keys.pending({**opts, "keys.cache_driver": "redis"}, "web02", valid)


def test_a_key_replaced_at_the_last_moment_is_not_accepted(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pending key is replaced between the last comparison and the acceptance; the compared key is accepted."""
    one, other = scene.host("web01"), scene.host("web02")
    link = salt_keys.os.link

    def raced(source: str, target: Path) -> None:
        (scene.pki / "minions_pre/web01").write_bytes(other.public)
        link(source, target)

    monkeypatch.setattr(salt_keys.os, "link", raced)
    salt_keys.accept(scene.runner.__opts__, "web01", one.public, salt.utils.verify.valid_id)
    assert scene.accepted() == {"web01": one.public}


def test_a_key_accepted_at_the_last_moment_stays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator accepts another key after the last comparison: that key stays, and no file is left over."""
    one, other = scene.host("web01"), scene.host("web02")
    mkstemp = salt_keys.tempfile.mkstemp

    def raced(**arguments: Any) -> tuple[int, str]:
        (scene.pki / "minions/web01").write_bytes(other.public)
        return mkstemp(**arguments)

    before = {path.name for path in scene.pki.iterdir()}
    monkeypatch.setattr(salt_keys.tempfile, "mkstemp", raced)
    with pytest.raises(WrongSaltKey, match="accepted meanwhile"):
        salt_keys.accept(scene.runner.__opts__, "web01", one.public, salt.utils.verify.valid_id)
    assert scene.accepted() == {"web01": other.public} and {path.name for path in scene.pki.iterdir()} == before


# -- HTTP ------------------------------------------------------------------------------
@pytest.fixture
def url(scene: Scene) -> Iterator[str]:
    with admission_http.Service(("127.0.0.1", 0), scene.desk) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{service.server_address[1]}"
        finally:
            service.shutdown()
            thread.join()


def test_a_host_is_admitted_over_http(scene: Scene, url: str) -> None:
    host = scene.host("web01")
    reply = admission_http.post(url, admission_http.OPEN, {"minion": "web01", "key": host.public.decode()})
    session, master = reply["session"], reply["master"]
    while (call := admission.replied(reply)) is not None:
        reply = admission_http.post(url, admission_http.STEP + session, host.do(master, *call))
    assert reply == {"accepted": True, "level": "L4"} and scene.accepted() == {"web01": host.public}
    assert "no such session" in admission_http.post(url, admission_http.STEP + session, {})["refused"]


def test_messages_are_bounded_and_strict(scene: Scene, url: str) -> None:
    host = scene.host("web01")
    port = int(url.rpartition(":")[2])

    def raw(request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    opening = json.dumps({"minion": "web01", "key": host.public.decode()}).encode()
    for body, length, reason in (
        (b"{}", "99999999999", b"of up to 8192"), (b"{}", "-1", b"of up to 8192"),
        (b"{}", "8193", b"of up to 8192"), (opening, "x", b"of up to 8192"), (b"{}", "900", b"ended early"),
        (b"{", "1", b"Expecting"), (b'{"a":1,"a":2}', "13", b"given twice"), (b"[" * 8000, "8000", b""),
    ):  # fmt: skip
        answer = raw(b"POST /v1/open HTTP/1.0\r\nContent-Length: %s\r\n\r\n%s" % (length.encode(), body))
        assert b" 403 " in answer.splitlines()[0] and reason in answer, answer
    assert b" 404 " in raw(b"POST /v1/step/none HTTP/1.0\r\nContent-Length: 8000000\r\n\r\n").splitlines()[0]
    assert b" 501 " in raw(b"GET /v1/open HTTP/1.0\r\n\r\n").splitlines()[0]
    assert (
        b" 200 "
        in raw(b"POST /v1/open HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(opening), opening)).splitlines()[0]
    )


class Counting(Desk):
    """A desk that records how many messages it processes at the same time.

    Each message takes long enough to overlap with others.
    """

    def __init__(self) -> None:
        super().__init__("ab" * 32, lambda minion: None, lambda claim: iter(()), lambda claim: None, lambda *_: None)  # type: ignore[arg-type,return-value]
        self.now = self.most = 0
        self.mine = threading.Lock()
        self.gate = threading.Semaphore(0)

    def known(self, session: str) -> bool:
        return True

    def step(self, session: str, value: Any) -> dict[str, Any]:
        with self.mine:
            self.now += 1
            self.most = max(self.most, self.now)
        self.gate.acquire(timeout=0.2)
        with self.mine:
            self.now -= 1
        return {"accepted": True}


@pytest.mark.parametrize(("size", "large"), [(admission_http.MAX_OPEN + 1, True), (100, False)])
def test_large_messages_are_read_one_at_a_time(size: int, large: bool) -> None:
    """Four large messages arrive at once and are processed one at a time, since a parsed one takes much memory.

    Small messages are processed in parallel.
    """
    with admission_http.Service(("127.0.0.1", 0), desk := Counting()) as service:
        serving = threading.Thread(target=service.serve_forever, args=(0.05,))
        serving.start()
        try:
            url = f"http://127.0.0.1:{service.server_address[1]}"
            send = [
                threading.Thread(target=admission_http.post, args=(url, admission_http.STEP + "x", "x" * size))
                for _ in range(4)
            ]
            for one in send:
                one.start()
            for one in send:
                one.join(120)
        finally:
            service.shutdown()
            serving.join()
    assert (desk.most == 1) is large


def test_connections_are_bounded_in_number_and_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_http, "LONGEST", 3.0)
    with admission_http.Service(("127.0.0.1", 0), scene.desk) as service:
        serving = threading.Thread(target=service.serve_forever, args=(0.05,))
        serving.start()
        try:
            address = ("127.0.0.1", service.server_address[1])
            slow = [socket.create_connection(address, timeout=120) for _ in range(admission_http.THREADS)]
            for one in slow:
                one.sendall(b"POST /v1/open HTTP/1.0\r\n")
            with socket.create_connection(address, timeout=120) as late:
                assert late.recv(1) == b"", "one more is ended at once"
            # A byte now and then holds a thread no longer than LONGEST.
            ended, since = list[bool](), time.monotonic()
            while not ended:
                assert time.monotonic() - since < 300
                time.sleep(0.05)
                try:
                    slow[0].sendall(b"x")
                    slow[0].settimeout(0.01)
                    ended += [True] if slow[0].recv(1) == b"" else []
                except TimeoutError:
                    continue
                except OSError:
                    ended.append(True)
            for one in slow:
                one.close()
        finally:
            service.shutdown()
            serving.join()


@pytest.mark.parametrize("given", ["https://h:1", "ftp://h", "h", "", "http://", "http://h/path"])
def test_an_address_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(NetspaceError, match="expected http"):
        admission_http.post(given, admission_http.OPEN, {})


@pytest.mark.parametrize("reply", [{}, {"call": 7}, {"call": {"function": 7, "value": 1}}, {"accepted": 1}])
def test_a_reply_that_is_none_is_refused(reply: Any) -> None:
    with pytest.raises(NetspaceError):
        admission.replied(reply)


def test_a_name_is_never_a_masters_alone() -> None:
    key = runner_bus.SALT_PUBLIC
    assert key_fingerprint(key) in admission.name("ab" * 32, key) and admission.name("ab" * 32, key) != "ab" * 32
    assert Claim("web01", key) == Claim("web01", key)
