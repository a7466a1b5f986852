"""``summary.json``: the results in numbers, for other programs. Keys that need words: ``docs/experiments.md``."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from qmpalloc.experiment.analysis.gain import oracle_share
from qmpalloc.experiment.analysis.metrics import worst
from qmpalloc.experiment.analysis.movement import Movement
from qmpalloc.experiment.analysis.results import Results, RunResult
from qmpalloc.experiment.analysis.statistics import Comparison
from qmpalloc.experiment.analysis.trials import total
from qmpalloc.experiment.report.curves import movements
from qmpalloc.experiment.spec.schema import Arm
from qmpalloc.experiment.store.records import ProgramService


def summarise(results: Results) -> dict[str, Any]:
    """Return the results in numbers; None is not known, or did not happen."""
    spec, disk = results.specification, results.disk
    return {
        "format": "qmpalloc-experiment-summary",
        "version": 1,
        "name": spec.name,
        "scale": spec.scale,
        "seed": spec.seed,
        "repeats": spec.repeats,
        "interval_s": spec.interval,
        "budget_bytes": spec.budget,
        "reference": spec.reference,
        "complete": not results.missing and not results.failed,
        "disk": None
        if disk is None
        else {
            "model": disk.model,
            "iops": disk.iops,
            "hit_s": disk.hit_s,
            "ratio_asked": results.disk_ratio_asked,
            "by": disk.by,
            "programs": {
                guest: {phase: _service(service) for phase, service in phases.items()}
                for guest, phases in disk.programs.items()
            },
        },
        "arms": [_arm(results, arm) for arm in results.arms],
        "comparisons": [_comparison(results, comparison) for comparison in results.comparisons],
        "footprints": results.manifest.footprints,
        "failed": [{"arm": run.arm, "repeat": run.repeat, "cause": run.failed} for run in results.failed],
        "missing": [{"arm": run.arm, "repeat": run.repeat} for run in results.missing],
    }


def _service(service: ProgramService) -> dict[str, Any]:
    return {"ratio": service.ratio, "hit_s": service.hit_s, "miss_s": service.miss_s, **structs.asdict(service)}


def _arm(results: Results, arm: Arm) -> dict[str, Any]:
    runs = results.counted(arm.name)
    guests = [guest.name for guest in results.specification.guests]
    return {
        "arm": arm.name,
        "policy": arm.policy,
        "settings": arm.settings,
        "repeats": [_repeat(run, moved) for run, moved in zip(runs, movements(results, arm), strict=True)],
        "witness": {name: total(run.guests[name].counts for run in runs).witness for name in guests},
        "oracle_share": oracle_share(results, arm.name),
    }


def _repeat(run: RunResult, moved: Movement) -> dict[str, Any]:
    counts = run.counts
    return {
        "repeat": run.repeat,
        "seconds": run.seconds,
        "trials_to_finish": run.trials_to_finish,
        "hits_by_trial": run.hits,
        "hits": run.total_hits,
        "misses": run.total_misses,
        "page_ins": counts.page_ins if run.whole else None,
        "hit_ratio": counts.hit_ratio if run.whole else None,
        "finished": {name: {phase.name: phase.trial for phase in guest.phases} for name, guest in run.guests.items()},
        "disk_ratio": run.disk_ratio,
        "request_s": counts.request_s,
        "events_lost": counts.events_lost,
        "controller_cpu_share": run.controller_cpu_share,
        "moved_bytes": moved.moved_bytes,
        "settlings": moved.settlings,
        "metrics": {
            name: {phase.name: {each.metric.name: each.value for each in phase.metrics} for phase in guest.phases}
            for name, guest in run.guests.items()
        },
        "notes": run.notes,
    }


def _comparison(results: Results, comparison: Comparison) -> dict[str, Any]:
    ours = structs.asdict(comparison)
    first = {"arm": ours.pop("arm"), "reference": ours.pop("reference"), "verdict": results.verdicts(comparison)[-1]}
    found = results.metric_comparisons(comparison.arm)
    return first | ours | {"metrics": found, "all_guests": results.gain_of_all(comparison.arm), "worst": worst(found)}
