"""When the host runs out of memory, by its own account, and what every guest then gives."""

import pytest
from msgspec import structs

from qmpalloc.model import GuestSnapshot, GuestState, HostMemory, Limiter, Snapshot
from qmpalloc.rules.hostguard import BLIND_MOST_S, CALM_S, Emergency, HostGuard, relieve
from qmpalloc.rules.limits import apply_limits
from qmpalloc.units import GIB, MIB

UNREAD = HostMemory(unread=("/proc/meminfo: Too many open files",))


def memory(available=8 * GIB, **changes):
    return HostMemory(total_bytes=16 * GIB, available_bytes=available, **changes)


class TestGuard:
    def test_all_is_well(self):
        assert HostGuard().look(memory(), 0.0) is None

    def test_little_left_is_an_emergency_until_twice_that_is_there_for_a_while(self):
        guard = HostGuard()
        found = guard.look(memory(300 * MIB), 0.0)
        assert "the host has 300M left" in found.reason
        assert found.deficit_bytes == 2 * int(16 * GIB * 0.02) - 300 * MIB
        assert guard.look(memory(400 * MIB), 20.0)
        assert guard.look(memory(1 * GIB), 20.0 + CALM_S - 1)
        assert guard.look(memory(1 * GIB), 20.0 + CALM_S) is None

    def test_the_control_group_counts_when_it_is_tighter(self):
        found = HostGuard().look(memory(group_left_bytes=100 * MIB), 0.0)
        assert "control group has 100M left" in found.reason
        assert HostGuard().look(memory(group_left_bytes=9 * GIB), 0.0) is None

    def test_what_must_be_left_goes_by_what_there_is(self):
        large = HostMemory(
            total_bytes=1024 * GIB, available_bytes=500 * GIB, group_left_bytes=GIB, group_limit_bytes=2 * GIB
        )
        assert HostGuard().look(large, 0.0) is None
        found = HostGuard().look(structs.replace(large, group_limit_bytes=100 * GIB), 0.0)
        assert found.reason == "the control group has 1G left, below 2G"
        assert found.deficit_bytes == 3 * GIB

    def test_swapping_is_one_only_when_it_stalls_the_host(self):
        guard = HostGuard()
        guard.look(memory(swapped_in_pages=0, stalled_us=0), 0.0)
        assert guard.look(memory(swapped_in_pages=5000, stalled_us=0), 1.0) is None
        found = guard.look(memory(swapped_in_pages=10_000, stalled_us=500_000), 2.0)
        assert found.reason == "the host reads 5000 pages/s back from swap and stands still 50% of the time"
        assert found.deficit_bytes > 0

    def test_what_cannot_be_read_begins_none(self):
        guard = HostGuard()
        for second in range(100):
            assert guard.look(UNREAD, float(second)) is None

    def test_nor_is_it_an_all_clear_and_it_asks_for_nothing_more(self):
        guard = HostGuard()
        assert guard.look(memory(300 * MIB), 0.0).deficit_bytes > 0
        for second in range(1, int(BLIND_MOST_S)):
            found = guard.look(UNREAD, float(second))
            assert "300M left" in found.reason
            assert found.deficit_bytes == 0

    def test_but_it_lasts_for_a_limited_time(self):
        guard = HostGuard()
        guard.look(memory(300 * MIB), 0.0)
        guard.look(UNREAD, BLIND_MOST_S - 1)
        assert guard.look(UNREAD, BLIND_MOST_S) is None
        assert guard.look(UNREAD, BLIND_MOST_S + 1) is None

    def test_what_is_still_known_counts_in_both_directions(self):
        guard = HostGuard()
        guard.look(memory(), 0.0)
        group = structs.replace(UNREAD, group_left_bytes=100 * MIB)
        assert guard.look(group, 1.0).deficit_bytes > 0
        assert guard.look(structs.replace(group, group_left_bytes=9 * GIB), 2.0).deficit_bytes == 0
        assert guard.look(memory(), 2.0 + CALM_S) is None

    def test_a_file_that_is_never_readable_does_not_prolong_it(self):
        guard = HostGuard()
        part = {"unread": ("/proc/vmstat: Permission denied",)}
        assert guard.look(memory(300 * MIB, **part), 0.0)
        assert guard.look(memory(8 * GIB, **part), CALM_S) is None


