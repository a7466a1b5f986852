"""The command line.

::

    python3 generator.pyz read-through FILE      read a file once, in order, in large requests
    python3 generator.pyz service FILE           measure what a cached and an uncached read take, print JSON
    python3 generator.pyz prepare STEP PLAN.json run a step that the plan's programs need: setup, ready or warm_up
    python3 generator.pyz once PLAN.json N S     run the program of phase N for S seconds at most, print JSON
    python3 generator.pyz run PLAN.json          wait for the go file, then do what the plan says
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .files import drop_caches, read_through
from .program import Program
from .progress import GaveUpError, Progress
from .reads import Phase
from .service import measure_service

GO_POLL_S = 0.02
OOM_SCORE_ADJ = 500
"""Above all else in the guest: if the kernel has to kill, then the load, which the agent, still alive, reports."""


FAILURES = (GaveUpError, OSError, MemoryError, ValueError)


def _on_term(number: int, _frame: FrameType | None) -> NoReturn:
    raise GaveUpError(f"stopped by signal {number}")


def _plan_of_step(file: str) -> dict[str, Any]:
    """Return a plan, of which a step is done now, after noting who does it: the host may have to end it."""
    plan: dict[str, Any] = json.loads(Path(file).read_text())
    Path(plan["step_pid"]).write_text(str(os.getpid()))
    return plan


def prepare(plan: dict[str, Any], step: str) -> None:
    """Run a step of all programs of a plan; the warm-up only of one that is the first phase.

    Raises:
        GaveUpError: One failed.
    """
    for number, described in enumerate(plan["phases"]):
        if "command" in described and (step != "warm_up" or number == 0):
            Program(described).prepare(step)


def run(plan: dict[str, Any]) -> int:
    """Run the load of a plan and return the exit code."""
    progress = Progress(plan["progress"])
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
        phases = [Program(each) if "command" in each else Phase(each) for each in plan["phases"]]
        gc.freeze()
        gc.disable()  # nothing here makes cycles
        progress.write()
        while not Path(plan["go"]).exists():
            time.sleep(GO_POLL_S)
        progress.start_timer()
        for phase in phases:
            phase.run(progress)
            progress.write()
    except FAILURES as error:
        progress.stop_timer()
        reason = str(error) or type(error).__name__
        progress.write(error=reason)
        sys.stderr.write(f"{reason}\n")
        return 1
    progress.stop_timer()
    progress.write(finished=True)
    return 0


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("read-through").add_argument("file")
    commands.add_parser("service").add_argument("file")
    preparing = commands.add_parser("prepare")
    preparing.add_argument("step", choices=["setup", "ready", "warm_up"])
    preparing.add_argument("plan")
    once = commands.add_parser("once")
    once.add_argument("plan")
    once.add_argument("number", type=int)
    once.add_argument("seconds", type=float)
    first = once.add_mutually_exclusive_group()
    first.add_argument("--warm-up", action="store_true")
    first.add_argument("--cold", action="store_true")
    commands.add_parser("run").add_argument("plan")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _on_term)
    if arguments.command == "run":
        return run(json.loads(Path(arguments.plan).read_text()))
    try:
        if arguments.command == "service":
            sys.stdout.write(json.dumps(measure_service(arguments.file)))
        elif arguments.command == "prepare":
            prepare(_plan_of_step(arguments.plan), arguments.step)
        elif arguments.command == "once":
            program = Program(_plan_of_step(arguments.plan)["phases"][arguments.number])
            if arguments.warm_up:
                program.prepare("warm_up")
            if arguments.cold:
                drop_caches()
            sys.stdout.write(json.dumps(program.once(arguments.seconds)))
        else:
            read_through(arguments.file)
    except FAILURES as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
