"""The first half of a report: the verdicts, and the arms beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qmpalloc.experiment.analysis.phases import PhaseResult
from qmpalloc.experiment.analysis.results import Results, RunResult
from qmpalloc.experiment.analysis.statistics import Comparison, Ratio
from qmpalloc.experiment.report import words
from qmpalloc.experiment.report.markdown import bullets, heading, paragraph, table
from qmpalloc.experiment.report.words import spread
from qmpalloc.experiment.spec.schema import Phase
from qmpalloc.units import format_size

Value = Callable[[RunResult], float | None]

READS: tuple[tuple[str, Callable[[PhaseResult], float | None], Callable[[float], str]], ...] = (
    ("Reads", lambda phase: phase.reads, words.whole),
    ("Time", lambda phase: phase.seconds, words.seconds),
    ("Reads per second", lambda phase: phase.reads / phase.seconds if phase.seconds else None, words.rounded),
    ("Mean latency", lambda phase: phase.mean_s, words.latency),
    ("Median", lambda phase: phase.p50_s, words.latency),
    ("99th percentile", lambda phase: phase.p99_s, words.latency),
)
"""What is told of the reads of a phase: heading, value and how it is shown."""


def verdicts(results: Results) -> Iterator[str]:
    """Yield what came out in sentences, the best arm first."""
    yield heading("Verdict")
    if not any(run.counted for run in results.runs):
        yield paragraph("No run has ended that counts: there is nothing to compare yet.", strong=True)
    elif not results.adaptive_arms:
        yield paragraph(f"Only {results.specification.reference} was run: there is nothing to compare.", strong=True)
    else:
        for comparison in results.comparisons:
            *by_metric, of_all = results.verdicts(comparison)
            yield paragraph(of_all, strong=True)
            if by_metric:
                yield bullets(by_metric)
            elif comparison.misses is not None:
                more = f" It had more hits in {_more(comparison)} trials." if comparison.more_hits else ""
                yield paragraph(f"Of the misses of {comparison.reference} it had {comparison.misses}.{more}")
    missing, failed = len(results.missing), len(results.failed)
    if missing:
        planned = missing + sum(run.outcome is not None for run in results.runs)
        yield paragraph(f"This is not complete: of {planned} planned runs, {missing} {_are(missing)} missing.")
    if failed:
        yield paragraph(f"{failed} {'run' if failed == 1 else 'runs'} failed and {_are(failed)} left out; see below.")


def explanation(results: Results) -> Iterator[str]:
    """Yield what a newcomer has to know to read the rest."""
    spec = results.specification
    if spec.has_unequal_work:
        they_do, loads = "Each reads files, or runs programs that do,", "loads"
        work = "Arms may do unequal work in equal time: they are compared by the metrics of their phases."
    else:
        they_do, loads = "Each reads files at random", "reads"
        work = "All arms do the same reads: over whole runs they differ in misses and time, in hits only as misses do."
    yield heading("How to read this")
    yield paragraph(
        f"The guests {', '.join(guest.name for guest in spec.guests)} share {format_size(spec.budget)} of memory. "
        f"{they_do} through its page cache; what does not fit into its memory is read from its disk. "
        f"An arm is one way to divide the memory. All arms meet the same {loads}, on guests booted anew. "
        f"The reference is {spec.reference}."
    )
    yield bullets(
        (
            f"Trial: an interval of {spec.interval:g} s, after which an arm may move memory.",
            "Access: a page of 4 KiB touched by a read. Miss: one that had to come from the disk. Hit: any other.",
            "Phase: a part of a guest's load, with its own file. An arm finishes with the last phase of all guests.",
            work,
            "Ratios are to the same repeat of the reference; a 95 % confidence interval that holds 1 decides nothing.",
            "Where repeats differ, tables show the median and the range. n: repeats that count.",
        )
    )


def arms_table(results: Results) -> Iterator[str]:
    """Yield the table of the arms, their ratios behind the values."""
    by_arm = {comparison.arm: comparison for comparison in results.comparisons}

    def row(label: str, value: Value, show: Callable[[float], str], field: str = "") -> tuple[str, ...]:
        cells = []
        for arm in results.arms:
            ratio: Ratio | None = getattr(by_arm.get(arm.name), field, None)
            cell = spread([value(run) for run in results.counted(arm.name)], show)
            cells.append(cell if ratio is None else f"{cell}; ratio {ratio}")
        return (label, *cells)

    repeats = results.specification.repeats
    rows = (
        row("Time to finish", lambda run: run.seconds, words.seconds, "time"),
        row("Trials to finish", lambda run: run.trials_to_finish, words.whole, "trials"),
        row("Hits in all", lambda run: _finished(run, run.counts.hits), words.whole, "hits"),
        row("Misses in all", lambda run: _finished(run, run.counts.misses), words.whole, "misses"),
        row("Page-ins in all", lambda run: _finished(run, run.counts.page_ins), words.whole),
        row("Hit ratio", lambda run: _finished(run, run.counts.hit_ratio), words.percent),
        ("Trials with more hits", *(_more(by_arm.get(arm.name)) for arm in results.arms)),
        ("Repeats that count", *(f"{len(results.counted(arm.name))} of {repeats}" for arm in results.arms)),
    )
    yield heading("The arms")
    yield table("", ("", *(arm.name for arm in results.arms)), rows)


def phases_table(results: Results) -> Iterator[str]:
    """Yield the trial in which each phase ended, and how its reads went."""
    rows, reads = [], []
    for guest in results.specification.guests:
        for number, phase in enumerate(guest.phases):
            what = f"{format_size(phase.file)} file" if isinstance(phase, Phase) else "program"
            ends = []
            for arm in results.arms:
                found = [run.guests[guest.name].phases[number] for run in results.counted(arm.name)]
                ends.append(spread([each.trial for each in found], words.whole))
                if not isinstance(phase, Phase) or not found:
                    continue
                cells = (spread([value(each) for each in found], show) for _, value, show in READS)
                reads.append((f"{guest.name}: {phase.name}, {arm.name}", *cells))
            rows.append((f"{guest.name}: {phase.name} ({what})", *ends))
    yield heading("The phases")
    yield table("The trial in which each ended", ("", *(arm.name for arm in results.arms)), rows)
    if reads:
        yield table("How its reads went", ("Guest: phase, arm", *(name for name, _, _ in READS)), reads)


def _finished(run: RunResult, value: float | None) -> float | None:
    """Return a value of a run that finished, of which nothing is missing; one of part of the work is not comparable."""
    return value if run.whole and run.trials_to_finish is not None else None


def _more(comparison: Comparison | None) -> str:
    """Return in how many trials an arm had more hits than the reference, by repeat."""
    counts = comparison.more_hits if comparison is not None else ()
    return ", ".join(f"{more} of {compared}" for more, compared in counts) or words.NOTHING


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
