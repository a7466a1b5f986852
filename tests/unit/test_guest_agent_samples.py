"""Samples in the guest: out of the ring, into the file, at a bounded rate; the host's own code reads them back."""

import ctypes
import mmap
import struct
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_agent import bpf
from guest_agent.counters_file import Series
from guest_agent.reader import SLOTS
from guest_agent.sampler import Sampler
from guest_agent.samples import (
    DOMINANT_PAGES,
    DOMINANT_TIMES,
    EVENTS_MAX,
    KEPT_INTERVALS,
    KEPT_MOST,
    PER_S_MAX,
    SHIFT_MAX,
    SHIFT_MIN,
    Batches,
    Dominant,
    Rate,
    Ring,
    excluded,
)
from qmpalloc.curves import samples as host

BOOT, START = "6d0bd3a8-2a02-4a36-8c3c-0102030405ff", "00112233aabbccdd"
RECORDS = 32


class FakeRing:
    """The kernel's side of a ring of 32 records, its data mapped twice."""

    def __init__(self):
        self.consumer = bytearray(mmap.PAGESIZE)
        self.producer = bytearray(mmap.PAGESIZE + 2 * 16 * RECORDS)
        self.ring = Ring(memoryview(self.consumer), memoryview(self.producer))

    def position(self, memory):
        return struct.unpack_from("=Q", memory)[0]

    def put(self, number, *, busy=False):
        position = self.position(self.producer)
        if position - self.position(self.consumer) >= 16 * RECORDS:
            return False
        self.write(position, number, busy=busy)
        struct.pack_into("=Q", self.producer, 0, position + 16)
        return True

    def write(self, position, number, *, busy):
        at = mmap.PAGESIZE + position % (16 * RECORDS)
        for copy in (at, at + 16 * RECORDS):
            if copy + 16 <= len(self.producer):
                struct.pack_into("=IIQ", self.producer, copy, 8 | busy << 31, 3, number)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12))
def test_what_goes_into_the_ring_comes_out_once_and_in_order(bursts):
    fake, number = FakeRing(), 0
    for burst in bursts:
        put = [value for value in range(number, number + burst) if fake.put(value << 50 | value)]
        number += burst
        assert list(fake.ring.take()) == [value << 50 | value for value in put]
        assert fake.ring.is_empty
        assert not fake.ring.take()


def test_a_record_that_is_being_written_is_waited_for():
    fake = FakeRing()
    fake.put(1)
    fake.put(2, busy=True)
    fake.put(3)
    assert list(fake.ring.take()) == [1]
    assert not fake.ring.is_empty
    assert list(fake.ring.take()) == []
    fake.write(16, 2, busy=False)
    assert list(fake.ring.take()) == [2, 3]


def test_the_rate_falls_at_once_and_rises_when_it_has_been_calm():
    rate = Rate()
    assert not rate.adapt(PER_S_MAX)
    assert rate.adapt(PER_S_MAX * 7)
    assert rate.shift == SHIFT_MIN + 3
    changes = [rate.adapt(PER_S_MAX / 4) for _ in range(100)]
    assert sum(changes) == 3
    assert changes.index(True) > 20
    assert rate.shift == SHIFT_MIN


def test_the_rate_does_not_flutter():
    rate, load = Rate(), PER_S_MAX * 1.5
    changes = sum(rate.adapt(load / 2 ** (rate.shift - SHIFT_MIN)) for _ in range(1000))
    assert changes == 1


def test_the_rate_has_an_end():
    rate = Rate()
    rate.adapt(1e12)
    assert rate.shift == SHIFT_MAX
    assert not rate.adapt(1e12)


class Apart(dict):
    """The kernel's table of pages counted apart."""

    read = dict.__getitem__

    def put(self, key):
        self[key] = 0

    def remove(self, key):
        del self[key]

    def pass_on(self, events):
        """Count what is counted apart; return the other events."""
        for event in events:
            if event in self:
                self[event] += 1
        return array("Q", [event for event in events if event not in self])


