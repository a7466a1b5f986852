"""What is believed of a guest: between which bounds its miss ratio lies at every size, and from which source.

Nothing is known at first but the exact counters. With less memory a guest may miss all that it reads; with more, it
misses no more than now. Sources only narrow this, one after the other:

* what it missed at other sizes under the same load (`qmpalloc.policy.curve.measured`),
* what it reads again that it had to drop (refaults), and ghost hits: the slope next to the present size,
* a scan that has turned its cache over: nothing to lose,
* how long nothing has touched its memory (`qmpalloc.idle`): what is old costs little,
* its curve, where that is good: both bounds at once.

Memory whose use no read shows, mapped files above all, is bounded by its age alone: what it brings in by faults and
from swap counts like a miss.

A guest that would lose is charged from the lower bound here to the upper one there; one that would gain is credited
from the upper bound here to the upper one there, and with a tenth of what lies between the bounds. Idle guests, scans,
memory to spare and weak curves are no cases of their own but shapes of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from qmpalloc.curves.value import Load, Objective, Values
from qmpalloc.model import Curve, GuestSnapshot, Promise
from qmpalloc.policy.curve.measured import Point
from qmpalloc.policy.curve.memory import Pace
from qmpalloc.policy.evidence import (
    accesses_per_s,
    hits_nothing,
    missed_anyway,
    page_ins_most,
    pages_per_fault,
    returned_per_s,
    spare_bytes,
    unconfirmed,
    uncounted,
)
from qmpalloc.rules.step import take_step
from qmpalloc.units import MIB, PAGE_BYTES, format_count, format_size

_USES_UNSEEN = 1000.0
"""So much a guest is taken to do a second, beside what it reads and touches, where relative speed is what counts."""

_PARTS = 512
"""Of a growth, to sum up what it is worth."""


class Tuning(Struct, frozen=True, kw_only=True):
    """How far sources are trusted.

    Attributes:
        credit: Share of what lies between the bounds that a guest in doubt is credited with when it grows.
        cliff: A miss ratio that rises by so much within the margin does not slope: it breaks off.
        probe_bytes: Ghost hits tell the slope so far from the present size.
        deviations: Of a curve, by which it may be off.
        curve_off: Miss ratio beside that by which real curves were off.
    """

    credit: float = 0.1
    cliff: float = 0.15
    probe_bytes: int = 16 * MIB
    deviations: float = 3.0
    curve_off: float = 0.05


class Belief(Struct, frozen=True, kw_only=True):
    """Bounds of a guest's miss ratio, and what follows from them.

    Attributes:
        guest: Its snapshot.
        sizes: Sizes in bytes, rising.
        most: The miss ratio at each, at most; never rising.
        least: The same, at least.
        load: What it will read, and the miss ratio that it has at this rate.
        pace: How fast it reads, and for how long. Memory given is worth something from when it has been filled.
        floor_bytes: It is not taken below that.
        cap_bytes: It is not given more.
        credit: Share of what lies between the bounds that counts when it grows.
        curve: The curve it rests on, as it was found; None: on bounds only.
        below: What its loss rests on, in words.
        above: What its gain rests on, in words.
        held: Why its size is left as it is; empty when it may change.
    """

    guest: GuestSnapshot
    sizes: NDArray[np.float64]
    most: Values
    least: Values
    load: Load
    pace: Pace = Pace()
    floor_bytes: int
    cap_bytes: int
    credit: float = 0.0
    curve: Curve | None = None
    below: str = ""
    above: str = ""
    held: str = ""

    def deviation(self, sizes_bytes: Sequence[float] | NDArray[Any]) -> Values:
        """Return the standard deviation of its curve at each size; 0 when it rests on none."""
        if self.curve is None or not self.curve.deviation:
            return np.zeros(len(sizes_bytes))
        return np.asarray(np.interp(sizes_bytes, self.curve.sizes_bytes, self.curve.deviation))

    def at(self, more_bytes: Iterable[float]) -> tuple[Values, Values, Values]:
        """Return its sizes and more of them, and both bounds there: the most it misses, and the least."""
        sizes = np.unique([*self.sizes, *more_bytes])
        return sizes, np.interp(sizes, self.sizes, self.most), np.interp(sizes, self.sizes, self.least)

    def planned(self, sizes_bytes: Sequence[float] | NDArray[Any]) -> Values:
        """Return the miss ratio to plan with at each size."""
        sizes = np.asarray(sizes_bytes, dtype=float)
        most = np.interp(sizes, self.sizes, self.most)
        least = np.interp(sizes, self.sizes, self.least)
        target = float(self.guest.target_bytes)
        return np.asarray(np.where(sizes > target, most - self.credit * (most - least), most))

    def values(self, sizes_bytes: Sequence[float] | NDArray[Any], objective: Objective) -> Values:
        """Return what the objective gains at each size against the present one, on average over the horizon."""
        sizes = np.asarray(sizes_bytes, dtype=float)
        return np.asarray(self._of_reads(sizes, objective) + self._of_unread(sizes, objective))

    def unread_per_s(self, sizes: NDArray[np.float64]) -> Values:
        """Return how many more pages than now it brings in for want of memory whose use no read shows, at most.

        With more memory, fewer: by how far what comes back had gone, where that is known. Else all of it may be gone
        with a step more, as far as a guest in doubt is credited.
        """
        guest = self.guest
        target = float(guest.target_bytes)
        more = np.zeros(len(sizes))
        if guest.idle is not None:
            taken = np.maximum(0.0, target - spare_bytes(guest) - sizes)
            more = pages_per_fault(guest) * guest.idle.unread_per_s(taken, self.pace.watched_s)
        faulted, swapped = returned_per_s(guest)
        growth = np.maximum(0.0, sizes - target)
        in_doubt = self.credit * np.minimum(1.0, growth / take_step(int(target)))
        less = guest.returns.saved_by_faults(growth, faulted) if guest.returns is not None else in_doubt * faulted
        return np.asarray(more - less - in_doubt * swapped)

    def _of_unread(self, sizes: NDArray[np.float64], objective: Objective) -> Values:
        target, weight = float(self.guest.target_bytes), self.load.weight
        more = self.unread_per_s(np.minimum(sizes, target))
        more -= self._once_filled(sizes, self.guest.page_ins_per_s or 0.0, lambda grown: -self.unread_per_s(grown))
        if objective != "fair":
            return np.asarray(-weight * more)
        hot = self.guest.idle.hot_pages if self.guest.idle is not None else 0
        uses = self.load.accesses_per_s + hot + _USES_UNSEEN
        return np.asarray(-weight * np.log1p(np.maximum(more, -0.5 * uses) / uses))

    def _of_reads(self, sizes: NDArray[np.float64], objective: Objective) -> Values:
        target = float(self.guest.target_bytes)
        here = np.interp(target, self.sizes, self.most), np.interp(target, self.sizes, self.least)
        worst, best = self.load.values(np.array([here[0], here[1]]), objective)
        below = self.load.values(self.planned(np.minimum(sizes, target)), objective) - best
        above = self._once_filled(
            sizes,
            self.load.accesses_per_s * self.load.miss_ratio,
            lambda grown: self.load.values(self.planned(grown), objective) - worst,
        )
        return np.asarray(np.where(sizes < target, below, above))

    def _once_filled(
        self, sizes: NDArray[np.float64], filled_per_s: float, worth: Callable[[NDArray[np.float64]], Values]
    ) -> Values:
        """Return what sizes above the present one are worth on average over the horizon.

        Each part of a growth is worth what it adds, for the time that is left once page-ins have filled it.
        """
        target = float(self.guest.target_bytes)
        most = float(sizes.max()) - target
        if most <= 0:
            return np.zeros(len(sizes))
        bends = self.sizes[(self.sizes > target) & (self.sizes < target + most)] - target
        growth = np.unique(np.concatenate([np.linspace(0.0, most, _PARTS + 1), bends]))
        added = np.diff(worth(target + growth))
        lasting = np.maximum(0.0, 1.0 - growth[1:] / max(1e-9, filled_per_s) / PAGE_BYTES / self.pace.lasts_s)
        gained = np.concatenate([[0.0], np.cumsum(added * lasting)])
        return np.asarray(np.interp(sizes - target, growth, gained))

    def expected(self, sizes_bytes: Sequence[float]) -> Values:
        """Return the miss ratio to be expected at each size, where decisions are made with a margin."""
        if self.curve is None:
            return self.planned(sizes_bytes)
        return np.asarray(np.interp(sizes_bytes, self.curve.sizes_bytes, self.curve.miss_ratio))

    def bounds(self, sizes_bytes: Sequence[float] | NDArray[Any], tuning: Tuning) -> tuple[Values, Values]:
        """Return between what the miss ratio is at each size: around a curve, as far as it may be off or is planned."""
        sizes = np.asarray(sizes_bytes, dtype=float)
        if self.curve is None:
            return np.interp(sizes, self.sizes, self.least), np.interp(sizes, self.sizes, self.most)
        ratios = np.interp(sizes, self.curve.sizes_bytes, self.curve.miss_ratio)
        off = tuning.deviations * self.deviation(sizes) + tuning.curve_off
        return np.maximum(0.0, ratios - off), np.minimum(1.0, np.maximum(ratios + off, self.planned(sizes)))

    def promise(self, size_bytes: int, tuning: Tuning) -> Promise:
        """Return what is promised of the guest when it is taken down to a size: the upper bound there.

        A guest of which only bounds are known is promised for as long as the memory is away: an idle one proves nothing
        by being idle.
        """
        ratio = float(self.expected([size_bytes])[0])
        most = float(self.bounds([size_bytes], tuning)[1][0])
        rate = max(self.pace.most_per_s, self.load.accesses_per_s, float(self.load.rates(np.array([ratio]))[0]))
        for_s = None if self.curve is None else self.pace.promised_s
        unread = max(0.0, float(self.unread_per_s(np.array([float(size_bytes)]))[0]))
        return Promise(page_ins_per_s=page_ins_most(self.guest, rate * most) + unread, for_s=for_s)


def of_curve(guest: GuestSnapshot, curve: Curve, load: Load, **more: Any) -> Belief:
    """Return the belief that a curve is true; `more` are other attributes of the belief."""
    sizes, ratios = np.array(curve.sizes_bytes, dtype=float), np.array(curve.miss_ratio)
    cap = max(guest.floor_bytes, guest.cap_bytes)
    return Belief(
        guest=guest, sizes=sizes, most=ratios, least=ratios, load=load, curve=curve,
        floor_bytes=guest.floor_bytes, cap_bytes=cap, **more,
    )  # fmt: skip


def believe(
    guest: GuestSnapshot,
    points: Sequence[Point],
    pace: Pace,
    *,
    held: str,
    margin_bytes: int,
    tuning: Tuning,
) -> Belief:
    """Return what is believed of a guest.

    Args:
        guest: What is seen of it.
        points: What it missed at the sizes it has had under this load.
        pace: How fast it will read, and for how long.
        held: Why its size is left as it is, if it is.
        margin_bytes: Memory that it is given but not credited with: a curve's cliffs are not known to the page.
        tuning: How far sources are trusted.
    """
    doubted = held or doubt(guest)
    measured = None if guest.curve is None else guest.curve.measured
    load = Load(
        accesses_per_s=pace.planned_per_s, miss_ratio=guest.miss_ratio if measured is None else measured,
        miss_s=guest.miss_s, waits=guest.waits or 0.0, weight=guest.weight,
    )  # fmt: skip
    cap = max(guest.target_bytes, guest.cap_bytes)
    if not doubted and guest.curve is not None:
        belief = of_curve(guest, guest.curve, load, pace=pace, below="by its curve", above="by its curve")
        belief = _with_margin(_corrected(belief, points), margin_bytes, tuning)
    else:
        belief = _bounds(guest, load, pace, cap)
        if not held:
            settling = guest.curve is not None and guest.curve.settling
            belief = _settling(belief) if settling else _seen(belief, points, tuning)
            belief = _aged(belief)
    target = guest.target_bytes
    kept = held or _keeps(guest, doubted, pace)
    return structs.replace(
        belief,
        floor_bytes=target if kept else min(guest.floor_bytes, target),
        cap_bytes=target if held or unconfirmed(guest) else cap,
        credit=tuning.credit,
        held=doubted,
    )


def _keeps(guest: GuestSnapshot, doubted: str, pace: Pace) -> bool:
    """Return whether a guest gives nothing: nobody knows what it uses; or it has hardly been seen, and is no scan."""
    if uncounted(guest) and guest.idle is None:
        return True
    return bool(doubted) and pace.unseen and not missed_anyway(guest)


def doubt(guest: GuestSnapshot) -> str:
    """Return why the guest's curve is not acted on; empty when it is."""
    if guest.curve is None:
        return f"no curve: {guest.no_curve}"
    if guest.curve.weak:
        return f"weak curve: {guest.curve.weak[0]}"
    return unconfirmed(guest) or uncounted(guest)


