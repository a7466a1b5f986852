"""All numbers that curves are tuned by, by stage, each with what it is for, so that an ablation can change each.

What a file format, a kernel or a formula says is no tuning and stays where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct, structs

from qmpalloc.units import MIB


class Sampling(Struct, frozen=True):
    """How much is simulated."""

    pages_max: int = 8_192  # of the largest simulated cache; the rate is lowered until it fits: bounds memory and CPU
    pages_least: int = 1_024  # fewer than twice this are not halved to save CPU: the curve would be too coarse
    per_s_max: float = 1_000.0  # accesses, else the rate is lowered: many guests are not to cost the host a core
    busy_intervals: int = 3  # in a row above that: a shorter burst is simulated
    sizes: int = 16  # simulated caches from floor to cap; between them the curve follows LRU, so few are enough
    finer_after: int = (
        30  # windows with more pages than are used, until a coarse curve begins anew and must learn again
    )
    # A guest's accesses cost 4 to 12 us each, whatever its pages: at most 70 ms at once and 30 ms of each second. The
    # collector ships 2,000 a second at most, and those of its last three intervals at once.
    at_once: int = 6_000
    per_s: float = 2_500.0
    cpu_share: float = 0.15  # of a core, for all guests; with what reading the samples takes, less than a fifth
    cpu_least_per_s: float = 250.0  # accesses of each guest that are always allowed: with fewer it has no curve
    cpu_cost_s: float = 5e-6  # of an access, until it is seen
    cpu_keep: float = 0.95  # of that, with each batch: one that was held up must not count for much
    cpu_few: int = 100  # accesses; a smaller batch costs more for what it holds and tells nothing


class Tracking(Struct, frozen=True):
    """How a curve follows its guest."""

    half_life_least: int = 2_048  # sampled accesses, else a working set: the curve of a small one is not to be noise
    left_after_change: float = 0.2  # of what was learnt, for the change may be a small one
    settled_after: float = 1.5  # working sets; until then most accesses are first ones, whose misses do not come again
    size_alike: float = 0.02  # a cache that changes by more in an interval misses at sizes in between
    cached_share: float = 0.2  # of the difference, by which the present size follows the cache's
    # How far a curve may be moved sideways to meet what was measured, as a share of the present size: what the mapping
    # from memory to cache and the size of the simulated caches are uncertain by. At a cliff a few per cent decide all.
    sideways: float = 0.06
    gap_least: float = 0.03  # a smaller one between curve and measurement is noise, and not closed sideways
    fine: int = 1_024  # sizes at which a curve is computed
    points: int = 32  # half of those that a `Curve` has: enough for lines between them, small in a record
    mapping_keep: float = 0.9  # of overhead and free memory as known, with each sample: both jump about
    # A cache that misses so many pages while memory is free, grows by less than a part of them, and gets more than that
    # part of them back after evicting them, is limited by something else.
    limit_pages_least: int = 4_096
    limit_part: float = 0.25
    limit_half_life_s: float = 30.0
    limit_grown: float = 1.1  # times as large is a cache that is limited no more
    limit_known_s: float = 600.0  # without being seen again
    outgrown: float = 1.1  # times the cache it was made for must the cap hold: a curve tells no sizes apart beyond
    outgrown_intervals: int = 30  # until it is made anew: a program that ended may only pause


class Trust(Struct, frozen=True):
    """When a curve may be acted on."""

    few: int = 1_000  # accesses; the ratio of fewer is off by .03 by chance
    working_sets: int = 2  # that must have been seen: the first fills the caches, the second tells what hits
    lost_share: float = 0.01  # a lost access hides itself and a reuse, so the curve is off by twice this at most
    # With fewer sampled pages a curve is too coarse if its error, some square root of them, is so much memory: what 113
    # pages at a rate of 1 in 1,024 say of a working set of 450 MiB may be off by 40.
    coarse_pages: int = 256
    coarse_bytes: int = 16 * MIB
    contradiction: float = 0.10  # farther from what is measured a curve is wrong, not inexact
    suspect_intervals: int = 3  # with accesses and no batch: something is wrong with the samples
    silent_intervals: int = 10  # and then a good curve is distrusted
    refused_intervals: int = 10  # for which a refused batch is remembered


class Noise(Struct, frozen=True):
    """How it is told how far a curve may be off by chance."""

    groups: int = 64  # of pages: half as many pairs, whose mean square is known to a quarter
    windows: int = 48  # of what is measured: twelve half-lives
    known_least: float = 0.5  # of a mean's variance, by how many windows there are; with fewer it is guesswork
    reach: float = 4.0  # deviations of where a size lies, within which a curve should be straight


class Change(Struct, frozen=True):
    """When a load is taken for another one."""

    windows: int = 4  # by half-life: long enough to be steady, short enough not to learn much of two loads at once
    gap: float = 0.05  # between misses and curve, more than usual: less is no change
    gap_strikes: int = 2  # windows in a row: a cache that settles looks like a change for one
    new: float = 0.15  # share of accesses to pages never seen before, more than usual: less is no change
    new_strikes: int = 1  # nothing else looks like them
    keep: float = 0.8  # of what is usual, with each window
    deviations: float = 4.0  # are usual: hundreds of windows an hour must raise no alarm
    values_least: int = 3  # windows until it is known what is usual


class Staleness(Struct, frozen=True):
    """When pages of a load that is over are in the way of the next."""

    least: float = 0.05  # share of the accesses that they cost; less may be an error of the simulation
    deviations: float = 3.0  # of the difference, so that it is not chance
    few: int = 500  # sampled accesses; fewer say nothing
    squeezed: float = 0.9  # of the cache, or less, is left: what was counted before does not hold


class Disks(Struct, frozen=True):
    """How QEMU's counts of disk reads are used."""

    half_life_s: float = 60.0  # of misses and reads compared: in an interval alone a guest may have a few too many
    pages_least: int = 100  # whose reads tell what one takes; the time of fewer is chance


