"""An experiment in the model, before hours are spent on real guests: every arm once, with its own references.

    python benchmarks/experiment_model.py examples/arms-x2.toml --scale 1/4
    python benchmarks/experiment_model.py examples/mix-idle.toml --arms static,curve,oracle --verbose
    python benchmarks/experiment_model.py examples/arms-x2.toml --scale 1/4 --known-after 1 --known-after 1.5

Guests are `qmpalloc.sim.ReplayGuest`s at full rate: the references are those of the real run, page replacement is
simulated, memory moves at once. A hit takes --hit-us, a miss --miss-us more; a load with a rate that it cannot keep up
with catches up later. Memory that is no cache is what was found in reference guests: 120 MiB and 4.4 % of their RAM. A
minute or two for each arm.

How near that is: paper-x2.toml at scale 1/4 took real guests (emulated, Linux 6.12, one repeat) 37 trials and 544 s
with the arm static, 31 and 456 s with literal (.84), 37 and 546 s with dead-band, and 1.19, 1.07 and 1.18 million
misses. The model says 40 and 586 s, 36 and 529 s (.90), 40 and 586 s; 1.23, 1.04 and 1.23 million.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from qmpalloc.experiment.analysis.gain import LEAST_GAIN
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec.access import Uniform
from qmpalloc.experiment.spec.parsing import load
from qmpalloc.experiment.spec.references import phase_pages
from qmpalloc.experiment.spec.scaling import scale
from qmpalloc.experiment.spec.schema import Arm, Guest, Phase, Specification
from qmpalloc.policy import load as load_policy
from qmpalloc.sim.replay import ReplayGuest, ReplayHost
from qmpalloc.units import MIB, format_count, format_size, parse_size

OWN_BYTES = 120 * MIB
OWN_SHARE = 0.044
TICK_S = 1.0
"""The collector writes once a second, and so often the curve is fed."""

TRIALS_MOST = 2_000


class ModelGuest(ReplayGuest):
    """A guest of an experiment: its phases one after the other, then nothing.

    Attributes:
        total_misses: So far.
        ends: Time at which each phase ended, seconds.
    """

    def __init__(self, specification: Specification, guest: Guest, arm: Arm, hit_s: float, miss_s: float) -> None:
        self._spec, self._guest, self._times = specification, guest, (hit_s, miss_s)
        self.total_misses = self._now_s = self._ahead_s = 0.0
        self._left = 0
        self.ends: list[float] = []
        super().__init__(
            guest.name, Uniform(), file_bytes=guest.reads[0].file, accesses_per_s=1.0, size_bytes=arm.baseline(guest),
            lru=guest.lru_flavour, own_bytes=own_bytes(guest),
            floor_bytes=guest.floor, cap_bytes=guest.cap, scale=1,
        )  # fmt: skip
        self._begin()
        if specification.warm_up == "read":
            self.read_through()

    def advance(self, seconds: float) -> None:
        """Let the load run through its phases for a time."""
        hits = misses = refaults = 0.0
        end_s = self._now_s + seconds
        while self._now_s < end_s:
            tick_s = min(TICK_S, end_s - self._now_s)
            self._now_s += tick_s
            if self.finished:
                continue
            super().advance(max(0.0, tick_s - self._ahead_s))
            self._ahead_s += self.interval_s - tick_s
            hits, misses, refaults = hits + self.hits, misses + self.misses, refaults + self.refaults
            self._left -= round(self.hits + self.misses)
            if self._left <= 0:
                self.ends.append(self._now_s + self._ahead_s)
                if not self.finished:
                    self._begin()
        self.hits, self.misses, self.refaults, self.interval_s = hits, misses, refaults, seconds
        self.total_misses += misses

    @property
    def finished(self) -> bool:
        """Whether all phases are over."""
        return len(self.ends) == len(self._guest.phases)

    def _begin(self) -> None:
        phase = self._guest.reads[len(self.ends)]
        if self.ends or self._left:
            self.load(Uniform(), phase.file)  # pages of their own
        hit_s, miss_s = self._times
        self.accesses_per_s, self.miss_s, self.due_per_s = 1.0 / hit_s, miss_s, phase.rate or None
        pages: Iterator[int] = phase_pages(self._spec, self._guest, phase)
        self.references = chain(pages, repeat(0))  # a few more than there are, for the last chunk
        self._left = phase.total_reads


def own_bytes(guest: Guest) -> int:
    """Return the memory of a reference guest that is never cache for its load."""
    return OWN_BYTES + round(OWN_SHARE * guest.memory)


def settings(specification: Specification, arm: Arm, traces: Traces) -> Mapping[str, Any]:
    """Return the settings of an arm's policy; a computed oracle gets its curves, over sizes of the guest."""
    if not arm.is_computed_oracle:
        return arm.policy_settings
    curves = {}
    for guest in specification.guests:
        own = own_bytes(guest)
        curves[guest.name] = [
            {**curve, "sizes": [f"{parse_size(size) + own}B" for size in curve["sizes"]], "sizes_of": "guest"}
            for curve in traces.true_curves()[guest.name]
        ]
    return {**arm.settings, "curves": curves}


