"""When the host runs out of memory, by its own account, and what every guest then gives."""

import pytest

from qmpalloc.host.memory import read_host_memory
from qmpalloc.model import GuestSnapshot, GuestState, Limiter, Snapshot
from qmpalloc.rules.hostguard import CALM_S, Emergency, HostGuard, HostMemory, relieve
from qmpalloc.rules.limits import apply_limits
from qmpalloc.units import GIB, MIB


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

    def test_swapping_is_one_only_when_it_stalls_the_host(self):
        guard = HostGuard()
        guard.look(memory(swapped_in_pages=0, stalled_us=0), 0.0)
        assert guard.look(memory(swapped_in_pages=5000, stalled_us=0), 1.0) is None
        found = guard.look(memory(swapped_in_pages=10_000, stalled_us=500_000), 2.0)
        assert found.reason == "the host reads 5000 pages/s back from swap and stands still 50% of the time"
        assert found.deficit_bytes > 0


def guest(name, target, floor=200, *, state=GuestState.FRESH, actual=None, charge=None, **changes):
    return GuestSnapshot(
        name=name, state=state, target_bytes=target * MIB, actual_bytes=(actual or target) * MIB,
        charge_bytes=(charge or actual or target) * MIB, floor_bytes=floor * MIB, cap_bytes=GIB,
        baseline_bytes=500 * MIB, **changes,
    )  # fmt: skip


def relieved(*guests, deficit=100):
    snapshot = Snapshot(cycle=1, time_s=0.0, budget_bytes=4 * GIB, interval_s=1.0, guests=guests)
    decision = relieve(snapshot, Emergency(reason="why", deficit_bytes=deficit * MIB))
    return apply_limits(snapshot, decision, {}).guests


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


@pytest.fixture
def host(tmp_path):
    files = {
        "proc/meminfo": "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   600 kB\n",
        "proc/vmstat": "pswpin 7\npswpout 9\n",
        "proc/pressure/memory": "some avg10=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
        "proc/self/cgroup": "0::/user/run\n",
        "cgroup/user/run/memory.max": "max\n",
        "cgroup/user/memory.max": "5000\n",
        "cgroup/user/memory.current": "4000\n",
        "cgroup/user/memory.stat": "anon 100\ninactive_file 1500\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


class TestReading:
    def test_all_of_it(self, host):
        assert read_host_memory(host / "proc", host / "cgroup") == HostMemory(
            total_bytes=1_024_000, available_bytes=614_400, swapped_in_pages=7, stalled_us=3, group_left_bytes=2500
        )

    def test_a_host_that_tells_less(self, host):
        for name in ("vmstat", "pressure/memory", "self/cgroup"):
            (host / "proc" / name).unlink()
        found = read_host_memory(host / "proc", host / "cgroup")
        assert (found.swapped_in_pages, found.stalled_us, found.group_left_bytes) == (None, None, None)

    def test_a_host_that_tells_nothing(self, tmp_path):
        assert read_host_memory(tmp_path, tmp_path) is None

    def test_this_host(self):
        assert read_host_memory() is not None
