"""What a miss was found to cost the guests of a run, over time: by medians, as in a run, and by means.

    python benchmarks/service_times.py RUN/record.jsonl

The counters in the record are fitted again, without the disks' own times. Left what `ServiceTimes` finds: whether the
load waits, and the times of a miss and a hit. Right a least-squares line over the same samples, with its standard
error. A line for every 20 s.
"""

from __future__ import annotations

import sys
from collections import deque

import numpy as np

from qmpalloc.curves.service import ServiceTimes
from qmpalloc.curves.tuning import TUNING
from qmpalloc.events import Sampled
from qmpalloc.record import read_record

EVERY_S = 20.0


def main(path: str) -> None:
    """Print both fits for each guest of a record."""
    times: dict[str, ServiceTimes] = {}
    samples: dict[str, deque[tuple[float, float]]] = {}
    told: dict[str, float] = {}
    for event in read_record(path):
        if not isinstance(event, Sampled):
            continue
        name, delta = event.guest, event.delta
        if delta is None or not delta.accesses or delta.misses is None:
            continue
        fit = times.setdefault(name, ServiceTimes())
        fit.observe(delta.accesses, delta.misses, delta.interval_s)
        last = samples.setdefault(name, deque(maxlen=TUNING.service.intervals))
        last.append((delta.misses / delta.accesses, delta.interval_s / delta.accesses))
        if event.t < told.get(name, 0.0) or len(last) < TUNING.service.intervals // 2:
            continue
        told[name] = event.t + EVERY_S
        m, access_s = last[-1]
        medians = (
            "not known"
            if fit.waits is None or fit.miss_s is None or fit.hit_s is None
            else f"waits {fit.waits:.2f}, miss {_us(fit.miss_s)}, hit {_us(fit.hit_s)}"
        )
        line = f"{event.t:5.0f} s  {name}: misses {m:.2f}, an access {_us(access_s)}"
        print(f"{line}; medians: {medians}; means: {_least_squares(last)}")


def _least_squares(samples: deque[tuple[float, float]]) -> str:
    m, t = np.array(samples).T
    spread = float(np.sum((m - m.mean()) ** 2))
    if not spread:
        return "not known"
    slope = float(np.sum((m - m.mean()) * (t - t.mean()))) / spread
    rest = t - t.mean() - slope * (m - m.mean())
    error = (float(np.sum(rest**2)) / (len(m) - 2) / spread) ** 0.5
    return f"miss {_us(slope)} ± {_us(error)}"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs"


if __name__ == "__main__":
    main(sys.argv[1])
