"""What a hit and a miss take a program, from runs of its command."""

import json

import pytest
import trio

from qmpalloc.errors import NonsenseError
from qmpalloc.experiment.run.readings import Link
from qmpalloc.experiment.store.records import ProgramPace, ProgramService
from qmpalloc.qmp import BlockStats

WARM = ProgramPace(seconds=10.0, accesses=100_000)
COLD = ProgramPace(seconds=10.0, accesses=20_000, misses=10_000, disk_reads=1_800)


def test_a_miss_takes_what_is_left_when_hits_are_taken_off():
    service = ProgramService(warm=WARM, cold=COLD)
    assert service.hit_s == pytest.approx(100e-6)
    assert service.miss_s == pytest.approx((10 - 10_000 * 100e-6) / 1_800)
    assert service.ratio == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("warm", "cold"),
    [
        (WARM, None),
        (ProgramPace(seconds=10.0, accesses=20), COLD),  # it maps its files
        (WARM, ProgramPace(seconds=10.0, accesses=90_000, misses=10, disk_reads=10)),
        (WARM, ProgramPace(seconds=1.0, accesses=90_000, misses=0, disk_reads=100)),  # hits were faster than warm
    ],
)
def test_what_cannot_be_told_is_not_known(warm, cold):
    service = ProgramService(warm=warm, cold=cold)
    assert service.miss_s is None
    assert service.ratio is None


@pytest.mark.parametrize(("known", "read"), [(("data",), ["data"]), ((), ["data", "cd"])])
def test_where_it_is_not_known_which_disks_a_load_reads_all_count(known, read):
    link = Link("g", None, None, None, None, "/counters", known)
    disks = [BlockStats(name=name, rd_bytes=0, rd_operations=0, rd_total_time_ns=0) for name in ("data", "cd")]
    assert [disk.name for disk in link.read_of(disks)] == read


def test_an_experiment_takes_no_estimates():
    counters = {
        "format": "qmpalloc-counters", "version": 1, "boot_id": "0" * 36, "start_id": "0" * 16, "sequence": 1,
        "monotonic_ns": 1, "interval_ms": 1000, "kernel": "6.12", "page_size": 4096,
        "duty": {"share": 0.1, "attached_ms": 1, "sampled": 0, "accesses_variance": 0},
    }  # fmt: skip

    class Channel:
        async def read_file(self, path, most):
            return json.dumps(counters).encode()

    link = Link("g", None, None, Channel(), None, "/counters")
    with pytest.raises(NonsenseError, match=r"g: its collector estimates hits \(--duty 0.1\)") as caught:
        trio.run(link.sample)
    assert "/etc/default/qmpalloc-collector" in caught.value.hint
