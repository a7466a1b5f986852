"""What the results say: ratios to the reference arm with a confidence interval, and a sentence.

A ratio is taken within each repeat, since both arms of a repeat saw the same references on the same machine within
minutes; ratios are averaged as logarithms, so that a over b and b over a agree (P. Fleming, J. Wallace: How not to
lie with statistics, CACM 29(3), 1986). The interval is Student's t on the log ratios. A bootstrap was not chosen: with
the three to five repeats that such experiments have, it has few distinct resamples, never reaches beyond the extremes
seen, and its intervals are too narrow (T. Hesterberg: What teachers should know about the bootstrap, The American
Statistician 69(4), 2015). The t interval assumes that log ratios are about normally distributed. One repeat has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

from msgspec import Struct

T = TypeVar("T")


def all_known(values: Iterable[T | None]) -> list[T] | None:
    """Return values when all of them are known; None when one is not."""
    found = list(values)
    return None if None in found else cast("list[T]", found)


class ArmResult(Struct, frozen=True, kw_only=True):
    """What came out of one run of one arm.

    Attributes:
        arm: Its name.
        repeat: From 1.
        hits: Page-cache hits of all guests together, by trial; None where a guest's are not known.
        finished: Guest to the trial, counted from 1, in which each of its phases ended; None: it did not.
        seconds: From the first read to the end of the last phase; None when a phase did not end.
        failed: Why the run does not count; empty when it does.
        total_hits: Of the whole run; None when not known.
        total_misses: Page-cache misses of all guests together; None when not known.
    """

    arm: str
    repeat: int
    hits: tuple[int | None, ...]
    finished: dict[str, tuple[int | None, ...]]
    seconds: float | None
    failed: str = ""
    total_hits: int | None = None
    total_misses: int | None = None

    @property
    def trials_to_finish(self) -> int | None:
        """The trial in which the last phase of all guests ended; None when one did not."""
        known = all_known(trial for phases in self.finished.values() for trial in phases)
        return max(known) if known else None


Value = Callable[[ArmResult], float | None]


class Ratio(Struct, frozen=True, kw_only=True):
    """A ratio to the reference arm: the geometric mean of `n` repeats.

    Attributes:
        value: Below 1 when the arm has less.
        low: Lower end of the interval; None when one repeat gives none.
        high: Upper end.
        n: Repeats.
        confidence: Of the interval.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    confidence: float

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.value:.2f}{interval}"

    @property
    def decides(self) -> bool:
        """Whether all of its interval lies on one side of 1."""
        return self.low is not None and self.high is not None and (self.low > 1 or self.high < 1)

    def decided(self, below: str, above: str) -> str:
        """Return in words what an interval on either side of 1 says."""
        if self.low is None:
            return "one repeat decides nothing"
        return (below if self.value < 1 else above) if self.decides else "undecided"


class Comparison(Struct, frozen=True, kw_only=True):
    """An arm beside the reference arm, over the repeats in which both ran.

    Attributes:
        arm: Its name.
        reference: Name of the arm it is compared with.
        time: Ratio of seconds to finish all phases; None when no repeat has both.
        trials: Ratio of trials to finish all phases; None when no repeat has both.
        hits: Ratio of hits in all; None when no repeat has both, or one had no hit, or does not know its hits.
        misses: Ratio of misses in all, in the same way.
        more_hits: By repeat: in how many trials the arm had more hits, and how many were compared.
        repeats: In how many repeats both arms ran.
        finished: In how many of them both finished all phases.
    """

    arm: str
    reference: str
    time: Ratio | None
    trials: Ratio | None
    hits: Ratio | None
    misses: Ratio | None
    more_hits: tuple[tuple[int, int], ...]
    repeats: int
    finished: int


def ratio(pairs: Sequence[tuple[float, float]], *, confidence: float = 0.95) -> Ratio:
    """Return the ratio of the first of each pair to the second, over all pairs.

    Raises:
        ValueError: There is no pair, or a value is not above 0.
    """
    if not pairs or any(not value > 0 for pair in pairs for value in pair):
        raise ValueError("a ratio needs at least one pair of values above 0")
    logs = [math.log(ours / theirs) for ours, theirs in pairs]
    n = len(logs)
    mean = math.fsum(logs) / n
    if n == 1:
        return Ratio(value=math.exp(mean), low=None, high=None, n=1, confidence=confidence)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in logs) / (n - 1) / n)
    reach = t_quantile((1 + confidence) / 2, n - 1) * error
    low, high = math.exp(mean - reach), math.exp(min(mean + reach, 700))
    return Ratio(value=math.exp(mean), low=low, high=high, n=n, confidence=confidence)


def more_hits(ours: ArmResult, theirs: ArmResult) -> tuple[int, int]:
    """Return in how many trials the first had more hits, and the trials compared: up to the end of the shorter run.

    Trials of which one run does not know its hits are not compared.
    """
    both = zip(ours.hits, theirs.hits, strict=False)
    pairs = [(mine, other) for mine, other in both if mine is not None and other is not None]
    return sum(mine > other for mine, other in pairs), len(pairs)


def compare(results: Iterable[ArmResult], arm: str, *, reference: str = "static") -> Comparison:
    """Return how `arm` did beside `reference`; failed runs are left out with the partner of their repeat."""
    by_run = {(result.arm, result.repeat): result for result in results if not result.failed}
    repeats = sorted(repeat for name, repeat in by_run if name == arm and (reference, repeat) in by_run)
    pairs = [(by_run[arm, repeat], by_run[reference, repeat]) for repeat in repeats]
    done = [(ours, theirs) for ours, theirs in pairs if ours.trials_to_finish and theirs.trials_to_finish]
    timed = [pair for pair in pairs if all_known(result.seconds for result in pair)]

    def ratio_of(pairs: Iterable[tuple[ArmResult, ArmResult]], value: Value) -> Ratio | None:
        both = [(value(ours) or 0, value(theirs) or 0) for ours, theirs in pairs]
        return ratio(both) if both and all(min(pair) > 0 for pair in both) else None

    return Comparison(
        arm=arm,
        reference=reference,
        time=ratio_of(timed, lambda result: result.seconds),
        trials=ratio_of(done, lambda result: result.trials_to_finish),
        hits=ratio_of(done, lambda result: result.total_hits),
        misses=ratio_of(done, lambda result: result.total_misses),
        more_hits=tuple(more_hits(ours, theirs) for ours, theirs in pairs),
        repeats=len(pairs),
        finished=len(timed),
    )


def verdict(comparison: Comparison) -> str:
    """Return one plain sentence on the time an arm needed, whatever came out."""
    arm, reference, time = comparison.arm, comparison.reference, comparison.time
    if not comparison.repeats:
        return f"{arm} cannot be compared: no repeat has a result of both {arm} and {reference}."
    if time is None:
        return f"{arm} cannot be compared: in none of {comparison.repeats} repeats did it and {reference} both finish."
    missing = comparison.repeats - comparison.finished
    without = f"; {missing} of {comparison.repeats} repeats did not finish and are left out" if missing else ""
    return f"{arm} finished in {time} of the {reference} time: {time.decided('faster', 'slower')}{without}."


def t_quantile(probability: float, degrees: int) -> float:
    """Return the `probability` quantile, from 0.5 to below 1, of Student's t with whole `degrees` of freedom."""
    low, high = 0.0, 1.0
    while _t_within(high, degrees) < 2 * probability - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < 2 * probability - 1 else (low, middle)
    return (low + high) / 2


def _t_within(t: float, degrees: int) -> float:
    """Return P(-t < T < t); M. Abramowitz, I. Stegun: Handbook of Mathematical Functions, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
