"""What a policy sees of one guest."""

from __future__ import annotations

from qmpalloc.control.guest import Guest
from qmpalloc.idle import idle_memory
from qmpalloc.model import GuestSnapshot


def snapshot_of(guest: Guest, now_s: float) -> GuestSnapshot:
    """Return what a policy sees of this guest at `now_s`. Its target is what was decided last."""
    memory, size, delta, newest = guest.memory, guest.size, guest.samples.window(), guest.samples.newest
    rate = delta.accesses / delta.interval_s if delta and delta.accesses is not None else None
    known = guest.samples.curves.facts(memory.floor_bytes, memory.cap_bytes, rate)
    return GuestSnapshot(
        name=guest.name,
        state=guest.state(now_s),
        target_bytes=size.desired_bytes,
        actual_bytes=size.actual_bytes,
        charge_bytes=guest.charge_bytes,
        floor_bytes=memory.floor_bytes,
        cap_bytes=memory.cap_bytes,
        baseline_bytes=memory.baseline_bytes,
        outside_bytes=guest.outside_bytes,
        grid=memory.grid,
        weight=guest.config.weight,
        hits=delta.hits if delta else None,
        misses=delta.misses if delta else None,
        interval_s=delta.interval_s if delta else None,
        refaults=delta.refaults if delta else None,
        faults=delta.inserts_fault if delta else None,
        faults_major=delta.faults_major if delta else None,
        swap_ins=delta.swap_ins if delta else None,
        swap_ins_zram=delta.swap_ins_zram if delta else None,
        memory=newest.memory_bytes if newest else None,
        resident_bytes=memory.resident_bytes,
        in_use_bytes=memory.in_use_bytes(newest, guest.samples.touches),
        idle=idle_memory(newest, guest.samples.touches),
        returns=known.returns,
        rescue_bytes=guest.danger.rescue_bytes(now_s),
        psi_some_avg10=newest.psi_memory.some_avg10 if newest else None,
        pin=guest.choice.pin(memory.floor_bytes, memory.cap_bytes, now_s) if guest.choice else None,
        frozen=guest.danger.why(now_s) or guest.progress.stuck(now_s),
        curve=known.curve,
        no_curve=known.no_curve,
        ghost_gain=known.ghost_gain,
        ghost_loss=known.ghost_loss,
        hit_s=known.hit_s,
        miss_s=known.miss_s,
        waits=known.waits,
        disk_read_pages=known.disk_read_pages,
        page_ins_lately=known.page_ins_lately,
        disk_read_pages_lately=known.disk_read_pages_lately,
    )
