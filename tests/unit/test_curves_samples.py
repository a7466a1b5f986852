"""The samples file: format, and every way in which it can be wrong."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from qmpalloc.curves.samples import EVENTS_MAX, READ, Batch, SampleIntake, pack, unpack
from qmpalloc.errors import SampleError, SampleFault


def event(key, kind=READ, fresh=0):
    return key << 4 | fresh << 3 | kind


def batch(first=0, keys=(), accesses=0, *, lost=0, shift=6, boot=b"b" * 16, start=b"s" * 8, kind=READ):
    events = np.array([event(key, kind) for key in keys], dtype=np.uint64)
    return Batch(boot_id=boot, start_id=start, first=first, accesses=accesses, lost=lost, shift=shift, events=events)


def same(one, other):
    return (
        structs.astuple(structs.replace(one, events=None)) == structs.astuple(structs.replace(other, events=None))
        and (one.events == other.events).all()
    )


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**60 - 1), max_size=20), st.integers(0, 2**40), st.integers(6, 16))
def test_a_batch_survives_its_bytes(keys, number, shift):
    one = batch(number, keys, number, shift=shift)
    assert same(unpack(pack(one)), one)


def test_reads_and_faults_are_accesses():
    one = structs.replace(batch(), events=np.array([event(1), event(3, 1, 1)], dtype=np.uint64))
    assert one.accessed().tolist() == [1, 3]


GOOD = pack(batch(5, [1, 2, 3], 100))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", SampleFault.TORN),
        (GOOD[:63], SampleFault.TORN),
        (GOOD[:-1], SampleFault.TORN),
        (GOOD + b"x", SampleFault.TORN),
        (b"X" + GOOD[1:], SampleFault.VERSION),
        (GOOD[:56] + b"\x05" + GOOD[57:], SampleFault.MALFORMED),
        (GOOD[:56] + b"\x11" + GOOD[57:], SampleFault.MALFORMED),
        (GOOD[:39] + b"\xff" + GOOD[40:], SampleFault.MALFORMED),
        (GOOD[:64] + b"\x07" + GOOD[65:], SampleFault.MALFORMED),
        (GOOD + bytes(8 * EVENTS_MAX), SampleFault.HUGE),
    ],
)
def test_bad_bytes_are_refused(data, fault):
    with pytest.raises(SampleError) as caught:
        unpack(data)
    assert caught.value.fault is fault


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_an_error(data):
    for candidate in (data, GOOD[:64] + data, b"QMPSAMP1" + data):
        with contextlib.suppress(SampleError):
            unpack(candidate)


def fed(*batches):
    intake = SampleIntake()
    windows = [intake.accept(one) for one in batches]
    return intake, windows


def test_batches_in_order_give_windows():
    _, windows = fed(batch(0, [1], 100), batch(1, [2, 3], 250), batch(3, [4], 300))
    assert windows[0] is None
    assert [(window.keys.tolist(), window.accesses, window.lost) for window in windows[1:]] == [
        ([2, 3], 150, 0),
        ([4], 50, 0),
    ]
    assert windows[1].expected == 150 / 64


def test_a_gap_in_the_numbers_is_a_loss_and_lowers_what_is_expected():
    _, windows = fed(batch(0, [1], 0), batch(4, [2], 640))
    assert windows[1].lost == 3
    assert windows[1].expected == 640 / 64 / 4


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        (batch(10, [1, 2], 500), SampleFault.REPEATED),
        (batch(9, [1], 600), SampleFault.BACKWARDS),
        (batch(11, [2], 499), SampleFault.BACKWARDS),
        (batch(10, [1], 600), SampleFault.BACKWARDS),
        (batch(11, [1, 3], 600), SampleFault.ABSURD),  # event 11 was a 2
        (batch(12, [1], 499), SampleFault.BACKWARDS),
        (batch(12, [1, 2, 3], 501), SampleFault.ABSURD),
        (batch(12, [1], 600, shift=7), SampleFault.ABSURD),  # an odd key at the rate of even ones
        (batch(11, [2, 4], 600, shift=7), SampleFault.ABSURD),  # event 11 had another rate
    ],
)
def test_repeated_reordered_and_forged_batches_are_refused(second, fault):
    intake, _ = fed(batch(10, [1, 2], 500))
    with pytest.raises(SampleError) as caught:
        intake.accept(second)
    assert caught.value.fault is fault
    assert intake.accept(batch(12, [4], 700)).keys.tolist() == [4]


def test_a_machine_that_was_set_back_to_a_snapshot_begins_anew_with_its_second_batch():
    """QEMU tells of no reset then, and the numbers would be too small for as long as the snapshot was old."""
    intake, _ = fed(batch(5_000, [1, 2], 90_000))
    for older in (batch(10, [1, 2], 500), batch(10, [1, 2], 500)):  # the same one twice does not go on
        with pytest.raises(SampleError) as caught:
            intake.accept(older)
        assert caught.value.fault is SampleFault.BACKWARDS
    window = intake.accept(batch(12, [3], 700))
    assert (window.restarted, window.accesses, window.keys.tolist(), window.lost) == (True, 0, [], 0)
    window = intake.accept(batch(13, [4], 800))
    assert (window.restarted, window.accesses, window.keys.tolist(), window.lost) == (False, 100, [4], 0)
    # One that only came late changes nothing.
    intake, _ = fed(batch(10, [1, 2], 500))
    for late, next_one in ((batch(8, [1], 400), batch(12, [3], 600)), (batch(9, [1], 450), batch(13, [4], 700))):
        with pytest.raises(SampleError):
            intake.accept(late)
        assert not intake.accept(next_one).restarted


def test_a_guest_that_reads_nothing_for_a_while_goes_on():
    intake = SampleIntake()
    intake.accept(batch(0, [], 10))
    with pytest.raises(SampleError, match="not written"):
        intake.accept(batch(0, [], 10))
    assert intake.accept(batch(0, [], 12)).accesses == 2
    assert intake.accept(batch(0, [1, 2], 20)).keys.tolist() == [1, 2]
    assert intake.accept(batch(2, [], 25)).lost == 0
    assert intake.accept(batch(2, [3], 30)).lost == 0


def test_events_that_a_batch_repeats_are_used_once_and_a_late_reader_misses_nothing():
    sliding = [batch(0, [1, 2], 100), batch(0, [1, 2, 3], 200), batch(2, [3, 4], 300), batch(3, [4, 5, 6], 400)]
    _, windows = fed(*sliding)
    assert [window.keys.tolist() for window in windows[1:]] == [[3], [4], [5, 6]]
    assert [window.accesses for window in windows[1:]] == [100, 100, 100]
    _, windows = fed(sliding[0], sliding[2], batch(3, [4], 350), sliding[3])
    assert [window.keys.tolist() for window in windows[1:]] == [[3, 4], [], [5, 6]]
    assert sum(window.lost for window in windows[1:]) == 0
