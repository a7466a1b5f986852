"""Policies against guests that replay references: few pages, so that it takes no time, and everything is sampled."""

import numpy as np
import pytest

from qmpalloc.experiment.spec.access import HotCold, Loop, Normal, Sequential, Uniform, Zipf
from qmpalloc.policy import load
from qmpalloc.sim import ReplayGuest, ReplayHost
from qmpalloc.sim.mapped_guest import MappedGuest
from qmpalloc.sim.mixes import MIXES
from qmpalloc.units import GIB, MIB

SCALE = 64


def guest(name, access, *, file_mib=1024, size_mib=600, rate=16_000.0, **more):
    return ReplayGuest(
        name,
        access,
        file_bytes=file_mib * MIB,
        accesses_per_s=rate,
        size_bytes=size_mib * MIB,
        cap_bytes=1400 * MIB,
        scale=SCALE,
        **more,
    )


def run(host, policy, steps):
    for _ in range(steps):
        host.step(policy)
    return host


def test_the_same_seed_gives_the_same_counts_and_another_one_others():
    counts = []
    for seed in (1, 1, 2):
        one = guest("a", Zipf(exponent=0.9), seed=seed)
        one.advance(30.0)
        counts.append((one.hits, one.misses))
    assert counts[0] == counts[1] != counts[2]


@pytest.mark.parametrize("lru", ["two_list", "lru_gen"])
def test_its_curve_says_what_it_misses_at_another_size(lru):
    one = guest("a", Uniform(), lru=lru)
    for _ in range(24):
        one.advance(5.0)
    curve = one.snapshot().curve
    assert curve.weak == ()
    predicted = np.interp(800 * MIB, curve.sizes_bytes, curve.miss_ratio)
    one.resize(800 * MIB)
    for _ in range(24):
        one.advance(5.0)
    assert one.misses / (one.hits + one.misses) == pytest.approx(predicted, abs=0.05)


def test_its_curve_is_known_beyond_four_gigabytes():
    one = ReplayGuest(
        "a", Uniform(), file_bytes=7 * GIB, accesses_per_s=60_000, size_bytes=5 * GIB, cap_bytes=8 * GIB, scale=SCALE
    )
    for _ in range(24):
        one.advance(5.0)
    curve = one.snapshot().curve
    assert curve.weak == ()
    assert np.interp([5 * GIB, 6 * GIB], curve.sizes_bytes, curve.miss_ratio) == pytest.approx([0.31, 0.17], abs=0.05)


def test_a_load_that_waits_goes_faster_when_it_misses_less_and_that_is_learnt():
    one = guest("a", Uniform(), miss_s=400e-6, rate=40_000.0)
    rates = []
    for size in (400, 600, 800, 1000):
        one.resize(size * MIB)
        for _ in range(10):
            one.advance(5.0)
        rates.append((one.hits + one.misses) / one.interval_s)
    assert rates == sorted(rates)
    assert one.service.waits == 1.0
    assert one.service.miss_s == pytest.approx(400e-6, rel=0.2)


def test_a_load_at_a_rate_that_its_disk_cannot_serve_falls_behind_and_catches_up():
    one = guest("a", Uniform(), rate=100_000.0, due_per_s=4_000.0, miss_s=1 / 1_500, size_mib=600)
    rates = []
    for size in (600, 1300):
        one.resize(size * MIB)
        for _ in range(60):
            one.advance(5.0)
            rates.append((one.hits + one.misses) / one.interval_s)
    behind, caught_up = rates[59], rates[-1]
    assert behind < 4_000 == pytest.approx(caught_up, rel=0.1)
    assert max(rates) > 2 * caught_up
    assert sum(rates) * 5.0 == pytest.approx(4_000 * 600, rel=0.02)  # nothing was left out
    assert one.refaults < one.misses + 1


def test_a_guest_that_keeps_up_is_not_robbed_for_one_that_is_behind():
    """Their rate is more than the disk of the larger file serves. X1 on real guests showed the fault."""
    loads = {"rate": 70_000.0, "due_per_s": 4_000.0, "miss_s": 1 / 1_430, "own_bytes": 150 * MIB}
    small = guest("small", Normal(deviation=0.3), file_mib=512, size_mib=768, **loads)
    large = guest("large", Normal(deviation=0.3), file_mib=1024, size_mib=768, **loads)
    host = ReplayHost([small, large], budget_bytes=1536 * MIB, interval_s=1.0)
    policy, missed = load("curve", {}), []
    for second in range(450):
        host.step(policy if second % 15 == 14 else None)
        missed.append(small.misses / (small.hits + small.misses))
    # It fits in 662 MiB. While the other catches up, and is faster for it, that one may have a little more.
    assert 640 <= small.size_bytes // MIB <= 690
    assert max(np.array(missed[105:]).reshape(-1, 15).mean(axis=1)) < 0.2


def test_a_policy_sees_what_its_kernel_and_its_host_tell_of_its_memory():
    one = guest("a", Uniform(), file_mib=256, size_mib=600, observed=False)
    one.read_through()
    one.advance(5.0)
    found = one.snapshot()
    assert found.memory.file_bytes == 256 * MIB
    assert found.memory.anon == one.own_bytes == 160 * MIB
    assert found.memory.free == found.actual_bytes - 416 * MIB
    assert found.memory.available == found.actual_bytes - 160 * MIB
    assert found.resident_bytes == 416 * MIB
    one.resize(300 * MIB)
    assert one.snapshot().resident_bytes == 300 * MIB


