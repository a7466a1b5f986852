from qmpalloc.rules.progress_deadline import LONGEST, ProgressDeadline
from qmpalloc.units import MIB


def test_it_lasts_as_long_as_what_is_missing_becomes_less():
    deadline = ProgressDeadline(15.0, 100.0)
    assert not any(deadline.passed((300 - second) * MIB, 100.0 + second) for second in range(100))
    assert not deadline.passed(201 * MIB, 213.0)
    assert deadline.passed(201 * MIB, 214.0)


def test_to_and_fro_is_no_progress():
    deadline = ProgressDeadline(15.0, 0.0)
    told = [deadline.passed((20 + second % 2 * 5) * MIB, float(second)) for second in range(16)]
    assert told == [False] * 15 + [True]


def test_next_to_nothing_is_no_progress():
    deadline = ProgressDeadline(15.0, 0.0)
    assert not deadline.passed(20 * MIB, 0.0)
    assert not deadline.passed(20 * MIB - 4096, 14.0)
    assert deadline.passed(20 * MIB - 8192, 15.0)


def test_it_ends_however_steadily_they_come_closer():
    deadline = ProgressDeadline(15.0, 0.0)
    passed_s = next(second for second in range(10_000) if deadline.passed((10_000 - second) * MIB, float(second)))
    assert passed_s == LONGEST * 15
