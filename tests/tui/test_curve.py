"""The panel of the selected guest's miss-ratio curve."""

import msgspec
import pytest
from drawing import Ascii, draw, reduce
from msgspec import structs
from rich.cells import cell_len
from synthetic import run

from qmpalloc import events
from qmpalloc.model import Band, Curve, GuestDecision
from qmpalloc.tui import Ui
from qmpalloc.tui.curve import panel, ratio_at
from qmpalloc.tui.facts import GuestFacts
from qmpalloc.tui.ui import press

SIZES = [(80, 24), (160, 50)]


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "160x50"])
@pytest.mark.parametrize("seconds", [6, 40], ids=["moving", "later"])
def test_the_curve_of_the_selected_guest(size, seconds, same_as_snapshot):
    frame = draw(reduce(run(2, seconds, curves=("", ""))), *size)
    assert "curve of web" in frame
    assert "▲" in frame
    assert "large curve" in frame
    same_as_snapshot(f"curve-{seconds}s-{size[0]}x{size[1]}", frame)


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "160x50"])
def test_a_large_curve(size, same_as_snapshot):
    frame = draw(reduce(run(12, 6, curves=("",) * 12)), *size, ui=Ui(selected="build", large_curve=True))
    assert "curve of build" in frame
    same_as_snapshot(f"curve-large-{size[0]}x{size[1]}", frame)


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "160x50"])
def test_a_weak_curve_says_why(size, same_as_snapshot):
    frame = draw(reduce(run(2, 12, curves=("the load has changed", ""))), *size)
    assert "weak: the load has changed" in frame
    same_as_snapshot(f"curve-weak-{size[0]}x{size[1]}", frame)


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "160x50"])
@pytest.mark.parametrize("kind", ["none", "idle"])
def test_without_a_curve_the_bounds_are_drawn(kind, size, same_as_snapshot):
    frame = draw(reduce(run(2, 40, curves=(kind, ""))), *size)
    assert "no curve: accesses are not sampled" in frame
    # Between nothing and all that it reads; one that reads nothing loses nothing.
    assert ("░│" in frame) is (kind == "none")
    same_as_snapshot(f"curve-{kind}-{size[0]}x{size[1]}", frame)


BOUNDS = Band(
    sizes_bytes=(0, 100, 101, 200), least=(0.5, 0.5, 0.0, 0.0), most=(1.0, 0.5, 0.5, 0.5), accesses_per_s=800.0,
    measured=0.5, source="loses 400 hits/s at most",
)  # fmt: skip
AROUND = structs.replace(BOUNDS, sizes_bytes=(0, 200), least=(0.75, 0.0), most=(1.0, 0.25), source="by its curve")
LINE = Curve(sizes_bytes=(0, 200), miss_ratio=(0.9, 0.1))


def believed(band, **known):
    decision = GuestDecision(name="web", target_bytes=100, reason="", band=band)
    return GuestFacts("web", 0, 200, 150, actual_bytes=100, target_bytes=100, decision=decision, **known)


def chart(guest):
    return [line.plain.rstrip() for line in panel(guest, 7 + 20, 10)[1:-2]]


def test_bounds_are_wide():
    assert chart(believed(BOUNDS)) == [
        "  800 ░░        │",
        "      ░░░░░     │",
        "      ░░░░░░░░░ │",
        "      ██████████●░░░░░░░░░",
        "      ██████████│░░░░░░░░░",
        "    0 ██████████▁▁▁▁▁▁▁▁▁▁",
        "      0B        ▲100B 200B",
    ]


def test_around_a_curve_the_band_is_narrow():
    assert chart(believed(AROUND, curve=LINE)) == [
        "  800 ▂░░       │",
        "      ▓▓▆▄▃▁░   │",
        "      █████▓▇▅▃▁│",
        "      █████████▓●▅▃▁░░",
        "      ██████████████▇▅▄▂░░",
        "    0 ██████████████████▓▆",
        "      0B        ▲100B 200B",
    ]