# --- sources: each returns the belief narrowed by what it knows ---


def _bounds(guest: GuestSnapshot, load: Load, pace: Pace, cap: int) -> Belief:
    """Return what is known of any guest: with less it may miss all that it reads, with more it misses no more."""
    target = guest.target_bytes
    sizes = np.unique(
        [min(guest.floor_bytes, target), max(0, target - 1), target, target + 1, max(target + 1, cap)]
    ).astype(float)
    sure, here = missed_anyway(guest), load.miss_ratio
    return Belief(
        guest=guest, sizes=sizes, load=load, pace=pace,
        most=np.where(sizes < target, 1.0, here), least=np.where(sizes > target, 0.0, min(sure, here)),
        floor_bytes=guest.floor_bytes, cap_bytes=cap,
        below=f"loses {format_count(accesses_per_s(guest) * (1.0 - sure))} hits/s at most",
    )  # fmt: skip


def _seen(belief: Belief, points: Sequence[Point], tuning: Tuning) -> Belief:
    """Narrow by what was seen of it here and at other sizes, one source after the other."""
    return _ghosts(_faulting(_lacking(_measured(belief, points))), tuning)


def _settling(belief: Belief) -> Belief:
    """Narrow by a curve of which nothing is in doubt but what is missed at a size that is new: more helps as it says.

    What is missed until then, while the cache settles, tells nothing.
    """
    guest, curve = belief.guest, belief.guest.curve
    assert curve is not None
    sizes = np.unique([*belief.sizes, *curve.sizes_bytes])
    ratios = np.interp(sizes, curve.sizes_bytes, curve.miss_ratio)
    target = guest.target_bytes
    here = float(np.interp(target, curve.sizes_bytes, curve.miss_ratio))
    return structs.replace(
        belief,
        sizes=sizes,
        most=np.where(sizes < target, 1.0, here),
        least=np.where(sizes > target, np.minimum(ratios, here), min(here, missed_anyway(guest))),
        above="by its curve",
    )


