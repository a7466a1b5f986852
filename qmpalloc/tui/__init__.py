"""The live dashboard: pure views of a reduced event stream, and one paint task.

`Dashboard` reduces events, `run_tui` shows it on a terminal, `PlainLog` writes the same facts as lines, `closing_table`
sums them up at the end.
"""

from qmpalloc.tui.closing import closing_table
from qmpalloc.tui.dashboard import Dashboard
from qmpalloc.tui.live import run_tui
from qmpalloc.tui.plain import PlainLog, plain_line
from qmpalloc.tui.terminal import is_interactive
from qmpalloc.tui.ui import Controls, OnlyQuit, Ui
from qmpalloc.tui.view import View

__all__ = [
    "Controls",
    "Dashboard",
    "OnlyQuit",
    "PlainLog",
    "Ui",
    "View",
    "closing_table",
    "is_interactive",
    "plain_line",
    "run_tui",
]
