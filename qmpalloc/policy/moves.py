"""Who gives to whom, in words."""

from __future__ import annotations

from collections.abc import Sequence

from qmpalloc.model import Move
from qmpalloc.units import format_size


def moves_text(moves: Sequence[Move]) -> str:
    """Return the transfers in one line."""
    return (
        "; ".join(f"{move.donor} → {move.receiver} {format_size(move.size_bytes)}" for move in moves) or "nothing moves"
    )
