"""Drawing a dashboard into a string, on a console of which nothing depends on where the tests run."""

import io

from rich.console import Console

from qmpalloc.tui import Dashboard, Ui, View


class Ascii(io.StringIO):
    encoding = "ascii"


class Utf8(io.StringIO):
    encoding = "utf-8"


def reduce(events):
    dashboard = Dashboard()
    for event in events:
        dashboard.apply(event)
    return dashboard


def draw(dashboard, width=80, height=24, *, ui=None, now_t=None, color=None, environ=None, file=None):
    """Return the frame. `now_t` is a second after the last event unless given."""
    file = file or Utf8()
    console = Console(
        file=file, width=width, height=height, force_terminal=True, color_system=color, legacy_windows=False,
        _environ=environ or {},
    )  # fmt: skip
    now_t = dashboard.t + 1.0 if now_t is None else now_t
    console.print(View(dashboard, ui or Ui(), lambda: now_t), end="")
    return file.getvalue()