def run(specification: Specification, arm: Arm, traces: Traces, options: argparse.Namespace) -> dict[str, Any]:
    """Run an arm to the end of all loads and return what came out."""
    hit_s, miss_s = options.hit_us / 1e6, options.miss_us / 1e6
    guests = [ModelGuest(specification, guest, arm, hit_s, miss_s) for guest in specification.guests]
    host = ReplayHost(guests, budget_bytes=specification.budget, interval_s=specification.interval)
    policy = load_policy(arm.policy, settings(specification, arm, traces), file=specification.file)
    trials = 0
    while not all(guest.finished for guest in guests) and trials < TRIALS_MOST:
        host.step(policy)
        trials += 1
        if options.verbose:
            print(
                f"  {trials}: {', '.join(map(told, guests))}: {host.decision.summary if host.decision else ''}",
                flush=True,
            )
    ends = {
        guest.name: [min(trials, int(np.ceil(end / specification.interval))) for end in guest.ends] for guest in guests
    }
    return {
        "arm": arm.name,
        "trials": trials,
        "seconds": max((guest.ends[-1] for guest in guests if guest.ends), default=0.0),
        "misses": sum(guest.total_misses for guest in guests),
        "moved": host.moved_bytes,
        "moves": host.moves,
        "ends": ", ".join(f"{name} {'/'.join(map(str, each))}" for name, each in ends.items()),
    }


def not_modelled(specification: Specification) -> list[str]:
    """Return which phases the model cannot run, and why: without them its loads would be other ones."""
    said = []
    for index, guest in enumerate(specification.guests):
        for number, phase in enumerate(guest.phases):
            key = f"guest[{index}].phase[{number}]"
            if not isinstance(phase, Phase):
                said.append(
                    f"{key}.command: what {phase.name} of {guest.name} reads is known to nobody before it runs; run it "
                    "on real guests (qmpalloc experiment run), or model it by a phase of reads that you think alike"
                )
            elif phase.is_timed:
                said.append(f"{key}.duration: phases of reads are modelled by rounds; give {phase.name} rounds instead")
    return said


def told(guest: ModelGuest) -> str:
    """Return a guest's state in a few words."""
    seen = guest.hits + guest.misses
    curve = guest.snapshot().curve
    weak = f" ({'; '.join(curve.weak)})" if curve is not None and curve.weak else ""
    return f"{guest.name} {format_size(guest.size_bytes)} misses {guest.misses / seen if seen else 0:.2f}{weak}"


def share(ours: float, base: float, best: float) -> str:
    """Return the share of the oracle's gain; nothing where it gains less than a report would tell."""
    return "-" if base - best < LEAST_GAIN * base else f"{(base - ours) / (base - best):.0%}"


def table(rows: list[dict[str, Any]], reference: str, oracle: str | None) -> str:
    """Return the results as Markdown."""
    by_arm = {row["arm"]: row for row in rows}
    base, best = by_arm.get(reference), by_arm.get(oracle or "")
    columns = ("arm", "trials", "seconds", f"of {reference}", "share of the oracle's gain", "misses", "share", "moved",
               "moves", "phases ended in trial")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        ratio = "-" if base is None else f"{row['seconds'] / base['seconds']:.2f}"
        shares = [
            share(row[key], base[key], best[key]) if base is not None and best is not None else "-"
            for key in ("seconds", "misses")
        ]
        cells = (row["arm"], str(row["trials"]), f"{row['seconds']:.0f}", ratio, shares[0], format_count(row["misses"]),
                 shares[1], format_size(row["moved"]), str(row["moves"]), row["ends"])  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the arms asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the experiment")
    parser.add_argument("--scale", type=Fraction, default=Fraction(1))
    parser.add_argument("--arms", default="", help="only these, separated by commas")
    parser.add_argument(
        "--known-after", type=float, action="append", default=[],
        help="one more oracle, which knows a curve after so many working sets: what can be gained by who must see a "
        "load read first; may be repeated",
    )  # fmt: skip
    parser.add_argument("--hit-us", type=float, default=15.0, help="time of a hit [15]")
    parser.add_argument("--miss-us", type=float, default=785.0, help="additional time of a miss [785]")
    parser.add_argument("--verbose", action="store_true", help="tell every trial")
    options = parser.parse_args()
    specification = scale(load(options.file), options.scale)
    if refused := not_modelled(specification):
        parser.error("\n".join(f"{options.file}: {said}" for said in refused))
    wanted = [name for name in options.arms.split(",") if name]
    traces, rows = Traces(specification), []
    late = [
        structs.replace(
            arm, name=f"{arm.name} after {known_after:g}", settings={**arm.settings, "known_after": known_after}
        )
        for arm in specification.arms
        for known_after in options.known_after
        if arm.is_computed_oracle
    ]
    for arm in [*specification.arms, *late]:
        if not wanted or arm.name in wanted or arm in late:
            print(f"{arm.name} …", flush=True)
            rows.append(run(specification, arm, traces, options))
    oracle = next((arm.name for arm in specification.arms if arm.is_oracle), None)
    print(table(rows, specification.reference, oracle))


if __name__ == "__main__":
    main()
