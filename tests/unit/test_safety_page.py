"""The tables of faults name tests that exist."""

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "safety.md").read_text()
BAD_SAMPLES = (ROOT / "docs" / "curves.md").read_text().split("## Bad input")[1]
with (ROOT / "docs" / "faults.csv").open() as file:
    FAULTS = list(csv.DictReader(file))


def test_every_named_test_exists():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    existing = set(re.findall(r"def (test_\w+)", sources))
    named = {name for row in FAULTS for name in row["tests"].split()}
    assert named | set(re.findall(r"`(test_\w+)`", PAGE + BAD_SAMPLES)) <= existing


def test_every_fault_has_a_test_and_there_are_enough():
    assert len(FAULTS) >= 145
    assert all(row["what the tool does"] and row["tests"] for row in FAULTS)
    rows = [line for line in BAD_SAMPLES.splitlines() if re.match(r"\| (?!fault|what|---)", line)]
    assert [row for row in rows if not re.search(r"`test_\w+` \|$", row)] == []
