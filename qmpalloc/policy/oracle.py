"""``oracle``: the best split by curves that are known beforehand; for experiments, as the mark to reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct

from qmpalloc.config import Duration, Size
from qmpalloc.curves.mapping import system_bytes, unused_bytes
from qmpalloc.curves.value import Load, Objective
from qmpalloc.errors import ConfigError
from qmpalloc.model import Curve, Decision, GuestDecision, GuestSnapshot, Limiter, Snapshot, decision_of
from qmpalloc.policy.curve.belief import Belief, of_curve
from qmpalloc.policy.curve.split import divide
from qmpalloc.policy.curves_file import chosen, read_curves
from qmpalloc.rules.budget import room_bytes
from qmpalloc.units import MIB

CACHE_MARGIN_BYTES = 8 * MIB
"""Curves over sizes of the cache are read so much to the left: how well the memory that is not cache is known."""

_OVERHEAD_ALIKE_BYTES = 8 * MIB
_KEEP = 0.8
_TELLING_ACCESSES = 100


class MeasuredCurve(Struct, frozen=True, kw_only=True):
    """A curve that is known beforehand, by sweeping a guest's size or from its references.

    Attributes:
        sizes: Sizes, rising.
        miss_ratio: Misses by accesses at each.
        sizes_of: What `sizes` are of: the ``guest``'s memory, or the ``cache`` that its load has.
        accesses_per_s: The rate at which its reads come, however many miss, while there are any; None: the present
            one, which follows the misses if the load waits for its reads.
        until: Seconds since the run's start up to which it holds; None: to the end.
        until_accesses: The same in accesses of the guest since the run's start.
        working_set: Different pages that its load reads; for `known_after`.
    """

    sizes: tuple[Size, ...]
    miss_ratio: tuple[float, ...]
    sizes_of: Literal["guest", "cache"] = "guest"
    accesses_per_s: float | None = None
    until: Duration | None = None
    until_accesses: int | None = None
    working_set: int | None = None


class OraclePolicy:
    """Goes to the best split by the known curves at once, without hysteresis."""

    class Settings(Struct, frozen=True, kw_only=True):
        """Settings of ``[policy]`` with ``name = "oracle"``.

        Attributes:
            curves: For each guest, its curves in the order of time.
            file: A file that holds them instead (`qmpalloc.policy.curves_file`), relative to the configuration file.
            names: Guest to the name that its curves have in the file, where that is another.
            objective: As for policy ``curve``.
            known_after: Working sets that a guest must have read since a curve of it began to hold, before it is known.
                With 0 it is an oracle. Above, it shows how much is left for anyone who must first see a load read.
        """

        curves: dict[str, tuple[MeasuredCurve, ...]] | None = None
        file: str = ""
        names: dict[str, str] = {}
        objective: Objective = "hits"
        known_after: float = 0.0

    @classmethod
    def resolve_settings(cls, settings: Mapping[str, Any], file: str) -> Mapping[str, Any]:
        """Return `settings` with the curves of the file that they name.

        Raises:
            ConfigError: There is no such file, or it is no file of curves; or curves are given twice, or not at all.
        """
        name = settings.get("file")
        if not isinstance(name, str) or not name:
            if "curves" not in settings:
                hint = 'give file = "curves.json", or curves.GUEST; in an experiment both may be left out'
                raise ConfigError("no curves are given", key="curves", hint=hint)
            return settings
        if "curves" in settings:
            raise ConfigError("beside curves", key="file", hint="give one of them")
        names = settings.get("names", {})
        found = read_curves(name, beside=file)
        if isinstance(names, dict):
            found = chosen(found, names, file=name)
        return {**settings, "curves": found}

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._curves = settings.curves or {}
        if not 0 <= settings.known_after < math.inf:
            raise ConfigError("must be a number of working sets, 0 or more", key="known_after")
        for name, curves in self._curves.items():
            for index, curve in enumerate(curves):
                key = f"curves.{name}[{index}]"
                if not curve.sizes or len(curve.sizes) != len(curve.miss_ratio):
                    raise ConfigError("needs as many miss ratios as sizes", key=key)
                if list(curve.sizes) != sorted(set(curve.sizes)):
                    raise ConfigError("sizes must rise", key=key)
                if not all(0 <= ratio <= 1 for ratio in curve.miss_ratio):
                    raise ConfigError("a miss ratio is not from 0 to 1", key=key)
                if settings.known_after and (curve.working_set is None or curve.until is not None):
                    hint = "give working_set, in pages, and until_accesses instead of until"
                    raise ConfigError("says not when it is known, as known_after asks", key=key, hint=hint)

    def decide(self, snapshot: Snapshot) -> Decision:
        """Return the best split by the curves that hold now; guests without one are left as they are."""
        seen = msgspec.convert(snapshot.carry if isinstance(snapshot.carry, dict) else {}, _Seen)
        beliefs = []
        for guest in snapshot.guests:
            seen.note(guest)
            measured = self._holding(guest.name, snapshot.time_s, seen.accesses.get(guest.name, 0))
            if measured is None:
                continue
            if measured.sizes_of == "cache" and guest.name not in seen.overhead:
                continue
            beliefs.append(_belief(guest, measured, seen.overhead.get(guest.name, 0)))
        room = room_bytes(snapshot, [belief.guest.name for belief in beliefs])
        wanted = (divide(beliefs, room, self.settings.objective) if beliefs else None) or {}
        unknown = "no measured curve, or none known yet" if self.settings.known_after else "no measured curve"
        guests = (
            GuestDecision(
                name=guest.name,
                target_bytes=wanted.get(guest.name, guest.target_bytes),
                reason="best by its measured curve" if guest.name in wanted else unknown,
                limiter=Limiter.POLICY if guest.name in wanted else Limiter.STATE,
            )
            for guest in snapshot.guests
        )
        return decision_of(snapshot, guests, carry=msgspec.to_builtins(seen))

    def _holding(self, name: str, time_s: float, accesses: int) -> MeasuredCurve | None:
        began_at = 0
        for curve in self._curves.get(name, ()):
            in_time = curve.until is None or time_s < curve.until
            if in_time and (curve.until_accesses is None or accesses < curve.until_accesses):
                known_at = began_at + self.settings.known_after * (curve.working_set or 0)
                return curve if accesses >= known_at else None
            began_at = curve.until_accesses or 0
        return None


class _Seen(Struct):
    """What the oracle carries from one decision to the next.

    Attributes:
        accesses: Guest to its accesses since the run's start.
        overhead: Guest to its memory that is not cache for its load, bytes. It stays where it is until it is found to
            be clearly off, so that the split does not follow its noise.
        found: Guest to the same as it is found, averaged.
    """

    accesses: dict[str, int] = {}
    overhead: dict[str, int] = {}
    found: dict[str, int] = {}

    def note(self, guest: GuestSnapshot) -> None:
        """Take a guest's counts and memory."""
        name, memory = guest.name, guest.memory
        self.accesses[name] = self.accesses.get(name, 0) + max(0, guest.accesses)
        if memory is None or memory.file_bytes is None or memory.free is None:
            return
        now = max(0, guest.actual_bytes - memory.file_bytes - unused_bytes(memory)) + system_bytes(memory)
        found = self.found.get(name, now)
        self.found[name] = found = round(_KEEP * found + (1 - _KEEP) * now)
        if abs(found - self.overhead.get(name, -MIB * MIB)) > _OVERHEAD_ALIKE_BYTES:
            self.overhead[name] = found


