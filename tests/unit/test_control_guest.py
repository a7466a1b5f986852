"""One guest's life without any I/O: sizes in doubt stay charged, time changes the state, danger freezes."""

import msgspec
import pytest
from made_up_control import FACTS, connected, floor_of, make_guest, sample, take

from qmpalloc import load_policy
from qmpalloc.config import Size
from qmpalloc.control.commitments import account_of
from qmpalloc.control.guest import Link
from qmpalloc.control.snapshot import snapshot_of
from qmpalloc.errors import SampleError
from qmpalloc.model import GuestState, Limiter, Snapshot
from qmpalloc.rules.danger import FREEZE_S, find_danger, least_available_bytes
from qmpalloc.sample import Counters, Memory, SwapPages
from qmpalloc.units import GIB, MIB


class TestSize:
    def test_a_guest_met_for_the_first_time_is_adopted_at_the_size_it_has(self):
        guest = connected()
        assert (guest.size.target_bytes, guest.size.actual_bytes, guest.size.desired_bytes) == (GIB, GIB, GIB)
        assert guest.size.settled

    def test_the_old_size_stays_charged_until_the_new_one_is_confirmed(self):
        guest = connected()
        guest.size.ordered(512 * MIB)
        guest.size.actual_bytes = 512 * MIB
        assert guest.charge_bytes == GIB
        assert not guest.size.settled
        guest.size.confirmed()
        assert guest.charge_bytes == 512 * MIB

    def test_a_grant_is_charged_before_it_is_sent(self):
        guest = connected()
        guest.size.ordered(2 * GIB)
        assert guest.charge_bytes == 2 * GIB

    def test_a_refused_command_leaves_the_target_as_it_was(self):
        guest = connected()
        guest.size.ordered(512 * MIB)
        guest.size.refused(GIB)
        assert guest.size.settled

    def test_a_refusal_does_not_end_the_doubt_about_the_command_before(self):
        guest = connected()
        guest.size.ordered(512 * MIB)  # never answered
        guest.measured(700 * MIB, 1.0)
        before = guest.size.target_bytes, guest.size.doubt_bytes
        guest.size.ordered(600 * MIB)
        guest.size.refused(*before)
        assert (guest.size.target_bytes, guest.charge_bytes) == (512 * MIB, GIB)

    def test_growing_by_itself_is_charged_at_once(self):
        guest = connected()
        guest.size.actual_bytes = GIB + 100 * MIB
        assert guest.charge_bytes == GIB + 100 * MIB

    def test_a_guest_that_ended_is_free_and_one_that_hangs_is_not(self):
        guest = connected()
        guest.note_link(Link.HUNG, "no answer")
        assert guest.charge_bytes == GIB
        assert not account_of(guest, 0.0).commandable
        guest.gone("refused")
        assert guest.charge_bytes == 0

    @pytest.mark.parametrize("link", [Link.HUNG, Link.HELD])
    def test_a_qemu_that_runs_but_was_never_measured_is_charged_with_its_most(self, link):
        guest = make_guest()
        assert guest.charge_bytes == 0
        guest.note_link(link, "busy")
        assert guest.charge_bytes == guest.memory.cap_bytes

    @pytest.mark.parametrize("link", [Link.HUNG, Link.HELD])
    def test_one_that_cannot_be_measured_any_more_is_charged_with_its_most(self, link):
        guest = connected(cap=Size(2 * GIB))
        guest.note_link(link, "the connection ended")
        guest.disconnected()
        assert guest.charge_bytes == GIB  # what it had a moment ago
        guest.note_link(link, "it cannot be connected to again")
        guest.disconnected()
        assert guest.charge_bytes == 2 * GIB
        assert account_of(guest, 0.0).reserve_bytes == GIB
        guest.connected(FACTS, GIB, 9.0, paused=False)
        assert guest.charge_bytes == GIB

    def test_another_qemu_on_the_same_socket_is_adopted_anew(self):
        guest = make_guest()
        guest.connected(msgspec.structs.replace(FACTS, process_id=7), GIB, 0.0, paused=False)
        guest.size.ordered(512 * MIB)
        guest.note_link(Link.HUNG, "")
        guest.connected(msgspec.structs.replace(FACTS, process_id=8), 2 * GIB, 1.0, paused=False)
        assert (guest.size.target_bytes, guest.size.desired_bytes, guest.size.commanded) == (2 * GIB, 2 * GIB, False)

    def test_another_qemu_that_cannot_be_measured_is_not_taken_for_the_one_before(self):
        guest = connected(cap=Size(2 * GIB))
        guest.size.ordered(512 * MIB)
        guest.measured(512 * MIB, 1.0)
        guest.size.confirmed()
        guest.note_link(Link.HUNG, "the connection ended")
        guest.disconnected()
        guest.met(FACTS.process_id)
        assert guest.charge_bytes == 512 * MIB
        guest.met(4711)
        guest.note_link(Link.HELD, "no balloon device")
        assert guest.charge_bytes == 2 * GIB

    def test_it_knows_whether_we_moved_it(self):
        guest = connected()
        guest.size.ordered(GIB)
        assert not guest.size.commanded
        guest.size.ordered(512 * MIB)
        assert guest.size.commanded

    def test_a_connection_that_comes_back_keeps_the_target(self):
        guest = connected()
        guest.size.ordered(512 * MIB)
        guest.note_link(Link.HUNG, "")
        guest.disconnected()
        guest.connected(FACTS, 700 * MIB, 9.0, paused=False)
        assert guest.size.target_bytes == 512 * MIB

    def test_the_cap_is_not_above_the_ram_that_qemu_has(self):
        assert make_guest().memory.cap_bytes == 4 * GIB
        assert connected().memory.cap_bytes == 2 * GIB


