"""The demonstration of ``scripts/demo --programs``: what programs can ask of their host, what is refused, what ends it.

It runs in a sandbox (``scripts/sandbox``) with its own Salt, and leaves nothing on the machine. A TPM made of software
(swtpm) stands in for the machine's TPM.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from show import Failed, apply, inside, python, run, salt, say, step, tell, tell_line

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(os.environ["NETSPACE_SALT_HOME"])
MEMORY = Path("/run/programs")
"""What isn't on the disk: the TPMs, and the store of secrets."""
DISK = (Path("/var/lib/netspace"), Path("/var/lib/netspace-broker"), Path("/var/log/netspace"), HOME)
"""Everything that netspace and Salt write to the disk here."""

VERBS = ["whoami", "who", "attest", "spawn", "children", "end", "delegate", "revoke", "seal", "unseal", "sign"]
WORKER = {
    "command": python("programs_worker.py"),
    "at_most": 1,
    "lifetime": 600,
    "host": ["whoami"],
    "links": {"orders": {"size": "8K"}},
    "to_parent": {},
    "from_parent": {},
    "values": {"task": "nothing"},
}
OPEN = """
import json, sys
from netspace.attestation.minion import secret_key
from netspace.attestation.sealed_value import Place
from netspace.layout import Layout

layout = Layout()
kept = json.loads((layout.records("secrets") / "web.json").read_text())["secrets"]["db"]
place = Place(kept.get("host", ""), "web", "db", kept["minimum"])
for tpm in sys.argv[1:]:
    found, errors = secret_key.open_all(layout, {"tpm": tpm}, {place: kept["sealed"]})
    print("opened" if found else "refused: " + errors[place])
"""

MEASURE = """
import sys
from pathlib import Path
from netspace.attestation.tpm import device

def extend(tpm):
    kinds = tpm.tss
    digest = kinds.TPMT_HA(hashAlg=kinds.constants.TPM2_ALG.SHA256, digest=kinds.TPMU_HA(sha256=bytes(32)))
    tpm.esapi.pcr_extend(kinds.ESYS_TR.PCR7, kinds.TPML_DIGEST_VALUES([digest]))

device.run(sys.argv[1], extend, lock=Path("/run/programs/lock"))
"""