def _measured(belief: Belief, points: Sequence[Point]) -> Belief:
    """Narrow by what it missed at other sizes: with more than there, no more; with less, no less."""
    target = belief.guest.target_bytes
    others = [point for point in points if point.size_bytes != target]
    if not others:
        return belief
    sizes, most, least = belief.at(size for point in others for size in (point.size_bytes - 1.0, point.size_bytes))
    here = float(np.interp(target, sizes, most))
    larger = [point for point in others if point.size_bytes > target]
    if larger:
        known = np.minimum.accumulate([here, *(point.miss_ratio for point in larger)])
        line = np.interp(sizes, [target, *(point.size_bytes for point in larger)], known)
        most = np.where(sizes > target, np.minimum(most, line), most)
        least = np.where(sizes > target, np.minimum(least, most), least)
    for point in others:
        if point.size_bytes < target:
            between = (sizes >= point.size_bytes) & (sizes < target)
            # Less memory helps nobody: a point below what is missed now says that the miss ratio swings.
            most = np.where(between, np.minimum(most, max(here, point.miss_ratio)), most)
    belief = structs.replace(belief, sizes=sizes, most=most, least=least)
    if not larger:
        return belief
    best = min(larger, key=lambda point: point.miss_ratio)
    above = f"by what it missed with {format_size(best.size_bytes)}, {best.miss_ratio:.2f} of all"
    return structs.replace(belief, above=above)


