"""The second part of a report: what the loads touched, what a miss cost, and whether the counts can be trusted."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from qmpalloc.experiment.analysis.results import Results, RunResult
from qmpalloc.experiment.analysis.trials import Counts, total
from qmpalloc.experiment.report import words
from qmpalloc.experiment.report.markdown import heading, paragraph, table
from qmpalloc.experiment.report.words import spread
from qmpalloc.experiment.spec.program import ProgramPhase
from qmpalloc.experiment.store.records import DiskCalibration, ProgramService
from qmpalloc.units import PAGE_BYTES, format_size

LITTLE_BYTES = 2**20
"""Collector and disk are not compared below this: a few pages of metadata would decide."""

DOUBTFUL, AGREES = "doubtful", "agrees"

WITNESS_TOLERANCE = 0.03
"""Collector and disk may differ by so much over a run: the disk also reads what is no file's page."""


def footprints(results: Results) -> Iterator[str]:
    """Yield how many distinct pages each phase touches."""
    yield heading("What the loads touch")
    rows = []
    for guest, phases in results.manifest.footprints.items():
        for phase, touched in phases.items():
            rows.append(
                (
                    f"{guest}: {phase}",
                    words.whole(touched.reads),
                    format_size(touched.file_pages * PAGE_BYTES),
                    words.whole(touched.distinct_pages),
                    format_size(touched.distinct_pages * PAGE_BYTES),
                    words.percent(touched.distinct_pages / touched.file_pages) if touched.file_pages else words.NOTHING,
                    words.percent(touched.busiest_tenth),
                )
            )
    columns = (
        "Guest: phase", "Reads", "File", "Distinct pages", "Footprint", "Share of the file", "Reads of busiest tenth",
    )  # fmt: skip
    yield table("", columns, rows)
    yield paragraph(
        "The references are the same in every arm and repeat. Busiest tenth: the share of the reads that go to the "
        f"most-read tenth of the file. The guests share {format_size(results.specification.budget)}, which also "
        "holds their systems; loads contend when their footprints together are larger than what is left."
    )


def disk(results: Results) -> Iterator[str]:
    """Yield the disk model: asked, reached, and what a miss cost."""
    yield heading("What a miss costs")
    calibration, asked = results.disk, results.disk_ratio_asked
    yield paragraph(_disk_model(calibration, asked))
    by_programs = calibration is not None and calibration.by == "programs"
    if calibration is not None and calibration.programs:
        yield from _programs(results, calibration)
    rows = []
    for arm in results.arms_counted:
        runs = results.counted(arm.name)
        services = [service for run in runs for service in run.services]
        rows.append(
            (
                arm.name,
                words.known(None if by_programs else asked, words.rounded),
                spread([run.disk_ratio for run in runs], words.rounded),
                spread([service.hit_s for service in services], words.latency),
                spread([service.miss_s for service in services], words.latency),
                spread([run.counts.request_s for run in runs], words.latency),
                spread([_in_hits(run) for run in runs], words.rounded),
            )
        )
    columns = ("Arm", "Ratio asked", "Ratio reached", "A hit", "A miss", "A disk request under load", "In hits")
    yield table(f"Service times of hits and misses{' of reads' if by_programs else ''}", columns, rows)


def _disk_model(calibration: DiskCalibration | None, asked: float | None) -> str:
    """Return in words how the data disks are slowed down."""
    # 1. Not measured. 2. Left as they are. 3. Throttled.
    if calibration is None:
        return "The disk was not measured yet."
    took = f"took {words.latency(calibration.hit_s)} here, on all guests at once"
    if not calibration.iops:
        return f"Disk model {calibration.model}: the data disks are not throttled. A cached read {took}."
    programs = calibration.by == "programs"
    hit = "A page from the cache, with all that the programs do," if programs else "A cached read"
    return (
        f"Disk model {calibration.model}: a miss should take {asked:,.0f} times as long as a hit. {hit} {took}, so "
        f"every data disk is throttled to {calibration.iops:,} operations per second. The ratio reached is measured in "
        "every run before its loads; the time of a request is what QEMU measured while the loads ran, waiting for the "
        "throttle included. The last column is how many cached reads would have taken as long."
    )


