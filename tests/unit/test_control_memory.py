"""What a guest has and needs: its floor, memory outside of the balloon, what is plugged."""

import msgspec
import pytest
from made_up_control import CONTROL, FACTS, connected, floor_of, holding, make_guest, sample, take

from qmpalloc.config import Size
from qmpalloc.control.commitments import account_of
from qmpalloc.control.guest import Link
from qmpalloc.control.memory import Facts
from qmpalloc.control.snapshot import snapshot_of
from qmpalloc.errors import SampleError
from qmpalloc.idle import Touches
from qmpalloc.model import MemorySizes
from qmpalloc.sample import Ages, AgesByKind, Memory
from qmpalloc.units import GIB, MIB, Grid, align_up


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
        cache = {"active_file": 100 * MIB, "inactive_file": 50 * MIB, "kernel_reclaimable": 30 * MIB}
        memory = holding(372 * MIB, total_bytes=2 * GIB - 48 * MIB, balloon=GIB, **cache)
        take(guest, 1.0, memory_bytes=memory)
        assert guest.memory.floor_bytes == (372 + 48 + 64) * MIB

    def test_so_does_what_no_list_of_kinds_names(self):
        """Huge pages, files locked into memory, what zram and zswap keep, the kernel's own of any kind."""
        guest = make_guest()
        guest.connected(msgspec.structs.replace(FACTS, ram_bytes=4 * GIB), 4 * GIB, 0.0, paused=False)
        take(guest, 1.0, memory_bytes=holding(2896 * MIB, total_bytes=4 * GIB - 48 * MIB, anon=300 * MIB))
        assert guest.memory.floor_bytes == floor_of((2896 + 48) * MIB)

    def test_what_is_on_no_list_keeps_its_size_and_earns_no_memory(self):
        """Of the cache of ZFS, say, no count tells; nor where free pages are for a moment, or what an old one lacks."""
        guest = connected()
        take(guest, 1.0, memory_bytes=holding(1900 * MIB, total_bytes=2 * GIB - 48 * MIB, anon=300 * MIB))
        assert guest.memory.floor_bytes == guest.size.target_bytes == GIB
        assert not account_of(guest, 1.0).in_need
        guest.size.ordered(512 * MIB)
        guest.take_sample(
            sample(3, memory_bytes=holding(1900 * MIB, total_bytes=2 * GIB - 48 * MIB, anon=300 * MIB)), 2.0
        )
        assert guest.memory.floor_bytes == 512 * MIB

    def test_files_locked_into_memory_are_held_once(self):
        guest = connected()
        files = {"mapped": 400 * MIB, "active_file": 60 * MIB, "inactive_file": 40 * MIB}
        now = sample(memory_bytes=holding(500 * MIB, total_bytes=GIB, anon=200 * MIB, **files))
        assert guest.memory.in_use_bytes(now, Touches()) == 300 * MIB + CONTROL.reserve

    @pytest.mark.parametrize("moved_bytes", [-300 * MIB, 900 * MIB])
    def test_a_sample_from_before_a_move_does_not_change_what_the_kernel_keeps(self, moved_bytes):
        guest = make_guest()
        # Without deflate-on-oom MemTotal follows the balloon; 80 MiB of a machine's RAM are never in it.
        guest.connected(msgspec.structs.replace(FACTS, deflate_on_oom=False), GIB, 0.0, paused=False)
        before = holding(300 * MIB, total_bytes=GIB - 80 * MIB)
        for number in (1, 2, 3):
            guest.take_sample(sample(number, memory_bytes=before), float(number))
        assert guest.memory.floor_bytes == 380 * MIB + CONTROL.reserve
        guest.measured(GIB + moved_bytes, 3.5)
        guest.take_sample(sample(4, memory_bytes=before), 4.0)
        assert guest.memory.floor_bytes == 380 * MIB + CONTROL.reserve

    def test_it_is_remembered_when_the_guest_tells_no_more_and_lifts_the_baseline(self):
        guest = connected(baseline=Size(300 * MIB))
        take(guest, 1.0, memory_bytes=holding(400 * MIB, total_bytes=2 * GIB))
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
        needs = holding(1320 * MIB, total_bytes=3 * GIB - 40 * MIB, anon=1200 * MIB, slab_unreclaimable=120 * MIB)
        guest.memory.learn_need(sample(memory_bytes=needs), guest.size.actual_bytes, guest.size.target_bytes)
        assert guest.memory.floor_bytes == (40 + 1200 + 120 - 1024) * MIB + CONTROL.reserve
        # Plugged, and not taken into use: then all must be inside.
        for _ in range(2):
            unused = msgspec.structs.replace(needs, total=2 * GIB - 40 * MIB, free=needs.free - GIB)
            guest.memory.learn_need(sample(memory_bytes=unused), guest.size.actual_bytes, guest.size.target_bytes)
        assert guest.memory.floor_bytes == floor_of((40 + 1200 + 120) * MIB)

    def test_what_the_kernel_needs_for_itself_must_be_inside(self):
        guest = self.connected()
        needs = holding(500 * MIB, total_bytes=3 * GIB - 40 * MIB, anon=100 * MIB, slab_unreclaimable=400 * MIB)
        guest.memory.learn_need(sample(memory_bytes=needs), guest.size.actual_bytes, guest.size.target_bytes)
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
        facts = holding(
            600 * MIB, total_bytes=2 * GIB - 40 * MIB, mapped=100 * MIB, active_file=100 * MIB, swap_total=GIB,
            swap_free=swap_free,
        )  # fmt: skip
        used = []
        for told in (None, ages):
            guest = make_guest()
            guest.connected(FACTS, GIB, 0.0, paused=False)
            now = sample(memory_bytes=facts, ages=told)
            guest.memory.learn_need(now, guest.size.actual_bytes, guest.size.target_bytes)
            used.append((guest.memory.in_use_bytes(now, Touches()), guest.memory.floor_bytes))
        with_reserve_added = [floor_of((740 - part) * MIB) for part in (0, lent)]
        assert [align_up(in_use) for in_use, _ in used] == with_reserve_added
        anonymous = lent if kind == "anon" else 0
        assert [floor for _, floor in used] == [floor_of(640 * MIB), floor_of((640 - anonymous) * MIB)]

    def test_without_it_a_gap_is_never_negative(self):
        guest = make_guest()
        guest.connected(msgspec.structs.replace(FACTS, deflate_on_oom=False), 512 * MIB, 0.0, paused=False)
        stale = holding(300 * MIB, total_bytes=GIB)
        guest.memory.learn_need(
            sample(memory_bytes=stale), guest.size.actual_bytes, guest.size.target_bytes
        )  # from before a move
        assert guest.memory.floor_bytes == 300 * MIB + CONTROL.reserve


class TestPluggedRam:
    def plugged(self, guest, *, ram_bytes=3 * GIB):
        guest.memory.given(FACTS.with_memory(MemorySizes(ram_bytes=ram_bytes)))

    def needs(self, guest, total_bytes):
        needs = holding(300 * MIB, total_bytes=total_bytes)
        guest.memory.learn_need(sample(memory_bytes=needs), guest.size.actual_bytes, guest.size.target_bytes)
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
