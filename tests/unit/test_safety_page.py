"""The pages of faults name tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "safety.md").read_text()
BAD_SAMPLES = (ROOT / "docs" / "curves.md").read_text().split("## Bad input")[1]


def test_every_named_test_exists():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    existing = set(re.findall(r"def (test_\w+)", sources))
    assert set(re.findall(r"`(test_\w+)`", PAGE + BAD_SAMPLES)) <= existing


def test_every_fault_has_a_test_and_there_are_enough():
    rows = [line for line in (PAGE + BAD_SAMPLES).splitlines() if re.match(r"\| (?!fault|what|---)", line)]
    assert len(rows) >= 52
    assert [row for row in rows if not re.search(r"`test_\w+` \|$", row)] == []
