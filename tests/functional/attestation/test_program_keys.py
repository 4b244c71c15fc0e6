"""Keys of programs in software TPMs, in a token (SoftHSM) and in a file: what opens where, and what a copy opens."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from support.attestation import tokens_pkcs11

from netspace import ecdsa, jose
from netspace.attestation import bound_value
from netspace.attestation.bound_value import Asker, BoundError, Holder, TooWeak
from netspace.attestation.minion import host_key, program_keys
from netspace.attestation.tpm import bound_keys
from netspace.attestation.tpm import device as devices
from netspace.errors import NetspaceError
from netspace.layout import Layout

PLAIN = b"a value"
HASHED = hashlib.sha256(b"what is signed").digest()
IMAGE, OTHER_IMAGE = "1" * 64, "2" * 64


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    pytest.importorskip("pkcs11", reason="pip install python-pkcs11")
    if reason := tokens_pkcs11.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("token")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "conf"))
        yield tokens_pkcs11.make(folder)


@pytest.fixture
def on_tpm(monkeypatch: pytest.MonkeyPatch, make_tpm: Callable[[], Any]) -> Any:
    """A host with a TPM."""
    tpm = make_tpm()
    appraised(monkeypatch, tpm)
    return tpm


def appraised(monkeypatch: pytest.MonkeyPatch, tpm: Any) -> None:
    """Let the host's last appraisal have been with this TPM; None: without any."""
    settings = {"tpm": None} if tpm is None else {"tpm": tpm.tcti, "pcrs": [0, 7]}
    monkeypatch.setattr(host_key, "settings", lambda _: settings)


def with_token(layout: Layout, settings: dict[str, str]) -> None:
    path = layout.root / program_keys.SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))
    path.chmod(0o644)


def who(layout: Layout, environment: str = "web", image: str = IMAGE) -> Asker:
    return program_keys.asker(layout, environment, image)


def seal(layout: Layout, *, image: bool = True, boot: bool = True, at_least: Holder = "file") -> str:
    return program_keys.seal(layout, who(layout), PLAIN, image=image, boot=boot, at_least=at_least)[1]


def refused(layout: Layout, text: str, asker: Asker | None = None) -> str:
    with pytest.raises(BoundError) as error:
        program_keys.unseal(layout, who(layout) if asker is None else asker, text)
    return str(error.value)


def signed(layout: Layout, asker: Asker | None = None, **how: Any) -> program_keys.Signed:
    """Sign, and check the signature by its own key."""
    given = {"image": True, "boot": True, "at_least": "file", **how}
    made = program_keys.sign(layout, who(layout) if asker is None else asker, HASHED, **given)
    x, y = (int.from_bytes(jose.octets(made.key[name], name), "big") for name in "xy")
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    key.verify(ecdsa.to_der(made.signature), b"what is signed", ec.ECDSA(hashes.SHA256()))
    return made


def extend(tpm: Any, pcr: int, layout: Layout) -> None:
    """Measure something, as another boot does."""

    def work(device: devices.Device) -> None:
        tss = device.tss
        sha256 = tss.TPMT_HA(hashAlg=tss.constants.TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=b"\1" * 32))
        device.esapi.pcr_extend(getattr(tss.ESYS_TR, f"PCR{pcr}"), tss.TPML_DIGEST_VALUES([sha256]))

    devices.run(tpm.tcti, work, lock=layout.root / "lock")


def test_tpm_opens_and_signs_in_this_boot_alone(on_tpm: Any, layout: Layout) -> None:
    texts = {boot: seal(layout, boot=boot, at_least="tpm") for boot in (True, False)}
    for boot, text in texts.items():
        about, plain = program_keys.unseal(layout, who(layout), text)
        assert (about.kept_in, about.bound is not None, plain) == ("tpm", boot, PLAIN)
    here, anywhere = signed(layout), signed(layout, boot=False)
    assert (here.kept_in, here.boot, anywhere.boot) == ("tpm", True, False)
    assert signed(layout).key == here.key != anywhere.key
    extend(on_tpm, 16, layout)
    assert program_keys.unseal(layout, who(layout), texts[True])[1] == PLAIN, "PCR 16 isn't one of them"
    extend(on_tpm, 7, layout)
    assert "boot" in refused(layout, texts[True])
    assert program_keys.unseal(layout, who(layout), texts[False])[1] == PLAIN
    assert signed(layout).key != here.key and signed(layout, boot=False).key == anywhere.key
    assert not list(layout.state.rglob("*program*")), "no key of a TPM is in a file"


