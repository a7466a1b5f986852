"""A guest as control knows it, and samples for it, without any I/O."""

from qmpalloc.config import ControlConfig, Duration, GuestConfig, Size
from qmpalloc.control.guest import Guest
from qmpalloc.control.memory import Facts
from qmpalloc.rules.danger import with_reserve
from qmpalloc.sample import Counters, Memory, Sample
from qmpalloc.units import GIB, MIB, align_up

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


def holding(held_bytes, *, total_bytes, **parts):
    """Memory of which the guest cannot give up so much; the rest is free, but for what `parts` says."""
    reclaimable = ("balloon", "active_file", "inactive_file", "kernel_reclaimable")
    kernel = ("slab_unreclaimable", "kernel_stack", "page_tables")
    told = dict.fromkeys((*reclaimable, *kernel), 0) | {"anon": held_bytes, "shmem": 0} | parts
    return Memory(total=total_bytes, free=total_bytes - held_bytes - sum(told[name] for name in reclaimable), **told)


def take(guest, now_s, **changes):
    """Give the guest the two samples that make it fresh."""
    guest.take_sample(sample(1), now_s - 1.0)
    guest.take_sample(sample(2, **changes), now_s)