class Service(Struct, frozen=True):
    """When it is known what a miss costs. Errors and slopes are by what it would cost if misses took all time."""

    intervals: int = 40  # samples fitted: a load that has caught up must be known for what it is in a minute
    telling: int = 8  # fewer are not fitted
    disagree: float = 3.0  # standard errors between two slopes by which they disagree
    alike: float = 2.0  # accesses of a sample: miss ratios less apart are the same
    accesses_least: int = 100  # in a sample: with fewer the load paused
    disk_keep: float = 0.96  # of what the disk was seen to take before, with each sample
    error_most: float = 0.25  # up to which a cost is believed
    significant: float = 6.0  # standard errors that a cost must have: samples in a row are not independent
    all_but_none: float = 0.3  # slope, with two standard errors, of a load that is believed not to wait
    steady: float = 0.1  # deviation of the times of a load with a rate of its own: much else makes one faster or slower
    error_least: float = 0.01  # no fit is more certain
    ageing: float = 1.01  # by which what was learnt is less certain with each sample
    stubborn: float = 6.0  # times as certain as a new fit is the most that is learnt: the load may be another
    caught_up: float = 0.1  # weight, at least, of not waiting: a load that has caught up keeps to its rate at once
    misses_least: float = 0.05  # a smaller miss ratio is taken for this one where it divides
    busy: float = 0.8  # of the time spent on the disk, before anything is fitted, tells a load that waits
    waits_all: float = 0.25  # more of the most a miss can cost is all of it, where the disk's own time is not known
    waits_least: float = 0.05  # with less the slope does not tell what a miss costs


class Value(Struct, frozen=True):
    """What memory is worth."""

    hits_least: float = 0.01  # below this share ``fair`` sees no difference: the logarithm of nothing outweighs all
    faster_most: float = 20.0  # times as fast as it was seen to be is a load predicted to become


class Tuning(Struct):
    """The stages, each a whole that is replaced and never changed."""

    sampling: Sampling = Sampling()
    tracking: Tracking = Tracking()
    trust: Trust = Trust()
    noise: Noise = Noise()
    change: Change = Change()
    staleness: Staleness = Staleness()
    disks: Disks = Disks()
    service: Service = Service()
    value: Value = Value()


TUNING = Tuning()
"""What is in use in this process."""


@contextmanager
def tuned(stage: str, **changes: float) -> Iterator[None]:
    """Use other values for a while, in this process. For tests and ablations.

    Args:
        stage: A field of `Tuning`.
        changes: Fields of the stage.
    """
    before = getattr(TUNING, stage)
    setattr(TUNING, stage, structs.replace(before, **changes))
    try:
        yield
    finally:
        setattr(TUNING, stage, before)
