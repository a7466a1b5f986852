"""What a sweep says: each policy beside the first, over the seeds; the hosts; what failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from qmpalloc.experiment.analysis.statistics import ratio
from qmpalloc.experiment.report import write_report as write_experiment_report
from qmpalloc.experiment.report.markdown import bullets, document, heading, paragraph, table
from qmpalloc.files import write_whole
from qmpalloc.sweep.model import ModelRow
from qmpalloc.sweep.spec import GuestsTask, PolicyChoice
from qmpalloc.sweep.store import SweepDirectory


def write_report(directory: SweepDirectory) -> list[Path]:
    """Write all results of a sweep, complete or not, over what an earlier call wrote; return the files to read.

    Raises:
        HostError: A file cannot be written.
    """
    written = directory.write_results()
    blocks: list[str] = [heading(f"Sweep {directory.sweep.name}", level=1), *_blocks(directory)]
    for real in directory.sweep.experiments:
        found = directory.experiment(real)
        if found is not None:
            paths = write_experiment_report(found)
            written.append(next(path for path in paths if path.name == "report.md"))
            blocks.append(paragraph(f"{real.name}, on real guests: {written[-1].relative_to(directory.path)}"))
    write_whole(directory.path / "report.md", document(blocks).encode())
    return [directory.path / "report.md", *written]


def _blocks(directory: SweepDirectory) -> Iterator[str]:
    done, tasks = directory.done, directory.sweep.tasks
    failed = [each for each in done.values() if each.failed]
    counted = sum(key in done and not done[key].failed for key in tasks)
    yield paragraph(f"{counted} of {len(tasks)} runs count, {len(failed)} failed.", strong=counted < len(tasks))
    rows = [done[key].row for key in tasks if key in done]
    yield from _model_table([row for row in rows if row is not None], directory.sweep.policies)
    yield from _hosts(directory)
    if failed:
        yield heading("Runs that failed")
        yield bullets(f"{each.key}, host {each.host or 'not known'}: {each.failed}" for each in failed)


def _model_table(rows: Sequence[ModelRow], policies: Sequence[PolicyChoice]) -> Iterator[str]:
    """Yield the means over the seeds, of each policy under each load, page replacement and size."""
    if not rows:
        return
    groups: dict[tuple[str, str, float], dict[str, dict[int, ModelRow]]] = {}
    for row in rows:
        by_policy = groups.setdefault((row.load, row.lru, row.size), {})
        by_policy.setdefault(row.policy, {})[row.seed] = row
    first = policies[0].name
    cells = []
    for (load, lru, size), by_policy in groups.items():
        for policy, by_seed in by_policy.items():
            found = by_seed.values()
            base = by_policy.get(first, {})
            pairs = [(row.misses, base[seed].misses) for seed, row in by_seed.items() if seed in base]
            misses = str(ratio(pairs)) if pairs and all(min(pair) > 0 for pair in pairs) else "-"
            hits = sum(row.hit_ratio for row in found) / len(found)
            moves = sum(row.moves for row in found) / len(found)
            cells.append((load, lru, f"{size:g}", policy, f"{hits:.2%}", misses, f"{moves:.1f}", str(len(found))))
    yield heading("In the model")
    yield table(
        f"Means over the seeds; misses beside {first}: geometric mean within each seed",
        ("load", "page replacement", "size", "policy", "hits", f"misses, of {first}", "moves", "seeds"),
        cells,
    )


def _hosts(directory: SweepDirectory) -> Iterator[str]:
    """Yield how the hosts differ: in what they are, in the cost of a run, and in the time of a hit."""
    cells = []
    for name, facts in directory.manifest.hosts.items():
        seconds = [each.seconds for each in directory.done.values() if each.host == name and each.row is not None]
        cost = f"{sum(seconds) / len(seconds):.2f} s" if seconds else "-"
        disks = [
            f"{experiment}: a hit {disk.hit_s * 1e6:.3g} µs, {disk.iops} operations/s"
            for experiment, by_host in directory.manifest.disks.items()
            for host, disk in by_host.items()
            if host == name
        ]
        kind = f"{facts.cpus} processors, Linux {facts.kernel}, Python {facts.python}"
        cells.append((name, kind, str(len(seconds)), cost, "; ".join(disks) or "-"))
    yield heading("Hosts")
    columns = ("host", "what it is", "runs in the model", "processor time of each", "disks of real guests")
    yield table("Where runs were made", columns, cells, numbers=False)
    hosts: dict[str, set[str]] = {}
    for key, task in directory.sweep.tasks.items():
        if isinstance(task, GuestsTask) and key in directory.done:
            hosts.setdefault(f"{task.experiment}, repeat {task.repeat}", set()).add(directory.done[key].host)
    split = tuple(f"{repeat}: {', '.join(sorted(names))}" for repeat, names in hosts.items() if len(names) > 1)
    if split:
        yield paragraph(
            "Arms of one repeat ran on several hosts, as one was lost: compare them with care.", strong=True
        )
        yield bullets(split)
