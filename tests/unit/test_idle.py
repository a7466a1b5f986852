"""What ages of memory bound: how much is idle, and what it costs at most to take it."""

import numpy as np
import pytest
from msgspec import structs

from qmpalloc.errors import SampleError
from qmpalloc.idle import IDLE_S, IdleMemory, Touches, idle_anonymous_bytes, idle_memory, unused_mapped_bytes
from qmpalloc.sample import Ages, AgesByKind, Memory, Sample, parse
from qmpalloc.units import MIB, PAGE_BYTES

NONE = (0,) * 10
EACH = 128 * PAGE_BYTES


def ages(**kinds):
    every = dict.fromkeys(("file", "mapped", "anon", "shmem"), NONE)
    return Ages(step_ms=1000, pages_each=128, steps=600, idle=AgesByKind(**every | kinds), touched=AgesByKind(**every))


def sample(told, **memory):
    facts = {"total": 1024 * MIB, "active_file": 400 * MIB, "inactive_file": 0, "mapped": 200 * MIB, "shmem": 0}
    return Sample(
        format="qmpalloc-counters", version=1, boot_id="6d0bd3a8-2a02-4a36-8c3c-0102030405ff",
        start_id="0011223344556677", sequence=1, monotonic_ns=1, interval_ms=1000, kernel="6", page_size=4096,
        memory_bytes=Memory(**facts | {"anon": 300 * MIB, "tmpfs": 0} | memory), ages=told,
    )  # fmt: skip


def oldest(frames):
    return (*NONE[:9], frames)


def test_no_ages_no_idle_memory():
    assert idle_memory(None) is None
    assert idle_memory(sample(None)) is None
    assert unused_mapped_bytes(sample(None), Touches()) == 0


