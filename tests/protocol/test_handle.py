"""The Python API: a guest in the hands of a script, and the examples that show it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import trio

import qmpalloc
from qmpalloc.config import load
from qmpalloc.errors import ConfigError, RefusedError, SampleError, UnreachableError
from qmpalloc.sim import Load
from qmpalloc.testing import FakeBalloon, open_simulated_guest
from qmpalloc.units import GIB, MIB

EXAMPLES = Path(__file__).parents[2] / "examples"


def simulated(directory):
    balloon = FakeBalloon(GIB, inflate_bytes_per_s=100.0 * MIB)
    load = Load(file_pages=10_000, accesses_per_s=5000.0)
    return open_simulated_guest("web", directory, load=load, memory_bytes=GIB, balloon=balloon)


def opened(guest):
    return qmpalloc.open_guest(guest.monitor_path, guest.agent_path)


async def test_read_samples_and_set_a_target(tmp_path, autojump_clock):
    async with simulated(tmp_path) as simulation, opened(simulation) as guest:
        await trio.sleep(2)
        assert guest.facts.ram_bytes == GIB
        accepted = await guest.next_delta(2.0)
        assert accepted.delta.hits == 10_000
        await guest.set_target(512 * MIB)
        assert await guest.size_bytes() > 512 * MIB
        await trio.sleep(10)
        assert await guest.size_bytes() == 512 * MIB


@pytest.mark.parametrize("target_bytes", [1, 64 * MIB, 2 * GIB])
async def test_a_target_that_could_kill_the_guest_is_refused(tmp_path, autojump_clock, target_bytes):
    async with simulated(tmp_path) as simulation, opened(simulation) as guest:
        await trio.sleep(2)
        with pytest.raises(ConfigError, match="is not between"):
            await guest.set_target(target_bytes)
        assert "balloon" not in [command for command, _ in simulation.qemu.requests]


async def test_what_can_go_wrong_has_a_name(tmp_path, autojump_clock):
    with pytest.raises(UnreachableError):
        async with qmpalloc.open_guest(str(tmp_path / "absent"), str(tmp_path / "absent")):
            pass
    async with simulated(tmp_path) as simulation, opened(simulation) as guest:
        await trio.sleep(2)
        await guest.next_delta(2.0)
        simulation.collecting = False
        with pytest.raises(SampleError, match="not written"):
            await guest.next_delta(2.0)
        simulation.agent.files.clear()
        with pytest.raises(RefusedError):
            await guest.read_sample()


def test_all_public_names_exist():
    assert all(getattr(qmpalloc, name) is not None for name in qmpalloc.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        qmpalloc.nonsense  # noqa: B018


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_observing_example(tmp_path, autojump_clock, capsys):
    async with simulated(tmp_path) as simulation:
        await trio.sleep(2)
        await example("observe").main(simulation.monitor_path, simulation.agent_path, "768MiB")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("RAM 1024 MiB, floor now")
    assert lines[-1] == "size 768 MiB, hits 10000, misses 0 in 2.0 s"


async def test_the_example_of_a_policy_and_the_one_that_compares(tmp_path, autojump_clock, capsys):
    async with simulated(tmp_path) as simulation:
        (tmp_path / "lab.toml").write_text(
            '[host]\nbudget = "1GiB"\n[control]\ninterval = "2s"\n[policy]\nname = "custom_policy:ByMisses"\n'
            'smoothing = 0.25\n[[guest]]\nname = "web"\nmonitor = "web.qmp"\nagent = "web.agent"\n'
            'floor = "256MiB"\ncap = "1GiB"\nbaseline = "512MiB"\n'
        )
        loaded = load(tmp_path / "lab.toml")
        sys.path.append(str(EXAMPLES))
        try:
            policy = qmpalloc.load_policy(loaded.policy, loaded.policy_settings, file=loaded.file)
        finally:
            sys.path.remove(str(EXAMPLES))
        assert simulation.name == "web"
        with qmpalloc.RecordWriter(tmp_path / "record.jsonl") as record:
            controller = qmpalloc.Controller(loaded, policy, record)
            await controller.run(duration_s=9.0)
    example("compare_policies").main(str(tmp_path / "record.jsonl"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "decided: split by misses" in lines[-1]


@pytest.mark.parametrize("name", ["demo.toml"])
def test_example_configurations_are_valid(name):
    loaded = load(EXAMPLES / name)
    qmpalloc.load_policy(loaded.policy, loaded.policy_settings, file=loaded.file)