class TestReset:
    def test_what_a_new_driver_tells_first_is_no_danger_and_what_it_takes_back_later_is(self):
        guest = connected()
        guest.was_reset(1.0)
        for now_s, actual_bytes in ((1.5, GIB), (20.0, 2 * GIB - MIB), (21.0, 1536 * MIB)):
            assert guest.size.explains(actual_bytes)
            guest.measured(actual_bytes, now_s)
            guest.size.end_boot(actual_bytes, now_s)
            assert guest.danger.why(now_s) is None
            assert not guest.size.moved_unasked
        guest.measured(1700 * MIB, 22.0)
        assert "deflate-on-oom" in guest.danger.why(22.0)

    def test_it_is_charged_with_all_until_it_reports_or_its_driver_tells_a_size(self):
        guest = connected()
        guest.was_reset(1.0)
        assert not guest.size.end_boot(GIB, 1.5)
        assert not guest.size.end_boot(GIB, 9999.0)
        assert guest.charge_bytes == 2 * GIB
        guest.measured(1900 * MIB, 10000.0)
        assert guest.size.end_boot(1900 * MIB, 10000.0)
        assert guest.charge_bytes == 1900 * MIB
        guest.was_reset(10001.0)
        take(guest, 10003.0)
        assert guest.size.end_boot(1900 * MIB, 10004.0)

    def test_neither_a_size_from_before_nor_memory_that_is_plugged_shows_a_driver(self):
        guest = connected()
        guest.was_reset(2.0)
        assert not guest.size.end_boot(1000 * MIB, 1.9)  # asked before, while it still shrank
        assert not guest.size.end_boot(900 * MIB, 2.1)
        guest.size.adopted(1156 * MIB)
        assert not guest.size.end_boot(1156 * MIB, 3.0)
        assert guest.size.end_boot(1400 * MIB, 4.0)


