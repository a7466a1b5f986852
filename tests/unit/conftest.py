import sys
from pathlib import Path

import pytest

from qmpalloc.experiment.run.shipping import packed_generator

# The package directory of tests is no package; its helpers are imported by name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """Return the generator as it is shipped to guests: one file, of its own."""
    path = tmp_path_factory.mktemp("generator") / "generator.pyz"
    path.write_bytes(packed_generator())
    return path
