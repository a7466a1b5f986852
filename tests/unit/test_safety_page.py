"""The safety page names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "safety.md").read_text()


def test_every_named_test_exists():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    existing = set(re.findall(r"def (test_\w+)", sources))
    assert set(re.findall(r"`(test_\w+)`", PAGE)) <= existing


def test_every_fault_has_a_test_and_there_are_enough():
    rows = [line for line in PAGE.splitlines() if re.match(r"\| (?!fault|---)", line)]
    assert len(rows) >= 40
    assert [row for row in rows if not re.search(r"`test_\w+` \|$", row)] == []
