"""Numbers for sampled pages: small integers instead of hashes, of which a bounded number is kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qmpalloc.curves.samples import BLOCK_SHIFT, Keys

Ids = NDArray[np.int64]


class KeyTable:
    """Gives every key a number, in the order of first appearance, and keeps the recently accessed ones.

    Attributes:
        limit: Keys kept when the table is trimmed; it is trimmed when it holds twice as many.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._ids: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def number(self, keys: Keys) -> Ids:
        """Return the numbers of keys, in order; new ones get the next free numbers."""
        ids, numbers = self._ids, []
        for key in keys.tolist():
            number = ids.get(key)
            if number is None:
                number = ids[key] = len(ids)
            numbers.append(number)
        return np.array(numbers, dtype=np.int64)

    @property
    def full(self) -> bool:
        """True when it is time to trim."""
        return len(self._ids) >= 2 * self.limit

    def trim(self, last_access: NDArray[np.int64]) -> Ids:
        """Keep the `limit` keys accessed last; return the new number of each old one, -1 for those dropped."""
        kept = np.zeros(len(self._ids), dtype=bool)
        kept[np.argsort(last_access[: len(self._ids)])[-self.limit :]] = True
        return self._renumber(kept)

    def thin(self, shift: int) -> Ids:
        """Keep the keys that a sample of the rate 2 ** -shift holds; return the new numbers, -1 for those dropped."""
        return self._renumber(in_sample(np.fromiter(self._ids, np.uint64, len(self._ids)), shift))

    def _renumber(self, kept: NDArray[np.bool_]) -> Ids:
        new = np.where(kept, np.cumsum(kept) - 1, -1)
        self._ids = {key: int(new[number]) for key, number in self._ids.items() if kept[number]}
        return new.astype(np.int64)


def in_sample(keys: Keys, shift: int) -> NDArray[np.bool_]:
    """Return which keys belong to the sample of the rate 2 ** -shift."""
    return np.asarray(keys & np.uint64((1 << (shift - BLOCK_SHIFT)) - 1) == 0)
