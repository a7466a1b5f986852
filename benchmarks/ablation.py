"""Does each constant earn its place? Each is halved, doubled and left out, and what changes is told.

    python benchmarks/ablation.py --stages policy --csv docs/results/data/ablation.csv
    python benchmarks/ablation.py --stages gate,belief --cases quick
    python benchmarks/ablation.py --stages all --cases all --steady-hours 1

Cases are those of the other benchmarks in the model, under policy ``curve`` alone: `split_mixes.py` (hits), two loads
that rest or swap of `changing_loads.py` (hits), and the experiments of `experiment_model.py` (misses). A result is a
ratio to that with all constants as they are, of hits or of 1 / misses: above 1 is better. A constant that changes no
case by more than 0.0005 either way has no effect on them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import multiprocessing
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import changing_loads
import experiment_model
import split_mixes
from msgspec import Struct, structs

from qmpalloc.curves.tuning import TUNING, tuned
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec.parsing import load as load_experiment
from qmpalloc.experiment.spec.scaling import scale
from qmpalloc.policy import load
from qmpalloc.policy.curve.policy import CurvePolicy
from qmpalloc.sim.mixes import MIXES
from qmpalloc.sim.replay import ReplayHost

POLICY_STAGES = CurvePolicy.tuning.__struct_fields__
CURVE_STAGES = TUNING.__struct_fields__
NO_EFFECT = 0.0005
EXPERIMENTS = {
    "mix-scan": ("examples/mix-scan.toml", Fraction(1)),
    "mix-idle": ("examples/mix-idle.toml", Fraction(1)),
    "X1": ("examples/arms-x1.toml", Fraction(1, 4)),
    "X2": ("examples/arms-x2.toml", Fraction(1, 4)),
}
QUICK = (
    *(f"lru_gen: {name}" for name in ("Zipf + 2 GiB scan", "normal 5 % + 30 %", "3 scans, room for 2")),
    *("lru_gen: swap each 60 s", "lru_gen: rests each 60 s", "lru_gen: six guests", "lru_gen: another file"),
    *("mix-idle", "X2"),
)


class Variant(Struct, frozen=True):
    """A constant changed; without one, all as they are."""

    stage: str = ""
    field: str = ""
    how: str = "as it is"
    value: float = 0.0


def variants(stages: list[str]) -> Iterator[Variant]:
    """Yield each constant of the stages halved, doubled and left out."""
    for stage in stages:
        tuning = getattr(CurvePolicy.tuning if stage in POLICY_STAGES else TUNING, stage)
        for field in tuning.__struct_fields__:
            value = getattr(tuning, field)
            whole = isinstance(value, int)
            for how, changed in (("halved", value / 2), ("doubled", value * 2), ("off", 0)):
                yield Variant(stage, field, how, int(changed) if whole else float(changed))


@contextlib.contextmanager
def applied(variant: Variant) -> Iterator[None]:
    """Use the variant's constant in this process."""
    before = CurvePolicy.tuning
    if not variant.stage:
        yield
    elif variant.stage in POLICY_STAGES:
        stage = structs.replace(getattr(before, variant.stage), **{variant.field: variant.value})
        CurvePolicy.tuning = structs.replace(before, **{variant.stage: stage})
        try:
            yield
        finally:
            CurvePolicy.tuning = before
    else:
        with tuned(variant.stage, **{variant.field: variant.value}):
            yield


def result(case: str) -> float:
    """Return what policy ``curve`` makes of a case; more is better."""
    if case in EXPERIMENTS:
        file, part = EXPERIMENTS[case]
        specification = scale(load_experiment(Path(file)), part)
        arm = next(arm for arm in specification.arms if arm.policy == "curve")
        options = argparse.Namespace(hit_us=15.0, miss_us=785.0, verbose=False)
        return 1e6 / float(experiment_model.run(specification, arm, Traces(specification), options)["misses"])
    lru, _, name = case.partition(": ")
    if name.startswith("steady "):
        return steady(lru, name.removeprefix("steady "))
    if name in changing_loads.MIXES:
        outcome = changing_loads.run(changing_loads.MIXES[name], lru, 1, "curve")
        return outcome.hits / outcome.accesses
    mix = next(mix for mix in MIXES if mix.name == name)
    found, _ = split_mixes.run(mix, lru, split_mixes.cached_references(mix), load("curve", {}), None)
    return found.hits


