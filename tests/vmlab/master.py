"""A master beside a machine that has no network: the real runner, whose messages go over the lab's channel.

What the runner does on a master it does here, with books, keys and results in a folder of the test's. In place of
Salt's bus, ``salt-call`` runs in the machine what the message asks for; nothing else is put in between.
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
    """A master that *salt*'s machine knows by its key.

    :param folder: for its books.
    :param settings: of ``netspace.attestation`` in its configuration.
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
        """Run ``salt-run netspace_attestation.<function>``; a refusal is returned as it is."""
        return dict(getattr(self._runner, function)(*arguments, **named))

    def _ask(self, minions: list[str], function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        assert minions == [MINION]
        given = [f"{key}={json.dumps(value)}" for key, value in arguments.items()]
        done = self._salt.run(f"netspace_attestation.{function}", *given)
        if done.returncode:
            return {MINION: (None, done.stdout + done.stderr)}
        return {MINION: (json.loads(done.stdout)["local"], "")}
