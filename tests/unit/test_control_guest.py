"""One guest's life without any I/O: sizes in doubt stay charged, time changes the state, danger freezes."""

import msgspec
import pytest

from qmpalloc import load_policy
from qmpalloc.config import ControlConfig, Duration, GuestConfig, Size
from qmpalloc.control.commitments import account_of
from qmpalloc.control.guest import Guest, Link
from qmpalloc.control.memory import Facts
from qmpalloc.control.snapshot import snapshot_of
from qmpalloc.errors import SampleError
from qmpalloc.idle import Touches
from qmpalloc.model import GuestState, Limiter, MemorySizes, Snapshot
from qmpalloc.rules.danger import FREEZE_S, find_danger, least_available_bytes, with_reserve
from qmpalloc.sample import Ages, AgesByKind, Counters, Memory, Sample, SwapPages
from qmpalloc.units import GIB, MIB, Grid, align_up

CONTROL = ControlConfig(late_after=Duration(5.0), lost_after=Duration(20.0))
FACTS = Facts(ram_bytes=2 * GIB, balloon_path="/machine/peripheral/balloon0", deflate_on_oom=True, qemu_version="7.2.0")


def make_guest(**changes):
    values = {"floor": Size(256 * MIB), "cap": Size(4 * GIB), "baseline": Size(GIB)} | changes
    return Guest(GuestConfig(name="a", monitor="/m", agent="/a", **values), CONTROL)


def connected(**changes):
    guest = make_guest(**changes)
    guest.connected(FACTS, GIB, 0.0, paused=False)
    return guest


def floor_of(used_bytes):
    """The floor of a guest that cannot give up so much."""
    return align_up(with_reserve(used_bytes, CONTROL.reserve))


def sample(sequence=1, *, accesses=0, misses=0, **changes):
    return Sample(
        format="qmpalloc-counters", version=1, boot_id="0" * 36, start_id="0" * 16, sequence=sequence,
        monotonic_ns=sequence * 10**9, interval_ms=1000, kernel="6.12", page_size=4096,
        counters=Counters(accesses=accesses, inserts_read=misses), **changes,
    )  # fmt: skip


def take(guest, now_s, **changes):
    """Give the guest the two samples that make it fresh."""
    guest.take_sample(sample(1), now_s - 1.0)
    guest.take_sample(sample(2, **changes), now_s)


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


