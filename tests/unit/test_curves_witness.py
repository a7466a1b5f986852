"""Misses reported beside pages that the disks read, over the last minutes."""

import pytest

from qmpalloc.curves.witness import Witness


def test_both_count_half_after_a_minute():
    witness = Witness()
    witness.see(900)
    witness.report(1_000, 5.0)
    for _ in range(12):
        witness.report(0, 5.0)
    assert witness.misses == pytest.approx(500)
    assert witness.pages == pytest.approx(450, rel=0.1)


def test_a_few_unconfirmed_misses_in_each_interval_add_up():
    witness = Witness()
    for _ in range(100):
        witness.report(500, 5.0)
    assert witness.misses > 5_000
    assert witness.pages == 0


def test_nonsense_takes_nothing_away():
    witness = Witness()
    witness.see(-5.0)
    witness.report(-5, -1.0)
    assert (witness.misses, witness.pages) == (0.0, 0.0)
