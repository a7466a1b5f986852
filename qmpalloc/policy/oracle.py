"""``oracle``: the best split by curves that were measured beforehand; for experiments, as the mark to reach."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from qmpalloc.config import Duration, Size
from qmpalloc.curves.value import Load, Objective
from qmpalloc.errors import ConfigError
from qmpalloc.model import Curve, Decision, GuestDecision, Limiter, Snapshot, moves_between
from qmpalloc.policy.division import Candidate, divide, room_bytes
from qmpalloc.policy.moves import moves_text


class MeasuredCurve(Struct, frozen=True, kw_only=True):
    """A curve measured by sweeping a guest's size.

    Attributes:
        sizes: Memory sizes of the guest, rising.
        miss_ratio: Misses by accesses at each.
        accesses_per_s: Its rate; None: the present one.
        until: Seconds since the run's start up to which it holds; None: to the end.
    """

    sizes: tuple[Size, ...]
    miss_ratio: tuple[float, ...]
    accesses_per_s: float | None = None
    until: Duration | None = None


class OraclePolicy:
    """Goes to the best split by the measured curves at once, without margin or hysteresis."""

    class Settings(Struct, frozen=True, kw_only=True):
        """Settings of ``[policy]`` with ``name = "oracle"``.

        Attributes:
            curves: For each guest, its measured curves in the order of time.
            objective: As for policy ``curve``.
        """

        curves: dict[str, tuple[MeasuredCurve, ...]]
        objective: Objective = "hits"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        for name, curves in settings.curves.items():
            for index, curve in enumerate(curves):
                key = f"curves.{name}[{index}]"
                if not curve.sizes or len(curve.sizes) != len(curve.miss_ratio):
                    raise ConfigError("needs as many miss ratios as sizes", key=key)
                if list(curve.sizes) != sorted(set(curve.sizes)):
                    raise ConfigError("sizes must rise", key=key)
                if not all(0 <= ratio <= 1 for ratio in curve.miss_ratio):
                    raise ConfigError("a miss ratio is not from 0 to 1", key=key)

    def decide(self, snapshot: Snapshot) -> Decision:
        """Return the best split by the curves that hold now; guests without one are left as they are."""
        candidates = []
        for guest in snapshot.guests:
            measured = self._holding(guest.name, snapshot.time_s)
            if measured is None:
                continue
            seen = (guest.hits or 0) + (guest.misses or 0)
            rate = measured.accesses_per_s
            if rate is None:
                rate = max(0.0, seen / guest.interval_s) if guest.interval_s else 0.0
            sizes = tuple(int(size) for size in measured.sizes)
            ratios = tuple(np.minimum.accumulate(measured.miss_ratio).tolist())
            here = float(np.interp(guest.actual_bytes, sizes, ratios))
            candidates.append(
                Candidate(
                    guest=guest,
                    curve=Curve(sizes_bytes=sizes, miss_ratio=ratios, estimator="measured"),
                    load=Load(
                        accesses_per_s=rate,
                        miss_ratio=here,
                        miss_s=guest.miss_s,
                        waits=guest.waits or 0.0,
                        weight=guest.weight,
                    ),
                )
            )
        room = room_bytes(snapshot, [candidate.guest.name for candidate in candidates])
        wanted = (divide(candidates, room, self.settings.objective) if candidates else None) or {}
        guests = tuple(
            GuestDecision(
                name=guest.name,
                target_bytes=wanted.get(guest.name, guest.target_bytes),
                reason="best by its measured curve" if guest.name in wanted else "no measured curve",
                limiter=Limiter.POLICY if guest.name in wanted else Limiter.STATE,
            )
            for guest in snapshot.guests
        )
        moves = moves_between(snapshot, guests)
        return Decision(guests=guests, moves=moves, summary=moves_text(moves), carry=snapshot.carry)

    def _holding(self, name: str, time_s: float) -> MeasuredCurve | None:
        curves = self.settings.curves.get(name, ())
        return next((curve for curve in curves if curve.until is None or time_s < curve.until), None)
