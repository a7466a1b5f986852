"""The table that ends a demo: what each guest did under equal shares, and under the policy."""

from drawing import Utf8
from rich.console import Console
from synthetic import WALL, Run

from qmpalloc.events import ControlChanged, Sampled
from qmpalloc.tui.comparison import Part, comparison_table
from qmpalloc.tui.text import number


def shown(events):
    table = comparison_table(events)
    if table is None:
        return None
    console = Console(file=Utf8(), width=80, force_terminal=False, _environ={})
    console.print(table)
    return console.file.getvalue()


def changed(t, control):
    return ControlChanged(t=t, wall=WALL, control=control, detail="")


def demo(*changes, seconds=100):
    """A run whose control changes at some times beside what a run has by itself."""
    events = [event for event in Run(2).events(seconds) if not isinstance(event, ControlChanged)]
    return sorted([*events, *changes], key=lambda event: event.t)


def test_the_last_seconds_of_both_parts_are_compared():
    events = demo(
        changed(3.0, "running"), changed(3.1, "paused"), changed(50.05, "running"), changed(99.5, "returning")
    )
    text = shown(events)
    assert text.splitlines()[0].startswith("equal shares → paper, the last 30 s of each")
    samples = [event for event in events if isinstance(event, Sampled) and event.guest == "db"]
    for start, end in ((20.05, 50.05), (69.5, 99.5)):
        inside = [event.delta for event in samples if start < event.t <= end]
        hits, misses = (sum(getattr(delta, name) for delta in inside) / len(inside) for name in ("hits", "misses"))
        (line,) = [line for line in text.splitlines() if line.split()[:1] == ["db"]]
        assert len(inside) == 30
        assert {number(hits), number(hits + misses)} <= set(line.split())
    assert [line.split()[0] for line in text.splitlines() if line.strip()][-1] == "all"


def test_read_ahead_where_nothing_hits_is_no_loss_of_hits():
    assert Part(hits=-54, misses=28_000, seconds=30.0).by_second()[0] == 0


def test_a_short_part_is_compared_with_as_much_of_the_other():
    events = demo(changed(3.0, "running"), changed(3.1, "paused"), changed(15.1, "running"))
    assert "the last 12 s of each" in shown(events)


def test_a_run_without_both_parts_has_no_such_table():
    assert shown(demo(changed(3.0, "running"), changed(50.0, "returning"))) is None
    assert shown(demo(changed(3.0, "running"), changed(3.1, "paused"))) is None
    assert shown(demo(changed(3.0, "running"), changed(3.1, "paused"), changed(50.0, "returning"))) is None
    assert shown([]) is None
