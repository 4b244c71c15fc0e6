"""Ids of messages that were received already, to recognize duplicates. Pure. The oldest ids are forgotten.

Delivery on a link is at least once: a sender repeats a message that wasn't confirmed, and the broker redelivers a
message that wasn't acknowledged. A repetition has the id of the original, so sender and id identify a duplicate.

A sealed message also contains the time of its sealing, which a relay can't change. If that time isn't later than the
time of a forgotten id, the message counts as a duplicate, so that no duplicate is accepted.
"""

from __future__ import annotations

from collections import OrderedDict

SIZE = 8192
"""Ids that are kept for each sender. A duplicate is found if fewer other messages came in between."""


class Window:
    """The ids of acknowledged messages, by sender, so that no sender can displace another's ids.

    :param size: the number of ids to keep for each sender.
    """

    def __init__(self, size: int = SIZE) -> None:
        if size < 1:
            raise ValueError(f"a window needs at least 1 id, got {size}")
        self.size = size
        self._seen: dict[str, OrderedDict[str, float | None]] = {}
        self._floors: dict[str, float] = {}

    def add(self, sender: str, identity: str, at: float | None = None) -> None:
        """Remember an id as the newest of its sender.

        :param at: the time at which the message was sealed; None: the message isn't sealed.
        """
        seen = self._seen.setdefault(sender, OrderedDict())
        seen[identity] = at
        seen.move_to_end(identity)
        if len(seen) > self.size:
            _, forgotten = seen.popitem(last=False)
            if forgotten is not None:
                self._floors[sender] = max(forgotten, self._floors.get(sender, forgotten))

    def __contains__(self, key: tuple[str, str]) -> bool:
        sender, identity = key
        return identity in self._seen.get(sender, ())

    def too_old(self, sender: str, at: float) -> bool:
        """Return whether the message that *sender* sealed at the time *at* may have an id that was forgotten."""
        return sender in self._floors and at <= self._floors[sender]

    def __len__(self) -> int:
        return sum(map(len, self._seen.values()))