class TestStanding:
    def test_nothing_grows_old_while_it_does_not_run(self):
        guest = connected()
        take(guest, 1.0)
        guest.stopped("QEMU is in the state paused", 2.0)
        assert (guest.state(500.0), guest.detail) == (GuestState.PAUSED, "QEMU is in the state paused")
        guest.stopped("QEMU is in the state paused", 400.0)  # asked for again and again
        guest.resumed(502.0)
        assert (guest.state(502.5), guest.detail) == (GuestState.LATE, "")
        assert guest.state(521.5) is GuestState.LOST

    def test_that_this_process_stood_still_meanwhile_does_not_count_twice(self):
        guest = connected()
        take(guest, 1.0)
        guest.stopped("", 2.0)
        guest.stood_still(100.0)
        guest.resumed(202.0)
        assert guest.state(202.5) is GuestState.LATE
        assert guest.state(222.0) is GuestState.LOST

    def test_what_it_was_to_get_or_give_is_not_wanted_any_more(self):
        guest = connected()
        guest.size.desired_bytes = 2 * GIB
        guest.stopped("", 2.0)
        assert guest.size.desired_bytes == guest.size.target_bytes

    def test_emptying_the_balloon_to_fall_asleep_is_no_danger(self):
        guest = connected()
        guest.measured(2 * GIB, 1.0)
        assert guest.danger.why(1.5)
        guest.stopped("asleep", 1.5, asleep=True)
        assert guest.danger.why(1.6) is None

    def test_what_else_was_danger_before_it_fell_asleep_still_is(self):
        guest = connected()
        guest.danger.begin("danger: something else", 1.0)
        guest.stopped("asleep", 1.5, asleep=True)
        assert guest.danger.why(1.6)


class TestState:
    def test_before_and_after_the_first_connection(self):
        guest = make_guest()
        assert guest.state(0.0) is GuestState.CONNECTING
        guest.connected(FACTS, GIB, 0.0, paused=False)
        assert guest.state(19.0) is GuestState.WARMING
        assert guest.state(20.0) is GuestState.LOST

    def test_one_sample_may_be_of_any_age_so_it_takes_two(self):
        guest = connected()
        guest.take_sample(sample(1), 1.0)
        assert guest.state(1.0) is GuestState.WARMING
        guest.take_sample(sample(2), 2.0)
        assert guest.state(2.0) is GuestState.FRESH

    def test_a_process_that_stood_still_did_not_let_its_guests_grow_old(self):
        guest = connected()
        take(guest, 1.0)
        guest.stood_still(100.0)
        assert guest.state(102.0) is GuestState.LATE  # not lost; but what is known is from before
        guest.take_sample(sample(3), 102.0)
        assert guest.state(102.0) is GuestState.FRESH

    def test_age_turns_fresh_into_late_into_lost(self):
        guest = connected()
        take(guest, 1.0)
        states = [guest.state(1.0 + age) for age in (0.0, 4.9, 5.0, 19.9, 20.0)]
        assert states == ["fresh", "fresh", "late", "late", "lost"]

    def test_a_repeated_sample_does_not_make_a_guest_fresh(self):
        guest = connected()
        take(guest, 1.0)
        with pytest.raises(SampleError):
            guest.take_sample(sample(2), 10.0)
        assert guest.state(10.0) is GuestState.LATE

    @pytest.mark.parametrize(
        "told",
        [
            {"start_id": "1" * 16},  # the collector was restarted
            {"monotonic_ns": 10**6 * 10**9},  # its host slept, and kvm-clock went on
            {"monotonic_ns": 1},
        ],
    )
    def test_a_sample_that_cannot_be_used_makes_a_guest_late_and_not_lost(self, told):
        guest = connected()
        take(guest, 2.0)
        with pytest.raises(SampleError):
            guest.take_sample(msgspec.structs.replace(sample(3), **told), 3.0)
        assert [guest.state(now_s) for now_s in (3.0, 21.9, 22.0)] == ["late", "late", "lost"]
        following = {**told, "monotonic_ns": told.get("monotonic_ns", 3 * 10**9) + 10**9}
        guest.take_sample(msgspec.structs.replace(sample(4), **following), 4.0)
        assert guest.state(4.0) is GuestState.FRESH

    def test_a_reset_guest_is_lost_until_it_reports(self):
        guest = connected()
        take(guest, 1.0)
        guest.was_reset(10.0)
        assert guest.state(1.1) is GuestState.LOST
        take(guest, 9.0)
        assert guest.state(9.0) is GuestState.FRESH

    def test_paused_and_hung_and_gone(self):
        guest = connected()
        guest.paused = True
        assert guest.state(0.0) is GuestState.PAUSED
        guest.note_link(Link.HUNG, "")
        assert guest.state(0.0) is GuestState.HUNG


