"""A host's software TPM vouches for the key of its environments' tokens; a statement by any other key is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import salt.config
import salt.loader
import salt.loader.lazy

from netspace import files
from netspace.attestation import environment_token as tokens
from netspace.attestation.environment_token import Expected
from netspace.attestation.reconciler import Attestations
from netspace.attestation.refusals import Refused
from netspace.host.peer import process, publish, requests, told, vouching
from netspace.host.peer.asker import Asker
from netspace.host.peer.told import Known, Told, Trust, Vouched
from netspace.layout import Layout
from netspace.link import host_peer
from netspace.spec.types import Attestation

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[3]
NONCE = "b3duLXF1ZXN0aW9uLTE"
DIGEST = f"sha256:{'0' * 64}"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    """The layout of this host. The test works in the peer's folder, like the peer's own process."""
    layout = Layout()
    host_peer.ensure(layout)
    monkeypatch.chdir(host_peer.folder(layout))
    yield layout
    kind = Attestations(layout)
    kind.apply(kind.plan(Attestation(), kind.observe(), {"host"}).steps)
    host_peer.remove(layout)


def judged(layout: Layout, **keys: Any) -> None:
    kind = Attestations(layout)
    for outcome in kind.apply(kind.plan(Attestation(**keys), kind.observe()).steps):
        assert not outcome.error, outcome.error


def attest(vouched: Vouched, name: str = "web") -> str:
    """Return the evidence that the peer gives to an environment, or the code of the peer's refusal."""
    own = Known(("attest",), DIGEST, DIGEST, f"/nowhere/{name}")
    asker = Asker(name, own, Told(told.VERSION, None, Trust(), {name: own}, {}, vouched), time.time())
    body = json.dumps({"v": 1, "verb": "attest", "arguments": {"nonce": NONCE}}).encode()
    try:
        answer = requests.answer(asker, requests.parse(body, len(body)), process.verbs())
    except requests.Refused as err:
        return err.code
    return str(json.loads(answer)["answer"]["evidence"])


def host_key() -> dict[str, str]:
    opts = {**salt.config.DEFAULT_MINION_OPTS, "netspace.instance": "netspace"}
    pack = {"__pillar__": {}, "__grains__": {}, "__salt__": {}, "__context__": {}}
    modules = salt.loader.lazy.LazyLoader([str(ROOT / "_modules")], opts, tag="module", pack=pack)
    found: dict[str, str] = modules["netspace_attestation.host_key"]()
    return found


def by_runner(folder: Path, text: str, key: str, **keys: Any) -> dict[str, Any]:
    for name, content in (("evidence.json", text), ("key.pem", key)):
        (folder / name).write_text(content)
    opts = dict(salt.config.DEFAULT_MASTER_OPTS)
    runner = salt.loader.LazyLoader([str(ROOT / "_runners")], opts, tag="runners", pack={"__salt__": {}})
    given = {"nonce": NONCE, "environment": "web", **keys}
    found: dict[str, Any] = runner["netspace_attestation.verify_environment"](
        evidence=str(folder / "evidence.json"), key=str(folder / "key.pem"), **given
    )
    return found


def by_example(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(ROOT / "client/examples/check_evidence.py"), f"--key={folder}/key.pem"]
    more = [f"--nonce={NONCE}", "--environment=web", *arguments]
    with (folder / "evidence.json").open() as evidence:
        return subprocess.run([*command, *more], stdin=evidence, capture_output=True, text=True, check=False)


def test_tpm_vouches_for_what_all_three_check(here: Layout, make_tpm: Callable, tmp_path: Path) -> None:
    device = make_tpm()
    judged(here, tpm=device.tcti, pcrs=(0, 7))
    vouched = vouching.ensure(here, "h1", None)
    assert vouching.ensure(here, "h1", vouched) is vouched, "nothing is due"
    assert vouching.ensure(here, "h2", vouched).host == "h2"
    text, key = attest(vouched), host_key()
    assert key["kind"] == "tpm-claimed"
    found = tokens.verify(text, key["key"].encode(), Expected(NONCE, "web", "h1", DIGEST, DIGEST), time.time())
    assert found.level == "L1" and set(found.pcrs) == {0, 7}
    pcrs = {str(pcr): value.hex() for pcr, value in found.pcrs.items()}
    told_ = by_runner(tmp_path, text, key["key"], image=DIGEST, host="h1", pcrs=pcrs)
    assert (told_["valid"], told_["level"], told_["environment"], told_["pcrs"]) == (True, "L1", "web", pcrs)
    done = by_example(tmp_path, f"--image={DIGEST}")
    assert done.returncode == 0 and json.loads(done.stdout)["level"] == "L1", done

    refused = by_runner(tmp_path, text, key["key"], environment="till")
    assert (refused["valid"], refused["code"], refused["retcode"]) == (False, "token-subject", 1)
    refused = by_runner(tmp_path, text, key["key"], pcrs={**pcrs, "7": "11" * 32})
    assert refused["code"] == "token-subject"
    assert by_runner(tmp_path, text, key["key"], pcrs={"x": "11"})["code"] == "input"
    done = by_example(tmp_path, "--host=h2")
    assert done.returncode == 1 and "refused: host is h1" in done.stderr


PEER = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from netspace.host.peer import privileges, process, requests, told
from netspace.host.peer.asker import Asker