def test_root_in_another_boot_gets_nothing_from_the_tpm(on_tpm: Any, layout: Layout) -> None:
    def code(device: devices.Device) -> bytes:
        return bound_keys.code(device, b"data", (7,), digest)

    lock = layout.root / "lock"
    digest = devices.run(on_tpm.tcti, lambda device: bound_keys.boot(device, (7,)), lock=lock)
    before = devices.run(on_tpm.tcti, code, lock=lock)
    extend(on_tpm, 7, layout)
    with pytest.raises(bound_keys.OtherBootError):
        devices.run(on_tpm.tcti, code, lock=lock)
    with pytest.raises(devices.DeviceError), pytest.MonkeyPatch.context() as patch:  # without the policy's session
        patch.setattr(bound_keys, "_authorized", lambda device, _: _password(device))
        devices.run(on_tpm.tcti, code, lock=lock)
    other = devices.run(on_tpm.tcti, lambda device: bound_keys.boot(device, (7,)), lock=lock)
    assert devices.run(on_tpm.tcti, lambda device: bound_keys.code(device, b"data", (7,), other), lock=lock) != before


class _password:
    """The authorization by an empty password, as for a key that is bound to nothing."""

    def __init__(self, device: devices.Device) -> None:
        self._device = device

    def __enter__(self) -> Any:
        return self._device.tss.ESYS_TR.PASSWORD

    def __exit__(self, *_: object) -> None:
        pass


