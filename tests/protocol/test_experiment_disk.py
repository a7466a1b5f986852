"""The disk of a guest in an experiment: its throttle, by built-in reads and by programs, and what is read of it."""

import msgspec
import pytest
import trio

from qmpalloc.experiment.run.disk import EACH_S, calibrate, calibrate_by_programs, set_throttle
from qmpalloc.experiment.run.failures import leaves
from qmpalloc.experiment.run.load import PLAN_FILE
from qmpalloc.experiment.run.readings import read_guest
from qmpalloc.experiment.spec.schema import Disk
from qmpalloc.experiment.store.records import DiskCalibration, ProgramPace
from qmpalloc.sim import Load as SimulatedLoad
from qmpalloc.testing import FakeQemu, SimulatedGuest
from tests.protocol.clients import result
from tests.protocol.loaded_guest import FINISHED, SERVICE, FakeGuest, link_to, throttled_qemu, with_programs


@pytest.fixture
def guest():
    return FakeGuest()


@pytest.fixture
def qemu():
    return throttled_qemu()


@pytest.fixture
def programs(tmp_path):
    return with_programs(tmp_path)


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (Disk(), DiskCalibration(model="ssd", hit_s=30e-6, iops=667)),
        (Disk(model="hdd"), DiskCalibration(model="hdd", hit_s=30e-6, iops=7)),
        (Disk(model="raw"), DiskCalibration(model="raw", hit_s=30e-6, iops=0)),
        (Disk(iops=123), DiskCalibration(model="iops", hit_s=30e-6, iops=123)),
    ],
)
async def test_the_throttle_follows_from_cached_reads_in_all_guests(autojump_clock, qemu, disk, expected):
    quick, slow, other = FakeGuest(), FakeGuest(), FakeQemu()
    other.blocks = qemu.blocks
    quick.service = msgspec.structs.replace(SERVICE, hit_s=20e-6)
    qemu.throttles["data"] = 5  # of before: the measurement must not see it
    async with link_to(quick, qemu) as first, link_to(slow, other) as second:
        found = await calibrate(disk, [first, second])
        assert found == msgspec.structs.replace(expected, hit_s=pytest.approx(30e-6))
        assert qemu.throttles == {}
        await set_throttle([first, second], found.iops)
        assert qemu.throttles == other.throttles == ({"data": found.iops} if found.iops else {})


@pytest.mark.parametrize(("finished", "counted"), [(True, 10_010), (False, 9_000)])
async def test_the_reading_of_a_finished_load_has_all_its_reads(autojump_clock, guest, qemu, finished, counted):
    sample = SimulatedGuest("g1", load=SimulatedLoad(file_pages=1, accesses_per_s=1.0), memory_bytes=2**28).sample()

    def collector_writes(accesses, monotonic_s):
        counters = msgspec.structs.replace(sample.counters, accesses=accesses, inserts_read=0)
        written = msgspec.structs.replace(sample, counters=counters, monotonic_ns=round(monotonic_s * 1e9))
        guest.agent.files["/run/qmpalloc/counters.json"] = msgspec.json.encode(written)

    async with link_to(guest, qemu) as link, trio.open_nursery() as nursery:
        collector_writes(9_000, 103.6)
        guest.say(msgspec.structs.replace(FINISHED, finished=finished))

        async def later():
            await trio.sleep(0.6)
            collector_writes(10_010, 104.6)

        nursery.start_soon(later)
        reading = await read_guest(link, trial=1, t=15.0, target_bytes=2**28)
        assert reading.accesses == counted


async def test_programs_read_from_the_root_disk_as_well(autojump_clock, guest, programs, qemu):
    qemu.blocks.append({"device": "root", "stats": {"rd_bytes": 4096, "rd_operations": 1, "rd_total_time_ns": 7}})
    async with link_to(guest, qemu) as link:
        both = msgspec.structs.replace(link, disks=("data", "root"))
        await set_throttle([both], 50)
        assert qemu.throttles == {"data": 50, "root": 50}