def test_ages_are_steps_doubled_and_the_youngest_is_in_use():
    found = idle_memory(sample(ages(mapped=(100, *NONE[1:]))))
    assert found.seconds == (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
    assert found.unread == (0,) * 9
    assert found.hot_pages == 12_800


def test_a_sample_is_believed_less_a_standard_deviation_and_never_beyond_what_the_kernel_counts():
    found = idle_memory(sample(ages(mapped=oldest(100), file=oldest(10_000))))
    assert found.unread == (90 * EACH,) * 9
    assert found.read == (200 * MIB,) * 9
    assert idle_memory(sample(ages(mapped=(2**63 - 1, *NONE[1:])))).hot_pages == 1024 * MIB // PAGE_BYTES


@pytest.mark.parametrize(("lru", "reads_touch"), [("lru_gen", False), ("two_list", True), (None, True)])
def test_reads_leave_no_trace_with_the_multi_generational_lru(lru, reads_touch):
    told = structs.replace(sample(ages(file=oldest(100))), lru=lru)
    assert idle_memory(told).reads_touch is reads_touch


def test_a_single_frame_proves_nothing():
    assert idle_memory(sample(ages(mapped=oldest(1)))).unread == (0,) * 9


@pytest.mark.parametrize(("swap_free", "idle"), [(None, 0), (0, 0), (16 * MIB, 16 * MIB), (1024 * MIB, 90 * EACH)])
def test_anonymous_memory_is_idle_only_as_far_as_swap_has_room(swap_free, idle):
    told = sample(ages(anon=oldest(100)), swap_free=swap_free)
    assert idle_memory(told).unread == (idle,) * 9
    assert idle_anonymous_bytes(told) == idle
    assert unused_mapped_bytes(told, Touches()) == 0


@pytest.mark.parametrize(
    ("zram", "swapped_mib", "share"),
    [(None, 100, 1.0), (0, 0, 0.5), (4096, 1, 0.5), (30 * MIB, 100, 0.7), (110 * MIB, 100, 0.0)],
)
def test_what_zram_takes_is_not_all_free(zram, swapped_mib, share):
    memory = {"swap_total": 512 * MIB, "swap_free": (512 - swapped_mib) * MIB, "zram": zram}
    assert idle_anonymous_bytes(sample(ages(anon=oldest(100)), **memory)) == pytest.approx(90 * EACH * share, abs=1)


def test_what_zram_keeps_cannot_be_given_up():
    parts = {"slab_unreclaimable": 0, "kernel_stack": 0, "page_tables": 0}
    assert sample(None, zram=5 * MIB, **parts).memory_bytes.unreclaimable_bytes == 305 * MIB


@pytest.mark.parametrize(("bin_", "idle"), [(6, 0), (7, 90 * EACH), (9, 90 * EACH)])
def test_idle_is_what_nothing_touched_for_a_minute(bin_, idle):
    frames = tuple(100 if index == bin_ else 0 for index in range(10))
    assert IDLE_S == 64.0
    assert unused_mapped_bytes(sample(ages(mapped=frames)), Touches()) == idle


def test_taking_the_oldest_first_costs_a_page_in_per_page_and_age():
    idle = IdleMemory(seconds=(1.0, 64.0, 256.0), read=(0, 0, 0), unread=(30 * MIB, 20 * MIB, 10 * MIB), hot_pages=128)
    pages = 10 * MIB / PAGE_BYTES
    costs = idle.unread_per_s(np.array([0.0, 5, 10, 20, 30, 30.25, 40]) * MIB)
    all_old = pages * (1 / 256 + 1 / 64 + 1)
    # Beyond what is told of, no more than what was touched in the last second, once a second.
    assert costs == pytest.approx(
        [0, pages / 512, pages / 256, pages * (1 / 256 + 1 / 64), all_old, all_old + 64, all_old + 128]
    )


def test_ages_tell_nothing_of_a_load_that_has_just_begun():
    idle = IdleMemory(seconds=(1.0, 64.0, 256.0), read=(10 * MIB,) * 3, unread=(10 * MIB,) * 3)
    taken, pages = np.array([20.0 * MIB]), 10 * MIB / PAGE_BYTES
    for watched_s, divisor in ((1000.0, 256.0), (10.0, 10.0), (0.0, 1.0)):
        assert idle.read_per_s(taken, watched_s) == pytest.approx(pages / divisor)
        assert idle.unread_per_s(taken, watched_s) == pytest.approx(pages / divisor)


def test_cache_and_mapped_files_of_an_age_go_together():
    idle = IdleMemory(seconds=(1.0, 256.0), read=(30 * MIB, 30 * MIB), unread=(10 * MIB, 10 * MIB))
    taken = np.array([20.0 * MIB])
    assert idle.unread_per_s(taken) == pytest.approx(5 * MIB / PAGE_BYTES / 256)
    assert idle.read_per_s(taken) == pytest.approx(15 * MIB / PAGE_BYTES / 256)


@pytest.mark.parametrize(
    "forged",
    ['"ages":{"step_ms":1}', '"ages":{"step_ms":1000,"pages_each":128,"steps":1,"idle":{},"touched":{}}', '"ages":[]'],
)
def test_a_forged_table_is_refused_with_its_field(forged):
    content = (
        '{"format":"qmpalloc-counters","version":1,"boot_id":"6d0bd3a8-2a02-4a36-8c3c-0102030405ff",'
        '"start_id":"0011223344556677","sequence":1,"monotonic_ns":1,"interval_ms":1000,"kernel":"6","page_size":4096,'
        f"{forged}}}"
    )
    with pytest.raises(SampleError, match=r"\$\.ages"):
        parse(content.encode())


def touched(**kinds):
    every = dict.fromkeys(("file", "mapped", "anon", "shmem"), NONE)
    told = ages(mapped=oldest(300))
    return structs.replace(told, touched=AgesByKind(**every | kinds))


def seen(*told, seconds=1.0):
    touches = Touches()
    for each in told:
        touches.observe(each, seconds)
    return touches


def test_an_age_is_known_once_memory_was_watched_for_twice_as_long():
    assert seen().again_per_s(swap=False) == ()
    assert seen(*[touched()] * 3).again_per_s(swap=False) == pytest.approx(
        (128.0 / 2,), rel=0.01
    )  # a frame in two seconds, at most
    assert len(seen(*[touched()] * 600).again_per_s(swap=False)) == 9


@pytest.mark.parametrize(
    ("seconds", "touched_s", "unused"),
    [
        (600, 0, True),  # a program goes round more than fits: nothing is touched again
        (200, 0, False),  # that has not been seen for long enough
        (600, 100, False),  # all is touched again each 100 seconds, half of it within that many
        (600, 1000, True),
    ],
)
def test_mapped_files_that_are_seldom_touched_again_are_not_in_use(seconds, touched_s, unused):
    frames, at = 1000, 5  # not touched for 16 seconds
    counts = (int(frames / touched_s * second) if touched_s else 0 for second in range(seconds))
    told = [touched(mapped=(*NONE[:at], count, *NONE[at + 1 :])) for count in counts]
    now = sample(ages(mapped=(*NONE[:at], frames, *NONE[at + 1 :])))
    assert unused_mapped_bytes(now, seen(*told)) == (200 * MIB if unused else 0)  # all that the kernel says is mapped


def test_touches_of_memory_of_programs_count_where_there_is_swap():
    told = [touched(mapped=(0, 0, 0, each, *NONE[4:]), anon=(*NONE[:9], each)) for each in range(0, 600, 2)]
    without, swap = seen(*told).again_per_s(swap=False), seen(*told).again_per_s(swap=True)
    assert without[2] == pytest.approx(2 * 128, rel=0.15)
    assert without[3] < 2
    assert swap[2] == pytest.approx(4 * 128, rel=0.15)
    assert swap[7] == pytest.approx(2 * 128, rel=0.15)


def test_what_was_not_touched_again_costs_nothing_to_take_however_often_it_was_read_once():
    """n / T would say 300 frames by 256 seconds."""
    found = idle_memory(sample(ages(mapped=oldest(300))), seen(*[touched()] * 600))
    taken = np.array([0.0, 10.0 * MIB, 100.0 * MIB, 140.0 * MIB])
    by_age = idle_memory(sample(ages(mapped=oldest(300)))).unread_per_s(taken)
    assert by_age[2] == pytest.approx(100 * MIB / PAGE_BYTES / 256)
    assert found.unread_per_s(taken).tolist() == pytest.approx([0.0, found.again_per_s[8], *[found.again_per_s[8]] * 2])
    assert found.again_per_s[8] < 2
    half = structs.replace(found, again_per_s=found.again_per_s[:5])  # of the oldest nothing is known yet
    assert half.unread_per_s(taken).tolist() == pytest.approx(by_age.tolist())


@pytest.mark.parametrize("change", [{"pages_each": 256}, {"step_ms": 500}, None, "backwards"])
def test_another_series_of_touches_begins_anew(change):
    told = [touched(mapped=(5, *NONE[1:]))] * 600
    other = None if change is None else touched() if change == "backwards" else structs.replace(told[0], **change)
    assert seen(*told, other).again_per_s(swap=False) == ()
    touches = seen(*told)
    touches.observe(told[0], None)
    assert touches.again_per_s(swap=False) == ()


def test_what_is_touched_as_seldom_as_the_oldest_age_is_not_forgotten_before_it_is_touched_again():
    """A job that goes through 1,000 frames each five minutes."""
    told = [touched(mapped=(*NONE[:9], 1_000 * ((second + 1) // 300))) for second in range(1_200)]
    just_before = seen(*told[:1_199]).again_per_s(swap=False)[8]
    assert just_before > 0.6 * 1_000 * 128 / 300