def _belief(guest: GuestSnapshot, measured: MeasuredCurve, overhead_bytes: int) -> Belief:
    present = max(0.0, guest.accesses / guest.interval_s) if guest.interval_s else 0.0
    # A load at a rate of its own that cannot keep up goes as fast as its misses let it, but that is not what it is for.
    paced = measured.accesses_per_s if present else None
    # The rate is that of the misses there are, which are more than the curve's while the cache fills.
    missed = (guest.misses or 0) / guest.accesses if guest.accesses >= _TELLING_ACCESSES else None
    of_cache = measured.sizes_of == "cache"
    sizes = tuple(int(size) + (overhead_bytes if of_cache else 0) for size in measured.sizes)
    ratios = tuple(np.minimum.accumulate(measured.miss_ratio).tolist())
    margin_bytes = CACHE_MARGIN_BYTES if of_cache else 0
    return of_curve(
        guest,
        Curve(sizes_bytes=tuple(size + margin_bytes for size in sizes), miss_ratio=ratios, estimator="measured"),
        Load(
            accesses_per_s=present if paced is None else paced,
            miss_ratio=float(np.interp(guest.actual_bytes, sizes, ratios)) if missed is None else missed,
            miss_s=guest.miss_s,
            waits=0.0 if paced is not None else guest.waits or 0.0,
            weight=guest.weight,
        ),
    )
