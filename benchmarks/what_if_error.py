"""How far off `qmpalloc what-if` is: where two policies were run on the same loads, each is foretold from the other.

    python benchmarks/what_if_error.py                       # the recorded runs of tests/golden
    python benchmarks/what_if_error.py runs/EXPERIMENT ...   # the arms of experiments, within each repeat

"foretold" is the miss ratio of a policy in the model, by the record of another arm (or of its own); "counted" is what
its own run missed. Oracles are left out: in a record they know their curves.
"""

from __future__ import annotations

import gzip
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from qmpalloc.events import Decided, Header
from qmpalloc.model import Snapshot
from qmpalloc.policy import load
from qmpalloc.record import read_record
from qmpalloc.sim.what_if import recorded, what_if

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
GOLDEN_RUNS = {"demo": {"curve": "demo"}, "mmap": {"static": "mmap-static", "curve": "mmap-curve"},
               "program-grows": {"curve": "program-grows"}}  # fmt: skip


class Run(Struct):
    """A recorded run."""

    policy: str
    settings: dict[str, object]
    snapshots: list[Snapshot]


def golden_runs() -> Iterator[tuple[str, dict[str, Run]]]:
    """Yield the recorded runs of the tests, by what was run."""
    decoder = msgspec.json.Decoder(Snapshot)
    for name, arms in GOLDEN_RUNS.items():
        texts = {arm: gzip.decompress((GOLDEN / f"{file}.jsonl.gz").read_bytes()) for arm, file in arms.items()}
        yield name, {arm: Run(arm, {}, list(decoder.decode_lines(text))) for arm, text in texts.items()}


def experiment_runs(directory: Path) -> Iterator[tuple[str, dict[str, Run]]]:
    """Yield the runs of an experiment, repeat by repeat."""
    by_repeat: dict[str, dict[str, Run]] = {}
    for file in sorted(directory.glob("runs/repeat*/record.jsonl")):
        repeat, _, arm = file.parent.name.partition("-")
        events = read_record(file)
        header = next(events)
        assert isinstance(header, Header)
        if header.policy != "oracle":
            snapshots = [event.snapshot for event in events if isinstance(event, Decided)]
            by_repeat.setdefault(repeat, {})[arm] = Run(header.policy, header.config["policy_settings"], snapshots)
    for repeat, runs in by_repeat.items():
        yield f"{directory.name} {repeat}", runs


def main(directories: list[Path]) -> None:
    """Print a row for each record and policy."""
    found = itertools.chain.from_iterable(map(experiment_runs, directories)) if directories else golden_runs()
    print("| runs | record of | policy of | foretold | counted | difference |\n|---|---|---|---|---|---|")
    for name, runs in found:
        for (source, base), (arm, run) in itertools.product(runs.items(), runs.items()):
            foretold = what_if(base.snapshots, load(run.policy, run.settings)).miss_ratio
            counted = recorded(run.snapshots).miss_ratio
            print(f"| {name} | {source} | {arm} | {foretold:.3f} | {counted:.3f} | {foretold - counted:+.3f} |")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
