"""Snapshots of guests with curves, for tests of policies."""

import numpy as np

from qmpalloc.model import Curve, GuestSnapshot, GuestState, Snapshot
from qmpalloc.units import MIB

IDLE = {
    "version": 1,
    "guests": {
        **{name: {"since_s": -60.0, "load_since_s": -60.0, "rests_since_s": -60.0} for name in ("idle", "scan")},
        **{name: {"since_s": -60.0, "load_since_s": -60.0} for name in ("a", "b", "busy", "starved", "fast")},
    },
}
"""Carried over: these guests have been known for a minute, in which the first two read nothing."""


def line(*points, weak=(), measured=None, steady=10**9, turned_over=False):
    """A curve through points of MiB and miss ratio."""
    return Curve(
        sizes_bytes=tuple(mib * MIB for mib, _ in points),
        miss_ratio=tuple(ratio for _, ratio in points),
        weak=weak,
        measured=measured,
        steady_accesses=steady,
        turned_over=turned_over,
    )


STRAIGHT = line((100, 1.0), (2000, 0.0))
FLAT = line((100, 1.0), (2000, 1.0))
CLIFF = line((100, 1.0), (599, 1.0), (600, 0.0), (2000, 0.0))


def sized(name, size, *, floor=200, cap=2000, baseline=None, **more):
    """A guest that has its size; sizes in MiB."""
    own = size * MIB
    usual = {
        "state": GuestState.FRESH,
        "target_bytes": own,
        "actual_bytes": own,
        "charge_bytes": own,
        "interval_s": 1.0,
    }
    return GuestSnapshot(
        name=name, floor_bytes=floor * MIB, cap_bytes=cap * MIB, baseline_bytes=(baseline or size) * MIB,
        **usual | more,
    )  # fmt: skip


def guest(name, curve=None, *, size=500, rate=10_000, misses=None, state=GuestState.FRESH, floor=200, cap=2000, **more):
    ratio = 0.5
    if misses is not None:
        ratio = misses / rate
    elif curve is not None:
        ratio = float(np.interp(size * MIB, curve.sizes_bytes, curve.miss_ratio))
    more |= {"hits": round(rate * (1 - ratio)), "misses": round(rate * ratio)}
    return sized(name, size, floor=floor, cap=cap, curve=curve, state=state, **more)


def snapshot(*guests, budget=None, **more):
    budget = budget or sum(one.target_bytes for one in guests) // MIB
    usual = {"cycle": 1, "time_s": 1.0, "interval_s": 1.0}
    return Snapshot(budget_bytes=budget * MIB, guests=guests, **usual | more)


def targets(decision):
    return [one.target_bytes // MIB for one in decision.guests]