class WorkingGuest(FakeGuest):
    """A guest whose program accesses pages: all from the cache, or from the disk when it is cold."""

    def __init__(self, qemu, *, accesses=100_000):
        super().__init__()
        self.qemu, self.accesses = qemu, accesses
        self.load = SimulatedLoad(file_pages=1, accesses_per_s=1.0)
        self.sample = SimulatedGuest("g1", load=self.load, memory_bytes=2**28).sample()
        self.count = {"accesses": 5, "inserts_read": 5, "inserts_fault": 5}
        self.sequence, self.runs, self.breaks = 0, [], None
        self.write()

    def write(self):
        self.sequence += 1
        counters = msgspec.structs.replace(self.sample.counters, **self.count)
        written = msgspec.structs.replace(self.sample, counters=counters, sequence=self.sequence)
        self.agent.files["/run/qmpalloc/counters.json"] = msgspec.json.encode(written)

    async def collect(self):
        while True:
            await trio.sleep(1.0)
            self.write()

    def program(self, argv, data):
        if argv[2:3] != ["once"]:
            return super().program(argv, data)
        if self.breaks is not None:
            return self.breaks
        self.agent.program_s = EACH_S
        self.runs.append((argv[3:], self.qemu.throttles.get("data", 0), self.qemu.balloon.target_bytes))
        if "--cold" in argv:
            self.add(20_000, 10_000, 800, 1_800)
            return result(out=msgspec.json.encode({"seconds": 10.0, "metrics": {"rate": 5.0}}))
        self.add(self.accesses, 10, 0, 10)
        return result(out=msgspec.json.encode({"seconds": 10.0, "metrics": {"rate": 50.0}}))

    def add(self, accesses, misses, faults, requests):
        for name, more in zip(self.count, (accesses, misses, faults), strict=True):
            self.count[name] += more
        self.qemu.blocks[0]["stats"]["rd_operations"] += requests


async def calibrated(specification, qemu, guest, disk):
    async with link_to(guest, qemu, specification) as link, trio.open_nursery() as nursery:
        nursery.start_soon(guest.collect)
        found = await calibrate_by_programs(disk, [link])
        nursery.cancel_scope.cancel()
    return found


async def test_the_throttle_follows_from_what_programs_do(autojump_clock, qemu, programs):
    guest = WorkingGuest(qemu)
    found = await calibrated(programs, qemu, guest, Disk(by="programs"))
    assert (found.by, found.hit_s, found.iops) == ("programs", pytest.approx(100e-6), 200)
    service = found.programs["g1"]["phase1"]
    assert service.warm == ProgramPace(seconds=10.0, metrics={"rate": 50.0}, accesses=100_000, misses=10, disk_reads=10)
    assert (service.cold.misses, service.cold.faults, service.cold.disk_reads) == (10_000, 800, 1_800)
    assert service.ratio == pytest.approx(50)
    # Filled and warm at the cap, without a throttle; cold with it.
    words = [PLAN_FILE, "0", str(EACH_S)]
    cap = programs.guests[0].cap
    assert guest.runs == [([*words, "--warm-up"], 0, cap), (words, 0, cap), ([*words, "--cold"], 200, cap)]


async def test_a_program_of_mapped_files_leaves_the_throttle_to_reads(autojump_clock, qemu, programs):
    found = await calibrated(programs, qemu, WorkingGuest(qemu, accesses=20), Disk(by="programs"))
    assert (found.by, found.hit_s, found.iops) == ("reads", SERVICE.hit_s, 500)
    assert found.programs["g1"]["phase1"].ratio is None


async def test_a_program_that_fails_when_it_is_measured_is_told_with_its_key(autojump_clock, qemu, programs):
    guest = WorkingGuest(qemu)
    guest.breaks = result(code=1, err=b"guest[0].phase[0].command: work ended with 3")
    with pytest.raises(BaseExceptionGroup) as caught:
        await calibrated(programs, qemu, guest, Disk(by="programs"))
    (error,) = leaves(caught.value)
    assert str(error).startswith(f"{programs.file}: guest g1: guest[0].phase[0].command: work ended with 3")
