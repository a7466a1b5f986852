"""The counters file is hostile input: whatever the bytes, parsing gives a sample or a `SampleError`, nothing else."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpalloc.errors import SampleError, SampleFault
from qmpalloc.sample import (
    FILE_MAX_BYTES,
    Counters,
    PageIns,
    Sample,
    SampleTracker,
    SwapPages,
    difference,
    parse,
)

GOOD = {
    "format": "qmpalloc-counters",
    "version": 1,
    "boot_id": "0f0e0d0c-0b0a-0908-0706-050403020100",
    "start_id": "00112233aabbccdd",
    "sequence": 7,
    "monotonic_ns": 5_000_000_000,
    "interval_ms": 1000,
    "kernel": "6.12.0-cloud-amd64",
    "page_size": 4096,
    "lru": "lru_gen",
    "counters": {"accesses": 1000, "inserts_read": 400, "refaults": 3, "events_lost": 0},
    "memory_bytes": {"total": 1 << 30, "free": 1 << 20, "anon": 1 << 20},
    "swap_pages": {"in": 0, "out": 0},
    "psi_memory": {"some_total_us": 10, "full_total_us": 1, "some_avg10": 0.5, "full_avg10": 0.0},
}


def encoded(**changes):
    return json.dumps(GOOD | changes).encode()


def sample(**changes):
    return parse(encoded(**changes))


def fault_of(data):
    with pytest.raises(SampleError) as caught:
        parse(data)
    assert all(" " <= char <= "~" for char in caught.value.message)
    return caught.value.fault


def test_a_good_file_is_read_and_what_is_absent_stays_unknown():
    parsed = sample()
    assert parsed.counters.accesses == 1000
    assert parsed.counters.evictions is None
    assert parsed.memory_bytes.file_bytes is None
    assert parsed.swap_pages.in_ == 0
    assert parsed.collector.rss_bytes is None


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", SampleFault.TORN),
        (encoded()[:-20], SampleFault.TORN),
        (b"\xff\xfe" + encoded(), SampleFault.TORN),
        (b"[" * 4000, SampleFault.MALFORMED),
        (b" " * (FILE_MAX_BYTES + 1), SampleFault.HUGE),
        (b"[]", SampleFault.MALFORMED),
        (b"{}", SampleFault.MALFORMED),
        (encoded(format="other"), SampleFault.MALFORMED),
        (encoded(version=2), SampleFault.VERSION),
        (encoded(version="1"), SampleFault.MALFORMED),
        (encoded(version=int("9" * 3000)), SampleFault.MALFORMED),
        (encoded(sequence=-1), SampleFault.MALFORMED),
        (encoded(sequence=True), SampleFault.MALFORMED),
        (encoded(sequence=1.5), SampleFault.MALFORMED),
        (encoded(sequence=2**64), SampleFault.MALFORMED),
        (encoded(boot_id="../../etc/passwd"), SampleFault.MALFORMED),
        (encoded(kernel="6.12\x1b[2J"), SampleFault.MALFORMED),
        (encoded(kernel="6.12\n"), SampleFault.MALFORMED),
        (encoded(page_size=1), SampleFault.MALFORMED),
        (encoded(counters={"accesses": "many"}), SampleFault.MALFORMED),
        (encoded(psi_memory={"some_avg10": 1e9}), SampleFault.MALFORMED),
        (encoded().replace(b"0.5", b"NaN"), SampleFault.TORN),
        (encoded(memory_bytes={"total": 10, "anon": 11}), SampleFault.MALFORMED),
        (encoded(error="no kernel headers"), SampleFault.COLLECTOR),
        (encoded(missing_hooks=["filemap\x1b[2J"]), SampleFault.MALFORMED),
        (encoded(missing_hooks=["x"] * 33), SampleFault.MALFORMED),
        (encoded(collector={"intervals_missed": -1}), SampleFault.MALFORMED),
        (encoded(error="\x1b[31m"), SampleFault.MALFORMED),
    ],
)
def test_a_bad_file_is_named_for_what_it_is(data, fault):
    assert fault_of(data) is fault


@given(st.binary(max_size=FILE_MAX_BYTES + 10))
def test_no_bytes_do_worse_than_a_sample_error(data):
    with pytest.raises(SampleError):
        parse(data)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_no_value_of_a_member_does_worse_than_a_sample_error(value):
    for key in GOOD:
        try:
            parse(json.dumps(GOOD | {key: value}).encode())
        except SampleError:
            continue


def advanced(base: Sample, seconds: float = 1.0, **counts):
    counters = msgspec.structs.replace(base.counters, **counts)
    return msgspec.structs.replace(
        base, sequence=base.sequence + 1, monotonic_ns=base.monotonic_ns + int(seconds * 1e9), counters=counters
    )


class TestTracker:
    def setup_method(self):
        self.tracker = SampleTracker()
        self.first = sample()
        assert self.tracker.accept(self.first, 100.0).delta is None

    def fault(self, later, received_s=101.0):
        with pytest.raises(SampleError) as caught:
            self.tracker.accept(later, received_s)
        return caught.value.fault

    def test_difference_of_two_samples(self):
        delta = self.tracker.accept(advanced(self.first, accesses=1500, inserts_read=450), 101.0).delta
        assert delta is not None
        assert (delta.accesses, delta.misses, delta.hits, delta.refaults) == (500, 50, 450, 0)
        assert delta.interval_s == 1.0
        assert delta.evictions is None

    def test_a_repeated_sample_is_not_news_and_ends_nothing(self):
        assert self.fault(self.first) is SampleFault.REPEATED
        assert self.tracker.accept(advanced(self.first), 102.0).delta is not None

    def test_a_counter_that_goes_back_starts_a_new_series(self):
        back = advanced(self.first, accesses=10)
        assert self.fault(back) is SampleFault.BACKWARDS
        assert self.tracker.accept(advanced(back, accesses=20), 102.0).delta.accesses == 10

    @pytest.mark.parametrize("change", [{"sequence": 6}, {"sequence": 8, "monotonic_ns": 4_000_000_000}])
    def test_a_sequence_or_clock_that_goes_back(self, change):
        assert self.fault(msgspec.structs.replace(self.first, **change)) is SampleFault.BACKWARDS

    @pytest.mark.parametrize("change", [{"boot_id": "1" * 8 + GOOD["boot_id"][8:]}, {"start_id": "0" * 16}])
    def test_another_boot_or_collector_gives_no_difference(self, change):
        assert self.fault(msgspec.structs.replace(advanced(self.first), **change)) is SampleFault.RESET

    def test_a_guest_restored_from_a_snapshot_gives_no_difference_across_it(self):
        later = advanced(advanced(self.first, accesses=5000), accesses=9000)
        self.tracker.accept(later, 102.0)
        restored = advanced(self.first, accesses=1200)  # same boot, same collector, from the past
        assert self.fault(restored, 103.0) is SampleFault.BACKWARDS
        assert self.tracker.accept(advanced(restored, accesses=1300), 104.0).delta.accesses == 100

    def test_two_collectors_writing_in_turn_give_no_difference(self):
        other = msgspec.structs.replace(self.first, start_id="f" * 16)
        for second in range(1, 5):
            mine = advanced(self.first, seconds=second, accesses=1000 + 10 * second)
            assert self.fault(msgspec.structs.replace(other, sequence=7 + second), 100.0 + second) is SampleFault.RESET
            assert self.fault(mine, 100.5 + second) is SampleFault.RESET

    def test_missed_intervals_lose_time_and_no_counts(self):
        delta = self.tracker.accept(advanced(self.first, seconds=4.0, accesses=5000), 104.0).delta
        assert (delta.accesses, delta.interval_s) == (4000, 4.0)

    @pytest.mark.parametrize("field", ["faults_major", "refaults_anon", "inserts_fault"])
    def test_a_cause_that_goes_back(self, field):
        before = advanced(self.first, **{field: 50})
        self.tracker.accept(before, 101.0)
        assert self.fault(advanced(before, **{field: 49}), 102.0) is SampleFault.BACKWARDS

    @pytest.mark.parametrize("field", ["in_", "out", "in_zram"])
    def test_swap_that_goes_back(self, field):
        def at(sequence, count):
            pages = SwapPages(**{field: count})
            return msgspec.structs.replace(advanced(self.first, seconds=sequence), sequence=sequence, swap_pages=pages)

        self.tracker.accept(at(8, 50), 110.0)
        assert self.fault(at(9, 49), 111.0) is SampleFault.BACKWARDS
        assert self.tracker.accept(at(10, 60), 112.0).delta is not None

    def test_more_pages_than_a_machine_can_read(self):
        assert self.fault(advanced(self.first, accesses=2**60)) is SampleFault.ABSURD

    def test_more_guest_time_than_host_time(self):
        assert self.fault(advanced(self.first, seconds=3600.0)) is SampleFault.ABSURD

    def test_an_unknown_counter_gives_an_unknown_difference(self):
        later = msgspec.structs.replace(advanced(self.first), counters=Counters(accesses=2000))
        delta = difference(self.first, later)
        assert delta.accesses == 1000
        assert delta.misses is None
        assert delta.hits is None


@pytest.mark.parametrize("size", [16384, 65536])
def test_a_guest_with_larger_pages_is_refused_for_what_it_is(size):
    """All that is counted in pages would be wrong, and its balloon never reaches a target that is no multiple."""
    with pytest.raises(SampleError, match=f"pages of {size // 1024}K: only .* 4K can be counted") as caught:
        parse(encoded(page_size=size))
    assert caught.value.fault is SampleFault.MALFORMED
    assert "kernel" in caught.value.hint


def test_page_ins_are_what_reads_and_faults_and_swap_bring_in():
    swap = {"in": 40, "out": 90, "in_zram": 10, "read_ahead": 12}
    counters = {"accesses": 1000, "inserts_read": 500, "inserts_fault": 30, "faults_major": 4, "refaults_anon": 25}
    first = sample(counters=counters | dict.fromkeys(("inserts_fault", "faults_major", "refaults_anon"), 0))
    later = sample(sequence=8, monotonic_ns=6_000_000_000, counters=counters | {"inserts_read": 700}, swap_pages=swap)
    first = msgspec.structs.replace(first, swap_pages=SwapPages(in_=0, out=0, in_zram=0))
    delta = difference(first, later)
    assert delta.page_ins == PageIns(reads=200, faults=30, swap_ins=40, swap_ins_zram=10)
    assert (delta.page_ins.total, delta.page_ins.beside_reads, delta.page_ins.from_disks) == (270, 70, 260)
    assert (delta.faults_major, delta.refaults_anon, delta.swap_outs) == (4, 25, 90)


def test_page_ins_as_far_as_they_are_known():
    assert (PageIns().total, PageIns().beside_reads, PageIns().from_disks) == (None, 0, None)
    assert (PageIns(reads=-3, faults=5).total, PageIns(faults=5).total) == (5, 5)
    # A collector that does not tell zram apart: nobody knows how much of it a disk must have read.
    assert (PageIns(reads=7, swap_ins=40).total, PageIns(reads=7, swap_ins=40).from_disks) == (47, 7)
    assert PageIns(swap_ins=10, swap_ins_zram=12).from_disks == 0  # the two are not read at the same moment


def test_a_swap_that_is_larger_than_memory_and_full_is_no_mistake():
    memory = {"total": 1 << 30, "anon": 1 << 29, "swap_total": 4 << 30, "swap_free": 0}
    assert sample(memory_bytes=memory).memory_bytes.swap_free == 0


DUTY = {"share": 0.1, "attached_ms": 900, "sampled": 3, "accesses_variance": 100}


def test_estimated_accesses_come_with_their_error():
    earlier = sample(duty=DUTY)
    later = sample(duty=DUTY | {"accesses_variance": 500}, sequence=8, monotonic_ns=6_000_000_000)
    delta = difference(earlier, later)
    assert (delta.accesses_error, delta.sampled) == (20.0, False)
    assert difference(sample(), sample(sequence=8, monotonic_ns=6_000_000_000)).accesses_error is None
    whole = sample(duty=DUTY | {"sampled": 4}, sequence=8, monotonic_ns=6_000_000_000)
    assert (difference(earlier, whole).accesses_error, difference(earlier, whole).sampled) == (0.0, True)
    with pytest.raises(SampleError, match="variance of the accesses went back"):
        difference(earlier, sample(duty=DUTY | {"accesses_variance": 99}, sequence=8, monotonic_ns=6_000_000_000))


@pytest.mark.parametrize("share", [0, 1, 2, -1, "all"])
def test_a_duty_cycle_is_a_share(share):
    assert fault_of(encoded(duty=DUTY | {"share": share})) is SampleFault.MALFORMED
