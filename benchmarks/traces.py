"""Curves of real traces: sampled as a collector would, estimated as the host does, against exact LRU.

    python benchmarks/traces.py [--format auto] [--limit 10000000] [--seeds 4] [--csv OUT.csv] [FILE ...]

A trace is what a guest reads whose page replacement is LRU. Each seed watches other pages. From the middle of the trace
on, twelve times, the curve is compared with the exact one at twelve sizes, over the same accesses with the same falling
weights. "in band": how often the exact miss ratio was within 1.645 standard deviations (90 %) by `Curve.deviation`.

Formats, with .gz or without: libCacheSim's csv (`--column`: which one is the object) and oracleGeneral, ARC and SPC
(block ranges), LIRS (a number a line). Traces are not shipped: download them, or use one that a package brings.
Without any, loads that are made up are read. `--check` compares the exact curve with libCacheSim's LRU (`pip install
libcachesim`).
"""

from __future__ import annotations

import csv
import gzip
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import click
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from qmpalloc.curves.reuse import ReuseDistances
from qmpalloc.experiment.spec.access import Sequential
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.units import MIB, PAGE_BYTES

BAND = 1.645
SIZES, TIMES = 12, 12
OWN = 8 * MIB
RECORD = struct.Struct("<IQIq")  # oracleGeneral: time, object, size, next access
SPC_BLOCK_BYTES = 512
BLOCK, DENSE = 64, 8  # a trace whose blocks hold fewer of their pages than 1 in 8 has objects, not places


class Found(Struct, frozen=True, kw_only=True):
    """What was found for a trace; errors are in miss ratio."""

    trace: str
    accesses: int
    pages: int
    curves: int
    good: int
    error: float
    worst: float
    deviation: float
    in_band: float

    def row(self) -> list[str]:
        """Return it as cells."""
        figures = [f"{value:.4f}" for value in (self.error, self.worst, self.deviation)]
        whole = [f"{value:,}" for value in (self.accesses, self.pages)]
        return [self.trace, *whole, f"{self.good}/{self.curves}", *figures, f"{self.in_band:.0%}"]


HEAD = ["trace", "accesses", "pages", "good curves", "mean error", "worst error", "deviation", "in band"]


def wrong(file: Path, where: str, what: str, hint: str) -> click.ClickException:
    """Return the error that names file and place."""
    return click.ClickException(f"{file}: {where}: {what}; {hint}")


# --- formats: each yields numbers of pages or objects ---


def oracle_general(file: Path, stream: IO[bytes], column: int) -> Iterator[int]:
    """Yield the objects of records of 24 bytes."""
    del column
    at = 0
    while data := stream.read(RECORD.size * 4_096):
        if len(data) % RECORD.size:
            end = at + len(data)
            raise wrong(
                file, f"byte {end}", "ends within a record of 24 bytes", "it is truncated, or of another format"
            )
        at += len(data)
        yield from (found for _, found, _, _ in RECORD.iter_unpack(data))


def text(parse: Callable[[list[str], int], range], separator: str | None) -> Callable[..., Iterator[int]]:
    """Return a format of lines, by what a line's fields mean."""

    def read(file: Path, stream: IO[bytes], column: int) -> Iterator[int]:
        for number, line in enumerate(stream, 1):
            words = line.decode("utf-8", "replace").strip()
            if not words or words.startswith(("#", "*")):  # LIRS ends a part with a star
                continue
            try:
                yield from parse([word.strip() for word in words.split(separator)], column)
            except (ValueError, IndexError):
                if number > 1:  # the first may be the names of the columns
                    hint = "another --format or --column, or a line that was cut off"
                    raise wrong(file, f"line {number}", f"is {words[:60]!r}", hint) from None

    return read


def _csv(fields: list[str], column: int) -> range:
    word = fields[column - 1]
    if not any(letter.isdigit() for letter in word):
        raise ValueError(word)  # the name of the column, or nothing
    first = int(word) if word.isdigit() else zlib.crc32(word.encode())
    return range(first, first + 1)


def _lirs(fields: list[str], column: int) -> range:
    del column
    (word,) = fields
    return range(int(word), int(word) + 1)


def _arc(fields: list[str], column: int) -> range:
    del column
    first, count, *_ = map(int, fields)
    return range(first, first + max(1, count))


