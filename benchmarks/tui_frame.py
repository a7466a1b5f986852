"""What one frame of the dashboard costs: building and painting, median of 30.

    python benchmarks/tui_frame.py

Painting goes to memory, so the terminal's own speed is not in it.
"""

from __future__ import annotations

import importlib
import io
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console

from qmpalloc.tui import Dashboard, Ui, View

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "tui"))

run = importlib.import_module("synthetic").run  # made-up runs live with the tests
FRAMES = 30


def frame_ms(guests: int, width: int, height: int) -> float:
    """Return the median cost of a frame in milliseconds."""
    dashboard = Dashboard()
    for event in run(guests, 130):
        dashboard.apply(event)
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system="truecolor")
    view = View(dashboard, Ui(), lambda: dashboard.t)
    costs = []
    for _ in range(FRAMES):
        before = time.perf_counter()
        console.print(view)
        costs.append(time.perf_counter() - before)
    return 1000 * statistics.median(costs)


if __name__ == "__main__":
    for width, height in ((80, 24), (160, 50), (200, 60)):
        for guests in (1, 2, 12, 64):
            print(f"{width}x{height} {guests:3} guests: {frame_ms(guests, width, height):6.1f} ms")
