import os
import sys
from pathlib import Path

import pytest

# The package directory of tests is no package; its helpers are imported by name.
sys.path.insert(0, str(Path(__file__).parent))

SNAPSHOTS = Path(__file__).parent / "snapshots"


@pytest.fixture
def same_as_snapshot():
    """Compare text with ``snapshots/<name>.txt``; UPDATE_SNAPSHOTS=1 writes it instead."""

    def compare(name, text):
        path = SNAPSHOTS / f"{name}.txt"
        text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
        if os.environ.get("UPDATE_SNAPSHOTS"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert text == path.read_text()

    return compare
