"""``paper``: the rule of the paper, exactly: e = (hits - misses) / memsize; a fixed step from high e to low e.

What the paper leaves open is a setting, and the header of every record names the values used:

* *gate*: the text moves memory while the difference of the evaluation values is **less than** 500 (``literal``). Under
  the opposite reading (``dead-band``: at least the threshold) the rule can come to rest.
* *memsize_unit*: the text gives no unit. With MiB and the literal gate, the gate is nearly always open.
* More than two guests: the guest with the highest e gives to the one with the lowest, the second highest to the second
  lowest, and so on.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from qmpalloc.config import Size
from qmpalloc.errors import ConfigError
from qmpalloc.model import Decision, GuestDecision, GuestSnapshot, Limiter, Move, Snapshot
from qmpalloc.units import PAGE_BYTES, SIZE_UNITS, align_down, format_count, format_size


class PaperPolicy:
    """The paper's rule."""

    class Settings(Struct, frozen=True, kw_only=True):
        """Settings of ``[policy]`` with ``name = "paper"``.

        Attributes:
            gate: ``literal``: move while |e1 - e2| < threshold. ``dead-band``: move while |e1 - e2| >= threshold.
            threshold: In pages per `memsize_unit`.
            step: Bytes moved per pair and decision.
            memsize_unit: The unit memsize is expressed in.
        """

        gate: Literal["literal", "dead-band"] = "literal"
        threshold: float = 500.0
        step: Size = Size(100 * 10**6)
        memsize_unit: Literal["B", "kB", "MB", "GB", "KiB", "MiB", "GiB", "page"] = "MiB"

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        if self.settings.step < PAGE_BYTES:
            raise ConfigError("must be at least a page", key="step", hint='for example "100MB"')
        if self.settings.threshold < 0:
            raise ConfigError("must not be negative", key="threshold")

    def evaluation(self, guest: GuestSnapshot, interval_s: float) -> float:
        """Return e = (h - m) / memsize of a decidable guest; memsize is its actual size.

        h and m are counts per iteration. A guest's readings do not cover exactly the time between two decisions, so
        that they are scaled to it: else a guest whose last reading came late would seem to have read less.
        """
        assert guest.hits is not None
        assert guest.misses is not None
        assert guest.interval_s is not None
        name = self.settings.memsize_unit
        unit = PAGE_BYTES if name == "page" else SIZE_UNITS[name]
        per_iteration = (guest.hits - guest.misses) * interval_s / guest.interval_s
        return per_iteration / (guest.actual_bytes / unit)

    def decide(self, snapshot: Snapshot) -> Decision:
        """Pair highest e with lowest e, the next with the next, and move one step in each pair whose gate is open."""
        ranked = sorted(
            ((self.evaluation(guest, snapshot.interval_s), guest) for guest in snapshot.guests if guest.decidable),
            key=lambda pair: -pair[0],
        )
        verdicts = {guest.name: _held(guest) for guest in snapshot.guests}
        moves = []
        for index in range(len(ranked) // 2):
            move = self._pair(ranked[index], ranked[-1 - index], verdicts)
            if move is not None:
                moves.append(move)
        if len(ranked) % 2:
            e, guest = ranked[len(ranked) // 2]
            reason = "no partner" if len(ranked) == 1 else "middle e, no partner"
            verdicts[guest.name] = _verdict(guest, guest.target_bytes, reason, Limiter.POLICY, e)
        summary = "; ".join(f"{move.donor} → {move.receiver} {format_size(move.size_bytes)}" for move in moves)
        return Decision(
            guests=tuple(verdicts[guest.name] for guest in snapshot.guests),
            moves=tuple(moves),
            summary=summary or "nothing moves",
        )

    def _pair(
        self,
        high: tuple[float, GuestSnapshot],
        low: tuple[float, GuestSnapshot],
        verdicts: dict[str, GuestDecision],
    ) -> Move | None:
        (e_high, donor), (e_low, receiver) = high, low
        gap = e_high - e_low
        closed = self._closed(gap)
        size = min(
            align_down(self.settings.step),
            donor.target_bytes - donor.floor_bytes,
            receiver.cap_bytes - receiver.target_bytes,
        )
        if closed:
            limiter, reason = Limiter.GATE, closed
        elif donor.target_bytes <= donor.floor_bytes:
            limiter, reason = Limiter.FLOOR, f"{donor.name} is at its floor"
        elif receiver.target_bytes >= receiver.cap_bytes:
            limiter, reason = Limiter.CAP, f"{receiver.name} is at its cap"
        else:
            gives = f"highest e, gives {format_size(size)} to {receiver.name}"
            takes = f"lowest e, takes {format_size(size)} from {donor.name}"
            verdicts[donor.name] = _verdict(donor, donor.target_bytes - size, gives, Limiter.POLICY, e_high)
            verdicts[receiver.name] = _verdict(receiver, receiver.target_bytes + size, takes, Limiter.POLICY, e_low)
            return Move(donor=donor.name, receiver=receiver.name, size_bytes=size)
        verdicts[donor.name] = _verdict(donor, donor.target_bytes, reason, limiter, e_high)
        verdicts[receiver.name] = _verdict(receiver, receiver.target_bytes, reason, limiter, e_low)
        return None

    def _closed(self, gap: float) -> str:
        """Return why the gate is closed for a difference `gap` of evaluation values; empty when it is open."""
        threshold = self.settings.threshold
        if gap == 0:
            return "equal e: no direction"
        if self.settings.gate == "literal" and gap >= threshold:
            return f"gate: |Δe| {format_count(gap)} ≥ {format_count(threshold)}"
        if self.settings.gate == "dead-band" and gap < threshold:
            return f"gate: |Δe| {format_count(gap)} < {format_count(threshold)}"
        return ""


def _held(guest: GuestSnapshot) -> GuestDecision:
    return GuestDecision(
        name=guest.name,
        target_bytes=guest.target_bytes,
        reason=guest.undecidable,
        limiter=Limiter.STATE,
    )


def _verdict(guest: GuestSnapshot, target_bytes: int, reason: str, limiter: Limiter, e: float) -> GuestDecision:
    return GuestDecision(name=guest.name, target_bytes=target_bytes, reason=reason, limiter=limiter, terms={"e": e})
