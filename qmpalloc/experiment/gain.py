"""Which share of what there was to gain an arm gained: the reference has none of it, the oracle all."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from qmpalloc.experiment.results import Results, RunResult

LEAST_GAIN = 0.02
"""Where the oracle gains less than this over the reference, there is nothing to have a share of."""


class OracleShare(Struct, frozen=True, kw_only=True):
    """The share of the oracle's gain that an arm reached; 1 is all of it, more is better than the oracle.

    Attributes:
        time: Of the time it saves.
        misses: Of the misses it saves.
        repeats: In which the arm, the reference and the oracle all finished.
    """

    time: float | None
    misses: float | None
    repeats: int


def oracle_arm(results: Results) -> str | None:
    """Return the name of the arm with the policy ``oracle``; None when none of them was run."""
    return next((arm.name for arm in results.arms_counted if arm.policy == "oracle"), None)


def oracle_share(results: Results, arm: str) -> OracleShare | None:
    """Return the share of the oracle's gain that `arm` reached, over all repeats together; None without an oracle."""
    oracle = oracle_arm(results)
    if oracle is None:
        return None
    names = (results.specification.reference, arm, oracle)
    runs = [{run.run.repeat: run for run in results.counted(name) if _finished(run)} for name in names]
    repeats = sorted(runs[0].keys() & runs[1].keys() & runs[2].keys())
    return OracleShare(
        time=_share([[by_repeat[repeat] for repeat in repeats] for by_repeat in runs], lambda run: run.result.seconds),
        misses=_share(
            [[by_repeat[repeat] for repeat in repeats] for by_repeat in runs], lambda run: run.result.total_misses
        ),
        repeats=len(repeats),
    )


def _finished(run: RunResult) -> bool:
    return run.result.trials_to_finish is not None


def _share(runs: list[list[RunResult]], value: Callable[[RunResult], float | None]) -> float | None:
    sums = []
    for each in runs:
        values = [value(run) for run in each]
        known = [float(one) for one in values if one is not None]
        if not known or len(known) < len(values):
            return None
        sums.append(sum(known))
    reference, ours, best = sums
    if reference <= 0 or reference - best < LEAST_GAIN * reference:
        return None
    return (reference - ours) / (reference - best)
