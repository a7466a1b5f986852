import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpalloc.units import GIB, MIB, Grid, align_down, format_count, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1GiB", GIB),
        ("100MB", 100_000_000),
        ("100 MiB", 100 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        ("4096B", 4096),
        ("2G", 2 * GIB),
        ("1.5 T", 1536 * GIB),
    ],
)
def test_sizes_are_read_with_their_unit(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["1024", "1g", "1GB2", "GiB", "-1GiB", "1e3MiB", "1GiB extra", "", "0x10MiB", "\u0661GiB"]
)
def test_sizes_without_a_known_unit_are_refused(text):
    with pytest.raises(ValueError, match=r"unit|quantity"):
        parse_size(text)


@pytest.mark.parametrize(("text", "seconds"), [("2s", 2.0), ("500ms", 0.5), ("1.5min", 90.0)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@given(st.integers(0, 2**50), st.sampled_from([4096, MIB]))
def test_align_down_is_the_largest_multiple_below(size_bytes, unit):
    aligned = align_down(size_bytes, unit)
    assert aligned % unit == 0
    assert 0 <= size_bytes - aligned < unit


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(1536 * MIB, "1.5G"), (0, "0B"), (620 * MIB, "620M"), (2 * GIB, "2G"), (1000, "1000B")]
)
def test_format_size(size_bytes, text):
    assert format_size(size_bytes) == text


@given(st.integers(0, 2**49))
def test_a_size_that_is_printed_is_accepted(size_bytes):
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.005)


@pytest.mark.parametrize(
    ("number", "text"), [(33_600, "33.6k"), (0, "0"), (999, "999"), (1_500_000, "1.5M"), (0.25, "0.25"), (-3, "-3")]
)
def test_format_count(number, text):
    assert format_count(number) == text


def test_a_grid_is_whole_steps_from_its_start():
    grid = Grid(200 * MIB, 128 * MIB)
    sizes = [150 * MIB, 200 * MIB, 327 * MIB, 328 * MIB]
    assert [grid.fit(size) // MIB for size in sizes] == [200, 200, 200, 328]
    assert [grid.fit_up(size) // MIB for size in sizes] == [200, 200, 328, 328]
    assert grid.down(150 * MIB) == 72 * MIB  # below the start: nothing that the guest could have
    assert (Grid().fit(4097), Grid().fit_up(4097)) == (4096, 8192)
