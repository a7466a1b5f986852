"""Guests in the model: loads, page caches and a host that splits its memory, with no clock and no I/O.

`ReplayGuest` and `ReplayHost` try policies as fast as the machine can; the loads also drive the simulated guests of
`qmpalloc.testing`, which answer on sockets.
"""

from qmpalloc.sim.load import CacheModel, HitRatio, Load, MappedFile, uniform
from qmpalloc.sim.replay import ReplayGuest, ReplayHost

__all__ = [
    "CacheModel",
    "HitRatio",
    "Load",
    "MappedFile",
    "ReplayGuest",
    "ReplayHost",
    "uniform",
]
