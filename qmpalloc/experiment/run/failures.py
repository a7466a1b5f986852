"""Which of several errors at once is the cause."""

from __future__ import annotations

from qmpalloc.errors import HostError, QmpallocError


def cause(group: BaseExceptionGroup[QmpallocError]) -> QmpallocError:
    """Return why a run failed. A guest that ends also breaks connections; those errors only follow from it."""
    leaves: list[QmpallocError] = []

    def collect(inner: BaseExceptionGroup[QmpallocError]) -> None:
        for error in inner.exceptions:
            collect(error) if isinstance(error, BaseExceptionGroup) else leaves.append(error)

    collect(group)
    return min(leaves, key=lambda error: not isinstance(error, HostError))
