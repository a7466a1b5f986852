"""Experiments: what is compared, with which references, in which order, and what the results say.

An experiment compares arms (a policy with its settings) under the same loads. `load` reads its specification (format:
``docs/experiments.md``), `planned` orders the runs, `phase_pages` gives the references of a load, and `compare` and
`verdict` say what came out. All of it is pure: nothing here boots a guest.
"""

from qmpalloc.experiment.offsets import distinct_pages, page_numbers, phase_pages
from qmpalloc.experiment.plan import ArmRun, planned, remaining
from qmpalloc.experiment.program import Metric, ProgramPhase
from qmpalloc.experiment.scaling import scale
from qmpalloc.experiment.schema import Arm, Disk, Guest, Phase, Specification
from qmpalloc.experiment.specification import load, parse
from qmpalloc.experiment.statistics import ArmResult, Comparison, Ratio, compare, ratio, verdict

__all__ = [
    "Arm",
    "ArmResult",
    "ArmRun",
    "Comparison",
    "Disk",
    "Guest",
    "Metric",
    "Phase",
    "ProgramPhase",
    "Ratio",
    "Specification",
    "compare",
    "distinct_pages",
    "load",
    "page_numbers",
    "parse",
    "phase_pages",
    "planned",
    "ratio",
    "remaining",
    "scale",
    "verdict",
]