def test_a_dominant_page_is_left_out_at_once_and_counted_apart_exactly_until_it_is_one_no_longer():
    apart, others = Apart(), list(range(16, 16 * 200, 16))
    dominant = Dominant(apart)
    for times in (1_000, 500, 40, DOMINANT_TIMES // 2 + 1):
        assert list(dominant.leave_out(apart.pass_on([*others, *[7 << 20] * times]))) == others
    assert apart == {7 << 20: 540 + DOMINANT_TIMES // 2 + 1}
    assert list(dominant.leave_out(apart.pass_on([*others, 7 << 20]))) == others
    assert apart == {}
    assert 7 << 20 in dominant.leave_out(apart.pass_on([*others, 7 << 20]))


def test_the_kernel_is_asked_for_an_event_by_its_number(monkeypatch):
    asked = []

    def answer(command, attr):
        key = ctypes.c_uint64.from_address(attr.key)
        asked.append((command, attr.map_fd, key.value, bool(attr.value), attr.flags))
        if command == bpf._MAP_LOOKUP_ELEM:
            ctypes.c_uint64.from_address(attr.value).value = 42

    monkeypatch.setattr(bpf, "_bpf", answer)
    table = bpf.Table(5)
    table.put(2**63)
    assert table.read(2**63) == 42
    table.remove(2**63)
    # Where the kernel expects no value it refuses one.
    assert asked == [(2, 5, 2**63, True, 0), (1, 5, 2**63, True, 0), (3, 5, 2**63, False, 0)]


def test_where_all_pages_are_as_hot_none_is_dominant():
    apart = Apart()
    assert len(Dominant(apart).leave_out(array("Q", list(range(16)) * 1_000))) == 16_000
    assert apart == {}


def test_no_more_pages_are_counted_apart_than_the_table_holds_and_an_idle_guest_has_none():
    apart = Apart()
    dominant = Dominant(apart)
    hot, others = list(range(100)) * 100, list(range(1_000, 1_200))
    assert list(dominant.leave_out(array("Q", hot + others))) == others
    assert len(apart) == DOMINANT_PAGES
    assert not dominant.leave_out(array("Q"))
    assert apart == {}


def keys(*numbers):
    return array("Q", [number << 4 for number in numbers])


def test_the_host_reads_what_the_collector_writes():
    batches = Batches(BOOT, START)
    batches.add(keys(1, 2), 100, 0, 6)
    batch = host.unpack(batches.add(array("Q", [5 << 4 | host.FAULT]), 130, 0, 6))
    assert batch.boot_id.hex() == BOOT.replace("-", "")
    assert batch.start_id.hex() == START
    assert (batch.first, batch.accesses, batch.lost, batch.shift) == (0, 130, 0, 6)
    assert batch.accessed().tolist() == [1, 2, 5]


@pytest.mark.parametrize(("each", "kept"), [(0, KEPT_MOST), (2, KEPT_MOST), (500, 4), (1_000, KEPT_INTERVALS)])
def test_a_file_holds_the_last_intervals_and_more_of_them_if_they_are_few(each, kept):
    batches = Batches(BOOT, START)
    for number in range(40):
        batch = host.unpack(batches.add(keys(*[number] * each), each * (number + 1), 0, 6))
    assert batch.first == each * (40 - kept)
    assert batch.accessed().tolist() == [number for number in range(40 - kept, 40) for _ in range(each)]


def test_a_file_is_never_larger_than_the_host_takes():
    batches = Batches(BOOT, START)
    many = array("Q", bytes(8 * 30_000))
    for number in range(5):
        batch = host.unpack(batches.add(many, 60_000 * number, 0, 6))
    assert len(batch.events) == 60_000 <= EVENTS_MAX
    assert batch.first == 90_000


def test_what_the_new_rate_leaves_out_is_left_out_and_old_rates_are_not_mixed_in():
    batches = Batches(BOOT, START)
    batches.add(keys(1, 2, 3), 300, 0, 6)
    batch = host.unpack(batches.add(keys(4, 5, 6), 600, 0, 7))
    assert (batch.first, batch.shift) == (3, 7)
    assert batch.accessed().tolist() == [4, 6]
    assert excluded(7) == 1
    assert host.unpack(batches.add(keys(7), 900, 0, 6)).first == 5


def test_lost_events_have_numbers():
    batches = Batches(BOOT, START)
    batches.add(keys(1, 2, 3), 300, 0, 6)
    batch = host.unpack(batches.add(keys(4), 1000, 9, 6))
    assert (batch.first, batch.lost, len(batch.events)) == (12, 9, 1)
    assert host.unpack(batches.add(keys(5), 1100, 9, 6)).first == 12


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from([0, 0, 0, 5]), st.sampled_from([6, 6, 6, 7]), st.booleans()),
        max_size=30,
    )
)
def test_the_host_gets_every_event_once_or_knows_that_it_did_not(intervals):
    """Whatever the host misses, what arrives and what is lost add up to what happened."""
    batches, intake = Batches(BOOT, START), host.SampleIntake()
    intake.accept(host.unpack(batches.add(keys(), 1, 0, 6)))
    number = lost = taken = gaps = counted = 0
    accesses = 1
    for count, more_lost, shift, is_read in [*intervals, (1, 0, 6, True)]:
        lost += more_lost
        events = keys(*(2 * value for value in range(number, number + count)))
        number += count
        accesses += 64 * (count + more_lost) + 1
        data = batches.add(events, accesses, lost, shift)
        if is_read:
            window = intake.accept(host.unpack(data))
            assert (np.diff(window.keys.astype(np.int64)) > 0).all()
            taken, gaps, counted = taken + len(window.keys), gaps + window.lost, counted + window.accesses
    assert taken + gaps == number + lost
    assert counted == accesses - 1


