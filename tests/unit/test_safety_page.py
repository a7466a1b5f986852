"""The tables of faults name tests that exist."""

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "safety.md").read_text()
with (ROOT / "docs" / "faults.csv").open() as file:
    FAULTS = list(csv.DictReader(file))


def test_every_named_test_exists():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    existing = set(re.findall(r"def (test_\w+)", sources))
    named = {name for row in FAULTS for name in row["tests"].split()}
    assert named | set(re.findall(r"`(test_\w+)`", PAGE)) <= existing


def test_every_fault_has_a_test_and_there_are_enough():
    assert len(FAULTS) >= 165
    assert all(row["what the tool does"] and row["tests"] for row in FAULTS)