class TestFloor:
    def test_a_cap_of_no_whole_pages_is_kept_in_whole_pages(self):
        guest = make_guest(floor=Size(10**9), cap=Size(10**9), baseline=Size(10**9))
        guest.connected(FACTS, 10**9 // 4096 * 4096, 0.0, paused=False)
        assert guest.memory.floor_bytes == guest.size.target_bytes
        assert not account_of(guest, 0.0).in_need
        assert type(guest.memory.cap_bytes) is int  # as a policy may return it

    def test_without_facts_it_is_the_configured_one(self):
        assert connected().memory.floor_bytes == 256 * MIB

    def test_what_the_guest_cannot_give_up_lifts_it(self):
        guest = connected()
        parts = {"anon": 300 * MIB, "shmem": 50 * MIB, "slab_unreclaimable": 20 * MIB, "kernel_stack": MIB}
        memory = Memory(total=2 * GIB - 48 * MIB, page_tables=MIB, **parts)
        take(guest, 1.0, memory_bytes=memory)
        assert guest.memory.floor_bytes == (300 + 50 + 20 + 1 + 1 + 48 + 64) * MIB

    @pytest.mark.parametrize("moved_bytes", [-300 * MIB, 900 * MIB])
    def test_a_sample_from_before_a_move_does_not_change_what_the_kernel_keeps(self, moved_bytes):
        guest = make_guest()
        # Without deflate-on-oom MemTotal follows the balloon; 80 MiB of a machine's RAM are never in it.
        guest.connected(msgspec.structs.replace(FACTS, deflate_on_oom=False), GIB, 0.0, paused=False)
        parts = dict.fromkeys(("shmem", "slab_unreclaimable", "kernel_stack", "page_tables"), 0)
        before = Memory(total=GIB - 80 * MIB, anon=300 * MIB, **parts)
        for number in (1, 2, 3):
            guest.take_sample(sample(number, memory_bytes=before), float(number))
        assert guest.memory.floor_bytes == 380 * MIB + CONTROL.reserve
        guest.measured(GIB + moved_bytes, 3.5)
        guest.take_sample(sample(4, memory_bytes=before), 4.0)
        assert guest.memory.floor_bytes == 380 * MIB + CONTROL.reserve

    def test_it_is_remembered_when_the_guest_tells_no_more_and_lifts_the_baseline(self):
        guest = connected(baseline=Size(300 * MIB))
        parts = {"anon": 400 * MIB, "shmem": 0, "slab_unreclaimable": 0, "kernel_stack": 0, "page_tables": 0}
        take(guest, 1.0, memory_bytes=Memory(total=2 * GIB, **parts))
        guest.disconnected()
        assert guest.memory.floor_bytes == guest.memory.baseline_bytes == 464 * MIB

    def test_a_guest_cannot_claim_more_memory_than_it_was_given(self):
        guest = connected()
        with pytest.raises(SampleError, match="more memory than"):
            guest.take_sample(sample(memory_bytes=Memory(total=3 * GIB)), 1.0)

    def test_unknown_facts_do_not_count_as_zero(self):
        guest = connected()
        take(guest, 1.0, memory_bytes=Memory(anon=300 * MIB))
        assert guest.memory.floor_bytes == 256 * MIB


class TestMemoryOutsideOfTheBalloon:
    FACTS = FACTS.with_memory(MemorySizes(ram_bytes=2 * GIB, outside_bytes=GIB, other_bytes=4 * GIB))

    def connected(self, **changes):
        guest = make_guest(**changes)
        guest.connected(self.FACTS, GIB, 0.0, paused=False)
        return guest

    def test_it_is_charged_beside_the_size_and_is_no_size(self):
        guest = self.connected()
        assert (guest.size.actual_bytes, guest.memory.cap_bytes, guest.charge_bytes) == (GIB, 2 * GIB, 2 * GIB)
        account, seen = account_of(guest, 0.0), snapshot_of(guest, 0.0)
        assert (account.charge_bytes, account.reserve_bytes, account.outside_bytes) == (GIB, 0, GIB)
        assert (seen.charge_bytes, seen.outside_bytes, seen.promised_bytes) == (2 * GIB, GIB, 2 * GIB)

    def test_it_stays_charged_while_qemu_hangs_and_while_its_guest_boots(self):
        guest = self.connected()
        guest.note_link(Link.HUNG, "no answer")
        assert guest.charge_bytes == 2 * GIB
        guest.was_reset(1.0)
        assert (guest.charge_bytes, account_of(guest, 1.0).reserve_bytes) == (3 * GIB, GIB)
        guest.gone("refused")
        assert guest.charge_bytes == 0

    def test_what_the_kernel_uses_of_it_need_not_be_inside(self):
        guest = self.connected()
        needs = Memory(
            total=3 * GIB - 40 * MIB, anon=1200 * MIB, shmem=0,
            slab_unreclaimable=100 * MIB, kernel_stack=10 * MIB, page_tables=10 * MIB,
        )  # fmt: skip
        guest.memory.learn_need(sample(memory_bytes=needs), guest.size.actual_bytes)
        assert guest.memory.floor_bytes == (40 + 1200 + 120 - 1024) * MIB + CONTROL.reserve
        # Plugged, and not taken into use: then all must be inside.
        guest.memory.learn_need(
            sample(memory_bytes=msgspec.structs.replace(needs, total=2 * GIB - 40 * MIB)), guest.size.actual_bytes
        )
        guest.memory.learn_need(
            sample(memory_bytes=msgspec.structs.replace(needs, total=2 * GIB - 40 * MIB)), guest.size.actual_bytes
        )
        assert guest.memory.floor_bytes == floor_of((40 + 1200 + 120) * MIB)

    def test_what_the_kernel_needs_for_itself_must_be_inside(self):
        guest = self.connected()
        needs = Memory(
            total=3 * GIB - 40 * MIB, anon=100 * MIB, shmem=0,
            slab_unreclaimable=400 * MIB, kernel_stack=0, page_tables=0,
        )  # fmt: skip
        guest.memory.learn_need(sample(memory_bytes=needs), guest.size.actual_bytes)
        assert guest.memory.floor_bytes == 400 * MIB + CONTROL.reserve

    def test_its_kernel_may_count_all_that_was_plugged_and_no_more(self):
        guest = self.connected()
        assert not guest.memory.claims_too_much(sample(memory_bytes=Memory(total=7 * GIB)))
        assert guest.memory.claims_too_much(sample(memory_bytes=Memory(total=7 * GIB + 1)))

    @pytest.mark.parametrize(
        ("kind", "swap_free", "lent"),
        [("anon", 0, 0), ("anon", GIB, 80), ("mapped", 0, 100), ("mapped", GIB, 100)],
    )
    def test_what_nothing_has_touched_for_a_minute_is_not_in_use(self, kind, swap_free, lent):
        """Anonymous memory only as far as swap has room, and a small part at a time."""
        none = (0,) * 10
        kinds = {"file": none, "mapped": none, "anon": none, "shmem": none}
        ages = Ages(
            step_ms=1000, pages_each=128, steps=900, touched=AgesByKind(**kinds),
            idle=AgesByKind(**kinds | {kind: (*none[:9], 10_000)}),
        )  # fmt: skip
        facts = Memory(
            total=2 * GIB - 40 * MIB, anon=600 * MIB, shmem=0, mapped=100 * MIB, active_file=100 * MIB,
            inactive_file=0, slab_unreclaimable=0, kernel_stack=0, page_tables=0, swap_total=GIB, swap_free=swap_free,
        )  # fmt: skip
        used = []
        for told in (None, ages):
            guest = make_guest()
            guest.connected(FACTS, GIB, 0.0, paused=False)
            now = sample(memory_bytes=facts, ages=told)
            guest.memory.learn_need(now, guest.size.actual_bytes)
            used.append((guest.memory.in_use_bytes(now, Touches()), guest.memory.floor_bytes))
        with_reserve_added = [floor_of((740 - part) * MIB) for part in (0, lent)]
        assert [align_up(in_use) for in_use, _ in used] == with_reserve_added
        anonymous = lent if kind == "anon" else 0
        assert [floor for _, floor in used] == [floor_of(640 * MIB), floor_of((640 - anonymous) * MIB)]

    def test_without_it_a_gap_is_never_negative(self):
        guest = make_guest()
        guest.connected(msgspec.structs.replace(FACTS, deflate_on_oom=False), 512 * MIB, 0.0, paused=False)
        stale = Memory(total=GIB, anon=300 * MIB, shmem=0, slab_unreclaimable=0, kernel_stack=0, page_tables=0)
        guest.memory.learn_need(sample(memory_bytes=stale), guest.size.actual_bytes)  # from before a move
        assert guest.memory.floor_bytes == 300 * MIB + CONTROL.reserve


class TestPluggedRam:
    def plugged(self, guest, *, ram_bytes=3 * GIB):
        guest.memory.given(FACTS.with_memory(MemorySizes(ram_bytes=ram_bytes)))

    def needs(self, guest, total_bytes):
        needs = Memory(total=total_bytes, anon=300 * MIB, shmem=0, slab_unreclaimable=0, kernel_stack=0, page_tables=0)
        guest.memory.learn_need(sample(memory_bytes=needs), guest.size.actual_bytes)
        return guest.memory.floor_bytes, guest.memory.cap_bytes

    def test_it_is_neither_given_up_nor_too_much_until_the_kernel_uses_it(self):
        guest = connected(cap=Size(1536 * MIB))
        used_bytes = 2 * GIB - 40 * MIB
        assert self.needs(guest, used_bytes) == (floor_of(340 * MIB), 1536 * MIB)
        self.plugged(guest)
        # No sample has told yet.
        assert (guest.memory.floor_bytes, guest.memory.cap_bytes) == (1364 * MIB + CONTROL.reserve, 2560 * MIB)
        for _ in range(3):
            assert self.needs(guest, used_bytes) == (floor_of(1364 * MIB), 2560 * MIB)
        assert self.needs(guest, used_bytes + 512 * MIB) == (floor_of(852 * MIB), 2048 * MIB)
        assert self.needs(guest, used_bytes + GIB) == (floor_of(340 * MIB), 1536 * MIB)
        assert self.needs(guest, used_bytes + GIB) == (floor_of(340 * MIB), 1536 * MIB)

    def test_what_is_unplugged_without_having_been_used_is_forgotten(self):
        guest = connected(cap=Size(1536 * MIB))
        used_bytes = 2 * GIB - 40 * MIB
        self.needs(guest, used_bytes)
        self.plugged(guest)
        self.plugged(guest, ram_bytes=2 * GIB)
        assert guest.memory.cap_bytes == 1536 * MIB
        self.needs(guest, used_bytes)
        assert self.needs(guest, used_bytes) == (floor_of(340 * MIB), 1536 * MIB)

    def test_a_size_that_no_command_explains_is_asked_about(self):
        guest = connected()
        assert guest.size.explains(GIB)
        assert guest.size.explains(GIB + 4 * MIB)
        for size_bytes in (GIB + 128 * MIB, GIB - 128 * MIB, 3 * GIB):
            assert not guest.size.explains(size_bytes)
        guest.size.ordered(512 * MIB)
        assert guest.size.explains(800 * MIB)

    def test_what_it_was_to_get_is_wanted_on_top_and_what_it_was_to_give_is_not(self):
        guest = connected()
        guest.size.desired_bytes = GIB + 256 * MIB
        self.plugged(guest)
        guest.size.adopted(2 * GIB)
        assert (guest.size.target_bytes, guest.size.desired_bytes) == (2 * GIB, 2 * GIB + 256 * MIB)
        guest.size.desired_bytes = GIB
        guest.size.adopted(2 * GIB)
        assert guest.size.desired_bytes == 2 * GIB

    def test_a_connection_that_comes_back_with_other_ram_is_adopted_at_the_size_it_has(self):
        guest = connected()
        guest.size.desired_bytes = 512 * MIB
        guest.size.ordered(512 * MIB)
        guest.disconnected()
        guest.connected(FACTS.with_memory(MemorySizes(ram_bytes=3 * GIB)), 1536 * MIB, 5.0, paused=False)
        assert (guest.size.target_bytes, guest.size.desired_bytes) == (1536 * MIB, 1536 * MIB)
        assert guest.charge_bytes >= 1536 * MIB


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
        assert guest.danger.why(1000.0).startswith("needs ")
        guest.size.target_bytes = guest.memory.baseline_bytes
        assert guest.danger.why(1000.0) is None
        guest.size.target_bytes = 1536 * MIB  # by a policy
        assert guest.danger.why(1001.0) is None

    def test_another_system_is_not_in_it(self):
        for end in (lambda guest: guest.was_reset(2.0), lambda guest: guest.gone("QEMU has ended")):
            guest = self.in_danger()
            end(guest)
            assert guest.danger.why(3.0) is None
            assert guest.danger.rescue_bytes(3.0) == 0


class TestVirtioMem:
    """A guest of 256 MiB, on top of which up to 1 GiB is plugged in blocks of 128 MiB."""

    FACTS = Facts(
        ram_bytes=1280 * MIB, deflate_on_oom=False, qemu_version="7.2.0", grid=Grid(256 * MIB, 128 * MIB),
        actuator="virtio-mem", takes_back=False,
    )  # fmt: skip

    def connected(self, **changes):
        guest = make_guest(**{"floor": Size(300 * MIB), "cap": Size(GIB), "baseline": Size(700 * MIB)} | changes)
        guest.connected(self.FACTS, 640 * MIB, 0.0, paused=False)
        return guest

    def test_all_sizes_are_whole_blocks(self):
        guest = self.connected()
        memory = guest.memory
        sizes = [memory.floor_bytes, memory.baseline_bytes, memory.cap_bytes]
        assert sizes == [384 * MIB, 640 * MIB, GIB]
        guest.size.desired_bytes = 900 * MIB
        assert guest.size.desired_bytes == 896 * MIB

    def test_a_cap_below_its_ram_leaves_it_its_ram(self):
        assert self.connected(cap=Size(200 * MIB), floor=Size(100 * MIB)).memory.cap_bytes == 256 * MIB

    def test_the_old_size_stays_charged_until_the_new_one_is_confirmed(self):
        guest = self.connected()
        guest.size.ordered(384 * MIB)
        guest.measured(384 * MIB, 1.0)
        assert guest.charge_bytes == 640 * MIB
        guest.size.confirmed()
        assert guest.charge_bytes == 384 * MIB

    def test_after_a_reset_it_is_charged_with_its_target_and_its_fall_is_no_interference(self):
        guest = self.connected()
        guest.was_reset(1.0)
        guest.measured(256 * MIB, 1.5)
        assert guest.charge_bytes == 640 * MIB
        assert not guest.size.moved_unasked

    def test_what_it_has_more_was_asked_for_by_somebody_else(self):
        guest = self.connected()
        guest.measured(768 * MIB, 1.0)
        assert guest.size.moved_unasked
        assert guest.danger.why(1.0) is None
        assert guest.charge_bytes == 768 * MIB

    def test_in_danger_it_is_given_no_less_than_it_needs(self):
        guest = self.connected()
        guest.danger.begin("danger: test", 1.0)
        guest.danger._rescue_bytes = 650 * MIB
        assert guest.danger.rescue_bytes(1.0) == 768 * MIB