def guest(name, target, floor=200, *, state=GuestState.FRESH, actual=None, charge=None, **changes):
    return GuestSnapshot(
        name=name, state=state, target_bytes=target * MIB, actual_bytes=(actual or target) * MIB,
        charge_bytes=(charge or actual or target) * MIB, floor_bytes=floor * MIB, cap_bytes=GIB,
        baseline_bytes=500 * MIB, **changes,
    )  # fmt: skip


def relieved(*guests, deficit=100, dangers=()):
    snapshot = Snapshot(cycle=1, time_s=0.0, budget_bytes=4 * GIB, interval_s=1.0, guests=guests)
    decision = relieve(snapshot, Emergency(reason="why", deficit_bytes=deficit * MIB))
    return apply_limits(snapshot, decision, dict.fromkeys(dangers, "OOM"), emergency=True).guests


class TestRelief:
    def test_who_has_more_above_its_floor_gives_more(self):
        large, small = relieved(guest("large", 800), guest("small", 400))
        assert (800 * MIB - large.target_bytes) / (400 * MIB - small.target_bytes) == pytest.approx(3.0, rel=0.01)
        assert large.limiter is Limiter.HOST
        assert "why" in large.reason

    def test_nobody_goes_below_its_floor_or_loses_more_than_a_step(self):
        large, small = relieved(guest("large", 800), guest("small", 210), deficit=5000)
        assert small.target_bytes == 200 * MIB
        assert large.target_bytes == 600 * MIB

    def test_what_is_on_its_way_is_not_asked_for_twice(self):
        assert relieved(guest("a", 500, actual=600))[0].target_bytes == 500 * MIB

    @pytest.mark.parametrize("state", [GuestState.FRESH, GuestState.LATE, GuestState.LOST, GuestState.WARMING])
    def test_what_a_donor_gives_is_the_hosts_and_nobody_grows_by_it(self, state):
        donor, receiver = relieved(guest("donor", 600, actual=800), guest("a", 700, actual=400, state=state))
        assert (donor.target_bytes, receiver.target_bytes) == (600 * MIB, 400 * MIB)
        assert receiver.limiter is Limiter.HOST

    def test_what_a_receiver_has_not_got_yet_it_cannot_give(self):
        gives, receiver = relieved(guest("a", 600), guest("b", 700, floor=400, actual=400))
        assert (gives.target_bytes, receiver.target_bytes) == (500 * MIB, 400 * MIB)

    def test_a_lost_guest_stays_below_its_baseline(self):
        assert relieved(guest("a", 300, state=GuestState.LOST))[0].target_bytes == 300 * MIB

    def test_danger_and_floors_come_first(self):
        assert relieved(guest("a", 300), dangers=["a"])[0].target_bytes == 500 * MIB
        assert relieved(guest("a", 100))[0].target_bytes == 200 * MIB

    @pytest.mark.parametrize("state", [GuestState.HUNG, GuestState.HELD, GuestState.PAUSED, GuestState.CONNECTING])
    def test_a_guest_that_gives_nothing_spares_the_others_nothing(self, state):
        gives, _ = relieved(guest("a", 700), guest("b", 0, charge=900, actual=900, state=state))
        assert gives.target_bytes == 600 * MIB

    def test_nor_does_a_charge_in_doubt_or_a_frozen_guest(self):
        assert relieved(guest("a", 700, charge=900))[0].target_bytes == 600 * MIB
        assert relieved(guest("a", 700), guest("b", 700, actual=900, frozen="stuck"))[0].target_bytes == 600 * MIB

    def test_a_guest_that_is_not_fresh_or_is_frozen_gives_nothing(self):
        late, frozen = relieved(guest("a", 800, state=GuestState.LATE), guest("b", 800, frozen="stuck"))
        assert late.target_bytes == frozen.target_bytes == 800 * MIB
