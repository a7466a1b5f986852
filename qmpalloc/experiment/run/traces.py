"""The references of an experiment's loads, made once and packed as the guests want them."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmpalloc.experiment.spec.references import phase_pages
from qmpalloc.experiment.spec.schema import Guest, Phase, Specification
from qmpalloc.experiment.spec.true_curves import true_curves
from qmpalloc.experiment.store.records import PhaseFootprint

WORD = np.dtype("<u4")
"""As the generator in the guest reads them, on any host."""


class Traces:
    """Page numbers of every phase, made when first asked for, and what they touch. May be used from several threads."""

    def __init__(self, specification: Specification) -> None:
        self.specification = specification
        self._made: dict[tuple[str, str], tuple[bytes, PhaseFootprint]] = {}
        self._lock = threading.Lock()
        self._curves: dict[str, list[dict[str, Any]]] | None = None
        self._curves_lock = threading.Lock()

    def trace(self, guest: Guest, phase: Phase) -> bytes:
        """Return the page numbers of a phase as little-endian 32-bit words.

        Blocks when they are not made yet: about two seconds for a million.
        """
        return self._obtain(guest, phase)[0]

    def footprints(self) -> dict[str, dict[str, PhaseFootprint]]:
        """Return guest to phase to what its references touch. Makes all that is not made yet, and blocks meanwhile."""
        return {
            guest.name: {phase.name: self._obtain(guest, phase)[1] for phase in guest.reads}
            for guest in self.specification.guests
        }

    def true_curves(self) -> dict[str, list[dict[str, Any]]]:
        """Return guest to its curves, for the policy ``oracle``; see `qmpalloc.experiment.spec.true_curves`.

        Blocks when they are not made yet: about a second for 100,000 references.
        """
        with self._curves_lock:
            if self._curves is None:
                self._curves = {
                    guest.name: true_curves(guest, partial(self._numbers, guest)) for guest in self.specification.guests
                }
            return self._curves

    def _numbers(self, guest: Guest, phase: Phase) -> NDArray[np.uint32]:
        return np.frombuffer(self.trace(guest, phase), dtype=WORD)

    def _obtain(self, guest: Guest, phase: Phase) -> tuple[bytes, PhaseFootprint]:
        key = (guest.name, phase.name)
        with self._lock:
            if key not in self._made:
                pages = np.fromiter(phase_pages(self.specification, guest, phase), dtype=WORD)
                self._made[key] = pages.tobytes(), footprint(pages, phase.pages)
            return self._made[key]


def footprint(pages: ArrayLike, file_pages: int) -> PhaseFootprint:
    """Return what references touch of a file.

    Args:
        pages: Page numbers, in order.
        file_pages: Of the file.
    """
    counts = np.sort(np.bincount(np.asarray(pages), minlength=file_pages))
    reads = int(counts.sum())
    return PhaseFootprint(
        reads=reads,
        file_pages=file_pages,
        distinct_pages=int(np.count_nonzero(counts)),
        busiest_tenth=float(counts[-max(1, file_pages // 10) :].sum() / reads) if reads else 0.0,
    )
