"""Keylime's verifier in a process of its own, as the peer of ``benchmarks/attestation.py``."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Run by Keylime's interpreter: the same boot, log and list through its verifier's own entry. It reads names of what it
# is to do, and prints its own processor time and that of the programs that it started, in seconds.
KEYLIME = """
import importlib.metadata, importlib.util, json, logging, resource, sys, time, types
if importlib.util.find_spec("gpg") is None:  # has no wheel, and is used for signed policies only
    sys.modules["gpg"] = types.ModuleType("gpg")
data = json.load(open(sys.argv[1]))
logging.disable(logging.CRITICAL)
from keylime.agentstates import AgentAttestState
from keylime.common.algorithms import Hash
from keylime.ima import ima
from keylime.mba import mba
from keylime.tpm.tpm_main import Tpm
mba.load_imports(skip_custom_policies=True)
tpm = Tpm()

def used():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime

def ask(quote, **more):
    start = used()
    failure = tpm.check_quote(AgentAttestState("x"), data["nonce"], None, quote, data["ak"],
                              hash_alg=Hash.SHA256, skip_data_pcr_check=True, **more)
    taken = used() - start
    assert not failure, [event.event_id + str(event.context) for event in failure.events]
    return taken

mask = lambda pcrs: {"mask": hex(sum(1 << pcr for pcr in pcrs))}
boot = dict(tpm_policy=mask(data["pcrs"]), mb_measurement_list=data["log"], mb_policy="{}", mb_policy_name="accept-all")
rules = ima.empty_policy()
rules["digests"] = data["digests"]
listed = dict(boot, tpm_policy=mask([*data["pcrs"], 10]), ima_measurement_list=data["list"],
              runtime_policy=rules)
works = {
    "quote": lambda: ask(data["quote"], tpm_policy=mask(data["pcrs"])),
    "boot": lambda: ask(data["quote"], **boot),
    "list": lambda: ask(data["quote10"], **listed),
}
print(importlib.metadata.version("keylime"), flush=True)
for line in sys.stdin:
    print(works[line.strip()](), flush=True)
"""


class Keylime:
    """Keylime's verifier in a process of its own.

    :ivar version: Keylime's version.
    """

    def __init__(self, python: Path, data: Mapping[str, Any], folder: Path) -> None:
        (folder / "data.json").write_text(json.dumps(data))
        self._errors = (folder / "errors").open("w+")
        self._process = subprocess.Popen(
            [python, "-c", KEYLIME, str(folder / "data.json")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        self.version = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if not said:
            self._errors.seek(0)
            raise SystemExit(f"Keylime: {self._errors.read()[-2000:]}")
        return said

    def time(self, name: str) -> float:
        """Return the seconds of processor time that Keylime takes for the work *name*."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self._process.communicate()
        self._errors.close()
