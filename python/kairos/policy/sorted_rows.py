"""A sorted table for compiled loops."""

from bisect import bisect_left, insort
from typing import Any

import numpy as np
import numpy.typing as npt


class SortedRows:
    """Rows of one numpy record type, sorted by (key, id).

    Adding and removing a row moves memory, which takes tens of microseconds among 10,000 rows.

    Args:
        row: record type of a row; its fields have eight bytes each.
    """

    def __init__(self, row: npt.DTypeLike) -> None:
        self._rows = np.zeros(64, row)
        self._keys: list[tuple[float, int]] = []
        self._key_of: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, id: int) -> bool:
        return id in self._key_of

    @property
    def ids(self) -> list[int]:
        """Ids in the order of the rows."""
        return [id for _, id in self._keys]

    @property
    def live(self) -> npt.NDArray[Any]:
        """View of the rows; void after the next change."""
        return self._rows[: len(self._keys)]

    def add(self, key: float, id: int, row: tuple[Any, ...]) -> None:
        """Insert a row whose id is not in the table."""
        n = len(self._keys)
        if n == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        at = bisect_left(self._keys, (key, id))
        insort(self._keys, (key, id))
        self._key_of[id] = key
        self._move(at, n, 1)
        self._rows[at] = row

    def remove(self, id: int) -> None:
        """Remove a row.

        Raises:
            KeyError: the id is not in the table.
        """
        at = self.index(id)
        self._move(at + 1, len(self._keys), -1)
        del self._keys[at], self._key_of[id]

    def index(self, id: int) -> int:
        """Return the index of a row.

        Raises:
            KeyError: the id is not in the table.
        """
        return bisect_left(self._keys, (self._key_of[id], id))

    def count_below(self, key: float) -> int:
        """Return the number of rows with a lower key."""
        return bisect_left(self._keys, (key, -1))

    def _move(self, begin: int, end: int, by: int) -> None:
        """Shift rows. As words: numpy copies records one by one, which takes ten times as long."""
        words = self._rows.itemsize // 8
        flat = self._rows.view(np.int64)
        flat[(begin + by) * words : (end + by) * words] = flat[begin * words : end * words]
