"""Transfer of answers that are too large for one message: the master fetches them in parts, within bounds.

On the host, ``netspace.attestation.minion.master_result`` splits an answer. A host has ``timeout`` seconds for its
answer, a tenth of ``timeout`` more for each received part, and at most ten times ``timeout``. So the master soon gives
up on a host that sends slowly. Time in which a part has to wait for other hosts' parts does not count.

Parts are kept in an unnamed file in the registrar's folder until all have come. So many hosts can send large answers at
once, and memory holds only one answer.

A hostile sender may try to exhaust this process's memory: 45 MiB of JSON ``[[],[],...`` become 1,000 MiB of Python
objects. An honest answer of any size has only about fifty values. Therefore the parser counts the values before it
decodes the answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from netspace.attestation.evidence import MAX_TEE, PART, from_hex
from netspace.attestation.fleet.calls import PARTS, Answer, Call, Step
from netspace.attestation.logs import eventlog, ima, systemd
from netspace.attestation.refusals import Malformed

# Attempts to fetch all parts.
TRIES = 2
# Bytes of an answer that are kept in memory; longer answers go to a file.
HELD = 1024 * 1024
# Most values in an answer.
MAX_VALUES = 1000


class Parts:
    """The parts of an answer, up to a size limit."""

    # IMA's list, the logs, a TEE's report and 64 KiB for the rest; base64 makes them a third longer.
    MOST = (ima.MAX_LIST + eventlog.MAX_LOG + systemd.MAX_LOG + MAX_TEE + 64 * 1024) * 4 // 3

    def __init__(self, head: Any, folder: Path | None = None) -> None:
        """Parse the announcement *head*.

        :param folder: folder for the file of an answer of more than ``HELD`` bytes; None: the system's temporary
            folder.
        :raises Malformed: when *head* is not an announcement.
        """
        number = head.get("parts") if isinstance(head, Mapping) else None
        digest = from_hex(head.get("sha256"), 32) if isinstance(head, Mapping) else None
        if type(number) is not int or not 0 < number <= -(-self.MOST // PART) or digest is None:
            raise Malformed("answer: not an announcement of parts")
        self.size = number * PART
        self._digest = digest
        self._number = number
        self._came = 0
        self._digest_now = hashlib.sha256()
        self._file = tempfile.SpooledTemporaryFile(max_size=HELD, dir=None if folder is None else str(folder))  # noqa: SIM115 (close() does)

    @property
    def next(self) -> int | None:
        """The number of the next part to fetch; None if all parts have come."""
        return self._came if self._came < self._number else None

    def add(self, data: Any) -> None:
        """Append the next part.

        :raises Malformed: when *data* is not a part.
        """
        text = data.get("text") if isinstance(data, Mapping) and set(data) == {"text"} else None
        if not isinstance(text, str) or not text.isascii() or not 0 < len(text) <= PART:
            raise Malformed(f"answer: part {self._came}: expected an ASCII text of at most {PART} characters")
        self._file.write(text.encode())
        self._digest_now.update(text.encode())
        self._came += 1

    def close(self) -> None:
        """Delete the parts."""
        self._file.close()

    def whole(self) -> Any:
        """Return the answer.

        :raises Malformed: when the parts do not match the announced digest, or are not JSON.
        """
        if self._digest_now.digest() != self._digest:
            raise Malformed("answer: the parts do not match the announced digest")
        self._file.seek(0)
        return parse(self._file.read())


def parse(text: bytes) -> Any:
    """Decode the JSON of an answer, without judging the content.

    :raises Malformed: when *text* is not JSON, or has more values than any honest answer.
    """
    # Base64 and hex do not use these characters, so an honest answer has few of them.
    if sum(text.count(one) for one in (b",", b"[", b"{")) > MAX_VALUES:
        raise Malformed(f"answer: more than {MAX_VALUES} values")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        raise Malformed(f"answer: {err}") from err


def fetched(head: Any, timeout: float, folder: Path | None = None) -> Generator[Step, Answer, tuple[Any, Answer]]:
    """Fetch an answer in parts; return the answer and the last :class:`Answer`.

    If the fetch failed, return None and the last :class:`Answer`, whose ``problem`` has the reason.

    :param folder: see :class:`Parts`.
    :raises Malformed: when the parts are malformed, or don't belong to the announced answer.
    """
    came = Answer()
    for _ in range(TRIES):
        parts = Parts(head, folder)
        with contextlib.closing(parts):
            came = yield from _filled(parts, timeout)
            if not came.crowded:
                return (None if came.problem else parts.whole()), came
    return None, came


def _filled(parts: Parts, timeout: float) -> Generator[Step, Answer, Answer]:
    """Fetch parts until all have come, a fetch fails or the time is up; return the last :class:`Answer`."""
    spent, came = 0.0, Answer()
    while parts.next is not None:
        may = min(10 * timeout, timeout + parts.next * timeout / 10)
        came = yield Call("part", "parts", parts.next, lane=PARTS, within=may - spent, size=parts.size)
        spent += came.took
        if came.silent and spent >= may:
            return dataclasses.replace(came, problem=f"the host needed more than {may:.0f} s for its answer")
        if came.problem:
            return came
        try:
            parts.add(came.value)
        except OSError as err:  # a full disk must not end the round
            return dataclasses.replace(came, problem=f"the master can't store the answer: {err}")
    return came
