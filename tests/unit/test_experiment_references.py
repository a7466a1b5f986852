"""The references have the shape that is claimed, touch what they should, and are the same every time."""

import math
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import NormalDist, fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpalloc.experiment.spec import parsing
from qmpalloc.experiment.spec.access import HotCold, Loop, Mixture, Normal, Part, Sequential, Uniform, Zipf
from qmpalloc.experiment.spec.references import page_numbers, phase_pages

EXAMPLES = Path(__file__).parents[2] / "examples"
READS = 100_000
ALL = [
    Normal(),
    Zipf(),
    HotCold(),
    Uniform(),
    Sequential(),
    Loop(share=0.25, start=0.5),
    Mixture(parts=(Part(weight=1, access=Uniform()), Part(weight=1, access=Sequential()))),
]


def drawn(access, pages, reads=READS, *, seed=1, guest="g1", phase="phase1"):
    return list(islice(page_numbers(access, pages, seed=seed, guest=guest, phase=phase), reads))


def share(numbers, first, last):
    return sum(first <= number < last for number in numbers) / len(numbers)


@pytest.mark.parametrize("deviation", [0.05, 0.15, 0.3, 1.0])
def test_normal_is_centred_and_truncated_to_the_file(deviation):
    pages = 10_000
    numbers = drawn(Normal(deviation=deviation), pages)
    assert min(numbers) >= 0
    assert max(numbers) < pages
    # A normal distribution cut at both ends alike has a known deviation, smaller than the uncut one's.
    bell, cut = NormalDist(), 0.5 / deviation
    within = bell.cdf(cut) - bell.cdf(-cut)
    expected = deviation * math.sqrt(1 - 2 * cut * bell.pdf(cut) / within)
    assert fmean(numbers) / pages == pytest.approx(0.5, abs=5 * expected / math.sqrt(READS))
    assert pstdev(numbers) / pages == pytest.approx(expected, rel=0.01)
    for tenth in range(10):
        low, high = tenth / 10, (tenth + 1) / 10
        mass = (bell.cdf((high - 0.5) / deviation) - bell.cdf((low - 0.5) / deviation)) / within
        assert share(numbers, low * pages, high * pages) == pytest.approx(mass, abs=0.006)


def test_normal_reads_neighbours_of_the_middle_most_and_reaches_the_whole_file():
    pages = 1000
    counts = Counter(drawn(Normal(deviation=0.3), pages, 200_000))
    assert len(counts) == pages  # not hashed onto a part of the blocks
    middle, edge = sum(counts[n] for n in range(450, 550)), sum(counts[n] for n in range(100))
    assert middle / edge == pytest.approx(3.2, rel=0.1)  # masses 0.1451 and 0.0455 of one bell


@pytest.mark.parametrize("exponent", [0.5, 0.9, 1.0, 1.5, 3.0])
def test_zipf_has_its_frequency_by_rank(exponent):
    pages = 1000
    counts = Counter(drawn(Zipf(exponent=exponent), pages))
    total = sum(rank**-exponent for rank in range(1, pages + 1))
    for rank in (1, 2, 3, 5, 10, 30):
        probability = rank**-exponent / total
        tolerance = 5 * math.sqrt(probability * (1 - probability) / READS)
        assert counts[rank - 1] / READS == pytest.approx(probability, abs=tolerance)
    tail = sum(rank**-exponent for rank in range(501, pages + 1)) / total
    assert sum(counts[n] for n in range(500, pages)) / READS == pytest.approx(tail, abs=0.008)


@given(st.floats(1e-9, 5) | st.sampled_from([1 - 1e-13, 1 + 1e-13, 1.0]), st.integers(1, 2**30), st.integers(0, 99))
def test_zipf_stays_in_the_file_for_any_exponent(exponent, pages, seed):
    assert all(0 <= number < pages for number in drawn(Zipf(exponent=exponent), pages, 20, seed=seed))


def test_hotcold_reads_the_hot_part_as_often_as_it_says():
    numbers = drawn(HotCold(hot=0.2, hot_reads=0.9), 1000)
    assert share(numbers, 0, 200) == pytest.approx(0.9, abs=0.005)
    assert share(numbers, 0, 100) == pytest.approx(0.45, abs=0.008)
    assert share(numbers, 200, 600) == pytest.approx(0.05, abs=0.004)


def test_uniform_reads_every_page_alike():
    numbers = drawn(Uniform(), 1000)
    assert fmean(numbers) == pytest.approx(499.5, abs=5)
    assert pstdev(numbers) == pytest.approx(1000 / math.sqrt(12), rel=0.01)
    assert len(set(numbers)) == 1000


def test_scans():
    assert drawn(Sequential(), 4, 6) == [0, 1, 2, 3, 0, 1]
    assert drawn(Loop(share=0.3, start=0.5), 10, 7) == [5, 6, 7, 5, 6, 7, 5]
    assert drawn(Loop(share=0.001, start=0.999), 10, 2) == [9, 9]


def test_a_mixture_keeps_its_weights_and_its_scans_their_place():
    scan = Part(weight=1, access=Loop(share=0.5, start=0.5))
    numbers = drawn(Mixture(parts=(Part(weight=3, access=HotCold(hot=0.5, hot_reads=1)), scan)), 1000)
    scanned = [number for number in numbers if number >= 500]
    assert len(scanned) / READS == pytest.approx(0.25, abs=0.007)
    assert scanned[:1200] == [500 + index % 500 for index in range(1200)]


@pytest.mark.parametrize("access", ALL, ids=lambda access: type(access).__name__)
@given(pages=st.integers(1, 5000), seed=st.integers(0, 2**70))
def test_only_pages_of_the_file_and_the_same_every_time(access, pages, seed):
    numbers = drawn(access, pages, 50, seed=seed)
    assert all(0 <= number < pages for number in numbers)
    assert numbers == drawn(access, pages, 50, seed=seed)


def test_seed_guest_and_phase_give_other_references():
    streams = [
        drawn(Uniform(), 10**6, 20),
        drawn(Uniform(), 10**6, 20, seed=2),
        drawn(Uniform(), 10**6, 20, guest="g2"),
        drawn(Uniform(), 10**6, 20, phase="phase2"),
    ]
    assert len({tuple(stream) for stream in streams}) == 4


def test_references_stay_what_they_were():
    # Records of other days are compared with today's: a change here is a change of every experiment.
    assert drawn(Normal(deviation=0.3), 262144, 5) == [30070, 72557, 211238, 125599, 117268]
    assert drawn(Zipf(exponent=0.9), 262144, 5) == [34803, 13013, 7, 3769, 4078]


def test_the_reads_of_a_phase_and_their_footprint():
    spec = parsing.load(EXAMPLES / "paper-x2.toml")
    guest = spec.guests[0]
    phase = guest.phases[0]
    numbers = list(phase_pages(spec, guest, phase))
    assert len(numbers) == 800_000
    touched = len(set(numbers))
    # The footprint that independent draws of this distribution have: the sum of 1 - (1 - p) ** reads.
    bell = NormalDist()
    within = bell.cdf(0.5 / 0.3) - bell.cdf(-0.5 / 0.3)
    step = 1024
    density = (bell.pdf(((n + 0.5) / step - 0.5) / 0.3) / 0.3 / within / phase.pages for n in range(step))
    expected = sum(-math.expm1(-p * phase.total_reads) for p in density) * phase.pages / step
    assert touched == pytest.approx(expected, rel=0.005)


def test_a_file_without_a_page_is_refused():
    with pytest.raises(ValueError, match="0 pages"):
        page_numbers(Uniform(), 0, seed=1, guest="g", phase="p")
