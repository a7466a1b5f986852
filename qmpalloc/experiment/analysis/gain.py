"""Which share of what there was to gain an arm gained: the reference has none of it, the oracle all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from qmpalloc.experiment.analysis.results import Results, RunResult
from qmpalloc.experiment.analysis.statistics import all_known
from qmpalloc.experiment.analysis.trials import GuestTrials

LEAST_GAIN = 0.02
"""Where the oracle gains less than this over the reference, there is nothing to have a share of."""


class OracleShare(Struct, frozen=True, kw_only=True):
    """The share of the oracle's gain that an arm reached; 1 is all of it, more is better than the oracle.

    Attributes:
        time: Of the time it saves.
        misses: Of the misses it saves.
        late_misses: Of those in the second half of what each guest accesses, when a policy that learns may have learnt.
        repeats: In which the arm, the reference and the oracle all finished.
    """

    time: float | None
    misses: float | None
    late_misses: float | None
    repeats: int


def oracle_arm(results: Results) -> str | None:
    """Return the name of the arm with the policy ``oracle``; None when none was run, or arms may do unequal work."""
    if results.specification.has_unequal_work:
        return None  # who does more misses more
    return next((arm.name for arm in results.arms_counted if arm.is_oracle), None)


def oracle_share(results: Results, arm: str) -> OracleShare | None:
    """Return the share of the oracle's gain that `arm` reached, over all repeats together; None without an oracle."""
    oracle = oracle_arm(results)
    if oracle is None:
        return None
    names = (results.specification.reference, arm, oracle)
    runs = [{run.repeat: run for run in results.counted(name) if run.trials_to_finish is not None} for name in names]
    repeats = sorted(runs[0].keys() & runs[1].keys() & runs[2].keys())
    together = [[by_repeat[repeat] for repeat in repeats] for by_repeat in runs]
    return OracleShare(
        time=_share(together, lambda run: run.seconds),
        misses=_share(together, lambda run: run.total_misses),
        late_misses=_share(together, late_misses),
        repeats=len(repeats),
    )


def late_misses(run: RunResult) -> float | None:
    """Return the misses of a run in the second half of what each guest accesses; None when a reading is missing.

    By accesses, not by time: the loads of all arms are the same reads, which they do at different times. Within the
    trial in which a guest did half of its accesses the misses are taken to be even.
    """
    return sum(_late_misses(guest.trials) for guest in run.guests.values()) if run.whole else None


def _late_misses(guest: GuestTrials) -> float:
    accesses = np.cumsum([0, *(row.accesses for row in guest.trials)])
    misses = np.cumsum([0, *(row.misses for row in guest.trials)])
    return float(misses[-1] - np.interp(accesses[-1] / 2, accesses, misses))


def _share(runs: list[list[RunResult]], value: Callable[[RunResult], float | None]) -> float | None:
    sums = []
    for each in runs:
        known = all_known(value(run) for run in each)
        if not known:
            return None
        sums.append(sum(map(float, known)))
    reference, ours, best = sums
    if reference <= 0 or reference - best < LEAST_GAIN * reference:
        return None
    return (reference - ours) / (reference - best)
