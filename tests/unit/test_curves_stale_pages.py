"""Pages of a load that is over: seen when they are in the way, not seen where they are not, gone after a squeeze."""

import numpy as np
import pytest

from qmpalloc.curves.stale_pages import StalePageDetector
from qmpalloc.experiment.spec.access import Normal
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.units import MIB

NORMAL = Normal(deviation=0.3)


def changed_guest(lru):
    """A guest whose first file fitted and was read often, and that now reads one that does not fit."""
    guest = ReplayGuest(
        "g", NORMAL, file_bytes=256 * MIB, accesses_per_s=20_000, size_bytes=456 * MIB, cap_bytes=800 * MIB, lru=lru
    )
    run(guest, 22)
    guest.load(NORMAL, 512 * MIB)
    run(guest, 18)
    return guest


def run(guest, seconds):
    for _ in range(seconds):
        guest.advance(1.0)


def found(guest):
    return guest.snapshot().curve


def test_pages_that_the_multi_generational_lru_keeps_are_seen_and_a_squeeze_rids_it_of_them():
    guest = changed_guest("lru_gen")
    assert guest.tracker.load == 2
    before = guest.misses / (guest.hits + guest.misses)
    stale = found(guest).stale
    assert 0.3 < stale < 0.5
    curve = found(guest)
    # It has read all of what fits long ago, and yet misses as with a cache of less than half.
    assert curve.unused_bytes > curve.cached_bytes / 2 > curve.unread_bytes
    guest.resize(342 * MIB)
    run(guest, 1)
    guest.resize(456 * MIB)
    run(guest, 16)
    after = guest.misses / (guest.hits + guest.misses)
    assert after < before - 0.3
    assert found(guest).stale == 0
    assert not found(guest).weak  # the simulated caches have let go as well


@pytest.mark.parametrize("lru", ["lru", "two_list"])
def test_where_old_pages_go_by_themselves_nothing_is_seen(lru):
    guest = changed_guest(lru)
    assert guest.tracker.load == 2
    assert found(guest).stale == 0


def test_a_load_that_did_not_change_has_nothing_stale():
    guest = ReplayGuest("g", NORMAL, file_bytes=384 * MIB, accesses_per_s=20_000, size_bytes=384 * MIB)
    run(guest, 40)
    assert (found(guest).stale, found(guest).unread_bytes) == (0, 0)


def test_first_reads_are_no_misses_that_could_be_saved():
    """Half of the accesses are first reads; of the others, the guest misses half and an empty cache none."""
    detector = StalePageDetector("lru", np.arange(0), 10_000, scale=64)
    pages = np.arange(1_000)
    detector.observe(np.concatenate([pages, pages]))
    detector.measure(128_000, 96_000, 10_000)
    assert detector.stale == pytest.approx(0.5)
    assert detector.pages_read == 1_000


def test_few_accesses_or_a_small_difference_prove_nothing():
    few = StalePageDetector("lru", np.arange(0), 10_000, scale=64)
    few.observe(np.zeros(400, dtype=np.int64))
    few.measure(25_600, 25_600, 10_000)
    assert few.stale == 0
    alike = StalePageDetector("lru", np.arange(0), 10_000, scale=64)
    alike.observe(np.zeros(4_000, dtype=np.int64))
    alike.measure(256_000, 10_000, 10_000)
    assert alike.stale == 0


def test_pages_that_were_not_read_since_the_change_may_get_new_numbers_too():
    detector = StalePageDetector("lru_gen", np.arange(5), 10_000, scale=64)
    detector.renumber(np.arange(10))
    detector.observe(np.arange(10))
    assert detector.pages_read == 10


def test_pages_get_new_numbers():
    detector = StalePageDetector("lru", np.arange(10), 10_000, scale=64)
    new = np.full(10, -1)
    new[5:] = np.arange(5)
    detector.renumber(new)
    assert detector.pages_read == 5
    detector.observe(np.arange(5))
    assert detector.pages_read == 5