@pytest.mark.parametrize("due", [None, 0.0])
def test_a_load_of_rate_0_is_idle_and_not_unknown(due):
    one = guest("a", Uniform(), rate=16_000.0 if due is not None else 0.0, due_per_s=due)
    one.advance(5.0)
    found = one.snapshot()
    assert found.decidable
    assert (found.hits, found.misses, found.interval_s) == (0, 0, 5.0)
    assert found.accesses_per_s == found.page_ins_per_s == 0.0
    assert found.memory.free == 440 * MIB


def test_a_load_that_rests_has_idle_memory_and_wakes():
    one = guest("a", Uniform(), file_mib=256)
    for _ in range(24):
        one.advance(5.0)
    one.accesses_per_s = 0.0
    for _ in range(16):
        one.advance(5.0)
    resting = one.snapshot()
    assert resting.accesses_per_s == 0.0
    assert resting.idle.bytes_for(64.0) == pytest.approx(256 * MIB, rel=0.02)
    one.accesses_per_s = 16_000.0
    one.advance(5.0)
    assert one.snapshot().accesses_per_s == pytest.approx(16_000.0, rel=0.01)


def test_curves_share_room_for_two_scans_among_three_where_all_averages_are_equal():
    guests = [guest(name, Sequential(), file_mib=512, size_mib=566) for name in "abc"]
    host = run(ReplayHost(guests, budget_bytes=1700 * MIB), load("curve", {}), 30)
    assert host.last_hits / host.last_accesses == pytest.approx(2 / 3, abs=0.01)
    assert sum(one.size_bytes for one in guests) <= 1700 * MIB
    moves = host.moves
    assert run(host, load("curve", {}), 10).moves == moves


@pytest.mark.parametrize("mix", [MIXES[index] for index in (4, 5, 8)], ids=lambda mix: mix.name)
def test_curves_are_never_clearly_worse_than_a_static_split_and_come_to_rest(mix):
    hits = []
    for policy in ("static", "curve"):
        guests = [
            ReplayGuest(
                f"g{index}",
                part.access,
                file_bytes=part.file_bytes,
                accesses_per_s=part.accesses_per_s,
                size_bytes=mix.budget_bytes // len(mix.loads),
                cap_bytes=mix.budget_bytes,
                scale=SCALE,
                observed=policy == "curve",
            )
            for index, part in enumerate(mix.loads)
        ]
        host = run(ReplayHost(guests, budget_bytes=mix.budget_bytes), load(policy, {}), 36)
        moves, counted, accesses = host.moves, 0.0, 0.0
        for _ in range(8):
            host.step(load(policy, {}))
            counted += host.last_hits
            accesses += host.last_accesses
        hits.append(counted / accesses)
        assert host.moves - moves <= 1
    assert hits[1] >= hits[0] - 0.01


def test_a_guest_whose_load_changes_is_held_until_its_new_curve_is_known():
    guests = [guest("a", Zipf(exponent=0.9), size_mib=700), guest("b", Loop(share=0.3), size_mib=700)]
    host = run(ReplayHost(guests, budget_bytes=1400 * MIB), load("curve", {}), 30)
    guests[0].load(Uniform(), GIB)
    reasons = set()
    for _ in range(12):
        host.step(load("curve", {}))
        reasons.add(host.decision.guests[0].reason.split(":")[0])
    assert guests[0].tracker.load >= 2
    assert "weak curve" in reasons


@pytest.mark.parametrize("salt", range(1, 5))
@pytest.mark.parametrize("every", [2, 4, 8, 64])
def test_what_repeats_at_a_fixed_distance_is_sampled_like_anything_else(every, salt):
    """Thinning by the place of a block alone saw such data whole or not at all."""
    made = ReplayGuest("a", Uniform(), file_bytes=GIB, accesses_per_s=1, size_bytes=GIB, scale=1, seed=salt)
    blocks = np.arange(every - 1, 4096 * every, every)
    keys = made.sampled((blocks[:, None] * 64 + np.arange(64)).ravel())
    assert len(keys) == len(blocks)
    for level in range(1, 6):
        kept = np.count_nonzero(keys % 2**level == 0)
        expected = len(blocks) / 2**level
        assert abs(kept - expected) < 5 * expected**0.5, level


def mapped_beside_a_reader(*, distances):
    """Return the page-ins of the last half of five minutes of policy curve, and what the guest that maps came to."""
    maps = MappedGuest(
        "maps", Uniform(), file_bytes=640 * MIB, accesses_per_s=4_000, size_bytes=600 * MIB, floor_bytes=224 * MIB,
        cap_bytes=1200 * MIB, ghosts=distances,
    )  # fmt: skip
    reads = ReplayGuest(
        "reads", HotCold(hot=0.1, hot_reads=0.9), file_bytes=GIB, accesses_per_s=8_000, size_bytes=600 * MIB,
        floor_bytes=224 * MIB, cap_bytes=1200 * MIB,
    )  # fmt: skip
    host, policy, counted = ReplayHost((maps, reads), budget_bytes=1200 * MIB), load("curve", {}), 0.0
    for _ in range(60):
        host.step(policy)
        counted += (maps.misses + reads.misses) * (host.time_s > 150)
    return counted, maps.size_bytes // MIB


def test_a_guest_that_maps_what_nearly_fits_gets_what_a_reader_hardly_misses():
    without, _ = mapped_beside_a_reader(distances=False)
    known, size = mapped_beside_a_reader(distances=True)
    assert size > 750
    assert known < 0.7 * without
