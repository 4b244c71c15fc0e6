"""Ids of the messages that were received already. Pure, and bounded: the oldest are forgotten.

Delivery on a link is at least once: a sender repeats what wasn't confirmed, and the broker repeats what
wasn't acknowledged. Both come with the id of the first time, so a message that comes twice is told by
its sender and id. A sealed message also bears a time, which nobody between can change. If it is as old as
an id that was forgotten, it is taken for a repetition, so that none gets through.
"""

from __future__ import annotations

from collections import OrderedDict

SIZE = 8192
"""Ids that are kept for each sender. A repetition is found if fewer others came in between."""


class Window:
    """The ids of finished work, by sender: one can't push another's out.

    :param size: how many ids to keep for each sender.
    """

    def __init__(self, size: int = SIZE) -> None:
        if size < 1:
            raise ValueError(f"a window of {size} ids would find nothing")
        self.size = size
        self._seen: dict[str, OrderedDict[str, float | None]] = {}
        self._floors: dict[str, float] = {}

    def add(self, sender: str, identity: str, at: float | None = None) -> None:
        """Remember an id as the newest of its sender.

        :param at: when it was sealed.
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
        """Whether what was sealed *at* that time may be one that was forgotten."""
        return sender in self._floors and at <= self._floors[sender]

    def __len__(self) -> int:
        return sum(map(len, self._seen.values()))
