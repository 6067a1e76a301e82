"""What was made of a block table, kept while the table is the same object.

A sequence's table is a tuple that is replaced when it grows, once in a block: the steps between
find what they need without a look at thousands of numbers. Knows objects; not what they mean.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Table = tuple[int, ...]

MOST = 512
"""Tables that are remembered; who has more sequences at once makes some anew."""


class ByIdentity(Generic[T]):
    """``make(table)``, once for each object. Tables are held, so no other can be taken for one."""

    def __init__(self, make: Callable[[Table], T], most: int = MOST) -> None:
        self._make = make
        self._most = most
        self._known: OrderedDict[int, tuple[Table, T]] = OrderedDict()

    def __call__(self, table: Table) -> T:
        """What ``make`` gave for this very object."""
        known = self._known.get(id(table))
        if known is not None:
            self._known.move_to_end(id(table))
            return known[1]
        made = self._make(table)
        self._known[id(table)] = (table, made)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return made
