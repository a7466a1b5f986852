"""For all tests: how long an example takes is no reason to fail, as the machine may be busy with something else."""

from typing import Any

from click.testing import CliRunner, Result
from hypothesis import settings

settings.register_profile("qmpalloc", deadline=None)
settings.load_profile("qmpalloc")

if "mix_stderr" in CliRunner.__init__.__annotations__:  # click before 8.2: make it tell both streams, as later ones do
    _begin = CliRunner.__init__
    CliRunner.__init__ = lambda self, *args, **more: _begin(self, *args, mix_stderr=False, **more)
    Result.output = property(lambda self: self.stdout + self.stderr)


def pytest_make_parametrize_id(val: Any, argname: str) -> str | None:
    """No bytes in a test's name: a gzip holds the second it was made in, and workers must agree on names."""
    return argname if isinstance(val, bytes) else None
