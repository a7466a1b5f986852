"""How right the curves of real guests are: learnt at one size, measured at six others. Boots a guest for each case.

    python benchmarks/guest_curves.py runs/guest-curves
    python benchmarks/guest_curves.py runs/guest-curves --case zipf-lru_gen --case loop-two_list
    python benchmarks/guest_curves.py runs/try --smoke
    python benchmarks/guest_curves.py runs/guest-curves --report

Five loads, each under both page replacements of Linux 6.12 (Debian 13, switched at run time), and with --bookworm under
the two lists of Linux 6.1 (Debian 12) as well. A case takes about 6 minutes without KVM, 10 at most. What a guest
shipped is kept in DIR/CASE/recording.jsonl, what was measured in DIR/CASE/result.json: cases that have one are not run
again, and the report is made from these two alone. DIR/curves.json holds the measured curves as the policy "oracle"
takes them. Ends with status 1 if a case failed.

A size is measured when it is steady: the last three windows, of at least half as many accesses as the file has pages
and of whole laps of a scan, have alike miss ratios (within .01, or four standard errors; .03 for the loop) and caches
(within 2 %). Sizes go down from the largest, whose cache is filled by reading the file through. The curve is what a
controller would have had at the end of learning.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import trio
from msgspec import structs
from sizes.measurement import Case, Shipped, SizesResult, measured_curve
from sizes.predictions import ESTIMATORS, MIDPOINT, Prediction, error, predict
from sizes.running import run_case

from qmpalloc.curves.mapping import SYSTEM_PAGES
from qmpalloc.errors import QmpallocError
from qmpalloc.experiment.run.configuration import arm_configuration
from qmpalloc.experiment.run.preflight import RUN_DIR_PREFIX, preflight
from qmpalloc.experiment.spec.access import Access, HotCold, Loop, Mixture, Normal, Part, Zipf
from qmpalloc.files import write_json, write_whole
from qmpalloc.policy.curves_file import FORMAT
from qmpalloc.qemu.launcher import prepare
from qmpalloc.units import MIB, format_size

SIZES = (416, 352, 320, 288, 256, 224, 192)
LEARN = 288
FILE = 256
LOADS: dict[str, tuple[Access, int, float]] = {
    "normal": (Normal(deviation=0.15), FILE, 12.0),
    "zipf": (Zipf(exponent=0.99), FILE, 16.0),
    "hotcold": (HotCold(hot=0.1, hot_reads=0.9), FILE, 32.0),  # its cold pages are read once in 10 file lengths
    "loop": (Loop(share=1.0), 176, 6.0),  # fits into the larger sizes only
    "zipf-scan": (
        Mixture(
            parts=(Part(weight=0.7, access=Zipf(exponent=0.99)), Part(weight=0.3, access=Loop(share=0.25, start=0.75)))
        ),
        FILE,
        16.0,
    ),
}
"""Access, size of the file in MiB, and accesses after which learning may end, by pages of the file."""

WHAT = {
    "normal": "normal, deviation 15 % of the file",
    "zipf": "Zipf 0.99",
    "hotcold": "90 % of the reads to 10 % of the file",
    "loop": "one loop over the file",
    "zipf-scan": "70 % Zipf 0.99, 30 % a scan of a quarter of the file, again and again",
}
LEAST_ERROR = 0.02
SHARES = (0.25, 0.5)
"""Of the time of learning, to see how much of it was needed."""
Lru = Literal["two_list", "lru_gen"]
Suite = Literal["trixie", "bookworm"]


def case(workload: str, lru: Lru, suite: Suite = "trixie", *, fresh: bool = False) -> Case:
    """Return a case of the benchmark."""
    access, file_mib, learn_files = LOADS[workload]
    return Case(
        workload=workload, access=access, file=file_mib * MIB, lru=lru, suite=suite, memory=SIZES[0] * MIB,
        learn=LEARN * MIB, sizes=tuple(size * MIB for size in SIZES), learn_files=learn_files, fresh=fresh,
    )  # fmt: skip


def all_cases() -> list[Case]:
    """Return every case there is, those that are run by default first."""
    replacements: tuple[Lru, ...] = ("two_list", "lru_gen")
    found = [case(workload, lru) for workload in LOADS for lru in replacements]
    found += [case(workload, "two_list", "bookworm") for workload in LOADS]
    return found + [case(workload, lru, fresh=True) for workload in LOADS for lru in replacements]


def smoke_case() -> Case:
    """Return one short case."""
    return Case(
        workload="zipf", access=Zipf(exponent=0.99), file=96 * MIB, lru="lru_gen", memory=288 * MIB,
        learn=224 * MIB, sizes=(288 * MIB, 224 * MIB, 192 * MIB), learn_files=4.0,
    )  # fmt: skip


# --- running ---------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def run(chosen: Case, directory: Path) -> None:
    """Run a case and keep what comes of it.

    Raises:
        QmpallocError: It failed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    specification = chosen.specification
    preflight(specification)
    prepared = prepare(arm_configuration(specification, specification.arms[0], run_dir=Path("unused")), report=say)
    with (
        tempfile.TemporaryDirectory(prefix=RUN_DIR_PREFIX) as run_dir,
        (directory / "recording.jsonl").open("wb") as recording,
    ):

        def keep(line: Shipped) -> None:
            recording.write(msgspec.json.encode(line) + b"\n")

        async def main() -> SizesResult:
            return await run_case(chosen, prepared=prepared, run_dir=Path(run_dir), keep=keep, report=say)

        result = trio.run(main)
    write_json(directory / "result.json", result)
    say(f"{chosen.name}: done in {result.total_s:.0f} s")


