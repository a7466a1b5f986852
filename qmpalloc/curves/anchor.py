"""Let a curve pass through what was measured, without breaking its shape."""

from __future__ import annotations

import numpy as np

from qmpalloc.curves.estimator import Ratios, Sizes

SIDEWAYS = 0.06
"""How far, as a share of the present size, a curve may be moved sideways: what the mapping from memory to cache and the
size of the simulated caches are uncertain by. At the edge of a cliff a few per cent of size decide everything."""

_ENOUGH = 0.03


def anchored(ratios: Ratios, sizes: Sizes, size: float, measured: float) -> tuple[Ratios, float]:
    """Return the curve corrected to have the measured miss ratio at the present size, and its error before.

    A gap of more than 0.03 is closed sideways as far as `SIDEWAYS` allows. What is left is closed by mapping miss
    ratios onto miss ratios: 0 stays 0, 1 stays 1, the estimate at the present size becomes what was measured, and all
    between is in proportion. So the curve keeps falling, and a guest that misses nothing now is still known to miss
    with less.

    Args:
        ratios: Miss ratios, never rising.
        sizes: Their sizes, rising.
        size: The present size.
        measured: Miss ratio measured there, 0 to 1.
    """
    here = float(np.interp(size, sizes, ratios))
    gap = measured - here
    if abs(gap) > _ENOUGH:
        shifts = np.linspace(-SIDEWAYS, SIDEWAYS, 25) * size
        reached = np.interp(size + shifts, sizes, ratios)
        # The smallest shift among those that come nearest.
        best = np.lexsort((np.abs(shifts), np.round(np.abs(reached - measured), 2)))[0]
        ratios = np.interp(sizes + shifts[best], sizes, ratios)
        here = float(np.interp(size, sizes, ratios))
    return _mapped(ratios, min(max(here, 1e-6), 1.0 - 1e-6), min(max(measured, 0.0), 1.0)), gap


def _mapped(ratios: Ratios, here: float, measured: float) -> Ratios:
    return np.interp(ratios, [0.0, here, 1.0], [0.0, measured, 1.0])