def test_a_file_that_is_seen_twice_is_refused():
    batches, intake = Batches(BOOT, START), host.SampleIntake()
    intake.accept(host.unpack(batches.add(keys(), 0, 0, 6)))
    data = batches.add(keys(2), 64, 0, 6)
    intake.accept(host.unpack(data))
    with pytest.raises(host.SampleError) as caught:
        intake.accept(host.unpack(data))
    assert caught.value.fault is host.SampleFault.REPEATED


class Counters:
    """Counters that rise with each record, and records that come between the ring's reading and theirs."""

    def __init__(self, fake):
        self.fake, self.late = fake, []
        self.values = dict.fromkeys(SLOTS, 0)
        self.now_s = 0.0

    def clock(self):
        self.now_s += 0.01
        return self.now_s

    def access(self, key):
        self.values["accesses_read"] += 1
        if not self.fake.put(key << 4):
            self.values["samples_lost"] += 1

    def read(self):
        if self.late:
            self.access(self.late.pop())
        return list(self.values.values())


@pytest.fixture
def sampler(tmp_path, monkeypatch):
    fake = FakeRing()
    masks = []
    monkeypatch.setattr(bpf, "set_element", lambda fd, value: masks.append((fd, value)))
    series = Series(START, 10)  # 32 events are more than 2,000 a second
    series.boot_id = BOOT
    counters = Counters(fake)
    sampler = Sampler(str(tmp_path), series, SLOTS, fake.ring, 9, Apart(), counters.clock)
    yield sampler, counters, masks, tmp_path / "samples.bin"
    sampler.remove()
    assert not list(tmp_path.iterdir())


def test_events_and_their_accesses_are_in_one_file(sampler):
    sampler, counters, _, file = sampler
    counters.access(1)
    counters.late = [2, 3]
    values = sampler.step(counters)
    batch = host.unpack(file.read_bytes())
    assert batch.accesses == len(batch.events) == 3
    assert values == list(counters.values.values())


def test_a_flood_is_counted_and_lowers_the_rate(sampler):
    sampler, counters, masks, file = sampler
    for key in range(50):
        counters.access(key)
    sampler.step(counters)
    batch = host.unpack(file.read_bytes())
    assert (len(batch.events), batch.lost, batch.accesses, batch.shift) == (32, 18, 50, 6)
    assert masks == [(9, 0b11)]
    sampler.step(counters)
    assert host.unpack(file.read_bytes()).shift == 8


def test_events_of_a_time_in_which_the_collector_did_not_run_lower_no_rate(sampler):
    sampler, counters, masks, file = sampler
    sampler.step(counters)
    for key in range(30):
        counters.access(key)
    counters.now_s += 0.03
    sampler.step(counters)
    assert (len(host.unpack(file.read_bytes()).events), masks) == (30, [])


def test_a_dominant_page_lowers_no_rate_not_even_by_what_is_lost(sampler, monkeypatch):
    sampler, counters, masks, file = sampler
    monkeypatch.setattr("guest_agent.samples.DOMINANT_TIMES", 4)
    for key in (1, 2, 3, *[7] * 397):
        counters.access(key)
    sampler.step(counters)
    batch = host.unpack(file.read_bytes())
    assert (batch.accessed().tolist(), batch.lost, batch.accesses) == ([1, 2, 3], 368, 400)
    assert masks == [(9, 0b11)]  # 3 of 32, and so some 45 of 400, were of others: 4,500 a second


def test_what_happens_in_a_pause_is_no_part_of_the_sample(sampler):
    sampler, counters, _, file = sampler
    counters.access(1)
    sampler.step(counters)
    before = file.read_bytes()
    for key in range(40):  # more than the ring holds
        counters.access(key)
    values = sampler.step(counters, sampling=False)
    assert (sum(values), file.read_bytes()) == (1 + 40 + 8, before)
    for _ in range(2):
        counters.access(2)
        sampler.step(counters)
    batch = host.unpack(file.read_bytes())
    assert (batch.accessed().tolist(), batch.accesses, batch.lost, batch.first) == ([2, 2], 3, 0, 1)
    assert batch.burst == 1
    window = host.SampleIntake()
    assert window.accept(host.unpack(before)) is None
    added = window.accept(batch)
    assert (added.accesses, added.lost, added.paused) == (2, 0, True)


def test_a_full_tmpfs_costs_the_samples_only(sampler, monkeypatch):
    sampler, counters, _, file = sampler

    def replace(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(sampler._file, "replace", replace)
        counters.access(1)
        sampler.step(counters)
    assert not file.exists()
    sampler.step(counters)
    assert len(host.unpack(file.read_bytes()).events) == 1