def _lacking(belief: Belief) -> Belief:
    """Narrow by refaults: reads of pages that it had to drop may all be hits with a step more."""
    guest, target = belief.guest, belief.guest.target_bytes
    lacks = _lacks(guest)
    cap = float(belief.sizes[-1])
    if not lacks or cap <= target:
        return structs.replace(belief, least=np.where(belief.sizes > target, belief.most, belief.least))
    reach = min(cap, float(target + take_step(target)))
    sizes, most, least = belief.at([reach])
    here = float(np.interp(target, sizes, most))
    slope = here - lacks * np.minimum(1.0, (sizes - target) / max(1.0, float(take_step(target))))
    least = np.where(sizes > target, np.minimum(most, np.maximum(0.0, slope)), least)
    per_s = format_count(lacks * accesses_per_s(guest))
    above = belief.above or f"reads {per_s} pages/s again that it had to drop"
    return structs.replace(belief, sizes=sizes, most=most, least=least, above=above)


def _faulting(belief: Belief) -> Belief:
    """Say what it brings in again by faults or from swap: no miss of a read, but `Belief.unread_per_s`."""
    unread = sum(returned_per_s(belief.guest))
    if unread < 1 or belief.above:
        return belief
    return structs.replace(belief, above=f"faults {format_count(unread)} pages/s in again that it had to drop")


