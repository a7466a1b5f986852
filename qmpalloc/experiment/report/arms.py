"""The first half of a report: the verdicts, and the arms beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from qmpalloc.experiment.analysis.metrics import metric_verdicts
from qmpalloc.experiment.analysis.results import Results, RunResult
from qmpalloc.experiment.analysis.statistics import Comparison, Ratio, verdict
from qmpalloc.experiment.report import words
from qmpalloc.experiment.report.document import Block, Bullets, Heading, Paragraph, Picture, Table
from qmpalloc.experiment.report.words import spread
from qmpalloc.experiment.spec.schema import Arm, Phase
from qmpalloc.units import format_size

Value = Callable[[RunResult], float | None]


def verdicts(results: Results, pictures: Iterable[Picture]) -> Iterator[Block]:
    """Yield what came out, in pictures that show it at a glance, and in sentences."""
    yield Heading(f"Verdict ({words.conditions(results)})")
    yield from pictures
    if not any(run.counted for run in results.runs):
        yield Paragraph("No run has ended that counts: there is nothing to compare yet.", strong=True)
    elif not results.adaptive_arms:
        yield Paragraph(f"Only {results.specification.reference} was run: there is nothing to compare.", strong=True)
    else:
        for comparison in results.comparisons:
            if results.metrics:
                yield from _metric_verdicts(results, comparison)
                continue
            yield Paragraph(verdict(comparison), strong=True)
            if said := " ".join(_on_hits(comparison)):
                yield Paragraph(said)
    if results.missing:
        number = len(results.missing)
        planned = number + sum(run.outcome is not None for run in results.runs)
        yield Paragraph(f"This is not complete: of {planned} planned runs, {number} {_are(number)} missing.")
    if results.failed:
        number = len(results.failed)
        yield Paragraph(f"{number} {'run' if number == 1 else 'runs'} failed and {_are(number)} left out; see below.")


def _metric_verdicts(results: Results, comparison: Comparison) -> Iterator[Block]:
    """Yield what an arm came to over all guests, and below it by each metric."""
    found, of_all = results.metric_comparisons(comparison.arm), results.gain_of_all(comparison.arm)
    sentences = list(metric_verdicts(comparison.arm, comparison.reference, found, of_all))
    if of_all is not None:
        yield Paragraph(sentences.pop(), strong=True)
    if sentences:
        yield Bullets(tuple(sentences))


def explanation(results: Results) -> Iterator[Block]:
    """Yield what a newcomer has to know to read the rest."""
    spec = results.specification
    if spec.has_unequal_work:
        they_do, loads = "Each reads files, or runs programs that do,", "loads"
        work = "Arms may do unequal work in equal time: they are compared by the metrics of their phases."
    else:
        they_do, loads = "Each reads files at random", "reads"
        work = "All arms do the same reads: over whole runs they differ in misses and time, in hits only as misses do."
    yield Heading("How to read this")
    yield Paragraph(
        f"The guests {', '.join(guest.name for guest in spec.guests)} share {format_size(spec.budget)} of memory. "
        f"{they_do} through its page cache; what does not fit into its memory is read from its disk. "
        f"An arm is one way to divide the memory. All arms meet the same {loads}, on guests booted anew. "
        f"The reference is {spec.reference}; a ratio below 1 means that an arm has less than it, of the same repeat."
    )
    yield Bullets(
        (
            f"Trial: an interval of {spec.interval:g} s, after which an arm may move memory.",
            "Access: a page of 4 KiB touched by a read. Miss: one that had to come from the disk. Hit: any other.",
            "Phase: a part of a guest's load, with its own file. An arm finishes with the last phase of all guests.",
            work,
            "Where repeats differ, tables show the median and the range. In 2 of 3: so many repeats have a value.",
            "n: repeats that count. CI: confidence interval of a ratio; it is undecided when 1 lies within.",
        )
    )


def arms_table(results: Results) -> Iterator[Block]:
    """Yield the table of the arms."""
    arms = results.arms
    comparisons = {comparison.arm: comparison for comparison in results.comparisons}
    reference = results.specification.reference
    rows = [
        _row("Time to finish", results, lambda run: run.result.seconds, words.seconds),
        _row("Trials to finish", results, lambda run: run.result.trials_to_finish, words.whole),
        _row("Hits in all", results, lambda run: _finished(run, run.counts.hits), words.whole),
        _row("Misses in all", results, lambda run: _finished(run, run.counts.misses), words.whole),
        _row("Page-ins in all", results, lambda run: _finished(run, run.counts.page_ins), words.whole),
        _row("Hit ratio", results, lambda run: _finished(run, run.counts.hit_ratio), words.percent),
    ]
    for label, field in (("time", "time"), ("trials to finish", "trials"), ("hits", "hits"), ("misses", "misses")):
        row = (_ratio(getattr(comparisons[arm.name], field)) if arm.name in comparisons else "1" for arm in arms)
        rows.append((f"Ratio of {label} to {reference}", *row))
    rows.append((f"Trials with more hits than {reference}", *(_more(comparisons.get(arm.name)) for arm in arms)))
    rows.append(("Repeats that count", *(_counted(results, arm) for arm in arms)))
    yield Heading("The arms")
    columns = ("", *(arm.name for arm in arms))
    yield Table(f"The arms beside each other ({words.conditions(results)})", columns, tuple(rows))


def phases_table(results: Results) -> Iterator[Block]:
    """Yield the trial in which each phase ended, and how its reads went."""
    arms, conditions = results.arms, words.conditions(results)
    yield Heading("When each phase ended")
    rows = []
    for guest in results.specification.guests:
        for number, phase in enumerate(guest.phases):
            what = f"{format_size(phase.file)} file" if isinstance(phase, Phase) else "program"
            name = f"{guest.name}: {phase.name} ({what})"
            rows.append(_row(name, results, _phase_end(guest.name, number), words.whole))
    rows.append(_row("All phases", results, lambda run: run.result.trials_to_finish, words.whole))
    comparisons = {comparison.arm: comparison for comparison in results.comparisons}
    rows.append(("Trials with more hits", *(_more(comparisons.get(arm.name)) for arm in arms)))
    yield Table(f"Trial in which a phase ended ({conditions})", ("", *(arm.name for arm in arms)), tuple(rows))
    yield from _reads(results, conditions)


def _reads(results: Results, conditions: str) -> Iterator[Block]:
    rows = []
    for arm in results.arms_counted:
        runs = results.counted(arm.name)
        for guest in results.specification.guests:
            for number, phase in enumerate(guest.phases):
                if not isinstance(phase, Phase):
                    continue
                found = [run.guests[guest.name].phases[number] for run in runs]
                rates = [each.reads / each.seconds if each.seconds else None for each in found]
                rows.append(
                    (
                        f"{arm.name}, {guest.name}: {phase.name}",
                        spread([each.reads for each in found], words.whole),
                        spread([each.seconds for each in found], words.seconds),
                        spread(rates, lambda value: f"{value:,.0f}"),
                        spread([each.mean_s for each in found], words.latency),
                        spread([each.p50_s for each in found], words.latency),
                        spread([each.p99_s for each in found], words.latency),
                    )
                )
    columns = ("Arm, guest: phase", "Reads", "Time", "Reads per second", "Mean latency", "Median", "99th percentile")
    yield Table(f"Reads of each phase ({conditions})", columns, tuple(rows))


def _phase_end(guest: str, number: int) -> Value:
    return lambda run: run.guests[guest].phases[number].trial if guest in run.guests else None


def _finished(run: RunResult, value: float | None) -> float | None:
    """Return a value of a run that finished; one of part of the work is not comparable."""
    return value if run.result.trials_to_finish is not None else None


def _row(label: str, results: Results, value: Value, show: Callable[[float], str]) -> tuple[str, ...]:
    return (label, *(spread([value(run) for run in results.counted(arm.name)], show) for arm in results.arms))


def _on_hits(comparison: Comparison) -> Iterator[str]:
    if comparison.hits is not None:
        yield f"In the whole run it had {comparison.hits} of the hits of {comparison.reference}."
    if comparison.misses is not None:
        yield f"Of its misses it had {comparison.misses}."
    if comparison.more_hits:
        counts = ", ".join(f"{more} of {compared}" for more, compared in comparison.more_hits)
        repeats = "" if len(comparison.more_hits) == 1 else " (by repeat)"
        yield f"It had more hits than {comparison.reference} in {counts} trials{repeats}."


def _more(comparison: Comparison | None) -> str:
    if comparison is None or not comparison.more_hits:
        return words.NOTHING
    return ", ".join(f"{more} of {compared}" for more, compared in comparison.more_hits)


def _ratio(ratio: Ratio | None) -> str:
    return words.NOTHING if ratio is None else str(ratio)


def _counted(results: Results, arm: Arm) -> str:
    return f"{len(results.counted(arm.name))} of {results.specification.repeats}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
