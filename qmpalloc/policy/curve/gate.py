"""Whether a split is worth the move to it: more than noise, more than the least gain, more than what was taken back.

The miss ratio of a steady load is not steady: a kernel ages its lists in rounds that take minutes, and at one size a
guest may miss a half now and three fifths later. A split that follows this moves to and fro for ever. So the gain that
a move must promise rises with each move that takes another one back, and falls again with time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct, structs

from qmpalloc.curves.value import Objective
from qmpalloc.policy.curve.belief import Belief
from qmpalloc.policy.curve.memory import Known, Memory
from qmpalloc.policy.evidence import counted_per_s, uncounted_per_s
from qmpalloc.units import MIB, format_count


class Tuning(Struct, frozen=True, kw_only=True):
    """What a move must be worth.

    Attributes:
        deviations: A gain must be this many standard deviations of the curves.
        matters_bytes: A change of less is no move that could be taken back, and takes none back.
        half_life_s: After which half of the moves taken back are forgotten.
        reversals_most: More count no more: what gains much is never held for them.
    """

    deviations: float = 2.0
    matters_bytes: int = 16 * MIB
    half_life_s: float = 3600.0
    reversals_most: float = 10.0


def against(
    beliefs: Sequence[Belief],
    wanted: Mapping[str, int],
    memory: Memory,
    time_s: float,
    *,
    objective: Objective,
    least_gain: float,
    tuning: Tuning,
) -> str:
    """Return why the move to the sizes `wanted` is not made; empty when it is worth it.

    Args:
        beliefs: Of the guests that may change.
        wanted: Size of each, bytes.
        memory: What is remembered.
        time_s: Now.
        objective: What is to gain.
        least_gain: Share of all that counts which a move must gain.
        tuning: What a move must be worth.
    """
    changed = [one for one in beliefs if wanted[one.guest.name] != one.guest.target_bytes]
    if not changed:
        return "the split is the best"
    changes = {one.guest.name: wanted[one.guest.name] - one.guest.target_bytes for one in changed}
    takes_back = any(memory.guests[name].direction * change < 0 for name, change in changes.items())
    if takes_back and all(abs(change) < tuning.matters_bytes for change in changes.values()):
        return "would take a move back by too little to matter"
    gains, deviation = _gains(changed, wanted, objective)
    gain = sum(gains.values())
    taken_back = takes_back + max(reversals(memory.guests[name], time_s, tuning) for name in changes)
    needed = max((1.0 + taken_back) * least_gain * _counted(beliefs, gains, objective), tuning.deviations * deviation)
    unit = "" if objective == "fair" else f" {objective}/s"
    if gain <= 0:  # sizes lie on a grid, the present ones need not
        return "the split is the best"
    if gain < needed:
        return f"gains {format_count(gain)}{unit}, below {format_count(needed)}"
    return ""


def _counted(beliefs: Sequence[Belief], gains: Mapping[str, float], objective: Objective) -> float:
    """Return that of which a move must gain a share: accesses per second by weight, or weights alone.

    Who gives what is worth nothing to it is not asked. Of what no read shows, at least what is brought in is accessed.
    """
    counts = {
        one.guest.name: one.load.weight
        * (1.0 if objective == "fair" else one.load.accesses_per_s + uncounted_per_s(one.guest))
        for one in beliefs
    }
    changed = sum(counts[name] for name, gain in gains.items() if gain)
    return counted_per_s(changed, sum(counts.values()))


def _gains(
    changed: Sequence[Belief], wanted: Mapping[str, int], objective: Objective
) -> tuple[dict[str, float], float]:
    """Return what each guest gains at the sizes `wanted`, and the standard deviation of all by that of the curves."""
    gains, variance = {}, 0.0
    for belief in changed:
        pair = [belief.guest.target_bytes, wanted[belief.guest.name]]
        now, then = belief.values(pair, objective)
        gains[belief.guest.name] = float(then - now)
        ratios = belief.planned(pair)
        if ratios[0] != ratios[1]:
            # What the curve is off by at the present size it is off by at the other one as well, in proportion.
            here, there = belief.deviation(pair)
            alike = min(ratios[1] / max(1e-6, ratios[0]), (1.0 - ratios[1]) / max(1e-6, 1.0 - ratios[0]))
            apart = max(0.0, there**2 + (1.0 - 2.0 * alike) * here**2)
            variance += float(apart * ((then - now) / (ratios[1] - ratios[0])) ** 2)
    return gains, float(variance**0.5)


def reversals(known: Known, time_s: float, tuning: Tuning) -> float:
    """Return how many moves of a guest were taken back of late."""
    faded = known.reversals * 0.5 ** ((time_s - known.reversals_at_s) / tuning.half_life_s)
    return float(min(tuning.reversals_most, faded))


def moved(memory: Memory, before: Mapping[str, int], after: Mapping[str, int], time_s: float, tuning: Tuning) -> Memory:
    """Return what is remembered after a decision: sizes before and after it, in bytes."""
    guests = dict(memory.guests)
    for name, size in after.items():
        change = size - before[name]
        if abs(change) < tuning.matters_bytes:
            continue
        known, direction = guests[name], 1 if change > 0 else -1
        guests[name] = structs.replace(
            known,
            direction=direction,
            reversals=reversals(known, time_s, tuning) + (known.direction == -direction),
            reversals_at_s=time_s,
        )
    return structs.replace(memory, guests=guests)