def run_all(cases: Sequence[Case], directory: Path) -> list[str]:
    """Run the cases that have no result yet, and return the names of those that failed."""
    failed = []
    for number, each in enumerate(cases, start=1):
        place = directory / each.name
        if (place / "result.json").exists():
            say(f"{each.name}: kept, {place / 'result.json'} is there")
            continue
        say(f"{each.name}: case {number} of {len(cases)}")
        try:
            run(each, place)
        except QmpallocError as problem:
            failed.append(each.name)
            say(f"{each.name} failed: {problem.message}")
        except Exception:  # the other cases can still be run
            failed.append(each.name)
            traceback.print_exc()
    return failed


# --- reporting -------------------------------------------------------------------------------------------------------

Measured = list[tuple[SizesResult, tuple[Prediction, ...]]]


def load(directory: Path) -> Measured:
    """Return every result there is in a directory, with what the estimators predicted."""
    order = [each.name for each in all_cases()]
    found: Measured = []
    for file in sorted(directory.glob("*/result.json")):
        result = msgspec.json.decode(file.read_bytes(), type=SizesResult)
        found.append((result, predict(result, recorded(file.with_name("recording.jsonl")))))
    return sorted(found, key=lambda item: order.index(item[0].case.name) if item[0].case.name in order else len(order))


def recorded(file: Path) -> Iterator[Shipped]:
    """Yield the lines of a recording; one that is cut off ends it."""
    decoder = msgspec.json.Decoder(Shipped)
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            yield decoder.decode(line)


def cell(value: float | None, *, bold: bool = False) -> str:
    """Return a miss ratio's error for a table."""
    if value is None:
        return "-"
    return f"**{value:.4f}**" if bold else f"{value:.4f}"


def error_table(sweeps: Measured, field: str) -> list[str]:
    """Return mean absolute errors by workload, page replacement and estimator; that of the guest's own is bold."""
    estimators = [*ESTIMATORS, MIDPOINT]
    columns = ("load", "page replacement", "sizes", *estimators, "worst of its own")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result, made in sweeps:
        errors = {each.estimator: error(result, each) for each in made}
        own = errors.get(result.case.lru)
        cells = [
            cell(getattr(errors[name], field) if name in errors else None, bold=name == result.case.lru)
            for name in estimators
        ]
        sizes = "-" if own is None else str(own.sizes)
        worst = cell(own.worst if own is not None and field == "at_sizes" else None)
        lines.append(f"| {title(result.case)} | {replacement(result)} | {sizes} | {' | '.join(cells)} | {worst} |")
    return lines


def title(of: Case) -> str:
    """Return a workload in words."""
    return f"{WHAT.get(of.workload, of.workload)}, {format_size(of.file)} file"


def replacement(result: SizesResult) -> str:
    """Return the page replacement and the kernel it belongs to."""
    return f"{result.case.lru}, {result.kernel.partition('-')[0] or result.case.suite}"


def learning_table(sweeps: Measured, directory: Path) -> list[str]:
    """Return the error of the guest's own estimator had it learnt for a shorter time."""
    shares = [f"after {share:.0%} of the time" for share in SHARES]
    columns = ("load", "page replacement", *shares, "after all of it", "accesses", "by pages of the file")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result, made in sweeps:
        lru = result.case.lru
        lines_kept = list(recorded(directory / result.case.name / "recording.jsonl"))
        known = [
            predict(structs.replace(result, learnt_t=share * result.learnt_t), lines_kept, [lru]) for share in SHARES
        ]
        errors = [next((error(result, each).at_sizes for each in found if each.estimator == lru), None)
                  for found in (*known, made)]  # fmt: skip
        lines.append(
            f"| {result.case.workload} | {replacement(result)} | {' | '.join(map(cell, errors))} "
            f"| {result.learnt_accesses:,} | {result.learnt_accesses / result.case.pages:.1f} |"
        )
    return lines


