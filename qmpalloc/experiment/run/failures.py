"""Which of several errors at once is the cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from qmpalloc.errors import HostError, QmpallocError

E = TypeVar("E", bound=Exception)


def leaves(group: BaseExceptionGroup[E]) -> Iterator[E]:
    """Yield the errors in a group, and in the groups in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


def cause(group: BaseExceptionGroup[QmpallocError]) -> QmpallocError:
    """Return why a run failed. A guest that ends also breaks connections; those errors only follow from it."""
    return min(leaves(group), key=lambda error: not isinstance(error, HostError))


@contextmanager
def bare_errors() -> Iterator[None]:
    """Raise the cause out of its group."""
    failure: QmpallocError | None = None
    try:
        yield
    except* QmpallocError as group:
        failure = cause(group)
    if failure is not None:
        raise failure