class TestWindow:
    def test_it_spans_all_samples_since_it_was_closed(self):
        guest = connected()
        guest.take_sample(sample(1, accesses=100, misses=10), 1.0)
        guest.samples.close_window()
        guest.take_sample(sample(2, accesses=200, misses=20), 2.0)
        guest.take_sample(sample(3, accesses=400, misses=30), 3.0)
        snapshot = snapshot_of(guest, 3.0)
        assert (snapshot.hits, snapshot.misses, snapshot.interval_s) == (280, 20, 2.0)
        assert snapshot.decidable

    def test_without_a_newer_sample_the_counts_are_unknown(self):
        guest = connected()
        guest.take_sample(sample(1), 1.0)
        guest.samples.close_window()
        assert snapshot_of(guest, 1.5).hits is None
        assert not snapshot_of(guest, 1.5).decidable

    def test_no_difference_across_a_restart_of_the_collector(self):
        guest = connected()
        guest.take_sample(sample(1, accesses=1000), 1.0)
        guest.samples.close_window()
        restarted = msgspec.structs.replace(sample(2, accesses=5000), start_id="1" * 16)
        with pytest.raises(SampleError):
            guest.take_sample(restarted, 2.0)
        guest.samples.close_window()
        again = msgspec.structs.replace(sample(3, accesses=5007), start_id="1" * 16)
        guest.take_sample(again, 3.0)
        assert snapshot_of(guest, 3.0).hits is None


class TestDanger:
    @pytest.mark.parametrize(
        ("earlier", "later", "told"),
        [
            ({}, {"memory_bytes": Memory(total=GIB, available=10 * MIB)}, "10M available"),
            ({"oom_kills": 1}, {"oom_kills": 3}, "2 processes killed"),
            ({"swap_pages": SwapPages(in_=0)}, {"swap_pages": SwapPages(in_=1000)}, "1000 pages/s"),
        ],
    )
    def test_signs(self, earlier, later, told):
        assert told in find_danger(sample(1, **earlier), sample(2, **later), GIB)

    def test_pressure_for_cache_is_not_danger(self):
        quiet = {"memory_bytes": Memory(total=GIB, available=200 * MIB), "oom_kills": 2, "swap_pages": SwapPages(in_=9)}
        assert find_danger(sample(1, **quiet), sample(2, **quiet), GIB) is None

    def test_old_kills_are_not_news(self):
        assert find_danger(None, sample(1, oom_kills=3), GIB) is None

    def test_memory_that_a_guest_takes_back_by_itself_is_a_sign(self):
        guest = connected()
        guest.size.ordered(512 * MIB)
        guest.measured(512 * MIB, 1.0)
        guest.size.confirmed()
        guest.measured(514 * MIB, 2.0)
        assert guest.danger.why(2.0) is None
        guest.measured(600 * MIB, 3.0)
        assert "deflate-on-oom" in guest.danger.why(3.0)

    def test_a_driver_that_begins_anew_takes_all_and_others_owe_it_none_of_that(self):
        """As after kexec, of which QEMU tells nothing: who needs it says so in the next sample."""
        guest = connected()
        guest.measured(2 * GIB - MIB, 2.0)
        assert guest.charge_bytes == 2 * GIB - MIB
        assert guest.danger.rescue_bytes(2.0) == GIB  # its baseline
        used = Memory(total=2 * GIB, available=100 * MIB)
        for number, memory in ((1, None), (2, used)):
            guest.take_sample(sample(number, **({"memory_bytes": memory} if memory else {})), 2.0 + number)
        assert guest.danger.rescue_bytes(4.0) > 1900 * MIB

    def test_growing_because_it_was_granted_more_is_none(self):
        guest = connected()
        guest.size.ordered(2 * GIB)
        guest.measured(2 * GIB, 1.0)
        assert guest.danger.why(1.0) is None

    def test_allocations_that_begin_to_wait_are_a_sign(self):
        guest, scarce = connected(), Memory(total=GIB, available=100 * MIB)
        for second in range(1, 20):
            guest.take_sample(sample(second, memory_bytes=scarce, allocation_stalls=second), float(second))
        assert guest.danger.why(19.0) is None
        guest.take_sample(sample(20, memory_bytes=scarce, allocation_stalls=900), 20.0)
        assert "881 allocations/s wait for memory" in guest.danger.why(20.0)

    def test_a_kill_that_no_allocation_waited_for_is_none_by_the_balloons_account_either(self):
        guest = connected()
        for second, stalls, kills in ((1, 5, 0), (3, 5, 1)):
            guest.danger.take_stats(second, stalls, kills, float(second))
        assert guest.danger.why(3.0) is None
        for second, stalls, kills in ((5, 6, 1), (7, 6, 2)):  # it waited just before the last report
            guest.danger.take_stats(second, stalls, kills, float(second))
        assert "1 processes killed" in guest.danger.why(7.0)

    def test_it_freezes_the_guest_for_a_while(self):
        guest = connected()
        guest.take_sample(sample(1, oom_kills=0), 1.0)
        guest.take_sample(sample(2, oom_kills=1), 2.0)
        assert "killed" in guest.danger.why(3.0)
        assert guest.danger.why(2.0 + FREEZE_S) is None