def points_table(sweeps: Measured) -> list[str]:
    """Return every size: what was measured, what its own estimator predicted, and the witness."""
    columns = ("load", "page replacement", "size", "measured", "predicted", "its estimate for the cache seen",
               "cache predicted", "cache seen", "accesses", "warm-up", "disk / misses", "")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result, made in sweeps:
        own = next((each for each in made if each.estimator == result.case.lru), None)
        for index, point in enumerate(result.points):
            predicted = cell(own.at_sizes[index] if own else None)
            raw = cell(own.at_cache[index] if own else None)
            cache = format_size(own.cache_pages[index] * 4096) if own else "-"
            seen = format_size(max(0.0, point.file_bytes - SYSTEM_PAGES * 4096))
            witness = "-" if point.witness is None else f"{point.witness:.3f}"
            notes = [] if point.steady else ["not steady"]
            if point.target_bytes == result.case.learn:
                notes.append("learnt here")
            if point.events_lost:
                notes.append(f"{point.events_lost} events lost")
            lines.append(
                f"| {result.case.workload} | {result.case.lru} | {format_size(point.actual_bytes)} "
                f"| {point.miss_ratio:.4f} ± {point.standard_error:.4f} | {predicted} | {raw} | {cache} | {seen} "
                f"| {point.accesses:,.0f} | {point.warm_accesses:,} in {point.warm_s:.0f} s | {witness} "
                f"| {', '.join(notes)} |"
            )
    return lines


LEARNING = """## The same, had it learnt for a shorter time"""
BY_SIZE = """## Mean absolute error of the anchored curve, over sizes

As a controller would have planned with. Over the steady sizes but the one learnt at. Bold: the estimator that simulates
the guest's own page replacement, which is the one used."""
BY_CACHE = """## Mean absolute error of the bare estimate, for the cache that was then seen

Neither anchored nor with the mapping from size to cache: what the estimator itself is worth."""


def document(sweeps: Measured, directory: Path, preface: str, figure: str) -> str:
    """Return the text of the results."""
    weak = [f"- {result.case.name}: {'; '.join(result.weak)}" for result, _ in sweeps if result.weak]
    picture = f"![Predicted and measured curves]({figure})" if figure else "There is no figure without matplotlib."
    parts = [
        preface.rstrip(),
        f"## Result\n\n{verdict(sweeps)}",
        BY_SIZE,
        "\n".join(error_table(sweeps, "at_sizes")),
        LEARNING,
        "\n".join(learning_table(sweeps, directory)),
        BY_CACHE,
        "\n".join(error_table(sweeps, "at_cache")),
        picture,
        "## Every size",
        "\n".join(points_table(sweeps)),
    ]
    if weak:
        parts += ["## Curves that were weak at the end of learning", "\n".join(weak)]
    return "\n\n".join(parts) + "\n"


def verdict(sweeps: Measured) -> str:
    """Return one sentence on how many cases are good enough."""
    own = [error(result, each) for result, made in sweeps for each in made if each.estimator == result.case.lru]
    known = [each.at_sizes for each in own if each.at_sizes is not None]
    if not known:
        return "No case has been measured yet."
    good = sum(value <= LEAST_ERROR for value in known)
    return (
        f"Mean absolute error of the guest's own estimator at most {LEAST_ERROR} in {good} of {len(known)} cases; "
        f"the worst {max(known):.4f}."
    )


def draw(sweeps: Measured, folder: Path, name: str) -> str:
    """Draw the figure as SVG and PNG and return the file name of the first; empty without matplotlib."""
    try:
        from sizes.figure import predictions_figure

        from qmpalloc.experiment.report.figures import style
    except ModuleNotFoundError:
        return ""
    if not sweeps:
        return ""
    with style.style():
        return style.save(
            predictions_figure(sweeps), folder, name, "Curves predicted at one size, and what was measured"
        )[0].name


def report(directory: Path, output: Path | None) -> None:
    """Write tables, figure and measured curves of all results there are."""
    sweeps = load(directory)
    curves = {result.case.name: [measured_curve(result)] for result, _ in sweeps}
    write_json(directory / "curves.json", {"format": FORMAT, "version": 1, "curves": curves})
    place = output or directory / "report.md"
    place.parent.mkdir(parents=True, exist_ok=True)
    before = place.read_text() if place.exists() else "# Curves of real guests\n"
    figure = draw(sweeps, place.parent, place.stem)
    write_whole(place, document(sweeps, directory, before.partition("\n## Result")[0], figure).encode())
    say(f"report: {place}; measured curves: {directory / 'curves.json'}")


def main() -> int:
    """Do what the command line says and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIR", type=Path, help="where everything is kept")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="only this; several are allowed")
    parser.add_argument("--bookworm", action="store_true", help="also Debian 12")
    parser.add_argument("--fresh", action="store_true", help="also with a cache of its own at every size")
    parser.add_argument("--smoke", action="store_true", help="one short case, about 3 minutes without KVM")
    parser.add_argument("--report", action="store_true", help="boot nothing: make the report from what there is")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--output", type=Path, help="of the report, after the text that is there; default: in DIR")
    options = parser.parse_args()
    cases = [smoke_case()] if options.smoke else all_cases()
    names = [each.name for each in cases]
    if options.list:
        say("\n".join(names))
        return 0
    unknown = [name for name in options.case if name not in names]
    if unknown:
        parser.error(f"no case is called {', '.join(unknown)}; known are {', '.join(names)}")
    chosen = [each for each in cases if each.name in options.case]
    if not options.case:
        wanted = options.bookworm, options.fresh
        chosen = [each for each in cases if (each.suite == "trixie" or wanted[0]) and (not each.fresh or wanted[1])]
    failed = [] if options.report else run_all(chosen, options.directory)
    report(options.directory, options.output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