def test_next_to_nothing_does_not_look_like_much():
    assert chart(believed(structs.replace(BOUNDS, accesses_per_s=0.5))) == [
        "   10           │",
        *["                │"] * 4,
        "    0 ▁▁▁▁▁▁▁▁▁▁●▁▁▁▁▁▁▁▁▁",
        "      0B        ▲100B 200B",
    ]


def test_the_point_is_where_it_was_measured_though_the_target_is_another():
    guest = believed(AROUND, curve=LINE, change_bytes=50)
    assert [line.index("●") for line in chart(guest) if "●" in line] == [6 + 5]


def test_the_panel_says_what_the_belief_rests_on():
    for band, curve, words in (
        (BOUNDS, None, "belief: loses 400 hits/s at most  no curve: why"),
        (AROUND, LINE, "belief: by its curve  good"),
        (structs.replace(AROUND, source="\x1b[2J"), LINE, "belief: ?[2J  good"),
    ):
        lines = [line.plain for line in panel(believed(band, curve=curve, no_curve="why"), 100, 10)]
        assert words in lines[-2]


def test_a_record_without_bands_is_drawn_as_before():
    lines = [events.encode(event) for event in run(2, 40, curves=("", ""))]
    old = []
    for line in lines:
        plain = msgspec.json.decode(line)
        for verdict in plain.get("decision", {}).get("guests", ()):
            assert verdict.pop("band") is not None
        old.append(events.decoder.decode(msgspec.json.encode(plain)))
    frame = draw(reduce(old), 160, 50)
    assert "misses by accesses at each size" in frame
    assert "49.8%" in frame
    assert "░most" not in frame
    assert "░most" in draw(reduce(events.decoder.decode(line) for line in lines), 160, 50)


def test_pages_of_the_load_before_show_only_when_there_are_some():
    curve = Curve(sizes_bytes=(100, 200), miss_ratio=(1.0, 0.5), cached_bytes=100, measured=0.7, stale=0.34)
    for stale, shown in ((0.34, True), (0.0, False)):
        guest = GuestFacts("web", 100, 200, 150, curve=structs.replace(curve, stale=stale))
        lines = [line.plain for line in panel(guest, 100, 12)]
        assert any("stale 34" in line for line in lines) is shown


def test_no_curve_says_why_where_curves_decide_and_only_there():
    assert "no curve: accesses are not sampled" in draw(reduce(run(2, 12, curves=("none", ""))), 160, 50)
    assert "no curve" not in draw(reduce(run(2, 12)), 160, 50)


def test_what_the_decision_means_in_misses():
    frame = draw(reduce(run(2, 6, curves=("", ""))), 160, 50)
    line = next(line for line in frame.splitlines() if "/s → " in line)
    assert "misses" in line
    assert "hits +" in line or "hits -" in line


def test_every_line_is_as_wide_as_the_screen_at_any_size():
    dashboard = reduce(run(3, 8, curves=("", "", "none")))
    for width in (20, 40, 60, 80, 120, 160, 200):
        for height in (6, 12, 20, 24, 50, 60):
            for ui in (Ui(), Ui(selected="db", large_curve=True), Ui(selected="mail")):
                lines = draw(dashboard, width, height, ui=ui).splitlines()
                assert [cell_len(line) for line in lines] == [width] * len(lines)
                assert len(lines) <= height


def test_the_panel_is_ascii_on_a_terminal_that_is():
    assert draw(reduce(run(2, 6, curves=("", ""))), file=Ascii()).isascii()


def test_c_makes_the_curve_large_and_small():
    ui = Ui()
    press("c", ui, None, guests=2)
    assert ui.large_curve
    press("c", ui, None, guests=2)
    assert not ui.large_curve


def test_between_two_points_the_curve_is_a_line():
    curve = Curve(sizes_bytes=(100, 200, 400), miss_ratio=(1.0, 0.5, 0.1))
    ratios = [ratio_at(curve.sizes_bytes, curve.miss_ratio, size) for size in (0, 100, 150, 300, 400, 900)]
    assert ratios == pytest.approx([1.0, 1.0, 0.75, 0.3, 0.1, 0.1])
