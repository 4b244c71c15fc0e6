"""The cost of a proof of the host and environment in which a program runs: to make it, check it, and vouch for its key.

usage: .venv/bin/python benchmarks/tokens.py [--json | --markdown] [--rounds N]

A host signs such proofs with its token key, for which the attestation verifier vouches (docs/adr/0082). The benchmark
needs no root. These figures are measured, in milliseconds of this process's processor time:

*a proof* -- the work of a host's peer (the service that answers the host's environments) for one request of the verb
``attest``, without the transport. It is compared with a bare signature by ES256 with the same library (libcrypto).

*a check* -- the work of a program that trusts the verifier and checks a proof: two signatures. It is compared with two
bare checks with ``cryptography``.

*a check without netspace* -- the same by ``client/examples/check_appraised_evidence.py``.

With swtpm and tpm2-pytss, also the elapsed time (ms) of:

*a host's answer* -- the host's answer to the verifier's challenge, with its token key and the proof that it has this
key. It is compared with an answer without a key. Each answer opens a new connection to the TPM, as on a host.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench
from bench import Rounds, line

EACH = 200
ANSWERS = 10
NOW = 1_800_000_000.0
NONCE, DIGEST = "b3duLXF1ZXN0aW9uLTE", f"sha256:{'1' * 64}"


def _used(rounds: Rounds, name: str, work: Callable[[], Any]) -> None:
    work()
    start = time.process_time()
    for _ in range(EACH):
        work()
    rounds.note(name, (time.process_time() - start) * 1000 / EACH)


def measure(rounds: Rounds, count: int) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from netspace import jose
    from netspace.attestation import appraised_token, ear, host_appraisal
    from netspace.attestation import environment_token as tokens
    from netspace.host.peer import process, requests, signing, told
    from netspace.host.peer.asker import Asker
    from netspace.host.peer.told import Known, Told, Trust, Vouched

    path = bench.ROOT / "client/examples/check_appraised_evidence.py"
    spec = importlib.util.spec_from_file_location("check_appraised_evidence", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    key, verifier = ec.generate_private_key(ec.SECP256R1()), ear.Signer(ec.generate_private_key(ec.SECP256R1()))
    jwk = jose.jwk(key.public_key())
    raw = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    kid = jose.thumbprint(jwk)
    word = host_appraisal.make(verifier, "web1", 3, "boot", jwk, ("web", 1), NOW, NOW + 7200)
    message = tokens.vouched("software", tokens.statement("h1", "boot", jwk, NOW), b"", bytes(64), {})
    own = Known(("attest",), DIGEST, DIGEST, "/nowhere/web")
    facts = Told(told.VERSION, "h1", Trust(), {"web": own}, {}, Vouched("", NOW, "h1", "boot", kid, message))
    body = json.dumps({"v": 1, "verb": "attest", "arguments": {"nonce": NONCE}}).encode()
    verbs, asker = process.verbs(), Asker("web", own, facts, NOW)

    def proof() -> str:
        answer = requests.answer(asker, requests.parse(body, len(body)), verbs)
        return str(json.loads(answer)["answer"]["evidence"])

    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path(told.KEY).write_bytes(raw)
        Path(told.APPRAISAL).write_text(json.dumps({"kid": kid, "boot": "boot", "until": NOW + 7200, "word": word}))
        text = proof()
        keys = json.dumps(ear.jwks([verifier.jwk])).encode()
        expected = tokens.Expected(NONCE, "web")
        checked = appraised_token.verify(text, [verifier.jwk], expected, NOW, minion="web1", minimum=3)
        assert checked[0].level == "L3"
        said, public = b"x" * 500, key.public_key()
        signature = key.sign(said, ec.ECDSA(hashes.SHA256()))

        def bare() -> None:
            for _ in range(2):
                public.verify(signature, said, ec.ECDSA(hashes.SHA256()))

        for _ in range(count):
            _used(rounds, "proof", proof)
            _used(rounds, "bare signature", lambda: signing.es256(raw, said))
            _used(
                rounds,
                "check",
                lambda: appraised_token.verify(text, [verifier.jwk], expected, NOW, minion="web1", minimum=3),
            )
            _used(rounds, "bare checks", bare)
            _used(rounds, "script", lambda: script.check(text, keys, NONCE, 3, NOW, environment="web"))
        os.chdir(here)


def measure_answers(rounds: Rounds, count: int) -> bool:
    """Measure a host's answers with a software TPM; return False if this machine has none."""
    if shutil.which("swtpm") is None or importlib.util.find_spec("tpm2_pytss") is None:
        return False
    from cryptography.hazmat.primitives.asymmetric import ec

    from netspace.attestation.minion import master_result, settings
    from netspace.layout import Layout
    from netspace.spec.types import Attestation

    key = ec.generate_private_key(ec.SECP256R1())
    folder = Path(tempfile.mkdtemp(prefix="swtpm"))
    (folder / "state").mkdir()
    command = ["swtpm", "socket", "--tpm2", "--server", f"type=unixio,path={folder}/tpm"]
    command += ["--ctrl", f"type=unixio,path={folder}/tpm.ctrl", "--tpmstate", f"dir={folder}/state"]
    running = subprocess.Popen(
        [*command, "--flags", "not-need-init,startup-clear"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (folder / "tpm").exists():
            time.sleep(0.05)
        boot = folder / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True)
        boot.write_text("boot")
        layout, chosen = Layout(root=folder), settings.of(Attestation(tpm=f"swtpm:path={folder}/tpm"))
        challenge = {"session": "1", "nonce": "ab" * 32, "pcrs": list(range(8)), "ima_from": None, "bootlog": None}

        def answers(signing: Any) -> None:
            for _ in range(ANSWERS):
                master_result.answer(layout, chosen, "web1", "ab" * 32, challenge, None, signing)

        answers(key)
        for _ in range(count):
            for name, signing in (("answer", key), ("answer without", None)):
                start = time.perf_counter()
                answers(signing)
                rounds.note(name, (time.perf_counter() - start) * 1000 / ANSWERS)
    finally:
        running.kill()
        running.wait()
        shutil.rmtree(folder)
    return True


def main() -> None:
    parser = bench.arguments(__doc__, rounds=7)
    options = parser.parse_args()
    bench.note_load()
    rounds = Rounds()
    measure(rounds, options.rounds)
    middle = rounds.middle
    found = {
        "a proof by the host's peer": line(
            middle("proof"), "ms", "a bare signature", middle("bare signature"), limit=10.0
        ),
        "a check by the library": line(middle("check"), "ms", "two bare checks", middle("bare checks"), limit=10.0),
        "a check without netspace": line(middle("script"), "ms", "two bare checks", middle("bare checks")),
    }
    if measure_answers(rounds, options.rounds):
        found["a host's answer with a software TPM and a token key, time"] = line(
            middle("answer"), "ms", "without a key", middle("answer without"), limit=middle("answer without") + 10
        )
    bench.tell(found, options)


if __name__ == "__main__":
    main()