def _programs(results: Results, calibration: DiskCalibration) -> Iterator[str]:
    """Yield the ratio that each program's own command reached, warm and cold."""
    asked, rows = results.disk_ratio_asked, []
    for guest in results.specification.guests:
        for phase in guest.programs:
            service = calibration.programs.get(guest.name, {}).get(phase.name)
            if service is None:
                continue
            cold = service.cold
            pages = (cold.misses + cold.faults) / cold.disk_reads if cold is not None and cold.disk_reads else None
            rows.append(
                (
                    f"{guest.name}: {phase.name}",
                    words.known(asked, words.rounded),
                    words.known(service.ratio, words.rounded),
                    words.known(service.hit_s, words.latency),
                    words.known(service.miss_s, words.latency),
                    words.known(pages, lambda value: f"{value:.1f}"),
                    "; ".join(_warm_and_cold(phase, service)) or words.NOTHING,
                )
            )
    columns = ("Guest: phase", "Ratio asked", "Ratio reached", "A hit", "A miss", "Pages by a miss", "Warm, cold")
    yield table("What a miss costs the programs, by runs of their own commands, once", columns, rows)
    yield paragraph(
        "A hit: time for each page that a program accessed with its files cached, its own work included. A miss: time "
        "for each request to the disk in a run with nothing cached, after what its hits took. A program that reads "
        "mapped files accesses no pages that are counted: its ratio is not known."
    )


def _warm_and_cold(phase: ProgramPhase, service: ProgramService) -> Iterator[str]:
    cold = service.cold.metrics if service.cold is not None else {}
    for metric in phase.metrics:
        if metric.name in service.warm.metrics and metric.name in cold:
            values = f"{words.figure(service.warm.metrics[metric.name])}, {words.figure(cold[metric.name])}"
            yield f"{metric.name} {values} {metric.unit}"


def _in_hits(run: RunResult) -> float | None:
    """Return how many hits take as long as a disk request took under load; None if not known."""
    hit_s = [service.hit_s for service in run.services if service.hit_s > 0]
    request_s = run.counts.request_s
    return request_s / statistics.fmean(hit_s) if hit_s and request_s is not None else None


def witness(results: Results) -> Iterator[str]:
    """Yield the collector's page-ins beside the bytes that the disks say they read."""
    yield heading("Do the counts agree with the disk?")
    rows = []
    for arm in results.arms_counted:
        for guest in results.specification.guests:
            runs = [run.guests[guest.name].counts for run in results.counted(arm.name)]
            counts = total(runs)
            rows.append(
                (
                    f"{arm.name}, {guest.name}",
                    format_size(counts.witnessed * PAGE_BYTES),
                    format_size(counts.disk_read_bytes),
                    spread([each.witness for each in runs], words.off_one),
                    words.known(counts.events_lost, words.whole, "not known"),
                    _agreement(runs),
                )
            )
    apart = [row[0] for row in rows if row[-1] == DOUBTFUL]
    programs = any(guest.programs for guest in results.specification.guests)
    counted = "Page-ins counted where programs run, misses elsewhere" if programs else "Misses counted"
    columns = ("Arm, guest", counted, "Read from the disk", "Apart", "Events lost", "")
    caption = "Misses of the collectors beside what QEMU's disks read, all repeats"
    yield table(caption, columns, rows)
    if apart:
        names = "; ".join(apart)
        yield paragraph(f"More than {WITNESS_TOLERANCE * 100:g} % apart: {names}. Hits and misses there are doubtful.")
    elif any(row[-1] == AGREES for row in rows):
        yield paragraph(
            f"The disks are an independent witness: both agree within {WITNESS_TOLERANCE * 100:g} % wherever there is "
            "enough to tell."
        )


def _agreement(runs: Sequence[Counts]) -> str:
    """Return whether collector and disk agree in every run, in a word or a few: one may make up for another."""
    told = [each.witness for each in runs if max(each.witnessed * PAGE_BYTES, each.disk_read_bytes) >= LITTLE_BYTES]
    if not told:
        return "too little to tell"
    agree = all(witness is not None and abs(witness - 1) <= WITNESS_TOLERANCE for witness in told)
    return AGREES if agree else DOUBTFUL