class TestAbsentCounts:
    @pytest.mark.parametrize("counters", [Counters(inserts_read=5), Counters(accesses=5), Counters()])
    def test_a_guest_whose_kernel_lacks_a_hook_is_fresh_but_held(self, counters):
        guest = connected()
        for second in (1, 2):
            guest.take_sample(msgspec.structs.replace(sample(second), counters=counters), float(second))
        snapshot = snapshot_of(guest, 2.0)
        assert snapshot.state is GuestState.FRESH
        assert snapshot.hits is None
        assert not snapshot.decidable
        others = [
            msgspec.structs.replace(snapshot, name=name, hits=hits, misses=0) for name, hits in (("b", 9), ("c", 1))
        ]
        decision = load_policy("paper", {}).decide(
            Snapshot(cycle=1, time_s=0.0, budget_bytes=GIB, interval_s=1.0, guests=(snapshot, *others))
        )
        held = decision.guests[0]
        assert (held.target_bytes, held.limiter) == (snapshot.target_bytes, Limiter.STATE)


def test_at_its_floor_a_guest_of_any_size_is_not_in_danger():
    """Else the policy takes it there, danger gives the memory back, and so on for ever."""
    for used in (100 * MIB, GIB, 6000 * MIB, 250 * GIB):
        floor = floor_of(used)
        assert floor - used > least_available_bytes(floor)


class TestTheEndOfDanger:
    """How long it lasts, and what is forgotten with the system that was in it."""

    def in_danger(self):
        guest = connected()
        take(guest, 1.0, memory_bytes=Memory(available=10 * MIB))
        assert guest.danger.why(1.0)
        return guest

    def test_it_lasts_for_as_long_as_it_needs_more_than_it_would_have_had(self):
        guest = self.in_danger()
        guest.size.target_bytes = guest.size.desired_bytes = 1536 * MIB
        guest.take_sample(sample(3, memory_bytes=Memory(available=200 * MIB)), 999.0)
        assert guest.danger.why(1000.0).startswith("needs ")
        guest.size.target_bytes = guest.memory.baseline_bytes
        assert guest.danger.why(1000.0) is None
        guest.size.target_bytes = 1536 * MIB  # by a policy
        assert guest.danger.why(1001.0) is None

    def test_what_it_told_more_than_a_minute_ago_does_not_keep_it_in_it(self):
        guest = self.in_danger()
        guest.size.target_bytes = guest.size.desired_bytes = 1536 * MIB
        guest.take_sample(sample(3, memory_bytes=Memory(available=200 * MIB)), 30.0)
        assert guest.danger.why(29.0 + FREEZE_S).startswith("needs ")
        guest.stopped("paused", 85.0)
        assert guest.danger.why(500.0).startswith("needs ")  # nothing grows old
        guest.resumed(500.0)
        assert guest.danger.why(504.0).startswith("needs ")
        assert guest.danger.why(505.0) is None
        assert guest.danger.rescue_bytes(505.0) == 0

    def test_another_system_is_not_in_it(self):
        for end in (lambda guest: guest.was_reset(2.0), lambda guest: guest.gone("QEMU has ended")):
            guest = self.in_danger()
            end(guest)
            assert guest.danger.why(3.0) is None
            assert guest.danger.rescue_bytes(3.0) == 0
