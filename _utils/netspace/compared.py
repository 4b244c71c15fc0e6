"""Values that are compared by only some of their fields."""

from __future__ import annotations

import msgspec


class Compared(msgspec.Struct, frozen=True, eq=False):
    """A value that is equal to another of its class if both return the same from :meth:`compared`.

    A subclass is declared with ``eq=False``, since msgspec would compare all fields.
    """

    def compared(self) -> object:
        """Return the fields that count when two values are compared."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.compared() == other.compared()

    def __ne__(self, other: object) -> bool:  # else it would be that of msgspec, which compares identities
        return not self == other

    __hash__ = None  # type: ignore[assignment]
