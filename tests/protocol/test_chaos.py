"""The chaos test, for a short time; `python -m tests.chaos` runs it for long."""

import random

import pytest
import trio

from qmpalloc.control.guest import Guest
from qmpalloc.control.memory import Facts
from qmpalloc.errors import SampleError
from qmpalloc.events import SizeChanged
from qmpalloc.sample import parse
from qmpalloc.sim import Load
from qmpalloc.testing.simulated_guest import SimulatedGuest
from qmpalloc.units import MIB
from tests.chaos import run as chaos
from tests.chaos.faults import hostile_files, hostile_samples
from tests.chaos.run import make_config, run_chaos
from tests.chaos.witness import ViolationError, Witness


def size_changed(name, target_mib, actual_mib):
    sizes = {"target_bytes": target_mib * MIB, "actual_bytes": actual_mib * MIB}
    return SizeChanged(t=0.0, wall=0.0, guest=name, committed_bytes=0, **sizes)


@pytest.mark.timeout(300)
def test_nothing_breaks_the_invariants():
    done = run_chaos(seed=1, guests=3, cycles=15)
    assert done.witness.guest_cycles >= 3 * 15
    assert done.sound_guest_cycles == 0
    assert len(done.witness.shown) > 5


@pytest.mark.timeout(300)
def test_a_seed_replays():
    shown = [run_chaos(seed=7, guests=2, cycles=5).witness.shown for _ in range(2)]
    assert shown[0] == shown[1]


def test_the_witness_objects_to_a_grant_without_room():
    witness = Witness(budget_bytes=1000 * MIB, floor_bytes=100 * MIB, interval_s=5.0)

    async def grant():
        for name, target in (("a", 500), ("b", 500), ("a", 400)):
            witness(size_changed(name, target, 500))
            witness._command(name, target * MIB)
        assert not witness.violation
        witness(size_changed("b", 600, 500))
        assert "granted" in witness.violation

    trio.run(grant)


def test_the_witness_objects_to_a_command_that_is_not_in_the_books():
    witness = Witness(budget_bytes=1000 * MIB, floor_bytes=100 * MIB, interval_s=5.0)

    async def command():
        witness(size_changed("a", 300, 300))
        witness._command("a", 200 * MIB)
        assert not witness.violation
        witness._command("a", 400 * MIB)
        assert "books" in witness.violation

    trio.run(command)


def test_a_fault_that_does_not_show_is_a_violation(monkeypatch):
    monkeypatch.setattr(chaos, "shows", lambda fault, events: False)
    monkeypatch.setattr(chaos, "SHOW_LIMIT_S", 5.0)
    with pytest.raises(ViolationError, match="does not show"):
        run_chaos(seed=1, guests=1, cycles=20)


def test_every_hostile_file_is_refused(tmp_path):
    """By the parser, or by what is known of the guest before."""
    simulated = SimulatedGuest("a", load=Load(file_pages=1, accesses_per_s=1.0), memory_bytes=512 * MIB)
    config = make_config(tmp_path, 1)

    async def judge():
        for content in hostile_files(simulated):
            guest = Guest(config.guests[0], config.control)
            facts = Facts(ram_bytes=512 * MIB, balloon_path="/b", deflate_on_oom=True, qemu_version="9.2.0")
            guest.connected(facts, 512 * MIB, 0.0, paused=False)
            simulated.sequence, honest = 1, simulated.sample()
            guest.take_sample(honest, 0.0)
            with pytest.raises(SampleError) as caught:
                guest.take_sample(parse(content), 1.0)
            assert caught.value.message.isprintable()

    trio.run(judge)


def test_bytes_at_random_are_a_sample_error_or_a_sample():
    rng = random.Random(1)
    for _ in range(3000):
        data = bytes(rng.randrange(256) for _ in range(rng.randrange(200)))
        with pytest.raises(SampleError):
            parse(data)


def test_hostile_samples_are_refused_unless_some_guest_may_really_write_them(tmp_path):
    config = make_config(tmp_path, 1)
    refused = []

    async def judge():
        for content in hostile_samples(random.Random(1)):
            try:
                Guest(config.guests[0], config.control).samples.curves.take_batch(content, 0.0)
            except SampleError as error:
                refused.append(error.message)

    trio.run(judge)
    assert all(message.isprintable() for message in refused)
    assert len(refused) == len(list(hostile_samples(random.Random(1)))) - 3


def test_spoilt_samples_show_over_the_run(monkeypatch):
    only = [fault for fault in chaos.catalogue() if fault.name == chaos.SPOILT_SAMPLES]
    monkeypatch.setattr(chaos, "catalogue", lambda: tuple(only))
    assert run_chaos(seed=3, guests=2, cycles=10).witness.dropped
