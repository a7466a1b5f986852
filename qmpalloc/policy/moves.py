"""Who gives to whom, for people: the transfers between two splits."""

from __future__ import annotations

from collections.abc import Sequence

from qmpalloc.model import GuestDecision, Move, Snapshot
from qmpalloc.units import format_size


def moves_between(snapshot: Snapshot, decisions: Sequence[GuestDecision]) -> tuple[Move, ...]:
    """Return the transfers that lead from the present targets to the decided ones, in the order of the guests."""
    changes = [
        (guest.name, decision.target_bytes - guest.target_bytes)
        for guest, decision in zip(snapshot.guests, decisions, strict=True)
    ]
    gives = {name: -change for name, change in changes if change < 0}
    moves = []
    for receiver, change in changes:
        wanted = max(change, 0)
        for donor, given in gives.items():
            size = min(wanted, given)
            if size > 0:
                moves.append(Move(donor=donor, receiver=receiver, size_bytes=size))
                gives[donor] -= size
                wanted -= size
    return tuple(moves)


def moves_text(moves: Sequence[Move]) -> str:
    """Return the transfers in one line."""
    return (
        "; ".join(f"{move.donor} → {move.receiver} {format_size(move.size_bytes)}" for move in moves) or "nothing moves"
    )
