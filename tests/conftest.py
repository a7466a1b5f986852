"""For all tests: how long an example takes is no reason to fail, as the machine may be busy with something else."""

from hypothesis import settings

settings.register_profile("qmpalloc", deadline=None)
settings.load_profile("qmpalloc")
