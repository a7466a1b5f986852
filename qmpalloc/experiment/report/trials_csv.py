"""``trials.csv``: a row per arm, repeat, trial and guest, of the runs that count."""

from __future__ import annotations

import csv
import io

from qmpalloc.experiment.analysis.results import Results

OWN = ("arm", "repeat")
FIELDS = (
    "trial", "guest", "hits", "misses", "target_bytes", "actual_bytes",
    "covers", "start_s", "end_s", "seconds", "accesses", "refaults", "evictions", "events_lost",
    "disk_read_bytes", "disk_reads", "disk_read_s", "reads", "read_mean_s", "read_p50_s", "read_p99_s", "phase",
    "faults", "swap_ins", "page_ins",
)  # fmt: skip
"""Attributes of `qmpalloc.experiment.analysis.trials.Trial`, in order."""

COLUMNS = OWN + FIELDS


def trials_csv(results: Results) -> str:
    """Return the text of the file: a heading, then rows by arm, repeat, trial and guest. Empty cells are unknown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for arm in results.arms:
        for run in results.counted(arm.name):
            rows = [row for guest in run.guests.values() for row in guest.trials.trials]
            for row in sorted(rows, key=lambda each: each.trial):  # stable: guests in the order of the file
                values = (getattr(row, name) for name in FIELDS)
                cells = (f"{value:.9g}" if isinstance(value, float) else value for value in values)
                writer.writerow((arm.name, run.repeat, *cells))
    return text.getvalue()