def steady(lru: str, name: str, hours: float = 1.0) -> float:
    """Return 1 / (1 + the moves in an hour of loads that stay as they are)."""
    mix = next(mix for mix in MIXES if mix.name == name)
    host = ReplayHost(mix.guests(lru), budget_bytes=mix.budget_bytes, interval_s=split_mixes.INTERVAL_S)
    policy = load("curve", {})
    for step in range(round((380 + 3600 * hours) / split_mixes.INTERVAL_S)):
        if step == round(380 / split_mixes.INTERVAL_S):
            host.moves = 0
        host.step(policy if step >= split_mixes.WARM else None)
    return 1.0 / (1 + host.moves)


def cases(which: str) -> list[str]:
    """Return the names of the cases."""
    if which == "quick":
        return list(QUICK)
    mixes = [f"{lru}: {mix.name}" for lru in ("two_list", "lru_gen") for mix in MIXES]
    unseen = [f"lru_gen: {name}" for name in changing_loads.MIXES]
    if which == "steady":
        return [f"{lru}: steady {mix.name}" for lru in ("two_list", "lru_gen") for mix in MIXES]
    return [*mixes, *unseen, *EXPERIMENTS]


def study(task: tuple[Variant, str]) -> tuple[Variant, str, float | None]:
    """Run one case with one constant changed; None where that value cannot be used at all."""
    variant, case = task
    try:
        with applied(variant), contextlib.redirect_stdout(io.StringIO()):
            return variant, case, result(case)
    except (ValueError, ZeroDivisionError, IndexError, OverflowError, ArithmeticError):
        return variant, case, None


def main() -> None:
    """Run and tell each constant as soon as its cases are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="policy", help="policy, curves, all, or names of stages [policy]")
    parser.add_argument("--cases", choices=["quick", "all", "steady"], default="quick")
    parser.add_argument("--only", default="", help="only cases whose names hold this")
    parser.add_argument("--csv", type=Path, help="write all results to this file")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    groups = {"policy": POLICY_STAGES, "curves": CURVE_STAGES, "all": (*POLICY_STAGES, *CURVE_STAGES)}
    stages = list(groups.get(options.stages, options.stages.split(",")))
    chosen = [case for case in cases(options.cases) if options.only in case]
    began_s = time.monotonic()
    rows = []
    with multiprocessing.Pool(options.processes, maxtasksperchild=50) as pool:
        base = {case: value for _, case, value in pool.imap(study, [(Variant(), case) for case in chosen])}
        print(f"{len(chosen)} cases, {time.monotonic() - began_s:.0f} s: {base}", flush=True)
        tasks = [(variant, case) for variant in variants(stages) for case in chosen]
        for number, (variant, case, value) in enumerate(pool.imap(study, tasks), 1):
            ratio = None if value is None or base[case] is None else value / max(1e-9, base[case] or 0.0)
            rows.append((variant, case, ratio))
            if number % len(chosen) == 0:
                tell([row for row in rows if row[0] == variant])
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["stage", "constant", "how", "value", "case", "ratio"])
            writer.writerows(
                [one.stage, one.field, one.how, f"{one.value:g}", case, "" if ratio is None else f"{ratio:.4f}"]
                for one, case, ratio in rows
            )


def tell(rows: list[tuple[Variant, str, float | None]]) -> None:
    """Print what a change does: its worst and its best case."""
    variant = rows[0][0]
    known = [(ratio, case) for _, case, ratio in rows if ratio is not None]
    text = f"{variant.stage}.{variant.field} {variant.how} ({variant.value:g}): "
    if not known:
        text += "cannot be"
    elif all(abs(ratio - 1.0) <= NO_EFFECT for ratio, _ in known):
        text += "no effect"
    else:
        (low, worst), (high, best) = min(known), max(known)
        text += f"{low:.4f} ({worst}) to {high:.4f} ({best})"
    print(text, flush=True)


if __name__ == "__main__":
    main()