def _ghosts(belief: Belief, tuning: Tuning) -> Belief:
    """Narrow by ghost hits: the slope next to the present size, as far as a small step."""
    guest, target, rate = belief.guest, belief.guest.target_bytes, accesses_per_s(belief.guest)
    settled = guest.curve is not None and not guest.curve.suspect
    if guest.ghost_gain is None or guest.ghost_loss is None or rate <= 0 or not settled:
        return belief
    step = float(tuning.probe_bytes)
    inner = [size for size in (target - step, target + step) if belief.sizes[0] < size < belief.sizes[-1]]
    sizes, most, least = belief.at([*inner, *(size - 1 for size in inner if size < target)])
    here = float(np.interp(target, sizes, most))
    per_byte = 1.0 / MIB / rate
    loss = here + guest.ghost_loss * per_byte * (target - sizes)
    gain = np.maximum(0.0, here - guest.ghost_gain * per_byte * np.minimum(step, np.maximum(0.0, sizes - target)))
    near = (sizes < target) & (sizes >= target - step)
    most = np.where(near, np.minimum(most, loss), most)
    most = np.where(sizes > target, np.minimum(most, gain), most)
    least = np.where(sizes == target, here, np.minimum(least, most))
    told = "by its ghost hits"
    return structs.replace(belief, sizes=sizes, most=most, least=least, below=told, above=told)


def _aged(belief: Belief) -> Belief:
    """Narrow by how long nothing has touched its memory: so much more is missed at most with less of it.

    What is free costs nothing, and that is all that is known where reads leave no trace.
    """
    guest, idle, rate = belief.guest, belief.guest.idle, belief.load.accesses_per_s
    if idle is None or rate <= 0:
        return belief
    target = float(guest.target_bytes)
    bends = target - spare_bytes(guest) - idle.read_bends
    sizes, most, least = belief.at(bends[bends > belief.sizes[0]])
    here = float(np.interp(target, sizes, most))
    taken = np.maximum(0.0, target - spare_bytes(guest) - sizes)
    bound = here + idle.read_per_s(taken, belief.pace.watched_s) / rate
    narrows = (sizes < target) & (bound < most)
    told = "by how long nothing has touched its memory" if idle.reads_touch else "by what it has free"
    below = told if narrows.any() else belief.below
    most = np.where(narrows, bound, most)
    return structs.replace(belief, sizes=sizes, most=most, least=np.minimum(least, most), below=below)


def _corrected(belief: Belief, points: Sequence[Point]) -> Belief:
    """Raise a curve to what was measured at smaller sizes where it was wrong."""
    guest, curve = belief.guest, belief.curve
    assert curve is not None
    wrong = [point for point in points if point.contradicts and point.size_bytes < guest.target_bytes]
    if not wrong or curve.measured is None:
        return belief
    sizes, ratios, _ = belief.at([*(point.size_bytes for point in wrong), guest.target_bytes])
    for point in wrong:
        line = np.interp(sizes, [point.size_bytes, guest.target_bytes], [point.miss_ratio, curve.measured])
        ratios = np.where(sizes < guest.target_bytes, np.maximum(ratios, line), ratios)
    ratios = np.minimum.accumulate(ratios)
    return structs.replace(belief, sizes=sizes, most=ratios, least=ratios)


def _with_margin(belief: Belief, margin_bytes: int, tuning: Tuning) -> Belief:
    """Read a curve a margin to the left; but a guest at the edge of a cliff keeps what it has if it does not shrink.

    One whose file fits by less than the margin must not be robbed as if it missed everything already.
    """
    target = float(belief.guest.target_bytes)
    below, now = np.interp([target - margin_bytes, target], belief.sizes, belief.most)
    sizes = belief.sizes + margin_bytes
    if below - now < tuning.cliff:
        return structs.replace(belief, sizes=sizes)
    sizes = np.unique([*sizes, target - 1.0, target])
    planned = np.interp(sizes - margin_bytes, belief.sizes, belief.most)
    planned = np.where(sizes < target, planned, np.minimum(planned, now))
    return structs.replace(belief, sizes=sizes, most=planned, least=planned)


def _lacks(guest: GuestSnapshot) -> float:
    """Return the refaults of a guest that more memory may help, as a share of its accesses; 0 if that is not known.

    One that hits nothing does not count: what it reads may never fit.
    """
    if not guest.refaults or guest.accesses <= 0 or hits_nothing(guest) or unconfirmed(guest):
        return 0.0
    if guest.curve is not None and guest.curve.suspect:
        return 0.0
    return max(0, min(guest.refaults, guest.misses or 0)) / guest.accesses