def killed_use(tpm: Any, layout: Layout) -> None:
    """Begin to use a key with a boot policy in a process that is killed while key and session are in the TPM."""

    def work(device: devices.Device) -> None:
        def stop(*_: Any, **__: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        device.esapi.hmac = stop
        bound_keys.code(device, b"", (0,), bound_keys.boot(device, (0,)))

    child = os.fork()
    if child == 0:
        try:
            devices.run(tpm.tcti, work, lock=layout.root / "lock")
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_killed_uses_leave_nothing_in_the_tpm(on_tpm: Any, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def handles(device: devices.Device) -> list[int]:
        kind = device.tss.constants.TPM2_CAP.HANDLES
        found = [device.esapi.get_capability(kind, first, 64)[1] for first in (0x80000000, 0x02000000)]
        return [len(one.data.handles) for one in found]

    def code() -> bytes:
        return devices.run(on_tpm.tcti, lambda one: bound_keys.code(one, b""), lock=layout.root / "lock")

    before = code()
    for _ in range(4):  # swtpm has room for three keys, and for three sessions
        killed_use(on_tpm, layout)
    assert devices.run(on_tpm.tcti, handles, lock=layout.root / "lock") == [0, 0]
    assert code() == before
    monkeypatch.setattr(devices, "_LEFTOVERS", ())
    for _ in range(3):
        killed_use(on_tpm, layout)
    with pytest.raises(devices.DeviceError, match="out of memory"):
        code()


@pytest.mark.parametrize("holder", ["tpm", "token", "file"])
def test_other_environment_image_and_host_open_nothing(
    holder: str, layout: Layout, make_tpm: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    appraised(monkeypatch, make_tpm() if holder == "tpm" else None)
    if holder == "token":
        with_token(layout, request.getfixturevalue("token"))
    text, any_image = seal(layout), seal(layout, image=False)
    assert program_keys.unseal(layout, who(layout), text)[0].kept_in == holder
    assert program_keys.unseal(layout, who(layout, image=OTHER_IMAGE), any_image)[1] == PLAIN
    others = {
        "environment": who(layout, "till"),
        "image": who(layout, image=OTHER_IMAGE),
        "host": who(layout)._replace(host="0" * 32),
    }
    mine = signed(layout)
    assert (mine.kept_in, mine.key) == (holder, signed(layout).key)
    for other in others.values():
        assert "another environment or image" in refused(layout, text, other)
        assert signed(layout, other).key != mine.key
    assert "another environment" in refused(layout, any_image, others["environment"])
    for changed in forged(text):
        refused(layout, changed)
    with monkeypatch.context() as patch:  # each check is what refuses
        patch.setattr(Asker, "context", lambda self, use, image: use.encode())
        open_to_all = seal(layout)
        for other in others.values():
            assert program_keys.unseal(layout, other, open_to_all)[1] == PLAIN
            assert signed(layout, other).key == signed(layout).key


def forged(text: str) -> Iterator[str]:
    """Yield changed copies of a sealed value: of each member of its head, and of its text."""
    raw = base64.urlsafe_b64decode(text + "==")
    head, _, body = raw.partition(b"\0")
    about = json.loads(head)
    other: dict[str, Any] = {
        "kept_in": "token" if about["kept_in"] != "token" else "file",
        "image": not about["image"],
        "salt": "0" * 32,
        "pcrs": [1],
        "boot": "00" * 32,
        "v": 2,
        "more": 1,
    }
    heads = [{**about, name: value} for name, value in other.items()]
    for one in (*heads, {**about, "pcrs": [], "boot": ""}, {**about, "pcrs": [24]}):
        if one != about and not (about["pcrs"] == one.get("pcrs") == [] and about["boot"] == one["boot"]):
            yield jose.text(json.dumps(one).encode() + b"\0" + body)
    yield jose.text(head + b"\0" + bytes([body[0] ^ 1]) + body[1:])
    yield jose.text(head + b"\0")
    yield from ("", "A", "!", "A" * 9000, jose.text(head), jose.text(b"\0" + body))


def test_copied_disk_opens_nothing_but_what_a_file_keeps(
    layout: Layout, tmp_path_factory: pytest.TempPathFactory, make_tpm: Callable[[], Any], token: Any, monkeypatch: Any
) -> None:
    texts, keys = {}, {}
    for holder, tpm in (("tpm", make_tpm()), ("file", None)):
        appraised(monkeypatch, tpm)
        texts[holder], keys[holder] = seal(layout, boot=False), signed(layout, boot=False).key
    with_token(layout, token)
    texts["token"], keys["token"] = seal(layout), signed(layout).key
    copy = Layout(root=tmp_path_factory.mktemp("copy") / "disk")
    shutil.copytree(layout.root, copy.root)
    appraised(monkeypatch, make_tpm())
    refused(copy, texts["tpm"])
    assert signed(copy, boot=False).key != keys["tpm"]
    appraised(monkeypatch, None)
    with monkeypatch.context() as patch:  # its token is another one, as each card of a machine is
        patch.setattr(program_keys, "_LABEL", "of another token")
        refused(copy, texts["token"])
        assert signed(copy).key != keys["token"]
    (copy.root / program_keys.SETTINGS).unlink()
    assert "in a tpm" in refused(copy, texts["tpm"]) and "in a token" in refused(copy, texts["token"])
    assert program_keys.unseal(copy, who(copy), texts["file"])[1] == PLAIN, "that's what the level file says"
    assert signed(copy).key == keys["file"]
    assert not {path.name for path in layout.root.rglob("*") if PLAIN in _content(path)}
    (copy.root / "etc/machine-id").write_text("f" * 32 + "\n")
    refused(copy, texts["file"])


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_key_in_a_token_stays_there(layout: Layout, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    appraised(monkeypatch, None)
    with_token(layout, token)
    import pkcs11

    seal(layout)
    with pkcs11.lib(token["module"]).get_token(token_label="netspace").open(user_pin=tokens_pkcs11.PIN) as session:
        key = session.get_key(label="netspace-programs")
        assert key[pkcs11.Attribute.SENSITIVE] and not key[pkcs11.Attribute.EXTRACTABLE]
        with pytest.raises(pkcs11.exceptions.PKCS11Error):
            assert key[pkcs11.Attribute.VALUE] is None
    path = layout.root / program_keys.SETTINGS
    path.chmod(0o666)
    with pytest.raises(NetspaceError, match="others than root"):
        seal(layout)
    path.chmod(0o644)
    with_token(layout, {**token, "token": "elsewhere"})
    with pytest.raises(NetspaceError, match="elsewhere"):
        seal(layout)
    assert not list(layout.state.rglob("*program*")), "a token that is gone is replaced by no file"


def test_holder_that_is_too_weak_is_refused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    appraised(monkeypatch, None)
    for at_least in ("token", "tpm"):
        with pytest.raises(TooWeak, match=f"in a file here, and not in a {at_least}"):
            seal(layout, at_least=at_least)  # type: ignore[arg-type]
    about, _ = program_keys.seal(layout, who(layout), PLAIN, image=True, boot=True, at_least="file")
    assert about.bound is None and about.kept_in == "file"


def test_tpm_that_is_gone_is_replaced_by_no_file(on_tpm: Any, layout: Layout) -> None:
    text = seal(layout)
    on_tpm.stop()
    for attempt in (lambda: seal(layout), lambda: program_keys.unseal(layout, who(layout), text)):
        with pytest.raises(devices.DeviceError):
            attempt()
    assert not list(layout.state.rglob("*program*"))


def test_damaged_key_is_told_without_its_value(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    appraised(monkeypatch, None)
    text = seal(layout)
    (path,) = layout.state.rglob("program-key.json")
    assert path.stat().st_mode & 0o077 == 0
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "key": record["key"][:-8]}))
    with pytest.raises(NetspaceError) as error:
        program_keys.unseal(layout, who(layout), text)
    assert record["key"][:-8] not in str(error.value)


def test_longest_value_fits(layout: Layout, monkeypatch: pytest.MonkeyPatch, on_tpm: Any) -> None:
    plain = bytes(bound_value.MOST)
    _, text = program_keys.seal(layout, who(layout), plain, image=True, boot=True, at_least="tpm")
    assert len(text) <= bound_value.MOST_SEALED
    assert program_keys.unseal(layout, who(layout), text)[1] == plain