def software_tpm(name: str) -> str:
    """Start a TPM; return its name for netspace. It ends with the sandbox."""
    folder = MEMORY / name
    (folder / "state").mkdir(parents=True)
    place = folder / "tpm"
    subprocess.Popen(
        [
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}/state"),
            *("--server", f"type=unixio,path={place}", "--ctrl", f"type=unixio,path={place}.ctrl"),
            *("--flags", "not-need-init,startup-clear"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 20
    while not place.exists():
        if time.monotonic() > end:
            raise Failed("swtpm didn't start")
        time.sleep(0.1)
    return f"swtpm:path={place}"


def declaration(tpm: str, trusted: dict[str, str], *, rights: bool = True) -> dict[str, Any]:
    """Return the declaration.

    :param trusted: values of orders, by which it checks proofs.
    :param rights: whether web has rights at its host, links and a secret.
    """
    image = {"image": f"tar:{ROOT}/.cache/demo.tar", "limits": {"memory": "96M", "cpus": 1, "pids": 16}}
    web: dict[str, Any] = {**image, "command": python("programs_web.py"), "values": {"greeting": "hello", "retries": 3}}
    if rights:
        web |= {
            "host": [
                *["whoami", "who", "attest", "spawn", "children", "end", "delegate", "revoke", "seal", "unseal", "sign"]
            ],
            "secrets": {"db": {"source": "sdb://store/db", "minimum": "L2"}},
            "spawns": {"worker": {**image, **WORKER}},
            "delegates": {"orders": {"to": ["till"], "size": "1K"}},
        }
    sells = {"offers": ["sales"], "values": trusted, "command": python("programs_orders.py")}
    links = [{"from": "web", "to": "orders", "pattern": "request", "size": "64K"}, {"from": "web", "to": "till"}]
    return {
        "attestation": {"policy": "prefer", "minimum": "L1", "tpm": tpm},
        "environments": {
            "web": web,
            "orders": {**image, **sells},
            "till": {**image, "command": python("programs_web.py"), "host": ["unseal"] if rights else []},
            "books": {**image, "command": python("programs_web.py"), "offers": ["payroll"]},
        },
        "links": links if rights else [],
    }


def declare(section: dict[str, Any]) -> None:
    pillar = HOME / "pillar"
    pillar.mkdir(parents=True, exist_ok=True)
    (pillar / "top.sls").write_text("base: {'*': [programs]}\n")
    (pillar / "programs.sls").write_text(json.dumps({"netspace": section}, indent=1))
    more = HOME / "etc/minion.d"
    more.mkdir(parents=True, exist_ok=True)
    store = {"driver": "yaml", "files": [str(MEMORY / "store.yaml")]}
    (more / "programs.conf").write_text(json.dumps({"pillar_roots": {"base": [str(pillar)]}, "store": store}))


def program(name: str, *steps: str) -> str:
    """Run steps of a program in its environment, and print its output; return it."""
    result = inside(name, *python("programs_web.py", *steps))
    for line in result["stdout"].splitlines():
        if not line.startswith("sealed="):
            tell_line(f"{name}: {line}")
    if result["retcode"] != 0 or "NOT REFUSED" in result["stdout"]:
        raise Failed(f"{name}: {' '.join(steps)}: {result['stdout']}{result['stderr']}")
    return str(result["stdout"])


def started() -> dict[str, Any]:
    """Return by environment the process that runs now."""
    return {name: row["pid"] for name, row in salt("netspace_environment.list").items()}


def library(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script with netspace's library."""
    more = {**os.environ, "PYTHONPATH": f"{ROOT}/_utils"}
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=more)


def on_disk(secret: str) -> list[str]:
    """Return the files on the disk that have a secret."""
    files = [path for folder in DISK for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in files if secret.encode() in path.read_bytes()]


def hidden(secret: str, tpm: str, other: str) -> None:
    """Show where the secret is, and that a copy of the disk opens nothing.

    :raises Failed: it isn't so.
    """
    count = sum(1 for folder in DISK for path in folder.rglob("*") if path.is_file())
    found = on_disk(secret)
    say(f"   of {count} files on the disk, {len(found)} have the secret")
    if found or not on_disk("orders"):
        raise Failed(f"the secret is in {found}" if found else "the search finds nothing at all")
    done = library(OPEN, tpm, other)
    if [line.partition(":")[0] for line in done.stdout.splitlines()] != ["opened", "refused"]:
        raise Failed(f"the ciphertext on the disk: {done.stdout}{done.stderr}")
    for whose, line in zip(("this TPM", "another machine's TPM"), done.stdout.splitlines(), strict=True):
        tell_line(f"the ciphertext on the disk, and {whose}: {line}")


def show() -> None:
    tpm, other = software_tpm("tpm"), software_tpm("other")
    secret = secrets.token_urlsafe(24)
    (MEMORY / "store.yaml").write_text(json.dumps({"db": secret}))
    trusted = {"host_key": "", "image": ""}
    with step("Apply: web may ask its host, orders sells, till and books have less"):
        declare(declaration(tpm, trusted))
        tell(apply())
        trusted["host_key"] = salt("netspace_attestation.host_key")["key"]
        trusted["image"] = salt("netspace_environment.list")["web"]["digest"]
        declare(declaration(tpm, trusted))
        say("   The operator gives orders the host's key, as a value:")
        tell(apply())
    with step("web reads its values, and finds a service"):
        program("web", "values", "find")
    with step("web spawns a worker, which has less than web"):
        program("web", "spawn")
    with step("web proves to orders where it runs; orders checks by its own code"):
        program("web", "prove")
    with step("web lets till send to orders, for a while"):
        program("web", "delegate")
        program("till", "sale")
    with step("web opens a secret that the disk doesn't have; seals a value; signs"):
        sealed = program("web", "secret", "seal").rpartition("sealed=")[2].strip()
        program("till", "secret_refused", f"unseal_refused={sealed}")
        hidden(secret, tpm, other)
    before = started()
    with step("The TPM measures something else, as in another boot"):
        done = library(MEASURE, tpm)
        if done.returncode != 0:
            raise Failed(done.stderr)
        program("web", f"unseal_refused={sealed}")
    with step("web takes back what it gave to till"):
        program("web", "revoke")
        program("till", "sale_refused")
    with step("The operator takes back everything, and restarts nothing"):
        declare(declaration(tpm, trusted, rights=False))
        tell(apply())
        program("web", "over")
        after = started()
        if after != {name: pid for name, pid in before.items() if name != "web-worker-1"}:
            raise Failed(f"other programs run than before: {before}, {after}")
        say("   web, orders, till and books still run, each with its first process;")
        say("   web's worker has ended")
    with step("Apply again"):
        if tell(apply()):
            raise Failed("the second apply changed something")
        say("   nothing to do: everything is as declared")


if __name__ == "__main__":
    sys.exit(run(show))
