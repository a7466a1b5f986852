"""Ask another policy what it would have done in a recorded run, decision by decision.

    python examples/compare_policies.py runs/demo/record.jsonl

A record holds every snapshot a policy saw, so any policy can be asked afterwards. What it cannot tell is how the guests
would have behaved with other sizes: for that, run it.
"""

from __future__ import annotations

import sys

import qmpalloc
from qmpalloc.events import Decided


def main(record: str) -> None:
    """Print both readings of the paper's gate beside what was decided."""
    others = {
        gate: qmpalloc.load_policy("paper", {"gate": gate, "threshold": 100.0, "step": "32MiB"})
        for gate in ("literal", "dead-band")
    }
    for event in qmpalloc.read_record(record):
        if isinstance(event, Decided):
            answers = "   ".join(f"{gate}: {policy.decide(event.snapshot).summary}" for gate, policy in others.items())
            print(f"{event.t:7.1f}s  decided: {event.decision.summary}   {answers}")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except qmpalloc.QmpallocError as error:
        sys.exit(str(error))