verbs, user = process.verbs(), int(sys.argv[2])
privileges.drop(user)
known = told.msgspec.json.decode(told._file(told.FILE), type=told.Told)
asker = Asker("web", known.environments["web"], known, time.time())
body = json.dumps({"v": 1, "verb": "attest", "arguments": {"nonce": sys.argv[3]}}).encode()
print(json.loads(requests.answer(asker, requests.parse(body, len(body)), verbs))["answer"]["evidence"])
"""


def test_peer_signs_after_it_gave_up_roots_rights(here: Layout) -> None:
    own = Known(("attest",), DIGEST, DIGEST, "/nowhere/web")
    known = publish._with_key(here, Told(told.VERSION, "h1", Trust(), {"web": own}))
    group = host_peer.ids(here)
    files.write(host_peer.folder(here) / told.FILE, publish._encoded(known), mode=0o640, owner=(0, group))
    assert publish._with_key(here, Told(told.VERSION, "h1", Trust(), {"web": own})) == known, "nothing is due"
    command = [sys.executable, "-I", "-c", PEER, str(ROOT / "_utils"), str(group), NONCE]
    done = subprocess.run(command, cwd=host_peer.folder(here), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    found = tokens.verify(done.stdout, host_key()["key"].encode(), Expected(NONCE, "web", "h1"), time.time())
    assert found.level == "L1"
    silent = msgspec.structs.replace(own, verbs=("whoami",))
    assert publish._with_key(here, Told(told.VERSION, "h1", Trust(), {"web": silent})).vouched is None
    assert not (host_peer.folder(here) / told.KEY).exists(), "nobody may ask for a token any more"


def test_other_tpm_and_software_key_vouch_for_nothing(here: Layout, make_tpm: Callable) -> None:
    judged(here, tpm=make_tpm().tcti)
    first, key = attest(vouching.ensure(here, "h1", None)), host_key()["key"].encode()
    tokens.verify(first, key, Expected(NONCE, "web"), time.time())
    judged(here)  # root of the host says that it has no TPM
    codes = []
    for clone in (True, False):
        if not clone:  # the same disk, beside another TPM
            kind = Attestations(here)
            kind.apply(kind.plan(Attestation(), kind.observe(), {"host"}).steps)
            judged(here, tpm=make_tpm().tcti)
        with pytest.raises(Refused) as refused:
            tokens.verify(attest(vouching.ensure(here, "h1", None)), key, Expected(NONCE, "web"), time.time())
        codes.append(refused.value.code)
    assert codes == ["scheme", "signature"]


def test_tpm_that_is_gone_is_replaced_by_nothing(here: Layout, make_tpm: Callable) -> None:
    device = make_tpm()
    judged(here, tpm=device.tcti)
    before = vouching.ensure(here, "h1", None)
    device.stop()
    assert vouching.ensure(here, "h1", before) is before, "it vouched already"
    after = vouching.ensure(here, "h2", before)
    assert not after.message and "can't vouch for its tokens" in after.problem
    assert attest(after) == "not-available"


def test_slow_tpm_costs_no_statement_that_is_good(
    here: Layout, make_tpm: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, tries, vouch = make_tpm(), list[str](), vouching.environment_token.statement

    def noted(*given: Any) -> bytes:
        tries.append(given[0])
        return vouch(*given)

    monkeypatch.setattr(vouching.environment_token, "statement", noted)
    judged(here, tpm=device.tcti)
    before = vouching.ensure(here, "h1", None)
    device.stop()
    late = msgspec.structs.replace(before, since=before.since - vouching._AGAIN - 1)
    kept = vouching.ensure(here, "h1", late)
    assert kept.message == before.message and tries == ["h1"] * 2
    assert vouching.ensure(here, "h1", kept) is kept and len(tries) == 2, "it waits before it tries again"
    over = msgspec.structs.replace(before, since=before.since - tokens.KEY_LIFETIME)
    gone = vouching.ensure(here, "h1", over)
    assert not gone.message and gone.problem and len(tries) == 3
    assert vouching.ensure(here, "h1", gone) is gone and len(tries) == 3
    long_ago = msgspec.structs.replace(gone, tried=gone.tried - vouching._PAUSE)
    assert not vouching.ensure(here, "h1", long_ago).message and len(tries) == 4
    judged(here)  # other settings are tried at once
    assert vouching.ensure(here, "h1", gone).message


def test_key_of_tokens_is_made_again_after_damage(here: Layout) -> None:
    before = vouching.ensure(here, None, None)
    path = host_peer.folder(here) / told.KEY
    assert (path.stat().st_mode & 0o777, path.stat().st_uid, path.stat().st_gid) == (0o640, 0, host_peer.ids(here))
    path.write_bytes(b"damaged")
    after = vouching.ensure(here, None, before)
    assert after.kid != before.kid
    key = host_key()
    assert key["kind"] == "software"
    assert tokens.verify(attest(after), key["key"].encode(), Expected(NONCE, "web"), time.time()).level == "L1"
    old = msgspec.structs.replace(before)
    with pytest.raises(Refused) as refused:  # signed by the new key, vouched for as the old one
        tokens.verify(attest(old), key["key"].encode(), Expected(NONCE, "web"), time.time())
    assert refused.value.code == "token-signature"
    vouching.forget(here)
    assert not path.exists()
