"""Fakes of what qmpalloc talks to, for its tests and for yours.

`FakeQemu` is a QMP server, `FakeAgent` a guest agent; both are told by their `Faults` what to do wrong.
`open_simulated_guest` joins them with a load of `qmpalloc.sim`, to try a policy without a guest.
"""

from qmpalloc.testing.balloon import FakeBalloon, FakeVirtioMem
from qmpalloc.testing.fake_agent import FakeAgent
from qmpalloc.testing.fake_qemu import FakeQemu
from qmpalloc.testing.faults import Faults
from qmpalloc.testing.peer import Refusal
from qmpalloc.testing.simulated_guest import SimulatedGuest, open_simulated_guest

__all__ = [
    "FakeAgent",
    "FakeBalloon",
    "FakeQemu",
    "FakeVirtioMem",
    "Faults",
    "Refusal",
    "SimulatedGuest",
    "open_simulated_guest",
]
