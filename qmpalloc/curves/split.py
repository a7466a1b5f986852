"""The best split of a budget by dynamic programming: exact for curves of any shape, cliffs included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Values = NDArray[np.float64]


def best_split(values: Sequence[Values], units: int) -> list[int]:
    """Return how many units each guest gets, so that the sum of the values is largest.

    The guests' values are combined one after the other: the best value of j units among the first i guests is the
    largest, over k, of that of j - k units among the first i - 1 plus guest i's value of k units. (H. Stone et al.,
    IEEE Trans. Computers 41(9), 1992, for the condition that this fulfils without their convexity.)

    Args:
        values: For each guest, its value with 0, 1, 2, … units; at least one entry.
        units: Units there are; not all need be used.

    Returns:
        Units for each guest. Of equal splits, the one that gives later guests less.
    """
    best = np.zeros(units + 1)
    choices = []
    for own in (value[: units + 1] for value in values):
        padded = np.concatenate([np.full(len(own) - 1, -np.inf), best])
        # Row j is best[j], best[j - 1], … with -inf before the first.
        step = padded.strides[0]
        window = as_strided(padded[len(own) - 1 :], (units + 1, len(own)), (step, -step), writeable=False)
        sums = window + own
        choice = sums.argmax(axis=1)
        best = np.take_along_axis(sums, choice[:, None], axis=1)[:, 0]
        choices.append(choice)
    given, left = [], units
    for choice in reversed(choices):
        given.append(int(choice[left]))
        left -= given[-1]
    return given[::-1]
