"""A guest with a load, as its agent shows it, for tests of the host's side of a load."""

from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from qmpalloc.experiment.run.load import PROGRAM_FILE, PROGRESS_FILE, open_load
from qmpalloc.experiment.run.readings import Link
from qmpalloc.experiment.run.traces import Traces
from qmpalloc.experiment.spec import parsing
from qmpalloc.experiment.store.records import LoadProgress, PhaseProgress, Service
from qmpalloc.qmp import find_actuators
from qmpalloc.testing import FakeAgent, FakeQemu
from tests.protocol.clients import agent_of, monitor_of, result

TEXT = """
[experiment]
name = "try"
budget = "256MiB"
[[guest]]
name = "g1"
memory = "256MiB"
floor = "128MiB"
cap = "256MiB"
baseline = "128MiB"
[[guest.phase]]
file = "1MiB"
access = { distribution = "uniform" }
reads = 1000
rounds = 10
[[guest.phase]]
file = "2MiB"
access = { distribution = "sequential" }
reads = 10
rounds = 1
rate = 50
[[arm]]
name = "static"
policy = "static"
"""
SPECIFICATION = parsing.parse(TEXT, file=Path("/try.toml"))
GUEST = SPECIFICATION.guests[0]
SERVICE = Service(hit_s=40e-6, miss_s=400e-6, hits=1000, misses=100)
ARMED = LoadProgress(sequence=0, monotonic_s=100.0)
FIRST = PhaseProgress(name="phase1", reads=10_000, seconds=2.0, started_s=101.0, done=True, latency={50: 1_250})
SECOND = PhaseProgress(name="phase2", reads=10, seconds=0.2, started_s=103.0, done=True, latency={50: 10})
FINISHED = LoadProgress(sequence=9, monotonic_s=104.0, phases=(FIRST, SECOND), finished=True)
PROGRAMS = """
[[guest.phase]]
command = ["work", "{seed}", "{guest}"]
environment = { A = "{scale}" }
duration = "20s"
copy = ["work.py", "work"]
[[guest.phase.metric]]
name = "rate"
unit = "1/s"
better = "higher"
pattern = "([0-9]+)"
[[guest.phase.metric]]
name = "every"
unit = "1/s"
better = "higher"
pattern = "([0-9]+)"
series = true
[[guest.phase.metric]]
name = "written"
unit = "1"
better = "higher"
json = { file = "{guest}-{seed}.json", path = "a.0" }
[[guest.phase]]
file = "1MiB"
access = { distribution = "uniform" }
reads = 1000
duration = "10s"
[[arm]]
name = "static"
policy = "static"
"""


class FakeGuest:
    """A guest whose Python is this class: it does what the generator would, as seen from outside."""

    def __init__(self):
        self.agent = FakeAgent(program=self.program)
        self.programs = []
        self.armed = ARMED
        self.ends = None
        self.fails = None
        self.service = SERVICE

    def program(self, argv, _data):
        self.programs.append(argv)
        line = " ".join(argv)
        if f"{PROGRAM_FILE} run" in line:
            self.agent.program_s = 1e9 if self.ends is None else 0.0
            if self.armed is not None:
                self.say(self.armed)
            return self.ends or result()
        self.agent.program_s = 0.0
        if self.fails is not None:
            return self.fails
        return result(out=msgspec.json.encode(self.service)) if f"{PROGRAM_FILE} service" in line else result()

    def say(self, progress):
        self.agent.files[PROGRESS_FILE] = progress if isinstance(progress, bytes) else msgspec.json.encode(progress)

    def connected(self):
        return agent_of(self.agent, "lab")

    @asynccontextmanager
    async def loaded(self, specification=SPECIFICATION):
        async with self.connected() as agent, open_load(agent, Traces(specification), specification.guests[0]) as load:
            yield load


@asynccontextmanager
async def link_to(guest, qemu, specification=SPECIFICATION):
    async with (
        monitor_of(qemu) as monitor,
        guest.connected() as agent,
        open_load(agent, Traces(specification), specification.guests[0]) as load,
    ):
        [actuator] = await find_actuators(monitor)
        yield Link("g1", monitor, actuator, agent, load, "/run/qmpalloc/counters.json")


def throttled_qemu():
    """Return a QEMU with a data disk."""
    fake = FakeQemu()
    fake.blocks = [{"device": "data", "stats": {"rd_bytes": 0, "rd_operations": 0, "rd_total_time_ns": 0}}]
    return fake


def with_programs(directory):
    """Return a specification whose guest runs a program that it brings from this directory."""
    (directory / "work.py").write_bytes(b"print(1)")
    (directory / "work").write_bytes(b"\x7fELF")
    (directory / "work").chmod(0o700)
    return parsing.parse(TEXT.split("[[guest.phase]]")[0] + PROGRAMS, file=directory / "try.toml")
