"""A master for a machine without a network: the real runner, with messages over the lab's channel.

The runner works as on a master, with its records, keys and results in a folder of the test. In place of Salt's bus,
``salt-call`` in the machine runs the function of each message. Everything else is real.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.attestation import runner_bus

from vmlab.lab import Salt

MINION = "vm"


class Master:
    """A master that has the Salt key of *salt*'s machine.

    :param folder: folder for its records.
    :param settings: the settings ``netspace.attestation`` of its configuration.
    """

    def __init__(self, folder: Path, salt_call: Salt, **settings: Any) -> None:
        self._salt = salt_call
        self._runner, _ = runner_bus.load(folder, settings)
        salt_call.machine.put("/etc/salt/pki/minion/minion_master.pub", (folder / "pki/master.pub").read_bytes())
        salt_call.machine.put("/etc/salt/pki/minion/minion.pem", runner_bus.SALT_KEY, 0o600)
        runner_bus.join(self._runner, self._ask)
        self._runner._minions = lambda target, kind: [target]
        self._runner._announce = lambda *_: None  # there is no bus that could be told

    def __call__(self, function: str, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Run ``salt-run netspace_attestation.<function>``; return a refusal unchanged."""
        return dict(getattr(self._runner, function)(*arguments, **named))

    def _ask(self, minions: list[str], function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        assert minions == [MINION]
        given = [f"{key}={json.dumps(value)}" for key, value in arguments.items()]
        done = self._salt.run(f"netspace_attestation.{function}", *given)
        if done.returncode:
            return {MINION: (None, done.stdout + done.stderr)}
        return {MINION: (json.loads(done.stdout)["local"], "")}