def _spc(fields: list[str], column: int) -> range:
    del column
    unit, block, size = map(int, fields[:3])
    first = (unit << 40) + block * SPC_BLOCK_BYTES // PAGE_BYTES
    return range(first, (unit << 40) + (block * SPC_BLOCK_BYTES + max(1, size) - 1) // PAGE_BYTES + 1)


FORMATS: dict[str, Callable[..., Iterator[int]]] = {
    "csv": text(_csv, ","), "oracle": oracle_general, "arc": text(_arc, None), "spc": text(_spc, ","),
    "lirs": text(_lirs, None),
}  # fmt: skip
ENDINGS = {
    ".csv": "csv", ".oraclegeneral": "oracle", ".bin": "oracle", ".lis": "arc", ".arc": "arc", ".spc": "spc",
    ".trc": "lirs", ".lirs": "lirs",
}  # fmt: skip


def accesses(file: Path, kind: str, column: int, limit: int) -> tuple[NDArray[np.int64], bool]:
    """Return the first `limit` accesses of a trace, and whether it has more.

    Raises:
        click.ClickException: It cannot be read, or is of another format.
    """
    ending = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    kind = ENDINGS.get(ending.lower(), "") if kind == "auto" else kind
    if not kind:
        raise wrong(file, "name", f"does not tell the format by {ending!r}", f"say --format {'|'.join(FORMATS)}")
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            numbers = FORMATS[kind](file, stream, column)
            found = np.fromiter((number & (1 << 62) - 1 for number in islice(numbers, limit)), dtype=np.int64)
            more = next(numbers, None) is not None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise wrong(file, "gzip", str(error), "it is truncated: fetch it again") from None
    except OSError as error:
        raise wrong(file, "file", error.strerror or str(error), "is it there, and readable?") from None
    if not len(found):
        raise wrong(file, "file", "has no accesses", "another --format?")
    return found, more


def traces(files: Sequence[Path], kind: str, column: int, limit: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield name and accesses of each trace."""
    for file in files:
        numbers, more = accesses(file, kind, column, limit)
        if more:
            click.echo(f"{file}: only its first {limit:,} accesses are used (--limit)", err=True)
        yield file.name, numbers


def placed(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return page numbers without large gaps: blocks of 64 keep together, objects are in the order of their coming."""
    found, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    blocks, block = np.unique(found // BLOCK, return_inverse=True)
    if len(found) * DENSE >= len(blocks) * BLOCK:
        return np.asarray((block * BLOCK + found % BLOCK)[inverse])
    order = np.empty(len(found), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(found))
    return np.asarray(order[inverse])


MADE_PAGES, MADE_ACCESSES = 60_000, 1_500_000


def made() -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield loads that are made up, by name."""
    random, pages, count = np.random.default_rng(1), MADE_PAGES, MADE_ACCESSES
    clock = np.arange(count)

    def zipf(number: int, exponent: float, draws: int) -> NDArray[np.int64]:
        below = np.cumsum(np.arange(1, number + 1) ** -exponent)
        ranks = np.minimum(np.searchsorted(below / below[-1], random.random(draws)), number - 1)
        return np.asarray(random.permutation(number)[ranks])

    normal = random.normal(0.5, 0.15, 2 * count)
    yield "uniform", random.integers(0, pages, count)
    yield "normal", (normal[(normal >= 0) & (normal < 1)][:count] * pages).astype(np.int64)
    yield "Zipf .99", zipf(pages, 0.99, count)
    yield "clusters of 256", zipf(pages // 256, 1.0, count) * 256 + random.integers(0, 256, count)
    starts = zipf(pages // 512, 0.8, count // 512 + 1) * 512
    yield "runs of 512", (starts[:, None] + np.arange(512)).ravel()[:count]
    yield (
        "70 % Zipf, 30 % scan",
        np.where(random.random(count) < 0.7, zipf(pages // 2, 0.99, count), pages + clock % pages),
    )
    for phase in (100_000, 400_000):
        yield f"phases of {phase:,}", zipf(pages // 2, 0.7, count) + clock // phase % 2 * (pages // 4)
    yield "to and fro", np.abs(pages - clock % (2 * pages))


# --- curves ---


def study(name: str, pages: NDArray[np.int64], seeds: int) -> Found:
    """Return how right the curves of a trace are."""
    unique, dense = np.unique(pages, return_inverse=True)
    distances = ReuseDistances(len(unique)).distances(dense.astype(np.int64))
    sizes = np.unique(np.linspace(len(unique) ** 0.5 / 4, len(unique) ** 0.5, SIZES + 1)[:-1].round() ** 2)
    step = max(1, len(pages) // (4 * TIMES))
    errors, bands, deviations, told, good = [], [], [], 0, 0
    for seed in range(1, seeds + 1):
        largest, cached = (OWN + int(part * len(unique)) * PAGE_BYTES for part in (1.0, 0.5))
        guest = ReplayGuest(
            name, Sequential(), file_bytes=(int(pages.max()) + 1) * PAGE_BYTES, accesses_per_s=step, size_bytes=cached,
            lru="lru", own_bytes=OWN, floor_bytes=OWN + int(sizes[0]) * PAGE_BYTES, cap_bytes=largest, scale=1,
            seed=seed, aged=False,
        )  # fmt: skip
        guest.references = iter(pages.tolist())
        for done in range(step, len(pages) + 1, step):
            guest.advance(1.0)
            curve = guest.snapshot().curve
            if done < len(pages) // 2 or done // step % 2 or curve is None:
                continue
            told += 1
            good += not curve.weak
            if curve.weak:
                continue
            weights = 0.5 ** ((done - np.arange(done)) / guest.tracker.half_life)
            missed = np.where(distances[:done] < 0, len(unique), distances[:done])
            share = np.bincount(missed, weights, minlength=len(unique) + 1) / weights.sum()
            exact = 1.0 - np.concatenate([[0.0], np.cumsum(share)])[sizes.astype(int)]
            found = np.interp(OWN + sizes * PAGE_BYTES, curve.sizes_bytes, curve.miss_ratio)
            errors.append(np.abs(found - exact))
            deviations.append(np.interp(OWN + sizes * PAGE_BYTES, curve.sizes_bytes, curve.deviation))
            bands.append(errors[-1] <= BAND * deviations[-1])
    off = np.array(errors) if errors else np.full((1, 1), np.nan)
    return Found(
        trace=name, accesses=len(pages), pages=len(unique), curves=told, good=good, error=float(off.mean()),
        worst=float(off.max()), deviation=float(np.mean(deviations or [np.nan])),
        in_band=float(np.mean(bands or [np.nan])),
    )  # fmt: skip


def check(name: str, pages: NDArray[np.int64]) -> str:
    """Return how far the exact curve is from libCacheSim's LRU."""
    try:
        import libcachesim  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise click.ClickException("--check needs libCacheSim: pip install libcachesim") from None
    unique, dense = np.unique(pages, return_inverse=True)
    distances = ReuseDistances(len(unique)).distances(dense.astype(np.int64))
    apart = 0.0
    for size in (len(unique) // 8, len(unique) // 2):
        cache: Any = libcachesim.LRU(cache_size=size)
        request: Any = libcachesim.Request()
        request.obj_size, hits = 1, 0
        for page in dense.tolist():
            request.obj_id = page
            hits += cache.get(request)
        ours = float(((distances >= 0) & (distances < size)).mean())
        apart = max(apart, abs(ours - hits / len(pages)))
    return f"{name}: exact LRU and libCacheSim differ by {apart:.1e} at most"


@click.command(help=__doc__)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["auto", *FORMATS]), default="auto", show_default=True)
@click.option("--column", default=2, show_default=True, help="of a csv: which one is the object, from 1")
@click.option("--limit", type=click.IntRange(1), default=10_000_000, show_default=True, help="accesses read of each")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="times a short trace is read")
@click.option("--seeds", type=click.IntRange(1), default=4, show_default=True)
@click.option("--check", "checked", is_flag=True, help="compare exact LRU with libCacheSim's")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path))
def main(
    files: tuple[Path, ...], kind: str, column: int, limit: int, repeat: int, seeds: int, checked: bool,
    csv_file: Path | None,
) -> None:  # fmt: skip
    """Measure each trace and print it as soon as it is done."""
    rows = []
    click.echo(f"| {' | '.join(HEAD)} |\n" + "|---" * len(HEAD) + "|")
    for name, numbers in traces(files, kind, column, limit) if files else made():
        pages = placed(np.tile(numbers, repeat))
        rows.append(study(name, pages, seeds).row())
        click.echo(f"| {' | '.join(rows[-1])} |")
        if checked:
            click.echo(check(name, pages), err=True)
    if csv_file is not None:
        with csv_file.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([HEAD, *rows])


if __name__ == "__main__":
    main()
