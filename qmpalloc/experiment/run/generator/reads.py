"""A phase of reads."""

from __future__ import annotations

import math
import sys
import time
from array import array
from functools import partial
from pathlib import Path
from typing import Any

from .files import PageFile
from .loops import OpenLoop, closed_loop
from .progress import PhaseState, Progress
from .tally import Tally, totals


class Phase:
    """A phase of the plan, with its references in memory."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.name: str = plan["name"]
        self.rate: float = plan["rate"]
        self.duration_s: float = plan["duration"]
        self.file = PageFile(plan["file"], readahead=plan["readahead"])
        self.pages = array("I", Path(plan["trace"]).read_bytes())
        if sys.byteorder == "big":
            self.pages.byteswap()
        Path(plan["trace"]).unlink()  # it was in memory twice

    def run(self, progress: Progress) -> None:
        """Do its reads."""
        until_ns = time.perf_counter_ns() + self.duration_s * 1e9 if self.duration_s else math.inf
        loop = OpenLoop(self.file.read, self.file.now_reader()) if self.rate else None
        tallies = loop.tallies if loop is not None else [Tally()]
        progress.phases.append(state := PhaseState(self.name, partial(totals, tallies)))
        if loop is not None:
            loop.run(self.pages, self.rate, until_ns=until_ns)
        else:
            read = partial(closed_loop, self.file.reader(), self.pages, tallies[0], until_ns=until_ns)
            read()
            while time.perf_counter_ns() < until_ns < math.inf:
                read()
        state.finish()
