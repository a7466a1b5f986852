"""What policies decide on snapshots of real runs, kept to explain every difference: UPDATE_GOLDEN=1 writes it anew.

``tests/golden/NAME.jsonl.gz`` holds the snapshots of a run, a line each, without what was carried over. Each policy
decides on all of them in turn, with what it carries itself; the sizes stay those of the run.
"""

import gzip
import json
import os
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from qmpalloc.model import Snapshot
from qmpalloc.policy import load

GOLDEN = Path(__file__).parents[1] / "golden"
RUNS = sorted(path.name.removesuffix(".jsonl.gz") for path in GOLDEN.glob("*.jsonl.gz"))


def decisions(run, policy):
    """Return a line for each snapshot: the time, and of each guest its size, the one decided and the reason."""
    chosen, carry, lines = load(policy, {}), None, []
    with gzip.open(GOLDEN / f"{run}.jsonl.gz", "rt") as file:
        for text in file:
            snapshot = structs.replace(msgspec.json.decode(text, type=Snapshot), carry=carry)
            decision = chosen.decide(snapshot)
            carry = json.loads(json.dumps(decision.carry))
            lines.append(f"{snapshot.time_s:.0f} s")
            for guest, verdict in zip(snapshot.guests, decision.guests, strict=True):
                sizes = f"{guest.target_bytes >> 20} -> {verdict.target_bytes >> 20}"
                lines.append(f"  {guest.name} {sizes} ({verdict.limiter}): {verdict.reason}")
    return "\n".join(lines) + "\n"


def test_there_are_runs():
    assert len(RUNS) >= 3


@pytest.mark.parametrize("policy", ["paper", "hill", "curve"])
@pytest.mark.parametrize("run", RUNS)
def test_what_is_decided_is_as_it_was(run, policy):
    found, path = decisions(run, policy), GOLDEN / f"{run}.{policy}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()
