"""A guest whose programs read by mmap makes no reads and, while all is cached, no faults. It is not idle for that."""

import msgspec
import pytest

from qmpalloc.events import Decided
from qmpalloc.experiment.spec.access import Normal
from qmpalloc.sim import MappedFile
from qmpalloc.sim.replay import ReplayGuest
from qmpalloc.units import MIB


async def reader_and_mapper(lab):
    """One reads a file that does not fit; the other maps one of 350 MiB, all of it cached."""
    reader = ReplayGuest(
        "reader", Normal(deviation=0.2), file_bytes=900 * MIB, accesses_per_s=3_000, size_bytes=500 * MIB,
        floor_bytes=200 * MIB, cap_bytes=800 * MIB,
    )  # fmt: skip
    await lab.add("reader", load=reader)
    mapper = await lab.add("mapper", file_mib=1, accesses_per_s=0.0)
    mapper.mapped = MappedFile(file_pages=350 * 256, touches_per_s=2_000.0, resident_pages=350 * 256)
    return mapper


@pytest.mark.parametrize("policy", ["curve", "hill"])
async def test_a_guest_that_maps_what_it_reads_keeps_it(lab, autojump_clock, policy):
    mapper = await reader_and_mapper(lab)
    await lab.run(200.0, policy)
    assert int(mapper.mapped.faults) == 0
    gave = [event for event in lab.of(Decided) if event.decision.target_of("mapper") < 500 * MIB]
    assert gave  # what is really spare
    assert min(event.decision.target_of("mapper") for event in gave) >= (96 + 350) * MIB
    assert any("its programs hold or map" in event.decision.guests[1].reason for event in gave)


@pytest.mark.parametrize("policy", ["curve", "hill"])
async def test_memory_of_a_guest_that_begins_to_fault_comes_back_at_the_next_decision(lab, autojump_clock, policy):
    """It says here that it maps nothing: only what it brings in tells."""
    mapper = await reader_and_mapper(lab)
    facts = mapper._memory
    mapper._memory = lambda: msgspec.structs.replace(facts(), mapped=0)
    await lab.run(200.0, policy)
    sizes = [event.decision.target_of("mapper") // MIB for event in lab.of(Decided)]
    assert min(sizes) < 446
    back = next(event for event in lab.of(Decided) if "gets back" in event.decision.guests[1].reason)
    assert back.snapshot.guests[1].faults > 100
    assert min(sizes[-10:]) >= 446  # and is not believed idle again
    assert mapper.mapped.faults < 60_000
