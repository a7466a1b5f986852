"""Misses reported beside pages that the disks read, over the last minutes."""

import pytest

from qmpalloc.curves.disk_check import DiskCrossCheck, Reads


def test_both_count_half_after_a_minute():
    check = DiskCrossCheck(Reads(0.0, 0.0))
    check.take_reads(Reads(900.0, 1.0))
    check.take_page_ins(1_000, 5.0)
    for _ in range(12):
        check.take_page_ins(0, 5.0)
    assert check.page_ins_lately == pytest.approx(500)
    assert check.pages_lately == pytest.approx(450, rel=0.1)


def test_a_few_unconfirmed_misses_in_each_interval_add_up():
    check = DiskCrossCheck(Reads(7.0, 0.0))
    for _ in range(100):
        check.take_page_ins(500, 5.0)
    assert check.page_ins_lately > 5_000
    assert check.pages_lately == 0


def test_nonsense_takes_nothing_away():
    check = DiskCrossCheck(Reads(7.0, 0.0))
    assert not check.take_reads(Reads(2.0, 0.0))
    check.take_page_ins(-5, -1.0)
    assert (check.page_ins_lately, check.pages_lately) == (0.0, 0.0)
